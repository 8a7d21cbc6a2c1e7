"""Which weights are trained: the share of them, and whether an adapter found every module it was to find."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from torch import nn

from hf_llm_recipes.checking.base import Finding, Report, named
from hf_llm_recipes.checking.subject import Subject
from hf_llm_recipes.errors import did_you_mean

ADAPTED = ("lora_A", "lora_embedding_A")
NO_NAMES = {"", "default", "base_layer", "base_model", "model"}


def look(subject: Subject, report: Report) -> list[Finding]:
    """Adds the weights to the report; returns targets that were not found."""
    model, section = subject.built.model, subject.plan.recipe.section("tuning")
    report.model |= subject.parameters
    if not subject.plan.tuning.uses_adapter:
        return []
    found = adapted(model)
    report.model["adapter"] = dict(Counter(name.rpartition(".")[2] for name in found))
    places = [name for name, _ in model.named_modules()]
    return [
        *missing(section.get("target_modules"), found, places, "target_modules"),
        *missing(section.get("modules_to_save"), places, places, "modules_to_save"),
    ]


def adapted(model: nn.Module) -> list[str]:
    """Returns the names of the modules that carry an adapter's weights."""
    names = []
    for name, _ in model.named_parameters():
        parts = name.split(".")
        at = next((i for i, part in enumerate(parts) if part in ADAPTED), None)
        if at is not None:
            names.append(".".join(parts[:at]))
    return list(dict.fromkeys(names))


def missing(wanted: Any, found: Sequence[str], places: Sequence[str], key: str) -> list[Finding]:
    """Returns the names of a list that no module goes by; peft passes over them in silence.

    Args:
        wanted: The recipe's value; only a list names modules one by one.
        found: Names of the modules that were found.
        places: Names of all modules.
        key: Of ``tuning:``.
    """
    if not isinstance(wanted, list):
        return []
    lost = [name for name in wanted if not any(f".{one}".endswith(f".{name}") for one in found)]
    if not lost:
        return []
    there = [one for name in lost for one in places if f".{one}".endswith(f".{name}")]
    if there:
        what, do = f"{named(lost)} names modules, but none that got an adapter", "see `layers_to_transform`"
    else:
        leaves = sorted({place.rpartition(".")[2] for place in places if "lora_" not in place} - NO_NAMES)
        what, do = f"no module goes by the name {named(lost)}{did_you_mean(lost[0], leaves)}", "take it out"
    return [
        Finding(
            "error",
            "weights",
            what,
            f"tuning.{key}",
            f"{do}; `hf-llm-recipes show model NAME` draws the model with its names",
        )
    ]
