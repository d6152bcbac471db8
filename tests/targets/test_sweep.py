"""The table of frozen layers: what is recommended, what is said, and the page."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from dataclasses import replace
from pathlib import Path

import pytest

from codemill.targets.codec import from_json, to_json
from codemill.targets.environment import Environment
from codemill.targets.sweep import (
    Sweep,
    SweepRow,
    Validation,
    recommended,
    reference,
    render_sweep,
    said,
)


def row(frozen: int | None, metric: float, seconds: float = 10.0) -> SweepRow:
    return SweepRow(
        frozen_layers=frozen,
        metric=metric,
        trainable_parameters=100 if frozen is None else 80 - frozen,
        parameters=100,
        epoch_s=seconds / 5,
        converged_s=seconds / 2,
        training_s=seconds,
        frozen_states_s=1.0 if frozen else 0.0,
        frozen_states_bytes=1000 if frozen else 0,
        peak_rss_bytes=2_000_000_000,
        before_training_rss_bytes=1_000_000_000,
        validations=(Validation(seconds, metric),),
    )


@pytest.fixture
def found() -> Sweep:
    rows = (row(None, 0.8, 20.0), row(0, 0.81), row(3, 0.797, 8.0), row(5, 0.7, 5.0))
    return Sweep(
        name="mine <b>",
        task="retrieval",
        model="some/model",
        metric="MRR",
        original_metric=0.5,
        epochs=5.0,
        cache="fp16",
        freeze_loss=0.005,
        rows=rows,
        environment=Environment(
            {"cpu": "a processor", "physical_cores": 2}, "0" * 12, {}, 0.5, "2026-01-02T03:04:05"
        ),
    )


def test_the_most_layers_that_lose_no_more_than_the_bound_are_recommended(found: Sweep) -> None:
    assert recommended(found).frozen_layers == 3
    assert recommended(replace(found, freeze_loss=0.2)).frozen_layers == 5
    assert recommended(replace(found, freeze_loss=0.0)).frozen_layers == 0
    assert recommended(replace(found, rows=(row(None, 0.8), row(1, 0.1)))).frozen_layers is None


def test_full_fine_tuning_is_the_reference_and_without_it_the_least_frozen(found: Sweep) -> None:
    assert reference(found).frozen_layers is None
    assert reference(replace(found, rows=found.rows[1:])).frozen_layers == 0


def test_the_table_states_shares_of_the_reference(found: Sweep) -> None:
    heading, first, _, third, _ = said(found)
    assert heading[:2] == ("frozen", "MRR")
    assert first[0] == "none"
    assert first[5] == "20.0 (100%)"
    assert third == (
        *("3", "0.7970", "0.00 M (77%)", "1.6 (40%)", "4.0 (40%)", "8.0 (40%)", "2000 (100%)"),
    )


def test_a_sweep_survives_being_written_and_read(found: Sweep) -> None:
    assert from_json(Sweep, to_json(found)) == found


def test_the_page_holds_every_row_and_a_plot_and_asks_nothing_of_anyone(
    found: Sweep, tmp_path: Path
) -> None:
    page = render_sweep(found, tmp_path / "telly.html").read_text(encoding="utf-8")
    assert "mine &lt;b&gt;" in page
    assert "Something else was running" in page
    for cell in (cell for line in said(found) for cell in line):
        assert f">{cell}<" in page
    svg = page[page.index("<svg") : page.index("</svg>") + len("</svg>")]
    # a browser knows the name space of links without being told
    ET.fromstring(svg.replace("xlink:", ""))
    assert "http" not in page
    assert "<script" not in page
