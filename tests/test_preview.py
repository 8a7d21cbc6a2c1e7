"""Rows before and after augmentation, as they are shown."""

import io
from dataclasses import dataclass

import numpy as np
import pytest
from datasets import Dataset
from rich.console import Console
from rich.text import Text
from transformers import AutoTokenizer

from hf_llm_recipes.data.augmentation.base import Augmentation, Pool
from hf_llm_recipes.data.augmentation.cutoff import Cutoff
from hf_llm_recipes.data.augmentation.delete import Delete
from hf_llm_recipes.data.augmentation.substitute import Substitute
from hf_llm_recipes.methods._streams import TwoStreamBatches, TwoStreams
from hf_llm_recipes.preview import format_preview, preview


@dataclass
class Given(Augmentation):
    """A view that is written down: features that replace the row's."""

    features: dict

    def __call__(self, row, index, random):
        return {**row, **self.features}


@dataclass
class GivenImage(Given):
    kind = "image"


@pytest.fixture
def tokenizer(tiny_bert):
    return AutoTokenizer.from_pretrained(tiny_bert)


def pool_of(tokenizer, *texts, seed=0):
    rows = Dataset.from_dict({"text": list(texts)})
    features = Dataset.from_dict(dict(tokenizer(list(texts))))
    return Pool(features=features, rows=rows, processor=tokenizer, encode=None, seed=seed)


def image_pool(*images):
    features = Dataset.from_dict({"pixel_values": [np.asarray(i, np.float32).tolist() for i in images]})
    return Pool(features=features, rows=None, processor=None, encode=None)


def test_changed_tokens_are_highlighted_on_both_sides(tokenizer):
    pool = pool_of(tokenizer, "the old ball was good")
    view = Given({"input_ids": tokenizer("the new song was good").input_ids})
    [(before, after)] = preview(pool, [view], [0])
    assert before == "the[bold red] old ball[/bold red] was good"
    assert after == "the[bold green] new song[/bold green] was good"


def test_hidden_tokens_are_shaded(tokenizer):
    pool = pool_of(tokenizer, "the old ball was good")
    view = Given({"attention_mask": [1, 1, 0, 0, 1, 1, 1]})
    [(before, after)] = preview(pool, [view], [0])
    assert before == "the old ball was good"
    assert after == "the[dim] ░░░ ░░░░[/dim] was good"


def test_where_lengths_differ_what_is_left_out_is_highlighted(tokenizer):
    pool = pool_of(tokenizer, "the old ball was good")
    [(before, after)] = preview(pool, [Given(dict(tokenizer("the ball was very very good")))], [0])
    assert before == "the[bold red] old[/bold red] ball was good"
    assert after == "the ball was[bold green] very very[/bold green] good"
    [(before, after)] = preview(pool, [Given(dict(tokenizer("the ball was good")))], [0])
    assert before == "the[bold red] old[/bold red] ball was good"
    assert after == "the ball was good"


def test_the_mask_token_and_the_border_of_a_pair_are_shown(tokenizer):
    encoded = tokenizer("the ball", "a song")
    features = Dataset.from_dict({key: [value] for key, value in encoded.items()})
    pool = Pool(features=features, rows=None, processor=tokenizer, encode=None)
    ids = list(encoded["input_ids"])
    ids[2] = tokenizer.mask_token_id
    [(before, after)] = preview(pool, [Given({"input_ids": ids})], [0])
    assert Text.from_markup(before).plain == "the ball [SEP] a song"
    assert Text.from_markup(after).plain == "the [MASK] [SEP] a song"
    assert "[bold green]" in after


def test_an_empty_row_is_empty(tokenizer):
    assert preview(pool_of(tokenizer, "", "the ball"), [Cutoff()], [0]) == [("", "")]


def test_it_shows_the_views_of_the_first_epoch(tokenizer):
    texts = ["the ball was in the old oven and the song was new"] * 6
    pool = pool_of(tokenizer, *texts, seed=3)
    view = Substitute(rate=0.4)
    shown = preview(pool, [view], range(6))
    batches = TwoStreamBatches(1, 6, 1, 6, seed=3)
    streams = TwoStreams([{}], pool.features, lambda row, i, r: (r.integers(1), view(row, i, r))[1], batches)
    for key in next(iter(batches))[1:]:
        trained_on = streams[key]["strong"]["input_ids"]
        plain = tokenizer.decode(trained_on[1:-1])
        assert Text.from_markup(shown[key.index][1]).plain == plain
    assert len({after for _, after in shown}) > 1


def test_without_views_the_default_ones_are_shown(tokenizer):
    pool = pool_of(tokenizer, *["the ball was in the old oven and the song was new"] * 40)
    shown = preview(pool, [], range(40))
    assert any("░" in after for _, after in shown)
    assert any("[bold green]" in after for _, after in shown)


def test_an_image_is_drawn_in_blocks():
    image = [[[0, 4], [8, 0]], [[0, 4], [8, 0]]]
    moved = [[[8, 8], [0, 0]], [[8, 8], [4, 4]]]
    [(before, after)] = preview(image_pool(image), [GivenImage({"pixel_values": moved})], [0], "image")
    assert before == "  ▒▒\n██  "
    assert after == "████\n░░░░"  # the mean of the channels: 8 8, 2 2


def test_brightness_is_on_the_scale_of_the_row_itself():
    dark, bright = [[[0, 1]]], [[[9, -9]]]
    [(before, after)] = preview(image_pool(dark), [GivenImage({"pixel_values": bright})], [0], "image")
    assert (before, after) == ("  ██", "██  ")


def test_an_even_image_is_dark():
    even = [[[7, 7]]]
    assert preview(image_pool(even), [GivenImage({})], [0], "image") == [("    ", "    ")]


def test_a_large_image_is_shrunk():
    image = np.zeros((1, 40, 20))
    image[0, :3, :3] = 1
    [(before, _)] = preview(image_pool(image), [GivenImage({})], [0], "image")
    lines = before.split("\n")
    assert (len(lines), {len(line) for line in lines}) == (14, {14})  # 3 by 3 pixels a block
    assert lines[0] == "██" + 12 * " "
    assert lines[1] == 14 * " "


def test_views_that_do_not_fit_are_refused(tokenizer):
    with pytest.raises(ValueError, match="the rows are images"):
        preview(image_pool([[[0, 1]]]), [Cutoff()], [0], "image")
    with pytest.raises(ValueError, match="moves tokens"):
        preview(pool_of(tokenizer, "the ball"), [Delete()], [0], same_length=True)


def rendered(table):
    out = io.StringIO()
    Console(file=out, width=100, force_terminal=True, color_system="standard", legacy_windows=False).print(
        table
    )
    return out.getvalue()


def test_the_table_shows_numbers_and_colors():
    text = rendered(format_preview([("the[bold red] old[/] :ball:", "the[bold green] new[/] :ball:")], [41]))
    assert "41" in text
    assert "\x1b[1;31m old\x1b[0m" in text
    assert "\x1b[1;32m new\x1b[0m" in text
    assert text.count(":ball:") == 2  # no emoji of it
    assert "0" in rendered(format_preview([("a", "b")]))


def test_text_that_looks_like_markup_stays_text(tokenizer):
    tokenizer.add_tokens(["[bold]", "[a", "b]", "x\\"])
    pool = pool_of(tokenizer, "the [bold] x\\ [a b] ball")  # [CLS] the [bold] x\ [a b] ball [SEP]
    ids = list(pool.features[0]["input_ids"])
    ids[2], ids[4] = ids[3], ids[2]
    [(before, after)] = preview(pool, [Given({"input_ids": ids})], [0])
    assert Text.from_markup(before).plain == "the [bold] x\\ [a b] ball"
    assert Text.from_markup(after).plain == "the x\\ x\\ [bold] b] ball"
    out = io.StringIO()
    Console(file=out, width=100).print(format_preview([(before, after)]))
    assert "the [bold] x\\ [a b] ball" in out.getvalue()
    assert "the x\\ x\\ [bold] b] ball" in out.getvalue()
