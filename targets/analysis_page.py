"""What each layer holds, drawn: a section of report.html, or a page of its own.

The house style of a drawing is drawing.py's; what is recommended, and why, is in the analysis.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from codemill.targets.analysis import LayerAnalysis, LayerFigures, Probe
from codemill.targets.drawing import INK, MARKERS, MUTED, SERIES, Drawing, figure
from codemill.targets.template import template_named

if TYPE_CHECKING:
    from markupsafe import Markup
    from matplotlib.axes import Axes

__all__ = ["analysis_page", "analysis_section", "layer_table"]

_MOST_MARKED = 16
"""Layers up to which every one has a marker."""


def analysis_page(analysis: LayerAnalysis) -> str:
    """The analysis as one self-contained page. Raises MachineError when the `bench` extra is missing."""
    name = analysis.model.rstrip("/").rsplit("/", 1)[-1].removeprefix("package:")
    return template_named("analysis_page.html.j2").render(
        title=f"The layers of {name}", section=analysis_section(analysis), version=analysis.codemill
    )


def analysis_section(analysis: LayerAnalysis, prefix: str = "a") -> Markup:
    """A section of a page; `prefix` keeps the ids of several on one page apart. Raises MachineError."""
    template = template_named("analysis.html.j2")
    from markupsafe import Markup

    drawn = [
        ("half", "What a linear probe reads of each layer", _accuracies(analysis)),
        ("half", "Selectivity: that, less what it learns by heart", _selectivities(analysis)),
    ]
    if analysis.finetuned is not None:
        title = f"Alike before and after fine-tuning ({analysis.finetuned})"
        drawn.append(("wide", title, _similarities(analysis)))
    heads, rows = layer_table(analysis)
    frozen = analysis.recommendation.freeze_layers
    return Markup(
        template.render(
            a=analysis,
            plots=[(width, name, drawing.named(prefix)) for width, name, drawing in drawn],
            heads=heads,
            rows=[(name, layer <= frozen, cells) for layer, (name, cells) in enumerate(rows)],
        )
    )


def layer_table(
    analysis: LayerAnalysis,
) -> tuple[list[tuple[str, str]], list[tuple[str, list[tuple[str, str]]]]]:
    """(heading, kind of property), and a row a layer: its name, and cells of (figure, selectivity)."""
    heads: list[tuple[str, str]] = [(item.name, item.kind) for item in analysis.properties]
    compared = analysis.finetuned is not None
    if compared:
        heads += [("RSA", ""), ("CKA", "")]
    rows = []
    for layer in analysis.by_layer:
        cells = [_cell(layer, item.name) for item in analysis.properties]
        if compared:
            cells += [("–" if x is None else f"{x:.3f}", "") for x in (layer.rsa, layer.cka)]
        rows.append(("embeddings" if layer.layer == 0 else str(layer.layer), cells))
    return heads, rows


def _cell(layer: LayerFigures, name: str) -> tuple[str, str]:
    found, tuned = layer.probe(name), layer.probe(name, finetuned=True)
    if found is None:
        return "–", ""
    after = "" if tuned is None else f" → {tuned.accuracy:.3f}"
    return f"{found.accuracy:.3f}{after}", f"{found.selectivity:+.3f}"


def _accuracies(analysis: LayerAnalysis) -> Drawing:
    with figure("accuracy", 4.2, 3.3) as (page, svg):
        axes = page.subplots()
        for number, item in enumerate(analysis.properties):
            _line(
                axes,
                analysis,
                number,
                [_of(layer.probe(item.name), "accuracy") for layer in analysis.by_layer],
            )
        axes.set_ylabel("accuracy")
        _finish(axes, analysis, [item.name for item in analysis.properties])
    return svg


def _selectivities(analysis: LayerAnalysis) -> Drawing:
    with figure("selectivity", 4.2, 3.3) as (page, svg):
        axes = page.subplots()
        for number, item in enumerate(analysis.properties):
            values = [_of(layer.probe(item.name), "selectivity") for layer in analysis.by_layer]
            _line(axes, analysis, number, values)
        axes.set_ylabel("accuracy less control accuracy")
        _finish(axes, analysis, [])
    return svg


def _similarities(analysis: LayerAnalysis) -> Drawing:
    with figure("similarity", 8.6, 2.6) as (page, svg):
        axes = page.subplots()
        for number, key in enumerate(("rsa", "cka")):
            values = [getattr(layer, key) for layer in analysis.by_layer]
            _line(axes, analysis, number, values)
        axes.set_ylabel("1 is alike")
        axes.set_ylim(top=1.02)
        _finish(axes, analysis, ["RSA", "CKA"])
    return svg


def _of(probe: Probe | None, key: str) -> float | None:
    return None if probe is None else getattr(probe, key)


def _line(axes: Axes, analysis: LayerAnalysis, number: int, values: Sequence[float | None]) -> None:
    points = [(layer, value) for layer, value in enumerate(values) if value is not None]
    if points:
        axes.plot(
            *zip(*points, strict=True),
            color=SERIES[number % len(SERIES)],
            marker=MARKERS[number % len(MARKERS)],
            markersize=4.5,
            markevery=1 if analysis.layers <= _MOST_MARKED else 3,
            linewidth=1.5,
        )


def _finish(axes: Axes, analysis: LayerAnalysis, names: Sequence[str]) -> None:
    """Layers along the axis, a line above the last frozen one, and a legend of `names`."""
    frozen = analysis.recommendation.freeze_layers
    axes.axvline(frozen + 0.5, color=MUTED, linestyle=(0, (3, 3)), linewidth=1)
    axes.annotate(
        f"frozen: {frozen}",
        (frozen + 0.5, 1),
        xycoords=("data", "axes fraction"),
        xytext=(-4, 2),
        textcoords="offset points",
        ha="right" if frozen else "left",
        color=MUTED,
        fontsize=8,
    )
    step = 1 if analysis.layers <= _MOST_MARKED else 5
    axes.set_xticks(range(0, analysis.layers + 1, step))
    axes.set_xlim(-0.3, analysis.layers + 0.7)
    axes.set_xlabel("layer (0: the embeddings)")
    if names:
        # below, since lines may run anywhere
        axes.legend(
            axes.get_lines()[: len(names)],
            names,
            loc="upper center",
            bbox_to_anchor=(0.5, -0.2),
            ncols=5,
            columnspacing=1.0,
            handletextpad=0.4,
            frameon=False,
            fontsize=8,
            labelcolor=INK,
        )
