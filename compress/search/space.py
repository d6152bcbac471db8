"""The search space as data: for each gene, its choices.

The default space is everything sensible that can be cut out of one teacher, or, for a fresh student,
everything sensible up to the teacher's size. What a choice costs is `cost.py`; which is taken, `genetic.py`
and `pareto.py`, which see a space as a row of lists of choices only, so a further gene is added here and
nowhere else.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import MISSING, dataclass, fields
from itertools import combinations, product
from types import SimpleNamespace
from typing import Any, Protocol, TypeVar, cast

import numpy as np

from codemill.compress.architecture import BITS, TOKENIZERS, Architecture, Tokens
from codemill.errors import RecipeError

__all__ = [
    "AnySpace",
    "Choices",
    "FreshSpace",
    "Space",
    "check_choices",
    "check_head_size",
    "default_space",
    "fresh_space",
]

Genes = tuple[int, ...]

_DEFAULTS = {
    field.name: field.default for field in fields(Architecture) if field.default is not MISSING
}
_Choice = TypeVar("_Choice")

_SMALLEST_VOCABULARY = 1000
_STEPS = 12
_SMALLEST_HEAD = 16
_HEAD_UNIT = 8
# of up to so many layers every subset is a choice
_ALL_SUBSETS = 6


class AnySpace(Protocol):
    """What the search sees of a space: a row of lists of choices, every combination of which is valid."""

    @property
    def choices(self) -> tuple[tuple[Any, ...], ...]:
        """Each gene's choices."""

    @property
    def spread(self) -> tuple[int, ...]:
        """The places of genes whose choices are plain numbers, so that `fields` takes arrays of them."""

    def fields(self, values: Sequence[Any]) -> dict[str, Any]:
        """The fields of the architecture with these choices, one a gene."""

    @property
    def size(self) -> int:
        """How many architectures there are."""
        return math.prod(len(choices) for choices in self.choices)

    def architecture(self, genes: Sequence[int]) -> Architecture:
        """The architecture of a gene vector: one index into each gene's choices."""
        picked = [choices[gene] for choices, gene in zip(self.choices, genes, strict=True)]
        return Architecture(**self.fields(picked))

    def grids(self) -> Iterator[tuple[Genes, Architecture]]:
        """All architectures, in blocks, to be costed at once: their fields are numbers or arrays.

        In a block the genes at `spread` take all their values: the fields broadcast to one axis for each
        of them, in order. The genes that come with it are those of its first architecture.
        """
        ranges = [
            (0,) if place in self.spread else range(len(choices))
            for place, choices in enumerate(self.choices)
        ]
        axes = np.ix_(*(np.array(self.choices[place]) for place in self.spread))
        for genes in product(*ranges):
            values = [choices[gene] for choices, gene in zip(self.choices, genes, strict=True)]
            for place, axis in zip(self.spread, axes, strict=True):
                values[place] = axis
            yield genes, cast(Architecture, SimpleNamespace(**_DEFAULTS | self.fields(values)))


@dataclass(frozen=True)
class Choices:
    """A recipe's own choices for some genes; None leaves the default ones.

    `layers`: which layers of the teacher to copy, or, for a fresh student, how many layers.
    """

    vocab_sizes: tuple[int, ...] | None = None
    embedding_ranks: tuple[int | None, ...] | None = None
    hidden_sizes: tuple[int, ...] | None = None
    layers: tuple[tuple[int, ...], ...] | tuple[int, ...] | None = None
    heads: tuple[int, ...] | None = None
    head_sizes: tuple[int, ...] | None = None
    intermediate_sizes: tuple[int, ...] | None = None
    bits: tuple[int, ...] | None = None
    tokenizers: tuple[Tokens, ...] | None = None


@dataclass(frozen=True)
class Space(AnySpace):
    """All combinations of the genes' choices, at one teacher's width and one longest input.

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
    bits: tuple[int, ...] = (8,)
    tokenizers: tuple[Tokens, ...] = ("pruned",)

    gene_names = (
        *("vocab_sizes", "embedding_ranks", "layers", "heads", "intermediate_sizes"),
        *("bits", "tokenizers"),
    )
    spread = (0, 3, 4)

    def __post_init__(self) -> None:
        check_choices(dict(zip(self.gene_names, self.choices, strict=True)))

    @property
    def choices(self) -> tuple[tuple[Any, ...], ...]:
        """Each gene's choices, in the order of `gene_names`."""
        return tuple(getattr(self, name) for name in self.gene_names)

    def fields(self, values: Sequence[Any]) -> dict[str, Any]:
        """The fields of the architecture with these choices."""
        vocab_size, rank, copied, heads, intermediate, bits, tokenizer = values
        return {
            "vocab_size": vocab_size,
            "hidden_size": self.hidden_size,
            "layers": len(copied),
            "heads": heads,
            "head_size": self.head_size,
            "intermediate_size": intermediate,
            "max_tokens": self.max_tokens,
            "embedding_rank": rank,
            "copied_layers": copied,
            "bits": bits,
            "tokenizer": tokenizer,
        }


@dataclass(frozen=True)
class FreshSpace(AnySpace):
    """All combinations for a student that starts from nothing; heads are width / head size."""

    vocab_sizes: tuple[int, ...]
    embedding_ranks: tuple[int | None, ...]
    hidden_sizes: tuple[int, ...]
    layers: tuple[int, ...]
    head_sizes: tuple[int, ...]
    intermediate_sizes: tuple[int, ...]
    max_tokens: int
    bits: tuple[int, ...] = (8,)
    tokenizers: tuple[Tokens, ...] = ("pruned",)

    gene_names = (
        *("vocab_sizes", "embedding_ranks", "hidden_sizes", "layers"),
        *("head_sizes", "intermediate_sizes", "bits", "tokenizers"),
    )
    spread = (0, 2, 5)

    def __post_init__(self) -> None:
        check_choices(dict(zip(self.gene_names, self.choices, strict=True)))
        for head_size in self.head_sizes:
            check_head_size(head_size)
            odd = [width for width in self.hidden_sizes if width % head_size]
            if odd:
                raise RecipeError(
                    f"search space: hidden_sizes {odd} do not divide into heads of {head_size}; "
                    "leave out the one or the other"
                )

    @property
    def choices(self) -> tuple[tuple[Any, ...], ...]:
        """Each gene's choices, in the order of `gene_names`."""
        return tuple(getattr(self, name) for name in self.gene_names)

    def fields(self, values: Sequence[Any]) -> dict[str, Any]:
        """The fields of the architecture with these choices."""
        vocab_size, rank, hidden_size, layers, head_size, intermediate, bits, tokenizer = values
        return {
            "vocab_size": vocab_size,
            "hidden_size": hidden_size,
            "layers": layers,
            "heads": hidden_size // head_size,
            "head_size": head_size,
            "intermediate_size": intermediate,
            "max_tokens": self.max_tokens,
            "embedding_rank": rank,
            "bits": bits,
            "tokenizer": tokenizer,
        }


def check_head_size(head_size: int) -> None:
    """Raise RecipeError for a head that SIMD units and tensor cores do not like."""
    if head_size < _SMALLEST_HEAD or head_size % _HEAD_UNIT:
        raise RecipeError(
            f"search space: a head size of {head_size} is slow everywhere: give multiples of "
            f"{_HEAD_UNIT} from {_SMALLEST_HEAD} up"
        )


def check_choices(genes: dict[str, tuple[Any, ...]], bits: Sequence[int] = BITS) -> None:
    """Raise RecipeError where a gene, by name, has no choices, one twice, or one below 1."""
    for name, choices in genes.items():
        if not choices:
            raise RecipeError(f"search space: {name} has no choices; give at least one")
        if len(set(choices)) != len(choices):
            raise RecipeError(f"search space: {name} lists a choice twice: {list(choices)}")
        numbers = [
            len(choice) if isinstance(choice, tuple) else choice
            for choice in choices
            if choice is not None and not isinstance(choice, str)
        ]
        if any(number < 1 for number in numbers):
            raise RecipeError(
                f"search space: every choice of {name} must be at least 1, not {numbers}"
            )
    if not set(genes["bits"]) <= set(bits):
        raise RecipeError(f"search space: bits are of {list(bits)}, not {list(genes['bits'])}")
    if not set(genes.get("tokenizers", ())) <= set(TOKENIZERS):
        raise RecipeError(
            f"search space: tokenizers are of {list(TOKENIZERS)}, not {list(genes['tokenizers'])}"
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
    if own.hidden_sizes is not None or own.head_sizes is not None:
        raise RecipeError(
            "search space: a student that is cut out of its teacher keeps the teacher's width and "
            "head size; leave hidden_sizes and head_sizes out, or set student.init: fresh"
        )
    copied = _subsets_of(layers) if own.layers is None else _copies(own.layers)
    _check(own, copied, hidden_size, layers, heads, intermediate_size, vocab_size)
    return Space(
        vocab_sizes=_or(own.vocab_sizes, _vocab_sizes(vocab_size)),
        embedding_ranks=_or(own.embedding_ranks, _embedding_ranks(hidden_size)),
        layers=copied,
        heads=_or(own.heads, _heads(heads, hidden_size)),
        intermediate_sizes=_or(
            own.intermediate_sizes, _multiples(intermediate_size, _step(intermediate_size, 32))
        ),
        hidden_size=hidden_size,
        head_size=hidden_size // heads,
        max_tokens=max_tokens,
        bits=_or(own.bits, BITS[:1]),
        tokenizers=_or(own.tokenizers, TOKENIZERS[:1]),
    )


def fresh_space(
    *,
    hidden_size: int,
    layers: int,
    vocab_size: int,
    max_tokens: int,
    choices: Choices | None = None,
) -> FreshSpace:
    """Everything sensible for a student that is not cut, up to the given sizes; see `default_space`."""
    own = choices or Choices()
    if own.heads is not None:
        raise RecipeError(
            "search space: a fresh student has as many heads as its width holds; give head_sizes"
        )
    if any(isinstance(choice, tuple) for choice in own.layers or ()):
        raise RecipeError(
            "search space: a fresh student copies no layers; let layers list how many, such as [2, 4]"
        )
    depths = (
        None
        if own.layers is None
        else tuple(choice for choice in own.layers if isinstance(choice, int))
    )
    widths = _or(own.hidden_sizes, tuple(range(64, hidden_size + 1, 32)) or (hidden_size,))
    head_sizes = tuple(
        size
        for size in (_SMALLEST_HEAD, 2 * _SMALLEST_HEAD)
        if not any(width % size for width in widths)
    )
    return FreshSpace(
        vocab_sizes=_or(own.vocab_sizes, _vocab_sizes(vocab_size)),
        embedding_ranks=_or(own.embedding_ranks, (*range(32, 257, 32), None)),
        hidden_sizes=widths,
        layers=_or(depths, tuple(range(1, layers + 1))),
        head_sizes=_or(own.head_sizes, head_sizes or (_SMALLEST_HEAD,)),
        intermediate_sizes=_or(
            own.intermediate_sizes, tuple(range(64, 4 * max(widths, default=1) + 1, 64))
        ),
        max_tokens=max_tokens,
        bits=_or(own.bits, BITS[:1]),
        tokenizers=_or(own.tokenizers, TOKENIZERS[:1]),
    )


def _or(own: tuple[_Choice, ...] | None, default: tuple[_Choice, ...]) -> tuple[_Choice, ...]:
    return default if own is None else own


def _copies(
    layers: tuple[tuple[int, ...], ...] | tuple[int, ...],
) -> tuple[tuple[int, ...], ...]:
    copied = tuple(choice for choice in layers if isinstance(choice, tuple))
    if len(copied) != len(layers):
        raise RecipeError(
            f"search space: layers asks for {list(layers)}; a student that is cut out of its teacher "
            "needs the layers it copies, such as [[0], [0, 5]]"
        )
    return copied


def _check(
    own: Choices,
    copied: tuple[tuple[int, ...], ...],
    hidden_size: int,
    layers: int,
    heads: int,
    intermediate_size: int,
    vocab_size: int,
) -> None:
    for name, numbers, most in (
        ("vocab_sizes", own.vocab_sizes or (), vocab_size),
        ("embedding_ranks", [rank or 0 for rank in own.embedding_ranks or ()], hidden_size),
        ("layers", [layer + 1 for choice in copied for layer in choice], layers),
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
    if any(layer < 0 for choice in copied for layer in choice):
        raise RecipeError(f"search space: layers are counted from 0, not {list(copied)}")


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


def _subsets_of(layers: int) -> tuple[tuple[int, ...], ...]:
    """For each depth, which layers to copy: first those spread evenly from the first to the last.

    Then all other subsets of few layers; of many the lowest, the highest, and the lowest with the last.
    """
    found: dict[tuple[int, ...], None] = {}
    for depth in range(1, layers + 1):
        spread = [place * (layers - 1) // max(1, depth - 1) for place in range(depth)]
        found[tuple(spread)] = None
        if depth == 1:
            found[(layers - 1,)] = None
    for depth in range(1, layers + 1):
        if layers <= _ALL_SUBSETS:
            found |= dict.fromkeys(combinations(range(layers), depth))
            continue
        found[tuple(range(depth))] = None
        found[tuple(range(layers - depth, layers))] = None
        found[(*range(depth - 1), layers - 1)] = None
    whole = tuple(range(layers))
    return (*(chosen for chosen in found if chosen != whole), whole)


def _heads(most: int, hidden_size: int) -> tuple[int, ...]:
    """From a sixth up, whatever divides the width: ONNX Runtime fuses no other attention."""
    return tuple(count for count in range(max(1, most // 6), most + 1) if hidden_size % count == 0)


def _step(most: int, unit: int) -> int:
    """A twelfth of `most`, rounded down to whole units (what SIMD and int8 kernels like)."""
    return max(unit, most // _STEPS // unit * unit)


def _multiples(most: int, step: int) -> tuple[int, ...]:
    return (*range(step, most, step), most)
