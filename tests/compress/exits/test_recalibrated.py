"""Forms of a bundle that labels, calibrated on some rows so that others judge them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from codemill.compress.stages.classify.leaving import with_exits
from codemill.compress.stages.classify.recalibrated import parts_of, recalibrated
from codemill.compress.stages.classify.temperature import fitted_temperature
from codemill.runtime import Manifest, load_classifier, read_manifest, verify_bundle
from codemill.runtime.bundle import update_bundle
from codemill.targets.evaluation import LabelledEvaluation

from .test_leaving import EXITS, TEXTS, exiting_of, export, in_torch


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, LabelledEvaluation]:
    """With exits, and rows of which its last head is always right."""
    home = tmp_path_factory.mktemp("bundle")
    exiting, *made = exiting_of("bert", home / "teacher", 1)
    folder = export(exiting, (made[0], made[1], made[2]), home / "bundle")
    truth = in_torch(exiting, made[0], 1)[-1].argmax(1)
    rows = tuple((number,) for number in range(len(TEXTS)))
    labels = ("a", "b", "c")
    return folder, LabelledEvaluation("rows", labels, tuple(TEXTS), rows, tuple(truth.tolist()))


def bound_to(folder: Path, max_loss: float) -> Manifest:
    return update_bundle(
        folder, provenance={"recipe": {"exits": {"after": "auto", "max_loss": max_loss}}}
    )


def test_rows_are_halved_with_their_groups_and_no_row_is_in_both(
    bundle: tuple[Path, LabelledEvaluation],
) -> None:
    folder, rows = bundle
    groups = tuple(f"g{number // 7}" for number in range(len(rows.rows)))
    parts = parts_of(replace(rows, groups=groups), bound_to(folder, 0.2))
    assert parts.apart
    assert "judged by the other" in parts.said()
    sides = (parts.calibrating, parts.judging)
    texts = [set(side.items) for side in sides]
    assert not texts[0] & texts[1]
    assert texts[0] | texts[1] == set(TEXTS)
    assert not set(parts.calibrating.groups or ()) & set(parts.judging.groups or ())
    # a half that one more group of seven would have filled
    assert abs(len(parts.calibrating.rows) - len(parts.judging.rows)) < 2 * 7
    truth = dict(zip(rows.items, rows.truth, strict=True))
    for side in sides:
        assert all(truth[item] == label for item, label in zip(side.items, side.truth, strict=True))
        assert set(side.items) == set(side.texts)
    again = parts_of(replace(rows, groups=groups), bound_to(folder, 0.2))
    assert again == parts


@pytest.mark.parametrize(
    ("count", "max_loss", "groups"),
    [(80, 0.2, None), (len(TEXTS), 0.01, None), (len(TEXTS), 0.2, ("one",) * len(TEXTS))],
)
def test_rows_of_which_half_are_too_few_do_both_and_that_is_said(
    bundle: tuple[Path, LabelledEvaluation],
    count: int,
    max_loss: float,
    groups: tuple[str, ...] | None,
) -> None:
    folder, rows = bundle
    few = replace(rows, rows=rows.rows[:count], truth=rows.truth[:count], groups=groups)
    parts = parts_of(few, bound_to(folder, max_loss))
    assert not parts.apart
    assert parts.calibrating is parts.judging is few
    assert "judged by the same rows" in parts.said()
    assert parts.to_json() == {"rows": count, "judged_rows": count, "apart": False}


def test_each_form_gets_a_temperature_and_thresholds_of_its_own(
    bundle: tuple[Path, LabelledEvaluation], tmp_path: Path
) -> None:
    folder, rows = bundle
    bound_to(folder, 0.2)
    with_exits(folder, [{"layer": layer, "threshold": 1.0, "temperature": 1.0} for layer in EXITS])
    before = read_manifest(folder)
    found = recalibrated(folder, "cpu-fp32", tmp_path / "form", rows, 1, lambda *_: None)
    assert read_manifest(folder) == before, "the bundle itself is left as it is"
    verify_bundle(tmp_path / "form")
    manifest = read_manifest(tmp_path / "form")
    assert set(manifest.variants) == {"cpu-fp32"}
    assert tuple(manifest.exits) == found.exits
    assert manifest.output["temperature"] == found.temperature
    assert found.loss_upper is not None
    assert found.loss_upper <= 0.2
    assert f"at most {found.loss_upper:.4f}" not in found.said()
    assert f"lose {found.loss_upper:.4f} of the accuracy at most" in found.said()
    with load_classifier(tmp_path / "form", threads=1) as model:
        assert len(set(model.run(rows.items).layers_used.tolist())) > 1


def test_where_no_thresholds_keep_the_bound_no_row_leaves(
    bundle: tuple[Path, LabelledEvaluation], tmp_path: Path
) -> None:
    folder, rows = bundle
    bound_to(folder, 0.0)
    # wrong in a third of them, so that it is not right to be as certain as can be
    truth = ((label + (number % 3 == 0)) % 3 for number, label in enumerate(rows.truth))
    rows = replace(rows, truth=tuple(truth))
    found = recalibrated(folder, "cpu-fp32", tmp_path / "form", rows, 1, lambda *_: None)
    assert found.loss_upper is None
    assert "no row leaves early" in found.said()
    with load_classifier(tmp_path / "form", threads=1) as model:
        assert set(model.run(rows.items).layers_used.tolist()) == {4}
        said = model.probabilities(rows.items)
    # as certain as it is right, in the sense of its fit: nothing is left to divide by
    assert fitted_temperature(said, np.array(rows.truth)) == pytest.approx(1.0, abs=0.05)
