"""Bundles and archives as an enemy would make them: refused with one of codemill's errors, or harmless.

What reaches native code is loaded in a process with bounded memory (`victim.py`), which also tells what
was opened or changed outside the bundle and the cache.
"""

from __future__ import annotations

import copy
import json
import os
import re
import shutil
import subprocess
import sys
from ast import literal_eval
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from codemill.errors import BundleError, CodemillError, IntegrityError
from codemill.runtime import read_manifest, unpack, verify_bundle
from codemill.runtime.bundle import manifest_from_bytes
from codemill.runtime.graph import OPERATORS, check_graph

from . import conftest
from .conftest import write_labels_bundle
from .hostile import (
    ENCODER,
    MANIFEST,
    MUTATIONS,
    TOKENIZER,
    Archive,
    Entry,
    Parts,
    deflated,
    dump,
    place_outside,
    record,
    zip64_extra,
)
from .victim import Outcome, Victim

linux = pytest.mark.skipif(sys.platform != "linux", reason="limits memory and watches files")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("hostile")


@pytest.fixture(scope="module")
def parts(built: Path, root: Path) -> Parts:
    canary = root / "outside/canary.bin"
    canary.parent.mkdir()
    # what the weights would be, were they read from there
    canary.write_bytes(np.ones((200, 64), dtype=np.float32).tobytes())
    return Parts.of(built, canary)


@pytest.fixture(scope="module")
def victim(built: Path, parts: Parts) -> Iterator[Victim]:
    with Victim(built, parts.canary) as victim:
        yield victim
        assert victim.deaths == 0


@pytest.fixture
def case(root: Path) -> Path:
    """The empty folder a bundle is made in."""
    folder = root / "case"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    return folder


def write_mill(archive: Archive, case: Path) -> Path:
    path = case / "x.mill"
    path.write_bytes(archive.build())
    return path


def assert_refused(outcome: Outcome, error: type[CodemillError], message: str) -> None:
    assert (outcome.kind, outcome.error) == ("refused", error.__name__), outcome
    assert re.search(message, outcome.message), outcome.message


# ------------------------------------------------------------------ the manifest


def named(parts: Parts, *paths: str) -> bytes:
    """A manifest whose variant has these files."""
    files = {TOKENIZER: parts.manifest["files"][TOKENIZER]}
    files |= dict.fromkeys(paths, parts.manifest["files"][ENCODER])
    variant = {**parts.manifest["variants"]["cpu-fp32"], "segments": [paths[0]], "files": [*paths]}
    return dump({**parts.manifest, "files": files, "variants": {"cpu-fp32": variant}})


@pytest.mark.parametrize(
    "path",
    [
        *("//server/share/x", "\\\\?\\C:\\x", "c:x", "variants/..", "..", "~/x:y", "x\n", "x\x7f"),
        *("nul", "variants/CON.onnx", "com1.weights", "aux/encoder.onnx", "lpt9"),
        *("Manifest.json", "REPORT.JSON", "\ud800", "a\u202eb", "a" * 300, "a/" * 300 + "b"),
    ],
)
def test_a_path_that_some_system_takes_for_another_place_is_refused(
    parts: Parts, path: str
) -> None:
    with pytest.raises(BundleError, match="not a path a bundle may name"):
        manifest_from_bytes(named(parts, path), "here")


@pytest.mark.parametrize(
    ("one", "other", "message"),
    [
        ("x/Encoder.onnx", "x/encoder.onnx", "differ in case or form only"),
        ("caf\u00e9", "cafe\u0301", "differ in case or form only"),
        ("variants", "variants/encoder.onnx", "both a file and a folder"),
        ("A/b/c", "a/B", "both a file and a folder"),
    ],
)
def test_paths_that_would_be_one_file_are_refused(
    parts: Parts, one: str, other: str, message: str
) -> None:
    with pytest.raises(BundleError, match=message):
        manifest_from_bytes(named(parts, one, other), "here")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"input": {"max_tokens": 2**20 + 1}}, r"'input\.max_tokens' .* to 1048576"),
        ({"output": {"kind": "embedding", "dim": 2**16 + 1}}, r"'output\.dim' .* to 65536"),
        ({"input": {"max_tokens": 10**4000}}, r"'input\.max_tokens'"),
        ({"name": "x\x1b[2Jy"}, r"'name' should be a line .* printable"),
        ({"name": "x" * 201}, "'name' should be a line"),
        ({"license": "MIT\r\x1b[1A"}, "'license'"),
        ({"output": {"kind": "\u202egnp"}}, r"'output\.kind'"),
        ({"variants": {"a\nb": {}}}, "the name of a variant"),
        ({"exits": [[[0] * 3] * 9 for _ in range(9)] * 1000}, None),
    ],
)
def test_values_no_bundle_has_are_refused(parts: Parts, change: Any, message: str | None) -> None:
    content = dump({**parts.manifest, **change})
    if message is None:
        manifest_from_bytes(content, "here")
        return
    with pytest.raises(BundleError, match=message) as found:
        manifest_from_bytes(content, "here")
    assert len(str(found.value)) < 1200
    assert str(found.value).isprintable()


def test_a_tokenizer_of_gigabytes_is_refused_before_it_is_read(parts: Parts) -> None:
    manifest = copy.deepcopy(parts.manifest)
    manifest["files"][TOKENIZER]["size_bytes"] = 2**30
    with pytest.raises(BundleError, match=r"tokenizer\.json is larger than"):
        manifest_from_bytes(dump(manifest), "here")


@pytest.mark.parametrize("depth", [61, 62, 63, 200, 900, 5000])
def test_json_nests_64_deep_at_most(parts: Parts, depth: int) -> None:
    content = dump(parts.manifest).replace(b'"seed": 0', b'"seed": ' + b"[" * depth + b"]" * depth)
    if depth <= 62:
        manifest_from_bytes(content, "here").to_bytes()
        return
    with pytest.raises(BundleError, match="not valid JSON"):
        manifest_from_bytes(content, "here")


def test_a_manifest_of_more_than_a_megabyte_is_refused(parts: Parts) -> None:
    content = dump({**parts.manifest, "provenance": {"x": "y" * 2**20}})
    with pytest.raises(BundleError, match="larger than 1048576 bytes"):
        manifest_from_bytes(content, "here")


@pytest.mark.parametrize("version", ["9'; rm -rf ~; '", "\x1b[2J", "9" * 99, None, ["9"]])
def test_a_newer_schema_puts_nothing_into_the_command_that_is_no_version(
    parts: Parts, version: Any
) -> None:
    content = dump({**parts.manifest, "schema": 2, "codemill": version})
    with pytest.raises(BundleError, match=r"pip install --upgrade 'codemill'$"):
        manifest_from_bytes(content, "here")


_SCALARS = st.one_of(
    *(st.none(), st.booleans(), st.floats(), st.text(max_size=5)),
    st.integers(-(2**70), 2**70) | st.sampled_from([0, 1, -1, 2**31, 2**63]),
)
_JSON = st.recursive(
    _SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=6,
)
_NUMBER = st.integers(0, 2**16)


def ways_to_values(data: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The way to each value of a JSON document."""
    items = data.items() if isinstance(data, dict) else enumerate(data)
    for key, value in items:
        yield (*path, key)
        if isinstance(value, dict | list):
            yield from ways_to_values(value, (*path, key))


@settings(max_examples=400, derandomize=True, deadline=None, database=None)
@given(number=_NUMBER, value=_JSON, how=st.sampled_from(["replace", "add", "remove"]))
def test_a_manifest_with_any_value_anywhere_is_refused_or_has_one_canonical_form(
    parts: Parts, number: int, value: Any, how: str
) -> None:
    data = copy.deepcopy(parts.manifest)
    ways = list(ways_to_values(data))
    *way, key = ways[number % len(ways)]
    holder = data
    for step in way:
        holder = holder[step]
    if how == "remove":
        del holder[key]
    elif how == "add" and isinstance(holder, dict):
        holder[str(value)] = value
    else:
        holder[key] = value
    try:
        manifest = manifest_from_bytes(dump(data), "here")
    except BundleError as refusal:
        # some 300 of the 400, and each has to fit a line of a terminal
        if not str(refusal).isprintable():
            raise
        return
    content = manifest.to_bytes()
    assert manifest_from_bytes(content, "there") == manifest
    assert manifest_from_bytes(content, "there").to_bytes() == content


# ------------------------------------------------------------------ the folder


def _pipe(name: str) -> Callable[[Parts, Path], None]:
    def change(parts: Parts, folder: Path) -> None:
        (folder / name).unlink()
        os.mkfifo(folder / name)

    return change


def _link(name: str, to: str) -> Callable[[Parts, Path], None]:
    def change(parts: Parts, folder: Path) -> None:
        # the very files of the bundle, in another place
        shutil.move(folder / name, parts.canary.parent / "moved")
        (folder / name).symlink_to(parts.canary.parent / "moved" if to == "moved" else to)

    return change


def _terabyte(parts: Parts, folder: Path) -> None:
    with (folder / ENCODER).open("r+b") as file:
        file.truncate(2**40)


@linux
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_pipe(MANIFEST), r"manifest\.json is not a file"),
        (_pipe(TOKENIZER), r"tokenizer\.json is not a file"),
        (_link(MANIFEST, "moved"), r"manifest\.json is a link"),
        (_link(ENCODER, "moved"), r"encoder\.onnx is a link"),
        (_link("variants", "moved"), "variants is a link"),
        (_link(TOKENIZER, "/dev/zero"), "is a link"),
        (_link(TOKENIZER, TOKENIZER), "is a link"),
        (_terabyte, "has 1099511627776 bytes, the manifest says"),
    ],
)
def test_what_is_no_file_of_the_folder_is_not_read(
    victim: Victim, parts: Parts, case: Path, change: Any, message: str
) -> None:
    parts.write(case)
    change(parts, case)
    try:
        assert_refused(victim(case), IntegrityError, message)
    finally:
        moved = parts.canary.parent / "moved"
        if moved.is_dir():
            shutil.rmtree(moved)
        moved.unlink(missing_ok=True)


@linux
def test_a_file_the_manifest_does_not_name_makes_no_difference(
    victim: Victim, parts: Parts, case: Path
) -> None:
    parts.write(case)
    (case / "variants/cpu-fp32/encoder.onnx.data").write_bytes(b"x")
    (case / "tokenizer_config.json").write_text("{}")
    assert victim(case).kind == "same"


# ------------------------------------------------------------------ the archive


def _change(**changes: Any) -> Callable[[Parts, list[Entry]], Archive]:
    """The encoder's entry with other fields."""

    def make(parts: Parts, entries: list[Entry]) -> Archive:
        for key, value in changes.items():
            setattr(entries[-1], key, value)
        return Archive(entries)

    return make


def _end(**changes: Any) -> Callable[[Parts, list[Entry]], Archive]:
    return lambda parts, entries: Archive(entries, **changes)


def _overlapping(parts: Parts, entries: list[Entry]) -> Archive:
    """Two files that are one, so that a small archive could fill the disk."""
    other = "variants/cpu-fp32/other.onnx"
    manifest = copy.deepcopy(parts.manifest)
    manifest["files"][other] = manifest["files"][ENCODER]
    manifest["variants"]["cpu-fp32"]["files"].append(other)
    entries[0].content = dump(manifest)
    start = sum(30 + len(entry.name) + len(entry.content) for entry in entries[:2])
    whole = entries[-1]
    double = Entry(
        *(other, b""),
        checksum=0,
        compressed_bytes=len(whole.content),
        size_bytes=len(whole.content),
        offset=start,
        header_name=other,
    )
    return Archive([*entries, double])


def _lying_manifest(size_bytes: int) -> Callable[[Parts, list[Entry]], Archive]:
    """Manifest and archive agree on a size that is not there."""

    def make(parts: Parts, entries: list[Entry]) -> Archive:
        manifest = copy.deepcopy(parts.manifest)
        manifest["files"][ENCODER]["size_bytes"] = size_bytes
        entries[0].content = dump(manifest)
        if size_bytes < 2**32:
            entries[-1].size_bytes = entries[-1].compressed_bytes = size_bytes
        else:
            entries[-1].size_bytes = entries[-1].compressed_bytes = 2**32 - 1
            entries[-1].extra = zip64_extra(size_bytes, size_bytes)
        return Archive(entries)

    return make


def _bomb(parts: Parts, entries: list[Entry]) -> Archive:
    zeros = b"\0" * 2**24
    manifest = {**parts.manifest, "files": {**parts.manifest["files"], ENCODER: record(zeros)}}
    return Archive([Entry(MANIFEST, dump(manifest)), entries[1], deflated(Entry(ENCODER, zeros))])


def _manifest_bomb(parts: Parts, entries: list[Entry]) -> Archive:
    return Archive([deflated(Entry(MANIFEST, b" " * 2**20 + entries[0].content)), *entries[1:]])


def _many_names(parts: Parts, entries: list[Entry]) -> Archive:
    return Archive([*entries, *(Entry(f"x{number}", b"") for number in range(25_000))])


def _same_name_often(parts: Parts, entries: list[Entry]) -> Archive:
    return Archive([*entries, *[Entry("x", b"")] * 15_000])


def _outside(name: str) -> Callable[[Parts, list[Entry]], Archive]:
    return lambda parts, entries: Archive([*entries, Entry(name, b"x")])


_EOCD = 22


@linux
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (_change(size_bytes=2**32 - 1, compressed_bytes=2**32 - 1), "the manifest says"),
        (_lying_manifest(2**32 - 2), "larger than the file"),
        (_lying_manifest(2**63 - 1), "larger than the file"),
        (_lying_manifest(0), "was changed|checksum|CRC"),
        (_overlapping, "differ|larger than the file|[Oo]verlap"),
        (_bomb, "is compressed"),
        (_manifest_bomb, "of a sane size|is compressed"),
        (_many_names, "a directory of .* bytes is not that of a bundle"),
        (_same_name_often, "does not hold exactly"),
        (_change(flags=0x801), "encrypted"),
        (_change(flags=0x840), "encryption"),
        (_change(flags=0x820), "not a sound"),
        (_change(method=99), "compressed"),
        (_change(version=255), "not a sound"),
        (_change(checksum=1), "CRC"),
        (_change(offset=2**32 - 2), "outside the file"),
        (_change(extra=b"\1\0\xff\xff"), "not a sound"),
        (_change(size_bytes=2**32 - 1, extra=zip64_extra(2**64 - 1)), "compressed|says"),
        (_change(offset=2**32 - 1, extra=zip64_extra(2**63)), "outside the file|not a sound"),
        (_change(attributes=0o120777 << 16), "not a plain file"),
        (_change(attributes=0o10644 << 16), "not a plain file"),
        (_change(header_name="../evil"), "not a sound"),
        (_change(header_name="x\x1b" * 30_000), "not a sound"),
        (_change(name=ENCODER.upper(), header_name=ENCODER.upper()), "does not hold exactly"),
        (_change(name="\ud800"), "not a sound"),
        (_outside("../evil"), "does not hold exactly"),
        (_outside("C:\\evil"), "does not hold exactly"),
        (_outside(f"{TOKENIZER}/"), "does not hold exactly"),
        (_outside(f"{TOKENIZER}\0x"), "does not hold exactly"),
        (_end(comment=b"PK\5\6" + b"\0" * 18), "not a sound|one manifest"),
        (_end(directory_bytes=2**32 - 1), "a directory of"),
        (_end(directory_bytes=0), "one manifest"),
        (_end(directory_offset=2**32 - 1), "not a sound|outside"),
        (_end(end64=(2**64 - 1, None, None)), "a directory of"),
        (_end(end64=(None, 2**64 - 1, None)), "not a sound|outside"),
        (_end(end64=(None, None, 0)), "64-bit end"),
        (_end(end64=(None, None, 2**64 - 1)), "64-bit end"),
    ],
)
def test_an_archive_that_lies_is_refused(
    victim: Victim, parts: Parts, case: Path, make: Any, message: str
) -> None:
    outcome = victim(write_mill(make(parts, parts.entries()), case))
    assert outcome.kind == "refused", outcome
    assert outcome.error in ("BundleError", "IntegrityError")
    assert re.search(message, outcome.message), outcome.message


@linux
def test_archives_that_other_tools_write_are_read(victim: Victim, parts: Parts, case: Path) -> None:
    for archive in (
        Archive(parts.entries()),
        Archive(parts.entries()[::-1]),
        Archive(parts.entries(), prefix=b"#!/bin/false\n"),
        Archive(parts.entries(), end64=(None, None, None)),
    ):
        assert victim(write_mill(archive, case)).kind == "same"


@pytest.mark.parametrize("kept", [0, 1, _EOCD - 1, _EOCD, 100])
def test_an_archive_cut_off_at_either_end_is_refused(parts: Parts, case: Path, kept: int) -> None:
    content = Archive(parts.entries()).build()
    for part in (
        content[:kept],
        content[len(content) - kept :],
        content[: len(content) - kept - 1],
    ):
        (case / "x.mill").write_bytes(part)
        with pytest.raises(BundleError):
            unpack(case / "x.mill")


@settings(
    max_examples=300,
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    edits=st.lists(
        st.tuples(st.integers(0, 400), st.integers(0, 255), st.sampled_from(["set", "add", "cut"])),
        min_size=1,
        max_size=3,
    )
)
def test_an_archive_with_any_bytes_of_its_structure_changed_is_refused_or_the_same(
    parts: Parts, built: Path, case: Path, edits: list[tuple[int, int, str]]
) -> None:
    archive = Archive(parts.entries())
    content = bytearray(archive.build())
    structure = [place for part in archive.places for place in part]
    for where, value, how in edits:
        place = min(structure[where % len(structure)], len(content) - 1)
        if how == "set":
            content[place] = value
        elif how == "add":
            content[place:place] = bytes([value] * 2)
        else:
            del content[place : place + 1 + value % 4]
    (case / "x.mill").write_bytes(content)
    try:
        folder = unpack(case / "x.mill")
    except BundleError:
        return
    assert verify_bundle(folder) == verify_bundle(built)


# ------------------------------------------------------------------ the tokenizer


def _tokenizer(**changes: Any) -> Callable[[dict[str, Any]], None]:
    return lambda data: data.update(changes)


def _template(*pieces: str, ids: tuple[int, ...] = (2,)) -> Callable[[dict[str, Any]], None]:
    single = [
        {"Sequence": {"id": piece, "type_id": 0}}
        if piece == "A"
        else {"SpecialToken": {"id": piece, "type_id": 0}}
        for piece in pieces
    ]
    special = {"[CLS]": {"id": "[CLS]", "ids": list(ids), "tokens": ["[CLS]"] * len(ids)}}
    return _tokenizer(
        post_processor={
            **{"type": "TemplateProcessing", "single": single, "special_tokens": special},
            "pair": [{"Sequence": {"id": name, "type_id": 0}} for name in "AB"],
        }
    )


def _sequence(part: str, key: str, item: dict[str, Any]) -> Callable[[dict[str, Any]], None]:
    inner = {"type": "Sequence", key: [item] * 10}
    return _tokenizer(**{part: {"type": "Sequence", key: [inner] * 5}})


def _several_templates(data: dict[str, Any]) -> None:
    _template("A", "A")(data)
    data["post_processor"] = {"type": "Sequence", "processors": [data["post_processor"]] * 2}


@linux
@pytest.mark.parametrize(
    ("change", "message"),
    [
        # Rust code that panics, while reading and while encoding
        (
            _tokenizer(normalizer={"type": "Precompiled", "precompiled_charsmap": "////"}),
            "cannot be read",
        ),
        (
            _tokenizer(normalizer={"type": "Precompiled", "precompiled_charsmap": "AAAAAAAA"}),
            "cannot be used",
        ),
        (_template("A", "none"), "cannot be used|cannot be read"),
        (lambda data: data["model"].update(unk_token="none"), "cannot be used: .*UNK"),
        (
            _tokenizer(model={"type": "Unigram", "vocab": [["a", -1.0]], "unk_id": 9}),
            "cannot be read",
        ),
        (_tokenizer(pre_tokenizer={"type": "Split", "pattern": {"Regex": "("}}), "cannot be read"),
        # a long text is combined with itself for each place it stands in
        (_template(*["A"] * 30), "repeats the text"),
        (_several_templates, "repeats the text"),
        # and each of these doubles what the one before it made
        (
            _sequence(
                "normalizer",
                "normalizers",
                {"type": "Replace", "pattern": {"String": ""}, "content": "x"},
            ),
            "4096 times",
        ),
        (_sequence("normalizer", "normalizers", {"type": "ByteLevel"}), "4096 times"),
        (
            _sequence(
                "pre_tokenizer",
                "pretokenizers",
                {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True},
            ),
            "4096 times",
        ),
        (_template("[CLS]", "A", ids=tuple(range(16))), "adds 16 tokens to every text"),
    ],
)
def test_a_hostile_tokenizer_is_refused(
    victim: Victim, parts: Parts, case: Path, change: Any, message: str
) -> None:
    data = json.loads(parts.files[TOKENIZER])
    change(data)
    outcome = victim(parts.with_files(tokenizer=dump(data)).write(case))
    assert_refused(outcome, BundleError, message)


@linux
@pytest.mark.parametrize(
    ("pair", "message"),
    [
        ("[CLS] $A $B [SEP] $B", "repeats the text"),
        ("$A $A $B", "repeats the text"),
        ("$A $B" + " [SEP]" * 16, "adds 16 tokens to every text"),
    ],
)
def test_a_tokenizer_that_joins_two_texts_without_bound_is_refused(
    victim: Victim, case: Path, monkeypatch: pytest.MonkeyPatch, pair: str, message: str
) -> None:
    monkeypatch.setattr(conftest, "JOINED", pair)
    path = conftest.write_labels_bundle(case / "tiny", texts=2, joined=True)
    assert_refused(victim(path), BundleError, message)


@linux
def test_padding_and_cutting_are_not_the_tokenizers_to_choose(
    victim: Victim, parts: Parts, case: Path
) -> None:
    data = json.loads(parts.files[TOKENIZER])
    data["padding"] = {
        **{"strategy": {"Fixed": 2**40}, "direction": "Right", "pad_to_multiple_of": None},
        **{"pad_id": 2**32 - 1, "pad_type_id": 0, "pad_token": "[PAD]"},
    }
    data["truncation"] = {
        **{"direction": "Left", "max_length": 2**40, "strategy": "LongestFirst", "stride": 2**40}
    }
    # ids of padding are looked up as any others
    outcome = victim(parts.with_files(tokenizer=dump(data)).write(case))
    assert_refused(outcome, BundleError, "failed while running")
    data["padding"]["pad_id"] = 0
    assert victim(parts.with_files(tokenizer=dump(data)).write(case)).kind == "other"


# ------------------------------------------------------------------ the graph


def _outside_data(location: str, **more: int) -> Callable[[Any, Parts], None]:
    def change(model: Any, parts: Parts) -> None:
        real = location.replace("CANARY", os.fspath(parts.canary))
        place_outside(model.graph.initializer[0], real, **more)

    return change


def _node(
    operator: str, *inputs: str, domain: str = "", cast: int = 1, **attributes: Any
) -> Callable[[Any, Parts], None]:
    """One node more, before the last."""

    def change(model: Any, parts: Parts) -> None:
        from onnx import helper

        if domain:
            model.opset_import.add(domain=domain, version=1)
        nodes = list(model.graph.node)
        nodes[-1].input[0] = "new_float"
        new = helper.make_node(operator, inputs or ["sum"], ["new"], domain=domain, **attributes)
        nodes[-1:-1] = [new, helper.make_node("Cast", ["new"], ["new_float"], to=cast)]
        del model.graph.node[:]
        model.graph.node.extend(nodes)

    return change


def _constant(*numbers: int) -> Any:
    from onnx import numpy_helper

    return numpy_helper.from_array(np.array(numbers, dtype=np.int64), "numbers")


def _huge(operator: str, *inputs: str) -> Callable[[Any, Parts], None]:
    """Terabytes on the way to a result of the right shape."""

    def change(model: Any, parts: Parts) -> None:
        from onnx import helper

        model.graph.initializer.append(_constant(10**6, 10**6))
        _node(operator, *inputs)(model, parts)
        nodes = list(model.graph.node)
        nodes[-1].input[0] = "whole"
        nodes[-1:-1] = [
            helper.make_node("ReduceSum", ["new_float"], ["one"]),
            helper.make_node("Add", ["sum", "one"], ["whole"]),
        ]
        del model.graph.node[:]
        model.graph.node.extend(nodes)

    return change


def _body(model: Any, parts: Parts) -> None:
    from onnx import helper

    graph = helper.make_graph([helper.make_node("Identity", ["sum"], ["y"])], "g", [], [])
    model.graph.node[0].attribute.append(helper.make_attribute("body", graph))


def _function(model: Any, parts: Parts) -> None:
    function = model.functions.add(domain="f", name="F")
    function.input.append("x")
    function.output.append("y")
    model.opset_import.add(domain="f", version=1)


def _weights_in_attribute(model: Any, parts: Parts) -> None:
    from onnx import helper

    tensor = copy.deepcopy(model.graph.initializer[0])
    place_outside(tensor, os.fspath(parts.canary))
    model.graph.node.append(helper.make_node("Constant", [], ["unused"], value=tensor))


def _last_key_wins(model: Any, parts: Parts) -> None:
    tensor = model.graph.initializer[0]
    place_outside(tensor, "encoder.onnx")
    tensor.external_data.add(key="location", value=os.fspath(parts.canary))


def _sparse(model: Any, parts: Parts) -> None:
    sparse = model.graph.sparse_initializer.add(dims=[9])
    sparse.values.CopyFrom(model.graph.initializer[0])
    place_outside(sparse.values, os.fspath(parts.canary))


def _output_type(number: int) -> Callable[[Any, Parts], None]:
    def change(model: Any, parts: Parts) -> None:
        _node("Identity", cast=1)(model, parts)
        model.graph.node[-1].output[0] = "before"
        model.graph.node.add(op_type="Cast", input=["before"], output=["embedding"]).attribute.add(
            name="to", type=2, i=number
        )
        model.graph.output[0].type.tensor_type.elem_type = number

    return change


def _rename(model: Any, parts: Parts) -> None:
    model.graph.output[0].name = "x\x1b[2J\ny"
    model.graph.node[-1].output[0] = "x\x1b[2J\ny"


def _dims(*dims: int) -> Callable[[Any, Parts], None]:
    def change(model: Any, parts: Parts) -> None:
        del model.graph.initializer[0].dims[:]
        model.graph.initializer[0].dims.extend(dims)

    return change


@linux
@pytest.mark.parametrize(
    ("change", "message"),
    [
        *(
            (_outside_data(location, **more), "keeps weights in")
            for location, more in [
                ("CANARY", {}),
                ("../../../outside/canary.bin", {}),
                ("link.bin", {}),
                ("folder/canary.bin", {}),
                ("unnamed.bin", {}),
                ("./encoder.onnx", {}),
                ("../../tokenizer.json", {"length": 33_536}),
                ("", {}),
                ("/proc/self/mem", {"offset": 0x400000}),
                ("*/_ORT_MEM_ADDR_/*", {"offset": 0x400000, "length": 33_536}),
                ("encoder.onnx\0", {}),
            ]
        ),
        (_outside_data("encoder.onnx", offset=2**62), "cannot load"),
        (_outside_data("encoder.onnx", offset=-4096), "cannot load"),
        (_outside_data("encoder.onnx", length=2**62), "cannot load"),
        (_weights_in_attribute, "keeps weights in"),
        (_last_key_wins, "keeps weights in"),
        (_sparse, "keeps weights in"),
        (_function, "defines functions"),
        (_body, "graphs inside its nodes"),
        (_node("Evil", domain="evil"), r"operator 'evil\.Evil'"),
        (_node("EPContext", domain="com.microsoft", ep_cache_context="/etc/passwd"), "EPContext"),
        (_node("Inverse", domain="com.microsoft"), "Inverse"),
        (_node("GatherND", "sum", "last", batch_dims=-1), "GatherND"),
        (_node("Max", "sum", ""), "'Max' lacks an input"),
        (_node("Sum", "sum", ""), "'Sum' lacks an input"),
        (_node("LayerNormalization", "sum", ""), "'LayerNormalization' lacks an input"),
        (_node("Split", "sum", num_outputs=2), "'Split' says that it has other outputs"),
        (_node("Split", "sum", num_outputs=-1), "'Split' says that it has other outputs"),
        (_huge("ConstantOfShape", "numbers"), "failed while running"),
        (_huge("Tile", "sum", "numbers"), "failed while running"),
        (_huge("Expand", "last", "numbers"), "failed while running"),
        (_dims(2**40, 2**40), "cannot load"),
        (_dims(-1, 64), "cannot load"),
        (_dims(131, 63), "cannot load"),
        (_output_type(8), r"tensor\(string\)"),
        (_output_type(11), r"tensor\(double\)"),
        (_output_type(10), r"tensor\(float16\)"),
        (_rename, "no output 'embedding'; it has: x\ufffd"),
    ],
)
def test_a_hostile_graph_is_refused(
    victim: Victim, parts: Parts, case: Path, change: Any, message: str
) -> None:
    model = copy.deepcopy(parts.graph)
    change(model, parts)
    path = parts.with_files(encoder=model.SerializeToString()).write(case)
    beside = path / "variants/cpu-fp32"
    shutil.copy(parts.canary, beside / "unnamed.bin")
    (beside / "link.bin").symlink_to(parts.canary)
    (beside / "folder").symlink_to(parts.canary.parent)
    assert_refused(victim(path), BundleError, message)


@linux
def test_weights_may_lie_in_a_file_the_manifest_names(
    victim: Victim, parts: Parts, case: Path
) -> None:
    model = copy.deepcopy(parts.graph)
    weights = model.graph.initializer[0].raw_data
    place_outside(model.graph.initializer[0], "weights.bin")
    changed = parts.with_files(encoder=model.SerializeToString())
    name = "variants/cpu-fp32/weights.bin"
    changed.files[name] = weights
    changed.manifest["files"][name] = record(weights)
    variant = {**changed.manifest["variants"]["cpu-fp32"], "files": [ENCODER, name]}
    changed.manifest["variants"] = {"cpu-fp32": variant}
    assert victim(changed.write(case)).kind == "other"
    (case / name).write_bytes(weights[:-1] + b"\0")
    assert_refused(victim(case), IntegrityError, r"weights\.bin was changed")


@linux
def test_a_graph_in_onnx_runtimes_own_format_is_refused(
    victim: Victim, parts: Parts, case: Path
) -> None:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = os.fspath(case / "x.ort")
    options.add_session_config_entry("session.save_model_format", "ORT")
    # it warns that what it optimised is for this machine
    options.log_severity_level = 4
    onnxruntime.InferenceSession(parts.files[ENCODER], options, providers=["CPUExecutionProvider"])
    content = (case / "x.ort").read_bytes()
    (case / "x.ort").unlink()
    name = "variants/cpu-fp32/encoder.ort"
    variant = {**parts.manifest["variants"]["cpu-fp32"], "segments": [name], "files": [name]}
    files = {TOKENIZER: parts.files[TOKENIZER], name: content}
    manifest = {
        **parts.manifest,
        "variants": {"cpu-fp32": variant},
        "files": {path: record(item) for path, item in files.items()},
    }
    outcome = victim(Parts(manifest, files, None, parts.canary).write(case))
    assert_refused(outcome, BundleError, "no graph a bundle may hold|cannot load")


@pytest.mark.parametrize(
    "content",
    [
        *(b"", b"\x3a", b"\x3a\x05", b"\x3b", b"\x02\x00", b"\xff" * 20, b"\x3d\0\0", b"\x39\0"),
        b"\x3a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01",
        # a node's field that goes beyond the node
        b"\x3a\x04\x0a\x02\x22\x7f",
        # an operator's name that is not UTF-8, and one of 70,000 characters
        b"\x3a\x05\x0a\x03\x22\x01\xff",
        b"\x3a\xf7\xa2\x04\x0a\xf4\xa2\x04\x22\xf0\xa2\x04" + b"x" * 70_000,
    ],
)
def test_what_is_no_protobuf_is_refused_before_onnx_runtime_sees_it(
    tmp_path: Path, content: bytes
) -> None:
    (tmp_path / "x.onnx").write_bytes(content)
    with pytest.raises(BundleError, match="no graph a bundle may hold"):
        check_graph(tmp_path, "x.onnx", ["x.onnx"])


def test_inputs_may_be_left_out_where_the_operators_definition_says_so() -> None:
    import onnx

    optional = onnx.defs.OpSchema.FormalParameterOption.Optional
    for (domain, name), places in OPERATORS.items():
        if domain or not onnx.defs.has(name):
            continue
        inputs = onnx.defs.get_schema(name).inputs
        assert {place for place, item in enumerate(inputs) if item.option == optional} >= {*places}


def test_verifying_looks_at_every_graph(parts: Parts, case: Path) -> None:
    model = copy.deepcopy(parts.graph)
    place_outside(model.graph.initializer[0], "/etc/passwd")
    path = parts.with_files(encoder=model.SerializeToString()).write(case)
    read_manifest(path)
    with pytest.raises(BundleError, match="keeps weights in '/etc/passwd'"):
        verify_bundle(path)


# ------------------------------------------------------------------ all of it, at random


@linux
@pytest.mark.parametrize("name", MUTATIONS)
@settings(
    max_examples=120,
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(seed=st.integers(0, 2**32))
def test_a_bundle_changed_at_random_is_refused_or_tells_its_digest(
    victim: Victim, parts: Parts, root: Path, name: str, seed: int
) -> None:
    folder = root / "case"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    outcome = victim(MUTATIONS[name](Random(seed), parts, folder))
    assert outcome.fine, outcome


@pytest.fixture(scope="module")
def labels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle with labels, and an exit that some of the texts leave at."""
    exit_ = {"layer": 2, "temperature": 1.0, "threshold": 0.5}
    return write_labels_bundle(tmp_path_factory.mktemp("labels") / "tiny", exits=(exit_,))


@pytest.fixture(scope="module")
def labels_victim(labels: Path, parts: Parts) -> Iterator[Victim]:
    with Victim(labels, parts.canary) as victim:
        yield victim
        assert victim.deaths == 0


@linux
@pytest.mark.parametrize(
    ("name", "segment"),
    [
        *(("hostile_graph", segment) for segment in range(4)),
        ("lying_manifest", 0),
        ("moved_files", 1),
        ("hostile_tokenizer", 0),
    ],
)
@settings(
    max_examples=80,
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(seed=st.integers(0, 2**32))
def test_a_bundle_with_labels_changed_at_random_is_refused_or_tells_its_digest(
    labels_victim: Victim,
    labels: Path,
    parts: Parts,
    root: Path,
    name: str,
    segment: int,
    seed: int,
) -> None:
    folder = root / "case"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    of_labels = Parts.of(labels, parts.canary, segment)
    outcome = labels_victim(MUTATIONS[name](Random(seed), of_labels, folder))
    assert outcome.fine, outcome


SPY = """
import ctypes, os, subprocess, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from victim import _Watch
canary, bundle = Path(sys.argv[2]), sys.argv[3]
libc = ctypes.CDLL(None)
watch = _Watch(canary)
def found(act):
    with watch.over(bundle):
        act()
    return [item.replace(str(canary), "CANARY") for item in watch.found]
print(found(lambda: Path(bundle, "manifest.json").read_bytes()))
print(found(lambda: Path(canary).read_bytes()))
print(found(lambda: os.close(libc.open(os.fsencode(canary), 0))))
print(found(lambda: Path(bundle, "new").write_bytes(b"")))
print(found(lambda: Path(bundle, "manifest.json").rename(Path(bundle, "other"))))
print(found(lambda: subprocess.run(["true"])))
"""


@linux
def test_the_process_that_loads_sees_what_is_touched_outside(
    parts: Parts, case: Path, tmp_path: Path
) -> None:
    parts.write(case)
    result = subprocess.run(
        [sys.executable, "-c", SPY, str(Path(__file__).parent), str(parts.canary), str(case)],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
        env={**os.environ, "CODEMILL_CACHE": str(tmp_path / "cache")},
    )
    inside, by_python, by_library, made, moved, started = map(
        literal_eval, result.stdout.splitlines()
    )
    assert inside == []
    assert by_python == ["open CANARY", "the canary was touched"]
    assert by_library == ["the canary was touched"]
    assert made == [f"open {case}/new"]
    assert moved == [f"os.rename {case}/manifest.json", f"os.rename {case}/other"]
    assert any("subprocess.Popen" in item for item in started)
