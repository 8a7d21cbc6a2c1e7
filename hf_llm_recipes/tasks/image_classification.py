"""Image classification: one image -> its class.

Notable:
- Images are resized and normalised once, before training; the pixels lie in the data sets' cache on disk
  (4 bytes a value: 602 kB for an image of 3 x 224 x 224).
- An image that cannot be decoded is named by its row.

Shapes: B rows of a batch, C channels (C classes for logits), H and W pixels.
"""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import datasets
import numpy as np
import torch
from datasets import Array3D, Dataset, Features, IterableDataset, Value
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor
from torch.nn.functional import cross_entropy

from hf_llm_recipes import evaluation
from hf_llm_recipes.errors import DataError
from hf_llm_recipes.registry import TASKS
from hf_llm_recipes.tasks import _labels
from hf_llm_recipes.tasks._rows import bar_if_long, check_columns
from hf_llm_recipes.tasks.base import Prepared, Task, splits

MODES = {1: "L", 3: "RGB"}  # channels -> Pillow's mode
DEEP_MODES = ("I", "F")  # of more than 8 bits: Pillow would clip them
WRITTEN_AT_ONCE = 64  # rows in memory while pixels are written


@TASKS.register
@dataclass(kw_only=True)
class ImageClassification(Task):
    """One image -> its class.

    Args:
        image: Column of the image: a data set's image column, files, their bytes, or arrays (H, W) or
            (H, W, C) of whole numbers from 0 to 255.
        label: Column of the label.
        labels: Class names in order. None takes the data's own names, else the sorted values.
        examples: Image files that are answered and shown after the run.

    Raises:
        ValueError: ``labels`` of fewer than two different names.
    """

    auto_class: ClassVar[str] = "AutoModelForImageClassification"
    # peft's own classes feed `input_ids`; without a type it hands over whatever it is given
    peft_task_type: ClassVar[None] = None
    pipeline_tag: ClassVar[str] = "image-classification"
    processor: ClassVar[str] = "image_processor"
    problem: ClassVar[str] = "single_label"

    image: str = "image"
    label: str = "label"
    labels: list[str] | None = None
    examples: list[str] | None = None

    def __post_init__(self) -> None:
        if self.labels is not None and (len(self.labels) < 2 or len(set(self.labels)) != len(self.labels)):
            raise ValueError(f"labels is {self.labels}; allowed: two or more different names")

    @property
    def stratify_by(self) -> str:
        """The label column."""
        return self.label

    @property
    def input_columns(self) -> list[str]:
        """The image."""
        return [self.image]

    def prepare(self, loaded: Any, processor: Any, model_config: Any) -> Prepared:
        """Returns pixels and labels of every split; see ``Task.prepare``."""
        if isinstance(loaded.train, IterableDataset):
            raise DataError("images are not read from a stream", hint="set `data.streaming: false`")
        for split in splits(loaded):
            wanted = [("image", self.image), ("label", self.label)]
            check_columns(getattr(loaded, split), wanted, f"{split} split")
        names = self._names(loaded.train)
        made, findings = {}, {}
        for split in splits(loaded):
            rows, where = getattr(loaded, split), f"{split} split"
            made[split], findings[split] = self._features(rows, processor, model_config, names, where)
        if loaded.unlabeled is not None:
            check_columns(loaded.unlabeled, [("image", self.image)], "unlabeled rows")
            made["unlabeled"], findings["unlabeled"] = self._features(
                loaded.unlabeled, processor, model_config, None, "unlabeled rows"
            )
        made.setdefault("eval", None)
        return Prepared(
            **made,
            config={
                "num_labels": len(names),
                "id2label": dict(enumerate(names)),
                "label2id": {name: i for i, name in enumerate(names)},
                "problem_type": "single_label_classification",
            },
            collator=self.collator(processor),
            findings=findings,
            notes=_labels.check_classes(made["train"]["labels"][:].tolist(), names, where="train split"),
        )

    def encode(self, rows: Any, processor: Any, model_config: Any, *, labeled: bool) -> tuple[Any, dict]:
        """Returns features of new rows under a trained model's own classes."""
        check_columns(rows, [("image", self.image), *([("label", self.label)] if labeled else [])], "data")
        names = _own_names(model_config) if labeled else None
        return self._features(rows, processor, model_config, names, "data")

    def collator(self, processor: Any) -> Any:
        """Rows -> a batch of stacked pixels."""
        return stack_images

    def lengths(self, features: Any) -> np.ndarray:
        """Images of one model are of one size."""
        return np.zeros(len(features), dtype=np.int64)

    def loss(self, label_smoothing: float) -> Any:
        """The mean cross-entropy over the images of an optimizer step."""
        return partial(_mean_loss, label_smoothing=label_smoothing)

    def quick_metrics(self, prediction: Any) -> dict[str, float]:
        """Accuracy and F1 of a Trainer's ``EvalPrediction``."""
        return evaluation.quick_metrics(_logits(prediction.predictions), prediction.label_ids, self.problem)

    def judge(self, logits: Any, labels: Any, model_config: Any) -> dict[str, Any]:
        """The full metrics of ``evaluation``."""
        return evaluation.classification(_logits(logits), labels, _own_names(model_config))

    def decode(self, logits: Any, model_config: Any) -> list[dict[str, Any]]:
        """``{"label", "probability"}`` a row."""
        names = _own_names(model_config)
        probabilities_NC = evaluation.probabilities(_logits(logits), self.problem)
        return [
            {"label": names[int(row.argmax())], "probability": float(row.max())} for row in probabilities_NC
        ]

    def read_inputs(self, inputs: list[Any]) -> Dataset:
        """Returns rows of image files, Pillow images or arrays.

        Raises:
            DataError: an input is none of these, or a file is missing.
        """
        values = [_stored(given, f"row {place}") for place, given in enumerate(inputs)]
        return Dataset.from_dict(
            {self.image: values}, features=Features({self.image: datasets.Image(decode=False)})
        )

    def write_predictions(self, path: Path, rows: Any, logits: Any, labels: Any, model_config: Any) -> None:
        """Writes row number, image file where there is one, label, prediction and probabilities."""
        files = [_file_of(value) for value in _undecoded(rows, self.image)[self.image]]
        columns: dict[str, Sequence[Any]] = {"row": range(len(rows))}
        if any(files):
            columns["image"] = files
        evaluation.write_predictions(
            path,
            columns={name: list(values) for name, values in columns.items()},
            logits=_logits(logits),
            labels=labels,
            label_names=_own_names(model_config),
            problem=self.problem,
        )

    def _names(self, train: Any) -> list[str]:
        if self.labels:
            return list(self.labels)
        declared = _labels.declared_names(train, self.label)
        if declared:
            return declared
        names = _labels.found_names(value for value in train[self.label] if value not in (None, ""))
        if len(names) > max(2, len(train) // 2):
            raise DataError(
                f"column `{self.label}` has {len(names):,} different values in {len(train):,} rows",
                where="train split",
                hint="is it the label?",
            )
        return names

    def _features(
        self, rows: Any, processor: Any, model_config: Any, names: list[str] | None, where: str
    ) -> tuple[Any, dict]:
        """Pixels (C, H, W), labels and counts of one split."""
        channels = model_config.num_channels
        if channels not in MODES:
            raise DataError(f"the model takes {channels} channels", allowed="1 (grey) or 3 (colour)")
        integers = _labels.integer_names(_labels.declared_names(rows, self.label), self.labels)
        rows = _undecoded(rows, self.image)

        def pixels(value: Any, place: str) -> np.ndarray:
            return _processed(processor, read_image(value, place, column=self.image).convert(MODES[channels]))

        def encode(batch: dict[str, list], indices: list[int]) -> dict[str, list]:
            places = [f"{where}, row {index}" for index in indices]
            images = [pixels(v, place) for v, place in zip(batch[self.image], places, strict=True)]
            made: dict[str, list] = {"pixel_values": images}
            if names is not None:
                made["labels"] = [
                    _labels.to_class(v, names, integers=integers, numbers=bool(self.labels), where=place)
                    for v, place in zip(batch[self.label], places, strict=True)
                ]
            return made

        if not len(rows):
            raise DataError("there is no row", where=where)
        shape = pixels(rows[0][self.image], f"{where}, row 0").shape
        with bar_if_long(len(rows)):
            made = rows.map(
                encode,
                with_indices=True,
                batched=True,
                batch_size=WRITTEN_AT_ONCE,
                writer_batch_size=WRITTEN_AT_ONCE,
                remove_columns=rows.column_names,
                features=Features(
                    {
                        "pixel_values": Array3D(shape, "float32"),
                        **({"labels": Value("int64")} if names is not None else {}),
                    }
                ),
                load_from_cache_file=False,
                desc=f"resizing the {where}",
            )
        return made.with_format("numpy"), {"rows": len(made), "pixels": list(shape)}


def stack_images(rows: list[dict[str, Any]]) -> dict[str, Tensor]:
    """Returns ``pixel_values`` (B, C, H, W) and, where there are some, ``labels`` (B,)."""
    batch = {"pixel_values": torch.from_numpy(np.stack([np.asarray(row["pixel_values"]) for row in rows]))}
    if "labels" in rows[0]:
        batch["labels"] = torch.tensor([int(row["labels"]) for row in rows])
    return batch


def read_image(value: Any, place: str, *, column: str = "image") -> Image.Image:
    """Returns a Pillow image of 8 bits a channel, turned as its EXIF data says.

    Args:
        value: A Pillow image, ``{"bytes", "path"}`` as data sets store it, a file, its bytes, or an array
            (H, W) or (H, W, C) of whole numbers from 0 to 255 (also as lists).
        place: For the message.
        column: The same.

    Raises:
        DataError: none of these, a file that is missing or broken, or more than 8 bits a channel.
    """
    stored = _stored(value, place, column=column)
    try:
        image = Image.open(io.BytesIO(stored["bytes"]) if stored["bytes"] else stored["path"])
        image = ImageOps.exif_transpose(image)
        image.load()
    except UnidentifiedImageError as error:
        given = f"`{stored['path']}`" if stored["bytes"] is None else f"{len(stored['bytes']):,} bytes"
        raise DataError(
            f"the image cannot be read: {given} of `{column}` are no image file",
            where=place,
            allowed="PNG, JPEG and other formats that Pillow knows",
            hint="mend the file or take the row out; write bare pixels as PNG, or as lists (height, width)",
        ) from error
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(
            f"the image cannot be read: {error}", where=place, hint="mend the file or take the row out"
        ) from error
    if image.mode.partition(";")[0] in DEEP_MODES:
        raise DataError(
            f"the image has Pillow's mode {image.mode}: more than 8 bits a channel",
            where=place,
            hint="scale it to 0 to 255 first",
        )
    return image


def _stored(value: Any, place: str, *, column: str = "image") -> dict[str, Any]:
    """An image as data sets store it: ``{"bytes", "path"}``."""
    if isinstance(value, dict) and value.keys() == {"bytes", "path"} and any(value.values()):
        return value
    if isinstance(value, (str, os.PathLike)):
        if not os.path.isfile(value):
            raise DataError(f"there is no image file `{value}`", where=place)
        return {"bytes": None, "path": os.fspath(value)}
    if isinstance(value, bytes):
        return {"bytes": value, "path": None}
    if not isinstance(value, Image.Image):
        value = _from_array(value, place, column)
    buffer = io.BytesIO()
    value.save(buffer, format="TIFF" if value.mode in ("F", "CMYK", "YCbCr", "LAB", "HSV") else "PNG")
    return {"bytes": buffer.getvalue(), "path": None}


def _from_array(value: Any, place: str, column: str) -> Image.Image:
    try:
        array = np.asarray(value)
    except ValueError:  # rows of different lengths
        array = np.asarray(None)
    whole = np.issubdtype(array.dtype, np.integer)
    flat = array.ndim == 2 or (array.ndim == 3 and array.shape[-1] in (1, 3, 4))
    if not whole or not flat or array.size == 0 or array.min() < 0 or array.max() > 255:
        said = repr(value) if array.ndim == 0 else f"an array of {array.dtype}, shape {array.shape}"
        raise DataError(
            f"`{column}` is {said[:60]}, not an image",
            where=place,
            allowed="an image, a file, or an array (height, width) or (height, width, channels) of whole "
            "numbers from 0 to 255",
        )
    if array.ndim == 3 and array.shape[-1] == 1:
        array = array[..., 0]
    return Image.fromarray(array.astype(np.uint8))


def _undecoded(rows: Any, column: str) -> Any:
    """Rows whose image column is read by us, so that a broken image has a row number."""
    if isinstance((rows.features or {}).get(column), datasets.Image):
        return rows.cast_column(column, datasets.Image(decode=False))
    return rows


def _processed(processor: Any, image: Image.Image) -> np.ndarray:
    (pixels_CHW,) = processor([image], return_tensors="np")["pixel_values"]
    return np.asarray(pixels_CHW, dtype=np.float32)


def _file_of(value: Any) -> str | None:
    if isinstance(value, dict):
        value = value.get("path")
    return Path(value).name if isinstance(value, str) else None


def _mean_loss(
    outputs: Any, labels: Tensor, num_items_in_batch: Any = None, *, label_smoothing: float
) -> Tensor:
    """The summed cross-entropy over the images of the step; of this batch where their number is not given.

    Args:
        outputs: With ``logits`` of shape (B, C).
        labels: (B,) classes; −100 is left out.
        num_items_in_batch: Images in all micro-batches of the step, as the Trainer counts them.
        label_smoothing: As in ``torch.nn.functional.cross_entropy``.
    """
    total = cross_entropy(outputs["logits"].float(), labels, reduction="sum", label_smoothing=label_smoothing)
    return total / (labels.numel() if num_items_in_batch is None else num_items_in_batch)


def _own_names(model_config: Any) -> list[str]:
    return [model_config.id2label[i] for i in range(model_config.num_labels)]


def _logits(predictions: Any) -> np.ndarray:
    """Some models return hidden states behind the logits; the Trainer then gives a tuple."""
    return np.asarray(predictions[0] if isinstance(predictions, tuple) else predictions)
