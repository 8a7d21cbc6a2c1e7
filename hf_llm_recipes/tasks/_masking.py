"""Which tokens a masked-language model is to guess, and what stands in their places.

Shape suffixes: T tokens of a row  V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hf_llm_recipes.errors import DataError

IGNORED = -100
MASK_SHARE, RANDOM_SHARE = 0.8, 0.1  # of the chosen tokens; the others stay (Devlin et al. 2018, §3.1)
MARKS = ("##", "▁", "Ġ")  # what goes on with a word, or begins one: WordPiece, SentencePiece, byte-level BPE
MARKED = 0.05  # share of a vocabulary that has a mark where the tokenizer uses it


def generator_of(*numbers: int) -> torch.Generator:
    """Returns random numbers that are a function of whole numbers alone, such as a seed and a draw."""
    state = np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(state >> np.uint64(1)))


@dataclass
class TokenMasker:
    """Chooses tokens of a row and hides them: 80 % the mask token, 10 % a random one, 10 % as they were.

    Args:
        tokenizer: Knows the mask token and the special ones, which are never chosen.
        mask_prob: Share of the tokens, or words, that are chosen.
        whole_words: Whether all tokens of a word are chosen together; a word is what white space parts
            (WordPiece: what its pre-tokenizer parts). Each of its tokens is then hidden by itself.

    Raises:
        DataError: no mask token; or, for whole words, a vocabulary that does not mark them.
    """

    tokenizer: Any
    mask_prob: float = 0.15
    whole_words: bool = False

    def __post_init__(self) -> None:
        if self.tokenizer.mask_token_id is None:
            raise DataError(
                "the tokenizer has no mask token",
                allowed="a tokenizer of a masked-language model",
                hint="use another objective: `clm` or `contrastive`",
            )
        self.special_V = torch.zeros(len(self.tokenizer), dtype=torch.bool)
        self.special_V[torch.tensor(self.tokenizer.all_special_ids)] = True
        self.begins_V = begins_word(self.tokenizer) | self.special_V if self.whole_words else None

    def __call__(self, ids_T: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Returns the row with hidden tokens, and labels: −100 where a token was not chosen."""
        open_T = ~self.special_V[ids_T]
        chosen_T = self._chosen(ids_T, open_T, generator) & open_T
        labels_T = ids_T.masked_fill(~chosen_T, IGNORED)
        fate_T = torch.rand(ids_T.shape, generator=generator)
        random_T = torch.randint(len(self.tokenizer), ids_T.shape, generator=generator)
        hidden_T = torch.where(fate_T < MASK_SHARE, self.tokenizer.mask_token_id, random_T)
        hidden_T = torch.where(fate_T < MASK_SHARE + RANDOM_SHARE, hidden_T, ids_T)
        return torch.where(chosen_T, hidden_T, ids_T), labels_T

    def _chosen(self, ids_T: Tensor, open_T: Tensor, generator: torch.Generator) -> Tensor:
        if self.begins_V is None:
            return torch.rand(ids_T.shape, generator=generator) < self.mask_prob
        after_T = torch.cat([torch.ones(1, dtype=torch.bool), ~open_T[:-1]])  # a special token ends a word
        word_T = (self.begins_V[ids_T] | after_T).cumsum(0)
        return (torch.rand(len(ids_T) + 1, generator=generator) < self.mask_prob)[word_T]


def begins_word(tokenizer: Any) -> Tensor:
    """Returns whether each token of a vocabulary begins a word, (V,).

    Raises:
        DataError: the vocabulary has no mark of words.
    """
    tokens = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
    for mark in MARKS:
        marked_V = torch.tensor([token is not None and token.startswith(mark) for token in tokens])
        if marked_V.float().mean() > MARKED:
            return ~marked_V if mark == "##" else marked_V
    raise DataError(
        "whole_words: the vocabulary does not say where words begin",
        allowed=f"tokens with {', '.join(MARKS)}",
        hint="take whole_words out",
    )
