"""A byte-level BPE, trained once."""

from __future__ import annotations

import pytest
from tokenizers import Tokenizer

from codemill.compress.data.pairs import Pair

from .families import train_bpe


@pytest.fixture(scope="session")
def byte_pairs(pairs: list[Pair]) -> Tokenizer:
    return train_bpe([text for pair in pairs for text in (pair.query, pair.code)])
