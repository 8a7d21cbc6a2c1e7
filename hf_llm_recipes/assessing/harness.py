"""Tasks of EleutherAI's lm-evaluation-harness for a run's causal model; extra `lm-eval`.

Notable:
- The loaded model is judged, adapter and quantised base as they are; nothing is fetched for it.
- A task is a name that the harness knows (whose data it fetches), or a YAML file of the harness's own kind,
  with local data. ``!function`` in such a file runs Python code: it is refused unless trusted.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hf_llm_recipes.errors import DataError, MissingExtraError, RunError, did_you_mean

FUNCTION = re.compile(r"!function\b|^\s*(class|include)\s*:", re.MULTILINE)
CAUSAL = "AutoModelForCausalLM"
FIGURE = re.compile(r"(?P<name>[^,]+),(?P<filter>.+)")


def evaluate(
    predictor: Any,
    tasks: Sequence[str],
    *,
    limit: int | None = None,
    batch_size: int = 8,
    trust_code: bool = False,
) -> dict[str, Any]:
    """Returns ``{task: {figure: value, "<figure>_stderr": value, "rows": count}}``.

    Args:
        predictor: Of a run of a causal model.
        tasks: Names, or YAML files.
        limit: Rows of a task at most.
        batch_size: Rows a forward.
        trust_code: Whether Python code that a file names may run.

    Raises:
        RunError: the run has no causal model, or a file is no task.
        DataError: no such task.
        MissingExtraError: lm-eval is not installed.
    """
    if predictor.task.auto_class != CAUSAL:
        raise RunError(
            "lm-eval judges causal language models, and this run has none",
            allowed="runs of the tasks chat, generation, preference and clm",
        )
    try:
        from lm_eval import simple_evaluate
        from lm_eval.models.huggingface import HFLM
        from lm_eval.tasks import TaskManager
    except ImportError as error:
        raise MissingExtraError("lm_eval", "lm-eval") from error
    files = [Path(name) for name in tasks if name.endswith((".yaml", ".yml"))]
    for path in files:
        _check_file(path, trust_code)
    manager = TaskManager(include_path=sorted({str(path.parent.resolve()) for path in files}) or None)
    names = [_task_name(name) for name in tasks]
    unknown = [name for name in names if name not in manager.all_tasks]
    if unknown:
        raise DataError(
            f"lm-eval has no task `{unknown[0]}`{did_you_mean(unknown[0], manager.all_tasks)}",
            hint="name a task of `lm-eval ls tasks`, or a YAML file",
        )
    tokenizer = predictor.tokenizer
    begin = {"add_bos_token": False} if _ends_texts(tokenizer) else {}
    model = HFLM(pretrained=predictor.model, tokenizer=tokenizer, batch_size=batch_size, **begin)
    found = simple_evaluate(model, tasks=names, task_manager=manager, limit=limit, log_samples=False)
    return {name: _figures(scores, found["n-samples"].get(name)) for name, scores in found["results"].items()}


def _ends_texts(tokenizer: Any) -> bool:
    """Whether the tokenizer puts an end behind a text: the harness would let answers begin behind it."""
    ids = tokenizer("a")["input_ids"]
    return bool(ids) and ids[-1] in {tokenizer.eos_token_id, tokenizer.sep_token_id} - {None}


def _check_file(path: Path, trust_code: bool) -> None:
    if not path.is_file():
        raise RunError("no such file", where=str(path), hint="name a YAML file of lm-eval's")
    text = path.read_text(encoding="utf-8", errors="replace")
    if FUNCTION.search(text) and not trust_code:
        raise RunError(
            "names Python code or another file (`!function`, `class`, `include`)",
            where=str(path),
            hint="read it, then add --trust-code",
        )


def _task_name(given: str) -> str:
    """The name in a YAML file, else the name itself."""
    import yaml

    if not given.endswith((".yaml", ".yml")):
        return given
    text = FUNCTION.sub("", Path(given).read_text(encoding="utf-8"))
    try:
        found = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise RunError(f"is no YAML: {error}", where=given) from error
    name = found.get("task") if isinstance(found, dict) else None
    if not isinstance(name, str):
        raise RunError("names no `task:`", where=given, allowed="a task file of lm-eval's")
    return name


def _figures(scores: dict[str, Any], counts: dict[str, int] | None) -> dict[str, Any]:
    """``acc,none`` -> ``acc``; of other filters with their name."""
    made: dict[str, Any] = {"rows": (counts or {}).get("effective")}
    for key, value in scores.items():
        found = FIGURE.fullmatch(key)
        if found is None or not isinstance(value, int | float):
            continue
        name = found["name"] if found["filter"] == "none" else f"{found['name']} ({found['filter']})"
        made[name] = float(value)
    return made
