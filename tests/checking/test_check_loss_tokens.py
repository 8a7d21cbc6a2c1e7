"""Which tokens carry loss, worked out by hand from the collators' batches."""

import pytest
from _planted import jsonl, recipe_of, report_of
from _tiny_chat import said as turns
from _tiny_chat import tiny_llama
from conftest import make_tokenizer, sentences
from transformers import BertConfig

from hf_llm_recipes.checking import loss_tokens
from hf_llm_recipes.checking.base import Piece
from hf_llm_recipes.checking.loss_tokens import cut_out, pieces

ENCODER = {
    "architecture": "hlr_encoder",
    "config": {
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "max_position_embeddings": 32,
    },
}


def split_data(tmp_path, rows):
    return {"name": jsonl(tmp_path / "rows.jsonl", rows), "train": "train[:-4]", "test": "train[-4:]"} | {
        "eval_fraction": 0
    }


def learnt(sample):
    return [piece.text.strip() for piece in sample.pieces if piece.loss]


def test_runs_of_one_state_are_one_piece(tiny_bert):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_bert)
    ids = tokenizer("the ball was new")["input_ids"]
    made = pieces(tokenizer, ids, [False, False, True, True, False, False])
    assert [(p.text, p.loss) for p in made] == [
        ("[CLS] the", False),
        (" ball was", True),
        (" new [SEP]", False),
    ]
    noted = pieces(tokenizer, ids, [False, True, True, True, True, False], ["", "", "X", "", "", ""])
    assert noted[2] == Piece(" ball", True, "X")


def test_a_long_row_is_shown_around_its_first_loss(tiny_bert, monkeypatch):
    import numpy as np
    from transformers import AutoTokenizer

    monkeypatch.setattr(loss_tokens, "MOST_TOKENS", 6)
    monkeypatch.setattr(loss_tokens, "BEFORE", 2)
    tokenizer = AutoTokenizer.from_pretrained(tiny_bert)
    ids = tokenizer("the a and was in of very new old good")["input_ids"]
    loss = np.zeros(len(ids), dtype=bool)
    loss[6:8] = True  # of, very
    made = cut_out(tokenizer, ids, loss)
    assert made[0].text == "… 4 tokens …"
    assert [piece.text.strip() for piece in made if piece.loss] == ["of very"]
    assert made[-1].text == "… 2 tokens …"


def test_a_chat_learns_what_the_assistant_says_with_its_end(tmp_path):
    model = tiny_llama(tmp_path / "model")
    rows = [{"messages": turns("hello", "hi", "why", "so it is")}, {"messages": turns("bye", "good day")}]
    rows += [{"messages": turns("be kind", word)} for word in ("hi", "bye", "good", "day")]
    report = report_of(recipe_of(model, split_data(tmp_path, rows), {"name": "chat"}), tmp_path)
    first, second = report.samples
    assert learnt(first) == ["hi <|im_end|>", "so it is <|im_end|>"]
    assert first.supervised == 2 + 4
    assert learnt(second) == ["good day <|im_end|>"]
    assert "".join(piece.text for piece in second.pieces).startswith("<|im_start|> user")
    assert report.exit_code == 0


def test_words_carry_their_tags(tiny_bert, tmp_path):
    rows = [{"tokens": ["the", "ball", "was"], "label": ["O", "B-x", "O"]} for _ in range(8)]
    task = {"name": "token_classification"}
    report = report_of(recipe_of(tiny_bert, split_data(tmp_path, rows), task), tmp_path)
    sample = report.samples[0]
    assert [(p.text.strip(), p.note) for p in sample.pieces if p.loss] == [
        ("the", ""),
        ("ball", "B-x"),
        ("was", ""),
    ]
    assert (sample.supervised, sample.tokens) == (3, 5)


def test_texts_pairs_and_numbers_have_one_label_a_row(tiny_bert, tmp_path):
    rows = [{"text": "the ball", "other": "a goal", "label": i / 2} for i in range(9)]
    task = {"name": "text_classification", "text_pair": "other", "problem": "regression"}
    report = report_of(recipe_of(tiny_bert, split_data(tmp_path, rows), task), tmp_path)
    assert [sample.label for sample in report.samples] == ["0", "0.5", "1", "1.5", "2"]
    (piece,) = report.samples[0].pieces
    assert piece == Piece("[CLS] the ball [SEP] a goal [SEP]")


@pytest.mark.parametrize("name", ["mlm", "mlm_nsp", "clm", "span_corruption", "contrastive"])
def test_every_objective_shows_what_it_learns(name, tmp_path):
    tokenizer = make_tokenizer(tmp_path / "tokenizer")
    BertConfig().save_pretrained(tmp_path / "tokenizer")
    if name == "span_corruption":
        tokenizer.add_special_tokens({"extra_special_tokens": [f"<extra_id_{i}>" for i in range(8)]})
        tokenizer.eos_token = "[SEP]"
        tokenizer.save_pretrained(tmp_path / "tokenizer")
    text = [". ".join(row["text"] for row in sentences(3, seed=i)) for i in range(40)]
    model = {**ENCODER, "tokenizer": str(tmp_path / "tokenizer")}
    if name in ("clm", "span_corruption"):
        model["config"] = {**model["config"], "num_key_value_heads": 2} if name == "clm" else model["config"]
        model["architecture"] = {"clm": "hlr_decoder"}.get(name, "hlr_encoder_decoder")
    if name == "span_corruption":
        model["config"] = {k: v for k, v in model["config"].items() if k != "max_position_embeddings"}
    task = {"name": name, **({} if name == "contrastive" else {"block_size": 32})}
    values = recipe_of("", split_data(tmp_path, [{"text": one} for one in text]), task)
    values["model"] = model
    report = report_of(values, tmp_path)
    assert report.exit_code == 0, report.of("error")
    sample = report.samples[0]
    if name == "contrastive":
        assert sample.label.startswith("like itself under another dropout")
        assert not learnt(sample)
        return
    assert sample.unit == "block"
    assert report.model["batch_split"]["gradient_difference"] < 1e-4
    assert report.model["batch_split"]["packed"] == (name in ("mlm", "clm"))
    assert sample.supervised > 0
    if name in ("mlm", "mlm_nsp"):
        assert all(bool(piece.note) == piece.loss for piece in sample.pieces)
    if name == "span_corruption":
        source = next(i for i, piece in enumerate(sample.pieces) if piece.text == " ⇒ ")
        assert not any(piece.loss for piece in sample.pieces[:source])
        assert "<extra_id_0>" in sample.pieces[source + 1].text


def test_a_masked_image_says_how_much_is_hidden(tmp_path):
    import numpy as np
    from datasets import Dataset, Features, Image

    images = [np.full((8, 8, 3), 9 * i, dtype=np.uint8) for i in range(12)]
    Dataset.from_dict({"image": images}, features=Features({"image": Image()})).to_parquet(
        tmp_path / "x.parquet"
    )
    data = {
        "name": str(tmp_path / "x.parquet"),
        "train": "train[:8]",
        "test": "train[8:]",
        "eval_fraction": 0,
    }
    values = recipe_of("", data, {"name": "masked_image", "mask_ratio": 0.5})
    values["model"] = {"architecture": "hlr_vision", "preset": "tiny"}
    report = report_of(values, tmp_path)
    assert report.exit_code == 0, report.of("error")
    assert "patches are hidden; their pixels are learnt" in report.samples[0].label
    assert report.samples[0].unit == "row"
