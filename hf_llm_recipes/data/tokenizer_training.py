"""Texts -> a tokenizer made for them: byte-level BPE, byte-level Unigram, or WordPiece.

Notable:
- The byte-level kinds give every text back exactly and know no unknown token; WordPiece normalises and
  has one.
- The same texts give the same files. `tokenizers` alone does not: its WordPiece numbers continuations,
  and its Unigram sums scores, in the order of a hash map that differs from run to run.
- ``vocab_size`` counts everything, special tokens included.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from hf_llm_recipes.errors import DataError

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

__all__ = ["TokenizerTraining", "train_tokenizer"]

BYTES = 256
SENTINELS = 100
ALPHABET_LIMIT = 1000  # characters of WordPiece, the most frequent; BERT's
ESTIMATED_WORDS = 50_000  # of Unigram's scores: the most frequent
ROUNDS = 4  # of expectation and maximisation
LONGEST_PIECE = 16  # of Unigram, in bytes; sentencepiece's

# Roles of a use's special tokens, by their numbers. Padding is 0, where our architectures start a decoder.
SPECIAL: dict[str, dict[str, str]] = {
    "encoder": {"pad": "[PAD]", "unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"},
    "decoder": {"pad": "<|pad|>", "bos": "<|bos|>", "eos": "<|eos|>"},
    "encoder_decoder": {"pad": "<pad>", "eos": "</s>"},
}
UNKNOWN = {"encoder": "[UNK]", "decoder": "<|unk|>", "encoder_decoder": "<unk>"}  # WordPiece needs one


@dataclass(kw_only=True)
class TokenizerTraining:
    """``model.tokenizer`` of a recipe as a mapping: a tokenizer trained on the train split's texts.

    Args:
        train: ``bpe`` (Sennrich et al. 2016, over bytes as GPT-2), ``unigram`` (Kudo 2018, over bytes
            too), or ``wordpiece`` (as BERT).
        vocab_size: Tokens in all; fewer where the texts give no more.
        use: Which special tokens it has. ``encoder``: padding, unknown, start, separator, mask;
            ``decoder``: padding, begin, end; ``encoder_decoder``: padding, end and 100 sentinels
            ``<extra_id_0>`` to ``<extra_id_99>``. By default what the architecture is.
        min_frequency: Of a pair that is merged; ``unigram`` has none.
        lowercase: Of ``wordpiece``: case does not count.

    Raises:
        ValueError: a number out of range, or a key without effect.
    """

    train: Literal["bpe", "wordpiece", "unigram"]
    vocab_size: int = 8000
    use: Literal["encoder", "decoder", "encoder_decoder"] | None = None
    min_frequency: int = 2
    lowercase: bool = False

    def __post_init__(self) -> None:
        for key in ("vocab_size", "min_frequency"):
            if getattr(self, key) < 1:
                raise ValueError(f"{key} is {getattr(self, key)}; allowed: 1 or more")
        if self.lowercase and self.train != "wordpiece":
            raise ValueError(f"lowercase has no effect with train: {self.train}, which keeps every byte")
        if self.train == "unigram" and self.min_frequency != TokenizerTraining.min_frequency:
            raise ValueError("min_frequency has no effect with train: unigram")


def train_tokenizer(
    texts: Sequence[str], training: TokenizerTraining, *, use: str | None = None
) -> PreTrainedTokenizerFast:
    """Returns a tokenizer trained on texts.

    Args:
        texts: Read more than once.
        training: Its kind and size.
        use: For a ``training`` that leaves it open.

    Raises:
        DataError: a row that is no text, no text at all, or a ``vocab_size`` without room for the special
            tokens and the bytes or characters.
        ValueError: no ``use``.
    """
    from transformers import PreTrainedTokenizerFast

    use = training.use or use
    if use is None:
        raise ValueError(f"use is missing; allowed: {', '.join(SPECIAL)}")
    _check_texts(texts)
    special = special_tokens(use, training.train)
    make = {"bpe": _bpe, "wordpiece": _wordpiece, "unigram": _unigram}[training.train]
    made = make(texts, training, special)
    made.post_processor = _framing(made, use)
    roles = {f"{role}_token": token for role, token in SPECIAL[use].items()}
    if training.train == "wordpiece":
        roles["unk_token"] = UNKNOWN[use]
    kinds = ["token_type_ids"] if use == "encoder" else []
    return PreTrainedTokenizerFast(
        tokenizer_object=made,
        **roles,
        extra_special_tokens=[token for token in special if token not in roles.values()],
        model_input_names=["input_ids", *kinds, "attention_mask"],
        clean_up_tokenization_spaces=False,
    )


def special_tokens(use: str, kind: str) -> list[str]:
    """Returns the special tokens of a use, by number; a kind that has unknown words adds a token for them."""
    tokens = list(SPECIAL[use].values())
    if kind == "wordpiece" and UNKNOWN[use] not in tokens:
        tokens.append(UNKNOWN[use])
    if use == "encoder_decoder":
        tokens += [f"<extra_id_{number}>" for number in range(SENTINELS)]
    return tokens


def _check_texts(texts: Sequence[str]) -> None:
    some = False
    for row, text in enumerate(texts):
        if not isinstance(text, str):
            raise DataError(
                f"row {row} is {text!r}, not text", where=f"row {row}", hint="take the row out or fill it"
            )
        some = some or bool(text.strip())
    if not some:
        raise DataError(f"none of {len(texts):,} rows has text to train a tokenizer on", hint="add rows")


def _check_room(training: TokenizerTraining, needed: int, reason: str) -> None:
    if training.vocab_size < needed:
        raise DataError(
            f"the tokenizer's vocab_size is {training.vocab_size}",
            allowed=f"{needed} or more: {reason}",
            hint="raise it",
        )


def _byte_level(model: Any, special: list[str], training: TokenizerTraining) -> Tokenizer:
    from tokenizers import Tokenizer, decoders, pre_tokenizers

    _check_room(training, BYTES + len(special), f"{BYTES} bytes and {len(special)} special tokens")
    made = Tokenizer(model)
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    return made


def _bpe(texts: Sequence[str], training: TokenizerTraining, special: list[str]) -> Tokenizer:
    from tokenizers import models, pre_tokenizers, trainers

    made = _byte_level(models.BPE(), special, training)
    trainer = trainers.BpeTrainer(
        vocab_size=training.vocab_size,
        min_frequency=training.min_frequency,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator(texts, trainer)
    return made


def _wordpiece(texts: Sequence[str], training: TokenizerTraining, special: list[str]) -> Tokenizer:
    """Trains with every continuation named in advance, so that none is numbered by a hash map's order."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    unknown = next(token for token in special if token in UNKNOWN.values())
    made = Tokenizer(models.WordPiece(unk_token=unknown))
    made.normalizer = normalizers.BertNormalizer(strip_accents=False, lowercase=training.lowercase)
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.decoder = decoders.WordPiece()
    letters = _alphabet(made.normalizer.normalize_str(text) for text in texts)
    named = [*special, *(f"##{letter}" for letter in letters)]
    _check_room(
        training,
        len(named) + len(letters),
        f"{len(letters)} characters, as many inside words, and {len(special)} special tokens",
    )
    trainer = trainers.WordPieceTrainer(
        vocab_size=training.vocab_size,
        min_frequency=training.min_frequency,
        special_tokens=named,
        initial_alphabet=letters,
        limit_alphabet=len(letters),
        show_progress=False,
    )
    made.train_from_iterator(texts, trainer)
    vocabulary = json.loads(made.to_str())["model"]["vocab"]
    return _with_model(made, models.WordPiece(vocabulary, unk_token=unknown), special)


def _with_model(trained: Tokenizer, model: Any, special: list[str]) -> Tokenizer:
    """The same steps around another model, with these special tokens only."""
    from tokenizers import Tokenizer

    made = Tokenizer(model)
    for part in ("normalizer", "pre_tokenizer", "decoder"):
        if getattr(trained, part) is not None:
            setattr(made, part, getattr(trained, part))
    made.add_special_tokens(special)
    return made


def _alphabet(texts: Iterable[str]) -> list[str]:
    """The most frequent characters, sorted; of equally frequent ones those that sort first."""
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(text)
    letters = [letter for letter in counts if not letter.isspace()]
    return sorted(sorted(letters, key=lambda letter: (-counts[letter], letter))[:ALPHABET_LIMIT])


def _unigram(texts: Sequence[str], training: TokenizerTraining, special: list[str]) -> Tokenizer:
    """Takes the pieces that `tokenizers` chooses; their scores are estimated anew, in a fixed order."""
    from tokenizers import models, pre_tokenizers, trainers

    made = _byte_level(models.Unigram(), special, training)
    words = Counter(word for text in texts for word, _ in made.pre_tokenizer.pre_tokenize_str(text))
    trainer = trainers.UnigramTrainer(
        vocab_size=training.vocab_size,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        max_piece_length=LONGEST_PIECE,
        show_progress=False,
    )
    made.train_from_iterator(texts, trainer)
    pieces = {piece for piece, _ in json.loads(made.to_str())["model"]["vocab"]} - set(special)
    scores = _estimated(pieces | set(pre_tokenizers.ByteLevel.alphabet()), words)
    ranked = sorted(scores.items(), key=lambda item: (-item[1], item[0]))
    kept = _cut_to(training.vocab_size - len(special), ranked)
    return _with_model(made, models.Unigram([(token, 0.0) for token in special] + kept), special)


def _cut_to(size: int, ranked: list[tuple[str, float]]) -> list[tuple[str, float]]:
    """The best pieces, all bytes among them."""
    longer = [item for item in ranked if len(item[0]) > 1][: max(0, size - BYTES)]
    kept = {*longer, *(item for item in ranked if len(item[0]) == 1)}
    return [item for item in ranked if item in kept]


def _estimated(pieces: set[str], words: Counter[str]) -> dict[str, float]:
    """Log-probabilities of the pieces by expectation and maximisation (Kudo 2018, eq. 2 and §3.2)."""
    frequent = sorted(words.items(), key=lambda item: (-item[1], item[0]))[:ESTIMATED_WORDS]
    counts = dict.fromkeys(sorted(pieces), 0.0)
    for word, number in frequent:
        for start, stop in _matches(word, pieces):
            counts[word[start:stop]] += number
    for _ in range(ROUNDS):
        scores = _log_shares(counts)
        counts = dict.fromkeys(counts, 0.0)
        for word, number in frequent:
            for piece, share in _expected(word, scores):
                counts[piece] += number * share
    return _log_shares(counts)


def _log_shares(counts: dict[str, float]) -> dict[str, float]:
    total = math.fsum(counts.values()) or 1.0
    return {piece: math.log(max(count, 1e-3) / total) for piece, count in counts.items()}


def _matches(word: str, pieces: Any) -> Iterator[tuple[int, int]]:
    """Where pieces lie in a word, by their ends and then their beginnings."""
    for stop in range(1, len(word) + 1):
        for start in range(max(0, stop - LONGEST_PIECE), stop):
            if word[start:stop] in pieces:
                yield start, stop


def _expected(word: str, scores: dict[str, float]) -> list[tuple[str, float]]:
    """How often each piece is expected in a word over all its segmentations: forward and backward sums."""
    edges = [(start, stop, scores[word[start:stop]]) for start, stop in _matches(word, scores)]
    forward = [0.0] + [-math.inf] * len(word)
    for start, stop, score in edges:
        forward[stop] = _log_add(forward[stop], forward[start] + score)
    backward = [-math.inf] * len(word) + [0.0]
    for start, stop, score in reversed(edges):
        backward[start] = _log_add(backward[start], backward[stop] + score)
    whole = forward[-1]
    return [
        (word[start:stop], math.exp(forward[start] + score + backward[stop] - whole))
        for start, stop, score in edges
    ]


def _log_add(a: float, b: float) -> float:
    if a < b:
        a, b = b, a
    return a if b == -math.inf else a + math.log1p(math.exp(b - a))


def _framing(made: Tokenizer, use: str) -> Any:
    """What a text is put between: [CLS] … [SEP] as BERT, a begin token as Llama, an end token as T5."""
    from tokenizers import processors

    special = SPECIAL[use]
    if use == "encoder":
        cls, sep = special["cls"], special["sep"]
        single, pair = f"{cls} $A {sep}", f"{cls} $A {sep} $B:1 {sep}:1"
        used = [cls, sep]
    elif use == "decoder":
        bos = special["bos"]
        single, pair, used = f"{bos} $A", f"{bos} $A {bos}:1 $B:1", [bos]
    else:
        eos = special["eos"]
        single, pair, used = f"$A {eos}", f"$A {eos} $B:1 {eos}:1", [eos]
    return processors.TemplateProcessing(
        single=single, pair=pair, special_tokens=[(token, made.token_to_id(token)) for token in used]
    )
