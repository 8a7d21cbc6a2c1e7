"""Kills runs with SIGKILL, lets them go on, and compares every bit with a run that was never stopped.

    python benchmarks/resume.py --kills 200 --out resume.jsonl
    python benchmarks/resume.py --cases full flexmatch --kills 20 --seed 1

Notable:
- Runs are forked from one process that has imported everything, with one thread each: a start costs no
  import, and a kill is a real SIGKILL of a real run of a recipe.
- Three kinds of kill: after a random line of ``log.jsonl``; at a random moment; within the writing of a
  checkpoint, at a random file event below the side folder and up to some milliseconds behind it. What a
  kill hit is read from what it left: a side folder that lies there was being written. Besides, SIGTERM and
  SIGINT after a random line, which are counted apart.
- In a fifth of the resumes the newest checkpoint is spoilt first: cut short, a bit flipped, a file or its
  manifest taken away.
- Compared: all lines of ``log.jsonl``, ``samples.jsonl`` and the stages' logs but for times, every tensor
  of the model, the predictions, the metrics of the test split and what the method reports.
- One line of JSON a run; the table at the end counts them.
"""

from __future__ import annotations

import argparse
import copy
import importlib
import json
import os
import pkgutil
import random
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.update(OMP_NUM_THREADS="1", HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false")

TOPICS = {
    "sport": ["ball", "team", "goal", "coach", "match", "score"],
    "food": ["bread", "soup", "salt", "oven", "taste", "plate"],
    "music": ["song", "drum", "tune", "choir", "chord", "band"],
}
FILLER = ["the", "a", "and", "was", "in", "of", "very", "new", "old", "good"]
CHAT = (
    "{% for m in messages %}[CLS] {{ m.content }} [SEP]{% endfor %}"
    "{% if add_generation_prompt %}[CLS] {% endif %}"
)
TIMED = ("runtime", "preparation_time", "step_time", "per_second")
COUNTED = ("kills", "within_a_write", "stops", "spoilt", "passed_over")
STOPS = {signal.SIGINT: (130,), signal.SIGTERM: (143, -signal.SIGTERM)}  # how such a process ends
MOST_KILLS = 6  # of one run; then it may end
SPOILT = 0.2  # share of resumes before which the newest checkpoint is spoilt
KINDS = ("line", "line", "moment", "write", "write", "write", "write", "stop")
EVENTS = 80  # in side folders, within which a kill falls; a checkpoint has about 40
LIMIT = 300  # seconds of one start, after which it hangs


# -- models and data -------------------------------------------------------------------------------


def make_inputs(folder: Path) -> None:
    """Writes a BERT and two Llamas of 2 layers and width 32, and data of a few hundred rows."""
    import torch
    from transformers import BertConfig, BertModel, LlamaConfig, LlamaForCausalLM

    size = {"hidden_size": 32, "num_hidden_layers": 2, "intermediate_size": 64, "max_position_embeddings": 64}
    tokenizer = _tokenizer()
    torch.manual_seed(0)
    bert = BertConfig(vocab_size=len(tokenizer), num_attention_heads=2, initializer_range=0.2, **size)
    BertModel(bert).save_pretrained(folder / "bert")
    tokenizer.save_pretrained(folder / "bert")
    tokenizer.eos_token, tokenizer.chat_template = "[SEP]", CHAT
    for name in ("llama", "teacher"):
        llama = LlamaConfig(vocab_size=len(tokenizer), num_attention_heads=4, initializer_range=0.2, **size)
        LlamaForCausalLM(llama).save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    _write(folder / "rows.jsonl", _sentences(150, 0))
    split = folder / "split"
    for name, rows, seed in (("train", 60, 1), ("validation", 12, 2), ("test", 12, 3)):
        _write(split / f"{name}.jsonl", _sentences(rows, seed))
    _write(folder / "docs.jsonl", [{"text": row["text"]} for row in _sentences(120, 4)])
    words = [w for several in TOPICS.values() for w in several]
    _write(
        folder / "chat.jsonl",
        [{"prompt": f"{f} {w}", "completion": f"{w} and {f}"} for f in FILLER[:6] for w in words[:10]],
    )
    _write(
        folder / "pairs.jsonl",
        [
            {"prompt": f"the {a} was", "chosen": f"good {b}", "rejected": f"old {c}"}
            for a in words[:12]
            for b, c in zip(words[:3], words[6:9], strict=True)
        ],
    )
    asked = folder / "asked"
    _write(
        asked / "train.jsonl", [{"prompt": f"{f} {w}", "answer": w} for f in FILLER[:2] for w in words[:8]]
    )
    _write(asked / "pool.jsonl", [{"prompt": f"{f} {w}"} for f in FILLER[2:4] for w in words[:8]])
    _write(asked / "test.jsonl", [{"prompt": f"very {w}", "answer": w} for w in words[:8]])


def _tokenizer() -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    words = [*special, *FILLER, *(w for several in TOPICS.values() for w in several)]
    made = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    return PreTrainedTokenizerFast(tokenizer_object=made, mask_token="[MASK]", model_max_length=64, **names)


def _sentences(count: int, seed: int) -> list[dict[str, str]]:
    rng, made = random.Random(seed), []
    for i in range(count):
        label = list(TOPICS)[i % len(TOPICS)]
        words = rng.choices(FILLER, k=rng.randint(3, 8)) + rng.choices(TOPICS[label], k=2)
        rng.shuffle(words)
        made.append({"text": " ".join(words), "label": label})
    return made


def _write(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


# -- cases -----------------------------------------------------------------------------------------

LORA = {"name": "lora", "r": 4, "lora_dropout": 0.2}
BEST = {"eval_strategy": "steps", "eval_steps": 3, "save_steps": 3, "load_best_model_at_end": True}
SEMI = {"data": {"labels_per_class": 6}, "method": {"name": "semi_supervised"}, "trainer": {"max_steps": 14}}


def cases(folder: Path) -> dict[str, dict[str, Any]]:
    """Recipes by name; ``save_steps`` is no multiple of ``logging_steps`` on purpose."""
    base = {
        "name": "killed",
        "seed": 7,
        "model": {"name": str(folder / "bert"), "dtype": "float32"},
        "data": {"name": str(folder / "rows.jsonl")},
        "task": {"name": "text_classification"},
        "trainer": {
            **{"per_device_train_batch_size": 8, "learning_rate": 5e-3, "num_train_epochs": 2},
            **{
                "lr_scheduler_type": "constant",
                "logging_steps": 2,
                "save_steps": 3,
                "save_strategy": "steps",
            },
            **{"use_cpu": True, "disable_tqdm": True, "report_to": "none"},
        },
    }
    llama = {"model": {"name": str(folder / "llama")}}
    chat = {**llama, "data": {"name": str(folder / "chat.jsonl")}, "task": {"name": "chat", "packing": True}}
    watched = {"name": "early_stopping", "early_stopping_patience": 2, "early_stopping_threshold": 10.0}
    rounds = {"name": "self_training", "rounds": 2, "passes": 2}
    asked = {"name": str(folder / "asked"), "train": "train.jsonl", "test": "test.jsonl"}
    asked |= {"unlabeled": "pool.jsonl", "eval_fraction": 0}
    changes: dict[str, dict[str, Any]] = {
        "full": {},
        "epoch": {"trainer": {"save_strategy": "epoch", "eval_strategy": "epoch", "num_train_epochs": 4}},
        "eval_epoch": {"trainer": {"eval_strategy": "epoch", "save_steps": 4, "num_train_epochs": 3}},
        "one_kept": {"trainer": {"save_total_limit": 1, "save_steps": 2}},
        "lora_dropout": {"tuning": LORA},
        "lora_4bit": {"tuning": LORA, "quantization": {"load_in_4bit": True}},
        "accumulation": {"trainer": {"gradient_accumulation_steps": 3, "per_device_train_batch_size": 4}},
        "workers": {"trainer": {"dataloader_num_workers": 2, "max_steps": 14}},
        "best_and_patience": {
            "trainer": {**BEST, "metric_for_best_model": "loss", "num_train_epochs": 6},
            "callbacks": [watched],
        },
        "stream": {
            "data": {"name": str(folder / "split"), "streaming": True},
            "task": {"labels": ["food", "music", "sport"]},
            "trainer": {"max_steps": 20},
        },
        "chat_packed_samples": {
            **chat,
            "tuning": LORA,
            "trainer": {"eval_strategy": "steps", "eval_steps": 4, "num_train_epochs": 4},
            "callbacks": [{"name": "samples", "texts": ["the ball"], "max_new_tokens": 6}],
        },
        "mlm": {
            "model": {"name": str(folder / "bert")},
            "data": {"name": str(folder / "docs.jsonl")},
            "task": {"name": "mlm", "block_size": 16},
            "trainer": {"num_train_epochs": 3},
        },
        "flexmatch": {**SEMI, "algorithm": {"name": "flexmatch", "threshold": 0.4}},
        "freematch_guard": {
            **SEMI,
            "algorithm": "freematch",
            "trainer": {"max_steps": 14, "eval_strategy": "steps", "eval_steps": 4},
        },
        "softmatch_accumulated": {
            **SEMI,
            "algorithm": "softmatch",
            "tuning": LORA,
            "trainer": {"max_steps": 10, "gradient_accumulation_steps": 2},
        },
        "jointmatch": {**SEMI, "algorithm": {"name": "jointmatch", "threshold": 0.4}},
        "stage": {
            **SEMI,
            "stages": [{"name": "contrastive", "max_steps": 8, "batch_size": 8, "save_steps": 3}],
            "trainer": {"max_steps": 6},
        },
        "self_training": {
            "data": {"labels_per_class": 6},
            "method": rounds,
            "trainer": {"max_steps": 7, "eval_strategy": "steps", "eval_steps": 4},
        },
        "self_training_writing": {
            **llama,
            "data": asked,
            "task": {"name": "generation", "max_new_tokens": 2},
            "method": {**rounds, "least": 0.25, "select_fraction": 1.0},
            "trainer": {"max_steps": 6, "learning_rate": 1e-2},
        },
        "distillation": {**chat, "method": {"name": "distillation", "teacher": str(folder / "teacher")}},
        "dpo": {
            **llama,
            "data": {"name": str(folder / "pairs.jsonl"), "eval_fraction": 0},
            "task": "preference",
            "method": "dpo",
            "tuning": LORA,
            "trainer": {"max_steps": 12, "per_device_train_batch_size": 4},
        },
    }
    changes["grpo"] = {
        **llama,
        "data": {"name": str(folder / "asked"), "train": "train.jsonl", "test": "test.jsonl"},
        "task": {"name": "generation", "reward": "token_f1", "max_new_tokens": 3},
        "method": "grpo",
        "tuning": LORA,
        "trainer": {
            **{"max_steps": 12, "per_device_train_batch_size": 4, "num_generations": 2},
            **{"num_iterations": 2, "steps_per_generation": 2, "max_completion_length": 3},
        },
    }
    changes["grpo"]["data"]["eval_fraction"] = 0
    changes["self_training_writing"]["method"].pop("passes")
    return {name: _merged(base, change) for name, change in changes.items()}


def _merged(base: dict[str, Any], change: dict[str, Any]) -> dict[str, Any]:
    made = copy.deepcopy(base)
    for key, value in copy.deepcopy(change).items():
        fits = isinstance(value, dict) and isinstance(made.get(key), dict)
        made[key] = {**made[key], **value} if fits else value
    if "max_steps" in made["trainer"]:
        made["trainer"].pop("num_train_epochs")
    return made


# -- processes -------------------------------------------------------------------------------------


def warm() -> None:
    """Imports what runs need, so that forks have it."""
    import warnings

    import bitsandbytes  # noqa: F401
    import torch
    from transformers.utils import logging as transformers_logging
    from trl import DPOConfig, DPOTrainer  # noqa: F401

    import hf_llm_recipes

    for module in pkgutil.walk_packages(hf_llm_recipes.__path__, "hf_llm_recipes."):
        if ".recipes" not in module.name:
            importlib.import_module(module.name)
    warnings.simplefilter("ignore")
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    torch.set_num_threads(1)


def start(values: dict[str, Any], log: Path, prepare: Callable[[], None] | None = None) -> int:
    """Runs a recipe in a fork; returns its process id."""
    sys.stdout.flush()
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        os.setsid()
        handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(handle, 1)
        os.dup2(handle, 2)
        code = _run(values, prepare)
    finally:
        os._exit(code)


def _run(values: dict[str, Any], prepare: Callable[[], None] | None) -> int:
    import logging
    import traceback

    from hf_llm_recipes.errors import InterruptedRunError

    try:
        import hf_llm_recipes.run as engine
        from hf_llm_recipes.recipe import Recipe

        logging.basicConfig(level=logging.INFO, format="%(message)s", force=True)
        if prepare is not None:
            prepare()
        engine.run(Recipe.from_dict(values))
    except InterruptedRunError as error:
        return error.exit_code
    except KeyboardInterrupt:  # before or after the training
        return 130
    except BaseException:  # the last frame of a process that must not return into its parent
        traceback.print_exc()
        return 1
    return 0


def ended(pid: int, seconds: float) -> int | None:
    """Waits; returns how the process ended (as ``os.waitstatus_to_exitcode``), None where it did not."""
    until = time.monotonic() + seconds
    while True:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() >= until:
            return None
        time.sleep(0.005)


def kill_within_a_write(event: int, delay: float) -> Callable[[], None]:
    """Returns what makes a process kill itself ``delay`` seconds behind the n-th event in a side folder."""
    from hf_llm_recipes.checkpoints import SIDE

    def prepare() -> None:
        left = [event]

        def watch(name: str, arguments: tuple) -> None:
            if name in ("open", "os.rename", "os.mkdir") and f"/{SIDE}" in str(arguments[0]):
                left[0] -= 1
                if left[0] == 0:
                    threading.Thread(target=_die, args=(delay,), daemon=True).start()

        sys.addaudithook(watch)

    return prepare


def _die(delay: float) -> None:
    time.sleep(delay)
    os.kill(os.getpid(), signal.SIGKILL)


# -- one run, killed again and again -----------------------------------------------------------------


def tortured(
    values: dict[str, Any], out: Path, rng: random.Random, seconds: float, lines: int, kinds: list[str]
) -> dict[str, Any]:
    """Kills a run, lets it go on until it is done, and says what happened.

    Args:
        values: Of its recipe.
        out: Its directory.
        rng: Draws what is not given.
        seconds: That the whole run took.
        lines: That it logged.
        kinds: Of the kills, in order (``spoil`` before a start is none); empty: drawn.
    """
    told: dict[str, Any] = {**dict.fromkeys(COUNTED, 0), "events": []}
    log, todo, given_kinds = out.with_suffix(".txt"), list(kinds), bool(kinds)
    for _ in range(40):
        if (out / "metrics.json").is_file():  # killed or stopped when all was done
            break
        resumes = (out / "recipe.yaml").is_file()
        given = {**values, "output": str(out), **({"resume": True} if resumes else {})}
        if not resumes:
            shutil.rmtree(out, ignore_errors=True)
        if given_kinds:
            kind = todo.pop(0) if todo else "none"
        else:
            kind = rng.choice(KINDS)
            kind = kind if told["kills"] < MOST_KILLS else "none"
        if kind == "spoil" or (not given_kinds and resumes and rng.random() < SPOILT):
            _spoil(out, rng, told)
        if kind == "spoil":
            kind = todo.pop(0) if todo else "none"
        event, delay = rng.randint(1, EVENTS), rng.choice([0, 0, 0.001, 0.004])
        prepare = kill_within_a_write(event, delay) if kind == "write" else None
        before = _changed(out)
        pid = start(given, log, prepare)
        number = rng.choice(list(STOPS)) if kind == "stop" else signal.SIGKILL
        code = _killed(pid, kind, out, rng, seconds, lines, number, before)
        if code == 0:
            break
        if code in STOPS.get(number, ()):
            told["stops"] += 1
            told["events"].append(f"{signal.Signals(number).name}")
            continue
        if code != -signal.SIGKILL:
            return {**told, "error": f"ended with {code}: {_tail(log)}"}
        within = any(p.is_dir() for p in out.glob("checkpoints/**/.writing/checkpoint-*"))
        told["kills"] += 1
        told["within_a_write"] += within
        told["events"].append(f"{kind}{'*' if within else ''}")
    else:
        return {**told, "error": "it never ended"}
    told["passed_over"] = log.read_text(encoding="utf-8").count("is passed over")
    return told


def _killed(
    pid: int, kind: str, out: Path, rng: random.Random, seconds: float, lines: int, number: int, before: int
) -> int:
    """Waits for the end of a process, which it brings about for all kinds but those within a write."""
    code: int | None = None
    if kind == "moment":
        code = ended(pid, rng.uniform(0.3, 1.0) * seconds)
    elif kind in ("line", "stop"):
        code = _ended_by_its_lines(pid, out, before, rng, lines)
        code = ended(pid, rng.uniform(0, 0.05)) if code is None else code
    else:
        code = ended(pid, LIMIT)
    if code is None:
        os.killpg(pid, number)
        code = ended(pid, LIMIT)
    return -1 if code is None else code


def _ended_by_its_lines(pid: int, out: Path, before: int, rng: random.Random, lines: int) -> int | None:
    """Waits until a process has logged some lines; returns how it ended where it did before that."""
    code, wanted, until = None, None, time.monotonic() + LIMIT
    while code is None and time.monotonic() < until and (wanted is None or _count(out) < wanted):
        if wanted is None and _changed(out) != before:  # it has cut its log back, or begun one
            wanted = rng.randint(_count(out) + 1, max(lines, _count(out) + 1))
        code = ended(pid, 0.01)
    return code


def _changed(out: Path) -> int:
    path = out / "log.jsonl"
    return path.stat().st_mtime_ns if path.is_file() else 0


def _count(out: Path) -> int:
    path = out / "log.jsonl"
    return path.read_bytes().count(b"\n") if path.is_file() else 0


def _spoil(out: Path, rng: random.Random, told: dict[str, Any]) -> None:
    """Spoils the newest checkpoint in one of the ways that disks and people have."""
    from hf_llm_recipes.checkpoints import MANIFEST, newest_checkpoint

    newest = newest_checkpoint(out / "checkpoints")
    if newest is None:
        return
    files = sorted(p for p in newest.rglob("*") if p.is_file() and p.stat().st_size > 0)
    chosen = rng.choice([p for p in files if p.name != MANIFEST])
    how = rng.choice(["cut", "flip", "gone", "no manifest"])
    whole = bytearray(chosen.read_bytes())
    if how == "cut":
        chosen.write_bytes(whole[: len(whole) // 2])
    elif how == "flip":
        whole[rng.randrange(len(whole))] ^= 1
        chosen.write_bytes(whole)
    elif how == "gone":
        chosen.unlink()
    else:
        (newest / MANIFEST).unlink(missing_ok=True)
    told["spoilt"] += 1
    told["events"].append(f"spoilt: {how} {newest.name}/{chosen.name}")


def _tail(log: Path) -> str:
    return log.read_text(encoding="utf-8")[-2000:]


# -- comparison ------------------------------------------------------------------------------------


def differences(whole: Path, other: Path) -> list[str]:
    """Returns what is not the same bit for bit in two finished runs."""
    found = []
    for name in ("log.jsonl", "samples.jsonl", *(p.name for p in whole.glob("stage-*.jsonl"))):
        a, b = (_lines(folder / name) for folder in (whole, other))
        if a != b:
            pairs = enumerate(zip(a, b, strict=False))
            at = next((i for i, (x, y) in pairs if x != y), min(len(a), len(b)))
            found.append(f"{name}, {len(a)} and {len(b)} lines, at {at}: {a[at : at + 1]} {b[at : at + 1]}")
    found += _tensor_differences(whole / "model", other / "model")
    import pyarrow.parquet

    tables = [pyarrow.parquet.read_table(folder / "predictions.parquet") for folder in (whole, other)]
    if not tables[0].equals(tables[1]):
        found.append("predictions")
    metrics = [json.loads((folder / "metrics.json").read_text(encoding="utf-8")) for folder in (whole, other)]
    for part in ("test", "method", "baselines", "stages", "before"):
        a, b = (_untimed(one.get(part)) for one in metrics)
        if a != b:
            found.append(f"metrics.{part}: {_first_difference(a, b)}")
    for name in ("steps", "epochs", "loss", "best_metric"):
        a, b = (one["training"][name] for one in metrics)
        if a != b:
            found.append(f"metrics.training.{name}: {a} {b}")
    return found


def _lines(path: Path) -> list[dict[str, Any]]:
    if not path.is_file():
        return []
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [_untimed(line) for line in lines if "train_runtime" not in line]


def _untimed(value: Any) -> Any:
    if isinstance(value, list):
        return [_untimed(one) for one in value]
    if not isinstance(value, dict):
        return value
    timed = ("time", "seconds", "minutes")
    return {k: _untimed(v) for k, v in value.items() if k not in timed and not k.endswith(TIMED)}


def _first_difference(a: Any, b: Any) -> str:
    if isinstance(a, dict) and isinstance(b, dict) and a.keys() == b.keys():
        return next(f"{k}: {_first_difference(a[k], b[k])}" for k in a if a[k] != b[k])
    return f"{a!r} {b!r}"[:300]


def _tensor_differences(whole: Path, other: Path) -> list[str]:
    import torch
    from safetensors.torch import load_file

    a, b = (
        {k: v for file in sorted(folder.glob("*.safetensors")) for k, v in load_file(file).items()}
        for folder in (whole, other)
    )
    if a.keys() != b.keys() or not a:
        return [f"the model's tensors: {sorted(a.keys() ^ b.keys())[:3]}"]
    odd = [name for name in a if not torch.equal(a[name], b[name])]
    return [f"{len(odd)} of {len(a)} tensors, {odd[0]} first"] if odd else []


# -- all of it ---------------------------------------------------------------------------------------


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=200, help="kills in all, at least")
    parser.add_argument("--cases", nargs="*", help="of these only")
    parser.add_argument("--kinds", nargs="*", default=[], help="line, moment, write, spoil: in this order")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="JSON lines, one a run")
    given = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="resume-"))
    os.environ["HF_DATASETS_CACHE"] = str(folder / "datasets")
    os.environ["HF_LLM_RECIPES_CACHE"] = str(folder / "cache")
    warm()
    make_inputs(folder)
    known = cases(folder)
    rng = random.Random(given.seed)
    results = _tried({name: known[name] for name in given.cases or known}, folder, rng, given)
    print(table(results))
    faults = [one for one in results if one["differences"] or "error" in one]
    if not faults:
        shutil.rmtree(folder)
    sys.exit(1 if faults else 0)


def _tried(chosen: dict[str, Any], folder: Path, rng: random.Random, given: Any) -> list[dict[str, Any]]:
    results: list[dict[str, Any]] = []
    wholes: dict[str, tuple[float, int]] = {}
    turn = 0
    while sum(one["kills"] for one in results) < given.kills or turn == 0:
        for name, values in chosen.items():
            if name not in wholes:
                wholes[name] = _whole(name, values, folder)
            out = folder / f"{name}-{turn}"
            told = {"case": name, "turn": turn, **tortured(values, out, rng, *wholes[name], given.kinds)}
            told["differences"] = [] if "error" in told else differences(folder / name, out)
            results.append(told)
            print(json.dumps(told), flush=True)
            if given.out:
                with given.out.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(told) + "\n")
            if not told["differences"] and "error" not in told:
                shutil.rmtree(out)
        turn += 1
    return results


def _whole(name: str, values: dict[str, Any], folder: Path) -> tuple[float, int]:
    """The run that is never stopped; returns its seconds and its lines."""
    began, out = time.monotonic(), folder / name
    code = ended(start({**values, "output": str(out)}, out.with_suffix(".txt")), LIMIT)
    if code != 0:
        raise RuntimeError(f"{name} does not run: {_tail(out.with_suffix('.txt'))}")
    return time.monotonic() - began, _count(out)


def table(results: list[dict[str, Any]]) -> str:
    """Returns a line a case: runs, kills, kills within a write, spoilt checkpoints, identical runs."""
    rows: dict[str, list[int]] = defaultdict(lambda: [0] * (len(COUNTED) + 2))
    for one in results:
        same = not one["differences"] and "error" not in one
        counts = [1, *(one[name] for name in COUNTED), int(same)]
        for name in (one["case"], "all"):
            rows[name] = [a + b for a, b in zip(rows[name], counts, strict=True)]
    rows["all"] = rows.pop("all")
    head = ("case", "runs", "kills", "in a write", "stops", "spoilt", "passed over", "identical")
    lines = [head, *((name, *map(str, counts)) for name, counts in rows.items())]
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
    return "\n".join("  ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)) for line in lines)


if __name__ == "__main__":
    main()
