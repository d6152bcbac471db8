"""What a Llama-style decoder costs, as formulas, and the space of such decoders.

For decoders as `models/llama.py` builds them and `export/decoder.py` writes them. Letters used below:

    V vocabulary   R embedding rank   H width   L layers   I intermediate size   D head size
    A = heads x D                     K = kv_heads x D     T tokens of one input S tokens it attends to

A head is tied unless a function is told otherwise: its logits are x @ table.T or, where the
embedding is factorised, x @ up @ table.T; an untied head is a full table H V of its own. As in
`cost.py`, the fields of an architecture may be numbers or numpy arrays that broadcast (all of whose
embeddings are factorised, or none, and whose bits are the same). Nothing here imports torch.

Compressor's convention (`cost.gflops_paper`) is not extended to decoders. It counts an embedding as a
product with a one-hot row and runs a classifier on every token, which would count a tied table
twice; what it counts for element-wise operations is ELECTRA's, of layer norm, GELU and dropout; and
there is no published figure of a decoder by which to tell a right extension from a wrong one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from codemill.compress.architecture import Architecture
from codemill.compress.search.space import AnySpace, check_choices, check_head_size

__all__ = [
    "DecoderSpace",
    "gflops",
    "gflops_last",
    "gflops_per_token",
    "graph_bytes",
    "kv_bytes_per_token",
    "parameters",
]


@dataclass(frozen=True)
class _GraphOverhead:
    """Bytes of an exported graph that are not weights: names, shapes, small constants.

    Read off real files: within 1 % of a file's length less its weights at 1..30 layers. `grouped`
    is what repeating keys and values for each group takes more in a layer.
    """

    base: int
    factorized: int
    layer: int
    grouped: int


_OVERHEAD = {
    8: _GraphOverhead(base=15_850, factorized=2_360, layer=31_950, grouped=14_430),
    32: _GraphOverhead(base=15_000, factorized=360, layer=24_330, grouped=14_420),
}


def parameters(architecture: Architecture, tied: bool = True) -> int:
    """Parameters of the decoder: equal to the sum of `numel` over its torch parameters.

    words       V H              or, factorised,  V R + R H
    a layer     H A + 2 H K + A H               query, key and value, attention output
                3 H I                           gate, up, down
                2 H                             two RMS norms
    last        H                               RMS norm
    head        0 tied, else H V
    """
    h, v = architecture.hidden_size, architecture.vocab_size
    norms = (2 * architecture.layers + 1) * h
    head = 0 if tied else h * v
    return _word_parameters(architecture) + _matrices(architecture) + norms + head


def gflops(architecture: Architecture, tokens: float, tied: bool = True) -> float:
    """1e9 floating-point operations of a prompt of `tokens` tokens, dense products only; logits for each.

    A product [m, k] x [k, n] is 2 m k n operations. For T tokens that attend to S = T:

    words       2 T R H                         only where factorised; a look-up is no product
    angles      T D                             positions [T, 1] x frequencies [1, D / 2]
    a layer     2 T H A + 2 x 2 T H K           query; key and value
                2 T S A + 2 T S A               scores; their weighted sum of the values
                2 T A H                         attention output
                3 x 2 T H I                     gate, up, down
    head        2 T H V                         or, factorised and tied,  2 T H R + 2 T R V

    Equal to torch's FlopCounterMode on `LlamaForCausalLM` with eager attention, which computes all T S
    scores, masked or not. The angles are an outer product, written as a product of inner size 1 and
    counted as one.
    """
    return _operations(architecture, tokens, tokens, tokens, tied) / 1e9


def gflops_last(architecture: Architecture, tokens: float, tied: bool = True) -> float:
    """`gflops` of a prompt with logits for its last token only (`logits_to_keep=1`), as completion needs them."""
    return _operations(architecture, tokens, tokens, 1, tied) / 1e9


def gflops_per_token(architecture: Architecture, context: float, tied: bool = True) -> float:
    """1e9 operations of one more token after `context` tokens whose keys and values are kept.

    `gflops` with T = 1 and S = context + 1.
    """
    return _operations(architecture, 1, context + 1, 1, tied) / 1e9


def kv_bytes_per_token(architecture: Architecture, bytes_per_value: int = 4) -> int:
    """Bytes of keys and values that each token leaves behind: 2 L K values."""
    return 2 * architecture.layers * _kv_size(architecture) * bytes_per_value


def graph_bytes(architecture: Architecture, tied: bool = True) -> int:
    """Length of the plain graph that `export/decoder.py` writes at 8 bits (dynamic int8) or 32 (float).

    At 32 bits each parameter takes 4 bytes; a tied table is stored once, the small factor R H of a
    factorised one twice (the head's is its transpose). At 8 bits:
        matrices and tables     1 byte an element; the same are stored twice
        their output channels   5 bytes (float scale, zero point): L (A + 2 K + H + 2 I + H) in the
                                layers, V of the head, whose table a tied embedding shares with its
                                scales, H where factorised, and R more where that is tied
        norms                   4 bytes: (2 L + 1) H
    An untied embedding has one scale in all. At both: the graph itself, of which a layer's share is
    large beside a narrow layer's weights, because the exporter spells out shapes.
    """
    v, h, rank = architecture.vocab_size, architecture.hidden_size, architecture.embedding_rank
    overhead = _OVERHEAD[architecture.bits]
    grouped = _kv_size(architecture) < _attention_size(architecture)
    size = overhead.base + architecture.layers * (overhead.layer + grouped * overhead.grouped)
    if rank is not None:
        size += overhead.factorized
    twice = rank * h if rank is not None and tied else 0
    stored = parameters(architecture, tied) + twice
    if architecture.bits == 32:
        return size + 4 * stored
    norms = (2 * architecture.layers + 1) * h
    channels = (
        v + architecture.layers * (_attention_size(architecture) + 2 * _kv_size(architecture))
    ) + architecture.layers * 2 * (h + architecture.intermediate_size)
    if rank is not None:
        channels += h + (rank if tied else 0)
    return size + stored + 3 * norms + 5 * channels


@dataclass(frozen=True)
class DecoderSpace(AnySpace):
    """All combinations of the genes' choices, for a decoder of one longest input.

    `group_sizes`: how many heads share one key and value (1: none do). Heads are derived: as many
    whole groups of heads as the width holds, at least one, so that every combination is valid. A
    rank of None is a full embedding table. Raises RecipeError for a gene without choices or with one
    twice, for a choice below 1, and for head sizes below 16 or no multiples of 8.
    """

    vocab_sizes: tuple[int, ...]
    embedding_ranks: tuple[int | None, ...]
    hidden_sizes: tuple[int, ...]
    layers: tuple[int, ...]
    head_sizes: tuple[int, ...]
    group_sizes: tuple[int, ...]
    intermediate_sizes: tuple[int, ...]
    max_tokens: int
    bits: tuple[int, ...] = (8,)

    gene_names = (
        *("vocab_sizes", "embedding_ranks", "hidden_sizes", "layers"),
        *("head_sizes", "group_sizes", "intermediate_sizes", "bits"),
    )
    spread = (0, 2, 6)

    def __post_init__(self) -> None:
        check_choices(dict(zip(self.gene_names, self.choices, strict=True)))
        for head_size in self.head_sizes:
            check_head_size(head_size)

    @property
    def choices(self) -> tuple[tuple[Any, ...], ...]:
        """Each gene's choices, in the order of `gene_names`."""
        return tuple(getattr(self, name) for name in self.gene_names)

    def fields(self, values: Sequence[Any]) -> dict[str, Any]:
        """The fields of the architecture with these choices."""
        vocab_size, rank, hidden_size, layers, head_size, group, intermediate, bits = values
        groups = hidden_size // (head_size * group)
        groups = groups + (groups == 0)
        return {
            "vocab_size": vocab_size,
            "hidden_size": hidden_size,
            "layers": layers,
            "heads": groups * group,
            "head_size": head_size,
            "intermediate_size": intermediate,
            "max_tokens": self.max_tokens,
            "embedding_rank": rank,
            "family": "llama",
            "kv_heads": groups,
            "bits": bits,
        }


def _operations(
    architecture: Architecture, tokens: float, keys: float, logits: float, tied: bool
) -> float:
    """Of `tokens` tokens that attend to `keys`, the last `logits` of which go through the head."""
    v, h, rank = architecture.vocab_size, architecture.hidden_size, architecture.embedding_rank
    attention = 4 * tokens * keys * _attention_size(architecture) * architecture.layers
    words = 0 if rank is None else 2 * rank * h
    angles = architecture.head_size
    head = 2 * h * v if rank is None or not tied else 2 * rank * (h + v)
    return tokens * (words + angles + 2 * _matrices(architecture)) + attention + logits * head


def _matrices(architecture: Architecture) -> int:
    """Elements of all layers' matrices."""
    width = 2 * _attention_size(architecture) + 2 * _kv_size(architecture)
    return (
        architecture.layers
        * architecture.hidden_size
        * (width + 3 * architecture.intermediate_size)
    )


def _attention_size(architecture: Architecture) -> int:
    return architecture.heads * architecture.head_size


def _kv_size(architecture: Architecture) -> int:
    kv_heads = architecture.heads if architecture.kv_heads is None else architecture.kv_heads
    return kv_heads * architecture.head_size


def _word_parameters(architecture: Architecture) -> int:
    v, h, rank = architecture.vocab_size, architecture.hidden_size, architecture.embedding_rank
    return v * h if rank is None else v * rank + rank * h
