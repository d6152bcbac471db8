"""What a Llama-style decoder costs, as formulas, and the space of such decoders.

For decoders as `models/llama.py` builds them and `export/decoder` writes them. Letters used below:

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

from codemill.compress.architecture import DECODER_BITS, Architecture
from codemill.compress.search.space import AnySpace, check_choices, check_head_size
from codemill.export.quantize.blocks import BLOCK

__all__ = [
    "DecoderSpace",
    "gflops",
    "gflops_last",
    "gflops_per_token",
    "graph_bytes",
    "kv_bytes_per_token",
    "parameters",
]


_OVERHEAD = {32: (2_050, 4_080), 8: (3_080, 6_395), 4: (3_080, 6_395)}
"""By bits: bytes of the graphs of a decoder without exits (a segment, the head, the whole), and of a layer in them."""
_POINTS = 340, 930
"""Of these, what zero points take."""


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


def graph_bytes(
    architecture: Architecture, tied: bool = True, size: int = BLOCK, symmetric: bool = False
) -> int:
    """Bytes of a variant's files that `export/decoder` writes without exits, at 4, 8 (weights in blocks) or 32 bits.

    A matrix [N, K] at 32 bits takes 4 N K. In blocks of `size`, of which a row has B = ceil(K / size):
        values          N B size bits / 8
        scales          4 N B
        zero points     N ceil(B bits / 8), none where 4 bits are symmetric
    The small factors of a factorised embedding, R H each (two of them where the head is tied), stay at 32 bits, and so
    do norms, 4 (2 L + 1) H, and the table of angles, 4 D for each of max_tokens places.
    """
    v, h, rank = architecture.vocab_size, architecture.hidden_size, architecture.embedding_rank
    attention, kv, inner = (
        _attention_size(architecture),
        _kv_size(architecture),
        architecture.intermediate_size,
    )

    pointless = symmetric and architecture.bits == 4

    def matrix(rows: int, columns: int) -> int:
        bits = architecture.bits
        if bits == 32:
            return 4 * rows * columns
        blocks = -(-columns // size)
        points = 0 if pointless else -(-blocks * bits // 8)
        return rows * (blocks * (size * bits // 8 + 4) + points)

    layer = (
        matrix(attention + 2 * kv, h)
        + matrix(h, attention)
        + matrix(2 * inner, h)
        + matrix(h, inner)
    )
    words = matrix(v, h if rank is None else rank)
    if rank is not None:
        words = words + 4 * rank * h * (2 if tied else 1)
    if not tied:
        words = words + matrix(v, h)
    norms = 4 * (2 * architecture.layers + 1) * h
    angles = 4 * architecture.head_size * architecture.max_tokens
    base, each = _OVERHEAD[architecture.bits]
    if pointless:
        base, each = base - _POINTS[0], each - _POINTS[1]
    return base + words + norms + angles + architecture.layers * (layer + each)


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
        check_choices(dict(zip(self.gene_names, self.choices, strict=True)), DECODER_BITS)
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
