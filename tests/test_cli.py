import io
import json
import logging
import shutil
import subprocess
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
import typer.testing
from conftest import sentences, write_csv

from hf_llm_recipes import cli, shipped
from hf_llm_recipes.errors import InterruptedRunError, MissingExtraError
from hf_llm_recipes.recipe import Recipe


@pytest.fixture
def call(monkeypatch, capsys):
    """Runs a command line in this process and returns its exit code and what it printed."""
    import transformers

    ours = logging.getLogger("hf_llm_recipes")
    state = ours.handlers, ours.propagate, ours.level, transformers.logging.get_verbosity()
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setenv("COLUMNS", "200")

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["hf-llm-recipes", *map(str, arguments)])
        capsys.readouterr()
        try:
            cli.main()
            code = 0
        except SystemExit as done:
            code = done.code
        out, err = capsys.readouterr()
        assert "Traceback" not in out + err
        return SimpleNamespace(code=code, out=out, err=err)

    with warnings.catch_warnings():
        yield run
    ours.handlers, ours.propagate, ours.level = state[:3]
    transformers.logging.set_verbosity(state[3])
    transformers.logging.enable_progress_bar()


def write_recipe(folder, values):
    path = folder / "tiny.yaml"
    path.write_text(Recipe.from_dict(values).dump())
    return path


@pytest.fixture(scope="module")
def finished(tiny_bert, tmp_path_factory):
    """A finished run of four steps, made by the installed script with a module of the user's own."""
    folder = tmp_path_factory.mktemp("finished")
    (folder / "my_callback.py").write_text(
        "from transformers import TrainerCallback\n"
        "from hf_llm_recipes.registry import CALLBACKS\n\n"
        "@CALLBACKS.register\n"
        "class MyCallback(TrainerCallback):\n"
        "    pass\n"
    )
    values = {
        "name": "tiny",
        "imports": ["my_callback"],
        "trust_imports": True,
        "model": {"name": str(tiny_bert)},
        "data": {"name": str(write_csv(folder / "rows.csv", sentences(120)))},
        "task": {"name": "text_classification", "examples": ["the ball", "a song"]},
        "trainer": {"max_steps": 4, "use_cpu": True, "disable_tqdm": True},
        "callbacks": ["my_callback"],
    }
    write_recipe(folder, values)
    script = Path(sys.executable).parent / "hf-llm-recipes"
    done = subprocess.run(
        [str(script), "run", "tiny.yaml", "output=out"], cwd=folder, capture_output=True, text=True
    )
    return SimpleNamespace(path=folder / "out", code=done.returncode, out=done.stdout, err=done.stderr)


def test_a_run_prints_its_result_and_where_it_lies(finished):
    assert finished.code == 0, finished.err
    assert "accuracy" in finished.out
    assert "4 steps in" in finished.out
    assert "  <-  the ball" in finished.out
    assert "  <-  a song" in finished.out
    assert "results: out" in finished.out
    for name in ("metrics.json", "predictions.parquet", "report.html", "model", "README.md"):
        assert name in finished.out
        assert (finished.path / name).exists()
    assert "has not finished" not in (finished.path / "report.html").read_text(encoding="utf-8")
    assert "training" in finished.err
    assert "no eval split: 10 % of train (12 rows) was held out" in finished.err
    assert "Warning" not in finished.err


def test_help_names_every_command(call):
    done = call("--help")
    assert done.code == 0
    for command in ("run", "list", "show", "copy", "evaluate", "predict", "push"):
        assert f" {command} " in done.out
    assert "key=value" in call("run", "--help").out


def test_no_command_prints_the_help(call):
    done = call()
    assert done.code == 2
    assert "Usage: " in done.out + done.err


def test_list_has_a_line_for_each_shipped_recipe(call):
    done = call("list")
    recipes = shipped.all_recipes()
    lines = done.out.splitlines()
    assert (done.code, len(lines)) == (0, len(recipes) + 1)
    for line, recipe in zip(lines[1:], recipes, strict=True):
        assert line.split()[0] == recipe.name
        assert recipe.header["task"] in line


def test_show_augmentation_prints_rows_before_and_after(call, tiny_bert, rows_csv, recipe, tmp_path):
    values = {**recipe, "method": "semi_supervised", "augmentation": [{"name": "mask", "rate": 0.5}]}
    values["data"] = {**recipe["data"], "labels_per_class": 4}
    done = call("show", "augmentation", write_recipe(tmp_path, values))
    assert done.code == 0, done.err
    assert "before" in done.out
    assert "[MASK]" in done.out
    values["data"] = recipe["data"]
    done = call("show", "augmentation", write_recipe(tmp_path, values))
    assert done.code == 1
    assert "there are no unlabeled rows to change" in done.err


def test_show_can_be_read_back_and_names_who_reads_what(call, tiny_bert, rows_csv, recipe, tmp_path):
    path = write_recipe(tmp_path, {**recipe, "tuning": "lora", "callbacks": ["early_stopping"]})
    done = call("show", path, "seed=7", "quantization.load_in_4bit=true")
    assert done.code == 0
    shown = Recipe.from_text(done.out)
    assert shown.get("seed") == 7
    assert shown.section("task")["problem"] == "single_label"  # a default, written out
    assert shown.section("trainer")["max_steps"] == 4
    lines = done.out.splitlines()
    for section, reader in (
        ("model:", "hf_llm_recipes.tuning._model.ModelSource"),
        ("tuning:", "hf_llm_recipes.tuning.lora.Lora + peft.tuners.lora.config.LoraConfig"),
        ("data:", "hf_llm_recipes.data.loading.Source"),
        ("task:", "hf_llm_recipes.tasks.text_classification.TextClassification"),
        ("method:", "hf_llm_recipes.methods.supervised.Supervised"),
        ("trainer:", "transformers.training_args.TrainingArguments"),
        ("callbacks:", "hf_llm_recipes.callbacks.early_stopping.EarlyStopping"),
        ("quantization:", "transformers.utils.quantization_config.BitsAndBytesConfig"),
    ):
        assert lines[lines.index(section) - 1] == f"# read by {reader}"
    again = tmp_path / "again.yaml"
    again.write_text(done.out)
    assert call("show", again).out == done.out


def test_copy(call, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = call("copy", "quickstart")
    assert done.code == 0
    assert Path("quickstart.yaml").read_text() == shipped.find_recipe("quickstart").read_text()
    assert done.out == "quickstart.yaml\nedit it, then: hf-llm-recipes run quickstart.yaml\n"
    Path("quickstart.yaml").write_text("mine")
    done = call("copy", "quickstart")
    assert (done.code, done.err) == (
        1,
        "quickstart.yaml: exists already; nothing was changed\n  do: name another file\n",
    )
    assert Path("quickstart.yaml").read_text() == "mine"
    assert call("copy", "quickstart", "new/other.yaml").code == 0
    assert call("copy", "classify/lora", "folder").code == 0
    assert Path("new/other.yaml").is_file()
    assert Path("folder/lora.yaml").is_file()
    Path("file").write_text("x")
    done = call("copy", "quickstart", "file")
    assert (done.code, done.out) == (1, "")
    assert "file/quickstart.yaml: cannot be written: " in done.err


def test_evaluate(call, finished, tmp_path):
    metrics = json.loads((finished.path / "metrics.json").read_text())["test"]
    target = tmp_path / "again.json"
    done = call("evaluate", finished.path, "--output", target)
    assert done.code == 0
    assert "accuracy" in done.out
    assert json.loads(target.read_text())["accuracy"] == metrics["accuracy"]
    rows = write_csv(tmp_path / "rows.csv", sentences(9, seed=4))
    before = target.read_text()
    done = call("evaluate", finished.path, "--data", rows, "--output", target)
    assert done.code == 1
    assert "exists already; nothing was changed" in done.err
    assert target.read_text() == before
    assert call("evaluate", finished.path, "--data", rows, "--output", tmp_path / "new.json").code == 0
    assert json.loads((tmp_path / "new.json").read_text())["rows"] == 9
    done = call("evaluate", finished.path, "--data", rows, "--output", target / "below.json")
    assert done.code == 1
    assert "below.json: cannot be written: " in done.err


def test_predict_texts(call, finished):
    done = call("predict", finished.path, "the ball", "soup, and a song")
    assert done.code == 0
    first, second = done.out.splitlines()
    assert first.endswith(")  <-  the ball")
    assert second.endswith("  <-  soup, and a song")
    assert first.split(" ")[0] in {"food", "music", "sport"}


def test_predict_lines_of_a_pipe(call, finished, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO("the ball\n\n  soup, and a song\n"))
    done = call("predict", finished.path)
    assert done.code == 0
    assert [line.split("  <-  ")[1] for line in done.out.splitlines()] == ["the ball", "soup, and a song"]


def test_predict_a_file(call, finished, tmp_path):
    rows = write_csv(tmp_path / "new.csv", [{"text": "the ball"}, {"text": "soup"}])
    target = tmp_path / "answers.parquet"
    done = call("predict", finished.path, "--file", rows, "--output", target)
    assert (done.code, done.out) == (0, f"2 rows answered: {target}\n")
    assert pd.read_parquet(target)["text"].tolist() == ["the ball", "soup"]
    done = call("predict", finished.path, "--file", rows, "--output", target)
    assert done.code == 1
    assert done.err == f"{target}: exists already; nothing was changed\n  do: name another file\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["predict", "RUN"], "give either texts, or --file FILE"),
        (["predict", "RUN", "a text", "--file", "x.csv"], "give either texts, or --file FILE"),
        (["predict", "RUN", "--file", "x.csv"], "--file needs --output FILE"),
        (["predict", "RUN", "a text", "--output", "x.csv"], "--output has an effect only with --file"),
        (["predict", "RUN", "--fil", "x.csv"], "No such option"),
        (["evaluate"], "Missing argument"),
        (["run"], "Missing argument"),
        (["trian", "x"], "No such command"),
    ],
)
def test_wrong_usage_is_told_and_exits_2(call, finished, arguments, message, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO())
    done = call(*[finished.path if word == "RUN" else word for word in arguments])
    assert (done.code, done.out) == (2, "")
    assert message in done.err


def test_an_unfinished_run_says_how_to_go_on(call, finished, tmp_path):
    shutil.copy(finished.path / "recipe.yaml", tmp_path)
    for command in (["predict", tmp_path, "x"], ["evaluate", tmp_path]):
        done = call(*command)
        assert done.code == 1
        assert f"{tmp_path}: has no model: the run has not finished\n  do: hf-llm-recipes run " in done.err
    done = call("predict", tmp_path / "nowhere", "x")
    assert done.code == 1
    assert "no such run directory" in done.err


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (InterruptedRunError("stopped"), 130, "stopped"),
        (InterruptedRunError("stopped", number=15), 143, "stopped"),
        (MissingExtraError("onnx", "export"), 1, "pip install 'hf_llm_recipes[export]'"),
        (KeyboardInterrupt(), 130, "interrupted"),
    ],
)
def test_errors_become_exit_codes(call, monkeypatch, error, code, said):
    def fail(wanted):
        raise error

    monkeypatch.setattr(shipped, "find_recipe", fail)
    done = call("run", "x.yaml")
    assert done.code == code
    assert said in done.err


def test_a_mistake_of_ours_keeps_its_traceback(monkeypatch):
    def fail(wanted):
        raise ZeroDivisionError

    monkeypatch.setattr(shipped, "find_recipe", fail)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(sys, "argv", ["hf-llm-recipes", "run", "x.yaml"])
    with pytest.raises(ZeroDivisionError):
        cli.main()


def test_answers_of_each_problem(capsys):
    answers = [
        {"label": "food", "probability": 0.876},
        {"labels": ["a", "b"], "probabilities": {}},
        {"labels": [], "probabilities": {}},
        {"value": 2.5},
    ]
    cli._print_answers(["w", "x", "y", "z"], answers)
    assert capsys.readouterr().out == "food (0.88)  <-  w\na, b  <-  x\nnone  <-  y\n2.5000  <-  z\n"


def test_the_app_is_an_ordinary_typer_app():
    done = typer.testing.CliRunner().invoke(cli.app, ["list"])
    assert done.exit_code == 0
    assert "quickstart" in done.output


HEADER = b"text,label\n"
GOOD = b"".join(f"the ball {i},{'ab'[i % 2]}\n".encode() for i in range(40))
BAD_DATA = {
    "empty": (b"", [], ["rows.csv: the file is empty (0 bytes)", "do: "]),
    "header only": (HEADER, [], ["rows.csv: the file has columns but no rows", "do: "]),
    "encoding": (HEADER + b"caf\xe9,a\n" + GOOD, [], ["rows.csv:2: byte 0xe9", "do: set `encoding:`"]),
    "fields": (
        HEADER + GOOD + b"the ball, the goal,a\n",
        [],
        ["rows.csv:42: 3 fields where the header has 2", "do: quote a field that holds `,`"],
    ),
    "column": (
        b"txt,label\n" + GOOD,
        [],
        [
            "there is no column `text` (did you mean `txt`?)",
            "allowed: txt, label",
            "do: name it in `task.text`",
        ],
    ),
    "label column": (
        b"text,lable\n" + GOOD,
        [],
        ["no column `label`", "(did you mean `lable`?)", "allowed: text, lable", "do: "],
    ),
    "outside": (
        HEADER + GOOD + b"a song,c\n",
        ["task.labels=[a, b]"],
        ["split, row ", "label 'c' is none of the classes", "allowed: a, b", "do: mend the row"],
    ),
    "one class": (
        HEADER + GOOD.replace(b",b", b",a"),
        [],
        ["train split: all 32 rows have one class ('a')", "do: check `task.label`"],
    ),
    "no label": (
        HEADER + GOOD.replace(b",b", b","),
        [],
        ["split, row ", "has no label", "do: take the row out"],
    ),
    "empty texts": (
        HEADER + b"".join(b" ,%c\n" % b"ab"[i % 2] for i in range(40)),
        [],
        ["train split: all 32 texts are empty", "do: check `task.text`"],
    ),
    "max_length": (
        HEADER + GOOD,
        ["task.max_length=99"],
        [
            "override `task.max_length=99`: task: max_length is 99, but the model takes 32 tokens",
            "allowed: ",
        ],
    ),
}


@pytest.mark.parametrize("case", BAD_DATA)
def test_bad_data_is_named_and_leaves_no_run(call, recipe, tmp_path, case):
    content, overrides, messages = BAD_DATA[case]
    Path(recipe["data"]["name"]).write_bytes(content)
    done = call("run", write_recipe(tmp_path, recipe), *overrides)
    assert done.code == 1
    for message in messages:
        assert message in done.err
    assert not Path(recipe["output"]).exists()


def test_a_missing_file_gets_its_neighbours(call, recipe, tmp_path):
    done = call("run", write_recipe(tmp_path, recipe), f"data.name={tmp_path}/row.csv")
    assert done.code == 1
    assert "row.csv` does not exist" in done.err
    assert "rows.csv" in done.err
    assert not Path(recipe["output"]).exists()


def test_texts_that_are_too_long_or_empty_are_counted_and_said(call, recipe, tmp_path):
    rows = [{"text": "a " * (40 if i % 4 == 0 else 3), "label": "ab"[i % 2]} for i in range(40)]
    rows[1]["text"] = rows[3]["text"] = ""
    write_csv(tmp_path / "rows.csv", rows)
    write_csv(tmp_path / "held.csv", rows[:20])
    done = call(
        "run", write_recipe(tmp_path, recipe), f"data.eval={tmp_path}/held.csv", "trainer.max_steps=1"
    )
    assert done.code == 0, done.err
    # five of twenty rows have 40 tokens, [CLS] and [SEP]; the model takes 32
    assert (
        "eval: 5 of 20 rows (25.0 %) are longer than 32 tokens and are cut; 50 tokens are not seen"
        in done.err
    )
    assert "eval: 2 of 20 texts are empty" in done.err
    found = json.loads((Path(recipe["output"]) / "metrics.json").read_text())["data"]["eval"]
    assert (found["rows_cut"], found["tokens_cut"], found["rows_empty"]) == (5, 50, 2)


def test_bad_models_are_named_and_leave_no_run(call, recipe, tiny_bert, tmp_path):
    path = write_recipe(tmp_path, recipe)
    other = tmp_path / "other"
    other.mkdir()
    (other / "thesis.tex").write_text("x")
    corrupt = shutil.copytree(tiny_bert, tmp_path / "corrupt")
    weights = (corrupt / "model.safetensors").read_bytes()
    (corrupt / "model.safetensors").write_bytes(weights[:1000])
    no_words = shutil.copytree(tiny_bert, tmp_path / "no-words")
    (no_words / "tokenizer.json").unlink()
    (no_words / "tokenizer_config.json").unlink()
    for name, message in (
        (other, "holds no model: no config.json"),
        (corrupt, f"{corrupt}: a safetensors file of the model is corrupt: "),
        (no_words, f"{no_words}: the tokenizer has no vocabulary: its files are missing"),
        (tmp_path / "nowhere", "nowhere"),
    ):
        done = call("run", path, f"model.name={name}")
        assert done.code == 1
        assert message in done.err
        assert "  do: " in done.err or "  allowed: " in done.err
        assert not Path(recipe["output"]).exists()


def test_an_output_that_exists_is_left_alone(call, recipe, tmp_path):
    Path(recipe["output"]).mkdir()
    (Path(recipe["output"]) / "mine.txt").write_text("x")
    done = call("run", write_recipe(tmp_path, recipe))
    assert done.code == 1
    assert "exists and is not empty; nothing was changed\n  do: choose another output" in done.err
    assert [p.name for p in Path(recipe["output"]).iterdir()] == ["mine.txt"]


def test_half_precision_of_the_recipe_trains_an_adapter(call, recipe, tmp_path):
    done = call("run", write_recipe(tmp_path, {**recipe, "tuning": "lora"}), "model.dtype=bfloat16")
    assert done.code == 0, done.err
    assert "bfloat16 weights, as the recipe says" in done.err
    assert call("predict", recipe["output"], "the ball").code == 0


def test_a_mistake_in_a_recipe_has_its_line(call, recipe, tmp_path):
    path = write_recipe(tmp_path, recipe)
    path.write_text(path.read_text() + "  learnin_rate: 1\n")
    done = call("run", path)
    line = path.read_text().count("\n")
    assert done.code == 1
    assert (
        f"{path}:{line}: trainer.learnin_rate is an unknown key (did you mean `learning_rate`?)" in done.err
    )
    done = call("run", "quickstrat")
    assert done.code == 1
    assert "there is no recipe `quickstrat` (did you mean `quickstart`?)" in done.err


def test_show_model_draws_a_checkpoint_or_a_preset(call, tiny_bert):
    drawn = call("show", "model", tiny_bert)
    assert drawn.code == 0
    assert "BertModel: " in drawn.out
    assert "2 × BertLayer" in drawn.out
    ours = call("show", "model", "hlr_decoder/tiny")
    assert "2 × Block" in ours.out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["hlr_decoder/tinny"], "no preset `tinny` of hlr_decoder (did you mean `tiny`?)"),
        (["hlr_decoder", "x"], "`x` is one word too many"),
    ],
)
def test_show_model_of_nothing_says_what_there_is(call, words, message):
    done = call("show", "model", *words)
    assert done.code == 1
    assert message in done.err


def test_convert_there_and_back_gives_the_same_weights(call, tiny_bert, tmp_path):
    from safetensors.torch import load_file

    ours, back = tmp_path / "ours", tmp_path / "back"
    assert call("convert", tiny_bert, ours).code == 0
    assert json.loads((ours / "config.json").read_text())["model_type"] == "hlr_encoder"
    assert call("convert", ours, back).code == 0
    first, second = (load_file(folder / "model.safetensors") for folder in (tiny_bert, back))
    assert first.keys() == second.keys()
    assert all((first[name] == second[name]).all() for name in first)
    again = call("convert", tiny_bert, ours)
    assert again.code == 1
    assert "exists already; nothing was changed" in again.err


def test_what_cannot_be_converted_is_named_and_leaves_nothing(call, tmp_path):
    from transformers import MambaConfig, MambaModel

    config = MambaConfig(vocab_size=10, hidden_size=8, num_hidden_layers=1, state_size=4)
    MambaModel(config).save_pretrained(tmp_path / "mamba")
    done = call("convert", tmp_path / "mamba", tmp_path / "out")
    assert done.code == 1
    assert "model_type='mamba' cannot be converted; allowed: bert" in done.err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("semi", "used"), [(0.4, "trained without the pool"), (0.5, "used the pool")])
def test_what_the_guard_said_is_printed(semi, used, capsys):
    from rich.console import Console

    from hf_llm_recipes.cli import _show_beside

    found = {"metric": "f1", "semi_supervised": semi, "supervised": 0.5, "folds": 3, "rows": 12}
    method = {"guard": ["step 20: the unlabeled loss does harm"], "cross_fit": found}
    _show_beside(Console(width=200), {"method": method})
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "guard: step 20: the unlabeled loss does harm"
    assert lines[1].endswith(f"semi-supervised {semi:.4f}, supervised 0.5000: the run {used}")
