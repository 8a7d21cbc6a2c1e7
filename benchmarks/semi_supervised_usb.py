"""Our semi-supervised fine-tuning beside USB's ``semilearn`` 0.3.2: same rows, model, steps, machine.

Needs an environment that has this package and ``semilearn``; its requirements hold back newer stacks, so:

    pip install --no-deps semilearn==0.3.2 timm torchvision scikit-image lazy_loader progress \\
        ruamel.yaml tensorboard protobuf absl-py
    OMP_NUM_THREADS=1 python benchmarks/semi_supervised_usb.py --data ../data --set ag_news --seeds 1

Notable:
- USB trains as in its own text configurations: every weight, AdamW, learning rate 5e-5 with layer decay
  0.65, weight decay 5e-4, cosine, warm-up over 5 % of the steps, no moving average (``ema_m: 0``).
- Its strong view is a stored text: two of our token substitution for each row, made before the clock starts.
- Its bert head is 768 wide whatever the model, and its loop needs CUDA: ``usb_model`` and ``usb_line``
  put that right from outside. Its evaluation and checkpoint hooks are left out, so a step is a step.
- Ours is judged with its teacher (the moving average), USB with its last weights: both by their defaults.
- Seconds a step are medians from the end of one step to the end of the next, loading and moving average
  included; CPU seconds are the process's own, which other work on the machine disturbs less. "In all" is
  everything: for ours reading, frozen features, judging teacher and student, saving; for USB loading the
  model, training and judging.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import statistics
import sys
import time
import types
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from semi_supervised import measure, recipe_of

LIKE_USB = {"tuning": {"name": "full"}, "augmentation": [{"name": "substitute"}]}
COLD = {"method": {"name": "semi_supervised", "warm_start": "none"}}
OURS: dict[str, tuple[str, dict[str, Any]]] = {
    "supervised": ("supervised", {}),
    "softmatch": ("softmatch", {}),
    "adamatch": ("adamatch", {}),
    "softmatch-full-cold": ("softmatch", {**LIKE_USB, **COLD}),
    "adamatch-full-cold": ("adamatch", {**LIKE_USB, **COLD}),
}
USB = ("usb-softmatch", "usb-adamatch")
UNUSED = ("aim", "wandb", "torchaudio")  # semilearn imports them; nothing here calls them
FULL_LEARNING_RATE = 5e-5


class Clock:
    """Marks the end of every step, in seconds and in CPU seconds of the process."""

    marks: list[tuple[float, float]] = []  # noqa: RUF012  one for the process: a callback is made by name

    @classmethod
    def tick(cls) -> None:
        """A step has ended."""
        cls.marks.append((time.perf_counter(), time.process_time()))

    @classmethod
    def read(cls) -> dict[str, float]:
        """The medians between marks; starts anew."""
        steps = np.diff(np.array(cls.marks), axis=0)
        cls.marks = []
        wall, cpu = np.median(steps, axis=0).tolist()
        return {"step_seconds": wall, "step_cpu_seconds": cpu}


def register_clock() -> None:
    """Makes the clock a callback that a recipe can name."""
    from transformers import TrainerCallback

    from hf_llm_recipes.registry import CALLBACKS

    class StepClock(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            Clock.tick()

    CALLBACKS.register(StepClock)


def ours_line(name: str, seed: int, options) -> dict[str, Any]:
    """Trains with ours and returns the figures."""
    method, changes = OURS[name]
    values = {**recipe_of(method, options.set, options.labels, seed, options), **changes}
    values["callbacks"] = [{"name": "step_clock"}]
    if "tuning" in changes:
        values["trainer"]["learning_rate"] = FULL_LEARNING_RATE
    started = time.process_time()
    line = measure({}, values)
    return {
        "accuracy": line["accuracy"],
        "learning_rate": values["trainer"]["learning_rate"],
        **Clock.read(),
        "run_seconds": 60 * line["minutes"],
        "run_cpu_seconds": time.process_time() - started,
    }


def import_usb() -> None:
    """Imports semilearn without what it imports and does not use here."""
    try:
        import torchvision
    except RuntimeError:  # built for CUDA, beside a torch without: its operators are not there
        library = torch.library.Library("torchvision", "DEF")
        for operator in ("nms", "qnms"):
            library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        import torchvision  # noqa: F401
    absent = [name for name in UNUSED if importlib.util.find_spec(name) is None]
    for name in absent:
        sys.modules[name] = types.ModuleType(name)
        sys.modules[name].__spec__ = ModuleSpec(name, None)
    import semilearn  # noqa: F401

    for name in absent:
        del sys.modules[name]


def usb_rows(seed: int, options) -> dict[str, Any]:
    """The rows that our run draws, as USB's data sets, and USB's collator around the model's tokenizer."""
    from semilearn.datasets.collactors.nlp_collactor import DataCollatorWithPadding
    from semilearn.datasets.nlp_datasets.datasetbase import BasicDataset

    from hf_llm_recipes.data.augmentation.base import Pool
    from hf_llm_recipes.data.augmentation.substitute import Substitute
    from hf_llm_recipes.recipe import Recipe
    from hf_llm_recipes.run import _Runner, plan

    values = recipe_of("softmatch", options.set, options.labels, seed, options)
    runner = _Runner(plan(Recipe.from_dict(values)))
    runner.prepare_data()
    made, read, tokenizer = runner.prepared, runner.loaded, runner.tokenizer
    view = Substitute()
    view.fit(Pool(made.unlabeled, read.unlabeled, tokenizer, runner.encode, seed))
    random = np.random.default_rng(seed)

    def text(i: int) -> str:
        ids = view(made.unlabeled[i], i, random)["input_ids"]
        return tokenizer.decode(ids, skip_special_tokens=True)

    pool = [(words, text(i), text(i)) for i, words in enumerate(read.unlabeled["text"])]
    classes = len(set(made.train["labels"][:]))

    def labeled(rows: Any, features: Any) -> BasicDataset:
        return BasicDataset("softmatch", [(t,) for t in rows["text"]], features["labels"][:], classes)

    return {
        "train_lb": labeled(read.train, made.train),
        "train_ulb": BasicDataset("softmatch", pool, None, classes, True),
        "eval": labeled(read.test, made.test),
        "collator": DataCollatorWithPadding(tokenizer, max_length=options.max_length),
        "classes": classes,
    }


def usb_arguments(algorithm: str, classes: int, seed: int, options) -> Any:
    """USB's arguments: those of its text configurations, at our batch and steps."""
    from semilearn import get_config

    return get_config(
        {
            "algorithm": algorithm,
            "net": "bert_base_uncased",
            "dataset": "ours",  # not one that it knows: it then leaves data and loaders to us
            "num_classes": classes,
            "batch_size": 8,
            "uratio": 3,
            "eval_batch_size": 32,
            "num_train_iter": options.steps,
            "num_warmup_iter": round(0.05 * options.steps),
            "num_log_iter": options.steps + 1,
            "num_eval_iter": options.steps + 1,
            "max_length": options.max_length,
            "optim": "AdamW",
            "lr": options.usb_learning_rate,
            "weight_decay": 5e-4,
            "layer_decay": 0.65,
            "ema_m": 0.0,
            "use_cat": False,
            "seed": seed,
            "distributed": False,
        }
    )


def usb_model(folder: str, num_classes: int) -> Any:
    """USB's classifier on a model of any width."""
    from semilearn.nets.bert.bert import ClassificationBert

    net = ClassificationBert(folder, num_classes).float()
    net.num_features = width = net.bert.config.hidden_size
    net.classifier[0] = torch.nn.Linear(width, width)
    net.classifier[2] = torch.nn.Linear(width, num_classes)
    return net


def usb_algorithm(name: str, rows: dict[str, Any], seed: int, options) -> Any:
    """USB's algorithm with our rows, ready to train."""
    from semilearn import get_algorithm, get_data_loader
    from semilearn.core.hooks import Hook

    from hf_llm_recipes.assets import resolve_model

    class Tick(Hook):
        def after_train_step(self, algorithm):
            Clock.tick()

    folder = resolve_model(options.model)
    args = usb_arguments(name.removeprefix("usb-"), rows["classes"], seed, options)
    usb = get_algorithm(args, lambda num_classes, **_: usb_model(folder, num_classes), None, None)
    with mock.patch("semilearn.core.utils.build.get_collactor", return_value=rows["collator"]):
        usb.loader_dict = {
            "train_lb": get_data_loader(args, rows["train_lb"], 8, num_workers=0),
            "train_ulb": get_data_loader(args, rows["train_ulb"], 24, num_workers=0),
            "eval": get_data_loader(
                args, rows["eval"], 32, data_sampler=None, num_workers=0, drop_last=False
            ),
        }
    for hook in ("TimerHook", "EvaluationHook", "CheckpointHook"):  # CUDA's clock, and what is no training
        del usb.hooks_dict[hook]
    usb.hooks_dict["Tick"] = Tick()
    return usb


def usb_line(name: str, seed: int, options) -> dict[str, Any]:
    """Trains with USB and returns the figures."""
    from transformers import set_seed

    rows = usb_rows(seed, options)
    set_seed(seed)
    started, started_cpu = time.perf_counter(), time.process_time()
    usb = usb_algorithm(name, rows, seed, options)
    with mock.patch.object(torch.Tensor, "cuda", lambda tensor, *_: tensor):
        usb.train()
        accuracy = usb.evaluate("eval")["eval/top-1-acc"]
    return {
        "accuracy": float(accuracy),
        "learning_rate": options.usb_learning_rate,
        **Clock.read(),
        "run_seconds": time.perf_counter() - started,
        "run_cpu_seconds": time.process_time() - started_cpu,
    }


def table(lines: list[dict[str, Any]]) -> str:
    """The figures as Markdown, means over the seeds."""
    rows = ["| method | accuracy, % | seeds | seconds a step | CPU seconds a step | CPU seconds in all |"]
    rows.append("|---" * 6 + "|")
    for name in dict.fromkeys(line["method"] for line in lines):
        mine = [line for line in lines if line["method"] == name]
        mean = {key: statistics.mean(line[key] for line in mine) for key in mine[0] if key != "method"}
        rows.append(
            f"| {name} | {100 * mean['accuracy']:.1f} | {len(mine)} | {mean['step_seconds']:.2f} "
            f"| {mean['step_cpu_seconds']:.2f} | {mean['run_cpu_seconds']:.0f} |"
        )
    return "\n".join(rows)


def main(arguments: list[str] | None = None) -> None:
    """Measures, prints a table, appends JSON lines."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=Path("data"), help="the folder of the data sets")
    parser.add_argument("--set", default="ag_news")
    parser.add_argument("--labels", type=int, default=10, help="labels a class")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--methods", nargs="+", default=[*OURS, *USB], choices=[*OURS, *USB])
    parser.add_argument("--model", default="local/minilm")
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--pool", type=int, default=3000)
    parser.add_argument("--test-rows", type=int, default=2000)
    parser.add_argument("--max-length", type=int, default=64)
    parser.add_argument("--learning-rate", type=float, default=1e-3, help="of ours with LoRA")
    parser.add_argument("--usb-learning-rate", type=float, default=FULL_LEARNING_RATE, help="of USB")
    parser.add_argument("--out", type=Path, default=Path("semi_supervised_usb.jsonl"))
    options = parser.parse_args(arguments)
    import_usb()  # first: a torchvision without its operators would break transformers as well
    register_clock()
    lines = []
    for seed in range(options.seeds):
        for name in options.methods:
            found = (usb_line if name in USB else ours_line)(name, seed, options)
            lines.append({"method": name, "seed": seed, "steps": options.steps, **found})
            with options.out.open("a", encoding="utf-8") as file:
                file.write(json.dumps(lines[-1]) + "\n")
    print(table(lines))


if __name__ == "__main__":
    main()
