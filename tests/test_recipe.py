import dataclasses
import enum
import os
from pathlib import Path
from typing import Any, Literal

import pytest

from hf_llm_recipes.errors import DataError, RecipeError
from hf_llm_recipes.recipe import Recipe, dump_yaml, fits
from hf_llm_recipes.registry import TUNINGS


class Kind(str, enum.Enum):
    LINEAR = "linear"
    COSINE = "cosine"


@dataclasses.dataclass(kw_only=True)
class Options:
    size: int
    rate: float = 0.1
    kind: Kind | str = "linear"
    mode: Literal["a", "b"] = "a"
    names: list[str] | None = None
    on: bool = False

    def __post_init__(self):
        if self.rate > 1:
            raise ValueError(f"rate is {self.rate}; allowed: up to 1")


TEXT = """\
name: one
trainer:
  size: 3
  rate: 2e-5
tuning: lora
"""


def read(text, *overrides):
    recipe = Recipe.from_text(text, source="r.yaml")
    for override in overrides:
        recipe.override(override)
    return recipe


@pytest.mark.parametrize(
    ("written", "value"),
    [
        ("2e-5", 2e-5),
        ("2E5", 2e5),
        ("1.", 1.0),
        (".5", 0.5),
        ("-3", -3),
        ("007", 7),
        ("no", "no"),
        ("on", "on"),
        ("1_000", "1_000"),
        ("12:30", "12:30"),
        ("'2e-5'", "2e-5"),
        ("true", True),
        ("~", None),
        ("[1, a]", [1, "a"]),
        ("2026-01-02", "2026-01-02"),
        (".inf", float("inf")),
    ],
)
def test_scalars_follow_yaml_1_2(written, value):
    assert read(f"name: x\ntrainer:\n  v: {written}\n").values["trainer"]["v"] == value


def test_what_is_dumped_reads_back_the_same():
    values = {"a": "2e-5", "b": 2e-5, "c": "no", "d": None, "e": "", "f": "007", "g": [1, "1", True, "true"]}
    recipe = read("trainer:\n" + "".join(f"  {line}\n" for line in dump_yaml(values).splitlines()))
    assert recipe.values["trainer"] == values


def test_a_typo_is_named_with_file_line_and_the_nearest_key():
    recipe = read("name: one\ntrainer:\n  size: 3\n  rat: 1\n")
    with pytest.raises(RecipeError) as caught:
        recipe.arguments("trainer", cls=Options)
    assert str(caught.value).splitlines() == [
        "r.yaml:4: trainer.rat is an unknown key (did you mean `rate`?)",
        "  allowed: size, rate, kind, mode, names, on",
    ]


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ("size: three", r"r.yaml:3: trainer.size is 'three' \(a text\)\n  allowed: a whole number"),
        ("size: 3.5", r"trainer.size is 3.5 \(a number\)"),
        ("size: true", r"trainer.size is True \(a true/false\)"),
        ("size: 3\n  rate: 2e-5x", r"r.yaml:4: trainer.rate is '2e-5x'"),
        (
            "size: 3\n  kind: cosin",
            r"trainer.kind is 'cosin' \(a text\) \(did you mean `cosine`\?\)\n  allowed: linear, cosine",
        ),
        ("size: 3\n  mode: c", r"trainer.mode is 'c' \(a text\)\n  allowed: a, b"),
        ("size: 3\n  names: a", r"trainer.names is 'a' \(a text\)\n  allowed: a list of: text"),
        ("size: 3\n  names: [1]", r"trainer.names is \[1\]"),
        ("size: 3\n  on: yes", r"trainer.on is 'yes' \(a text\)\n  allowed: true or false"),
        (
            "rate: 0.5",
            r"trainer.size is missing\n  allowed: a whole number\n  do: add `size:` under `trainer:`",
        ),
        ("size: 3\n  rate: 2", r"r.yaml:4: trainer: rate is 2; allowed: up to 1"),
    ],
)
def test_a_bad_value_is_named_with_what_is_allowed(section, message):
    with pytest.raises(RecipeError, match=message):
        read(f"name: one\ntrainer:\n  {section}\n").build("trainer", cls=Options)


def test_a_good_section_becomes_its_class():
    made = read("trainer: {size: 3, rate: 1, kind: cosine, names: [a], on: true}").build(
        "trainer", cls=Options
    )
    assert made == Options(size=3, rate=1, kind="cosine", names=["a"], on=True)


def test_refused_keys_say_what_to_do_instead():
    with pytest.raises(RecipeError, match=r"trainer.size cannot be set here\n  do: set it elsewhere"):
        read(TEXT).arguments("trainer", cls=Options, refused={"size": "set it elsewhere"})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "r.yaml: is empty"),
        ("- a\n- b\n", "r.yaml: is a list, not a mapping"),
        ("trainer: {a: [}\n", "r.yaml:1: is not valid YAML"),
        ("name: a\n\ttask: b\n", "r.yaml:2: is not valid YAML"),
        ("name: a\ntask: b\nname: c\n", r"r.yaml:3: name is given twice \(first at line 1\)"),
        ("trainr: {}\n", r"r.yaml:1: trainr is an unknown key \(did you mean `trainer`\?\)"),
        ("seed: soon\n", r"r.yaml:1: seed is 'soon'"),
        ("trainer: 3\n", "r.yaml:1: trainer is 3"),
        ("callbacks: early_stopping\n", "r.yaml:1: callbacks is 'early_stopping'"),
        ("1: a\n", "r.yaml:1: .*a key must be a word"),
        ("a: &x {b: 1}\ntask: {<<: *x}\n", "r.yaml:2: merges another mapping"),
        ("name: !!python/object:os.system x\n", "r.yaml:1: the tag `!!python/object:os.system` is not read"),
        ("callbacks: !!python/object/apply:os.system [x]\n", "r.yaml:1: the tag .* is not read"),
        ("seed: !!int x\n", "r.yaml:1: `x` is no int that can be read"),
        ("trainer: {learning_rate: !!float y}\n", "r.yaml:1: `y` is no float"),
        ("compare: !!bool z\n", "r.yaml:1: `z` is no bool"),
        ("a: 1\n!!int q: 1\n", "r.yaml:2: `q` is no int"),
        ("seed: " + "9" * 5000, "r.yaml:1: `9{60}` is no int"),
        ("name: a\x00b\n", r"r.yaml:1: holds the control character"),
        ("trainer: " + "[" * 400 + "]" * 400, "levels|nested"),
        ("trainer: " + "[" * 5000 + "]" * 5000, "levels|nested"),
    ],
)
def test_a_file_that_is_no_recipe_is_refused_at_its_line(text, message):
    with pytest.raises(RecipeError, match=message):
        read(text)


def test_an_alias_bomb_is_refused_before_it_is_expanded():
    lines = ["trainer:", "  a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"  a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 9)]
    with pytest.raises(RecipeError, match="more than 10,000 values"):
        read("\n".join(lines))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("missing.yaml", None, "no such recipe"),
        ("latin.yaml", "name: caf\xe9".encode("latin-1"), r"is not UTF-8 text \(byte 9\)"),
        ("large.yaml", b"# " + b"x" * 1_000_000, "is larger than 1,000,000 bytes"),
        ("x" * 300, None, "cannot be read: File name too long"),
        ("a\0b", None, "is no name of a file"),
    ],
)
def test_a_file_that_cannot_be_read_is_named(tmp_path, name, content, message):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(RecipeError, match=message):
        Recipe.load(tmp_path / name)


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.yaml")
    with pytest.raises(RecipeError, match="is no file of text"):
        Recipe.load(tmp_path / "pipe.yaml")


def test_a_byte_order_mark_is_passed_over(tmp_path):
    (tmp_path / "bom.yaml").write_bytes(b"\xef\xbb\xbfseed: 3\n")
    assert Recipe.load(tmp_path / "bom.yaml").get("seed") == 3


def test_what_a_class_of_upstreams_raises_gets_the_line():
    recipe = read("trainer: {accelerator_config: none.json}\n")
    with pytest.raises(RecipeError, match=r"r.yaml:1: trainer: FileNotFoundError: .*none.json"):
        recipe.constructed(lambda: Path("none.json").read_text(), "trainer")


def test_a_folder_is_no_recipe(tmp_path):
    with pytest.raises(RecipeError, match="is a folder"):
        Recipe.load(tmp_path)


def test_the_name_defaults_to_the_files(tmp_path):
    (tmp_path / "my-run.yaml").write_text("task: text_classification\n")
    assert Recipe.load(tmp_path / "my-run.yaml").name == "my-run"


def test_overrides_set_replace_and_take_out():
    recipe = read(
        TEXT + "callbacks: [{name: x, n: 1}]\n",
        "trainer.size=5",
        "trainer.rate=null",
        "tuning.r=8",
        "model.name=a=b",
        "callbacks.0.n=2",
        "seed=7",
    )
    assert recipe.values["trainer"] == {"size": 5}
    assert recipe.values["tuning"] == {"name": "lora", "r": 8}
    assert recipe.values["model"] == {"name": "a=b"}
    assert recipe.values["callbacks"] == [{"name": "x", "n": 2}]
    assert recipe.values["seed"] == 7


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("trainer.size", "override `trainer.size`: is not key=value"),
        ("=3", "is not key=value"),
        ("trainr.size=3", r"override `trainr.size=3`: trainr is an unknown key \(did you mean `trainer`"),
        ("callbacks.3.n=1", "`3` is no item of a list of 1"),
        ("name.x.y=1", "has no keys"),
        ("trainer=[", "override `trainer=\\[`.*is not valid YAML"),
        ("seed=x", "override `seed=x`: seed is 'x'"),
    ],
)
def test_a_bad_override_is_quoted(override, message):
    with pytest.raises(RecipeError, match=message):
        read(TEXT + "callbacks: [{name: x}]\n", override)


def test_a_bad_value_in_an_override_points_at_the_override():
    with pytest.raises(RecipeError, match=r"override `trainer.sise=3`: trainer.sise is an unknown key"):
        read(TEXT, "trainer.sise=3").arguments("trainer", cls=Options)


def test_a_section_may_be_the_bare_name():
    recipe = read(TEXT)
    assert recipe.section("tuning") == {"name": "lora"}
    assert recipe.named(TUNINGS, "tuning").__name__ == "Lora"


@pytest.mark.parametrize(
    ("tuning", "message"),
    [
        ("lorra", r"r.yaml:2: tuning: unknown tuning `lorra` \(did you mean `lora`\?\)"),
        ("{r: 8}", "r.yaml:2: tuning needs a name\n  allowed: freeze, full, lora"),
        ("{name: 3}", "tuning.name is 3, not a word"),
    ],
)
def test_a_name_that_is_not_registered_is_answered_with_the_nearest(tuning, message):
    with pytest.raises(RecipeError, match=message):
        read(f"name: x\ntuning: {tuning}\n").named(TUNINGS, "tuning")


def test_differences_name_each_value_but_not_the_place_of_the_run():
    first = read("name: a\nseed: 1\noutput: x\ntrainer: {lr: 1, b: 2}\n")
    second = read("name: a\nseed: 1\noutput: y\nresume: true\ntrainer: {lr: 2, c: 3}\n")
    assert first.differences(second) == [
        "trainer.b: 2 -> None",
        "trainer.c: None -> 3",
        "trainer.lr: 1 -> 2",
    ]


@pytest.mark.parametrize(
    ("value", "hint", "answer"),
    [
        (1, float, True),
        (True, int, False),
        (1, bool, False),
        ("x", str | None, True),
        (None, str | None, True),
        (["a"], list[str] | str, True),
        ({"a": 1}, dict[str, float], True),
        ({"a": "x"}, dict[str, float], False),
        ("cosine", Kind, True),
        ("x", Kind | str, False),
        ([1, 2], tuple[int, ...], True),
        ("anything", Any, True),
        ("anything", object, True),
    ],
)
def test_fits(value, hint, answer):
    assert fits(value, hint) is answer


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (DataError("`x.csv` is gone"), "r.yaml:3: data: `x.csv` is gone"),
        (DataError("x.csv is gone"), "r.yaml:1: data: x.csv is gone"),
        (DataError("no `body`", where="data.columns"), "r.yaml:4: data.columns: no `body`"),
        (DataError("no rows", where="data.test"), "r.yaml:1: data.test: no rows"),
        (DataError("no rows", where="data"), "r.yaml:1: data: no rows"),
        (DataError("no rows", where="x.csv:7"), "x.csv:7: no rows"),
        (DataError("no rows", where="data.csv:7"), "data.csv:7: no rows"),
        (ValueError("columns may not be"), "r.yaml:4: data: columns may not be"),
    ],
)
def test_an_error_gets_the_line_of_the_key_that_it_is_about(error, message):
    def fail():
        raise error

    recipe = read("data:\n\n  name: x.csv\n  columns: {text: body}\n")
    with pytest.raises(ValueError) as caught:
        recipe.located(fail, "data")
    assert str(caught.value) == message
