"""Hidden tokens: whole words and epochs worked by hand, figures, runs, bad input."""

import json

import pytest
import torch
from _tiny_objective import (
    assert_resumes_exactly,
    assert_split_makes_no_difference,
    documents_csv,
    run_of,
    values,
)
from conftest import make_tokenizer
from datasets import Dataset
from torch.nn.functional import cross_entropy

from hf_llm_recipes.errors import DataError
from hf_llm_recipes.models.encoder import HlrEncoderConfig, HlrEncoderForMaskedLM
from hf_llm_recipes.objectives._draws import Draws
from hf_llm_recipes.objectives.mlm import Mlm, position_offset
from hf_llm_recipes.tasks._masking import TokenMasker, begins_word, generator_of

CLS, SEP, MASK = 2, 3, 4
ENCODER = {
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "max_position_embeddings": 32,
    "initializer_range": 0.2,
}


class WordPieces:
    """Five special tokens, then ``a0 ##a1 b0 ##b1 c0 ##c1 …``."""

    mask_token_id, mask_token, all_special_ids = 4, "[MASK]", (0, 1, 2, 3, 4)
    pieces = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "##a", "b", "##b", "c", "##c")

    def __len__(self):
        return len(self.pieces)

    def convert_ids_to_tokens(self, ids):
        return [self.pieces[i] for i in ids]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return make_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture
def given(tiny_bert, tmp_path):
    data = documents_csv(tmp_path / "docs.csv")
    model = {"architecture": "hlr_encoder", "config": ENCODER, "tokenizer": str(tiny_bert)}
    return values(model, data, {"name": "mlm", "block_size": 32}, tmp_path / "out")


def test_the_pieces_of_a_word_are_chosen_together():
    masker = TokenMasker(WordPieces(), mask_prob=0.5, whole_words=True)
    assert begins_word(WordPieces()).tolist()[5:] == [True, False] * 3
    ids = torch.tensor([CLS, 5, 6, 6, 7, 9, 10, SEP])  # [CLS] a##a##a b c##c [SEP]
    seen = set()
    for draw in range(200):
        _, labels = masker(ids, generator_of(0, draw))
        chosen = (labels != -100).tolist()
        assert chosen[1] == chosen[2] == chosen[3]
        assert chosen[5] == chosen[6]
        assert {chosen[0], chosen[7]} == {False}
        seen.add((chosen[1], chosen[4], chosen[5]))
    assert len(seen) == 8  # each word on its own


def test_a_vocabulary_without_marks_has_no_whole_words(tokenizer):
    with pytest.raises(DataError, match="does not say where words begin"):
        TokenMasker(tokenizer, whole_words=True)


def test_masks_differ_by_epoch_and_seed_and_repeat():
    rows = Dataset.from_dict({"input_ids": [[5, 6, 7]] * 3, "seq_lengths": [[3]] * 3})
    draws = Draws(rows)
    teller = draws.teller()
    found = {}
    for seed, epoch in ((42, 0.0), (42, 1.0), (7, 0.0), (42, 1.5)):
        arguments, state = type("A", (), {"seed": seed}), type("S", (), {"epoch": epoch})
        teller.on_epoch_begin(arguments, state, None)
        found[seed, epoch] = [draws[i]["draw"] for i in range(3)]
    assert found[42, 0.0] == [(42, 0), (42, 1), (42, 2)]
    assert found[42, 1.0] == [(42, 3), (42, 4), (42, 5)] == found[42, 1.5]  # killed within the second epoch
    assert found[7, 0.0] == [(7, 0), (7, 1), (7, 2)]


def test_a_batch_hides_what_its_draws_say_and_nothing_of_its_neighbours(tokenizer):
    collate = Mlm(mask_prob=0.5).collator(tokenizer)
    rows = [
        {"input_ids": [CLS, *range(5, 25), SEP], "seq_lengths": [12, 10], "draw": (0, 0)},
        {"input_ids": [CLS, *range(5, 15), SEP], "seq_lengths": [12], "draw": (0, 1)},
    ]
    both, alone = collate(rows), [collate([row]) for row in rows]
    assert both["input_ids"].tolist() == [[i for one in alone for i in one["input_ids"][0].tolist()]]
    assert both["position_ids"].tolist() == [[*range(12), *range(10), *range(12)]]
    labels = both["labels"][0]
    original = torch.tensor([*rows[0]["input_ids"], *rows[1]["input_ids"]])
    chosen = labels != -100
    assert 0 < chosen.sum() < 30
    assert torch.equal(labels[chosen], original[chosen])
    assert torch.equal(both["input_ids"][0][~chosen], original[~chosen])
    assert not torch.equal(collate([{**rows[0], "draw": (0, 2)}])["labels"], alone[0]["labels"])


def test_the_figures_are_those_of_an_independent_computation(tokenizer):
    torch.manual_seed(0)
    model = HlrEncoderForMaskedLM(HlrEncoderConfig(vocab_size=len(tokenizer), **ENCODER)).eval()
    task = Mlm(mask_prob=0.4, block_size=16)
    rows = Dataset.from_dict({"text": ["the ball was in the goal", "a very good song and a new choir"]})
    features, _ = task.encode(rows, tokenizer, model.config, labeled=True)
    again, _ = task.encode(rows, tokenizer, model.config, labeled=True)
    assert features["labels"][:] == again["labels"][:]  # fixed masks
    judged = task.judge_model(model, features, rows, tokenizer).metrics
    total = right = count = 0
    for row in features:
        labels = torch.tensor(row["labels"])
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([row["input_ids"]])).logits[0]
        total += cross_entropy(logits, labels, reduction="sum").item()
        right += int((logits.argmax(-1) == labels).sum())
        count += int((labels != -100).sum())
    assert judged["loss"] == pytest.approx(total / count, rel=1e-5)
    assert judged["masked_accuracy"] == pytest.approx(right / count)
    assert judged["rows"] == 2
    assert 1 / count <= judged["majority_baseline"] <= 1


def test_a_run_learns_and_fills_masks(given, tiny_bert):
    done = run_of(given, trainer={**given["trainer"], "max_steps": 30, "learning_rate": 1e-2})
    assert done.metrics["test"]["masked_perplexity"] < 28  # 33 words
    assert done.metrics["reload"]["logits_max_difference"] < 1e-4
    from hf_llm_recipes.predictor import Predictor

    predictor = Predictor.load(done.path)
    answer = predictor.predict(["the [MASK] was very good"])[0]
    assert len(answer["generated"].replace("[MASK]", "").split()) == 5
    with pytest.raises(DataError, match=r"'the ball' has no \[MASK\]"):
        predictor.predict(["the ball"])
    assert "AutoModelForMaskedLM" in (done.path / "README.md").read_text()


def test_a_batch_of_eight_is_eight_batches_of_one(given, tmp_path):
    trainer = {**given["trainer"]}
    model = {
        **given["model"],
        "config": {**ENCODER, "hidden_dropout_prob": 0.0, "attention_dropout_prob": 0.0},
    }
    assert_split_makes_no_difference({**given, "model": model, "trainer": trainer}, tmp_path)


@pytest.mark.parametrize("packing", ["best_fit", "none"])
def test_a_killed_run_goes_on_to_the_same_bits(given, tmp_path, monkeypatch, packing):
    task = {**given["task"], "packing": packing}
    assert_resumes_exactly({**given, "task": task}, tmp_path, monkeypatch)


def test_roberta_numbers_positions_from_two():
    from transformers import BertConfig, RobertaConfig

    assert position_offset(RobertaConfig(pad_token_id=1)) == 2
    assert position_offset(BertConfig()) == 0


def test_a_bert_checkpoint_is_trained_through_lora(given, tmp_path):
    from transformers import BertConfig, BertForMaskedLM

    folder = tmp_path / "bert"
    tokenizer = make_tokenizer(folder)
    config = {**ENCODER, "vocab_size": len(tokenizer)}
    BertForMaskedLM(BertConfig(**config)).save_pretrained(folder)
    lora = {"name": "lora", "r": 2, "target_modules": ["query", "value"]}
    done = run_of(given, model={"name": str(folder)}, tuning=lora)
    assert done.metrics["before"]["loss"] > 0
    assert not json.loads((done.path / "model" / "adapter_config.json").read_text())["modules_to_save"]


def test_a_tokenizer_without_a_mask_token_is_refused(given, tmp_path):
    folder = tmp_path / "bare"
    tokenizer = make_tokenizer(folder)
    tokenizer.mask_token = None
    tokenizer.save_pretrained(folder)
    HlrEncoderConfig(vocab_size=len(tokenizer), **ENCODER).save_pretrained(folder)
    with pytest.raises(DataError, match="no mask token"):
        run_of(given, model={**given["model"], "tokenizer": str(folder)})


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"block_size": 3}, "block_size is 3; allowed: 4"),
        ({"mask_prob": 1.0}, "mask_prob is 1.0; allowed: above"),
    ],
)
def test_wrong_fields_are_refused(fields, said):
    with pytest.raises(ValueError, match=said):
        Mlm(**fields)
