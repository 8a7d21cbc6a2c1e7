"""Masked tokens: the shares, the head, the loss over an optimizer step."""

import math

import pytest
import torch
from _tiny_stage import (
    WIDTHS,
    changed,
    classifier,
    folder_of,
    masked_lm_folder,
    stage_parts,
    weights,
    with_lora,
)
from conftest import make_tokenizer
from torch.nn.functional import cross_entropy
from transformers import AutoModelForMaskedLM, BertConfig, BertModel, DataCollatorWithPadding

from hf_llm_recipes.stages import mlm
from hf_llm_recipes.stages._training import accepted_inputs, backbone_of
from hf_llm_recipes.stages.mlm import MaskedTokens, MaskingCollator, Mlm, masked_lm, masked_loss
from hf_llm_recipes.tuning._model import ModelSource

MASK, PAD = 4, 0


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return masked_lm_folder(tmp_path_factory.mktemp("bert-mlm"))


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return make_tokenizer(tmp_path_factory.mktemp("tokenizer"))


def masking(tokenizer, *, mask_prob=0.15, seed=0, **changes):
    accepted = frozenset({"input_ids", "attention_mask", "token_type_ids"})
    collate = DataCollatorWithPadding(tokenizer, **changes)
    return MaskingCollator(collate, tokenizer, mask_prob, seed, accepted)


def rows_of(count, words, first_draw=0):
    ids = [2, *([15] * words), 3]
    row = {"input_ids": ids, "attention_mask": [1] * len(ids)}
    return [{**row, "draw": first_draw + i} for i in range(count)]


def within(observed, trials, share):
    """Whether a count lies within 5 standard deviations of a binomial's mean."""
    return abs(observed - trials * share) < 5 * math.sqrt(trials * share * (1 - share))


def test_15_percent_are_chosen_and_80_10_10_of_them_become_what_they_should(tokenizer):
    batch = masking(tokenizer)(rows_of(1000, 20))
    chosen = batch["labels"] != -100
    total = int(chosen.sum())
    assert within(total, 20_000, 0.15)
    assert (batch["labels"][chosen] == 15).all()
    now = batch["input_ids"][chosen]
    assert within(int((now == MASK).sum()), total, 0.8 + 0.1 / 31)  # a random token may be the mask token
    assert within(int((now == 15).sum()), total, 0.1 + 0.1 / 31)  # or the token itself
    assert (batch["input_ids"][~chosen][batch["attention_mask"][~chosen] == 1] != MASK).all()
    assert not chosen[:, [0, -1]].any()  # [CLS] and [SEP]
    assert torch.equal(batch["masked"], chosen)


def test_a_mask_is_a_function_of_seed_and_draw(tokenizer):
    rows = [*rows_of(3, 20), *rows_of(1, 28, first_draw=3)]
    together = masking(tokenizer)(rows)
    for i in range(4):
        alone = masking(tokenizer)(rows[i : i + 1])
        width = alone["labels"].shape[1]
        assert torch.equal(alone["labels"][0], together["labels"][i, :width])
        assert torch.equal(alone["input_ids"][0], together["input_ids"][i, :width])
        assert (together["labels"][i, width:] == -100).all()
    again = masking(tokenizer)([{**row, "draw": row["draw"] + 4} for row in rows])  # the next epoch
    other = masking(tokenizer, seed=1)(rows)
    assert not torch.equal(again["labels"], together["labels"])
    assert not torch.equal(other["labels"], together["labels"])


def test_padding_on_the_left_and_padded_rows_are_never_masked(tmp_path):
    tokenizer = make_tokenizer(tmp_path)
    tokenizer.padding_side = "left"
    collate = masking(tokenizer, mask_prob=0.99, padding="max_length", max_length=12)
    batch = collate(rows_of(2, 5))
    assert (batch["labels"][:, :6] == -100).all()  # five of padding, then [CLS]
    assert (batch["input_ids"][:, :5] == PAD).all()
    assert batch["masked"][:, 6:11].any()


def test_what_the_backbone_does_not_take_is_left_out(tokenizer):
    collate = MaskingCollator(
        lambda rows: {**DataCollatorWithPadding(tokenizer)(rows), "token_items": torch.ones(1)},
        tokenizer,
        0.15,
        0,
        frozenset({"input_ids", "attention_mask"}),
    )
    batch = collate([{**row, "token_type_ids": [0] * 7} for row in rows_of(2, 5)])
    assert batch.keys() == {"input_ids", "attention_mask", "labels", "masked"}


@pytest.mark.parametrize("name", ["Bert", "Roberta", "DistilBert", "Electra", "Albert", "HlrEncoder"])
def test_the_head_over_our_backbone_gives_the_checkpoints_own_loss(name, tmp_path):
    extra = {"embedding_size": 16} if name in ("Electra", "Albert") else {}
    folder = masked_lm_folder(tmp_path, name, **extra)
    theirs = AutoModelForMaskedLM.from_pretrained(folder).eval()
    model = with_lora(folder).eval()  # a fresh adapter adds zero
    backbone = backbone_of(model)
    module = MaskedTokens(masked_lm(ModelSource(name=str(folder)), backbone, train_head=False)).eval()
    output = module.model.get_output_embeddings()
    assert output.weight is backbone.get_input_embeddings().weight
    ids = torch.tensor([[2, 5, 4, 15, 3, 0], [2, 4, 6, 4, 8, 3]])
    inputs = {"input_ids": ids, "attention_mask": (ids != PAD).long()}
    labels = torch.full_like(ids, -100)
    labels[0, 2], labels[1, 1], labels[1, 3] = 7, 9, 11
    logits = module(labels != -100, **inputs)
    expected = theirs(**inputs).logits[labels != -100]
    assert logits.shape == (3, 33)
    torch.testing.assert_close(logits, expected)
    loss = masked_loss(logits, labels, torch.tensor(3))
    torch.testing.assert_close(loss, cross_entropy(expected, torch.tensor([7, 9, 11])))
    loss.backward()
    reached = {n for n, p in model.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    assert any("lora_B" in n for n in reached)
    assert all("lora_" in n for n in reached)
    assert not backbone._forward_hooks


def test_an_untied_head_keeps_its_own_weights(tmp_path):
    folder = masked_lm_folder(tmp_path, tie_word_embeddings=False)
    theirs = AutoModelForMaskedLM.from_pretrained(folder)
    backbone = backbone_of(with_lora(folder))
    output = masked_lm(ModelSource(name=str(folder)), backbone, train_head=False).get_output_embeddings()
    assert output.weight is not backbone.get_input_embeddings().weight
    assert torch.equal(output.weight, theirs.get_output_embeddings().weight)


def test_a_batch_without_a_masked_token_gives_zero_not_nan(folder):
    module = MaskedTokens(
        masked_lm(ModelSource(name=str(folder)), backbone_of(with_lora(folder)), train_head=False)
    )
    ids = torch.tensor([[2, 5, 3]])
    nothing = torch.full_like(ids, -100)
    loss = masked_loss(module(nothing != -100, input_ids=ids), nothing, torch.tensor(0))
    loss.backward()
    assert loss.item() == 0
    assert all(p.grad is None or not p.grad.isnan().any() for p in module.parameters())


def test_8_times_1_is_1_times_8(tmp_path):
    folder = masked_lm_folder(tmp_path / "model", hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    told, trained = [], []
    for batch, times in ((8, 1), (1, 8)):
        model = with_lora(folder)
        stage = Mlm(max_steps=3, batch_size=batch, gradient_accumulation_steps=times, logging_steps=1)
        told.append(stage.run(stage_parts(model, folder, tmp_path / "out")))
        trained.append(weights(model))
    assert told[0]["first_loss"] == pytest.approx(told[1]["first_loss"], rel=1e-5)
    assert told[0]["last_loss"] == pytest.approx(told[1]["last_loss"], rel=1e-4)
    for name, value in trained[0].items():  # AdamW turns rounding of tiny gradients into whole steps
        assert (value - trained[1][name]).abs().max() < 2e-4, name


def test_the_loss_falls(folder, tmp_path):
    model = with_lora(folder)
    stage = Mlm(max_steps=60, batch_size=16, learning_rate=1e-2, logging_steps=10)
    figures = stage.run(stage_parts(model, folder, tmp_path, rows=96))
    assert figures["last_loss"] < 0.8 * figures["first_loss"]


def test_the_default_rate_is_ten_times_higher_under_an_adapter(folder, tmp_path, monkeypatch):
    seen = []

    class Spy(mlm.train.__globals__["Trainer"]):
        def train(self, *args, **kwargs):
            seen.append(self.args.learning_rate)
            return super().train(*args, **kwargs)

    monkeypatch.setitem(mlm.train.__globals__, "Trainer", Spy)
    for model, rate in ((with_lora(folder), None), (classifier(folder), None), (classifier(folder), 0.02)):
        Mlm(max_steps=1, learning_rate=rate).run(stage_parts(model, folder, tmp_path))
    assert seen == pytest.approx([1e-3, 1e-4, 0.02])


def test_a_trained_head_learns_beside_the_adapter(folder, tmp_path):
    from safetensors.torch import load_file

    model = with_lora(folder)
    before = weights(model)
    Mlm(max_steps=2, batch_size=8, train_head=True, save_steps=2).run(stage_parts(model, folder, tmp_path))
    assert all("lora_" in name for name in changed(before, model))  # the tied embeddings stay frozen
    held = load_file(tmp_path / "checkpoint-2" / "model.safetensors")
    own = AutoModelForMaskedLM.from_pretrained(folder).state_dict()
    dense = "cls.predictions.transform.dense.weight"
    assert not torch.equal(held[f"model.{dense}"], own[dense])


def test_a_checkpoint_without_a_head(tmp_path):
    folder = folder_of(tmp_path / "model", BertModel(BertConfig(**WIDTHS)))
    with pytest.raises(ValueError, match=r"no masked-LM head: `cls\.predictions") as raised:
        Mlm().run(stage_parts(with_lora(folder), folder, tmp_path / "out"))
    assert str(folder) in str(raised.value)
    assert "use the stage `contrastive`" in str(raised.value)


def test_an_architecture_without_masked_lm(tiny_llama, tmp_path):
    from hf_llm_recipes.tuning._model import load_tokenizer

    tokenizer = load_tokenizer(ModelSource(name=str(tiny_llama)))
    model = with_lora(tiny_llama)
    parts = stage_parts(model, tiny_llama, tmp_path, rows=4)
    parts.processing_class = tokenizer
    with pytest.raises(ValueError, match="no masked-LM head: Unrecognized configuration class"):
        Mlm().run(parts)


def test_random_weights(folder, tmp_path):
    source = ModelSource(architecture="hlr_encoder", preset="tiny", tokenizer=str(folder))
    parts = stage_parts(with_lora(folder), folder, tmp_path, source=source)
    with pytest.raises(ValueError, match="no masked-LM head: it starts from random weights"):
        Mlm().run(parts)


def test_a_tokenizer_without_a_mask_token(folder, tmp_path):
    parts = stage_parts(with_lora(folder), folder, tmp_path)
    parts.processing_class.mask_token = None
    with pytest.raises(ValueError, match="the tokenizer has no mask token"):
        Mlm().run(parts)


@pytest.mark.parametrize("share", [0.0, 1.0, -0.1, float("nan")])
def test_a_share_out_of_range(share):
    with pytest.raises(ValueError, match=r"mask_prob is .*; allowed: above 0 and below 1"):
        Mlm(mask_prob=share)


def test_inputs_are_those_of_the_backbones_forward(folder):
    names = accepted_inputs(backbone_of(classifier(folder)))
    assert {"input_ids", "attention_mask", "token_type_ids"} <= names
    assert "labels" not in names
