"""The part of ``language_models.py`` that runs in LLaMA-Factory's own environment.

    python -m venv lf && lf/bin/pip install llamafactory && lf/bin/pip uninstall torchvision torchaudio
    python benchmarks/language_models.py --data DIR --llamafactory lf/bin/python

It reads what to do from a JSON file: model folder, folder of tokenised rows, folder of a fresh adapter,
steps, rows a step. LLaMA-Factory takes all three as they are, so ids, labels and initial weights are those
of the other contenders. Prints one line of JSON. Its torchaudio and torchvision do not load beside a CPU
build of torch; it imports the first whatever is trained, so an empty module stands in for it.
"""

from __future__ import annotations

import importlib.machinery
import importlib.util
import json
import os
import resource
import sys
import tempfile
import time
import types
from pathlib import Path
from typing import Any


def main(job: dict[str, Any]) -> dict[str, Any]:
    """Runs the job."""
    os.environ |= {"USE_MODELSCOPE_HUB": "0", "DISABLE_VERSION_CHECK": "1"}
    if importlib.util.find_spec("torchaudio") is None:
        empty = sys.modules["torchaudio"] = types.ModuleType("torchaudio")
        empty.__spec__ = importlib.machinery.ModuleSpec("torchaudio", None)
    import torch
    import transformers
    from llamafactory.train.tuner import run_exp
    from transformers import TrainerCallback

    clocks = {"seconds": time.perf_counter, "cpu_seconds": time.process_time}
    found: dict[str, list[float]] = {name: [] for name in clocks}
    losses: list[float] = []

    class Clock(TrainerCallback):
        def on_step_begin(self, *args, **kwargs):
            self.begun = {name: clock() for name, clock in clocks.items()}

        def on_step_end(self, *args, **kwargs):
            for name, clock in clocks.items():
                found[name].append(clock() - self.begun[name])

        def on_log(self, args, state, control, logs=None, **kwargs):
            if "loss" in (logs or {}):
                losses.append(float(logs["loss"]))

    with tempfile.TemporaryDirectory() as folder:
        run_exp(
            {
                "stage": "sft",
                "do_train": True,
                "model_name_or_path": job["model"],
                "adapter_name_or_path": job["adapter"],
                "finetuning_type": "lora",
                "template": "empty",
                "dataset": "none",  # a name is asked for; what is read is tokenized_path
                "tokenized_path": job["rows_folder"],
                "disable_shuffling": True,
                "cutoff_len": job["max_length"],
                "output_dir": str(Path(folder) / "out"),
                "max_steps": job["steps"],
                "per_device_train_batch_size": job["rows"],
                "learning_rate": 2e-4,
                "lr_scheduler_type": "constant",
                "logging_steps": 1,
                "save_strategy": "no",
                "report_to": "none",
                "disable_tqdm": True,
                "use_cpu": True,
                "bf16": False,
                "dataloader_pin_memory": False,
                "seed": job["seed"],
                **job["more"],
            },
            callbacks=[Clock()],
        )
    return {
        "losses": losses,
        **found,
        "threads": torch.get_num_threads(),
        "peak_rss_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "packages": {p.__name__: p.__version__ for p in (torch, transformers)},
    }


if __name__ == "__main__":
    print(json.dumps(main(json.loads(Path(sys.argv[1]).read_text()))))
