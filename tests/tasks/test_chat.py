import contextlib
import io

import numpy as np
import pandas as pd
import pytest
import torch
from _tiny_chat import (
    BYE,
    END,
    HELLO,
    HI,
    LINE,
    NO_SYSTEM,
    USER,
    WHY,
    WITH_BOS,
    said,
    tiny_llama,
    tiny_tokenizer,
)
from conftest import write_csv
from datasets import Dataset
from transformers import AutoModelForCausalLM, LlamaConfig

from hf_llm_recipes.card import EXAMPLE
from hf_llm_recipes.data.loading import Loaded
from hf_llm_recipes.errors import DataError, RecipeError
from hf_llm_recipes.predictor import Predictor
from hf_llm_recipes.recipe import Recipe
from hf_llm_recipes.run import plan, run
from hf_llm_recipes.tasks import _chat_scoring
from hf_llm_recipes.tasks.chat import Chat

CONFIG = LlamaConfig(vocab_size=20, max_position_embeddings=64)
PAIRS = [("hello", "hi"), ("bye", "good day"), ("why", "so it is"), ("be kind", "it is good")]


def rows_of(*conversations):
    return Dataset.from_list([{"messages": messages} for messages in conversations])


def prepared(train, *, tokenizer=None, config=CONFIG, **task):
    test = rows_of(said("hello", "hi"))
    loaded = Loaded(train=train, eval=None, test=test, description={})
    return Chat(**task).prepare(loaded, tokenizer or tiny_tokenizer(), config)


# a message of one word is (start, role, line, word, end, line)
SHORT, LONG = said("hello", "hi"), said("hello", "hi", "bye", "good day")  # 12 and 25 tokens


def test_features_and_counts():
    made = prepared(rows_of(SHORT, LONG))
    assert made.train[0]["input_ids"] == [2, USER, LINE, HELLO, END, LINE, 2, 7, LINE, HI, END, LINE]
    assert made.train[0]["labels"] == [-100] * 9 + [HI, END, -100]
    assert made.train["row"] == [0, 1]
    assert made.findings["train"] == {
        "form": "messages",
        "rows": 2,
        "rows_used": 2,
        "rows_bad": 0,
        "rows_too_long": 0,
        "tokens": 37,
        "supervised_tokens": 7,
        "tokens_lost": 0,
        "supervised_tokens_lost": 0,
        "split_tokens": 0,
        "tokens_per_row_median": 18.5,
        "tokens_per_row_max": 25,
    }
    assert made.notes == [
        "form of the rows: messages; the chat template shows the assistant's turns by its renderings of what "
        "came before"
    ]


def test_the_token_that_pads_is_learnt_where_it_ends_a_turn():
    made = prepared(rows_of(SHORT, LONG))
    batch = made.collator([made.train[0], made.train[1]])
    assert batch["input_ids"][0].tolist()[12:] == [END] * 13
    assert batch["labels"][0].tolist() == [-100] * 9 + [HI, END] + [-100] * 14
    assert batch["attention_mask"].sum(1).tolist() == [12, 25]


CUT = {
    "drop": ([0], "are left out: 25 of 37 tokens, 5 of 7 supervised ones, are not seen"),
    "cut_left_turns": ([0, 1], "lose their oldest turns: 12 of 37 tokens, 2 of 7 supervised ones"),
    "cut": ([0, 1], "are cut at their end: 10 of 37 tokens, 3 of 7 supervised ones"),
}


@pytest.mark.parametrize("how", CUT)
def test_long_rows_are_counted_whatever_happens_to_them(how):
    kept, said_ = CUT[how]
    made = prepared(rows_of(SHORT, LONG), max_length=15, truncation=how)
    assert made.train["row"] == kept
    assert all(len(ids) <= 15 for ids in made.train["input_ids"])
    assert f"train split: 1 of 2 rows (50.0 %) are longer than 15 tokens and {said_}" in made.notes[-1]


def test_long_rows_can_stop_the_run():
    with pytest.raises(DataError, match=r"train split, row 1: 2 of 3 rows are longer than 15 tokens: 1, 2"):
        prepared(rows_of(SHORT, LONG, LONG), max_length=15, truncation="refuse")


def test_more_than_the_model_takes():
    with pytest.raises(DataError, match="max_length is 65, but the model takes 64 tokens"):
        prepared(rows_of(SHORT), max_length=65)


def test_a_row_longer_than_the_context_is_left_out_and_said():
    made = prepared(rows_of(SHORT, said("hello " * 60, "hi")))
    assert made.train["row"] == [0]
    assert (
        "1 of 2 rows (50.0 %) are longer than 64 tokens and are left out: 71 of 83 tokens" in made.notes[-1]
    )


@pytest.mark.parametrize(
    ("bad", "why"),
    [
        ([{"role": "user", "content": "hello"}], "no token of it would be learnt: it has no answer"),
        ([], "the conversation is empty"),
        (said("hello", "hi")[::-1], "message 0 is the assistant's, before any of the user"),
    ],
)
def test_bad_rows_are_named_or_left_out(bad, why):
    with pytest.raises(DataError, match=f"train split, row 1: {why}.*; 2 of 4 rows cannot be used: 1, 3"):
        prepared(rows_of(SHORT, bad, LONG, bad))
    made = prepared(rows_of(SHORT, bad, LONG, bad), bad_rows="drop")
    assert made.train["row"] == [0, 2]
    assert made.findings["train"]["rows_bad"] == 2
    assert f"2 of 4 rows cannot be learnt from; left out (2: {why}" in made.notes[-1]


def test_a_cut_that_leaves_nothing_to_learn_is_named():
    with pytest.raises(
        DataError, match=r"row 0: no token .* the first 9 of its 12 tokens hold no answer; 2 of"
    ):
        prepared(rows_of(SHORT, LONG), max_length=9, truncation="cut")


def test_nothing_left():
    with pytest.raises(
        DataError, match=r"train split: no row of 1 can be learnt from: all are longer than 5"
    ):
        prepared(rows_of(SHORT), max_length=5)


def test_ids_beyond_the_embeddings():
    with pytest.raises(DataError, match="makes the id 10, but the model has embeddings for 9 tokens only"):
        prepared(rows_of(said("hello", "bye")), config=LlamaConfig(vocab_size=9, max_position_embeddings=64))


def test_no_template_and_a_refusing_one():
    with pytest.raises(DataError, match="the tokenizer has no chat template"):
        prepared(rows_of(SHORT), tokenizer=tiny_tokenizer(None))
    assert prepared(rows_of(SHORT), tokenizer=tiny_tokenizer(None), chat_template="chatml").notes[0] == (
        "chat template: chatml"
    )
    with pytest.raises(DataError, match="row 0: the chat template refuses it: no system here"):
        prepared(rows_of(SHORT), tokenizer=tiny_tokenizer(NO_SYSTEM), system="be kind")


def test_double_first_tokens_are_refused():
    twice = tiny_tokenizer("{{ bos_token }}" + WITH_BOS, bos="<s>")
    with pytest.raises(DataError, match="row 0: it begins with '<s>' twice: the template writes it already"):
        prepared(rows_of(SHORT), tokenizer=twice)


def test_plain_text_is_cut_into_rows_and_nothing_is_lost():
    text = Dataset.from_dict({"text": ["hello hi bye", "why", "so it is so it is"]})
    loaded = Loaded(train=text, eval=None, test=text, description={})
    made = Chat(max_length=3).prepare(loaded, tiny_tokenizer(), CONFIG)
    # 4, 2 and 7 tokens with the end; a lone last one takes its neighbour along
    assert [len(ids) for ids in made.train["input_ids"]] == [2, 2, 2, 3, 2, 2]
    assert made.train["labels"] == made.train["input_ids"]
    assert made.train["row"] == [0, 0, 1, 2, 2, 2]
    assert made.train["input_ids"][:3] == [[HELLO, HI], [BYE, END], [WHY, END]]


def test_fields_that_do_not_go_together():
    for given, why in (
        ({"max_length": 2}, "max_length is 2; allowed: 3 or more"),
        ({"format": "text", "system": "be kind"}, "system has no effect on plain text"),
        ({"format": "text", "loss_on": "last_assistant"}, "no effect on plain text"),
        ({"system": " "}, "system is empty"),
        ({"generation": {"max_new_token": 3}}, "did you mean `max_new_tokens`"),
    ):
        with pytest.raises(ValueError, match=why):
            Chat(**given)


def test_many_rows_are_read_by_several_processes(monkeypatch):
    monkeypatch.setattr("hf_llm_recipes.tasks.chat.ROWS_A_PROCESS", 20)
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    bad = [{"role": "user", "content": "hello"}]
    train = rows_of(*[SHORT, LONG, bad] * 15)
    made = prepared(train, bad_rows="drop")
    assert len(made.train) == 30
    assert made.train["row"] == [i for i in range(45) if i % 3 != 2]
    assert made.findings["train"]["rows_bad"] == 15


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return tiny_llama(tmp_path_factory.mktemp("chat-llama"))


@pytest.fixture
def values(llama, tmp_path):
    rows = [{"prompt": asked, "completion": answered} for asked, answered in PAIRS] * 12
    return {
        "name": "tiny-chat",
        "output": str(tmp_path / "out"),
        "model": {"name": str(llama)},
        "data": {"name": str(write_csv(tmp_path / "rows.csv", rows))},
        "task": {"name": "chat"},
        "trainer": {
            "max_steps": 4,
            "per_device_train_batch_size": 8,
            "learning_rate": 1e-2,
            "logging_steps": 1,
            "use_cpu": True,
            "disable_tqdm": True,
        },
    }


def go(values, *overrides):
    return run(Recipe.from_dict(values), *overrides)


def losses(done):
    log = pd.read_json(done.path / "log.jsonl", lines=True)
    return log["loss"].dropna().tolist()


def test_a_run_learns_answers_and_stops_at_their_end(values):
    done = go(values, "trainer.max_steps=60", "task.generation.max_new_tokens=8")
    before, after = done.metrics["before"], done.metrics["test"]
    assert after["loss"] < 0.1 < 1 < before["loss"]
    assert after["perplexity"] == pytest.approx(np.exp(after["loss"]))
    low, high = after["intervals_95"]["loss"]
    assert low <= after["loss"] <= high
    assert done.metrics["reload"]["logits_max_difference"] < 1e-4
    predictor = Predictor.load(done.path)
    assert predictor.predict([asked for asked, _ in PAIRS]) == [{"generated": answer} for _, answer in PAIRS]
    assert predictor.predict([said("hello", "hi", "bye")]) != []
    assert predictor.predict([{"prompt": "bye", "completion": "never seen"}]) == [{"generated": "good day"}]
    assert predictor.model.generation_config.eos_token_id == [END]
    table = pd.read_parquet(done.path / "predictions.parquet")
    assert set(table) == {"row", "answer", "loss", "tokens"}
    assert table["loss"].sum() / table["tokens"].sum() == pytest.approx(after["loss"])


def test_packed_and_padded_rows_have_the_same_losses(values, tmp_path):
    packed = go(values)
    padded = go(values, "task.packing=false", f"output={tmp_path / 'padded'}")
    assert losses(packed) == pytest.approx(losses(padded), abs=1e-4)
    assert packed.metrics["test"]["loss"] == pytest.approx(padded.metrics["test"]["loss"], abs=1e-4)
    notes = (packed.path / "environment.json").read_text()
    assert "packed rows do not see each other" in notes
    assert "rows are padded" in (padded.path / "environment.json").read_text()


def test_eight_rows_at_once_are_eight_one_by_one(values, tmp_path):
    at_once = go(values, "model.attn_implementation=sdpa")
    singly = ["trainer.per_device_train_batch_size=1", "trainer.gradient_accumulation_steps=8"]
    one_by_one = go(values, *singly, f"output={tmp_path / 'singly'}")
    assert losses(at_once) == pytest.approx(losses(one_by_one), abs=1e-4)


def test_lora_on_four_and_eight_bits(values, tmp_path):
    lora = ["tuning.name=lora", "tuning.r=4", "trainer.max_steps=3"]
    for name, more in (
        ("full", []),
        ("four", ["quantization.load_in_4bit=true", "quantization.bnb_4bit_use_double_quant=true"]),
        ("eight", ["quantization.load_in_8bit=true"]),
    ):
        done = go(values, *lora, *more, f"output={tmp_path / name}")
        assert done.metrics["test"]["loss"] < done.metrics["before"]["loss"]
        assert done.metrics["reload"]["logits_max_difference"] <= done.metrics["reload"]["tolerance"]


def test_no_row_of_a_packed_batch_is_forgotten_in_judging(llama):
    model = AutoModelForCausalLM.from_pretrained(llama).eval()
    features = prepared(rows_of(*[SHORT, LONG] * 5)).train
    alone = [_chat_scoring.row_losses(model, features.select([i]), END, packs=False) for i in range(10)]
    wanted = np.concatenate([one[0] for one in alone])
    assert [int(one[1][0]) for one in alone] == [2, 5] * 5
    for packs in (False, True):
        model.set_attn_implementation("hlr_packed" if packs else "sdpa")
        found, counts = _chat_scoring.row_losses(model, features, END, packs=packs)
        np.testing.assert_allclose(found, wanted, atol=1e-4)
        assert counts.tolist() == [2, 5] * 5
    ids = torch.tensor([features[0]["input_ids"]])
    with torch.no_grad():
        logits = model(ids).logits[0].log_softmax(-1)
    assert wanted[0] == pytest.approx(-float(logits[8, HI] + logits[9, END]), abs=1e-4)


def test_batches_for_judging_hold_as_many_rows_as_fit():
    lengths = np.asarray([3, 9, 4, 4])
    assert [b.tolist() for b in _chat_scoring._batches(lengths, 8, packs=False)] == [[1], [2, 3], [0]]
    assert [b.tolist() for b in _chat_scoring._batches(lengths, 11, packs=True)] == [[1], [2, 3, 0]]


def test_packing_where_it_cannot_be(values, tmp_path):
    with pytest.raises(RecipeError, match=r"packing is true, but model.attn_implementation is sdpa"):
        go(values, "task.packing=true", "model.attn_implementation=sdpa")
    from transformers import BloomConfig, BloomForCausalLM

    folder = tmp_path / "bloom"
    tiny_tokenizer().save_pretrained(folder)
    torch.manual_seed(0)
    BloomForCausalLM(BloomConfig(vocab_size=20, hidden_size=32, n_layer=1, n_head=2)).save_pretrained(folder)
    with pytest.raises(RecipeError, match="BloomForCausalLM takes no attention of another's"):
        go(values, f"model.name={folder}", "task.packing=true")
    done = go(values, f"model.name={folder}", "trainer.max_steps=1")
    assert "rows are padded to the longest" in (done.path / "environment.json").read_text()


def test_a_template_travels_with_the_run(values, tmp_path):
    tiny = tiny_llama(tmp_path / "bare", template=None)
    file = tmp_path / "mine.jinja"
    file.write_text("so " + NO_SYSTEM.replace("<|im_start|>", "##"), encoding="utf-8")
    done = go(values, f"model.name={tiny}", f"task.chat_template={file}", "trainer.max_steps=1")
    file.unlink()
    predictor = Predictor.load(done.path)
    assert predictor.tokenizer.chat_template.startswith("so ")
    assert len(predictor.predict(["hello"])) == 1
    assert predictor.judge(Dataset.from_list([{"messages": SHORT}]))["rows"] == 1


def test_what_cannot_be_answered(values):
    done = go(values, "trainer.max_steps=1")
    predictor = Predictor.load(done.path)
    with pytest.raises(DataError, match="row 1: 78 tokens leave no room for an answer: the model takes 64"):
        predictor.predict(["hello", "hello " * 70])
    assert len(predictor.predict(["hello", "hello " * 50])) == 2  # 58 tokens leave room for 6
    with pytest.raises(DataError, match=r"row 1(.|\n)*only texts, only lists of messages"):
        predictor.predict(["hello", 3])
    with pytest.raises(DataError, match="row 0: message 0 is the assistant's"):
        predictor.predict([said("hello", "hi")[1:]])


def test_the_recipe_is_read_strictly(values):
    with pytest.raises(RecipeError, match=r"task.packing is 'often'"):
        plan(Recipe.from_dict({**values, "task": {"name": "chat", "packing": "often"}}))


def test_the_cards_code_asks_as_the_run_was_asked(values):
    done = go(values, "trainer.max_steps=40", "task.system=be kind", "task.generation={max_new_tokens: 6}")
    code = (done.path / "README.md").read_text(encoding="utf-8").split("```python\n")[1].split("```")[0]
    code = code.replace("'tiny-chat'", repr(str(done.path / "model"))).replace(EXAMPLE, "hello")
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(code, "card", "exec"), {})
    (answer,) = Predictor.load(done.path).predict(["hello"])
    assert printed.getvalue().strip() == answer["generated"]
    assert "max_new_tokens=6" in code
    assert f"eos_token_id=[{END}]" in code
    assert '{"role": "system", "content": \'be kind\'},' in code


def test_the_card_shows_the_scores_before_training_beside_those_after(values):
    done = go(values)
    card = (done.path / "README.md").read_text(encoding="utf-8")
    before, after = done.metrics["before"]["loss"], done.metrics["test"]["loss"]
    (line,) = [line for line in card.splitlines() if line.startswith("| Loss (nats) |")]
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    assert [cells[1], cells[3]] == [f"{after:.4f}", f"{before:.4f}"]


def test_a_model_that_learnt_plain_text_is_asked_with_plain_text(values, tmp_path):
    rows = write_csv(tmp_path / "texts.csv", [{"text": "hello hi bye good day be kind"}] * 40)
    more = (f"data.name={rows}", "trainer.max_steps=40")
    with pytest.raises(RecipeError, match="task: system has no effect on plain text"):
        go(values, *more, "task.system=be kind")
    done = go(values, *more)
    predictor = Predictor.load(done.path)
    assert predictor.tokenizer.chat_template  # of the base: it would be asked through that
    assert not predictor.task.writing(predictor.tokenizer).chats
    assert predictor.predict(["hello hi bye"])[0]["generated"].startswith("good day be kind")
    assert "apply_chat_template" not in (done.path / "README.md").read_text(encoding="utf-8")
