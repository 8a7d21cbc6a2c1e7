"""Which weights are trained: the share of them, and whether an adapter found every module it was to find."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from torch import nn

from hf_llm_recipes.checking.base import Finding, Report, named
from hf_llm_recipes.checking.subject import Subject

ADAPTED = ("lora_A", "lora_embedding_A")


def look(subject: Subject, report: Report) -> list[Finding]:
    """Adds the weights to the report; returns targets that were not found."""
    model, section = subject.built.model, subject.plan.recipe.section("tuning")
    report.model |= subject.parameters
    if not subject.plan.tuning.uses_adapter:
        return []
    found = adapted(model)
    report.model["adapter"] = dict(Counter(name.rpartition(".")[2] for name in found))
    places = [name for name, _ in model.named_modules()]
    return missing(section.get("target_modules"), found, "target_modules") + missing(
        section.get("modules_to_save"), places, "modules_to_save"
    )


def adapted(model: nn.Module) -> list[str]:
    """Returns the names of the modules that carry an adapter's weights."""
    names = []
    for name, _ in model.named_parameters():
        parts = name.split(".")
        at = next((i for i, part in enumerate(parts) if part in ADAPTED), None)
        if at is not None:
            names.append(".".join(parts[:at]))
    return list(dict.fromkeys(names))


def missing(wanted: Any, found: Sequence[str], key: str) -> list[Finding]:
    """Returns the names of a list that no module goes by; peft passes over them in silence.

    Args:
        wanted: The recipe's value; only a list names modules one by one.
        found: Names of modules.
        key: Of ``tuning:``.
    """
    if not isinstance(wanted, list):
        return []
    lost = [name for name in wanted if not any(f".{one}".endswith(f".{name}") for one in found)]
    if not lost:
        return []
    known = sorted({name.rpartition(".")[2] for name in found})
    return [
        Finding(
            "error",
            "weights",
            f"no module goes by the name {named(lost)}",
            f"tuning.{key}",
            f"take it out, or name one of: {named(known, 12)}"
            if key == "target_modules"
            else "take it out, or see `hf-llm-recipes show model NAME` for the names",
        )
    ]
