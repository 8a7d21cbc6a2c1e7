"""Strong views of images: exact pixels on tiny arrays."""

import copy

import numpy as np
import pytest

from hf_llm_recipes.data.augmentation.cutout import Cutout
from hf_llm_recipes.data.augmentation.noise import Noise
from hf_llm_recipes.data.augmentation.rotate import Rotate
from hf_llm_recipes.data.augmentation.shift import Shift

VIEWS = [Cutout(), Noise(), Rotate(), Shift()]
NAMES = [type(view).__name__ for view in VIEWS]


class Chance:
    """A generator that gives what it is told, and keeps what it was asked."""

    def __init__(self, *answers):
        self.answers, self.asked = list(answers), []

    def __getattr__(self, name):
        def answer(*arguments, **options):
            self.asked.append((name, *arguments))
            return self.answers.pop(0)

        return answer


def row_of(image):
    return {"pixel_values": np.asarray(image, dtype=np.float32), "id": 7}


def drawn(seed=0, shape=(3, 8, 6)):
    return row_of(np.random.default_rng(seed).normal(size=shape))


@pytest.mark.parametrize("view", VIEWS, ids=NAMES)
@pytest.mark.parametrize("shape", [(1, 5, 5), (3, 8, 6), (1, 1, 1)])
def test_a_view_keeps_shape_dtype_and_other_keys_and_leaves_the_row_alone(view, shape):
    row = drawn(shape=shape)
    before = copy.deepcopy(row)
    made = view(row, 0, np.random.default_rng(1))
    assert made["pixel_values"].shape == shape
    assert made["pixel_values"].dtype == np.float32
    assert made["id"] == 7
    assert np.array_equal(row["pixel_values"], before["pixel_values"])
    assert not np.shares_memory(made["pixel_values"], row["pixel_values"])


@pytest.mark.parametrize("view", VIEWS, ids=NAMES)
def test_the_same_generator_state_gives_the_same_view_and_another_another(view):
    row = drawn()
    made = [view(row, 0, np.random.default_rng(seed))["pixel_values"] for seed in (3, 3, 4, 5, 6)]
    assert np.array_equal(made[0], made[1])
    assert any(not np.array_equal(made[0], other) for other in made[2:])


@pytest.mark.parametrize("view", VIEWS, ids=NAMES)
def test_an_image_as_nested_lists_is_taken(view):
    row = drawn()
    listed = {**row, "pixel_values": row["pixel_values"].tolist()}
    one, other = (view(r, 0, np.random.default_rng(2))["pixel_values"] for r in (row, listed))
    assert np.array_equal(one, other)


NINE = [[1, 2, 3], [4, 5, 6], [7, 8, 9]]


@pytest.mark.parametrize(
    ("down", "right", "expected"),
    [
        (0, 0, NINE),
        (1, 0, [[1, 2, 3], [1, 2, 3], [4, 5, 6]]),
        (-1, 0, [[4, 5, 6], [7, 8, 9], [7, 8, 9]]),
        (0, 1, [[1, 1, 2], [4, 4, 5], [7, 7, 8]]),
        (1, -1, [[2, 3, 3], [2, 3, 3], [5, 6, 6]]),
    ],
)
def test_shift_moves_the_image_and_its_edge_fills_the_gap(down, right, expected):
    chance = Chance(down, right)
    made = Shift(share=0.3)(row_of([NINE, np.multiply(NINE, 10)]), 0, chance)["pixel_values"]
    assert made.tolist() == [expected, np.multiply(expected, 10).tolist()]
    assert [asked[1:3] for asked in chance.asked] == [(-1, 2), (-1, 2)]  # 0.3 · 3 ≈ 1, the end not drawn


def test_shift_goes_as_far_as_its_share_of_each_side_and_no_farther():
    image = np.zeros((1, 21, 21), dtype=np.float32)
    image[0, 10, 10] = 1
    view, random = Shift(share=0.2), np.random.default_rng(0)
    peaks = [np.argwhere(view(row_of(image), 0, random)["pixel_values"][0] == 1)[0] for _ in range(600)]
    for axis in (0, 1):  # round(0.2 · 21) = 4
        assert {int(peak[axis]) for peak in peaks} == set(range(6, 15))
    assert {tuple(peak) for peak in peaks} > {(6, 14), (14, 6)}  # both directions on their own


def test_cutout_covers_a_square_with_the_mean_of_each_channel():
    # side: round(0.5 · 4) = 2; a channel's mean is that of the whole image
    image = np.arange(16, dtype=np.float32).reshape(4, 4)
    chance = Chance(1, 2)
    made = Cutout(size=0.5)(row_of([image, image * 2]), 0, chance)["pixel_values"]
    expected = [[0, 1, 2, 3], [4, 5, 7.5, 7.5], [8, 9, 7.5, 7.5], [12, 13, 14, 15]]
    assert made.tolist() == [expected, (np.asarray(expected) * 2).tolist()]
    assert [asked[1] for asked in chance.asked] == [3, 3]  # three places each way: wholly inside


def test_cutout_covers_one_pixel_at_least_and_every_place_in_turn():
    image = np.asarray([[[0, 1, 5], [2, 3, 7], [4, 6, 17]]])  # mean 5, which is one pixel already
    view, random = Cutout(size=0.01), np.random.default_rng(0)
    covered = set()
    for _ in range(300):
        covered |= {tuple(p) for p in np.argwhere(view(row_of(image), 0, random)["pixel_values"] != image)}
    assert len(covered) == 8


def test_noise_is_gaussian_and_measured_by_the_spread_of_the_image():
    image = np.asarray([[[-3.0, 3.0], [3.0, -3.0]]])  # standard deviation 3
    drawn_CHW = np.asarray([[[0.0, 1.0], [-1.0, 2.0]]], dtype=np.float32)
    made = Noise(std=0.5)(row_of(image), 0, Chance(drawn_CHW))["pixel_values"]
    assert made.tolist() == [[[-3.0, 4.5], [1.5, 0.0]]]


def test_noise_has_the_spread_that_is_asked_for():
    row = drawn(shape=(1, 200, 200))
    made = Noise(std=0.2)(row, 0, np.random.default_rng(1))["pixel_values"]
    added = (made - row["pixel_values"]) / row["pixel_values"].std()
    # the standard error of a standard deviation of 40,000 draws is 0.2 / sqrt(80,000) = 0.0007
    assert added.std() == pytest.approx(0.2, abs=0.0036)
    assert added.mean() == pytest.approx(0.0, abs=0.005)


def test_rotate_by_a_quarter_turn_is_exact():
    made = Rotate(degrees=90)(row_of([NINE]), 0, Chance(90.0))["pixel_values"]
    assert made[0] == pytest.approx(np.rot90(NINE), abs=1e-4)


def test_rotate_keeps_the_middle_and_asks_for_an_angle_either_way():
    chance = Chance(10.0)
    image = np.zeros((2, 5, 5))
    image[0, 2, 2], image[1, 2, 2] = 1, 2
    made = Rotate(degrees=15)(row_of(image), 0, chance)["pixel_values"]
    assert made[:, 2, 2] == pytest.approx([1, 2], abs=1e-5)
    assert chance.asked == [("uniform", -15, 15)]


def test_rotate_fills_the_corners_with_the_edge():
    even = np.full((1, 6, 6), 4.0)
    made = Rotate(degrees=45)(row_of(even), 0, Chance(45.0))["pixel_values"]
    assert made == pytest.approx(4.0, abs=1e-5)


@pytest.mark.parametrize(
    ("cls", "field", "value", "allowed"),
    [
        *((Cutout, "size", v, "more than 0, less than 1") for v in (0, 1, -0.1, 1.5, float("nan"))),
        *((Noise, "std", v, "more than 0") for v in (0, -1, float("nan"))),
        *((Rotate, "degrees", v, "more than 0, at most 180") for v in (0, -1, 180.5, float("nan"))),
        *((Shift, "share", v, "more than 0, at most 0.5") for v in (0, -1, 0.51, float("nan"))),
    ],
)
def test_a_value_out_of_range(cls, field, value, allowed):
    with pytest.raises(ValueError, match=rf"^{field} is {value}; allowed: {allowed}$"):
        cls(**{field: value})
