"""Scores by hand, against scikit-learn and SciPy, on the edges, and their files."""

import io
import json
import math
import subprocess
import sys
import time

import numpy as np
import pyarrow.parquet as pq
import pytest
from rich.console import Console
from scipy import stats
from sklearn import metrics as sk

from hf_llm_recipes import evaluation
from hf_llm_recipes.errors import DataError

# Four rows, three classes; each row's logits are the logarithms of these probabilities.
PROBS_NC = np.array([[0.7, 0.2, 0.1], [0.6, 0.3, 0.1], [0.1, 0.8, 0.1], [0.25, 0.25, 0.5]])
LABELS_N = [0, 1, 1, 2]  # predicted 0, 0, 1, 2
NAMES = ["a", "b", "c"]


def make_rows(rows, classes, seed=0, signal=1.5):
    rng = np.random.default_rng(seed)
    labels_N = rng.integers(classes, size=rows)
    logits_NC = rng.normal(size=(rows, classes))
    logits_NC[np.arange(rows), labels_N] += signal
    return logits_NC, labels_N, [f"class {i}" for i in range(classes)]


def printed(renderable):
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(renderable)
    return console.export_text()


class TestSingleLabel:
    def test_scores_worked_by_hand(self):
        scores = evaluation.classification(np.log(PROBS_NC), LABELS_N, NAMES, bootstrap=0)
        assert scores["rows"] == 4
        assert scores["accuracy"] == 3 / 4
        # a: precision 1/2, recall 1, f1 2/3; b: 1, 1/2, 2/3; c: 1, 1, 1
        assert scores["f1_macro"] == pytest.approx((2 / 3 + 2 / 3 + 1) / 3)
        assert scores["f1_weighted"] == pytest.approx((2 / 3 + 2 * 2 / 3 + 1) / 4)
        assert scores["loss"] == pytest.approx(-math.log(0.7 * 0.3 * 0.8 * 0.5) / 4)
        assert scores["majority_baseline"] == 2 / 4
        assert scores["labels"] == NAMES
        assert scores["confusion_matrix"] == [[1, 0, 0], [1, 1, 0], [0, 0, 1]]
        assert scores["per_class"]["a"] == {
            "precision": 0.5,
            "recall": 1.0,
            "f1": pytest.approx(2 / 3),
            "support": 1,
        }
        assert scores["per_class"]["b"]["support"] == 2
        assert scores["intervals_95"] == {}
        assert scores["notes"] == []

    def test_calibration_worked_by_hand(self):
        calibration = evaluation.classification(np.log(PROBS_NC), LABELS_N, NAMES)["calibration"]
        # confidences 0.7, 0.6, 0.8, 0.5 lie in four bins of their own: right, wrong, right, right
        assert calibration["ece"] == pytest.approx((0.3 + 0.6 + 0.2 + 0.5) / 4)
        rows = (0.09 + 0.04 + 0.01) + (0.36 + 0.49 + 0.01) + (0.01 + 0.04 + 0.01) + (0.0625 * 2 + 0.25)
        assert calibration["brier"] == pytest.approx(rows / 4)
        bins = calibration["bins"]
        assert len(bins) == 15
        assert sum(b["count"] for b in bins) == 4
        assert [i for i, b in enumerate(bins) if b["count"]] == [7, 8, 10, 11]  # e.g. 0.5 in (7/15, 8/15]
        assert bins[8]["accuracy"] == 0.0
        assert bins[8]["confidence"] == pytest.approx(0.6)
        assert bins[0] == {
            "low": 0.0,
            "high": pytest.approx(1 / 15),
            "count": 0,
            "confidence": None,
            "accuracy": None,
        }

    def test_bins_are_closed_on_the_right(self):
        logits_NC = np.log([[0.6, 0.4], [0.6001, 0.3999]])  # 0.6 = 9/15
        bins = evaluation.classification(logits_NC, [0, 0], ["a", "b"])["calibration"]["bins"]
        assert (bins[8]["count"], bins[9]["count"]) == (1, 1)

    def test_against_scikit_learn(self):
        logits_NC, labels_N, names = make_rows(700, 6)
        scores = evaluation.classification(logits_NC, labels_N, names, bootstrap=0)
        predicted_N = logits_NC.argmax(1)
        probs_NC = evaluation.probabilities(logits_NC, "single_label")
        assert scores["accuracy"] == pytest.approx(sk.accuracy_score(labels_N, predicted_N))
        assert scores["f1_macro"] == pytest.approx(sk.f1_score(labels_N, predicted_N, average="macro"))
        assert scores["f1_weighted"] == pytest.approx(sk.f1_score(labels_N, predicted_N, average="weighted"))
        assert scores["loss"] == pytest.approx(sk.log_loss(labels_N, probs_NC))
        brier = np.mean(np.sum((probs_NC - np.eye(6)[labels_N]) ** 2, axis=1))
        assert scores["calibration"]["brier"] == pytest.approx(brier)
        assert scores["confusion_matrix"] == sk.confusion_matrix(labels_N, predicted_N).tolist()
        report = sk.classification_report(labels_N, predicted_N, target_names=names, output_dict=True)
        for name in names:
            assert scores["per_class"][name]["f1"] == pytest.approx(report[name]["f1-score"])
            assert scores["per_class"][name]["support"] == report[name]["support"]

    def test_ece_against_a_loop_over_bins(self):
        logits_NC, labels_N, names = make_rows(500, 4, seed=3)
        probs_NC = evaluation.probabilities(logits_NC, "single_label")
        expected = 0.0
        for m in range(1, 16):
            inside = [r for r in range(500) if (m - 1) / 15 < probs_NC[r].max() <= m / 15]
            if inside:
                hits = np.mean([probs_NC[r].argmax() == labels_N[r] for r in inside])
                expected += len(inside) / 500 * abs(hits - np.mean([probs_NC[r].max() for r in inside]))
        scores = evaluation.classification(logits_NC, labels_N, names, bootstrap=0)
        assert scores["calibration"]["ece"] == pytest.approx(expected)

    def test_macro_f1_leaves_out_a_class_that_does_not_occur(self):
        logits_NC = [[2.0, 0.0, -1.0], [0.0, 2.0, -1.0], [2.0, 0.0, -1.0]]
        scores = evaluation.classification(logits_NC, [0, 1, 1], NAMES)
        assert scores["f1_macro"] == pytest.approx((2 / 3 + 2 / 3) / 2)  # not / 3
        assert scores["f1_macro"] == sk.f1_score([0, 1, 1], [0, 1, 0], average="macro")
        assert scores["per_class"]["c"] == {"precision": 0.0, "recall": 0.0, "f1": 0.0, "support": 0}
        assert [len(row) for row in scores["confusion_matrix"]] == [3, 3, 3]
        assert any("'c'" in note for note in scores["notes"])

    def test_macro_f1_counts_a_class_only_predicted_as_zero(self):
        scores = evaluation.classification([[2.0, 0.0], [0.0, 2.0]], [0, 0], ["a", "b"])
        assert scores["f1_macro"] == pytest.approx((2 / 3 + 0) / 2)

    def test_one_row_has_no_interval(self):
        scores = evaluation.classification([[3.0, 0.0]], [0], ["a", "b"])
        assert (scores["rows"], scores["accuracy"], scores["majority_baseline"]) == (1, 1.0, 1.0)
        assert scores["intervals_95"] == {}
        assert scores["notes"][0] == "one row: no interval can be given"

    def test_all_right_names_the_exact_binomial_interval(self):
        scores = evaluation.classification(np.eye(2)[[0, 1] * 10] * 9, [0, 1] * 10, ["a", "b"])
        exact = stats.binomtest(20, 20).proportion_ci(0.95, method="exact")
        assert scores["intervals_95"]["accuracy"] == pytest.approx([exact.low, exact.high])
        assert scores["notes"][0].startswith("every row is right, so the bootstrap sees no spread")

    def test_none_right_has_the_exact_binomial_interval(self):
        scores = evaluation.classification(np.eye(2)[[0, 1] * 5] * 9, [1, 0] * 5, ["a", "b"])
        exact = stats.binomtest(0, 10).proportion_ci(0.95, method="exact")
        assert scores["intervals_95"]["accuracy"] == pytest.approx([exact.low, exact.high])
        assert scores["notes"][0].startswith("no row is right, so the bootstrap sees no spread")
        assert scores["intervals_95"]["f1_macro"] == [0.0, 0.0]


class TestMultiLabel:
    # logits -> decisions: [1,0], [1,1], [0,0], [0,1]; true: [1,0], [1,0], [0,0], [1,1]
    LOGITS_NC = ((2.0, -1.0), (1.0, 0.5), (-2.0, -0.1), (-1.0, 3.0))
    LABELS_NC = ((1.0, 0.0), (1.0, 0.0), (0.0, 0.0), (1.0, 1.0))

    def test_scores_worked_by_hand(self):
        scores = evaluation.classification(
            self.LOGITS_NC, self.LABELS_NC, ["x", "y"], problem="multi_label", bootstrap=0
        )
        # x: 2 of 3 found, 2 of 2 right, f1 4/5; y: 1 of 1 found, 1 of 2 right, f1 2/3
        assert scores["subset_accuracy"] == 2 / 4
        assert scores["f1_micro"] == pytest.approx(2 * 3 / (4 + 4))
        assert scores["f1_macro"] == pytest.approx((4 / 5 + 2 / 3) / 2)
        assert scores["per_class"]["x"]["recall"] == pytest.approx(2 / 3)
        assert scores["per_class"]["y"]["precision"] == 0.5
        assert scores["majority_baseline"] == 2 / 4  # [1, 0] twice
        losses = [
            math.log1p(math.exp(-z if y else z))
            for row, true in zip(self.LOGITS_NC, self.LABELS_NC, strict=True)
            for z, y in zip(row, true, strict=True)
        ]
        assert scores["loss"] == pytest.approx(sum(losses) / 8)
        assert "accuracy" not in scores
        assert "confusion_matrix" not in scores

    def test_against_scikit_learn(self):
        rng = np.random.default_rng(1)
        labels_NC = (rng.random((400, 5)) < 0.3).astype(int)
        logits_NC = rng.normal(size=(400, 5)) + 2 * labels_NC - 1
        scores = evaluation.classification(
            logits_NC, labels_NC, list("abcde"), problem="multi_label", bootstrap=0
        )
        predicted_NC, probs_NC = logits_NC >= 0, 1 / (1 + np.exp(-logits_NC))
        assert scores["f1_micro"] == pytest.approx(sk.f1_score(labels_NC, predicted_NC, average="micro"))
        assert scores["f1_macro"] == pytest.approx(sk.f1_score(labels_NC, predicted_NC, average="macro"))
        assert scores["subset_accuracy"] == pytest.approx(sk.accuracy_score(labels_NC, predicted_NC))
        columns = [sk.brier_score_loss(labels_NC[:, c], probs_NC[:, c]) for c in range(5)]
        assert scores["calibration"]["brier"] == pytest.approx(np.mean(columns))
        losses = [sk.log_loss(labels_NC[:, c], probs_NC[:, c]) for c in range(5)]
        assert scores["loss"] == pytest.approx(np.mean(losses))
        assert sum(b["count"] for b in scores["calibration"]["bins"]) == 2000

    def test_ece_is_over_decisions(self):
        logits_NC = np.log([[9.0, 1 / 4]])  # probabilities 0.9 (true) and 0.2 (false): confidence 0.9, 0.8
        scores = evaluation.classification(logits_NC, [[1, 0]], ["x", "y"], problem="multi_label")
        assert scores["calibration"]["ece"] == pytest.approx((0.1 + 0.2) / 2)

    def test_rows_without_labels_and_none_predicted(self):
        scores = evaluation.classification([[-1.0], [-2.0]], [[0], [0]], ["x"], problem="multi_label")
        assert (scores["subset_accuracy"], scores["f1_micro"], scores["f1_macro"]) == (1.0, 0.0, 0.0)
        assert any("'x'" in note for note in scores["notes"])

    def test_a_single_label(self):
        scores = evaluation.classification(
            [[1.0], [1.0], [-1.0], [-1.0], [-1.0]],
            [[1], [0], [1], [0], [0]],
            ["x"],
            problem="multi_label",
            bootstrap=1,
        )
        half = {"precision": 0.5, "recall": 0.5, "f1": 0.5, "support": 2}
        assert scores["per_class"] == {"x": half}
        assert (scores["f1_micro"], scores["f1_macro"], scores["subset_accuracy"]) == (0.5, 0.5, 0.6)

    def test_probability_of_one_half_is_a_yes(self):
        scores = evaluation.classification([[0.0]], [[1]], ["x"], problem="multi_label")
        assert scores["subset_accuracy"] == 1.0

    def test_a_label_that_does_not_occur_is_left_out_of_macro_f1(self):
        scores = evaluation.classification([[1.0, -1.0]], [[1, 0]], ["x", "y"], problem="multi_label")
        assert scores["f1_macro"] == 1.0


class TestRegression:
    def test_scores_worked_by_hand(self):
        scores = evaluation.regression([1.0, 2.0, 4.0], [1.0, 3.0, 2.0], bootstrap=0)
        assert scores["rmse"] == pytest.approx(math.sqrt(5 / 3))  # errors 0, -1, 2
        assert scores["mae"] == 1.0
        assert scores["r2"] == pytest.approx(1 - 5 / 2)
        assert scores["pearson"] == pytest.approx(1 / math.sqrt(14 / 3 * 2))
        assert scores["spearman"] == pytest.approx(1 / 2)
        assert scores["mean_baseline_rmse"] == pytest.approx(math.sqrt(2 / 3))
        assert scores["notes"] == []

    def test_constant_predictions_have_no_correlation(self):
        scores = evaluation.regression([2.0, 2.0, 2.0], [1.0, 2.0, 3.0])
        assert scores["pearson"] is None
        assert scores["spearman"] is None
        assert scores["r2"] == 0.0
        assert scores["notes"] == ["every prediction is 2: no correlation exists"]
        assert {"pearson", "spearman"}.isdisjoint(scores["intervals_95"])

    def test_constant_targets_have_no_r2(self):
        scores = evaluation.regression([1.0, 2.0], [5.0, 5.0])
        assert (scores["r2"], scores["pearson"]) == (None, None)
        assert "every target is 5" in scores["notes"][0]
        assert scores["intervals_95"].keys() == {"rmse", "mae"}

    def test_one_row(self):
        scores = evaluation.regression([1.0], [3.0])
        assert (scores["rmse"], scores["r2"], scores["pearson"]) == (2.0, None, None)
        json.dumps(scores, allow_nan=False)

    def test_a_column_is_a_list(self):
        assert evaluation.regression([[1.0], [2.0]], [1.0, 2.0])["mae"] == 0.0

    def test_statistics_on_equal_weights_are_the_scores(self):
        rng = np.random.default_rng(5)
        targets_N = rng.integers(8, size=200).astype(float)  # many ties
        predictions_N = np.round(targets_N + rng.normal(size=200), 1)
        weighted = evaluation._regression_statistics(predictions_N, targets_N)(np.ones(200))
        scores = evaluation.regression(predictions_N, targets_N, bootstrap=0)
        assert weighted == pytest.approx({name: scores[name] for name in weighted})
        assert len(weighted) == 5


class TestIntervals:
    @pytest.mark.parametrize("problem", ["single_label", "multi_label"])
    def test_statistics_on_weights_are_the_scores_of_repeated_rows(self, problem):
        logits_NC, labels_N, names = make_rows(60, 4, seed=2)
        labels = labels_N if problem == "single_label" else (logits_NC[:, ::-1] > 0.3).astype(int)
        rows = np.random.default_rng(0).integers(60, size=60)
        one = evaluation.classification(logits_NC, labels, names, problem=problem, bootstrap=1)
        drawn = evaluation.classification(logits_NC[rows], labels[rows], names, problem=problem, bootstrap=0)
        drawn["brier"] = drawn["calibration"]["brier"]
        assert len(one["intervals_95"]) == 5
        for name, (low, high) in one["intervals_95"].items():  # of a single resample: the same rows
            assert low == high == pytest.approx(drawn[name])

    def test_regression_resample_is_the_score_of_repeated_rows(self):
        rng = np.random.default_rng(4)
        targets_N, noise_N = rng.integers(5, size=50).astype(float), rng.normal(size=50)
        rows = np.random.default_rng(0).integers(50, size=50)
        one = evaluation.regression(targets_N + noise_N, targets_N, bootstrap=1)["intervals_95"]
        drawn = evaluation.regression((targets_N + noise_N)[rows], targets_N[rows], bootstrap=0)
        assert len(one) == 5
        for name, (low, high) in one.items():
            assert low == high == pytest.approx(drawn[name])

    def test_accuracy_against_the_binomial(self):
        logits_NC, labels_N, names = make_rows(1000, 3)
        scores = evaluation.classification(logits_NC, labels_N, names, bootstrap=2000)
        expected = stats.binom.ppf([0.025, 0.975], 1000, scores["accuracy"]) / 1000
        assert scores["intervals_95"]["accuracy"] == pytest.approx(expected, abs=0.004)

    def test_macro_f1_against_scipy(self):
        logits_NC, labels_N, names = make_rows(300, 3)
        predicted_N = logits_NC.argmax(1)

        def macro_f1(rows, axis=None):
            return sk.f1_score(labels_N[rows.astype(int)], predicted_N[rows.astype(int)], average="macro")

        theirs = stats.bootstrap(
            (np.arange(300),),
            macro_f1,
            n_resamples=600,
            method="percentile",
            vectorized=False,
            rng=np.random.default_rng(1),
        ).confidence_interval
        ours = evaluation.classification(logits_NC, labels_N, names)["intervals_95"]["f1_macro"]
        assert ours == pytest.approx([theirs.low, theirs.high], abs=0.012)

    def test_rmse_and_pearson_against_scipy(self):
        rng = np.random.default_rng(2)
        targets_N = rng.normal(size=200)
        predictions_N = targets_N + rng.normal(size=200)
        ours = evaluation.regression(predictions_N, targets_N)["intervals_95"]
        for name, statistic in {
            "rmse": lambda p, t: math.sqrt(np.mean((p - t) ** 2)),
            "pearson": lambda p, t: stats.pearsonr(p, t).statistic,
            "spearman": lambda p, t: stats.spearmanr(p, t).statistic,
        }.items():
            theirs = stats.bootstrap(
                (predictions_N, targets_N),
                statistic,
                paired=True,
                n_resamples=1000,
                method="percentile",
                vectorized=False,
                rng=np.random.default_rng(1),
            ).confidence_interval
            assert ours[name] == pytest.approx([theirs.low, theirs.high], abs=0.02)

    def test_seed_fixes_them(self):
        rows = make_rows(80, 3)
        first, again, other = (evaluation.classification(*rows, seed=s)["intervals_95"] for s in (7, 7, 8))
        assert first == again
        assert first != other

    def test_contain_the_value(self):
        scores = evaluation.classification(*make_rows(200, 3))
        for name in ("accuracy", "f1_macro", "f1_weighted", "loss"):
            low, high = scores["intervals_95"][name]
            assert low < scores[name] < high

    def test_ten_thousand_rows_in_a_thousand_resamples(self):
        rows = make_rows(10_000, 10)
        evaluation.quick_metrics(rows[0][:5], rows[1][:5], "single_label")  # imports
        start = time.process_time()
        evaluation.classification(*rows)
        assert time.process_time() - start < 3.0  # 0.7 s on one free core


class TestProbabilities:
    def test_softmax_by_hand_and_at_the_edge(self):
        probs_NC = evaluation.probabilities([[0.0, math.log(3)], [1e4, -1e4]], "single_label")
        assert probs_NC.dtype == np.float64
        assert probs_NC == pytest.approx(np.array([[0.25, 0.75], [1.0, 0.0]]))

    def test_sigmoid_by_hand_and_at_the_edge(self):
        with np.errstate(over="raise"):
            probs_NC = evaluation.probabilities([[math.log(3), 0.0], [1e4, -1e4]], "multi_label")
        assert probs_NC == pytest.approx(np.array([[0.75, 0.5], [1.0, 0.0]]))

    def test_float16_is_summed_in_float64(self):
        probs_NC = evaluation.probabilities(np.zeros((1, 5000), np.float16), "single_label")
        assert probs_NC.sum() == pytest.approx(1.0, abs=1e-12)

    def test_regression_has_none(self):
        with pytest.raises(DataError, match="unknown problem `regression`"):
            evaluation.probabilities([[1.0]], "regression")


class TestQuickMetrics:
    def test_single_label(self):
        quick = evaluation.quick_metrics(np.log(PROBS_NC), np.array(LABELS_N), "single_label")
        assert quick == {"accuracy": 0.75, "f1_macro": pytest.approx(7 / 9)}

    def test_multi_label_is_what_the_full_metrics_say(self):
        logits, labels = TestMultiLabel.LOGITS_NC, TestMultiLabel.LABELS_NC
        quick = evaluation.quick_metrics(logits, labels, "multi_label")
        full = evaluation.classification(logits, labels, ["x", "y"], problem="multi_label", bootstrap=0)
        assert quick.keys() == {"f1_micro", "f1_macro", "subset_accuracy"}
        assert quick == {name: full[name] for name in quick}

    def test_regression_takes_a_column_and_gives_zero_for_no_correlation(self):
        quick = evaluation.quick_metrics([[1.0], [1.0]], [1.0, 3.0], "regression")
        assert quick == {"rmse": pytest.approx(math.sqrt(2)), "mae": 1.0, "pearson": 0.0, "spearman": 0.0}

    def test_plain_floats(self):
        quick = evaluation.quick_metrics(np.log(PROBS_NC).astype(np.float32), LABELS_N, "single_label")
        assert {type(value) for value in quick.values()} == {float}

    def test_unknown_problem(self):
        with pytest.raises(DataError, match=r"unknown problem `single` .*\n.*single_label, multi_label"):
            evaluation.quick_metrics([[1.0]], [0], "single")


class TestMetric:
    def test_is_an_evaluate_metric_that_batches(self):
        import evaluate

        metric = evaluation.metric("single_label")
        assert isinstance(metric, evaluate.Metric)
        metric.add_batch(predictions=[0, 0], references=[0, 1])
        metric.add_batch(predictions=[1, 2], references=[1, 2])
        assert metric.compute()["accuracy"] == 0.75

    def test_combines_with_others(self):
        import evaluate

        both = evaluate.combine([evaluation.metric("single_label"), evaluation.metric("single_label")])
        assert len(both.compute(predictions=[0, 1], references=[0, 0])) == 6

    def test_regression_and_multi_label(self):
        assert evaluation.metric("regression").compute(predictions=[1, 2], references=[1, 3])["mae"] == 0.5
        rows = {"predictions": [[1, 0]], "references": [[1, 0]]}
        assert evaluation.metric("multi_label").compute(**rows)["f1_micro"] == 1.0

    def test_import_loads_neither_torch_nor_evaluate(self):
        code = (
            "import sys, hf_llm_recipes.evaluation; "
            "sys.exit(bool({'torch', 'evaluate', 'sklearn', 'transformers'} & set(sys.modules)))"
        )
        assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


GOOD_NC = [[1.0, 0.0], [0.0, 1.0]]


class TestRefused:
    @pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
    def test_logits_that_are_not_finite(self, value):
        logits_NC = np.zeros((5, 2))
        logits_NC[3, 1] = logits_NC[4, 0] = value
        with pytest.raises(DataError, match=rf"row 3: a logit is {value}.*2 of 5") as caught:
            evaluation.classification(logits_NC, [0] * 5, ["a", "b"])
        assert "diverged" in str(caught.value)

    @pytest.mark.parametrize(
        ("logits", "labels", "message"),
        [
            ([1.0, 2.0], [0, 1], r"logits have the shape \(2,\)"),
            (np.zeros((2, 3, 2)), [0, 1], r"logits have the shape \(2, 3, 2\)"),
            (np.zeros((0, 2)), [], "no rows"),
            (GOOD_NC, [0], r"labels have the shape \(1,\) and logits \(2, 2\)"),
            (GOOD_NC, [[1, 0], [0, 1]], "multi_label"),
            (GOOD_NC, [0, 2], r"row 1: label 2 .*\n.*from 0 to 1"),
            (GOOD_NC, [-100, 0], r"row 0: label -100 (.*\n)*.*without a label"),
            (GOOD_NC, [0, 0.5], "row 1: label 0.5"),
            (GOOD_NC, [0, math.nan], "row 1: label nan"),
            (GOOD_NC, ["a", "b"], "labels cannot be read as one array of numbers"),
            ([[1.0], [1.0, 2.0]], [0, 1], "logits cannot be read"),
        ],
    )
    def test_single_label_arrays(self, logits, labels, message):
        with pytest.raises(DataError, match=message):
            evaluation.classification(logits, labels, ["a", "b"])

    @pytest.mark.parametrize(
        ("labels", "message"),
        [
            ([0, 1], 'problem="single_label"'),
            ([[0, 1]], r"labels have the shape \(1, 2\)"),
            ([[0, 1], [2, 0]], "row 1: label 2 in row 1, class 0"),
            ([[0, 0.5], [0, 0]], "row 0: label 0.5"),
            ([[0, math.nan], [0, 0]], "row 0: label nan"),
        ],
    )
    def test_multi_label_arrays(self, labels, message):
        with pytest.raises(DataError, match=message):
            evaluation.classification(GOOD_NC, labels, ["a", "b"], problem="multi_label")

    @pytest.mark.parametrize(
        ("names", "message"),
        [
            (["a"], "1 label names for 2 columns"),
            (["a", "a"], "'a' is there twice"),
            (["a", 1], "label name 1 is 1"),
        ],
    )
    def test_label_names(self, names, message):
        with pytest.raises(DataError, match=message):
            evaluation.classification(GOOD_NC, [0, 1], names)

    @pytest.mark.parametrize(
        ("predictions", "targets", "message"),
        [
            ([1.0], [1.0, 2.0], "1 predictions for 2 targets"),
            ([], [], "no rows"),
            ([[1.0, 2.0]], [1.0], r"predictions have the shape \(1, 2\)"),
            ([1.0, math.nan], [1.0, 2.0], "row 1: a prediction is nan"),
            ([1.0, 2.0], [math.inf, 2.0], "row 0: a target is inf"),
        ],
    )
    def test_regression_arrays(self, predictions, targets, message):
        with pytest.raises(DataError, match=message):
            evaluation.regression(predictions, targets)

    def test_problem_and_bootstrap(self):
        with pytest.raises(DataError, match="did you mean `multi_label`"):
            evaluation.classification(GOOD_NC, [0, 1], ["a", "b"], problem="multilabel")
        with pytest.raises(DataError, match="bootstrap is -1"):
            evaluation.classification(GOOD_NC, [0, 1], ["a", "b"], bootstrap=-1)
        with pytest.raises(DataError, match="bootstrap is -1"):
            evaluation.regression([1.0], [1.0], bootstrap=-1)


class TestTable:
    def test_scores_intervals_classes_and_notes(self):
        scores = evaluation.classification(*make_rows(100, 3))
        text = printed(evaluation.format_table(scores))
        low, high = scores["intervals_95"]["accuracy"]
        assert "100 rows" in text
        assert f"{low:.4f} – {high:.4f}" in text
        assert "ece" in text
        assert "brier" in text
        assert "class 2" in text
        assert "support" in text
        assert "bootstrap" not in text

    def test_names_are_not_markup(self):
        text = printed(evaluation.format_table(evaluation.classification(GOOD_NC, [0, 1], ["[red]", "[/]"])))
        assert "[red]" in text
        assert "[/]" in text

    def test_regression_without_correlation(self):
        text = printed(evaluation.format_table(evaluation.regression([1.0, 1.0], [1.0, 2.0])))
        assert "rmse" in text
        assert "pearson" not in text
        assert "note: every prediction is 1" in text

    def test_after_a_round_trip_through_json(self, tmp_path):
        scores = evaluation.classification(*make_rows(30, 3))
        evaluation.write_metrics(tmp_path / "metrics.json", scores)
        back = json.loads((tmp_path / "metrics.json").read_text(encoding="utf-8"))
        assert back == scores
        assert printed(evaluation.format_table(back)) == printed(evaluation.format_table(scores))


class TestMetricsFile:
    def test_numpy_becomes_plain_and_the_folder_is_made(self, tmp_path):
        path = tmp_path / "new" / "metrics.json"
        given = {"a": np.float32(0.5), "b": np.arange(2), "c": (np.int64(3), True, None, "é")}
        evaluation.write_metrics(path, given)
        assert json.loads(path.read_text(encoding="utf-8")) == {
            "a": 0.5,
            "b": [0, 1],
            "c": [3, True, None, "é"],
        }
        assert [p.name for p in path.parent.iterdir()] == ["metrics.json"]

    def test_nan_becomes_null_with_a_reason(self, tmp_path):
        path = tmp_path / "metrics.json"
        evaluation.write_metrics(path, {"a": {"b": [1.0, math.nan]}, "c": math.inf, "notes": ["kept"]})
        back = json.loads(path.read_text(), parse_constant=lambda name: pytest.fail(name))
        assert back["a"]["b"] == [1.0, None]
        assert back["c"] is None
        assert back["notes"] == [
            "kept",
            "`a.b[1]` was nan and is written as null",
            "`c` was inf and is written as null",
        ]

    def test_a_failure_leaves_the_old_file(self, tmp_path):
        path = tmp_path / "metrics.json"
        evaluation.write_metrics(path, {"a": 1})
        with pytest.raises(DataError, match=r"`b\.c` is a set"):
            evaluation.write_metrics(path, {"b": {"c": {1}}})
        assert json.loads(path.read_text()) == {"a": 1}
        assert [p.name for p in tmp_path.iterdir()] == ["metrics.json"]


def write(path, **changes):
    given = {
        "columns": {"text": ["one", "two", "three", "four"]},
        "logits": np.log(PROBS_NC),
        "labels": LABELS_N,
        "label_names": NAMES,
        "problem": "single_label",
    }
    evaluation.write_predictions(path, **(given | changes))
    return pq.read_table(path).to_pydict()


class TestPredictionsFile:
    def test_single_label(self, tmp_path):
        back = write(tmp_path / "p.parquet")
        assert list(back) == [
            "text",
            "label",
            "predicted_label",
            "probability_a",
            "probability_b",
            "probability_c",
        ]
        assert back["label"] == ["a", "b", "b", "c"]
        assert back["predicted_label"] == ["a", "a", "b", "c"]
        assert back["probability_b"] == pytest.approx([0.2, 0.3, 0.8, 0.25])
        assert [p.name for p in tmp_path.iterdir()] == ["p.parquet"]

    def test_multi_label(self, tmp_path):
        back = write(
            tmp_path / "p.parquet",
            columns={},
            logits=TestMultiLabel.LOGITS_NC,
            labels=TestMultiLabel.LABELS_NC,
            label_names=["x", "y"],
            problem="multi_label",
        )
        assert back["label"] == [["x"], ["x"], [], ["x", "y"]]
        assert back["predicted_label"] == [["x"], ["x", "y"], [], ["y"]]
        assert back["probability_x"][0] == pytest.approx(1 / (1 + math.exp(-2)))

    @pytest.mark.parametrize("labels", [[1.0, 2.0, 3.0, 4.0], None])
    def test_regression(self, tmp_path, labels):
        back = write(
            tmp_path / "p.parquet",
            logits=[[1.5], [2.5], [3.5], [4.5]],
            labels=labels,
            label_names=None,
            problem="regression",
        )
        assert back["prediction"] == [1.5, 2.5, 3.5, 4.5]
        assert back.get("label") == labels

    def test_unlabeled_rows_have_no_label_column(self, tmp_path):
        assert list(write(tmp_path / "p.parquet", labels=None))[:2] == ["text", "predicted_label"]

    def test_a_given_column_of_our_name_is_renamed(self, tmp_path):
        given = {"label": [9, 8, 7, 6], "input_label": ["q"] * 4}
        back = write(tmp_path / "p.parquet", columns=given)
        assert back["label"] == ["a", "b", "b", "c"]
        assert back["input_label"] == ["q"] * 4
        assert back["input_input_label"] == [9, 8, 7, 6]

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"columns": {"text": ["one"]}}, "column `text` has 1 values for 4 rows"),
            (
                {"columns": {"text": ["one", 2, [3], None]}},
                "column `text` has values Parquet has no one type",
            ),
            ({"label_names": None}, "0 label names for 3 columns"),
            ({"labels": [0, 1, 2, 3]}, "row 3: label 3"),
        ],
    )
    def test_refused_and_nothing_written(self, tmp_path, changes, message):
        with pytest.raises(DataError, match=message):
            write(tmp_path / "p.parquet", **changes)
        assert list(tmp_path.iterdir()) == []

    def test_nan_of_a_prediction_without_target(self, tmp_path):
        with pytest.raises(DataError, match="row 0: a prediction is nan"):
            write(
                tmp_path / "p.parquet",
                columns={},
                logits=[math.nan],
                labels=None,
                label_names=None,
                problem="regression",
            )
