"""Two processes with half the batch each are one process with the whole of it."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
SCRIPT = """
import json, sys
from pathlib import Path
sys.path[:0] = {paths!r}
from _tiny_parts import make_parts
from transformers import AutoModelForSequenceClassification
from hf_llm_recipes.algorithms.fixmatch import FixMatch
from hf_llm_recipes.methods.semi_supervised import SemiSupervised

folder, out, batch = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
dry = AutoModelForSequenceClassification.from_pretrained(
    folder, num_labels=3, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0
)
dry.classifier.weight.data.copy_(dry.bert.embeddings.word_embeddings.weight.data[5:8])
dry.classifier.bias.data.zero_()
parts = make_parts(folder, out, model=dry, max_steps=3, logging_steps=1, per_device_train_batch_size=batch,
                   save_strategy="no")
parts.algorithm = FixMatch(threshold=0.5)
parts.unlabeled_rows = parts.unlabeled
method = SemiSupervised(warm_start="none", warmup_fraction=0.0, unlabeled_ratio=2, guard=False)
trainer = method.build(parts)
trainer.train()
if trainer.args.process_index == 0:
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    weight = trainer.model.classifier.weight.detach().flatten().tolist()
    (out / "found.json").write_text(json.dumps({{"losses": losses, "weight": weight, **trainer.computed}}))
"""


def free_port():
    with socket.socket() as opened:
        opened.bind(("127.0.0.1", 0))
        return opened.getsockname()[1]


@pytest.mark.parametrize("processes", [2])
def test_two_processes_give_the_losses_of_one(tiny_bert, tmp_path, processes):
    script = tmp_path / "train.py"
    script.write_text(SCRIPT.format(paths=[str(HERE), str(HERE.parent)]))
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    found = {}
    for number, batch in ((1, 4), (processes, 4 // processes)):
        out = tmp_path / f"{number}"
        out.mkdir()
        start = [sys.executable]
        if number > 1:
            start += ["-m", "torch.distributed.run", "--nproc_per_node", str(number)]
            start += ["--master_port", str(free_port())]
        done = subprocess.run(
            [*start, str(script), str(tiny_bert), str(out), str(batch)],
            env=environment,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-3000:]
        found[number] = json.loads((out / "found.json").read_text())
    assert found[1]["strong_rows"] > 0
    assert found[processes]["losses"] == pytest.approx(found[1]["losses"], rel=1e-4)
    assert found[processes]["weight"] == pytest.approx(found[1]["weight"], abs=1e-5)
