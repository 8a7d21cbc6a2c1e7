"""The Trainer of a run, from a recipe that is bound and data and model that are ready."""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hf_llm_recipes import assets

log = logging.getLogger("hf_llm_recipes")


def trainer_of(
    runner: Any, folder: Path, callbacks: Sequence[Any], *, method: Any = None, **changes: Any
) -> Any:
    """Returns a Trainer that is ready for ``train()``.

    Args:
        runner: ``run._Runner`` with data and model.
        folder: Where its checkpoints go.
        callbacks: Added to the Trainer's own.
        method: Another than the recipe's.
        **changes: Of its arguments.
    """
    from hf_llm_recipes.exact_resume import resume_exactly

    method = method or runner.plan.method
    return resume_exactly(method.build(parts_of(runner, folder, callbacks, method=method, **changes)))


def parts_of(
    runner: Any, folder: Path, callbacks: Sequence[Any], *, method: Any = None, **changes: Any
) -> Any:
    """Returns the ``methods.base.Parts`` that ``trainer_of`` hands to the method; see there."""
    from hf_llm_recipes.methods.base import Parts

    plan, prepared = runner.plan, runner.prepared
    method = method or plan.method
    named = {"run_name": folder.resolve().parent.name}  # for trackers: the run's directory
    given = {**named, **device_defaults(), **kernel_defaults(plan), "bf16": False, **runner.precision.trainer}
    arguments = method.arguments_class()(
        **{**given, **plan.trainer, **changes},
        output_dir=str(folder),
        seed=plan.seed,
        # their collators take what they need, such as the lengths of packed documents
        remove_unused_columns=not plan.task.judges_model,
        label_names=plan.task.label_names,
    )
    return Parts(
        model=runner.built.model,
        arguments=arguments,
        train=prepared.train,
        eval=prepared.eval,
        collator=prepared.collator,
        compute_metrics=None if plan.task.judges_model else plan.task.quick_metrics,
        compute_loss=plan.recipe.located(lambda: plan.task.loss(arguments.label_smoothing_factor), "trainer"),
        processing_class=runner.tokenizer,
        callbacks=list(callbacks),
        task=plan.task,
        test=prepared.test,
        train_rows=runner.loaded.train,
        test_rows=runner.loaded.test,
        unlabeled=prepared.unlabeled,
        unlabeled_rows=runner.loaded.unlabeled,
        eval_rows=runner.loaded.eval,
        encode=runner.encode,
        algorithm=plan.algorithm,
        augmentation=plan.augmentation,
        cache=assets.cache_dir(),
    )


def device_defaults() -> dict[str, Any]:
    """What upstream asks a user to say on a machine without an accelerator."""
    import torch

    cpu = not torch.accelerator.is_available()
    return {"use_cpu": cpu, "dataloader_pin_memory": not cpu}


def kernel_defaults(plan: Any) -> dict[str, Any]:
    """liger-kernel's norms, rotations and feed-forwards on a GPU where it is installed; the loss is ours."""
    import torch

    from hf_llm_recipes.methods.supervised import Supervised

    fits = plan.task.vocabulary_labels and isinstance(plan.method, Supervised)
    if not fits or not torch.cuda.is_available() or importlib.util.find_spec("liger_kernel") is None:
        return {}
    log.info(
        "liger-kernel is installed: its kernels are used (`trainer.use_liger_kernel: false` for torch's)"
    )
    config = {"cross_entropy": False, "fused_linear_cross_entropy": False}
    return {"use_liger_kernel": True, "liger_kernel_config": config}
