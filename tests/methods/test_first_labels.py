"""First labels of the pool by fine-tuned models, where labeled rows held out say that they are better."""

import numpy as np
import pytest
import torch
from _tiny_parts import make_parts

from hf_llm_recipes.algorithms.softmatch import SoftMatch
from hf_llm_recipes.callbacks.graceful_stop import GracefulStop
from hf_llm_recipes.errors import DataError, InterruptedRunError
from hf_llm_recipes.methods import _first_labels
from hf_llm_recipes.methods._cross_fit import folds
from hf_llm_recipes.methods._first_labels import KEPT, fine_tuned, visited
from hf_llm_recipes.methods._streams import TwoStreamBatches
from hf_llm_recipes.methods.semi_supervised import SemiSupervised
from hf_llm_recipes.methods.supervised import Supervised


def parts_of(folder, out, **given):
    parts = make_parts(folder, out, **{"max_steps": 4, "save_strategy": "no"} | given)
    parts.algorithm, parts.unlabeled_rows = SoftMatch(), parts.unlabeled
    return parts


def values(model):
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def same(first, second):
    return all(torch.equal(first[name], value) for name, value in second.items())


@pytest.fixture
def trained(monkeypatch):
    """Nothing is trained; what would have been is remembered."""
    seen = []
    monkeypatch.setattr(
        _first_labels, "_train", lambda parts, rows, steps, folder: seen.append((rows.tolist(), steps))
    )
    return seen


def test_the_rows_of_the_first_batches():
    batches = TwoStreamBatches(6, 10, 2, 4, seed=3)  # two batches an epoch, two rows of the pool left over
    found = visited(batches, 3, 10)
    expected = set()
    for epoch, count in ((0, 2), (1, 1)):
        batches.set_epoch(epoch)
        for batch in list(batches)[:count]:
            expected |= {key.index for key in batch if key.unlabeled}
    assert found.tolist() == sorted(expected)
    visited(batches, 3, 10)
    assert batches.epoch == 0
    assert visited(batches, 1000, 10).tolist() == list(range(10))


def test_held_out_rows_are_judged_by_a_model_that_did_not_see_them(tiny_bert, tmp_path, trained, monkeypatch):
    parts = parts_of(tiny_bert, tmp_path)
    judged = []

    def probabilities(parts, rows, chosen, label):
        if rows is parts.train:
            judged.append(chosen.tolist())
        return np.eye(3)[np.asarray(parts.train["labels"][:])[chosen]]  # all right

    monkeypatch.setattr(_first_labels, "_probabilities", probabilities)
    found = fine_tuned(parts, steps=4, to_beat=1.0, rows=np.arange(5))
    assert found.held_out == 1.0
    assert found.labels is None  # as good as the others is not better
    assert [sorted(rows + held) for (rows, _), held in zip(trained, judged, strict=True)] == [
        list(range(12))
    ] * 3
    fold_N = folds(parts)
    assert judged == [np.flatnonzero(fold_N == number).tolist() for number in range(3)]


def test_the_labels_are_the_mean_of_four_models(tiny_bert, tmp_path, trained, monkeypatch):
    parts = parts_of(tiny_bert, tmp_path)
    given = iter([[0.6, 0.2, 0.2], [0.6, 0.3, 0.1], [0.3, 0.3, 0.4], [0.9, 0.0, 0.1]])

    def probabilities(parts, rows, chosen, label):
        return np.tile(next(given) if rows is parts.unlabeled else [0.0, 0.5, 0.5], (len(chosen), 1))

    monkeypatch.setattr(_first_labels, "_probabilities", probabilities)
    labels = fine_tuned(parts, steps=4, to_beat=0.0, rows=np.asarray([1, 7])).labels
    assert labels.target_NC[[1, 7]] == pytest.approx(np.tile([0.6, 0.2, 0.2], (2, 1)))
    assert labels.weight_N.tolist() == [float(row in (1, 7)) for row in range(40)]
    assert [len(rows) for rows, _ in trained] == [8, 8, 8, 12]
    # Both rows are of class 0; 4 labeled rows of each class: .2 of thirds, .8 of that
    assert labels.prior_C == pytest.approx([0.8 + 0.2 / 3, 0.2 / 3, 0.2 / 3])


@pytest.mark.parametrize("steps,expected", [(10, 5), (1, 1), (1000, 40)])  # 8 rows of 8 a step, 40 times
def test_folds_take_half_the_steps_and_few_passes(tiny_bert, tmp_path, monkeypatch, steps, expected):
    parts = parts_of(tiny_bert, tmp_path)
    seen = []

    class Trained:
        def build(self, parts):
            seen.append((parts.arguments.max_steps, len(parts.train), parts.eval))
            return self

        def remove_callback(self, kind):
            pass

        def train(self):
            pass

    monkeypatch.setattr(_first_labels, "Supervised", Trained)
    fine_tuned(parts, steps=steps, to_beat=2.0, rows=np.arange(3))
    assert seen == [(expected, 8, None)] * 3
    seen.clear()
    fine_tuned(parts, steps=steps, to_beat=-1.0, rows=np.arange(3))
    assert seen[3:] == [(min(steps, 60), 12, None)]  # 12 rows, 8 a step, 40 times
    assert parts.arguments.max_steps == 4


def test_probabilities_are_the_models_in_the_rows_order(tiny_bert, tmp_path):
    parts = parts_of(tiny_bert, tmp_path)
    chosen = np.asarray([5, 0, 39, 7])
    found = _first_labels._probabilities(parts, parts.unlabeled, chosen, None)
    parts.model.eval()
    for row, place in enumerate(chosen):
        batch = parts.collator([parts.unlabeled[int(place)]])
        with torch.no_grad():
            logits = parts.model(**batch).logits
        assert found[row] == pytest.approx(torch.softmax(logits, -1)[0].numpy(), abs=1e-6)


def test_the_run_goes_on_from_the_weights_it_had(tiny_bert, tmp_path):
    """Real trainings; the student's first step is as if the labels had come from somewhere else."""
    parts = parts_of(tiny_bert, tmp_path)
    before = values(parts.model)
    method = SemiSupervised(warm_start="fine_tuned", unlabeled_ratio=2)
    trainer = method.build(parts)
    assert same(before, values(parts.model))
    assert all(p.grad is None for p in parts.model.parameters())
    report = method.report(trainer)
    assert report["first_labels"]["used"] == "fine_tuned"
    assert set(report["first_labels"]["held_out"]) == {"propagation", "probe", "fine_tuned"}
    assert trainer.warm_start.weight_N.sum() == 32  # two steps of four, 16 rows each
    targets = trainer.warm_start.target_NC
    assert targets.sum(1) == pytest.approx(1)
    trainer.train()
    assert not same(before, values(parts.model))


def test_three_models_learn_what_one_learns(tiny_bert, tmp_path):
    from conftest import sentences
    from datasets import Dataset

    parts = parts_of(tiny_bert, tmp_path, learning_rate=1e-2)
    classes = {"sport": 0, "food": 1, "music": 2}
    rows = sentences(60, seed=9)
    made = dict(parts.processing_class([row["text"] for row in rows]))
    parts.train = Dataset.from_dict({**made, "labels": [classes[row["label"]] for row in rows]})
    found = fine_tuned(parts, steps=400, to_beat=-1.0, rows=np.arange(40))
    truth = [classes[row["label"]] for row in sentences(40, seed=1)]
    assert (found.labels.target_NC.argmax(1) == truth).mean() > 0.7
    assert found.held_out > 0.6  # a guess: a third


def test_a_run_that_is_taken_up_again_reads_them(tiny_bert, tmp_path, monkeypatch):
    for to_beat in (-1.0, 2.0):
        out = tmp_path / str(to_beat)
        parts = parts_of(tiny_bert, out, save_strategy="steps")
        first = fine_tuned(parts, steps=4, to_beat=to_beat, rows=np.arange(9))
        assert (out / "checkpoints" / KEPT).is_file()
        with monkeypatch.context() as context:
            context.setattr(_first_labels, "_train", lambda *_: pytest.fail("trained again"))
            again = fine_tuned(parts, steps=4, to_beat=to_beat, rows=np.arange(9))
        assert again.held_out == first.held_out
        if first.labels is None:
            assert again.labels is None
        else:
            assert np.array_equal(again.labels.target_NC, first.labels.target_NC)
            assert np.array_equal(again.labels.prior_C, first.labels.prior_C)


def test_a_stop_ends_it(tiny_bert, tmp_path, monkeypatch):
    stop = GracefulStop()
    parts = parts_of(tiny_bert, tmp_path, callbacks=[stop], save_strategy="steps")
    before = values(parts.model)

    class Stopped(Supervised):
        def build(self, parts):
            trainer = super().build(parts)
            plain = trainer.training_step

            def step(*given, **named):
                stop.received = 2
                return plain(*given, **named)

            trainer.training_step = step
            return trainer

    monkeypatch.setattr(_first_labels, "Supervised", Stopped)
    with pytest.raises(InterruptedRunError, match="first labels of the pool were made"):
        fine_tuned(parts, steps=4, to_beat=0.0, rows=np.arange(3))
    assert same(before, values(parts.model))
    assert not (tmp_path / "checkpoints" / KEPT).exists()


def test_without_two_rows_of_a_class_none_can_be_held_out(tiny_bert, tmp_path):
    parts = parts_of(tiny_bert, tmp_path)
    labels = np.asarray(parts.train["labels"][:])
    once = np.flatnonzero(labels == 2)[1:]
    parts.train = parts.train.select([row for row in range(12) if row not in once])
    with pytest.raises(DataError, match="a class has one labeled row"):
        SemiSupervised(warm_start="fine_tuned", unlabeled_ratio=2).build(parts)
    trainer = SemiSupervised(unlabeled_ratio=2).build(parts)
    assert trainer.warm_start is not None


def test_nothing_is_printed_of_these_trainings(tiny_bert, tmp_path, capsys):
    parts = parts_of(tiny_bert, tmp_path, disable_tqdm=True)  # with which transformers prints each log
    _first_labels._train(parts, np.arange(len(parts.train)), 2, str(tmp_path))
    assert capsys.readouterr().out == ""
