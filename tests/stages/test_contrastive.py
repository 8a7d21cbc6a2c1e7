"""Two passes of a row: the loss by hand, mean pooling, dropout."""

import math

import numpy as np
import pytest
import torch
from _tiny_stage import masked_lm_folder, stage_parts, with_lora

from hf_llm_recipes.stages._training import accepted_inputs, backbone_of
from hf_llm_recipes.stages.contrastive import Contrastive, PairCollator, TwoPasses, contrastive_loss

NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return masked_lm_folder(tmp_path_factory.mktemp("bert-mlm"))


def plain_loss(first, second, temperature):
    """The mean loss in plain loops."""
    total = 0.0
    for i in range(len(first)):
        similar = [
            float(np.dot(first[i], second[j]) / np.linalg.norm(first[i]) / np.linalg.norm(second[j]))
            for j in range(len(second))
        ]
        powers = [math.exp(s / temperature) for s in similar]
        total -= math.log(powers[i] / sum(powers))
    return total / len(first)


def test_two_rows_by_hand():
    # cosines: row 0 to (0, 1): 1 and 0; row 1 to (0, 1): 0.8 and 0.6; τ = 0.5
    vectors = torch.tensor([[[2.0, 0.0], [0.8, 0.6]], [[3.0, 0.0], [0.0, 5.0]]])
    loss = contrastive_loss(vectors, torch.arange(2), torch.tensor(2), temperature=0.5)
    by_hand = (math.log(1 + math.exp(-2)) + math.log(1 + math.exp(0.4))) / 2
    assert loss.item() == pytest.approx(by_hand, rel=1e-6)
    assert plain_loss(*vectors.numpy(), 0.5) == pytest.approx(by_hand, rel=1e-6)


def test_many_rows_against_plain_loops_and_in_float32():
    vectors = torch.randn(2, 5, 7, generator=torch.Generator().manual_seed(0))
    loss = contrastive_loss(vectors, torch.arange(5), torch.tensor(5), temperature=0.05)
    assert loss.item() == pytest.approx(plain_loss(*vectors.numpy(), 0.05), rel=1e-5)
    half = contrastive_loss(vectors.bfloat16(), torch.arange(5), torch.tensor(5), temperature=0.05)
    assert half.dtype == torch.float32


def test_a_forwards_share_of_an_optimizer_step():
    vectors = torch.randn(2, 4, 3, generator=torch.Generator().manual_seed(0))
    half = contrastive_loss(vectors, torch.arange(4), torch.tensor(8), temperature=0.05)
    assert half.item() == pytest.approx(plain_loss(*vectors.numpy(), 0.05) / 2, rel=1e-5)


def test_vectors_are_means_over_attended_tokens(folder):
    backbone = backbone_of(with_lora(folder)).eval()
    ids = torch.tensor([[2, 5, 3, 0, 0], [2, 6, 7, 8, 3]])
    mask = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]])
    vectors = TwoPasses(backbone).eval()(input_ids=ids, attention_mask=mask)
    assert vectors.shape == (2, 2, 32)
    for i, width in enumerate((3, 5)):
        alone = backbone(input_ids=ids[i : i + 1, :width]).last_hidden_state.mean(1)[0]
        torch.testing.assert_close(vectors[0, i], alone, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(vectors[1, i], alone, atol=1e-5, rtol=1e-5)


def test_the_passes_differ_by_dropout(folder):
    module = TwoPasses(backbone_of(with_lora(folder))).train()
    first, second = module(input_ids=torch.tensor([[2, 5, 6, 3]]))
    assert not torch.equal(first, second)


def test_each_row_matches_itself_and_only_what_the_backbone_takes_is_kept(folder):
    parts = stage_parts(None, folder, folder, rows=3)
    accepted = accepted_inputs(backbone_of(with_lora(folder)))
    collate = PairCollator(parts.collator, accepted - {"token_type_ids"})
    batch = collate([{**row, "draw": 5} for row in parts.pool])
    assert batch.keys() == {"input_ids", "attention_mask", "labels"}
    assert batch["labels"].tolist() == [0, 1, 2]


def test_the_loss_falls(folder, tmp_path):
    model = with_lora(folder)
    stage = Contrastive(max_steps=40, batch_size=16, learning_rate=5e-3)
    figures = stage.run(stage_parts(model, folder, tmp_path, rows=96))
    assert figures["steps"] == 40
    assert figures["last_loss"] < 0.7 * figures["first_loss"]


def test_accumulation_averages_over_all_rows_of_a_step(folder, tmp_path):
    """Before the first update both forwards of a step are worth the mean of what each is worth alone."""
    stage = Contrastive(max_steps=1, batch_size=4, gradient_accumulation_steps=2)
    figures = stage.run(stage_parts(with_lora(folder), folder, tmp_path))
    assert 0 < figures["first_loss"] < 2 * math.log(4)  # a sum over forwards, or over rows, is far above


def test_a_model_without_dropout(tmp_path):
    folder = masked_lm_folder(tmp_path / "model", **NO_DROPOUT)
    told = r"no dropout \(.*hidden_dropout_prob: 0.0"
    with pytest.raises(ValueError, match=told):
        Contrastive().run(stage_parts(with_lora(folder), folder, tmp_path / "out"))
    model = with_lora(folder, lora_dropout=0.1)  # an adapter's own is enough
    assert Contrastive(max_steps=1).run(stage_parts(model, folder, tmp_path / "out"))["steps"] == 1


@pytest.mark.parametrize("key", ["hidden_dropout_prob", "attention_dropout_prob"])
def test_either_dropout_of_our_encoder_is_enough(key, tmp_path):
    none = {"hidden_dropout_prob": 0.0, "attention_dropout_prob": 0.0}
    folder = masked_lm_folder(tmp_path / "model", "HlrEncoder", **{**none, key: 0.1})
    figures = Contrastive(max_steps=1).run(stage_parts(with_lora(folder), folder, tmp_path / "out"))
    assert figures["steps"] == 1


def test_a_model_that_tells_the_rows_apart_already(folder, tmp_path, caplog):
    told = "told the rows apart before the stage"
    Contrastive(max_steps=1, batch_size=8).run(stage_parts(with_lora(folder), folder, tmp_path / "out"))
    assert told not in caplog.text
    faint = {"hidden_dropout_prob": 1e-4, "attention_probs_dropout_prob": 1e-4}  # both passes nearly equal
    solved = masked_lm_folder(tmp_path / "model", **faint)
    stage = Contrastive(max_steps=1, batch_size=8, temperature=0.005)
    stage.run(stage_parts(with_lora(solved), solved, tmp_path / "out"))
    assert told in caplog.text


def test_a_pool_of_one_row(folder, tmp_path):
    with pytest.raises(ValueError, match="the pool has one row"):
        Contrastive().run(stage_parts(with_lora(folder), folder, tmp_path, rows=1))


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan")])
def test_a_temperature_out_of_range(temperature):
    with pytest.raises(ValueError, match=r"temperature is .*; allowed: above 0"):
        Contrastive(temperature=temperature)


def test_a_batch_without_negatives():
    with pytest.raises(ValueError, match="batch_size is 1; allowed: 2 or more"):
        Contrastive(batch_size=1)
