from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from codemill.errors import BundleError, IntegrityError
from codemill.runtime import (
    Manifest,
    Variant,
    digest,
    read_manifest,
    size_bytes,
    verify_bundle,
    write_bundle,
)
from codemill.runtime.bundle import manifest_from_bytes

ENCODER = "variants/cpu-fp32/encoder.onnx"


def edit(bundle: Path, change: Callable[[dict[str, Any]], object]) -> None:
    data = json.loads((bundle / "manifest.json").read_bytes())
    change(data)
    (bundle / "manifest.json").write_text(json.dumps(data))


GOLDEN = (
    b'{"architecture":{},"codemill":"0.1.0","exits":[],"files":{"tokenizer.json":{"sha256":'
    b'"' + b"0" * 64 + b'","size_bytes":1},"v.onnx":{"sha256":"' + b"f" * 64 + b'",'
    b'"size_bytes":2}},"input":{"max_tokens":8},"license":null,"metrics":{"cpu":{"mrr":0.5}},'
    b'"name":"caf\xc3\xa9","output":{"dim":4,"kind":"embedding"},"provenance":{},"schema":1,'
    b'"task":"retrieval","variants":{"cpu":{"files":["v.onnx"],"precision":"int8","provider":'
    b'"CPUExecutionProvider","segments":["v.onnx"]}}}'
)


def test_the_canonical_manifest_is_these_bytes_and_their_hash_is_the_digest() -> None:
    manifest = manifest_from_bytes(GOLDEN, "here")
    assert manifest.to_bytes() == GOLDEN
    assert digest(manifest) == f"sha256:{hashlib.sha256(GOLDEN).hexdigest()}"
    assert (manifest.name, manifest.max_tokens, manifest.dim) == ("café", 8, 4)
    assert manifest.variant("cpu").segments == ("v.onnx",)


def test_what_is_written_is_canonical_and_read_back_equal(bundle: Path) -> None:
    manifest = read_manifest(bundle)
    content = (bundle / "manifest.json").read_bytes()
    assert manifest.to_bytes() == content
    assert manifest_from_bytes(content, "here") == manifest
    assert verify_bundle(bundle) == f"sha256:{hashlib.sha256(content).hexdigest()}"


def test_the_digest_does_not_depend_on_how_the_json_is_laid_out(bundle: Path) -> None:
    before = verify_bundle(bundle)
    edit(bundle, lambda data: None)
    assert verify_bundle(bundle, expect=before) == before


def test_size_is_what_one_variant_ships(bundle: Path, rewrite: Callable[..., Path]) -> None:
    other = bundle / "variants/other/encoder.onnx"
    other.parent.mkdir()
    other.write_bytes(b"x" * 1000)
    (bundle / "report.json").write_text("{}")
    path = "variants/other/encoder.onnx"
    variant = Variant("CPUExecutionProvider", "int8", (path,), (path,))
    first = read_manifest(bundle).variants
    rewrite(variants={**first, "other": variant})
    shared = sum((bundle / name).stat().st_size for name in ("manifest.json", "tokenizer.json"))
    assert size_bytes(bundle, "other") == shared + 1000
    assert size_bytes(bundle, "cpu-fp32") == shared + (bundle / ENCODER).stat().st_size
    with pytest.raises(BundleError, match=r"no variant 'gpu'.*cpu-fp32, other"):
        size_bytes(bundle, "gpu")


@pytest.mark.parametrize("name", ["tokenizer.json", ENCODER])
def test_one_changed_bit_is_an_integrity_error_that_names_the_file(bundle: Path, name: str) -> None:
    content = bytearray((bundle / name).read_bytes())
    content[len(content) // 2] ^= 1
    (bundle / name).write_bytes(content)
    with pytest.raises(IntegrityError, match=Path(name).name):
        verify_bundle(bundle)


@pytest.mark.parametrize("change", [b"", b"more"])
def test_another_size_is_an_integrity_error_with_both_sizes(bundle: Path, change: bytes) -> None:
    path = bundle / ENCODER
    size = path.stat().st_size
    path.write_bytes(path.read_bytes() + change if change else b"")
    with pytest.raises(IntegrityError, match=f"has {path.stat().st_size} bytes.*says {size}"):
        verify_bundle(bundle)


def test_a_missing_file_is_an_integrity_error(bundle: Path) -> None:
    (bundle / ENCODER).unlink()
    with pytest.raises(IntegrityError, match=r"encoder\.onnx"):
        verify_bundle(bundle)


def test_a_link_in_a_files_place_is_an_integrity_error(bundle: Path, tmp_path: Path) -> None:
    (bundle / ENCODER).rename(tmp_path / "elsewhere.onnx")
    (bundle / ENCODER).symlink_to(tmp_path / "elsewhere.onnx")
    with pytest.raises(IntegrityError, match="link"):
        verify_bundle(bundle)


def test_a_link_in_a_folders_place_is_an_integrity_error(bundle: Path, tmp_path: Path) -> None:
    (bundle / "variants").rename(tmp_path / "elsewhere")
    (bundle / "variants").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(IntegrityError, match="link"):
        verify_bundle(bundle)


def test_a_folder_in_a_files_place_is_an_integrity_error(bundle: Path) -> None:
    (bundle / ENCODER).unlink()
    (bundle / ENCODER).mkdir()
    with pytest.raises(IntegrityError, match="not a file"):
        verify_bundle(bundle)


def test_reports_may_lie_beside_and_nothing_else_may(bundle: Path) -> None:
    for name in ("report.json", "report.html", "evaluation.jsonl.gz"):
        (bundle / name).write_text("{}")
    verify_bundle(bundle)
    (bundle / "variants/notes.txt").write_text("hello")
    with pytest.raises(IntegrityError, match=r"variants/notes\.txt"):
        verify_bundle(bundle)


def test_another_digest_than_expected_is_an_integrity_error(bundle: Path) -> None:
    with pytest.raises(IntegrityError, match="expected sha256:00"):
        verify_bundle(bundle, expect="sha256:00")


def test_a_newer_schema_says_what_reads_it(bundle: Path) -> None:
    edit(bundle, lambda data: data.update(schema=2, codemill="3.4.5", brand_new=[]))
    with pytest.raises(BundleError, match=r"schema 2.*codemill 3\.4\.5.*up to 1.*codemill>=3\.4"):
        read_manifest(bundle)


def record(data: dict[str, Any], path: str) -> None:
    data["files"][path] = data["files"].pop(ENCODER)
    data["variants"]["cpu-fp32"].update(segments=[path], files=[path])


@pytest.mark.parametrize(
    "path",
    [
        "../encoder.onnx",
        "variants/../../encoder.onnx",
        "/etc/passwd",
        "variants//encoder.onnx",
        "./encoder.onnx",
        "variants\\encoder.onnx",
        "C:/encoder.onnx",
        "variants/encoder.onnx.",
        "variants/\0",
        "",
        "manifest.json",
        "report.json",
    ],
)
def test_a_path_that_could_leave_the_folder_is_refused(bundle: Path, path: str) -> None:
    edit(bundle, lambda data: record(data, path))
    with pytest.raises(BundleError, match="not a path a bundle may name"):
        read_manifest(bundle)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.pop("task"), "missing: task"),
        (lambda d: d.update(extra=1), "unknown in schema 1: 'extra'"),
        (lambda d: d.update(schema="1"), "'schema'"),
        (lambda d: d.update(schema=True), "'schema'"),
        (lambda d: d.update(name=""), "'name'"),
        (lambda d: d.update(license=3), "'license'"),
        (lambda d: d.update(metrics=[]), "'metrics'"),
        (lambda d: d.update(exits={}), "'exits'"),
        (lambda d: d.update(variants={}), "'variants' is empty"),
        (lambda d: d["input"].update(max_tokens=0), r"'input\.max_tokens'"),
        (lambda d: d["output"].update(dim="4"), r"'output\.dim'"),
        (lambda d: d["output"].pop("kind"), r"'output\.kind'"),
        (lambda d: d["files"].pop("tokenizer.json"), r"tokenizer\.json"),
        (lambda d: d["files"].pop(ENCODER), r"names what 'files' does not"),
        (lambda d: d["files"][ENCODER].update(sha256="A" * 64), "lower-case hex"),
        (lambda d: d["files"][ENCODER].update(size_bytes=-1), "size_bytes"),
        (lambda d: d["files"].update(b=d["files"][ENCODER]), "no variant uses: 'b'"),
        (lambda d: d["variants"]["cpu-fp32"].pop("precision"), "should have provider"),
        (lambda d: d["variants"]["cpu-fp32"].update(segments=[]), "at least one path"),
        (lambda d: d["variants"]["cpu-fp32"].update(segments=["tokenizer.json"]), "segments"),
        (lambda d: d.update(metrics={"a": float("inf")}), "not valid JSON"),
    ],
)
def test_a_wrong_manifest_says_which_key_is_wrong(
    bundle: Path, change: Callable[[dict[str, Any]], object], message: str
) -> None:
    edit(bundle, change)
    with pytest.raises(BundleError, match=message):
        read_manifest(bundle)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[]",
        b"{",
        b"\xff\xfe",
        b'{"schema":1,"schema":1}',
        b"[" * 100_000,
        GOLDEN.replace(b"0.5", b"1e999"),
        GOLDEN.replace(b"0.5", b'"\\ud800"'),
    ],
)
def test_what_is_no_manifest_is_a_bundle_error(content: bytes) -> None:
    with pytest.raises(BundleError, match=r"manifest\.json of 'here'"):
        manifest_from_bytes(content, "here")


def test_no_folder_and_a_folder_without_a_manifest_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="no such folder"):
        read_manifest(tmp_path / "none")
    with pytest.raises(BundleError, match=r"has no manifest\.json"):
        read_manifest(tmp_path)


def test_writing_refuses_what_reading_would(rewrite: Callable[..., Path], bundle: Path) -> None:
    before = (bundle / "manifest.json").read_bytes()
    with pytest.raises(BundleError, match="max_tokens"):
        rewrite(input={"max_tokens": "many"})
    with pytest.raises(BundleError, match="not plain JSON"):
        rewrite(provenance={"when": object()})
    with pytest.raises(BundleError, match="not plain JSON"):
        rewrite(metrics={"mrr": float("nan")})
    assert (bundle / "manifest.json").read_bytes() == before


def test_writing_refuses_missing_and_stray_files(
    rewrite: Callable[..., Path], bundle: Path
) -> None:
    (bundle / "plain.onnx").write_bytes(b"")
    with pytest.raises(BundleError, match=r"no variant names: 'plain\.onnx'"):
        rewrite()
    (bundle / "plain.onnx").unlink()
    (bundle / ENCODER).unlink()
    with pytest.raises(BundleError, match=f"missing: '{ENCODER}'"):
        rewrite()


def test_writing_leaves_no_temporary_file(bundle: Path) -> None:
    manifest = read_manifest(bundle)
    write_bundle(
        bundle,
        name="again",
        task=manifest.task,
        input=manifest.input,
        output=manifest.output,
        variants=manifest.variants,
    )
    assert sorted(path.name for path in bundle.iterdir()) == [
        "manifest.json",
        "tokenizer.json",
        "variants",
    ]
    assert read_manifest(bundle).name == "again"


def test_a_manifest_without_an_embedding_has_no_dim() -> None:
    data = json.loads(GOLDEN)
    data["output"] = {"kind": "labels", "labels": ["a", "b"]}
    manifest: Manifest = manifest_from_bytes(json.dumps(data).encode(), "here")
    assert manifest.dim is None
