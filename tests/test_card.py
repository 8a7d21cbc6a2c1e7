"""What a card says, that the Hub can read it, that nothing in it breaks it, and that its code runs."""

import contextlib
import io
import re
import subprocess
import sys

import pytest
import yaml
from huggingface_hub import ModelCard
from markdown_it import MarkdownIt

from hf_llm_recipes import card_language
from hf_llm_recipes.card import CardInfo, _asked, _last_parts, is_hub_id, model_card, on_the_hub, usage_code
from hf_llm_recipes.errors import UserError
from hf_llm_recipes.tasks._language_task import Writing
from hf_llm_recipes.tasks.seq2seq import Seq2Seq

HOSTILE = [
    "a|b",
    "\"quoted\" 'twice'",
    "two\nlines",
    "---",
    "key: value",
    "```",
    "<b>&amp;</b>",
    "*x* _y_",
    "\\|",
]


def per_class(names, recall=0.9, support=50):
    return {name: {"precision": 0.8, "recall": recall, "f1": 0.85, "support": support} for name in names}


def scores(names=("ham", "spam"), **changes):
    given = {
        "problem": "single_label",
        "rows": 2000,
        "accuracy": 0.9,
        "f1_macro": 0.85,
        "f1_weighted": 0.89,
        "loss": 0.3,
        "majority_baseline": 0.6,
        "calibration": {
            "ece": 0.01,
            "brier": 0.2,
            "bins": [{"count": 1, "confidence": 0.9, "accuracy": 0.8}],
        },
        "per_class": per_class(names),
        "labels": list(names),
        "confusion_matrix": [[1, 0], [0, 1]],
        "intervals_95": {"accuracy": [0.88, 0.92], "f1_macro": [0.82, 0.88]},
        "notes": [],
        "bootstrap": 1000,
        "seed": 0,
    }
    return given | changes


def regression_scores(**changes):
    given = {
        "problem": "regression",
        "rows": 100,
        "rmse": 1.0,
        "mae": 0.5,
        "r2": 0.75,
        "pearson": None,
        "spearman": 0.9,
        "mean_baseline_rmse": 2.0,
        "intervals_95": {"rmse": [0.8, 1.2]},
        "notes": ["every prediction is 2: no correlation exists"],
        "bootstrap": 1000,
        "seed": 0,
    }
    return given | changes


def make_info(**changes):
    given = {
        "name": "sms-lora",
        "task": "text_classification",
        "problem": "single_label",
        "base_model": "google-bert/bert-base-uncased",
        "base_model_license": "apache-2.0",
        "tuning": "lora",
        "weights_format": "peft",
        "label_names": ["ham", "spam"],
        "data": {
            "origin": "Hub ucirvine/sms_spam",
            "license": "cc-by-4.0",
            "config": "plain_text",
            "revision": "abc123",
            "splits": {
                "train": {"rows": 12000, "columns": ["text", "label"], "fingerprint": "f00d"},
                "test": {"rows": 2000, "columns": ["text", "label"], "fingerprint": "beef"},
            },
            "notes": ["no test split: 10 % of the train rows were held out"],
        },
        "metrics": scores(),
        "recipe_text": "model:\n  name: google-bert/bert-base-uncased\ntuning:\n  name: lora\n",
        "environment": {
            "python": "3.11.9",
            "packages": {"torch": "2.13.0", "peft": "0.21.2"},
            "device": {"cpu": "EPYC", "gpus": []},
            "seed": 42,
            "data": {"origin": "told elsewhere"},
            "notes": ["train: 3 of 12,000 rows are cut"],
        },
        "minutes": 12.34,
        "peak_memory_gib": {"host": 1.5, "gpu": 3.25},
        "command": "hf-llm-recipes run recipe.yaml",
        "baseline": "TF-IDF with logistic regression: 0.88.",
    }
    return CardInfo(**(given | changes))


def regression_info(**changes):
    return make_info(problem="regression", label_names=None, metrics=regression_scores(), **changes)


def section(card, title):
    return card.split(f"\n## {title}\n")[1].split("\n## ")[0]


def tables(markdown):
    """Cells of each table as a reader sees them."""
    found, tokens = [], MarkdownIt("commonmark").enable("table").parse(markdown)
    for token in tokens:
        if token.type == "table_open":
            found.append([])
        elif token.type == "tr_open":
            found[-1].append([])
        elif token.type == "inline" and found and token.level >= 3:
            assert {child.type for child in token.children} <= {"text", "text_special"}
            found[-1][-1].append("".join(child.content for child in token.children))
    return found


def fences(markdown, language):
    tokens = MarkdownIt("commonmark").enable("table").parse(markdown)
    return [token.content for token in tokens if token.type == "fence" and token.info == language]


class TestFrontMatter:
    def test_parses_and_comes_back_unchanged(self):
        text = model_card(make_info())
        card = ModelCard(text)
        assert card.content == text
        written = yaml.safe_load(text.split("---\n")[1])
        assert card.data.to_dict() == written
        assert written["base_model"] == "google-bert/bert-base-uncased"
        assert written["library_name"] == "peft"
        assert written["pipeline_tag"] == "text-classification"
        assert written["license"] == "apache-2.0"
        assert written["datasets"] == ["ucirvine/sms_spam"]
        assert written["metrics"] == ["accuracy", "f1"]
        assert written["tags"] == ["hf_llm_recipes", "text_classification", "lora"]

    def test_model_index(self):
        results = ModelCard(model_card(make_info())).data.eval_results
        assert [(r.metric_type, r.metric_name, r.metric_value) for r in results] == [
            ("accuracy", "Accuracy", 0.9),
            ("f1", "Macro F1", 0.85),
            ("f1", "Weighted F1", 0.89),
        ]
        first = results[0]
        assert (first.dataset_type, first.dataset_name) == ("ucirvine/sms_spam", "ucirvine/sms_spam")
        assert (first.dataset_config, first.dataset_split) == ("plain_text", "test")
        assert (first.dataset_revision, first.task_type) == ("abc123", "text-classification")

    def test_regression_leaves_out_what_does_not_exist(self):
        results = ModelCard(model_card(regression_info())).data.eval_results
        assert [r.metric_type for r in results] == ["rmse", "mae", "r_squared", "spearmanr"]

    def test_without_test_rows(self):
        text = model_card(make_info(metrics={}))
        assert ModelCard(text).data.eval_results is None
        assert "nothing was measured" in section(text, "Result")
        assert "It was not measured" in section(text, "Limits")

    @pytest.mark.parametrize(
        "base", ["/home/jane/models/bert", "~/bert", "./bert", "a/b/c", "C:\\Users\\jane\\bert", "local/bert"]
    )
    def test_a_base_model_that_is_no_hub_id(self, base):
        text = model_card(make_info(base_model=base))
        assert ModelCard(text).data.base_model is None
        assert "jane" not in text
        assert "is not on the Hub and is needed to load it" in section(text, "Limits")

    def test_a_folder_of_that_name_wins_as_in_from_pretrained(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        assert is_hub_id("runs/bert")
        (tmp_path / "runs" / "bert").mkdir(parents=True)
        assert not is_hub_id("runs/bert")

    def test_files_are_no_hub_dataset(self):
        card = ModelCard(model_card(make_info(data={"origin": "file /home/jane doe/my data.csv"})))
        assert card.data.datasets is None
        result = card.data.eval_results[0]
        assert (result.dataset_name, result.dataset_type) == ("my data.csv", "my-data.csv")

    @pytest.mark.parametrize(
        ("name", "expected"),
        [
            (None, (None, None)),
            ("mit", ("mit", None)),
            ("BSD-3-Clause", ("bsd-3-clause", None)),
            ("gpl-2.0-or-later", ("other", "gpl-2.0-or-later")),  # no id of the Hub, which would refuse it
            ("Gemma: Terms", ("other", "gemma-terms")),
        ],
    )
    def test_license(self, name, expected):
        text = model_card(make_info(base_model_license=name))
        data = ModelCard(text).data
        assert (data.license, data.license_name) == expected
        assert ("No licence is stated" in section(text, "Limits")) == (name is None)
        assert (f"Licence: {name or 'not stated'}." in text) or name == "Gemma: Terms"


class TestOnTheHub:
    def test_the_code_names_the_repository_and_nothing_else_changes(self):
        text = model_card(make_info(weights_format="transformers"))
        there = on_the_hub(text, "me/sms")
        changed = [(a, b) for a, b in zip(text.splitlines(), there.splitlines(), strict=True) if a != b]
        assert changed == [
            ("model_id = 'sms-lora'  # on the Hub, or the folder with this file", "model_id = 'me/sms'")
        ]

    @pytest.mark.parametrize("base", ["/home/jane/bert", "local/minilm"])
    def test_a_base_that_was_a_folder_is_named_as_it_is_called_there(self, base):
        text = on_the_hub(model_card(make_info(base_model=base)), "me/sms", "me/bert")
        card = ModelCard(text)
        assert card.data.base_model == "me/bert"
        assert card.data.library_name == "peft"
        (code,) = fences(text, "python")
        assert "base_model = 'me/bert'\n" in code
        assert "model_id = 'me/sms'\n" in code
        assert "hf_llm_recipes" not in code
        assert fences(text, "bash")[0] == "pip install torch transformers peft\n"
        assert "is not on the Hub" not in text

    def test_a_program_that_reads_files_fetches_them(self):
        text = on_the_hub(
            "```python\nimport numpy\n\nfolder = 'sms'  # with this file\nload(folder)\n```\n", "me/sms"
        )
        assert text.splitlines()[3:6] == [
            "from huggingface_hub import snapshot_download",
            "",
            "folder = snapshot_download('me/sms')",
        ]

    def test_a_base_of_the_hub_stays(self):
        text = model_card(make_info())
        assert ModelCard(on_the_hub(text, "me/sms", "google-bert/bert-base-uncased")).data.base_model == (
            "google-bert/bert-base-uncased"
        )
        assert on_the_hub(text, "me/sms").count("\nbase_model: ") == 1


class TestSections:
    def test_result(self):
        text = section(model_card(make_info()), "Result")
        whole, classes = tables(text)
        assert "On 2,000 test rows of ucirvine/sms_spam." in text
        assert "1,000 resamples" in text
        assert whole[1] == ["Accuracy", "0.9000", "0.8800 – 0.9200"]
        assert ["Expected calibration error", "0.0100", ""] in whole
        assert ["Baseline: always the most frequent answer", "0.6000", ""] in whole
        assert classes == [
            ["Class", "Precision", "Recall", "F1", "Test rows"],
            ["ham", "0.8000", "0.9000", "0.8500", "50"],
            ["spam", "0.8000", "0.9000", "0.8500", "50"],
        ]
        assert "Baseline: TF-IDF with logistic regression: 0.88." in text

    def test_data(self):
        text = section(model_card(make_info()), "Data")
        assert "- origin: Hub ucirvine/sms_spam" in text
        assert "- license: cc-by-4.0" in text
        assert tables(text)[0][1] == ["train", "12,000", "text, label", "f00d"]
        assert "- no test split: 10 % of the train rows were held out" in text
        assert "Nothing is recorded" in section(model_card(make_info(data={})), "Data")

    def test_training_and_compute(self):
        card = model_card(make_info())
        training = section(card, "Training")
        assert fences(training, "yaml") == [make_info().recipe_text]
        assert fences(training, "bash") == ["hf-llm-recipes run recipe.yaml\n"]
        assert "- train: 3 of 12,000 rows are cut" in training
        assert "shortened" not in training
        (rows,) = tables(section(card, "Compute"))
        assert ["training", "12.3 minutes"] in rows
        assert ["peak memory, gpu", "3.25 GiB"] in rows
        assert ["packages", "torch 2.13.0, peft 0.21.2"] in rows
        assert ["device", "cpu EPYC"] in rows
        assert "told elsewhere" not in card

    def test_energy_stands_in_the_table_and_in_grams_for_the_hub(self):
        text = model_card(make_info(energy={"kwh": 0.01234, "co2e_kg": 0.00567}))
        (rows,) = tables(section(text, "Compute"))
        assert ["energy", "0.0123 kWh"] in rows
        assert ["emissions, estimated", "0.00567 kg CO₂e"] in rows
        stated = yaml.safe_load(text.split("---\n")[1])["co2_eq_emissions"]
        assert (stated["emissions"], stated["source"]) == (5.67, "codecarbon")

    def test_compute_without_figures(self):
        card = model_card(make_info(minutes=None, peak_memory_gib=None, environment={}))
        assert "Nothing is recorded" in section(card, "Compute")
        assert "peak memory | 2.00 GiB" in section(model_card(make_info(peak_memory_gib=2.0)), "Compute")

    def test_what_it_is(self):
        first = model_card(make_info(quantization={"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}))
        assert "one of 2 classes" in first
        assert "its base in 4-bit nf4)" in first
        assert "its base in 8-bit)" in model_card(make_info(quantization={"load_in_8bit": True}))
        assert "any of 2 labels" in model_card(
            make_info(problem="multi_label", metrics=scores(subset_accuracy=0.5))
        )
        whole = model_card(regression_info(weights_format="transformers", tuning="full"))
        assert "Trained from" in whole
        assert "one number" in whole


class TestLimits:
    def limits(self, **changes):
        return section(model_card(make_info(metrics=scores(**changes))), "Limits")

    def test_a_good_model_has_only_the_standing_one(self):
        assert self.limits().strip() == (
            "- It was measured on test rows of the data above only; other sources were not measured."
        )

    def test_small_test_set(self):
        assert "small (999 rows); the 95 % interval of Accuracy is 0.040 wide" in self.limits(rows=999)
        assert "small (1 row)." in self.limits(rows=1, intervals_95={})

    def test_not_better_than_the_baseline(self):
        assert "always giving the most frequent answer (0.8800)" in self.limits(majority_baseline=0.88)
        assert "always giving" not in self.limits(majority_baseline=0.87)
        assert "always giving" in self.limits(majority_baseline=0.9, intervals_95={})
        poor = regression_info()
        poor.metrics = regression_scores(mean_baseline_rmse=1.1)
        assert "always giving the mean (1.1000)" in section(model_card(poor), "Limits")
        assert "always giving" not in section(model_card(regression_info()), "Limits")

    def test_low_recall_and_few_rows(self):
        text = self.limits(per_class=per_class(["ham"]) | per_class(["spam"], recall=0.25, support=19))
        assert "'spam' is missed more often than found: recall 0.25 on 19 rows." in text
        assert "Fewer than 20 test rows for 'spam'." in text
        assert "'ham'" not in text

    def test_a_class_without_rows_has_no_recall_to_speak_of(self):
        text = self.limits(per_class=per_class(["spam"], recall=0.0, support=0), notes=["no row of 'spam'"])
        assert "missed more often" not in text
        assert "Fewer than" not in text
        assert "- no row of 'spam'" in text

    @pytest.mark.parametrize(("accuracy", "said"), [(0.7, "too high"), (1.0, "too low")])
    def test_calibration(self, accuracy, said):
        bins = [
            {"count": 0, "confidence": None, "accuracy": None},
            {"count": 9, "confidence": 0.9, "accuracy": accuracy},
        ]
        text = self.limits(calibration={"ece": 0.15, "brier": 0.1, "bins": bins})
        assert said in text
        assert "differ by 0.150" in text

    def test_quantised_base(self):
        text = model_card(make_info(quantization="4-bit"))
        assert "trained with its base in 4-bit; the code above loads the base unquantised" in section(
            text, "Limits"
        )

    def test_quantised_base_whose_arguments_are_known(self):
        text = model_card(
            make_info(quantization={"load_in_8bit": True, "llm_int8_skip_modules": ["classifier"]})
        )
        assert "trained and measured with its base in 8-bit; with an unquantised one" in section(
            text, "Limits"
        )
        (code,) = fences(text, "python")
        assert "bits = BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=['classifier'])\n" in code
        assert "ignore_mismatched_sizes=True, quantization_config=bits\n" in code
        assert fences(text, "bash")[0] == "pip install torch transformers peft bitsandbytes\n"
        whole = model_card(make_info(quantization={"load_in_8bit": True}, weights_format="transformers"))
        assert "BitsAndBytesConfig" not in whole


class TestHostileInput:
    def test_label_names_stay_in_their_cells(self):
        info = make_info(label_names=HOSTILE, metrics=scores(HOSTILE, per_class=per_class(HOSTILE, 0.1, 5)))
        text = model_card(info)
        assert ModelCard(text).content == text
        classes = tables(section(text, "Result"))[1]
        assert [row[0] for row in classes[1:]] == [name.replace("\n", "\\n") for name in HOSTILE]
        assert all(len(row) == 5 for row in classes)
        assert text.count("\n## ") == 6
        (code,) = fences(text, "python")
        names = {}
        exec(code[code.index("labels = [") : code.index("for label")], names)
        assert names["labels"] == HOSTILE

    def test_names_of_runs_and_data_cannot_break_the_front_matter(self):
        evil = "x\n---\nlicense: mit\n# y: [&a"
        text = model_card(make_info(name=evil, data={"origin": f"file {evil}", "notes": [evil]}))
        card = ModelCard(text)
        assert card.data.model_name == evil.replace("\n", "\\n")
        assert card.data.license == "apache-2.0"
        assert card.data.eval_results[0].dataset_name == evil.replace("\n", "\\n")
        assert text.count("\n# ") == 1

    def test_a_recipe_with_fences(self):
        recipe = "# ```\n# ````yaml\n---\nmodel: {}\n"
        text = model_card(make_info(recipe_text=recipe))
        assert fences(text, "yaml") == [recipe]
        assert ModelCard(text).content == text


class TestPaths:
    @pytest.mark.parametrize(
        ("given", "expected"),
        [
            ("train: /home/jane/data/train.csv  # mine", "train: train.csv  # mine"),
            ("train: /home/jane doe/my data.csv", "train: my data.csv"),
            ("train: '/home/jane doe/x.csv'", "train: 'x.csv'"),
            ("[/home/jane/a.csv, ~/b.csv]", "[a.csv, b.csv]"),
            ("run r.yaml data.name=/home/jane/x output=../../runs/a", "run r.yaml data.name=x output=a"),
            ("saved data set /home/jane doe/rows", "saved data set rows"),
            ("C:\\Users\\jane\\x.csv and \\\\host\\share\\y.csv", "x.csv and y.csv"),
            ("file:///home/jane/x.csv", "x.csv"),
            ("cache /home/jane/ of /Users/jane, C:\\Users\\jane, /root", "cache ~ of ~, ~, ~"),
            ("https://huggingface.co/a/b hf://datasets/a/b", "https://huggingface.co/a/b hf://datasets/a/b"),
            ("google/bert data/train.csv and/or n/a 1/2", "google/bert data/train.csv and/or n/a 1/2"),
        ],
    )
    def test_are_reduced_to_their_last_part(self, given, expected):
        assert _last_parts(given) == expected

    def test_none_is_left_anywhere(self):
        home = "/home/jane/secret/rows.csv"
        text = model_card(
            make_info(
                name="/home/jane/runs/sms",
                base_model="/home/jane/bert",
                data={
                    "origin": f"file {home}",
                    "made_from": home,
                    "splits": {"test": {"rows": 5, "origin": home}},
                    "notes": [f"read from {home}"],
                },
                recipe_text=f"data:\n  name: {home}\n",
                environment={"python": home, "model": {"name": home}, "notes": [f"wrote {home}"]},
                command=f"hf-llm-recipes run {home}",
                baseline=f"see {home}",
            )
        )
        assert "jane" not in text
        assert "secret" not in text
        assert text.count("rows.csv") >= 10
        assert "Paths in the recipe are shortened" in text
        assert "model_id = 'sms'" in text


class TestInfo:
    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"problem": "single"}, r"problem is `single`(.*\n)*.*multi_label"),
            ({"weights_format": "timm"}, "weights_format is `timm`"),
            ({"label_names": None}, "a single_label model has no label names"),
            ({"example": ("a", "b", "c")}, "example holds 3 texts"),
        ],
    )
    def test_refused(self, changes, message):
        with pytest.raises(UserError, match=message):
            make_info(**changes)

    def test_import_is_light(self):
        code = (
            "import sys, hf_llm_recipes.card; "
            "sys.exit(bool({'torch', 'huggingface_hub', 'numpy', 'evaluate'} & set(sys.modules)))"
        )
        assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


PROBLEMS = {
    "single_label": ["ham", "spam", "a\nb"],
    "multi_label": ["ham", "spam", "a\nb"],
    "regression": None,
}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A BERT of one layer in a folder, with its tokenizer."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("tiny")
    words = Tokenizer(models.WordLevel({"[PAD]": 0, "[UNK]": 1, "text": 2}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="[PAD]", unk_token="[UNK]")
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}

    def save(name, num_labels):
        model = BertForSequenceClassification(BertConfig(vocab_size=3, num_labels=num_labels, **sizes)).eval()
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
        return model

    return folder, tokenizer, save


def run_code(code):
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(code, "card", "exec"), {})
    return printed.getvalue()


class TestUsageCode:
    @pytest.mark.parametrize("problem", PROBLEMS)
    @pytest.mark.parametrize("library", ["transformers", "peft"])
    @pytest.mark.parametrize("base", ["google-bert/bert-base-uncased", "/home/jane/bert", "local/minilm"])
    def test_compiles(self, problem, library, base):
        info = make_info(
            problem=problem,
            weights_format=library,
            base_model=base,
            label_names=PROBLEMS[problem],
            metrics={},
            example=('one "quoted"\n', "two"),
            max_length=64,
            trust_remote_code=True,
        )
        (code,) = fences(model_card(info), "python")
        assert code == usage_code(info) + "\n"
        compile(code, "card", "exec")
        assert ("PeftModel" in code) == (library == "peft")
        assert ("resolve_model('local/minilm')" in code) == (library == "peft" and base == "local/minilm")
        assert "max_length=64" in code
        assert "trust_remote_code=True" in code

    @pytest.mark.parametrize("problem", PROBLEMS)
    def test_answers_with_whole_weights(self, tiny, problem):
        import torch

        folder, tokenizer, save = tiny
        names = PROBLEMS[problem]
        model = save(f"whole-{problem}", len(names or [0]))
        info = make_info(
            weights_format="transformers",
            problem=problem,
            label_names=names,
            metrics={},
            example=("text text",),
            repo_id=str(folder / f"whole-{problem}"),
        )
        with torch.inference_mode():
            logits = model(**tokenizer("text text", return_tensors="pt")).logits[0]
        assert_same_answer(run_code(usage_code(info)), expected_answer(problem, names, logits))

    @pytest.mark.parametrize("problem", PROBLEMS)
    def test_answers_with_an_adapter(self, tiny, problem, monkeypatch):
        import torch
        from peft import LoraConfig, get_peft_model

        folder, tokenizer, save = tiny
        names = PROBLEMS[problem]
        save("base", 5)  # a head of another size, which the adapter's own replaces
        base = type(save("shape", len(names or [0]))).from_pretrained(
            folder / "base", num_labels=len(names or [0]), ignore_mismatched_sizes=True
        )
        model = get_peft_model(
            base, LoraConfig(task_type="SEQ_CLS", target_modules=["query", "value"])
        ).eval()
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter)
        model.save_pretrained(folder / f"adapter-{problem}")
        tokenizer.save_pretrained(folder / f"adapter-{problem}")
        monkeypatch.chdir(folder)
        info = make_info(
            problem=problem,
            label_names=names,
            metrics={},
            example=("text text",),
            base_model=str(folder / "base"),
            repo_id=str(folder / f"adapter-{problem}"),
        )
        with torch.inference_mode():
            logits = model(**tokenizer("text text", return_tensors="pt")).logits[0]
        assert_same_answer(run_code(usage_code(info)), expected_answer(problem, names, logits))


def assert_same_answer(found, expected):
    """Words as they are, numbers to seven digits: sums in another order end in another last bit."""
    number = re.compile(r"-?\d+\.\d+(?:e-?\d+)?")
    assert number.sub("#", found) == number.sub("#", expected)
    values = [[float(word) for word in number.findall(text)] for text in (found, expected)]
    assert values[0] == pytest.approx(values[1], rel=1e-6, abs=1e-6)


def expected_answer(problem, names, logits):
    if problem == "regression":
        return f"{logits.item()}\n"
    probs = logits.softmax(-1) if problem == "single_label" else logits.sigmoid()
    return "".join(f"{p:.3f}  {name}\n" for name, p in zip(names, probs.tolist(), strict=True))


@pytest.mark.parametrize("pipeline_tag", sorted(card_language.AUTO_CLASSES))
def test_a_language_models_code_compiles_and_names_its_class(pipeline_tag):
    info = make_info(
        problem="language",
        label_names=None,
        pipeline_tag=pipeline_tag,
        metrics={
            "rows": 10,
            "loss": 2.0,
            "perplexity": 7.389,
            "intervals_95": {"loss": [1.9, 2.1]},
            "bootstrap": 1000,
        },
    )
    code = usage_code(info)
    compile(code, "card", "exec")
    assert f"{card_language.AUTO_CLASSES[pipeline_tag]}.from_pretrained(" in code
    assert "num_labels" not in code
    card = model_card(info)
    assert "Perplexity a token" in card
    assert "None" not in card.split("## How to use")[0]


def language_info(metrics, **changes):
    given = {"rows": 3, "intervals_95": {key: [0.1, 0.9] for key in metrics}, "bootstrap": 1000, **metrics}
    return make_info(
        problem="language",
        label_names=None,
        pipeline_tag="text-generation",
        base_model="me/lm",
        metrics=given,
        **changes,
    )


def test_the_scores_of_rewards_and_preferences_stand_in_the_card():
    text = model_card(language_info({"reward": 0.25}, before={"reward": 0.125}))
    (rows,) = tables(section(text, "Result"))
    assert rows == [
        ["Score", "Value", "95 % interval", "Before training"],
        ["Mean reward", "0.2500", "0.1000 – 0.9000", "0.1250"],
    ]
    assert "the 95 % interval of Mean reward is 0.800 wide" in text
    names = ("preference_accuracy", "preference_accuracy_per_token", "margin")
    (rows,) = tables(section(model_card(language_info(dict.fromkeys(names, 0.5))), "Result"))
    assert [row[0] for row in rows[1:]] == [
        "How often the chosen answer is likelier",
        "The same by the mean a token",
        "Margin of the chosen answer (nats a token)",
    ]


def test_a_score_under_a_name_of_the_users_is_shown_by_that_name():
    (rows,) = tables(section(model_card(language_info({"my_score": 0.5})), "Result"))
    assert rows[1] == ["my_score", "0.5000", "0.1000 – 0.9000"]


def test_a_model_that_learnt_plain_text_is_not_asked_through_a_chat_template():
    plain = Writing({"max_new_tokens": 5, "do_sample": True}, chats=False)
    code = usage_code(language_info({"loss": 1.0}, writing=plain))
    assert "apply_chat_template" not in code
    assert "max_new_tokens=5, do_sample=True" in code


def test_a_source_stands_behind_its_prefix():
    task = Seq2Seq(prefix="to German: ", max_new_tokens=7)
    assert _asked(task, None) == {
        "writing": Writing({"do_sample": False, "max_new_tokens": 7}, chats=False, prefix="to German: "),
        "example": ("to German: Put your own text here.",),
    }
