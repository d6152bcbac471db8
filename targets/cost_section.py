"""The page's section on what a bundle's model costs: by part, by file, and by operator as measured."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from codemill.targets.drawing import INK, PANEL, SERIES, Drawing, bars, figure
from codemill.targets.figures import Operators, OperatorTime, Source
from codemill.targets.layer_cost import Kind, Part, parts_of
from codemill.targets.report import BundleSummary
from codemill.targets.tables import digits, in_bytes, in_ms

__all__ = ["CostSection", "cost_section"]

_BITS = {"int4": 4, "int8": 8, "fp16": 16, "bf16": 16, "fp32": 32}
_COLOURS: dict[Kind, str] = {
    "embedding": SERIES[2],
    "attention": SERIES[1],
    "feed-forward": SERIES[0],
    "head": SERIES[3],
}
_EACH = 12
"""Up to so many layers each has a row; of more, those between two exits share one."""
_MOST_OPERATORS = 9
_Table = tuple[tuple[str, ...], tuple[tuple[str, ...], ...]]


@dataclass(frozen=True)
class CostSection:
    """What the template shows. Tables are (heads, rows), a row's first cell its name."""

    drawings: tuple[tuple[str, str, Drawing], ...]
    parts: _Table | None
    parts_note: str
    files: _Table | None
    operators: _Table | None
    operators_note: str
    operators_source: Source


def cost_section(
    bundle: BundleSummary,
    tokens: float,
    precision: str | None,
    operators: Operators | None,
    prefix: str,
) -> CostSection | None:
    """Of inputs of `tokens` tokens as the bundle counts them; None where nothing is known of the bundle's parts.

    `prefix` keeps the ids of several reports on one page apart.
    """
    parts = parts_of(bundle.architecture, tokens)
    if parts is None and not bundle.files and operators is None:
        return None
    is_decoder = bundle.architecture.get("family") == "llama"
    of = f"{'a token after' if is_decoder else 'a text of'} {tokens:,.0f} tokens"
    drawn: list[tuple[str, Drawing | None]] = []
    if parts is not None:
        title = f"Where parameters and operations are (estimates; {of})"
        drawn.append((title, _shares(parts)))
    if operators is not None:
        shape = f"{operators.tokens} tokens, batch {operators.batch}"
        drawn.append((f"Time by operator ({shape})", _operator_bars(operators.times)))
    return CostSection(
        drawings=tuple(
            ("half", title, drawing.named(prefix)) for title, drawing in drawn if drawing
        ),
        parts=_parts_table(bundle, parts, precision) if parts else None,
        parts_note=_parts_note(bundle, of, is_decoder),
        files=_files_table(bundle),
        operators=_operators_table(operators.times) if operators else None,
        operators_note=_operators_note(operators) if operators else "",
        operators_source=operators.source if operators else "measured",
    )


def _parts_table(bundle: BundleSummary, parts: Sequence[Part], precision: str | None) -> _Table:
    """Parameters and operations of each part, and the share of the operations up to it: what leaving there costs."""
    whole = sum(part.gflops for part in parts) or 1.0
    every = sum(part.parameters for part in parts)
    bits = _BITS.get(precision or "")
    origins = _origins(bundle)
    heads: tuple[str, ...] = (
        "",
        "parameters",
        "share",
        *([f"bytes at {precision}, about"] if bits else []),
    )
    heads = (*heads, "GFLOPs", "share", "up to here")
    rows, done = [], 0.0
    for name, group in _groups(bundle, parts):
        parameters = sum(part.parameters for part in group)
        gflops = sum(part.gflops for part in group)
        done += gflops
        layer = group[0].layer
        if layer is not None and layer == group[-1].layer and layer <= len(origins):
            name += f" (the teacher's {origins[layer - 1]})"
        rows.append(
            (
                name,
                f"{parameters:,}",
                f"{parameters / every:.0%}",
                *([in_bytes(parameters * bits / 8)] if bits else []),
                _gflops(gflops),
                f"{gflops / whole:.0%}",
                f"{done / whole:.0%}",
            )
        )
    return heads, tuple(rows)


def _origins(bundle: BundleSummary) -> list[int]:
    """The teacher's layers that the bundle's were copied from; empty where that is not known."""
    copied = bundle.architecture.get("copied_layers")
    return copied if isinstance(copied, list) else []


def _gflops(value: float) -> str:
    """Of small models too; a look-up is none."""
    return "–" if not value else digits(value) if value >= 0.01 else f"{value:.4f}"


def _groups(bundle: BundleSummary, parts: Sequence[Part]) -> Iterator[tuple[str, list[Part]]]:
    """A name, and the parts that share a row."""
    layers = max(part.layer or 0 for part in parts)
    ends = range(1, layers + 1) if layers <= _EACH else sorted({*bundle.exits, layers})
    yield "embedding", [part for part in parts if part.kind == "embedding"]
    first = 1
    for last in ends:
        group = [part for part in parts if part.layer is not None and first <= part.layer <= last]
        if group:
            name = f"layer {last}" if first == last else f"layers {first} to {last}"
            yield f"{name}, then an exit" if last in bundle.exits else name, group
        first = last + 1
    head = [part for part in parts if part.kind == "head"]
    if head:
        yield "head", head


def _parts_note(bundle: BundleSummary, of: str, is_decoder: bool) -> str:
    said = [
        f"By formulas from the architecture that the bundle names, for {of} as the bundle counts them; dense products "
        "only, a multiplication and an addition are two operations."
    ]
    if is_decoder:
        said.append("The head's table is the embedding's.")
    if bundle.exits:
        said.append("Heads at exits are not counted.")
    if _origins(bundle):
        said.append("The teacher's layers are counted from 0, as in recipes.")
    return " ".join(said)


def _files_table(bundle: BundleSummary) -> _Table | None:
    if not bundle.files:
        return None
    total = sum(bundle.files.values()) or 1
    rows = sorted(bundle.files.items(), key=lambda item: -item[1])
    return ("file", "bytes", "share"), tuple(
        (name, f"{size:,}", f"{size / total:.1%}") for name, size in rows
    )


def _operators_table(times: Sequence[OperatorTime]) -> _Table:
    return ("operator", "graph", "nodes", "time"), tuple(
        (item.operator, item.graph, f"{item.nodes:,}", in_ms(item.time_ms)) for item in times
    )


def _operators_note(operators: Operators) -> str:
    graphs = {item.graph for item in operators.times}
    said = (
        f"By ONNX Runtime's profiler, in a process of its own, of {operators.calls} calls: each node's median "
        "time, as often as it runs in a call. Profiling slows small operators: read the shares, not the sum."
    )
    if len(graphs) > 2:
        said += " Graphs behind an exit run only for the texts that go on."
    return said


def _operator_bars(times: Sequence[OperatorTime]) -> Drawing | None:
    """The operators that take longest, over all graphs."""
    by_name: dict[str, float] = {}
    for item in times:
        by_name[item.operator] = by_name.get(item.operator, 0.0) + item.time_ms
    ranked = sorted(by_name.items(), key=lambda item: -item[1])
    total = sum(by_name.values()) or 1.0
    rows = ranked[:_MOST_OPERATORS]
    if rest := ranked[_MOST_OPERATORS:]:
        rows = [*rows, (f"{len(rest)} others", sum(ms for _, ms in rest))]
    shown = [(name, ms, f"{in_ms(ms)}, {ms / total:.0%}", False) for name, ms in rows]
    return bars("operators", shown, "ms a call")


def _shares(parts: Sequence[Part]) -> Drawing:
    """A bar of parameters and one of operations, a piece a part, from the bottom of the model at the left.

    Of many layers all attention is one piece, and all feed-forward one.
    """
    kinds = dict.fromkeys(part.kind for part in parts)
    together = max(part.layer or 0 for part in parts) > _EACH
    pieces = (
        [(kind, [part for part in parts if part.kind == kind]) for kind in kinds]
        if together
        else [(_named(part), [part]) for part in parts]
    )
    with figure("parts", 4.2, 2.1) as (page, svg):
        axes = page.subplots()
        for row, key in enumerate(("parameters", "gflops")):
            whole = float(sum(getattr(part, key) for part in parts)) or 1.0
            left = 0.0
            for name, group in pieces:
                value = sum(getattr(part, key) for part in group)
                share = 100 * value / whole
                colour = _COLOURS[group[0].kind]
                axes.barh(
                    row, share, left=left, height=0.55, color=colour, edgecolor=PANEL, linewidth=0.6
                )
                said = f"{value:,} parameters" if row == 0 else f"{_gflops(value)} GFLOPs"
                if share:
                    middle = left + share / 2
                    svg.mark(axes, middle, row, name, f"{said}, {share:.1f} %", width=share)
                left += share
        axes.set_yticks([0, 1], ["parameters", "operations"])
        axes.set_xlim(0, 100)
        axes.set_xlabel("% of the model")
        axes.invert_yaxis()
        axes.grid(axis="y", visible=False)
        axes.legend(
            [axes.barh([0], [0], color=_COLOURS[kind]) for kind in kinds],
            list(kinds),
            loc="lower center",
            bbox_to_anchor=(0.45, 1.0),
            ncols=4,
            frameon=False,
            fontsize=8,
            labelcolor=INK,
            columnspacing=1.0,
            handlelength=1.0,
            handletextpad=0.4,
        )
    return svg


def _named(part: Part) -> str:
    return part.kind if part.layer is None else f"layer {part.layer}, {part.kind}"
