"""A moving average of the trained weights, judged beside them and saved in their place.

Notable:
- Only what is trained has an average: an adapter and its head, never a quantised base.
- The model holds its own weights while it trains, and in checkpoints; the average lies beside them in
  ``ema.safetensors``. Evaluations swap it in by pointer and out again, so that training is the same bits
  with and without it.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, ClassVar, Literal

from safetensors import safe_open
from safetensors.torch import save_file
from transformers import Trainer

from hf_llm_recipes.averaging import MovingAverage, default_decay
from hf_llm_recipes.callbacks._bound import Bound, HasVariants
from hf_llm_recipes.callbacks._figures import InMetrics
from hf_llm_recipes.errors import RunError
from hf_llm_recipes.registry import CALLBACKS

FILE = "ema.safetensors"
NAMES = {"average": "averaged_weights", "raw": "raw_weights"}  # as metrics have them
HINT = "take `ema` out of `callbacks`, or begin a new training with it"


@CALLBACKS.register
class EMA(Bound, InMetrics, HasVariants):
    """Moves an average towards the trained weights after each optimizer step.

    w̄ ← d·w̄ + (1 − d)·w with d = min(1 − 1/(t + 1), decay) after step t, so that it begins as the plain
    mean (Tarvainen & Valpola 2017, https://arxiv.org/abs/1703.01780; what such averages are good for:
    Morales-Brotons, Vogels & Hendrikx 2024, https://arxiv.org/abs/2411.18704). Each evaluation judges both:
    ``eval_…`` is of the weights that are exported, ``eval_raw_weights_…`` or ``eval_averaged_weights_…`` of
    the others. After ``train()`` the model holds the exported ones; with ``load_best_model_at_end`` those of
    the best step.

    A move reads and writes all trained weights once. Where that is much beside a step (a small model, few
    rows), ``every: k`` moves after each k-th step, with the decay to the power of k, so that the half-life
    stays; what the average ends with is then up to k − 1 steps old (torchvision's references do so with
    ``--model-ema-steps``).

    In a Trainer of your own, ``bind(trainer)`` comes before ``train()``.

    Args:
        half_life: Steps after which a step's weights count half as much, > 0; None: decay is 1 − 14/T over T
            steps, a half-life of about a twentieth of the training.
        export: Whose weights are judged first and saved: ``average`` or ``raw``.
        every: Steps between two moves, ≥ 1.

    Raises:
        ValueError: a value out of range.
        RunError: a training shorter than ``every``, FSDP or DeepSpeed, a Trainer that is not bound, a
            checkpoint without an average.
    """

    section: ClassVar[str] = "ema"

    def __init__(
        self,
        half_life: float | None = None,
        export: Literal["average", "raw"] = "average",
        every: int = 1,
    ) -> None:
        if half_life is not None and not half_life > 0:
            raise ValueError(f"half_life is {half_life}; allowed: more than 0 steps")
        if export not in NAMES:
            raise ValueError(f"export is {export!r}; allowed: average, raw")
        if every < 1:
            raise ValueError(f"every is {every}; allowed: 1 or more steps")
        self.half_life, self.export, self.every = half_life, export, every
        self.average: MovingAverage | None = None
        self.updates = 0  # optimizer steps
        self.training = False
        self._trainer: Any = None
        self._found: tuple[dict[str, Any], int] | None = None  # in the checkpoint that is gone on from

    def bind(self, trainer: Trainer) -> None:
        """Puts its evaluations and checkpoints before the Trainer's."""
        if trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled:
            raise RunError(
                "ema swaps whole weights",
                allowed="no FSDP and no DeepSpeed",
                hint="take it out of `callbacks`",
            )
        cls = type(trainer)
        if not issubclass(cls, _Averaging):
            trainer.__class__ = type(cls.__name__, (_Averaging, cls), {"__module__": cls.__module__})
        trainer._ema, self._trainer = self, trainer

    def report(self) -> dict[str, Any]:
        """Which weights were exported, and what the others are called in ``metrics.json``."""
        return {
            "exported": self.exported,
            "beside": self.other,
            "decay": self.average.decay,
            "updates": self.updates // self.every,
        }

    def variants(self) -> dict[str, AbstractContextManager]:
        """The weights that are not exported."""
        return {self.other: self.average.swapped()}

    @property
    def exported(self) -> str:
        """Name of the weights that the model holds after the training."""
        return NAMES[self.export]

    @property
    def other(self) -> str:
        """Name of those that it does not."""
        return NAMES["raw" if self.export == "average" else "average"]

    def weights(self, name: str) -> AbstractContextManager:
        """A context in which the model, while it trains, has the weights of that name."""
        return self.average.swapped() if name == NAMES["average"] else nullcontext()

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        """Begins at the present weights, or where the checkpoint was."""
        if self._trainer is None:
            raise RunError(
                "ema judges and saves through the Trainer, which it was not shown",
                hint="from hf_llm_recipes.callbacks import bind; bind(trainer).train()",
            )
        steps = state.max_steps
        if self.every > steps:
            raise RunError(
                f"ema would never move: every is {self.every}, and the training has {steps} steps",
                hint="a smaller `every`",
            )
        decay = default_decay(steps) if self.half_life is None else 0.5 ** (1 / self.half_life)
        self.average = MovingAverage(self._trainer.model, decay**self.every)
        self.updates, self.training = 0, True
        if self._found is not None:
            values, self.updates = self._found
            self.average.load_state_dict(values)
            self._found = None

    def on_step_end(self, args, state, control, **kwargs):
        """Moves the average, once in ``every`` optimizer steps."""
        self.updates += 1
        if self.updates % self.every == 0:
            self.average.update(self.updates // self.every)

    def on_train_end(self, args, state, control, **kwargs):
        """Gives the model the weights that are exported."""
        self.training = False
        if self.export == "average":
            self.average.swap()

    def save(self, folder: Path) -> None:
        """Writes the average into a checkpoint."""
        values = {name: value.contiguous() for name, value in self.average.state_dict().items()}
        save_file(values, folder / FILE, metadata={"updates": str(self.updates)})

    def take_up(self, checkpoint: str | Path) -> None:
        """Reads the average of a checkpoint for the training that goes on from it."""
        self._found = _read(Path(checkpoint))

    def take_best(self, checkpoint: str | Path) -> None:
        """Takes the average of the best checkpoint."""
        self.average.load_state_dict(_read(Path(checkpoint))[0])


def _read(checkpoint: Path) -> tuple[dict[str, Any], int]:
    path = checkpoint / FILE
    if not path.is_file():
        raise RunError(f"has no {FILE}: it was written without `ema`", where=str(checkpoint), hint=HINT)
    with safe_open(path, framework="pt") as file:
        values = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
        return values, int(file.metadata()["updates"])


class _Averaging:
    """Stands before a Trainer's class."""

    _ema: EMA

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: Any = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Judges the weights that will be exported, and the others beside them."""
        ema = self._ema
        several = isinstance(self.eval_dataset if eval_dataset is None else eval_dataset, dict)
        if several or not ema.training:  # of several, each comes back here
            return super().evaluate(eval_dataset, ignore_keys, metric_key_prefix)
        with ema.weights(ema.exported):
            metrics = super().evaluate(eval_dataset, ignore_keys, metric_key_prefix)
        with ema.weights(ema.other):
            found = self.evaluation_loop(
                self.get_eval_dataloader(eval_dataset),
                description=f"Evaluation of the {ema.other.replace('_', ' ')}",
                prediction_loss_only=True if self.compute_metrics is None else None,
                ignore_keys=ignore_keys,
                metric_key_prefix=f"{metric_key_prefix}_{ema.other}",
            ).metrics
        self.log(found)
        return metrics | found

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """As the Trainer's; a checkpoint gets the average, too."""
        super().save_model(output_dir, _internal_call)
        if _internal_call and output_dir is not None and self._ema.training and self.args.should_save:
            self._ema.save(Path(output_dir))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        self._ema.take_up(resume_from_checkpoint)

    def _load_best_model(self) -> None:
        super()._load_best_model()
        self._ema.take_best(self.state.best_model_checkpoint)
