"""The manifest of a bundle with labels: what it has to say, and what is refused."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from codemill.errors import BundleError
from codemill.runtime import read_manifest
from codemill.runtime.bundle import manifest_from_bytes
from codemill.runtime.labels import Exit, Labelling, labelling_of

from .conftest import DIM, LABELS, LAYERS, write_labels_bundle

EXIT = {"layer": 2, "temperature": 1.5, "threshold": 0.9}


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = write_labels_bundle(tmp_path_factory.mktemp("labels") / "tiny", exits=(EXIT,))
    found: dict[str, Any] = read_manifest(folder).to_json()
    return found


def test_what_is_written_is_read_back_typed(manifest: dict[str, Any]) -> None:
    found = labelling_of(manifest_from_bytes(json.dumps(manifest).encode(), "here"))
    assert found == Labelling(
        labels=LABELS,
        dim=DIM,
        texts=1,
        joined=False,
        temperature=1.0,
        layers=LAYERS,
        exits=(Exit(2, 1.5, 0.9),),
    )


def test_joined_and_temperature_may_be_left_out(tmp_path: Path) -> None:
    output = {"kind": "labels", "labels": ["a", "b"], "dim": 4}
    given = {"max_tokens": 8, "texts": 2}
    folder = write_labels_bundle(tmp_path / "tiny", texts=2, input=given, output=output)
    found = labelling_of(read_manifest(folder))
    assert (found.joined, found.temperature, found.exits) == (False, 1.0, ())


def _exit(**values: Any) -> Callable[[dict[str, Any]], object]:
    return lambda data: data["exits"][0].update(values)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda d: d["output"].update(kind="embedding"),
            r"'output\.kind' of .* should be 'labels'",
        ),
        (lambda d: d["output"].pop("labels"), r"'output\.labels' should be a list of 2"),
        (lambda d: d["output"].update(labels=["a"]), "found 1 of them"),
        (lambda d: d["output"].update(labels={"a": 1}), "found dict"),
        (lambda d: d["output"].update(labels=[*map(str, range(10_001))]), "found 10001 of them"),
        (lambda d: d["output"].update(labels=["a", "b", "a"]), "has 'a' twice"),
        (lambda d: d["output"].update(labels=["a", ""]), r"'output\.labels\[1\]'"),
        (lambda d: d["output"].update(labels=["a", 1]), r"'output\.labels\[1\]' .* found int"),
        (lambda d: d["output"].update(labels=["a", "x" * 201]), r"'output\.labels\[1\]'"),
        (lambda d: d["output"].update(labels=["\x1b[2J", "b"]), r"'output\.labels\[0\]'"),
        (lambda d: d["output"].pop("dim"), r"'output\.dim'"),
        (lambda d: d["output"].update(dim=2**16 + 1), r"'output\.dim' .* to 65536"),
        (lambda d: d["output"].update(temperature=0), r"'output\.temperature' .* above 0"),
        (lambda d: d["output"].update(temperature=10**400), r"'output\.temperature'"),
        (lambda d: d["output"].update(temperature="1"), r"'output\.temperature'"),
        (lambda d: d["output"].update(temperature=True), r"'output\.temperature'"),
        (lambda d: d["input"].pop("texts"), r"'input\.texts' of 'classification' should be 1"),
        (lambda d: d["input"].update(texts=2), r"should be 1, found 2"),
        (lambda d: d["input"].update(texts=True), "found True"),
        (lambda d: d["input"].update(texts=1.0), r"found 1\.0"),
        (lambda d: d["input"].update(joined=True), "true only with two texts"),
        (lambda d: d["input"].update(joined=1), r"'input\.joined'"),
        (lambda d: d.update(task="pair-classification"), r"should be 2, found 1"),
        (lambda d: d["architecture"].pop("layers"), r"'architecture\.layers'"),
        (lambda d: d.update(exits=[]), r"segments' should be 2 graphs, .* found 4"),
        (lambda d: d["exits"].append(EXIT), r"'exits\[1\]\.layer' should be above 2"),
        (lambda d: d.update(exits=[3]), r"'exits\[0\]' should have layer"),
        (_exit(more=1), r"'exits\[0\]' should have layer, temperature and threshold only"),
        (_exit(layer=0), r"'exits\[0\]\.layer'"),
        (_exit(layer=LAYERS), rf"below the {LAYERS} layers"),
        (_exit(threshold=0), r"'exits\[0\]\.threshold' .* above 0"),
        (_exit(threshold=1.01), "1 at most"),
        (_exit(threshold=[1]), r"'exits\[0\]\.threshold'"),
        (_exit(temperature=-1), r"'exits\[0\]\.temperature'"),
        (_exit(temperature=1001), "1000 at most"),
        (
            lambda d: d["variants"]["cpu-fp32"].update(
                segments=d["variants"]["cpu-fp32"]["segments"][:3]
            ),
            r"'variants\.cpu-fp32\.segments' should be 4 graphs, .* found 3",
        ),
    ],
)
def test_a_wrong_manifest_says_which_key_is_wrong(
    manifest: dict[str, Any], change: Callable[[dict[str, Any]], object], message: str
) -> None:
    data = copy.deepcopy(manifest)
    change(data)
    with pytest.raises(BundleError, match=message) as found:
        manifest_from_bytes(json.dumps(data).encode(), "here")
    assert len(str(found.value)) < 1200
    assert str(found.value).isprintable()


def test_ten_thousand_labels_are_fine(manifest: dict[str, Any]) -> None:
    data = copy.deepcopy(manifest)
    data["output"]["labels"] = [f"label {i}" for i in range(10_000)]
    manifest_from_bytes(json.dumps(data).encode(), "here")


def test_writing_refuses_what_reading_would(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"'architecture\.layers'"):
        write_labels_bundle(tmp_path / "tiny", architecture={})
    assert not (tmp_path / "tiny/manifest.json").exists()
