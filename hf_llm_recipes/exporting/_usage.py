"""The code of an exported model's card: copyable, without this package, and without torch where it can be."""

from __future__ import annotations

from typing import Any

from hf_llm_recipes import card_language
from hf_llm_recipes.card import CardInfo
from hf_llm_recipes.methods._forward import model_inputs


def stop_ids(task: Any, processor: Any) -> list[int]:
    """Returns the tokens that end what a causal model writes; none of other models."""
    if not task.writes:
        return []
    ends = task.writing(processor).settings.get("eos_token_id", getattr(processor, "eos_token_id", None))
    return [] if ends is None else [int(one) for one in (ends if isinstance(ends, (list, tuple)) else [ends])]


def channels(task: Any, config: Any) -> int:
    """Returns how many channels the images have; 0 where the model takes none."""
    return 0 if task.processor == "tokenizer" else getattr(config, "num_channels", 3)


def traced_inputs(task: Any, made: Any) -> list[str]:
    """Returns the names of a program's inputs in their order."""
    if task.processor != "tokenizer":
        return ["pixel_values"]
    names = ["input_ids", "attention_mask"]
    if not task.judges_model and "token_type_ids" in made.tokenizer.model_input_names:
        names.append("token_type_ids")
    return list(model_inputs(made.model, dict.fromkeys(names)))


def onnx_code(info: CardInfo, folder: str, stops: list[int], channels: int) -> str:
    """Returns a program that asks ``model.onnx``.

    Args:
        info: Of the card.
        folder: Its name.
        stops: From ``stop_ids``.
        channels: Of the images that the model takes; 0 of other models.
    """
    head = ["import numpy as np", "import onnxruntime"]
    load = ['session = onnxruntime.InferenceSession(f"{folder}/model.onnx")']
    ask = [
        "def logits_of(inputs):",
        "    given = {one.name: inputs[one.name] for one in session.get_inputs()}",
        '    return session.run(["logits"], given)[0]',
    ]
    return _program_code(info, folder, stops, head, load, ask, channels)


def executorch_code(info: CardInfo, folder: str, names: list[str], stops: list[int], channels: int) -> str:
    """Returns a program that asks ``model.pte``.

    Args:
        info: Of the card.
        folder: Its name.
        names: Of the program's inputs in their order.
        stops: From ``stop_ids``.
        channels: Of the images that the model takes; 0 of other models.
    """
    head = ["from pathlib import Path", "", "import numpy as np", "import torch"]
    head += ["from executorch.runtime import Runtime"]
    load = ['method = Runtime.get().load_program(Path(folder) / "model.pte").load_method("forward")']
    ask = [
        "def logits_of(inputs):",
        f"    given = [torch.as_tensor(inputs[name]) for name in {names!r}]",
        "    return method.execute(given)[0].numpy()",
    ]
    return _program_code(info, folder, stops, head, load, ask, channels)


def _program_code(
    info: CardInfo,
    folder: str,
    stops: list[int],
    head: list[str],
    load: list[str],
    ask: list[str],
    channels: int,
) -> str:
    images = bool(channels)
    cls, name = ("AutoImageProcessor", "processor") if images else ("AutoTokenizer", "tokenizer")
    remote = ", trust_remote_code=True" if info.trust_remote_code else ""
    if images:
        head = [*head, "from PIL import Image"]
        remote = f', backend="pil"{remote}'
    lines = [
        *head,
        f"from transformers import {cls}",
        "",
        f"folder = {folder!r}  # with this file",
        *load,
        f"{name} = {cls}.from_pretrained(folder{remote})",
        *["", "", *ask, "", ""],
    ]
    if info.pipeline_tag == "text-generation":
        return "\n".join([*lines, *_writing(info, stops)])
    return "\n".join([*lines, *_asking(info, channels), *_answering(info)])


def _writing(info: CardInfo, stops: list[int]) -> list[str]:
    return [
        f"text = {info.example[0]!r}",
        card_language.inputs_code(info.writing, "np"),
        'ids = inputs["input_ids"]',
        "start = ids.shape[1]",
        f"for _ in range({_most(info)}):  # the likeliest token each time; without a cache",
        '    token = logits_of({"input_ids": ids, "attention_mask": np.ones_like(ids)})[0, -1].argmax()',
        f"    if token in {stops!r}:",
        "        break",
        "    ids = np.append(ids, [[token]], axis=1)",
        "print(tokenizer.decode(ids[0, start:], skip_special_tokens=True))",
    ]


def _most(info: CardInfo) -> int:
    settings = card_language.GREEDY if info.writing is None else info.writing.settings
    return settings.get("max_new_tokens", card_language.GREEDY["max_new_tokens"])


def _asking(info: CardInfo, channels: int) -> list[str]:
    if channels:
        mode = '{1: "L", 3: "RGB"}'
        return [
            f'image = Image.open("image.png").convert({mode}[{channels}])  # your own file',
            'logits = logits_of(processor([image], return_tensors="np"))[0]',
        ]
    cut = f", max_length={info.max_length}" if info.max_length else ""
    if info.problem == "tokens":
        return [
            f"words = {info.example[0]!r}.split()",
            f'inputs = tokenizer(words, is_split_into_words=True, truncation=True{cut}, return_tensors="np")',
            "logits = logits_of(inputs)[0]",
        ]
    texts = ", ".join(repr(text) for text in info.example)
    return [
        f'inputs = tokenizer({texts}, truncation=True{cut}, return_tensors="np")',
        "logits = logits_of(inputs)[0]",
    ]


def _answering(info: CardInfo) -> list[str]:
    if info.problem == "regression":
        return ["print(logits.item())"]
    labels = ["labels = [", *(f"    {name!r}," for name in info.label_names or ()), "]"]
    if info.problem == "tokens":
        return [
            *labels,
            "word_ids = inputs.word_ids()",
            "for word, text in enumerate(words):",
            "    if word in word_ids:  # read at the word's first token",
            '        print(f"{labels[logits[word_ids.index(word)].argmax()]}  {text}")',
        ]
    squash = ["odds = np.exp(logits - logits.max())", "probabilities = odds / odds.sum()"]
    if info.problem == "multi_label":
        squash = ["probabilities = 1 / (1 + np.exp(-logits))"]
    return [
        *labels,
        *squash,
        "for label, probability in zip(labels, probabilities):",
        '    print(f"{probability:.3f}  {label}")',
    ]
