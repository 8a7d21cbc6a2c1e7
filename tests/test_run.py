import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import WORDS, sentences, write_csv

from hf_llm_recipes.errors import DataError, InterruptedRunError, RecipeError, RunError
from hf_llm_recipes.predictor import Predictor
from hf_llm_recipes.recipe import Recipe
from hf_llm_recipes.run import plan, run

FILES = {
    ".lock",
    "README.md",
    "checkpoints",
    "environment.json",
    "log.jsonl",
    "metrics.json",
    "model",
    "predictions.parquet",
    "recipe.yaml",
    "report.html",
}


def go(values, *overrides):
    return run(Recipe.from_dict(values), *overrides)


def test_a_run_leaves_a_complete_directory(recipe):
    done = go(recipe)
    assert {p.name for p in done.path.iterdir()} == FILES
    metrics = json.loads((done.path / "metrics.json").read_text())
    assert metrics["training"]["steps"] == 4
    assert metrics["test"]["rows"] == 24  # a tenth of 240
    assert 0 <= metrics["test"]["accuracy"] <= 1
    assert set(metrics["test"]["per_class"]) == {"sport", "food", "music"}
    assert metrics["reload"]["logits_max_difference"] < 1e-5
    predictions = pd.read_parquet(done.path / "predictions.parquet")
    assert len(predictions) == 24
    environment = json.loads((done.path / "environment.json").read_text())
    assert environment["seed"] == 42
    assert environment["dtype"] == "float32"
    assert environment["packages"]["torch"]
    assert all(split in environment["data"]["splits"] for split in ("train", "eval", "test"))
    log = [json.loads(line) for line in (done.path / "log.jsonl").read_text().splitlines()]
    assert log[-1]["step"] == 4
    assert "train_loss" in log[-1]


def test_the_accuracy_is_that_of_the_saved_predictions(recipe):
    done = go(recipe)
    predictions = pd.read_parquet(done.path / "predictions.parquet")
    share = float((predictions["label"] == predictions["predicted_label"]).mean())
    assert done.metrics["test"]["accuracy"] == pytest.approx(share)


def test_it_learns_what_can_be_learned(recipe):
    done = go(recipe, "trainer.max_steps=150", "trainer.learning_rate=2e-3")
    assert done.metrics["test"]["accuracy"] > 0.9  # two topic words give each row away; chance is 1/3


def test_the_same_recipe_gives_the_same_bits(recipe, tmp_path):
    first = go(recipe)
    second = go(recipe, f"output={tmp_path / 'again'}")
    assert first.metrics["test"] == second.metrics["test"]
    weights = [(done.path / "model" / "model.safetensors").read_bytes() for done in (first, second)]
    assert weights[0] == weights[1]


def test_the_resolved_recipe_runs_again_as_it_is(recipe, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    first = go(recipe)
    second = run(first.path / "recipe.yaml")
    third = run(first.path / "recipe.yaml")
    assert (str(second.path), str(third.path)) == ("runs/tiny", "runs/tiny-2")
    assert first.metrics["test"] == second.metrics["test"]
    assert (second.path / "recipe.yaml").read_text() == (first.path / "recipe.yaml").read_text()


def test_a_second_run_never_overwrites_the_first(recipe):
    done = go(recipe)
    before = {p.name: p.stat().st_mtime_ns for p in done.path.iterdir()}
    with pytest.raises(RunError, match="holds a finished run already; nothing was changed"):
        go(recipe)
    assert {p.name: p.stat().st_mtime_ns for p in done.path.iterdir()} == before


def test_an_output_that_is_something_else_is_left_alone(recipe):
    Path(recipe["output"]).mkdir()
    (Path(recipe["output"]) / "thesis.tex").write_text("x")
    with pytest.raises(RunError, match="exists and is not empty"):
        go(recipe)
    assert (Path(recipe["output"]) / "thesis.tex").read_text() == "x"


TYPOS = [
    ("trainer.learnin_rate=1", "trainer.learnin_rate is an unknown key (did you mean `learning_rate`?)"),
    ("trainer.lr_scheduler_type=cosin", "(did you mean `cosine`?)"),
    ("trainer.train_sampling_strategy=randm", "(did you mean `random`?)"),
    ("trainer.learning_rate=fast", "trainer.learning_rate is 'fast' (a text)"),
    ("trainer.learning_rate=-1", "trainer.learning_rate is -1\n  allowed: 0 or more"),
    ("trainer.learning_rate=.nan", "trainer.learning_rate is nan\n  allowed: 0 or more"),
    ("trainer.max_steps=0", "trainer.max_steps is 0\n  allowed: 1 or more, or -1 to count in epochs"),
    ("trainer.num_train_epochs=0", "trainer.num_train_epochs is 0\n  allowed: more than 0"),
    ("trainer.per_device_train_batch_size=0", "trainer.per_device_train_batch_size is 0\n  allowed: 1 or"),
    ("trainer.adam_beta2=1", "trainer.adam_beta2 is 1\n  allowed: 0 or more, below 1"),
    ("trainer.warmup_steps=-5", "warmup_steps = -5"),
    ("trainer.data_seed=-1", "trainer.data_seed is -1\n  allowed: 0 to 4,294,967,295"),
    ("seed=-1", "seed is -1\n  allowed: 0 to 4,294,967,295"),
    ("trainer.output_dir=x", "trainer.output_dir cannot be set here"),
    ("trainer.eval_strategy=sometimes", "trainer.eval_strategy is 'sometimes'"),
    ("tuning={name: lora, lora_alfa: 2}", "tuning.lora_alfa is an unknown key (did you mean `lora_alpha`?)"),
    ("tuning={name: lora, r: big}", "tuning.r is 'big'"),
    ("tuning={name: lora, r: 0}", "r is 0; allowed: 1 or more"),
    ("tuning={name: lora, task_type: SEQ_CLS}", "tuning.task_type cannot be set here"),
    ("tuning={name: full, r: 8}", "tuning.r is an unknown key"),
    ("tuning={name: freeze, last: -1}", "last is -1"),
    ("callbacks=[{name: early_stoping}]", "(did you mean `early_stopping`?)"),
    ("callbacks=[{name: early_stopping, early_stopping_patienc: 3}]", "`early_stopping_patience`"),
    ("callbacks=[{name: early_stopping, early_stopping_patience: 0}]", "early_stopping_patience is 0"),
    ("task={name: text_classification, txt: body}", "task.txt is an unknown key (did you mean `text`?)"),
    ("task={name: text_classification, problem: multilabel}", "(did you mean `multi_label`?)"),
    ("task={name: text_clasification}", "(did you mean `text_classification`?)"),
    ("task={name: text_classification, separator: x}", "separator has an effect only on"),
    ("data.eval_fracton=0.2", "data.eval_fracton is an unknown key (did you mean `eval_fraction`?)"),
    ("data.eval_fraction=1.5", "1.5"),
    ("data.name=no/such.csv", "`no/such.csv` does not exist"),
    ("data.columns={text: body}", "data.columns: `columns: text: body`: no column `body`"),
    ("data.train=trian", "data.train: unknown split `trian` (did you mean `train`?)"),
    ("model.name=local/minilmm", "model: unknown local model `local/minilmm` (did you mean `local/minilm`?)"),
    ("quantization={load_in_4bits: true}", "(did you mean `load_in_4bit`?)"),
    ("quantization={bnb_4bit_quant_type: nf4}", "chooses neither or both of the widths"),
    ("model.dtype=float8", "model.dtype is 'float8'"),
    ("method={name: supervized}", "(did you mean `supervised`?)"),
    ("method={name: supervised, x: 1}", "method.x is an unknown key"),
    ("imports=[no_such_module_here]", "runs the code of `no_such_module_here`"),
    ("model=null", "model is missing"),
    ("model={architecture: hlr_encodr, tokenizer: x}", "(did you mean `hlr_encoder`?)"),
    ("model={architecture: hlr_encoder, preset: tinny, tokenizer: x}", "(did you mean `tiny`?)"),
    (
        "model={architecture: hlr_encoder, config: {hiden_size: 32}, tokenizer: x}",
        "unknown key 'hiden_size' of HlrEncoderConfig; did you mean 'hidden_size'?",
    ),
    ("model={architecture: hlr_encoder}", "tokenizer is missing"),
    ("model={architecture: hlr_encoder, name: x, tokenizer: x}", "either name (weights) or architecture"),
    ("model={name: x, preset: tiny}", "preset has an effect only with architecture"),
]


@pytest.mark.parametrize(("override", "message"), TYPOS, ids=[t[0] for t in TYPOS])
def test_a_mistake_in_any_section_is_named_and_nothing_is_made(recipe, override, message):
    with pytest.raises((RecipeError, DataError, RunError)) as caught:
        go(recipe, override)
    assert message in str(caught.value)
    assert str(caught.value).startswith(f"override `{override}`") or "missing" in message
    assert not Path(recipe["output"]).exists()


def test_a_user_module_adds_a_callback(recipe, tmp_path, monkeypatch):
    (tmp_path / "my_callbacks.py").write_text(
        "from transformers import TrainerCallback\n"
        "from hf_llm_recipes.registry import CALLBACKS\n\n"
        "@CALLBACKS.register\n"
        "class StepCounter(TrainerCallback):\n"
        "    def __init__(self, path: str):\n"
        "        self.path = path\n"
        "    def on_step_end(self, args, state, control, **kwargs):\n"
        "        open(self.path, 'a').write('x')\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    marks = tmp_path / "marks"
    trusted = {"imports": ["my_callbacks"], "trust_imports": True}
    go({**recipe, **trusted, "callbacks": [{"name": "step_counter", "path": str(marks)}]})
    assert marks.read_text() == "xxxx"


def test_early_stopping_that_watches_nothing_is_refused_and_leaves_no_directory(recipe):
    with pytest.raises(RecipeError, match="nothing to watch\n  do: under `trainer:` add load_best"):
        go(recipe, "callbacks=[early_stopping]")
    assert not Path(recipe["output"]).exists()


def test_early_stopping_stops(recipe):
    done = go(
        recipe,
        "callbacks=[early_stopping]",
        "trainer.max_steps=40",
        "trainer.learning_rate=1e-12",  # nothing can improve
        "trainer.eval_strategy=steps",
        "trainer.eval_steps=2",
        "trainer.save_steps=2",
        "trainer.load_best_model_at_end=true",
        "trainer.metric_for_best_model=accuracy",
    )
    assert done.metrics["training"]["steps"] == 4


NF4 = "{load_in_4bit: true, bnb_4bit_quant_type: nf4, bnb_4bit_use_double_quant: true}"


@pytest.mark.parametrize(
    ("overrides", "trainable"),
    [
        ([], "all"),
        (["tuning={name: freeze, last: 0}"], "head"),
        (["tuning={name: freeze, last: 1}"], "last"),
        (["tuning={name: lora, r: 4}"], "lora"),
        (["tuning={name: lora, r: 4, use_dora: true}"], "dora"),
        (["tuning={name: lora, r: 4, use_rslora: true}"], "lora"),
        (
            ["tuning={name: lora, r: 4}", "quantization={load_in_4bit: true, bnb_4bit_quant_type: nf4}"],
            "lora",
        ),
        (["tuning={name: lora, r: 4}", "quantization={load_in_8bit: true}"], "lora"),
        (["tuning={name: freeze, last: 1}", "quantization={load_in_4bit: true}"], "last"),
        (["tuning={name: freeze, last: 0}", "quantization={load_in_8bit: true}"], "head"),
    ],
    ids=lambda v: "+".join(v).replace("quantization", "q") if isinstance(v, list) else None,
)
def test_every_tuning_on_every_base_trains_and_reloads_to_the_same_logits(recipe, overrides, trainable):
    done = go(recipe, *overrides)
    assert done.metrics["training"]["parameters"]["trainable"] == expected_trainable(trainable)
    assert done.metrics["reload"]["logits_max_difference"] < 1e-4
    before = pd.read_parquet(done.path / "predictions.parquet")
    answers = Predictor.load(done.path).predict(list(before["text"]))
    assert [a["label"] for a in answers] == list(before["predicted_label"])


def expected_trainable(kind):
    """Worked by hand for width 32, feed-forward 64, 2 layers, 33 words, 32 positions, 3 classes."""
    head = 32 * 3 + 3
    pooler = 32 * 32 + 32
    attention = 4 * (32 * 32 + 32) + 2 * 32
    feed_forward = (32 * 64 + 64) + (64 * 32 + 32) + 2 * 32
    embeddings = (33 + 32 + 2) * 32 + 2 * 32
    r = 4
    adapters = 2 * (4 * r * (32 + 32) + 2 * r * (32 + 64)) + r * (32 + 32)  # and the pooler
    magnitudes = 2 * (4 * 32 + 64 + 32) + 32
    return {
        "head": head,
        "last": head + attention + feed_forward + pooler,
        "all": head + embeddings + 2 * (attention + feed_forward) + pooler,
        "lora": head + adapters,
        "dora": head + adapters + magnitudes,
    }[kind]


def test_the_base_is_really_quantised_and_the_head_is_not(recipe):
    import bitsandbytes as bnb

    done = go(recipe, "tuning={name: lora, r: 4}", "quantization={load_in_4bit: true}")
    model = Predictor.load(done.path).model
    kinds = {name: type(module) for name, module in model.named_modules()}
    quantised = [n for n, k in kinds.items() if issubclass(k, bnb.nn.Linear4bit) and n.endswith("base_layer")]
    assert len(quantised) == 2 * 6 + 1  # six linears a layer and the pooler
    assert not [n for n in kinds if "classifier" in n and issubclass(kinds[n], bnb.nn.Linear4bit)]


@pytest.mark.parametrize("architecture", ["hlr_encoder", "hlr_decoder"])
def test_an_architecture_of_ours_trains_from_random_weights(recipe, tiny_bert, architecture):
    model = {"architecture": architecture, "preset": "tiny", "tokenizer": str(tiny_bert)}
    model["config"] = {"hidden_size": 32, "max_position_embeddings": 32}
    done = go({**recipe, "model": model})
    assert done.metrics["reload"]["logits_max_difference"] < 1e-5
    assert {"base.py", "layers.py"} <= {p.name for p in (done.path / "model").iterdir()}  # its code travels
    config = json.loads((done.path / "model" / "config.json").read_text())
    assert (config["hidden_size"], config["vocab_size"], config["num_hidden_layers"]) == (32, 33, 2)


def test_random_weights_under_an_adapter_are_refused(recipe, tiny_bert):
    model = {"architecture": "hlr_encoder", "preset": "tiny", "tokenizer": str(tiny_bert)}
    with pytest.raises(RecipeError, match="random weights cannot stay frozen under an adapter"):
        go({**recipe, "model": model, "tuning": "lora"})


def test_a_config_that_no_model_can_be_built_from_is_refused_at_its_line(recipe, tiny_bert):
    model = {"architecture": "hlr_encoder", "tokenizer": str(tiny_bert), "config": {"hidden_size": 33}}
    with pytest.raises(RecipeError, match="hidden_size=33 is no multiple of num_attention_heads=12"):
        go({**recipe, "model": model})


def test_full_fine_tuning_of_a_quantised_base_is_refused_with_what_to_use(recipe):
    with pytest.raises(RecipeError, match="cannot train quantised weights; use `tuning: lora`"):
        go(recipe, "quantization={load_in_4bit: true}")
    assert not Path(recipe["output"]).exists()


def test_a_decoder_without_a_padding_token_classifies_too(recipe, tiny_llama):
    done = go({**recipe, "model": {"name": str(tiny_llama)}, "tuning": {"name": "lora", "r": 4}})
    assert done.metrics["reload"]["logits_max_difference"] < 1e-4
    one = Predictor.load(done.path)
    texts = [row["text"] for row in sentences(7, seed=3)]
    together = one.predict(texts)  # padded to the longest
    alone = [one.predict([text])[0] for text in texts]
    assert [t["probability"] for t in together] == pytest.approx([a["probability"] for a in alone], abs=1e-5)


def test_the_model_folder_loads_with_transformers_alone(recipe):
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    done = go(recipe)
    folder = done.path / "model"
    model, tokenizer = (
        AutoModelForSequenceClassification.from_pretrained(folder),
        AutoTokenizer.from_pretrained(folder),
    )
    frame = pd.read_parquet(done.path / "predictions.parquet").head(5)
    logits = model(**tokenizer(list(frame["text"]), padding=True, return_tensors="pt")).logits
    assert [model.config.id2label[int(i)] for i in logits.argmax(-1)] == list(frame["predicted_label"])


def test_the_adapter_folder_loads_with_peft_alone(recipe, tiny_bert):
    from peft import AutoPeftModelForSequenceClassification
    from transformers import AutoTokenizer

    done = go({**recipe, "tuning": {"name": "lora", "r": 4}}, "trainer.learning_rate=1e-2")
    folder = done.path / "model"
    model = AutoPeftModelForSequenceClassification.from_pretrained(folder, num_labels=3).eval()
    frame = pd.read_parquet(done.path / "predictions.parquet").head(5)
    batch = AutoTokenizer.from_pretrained(folder)(list(frame["text"]), padding=True, return_tensors="pt")
    names = json.loads((folder / "task.json").read_text())["config"]["id2label"]
    assert [names[str(int(i))] for i in model(**batch).logits.argmax(-1)] == list(frame["predicted_label"])


@pytest.fixture
def stopper(tmp_path, monkeypatch):
    """Keys of a recipe whose run gets one SIGINT, in the step after the one it is called with."""
    (tmp_path / "stopper.py").write_text(
        "import os, signal\n"
        "from transformers import TrainerCallback\n"
        "from hf_llm_recipes.registry import CALLBACKS\n\n"
        "@CALLBACKS.register\n"
        "class Stopper(TrainerCallback):\n"
        "    def on_step_begin(self, args, state, control, **kwargs):\n"
        "        if state.global_step == int(os.environ['STOP_AT']) and not os.path.exists("
        "os.environ['STOPPED']):\n"
        "            open(os.environ['STOPPED'], 'w').close()\n"
        "            os.kill(os.getpid(), signal.SIGINT)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("STOPPED", str(tmp_path / "stopped"))

    def after(step):
        monkeypatch.setenv("STOP_AT", str(step))
        trusted = {"imports": ["stopper"], "trust_imports": True}
        return {**trusted, "callbacks": ["stopper"], "output": str(tmp_path / "cut")}

    return after


def test_the_half_trained_run_goes_on_to_the_same_bits(recipe, tmp_path, stopper):
    recipe = {**recipe, "tuning": {"name": "lora", "r": 4, "lora_dropout": 0.1}}
    whole = go(recipe, "trainer.max_steps=6")
    cut = {**recipe, **stopper(2)}
    with pytest.raises(InterruptedRunError, match="stopped by SIGINT after step 3; a checkpoint was"):
        go(cut, "trainer.max_steps=6")
    assert not (tmp_path / "cut" / "metrics.json").exists()
    with pytest.raises(RunError, match="holds an unfinished run already"):
        go(cut, "trainer.max_steps=6")
    with pytest.raises(RecipeError, match=r"another recipe:\n    trainer.max_steps: 6 -> 7"):
        go(cut, "trainer.max_steps=7", "resume=true")
    resumed = go(cut, "trainer.max_steps=6", "resume=true")
    name = "model/adapter_model.safetensors"
    assert (resumed.path / name).read_bytes() == (whole.path / name).read_bytes()
    steps = [json.loads(line)["step"] for line in (resumed.path / "log.jsonl").read_text().splitlines()]
    assert steps[-1] == 6
    with pytest.raises(RunError, match="this run has finished already"):
        go(cut, "trainer.max_steps=6", "resume=true")


def test_a_stream_with_callbacks_goes_on_to_the_same_bits(recipe, tmp_path, stopper):
    folder = tmp_path / "split"
    folder.mkdir()
    for name, rows, seed in (("train", 120, 0), ("validation", 16, 1), ("test", 16, 2)):
        write_csv(folder / f"{name}.csv", sentences(rows, seed))
    recipe["data"] = {"name": str(folder), "streaming": True}
    recipe["task"] = {"name": "text_classification", "labels": ["food", "music", "sport"]}
    recipe["trainer"] |= {"max_steps": 20, "eval_strategy": "steps", "eval_steps": 2, "save_steps": 2}
    recipe["trainer"] |= {"load_best_model_at_end": True, "metric_for_best_model": "loss"}
    # nothing improves by 10^9: steps 4 and 6 exhaust the patience; a counter that begins anew ends at 8
    patient = {
        "name": "early_stopping",
        "early_stopping_patience": 2,
        "early_stopping_threshold": 1e9,
    }
    whole = go({**recipe, "callbacks": [patient]})
    cut = {**recipe, **stopper(4)}
    cut["callbacks"] = [patient, "stopper"]
    with pytest.raises(InterruptedRunError, match="stopped by SIGINT after step 5"):
        go(cut)
    resumed = go(cut, "resume=true")
    for done in (whole, resumed):
        assert done.metrics["training"]["steps"] == 6
    name = "checkpoints/checkpoint-6/model.safetensors"
    assert (resumed.path / name).read_bytes() == (whole.path / name).read_bytes()
    assert resumed.metrics["test"]["loss"] == whole.metrics["test"]["loss"]


def test_resume_needs_a_directory_that_a_run_made(recipe, tmp_path):
    with pytest.raises(RunError, match="no such run directory"):
        go(recipe, "resume=true")
    (tmp_path / "other").mkdir()
    with pytest.raises(RunError, match="is no run directory"):
        go(recipe, "resume=true", f"output={tmp_path / 'other'}")
    with pytest.raises(RecipeError, match="resume needs to know which run"):
        go({k: v for k, v in recipe.items() if k != "output"}, "resume=true")


def test_ctrl_c_in_the_terminal_leaves_a_checkpoint_and_says_how_to_go_on(recipe, tmp_path):
    values = {**recipe, "trainer": {**recipe["trainer"], "max_steps": 100_000, "logging_steps": 1}}
    (tmp_path / "long.yaml").write_text(Recipe.from_dict(values).dump())
    command = [sys.executable, "-m", "hf_llm_recipes.cli", "run", str(tmp_path / "long.yaml")]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    log = Path(recipe["output"]) / "log.jsonl"
    try:
        wait_for(lambda: log.exists() and log.read_text().count("\n") >= 3, child)
        child.send_signal(signal.SIGINT)
        printed, _ = child.communicate(timeout=120)
    finally:
        child.kill()
    assert child.returncode == 130
    assert "stopped by SIGINT after step" in printed
    assert (
        f"hf-llm-recipes run {recipe['output']}/recipe.yaml output={recipe['output']} resume=true" in printed
    )
    assert list((Path(recipe["output"]) / "checkpoints").glob("checkpoint-*"))
    assert "Traceback" not in printed


def wait_for(ready, child, seconds=120):
    import time

    for _ in range(seconds * 10):
        if ready():
            return
        assert child.poll() is None, child.communicate()[0]
        time.sleep(0.1)
    raise AssertionError("it took too long")


def test_a_disk_without_room_is_refused_before_anything_is_written(recipe, monkeypatch):
    import hf_llm_recipes.rundir as rundir

    monkeypatch.setattr(rundir, "free_bytes", lambda path: 1000)
    with pytest.raises(RunError, match=r"need about 0.00 GiB, 0.00 GiB are free"):
        go(recipe)
    assert not Path(recipe["output"]).exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a tmpfs takes root")
def test_a_disk_that_fills_up_keeps_the_last_checkpoint_and_says_how_to_go_on(recipe, tmp_path, monkeypatch):
    import hf_llm_recipes.rundir as rundir
    from hf_llm_recipes.checkpoints import problem_of

    small = tmp_path / "small"
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=900k", "tmpfs", str(small)], check=True)
    try:
        monkeypatch.setattr(rundir, "need_space", lambda *a: None)  # the estimate would refuse it at once
        values = {**recipe, "output": str(small / "out")}
        often = ("trainer.save_steps=1", "trainer.save_total_limit=9")
        with pytest.raises(RunError, match=r"the disk is full .*\n  do: free some space; then hf-llm"):
            go(values, *often)
        first = small / "out" / "checkpoints" / "checkpoint-1"
        assert problem_of(first) is None
        assert not (small / "out" / "checkpoints" / ".writing").exists()
        assert not (small / "out" / "model").exists()
        assert not (small / "out" / "metrics.json").exists()
        subprocess.run(["mount", "-o", "remount,size=20m", str(small)], check=True)
        again = go(values, *often, "resume=true")
        whole = go({**recipe, "output": str(tmp_path / "whole")}, *often)
        weights = [(run.path / "model" / "model.safetensors").read_bytes() for run in (again, whole)]
        assert weights[0] == weights[1]
    finally:
        subprocess.run(["umount", "--lazy", str(small)], check=True)


def test_show_names_the_class_that_reads_each_section(recipe):
    readers = plan(Recipe.from_dict({**recipe, "tuning": "lora", "callbacks": ["early_stopping"]})).readers
    assert readers["trainer"] == "transformers.training_args.TrainingArguments"
    assert readers["tuning"] == "hf_llm_recipes.tuning.lora.Lora + peft.tuners.lora.config.LoraConfig"
    assert readers["callbacks.0"] == "hf_llm_recipes.callbacks.early_stopping.EarlyStopping"


def test_a_corrupt_checkpoint_of_the_base_is_named(recipe, tiny_bert, tmp_path):
    broken = tmp_path / "broken"
    shutil.copytree(tiny_bert, broken)
    whole = (broken / "model.safetensors").read_bytes()
    (broken / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(RunError, match="safetensors file of the model is corrupt"):
        go({**recipe, "model": {"name": str(broken)}})
    assert not Path(recipe["output"]).exists()


def test_pickled_weights_are_not_loaded(recipe, tiny_bert, tmp_path):
    import torch
    from safetensors.torch import load_file

    folder = tmp_path / "pickled"
    shutil.copytree(tiny_bert, folder)
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(RunError, match="only safetensors are loaded"):
        go({**recipe, "model": {"name": str(folder)}})


def test_weights_of_another_architecture_are_refused(recipe, tiny_bert, tiny_llama, tmp_path):
    folder = tmp_path / "mixed"
    shutil.copytree(tiny_bert, folder)
    shutil.copy(tiny_llama / "model.safetensors", folder / "model.safetensors")
    with pytest.raises(RunError, match="tensors are not in the checkpoint"):
        go({**recipe, "model": {"name": str(folder)}})


def test_batch_8x1_equals_1x8(recipe, tiny_bert, tmp_path):
    shutil.copytree(tiny_bert, tmp_path / "still")  # dropout would draw other masks for other batches
    config = json.loads((tmp_path / "still" / "config.json").read_text())
    config |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    (tmp_path / "still" / "config.json").write_text(json.dumps(config))
    losses = []
    for size in (8, 1):
        done = go(
            recipe,
            f"model.name={tmp_path / 'still'}",
            f"output={tmp_path / str(size)}",
            f"trainer.per_device_train_batch_size={size}",
            f"trainer.gradient_accumulation_steps={8 // size}",
            "trainer.logging_steps=1",
            "trainer.max_steps=3",
            "trainer.learning_rate=1e-2",
        )
        lines = (done.path / "log.jsonl").read_text().splitlines()
        losses.append([json.loads(line)["loss"] for line in lines[:3]])
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)
    assert losses[0][0] != losses[0][2]


def test_predictions_stand_beside_their_own_rows_when_batches_are_grouped_by_length(recipe, tmp_path):
    rows = [{**row, "text": row["text"] + " the" * (i % 17)} for i, row in enumerate(sentences(240))]
    path = write_csv(tmp_path / "lengths.csv", rows)
    grouped = ["trainer.train_sampling_strategy=group_by_length", "trainer.per_device_eval_batch_size=4"]
    done = go(recipe, f"data.name={path}", *grouped)
    frame = pd.read_parquet(done.path / "predictions.parquet")
    topic = {word: label for label, words in WORDS.items() for word in words}
    for text, label in zip(frame["text"], frame["label"], strict=True):
        assert {topic[word] for word in text.split() if word in topic} == {label}
    answers = Predictor.load(done.path).predict(list(frame["text"]))
    names = [f"probability_{label}" for label in sorted(WORDS)]
    assert [a["probability"] for a in answers] == pytest.approx(frame[names].max(axis=1).tolist(), abs=1e-6)


@pytest.mark.parametrize("quantization", ["null", NF4])
def test_predictions_do_not_depend_on_the_batch(recipe, quantization):
    done = go(recipe, "tuning={name: lora, r: 4}", f"quantization={quantization}")
    predictor = Predictor.load(done.path)
    rows = predictor._dataset([row["text"] for row in sentences(20, seed=5)])
    one, _ = predictor.logits(rows, labeled=False, batch_size=1)
    many, _ = predictor.logits(rows, labeled=False, batch_size=20)
    np.testing.assert_allclose(one, many, atol=1e-5)


def test_multi_label_and_regression_run_to_the_end(recipe, tmp_path):
    rows = sentences(120)
    multi = [
        {"text": r["text"], "label": f"{r['label']};short" if i % 2 else r["label"]}
        for i, r in enumerate(rows)
    ]
    number = [{"text": r["text"], "label": str(len(r["text"]) / 10)} for r in rows]
    for problem, made, extra in (("multi_label", multi, ["task.separator=;"]), ("regression", number, [])):
        path = write_csv(tmp_path / f"{problem}.csv", made)
        done = go(
            recipe, f"data.name={path}", f"output={tmp_path / problem}", f"task.problem={problem}", *extra
        )
        assert done.metrics["reload"]["logits_max_difference"] < 1e-5
        assert len(Predictor.load(done.path).predict(["the ball", "soup"])) == 2


def test_a_stream_trains_once_its_classes_are_named(recipe, tmp_path):
    folder = tmp_path / "split"
    folder.mkdir()
    for name, rows, seed in (("train", 64, 0), ("validation", 16, 1), ("test", 16, 2)):
        write_csv(folder / f"{name}.csv", sentences(rows, seed))
    streamed = {**recipe, "data": {"name": str(folder), "streaming": True}}
    with pytest.raises(DataError, match="a stream does not tell its classes"):
        go(streamed)
    streamed["task"] = {"name": "text_classification", "labels": ["food", "music", "sport"]}
    done = go(streamed)
    assert done.metrics["training"]["steps"] == 4
    assert done.metrics["data"]["train"] == {"rows": "a stream"}
    assert done.metrics["test"]["rows"] == 16


def test_the_packages_run_can_be_called_more_than_once(recipe, tmp_path):
    import hf_llm_recipes as hlr
    import hf_llm_recipes.run as engine

    for number in range(2):
        done = hlr.run(Recipe.from_dict({**recipe, "output": str(tmp_path / f"again-{number}")}))
        assert done.path.name == f"again-{number}"
    assert engine.Run is type(done)


def test_liger_kernels_are_used_for_language_models_on_a_gpu_where_installed(monkeypatch):
    from types import SimpleNamespace

    import torch

    from hf_llm_recipes import training as module
    from hf_llm_recipes.methods.semi_supervised import SemiSupervised
    from hf_llm_recipes.methods.supervised import Supervised

    plan = SimpleNamespace(task=SimpleNamespace(vocabulary_labels=True), method=Supervised())
    found, gpu = {"liger_kernel": object()}, {"there": True}
    monkeypatch.setattr(module.importlib.util, "find_spec", found.get)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu["there"])
    given = module.kernel_defaults(plan)
    assert given["use_liger_kernel"] is True
    assert given["liger_kernel_config"] == {"cross_entropy": False, "fused_linear_cross_entropy": False}
    others = [
        SimpleNamespace(task=SimpleNamespace(vocabulary_labels=False), method=Supervised()),
        SimpleNamespace(task=plan.task, method=SemiSupervised()),
    ]
    assert all(module.kernel_defaults(other) == {} for other in others)
    gpu["there"] = False
    assert module.kernel_defaults(plan) == {}
    gpu["there"], _ = True, found.clear()
    assert module.kernel_defaults(plan) == {}
