"""Masked tokens and next sentences: chunks and pairs worked by hand, both losses, runs, bad input."""

import pytest
import torch
from _tiny_objective import (
    assert_resumes_exactly,
    assert_split_makes_no_difference,
    documents_csv,
    run_of,
    values,
)
from conftest import make_tokenizer, write_csv
from datasets import Dataset
from torch.nn.functional import cross_entropy

from hf_llm_recipes.errors import DataError, RunError
from hf_llm_recipes.models.encoder import HlrEncoderConfig, HlrEncoderForPreTraining
from hf_llm_recipes.objectives.mlm_nsp import MlmNsp, PairCollator, PairMaker, pair_loss, sentence_chunks
from hf_llm_recipes.tasks._masking import TokenMasker, generator_of

CLS, SEP = 2, 3
ENCODER = {
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "max_position_embeddings": 32,
    "initializer_range": 0.2,
    "hidden_dropout_prob": 0.0,
    "attention_dropout_prob": 0.0,
}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return make_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture
def given(tiny_bert, tmp_path):
    data = documents_csv(tmp_path / "docs.csv")
    model = {"architecture": "hlr_encoder", "config": ENCODER, "tokenizer": str(tiny_bert)}
    return values(model, data, {"name": "mlm_nsp", "block_size": 32}, tmp_path / "out")


def test_documents_become_chunks_of_whole_sentences(tokenizer):
    texts = ["the ball\na goal\nthe team and the coach and a", "good bread", "old salt\nnew soup"]
    chunks, found, notes = sentence_chunks(texts, tokenizer, 8, "train split")
    # room for 8 tokens: a sentence of 7 is cut at 4; 2 + 2 + 4 fit, its last 3 stand alone and are left out
    assert chunks["seq_lengths"][:] == [[2, 2, 4], [2, 2]]
    assert chunks["document"][:] == [0, 2]
    assert found == {
        "documents": 2,
        "documents_too_short": 1,
        "chunks": 2,
        "tokens": 12,
        "tokens_left_out": 3 + 2,
    }
    assert notes == ["train split: 1 of 3 documents have fewer than 2 sentences; left out"]


def test_a_pair_is_a_chunk_parted_between_sentences_or_goes_on_with_another_document(tokenizer):
    rows = [([10, 11, 12, 13], [1, 2, 1], 0), ([14, 15], [1, 1], 0), ([20, 21, 22], [2, 1], 7)]
    names = ("input_ids", "seq_lengths", "document")
    chunks = Dataset.from_dict({name: [row[i] for row in rows] for i, name in enumerate(names)})
    maker = PairMaker(chunks, chunks.with_format("numpy")["document"][:], TokenMasker(tokenizer, 1e-9), 7)
    seen = {}
    for draw in range(400):
        pair = maker(chunks[0], generator_of(0, draw))
        ids = pair["input_ids"]
        cut = ids.index(SEP)
        assert ids[0] == CLS
        assert ids[-1] == SEP
        assert pair["token_type_ids"] == [0] * (cut + 1) + [1] * (len(ids) - cut - 1)
        key = (tuple(ids[1:cut]), tuple(ids[cut + 1 : -1]), pair["next_sentence_label"])
        seen[key] = seen.get(key, 0) + 1
    assert set(seen) == {
        ((10,), (11, 12, 13), 0),
        ((10, 11, 12), (13,), 0),
        ((10,), (20, 21, 22), 1),  # 7 − 3 special − 1 = 3 tokens of room
        ((10,), (22,), 1),
        ((10, 11, 12), (20,), 1),  # cut to one token
        ((10, 11, 12), (22,), 1),
    }
    following = sum(count for key, count in seen.items() if key[2] == 0)
    assert abs(following - 200) < 50  # 5 standard deviations of a fair coin


def test_both_losses_of_a_batch_by_hand():
    pairs = [
        {"input_ids": [2, 4, 3, 8, 3], "token_type_ids": [0, 0, 0, 1, 1], "labels": [-100, 5, -100, 8, -100]},
        {"input_ids": [2, 4, 3], "token_type_ids": [0, 0, 1], "labels": [-100, 6, -100]},
    ]
    rows = [{**pair, "next_sentence_label": label} for pair, label in zip(pairs, (1, 0), strict=True)]
    batch = PairCollator(None, 0)(rows)
    assert batch["labels"][..., 0].tolist() == [[-100, 5, -100, 8, -100], [-100, 6, -100, -100, -100]]
    assert batch["labels"][..., 1].tolist() == [[-100, 1, -100, 1, -100], [-100, 0, -100, -100, -100]]
    assert batch["token_type_ids"].tolist() == [[0, 0, 0, 1, 1], [0, 0, 1, 0, 0]]
    torch.manual_seed(0)
    logits, next_logits = torch.randn(2, 5, 10), torch.randn(2, 2)
    outputs = {"prediction_logits": logits, "seq_relationship_logits": next_logits}
    tokens = sum(-logits[b, t].log_softmax(-1)[token] for b, t, token in ((0, 1, 5), (0, 3, 8), (1, 1, 6)))
    follows = [-next_logits[b].log_softmax(-1)[label] for b, label in ((0, 1), (1, 0))]
    expected = (
        tokens + 2 * follows[0] + follows[1]
    ) / 3  # two hidden tokens in the first row, one in the other
    torch.testing.assert_close(pair_loss(outputs, batch["labels"]), expected)
    torch.testing.assert_close(pair_loss(outputs, batch["labels"], torch.tensor(12)), expected / 2)


def test_the_figures_are_those_of_an_independent_computation(tokenizer):
    torch.manual_seed(0)
    model = HlrEncoderForPreTraining(HlrEncoderConfig(vocab_size=len(tokenizer), **ENCODER)).eval()
    task = MlmNsp(mask_prob=0.4, block_size=16)
    rows = Dataset.from_dict({"text": ["the ball\nin the goal\na team", "good song\na new choir was old"]})
    features, _ = task.encode(rows, tokenizer, model.config, labeled=True)
    judged = task.judge_model(model, features, rows, tokenizer).metrics
    token_loss = next_loss = right = count = 0
    for row in features:
        inputs = {key: torch.tensor([row[key]]) for key in ("input_ids", "token_type_ids")}
        with torch.no_grad():
            outputs = model(**inputs)
        labels = torch.tensor(row["labels"])
        token_loss += cross_entropy(outputs.prediction_logits[0], labels, reduction="sum").item()
        count += int((labels != -100).sum())
        label = torch.tensor([row["next_sentence_label"]])
        next_loss += cross_entropy(outputs.seq_relationship_logits, label).item()
        right += int(outputs.seq_relationship_logits.argmax() == label)
    assert judged["next_sentence_loss"] == pytest.approx(next_loss / len(features), rel=1e-5)
    assert judged["loss"] == pytest.approx(token_loss / count + next_loss / len(features), rel=1e-5)
    assert judged["next_sentence_accuracy"] == right / len(features)


def test_a_run_learns_and_evaluates(given):
    trainer = {**given["trainer"], "max_steps": 30, "learning_rate": 1e-2, "eval_strategy": "steps"}
    done = run_of(given, trainer={**trainer, "eval_steps": 30})
    assert done.metrics["test"]["masked_perplexity"] < 28  # 33 words
    assert done.metrics["reload"]["logits_max_difference"] < 1e-4
    assert '"eval_loss"' in (done.path / "log.jsonl").read_text()
    from hf_llm_recipes.predictor import Predictor

    answer = Predictor.load(done.path).predict(["the [MASK] was very good"])[0]
    assert 0 < answer["probability"] <= 1


def test_a_batch_of_eight_is_eight_batches_of_one(given, tmp_path):
    assert_split_makes_no_difference(given, tmp_path)


def test_a_killed_run_goes_on_to_the_same_bits(given, tmp_path, monkeypatch):
    assert_resumes_exactly(given, tmp_path, monkeypatch)


def test_a_bert_checkpoint_goes_on_in_full(given, tmp_path):
    from transformers import BertConfig, BertForPreTraining

    folder = tmp_path / "bert"
    tokenizer = make_tokenizer(folder)
    config = {key: value for key, value in ENCODER.items() if "dropout" not in key}
    BertForPreTraining(BertConfig(vocab_size=len(tokenizer), **config)).save_pretrained(folder)
    done = run_of(given, model={"name": str(folder)})
    assert done.metrics["before"]["loss"] > 0


def test_documents_of_one_sentence_are_refused(given, tmp_path):
    data = write_csv(tmp_path / "short.csv", [{"text": "the ball was good"} for _ in range(20)])
    with pytest.raises(DataError, match="0 of 16 documents have two sentences or more"):
        run_of(given, data={"name": str(data)})


def test_models_without_segments_or_a_next_sentence_head_are_refused(given, tmp_path):
    from transformers import AlbertConfig, AlbertModel

    with pytest.raises(DataError, match="tells first and second part not apart"):
        run_of(given, model={**given["model"], "config": {**ENCODER, "type_vocab_size": 0}})
    folder = tmp_path / "albert"
    tokenizer = make_tokenizer(folder)
    small = {"hidden_size": 32, "embedding_size": 16, "num_attention_heads": 2, "intermediate_size": 64}
    AlbertModel(AlbertConfig(vocab_size=len(tokenizer), **small)).save_pretrained(folder)
    with pytest.raises(RunError, match="AlbertForPreTraining has no next-sentence head"):
        run_of(given, model={"name": str(folder)})


@pytest.mark.parametrize(
    ("fields", "said"),
    [({"block_size": 7}, "block_size is 7; allowed: 8"), ({"mask_prob": 0.0}, "mask_prob is 0.0")],
)
def test_wrong_fields_are_refused(fields, said):
    with pytest.raises(ValueError, match=said):
        MlmNsp(**fields)
    with pytest.raises(ValueError, match="label_smoothing_factor has no meaning"):
        MlmNsp().loss(0.1)
