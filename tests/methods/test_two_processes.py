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
import torch
sys.path[:0] = {paths!r}
from _tiny_parts import make_parts
from transformers import AutoModelForSequenceClassification
from hf_llm_recipes.methods.semi_supervised import SemiSupervised
from hf_llm_recipes.registry import ALGORITHMS

folder, out, batch, cases = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), json.loads(sys.argv[4])
found = {{}}
for name, (algorithm, values, keys) in cases.items():
    dry = AutoModelForSequenceClassification.from_pretrained(
        folder, num_labels=3, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0
    )
    dry.classifier.weight.data.copy_(dry.bert.embeddings.word_embeddings.weight.data[5:8])
    dry.classifier.bias.data.zero_()
    parts = make_parts(folder, out, model=dry, max_steps=3, logging_steps=1,
                       per_device_train_batch_size=batch, save_strategy="no")
    parts.algorithm = ALGORITHMS.get(algorithm)(**values)
    parts.unlabeled_rows = parts.unlabeled
    method = SemiSupervised(**{{"warm_start": "none", "warmup_fraction": 0.0, "unlabeled_ratio": 2, **keys}})
    trainer = method.build(parts)
    if trainer.guard is not None:
        trainer.guard.every = 1
    trainer.train()
    found[name] = {{
        "losses": [entry["loss"] for entry in trainer.state.log_history if "loss" in entry],
        "weight": trainer.model.classifier.weight.detach().flatten().tolist(),
        "strong_rows": trainer.computed["strong_rows"],
        "guard": trainer.guard.findings if trainer.guard else None,
        "waited": trainer.guard.steps_waited if trainer.guard else None,
    }}
if trainer.args.process_index == 0:
    (out / "found.json").write_text(json.dumps(found))
if torch.distributed.is_initialized():  # else a thread of its own may abort the process at its end
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()
"""
# name -> algorithm, its values, keys of the method
CASES = {
    "fixmatch": ("fixmatch", {"threshold": 0.5}, {"guard": False}),
    "softmatch": ("softmatch", {}, {"guard": False}),
    "a guard that finds harm": ("adamatch", {"threshold": 0.5}, {"prior": [0.9, 0.05, 0.05]}),
    "vat": ("vat", {}, {"guard": False}),
    "warm start": ("softmatch", {}, {"warm_start": "propagation", "warm_start_fraction": 1.0}),
    "fine-tuned": ("softmatch", {}, {"warm_start": "fine_tuned", "warm_start_fraction": 1.0}),
}


def free_port():
    with socket.socket() as opened:
        opened.bind(("127.0.0.1", 0))
        return opened.getsockname()[1]


def trained(tiny_bert, tmp_path, processes):
    """What the script has found, in so many processes of 4 labeled rows a step in all."""
    script, out = tmp_path / "train.py", tmp_path / f"{processes}"
    script.write_text(SCRIPT.format(paths=[str(HERE), str(HERE.parent)]))
    out.mkdir()
    start = [sys.executable]
    if processes > 1:
        start += ["-m", "torch.distributed.run", "--nproc_per_node", str(processes)]
        start += ["--master_port", str(free_port())]
    done = subprocess.run(
        [*start, str(script), str(tiny_bert), str(out), str(4 // processes), json.dumps(CASES)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads((out / "found.json").read_text())


def test_two_processes_give_the_losses_of_one(tiny_bert, tmp_path):
    one, two = (trained(tiny_bert, tmp_path, processes) for processes in (1, 2))
    assert one.keys() == two.keys() == CASES.keys()
    for name in CASES:
        if name != "vat":  # draws its own directions in each process
            assert two[name]["losses"] == pytest.approx(one[name]["losses"], rel=1e-4), name
            assert two[name]["weight"] == pytest.approx(one[name]["weight"], abs=1e-5), name
        assert two[name]["guard"] == one[name]["guard"], name
        assert two[name]["waited"] == one[name]["waited"], name
    assert one["fixmatch"]["strong_rows"] > 0
    assert one["a guard that finds harm"]["guard"]
