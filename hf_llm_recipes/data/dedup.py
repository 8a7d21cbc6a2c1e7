"""Rows that are in the data twice, word for word or nearly: within a split and across splits.

Notable:
- Near duplicates: MinHash (Broder 1997, https://doi.org/10.1109/SEQUEN.1997.666900) and banding
  (Leskovec, Rajaraman, Ullman, Mining of Massive Datasets, §3.4) find candidates; the similarity that
  decides is then computed exactly, so that no row is dropped by a chance of hashing.
- A row is compared with rows that stay: B like A and C like B but not like A leaves A and C.
- Held-out rows are never dropped: what is in train and in test leaves train.
- The same rows in, the same rows out: hashes and permutations are fixed. No dependency but numpy.

Shapes: N rows, K permutations, B bands.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from hf_llm_recipes.data.texts import joined_texts
from hf_llm_recipes.errors import DataError

if TYPE_CHECKING:
    from datasets import Dataset

__all__ = ["Deduplication", "Duplicate", "Duplicates", "drop_duplicates", "find_duplicates", "similarity"]

PERMUTATIONS = 128
RECALL = 0.999  # of pairs exactly at the threshold; of more alike ones it is higher
CHUNK = 1 << 15  # shingles hashed at a time: 256 kB stay in the cache
EXAMPLES = 5
UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff"  # Thai to Han: no spaces
WORD = re.compile(f"[{UNSPACED}]|(?:(?![{UNSPACED}])\\w)+|[^\\w\\s]")


@dataclass(kw_only=True)
class Deduplication:
    """The section ``data.dedup`` of a recipe; ``dedup: near`` is ``dedup: {method: near}``.

    Args:
        method: ``exact``: texts that agree without regard to case and white space. ``near``: those, and
            texts that share most runs of words.
        similarity: From which Jaccard similarity of two texts' runs of words they are one, in [0.5, 1];
            0.8 is that of Lee et al. 2022 (https://arxiv.org/abs/2107.06499, §4.2).
        words: Length of a run, ≥ 1. One changed word of a text of L words costs a similarity of about
            2 · ``words`` / L: take 2 or 3 for sentences.

    Raises:
        ValueError: a number out of range.
    """

    method: Literal["exact", "near"] = "near"
    similarity: float = 0.8
    words: int = 5

    def __post_init__(self) -> None:
        if not 0.5 <= self.similarity <= 1:
            raise ValueError(f"similarity is {self.similarity}; allowed: 0.5 to 1")
        if self.words < 1:
            raise ValueError(f"words is {self.words}; allowed: 1 or more")
        for key in ("similarity", "words"):
            if self.method == "exact" and getattr(self, key) != getattr(Deduplication, key):
                raise ValueError(f"{key} has no effect with method: exact")


@dataclass(frozen=True)
class Duplicate:
    """A row that is one that stands before it.

    Args:
        part: Its split.
        row: Its number there.
        of_part: The split of the row that stays.
        of_row: Its number there.
        similarity: 1.0 for an exact one.
    """

    part: str
    row: int
    of_part: str
    of_row: int
    similarity: float


@dataclass
class Duplicates:
    """What `find_duplicates` found.

    Args:
        pairs: Each duplicate with the row it is most like; those of held-out parts first.
        kept: Part -> the numbers of the rows that stay, ascending.
        report: ``dropped`` and ``left_in`` (held-out rows, which stay), each part -> part of the
            original -> count; ``examples``, the first pairs; JSON-able.
    """

    pairs: list[Duplicate]
    kept: dict[str, np.ndarray]
    report: dict[str, Any]


def find_duplicates(
    parts: Mapping[str, Sequence[str]], rules: Deduplication, *, held_out: Collection[str] = ()
) -> Duplicates:
    """Returns the rows of each part that another row stands for already.

    A row is compared with all held-out rows, and with the rows of its own part that come before it and
    stay. Parts that are not held out are not compared with each other.

    Args:
        parts: Name -> texts.
        rules: What counts as a duplicate.
        held_out: Names of the parts whose rows are judged: they stay, whatever they hold. Those that
            stand first are the originals of the others.
    """
    judged = [name for name in parts if name in held_out]
    own = [name for name in parts if name not in held_out]
    compare = _find_near if rules.method == "near" else _find_exact
    pairs = compare({name: parts[name] for name in judged}, rules, len(judged))
    for name in own:
        together = {**{other: parts[other] for other in judged}, name: parts[name]}
        pairs += [pair for pair in compare(together, rules, len(judged)) if pair.part == name]
    gone = defaultdict(set)
    for pair in pairs:
        if pair.part not in held_out:
            gone[pair.part].add(pair.row)
    kept = {
        name: np.asarray([row for row in range(len(texts)) if row not in gone[name]], dtype=np.int64)
        for name, texts in parts.items()
    }
    return Duplicates(pairs, kept, _report(pairs, held_out))


def drop_duplicates(
    splits: Mapping[str, Dataset],
    columns: Sequence[str],
    rules: Deduplication,
    *,
    held_out: Collection[str],
) -> tuple[dict[str, Dataset], dict[str, Any], list[str]]:
    """Returns splits without duplicates, the report, and sentences.

    Args:
        splits: Name -> rows, those first that are the originals of others.
        columns: Of text; a row's are compared together.
        rules: What counts as a duplicate.
        held_out: Names of the splits that lose no row.

    Raises:
        DataError: a column is missing or no text, or nothing is left of a split.
    """
    texts = {part: joined_texts(rows, columns, key="data.dedup", part=part) for part, rows in splits.items()}
    found = find_duplicates(texts, rules, held_out=held_out)
    kept = {}
    for part, rows in splits.items():
        numbers = found.kept[part]
        if len(rows) and not len(numbers):
            raise DataError(
                f"every row of {part} is in the held-out splits", where="data.dedup", hint="check the files"
            )
        kept[part] = rows if len(numbers) == len(rows) else rows.select(numbers)
    return kept, found.report, _sentences(found.report, rules)


def _sentences(report: dict[str, Any], rules: Deduplication) -> list[str]:
    alike = "the same text" if rules.method == "exact" else f"similarity {rules.similarity:g} or more"
    said = []
    for part, counts in report["dropped"].items():
        of = ", ".join(f"{count:,} like rows of {other}" for other, count in counts.items())
        said.append(f"{sum(counts.values()):,} rows of {part} are dropped as duplicates ({alike}): {of}")
    for part, counts in report["left_in"].items():
        of = ", ".join(f"{count:,} of {other}" for other, count in counts.items())
        said.append(f"rows of {part} are like other rows ({alike}) and stay: {of}")
    return said or [f"no row is a duplicate of another ({alike})"]


def similarity(a: str, b: str, words: int = 5) -> float:
    """Returns the Jaccard similarity of two texts' sets of runs of ``words`` words, in [0, 1].

    Case does not count, nor white space between words. A text of fewer words has one run, the whole; one
    without words is like itself and other such texts.
    """
    return _jaccard(*(np.unique(_shingles([_word_hashes(text, {})], words)[0]) for text in (a, b)))


def bands_for(threshold: float, permutations: int = PERMUTATIONS, recall: float = RECALL) -> tuple[int, int]:
    """Returns (bands, rows a band): as many rows as leave a pair at the threshold this recall.

    A pair of similarity s shares a band with probability ``1 - (1 - s^rows)^bands``.
    """
    rows = next(
        rows
        for rows in range(permutations, 0, -1)
        if rows == 1 or 1 - (1 - threshold**rows) ** (permutations // rows) >= recall
    )
    return permutations // rows, rows


def _report(pairs: list[Duplicate], held_out: Collection[str]) -> dict[str, Any]:
    counts: dict[str, dict[str, dict[str, int]]] = {"dropped": {}, "left_in": {}}
    for (part, of_part), count in Counter((pair.part, pair.of_part) for pair in pairs).items():
        counts["left_in" if part in held_out else "dropped"].setdefault(part, {})[of_part] = count
    dropped = [pair for pair in pairs if pair.part not in held_out]
    examples = [
        {**vars(pair), "similarity": round(pair.similarity, 4)}
        for pair in [*dropped, *(pair for pair in pairs if pair.part in held_out)][:EXAMPLES]
    ]
    return {**counts, "examples": examples}


@dataclass
class _Rows:
    """The rows of all parts in a line: the part and number of each."""

    places: list[tuple[str, int]]
    texts: list[str]
    num_judged: int

    @classmethod
    def of(cls, parts: Mapping[str, Sequence[str]], judged_parts: int) -> _Rows:
        places = [(name, row) for name, texts in parts.items() for row in range(len(texts))]
        texts = [text for part in parts.values() for text in part]
        judged = sum(len(texts) for texts in list(parts.values())[:judged_parts])
        return cls(places, texts, judged)

    def pair(self, row: int, of: int, alike: float) -> Duplicate:
        return Duplicate(*self.places[row], *self.places[of], alike)


def _find_exact(parts: Mapping[str, Sequence[str]], rules: Deduplication, judged: int) -> list[Duplicate]:
    rows = _Rows.of(parts, judged)
    return [rows.pair(row, of, 1.0) for row, of in _same_text(rows.texts).items()]


def _same_text(texts: Sequence[str]) -> dict[int, int]:
    """Row -> the first row of the same text, for all but the first."""
    first: dict[bytes, int] = {}
    keys = (hashlib.blake2b(_plain(text).encode("utf-8", "surrogatepass")).digest() for text in texts)
    found = ((row, first.setdefault(key, row)) for row, key in enumerate(keys))
    return {row: of for row, of in found if row != of}


def _plain(text: str) -> str:
    return " ".join(text.casefold().split())


def _find_near(parts: Mapping[str, Sequence[str]], rules: Deduplication, judged: int) -> list[Duplicate]:
    rows = _Rows.of(parts, judged)
    same = _same_text(rows.texts)
    singles = [row for row in range(len(rows.texts)) if row not in same]
    alike = _near(singles, rows, rules)
    for row, of in same.items():
        gone = of in alike and of >= rows.num_judged  # then the row is like the one that stays
        alike[row] = alike[of] if gone else (of, 1.0)
    return [rows.pair(row, *alike[row]) for row in sorted(alike)]


def _near(singles: list[int], rows: _Rows, rules: Deduplication) -> dict[int, tuple[int, float]]:
    """Row -> the row that stays and is most like it, and how much; of rows that have one."""
    texts = [rows.texts[row] for row in singles]
    found: dict[int, tuple[int, float]] = {}
    staying: dict[tuple[int, int], list[int]] = defaultdict(list)  # (band, key) -> rows in it that stay
    sets: dict[int, np.ndarray] = {}
    cache: dict[str, int] = {}
    for at, keys in _shared_buckets(_band_keys(texts, rules)):
        candidates = sorted({other for key in keys for other in staying[key]})
        sets[at] = np.unique(_shingles([_word_hashes(texts[at], cache)], rules.words)[0])
        scored = [(_jaccard(sets[at], sets[other]), -other) for other in candidates]
        best, other = max(scored, default=(0.0, 0))
        if best >= rules.similarity:
            found[singles[at]] = (singles[-other], best)
        if best < rules.similarity or singles[at] < rows.num_judged:
            for key in keys:
                staying[key].append(at)
        else:
            del sets[at]
    return found


def _shared_buckets(keys_NB: np.ndarray) -> Iterator[tuple[int, list[tuple[int, int]]]]:
    """Yields each row that shares a bucket with another, with its buckets (band, key) that are shared."""
    shared_NB = np.zeros(keys_NB.shape, dtype=bool)
    for band in range(keys_NB.shape[1]):
        _, inverse, counts = np.unique(keys_NB[:, band], return_inverse=True, return_counts=True)
        shared_NB[:, band] = counts[inverse] > 1
    for row in np.flatnonzero(shared_NB.any(1)).tolist():
        bands = np.flatnonzero(shared_NB[row])
        yield row, list(zip(bands.tolist(), keys_NB[row, bands].tolist(), strict=True))


def _band_keys(texts: Sequence[str], rules: Deduplication) -> np.ndarray:
    """A hash of each band of each text's MinHash signature, (N, B)."""
    bands, rows = bands_for(rules.similarity)
    cache: dict[str, int] = {}
    words = [_word_hashes(text, cache) for text in texts]
    keys_NB = np.zeros((len(texts), bands), dtype=np.uint64)
    for start, stop in _chunks(words):
        signatures_NK = _signatures(*_shingles(words[start:stop], rules.words), bands * rows)
        keys_NB[start:stop] = _mixed(_folded(signatures_NK.reshape(stop - start, bands, rows)))
    return keys_NB


def _chunks(words: list[np.ndarray]) -> Iterator[tuple[int, int]]:
    """Ranges of rows of about CHUNK words, at least a row each."""
    ends = np.cumsum([len(row) + 1 for row in words])
    start = 0
    while start < len(words):
        reached = ends[start - 1] if start else 0
        stop = max(start + 1, int(np.searchsorted(ends, reached + CHUNK, side="right")))
        yield start, stop
        start = stop


def _word_hashes(text: str, cache: dict[str, int]) -> np.ndarray:
    """64 bits for each word; the same on every machine, which ``hash`` is not."""
    hashes = []
    for word in WORD.findall(text.casefold()):
        if word not in cache:
            digest = hashlib.blake2b(word.encode("utf-8", "surrogatepass"), digest_size=8).digest()
            cache[word] = int.from_bytes(digest, "little")
        hashes.append(cache[word])
    return np.asarray(hashes, dtype=np.uint64)


def _shingles(words: list[np.ndarray], length: int) -> tuple[np.ndarray, np.ndarray]:
    """Hashes of the runs of ``length`` words of all texts end to end, and where each text's begin, (N,).

    Each text has one at least: the whole, where it has fewer words.
    """
    sizes_N = np.asarray([len(row) for row in words], dtype=np.int64)
    padded_N = sizes_N + length  # so that no run reaches into the next text
    starts_N = np.cumsum(padded_N) - padded_N
    flat = np.zeros(int(padded_N.sum()) + length, dtype=np.uint64)
    runs_N = np.maximum(1, sizes_N - length + 1)
    begins_N = np.cumsum(runs_N) - runs_N
    if sizes_N.sum():
        within = np.arange(sizes_N.sum()) - np.repeat(np.cumsum(sizes_N) - sizes_N, sizes_N)
        flat[np.repeat(starts_N, sizes_N) + within] = np.concatenate(words)
    first = np.repeat(starts_N, runs_N) + np.arange(runs_N.sum()) - np.repeat(begins_N, runs_N)
    return _mixed(_folded(np.stack([flat[first + place] for place in range(length)], axis=-1))), begins_N


def _signatures(shingles_S: np.ndarray, begins_N: np.ndarray, permutations: int) -> np.ndarray:
    """The least of each text's shingles under each permutation, (N, K)."""
    rng = np.random.RandomState(1)  # fixed: the same rows on every machine
    factors_K = rng.randint(0, 2**63, permutations, dtype=np.uint64) * np.uint64(2) + np.uint64(1)
    offsets_K = rng.randint(0, 2**63, permutations, dtype=np.uint64)
    out_NK = np.empty((len(begins_N), permutations), dtype=np.uint64)
    for k in range(permutations):
        out_NK[:, k] = np.minimum.reduceat(shingles_S * factors_K[k] + offsets_K[k], begins_N)
    return out_NK


def _folded(values: np.ndarray) -> np.ndarray:
    """One number for the last axis, in its order (mod 2^64)."""
    factor, out = np.uint64(0x9E3779B97F4A7C15), np.zeros(values.shape[:-1], dtype=np.uint64)
    for place in range(values.shape[-1]):
        out = _mixed(out * factor + values[..., place])
    return out


def _mixed(values: np.ndarray) -> np.ndarray:
    """splitmix64's finalizer (Steele et al. 2014): every bit depends on every other."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def _jaccard(a: np.ndarray, b: np.ndarray) -> float:
    """Of two sorted arrays without repetitions."""
    common = len(np.intersect1d(a, b, assume_unique=True))
    return common / (len(a) + len(b) - common)
