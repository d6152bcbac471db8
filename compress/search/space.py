"""The search space as data: for each gene, its choices.

The default space is everything sensible that can be cut out of one teacher. What a choice costs is
`cost.py`; which is taken, `genetic.py`, which sees a space as a row of lists of choices only, so a
further gene is added here and nowhere else.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from codemill.compress.architecture import Architecture
from codemill.errors import RecipeError

__all__ = ["AnySpace", "Choices", "Space", "default_space"]

_SMALLEST_VOCABULARY = 1000
_STEPS = 12


class AnySpace(Protocol):
    """What the search sees of a space: a row of lists of choices."""

    @property
    def choices(self) -> tuple[tuple[Any, ...], ...]:
        """Each gene's choices."""

    @property
    def size(self) -> int:
        """How many architectures there are."""

    def architecture(self, genes: Sequence[int]) -> Architecture:
        """The architecture of a gene vector: one index into each gene's choices."""


@dataclass(frozen=True)
class Choices:
    """A recipe's own choices for some genes; None leaves the default ones."""

    vocab_sizes: tuple[int, ...] | None = None
    embedding_ranks: tuple[int | None, ...] | None = None
    layers: tuple[tuple[int, ...], ...] | None = None
    heads: tuple[int, ...] | None = None
    intermediate_sizes: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Space:
    """All combinations of the genes' choices, at one width and one longest input.

    `layers`: which of the teacher's layers a student copies, counted from 0 at the bottom;
    `embedding_ranks`: None is a full embedding table. Where two architectures cost the same in
    every respect, as (0,) and (5,) do, the search takes the one listed first: the order states a
    preference.
    """

    vocab_sizes: tuple[int, ...]
    embedding_ranks: tuple[int | None, ...]
    layers: tuple[tuple[int, ...], ...]
    heads: tuple[int, ...]
    intermediate_sizes: tuple[int, ...]
    hidden_size: int
    head_size: int
    max_tokens: int

    def __post_init__(self) -> None:
        for name, choices in zip(self.gene_names, self.choices, strict=True):
            if not choices:
                raise RecipeError(f"search space: {name} has no choices; give at least one")
            if len(set(choices)) != len(choices):
                raise RecipeError(f"search space: {name} lists a choice twice: {list(choices)}")
        for name, numbers in (
            ("vocab_sizes", self.vocab_sizes),
            ("embedding_ranks", [rank for rank in self.embedding_ranks if rank is not None]),
            ("layers", [len(copied) for copied in self.layers]),
            ("heads", self.heads),
            ("intermediate_sizes", self.intermediate_sizes),
        ):
            if any(number < 1 for number in numbers):
                raise RecipeError(
                    f"search space: every choice of {name} must be at least 1, not {list(numbers)}"
                )

    @property
    def gene_names(self) -> tuple[str, ...]:
        """The genes, in the order of `choices` and of a gene vector."""
        return ("vocab_sizes", "embedding_ranks", "layers", "heads", "intermediate_sizes")

    @property
    def choices(self) -> tuple[tuple[Any, ...], ...]:
        """Each gene's choices, in the order of `gene_names`."""
        return (
            self.vocab_sizes,
            self.embedding_ranks,
            self.layers,
            self.heads,
            self.intermediate_sizes,
        )

    @property
    def size(self) -> int:
        """How many architectures there are."""
        return math.prod(len(choices) for choices in self.choices)

    def architecture(self, genes: Sequence[int]) -> Architecture:
        """The architecture of a gene vector: one index into each gene's choices."""
        vocab_size, rank, copied, heads, intermediate = (
            choices[gene] for choices, gene in zip(self.choices, genes, strict=True)
        )
        return Architecture(
            vocab_size=vocab_size,
            hidden_size=self.hidden_size,
            layers=len(copied),
            heads=heads,
            head_size=self.head_size,
            intermediate_size=intermediate,
            max_tokens=self.max_tokens,
            embedding_rank=rank,
            copied_layers=copied,
        )


def default_space(
    *,
    hidden_size: int,
    layers: int,
    heads: int,
    intermediate_size: int,
    vocab_size: int,
    max_tokens: int,
    choices: Choices | None = None,
) -> Space:
    """Everything sensible that can be cut out of a teacher of this shape.

    `max_tokens` is the student's longest input. `choices` replaces the choices of the genes it
    names. Raises RecipeError for a choice of the recipe's that this teacher cannot give.
    """
    if hidden_size % heads:
        raise RecipeError(
            f"search space: a width of {hidden_size} does not divide into {heads} heads"
        )
    own = choices or Choices()
    _check(own, hidden_size, layers, heads, intermediate_size, vocab_size)
    return Space(
        vocab_sizes=_vocab_sizes(vocab_size) if own.vocab_sizes is None else own.vocab_sizes,
        embedding_ranks=_embedding_ranks(hidden_size)
        if own.embedding_ranks is None
        else own.embedding_ranks,
        layers=_spread_layers(layers) if own.layers is None else own.layers,
        heads=_heads(heads, hidden_size) if own.heads is None else own.heads,
        intermediate_sizes=_multiples(intermediate_size, _step(intermediate_size, 32))
        if own.intermediate_sizes is None
        else own.intermediate_sizes,
        hidden_size=hidden_size,
        head_size=hidden_size // heads,
        max_tokens=max_tokens,
    )


def _check(
    own: Choices, hidden_size: int, layers: int, heads: int, intermediate_size: int, vocab_size: int
) -> None:
    for name, numbers, most in (
        ("vocab_sizes", own.vocab_sizes or (), vocab_size),
        ("embedding_ranks", [rank or 0 for rank in own.embedding_ranks or ()], hidden_size),
        ("layers", [layer + 1 for copied in own.layers or () for layer in copied], layers),
        ("heads", own.heads or (), heads),
        ("intermediate_sizes", own.intermediate_sizes or (), intermediate_size),
    ):
        if any(number > most for number in numbers):
            raise RecipeError(
                f"search space: {name} asks for {list(getattr(own, name))}, "
                f"but the teacher has only {most}; leave out what exceeds it"
            )
    if any(hidden_size % count for count in own.heads or () if count > 0):
        raise RecipeError(
            f"search space: heads asks for {list(own.heads or ())}; ONNX Runtime fuses "
            f"attention only where the number of heads divides the width, {hidden_size}"
        )
    if any(layer < 0 for copied in own.layers or () for layer in copied):
        raise RecipeError(f"search space: layers are counted from 0, not {list(own.layers or ())}")


def _vocab_sizes(most: int) -> tuple[int, ...]:
    """Steps that grow as the tokens added are used ever less; the teacher's own size last."""
    grid = [
        *range(_SMALLEST_VOCABULARY, 8000, 500),
        *range(8000, 16000, 1000),
        *range(16000, most, 2000),
    ]
    return (*(size for size in grid if size < most), most)


def _embedding_ranks(hidden_size: int) -> tuple[int | None, ...]:
    """Multiples of what int8 kernels like, from a twelfth of the width up; a full table last."""
    step = max(8, hidden_size // 24 // 8 * 8)
    return (*range(2 * step, hidden_size, step), None)


def _spread_layers(layers: int) -> tuple[tuple[int, ...], ...]:
    """For each depth, layers spread evenly from the first to the last; at depth one, either."""
    spread = [
        tuple(place * (layers - 1) // (depth - 1) for place in range(depth))
        for depth in range(2, layers + 1)
    ]
    single = ((0,), (layers - 1,)) if layers > 1 else ((0,),)
    return (*single, *spread)


def _heads(most: int, hidden_size: int) -> tuple[int, ...]:
    """From a sixth up, whatever divides the width: ONNX Runtime fuses no other attention."""
    return tuple(count for count in range(max(1, most // 6), most + 1) if hidden_size % count == 0)


def _step(most: int, unit: int) -> int:
    """A twelfth of `most`, rounded down to whole units (what SIMD and int8 kernels like)."""
    return max(unit, most // _STEPS // unit * unit)


def _multiples(most: int, step: int) -> tuple[int, ...]:
    return (*range(step, most, step), most)
