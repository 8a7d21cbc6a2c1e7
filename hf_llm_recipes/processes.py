"""A run of several processes, as ``torchrun`` starts them: one of them has the directory, all train.

Notable:
- The main process alone makes and locks the directory, writes, saves and judges; the others get its paths,
  train, and answer their share of the test rows.
- Data is read by the main process first: what it keeps in a cache the others find there.
- What was never run this way is refused: other methods, ``stages:``, ``compare:``.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from hf_llm_recipes.errors import RecipeError
from hf_llm_recipes.registry import registered_name

log = logging.getLogger("hf_llm_recipes")

METHODS = ("supervised", "semi_supervised")


def count() -> int:
    """Returns how many processes run together."""
    started = "LOCAL_RANK" in os.environ  # some machines set WORLD_SIZE for everybody
    return int(os.environ.get("WORLD_SIZE", "1")) if started else 1


def is_main() -> bool:
    """Whether this process is the one that writes."""
    return count() == 1 or int(os.environ.get("RANK", "0")) == 0


def begin(plan: Any) -> None:
    """Refuses what several processes cannot do, and lets them find each other.

    Args:
        plan: ``planning.Plan``.

    Raises:
        RecipeError: a method or key of the recipe that runs in one process.
    """
    if count() == 1:
        return
    hint = "start it without torchrun"
    method = registered_name(type(plan.method))
    if method not in METHODS:
        raise RecipeError(
            f"method {method} runs in one process, and here are {count()}",
            where=plan.recipe.where("method"),
            allowed=", ".join(METHODS),
            hint=hint,
        )
    for key in ("stages", "compare"):
        if plan.recipe.get(key):
            raise RecipeError(
                f"{key} runs in one process, and here are {count()}", where=plan.recipe.where(key), hint=hint
            )
    if not is_main():
        log.setLevel(logging.ERROR)
    from accelerate import PartialState

    from hf_llm_recipes.training import device_defaults

    PartialState(cpu=plan.trainer.get("use_cpu", device_defaults()["use_cpu"]))


@contextmanager
def main_first() -> Iterator[None]:
    """Lets the main process do something before the others do the same."""
    if count() == 1:
        yield
        return
    from accelerate import PartialState

    with PartialState().main_process_first():
        yield


def shared(value: Any) -> Any:
    """Returns what the main process gives, in every process; waits for all of them."""
    if count() == 1:
        return value
    import torch

    held = [value]
    torch.distributed.broadcast_object_list(held, src=0)
    return held[0]


def end() -> None:
    """Waits for the others and leaves the group; else a thread of it may abort the process at its exit."""
    if count() == 1:
        return
    import torch

    if torch.distributed.is_initialized():
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()
