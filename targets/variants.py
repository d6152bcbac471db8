"""What a bundle holds for each kind of machine: the part of a report that says what was not measured, and why."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from codemill.errors import BundleError
from codemill.runtime.machine import unlike
from codemill.targets.coverage import counted, coverage, covered_said
from codemill.targets.profile import Precision, TargetSpec, availability

if TYPE_CHECKING:
    from codemill.runtime.bundle import Manifest, Variant

__all__ = ["VariantSummary", "variant_rows", "variants_of"]

_MOST_KINDS = 4
"""Of layers or operators that are named on a page."""
_MOST_KEPT = 32
_LONGEST_NAME = 64
_MOST_LAYERS = 10**6


@dataclass(frozen=True)
class VariantSummary:
    """A variant of a bundle. `not_run`: why it cannot run on the machine of the report; None: it can.

    `covered`: share of its nodes that its provider has an operator for, where the provider publishes a list, and
    `lacking`: the other nodes, by operator. `layers`: of engines, layers of each kind in their networks. Of both the
    most frequent kinds, these first.
    """

    name: str
    provider: str
    precision: str
    size_bytes: int
    not_run: str | None
    covered: float | None = None
    lacking: dict[str, int] = field(default_factory=dict)
    layers: dict[str, int] = field(default_factory=dict)


def variants_of(folder: Path, manifest: Manifest) -> tuple[VariantSummary, ...]:
    """Of the bundle in a folder, by name; looks at this machine, and runs nothing."""
    return tuple(
        _summary(folder, name, manifest.variants[name]) for name in sorted(manifest.variants)
    )


def _summary(folder: Path, name: str, variant: Variant) -> VariantSummary:
    from codemill.runtime.bundle import size_bytes

    found = None
    # what was not to be run was not checked either
    with contextlib.suppress(BundleError):
        found = coverage([folder / path for path in variant.segments], variant.provider)
    return VariantSummary(
        name=name,
        provider=variant.provider,
        precision=variant.precision,
        size_bytes=size_bytes(folder, name),
        not_run=_lacking(name, variant),
        covered=None if found is None else found.share,
        lacking={} if found is None else _first(found.missing),
        layers=_layers_of(variant),
    )


def _lacking(name: str, variant: Variant) -> str | None:
    """Why a variant cannot run here, as `availability` says it of a target of its provider."""
    asked = variant.built_for.get("compute_capabilities", ())
    target = TargetSpec(
        name=name,
        description=name,
        provider=variant.provider,
        # which no machine is asked for
        precision=Precision.FP32,
        threads=None,
        memory_bytes=None,
        compute_capabilities=tuple(map(str, asked)) if isinstance(asked, list) else (),
    )
    return unlike(variant.built_for) or availability(target)


def _layers_of(variant: Variant) -> dict[str, int]:
    """Of all its engines together. Written by whoever made the bundle: what is no count is left out."""
    found: dict[str, int] = {}
    each = variant.built_for.get("layers", ())
    for engine in each if isinstance(each, list) else ():
        for kind, count in engine.items() if isinstance(engine, dict) else ():
            if isinstance(count, int) and not isinstance(count, bool) and 0 < count < _MOST_LAYERS:
                found[str(kind)] = found.get(str(kind), 0) + count
    return _first(found)


def _first(counts: dict[str, int]) -> dict[str, int]:
    """The kinds that most are of, by name where as many are: a report is no place for what a bundle made up."""
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return {name[:_LONGEST_NAME]: count for name, count in ordered[:_MOST_KEPT]}


def variant_rows(
    variants: Sequence[VariantSummary], measured: Sequence[str]
) -> list[tuple[str, ...]]:
    """The table of a page, its heading first; empty for one variant alone, which the page is about."""
    from codemill.targets.tables import in_bytes

    if len(variants) < 2:
        return []
    rows: list[tuple[str, ...]] = [("", "runs in", "precision", "ships", "here", "")]
    for item in variants:
        here = "measured" if item.name in measured else "not measured in this report"
        if item.not_run is not None and item.name not in measured:
            here = f"not run: {item.not_run}"
        size = in_bytes(item.size_bytes)
        rows.append((item.name, item.provider, item.precision, size, here, _notes(item)))
    return rows


def _notes(item: VariantSummary) -> str:
    notes = []
    if item.covered is not None:
        notes.append(covered_said(item.covered, item.lacking, _MOST_KINDS))
    if item.layers:
        kinds = counted(item.layers, _MOST_KINDS)
        notes.append(f"network of {sum(item.layers.values()):,} layers: {kinds}")
    return "; ".join(notes)
