import numpy as np
import pytest
import torch
from _tiny_parts import assert_same, make_parts, weights

from hf_llm_recipes.algorithms.pseudo_label import PseudoLabel
from hf_llm_recipes.data.propagation import propagate
from hf_llm_recipes.errors import DataError
from hf_llm_recipes.methods import propagation
from hf_llm_recipes.methods._features import frozen_features
from hf_llm_recipes.methods.propagation import Propagation
from hf_llm_recipes.recipe import Recipe
from hf_llm_recipes.run import run


def features(parts):
    sides = [
        frozen_features(parts.model, rows, parts.collator, batch_size=8, label=None, directory=parts.cache)
        for rows in (parts.train, parts.unlabeled)
    ]
    return np.concatenate(sides)


def test_the_labels_are_those_of_propagation_from_start_to_end(tiny_bert, tmp_path, monkeypatch):
    def never(self, given):
        raise AssertionError("a teacher was asked")

    monkeypatch.setattr(PseudoLabel, "guess", never)
    parts = make_parts(tiny_bert, tmp_path)
    labels = np.array([0, 1, 2] * 4 + [-1] * 40)
    options = {"neighbors": 8, "alpha": 0.9, "confidence": 0.6, "prior": np.array([0.5, 0.25, 0.25])}
    expected = propagate(features(parts), labels, 3, **options).probabilities_NC[12:]
    method = Propagation(neighbors=8, alpha=0.9, confidence=0.6, prior=[0.5, 0.25, 0.25])
    trainer = method.build(parts)
    np.testing.assert_allclose(trainer.warm_start.target_NC, expected, atol=1e-5)
    guess = trainer._warm_guess(torch.tensor([5, 0]))
    np.testing.assert_allclose(guess.target_UC, expected[[5, 0]], atol=1e-5)
    assert guess.weight_U.tolist() == [1.0, 1.0]
    assert trainer.train().global_step == 4
    assert trainer.strength == 1.0
    found = method.report(trainer)
    assert found["prior"] == [0.5, 0.25, 0.25]
    assert set(found["held_out_accuracy"]) == {"propagation", "probe"}


@pytest.mark.parametrize(
    ("prior", "shares"), [("uniform", [1 / 3] * 3), ("labeled", [0.4, 0.3, 0.3]), ("estimated", None)]
)
def test_class_shares(tiny_bert, tmp_path, prior, shares):
    parts = make_parts(tiny_bert, tmp_path)
    parts.train = parts.train.select([*range(9), 0])  # 4, 3, 3
    trainer = Propagation(prior=prior).build(parts)
    mean_C = trainer.warm_start.target_NC.mean(0)
    np.testing.assert_allclose(mean_C, trainer.prior_C, atol=1e-4)
    if shares is not None:
        np.testing.assert_allclose(mean_C, shares, atol=1e-4)


def test_the_average_is_exported_unless_the_student_is_wanted(tiny_bert, tmp_path):
    method = Propagation(ema_decay=0.5)
    trainer = method.build(make_parts(tiny_bert, tmp_path / "a"))
    trainer.train()
    average = weights(trainer)
    assert list(method.variants(trainer)) == ["student"]
    with method.variants(trainer)["student"]:
        last = weights(trainer)
    assert not torch.equal(average["classifier.weight"], last["classifier.weight"])
    plain = Propagation(export="student")
    student = plain.build(make_parts(tiny_bert, tmp_path / "b"))
    student.train()
    assert_same(weights(student), last)
    assert plain.variants(student) == {}


def test_a_run_goes_on_bit_for_bit(tiny_bert, tmp_path):
    whole = Propagation().build(make_parts(tiny_bert, tmp_path))
    whole.train()
    again = Propagation().build(make_parts(tiny_bert, tmp_path))
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoints" / "checkpoint-2"))
    assert_same(weights(again), weights(whole))


def test_baselines_are_those_of_the_features_before_training(tiny_bert, tmp_path):
    method = Propagation()
    trainer = method.build(make_parts(tiny_bert, tmp_path))
    before = {name: found.copy() for name, found in method.baselines(trainer).items()}
    trainer.train()
    assert set(before) == {"probe", "propagation"}
    for name, found in method.baselines(trainer).items():
        assert found.shape == (9, 3)
        np.testing.assert_array_equal(found, before[name])


def test_features_that_a_probe_reads_better_are_told(tiny_bert, tmp_path, monkeypatch, caplog):
    scores = {"propagation": 0.4, "probe": 0.9}
    monkeypatch.setattr(propagation.spreading, "held_out_accuracy", lambda *rest, **named: scores)
    Propagation().build(make_parts(tiny_bert, tmp_path))
    assert "a probe had 90 % right, propagation 40 %: its labels may do harm here" in caplog.text


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"neighbors": 0}, "neighbors is 0; allowed: 1 or more"),
        ({"alpha": 1.0}, "alpha is 1.0; allowed: more than 0, less than 1"),
        ({"confidence": 0.0}, "confidence is 0.0; allowed: more than 0, less than 1"),
        ({"unlabeled_ratio": 0.0}, "unlabeled_ratio is 0.0; allowed: more than 0.0"),
        ({"ema_decay": 1.0}, "ema_decay is 1.0; allowed: 0.0 or more, less than 1.0"),
        ({"export": "student", "ema_decay": 0.9}, "ema_decay has no effect where the student is exported"),
        ({"prior": [0.5, 0.6]}, "allowed: positive shares that sum to 1"),
    ],
)
def test_bad_values(values, words):
    with pytest.raises(ValueError, match=words):
        Propagation(**values)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"neighbors": 52}, "neighbors is 52; allowed: 1 to 51 for 52 rows"),
        ({"confidence": 0.3}, "confidence is 0.3; allowed: between 1/3 and 1"),
        ({"prior": [0.5, 0.5]}, "allowed: 3 shares above 0 whose sum is 1"),
    ],
)
def test_values_that_do_not_fit_the_data(tiny_bert, tmp_path, values, words):
    parts = make_parts(tiny_bert, tmp_path)
    with pytest.raises(ValueError, match=words):
        Propagation(**values).build(parts)


def test_other_problems_and_no_pool(tiny_bert, tmp_path):
    with pytest.raises(ValueError, match="not for a multi_label task; allowed: method: semi_supervised or"):
        Propagation().build(make_parts(tiny_bert, tmp_path, problem="multi_label"))
    parts = make_parts(tiny_bert, tmp_path)
    parts.unlabeled = None
    with pytest.raises(DataError, match="there are no unlabeled rows"):
        Propagation().build(parts)


def test_a_run_from_its_recipe(recipe):
    recipe["method"] = {"name": "propagation", "neighbors": 10}
    recipe["data"]["labels_per_class"] = 4
    done = run(Recipe.from_dict(recipe))
    assert done.metrics["training"]["steps"] == 4
    assert done.metrics["method"]["exported"] == "ema"
    assert set(done.metrics["baselines"]) == {"probe", "propagation"}
