"""The time of each method, before it: parts that sum, and as many steps of each kind as a real run takes."""

import json
from collections import Counter

import numpy as np
import pytest
import torch
from transformers import Trainer
from trl import GRPOTrainer

from hf_llm_recipes import courses, spans
from hf_llm_recipes.estimate import Estimate, estimate_run, time_table
from hf_llm_recipes.methods import _first_labels
from hf_llm_recipes.methods._lower_layers import LowerLayers
from hf_llm_recipes.methods._semi_trainer import Schedule, SemiSupervisedTrainer
from hf_llm_recipes.methods.self_training import RoundPlan, SelfTrainingTrainer
from hf_llm_recipes.recipe import Recipe, dump_yaml
from hf_llm_recipes.run import _Runner, plan, run
from hf_llm_recipes.spans import Span
from hf_llm_recipes.stages._training import StageModule

WORDS = ["ball", "team", "goal", "soup", "salt", "oven"]


def estimated(values):
    runner = _Runner(plan(Recipe.from_dict(values)))
    runner._prepare()
    weights = {name: value.clone() for name, value in runner.built.model.state_dict().items()}
    found = estimate_run(runner, steps=1)
    after = runner.built.model.state_dict()
    assert weights.keys() == after.keys()
    assert all(torch.equal(value, after[name]) for name, value in weights.items())
    assert all(parameter.grad is None for parameter in runner.built.model.parameters())
    return found


def counts(found, part):
    return {span.what: span.count for span in found.spans if span.part == part}


def adds_up(found, *parts):
    """Each part is there, positive, and the sum of its spans; the training is the only one compared."""
    by_part = found.seconds_by_part
    assert list(by_part) == [part for part in spans.PARTS if part in parts]
    for part, seconds in by_part.items():
        assert seconds == pytest.approx(sum(s.count * s.each[0] for s in found.spans if s.part == part))
        assert seconds > 0
    said = found.to_dict()
    assert said["seconds"] == by_part["training"]
    assert sum(one["seconds"] for one in said["time"]) == pytest.approx(sum(by_part.values()))
    assert found.predicted()["minutes_by_part"] == {p: s / 60 for p, s in by_part.items()}
    assert found.predicted()["minutes"] == found.predicted()["minutes_by_part"]["training"]


class Seen:
    """What real runs do: trainings by class with their steps, and whatever a test counts."""

    def __init__(self, monkeypatch):
        self.trainings, self.counts = [], Counter()
        train = Trainer.train

        def counting(trainer, *given, **named):
            result = train(trainer, *given, **named)
            kind = "stage" if isinstance(trainer.model, StageModule) else type(trainer).__name__
            self.trainings.append((kind, trainer.state.global_step))
            return result

        monkeypatch.setattr(Trainer, "train", counting)
        monkeypatch.setattr("hf_llm_recipes.run.predicted", lambda runner: None)  # its steps are no run's
        self.monkeypatch = monkeypatch

    def count(self, cls, name, key_of):
        """Counts calls of a method under what ``key_of`` makes of its arguments."""
        called = getattr(cls, name)

        def counting(one, *given, **named):
            self.counts[key_of(one, *given)] += 1
            return called(one, *given, **named)

        self.monkeypatch.setattr(cls, name, counting)


@pytest.fixture
def seen(monkeypatch):
    return Seen(monkeypatch)


@pytest.fixture
def semi(recipe, tmp_path, monkeypatch):
    """24 labeled rows of 240, the upper of two layers adapted."""
    monkeypatch.setenv("HF_LLM_RECIPES_CACHE", str(tmp_path / "cache"))
    recipe["tuning"] = {"name": "lora", "r": 2, "target_modules": ["query"], "layers_to_transform": [1]}
    recipe["data"]["labels_per_class"] = 8
    recipe["method"] = {"name": "semi_supervised"}
    recipe["trainer"] |= {"max_steps": 10, "save_strategy": "no"}
    return recipe


def kind_of(trainer, *given):
    if trainer.strength == 0:
        return courses.LABELED
    warm = trainer.warm_start is not None and trainer.progress < trainer.warm_start.until
    return courses.FIRST if warm else courses.GUESSES


@pytest.mark.parametrize("warm_start", ["fine_tuned", "none"])
def test_semi_supervised_steps_are_those_of_a_run(semi, seen, warm_start):
    semi["method"]["warm_start"] = warm_start
    found = estimated(semi)
    assert found.steps == 10
    seen.trainings.clear()
    seen.count(SemiSupervisedTrainer, "training_step", kind_of)
    states, rows = LowerLayers._compute, []
    seen.monkeypatch.setattr(
        LowerLayers,
        "_compute",
        lambda self, s, r, missing, b: rows.append(len(missing)) or states(self, s, r, missing, b),
    )
    run(Recipe.from_dict(semi))
    said = counts(found, "training")
    steps = {what.removeprefix("steps: "): count for what, count in said.items()}
    assert steps.pop("frozen lower layers, once a row") == sum(rows)
    assert steps == dict(seen.counts)
    # ⌈0.1 · 10⌉ without the unlabeled loss, or 5 of 10 with first labels
    expected = {
        "none": {courses.LABELED: 1, courses.GUESSES: 9},
        "fine_tuned": {courses.FIRST: 5, courses.GUESSES: 5},
    }
    assert steps == expected[warm_start]
    before = counts(found, "preparation")
    folds = sum(n for kind, n in seen.trainings[:3] if kind == "Trainer")
    if warm_start == "none":
        assert [kind for kind, _ in seen.trainings] == ["SemiSupervisedTrainer"]
        assert "first labels: rows labeled" not in before
        adds_up(found, "preparation", "training", "judging")
        return
    assert before["first labels: steps on rows outside a fold"] == folds == 15  # 3 x 10 // 2
    assert before["first labels: steps on all labeled rows"] == seen.trainings[3][1] == 10
    assert not found.at_most("preparation")  # fine_tuned: they are used whatever was found
    assert counts(found, "judging")["test split, with other weights"] == 1
    adds_up(found, "preparation", "training", "judging")


def test_first_labels_that_may_not_be_used_are_at_most(semi):
    found = estimated(semi)
    limits = {span.what for span in found.spans if span.at_most}
    assert {"first labels: steps on all labeled rows", "first labels: rows labeled"} <= limits
    assert "at most" in found.sentence()
    assert found.predicted()["at_most"] == ["preparation"]
    labeled = 24
    rows = counts(found, "preparation")
    assert rows["frozen features of a row"] == labeled + len_of(semi, "unlabeled") + len_of(semi, "test")


def len_of(values, split):
    runner = _Runner(plan(Recipe.from_dict(values)))
    runner.prepare_data()
    return len(getattr(runner.prepared, split))


def test_features_that_are_kept_cost_nothing_again(semi):
    semi["method"]["warm_start"] = "propagation"
    run(Recipe.from_dict(semi))
    semi["output"] += "-again"
    assert "frozen features of a row" not in counts(estimated(semi), "preparation")


def test_cross_fitting_trains_three_times_each(semi, seen):
    semi["method"] |= {"guard": "cross_fit", "warm_start": "none"}
    found = estimated(semi)
    seen.trainings.clear()
    run(Recipe.from_dict(semi))
    tried = Counter()
    for kind, steps in seen.trainings[:-1]:
        tried[kind] += steps
    before = counts(found, "preparation")
    pool = {k: n for k, n in before.items() if k.startswith("cross-fitting: steps: ") and "lower" not in k}
    assert sum(pool.values()) == tried["SemiSupervisedTrainer"] == 30
    assert before["cross-fitting: steps, supervised"] == tried["Trainer"] == 30


def test_two_students_cost_about_twice(semi):
    semi["method"]["warm_start"] = "none"
    semi["algorithm"] = {"name": "jointmatch"}
    found = estimated(semi)
    assert counts(found, "training")[f"steps: {courses.GUESSES}"] == 9
    assert counts(found, "judging")["test split, with other weights"] == 1
    adds_up(found, "preparation", "training", "judging")


def test_propagation_learns_from_given_labels_alone(semi, seen):
    semi["method"] = {"name": "propagation"}
    found = estimated(semi)
    seen.count(SemiSupervisedTrainer, "training_step", kind_of)
    run(Recipe.from_dict(semi))
    said = counts(found, "training")
    assert (
        said.pop("steps: frozen lower layers, once a row") == 24
    )  # the labeled ones; the pool's have changed views
    assert said == {f"steps: {courses.FIRST}": 10.0}
    assert dict(seen.counts) == {courses.FIRST: 10}
    adds_up(found, "preparation", "training", "judging")


@pytest.mark.parametrize("length", [{"max_steps": 6}, {"num_train_epochs": 2, "max_steps": -1}])
def test_self_training_rounds_are_those_of_a_run(semi, seen, length):
    semi["method"] = {"name": "self_training", "rounds": 2, "passes": 2, "warm_start": "none"}
    semi["trainer"] |= length
    found = estimated(semi)
    seen.trainings.clear()
    seen.count(SelfTrainingTrainer, "_label_pool", lambda *given: "pool labeled")
    done = run(Recipe.from_dict(semi))
    said = counts(found, "training")
    steps = [n for what, n in said.items() if what.startswith("steps: ")]
    taken = [n for _, n in seen.trainings]
    assert done.metrics["training"]["steps"] == sum(taken)
    assert found.steps == sum(steps)
    assert steps[:2] == taken[:2]
    if "max_steps" in length and length["max_steps"] > 0:
        assert steps[2] == taken[2] == 6
    else:  # where a class has fewer rows than its share, fewer are learned from
        assert taken[1] < taken[2] <= steps[2] == 54
    assert said["pool labeled"] == seen.counts["pool labeled"] == 2
    assert found.at_most("training")  # labels may settle
    adds_up(found, "preparation", "training", "judging")


def test_rows_of_the_rounds_by_hand():
    given = RoundPlan(2, 0, "probability", [0.5, 1.0], None, labeled_share=0.25)
    # 100 of 200 rows and 100/3 of 10 labeled ones: 3 x 10; 200 and 200/3: 7 x 10
    assert courses.rows_of_rounds(given, 10, 200, alone=False) == [130, 270]
    assert courses.rows_of_rounds(given, 10, 200, alone=True) == [10, 130, 270]


def test_stages_and_the_baseline_are_parts_of_their_own(semi, seen):
    semi["stages"] = [{"name": "contrastive", "epochs": 1, "batch_size": 16}]
    semi["tuning"]["lora_dropout"] = 0.1
    semi["method"]["warm_start"] = "none"
    semi["compare"] = True
    found = estimated(semi)
    seen.trainings.clear()
    done = run(Recipe.from_dict(semi))
    assert [kind for kind, _ in seen.trainings] == ["stage", "SemiSupervisedTrainer", "Trainer"]
    assert counts(found, "stages")["contrastive: steps"] == seen.trainings[0][1] > 5
    assert counts(found, "baseline")["steps, supervised"] == seen.trainings[2][1] == 10
    adds_up(found, "stages", "preparation", "training", "judging", "baseline")
    took = spans.minutes_of(done.metrics)
    assert list(took) == list(spans.PARTS)
    assert all(minutes > 0 for minutes in took.values())


def test_a_run_gives_the_same_bits_after_a_methods_prediction(semi, monkeypatch, tmp_path):
    semi["trainer"]["max_steps"] = 20
    with_it = run(Recipe.from_dict(semi))
    monkeypatch.setattr("hf_llm_recipes.run.predicted", lambda runner: None)
    without = run(Recipe.from_dict(semi), f"output={tmp_path / 'other'}")
    weights = [
        (done.path / "model" / "adapter_model.safetensors").read_bytes() for done in (with_it, without)
    ]
    assert weights[0] == weights[1]
    said = with_it.metrics["training"]["predicted"]["minutes_by_part"]
    assert said.keys() == {"preparation", "training", "judging"}


def write(path, rows):
    path.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    return str(path)


def language(folder, tmp_path, task, method, data, **trainer):
    return {
        "name": "tiny",
        "output": str(tmp_path / "out"),
        "model": {"name": str(folder), "dtype": "float32"},
        "tuning": {"name": "lora", "r": 2},
        "data": data,
        "task": task,
        "method": method,
        "trainer": {
            **{"per_device_train_batch_size": 4, "max_steps": 6, "save_strategy": "no"},
            **{"disable_tqdm": True, **trainer},
        },
    }


@pytest.mark.parametrize("tuning", ["lora", "full"])
def test_dpo(tiny_llama, tmp_path, seen, tuning):
    pairs = [
        {"prompt": f"the {a} was", "chosen": f"good {b}", "rejected": f"old {b}"}
        for a in WORDS
        for b in WORDS
    ]
    data = {"name": write(tmp_path / "pairs.jsonl", pairs), "test_fraction": 0.25, "eval_fraction": 0}
    values = language(tiny_llama, tmp_path, "preference", "dpo", data, max_steps=-1, num_train_epochs=1)
    values["tuning"] = values["tuning"] if tuning == "lora" else "full"
    found = estimated(values)
    run(Recipe.from_dict(values))
    assert counts(found, "training") == {"steps": float(seen.trainings[-1][1])}
    assert found.steps == 7  # 27 pairs by 4
    assert "test split before the training" in counts(found, "judging")
    teacher = {part.name: part.bytes for part in found.memory}.get("teacher", 0)
    weights = sum(part.bytes for part in found.memory if part.name in ("weights", "buffers"))
    assert teacher == (weights if tuning == "full" else 0)  # the base is the adapter's reference
    adds_up(found, "preparation", "training", "judging")


@pytest.mark.parametrize("more", [{}, {"num_iterations": 2, "gradient_accumulation_steps": 2}])
def test_grpo_writes_answers_at_full_length(tiny_llama, tmp_path, seen, more):
    prompts = [{"prompt": f"the {word} was", "answer": word} for word in 4 * WORDS]
    data = {"name": write(tmp_path / "prompts.jsonl", prompts), "test_fraction": 0.25, "eval_fraction": 0}
    task = {"name": "generation", "reward": "token_f1", "max_new_tokens": 3}
    values = language(
        tiny_llama, tmp_path, task, "grpo", data, num_generations=2, max_completion_length=3, **more
    )
    found = estimated(values)
    seen.count(GRPOTrainer, "_generate_and_score_completions", lambda *given: "written")
    seen.count(GRPOTrainer, "training_step", lambda *given: "learned")
    run(Recipe.from_dict(values))
    said = counts(found, "training")
    written, again = (
        said.get(f"steps: answers {k}", 0) for k in ("written, learned from", "learned from again")
    )
    assert written == seen.counts["written"]
    assert written + again == seen.counts["learned"]
    assert said["steps: optimizer"] == found.steps == 6
    assert found.at_most("training")
    assert "as if every answer had 3 tokens, the most there can be" in found.notes
    adds_up(found, "preparation", "training", "judging")


def test_self_training_on_prompts(tiny_llama, tmp_path, seen):
    rows = [{"prompt": f"{filler} {word}", "answer": word} for filler in ("the", "a") for word in WORDS]
    for name, some in (("train", rows), ("eval", rows[:4]), ("test", rows[4:])):
        write(tmp_path / f"{name}.jsonl", some)
    write(tmp_path / "pool.jsonl", [{"prompt": f"{f} {w}"} for f in ("new", "old") for w in WORDS])
    data = {"name": str(tmp_path), "unlabeled": "pool.jsonl"}
    data |= {name: f"{name}.jsonl" for name in ("train", "eval", "test")}
    method = {"name": "self_training", "rounds": 1, "samples": 2, "least": 0.5}
    task = {"name": "generation", "max_new_tokens": 3}
    values = language(tiny_llama, tmp_path, task, method, data, num_train_epochs=1)
    found = estimated(values)
    seen.trainings.clear()
    run(Recipe.from_dict(values))
    said = counts(found, "training")
    assert (
        [n for what, n in said.items() if what.startswith("steps: ")]
        == [n for _, n in seen.trainings]
        == [6, 6]
    )
    assert said["answers written to the pool"] == 1
    assert said["answers to the eval split, a row"] == 2 * 4
    assert found.at_most("training")
    adds_up(found, "preparation", "training", "judging")


def test_distillation_runs_the_teacher_in_each_step(recipe, tmp_path, seen):
    teacher = run(Recipe.from_dict(recipe)).path
    recipe |= {
        "method": {"name": "distillation", "teacher": str(teacher)},
        "output": str(tmp_path / "student"),
    }
    recipe["trainer"] |= {"max_steps": -1, "num_train_epochs": 1}
    found = estimated(recipe)
    run(Recipe.from_dict(recipe))
    assert counts(found, "training") == {"steps": float(seen.trainings[-1][1])}
    assert found.steps > 20
    parts = {part.name: part.bytes for part in found.memory}
    assert parts["teacher"] == parts["weights"] + parts["buffers"]
    adds_up(found, "preparation", "training", "judging")


def test_a_teacher_of_a_pool_answers_each_row_once(recipe, tmp_path, seen, monkeypatch):
    monkeypatch.setenv("HF_LLM_RECIPES_CACHE", str(tmp_path / "cache"))
    recipe["method"] = {"name": "distillation", "teacher": str(run(Recipe.from_dict(recipe)).path)}
    recipe["output"] = str(tmp_path / "student")
    recipe["data"]["labels_per_class"] = 8
    recipe["trainer"] |= {"max_steps": -1, "num_train_epochs": 2}
    found = estimated(recipe)
    assert not (tmp_path / "cache" / "teachers").exists()
    run(Recipe.from_dict(recipe))
    assert counts(found, "training") == {"steps": float(seen.trainings[-1][1])}
    rows = sum(len_of(recipe, split) for split in ("train", "unlabeled", "test"))
    assert counts(found, "preparation")["a row answered by the teacher, where that is not kept"] == rows
    assert found.at_most("preparation")
    assert not found.at_most("training")


def test_a_teacher_that_is_trained_first_has_an_estimate_of_its_own(recipe, tmp_path):
    teacher = tmp_path / "teacher.yaml"
    values = {key: value for key, value in recipe.items() if key not in ("name", "output")}
    teacher.write_text(dump_yaml(values), encoding="utf-8")
    recipe["method"] = {"name": "distillation", "teacher": str(teacher)}
    found = estimated(recipe)
    assert (found.spans, found.seconds) == ([], None)
    assert found.notes == [f"the teacher, {teacher}, is trained first: its estimate is its own"]


def test_evaluations_and_early_stopping(recipe):
    recipe["trainer"] |= {"max_steps": 24, "eval_strategy": "steps", "eval_steps": 5, "save_steps": 5}
    found = estimated(recipe)
    assert counts(found, "training") == {"steps": 24.0, "evaluations": 4}
    assert not found.at_most()
    recipe["trainer"] |= {"load_best_model_at_end": True, "metric_for_best_model": "loss"}
    recipe["callbacks"] = [{"name": "early_stopping", "early_stopping_patience": 1}]
    found = estimated(recipe)
    assert found.at_most("training")
    assert not found.at_most("judging")
    assert found.sentence().startswith("at most ")


def test_kinds_of_steps_by_hand():
    assert courses.kinds_of_steps(10, Schedule(1.0, 0.1, 0.0), 0.0) == {
        courses.LABELED: 1,
        courses.FIRST: 0,
        courses.GUESSES: 9,
    }
    # of 7 steps those at 0, 1/7, 2/7, 3/7 are before a half
    assert list(courses.kinds_of_steps(7, Schedule(1.0, 0.0, 0.0), 0.5).values()) == [0, 4, 3]
    assert list(courses.kinds_of_steps(7, Schedule(0.0, 0.0, 0.0), 0.5).values()) == [7, 0, 0]


def test_first_labels_trainings_are_as_long_as_those_of_the_run():
    class Arguments:
        train_batch_size, gradient_accumulation_steps, world_size = 8, 2, 1

    assert _first_labels.steps_of(Arguments, 16, 100) == 40  # passes of one step each
    assert _first_labels.steps_of(Arguments, 160, 100) == 100
    assert _first_labels.steps_of(Arguments, 1, 0) == 1


def test_a_sweep_is_computed_from_a_few_of_its_batches(monkeypatch):
    done = []
    clock = np.zeros(2)
    monkeypatch.setattr(spans, "now", lambda: clock.copy())

    def work(rows):
        done.append(list(rows))
        clock[:] += [len(rows) * 10 + 1, len(rows)]  # each row has 10 tokens: 1 s a token, 1 s a batch

    found = spans.sweep(np.full(60, 10), 10, work)
    assert len(done) == 1  # after one that takes long, no other one
    assert found.tolist() == [6 * 101, 60]
    # one batch alone stands for the others by its size: the middle one of 30, 20 and 10 tokens a row
    found = spans.sweep(np.repeat([10, 20, 30], 10), 10, work)
    assert (done[-1], found.tolist()) == (list(range(10, 20)), [101 * 600 / 200, 30])
    assert spans.sweep(np.zeros(0), 10, work).tolist() == [0, 0]


def test_spans_sum_and_are_shown():
    made = [
        Span("preparation", "features", 10, np.array([2.0, 1.0])),
        Span("training", "steps: a", 30, np.array([2.0, 1.0])),
        Span("training", "steps: b", 30, np.array([1.0, 1.0]), at_most=True),
    ]
    found = Estimate("cpu", [], [], steps=60, seconds_per_step=1.5, spans=made)
    assert (found.seconds, found.cpu_seconds) == (90.0, 60.0)
    assert found.seconds_by_part == {"preparation": 20.0, "training": 90.0}
    assert found.sentence() == (
        "at most 1.5 minutes of training (60 steps of 1.5 seconds), at most 1.8 minutes in all "
        "(preparation about 20.0 seconds), about 0.00 GiB of memory at the peak"
    )
    columns = {column.header: list(column.cells) for column in time_table(found).columns}
    assert columns["minutes"] == ["0.33", "1.00", "≤ 0.50", "≤ 1.83"]
    assert columns["times"] == ["10", "30", "30", ""]
