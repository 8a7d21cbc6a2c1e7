"""A chat tokenizer of a few words whose ids can be counted by hand, templates, and a tiny Llama."""

import torch
from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from hf_llm_recipes.tasks._chat_spans import CHATML

WORDS = ["<unk>", "<s>", "<|im_start|>", "<|im_end|>", "\n", "system", "user", "assistant"]
WORDS += ["hello", "hi", "bye", "good", "day", "be", "kind", "why", "so", "it", "is", "##"]
ID = {word: i for i, word in enumerate(WORDS)}
START, END, LINE, SYSTEM, USER, ASSISTANT = 2, 3, 4, 5, 6, 7
HELLO, HI, BYE, GOOD, DAY, BE, KIND, WHY = range(8, 16)

HEAD = "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
FOOT = "{{ '\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
SAID = "{% if message['role'] == 'assistant' %}"
ELSE = "{% else %}{{ message['content'] + '<|im_end|>' }}{% endif %}"
MARKED = (
    HEAD + SAID + "{% generation %}{{ message['content'] + '<|im_end|>' }}{% endgeneration %}" + ELSE + FOOT
)
MARKED_WITHOUT_END = (
    HEAD
    + SAID
    + "{% generation %}{{ message['content'] }}{% endgeneration %}{{ '<|im_end|>' }}"
    + ELSE
    + FOOT
)
# as Qwen3: the last answer is written in another way than those before it
LAST_DIFFERS = (
    HEAD
    + SAID
    + "{% if loop.last %}{{ 'so ' }}{% endif %}{{ message['content'] + '<|im_end|>' }}"
    + ELSE
    + FOOT
)
# as Phi-3: a finished conversation is closed by another token
CLOSED = FOOT.join([HEAD + "{{ message['content'] + '<|im_end|>' }}", ""]).replace(
    "{% endif %}", "{% else %}{{ '<s>' }}{% endif %}"
)
WITH_BOS = "{{ bos_token }}" + CHATML
NO_END_TOKEN = (
    "{% for message in messages %}{{ '## ' + message['role'] + ' ' + message['content'] + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '## assistant ' }}{% endif %}"
)
NO_SYSTEM = (
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system here') }}{% endif %}" + CHATML
)


def tiny_tokenizer(template=CHATML, *, bos=None):
    tokenizer = Tokenizer(models.WordLevel(ID, unk_token="<unk>"))
    lines, words = (
        pre_tokenizers.Split(Regex(by), how) for by, how in (("\n", "isolated"), (" ", "removed"))
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([lines, words])
    made = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="<unk>",
        bos_token=bos,
        eos_token="<|im_end|>",
        pad_token="<|im_end|>",
        extra_special_tokens=["<|im_start|>"] + ([] if bos else ["<s>"]),
        model_max_length=64,
    )
    made.chat_template = template
    return made


def tiny_llama(folder, *, template=CHATML, vocab_size=len(WORDS), layers=2):
    """Saves a Llama of width 32 and random weights with its tokenizer."""
    tiny_tokenizer(template).save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=32,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=64,
        max_position_embeddings=64,
        initializer_range=0.2,
        bos_token_id=None,
        eos_token_id=END,
        pad_token_id=END,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def said(*turns, system=None):
    """Messages of the user and the assistant in turn."""
    roles = ("user", "assistant")
    messages = [{"role": roles[i % 2], "content": turn} for i, turn in enumerate(turns)]
    return ([{"role": "system", "content": system}] if system else []) + messages
