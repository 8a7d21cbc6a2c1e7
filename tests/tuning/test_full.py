import pytest
from _tiny import SMALL, build, logits, reloaded, save, trained
from transformers import BertConfig, BertModel

from hf_llm_recipes.tuning.full import Full


def test_every_weight_is_trained_and_comes_back(tmp_path):
    base = save(tmp_path / "bert", lambda: BertModel(BertConfig(**SMALL)))
    built = build(base, Full())
    assert all(p.requires_grad for p in built.model.parameters())
    still = trained(built)
    assert still == []
    assert (logits(built.model) - logits(reloaded(built, tmp_path / "out", base))).abs().max() < 1e-5


def test_quantised_weights_are_refused_with_what_to_use():
    with pytest.raises(
        ValueError, match="full fine-tuning cannot train quantised weights; use `tuning: lora`"
    ):
        Full().full_precision(None)
