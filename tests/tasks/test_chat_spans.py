import pytest
from _tiny_chat import (
    ASSISTANT,
    BE,
    BYE,
    CLOSED,
    DAY,
    END,
    GOOD,
    HELLO,
    HI,
    ID,
    KIND,
    LAST_DIFFERS,
    LINE,
    MARKED,
    MARKED_WITHOUT_END,
    NO_END_TOKEN,
    NO_SYSTEM,
    START,
    SYSTEM,
    USER,
    WITH_BOS,
    said,
    tiny_tokenizer,
)

from hf_llm_recipes.errors import DataError
from hf_llm_recipes.tasks._chat_forms import BadRowError, Conversation
from hf_llm_recipes.tasks._chat_spans import (
    CHATML,
    ChatEncoder,
    common_beginning,
    encode_text,
    set_template,
    shorten_by_turns,
)

NO = -100
TWO_TURNS = said("hello", "hi", "bye", "good day", system="be kind")
# <|im_start|> role \n words <|im_end|> \n, five times
IDS = [
    *(START, SYSTEM, LINE, BE, KIND, END, LINE),
    *(START, USER, LINE, HELLO, END, LINE),
    *(START, ASSISTANT, LINE, HI, END, LINE),
    *(START, USER, LINE, BYE, END, LINE),
    *(START, ASSISTANT, LINE, GOOD, DAY, END, LINE),
]
FIRST, LAST = {16: HI, 17: END}, {28: GOOD, 29: DAY, 30: END}  # where the answers stand


def labels(places):
    return [places.get(i, NO) for i in range(len(IDS))]


def encode(messages, template=CHATML, loss_on="assistant", **more):
    return ChatEncoder(tiny_tokenizer(template), loss_on).encode(Conversation(messages, **more))


@pytest.mark.parametrize("template", [CHATML, MARKED, MARKED_WITHOUT_END])
def test_every_answer_is_learnt_with_its_end_token_and_nothing_else(template):
    made = encode(TWO_TURNS, template)
    assert made.ids == IDS
    assert made.labels == labels(FIRST | LAST)
    assert made.supervised == 5
    assert made.split_tokens == 0


@pytest.mark.parametrize("template", [CHATML, MARKED])
def test_the_last_answer_only(template):
    assert encode(TWO_TURNS, template, "last_assistant").labels == labels(LAST)


def test_answers_of_a_given_prompt_are_not_learnt():
    assert encode(TWO_TURNS, first=3).labels == labels(LAST)


def test_all_tokens():
    made = encode(TWO_TURNS, loss_on="all")
    assert made.labels == IDS
    assert made.supervised == len(IDS) - 1


def test_a_template_that_closes_a_finished_conversation():
    made = encode(TWO_TURNS, CLOSED)
    assert made.ids == [*IDS, ID["<s>"]]
    assert made.labels == [*labels(FIRST | LAST), NO]


def test_a_template_that_writes_the_last_answer_in_another_way():
    with pytest.raises(BadRowError, match=r"\(message 2\) in another way once more follows.*last_assistant"):
        encode(TWO_TURNS, LAST_DIFFERS)
    made = encode(TWO_TURNS, LAST_DIFFERS, "last_assistant")
    assert made.ids == [*IDS[:28], ID["so"], *IDS[28:]]
    assert made.labels == [*[NO] * 28, ID["so"], GOOD, DAY, END, NO]
    assert encode(said("hello", "hi"), LAST_DIFFERS).labels[-4:] == [ID["so"], HI, END, NO]


def test_a_prompt_that_is_no_beginning():
    thinking = CHATML.replace("{{ '<|im_start|>assistant\\n' }}", "{{ '<|im_start|>assistant\\nso' }}")
    with pytest.raises(BadRowError, match=r"before it \(message 2\) in another way"):
        encode(TWO_TURNS, thinking)


def test_a_template_without_an_end_token():
    encoder = ChatEncoder(tiny_tokenizer(NO_END_TOKEN))
    made = encoder.encode(Conversation(said("hello", "hi")))
    mark = ID["##"]
    assert made.ids == [mark, USER, HELLO, LINE, mark, ASSISTANT, HI, LINE]
    assert made.labels == [NO] * 6 + [HI, LINE]  # the line break is the only end there is
    assert encoder.end_of_turn is None


def test_the_end_of_a_turn_is_found_and_ends_answers():
    assert [ChatEncoder(tiny_tokenizer(t)).end_of_turn for t in (CHATML, MARKED_WITHOUT_END, CLOSED)] == [
        END
    ] * 3
    assert ChatEncoder(tiny_tokenizer()).stop_ids == [END]


def test_no_second_first_token():
    tokenizer = tiny_tokenizer(WITH_BOS, bos="<s>")
    encoder = ChatEncoder(tokenizer)
    assert encoder.encode(Conversation(said("hello", "hi"))).ids == [ID["<s>"], *IDS[7:19]]
    tokenizer.chat_template = "{{ bos_token }}" + WITH_BOS
    with pytest.raises(BadRowError, match="begins with '<s>' twice"):
        encoder.encode(Conversation(said("hello", "hi")))


def test_plain_text_gets_one_first_and_one_end_token():
    assert encode_text("hello hi", tiny_tokenizer()).ids == [HELLO, HI, END]
    assert encode_text("hello<|im_end|>", tiny_tokenizer()).ids == [HELLO, END]
    assert encode_text("<s>hello", tiny_tokenizer(bos="<s>")).ids == [ID["<s>"], HELLO, END]


def test_a_prompt_ends_where_the_answer_begins():
    assert ChatEncoder(tiny_tokenizer()).prompt(Conversation(TWO_TURNS[:4])) == IDS[:28]


def test_oldest_turns_go_first_and_the_system_stays():
    encoder = ChatEncoder(tiny_tokenizer())
    less, made = shorten_by_turns(Conversation(TWO_TURNS), encoder, 20)
    assert [m["content"] for m in less.messages] == ["be kind", "bye", "good day"]
    assert made.ids == IDS[:7] + IDS[19:]
    assert made.supervised == 3
    assert shorten_by_turns(Conversation(TWO_TURNS), encoder, 19) is None


def test_what_the_template_refuses():
    with pytest.raises(BadRowError, match="the chat template refuses it: no system here"):
        encode(TWO_TURNS, NO_SYSTEM)


def test_no_template():
    with pytest.raises(DataError, match=r"no chat template(.|\n)*chat_template: chatml"):
        ChatEncoder(tiny_tokenizer(None))


def test_a_template_is_given(tmp_path):
    tokenizer = tiny_tokenizer(None)
    assert set_template(tokenizer, "chatml") == ["chat template: chatml"]
    assert ChatEncoder(tokenizer).encode(Conversation(TWO_TURNS)).labels == labels(FIRST | LAST)
    file = tmp_path / "mine.jinja"
    file.write_text(WITH_BOS, encoding="utf-8")
    other = tiny_tokenizer(None, bos="<s>")
    other.eos_token = "<s>"
    assert set_template(other, str(file)) == [f"chat template: {file}; '<|im_end|>' now ends a text"]
    assert (other.eos_token, other.eos_token_id) == ("<|im_end|>", END)
    with pytest.raises(DataError, match="chat_template is 'chatmll', which is no file"):
        set_template(tokenizer, "chatmll")


def test_chatml_needs_its_tokens(tiny_llama):
    from transformers import AutoTokenizer

    with pytest.raises(DataError, match=r"lacks <\|im_start\|>, <\|im_end\|>"):
        set_template(AutoTokenizer.from_pretrained(tiny_llama), "chatml")


@pytest.mark.parametrize(
    ("first", "second", "both"), [("ab", "abc", "ab"), ("abd", "abc", "ab"), ("x", "y", "")]
)
def test_common_beginnings(first, second, both):
    assert common_beginning(first, second) == both
