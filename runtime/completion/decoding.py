"""What the manifest of a bundle that completes says besides what every manifest says, checked and typed.

    task          "completion"
    input         max_tokens: of prompt and completion together; begin: ids that every prompt begins with
    output        kind "tokens"; vocab_size; end: ids after which nothing follows;
                  fill: {"prefix", "suffix", "middle"}, ids that ask for what is between two texts, or null;
                  ngrams: {"escapes": one for each length of match}, how what followed the same tokens nearby weighs
                  beside the model (`ngrams.py`), or null
    architecture  layers, hidden_size, kv_heads, head_size;
                  rotary: {"frequencies": one for each pair of columns that is turned, "interleaved"}, or null
    exits         for each exit {"layer", "exit", "stop"}, the lowest layer first: the probabilities from which on
                  its controller's decisions to leave, and to give up, are followed; null: never

A variant's segments are: layers, exit, projection, layers, exit, projection, ..., layers, head. What runs them is
`parts.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from codemill.runtime.values import check_number, check_whole, kind_of

if TYPE_CHECKING:
    from codemill.runtime.bundle import Manifest, Variant

__all__ = [
    "AT_ONCE",
    "COMPLETION",
    "DECISIONS",
    "Decoding",
    "Exit",
    "Fill",
    "Rotary",
    "check_decoding",
    "decoding_of",
]

COMPLETION = "completion"
DECISIONS = 3
"""Of a controller: to stop, to exit, to continue."""
AT_ONCE = 128
"""Tokens of one run, at most: engines are built for so many, and a cancel is looked for between two runs."""
_LARGEST_VOCABULARY = 2**22
_MOST_LAYERS = 1000
_LARGEST_WIDTH = 2**16
_MOST_HEADS = 2**10
_LARGEST_HEAD = 2**10
_MOST_IDS = 100
_EXIT_KEYS = {"layer", "exit", "stop"}
_FILL_KEYS = {"prefix", "suffix", "middle"}
_ROTARY_KEYS = {"frequencies", "interleaved"}
_NGRAM_KEYS = {"escapes"}
_MOST_ORDERS = 16
_LARGEST_ESCAPE = 1e6


@dataclass(frozen=True, slots=True)
class Exit:
    """A place after `layer` layers where a token may leave, or a completion be given up.

    It is done when the controller finds it likeliest, at a probability of `exit`, or `stop`, or more; None: never.
    """

    layer: int
    exit: float | None
    stop: float | None


@dataclass(frozen=True, slots=True)
class Fill:
    """Token ids before the text before the gap, before the text behind it, and before what fills it."""

    prefix: int
    suffix: int
    middle: int


@dataclass(frozen=True, slots=True)
class Rotary:
    """Angles by which a position turns each pair of columns of a key."""

    frequencies: tuple[float, ...]
    interleaved: bool


@dataclass(frozen=True, slots=True)
class Decoding:
    """A decoder's shape, as far as running it asks for; and how n-grams weigh beside it (`ngrams.py`)."""

    vocab_size: int
    layers: int
    width: int
    kv_heads: int
    head_size: int
    max_tokens: int
    begin: tuple[int, ...]
    end: tuple[int, ...]
    fill: Fill | None
    rotary: Rotary | None
    exits: tuple[Exit, ...]
    escapes: tuple[float, ...] = ()

    @property
    def kv_bytes_per_token(self) -> int:
        """Of keys and values of a token, in float32."""
        return 2 * 4 * self.layers * self.kv_heads * self.head_size

    @property
    def ends(self) -> tuple[int, ...]:
        """The layer behind each segment."""
        return (*(item.layer for item in self.exits), self.layers)


def check_decoding(values: Mapping[str, Any], variants: Mapping[str, Variant]) -> None:
    """Check what a manifest of the task completion has to say; ValueError says what is wrong."""
    found = _decoding(values["input"], values["output"], values["architecture"], values["exits"])
    expected = 3 * len(found.exits) + 2
    for name, variant in variants.items():
        if len(variant.segments) != expected:
            raise ValueError(
                f"'variants.{name}.segments' should be {expected} graphs: layers, exit and projection for each of "
                f"{len(found.exits)} exits, the last layers and the head; found {len(variant.segments)}"
            )


def decoding_of(manifest: Manifest) -> Decoding:
    """The decoder of a bundle whose manifest was read with the task completion."""
    return _decoding(manifest.input, manifest.output, manifest.architecture, manifest.exits)


def _decoding(
    given: Mapping[str, Any],
    output: Mapping[str, Any],
    architecture: Mapping[str, Any],
    exits: Sequence[Any],
) -> Decoding:
    if output["kind"] != "tokens":
        raise ValueError(
            f"'output.kind' of {COMPLETION!r} should be 'tokens', found {output['kind']!r}"
        )
    vocab_size = check_whole(output, "vocab_size", "output", _LARGEST_VOCABULARY)
    layers = check_whole(architecture, "layers", "architecture", _MOST_LAYERS)
    head_size = check_whole(architecture, "head_size", "architecture", _LARGEST_HEAD)
    return Decoding(
        vocab_size=vocab_size,
        layers=layers,
        width=check_whole(architecture, "hidden_size", "architecture", _LARGEST_WIDTH),
        kv_heads=check_whole(architecture, "kv_heads", "architecture", _MOST_HEADS),
        head_size=head_size,
        max_tokens=int(given["max_tokens"]),
        begin=_ids(given.get("begin", []), "input.begin", vocab_size),
        end=_ids(output.get("end", []), "output.end", vocab_size),
        fill=_fill(output.get("fill"), vocab_size),
        rotary=_rotary(architecture.get("rotary"), head_size),
        exits=_exits(exits, layers),
        escapes=_escapes(output.get("ngrams")),
    )


def _ids(values: object, where: str, vocab_size: int) -> tuple[int, ...]:
    if not isinstance(values, list) or len(values) > _MOST_IDS:
        raise ValueError(
            f"{where!r} should be a list of at most {_MOST_IDS} token ids, found {kind_of(values)}"
        )
    return tuple(_id(value, f"{where}[{i}]", vocab_size) for i, value in enumerate(values))


def _id(value: object, where: str, vocab_size: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < vocab_size:
        raise ValueError(
            f"{where!r} should be a token id from 0 to {vocab_size - 1}, found {value!r}"
        )
    return value


def _fill(value: object, vocab_size: int) -> Fill | None:
    if value is None:
        return None
    if not isinstance(value, dict) or value.keys() != _FILL_KEYS:
        raise ValueError("'output.fill' should have prefix, suffix and middle only, or be null")
    return Fill(**{key: _id(value[key], f"output.fill.{key}", vocab_size) for key in _FILL_KEYS})


def _rotary(value: object, head_size: int) -> Rotary | None:
    if value is None:
        return None
    if not isinstance(value, dict) or value.keys() != _ROTARY_KEYS:
        raise ValueError(
            "'architecture.rotary' should have frequencies and interleaved only, or be null"
        )
    found = value["frequencies"]
    if not isinstance(found, list) or not 1 <= len(found) <= head_size // 2:
        raise ValueError(
            f"'architecture.rotary.frequencies' should be a list of 1 to {head_size // 2} numbers"
        )
    where = "architecture.rotary"
    frequencies = tuple(
        check_number({"frequencies": item}, "frequencies", where, 1000.0) for item in found
    )
    if not isinstance(value["interleaved"], bool):
        raise ValueError(
            f"'{where}.interleaved' should be true or false, found {value['interleaved']!r}"
        )
    return Rotary(frequencies, value["interleaved"])


def _escapes(value: object) -> tuple[float, ...]:
    if value is None:
        return ()
    if not isinstance(value, dict) or value.keys() != _NGRAM_KEYS:
        raise ValueError("'output.ngrams' should have escapes only, or be null")
    found = value["escapes"]
    if not isinstance(found, list) or not 1 <= len(found) <= _MOST_ORDERS:
        raise ValueError(f"'output.ngrams.escapes' should be a list of 1 to {_MOST_ORDERS} numbers")
    return tuple(
        check_number({"escapes": item}, "escapes", "output.ngrams", _LARGEST_ESCAPE)
        for item in found
    )


def _exits(values: Sequence[Any], layers: int) -> tuple[Exit, ...]:
    found: list[Exit] = []
    for i, value in enumerate(values):
        where = f"exits[{i}]"
        if not isinstance(value, dict) or value.keys() != _EXIT_KEYS:
            raise ValueError(f"{where!r} should have layer, exit and stop only")
        below = found[-1].layer if found else 0
        layer = check_whole(value, "layer", where, _MOST_LAYERS)
        if not below < layer < layers:
            raise ValueError(
                f"'{where}.layer' should be above {below} and below the {layers} layers of the architecture, "
                f"found {layer}"
            )
        bounds = {
            key: None if value[key] is None else check_number(value, key, where, 1.0)
            for key in ("exit", "stop")
        }
        found.append(Exit(layer, bounds["exit"], bounds["stop"]))
    return tuple(found)
