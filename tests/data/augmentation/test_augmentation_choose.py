"""Which augmentations there are, which fit a task's rows, and one of several a row."""

import numpy as np
import pytest

from hf_llm_recipes.data.augmentation._choose import OneOf, check_kinds, default_views
from hf_llm_recipes.data.augmentation.column import Column
from hf_llm_recipes.data.augmentation.cutoff import Cutoff
from hf_llm_recipes.data.augmentation.cutout import Cutout
from hf_llm_recipes.data.augmentation.delete import Delete
from hf_llm_recipes.data.augmentation.infill import Infill
from hf_llm_recipes.data.augmentation.mask import Mask
from hf_llm_recipes.data.augmentation.noise import Noise
from hf_llm_recipes.data.augmentation.rotate import Rotate
from hf_llm_recipes.data.augmentation.shift import Shift
from hf_llm_recipes.data.augmentation.substitute import Substitute
from hf_llm_recipes.data.augmentation.swap import Swap
from hf_llm_recipes.data.augmentation.tfidf_substitute import TfidfSubstitute
from hf_llm_recipes.registry import AUGMENTATIONS

IN_PLACE = {
    "cutoff": Cutoff,
    "infill": Infill,
    "mask": Mask,
    "substitute": Substitute,
    "tfidf_substitute": TfidfSubstitute,
}
MOVING = {"column": Column, "delete": Delete, "swap": Swap}
IMAGE = {"cutout": Cutout, "noise": Noise, "rotate": Rotate, "shift": Shift}


def test_every_registered_name_is_one_of_ours():
    assert {n: AUGMENTATIONS.get(n) for n in AUGMENTATIONS.names()} == IN_PLACE | MOVING | IMAGE


def test_each_says_what_rows_it_fits():
    assert {cls.kind for cls in (IN_PLACE | MOVING).values()} == {"text"}
    assert {cls.kind for cls in IMAGE.values()} == {"image"}
    assert all(cls.keeps_length for cls in (IN_PLACE | IMAGE).values())
    assert not any(cls.keeps_length for cls in MOVING.values())


@pytest.mark.parametrize(
    ("kind", "expected"), [("text", [Substitute(), Cutoff()]), ("image", [Shift(), Rotate(), Cutout()])]
)
def test_the_views_of_a_recipe_that_names_none(kind, expected):
    views = default_views(kind)
    assert views == expected
    assert default_views(kind)[0] is not views[0]
    check_kinds(views, kind, same_length=kind == "text")


def test_views_that_fit_pass():
    check_kinds([Substitute(), Delete(), Swap(), Column(column="other")], "text", same_length=False)
    check_kinds([Mask(), Cutoff()], "text", same_length=True)
    check_kinds([Noise()], "image", same_length=False)
    check_kinds([], "text", same_length=True)


@pytest.mark.parametrize(
    ("view", "kind", "same_length", "reason", "allowed"),
    [
        (Rotate(), "text", False, "the rows are texts", IN_PLACE | MOVING),
        (Rotate(), "text", True, "the rows are texts", IN_PLACE),
        (TfidfSubstitute(), "image", False, "the rows are images", IMAGE),
        (Delete(), "image", False, "the rows are images", IMAGE),
        (Delete(), "text", True, "it moves tokens", IN_PLACE),
        (Swap(), "text", True, "it moves tokens", IN_PLACE),
        (Column(column="other"), "text", True, "it moves tokens", IN_PLACE),
    ],
)
def test_a_view_that_does_not_fit_is_named_with_those_that_do(view, kind, same_length, reason, allowed):
    fitting = default_views(kind)
    with pytest.raises(ValueError) as raised:
        check_kinds([*fitting, view], kind, same_length=same_length)
    named = next(n for n, cls in (IN_PLACE | MOVING | IMAGE).items() if isinstance(view, cls))
    message = str(raised.value)
    assert message.startswith(f"augmentation {named} does not fit: {reason}")
    assert message.endswith(f"allowed: {', '.join(sorted(allowed))}")


class Named:
    """A view that says who made it."""

    def __init__(self, name):
        self.name = name

    def __call__(self, row, index, random):
        return {**row, "by": self.name, "index": index, "draw": random.random()}


def test_one_of_takes_each_view_as_often_as_the_others():
    from scipy.stats import binom

    one_of, random = OneOf([Named("a"), Named("b"), Named("c")]), np.random.default_rng(0)
    made = [one_of({"x": 1}, i, random) for i in range(3000)]
    assert [row["index"] for row in made] == list(range(3000))
    low, high = binom.interval(1 - 1e-6, 3000, 1 / 3)
    for name in "abc":
        assert low <= sum(row["by"] == name for row in made) <= high


def test_one_of_draws_choice_and_view_from_the_same_generator():
    one_of = OneOf([Named("a"), Named("b")])
    made = [one_of({}, 0, np.random.default_rng(4)) for _ in range(2)]
    assert made[0] == made[1]


def test_one_of_none():
    with pytest.raises(ValueError, match=r"no augmentation to choose from; allowed: one or more"):
        OneOf([])
