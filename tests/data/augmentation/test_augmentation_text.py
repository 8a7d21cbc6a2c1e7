"""Strong views of texts: what may change, how much of it, and what it changes to."""

import copy
import math

import numpy as np
import pytest
from conftest import FILLER, WORDS, make_tokenizer, sentences
from datasets import Dataset
from scipy.stats import binom

from hf_llm_recipes.data.augmentation.base import Pool
from hf_llm_recipes.data.augmentation.column import Column
from hf_llm_recipes.data.augmentation.cutoff import Cutoff
from hf_llm_recipes.data.augmentation.delete import Delete
from hf_llm_recipes.data.augmentation.mask import Mask
from hf_llm_recipes.data.augmentation.substitute import Substitute
from hf_llm_recipes.data.augmentation.swap import Swap
from hf_llm_recipes.data.augmentation.tfidf_substitute import TfidfSubstitute
from hf_llm_recipes.errors import DataError

PAD, UNK, CLS, SEP, MASK = range(5)
WORDS_FROM = 5  # the first id that is a word
RANDOM_VIEWS = [Cutoff, Delete, Mask, Substitute, Swap, TfidfSubstitute]
IN_PLACE = [Cutoff, Mask, Substitute, Swap, TfidfSubstitute]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return make_tokenizer(tmp_path_factory.mktemp("tokenizer"))


def pool_of(tokenizer, texts, **columns):
    def encode(rows):
        return Dataset.from_list([dict(tokenizer(text)) for text in rows["text"]])

    rows = Dataset.from_dict({"text": texts, **columns})
    return Pool(features=encode(rows), rows=rows, processor=tokenizer, encode=encode)


@pytest.fixture(scope="module")
def pool(tokenizer):
    return pool_of(tokenizer, [row["text"] for row in sentences(60)])


@pytest.fixture(scope="module")
def every_word(tokenizer):
    """A pool of all 28 words, once each, so that a uniform draw has 28 outcomes."""
    return pool_of(tokenizer, [" ".join([*FILLER, *(w for ws in WORDS.values() for w in ws)])])


def fitted(view, pool):
    view.fit(pool)
    return view


def row_of(words, *, padding=0, first=WORDS_FROM):
    """[CLS], so many different words, [SEP], padding."""
    ids = [CLS, *(first + i for i in range(words)), SEP]
    return {
        "input_ids": ids + [PAD] * padding,
        "attention_mask": [1] * len(ids) + [0] * padding,
        "id": "a",
    }


def pair_of(first, second, *, types):
    ids = [CLS, *range(5, 5 + first), SEP, *range(20, 20 + second), SEP]
    row = {"input_ids": ids, "attention_mask": [1] * len(ids)}
    if types:
        row["token_type_ids"] = [0] * (first + 2) + [1] * (second + 1)
    return row


def touched(before, after):
    """Places whose token or attention differs, of views that keep the length."""
    keys = ("input_ids", "attention_mask")
    return {
        i
        for key in keys
        for i, pair in enumerate(zip(before[key], after[key], strict=True))
        if pair[0] != pair[1]
    }


def repeated(view, row, times, seed=0):
    random = np.random.default_rng(seed)
    return [view(row, 0, random) for _ in range(times)]


def within(count, trials, share):
    low, high = binom.interval(1 - 1e-6, trials, share)
    return low <= count <= high


@pytest.mark.parametrize("cls", RANDOM_VIEWS)
def test_lists_stay_lists_arrays_stay_arrays_and_the_row_is_not_changed(cls, pool):
    view, row = fitted(cls(rate=0.5), pool), {**row_of(8), "token_type_ids": [0] * 10}
    arrays = {k: np.asarray(v) if k != "id" else v for k, v in row.items()}
    before = copy.deepcopy(row)
    made, of_arrays = (view(r, 0, np.random.default_rng(3)) for r in (row, arrays))
    assert row == before
    assert all(np.array_equal(arrays[k], before[k]) for k in before)
    assert made.keys() == row.keys()
    assert made["id"] == "a"
    for key in ("input_ids", "attention_mask", "token_type_ids"):
        assert type(made[key]) is list
        assert all(type(value) is int for value in made[key])
        assert len(made[key]) == len(made["input_ids"])
        assert np.asarray(of_arrays[key]).tolist() == made[key]


@pytest.mark.parametrize("cls", RANDOM_VIEWS)
def test_the_same_generator_state_gives_the_same_view_and_another_another(cls, pool):
    view, row = fitted(cls(rate=0.3), pool), row_of(12)
    made = [view(row, 0, np.random.default_rng(seed)) for seed in (5, 5, *range(6, 12))]
    assert made[0] == made[1]
    assert any(other != made[0] for other in made[2:])


@pytest.mark.parametrize("cls", IN_PLACE)
def test_specials_and_padding_are_never_touched_and_words_all_are(cls, pool):
    row = row_of(6, padding=3)
    row["input_ids"][4] = MASK
    places = set().union(*(touched(row, made) for made in repeated(fitted(cls(rate=0.5), pool), row, 300)))
    # of five words one has the largest TF-IDF, which keeps it
    assert places == {1, 2, 3, 5, 6} or (cls is TfidfSubstitute and places < {1, 2, 3, 5, 6})
    assert len(places) >= 4


def test_delete_keeps_specials_padding_and_order(pool):
    row, dropped = row_of(6, padding=3), set()
    for made in repeated(fitted(Delete(rate=0.5), pool), row, 300):
        ids = made["input_ids"]
        assert (ids[0], ids[-4:]) == (CLS, [SEP, PAD, PAD, PAD])
        assert made["attention_mask"] == [1] * (len(ids) - 3) + [0] * 3
        assert ids[1:-4] == sorted(ids[1:-4])
        dropped |= set(row["input_ids"]) - set(ids)
    assert dropped == set(range(5, 11))


@pytest.mark.parametrize("types", [True, False], ids=["token_type_ids", "separators"])
@pytest.mark.parametrize("cls", IN_PLACE)
def test_of_a_pair_one_text_changes_and_each_has_its_turn(cls, types, pool):
    row = pair_of(5, 6, types=types)
    seen = []
    for made in repeated(fitted(cls(rate=0.4), pool), row, 400):
        places = touched(row, made)
        assert places <= {1, 2, 3, 4, 5} or places <= {7, 8, 9, 10, 11, 12}
        seen += [min(places) > 6] if places else []
    assert 0.3 < np.mean(seen) < 0.7


@pytest.mark.parametrize("types", [True, False], ids=["token_type_ids", "separators"])
def test_of_a_pair_one_text_gets_shorter(types, pool):
    row = pair_of(5, 6, types=types)
    for made in repeated(fitted(Delete(rate=0.4), pool), row, 200):
        lost = set(row["input_ids"]) - set(made["input_ids"])
        assert lost <= set(range(5, 10)) or lost <= set(range(20, 26))
        assert made["input_ids"].count(SEP) == 2
        if types:
            second = sum(made["token_type_ids"])
            assert second == 1 + sum(20 <= i < 26 for i in made["input_ids"])


@pytest.mark.parametrize("cls", IN_PLACE)
def test_token_types_that_are_all_alike_leave_the_separators_to_tell_a_pair(cls, pool):
    row = pair_of(5, 6, types=False)
    row["token_type_ids"] = [0] * len(row["input_ids"])
    for made in repeated(fitted(cls(rate=0.4), pool), row, 100):
        places = touched(row, made)
        assert places <= {1, 2, 3, 4, 5} or places <= {7, 8, 9, 10, 11, 12}


@pytest.mark.parametrize("cls", [Mask, Substitute, TfidfSubstitute])
def test_an_unknown_word_ends_no_segment(cls, pool):
    row = row_of(6)
    row["input_ids"][3] = UNK
    both = [
        places
        for places in (touched(row, made) for made in repeated(fitted(cls(rate=0.5), pool), row, 200))
        if places & {1, 2} and places & {4, 5, 6}
    ]
    assert both


@pytest.mark.parametrize("cls", [Mask, Delete, Cutoff])
@pytest.mark.parametrize("words", [1, 2, 3])
def test_never_all_words_go_even_at_the_highest_rate(cls, words, pool):
    row = row_of(words)
    for made in repeated(fitted(cls(rate=0.999), pool), row, 50):
        left = [i for i, seen in zip(made["input_ids"], made["attention_mask"], strict=True) if seen]
        assert sum(i >= WORDS_FROM for i in left) == 1


@pytest.mark.parametrize("cls", RANDOM_VIEWS)
def test_a_row_without_words_stays_as_it_is(cls, pool):
    row = row_of(0, padding=2)
    assert fitted(cls(rate=0.9), pool)(row, 0, np.random.default_rng(0)) == row


@pytest.mark.parametrize("cls", RANDOM_VIEWS)
def test_a_row_without_attention_mask_is_all_attended(cls, pool):
    row = {"input_ids": row_of(8)["input_ids"]}
    changed = [made for made in repeated(fitted(cls(rate=0.5), pool), row, 20) if made != row]
    assert changed


@pytest.mark.parametrize("rate", [0.1, 0.15, 0.5])
def test_mask_and_delete_hit_the_rate_that_is_asked_for(rate, pool):
    row, times = row_of(20), 1000
    masked = sum(
        made["input_ids"].count(MASK) for made in repeated(fitted(Mask(rate=rate), pool), row, times)
    )
    assert within(masked, 20 * times, rate)
    deleted = sum(
        22 - len(made["input_ids"]) for made in repeated(fitted(Delete(rate=rate), pool), row, times)
    )
    assert within(deleted, 20 * times, rate)


def test_mask_gives_the_mask_token_and_each_word_alike(pool):
    row, times = row_of(10), 2000
    hits = np.zeros(12, dtype=int)
    for made in repeated(fitted(Mask(rate=0.2), pool), row, times):
        for place in touched(row, made):
            assert made["input_ids"][place] == MASK
            hits[place] += 1
    assert all(within(count, times, 0.2) for count in hits[1:11])


def test_mask_needs_a_mask_token(tokenizer, pool):
    bare = copy.deepcopy(tokenizer)
    bare.mask_token = None
    with pytest.raises(DataError, match=r"the tokenizer has no mask token\n  allowed: .*substitute"):
        Mask().fit(Pool(pool.features, pool.rows, bare, pool.encode))


def test_substitute_draws_uniformly_from_the_words_of_the_pool(every_word):
    # a word is drawn in its own place once in 28, so 27/28 of the chosen ones are seen
    row, times = row_of(20), 1000
    view = fitted(Substitute(rate=0.3, distribution="uniform"), every_word)
    drawn = []
    for made in repeated(view, row, times):
        drawn += [made["input_ids"][place] for place in touched(row, made)]
    assert within(len(drawn), 20 * times, 0.3 * 27 / 28)
    assert set(drawn) == set(range(5, 33))


def test_substitute_draws_as_often_as_the_pool_has_a_word(tokenizer):
    # nine times "ball", once "soup"; the row holds neither
    view = fitted(Substitute(rate=0.5), pool_of(tokenizer, ["ball " * 5, "ball ball ball ball soup"]))
    ball, soup = tokenizer.convert_tokens_to_ids(["ball", "soup"])
    row, drawn = row_of(10), []
    for made in repeated(view, row, 400):
        drawn += [made["input_ids"][place] for place in touched(row, made)]
    assert set(drawn) == {ball, soup}
    assert within(drawn.count(soup), len(drawn), 0.1)
    uniform = fitted(
        Substitute(rate=0.5, distribution="uniform"), pool_of(tokenizer, ["ball ball ball ball soup"])
    )
    drawn = [made["input_ids"][1] for made in repeated(uniform, row, 1000)]
    changed = [token for token in drawn if token != row["input_ids"][1]]
    assert within(changed.count(soup), len(changed), 0.5)


@pytest.mark.parametrize("cls", [Substitute, TfidfSubstitute])
def test_no_token_becomes_a_special_or_unknown_one(cls, tokenizer):
    pool = pool_of(tokenizer, ["xyzzy the band", "xyzzy old soup", "xyzzy a plate"])
    row = row_of(8)
    for made in repeated(fitted(cls(rate=0.6), pool), row, 200):
        assert min(made["input_ids"][1:-1]) >= WORDS_FROM


@pytest.mark.parametrize("cls", [Substitute, TfidfSubstitute])
def test_a_pool_without_words(cls, tokenizer):
    with pytest.raises(DataError, match=r"data\.unlabeled: the pool holds no word to draw from"):
        cls().fit(pool_of(tokenizer, ["xyzzy", ""]))


@pytest.mark.parametrize(
    ("rate", "words", "length"), [(0.1, 20, 2), (0.25, 10, 2), (0.01, 9, 1), (0.9, 3, 2)]
)
def test_cutoff_hides_one_span_of_the_right_length_anywhere(rate, words, length, pool):
    row, starts = row_of(words), set()
    for made in repeated(fitted(Cutoff(rate=rate), pool), row, 600):
        assert made["input_ids"] == row["input_ids"]
        hidden = sorted(touched(row, made))
        assert hidden == list(range(hidden[0], hidden[0] + length))
        assert all(made["attention_mask"][i] == 0 for i in hidden)
        starts.add(hidden[0])
    assert starts == set(range(1, words - length + 2))


def test_swap_exchanges_neighbours_and_loses_nothing(pool):
    row = row_of(10)
    for made in repeated(fitted(Swap(rate=0.05), pool), row, 300):
        assert sorted(made["input_ids"]) == sorted(row["input_ids"])
        places = sorted(touched(row, made))
        if len(places) == 2:
            one, other = places
            assert other == one + 1
            assert made["input_ids"][one] == row["input_ids"][other]


def test_swap_moves_about_the_share_that_is_asked_for(pool):
    # inner words move unless neither of their two pairs is exchanged: 1 − (1 − r/2)²; the ends r/2
    rate, words, times = 0.2, 20, 2000
    moved = [
        len(touched(row_of(words), m)) for m in repeated(fitted(Swap(rate=rate), pool), row_of(words), times)
    ]
    expected = 18 * (1 - (1 - rate / 2) ** 2) + 2 * rate / 2
    assert abs(np.mean(moved) - expected) < 5 * np.std(moved) / math.sqrt(times)


def keyword_pool(tokenizer):
    """Of four rows all have "the" and "a", one has "drum"."""
    return pool_of(tokenizer, ["the a drum", "the a of", "the a of", "the a of"])


def test_tfidf_keeps_the_keyword_and_replaces_the_rest_at_the_mean_rate(tokenizer):
    # "drum" has the largest TF-IDF, so probability 0; "the" and "a" have idf log(4/4) = 0, so C − s is
    # C, C, 0 and its mean 2C/3: each of the two goes with probability 0.2 · 3/2 = 0.3
    view = fitted(TfidfSubstitute(rate=0.2), keyword_pool(tokenizer))
    the, a, drum = tokenizer.convert_tokens_to_ids(["the", "a", "drum"])
    assert view._chances(np.asarray([the, a, drum])) == pytest.approx([0.3, 0.3, 0.0])
    row = dict(tokenizer("the a drum"))
    for made in repeated(view, row, 300):
        assert made["input_ids"][3] == drum


def test_tfidf_draws_by_what_a_word_lacks_of_the_most_important(tokenizer):
    # rows: "the a drum", three times "the a of"; frequency · idf:
    #   the, a: 0;  of: 3/12 · log(4/3) = 0.0719;  drum: 1/12 · log 4 = 0.1155, the largest
    # so drum is never drawn, and of with weight 0.1155 − 0.0719 = 0.0436 beside 0.1155 and 0.1155
    pool = keyword_pool(tokenizer)
    the, a, drum, of = tokenizer.convert_tokens_to_ids(["the", "a", "drum", "of"])
    view = fitted(TfidfSubstitute(rate=0.5), pool)
    ball, team = tokenizer.convert_tokens_to_ids(["ball", "team"])
    row = {"input_ids": [CLS, ball, ball, team, team, SEP], "attention_mask": [1] * 6}  # none in the pool
    drawn = []
    for made in repeated(view, row, 2000):
        drawn += [made["input_ids"][i] for i in touched(row, made)]
    largest = math.log(4) / 12
    weight_of = largest - math.log(4 / 3) / 4
    assert set(drawn) == {the, a, of}
    assert drum not in drawn
    assert within(drawn.count(of), len(drawn), weight_of / (weight_of + 2 * largest))


def test_tfidf_with_words_of_equal_weight_replaces_all_alike(tokenizer):
    view = fitted(TfidfSubstitute(rate=0.3), pool_of(tokenizer, ["the old band", "the old band"]))
    ids = np.asarray(tokenizer.convert_tokens_to_ids(["the", "old", "band"]))
    assert view._chances(ids).tolist() == [0.3, 0.3, 0.3]


def test_tfidf_takes_a_word_that_the_pool_lacks_for_the_rarest(tokenizer):
    view = fitted(TfidfSubstitute(rate=0.2), keyword_pool(tokenizer))
    ids = np.asarray(tokenizer.convert_tokens_to_ids(["the", "a", "choir"]))
    assert view._chances(ids) == pytest.approx([0.3, 0.3, 0.0])


def test_tfidf_has_the_mean_rate_that_is_asked_for(pool):
    # no bound of 1 is reached at this rate, so the mean over a row is the rate exactly
    view = fitted(TfidfSubstitute(rate=0.1), pool)
    for row in pool.features:
        ids = np.asarray(row["input_ids"][1:-1])
        assert view._chances(ids).mean() == pytest.approx(0.1)
        assert view._chances(ids).max() < 1


def columns_pool(tokenizer, texts=("a new song", "the old soup"), other=("song of a band", None)):
    return pool_of(tokenizer, list(texts), other=list(other))


def test_column_is_encoded_like_the_text_and_a_row_without_one_stays(tokenizer, caplog):
    pool = columns_pool(tokenizer)
    with caplog.at_level("INFO", logger="hf_llm_recipes"):
        view = fitted(Column(column="other"), pool)
    assert "1 of 2 rows have no `other`: left unchanged" in caplog.text
    rows = [{**pool.features[i], "id": i} for i in range(2)]
    before = copy.deepcopy(rows)
    made = [view(row, i, np.random.default_rng(0)) for i, row in enumerate(rows)]
    assert made[0] == {**dict(tokenizer("song of a band")), "id": 0}
    assert made[1] == rows[1]
    assert made[1] is not rows[1]
    assert rows == before


@pytest.mark.parametrize("empty", ["", "  ", None])
def test_column_without_any_text(empty, tokenizer):
    with pytest.raises(DataError, match=r"column `other` holds no text"):
        Column(column="other").fit(columns_pool(tokenizer, other=(empty, empty)))


@pytest.mark.parametrize(
    ("values", "missing", "near"),
    [
        ({"column": "othr"}, "othr", r" \(did you mean `other`\?\)"),
        ({"column": "other", "replaces": "sentence"}, "sentence", ""),
    ],
)
def test_column_that_is_missing(values, missing, near, tokenizer):
    with pytest.raises(DataError, match=rf"no column `{missing}`{near}\n  allowed: text, other"):
        Column(**values).fit(columns_pool(tokenizer))


def test_column_that_replaces_itself():
    with pytest.raises(ValueError, match=r"column and replaces are both 'text'; allowed: two different"):
        Column(column="text")


@pytest.mark.parametrize("cls", RANDOM_VIEWS)
@pytest.mark.parametrize("rate", [0, 1, -0.1, 1.1, float("nan")])
def test_a_rate_out_of_range(cls, rate):
    with pytest.raises(ValueError, match=rf"^rate is {rate}; allowed: more than 0, less than 1$"):
        cls(rate=rate)


def test_an_unknown_distribution():
    with pytest.raises(ValueError, match=r"^distribution is 'zipf'; allowed: unigram, uniform$"):
        Substitute(distribution="zipf")
