"""What an answer hangs on: complete, in the characters of the text, through adapters and 4-bit bases."""

import json
import sys

import numpy as np
import pytest
from conftest import sentences, write_csv
from datasets import Dataset

from hf_llm_recipes.assessing import attributions, tables
from hf_llm_recipes.assessing.explanation import Explanation, Piece
from hf_llm_recipes.errors import DataError, MissingExtraError, RunError
from hf_llm_recipes.judging import explain_texts, explain_worst
from hf_llm_recipes.predictor import Predictor
from hf_llm_recipes.recipe import Recipe
from hf_llm_recipes.run import run

pytest.importorskip("captum", reason="the extra attributions is not installed")
TEXT = "the ball, was in a zzz goal"


def finish(model, folder, **changes):
    folder.mkdir(exist_ok=True, parents=True)
    values = {
        "name": "tiny",
        "output": str(folder / "out"),
        "model": {"name": str(model)},
        "data": {"name": str(write_csv(folder / "rows.csv", sentences(120)))},
        "task": {"name": "text_classification"},
        "trainer": {"max_steps": 10, "learning_rate": 1e-2, "use_cpu": True, "disable_tqdm": True},
    }
    return run(Recipe.from_dict({**values, **changes})).path


@pytest.fixture(scope="module")
def finished(tiny_bert, tmp_path_factory):
    return finish(tiny_bert, tmp_path_factory.mktemp("explained"))


def rows_of(text=TEXT, **more):
    return Dataset.from_dict({"text": [text], **{key: [value] for key, value in more.items()}})


def logits_of(predictor, ids, **more):
    """The model's own logits of one row of ids."""
    import torch

    with torch.inference_mode():
        ids = torch.tensor([ids])
        return predictor.model(input_ids=ids, attention_mask=torch.ones_like(ids), **more).logits[0].numpy()


def test_the_weights_sum_to_the_difference_of_the_models_own_logits(finished):
    predictor = Predictor.load(finished)
    (found,) = attributions.explain(predictor, rows_of())
    ids = predictor.tokenizer(TEXT)["input_ids"]
    masked = [i if i in (2, 3) else predictor.tokenizer.mask_token_id for i in ids]
    assert masked != ids
    number = int(logits_of(predictor, ids).argmax())
    wanted = logits_of(predictor, ids)[number] - logits_of(predictor, masked)[number]
    assert found.target == predictor.model.config.id2label[number]
    assert found.logit - found.masked_logit == pytest.approx(wanted, abs=1e-4)
    assert sum(one.weight for one in found.pieces) == pytest.approx(wanted, abs=0.02 * max(1, abs(wanted)))
    assert found.complete
    assert [found.words(one) for one in found.pieces] == ["the", "ball", ",", "was", "in", "a", "zzz", "goal"]


def test_another_class_can_be_asked_for(finished):
    predictor = Predictor.load(finished)
    (found,) = attributions.explain(predictor, rows_of(), "music")
    ids = predictor.tokenizer(TEXT)["input_ids"]
    assert found.target == "music"
    assert found.logit == pytest.approx(float(logits_of(predictor, ids)[1]), abs=1e-4)  # food, music, sport
    with pytest.raises(DataError, match=r"there is no class `musik` \(did you mean `music`\?\)"):
        attributions.explain(predictor, rows_of(), "musik")


@pytest.mark.parametrize(
    "changes",
    [
        {"tuning": {"name": "lora", "r": 4, "target_modules": ["query", "value"]}},
        {
            "tuning": {"name": "lora", "r": 4, "target_modules": ["query", "value"]},
            "quantization": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"},
        },
        {"task": {"name": "text_classification", "text_pair": "label"}},
    ],
    ids=["adapter", "4-bit base", "pair"],
)
def test_adapters_quantised_bases_and_pairs(tiny_bert, tmp_path, changes):
    if "task" in changes:
        changes = {"task": {"name": "text_classification", "text_pair": "second"}}
        rows = [{**row, "second": "a song"} for row in sentences(60)]
        changes["data"] = {"name": str(write_csv(tmp_path / "pairs.csv", rows))}
    predictor = Predictor.load(finish(tiny_bert, tmp_path, **changes))
    (found,) = attributions.explain(predictor, rows_of(second="song, drum"))
    assert found.complete
    assert abs(found.missing) < 0.05 * abs(found.logit - found.masked_logit)
    whole = sum(one.weight for one in found.pieces) + found.missing
    assert whole == pytest.approx(found.logit - found.masked_logit, abs=1e-4)
    texts = [one.text for one in found.pieces]
    assert set(texts) == ({0, 1} if "task" in changes else {0})


def test_too_few_steps_are_doubled_and_told(finished, monkeypatch):
    predictor = Predictor.load(finished)
    monkeypatch.setattr(attributions, "STEPS", 1)
    monkeypatch.setattr(attributions, "near", lambda *given: False)
    monkeypatch.setattr(attributions, "MOST_STEPS", 4)
    (found,) = attributions.explain(predictor, rows_of())
    assert found.steps == 4
    short = Explanation(["a b"], "x (0.90)", "x", 3.0, 1.0, [Piece(0, 0, 1, 1.5)], 0.5, 4)
    assert not short.complete
    shown = text_of(tables.explanation(short))
    assert "after 4 steps the figures miss the difference by +0.500" in shown


def text_of(renderable):
    from rich.console import Console

    console = Console(width=100, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(renderable)
    return console.export_text()


def test_tokens_that_share_a_character_are_one_piece():
    class Tokenizer:
        """Two tokens for one character, as byte-level ones have it."""

        def __call__(self, *texts, **settings):
            return self

        def sequence_ids(self, row):
            return [None, 0, 0, 0, None]

        def __getitem__(self, key):
            return [(0, 0), (0, 1), (0, 1), (1, 2), (0, 0)]

    found = attributions._pieces(Tokenizer(), ["é!"], [1, 2, 3, 4, 5], np.asarray([9.0, 1.0, 2.0, 4.0, 9.0]))
    assert found == [Piece(0, 0, 1, 3.0), Piece(0, 1, 2, 4.0)]


def test_a_page_and_a_table_show_it(finished, tmp_path):
    found = explain_texts(finished, ["the <b> ball"], html=tmp_path / "new" / "page.html")
    page = (tmp_path / "new" / "page.html").read_text(encoding="utf-8")
    assert "&lt;" in page
    assert "<b>" not in page
    assert f'title="{found.pieces[0].weight:+.3f}"' in page
    assert f"adds to {found.target}" in text_of(tables.explanation(found))
    assert Explanation.from_dict(json.loads(json.dumps(found.to_dict()))) == found
    with pytest.raises(RunError, match=r"2 texts were given\n  allowed: 1: text"):
        explain_texts(finished, ["a", "b"])


def test_the_worst_rows_stand_in_the_report(finished):
    from hf_llm_recipes import report

    path = explain_worst(finished)
    kept = json.loads(path.read_text(encoding="utf-8"))["rows"]
    assert 1 <= len(kept) <= 6
    predictions = report.read(finished).predictions
    first = kept[0]
    assert predictions["text"][first["row"]] == first["explanation"]["texts"][0]
    assert predictions["label"][first["row"]] == first["label"]
    text = report.write(finished).read_text(encoding="utf-8")
    assert "What answers hang on" in text
    assert f"Row {first['row']}, label {first['label']}" in text


def test_what_is_not_explained(finished, monkeypatch):
    class Tagging:
        judges_model, processor, problem = False, "tokenizer", "tokens"

    with pytest.raises(DataError, match="only classes and numbers of texts are explained"):
        attributions.check(Tagging())
    monkeypatch.setitem(sys.modules, "captum.attr", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'hf_llm_recipes\[attributions\]'"):
        attributions.explain(Predictor.load(finished), rows_of())
