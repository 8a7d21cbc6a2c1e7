"""What holds for every algorithm of the folder."""

import io

import pytest
import torch
from _given import LinearForward, given, logits

from hf_llm_recipes.algorithms.base import Guess
from hf_llm_recipes.registry import ALGORITHMS

NAMES = ALGORITHMS.names()
THROUGH = {"vat", "mixtext"}
VIEWS = sorted(set(NAMES) - THROUGH)
ROWS, CLASSES = 12, 3


def started(name):
    torch.manual_seed(0)
    algorithm = ALGORITHMS.get(name)()
    algorithm.start(CLASSES, ROWS)
    return algorithm


def step(number, items=6):
    """Some step's ``Given``: probabilities from a seeded generator, sharp enough to pass thresholds."""
    random = torch.Generator().manual_seed(number)
    draw = lambda rows: torch.softmax(4 * torch.randn(rows, CLASSES, generator=random), -1).tolist()  # noqa: E731
    rows = torch.randperm(ROWS, generator=random)[:items].tolist()
    return given(
        draw(items),
        labeled=draw(4),
        labels=[0, 1, 2, 0],
        rows=rows,
        prior=[0.5, 0.25, 0.25],
        progress=number / 10,
        peer=draw(items),
    )


def model():
    """Six unlabeled rows and four labeled of two tokens."""
    tokens = torch.randn(10, 2, 5, generator=torch.Generator().manual_seed(1))
    weight = torch.randn(CLASSES, 5, generator=torch.Generator().manual_seed(2))
    return LinearForward(tokens, torch.ones(10, 2), weight.requires_grad_(True))


def test_there_are_twelve():
    assert len(NAMES) == 12
    papers = {"pseudo_label", "pi_model", "mean_teacher", "vat", "uda", "mixtext", "fixmatch", "flexmatch"}
    assert set(NAMES) == papers | {"adamatch", "freematch", "softmatch", "jointmatch"}


@pytest.mark.parametrize("name", NAMES)
def test_the_class_says_what_it_needs(name):
    algorithm = started(name)
    assert algorithm.teacher in ("ema", "student")
    assert (algorithm.teacher == "student") == (name in {"pi_model", "vat", "mixtext"})
    assert algorithm.through_model == (name in THROUGH)
    assert algorithm.strong_view == (name not in {"pseudo_label", "pi_model", "vat", "mixtext"})
    assert algorithm.students == (2 if name == "jointmatch" else 1)
    assert "single_label" in algorithm.problems
    assert set(algorithm.problems) <= {"single_label", "multi_label", "tokens"}


def test_the_problems_that_each_one_fits():
    fits = {name: ALGORITHMS.get(name).problems for name in NAMES}
    every = {name for name in NAMES if fits[name] == ("single_label", "multi_label", "tokens")}
    assert every == {"pseudo_label", "pi_model", "mean_teacher", "uda", "fixmatch"}
    assert {name for name in NAMES if fits[name] == ("single_label", "tokens")} == {"adamatch", "softmatch"}


@pytest.mark.parametrize("name", NAMES)
def test_a_guess_is_detached_probabilities_and_weights(name):
    some = step(1)
    some.weak_UC.requires_grad_(True)
    guess = started(name).guess(some)
    assert guess.target_UC.shape == (6, CLASSES)
    assert guess.target_UC.dtype == guess.weight_U.dtype == torch.float32
    assert torch.allclose(guess.target_UC.sum(-1), torch.ones(6))
    assert guess.weight_U.shape == (6,)
    assert (guess.weight_U >= 0).all()
    assert guess.weight_U.sum() > 0
    assert not guess.target_UC.requires_grad
    assert not guess.weight_U.requires_grad
    assert all(isinstance(value, float) for value in guess.stats.values())


@pytest.mark.parametrize("name", VIEWS)
def test_the_gradient_reaches_the_strong_logits_and_not_the_teachers(name):
    algorithm, some = started(name), step(1)
    for teacher in (some.weak_UC, some.peer_UC, some.labeled_BC):
        teacher.requires_grad_(True)
    guess = algorithm.guess(some)
    strong = torch.zeros(6, CLASSES, requires_grad=True)
    algorithm.loss(strong, guess, 6).backward()
    counts = guess.weight_U > 0
    moved = strong.grad.abs().sum(-1) > 0
    assert torch.equal(moved, counts)
    assert some.weak_UC.grad is None
    assert some.peer_UC.grad is None
    assert some.labeled_BC.grad is None


@pytest.mark.parametrize("name", sorted(THROUGH))
def test_the_gradient_reaches_the_model_and_not_the_teacher(name):
    algorithm, some, forward = started(name), step(1), model()
    some.weak_UC.requires_grad_(True)
    algorithm.loss_through(forward, some, algorithm.guess(some)).backward()
    assert forward.weight.grad.abs().sum() > 0
    assert some.weak_UC.grad is None


@pytest.mark.parametrize("name", VIEWS)
def test_leaving_out_items_of_weight_zero_changes_nothing(name):
    """To the last bit: two items count, and a sum of two has no order."""
    algorithm, some = started(name), step(1)
    target = algorithm.guess(some).target_UC
    guess = Guess(target, torch.tensor([0.0, 0.7, 0.0, 0.0, 0.3, 0.0]))
    strong = logits(torch.softmax(step(2).weak_UC, -1).tolist())
    kept = torch.tensor([1, 4])
    every = algorithm.loss(strong, guess, 6)
    assert every.item() != 0
    assert torch.equal(every, algorithm.loss(strong[kept], guess.keep(kept), 6))


@pytest.mark.parametrize("name", NAMES)
def test_a_resume_goes_on_with_the_same_guesses(name):
    algorithm = started(name)
    for number in range(3):
        algorithm.guess(step(number))
    file = io.BytesIO()
    torch.save(algorithm.state_dict(), file)
    file.seek(0)
    expected = [algorithm.guess(step(number)) for number in range(3, 6)]
    resumed = started(name)
    resumed.load_state_dict(torch.load(file, weights_only=True))
    for number, guess in enumerate(expected, start=3):
        again = resumed.guess(step(number))
        assert torch.equal(again.target_UC, guess.target_UC)
        assert torch.equal(again.weight_U, guess.weight_U)
        assert again.stats == guess.stats


@pytest.mark.parametrize("name", NAMES)
def test_a_second_start_forgets_the_first(name):
    algorithm = started(name)
    first = algorithm.guess(step(0))
    algorithm.guess(step(1))
    torch.manual_seed(0)
    algorithm.start(CLASSES, ROWS)
    again = algorithm.guess(step(0))
    assert torch.equal(again.target_UC, first.target_UC)
    assert torch.equal(again.weight_U, first.weight_U)


@pytest.mark.parametrize("name", NAMES)
def test_a_foreign_state_is_refused(name):
    with pytest.raises(ValueError, match="foreign"):
        started(name).load_state_dict({**started(name).state_dict(), "foreign": 1})


@pytest.mark.parametrize("name", VIEWS)
def test_half_precision_logits_are_computed_in_float32(name):
    algorithm, some = started(name), step(1)
    guess = algorithm.guess(some)
    strong = torch.zeros(6, CLASSES, dtype=torch.bfloat16, requires_grad=True)
    assert algorithm.loss(strong, guess, 6).dtype == torch.float32
