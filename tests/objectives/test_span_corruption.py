"""Hidden spans: the reference's mask and a row worked by hand, figures, runs, bad input."""

import pytest
import torch
from _tiny_objective import (
    assert_resumes_exactly,
    assert_split_makes_no_difference,
    documents_csv,
    run_of,
    values,
)
from conftest import FILLER, WORDS
from datasets import Dataset
from torch.nn.functional import cross_entropy

from hf_llm_recipes.errors import DataError, RunError
from hf_llm_recipes.models.encoder_decoder import (
    HlrEncoderDecoderConfig,
    HlrEncoderDecoderForConditionalGeneration,
)
from hf_llm_recipes.objectives import span_corruption
from hf_llm_recipes.objectives.span_corruption import Corrupter, SpanCorruption, fill_spans, noise_mask
from hf_llm_recipes.tasks._masking import generator_of

MODEL = {
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "head_dim": 16,
    "intermediate_size": 64,
    "hidden_dropout_prob": 0.0,
    "attention_dropout_prob": 0.0,
}
S0, S1, END = 100, 101, 1


def t5_tokenizer(folder, sentinels=12):
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = ["<pad>", "</s>", "<unk>", *FILLER, *(w for ws in WORDS.values() for w in ws)]
    words += [f"<extra_id_{i}>" for i in range(sentinels)]
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        model_max_length=64,
    )
    fast.save_pretrained(folder)
    HlrEncoderDecoderConfig(vocab_size=len(words), **MODEL).save_pretrained(folder)
    return fast


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("t5")
    t5_tokenizer(made)
    return made


@pytest.fixture
def given(folder, tmp_path):
    data = documents_csv(tmp_path / "docs.csv")
    model = {"architecture": "hlr_encoder_decoder", "config": MODEL, "tokenizer": str(folder)}
    return values(model, data, {"name": "span_corruption", "block_size": 32}, tmp_path / "out")


@pytest.mark.parametrize(
    ("length", "tokens", "spans"),
    [(2, 1, 1), (10, 2, 1), (20, 3, 1), (30, 4, 1), (60, 9, 3), (512, 77, 26)],  # 0.15 · 512 = 76.8; 77 / 3
)
def test_how_much_is_hidden_is_a_function_of_the_length(length, tokens, spans):
    for draw in range(20):
        mask = noise_mask(length, 0.15, 3.0, generator_of(0, draw))
        assert len(mask) == length
        assert int(mask.sum()) == tokens
        begins = mask & ~torch.cat([torch.tensor([False]), mask[:-1]])
        assert int(begins.sum()) == spans
        assert not mask[0]
        assert mask[-1]


def test_every_way_to_cut_is_as_likely():
    counts = {}
    for draw in range(3000):  # 4 noise tokens in 2 spans: 1+3, 2+2, 3+1; 4 kept tokens likewise
        mask = noise_mask(8, 0.5, 2.0, generator_of(1, draw))
        counts[tuple(mask.int().tolist())] = counts.get(tuple(mask.int().tolist()), 0) + 1
    assert len(counts) == 9
    assert all(abs(count - 333) < 90 for count in counts.values())  # 5 standard deviations are 86


def test_a_row_by_hand(monkeypatch):
    mask = torch.tensor([False, False, True, False, True, True])
    monkeypatch.setattr(span_corruption, "noise_mask", lambda *given: mask)
    source, target = Corrupter([S0, S1], END, 0.15, 3.0)([11, 12, 13, 14, 15, 16], None)
    assert source == [11, 12, S0, 14, S1, END]
    assert target == [S0, 13, S1, 15, 16, END]
    assert fill_spans(source[:-1], [0, *target], [S0, S1], END) == [11, 12, 13, 14, 15, 16]
    assert fill_spans(source[:-1], [0, S1, 15], [S0, S1], END) == [11, 12, 14, 15]


def test_a_batch_is_padded_with_nothing_to_learn(folder):
    from transformers import AutoTokenizer

    collate = SpanCorruption(block_size=32).collator(AutoTokenizer.from_pretrained(folder))
    rows = [{"input_ids": [5, 6, 7, 8], "labels": [40, 6, 1]}, {"input_ids": [5], "labels": [40]}]
    assert {key: value.tolist() for key, value in collate(rows).items()} == {
        "input_ids": [[5, 6, 7, 8], [5, 0, 0, 0]],
        "attention_mask": [[1, 1, 1, 1], [1, 0, 0, 0]],
        "labels": [[40, 6, 1], [40, -100, -100]],
    }
    ids = [*range(5, 25), *range(5, 25)]
    first, again, other = (collate([{"input_ids": ids, "draw": (0, draw)}]) for draw in (0, 0, 1))
    assert torch.equal(first["labels"], again["labels"])
    assert not torch.equal(first["labels"], other["labels"])
    assert first["labels"].shape[1] == 2 + 6 + 1  # two sentinels, six of forty tokens, the end


def test_the_figures_are_those_of_an_independent_computation(folder):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    torch.manual_seed(0)
    config = HlrEncoderDecoderConfig(vocab_size=len(tokenizer), **MODEL)
    model = HlrEncoderDecoderForConditionalGeneration(config).eval()
    task = SpanCorruption(block_size=16)
    texts = ["the ball was in the goal and the team was good", "a very good song and a new choir"]
    rows = Dataset.from_dict({"text": texts})
    features, _ = task.encode(rows, tokenizer, config, labeled=True)
    judged = task.judge_model(model, features, rows, tokenizer).metrics
    total = count = right = hidden = 0
    for row in features:
        labels = torch.tensor([row["labels"]])
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([row["input_ids"]]), labels=labels).logits[0]
        total += cross_entropy(logits, labels[0], reduction="sum").item()
        count += labels.numel()
        right += int((logits.argmax(-1) == labels[0])[1:-1].sum())  # one span: sentinel, tokens, end
        hidden += labels.numel() - 2
    assert judged["loss"] == pytest.approx(total / count, rel=1e-5)
    assert judged["masked_accuracy"] == pytest.approx(right / hidden)


def test_a_run_learns_and_fills_sentinels(given):
    done = run_of(given, trainer={**given["trainer"], "max_steps": 30, "learning_rate": 1e-2})
    assert done.metrics["test"]["loss"] < 3.5  # log 43 = 3.8 at random
    assert done.metrics["reload"]["logits_max_difference"] < 1e-4
    from hf_llm_recipes.predictor import Predictor

    predictor = Predictor.load(done.path)
    written = predictor.predict(["the ball <extra_id_0> in the goal"])[0]["generated"]
    assert written.startswith("the ball")
    assert written.endswith("in the goal")
    with pytest.raises(DataError, match="'the ball' has no sentinel"):
        predictor.predict(["the ball"])
    assert "AutoModelForSeq2SeqLM" in (done.path / "README.md").read_text()


def test_a_batch_of_eight_is_eight_batches_of_one(given, tmp_path):
    assert_split_makes_no_difference(given, tmp_path)


@pytest.mark.parametrize("packing", ["none", "concat"])
def test_a_killed_run_goes_on_to_the_same_bits(given, tmp_path, monkeypatch, packing):
    assert_resumes_exactly({**given, "task": {**given["task"], "packing": packing}}, tmp_path, monkeypatch)


def test_a_tokenizer_without_enough_sentinels_is_refused(given, tmp_path):
    t5_tokenizer(tmp_path / "few", sentinels=1)
    given = {**given, "model": {**given["model"], "tokenizer": str(tmp_path / "few")}}
    with pytest.raises(DataError, match=r"has 1 sentinels '<extra_id_\{\}>'; rows of 32 tokens need 2"):
        run_of(given)


def test_a_model_of_another_kind_is_refused(given, tmp_path):
    from transformers import BertConfig, BertModel

    tokenizer = t5_tokenizer(tmp_path / "bert")
    BertModel(
        BertConfig(vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=1, num_attention_heads=2)
    ).save_pretrained(tmp_path / "bert")
    with pytest.raises(RunError, match="a bert model cannot do this task"):
        run_of(given, model={"name": str(tmp_path / "bert")})


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"block_size": 3}, "block_size is 3"),
        ({"noise_density": 0.6}, "noise_density is 0.6; allowed: above 0, up to 0.5"),
        ({"mean_span_length": 0.5}, "mean_span_length is 0.5"),
        ({"sentinel": "<x>"}, "sentinel is '<x>'"),
    ],
)
def test_wrong_fields_are_refused(fields, said):
    with pytest.raises(ValueError, match=said):
        SpanCorruption(**fields)
