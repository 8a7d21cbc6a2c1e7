"""The code of a model card for models of language and for embeddings: how to load one and ask it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hf_llm_recipes.tasks._language_task import Writing

WRITERS = ("text-generation", "text2text-generation")  # pipeline tags of models that answer with text
GREEDY = {"max_new_tokens": 64, "do_sample": False}

AUTO_CLASSES = {  # pipeline tag -> class of transformers
    "text-generation": "AutoModelForCausalLM",
    "text2text-generation": "AutoModelForSeq2SeqLM",
    "fill-mask": "AutoModelForMaskedLM",
    "sentence-similarity": "AutoModel",
    "image-feature-extraction": "AutoModelForMaskedImageModeling",
    "question-answering": "AutoModelForQuestionAnswering",
}

_ASK = {
    "text-generation": [
        *("text = {example!r}", "{inputs}"),
        "with torch.inference_mode():",
        "    made = model.generate(**inputs, {settings})",
        'print(tokenizer.decode(made[0, inputs["input_ids"].shape[1]:], skip_special_tokens=True))',
    ],
    "text2text-generation": [
        'inputs = tokenizer({example!r}, return_tensors="pt")',
        "with torch.inference_mode():",
        "    made = model.generate(**inputs, {settings})",
        "print(tokenizer.decode(made[0], skip_special_tokens=True))",
    ],
    "fill-mask": [
        'inputs = tokenizer({example!r} + f" {{tokenizer.mask_token}}", return_tensors="pt")',
        "with torch.inference_mode():",
        "    logits = model(**inputs).logits[0]",
        'place = (inputs["input_ids"][0] == tokenizer.mask_token_id).nonzero()[0, 0]',
        "print([tokenizer.decode(token) for token in logits[place].topk(5).indices])",
    ],
    "sentence-similarity": [
        'inputs = tokenizer([{example!r}, "Another text."], padding=True, return_tensors="pt")',
        "with torch.inference_mode():",
        "    states = model(**inputs).last_hidden_state",
        'mask = inputs["attention_mask"][..., None]',
        "vectors = torch.nn.functional.normalize((states * mask).sum(1) / mask.sum(1), dim=-1)",
        "print((vectors[0] @ vectors[1]).item())  # cosine similarity",
    ],
    "image-feature-extraction": [
        'mode = {{1: "L", 3: "RGB"}}[getattr(model.config, "num_channels", 3)]',
        'image = Image.open("image.png").convert(mode)  # your own file',
        'inputs = processor([image], return_tensors="pt")',
        "with torch.inference_mode():",
        "    states = model(**inputs, output_hidden_states=True).hidden_states[-1]",
        "print(states.mean(1).shape)  # one vector an image",
    ],
    "question-answering": [
        'question, context = {example!r}, "Put the text here that holds the answer."',
        'inputs = tokenizer(question, context, truncation="only_second", return_offsets_mapping=True,',
        '    return_tensors="pt")',
        'offsets = inputs.pop("offset_mapping")[0].tolist()',
        "with torch.inference_mode():",
        "    outputs = model(**inputs)",
        "scores = outputs.start_logits[0][:, None] + outputs.end_logits[0]  # of each start with each end",
        "inside = torch.tensor([part == 1 for part in inputs.sequence_ids()])",
        "spans = (inside[:, None] & inside).triu()",
        'start, end = divmod(scores.masked_fill(~spans, float("-inf")).argmax().item(), len(offsets))',
        "print(context[offsets[start][0] : offsets[end][1]])",
    ],
}


def asking_code(pipeline_tag: str, example: str, remote: str, writing: Writing | None) -> list[str]:
    """Returns the lines that load a processor and ask ``model``.

    Args:
        pipeline_tag: A key of ``AUTO_CLASSES``.
        example: A text to ask.
        remote: ``", trust_remote_code=True"``, or nothing.
        writing: How a model that writes is asked; None: it goes on with the text, greedily.
    """
    images = pipeline_tag == "image-feature-extraction"
    name, cls = ("processor", "AutoImageProcessor") if images else ("tokenizer", "AutoTokenizer")
    load = f"{name} = {cls}.from_pretrained(model_id{remote})"
    given = GREEDY if writing is None else writing.settings
    said = {"example": example, "inputs": inputs_code(writing, "pt"), "settings": _arguments(given)}
    return [load, *(line.format(**said) for line in _ASK[pipeline_tag])]


def inputs_code(writing: Writing | None, tensors: str) -> str:
    """Returns the lines that make ``inputs`` of ``text``, as the model was asked when it was judged.

    Args:
        writing: How; None: the text alone.
        tensors: ``"pt"`` or ``"np"``.
    """
    if writing is None or not writing.chats:
        return f'inputs = tokenizer(text, return_tensors="{tensors}")'
    system = [f'    {{"role": "system", "content": {writing.system!r}}},'] if writing.system else []
    lines = ["messages = [", *system, '    {"role": "user", "content": text},', "]"]
    lines += ["inputs = tokenizer.apply_chat_template(messages, add_generation_prompt=True,"]
    return "\n".join([*lines, f'    return_tensors="{tensors}", return_dict=True)'])


def _arguments(settings: dict[str, Any]) -> str:
    return ", ".join(f"{name}={value!r}" for name, value in settings.items())
