"""A model with some of its layers: which ones, that they are the large model's, save and load, refusals."""

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

import hf_llm_recipes.run as engine
from hf_llm_recipes.errors import RecipeError
from hf_llm_recipes.recipe import Recipe
from hf_llm_recipes.tuning._fewer_layers import keep_layers, kept_layers


def llama(layers=5):
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2, "vocab_size": 40}
    return LlamaForCausalLM(LlamaConfig(num_hidden_layers=layers, max_position_embeddings=32, **sizes)).eval()


def test_both_ends_stay():
    assert kept_layers(30, 2) == [0, 29]
    assert kept_layers(5, 3) == [0, 2, 4]
    assert kept_layers(6, 4) == [0, 2, 3, 5]


def test_layers_are_the_large_models_and_the_cache_fits(tmp_path):
    whole, cut = llama(), llama()
    keep_layers(cut, 3)
    assert cut.config.num_hidden_layers == len(cut.model.layers) == 3
    for mine, theirs in zip(cut.model.layers, (0, 2, 4), strict=True):
        assert torch.equal(mine.mlp.up_proj.weight, whole.model.layers[theirs].mlp.up_proj.weight)
    assert [layer.self_attn.layer_idx for layer in cut.model.layers] == [0, 1, 2]
    ids = torch.randint(40, (1, 7))
    with torch.no_grad():
        plain = cut(input_ids=ids, use_cache=False).logits
        first = cut(input_ids=ids[:, :4], use_cache=True)
        rest = cut(input_ids=ids[:, 4:], past_key_values=first.past_key_values).logits
    torch.testing.assert_close(plain[:, 4:], rest)
    cut.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        torch.testing.assert_close(plain, again(input_ids=ids).logits)


@pytest.mark.parametrize("count", [1, 5, 9])
def test_a_number_that_takes_nothing_or_too_much_away(count):
    with pytest.raises(ValueError, match=rf"keep_layers is {count}; allowed: 2 to 4, the model has 5 layers"):
        keep_layers(llama(), count)


def test_two_stacks_are_refused():
    model = llama(3)
    model.other = torch.nn.ModuleList(torch.nn.Linear(2, 2) for _ in range(3))
    with pytest.raises(ValueError, match="LlamaForCausalLM has 2 stacks of 3 layers, not one"):
        keep_layers(model, 2)


def values(folder, tmp_path, tuning="full", **model):
    lines = ["the ball was good", "a team was old", "the soup was new", "an oven was hot"] * 4
    (tmp_path / "texts.csv").write_text("\n".join(["prompt,answer", *(f"{one},{one}" for one in lines)]))
    return {
        "name": "cut",
        "output": str(tmp_path / "out"),
        "model": {"name": str(folder), "dtype": "float32", **model},
        "tuning": tuning,
        "data": {"name": str(tmp_path / "texts.csv"), "eval_fraction": 0, "test_fraction": 0.25},
        "task": {"name": "generation", "max_new_tokens": 3},
        "method": {"name": "distillation", "teacher": str(folder), "weight": 1.0},
        "trainer": {"max_steps": 8, "learning_rate": 1e-3, "save_strategy": "no", "logging_steps": 1},
    }


def test_a_student_of_fewer_layers_learns_from_the_whole_model(tmp_path, tiny_llama):
    torch.manual_seed(0)
    config = AutoConfig.from_pretrained(tiny_llama)
    config.num_hidden_layers, config.initializer_range = 4, 0.5
    folder = tmp_path / "teacher"
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(tiny_llama).save_pretrained(folder)
    done = engine.run(Recipe.from_dict(values(folder, tmp_path, keep_layers=2)))
    assert AutoConfig.from_pretrained(done.path / "model").num_hidden_layers == 2
    found = done.metrics["method"]
    assert found["student_weights"] < found["teacher_weights"]
    assert found["last_kl"] < found["first_kl"]
    assert 0 <= found["first_agreement"] <= 1
    assert done.metrics["reload"]["logits_max_difference"] < 1e-4


def test_where_it_has_no_effect_or_no_base(tmp_path, tiny_llama):
    with pytest.raises(RecipeError, match="keep_layers is 2: an adapter is saved without its base"):
        engine.run(Recipe.from_dict(values(tiny_llama, tmp_path, tuning="lora", keep_layers=2)))
    made = values(tiny_llama, tmp_path)
    made["model"] = {"architecture": "hlr_decoder", "tokenizer": str(tiny_llama), "keep_layers": 2}
    with pytest.raises(RecipeError, match="keep_layers has an effect only with name"):
        engine.plan(Recipe.from_dict(made))
