"""What the tests of augmentation share: a pool, rows, and chance that is written down."""

import numpy as np
from datasets import Dataset

from hf_llm_recipes.data.augmentation.base import Pool


class Scripted:
    """A generator whose draws are given; ``random`` and ``uniform`` share one list."""

    def __init__(self, random=(), integers=()):
        self._random, self._integers = list(random), list(integers)

    def random(self, count):
        taken, self._random = self._random[:count], self._random[count:]
        assert len(taken) == count
        return np.asarray(taken)

    def uniform(self, low, high):
        value = self._random.pop(0)
        assert low <= value <= high
        return value

    def integers(self, low, high=None):
        value = self._integers.pop(0)
        assert (0 <= value < low) if high is None else (low <= value < high)
        return value


def pool_of(tokenizer, columns, seed=0):
    """A pool of rows with the columns ``text`` and, for pairs, ``second``."""
    rows = Dataset.from_dict(columns)

    def encode(some):
        texts = [list(some[name]) for name in ("text", "second") if name in some.column_names]
        return Dataset.from_dict(dict(tokenizer(*texts)))

    return Pool(features=encode(rows), rows=rows, processor=tokenizer, encode=encode, seed=seed)


def words(tokenizer, row):
    return tokenizer.convert_ids_to_tokens(row["input_ids"])


def fitted(view, pool):
    view.fit(pool)
    return view
