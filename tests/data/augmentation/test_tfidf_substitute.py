"""Chances and draws worked by hand on a pool of four rows.

Eleven words; ``the`` is in three rows of four (IDF ln 4/3 = .2877) and occurs four times; each of the
seven others is in one row (IDF ln 4 = 1.3863) and occurs once. S = frequency · IDF is 4/11 · .2877 = .1046
for ``the`` and 1/11 · 1.3863 = .1260 for each other: max S − S is 0 for all but ``the``.
"""

import numpy as np
import pytest
from _augmented import Scripted, fitted, pool_of, words

from hf_llm_recipes.data.augmentation.tfidf_substitute import TfidfSubstitute

pytest_plugins = ["_augmented_tokenizer"]

TEXTS = ["the ball team", "the soup salt", "the the song", "a drum"]


@pytest.fixture
def view(tokenizer):
    return fitted(TfidfSubstitute(rate=0.15), pool_of(tokenizer, {"text": TEXTS}))


@pytest.mark.parametrize(
    "text,chances",
    [
        # s = .0959 .4621 .4621, C − s = .3662 0 0, Z = .1221: .15 · 3
        ("the ball team", [0.45, 0, 0]),
        # s = .1918 .1918 .4621, C − s = .2703 .2703 0, Z = .1802: .15 · 3/2
        ("the the song", [0.225, 0.225, 0]),
        ("ball team", [0.15, 0.15]),  # nothing to choose between them
        ("the good", [0.3, 0]),  # a word that the pool lacks is as rare as the rarest
        # C − s = 0 but for one of eight: .15 · 8 is cut to 1
        ("the ball team soup salt song a drum", [1, 0, 0, 0, 0, 0, 0, 0]),
    ],
)
def test_chances_fall_with_tfidf(tokenizer, view, text, chances):
    ids = np.asarray(tokenizer(text, add_special_tokens=False).input_ids)
    assert view._chances(ids) == pytest.approx(chances)


def test_keywords_stay_and_the_unimportant_is_drawn(tokenizer, view):
    row = dict(tokenizer("ball team"))
    changed = view(row, 0, Scripted([0.1, 0.2, 0.999]))
    assert words(tokenizer, changed) == ["[CLS]", "the", "team", "[SEP]"]
    row = dict(tokenizer("the ball team"))
    assert view(row, 0, Scripted([0.46, 0.0, 0.0]))["input_ids"] == row["input_ids"]


def test_where_all_words_matter_alike_all_are_drawn_alike(tokenizer):
    pool = pool_of(tokenizer, {"text": ["the ball team"]})
    view = fitted(TfidfSubstitute(rate=0.5), pool)
    changed = view(pool.features[0], 0, Scripted([0.4, 0.6, 0.4, 0.99, 0.4]))
    assert words(tokenizer, changed) == ["[CLS]", "team", "ball", "ball", "[SEP]"]
