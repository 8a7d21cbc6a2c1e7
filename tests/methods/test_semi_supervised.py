import copy
import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from hf_llm_recipes.algorithms.base import Given
from hf_llm_recipes.errors import DataError, InterruptedRunError, RecipeError
from hf_llm_recipes.methods import _semi_trainer
from hf_llm_recipes.methods._semi_trainer import Schedule, SemiSupervisedTrainer
from hf_llm_recipes.methods.semi_supervised import SemiSupervised
from hf_llm_recipes.recipe import Recipe
from hf_llm_recipes.registry import ALGORITHMS
from hf_llm_recipes.run import run

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")
FIT = {
    "data": {"labels_per_class": 4},
    "method": {"name": "semi_supervised"},
    "algorithm": {"name": "fixmatch"},
}


@pytest.fixture
def semi(recipe, tmp_path, monkeypatch):
    """Recipe values: 12 labeled rows of 3 classes and a pool; nothing is cached outside the test."""
    monkeypatch.setenv("HF_LLM_RECIPES_CACHE", str(tmp_path / "cache"))

    def make(**sections):
        values = json.loads(json.dumps(recipe))
        for key, value in [*FIT.items(), *sections.items()]:
            if isinstance(value, dict):
                values[key] = {**(values.get(key) or {}), **value}
            else:
                values[key] = value
        return Recipe.from_dict(values)

    return make


@pytest.fixture
def trainers(monkeypatch):
    """Every trainer that is built, in order."""
    made = []
    init = SemiSupervisedTrainer.__init__

    def remember(self, **keys):
        made.append(self)
        init(self, **keys)

    monkeypatch.setattr(SemiSupervisedTrainer, "__init__", remember)
    return made


def weights(folder):
    found = {}
    for file in sorted(folder.glob("*.safetensors")):
        found |= load_file(file)
    return found


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_the_schedule_waits_then_grows_then_stays():
    schedule = Schedule(weight=2.0, warmup=0.1, ramp=0.4)
    assert schedule.at(0.05) == 0.0
    assert schedule.at(0.1) == pytest.approx(2 * np.exp(-5))
    assert schedule.at(0.3) == pytest.approx(2 * np.exp(-5 * 0.25))
    assert schedule.at(0.5) == schedule.at(1.0) == pytest.approx(2.0)
    assert Schedule(2.0, 0.1, 0.0).at(0.1) == 2.0


@pytest.mark.parametrize("name", ALGORITHMS.names())
def test_every_algorithm_trains_and_says_what_it_exported(semi, name):
    sections = {"method": {"warm_start_fraction": 0.25}, "trainer": {"logging_steps": 1}}
    done = run(semi(algorithm={"name": name}, **sections))
    method = done.metrics["method"]
    assert method["exported"] == (
        "student" if name in ("pi_model", "vat", "mixtext", "jointmatch") else "teacher"
    )
    assert done.metrics["reload"]["logits_max_difference"] < 1e-5
    assert sum(method["prior"]) == pytest.approx(1, abs=1e-3)
    assert "probe" in done.metrics["baselines"]
    logged = [json.loads(line) for line in (done.path / "log.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in logged if "loss" in line]
    assert losses
    assert np.isfinite(losses).all()


def test_the_walk_finds_all_algorithms():
    assert len(ALGORITHMS.names()) == 12


class Stop(_semi_trainer.TrainerCallback):
    """A power cut: at one step a checkpoint is there and the process is not."""

    def on_save(self, args, state, control, **rest):
        if state.global_step == 5:
            raise KeyboardInterrupt


CASES = {
    "lora with dropout": {"tuning": {"name": "lora", "r": 4, "lora_dropout": 0.2}},
    "top layer over cached lower one": {
        "tuning": {"name": "lora", "r": 4, "target_modules": ["query", "value"], "layers_to_transform": [1]},
        "method": {"reuse_lower_layers": True},
    },
    "4-bit": {"tuning": {"name": "lora", "r": 4}, "quantization": {"load_in_4bit": True}},
    "accumulation and epochs": {"trainer": {"gradient_accumulation_steps": 2, "logging_steps": 1}},
    "flexmatch": {"algorithm": {"name": "flexmatch", "threshold": 0.4}},
    "mixtext": {"algorithm": {"name": "mixtext"}},
    "jointmatch": {"algorithm": {"name": "jointmatch", "threshold": 0.4}},
    "softmatch with a worker that lasts, over accumulated batches": {
        "algorithm": {"name": "softmatch"},
        "trainer": {
            "dataloader_num_workers": 1,
            "dataloader_persistent_workers": True,
            "gradient_accumulation_steps": 2,
        },
    },
    "a stage before full fine-tuning": {"stages": [{"name": "contrastive", "max_steps": 2, "batch_size": 8}]},
}


@pytest.mark.parametrize("case", CASES)
def test_a_killed_run_goes_on_to_the_same_bits(semi, case, tmp_path, monkeypatch):
    sections = copy.deepcopy(CASES[case])
    sections["trainer"] = {
        "max_steps": 8,
        "save_steps": 5,
        "save_strategy": "steps",
        **sections.get("trainer", {}),
    }
    sections["method"] = {"warm_start_fraction": 0.3, **sections.get("method", {})}
    whole = run(semi(**sections, output=str(tmp_path / "whole")))
    killed = semi(**sections, output=str(tmp_path / "killed"))
    init = SemiSupervisedTrainer.__init__
    with monkeypatch.context() as patch:
        patch.setattr(
            SemiSupervisedTrainer,
            "__init__",
            lambda self, **keys: (init(self, **keys), self.add_callback(Stop()))[0],
        )
        with pytest.raises((KeyboardInterrupt, InterruptedRunError)):
            run(killed)
    done = run(semi(**sections, output=str(tmp_path / "killed"), resume=True))
    assert same(weights(whole.path / "model"), weights(done.path / "model"))
    assert done.metrics["test"]["accuracy"] == whole.metrics["test"]["accuracy"]
    assert done.metrics["method"] == whole.metrics["method"]
    assert done.metrics.get("baselines") == whole.metrics.get("baselines")
    for figures in (*done.metrics.get("stages", []), *whole.metrics.get("stages", [])):
        figures.pop("seconds")
    assert done.metrics.get("stages") == whole.metrics.get("stages")
    assert ("stages" in done.metrics) == ("stages" in sections)


def logged_losses(done):
    lines = [json.loads(line) for line in (done.path / "log.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if "loss" in line], [
        line["grad_norm"] for line in lines if "grad_norm" in line
    ]


@pytest.fixture
def no_dropout(tiny_bert, tmp_path):
    import shutil

    folder = tmp_path / "dry"
    shutil.copytree(tiny_bert, folder)
    config = json.loads((folder / "config.json").read_text())
    config |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_batches_of_eight_equal_eight_of_one(semi, no_dropout, tmp_path):
    """FixMatch looks at each row alone, so how the step is cut into batches must not matter."""
    found = []
    for batch, accumulation in ((8, 1), (1, 8)):
        done = run(
            semi(
                model={"name": str(no_dropout)},
                output=str(tmp_path / f"b{batch}"),
                algorithm={"name": "fixmatch", "threshold": 0.34},
                method={"warm_start": "none", "warmup_fraction": 0.0, "guard": False},
                trainer={
                    "per_device_train_batch_size": batch,
                    "gradient_accumulation_steps": accumulation,
                    "max_steps": 3,
                    "logging_steps": 1,
                },
            )
        )
        assert done.metrics["method"]["strong_rows_computed"] > 0
        found.append(logged_losses(done))
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-4)
    assert found[0][1] == pytest.approx(found[1][1], rel=1e-3)


def test_rows_of_weight_zero_are_not_computed_and_the_loss_is_the_same(semi, no_dropout, tmp_path, trainers):
    """The economy against the plain computation: every strong row, weights of zero and all."""
    run(
        semi(
            model={"name": str(no_dropout)},
            method={"warm_start": "none"},
            trainer={"max_steps": 1},
            task={"name": "text_classification"},
        )
    )
    trainer = trainers[0]
    batch = next(iter(trainer.get_train_dataloader()))["unlabeled"]
    count = len(batch["rows"])
    torch.manual_seed(0)
    target = torch.softmax(torch.randn(count, 3), -1)
    weight = torch.arange(count).remainder(3).eq(0).float() * 0.7
    guess = _semi_trainer.Guess(target, weight)
    trainer.model.train()
    found = {}
    seen = []
    forward = trainer.model.forward
    trainer.model.forward = lambda **keys: (seen.append(len(keys["input_ids"])), forward(**keys))[1]
    loss = trainer._view_loss(trainer.model, batch, guess, torch.arange(count), warm=False)
    loss.backward()
    found = {n: p.grad.clone() for n, p in trainer.model.named_parameters() if p.grad is not None}
    trainer.model.forward = forward
    assert seen == [int(weight.gt(0).sum())]
    trainer.model.zero_grad()
    inputs = {k: v for k, v in batch["strong"].items() if k != "labels"}
    plain = trainer.algorithm.loss(trainer.model(**inputs).logits, guess, count)
    plain.backward()
    assert loss.item() == pytest.approx(plain.item(), rel=1e-6)
    for name, parameter in trainer.model.named_parameters():
        if parameter.grad is not None:
            assert torch.allclose(found[name], parameter.grad, rtol=1e-4, atol=1e-7), name


def test_teacher_logits_in_pieces_are_those_of_the_whole_batch(semi, trainers):
    run(semi(method={"warm_start": "none"}, trainer={"max_steps": 1}))
    trainer = trainers[0]
    batch = next(iter(trainer.get_train_dataloader()))["unlabeled"]
    found = trainer._teacher_logits(trainer.model, batch["weak"], batch["rows"])
    trainer.model.eval()
    with trainer.teacher.swapped(), torch.no_grad():
        expected = trainer.model(**batch["weak"]).logits
    assert torch.allclose(found, expected, atol=1e-6)
    assert not found.requires_grad


def test_weight_zero_never_touches_the_pool(semi, trainers, monkeypatch):
    monkeypatch.setattr(SemiSupervisedTrainer, "_unlabeled_loss", lambda *given: pytest.fail("touched"))
    done = run(semi(method={"weight": 0.0}))
    assert done.metrics["method"]["unlabeled_rows_seen"] == 0


def test_student_and_teacher_are_both_evaluated(semi):
    done = run(
        semi(
            trainer={"eval_strategy": "steps", "eval_steps": 2, "save_strategy": "steps", "save_steps": 2}
            | {"load_best_model_at_end": True, "metric_for_best_model": "accuracy"}
        )
    )
    lines = [json.loads(line) for line in (done.path / "log.jsonl").read_text().splitlines()]
    assert sum("eval_accuracy" in line for line in lines) == 2
    assert sum("eval_student_accuracy" in line for line in lines) == 2
    assert done.metrics["training"]["best_metric"] is not None
    assert "test_student" in done.metrics["method"]


@pytest.mark.parametrize("export", ["student", "teacher"])
def test_what_is_exported_is_what_is_judged(semi, export, trainers):
    done = run(semi(method={"export": export, "ema_decay": 0.9}))
    trainer = trainers[0]
    assert done.metrics["method"]["exported"] == export
    saved = weights(done.path / "model")["classifier.weight"]
    other = "teacher" if export == "student" else "student"
    assert torch.equal(saved, trainer.model.classifier.weight)
    with trainer.other_weights():
        assert not torch.equal(saved, trainer.model.classifier.weight)
    assert f"test_{other}" in done.metrics["method"]


def test_the_baseline_stands_beside_it(semi):
    done = run(semi(compare=True))
    comparison = json.loads((done.path / "metrics.json").read_text())["comparison"]
    baseline = json.loads((done.path / "baseline" / "metrics.json").read_text())
    assert comparison["supervised"]["accuracy"] == baseline["test"]["accuracy"]
    expected = done.metrics["test"]["accuracy"] - baseline["test"]["accuracy"]
    assert comparison["difference"] == pytest.approx(expected)
    assert baseline["training"]["steps"] == done.metrics["training"]["steps"]
    low, high = comparison["difference_95"]
    assert low <= expected <= high
    recipe = Recipe.load(done.path / "baseline" / "recipe.yaml")
    assert recipe.section("method")["name"] == "supervised"
    assert recipe.section("data")["labels_per_class"] == 4


def test_several_labels_are_items_of_two_sides(semi, tmp_path, trainers):
    import csv

    from conftest import sentences

    rows = [
        {**row, "label": row["label"] + (",old" if "old" in row["text"] else "")} for row in sentences(240)
    ]
    path = tmp_path / "several.csv"
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=["text", "label"])
        writer.writeheader()
        writer.writerows(rows)
    values = semi(
        task={"name": "text_classification", "problem": "multi_label"},
        algorithm={"name": "fixmatch", "threshold": 0.6},
    )
    values.values["data"] = {"name": str(path), "train": "train[:60]", "unlabeled": "train[60:200]"}
    values.values["data"] |= {"test": "train[200:]", "pool_overlap": "drop", "eval_fraction": 0}
    values.values["method"]["guard"] = False  # so new a model says no everywhere, and would be waited for
    done = run(values)
    assert len(done.metrics["method"]["prior"]) == 2
    assert trainers[0].computed["strong_rows"] > 0
    # of two rows and two classes: yes and no are both sure, and what is not sure counts nothing
    logits = torch.tensor([[3.0, -3.0], [0.3, -0.2]])
    items, rows = trainers[0].task.items(logits, {})
    guess = trainers[0].algorithm.guess(Given(items, items[:0], rows[:0], rows, trainers[0].prior_C))
    assert guess.weight_U.tolist() == [1.0, 1.0, 0.0, 0.0]  # sigmoid(.3) = .57 < .6
    assert guess.target_UC[:2].tolist() == [[0.0, 1.0], [1.0, 0.0]]


def test_labeled_rows_held_out_in_turn_decide_about_the_pool(semi):
    done = run(semi(method={"guard": "cross_fit"}, trainer={"max_steps": 2}))
    found = done.metrics["method"]["cross_fit"]
    assert (found["metric"], found["folds"], found["rows"]) == ("accuracy", 3, 12)
    used = done.metrics["method"]["unlabeled_rows_seen"] > 0
    assert used == (found["semi_supervised"] >= found["supervised"])
    assert not list(done.path.rglob("lower_layers"))


def bad(semi, match, kind=RecipeError, **sections):
    with pytest.raises(kind, match=match):
        run(semi(**sections))


def test_a_pool_is_needed(semi):
    values = semi()
    values.values["data"].pop("labels_per_class")
    with pytest.raises(DataError, match="there are no unlabeled rows"):
        run(values)


def test_a_class_without_a_label_cannot_be_guessed_from_features(semi):
    labels = {"labels": ["sport", "food", "music", "science"]}
    bad(semi, "no labeled row of class 'science': nothing can be guessed of it", DataError, task=labels)
    done = run(semi(task=labels, method={"warm_start": "none"}))
    notes = json.loads((done.path / "environment.json").read_text())["notes"]
    assert any("no row of class science: no row of the pool can be taken for one" in note for note in notes)


def test_a_pool_smaller_than_a_batch_is_refused(semi):
    bad(semi, "the pool has 20 rows, fewer than a batch of 24", DataError, data={"unlabeled_limit": 20})


def test_algorithms_that_do_not_fit_are_refused_with_those_that_do(semi):
    bad(
        semi,
        "FlexMatch does not fit a multi_label task; allowed: fixmatch, mean_teacher",
        task={"problem": "multi_label"},
        algorithm={"name": "flexmatch"},
        data={
            "labels_per_class": None,
            "unlabeled": "train[:100]",
            "train": "train[100:]",
            "pool_overlap": "drop",
        },
    )


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("unlabeled_ratio", 0, "unlabeled_ratio is 0; allowed: more than 0"),
        ("weight", -1.0, "weight is -1.0; allowed: 0.0 or more"),
        ("ema_decay", 1.0, "ema_decay is 1.0; allowed: 0.0 or more, less than 1.0"),
        ("warm_start_fraction", 1.5, "warm_start_fraction is 1.5; allowed: 0.0 or more, at most 1.0"),
        ("warmup_fraction", 1.0, "less than 1.0"),
        ("prior", [0.5, 0.4], "positive shares that sum to 1"),
    ],
)
def test_values_out_of_range_are_refused(key, value, message):
    with pytest.raises(ValueError, match=message):
        SemiSupervised(**{key: value})


def test_keys_that_do_not_go_together_are_refused(semi):
    bad(semi, "the student is its own teacher", method={"teacher": "student", "export": "teacher"})
    bad(semi, "prior has 2 shares; allowed: 3", method={"prior": [0.5, 0.5]})
    bad(semi, "train_sampling_strategy has no effect", trainer={"train_sampling_strategy": "group_by_length"})
    bad(semi, "algorithm has no effect with this method", method={"name": "supervised"})
    bad(semi, "two students teach each other", algorithm={"name": "jointmatch"}, method={"teacher": "ema"})
    bad(semi, "the lowest layer is trained", method={"reuse_lower_layers": True})
    bad(semi, r"unknown algorithm `softmach` \(did you mean `softmatch`", algorithm={"name": "softmach"})


def test_compare_needs_something_to_compare(recipe):
    with pytest.raises(RecipeError, match="this run is the supervised baseline"):
        run(Recipe.from_dict({**recipe, "compare": True}))


@pytest.fixture
def tagged(tiny_bert, tmp_path, monkeypatch):
    """A recipe that tags words, by number of labeled rows and keys of its method."""
    monkeypatch.setenv("HF_LLM_RECIPES_CACHE", str(tmp_path / "cache"))
    from conftest import sentences

    topics = {"ball", "team", "goal", "coach", "match", "score"}
    rows = [
        {
            "tokens": (words := row["text"].split()),
            "label": ["B-SPORT" if w in topics else "O" for w in words],
        }
        for row in sentences(120)
    ]
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in rows))

    def make(labeled=20, steps=6, **method):
        return Recipe.from_dict(
            {
                "output": str(tmp_path / "out"),
                "model": {"name": str(tiny_bert)},
                "data": {
                    "name": str(path),
                    "train": f"train[:{labeled}]",
                    "unlabeled": f"train[{labeled}:90]",
                    "test": "train[90:]",
                    "eval_fraction": 0,
                    "pool_overlap": "drop",
                },
                "task": {"name": "token_classification"},
                "method": {"name": "semi_supervised", "warmup_fraction": 0.0, **method},
                "algorithm": {"name": "fixmatch", "threshold": 0.6},
                "trainer": {"max_steps": steps, "learning_rate": 1e-2, "use_cpu": True, "disable_tqdm": True},
            }
        )

    return make


def test_words_are_items_and_keep_their_place(tagged, trainers):
    done = run(tagged(guard=True))
    assert trainers[0].computed["strong_rows"] > 0
    assert len(done.metrics["method"]["prior"]) == 2
    assert "cross_fit" not in done.metrics["method"]


def test_for_tags_held_out_rows_decide_unless_told_otherwise(tagged):
    found = run(tagged(steps=2)).metrics["method"]["cross_fit"]
    assert (found["metric"], found["folds"], found["rows"]) == ("f1", 3, 20)


def test_few_tagged_rows_are_not_held_out_and_it_is_said(tagged, caplog):
    method = run(tagged(labeled=11, steps=2)).metrics["method"]
    assert "cross_fit" not in method
    assert "11 labeled rows are too few to hold some out" in caplog.text


def test_one_class_a_row_needs_no_such_comparison(semi):
    assert "cross_fit" not in run(semi(trainer={"max_steps": 2})).metrics["method"]


def test_views_that_move_words_are_refused_for_tags(semi):
    from hf_llm_recipes.data.augmentation._choose import check_kinds
    from hf_llm_recipes.data.augmentation.delete import Delete

    with pytest.raises(ValueError, match="it moves tokens"):
        check_kinds([Delete()], "text", same_length=True)


def test_images_have_views_of_their_own(tmp_path, monkeypatch, trainers):
    monkeypatch.setenv("HF_LLM_RECIPES_CACHE", str(tmp_path / "cache"))
    from datasets import ClassLabel, Dataset, Features, Image

    random = np.random.default_rng(0)
    images = [np.full((8, 8), 60 + 120 * (i % 2), dtype=np.uint8) for i in range(60)]
    images = [image + random.integers(0, 20, image.shape, dtype=np.uint8) for image in images]
    features = Features({"image": Image(), "label": ClassLabel(names=["dark", "bright"])})
    data = Dataset.from_dict({"image": images, "label": [i % 2 for i in range(60)]}, features=features)
    data.save_to_disk(str(tmp_path / "data"))
    done = run(
        Recipe.from_dict(
            {
                "output": str(tmp_path / "out"),
                "model": {
                    "architecture": "hlr_vision",
                    "config": {
                        "image_size": 8,
                        "patch_size": 4,
                        "num_channels": 1,
                        "hidden_size": 16,
                        "num_hidden_layers": 1,
                        "num_attention_heads": 2,
                        "intermediate_size": 32,
                    },
                },
                "data": {"name": str(tmp_path / "data"), "labels_per_class": 5, "eval_fraction": 0},
                "task": {"name": "image_classification"},
                "method": {"name": "semi_supervised", "warm_start": "none", "warmup_fraction": 0.0},
                "algorithm": {"name": "softmatch"},
                "trainer": {
                    "max_steps": 4,
                    "per_device_train_batch_size": 4,
                    "use_cpu": True,
                    "disable_tqdm": True,
                },
            }
        )
    )
    views = [type(view).__name__ for view in trainers[0].streams.strong.views]
    assert views == ["Shift", "Rotate", "Cutout"]
    assert done.metrics["method"]["exported"] == "teacher"


def test_a_stage_comes_first(semi, trainers, monkeypatch):
    from hf_llm_recipes.stages.contrastive import Contrastive

    order = []
    stage_run, build = Contrastive.run, SemiSupervised.build
    monkeypatch.setattr(
        Contrastive, "run", lambda self, parts: (order.append("stage"), stage_run(self, parts))[1]
    )
    monkeypatch.setattr(
        SemiSupervised, "build", lambda self, parts: (order.append("method"), build(self, parts))[1]
    )
    done = run(semi(stages=[{"name": "contrastive", "max_steps": 2, "batch_size": 8}]))
    assert order == ["stage", "method"]
    assert done.metrics["stages"][0]["steps"] == 2


def test_states_of_frozen_layers_do_not_outlive_the_training(semi, tmp_path, trainers):
    tuning = {"name": "lora", "r": 4, "target_modules": ["query", "value"], "layers_to_transform": [1]}
    seen = []
    discard = SemiSupervisedTrainer._discard_lower_states

    def look(self):
        seen.extend(file.stat().st_size for file in self.lower.directory.rglob("*") if file.is_file())
        discard(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SemiSupervisedTrainer, "_discard_lower_states", look)
        done = run(semi(tuning=tuning, method={"reuse_lower_layers": True}))
    assert sum(seen) > 0
    assert not list(done.path.rglob("lower_layers"))
    assert not list((tmp_path / "cache").rglob("lower_layers"))
