import re

import pytest
from _tiny_trainer import make_trainer

from hf_llm_recipes.callbacks.early_stopping import EarlyStopping
from hf_llm_recipes.errors import RecipeError

WATCH = {
    "eval_strategy": "steps",
    "eval_steps": 1,
    "save_strategy": "steps",
    "save_steps": 1,
    "load_best_model_at_end": True,
    "metric_for_best_model": "loss",
}


@pytest.mark.parametrize(("patience", "steps"), [(1, 2), (2, 3)])
def test_it_stops_after_so_many_evaluations_without_improvement(tmp_path, patience, steps):
    trainer = make_trainer(
        tmp_path, [EarlyStopping(patience)], max_steps=9, learning_rate=0.0, **WATCH
    )  # the loss stays 1
    trainer.train()
    assert trainer.state.global_step == steps


def test_an_improvement_below_the_threshold_is_none(tmp_path):
    # w goes 0, 0.2, 0.36: the loss after the steps is 0.64, 0.4096, 0.2621…
    slow = {**WATCH, "learning_rate": 0.1, "max_steps": 3}
    trainer = make_trainer(tmp_path / "a", [EarlyStopping(1, 0.25)], **slow)
    trainer.train()
    assert trainer.state.global_step == 2
    trainer = make_trainer(tmp_path / "b", [EarlyStopping(1, 0.1)], **slow)
    trainer.train()
    assert trainer.state.global_step == 3


def test_its_counter_survives_a_resume(tmp_path):
    arguments = {**WATCH, "learning_rate": 0.0, "restore_callback_states_from_checkpoint": True}
    make_trainer(tmp_path, [EarlyStopping(3)], **{**arguments, "max_steps": 3}).train()
    stopper = EarlyStopping(3)
    trainer = make_trainer(tmp_path, [stopper], **{**arguments, "max_steps": 9})
    trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    assert trainer.state.global_step == 4  # three evaluations after the first


@pytest.mark.parametrize(
    ("without", "said"),
    [
        ({"load_best_model_at_end"}, "load_best_model_at_end: true"),
        ({"load_best_model_at_end", "metric_for_best_model"}, "metric_for_best_model: loss"),
        ({"load_best_model_at_end", "eval_strategy"}, "load_best_model_at_end: true, eval_strategy: steps"),
    ],
)
def test_nothing_to_watch_says_what_to_add(tmp_path, without, said):
    trainer = make_trainer(
        tmp_path, [EarlyStopping()], **{k: v for k, v in WATCH.items() if k not in without}
    )
    with pytest.raises(
        RecipeError, match=f"nothing to watch\n  do: under `trainer:` add .*{re.escape(said)}"
    ):
        trainer.train()


@pytest.mark.parametrize(("patience", "threshold"), [(0, 0.0), (-1, 0.0), (1, -0.1)])
def test_values_below_their_bound(patience, threshold):
    with pytest.raises(ValueError, match=r"early_stopping_patience is .* \(allowed: 1 or more\)"):
        EarlyStopping(patience, threshold)
