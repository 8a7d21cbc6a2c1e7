"""Masked image modelling: hidden patches back to pixels.

Notable:
- Masks are new in each epoch and a function of seed, epoch and row; those of eval and test are fixed.
- The loss is the mean over all hidden pixels of an optimizer step, however it is cut into batches; the
  models' own is a mean of each batch.

Shapes: B images, C channels, H and W pixels, M cells of the mask a side, N patches of the model.
"""

from __future__ import annotations

import inspect
import math
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor

from hf_llm_recipes.errors import DataError, RunError
from hf_llm_recipes.objectives import _scores
from hf_llm_recipes.objectives._draws import Draws
from hf_llm_recipes.objectives._masked_rows import SEED
from hf_llm_recipes.objectives.base import Objective
from hf_llm_recipes.registry import TASKS
from hf_llm_recipes.tasks._masking import IGNORED, generator_of
from hf_llm_recipes.tasks.base import Judged, Prepared, splits
from hf_llm_recipes.tasks.image_classification import ImageClassification, stack_images

IMAGES_AT_ONCE = 32
MASK = "mask"  # column of fixed masks, (M · M,)


@TASKS.register
@dataclass(kw_only=True)
class MaskedImage(Objective):
    """Guess hidden pixels (SimMIM; Xie et al. 2022, https://arxiv.org/abs/2111.09886, §3).

    Args:
        image: Column of the image, as ``image_classification`` takes it.
        mask_patch_size: Pixels a side that are hidden together; a multiple of the model's patch size, which
            it is unless given.
        mask_ratio: Share of the image that is hidden, in (0, 1).
        examples: Image files that are reconstructed after the run; shown is the mean absolute error.

    Raises:
        ValueError: a value out of its range.
    """

    auto_class: ClassVar[str] = "AutoModelForMaskedImageModeling"
    peft_task_type: ClassVar[None] = None
    pipeline_tag: ClassVar[str] = "image-feature-extraction"
    processor: ClassVar[str] = "image_processor"
    input_key: ClassVar[str] = "image"
    vocabulary_labels: ClassVar[bool] = False
    label_names: ClassVar[list[str] | None] = ["labels"]

    image: str = "image"
    mask_patch_size: int | None = None
    mask_ratio: float = 0.6
    examples: list[str] | None = None

    def __post_init__(self) -> None:
        if not 0 < self.mask_ratio < 1:
            raise ValueError(f"mask_ratio is {self.mask_ratio}; allowed: above 0 and below 1")
        if self.mask_patch_size is not None and self.mask_patch_size < 1:
            raise ValueError(f"mask_patch_size is {self.mask_patch_size}; allowed: 1 or more pixels")
        self._images = ImageClassification(image=self.image)

    def prepare(self, loaded: Any, processor: Any, model_config: Any) -> Prepared:
        """Returns pixels to be masked anew in each epoch, and masked images to judge by."""
        grid = self._grid(model_config)
        made: dict[str, Any] = {"eval": None}
        findings = {}
        for split in splits(loaded):
            self.check_rows(getattr(loaded, split), f"{split} split")
            rows, findings[split] = self._images.encode(
                getattr(loaded, split), processor, model_config, labeled=False
            )
            if findings[split]["pixels"][1:] != [grid.image_size] * 2:
                raise DataError(
                    f"the images come out {findings[split]['pixels'][1:]}, the model takes {grid.image_size}",
                    where=f"{split} split",
                    hint="the image processor and the model do not belong together",
                )
            made[split] = rows if split == "train" else grid.fixed(rows)
        made["train"] = Draws(made["train"])
        notes = [f"of {grid.side}x{grid.side} cells {grid.hidden} are hidden"]
        collator = MaskedImageCollator(grid)
        callbacks = [made["train"].teller()]
        return Prepared(
            **made, config={}, collator=collator, findings=findings, notes=notes, callbacks=callbacks
        )

    def check_model(self, model: Any, features: Any, processor: Any) -> list[str]:
        """Refuses a model that cannot hide patches, or whose decoder gives another size back.

        Raises:
            RunError: one of these.
        """
        base = model.get_base_model() if hasattr(model, "peft_config") else model
        if "bool_masked_pos" not in inspect.signature(type(base).forward).parameters:
            raise RunError(
                f"{type(base).__name__} hides no patches", allowed="vit, deit, swin, hlr_vision, …"
            )
        stride = getattr(base.config, "encoder_stride", None)
        if base.config.model_type in ("vit", "deit") and stride != base.config.patch_size:
            raise RunError(
                f"encoder_stride is {stride} and patch_size {base.config.patch_size}",
                allowed="equal ones",
                hint="change config.json of the checkpoint",
            )
        return []

    def encode(self, rows: Any, processor: Any, model_config: Any, *, labeled: bool) -> tuple[Any, dict]:
        """Returns images with fixed masks."""
        self.check_rows(rows, "data")
        made, found = self._images.encode(rows, processor, model_config, labeled=False)
        return self._grid(model_config).fixed(made), found

    def collator(self, processor: Any) -> Any:
        """Images -> pixels, without a mask."""
        return stack_images

    def lengths(self, features: Any) -> np.ndarray:
        """Images of one model are of one size."""
        return self._images.lengths(features)

    def read_inputs(self, inputs: list[Any]) -> Dataset:
        """Returns rows of image files, Pillow images or arrays."""
        return self._images.read_inputs(inputs)

    def loss(self, label_smoothing: float) -> Any:
        """The mean absolute error over the hidden pixels of an optimizer step."""
        if label_smoothing:
            raise ValueError("label_smoothing_factor has no meaning for pixels")
        return hidden_pixel_loss

    def judge_model(self, model: Any, features: Any, rows: Any, processor: Any) -> Judged:
        """Mean absolute error of hidden pixels, beside that of the mean of the visible ones."""
        found = pixel_outcomes(model, features, MaskedImageCollator(self._grid(model.config)))
        metrics = _scores.judged(found, _pixel_scores)
        return Judged(
            metrics,
            {"row": list(range(len(features))), "error": (found["errors"] / found["pixels"]).tolist()},
        )

    def probe(self, model: Any, features: Any, processor: Any) -> np.ndarray:
        """The images that the model makes of a few."""
        batch = MaskedImageCollator(self._grid(model.config))(list(features))
        return reconstructed(model, batch).cpu().numpy()

    def answer(self, model: Any, rows: Any, processor: Any) -> list[dict[str, Any]]:
        """``{"value"}`` a row: the mean absolute error of its hidden pixels."""
        features, _ = self.encode(rows, processor, model.config, labeled=False)
        found = pixel_outcomes(model, features, MaskedImageCollator(self._grid(model.config)))
        return [{"value": float(value)} for value in found["errors"] / found["pixels"]]

    def _grid(self, model_config: Any) -> MaskGrid:
        image, patch = getattr(model_config, "image_size", None), getattr(model_config, "patch_size", None)
        if not isinstance(image, int) or not isinstance(patch, int):
            raise DataError(
                f"a {model_config.model_type} model has image_size {image} and patch_size {patch}",
                allowed="a model of square images and patches, such as vit, swin or hlr_vision",
            )
        cell = self.mask_patch_size or patch
        if cell % patch or image % cell:
            raise DataError(
                f"mask_patch_size is {cell}",
                allowed=f"a multiple of the model's patch size ({patch}) that divides {image} pixels",
            )
        hidden = math.ceil((image // cell) ** 2 * self.mask_ratio)
        if hidden >= (image // cell) ** 2:
            raise DataError(
                f"mask_ratio {self.mask_ratio} hides all {hidden} cells", hint="lower it, or mask_patch_size"
            )
        return MaskGrid(image, patch, cell, hidden)


@dataclass
class MaskGrid:
    """Cells of an image of which some are hidden.

    Args:
        image_size: Pixels a side.
        patch_size: Of the model's patches, pixels a side.
        cell_size: Of what is hidden together, pixels a side.
        hidden: How many cells.
    """

    image_size: int
    patch_size: int
    cell_size: int
    hidden: int

    @property
    def side(self) -> int:
        """M, cells a side."""
        return self.image_size // self.cell_size

    def draw(self, generator: torch.Generator) -> Tensor:
        """Returns which cells are hidden, row by row, (M · M,)."""
        order = torch.randperm(self.side**2, generator=generator)
        return torch.zeros(self.side**2, dtype=torch.bool).index_fill(0, order[: self.hidden], True)

    def fixed(self, rows: Dataset) -> Dataset:
        """Returns images with masks that are drawn once."""
        masks = [self.draw(generator_of(SEED, number)).tolist() for number in range(len(rows))]
        return rows.add_column(MASK, masks)

    def spread(self, mask_BMM: Tensor, size: int) -> Tensor:
        """Returns the mask of squares of ``size`` pixels, (B, rows, columns)."""
        times = self.cell_size // size
        cells = mask_BMM.unflatten(1, (self.side, self.side))
        return cells.repeat_interleave(times, 1).repeat_interleave(times, 2)


@dataclass
class MaskedImageCollator:
    """Images with their draws, or masks -> pixels, ``bool_masked_pos`` (B, N) and ``labels`` (B, C, H, W).

    Labels are the pixels that are hidden, −100 where none is, which no normalised pixel is.

    Args:
        grid: Draws masks.
    """

    grid: MaskGrid

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Tensor]:
        """Returns the batch."""
        pixels_BCHW = stack_images([{"pixel_values": row["pixel_values"]} for row in rows])["pixel_values"]
        mask_BMM = torch.stack([self._mask(row) for row in rows])
        hidden_B1HW = self.grid.spread(mask_BMM, 1)[:, None]
        return {
            "pixel_values": pixels_BCHW,
            "bool_masked_pos": self.grid.spread(mask_BMM, self.grid.patch_size).flatten(1),
            "labels": pixels_BCHW.masked_fill(~hidden_B1HW, IGNORED),
        }

    def _mask(self, row: dict[str, Any]) -> Tensor:
        if MASK in row:
            return torch.as_tensor(np.asarray(row[MASK], dtype=bool))
        return self.grid.draw(generator_of(*row["draw"]))


def hidden_pixel_loss(outputs: Any, labels_BCHW: Tensor, num_items_in_batch: Any = None) -> Tensor:
    """Returns the summed absolute error of hidden pixels, over those of the whole optimizer step.

    Args:
        outputs: With ``reconstruction`` (B, C, H, W).
        labels_BCHW: As ``MaskedImageCollator`` makes them.
        num_items_in_batch: Hidden values of all batches of the step; None: of this one.
    """
    hidden_BCHW = labels_BCHW != IGNORED
    error_BCHW = (outputs["reconstruction"].float() - labels_BCHW).abs() * hidden_BCHW
    return error_BCHW.sum() / (hidden_BCHW.sum() if num_items_in_batch is None else num_items_in_batch)


def reconstructed(model: Any, batch: dict[str, Tensor]) -> Tensor:
    """Returns the images that a model makes of visible patches, (B, C, H, W)."""
    given = {key: batch[key].to(model.device) for key in ("pixel_values", "bool_masked_pos")}
    with torch.inference_mode():
        return model(**given)["reconstruction"].float()


def pixel_outcomes(model: Any, features: Any, collate: MaskedImageCollator) -> dict[str, np.ndarray]:
    """Returns each image's summed absolute ``errors`` over its hidden ``pixels``, and of the visible mean."""
    found: dict[str, list[float]] = {"errors": [], "mean_errors": [], "pixels": []}
    for at in range(0, len(features), IMAGES_AT_ONCE):
        few = features.select(range(at, min(at + IMAGES_AT_ONCE, len(features))))
        batch = collate(list(few))
        made_BCHW, true_BCHW = reconstructed(model, batch).cpu(), batch["pixel_values"]
        hidden_BCHW = batch["labels"] != IGNORED
        seen = (true_BCHW * ~hidden_BCHW).sum((2, 3)) / (~hidden_BCHW).sum((2, 3))
        for name, guess in (("errors", made_BCHW), ("mean_errors", seen[..., None, None])):
            found[name] += (((guess - true_BCHW).abs() * hidden_BCHW).double().sum((1, 2, 3))).tolist()
        found["pixels"] += hidden_BCHW.sum((1, 2, 3)).tolist()
    return {name: np.asarray(values, dtype=np.float64) for name, values in found.items()}


def _pixel_scores(sums: Any) -> dict[str, float]:
    return {
        "masked_l1": _scores.ratio(sums["errors"], sums["pixels"]),
        "visible_mean_l1": _scores.ratio(sums["mean_errors"], sums["pixels"]),
    }
