"""What the manifest of a bundle with labels says besides what every manifest says, checked and typed.

    task      "classification" (one text has a label) or "pair-classification" (two together)
    input     max_tokens; texts: 1 or 2; joined: the two go into one token sequence;
              long: "truncate" or "split", what is done with a text of more tokens
    output    kind "labels"; labels; dim: width of the pooled embedding; temperature
    exits     for each exit {"layer", "temperature", "threshold"}, the lowest layer first

A variant's segments are encoder part, head, encoder part, head ...: a pair of graphs for each exit,
and one for the end. What runs them is `classifier.py`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from codemill.runtime.values import check_name, check_number, check_whole, kind_of

if TYPE_CHECKING:
    from codemill.runtime.bundle import Manifest, Variant

__all__ = ["LABEL_TASKS", "Exit", "Labelling", "check_labelling", "labelling_of"]

Long = Literal["truncate", "split"]
LABEL_TASKS = {"classification": 1, "pair-classification": 2}
"""The tasks with labels, and how many texts have one."""

_MOST_LABELS = 10_000
_MOST_LAYERS = 1000
_LARGEST_DIM = 2**16
_LARGEST_TEMPERATURE = 1000.0
_EXIT_KEYS = {"layer", "temperature", "threshold"}


@dataclass(frozen=True, slots=True)
class Exit:
    """A place where a row may leave: its label is certain enough after `layer` layers.

    It leaves when the largest probability of softmax(logits / temperature) is `threshold` or more.
    """

    layer: int
    temperature: float
    threshold: float


@dataclass(frozen=True, slots=True)
class Labelling:
    """How a bundle labels: `texts` at a time, `joined` into one sequence or encoded one by one.

    `temperature` divides the last head's logits; `layers` is how many the whole encoder has.
    """

    labels: tuple[str, ...]
    dim: int
    texts: int
    joined: bool
    temperature: float
    layers: int
    exits: tuple[Exit, ...]
    long: Long = "truncate"


def check_labelling(values: Mapping[str, Any], variants: Mapping[str, Variant]) -> None:
    """Check what a manifest with one of `LABEL_TASKS` has to say; ValueError says what is wrong."""
    found = _labelling(
        values["task"],
        values["input"],
        values["output"],
        values["architecture"],
        values["exits"],
    )
    expected = 2 * (len(found.exits) + 1)
    for name, variant in variants.items():
        if len(variant.segments) != expected:
            raise ValueError(
                f"'variants.{name}.segments' should be {expected} graphs, an encoder part and a "
                f"head for each of {len(found.exits)} exits and for the end, "
                f"found {len(variant.segments)}"
            )


def labelling_of(manifest: Manifest) -> Labelling:
    """How a bundle labels whose manifest was read with one of `LABEL_TASKS`."""
    return _labelling(
        manifest.task, manifest.input, manifest.output, manifest.architecture, manifest.exits
    )


def _labelling(
    task: str,
    given: Mapping[str, Any],
    output: Mapping[str, Any],
    architecture: Mapping[str, Any],
    exits: Sequence[Any],
) -> Labelling:
    if output["kind"] != "labels":
        raise ValueError(f"'output.kind' of {task!r} should be 'labels', found {output['kind']!r}")
    texts = given.get("texts")
    if isinstance(texts, bool) or texts != LABEL_TASKS[task] or not isinstance(texts, int):
        raise ValueError(
            f"'input.texts' of {task!r} should be {LABEL_TASKS[task]}, found {texts!r}"
        )
    joined = given.get("joined", False)
    if not isinstance(joined, bool) or (joined and texts != 2):
        raise ValueError(
            f"'input.joined' should be true or false, and true only with two texts, found {joined!r}"
        )
    long = given.get("long", "truncate")
    if long not in ("truncate", "split") or (long == "split" and (joined or exits)):
        raise ValueError(
            "'input.long' should be 'truncate' or 'split', and 'split' only without joined texts and "
            f"exits, found {long!r}"
        )
    layers = check_whole(architecture, "layers", "architecture", _MOST_LAYERS)
    return Labelling(
        labels=_labels(output.get("labels")),
        dim=check_whole(output, "dim", "output", _LARGEST_DIM),
        texts=texts,
        joined=joined,
        temperature=check_number(
            {"temperature": output.get("temperature", 1.0)},
            "temperature",
            "output",
            _LARGEST_TEMPERATURE,
        ),
        layers=layers,
        exits=_exits(exits, layers),
        long=long,
    )


def _labels(values: object) -> tuple[str, ...]:
    if not isinstance(values, list) or not 2 <= len(values) <= _MOST_LABELS:
        found = f"{len(values)} of them" if isinstance(values, list) else kind_of(values)
        raise ValueError(f"'output.labels' should be a list of 2 to {_MOST_LABELS}, found {found}")
    labels = tuple(check_name(value, f"output.labels[{i}]") for i, value in enumerate(values))
    label, count = Counter(labels).most_common(1)[0]
    if count > 1:
        raise ValueError(f"'output.labels' has {label!r} twice")
    return labels


def _exits(values: Sequence[Any], layers: int) -> tuple[Exit, ...]:
    found: list[Exit] = []
    for i, value in enumerate(values):
        where = f"exits[{i}]"
        if not isinstance(value, dict) or value.keys() != _EXIT_KEYS:
            raise ValueError(f"{where!r} should have layer, temperature and threshold only")
        exit_ = Exit(
            layer=check_whole(value, "layer", where, _MOST_LAYERS),
            temperature=check_number(value, "temperature", where, _LARGEST_TEMPERATURE),
            threshold=check_number(value, "threshold", where, 1.0),
        )
        below = found[-1].layer if found else 0
        if not below < exit_.layer < layers:
            raise ValueError(
                f"'{where}.layer' should be above {below} and below the {layers} layers of the "
                f"architecture, found {exit_.layer}"
            )
        found.append(exit_)
    return tuple(found)
