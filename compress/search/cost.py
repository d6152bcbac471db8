"""What an architecture costs, as formulas: parameters, GFLOPs in two conventions, bytes that ship.

For BERT-like encoders as `models/bert.py` cuts them and `export/` writes them; those of Llama-style decoders
are `decoder.py`, which the same names lead to. Letters used below:

    V vocabulary   R embedding rank   H width   A = heads x head size   I intermediate size
    L layers       P longest input    T tokens of one input            2 token types

Costs are stated for one function, not for one token: a smaller vocabulary makes every function
longer. How much longer is measured on the data by the caller and comes in as a `CostModel`.
The formulas take an architecture whose fields are numbers, or numpy arrays that broadcast (all of
whose embeddings are factorised, or none, and whose bits are the same): so a whole space is costed at
once. Nothing here imports torch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from codemill.compress.architecture import Architecture, Tokens
from codemill.compress.search import decoder
from codemill.errors import RecipeError

__all__ = [
    "MANIFEST_BYTES",
    "CostModel",
    "Costs",
    "by_tokenizer",
    "gflops",
    "gflops_paper",
    "graph_bytes",
    "head_parameters",
    "interpolate",
    "parameters",
    "parameters_paper",
    "params_fp32_bytes",
    "size_bytes",
]

_TOKEN_TYPES = 2

MANIFEST_BYTES = 4_000
"""Allowance for manifest.json, whose length depends on the recipe more than on the architecture."""


@dataclass(frozen=True)
class _GraphOverhead:
    """Bytes of an exported graph that are not weights: names, shapes, small constants.

    Read off real files: the file's length less its weights is linear in the number of layers, to
    within 200 bytes at widths 64..384 and 1..6 layers, 800 at width 768 and 12 layers. A change in
    `export/` moves these numbers, and a test that exports a model then fails.
    """

    full_embedding: int
    factorized_embedding: int
    layer: int


_OVERHEAD = {
    8: _GraphOverhead(full_embedding=4_850, factorized_embedding=8_290, layer=7_220),
    32: _GraphOverhead(full_embedding=2_960, factorized_embedding=4_590, layer=2_400),
}


def parameters(architecture: Architecture) -> int:
    """Parameters of the student: equal to the sum of `numel` over its torch parameters.

    words       V H              or, factorised,  V R + R H      (the second factor has no bias)
    embedding   P H + 2 H + 2 H                 positions, token types, layer norm
    a layer     3 (H A + A)                     query, key, value with bias
                A H + H                         attention output with bias
                H I + I + I H + H               feed-forward
                2 H + 2 H                       two layer norms
    """
    if architecture.family == "llama":
        return decoder.parameters(architecture)
    h, a, i = (
        architecture.hidden_size,
        _attention_size(architecture),
        architecture.intermediate_size,
    )
    layer = 3 * (h * a + a) + (a * h + h) + (h * i + i + i * h + h) + 4 * h
    embedding = (architecture.max_tokens + _TOKEN_TYPES + 2) * h
    return _word_parameters(architecture) + embedding + architecture.layers * layer


def params_fp32_bytes(architecture: Architecture) -> int:
    """The size that Compressor's paper means: 4 bytes a parameter, nothing else. Not what ships."""
    return 4 * parameters(architecture)


def parameters_paper(architecture: Architecture) -> int:
    """Parameters as Compressor counts them: of a RoBERTa classifier of this shape.

    Beside the encoder's: one token type instead of two, a pooler H H + H, and a head of two classes,
    H H + H + 2 H + 2. At 514 positions times 4 bytes this gives the 3.06, 24.79 and 49.87 MB of its
    table, and 2.1915 as the best fitness of its space.
    """
    h = architecture.hidden_size
    return parameters(architecture) - h + 2 * (h * h + h) + 2 * h + 2


def gflops(architecture: Architecture, tokens: float) -> float:
    """1e9 floating-point operations of one input of `tokens` tokens, dense products only.

    A product [m, k] x [k, n] is 2 m k n operations. For one input of T tokens:

    words       2 T R H                         only where factorised; a look-up is no product
    a layer     3 x 2 T H A                     query, key, value
                2 T T A + 2 T T A               scores; their weighted sum of the values
                2 T A H                         attention output
                2 x 2 T H I                     feed-forward

    Equal to torch's FlopCounterMode on the student with eager attention. (Under scaled dot product
    attention on a CPU that counter misses the two T T A.) `tokens` may be a mean: attention grows
    with the square, so a mean of lengths gives slightly less than the mean over the inputs.
    """
    if architecture.family == "llama":
        return decoder.gflops(architecture, tokens)
    h, a, i = (
        architecture.hidden_size,
        _attention_size(architecture),
        architecture.intermediate_size,
    )
    rank = architecture.embedding_rank or 0
    layer = 8 * h * a + 4 * tokens * a + 4 * h * i
    return tokens * (2 * rank * h + architecture.layers * layer) / 1e9


def gflops_paper(architecture: Architecture, tokens: float) -> float:
    """1e9 operations as Compressor counts them (after ELECTRA's flops_computation.py).

    Beside dense products it counts every element-wise operation (softmax 5, dropout 4, layer norm
    5, GELU 8 an element), the embedding look-up as a dense product with a one-hot row (2 V a token
    and column), adding T + 2 positions and types likewise, and a classification head run on every
    token. Its attention layer norm counts 5 operations in all instead of 5 H: kept, so that the
    paper's figures come out (2.253 for its 3 MB model and 138.4 for CodeBERT, at 514 tokens).
    For a factorised embedding, unknown to the paper: R columns are looked up, then 2 R H a token.
    """
    if architecture.family == "llama":
        raise RecipeError(
            "the GFLOPs of Compressor's paper are defined for encoders, not for decoders"
        )
    h, a, i = (
        architecture.hidden_size,
        _attention_size(architecture),
        architecture.intermediate_size,
    )
    t, heads, rank = tokens, architecture.heads, architecture.embedding_rank
    attention = 3 * (2 * h * a + a) + 2 * a * t + 2 * a * t + 10 * t * heads + 2 * a * h + 6 * h + 5
    feed_forward = 4 * h * i + 9 * i + 11 * h
    columns = h if rank is None else rank
    words = 2 * architecture.vocab_size * columns + (0 if rank is None else 2 * rank * h)
    embedding = words + 2 * h * (t + 2) + 11 * h
    head = 2 * h * h + 15 * h
    return t * (architecture.layers * (attention + feed_forward) + embedding + head) / 1e9


def graph_bytes(architecture: Architecture) -> int:
    """Length of the fused graph that `export/` writes at 8 bits (dynamic int8) or 32 (float).

    At 32 bits each parameter takes 4 bytes. At 8 bits:
        matrices and tables     1 byte an element: V R + R H or V H, (P + 2) H, L (4 H A + 2 H I)
        their output channels   5 bytes (float scale, zero point): H where factorised,
                                L (3 A + H + I + H); tables have one scale in all
        vectors                 4 bytes: L (3 A + H + I + H + 4 H) of biases and layer norms, and
                                the embedding's layer norm 2 H; ONNX Runtime's fused embedding
                                operator, which only a full table gets, has that norm in 1 byte
    At both: the exporter's constant token types 8 P and, where factorised, positions 8 P (int64;
    the fused operator makes its own), and the graph itself.
    """
    if architecture.family == "llama":
        return decoder.graph_bytes(architecture)
    overhead = _OVERHEAD[architecture.bits]
    factorized = architecture.embedding_rank is not None
    size = architecture.layers * overhead.layer + 8 * architecture.max_tokens * (
        2 if factorized else 1
    )
    size += overhead.factorized_embedding if factorized else overhead.full_embedding
    if architecture.bits == 32:
        return size + 4 * parameters(architecture)
    h, a, i = (
        architecture.hidden_size,
        _attention_size(architecture),
        architecture.intermediate_size,
    )
    elements = (
        _word_parameters(architecture)
        + (architecture.max_tokens + _TOKEN_TYPES) * h
        + architecture.layers * (4 * h * a + 2 * h * i)
    )
    channels = architecture.layers * (3 * a + i + 2 * h) + (h if factorized else 0)
    vectors = architecture.layers * (3 * a + i + 6 * h)
    norm = 2 * h * (4 if factorized else 1)
    return size + elements + 5 * channels + 4 * vectors + norm


def size_bytes(
    architecture: Architecture, tokenizer_bytes: float, manifest_bytes: int = MANIFEST_BYTES
) -> int:
    """What a user ships: graph, tokenizer.json and manifest.json. Within 2 % of the real files."""
    tokenizer = np.rint(np.asarray(tokenizer_bytes)).astype(int)[()]
    size: int = graph_bytes(architecture) + tokenizer + manifest_bytes
    return size


def interpolate(points: Mapping[int, float]) -> Callable[[int], float]:
    """A measured quantity at any vocabulary size, linear between the sizes in `points`.

    The function raises ValueError outside the measured sizes: a guess might break a limit unseen.
    """
    if not points:
        raise ValueError("nothing to interpolate: measure at one vocabulary size at least")
    sizes = sorted(points)
    values = [float(points[size]) for size in sizes]

    def at(vocab_size: int) -> float:
        if np.min(vocab_size) < sizes[0] or np.max(vocab_size) > sizes[-1]:
            raise ValueError(
                f"vocabulary {vocab_size} lies outside the measured sizes {sizes[0]}..{sizes[-1]}; "
                "measure at the space's smallest and largest"
            )
        value: float = np.interp(vocab_size, sizes, values)
        return value

    return at


def by_tokenizer(
    measured: Mapping[Tokens, Callable[[int], float]],
) -> Callable[[Architecture], float]:
    """What was measured at vocabulary sizes, for each kind of tokenizer, as a function of the architecture."""

    def of(architecture: Architecture) -> float:
        return measured[architecture.tokenizer](architecture.vocab_size)

    return of


class Costs(Protocol):
    """What a search asks of each architecture, once; pure functions all."""

    @property
    def latency_ms(self) -> Callable[[Architecture], float] | None:
        """Milliseconds a function; None where no machine was profiled."""

    def gflops(self, architecture: Architecture) -> float:
        """1e9 operations of one function."""

    def size_bytes(self, architecture: Architecture) -> int:
        """The size that a budget limits."""


def head_parameters(dim: int, labels: int, texts: int, hidden: int, ordered: bool = False) -> int:
    """Parameters of a classifier's head (`models.classifier.Head`) over embeddings of width `dim`.

    features -> hidden -> labels, each with biases; features are the embedding, or of two texts |u - v| and u * v
    (u and v too where their order matters), beside which the cosine has a weight and a bias for each label.
    """
    blocks = 1 if texts == 1 else 4 if ordered else 2
    alike = 2 * labels if texts == 2 else 0
    return (dim * blocks + 1) * hidden + (hidden + 1) * labels + alike


@dataclass(frozen=True)
class CostModel:
    """What the formulas need from this run's data and machine.

    `tokens_per_function`: mean tokens of a function after truncation to the longest input, by the
    architecture's vocabulary; `tokenizer_bytes`: length of its tokenizer.json; `latency_ms`: of
    one function of that length, None where no machine was profiled. All pure: the search asks once
    for each architecture.
    """

    tokens_per_function: Callable[[Architecture], float]
    tokenizer_bytes: Callable[[Architecture], float]
    latency_ms: Callable[[Architecture], float] | None = None
    manifest_bytes: int = MANIFEST_BYTES

    def gflops(self, architecture: Architecture) -> float:
        """Dense GFLOPs of one function of mean length at the architecture's vocabulary."""
        return gflops(architecture, self.tokens_per_function(architecture))

    def size_bytes(self, architecture: Architecture) -> int:
        """What ships, tokenizer and manifest included."""
        tokenizer_bytes = self.tokenizer_bytes(architecture)
        return size_bytes(architecture, tokenizer_bytes, self.manifest_bytes)


def _attention_size(architecture: Architecture) -> int:
    return architecture.heads * architecture.head_size


def _word_parameters(architecture: Architecture) -> int:
    v, h, rank = architecture.vocab_size, architecture.hidden_size, architecture.embedding_rank
    return v * h if rank is None else v * rank + rank * h
