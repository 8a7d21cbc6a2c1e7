"""Rows before and after an augmentation: texts as tokens, images as blocks."""

import numpy as np
import pytest
from conftest import make_tokenizer
from rich.console import Console

from hf_llm_recipes.preview import format_preview, preview

CLS, SEP, MASK, PAD, UNK = 2, 3, 4, 0, 1


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return make_tokenizer(tmp_path_factory.mktemp("tokenizer"))


def text_row(tokenizer, text, padding=0):
    ids = tokenizer(text)["input_ids"]
    return {
        "input_ids": [*ids, *([PAD] * padding)],
        "attention_mask": [1] * len(ids) + [0] * padding,
    }


def replaced(**features):
    return lambda row, index, random: {**row, **features}


def shown(features, view, tokenizer=None, *, count=10, seed=0, kind="text"):
    return preview(features, view, tokenizer, count, seed, kind)


def test_a_changed_token_is_bold_and_padding_and_separators_are_left_out(tokenizer):
    row = text_row(tokenizer, "the old band", padding=2)
    new = list(row["input_ids"])
    new[2] = tokenizer.convert_tokens_to_ids("new")
    assert shown([row], replaced(input_ids=new), tokenizer) == [("the old band", "the [bold]new[/bold] band")]


def test_a_hidden_token_is_as_many_blocks_as_it_has_letters(tokenizer):
    row = text_row(tokenizer, "the old band")
    view = replaced(attention_mask=[1, 1, 0, 0, 1])
    assert shown([row], view, tokenizer) == [("the old band", "the ░░░ ░░░░")]


def test_a_mask_and_an_unknown_word_are_seen(tokenizer):
    row = text_row(tokenizer, "the xyzzy band")
    assert row["input_ids"][2] == UNK
    new = [*row["input_ids"][:3], MASK, SEP]
    ((before, after),) = shown([row], replaced(input_ids=new), tokenizer)
    console = Console(width=80)
    with console.capture() as printed:
        console.print(format_preview([(before, after)]))
    assert "the [UNK] band" in printed.get()
    assert "the [UNK] [MASK]" in printed.get()
    assert "bold" not in printed.get()


@pytest.mark.parametrize(
    ("new", "after"),
    [
        ("the band", "the band"),  # a token less: nothing that is left has changed
        ("the very old band", "the [bold]very[/bold] old band"),
        ("a choir", "[bold]a[/bold] [bold]choir[/bold]"),
    ],
)
def test_a_view_of_another_length_is_aligned(tokenizer, new, after):
    view = replaced(**text_row(tokenizer, new))
    assert shown([text_row(tokenizer, "the old band")], view, tokenizer) == [("the old band", after)]


def test_brackets_over_two_tokens_are_no_markup():
    class Letters:
        """As a tokenizer: each id is a word of this list."""

        words = ("<s>", "[a", "b]", "[/bold]", "x\\")
        mask_token_id, unk_token_id = None, None
        all_special_ids = (0,)

        def decode(self, ids):
            return self.words[ids[0]]

    row = {"input_ids": [0, 1, 2, 3, 4]}
    pairs = shown([row], replaced(input_ids=[0, 1, 2, 3, 1]), Letters())
    console = Console(width=80)
    with console.capture() as printed:
        console.print(format_preview(pairs))
    assert "[a b] [/bold] x\\" in printed.get()
    assert "[a b] [/bold] [a" in printed.get()


def test_rows_are_drawn_by_the_seed_in_the_order_of_the_pool(tokenizer):
    words = ["ball", "team", "goal", "coach", "match", "score", "bread", "soup"]
    rows = [text_row(tokenizer, word) for word in words]
    seen = []

    def view(row, index, random):
        seen.append(index)
        return row

    pairs = shown(rows, view, tokenizer, count=3, seed=5)
    assert [before for before, _ in pairs] == [words[i] for i in seen]
    assert len(set(seen)) == 3
    assert seen == sorted(seen)
    assert shown(rows, view, tokenizer, count=3, seed=5) == pairs
    drawn = {tuple(b for b, _ in shown(rows, view, tokenizer, count=3, seed=s)) for s in range(5)}
    assert len(drawn) > 1
    assert [b for b, _ in shown(rows, view, tokenizer, count=100)] == words


def test_the_chance_of_a_view_follows_the_seed_and_the_row(tokenizer):
    drawn = []

    def view(row, index, random):
        drawn.append((index, random.random()))
        return row

    rows = [text_row(tokenizer, "the band")] * 3
    for seed in (1, 1, 2):
        shown(rows, view, tokenizer, seed=seed)
    assert drawn[:3] == drawn[3:6]
    assert len({value for _, value in drawn}) == 6


def test_a_small_image_is_drawn_pixel_by_pixel_in_the_shades_of_the_first():
    # 0 … 4 over five shades: share * 5, the last one clipped
    image = np.arange(6, dtype=np.float32).clip(max=4).reshape(1, 2, 3)
    brighter = image + 10
    ((before, after),) = shown([{"pixel_values": image}], replaced(pixel_values=brighter), kind="image")
    assert before == "  ░░▒▒\n▓▓████"
    assert after == "██████\n██████"


def test_a_large_image_shrinks_by_means_over_channels_and_pixels():
    # two channels of mean 1 at the left half and 0 at the right, 40 pixels each way: 16 cells
    image = np.zeros((2, 40, 40), dtype=np.float32)
    image[0, :, :20] = 2
    ((before, _),) = shown([{"pixel_values": image.tolist()}], lambda row, *_: row, kind="image")
    assert before.split("\n") == ["█" * 16 + " " * 16] * 16


def test_an_even_image_is_drawn_without_a_division_by_zero():
    image = np.full((1, 2, 2), 7, dtype=np.float32)
    assert shown([{"pixel_values": image}], lambda row, *_: row, kind="image") == [
        ("    \n    ", "    \n    ")
    ]


def test_images_and_texts_are_a_table_of_two_columns():
    table = format_preview([("a", "[bold]b[/bold]"), ("██\n  ", "  \n██")])
    console = Console(width=60)
    with console.capture() as printed:
        console.print(table)
    assert table.row_count == 2
    assert "as it is" in printed.get()
    assert "██" in printed.get()


def test_no_row_asked_for():
    with pytest.raises(ValueError, match=r"count is 0; allowed: 1 or more"):
        shown([{"input_ids": [5]}], lambda row, *_: row, count=0)
