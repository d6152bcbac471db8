"""The search of Compressor (Shi et al., *Compressing Pre-trained Models of Code into 3 MB*, ASE 2022), exact.

Its space (10,944,000 architectures), its size and its fitness, as data for `genetic.py`. Its size is that
of fp32 parameters and not of what ships; its GFLOPs are those of 514 tokens whatever the vocabulary; its
space holds heads of two columns. The default space is `space.py`'s; this one reproduces the paper.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from codemill.compress.architecture import Architecture
from codemill.compress.search.cost import (
    gflops_paper,
    interpolate,
    parameters_paper,
    size_bytes,
)
from codemill.compress.search.genetic import Candidate
from codemill.compress.search.space import AnySpace

__all__ = ["TOKENS", "CompressorCosts", "CompressorSpace", "paper_fitness", "shipped_bytes"]

TOKENS = 514
"""Positions, and tokens of every input, in the paper."""


@dataclass(frozen=True)
class CompressorSpace(AnySpace):
    """The published space. Genes: vocabulary, width, layers, heads, intermediate size."""

    vocab_sizes: tuple[int, ...] = tuple(range(1000, 50_001, 1000))
    hidden_sizes: tuple[int, ...] = tuple(range(16, 769, 16))
    layers: tuple[int, ...] = tuple(range(1, 13))
    heads: tuple[int, ...] = (1, 2, 4, 8)
    intermediate_sizes: tuple[int, ...] = tuple(range(32, 3041, 32))

    spread = (0, 1, 4)

    @property
    def choices(self) -> tuple[tuple[int, ...], ...]:
        """Each gene's choices."""
        return (
            self.vocab_sizes,
            self.hidden_sizes,
            self.layers,
            self.heads,
            self.intermediate_sizes,
        )

    def fields(self, values: Sequence[Any]) -> dict[str, Any]:
        """The fields of the architecture; 514 positions, a full embedding, nothing copied."""
        vocab_size, hidden_size, layers, heads, intermediate_size = values
        return {
            "vocab_size": vocab_size,
            "hidden_size": hidden_size,
            "layers": layers,
            "heads": heads,
            "head_size": hidden_size // heads,
            "intermediate_size": intermediate_size,
            "max_tokens": TOKENS,
        }


class CompressorCosts:
    """The paper's costs: its GFLOPs at 514 tokens; its size, 4 bytes a parameter."""

    latency_ms: Callable[[Architecture], float] | None = None

    def gflops(self, architecture: Architecture) -> float:
        """1e9 operations by the paper's formula."""
        return gflops_paper(architecture, TOKENS)

    def size_bytes(self, architecture: Architecture) -> int:
        """4 bytes a parameter, as the paper counts them."""
        return 4 * parameters_paper(architecture)


_BPE_BYTES = {
    1_000: 20_914,
    2_000: 47_112,
    4_000: 102_174,
    8_000: 218_412,
    16_000: 466_160,
    32_000: 993_866,
    50_000: 1_609_298,
}
"""Vocabulary -> length of tokenizer.json: byte-level BPEs trained on 34,632 Python functions."""


def shipped_bytes(architecture: Architecture) -> int:
    """What would ship as int8 ONNX with a byte-level BPE of that vocabulary; not what the paper's search limits."""
    return int(size_bytes(architecture, interpolate(_BPE_BYTES)(architecture.vocab_size)))


def paper_fitness(target_bytes: int) -> Callable[[Candidate], float]:
    """The paper's fitness: GFLOPs less the distance to the size that is aimed at, in MB; overshooting is allowed."""

    def fitness(candidate: Candidate) -> float:
        return candidate.gflops - abs(target_bytes - candidate.size_bytes) / 1e6

    return fitness
