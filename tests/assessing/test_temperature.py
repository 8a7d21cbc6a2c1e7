"""One temperature: against a grid, a closed form and scikit-learn's log loss."""

import json

import numpy as np
import pytest
from sklearn.metrics import log_loss

from hf_llm_recipes.assessing import temperature
from hf_llm_recipes.errors import DataError, RunError


def too_sure(rows, factor=3.0, seed=0):
    """Logits that are ``factor`` times too large for their labels."""
    generator = np.random.default_rng(seed)
    logits = 1.5 * generator.normal(size=(rows, 3))
    shares = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    labels = np.asarray([generator.choice(3, p=share) for share in shares])
    return factor * logits, labels


def test_two_rows_in_three_right_at_one_distance():
    # every row has the logits (d, 0) and two thirds of the labels are 0: T = d / ln 2
    logits, labels = np.asarray([[4.0, 0.0]] * 30), np.asarray([0, 0, 1] * 10)
    assert temperature.fit(logits, labels, "single_label") == pytest.approx(4 / np.log(2), rel=1e-5)
    sets = np.asarray([[1.0], [1.0], [0.0]] * 10)
    assert temperature.fit(np.full((30, 1), 4.0), sets, "multi_label") == pytest.approx(
        4 / np.log(2), rel=1e-5
    )


def test_no_temperature_of_a_grid_is_better():
    logits, labels = too_sure(500)
    found = temperature.fit(logits, labels, "single_label")
    assert 2.5 < found < 3.6  # the factor was 3

    def loss(t):
        shares = np.exp(logits / t) / np.exp(logits / t).sum(1, keepdims=True)
        return log_loss(labels, shares, labels=[0, 1, 2])

    assert loss(found) <= min(loss(t) for t in np.geomspace(0.1, 15, 200)) + 1e-9
    assert temperature.losses(logits / found, labels, "single_label").mean() == pytest.approx(loss(found))


def test_the_test_rows_tell_what_it_is_worth():
    found = temperature.calibrate(too_sure(600), too_sure(400, seed=1), "single_label")
    assert found["fitted_rows"] == 600
    assert found["after"]["loss"] < found["before"]["loss"]
    assert found["after"]["ece"] < found["before"]["ece"] / 2
    assert found["loss_difference"] == pytest.approx(found["after"]["loss"] - found["before"]["loss"])
    assert found["loss_difference_95"][1] < 0
    assert found["notes"] == []
    assert json.loads(json.dumps(found)) == found


def test_held_out_rows_of_another_kind_are_told():
    found = temperature.calibrate(too_sure(600), too_sure(400, factor=1.0, seed=1), "single_label")
    assert found["loss_difference_95"][0] > 0
    assert found["notes"] == [temperature.WORSE]


def test_each_judged_word_counts():
    logits, labels = too_sure(40)
    padded = np.full((20, 3, 3), -100.0), np.full((20, 3), -100)
    padded[0][:, :2], padded[1][:, :2] = logits.reshape(20, 2, 3), labels.reshape(20, 2)
    found = temperature.calibrate(padded, padded, "tokens")
    assert found["fitted_rows"] == 40
    assert found["temperature"] == pytest.approx(temperature.fit(logits, labels, "single_label"))
    scaled = temperature.divided(padded[0], 2.0)
    assert scaled[0, 0].tolist() == pytest.approx((logits[0] / 2).tolist())
    assert (scaled[:, 2] == -100).all()


def test_rows_that_no_temperature_fits():
    right = np.asarray([[5.0, 0.0], [0.0, 5.0]])
    with pytest.raises(DataError, match="all held-out rows are right, and surer answers"):
        temperature.fit(right, np.asarray([0, 1]), "single_label")
    with pytest.raises(DataError, match="the answers are worth no more than a guess"):
        temperature.fit(right, np.asarray([1, 0]), "single_label")
    faint = 1e-4 * right.repeat(10, axis=0)  # nine of ten right, and hardly surer than a guess
    with pytest.raises(DataError, match=r"the logits are smaller than 0\.05 of what they should be"):
        temperature.fit(faint, np.asarray([0] * 9 + [1] + [1] * 9 + [0]), "single_label")


def test_what_is_refused_before_anything_is_run():
    with pytest.raises(DataError, match="does not fit a task of regression: it has no probabilities"):
        temperature.check("regression", [1])
    for nothing in (None, []):
        with pytest.raises(DataError, match="needs held-out rows, and the data has no eval split") as caught:
            temperature.check("single_label", nothing)
        assert "data.eval_fraction: 0.1" in str(caught.value)
    temperature.check("tokens", [1])


def test_it_is_kept_beside_the_weights(tmp_path):
    with pytest.raises(RunError, match=r"no temperature was fitted for this model\n  do: .*--temperature"):
        temperature.load(tmp_path)
    temperature.save(tmp_path, {"temperature": 1.5, "fitted_rows": 7, "before": {}})
    assert temperature.load(tmp_path) == 1.5
    assert json.loads((tmp_path / "temperature.json").read_text()) == {"temperature": 1.5, "fitted_rows": 7}
    for spoilt in ("{", "[]", '{"temperature": -1.0}', '{"temperature": "2"}', "{}"):
        (tmp_path / "temperature.json").write_text(spoilt)
        with pytest.raises(RunError, match=r"temperature\.json is damaged"):
            temperature.load(tmp_path)
