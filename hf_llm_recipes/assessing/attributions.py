"""Which words an answer hangs on: integrated gradients of the class's logit over the word embeddings.

Sundararajan et al. 2017, https://arxiv.org/abs/1703.01365, by captum's ``LayerIntegratedGradients``, from the
text with every word masked to the text as it is.

Notable:
- Complete: the attributions sum to the logit minus the logit of the masked text. What is missing for want of
  steps is told; steps are doubled while it is too much.
- They explain the model, not the world, and words together: a word alone may do nothing.
- Adapters and 8-bit or 4-bit bases are explained as they answer; only embeddings are interpolated.

Shapes: T tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from hf_llm_recipes.assessing.explanation import Explanation, Piece, near
from hf_llm_recipes.errors import DataError, MissingExtraError, did_you_mean
from hf_llm_recipes.methods._forward import model_inputs, unwrapped

STEPS, MOST_STEPS = 32, 256  # of the integral, Gauss-Legendre
AT_ONCE = 16  # steps of a forward
PROBLEMS = ("single_label", "multi_label", "regression")
REPLACEMENTS = ("mask_token_id", "pad_token_id", "unk_token_id", "eos_token_id")


def check(task: Any) -> None:
    """Refuses tasks that are not explained, and says what is missing.

    Raises:
        DataError: the task answers with something else than one text's or pair's class or number.
        MissingExtraError: captum is not installed.
    """
    if task.judges_model or task.processor != "tokenizer" or task.problem not in PROBLEMS:
        raise DataError(
            "only classes and numbers of texts are explained",
            allowed="runs of the task text_classification, of one text or a pair",
        )
    _captum()


def explain(predictor: Any, rows: Any, target: str | None = None) -> list[Explanation]:
    """Returns what the answer of each row hangs on.

    Args:
        predictor: A ``predictor.Predictor``.
        rows: A ``datasets.Dataset`` with the task's text columns.
        target: The class to explain; None takes each row's own answer.

    Raises:
        DataError: no such class, or a task that is not explained.
        MissingExtraError: captum is not installed.
    """
    check(predictor.task)
    names = _names(predictor)
    if target is not None and target not in names:
        raise DataError(
            f"there is no class `{target}`{did_you_mean(target, names)}", allowed=", ".join(names)
        )
    config, tokenizer, task = predictor.model.config, predictor.tokenizer, predictor.task
    features, _ = task.encode(rows, tokenizer, config, labeled=False)
    logits, _ = predictor.feature_logits(features, labeled=False)
    answers = task.decode(logits, config)
    made = []
    for i, row in enumerate(rows):
        number = names.index(target) if target is not None else int(np.argmax(logits[i]))
        texts = [row[name] for name in task.input_columns]
        one = dict(features[i])
        weights_T, found = _integrated(predictor, one, number)
        made.append(
            Explanation(
                texts=texts,
                answer=_said(answers[i]),
                target=names[number],
                pieces=_pieces(tokenizer, texts, one["input_ids"], weights_T),
                **found,
            )
        )
    return made


def _integrated(predictor: Any, row: dict[str, Any], number: int) -> tuple[np.ndarray, dict[str, Any]]:
    """Each token's attribution, (T,), and the figures of the integral."""
    import torch

    model, tokenizer = predictor.model, predictor.tokenizer
    batch = dict(predictor.task.collator(tokenizer)([row]))
    inputs = {key: value.to(model.device) for key, value in model_inputs(model, batch).items()}
    ids_1T = inputs.pop("input_ids")
    length = len(row["input_ids"])
    masked_1T = _masked(ids_1T, tokenizer)

    def logit(ids_NT: Any, *others: Any) -> Any:
        given = dict(zip(inputs, others, strict=True))
        return model(input_ids=ids_NT, **given).logits[:, number].float() / predictor.temperature

    method = _captum()(logit, unwrapped(model).get_input_embeddings())
    with torch.inference_mode():
        ends = [float(logit(one, *inputs.values())) for one in (ids_1T, masked_1T)]
    steps = STEPS
    while True:
        found = method.attribute(
            ids_1T,
            baselines=masked_1T,
            additional_forward_args=tuple(inputs.values()),
            n_steps=steps,
            internal_batch_size=AT_ONCE,
        )
        weights_T = found[0].double().sum(-1).detach().cpu().numpy()
        missing = ends[0] - ends[1] - float(weights_T.sum())
        if near(missing, *ends) or steps >= MOST_STEPS:
            break
        steps *= 2
    weights_T = weights_T[-length:] if tokenizer.padding_side == "left" else weights_T[:length]
    return weights_T, {"logit": ends[0], "masked_logit": ends[1], "missing": missing, "steps": steps}


def _masked(ids_1T: Any, tokenizer: Any) -> Any:
    """The ids with every word replaced; what only frames a text stays."""
    import torch

    fill = next(one for name in REPLACEMENTS if (one := getattr(tokenizer, name)) is not None)
    special = set(tokenizer.all_special_ids) - {tokenizer.unk_token_id}
    keep = torch.tensor([[int(i) in special for i in ids_1T[0]]], device=ids_1T.device)
    return torch.where(keep, ids_1T, torch.full_like(ids_1T, fill))


def _pieces(tokenizer: Any, texts: Sequence[str], ids_T: Sequence[int], weights_T: np.ndarray) -> list[Piece]:
    """Tokens with their characters; those that share one are one piece."""
    encoded = tokenizer(*texts, truncation=True, max_length=len(ids_T), return_offsets_mapping=True)
    made: list[Piece] = []
    sequences, offsets = encoded.sequence_ids(0), encoded["offset_mapping"]
    for sequence, (start, end), weight in zip(sequences, offsets, weights_T, strict=True):
        if sequence is None or start == end:
            continue
        last = made[-1] if made else None
        if last is not None and last.text == sequence and start < last.end:
            made[-1] = Piece(sequence, last.start, max(last.end, end), last.weight + float(weight))
            continue
        made.append(Piece(sequence, start, end, float(weight)))
    return made


def _names(predictor: Any) -> list[str]:
    config = predictor.model.config
    if predictor.task.problem == "regression":
        return ["value"]
    return [config.id2label[i] for i in range(config.num_labels)]


def _said(answer: dict[str, Any]) -> str:
    if "label" in answer:
        return f"{answer['label']} ({answer['probability']:.2f})"
    if "labels" in answer:
        return ", ".join(answer["labels"]) or "none"
    return f"{answer['value']:.4f}"


def _captum() -> Any:
    try:
        from captum.attr import LayerIntegratedGradients
    except ImportError as error:
        raise MissingExtraError("captum", "attributions") from error
    return LayerIntegratedGradients
