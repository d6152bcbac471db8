"""Bundles as an enemy would make them: small random changes to a real one, and to its archive.

A mutation takes a random generator, the parts of a sound bundle and an empty folder, and leaves there
a bundle, or a `.mill`, that differs from the sound one. Most recompute the hashes, so that what they
changed gets past them. Used by the tests and by scripts/campaign/bundles.
"""

from __future__ import annotations

import copy
import hashlib
import json
import os
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

from codemill.runtime.graph import OPERATORS

ENCODER = "variants/cpu-fp32/encoder.onnx"
MANIFEST = "manifest.json"
TOKENIZER = "tokenizer.json"


@dataclass
class Parts:
    """What a bundle is made of.

    `graph` is an onnx.ModelProto, `encoder` its path, `canary` a file outside, in a folder beside `case`.
    """

    manifest: dict[str, Any]
    files: dict[str, bytes]
    graph: Any
    canary: Path
    encoder: str = ENCODER

    @classmethod
    def of(cls, folder: Path, canary: Path, segment: int = 0) -> Parts:
        """Those of the bundle in `folder`; `segment` is the graph that mutations change."""
        import onnx

        manifest = json.loads((folder / MANIFEST).read_bytes())
        files = {name: (folder / name).read_bytes() for name in manifest["files"]}
        encoder = next(iter(manifest["variants"].values()))["segments"][segment]
        graph = onnx.load_from_string(files[encoder])
        return cls(manifest, files, graph, canary, encoder)

    def with_files(self, **changed: bytes) -> Parts:
        """These parts with the tokenizer or the encoder replaced, and the hashes right."""
        names = {"tokenizer": TOKENIZER, "encoder": self.encoder}
        files = {**self.files, **{names[key]: content for key, content in changed.items()}}
        manifest = {**self.manifest, "files": {name: record(files[name]) for name in files}}
        return Parts(manifest, files, self.graph, self.canary, self.encoder)

    def write(self, folder: Path, manifest: bytes | None = None) -> Path:
        """The bundle as a folder."""
        for name, content in self.files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(content)
        (folder / MANIFEST).write_bytes(dump(self.manifest) if manifest is None else manifest)
        return folder

    def entries(self) -> list[Entry]:
        """What is in the bundle's archive."""
        return [
            Entry(name, content)
            for name, content in {MANIFEST: dump(self.manifest), **self.files}.items()
        ]


def record(content: bytes) -> dict[str, Any]:
    """A file's record in the manifest."""
    return {"sha256": hashlib.sha256(content).hexdigest(), "size_bytes": len(content)}


def dump(data: object) -> bytes:
    """JSON, lone surrogates and numbers that are none included."""
    return json.dumps(data).encode()


# ------------------------------------------------------------------ bytes and JSON

_ODD_BYTES = (0, 1, 0x7F, 0x80, 0xFF, 0x22, 0x2F, 0x2E, 0x5C, 0x50)
_ODD_NUMBERS = (0, 1, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFE, 0xFFFFFFFF)


def change_bytes(rng: Random, content: bytes, ranges: list[range] | None = None) -> bytes:
    """A few small changes, within `ranges` where there are any."""
    found = bytearray(content)
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        if not found:
            return bytes(found)
        area = rng.choice(ranges) if ranges else range(len(found))
        place = min(area.start + rng.randrange(max(1, len(area))), len(found) - 1)
        kind = rng.randrange(7)
        if kind == 0:
            found[place] ^= 1 << rng.randrange(8)
        elif kind == 1:
            found[place] = rng.choice(_ODD_BYTES)
        elif kind == 2:
            found[place:place] = bytes(rng.randrange(256) for _ in range(rng.randrange(1, 9)))
        elif kind == 3:
            del found[place : place + rng.choice((1, 2, 4, 16, 300))]
        elif kind == 4 and rng.randrange(4) == 0:
            del found[place:]
        elif kind == 5:
            number = rng.choice(_ODD_NUMBERS)
            found[place : place + 4] = number.to_bytes(4, "little")
        else:
            other = rng.randrange(len(found))
            found[place:place] = found[other : other + rng.randrange(1, 40)]
    return bytes(found)


def _nested(depth: int) -> Any:
    found: Any = 0
    for _ in range(depth):
        found = [found]
    return found


_ODD_VALUES: tuple[Any, ...] = (
    *(None, True, False, -1, 0, 1, 2, 3, 255, 2**31, 2**32 - 1, 2**53, 2**63, 2**64, 10**30),
    *(0.5, -0.0, 1e308, 1e-320, float("inf"), float("nan")),
    *("", "x", " ", "\ud800", "\0", "\x1b[2J", "é", "e\u0301", "\u202e", "a" * 3000),
    *("../x", "/etc/passwd", "C:\\x", "\\\\host\\share", "nul", "a/../../b", "encoder.onnx/x"),
    *([], {}, [[]], {"": {}}, _nested(70), _nested(150)),
)


def change_json(rng: Random, data: Any) -> Any:
    """A copy with a few values replaced, removed, added, moved or repeated."""
    root = [copy.deepcopy(data)]
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        holder, key = _somewhere(rng, root)
        kind = rng.randrange(7)
        if kind <= 2:
            holder[key] = copy.deepcopy(rng.choice(_ODD_VALUES))
        elif kind == 3 and holder is not root:
            del holder[key]
        elif kind == 4:
            # something from elsewhere: right in its own place
            other, at = _somewhere(rng, root)
            holder[key] = copy.deepcopy(other[at])
        elif kind == 5 and isinstance(holder, dict):
            name = rng.choice(("x", "", key.upper(), f"{key} ", "../x", "type", "id"))
            holder[name] = holder.pop(key)
        elif isinstance(holder[key], int) and not isinstance(holder[key], bool):
            holder[key] += rng.choice((-1, 1, -100, 2**32))
        else:
            holder[key] = [holder[key]] * rng.choice((1, 2, 50))
    return root[0]


def _somewhere(rng: Random, root: list[Any]) -> tuple[Any, Any]:
    """A random place in JSON: what holds it, and the key or index in that; rarely the whole."""
    holder: Any = root
    key: Any = 0
    while isinstance(holder[key], dict | list) and holder[key] and rng.randrange(8):
        holder = holder[key]
        key = rng.choice(list(holder)) if isinstance(holder, dict) else rng.randrange(len(holder))
    return holder, key


# ------------------------------------------------------------------ archives


@dataclass
class Entry:
    """One entry of a zip; what is None is what it should be."""

    name: str
    content: bytes
    flags: int = 0x800
    method: int = 0
    checksum: int | None = None
    compressed_bytes: int | None = None
    size_bytes: int | None = None
    offset: int | None = None
    attributes: int = 0o100644 << 16
    version: int = 20
    extra: bytes = b""
    # the name in the entry's own header, where that is another
    header_name: str | None = None


@dataclass
class Archive:
    """A zip written field by field, so that any of them may lie."""

    entries: list[Entry]
    prefix: bytes = b""
    comment: bytes = b""
    directory_bytes: int | None = None
    directory_offset: int | None = None
    count: int | None = None
    # (size of the directory, offset of the directory, offset of this record) of a 64-bit end
    end64: tuple[int | None, int | None, int | None] | None = None
    # places in `build`'s result: the headers and the directory
    places: list[range] = field(default_factory=list)

    def build(self) -> bytes:
        found = bytearray(self.prefix)
        offsets = []
        for entry in self.entries:
            offsets.append(len(found) - len(self.prefix))
            start = len(found)
            name = (entry.header_name or entry.name).encode("utf-8", "surrogatepass")
            found += struct.pack("<4s2H", b"PK\3\4", entry.version, entry.flags)
            found += struct.pack("<3H", entry.method, 0, 0x21) + self._sizes(entry)
            found += struct.pack("<2H", len(name), len(entry.extra)) + name + entry.extra
            self.places.append(range(start, len(found)))
            found += entry.content
        start = len(found)
        for entry, offset in zip(self.entries, offsets, strict=True):
            name = entry.name.encode("utf-8", "surrogatepass")
            found += struct.pack("<4s3H", b"PK\1\2", 0x314, entry.version, entry.flags)
            found += struct.pack("<3H", entry.method, 0, 0x21) + self._sizes(entry)
            found += struct.pack("<5HL", len(name), len(entry.extra), 0, 0, 0, entry.attributes)
            found += struct.pack("<L", offset if entry.offset is None else entry.offset)
            found += name + entry.extra
        size = len(found) - start
        if self.end64 is not None:
            said = [*self.end64]
            place = len(found)
            number = len(self.entries)
            found += struct.pack("<4sQ2H2L2Q", b"PK\6\6", 44, 45, 45, 0, 0, number, number)
            found += struct.pack("<Q", size if said[0] is None else said[0])
            found += struct.pack("<Q", start if said[1] is None else said[1])
            found += struct.pack("<4sLQL", b"PK\6\7", 0, place if said[2] is None else said[2], 1)
        number = len(self.entries) if self.count is None else self.count
        found += struct.pack("<4s4H", b"PK\5\6", 0, 0, number, number)
        found += struct.pack("<L", size if self.directory_bytes is None else self.directory_bytes)
        place = start - len(self.prefix) if self.directory_offset is None else self.directory_offset
        found += struct.pack("<LH", place, len(self.comment)) + self.comment
        self.places.append(range(start, len(found)))
        return bytes(found)

    @staticmethod
    def _sizes(entry: Entry) -> bytes:
        size = len(entry.content)
        return struct.pack(
            "<3L",
            zlib.crc32(entry.content) if entry.checksum is None else entry.checksum,
            size if entry.compressed_bytes is None else entry.compressed_bytes,
            size if entry.size_bytes is None else entry.size_bytes,
        )


def deflated(entry: Entry) -> Entry:
    """The entry compressed."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    content = packer.compress(entry.content) + packer.flush()
    return Entry(
        entry.name,
        content,
        method=8,
        checksum=zlib.crc32(entry.content),
        size_bytes=len(entry.content),
    )


def zip64_extra(*numbers: int) -> bytes:
    """The extra field with sizes and offset of 64 bits."""
    return struct.pack(f"<2H{len(numbers)}Q", 1, 8 * len(numbers), *numbers)


def _lie(rng: Random, archive: Archive) -> None:
    entry = rng.choice(archive.entries)
    kind = rng.randrange(16)
    number = rng.choice((*_ODD_NUMBERS, len(entry.content) + 1, 2, 46))
    names = (MANIFEST, TOKENIZER, "../x", "/x", "x/", "a\0b", TOKENIZER.upper(), "a\\b", "C:x", "")
    if kind == 0:
        entry.name = rng.choice(names)
    elif kind == 1:
        entry.header_name = rng.choice(names)
    elif kind == 2:
        entry.flags = rng.choice((0, 1, 0x8, 0x20, 0x40, 0x800, 0xFFFF))
    elif kind == 3:
        entry.method = rng.choice((8, 9, 12, 14, 93, 99, 0xFFFF))
    elif kind == 4:
        entry.checksum = number
    elif kind == 5:
        entry.size_bytes = number
    elif kind == 6:
        entry.compressed_bytes = number
    elif kind == 7:
        entry.offset = number
    elif kind == 8:
        entry.attributes = rng.choice((0o120777, 0o40755, 0o20666, 0o10644, 0o60666, 0)) << 16 | 16
    elif kind == 9:
        entry.version = rng.choice((0, 45, 63, 64, 0xFFFF))
    elif kind == 10:
        numbers = rng.choice(((2**63,), (2**64 - 1, 2**64 - 1), (5, 5, 2**63), ()))
        entry.extra = rng.choice((zip64_extra(*numbers), b"\1\0\xff\xff", b"\1", b"\1\0\3\0abc"))
        entry.size_bytes = entry.compressed_bytes = rng.choice((None, 0xFFFFFFFF))
        entry.offset = rng.choice((None, 0xFFFFFFFF))
    elif kind == 11:
        archive.entries.append(copy.copy(rng.choice(archive.entries)))
    elif kind == 12:
        archive.entries.remove(entry)
    elif kind == 13:
        archive.entries[archive.entries.index(entry)] = deflated(entry)
    elif kind == 14:
        archive.prefix = rng.choice((b"", b"MZ", b"x" * 5000))
        archive.comment = rng.choice((b"", b"hello", b"PK\5\6" * 9))
        archive.count = rng.choice((None, 0, 1, 0xFFFF))
    else:
        archive.directory_bytes = rng.choice((None, number))
        archive.directory_offset = rng.choice((None, number))
        odd = (None, None, 0, 1, 46, 2**32, 2**62, 2**63, 2**64 - 1)
        archive.end64 = rng.choice((None, (rng.choice(odd), rng.choice(odd), rng.choice(odd))))


# ------------------------------------------------------------------ tokenizers


def _component(rng: Random, part: str, depth: int = 0) -> dict[str, Any]:
    """A normalizer, pre-tokenizer, post-processor or model of some kind, sound or not."""
    text = rng.choice(("", "e", " ", "##", "ab", "(", "[UNK]", "☃", "x" * 500))
    regexes = (
        "",
        "(",
        "a*",
        ".",
        r"\w+|\s",
        "(?i)e",
        r"\b",
        "[" * 50,
        "(a|b)*c",
        r"\p{L}",
        "(?=e)",
    )
    pattern = rng.choice(({"String": text}, {"Regex": rng.choice(regexes)}))
    special = [text, rng.choice((0, 2, 2**32 - 1))]
    number = rng.choice((0, 1, 2, 100, 2**31, 2**63))
    yes = bool(rng.randrange(2))
    charsmap = rng.choice(("", "AAAA", "AAAAAAAA", "AQAAAP8AAAAA", "BAAAAAAAAAAA", "gAAAAP////8A"))
    behaviours = ("Isolated", "Removed", "MergedWithPrevious", "MergedWithNext", "Contiguous")
    kinds: dict[str, list[dict[str, Any]]] = {
        "normalizer": [
            {"type": "Replace", "pattern": pattern, "content": text},
            {"type": "Precompiled", "precompiled_charsmap": charsmap},
            {"type": "Prepend", "prepend": text},
            {"type": "Strip", "strip_left": yes, "strip_right": True},
            {"type": rng.choice(("NFC", "NFKD", "Lowercase", "Nmt", "StripAccents", "ByteLevel"))},
        ],
        "pre_tokenizer": [
            {
                "type": "Split",
                "pattern": pattern,
                "behavior": rng.choice(behaviours),
                "invert": yes,
            },
            {
                "type": "Metaspace",
                "replacement": text[:1] or "▁",
                "prepend_scheme": "first",
                "split": yes,
            },
            {"type": "ByteLevel", "add_prefix_space": yes, "trim_offsets": True, "use_regex": yes},
            {"type": "FixedLength", "length": number},
            {"type": "CharDelimiterSplit", "delimiter": text[:1]},
            {"type": "Punctuation", "behavior": rng.choice(behaviours)},
            {"type": "Digits", "individual_digits": yes},
            {"type": rng.choice(("Whitespace", "WhitespaceSplit", "UnicodeScripts"))},
        ],
        "post_processor": [
            {
                **{"type": "RobertaProcessing", "sep": special, "cls": special},
                **{"trim_offsets": yes, "add_prefix_space": True},
            },
            {"type": "BertProcessing", "sep": special, "cls": special},
            {"type": "TemplateProcessing", **_template(rng)},
            {"type": "TemplateProcessing", **_template(rng)},
            {"type": "ByteLevel", "add_prefix_space": yes, "trim_offsets": True, "use_regex": yes},
        ],
        "model": [
            {
                **{"type": "BPE", "vocab": {text: 0, "a": number % 9, "b": 1, "ab": 2}},
                **{
                    "merges": [["a", "b"]] * rng.randrange(3),
                    "unk_token": rng.choice((None, text)),
                },
                **{"fuse_unk": yes, "byte_fallback": yes, "dropout": rng.choice((None, 0.0, 2.0))},
            },
            {
                **{"type": "Unigram", "vocab": [[text, -1.0], ["a", rng.choice((1e308, -1e308))]]},
                **{"unk_id": rng.choice((None, 0, 1, number)), "byte_fallback": yes},
            },
            {"type": "WordLevel", "vocab": {text: number % 2**32, "read": 1}, "unk_token": text},
            {
                **{"type": "WordPiece", "vocab": {text: 0, "[UNK]": 1, "##": 2**32 - 1}},
                **{"unk_token": "[UNK]", "continuing_subword_prefix": text},
                **{"max_input_chars_per_word": number},
            },
        ],
    }
    chosen = rng.choice(kinds[part])
    if part != "model" and depth < 3 and rng.randrange(3) == 0:
        name = {"normalizer": "normalizers", "pre_tokenizer": "pretokenizers"}.get(
            part, "processors"
        )
        inner = [_component(rng, part, depth + 1) for _ in range(rng.choice((0, 1, 2, 5)))]
        return {"type": "Sequence", name: inner}
    return chosen


def _template(rng: Random) -> dict[str, Any]:
    pieces = [
        {"Sequence": {"id": "A", "type_id": 0}},
        {"Sequence": {"id": "B", "type_id": 0}},
        {"SpecialToken": {"id": "[CLS]", "type_id": 0}},
        {"SpecialToken": {"id": "none", "type_id": 2**31}},
    ]
    ids = rng.choice(([], [2], [2**32 - 1], list(range(60))))
    return {
        "single": [rng.choice(pieces) for _ in range(rng.choice((0, 1, 2, 3, 30)))],
        "pair": [pieces[0], pieces[1]],
        "special_tokens": {"[CLS]": {"id": "[CLS]", "ids": ids, "tokens": ["[CLS]"] * len(ids)}},
    }


def change_tokenizer(rng: Random, content: bytes) -> bytes:
    """A tokenizer.json with bytes, values or whole components changed."""
    kind = rng.randrange(4)
    if kind == 0:
        return change_bytes(rng, content)
    data = json.loads(content)
    if kind == 1:
        # by value, but not among the words alone
        words = data["model"].pop("vocab")
        data = change_json(rng, data)
        if isinstance(data, dict) and isinstance(data.get("model"), dict):
            data["model"].setdefault(
                "vocab", change_json(rng, words) if rng.randrange(3) == 0 else words
            )
        return dump(data)
    for _ in range(rng.choice((1, 1, 2, 3))):
        part = rng.choice(("normalizer", "pre_tokenizer", "post_processor", "model"))
        data[part] = _component(rng, part)
    if rng.randrange(4) == 0:
        data["padding"] = {
            "strategy": rng.choice(("BatchLongest", {"Fixed": 2**40})),
            **{"direction": "Right", "pad_to_multiple_of": rng.choice((None, 0, 8))},
            **{"pad_id": rng.choice((0, 2**32 - 1)), "pad_type_id": 0, "pad_token": "[PAD]"},
        }
    if rng.randrange(4) == 0:
        flags = {
            name: bool(rng.randrange(2))
            for name in ("single_word", "lstrip", "rstrip", "normalized", "special")
        }
        text = rng.choice(("", "e", " ", "read", "\u0130"))
        data["added_tokens"] = [
            {"id": rng.choice((0, 5, 200, 2**32 - 1)), "content": text, **flags}
        ]
    return dump(data)


# ------------------------------------------------------------------ graphs

# operators a bundle may use, and some it may not
_OPERATORS = (
    *(*OPERATORS, *OPERATORS, *OPERATORS),
    *(("", name) for name in ("Loop", "If", "Scan", "Conv", "LSTM", "Unique", "TfIdfVectorizer")),
    *(
        ("com.microsoft", name)
        for name in ("Inverse", "CropAndResize", "QLinearConcat", "EPContext")
    ),
    *(("ai.onnx.ml", "TreeEnsembleClassifier"), ("evil", "Add"), ("ai.onnx", "Add")),
)
_ATTRIBUTES = (
    *(
        "axis",
        "axes",
        "to",
        "keepdims",
        "p",
        "perm",
        "value",
        "num_heads",
        "block_size",
        "bits",
        "N",
        "K",
    ),
    *(
        "kernel_shape",
        "strides",
        "pads",
        "dilations",
        "group",
        "hidden_size",
        "epsilon",
        "mode",
        "batch_dims",
    ),
    *(
        "equation",
        "num_outputs",
        "allowzero",
        "then_branch",
        "blocksize",
        "unidirectional",
        "direction",
    ),
)
_ODD_INTEGERS = (0, 1, -1, 2, 3, 64, 10**6, 2**31 - 1, -(2**31), 2**40, 2**63 - 1, -(2**63))
_MEMORY_ADDRESS = "*/_ORT_MEM_ADDR_/*"


def change_graph(rng: Random, parts: Parts) -> bytes:
    """An encoder with bytes, or the graph they stand for, changed."""
    if rng.randrange(5) == 0:
        content = parts.files[parts.encoder]
        weights = parts.graph.graph.initializer[0].raw_data
        start = content.find(weights) if weights else -1
        # rarely among the weights, which are most of it and where anything is sound
        structure = [range(max(0, start)), range(start + len(weights), len(content))]
        return change_bytes(rng, content, structure if start > 0 and rng.randrange(8) else None)
    model = copy.deepcopy(parts.graph)
    for _ in range(rng.choice((1, 1, 2, 3))):
        rng.choice(_GRAPH_CHANGES)(rng, model, parts)
    return bytes(model.SerializeToString())


def _change_operator(rng: Random, model: Any, parts: Parts) -> None:
    node = rng.choice(model.graph.node)
    node.domain, node.op_type = rng.choice(_OPERATORS)
    if node.domain:
        model.opset_import.add(domain=node.domain, version=rng.choice((0, 1, 3, 2**40)))


def _change_wires(rng: Random, model: Any, parts: Parts) -> None:
    node = rng.choice(model.graph.node)
    names = [
        *(name for item in model.graph.node for name in (*item.input, *item.output)),
        "",
        "none",
    ]
    wires = rng.choice((node.input, node.output))
    kind = rng.randrange(3)
    if kind == 0 and wires:
        wires[rng.randrange(len(wires))] = rng.choice(names)
    elif kind == 1:
        wires.append(rng.choice(names))
    elif wires:
        del wires[rng.randrange(len(wires))]


def _change_attribute(rng: Random, model: Any, parts: Parts) -> None:
    from onnx import helper

    node = rng.choice(model.graph.node)
    numbers = [rng.choice(_ODD_INTEGERS) for _ in range(rng.randrange(1, 5))]
    values = (
        numbers[0],
        numbers,
        1e38,
        "same",
        [0.0, float("nan")],
        b"\xff",
        rng.choice(model.graph.initializer),
    )
    node.attribute.append(helper.make_attribute(rng.choice(_ATTRIBUTES), rng.choice(values)))
    if rng.randrange(3) == 0 and len(node.attribute) > 1:
        del node.attribute[0]


def _change_tensor(rng: Random, model: Any, parts: Parts) -> None:
    tensor = rng.choice(model.graph.initializer)
    kind = rng.randrange(6)
    if kind == 0:
        tensor.data_type = rng.choice((*range(25), 99, -1))
    elif kind == 1 and tensor.dims:
        tensor.dims[rng.randrange(len(tensor.dims))] = rng.choice(_ODD_INTEGERS)
    elif kind == 2:
        tensor.dims.append(rng.choice(_ODD_INTEGERS))
    elif kind == 3:
        del tensor.dims[:]
    elif kind == 4:
        tensor.raw_data = tensor.raw_data[: rng.choice((0, 1, 8, 100))]
    else:
        numbers = [rng.choice(_ODD_INTEGERS) for _ in range(rng.randrange(1, 4))]
        tensor.data_type = 7
        del tensor.dims[:]
        tensor.dims.append(len(numbers))
        tensor.raw_data = struct.pack(f"<{len(numbers)}q", *numbers)


def _change_shape(rng: Random, model: Any, parts: Parts) -> None:
    value = rng.choice((*model.graph.input, *model.graph.output))
    kind = rng.randrange(4)
    tensor = value.type.tensor_type
    if kind == 0:
        tensor.elem_type = rng.choice((*range(24), 99))
    elif kind == 1 and tensor.shape.dim:
        rng.choice(tensor.shape.dim).dim_value = rng.choice(_ODD_INTEGERS)
    elif kind == 2:
        tensor.shape.dim.add(dim_value=rng.choice(_ODD_INTEGERS))
    else:
        value.name = rng.choice(("embedding", "input_ids", "sum", "", "x\n\x1b[2J"))


def _change_nodes(rng: Random, model: Any, parts: Parts) -> None:
    nodes = model.graph.node
    kind = rng.randrange(4)
    if kind == 0 and len(nodes) > 1:
        del nodes[rng.randrange(len(nodes))]
    elif kind == 1:
        nodes.append(copy.deepcopy(rng.choice(nodes)))
    elif kind == 2:
        outer = copy.deepcopy(nodes[rng.randrange(len(nodes))])
        attribute = rng.choice(nodes).attribute.add(name="then_branch", type=5)
        attribute.g.node.append(outer)
    else:
        order = list(nodes)
        rng.shuffle(order)
        del nodes[:]
        nodes.extend(order)


def _change_model(rng: Random, model: Any, parts: Parts) -> None:
    kind = rng.randrange(5)
    if kind == 0:
        model.ir_version = rng.choice((0, 1, 3, 99, 2**40))
    elif kind == 1 and model.opset_import:
        model.opset_import[0].version = rng.choice((0, 1, 7, 13, 22, 99, -1, 2**40))
    elif kind == 2:
        del model.opset_import[:]
    elif kind == 3:
        model.metadata_props.add(
            key="ort_config", value='{"session_options":{"intra_op_num_threads":999}}'
        )
    else:
        function = model.functions.add(domain="f", name=rng.choice(("F", "Gather")))
        function.node.append(rng.choice(model.graph.node))


def place_outside(tensor: Any, location: str, **more: int) -> None:
    """Have a tensor's data lie in another file."""
    tensor.ClearField("raw_data")
    tensor.data_location = 1
    for key, value in {"location": location, **more}.items():
        tensor.external_data.add(key=key, value=str(value))


def _change_place(rng: Random, model: Any, parts: Parts) -> None:
    tensor = rng.choice(model.graph.initializer)
    outside = os.fspath(parts.canary)
    locations = (
        *(outside, os.path.relpath(outside, parts.canary.parents[1] / "case/variants/cpu-fp32")),
        *("../../tokenizer.json", "encoder.onnx", "../cpu-fp32/encoder.onnx", "./encoder.onnx", ""),
        *(_MEMORY_ADDRESS, "/proc/self/mem", "/dev/zero", ".", "a\0b", "encoder.onnx\0", "//x/y"),
    )
    offsets = (0, 4096, -1, 2**62, 2**63 - 1, 0x400000)
    more = {"offset": rng.choice(offsets), "length": rng.choice((4, 8, 33536, -1, 2**62))}
    place_outside(
        tensor, rng.choice(locations), **{k: v for k, v in more.items() if rng.randrange(2)}
    )


# of the types of ONNX, those NumPy has, and their numbers there
_TYPES = {
    **{
        "tensor(float)": ("float32", 1),
        "tensor(int64)": ("int64", 7),
        "tensor(int32)": ("int32", 6),
    },
    **{"tensor(uint8)": ("uint8", 2), "tensor(int8)": ("int8", 3), "tensor(bool)": ("bool", 9)},
    **{"tensor(float16)": ("float16", 10), "tensor(double)": ("float64", 11)},
}
_SHAPES = ((), (1,), (1,), (2,), (4,), (0,), (1, 1), (64,), (64, 64), (1, 1, 3, 3))


def _insert_node(rng: Random, model: Any, parts: Parts) -> None:
    """A node of any kind between two others, with inputs of the number and the types it takes."""
    from onnx import defs, helper

    domain, kind = rng.choice(_OPERATORS)
    schema = defs.get_schema(kind, 17) if not domain and defs.has(kind, 17) else None
    if domain and domain not in (item.domain for item in model.opset_import):
        model.opset_import.add(domain=domain, version=1)
    nodes = list(model.graph.node)
    places = [i for i, item in enumerate(nodes) if item.input]
    if not places:
        return
    place = rng.choice(places)
    at = rng.randrange(len(nodes[place].input))
    earlier = [name for item in nodes[:place] for name in item.output if name] or ["input_ids"]
    new = f"new_{len(nodes)}"
    least, most = (schema.min_input, min(schema.max_input, 6)) if schema else (1, 6)
    inputs = [nodes[place].input[at]][:most]
    added = []
    if inputs and rng.randrange(2):
        number = rng.choice(_types(schema, 0))[1]
        added.append(helper.make_node("Cast", inputs, [f"{new}_in"], to=number))
        inputs = [f"{new}_in"]
    for number in range(1, rng.randint(least, max(least, most))):
        if rng.randrange(3) == 0:
            inputs.append(rng.choice((*earlier, "")))
            continue
        inputs.append(f"{new}_{number}")
        model.graph.initializer.append(
            _odd_tensor(rng, rng.choice(_types(schema, number))[0], inputs[-1])
        )
    node = helper.make_node(kind, inputs, [new], domain=domain)
    _add_attributes(rng, node, schema)
    added.append(node)
    if rng.randrange(2):
        added.append(helper.make_node("Cast", [new], [f"{new}_out"], to=rng.choice((1, 1, 1, 7))))
    nodes[place].input[at] = added[-1].output[0]
    nodes[place:place] = added
    del model.graph.node[:]
    model.graph.node.extend(nodes)


def _types(schema: Any, number: int) -> list[tuple[str, int]]:
    """What the input may be; anything where that is not known."""
    if schema is None or not schema.inputs:
        return list(_TYPES.values())
    formal = schema.inputs[min(number, len(schema.inputs) - 1)]
    return [_TYPES[name] for name in sorted(formal.types) if name in _TYPES] or [("float32", 1)]


def _odd_tensor(rng: Random, kind: str, name: str) -> Any:
    from onnx import numpy_helper

    small = rng.randrange(2)
    values = [rng.choice(_ODD_INTEGERS[:6] if small else _ODD_INTEGERS) for _ in range(8)]
    with np.errstate(all="ignore"):
        array = np.resize(np.array(values), rng.choice(_SHAPES)).astype(kind)
    return numpy_helper.from_array(array, name)


def _add_attributes(rng: Random, node: Any, schema: Any) -> None:
    from onnx import helper

    if schema is None:
        for name in rng.sample(_ATTRIBUTES, rng.randrange(5)):
            node.attribute.append(helper.make_attribute(name, rng.choice(_ODD_INTEGERS)))
        return
    for name, attribute in schema.attributes.items():
        if attribute.required or rng.randrange(4) == 0:
            numbers = [rng.choice(_ODD_INTEGERS[:8]) for _ in range(rng.randrange(1, 5))]
            value = {"INT": numbers[0], "INTS": numbers, "FLOAT": 0.5, "FLOATS": [0.5] * 4}
            node.attribute.append(
                helper.make_attribute(name, value.get(attribute.type.name, "linear"))
            )


def _change_slightly(rng: Random, model: Any, parts: Parts) -> None:
    """A number or a shape that is nearly right: what is checked last, where it is checked at all."""
    from onnx import numpy_helper

    numbers = [item for node in model.graph.node for item in node.attribute if item.type in (2, 7)]
    if numbers and rng.randrange(3) == 0:
        attribute = rng.choice(numbers)
        if attribute.type == 2:
            attribute.i = _near(rng, attribute.i)
        elif attribute.ints:
            attribute.ints[rng.randrange(len(attribute.ints))] = _near(rng, attribute.ints[0])
        return
    inside = [item for item in model.graph.initializer if not item.data_location]
    if not inside:
        return
    tensor = rng.choice(inside)
    try:
        array = numpy_helper.to_array(tensor)
    except (ValueError, TypeError, KeyError):
        # of a type or shape that an earlier change took away
        return
    kind = rng.randrange(5)
    if kind == 0:
        array = array.T
    elif kind == 1:
        array = array.reshape(-1)
    elif kind == 2:
        array = array[None]
    elif kind == 3 and array.dtype.kind in "iu":
        information = np.iinfo(array.dtype)
        array = array.copy()
        array.flat[:] = rng.choice((information.min, information.max, 0, 1))
    elif array.ndim:
        shape = list(array.shape)
        place = rng.randrange(len(shape))
        shape[place] = min(2000, max(0, _near(rng, shape[place])))
        array = np.resize(array, shape)
    tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(array), tensor.name))


def _near(rng: Random, number: int) -> int:
    near = (
        number - 1,
        number + 1,
        number * 2,
        number // 2,
        0,
        1,
        -number,
        rng.choice(_ODD_INTEGERS),
    )
    return max(-(2**63), min(2**63 - 1, rng.choice(near)))


_GRAPH_CHANGES: tuple[Callable[[Random, Any, Parts], None], ...] = (
    *(_change_operator, _change_operator, _change_wires, _change_attribute, _change_tensor),
    *(_change_shape, _change_nodes, _change_model, _change_place),
    *(_insert_node,) * 9,
    *(_change_slightly,) * 9,
)


# ------------------------------------------------------------------ bundles

Mutation = Callable[[Random, Parts, Path], Path]


def damaged_file(rng: Random, parts: Parts, folder: Path) -> Path:
    """A changed byte somewhere, the manifest as it was."""
    name = rng.choice((MANIFEST, TOKENIZER, parts.encoder))
    path = parts.write(folder) / name
    path.write_bytes(change_bytes(rng, path.read_bytes()))
    return folder


def moved_files(rng: Random, parts: Parts, folder: Path) -> Path:
    """Missing and extra files, links, folders and pipes in their place."""
    parts.write(folder)
    for _ in range(rng.choice((1, 1, 2))):
        variant = parts.encoder.rpartition("/")[0]
        name = rng.choice((MANIFEST, TOKENIZER, parts.encoder, "variants", variant))
        path, elsewhere = folder / name, folder / f"x{rng.randrange(99)}"
        kind = rng.randrange(8)
        if kind == 0:
            name = rng.choice(("extra", "extra.onnx", "report.json", ".hidden", "x\ny"))
            (folder / name).write_bytes(b"x")
        elif not os.path.lexists(path) or os.path.lexists(elsewhere):
            continue
        elif kind == 1:
            path.rename(elsewhere)
        elif kind == 2:
            path.rename(elsewhere)
            path.symlink_to(elsewhere)
        elif kind == 3:
            path.rename(elsewhere)
            path.symlink_to(
                rng.choice((parts.canary, parts.canary.parent, Path("/dev/zero"), path))
            )
        elif kind == 4:
            path.rename(elsewhere)
            path.mkdir()
        elif kind == 5:
            path.rename(elsewhere)
            os.mkfifo(path)
        elif kind == 6:
            path.rename(path.with_name(path.name.upper()))
        elif path.is_file() and not path.is_symlink():
            # a terabyte that takes no room
            with path.open("r+b") as file:
                file.truncate(rng.choice((0, 1, 2**40)))
    return folder


def lying_manifest(rng: Random, parts: Parts, folder: Path) -> Path:
    """A manifest of other values."""
    return parts.write(folder, dump(change_json(rng, parts.manifest)))


def _nested(content: bytes, value: bytes) -> tuple[bytes, bytes]:
    """What to replace, and by what, so that a value that a manifest says nothing by becomes this one."""
    for known in (b'"seed": 0', b'"provenance": {}'):
        if known in content:
            return known, known.partition(b":")[0] + b": " + value
    return b'"license": null', b'"license": ' + value


def odd_manifest(rng: Random, parts: Parts, folder: Path) -> Path:
    """A manifest that is hardly one: bytes changed, huge, nested, of another schema, twice the same key."""
    content = dump(parts.manifest)
    kind = rng.randrange(8)
    if kind <= 2:
        content = change_bytes(rng, content)
    elif kind == 3:
        depth = rng.choice((50, 63, 64, 65, 200, 900, 1000, 100_000))
        content = content.replace(*_nested(content, b"[" * depth + b"]" * depth))
    elif kind == 4:
        filler = rng.choice((b"[],", b'"a",', b"1e9,", b'{"a":[]},'))
        size = rng.choice((1000, 2**20, 2**22))
        content = content.replace(*_nested(content, b"[" + filler * (size // len(filler)) + b"0]"))
    elif kind == 5:
        number = rng.choice(
            (b"9" * 5000, b"-" + b"9" * 4000, b"1e999", b"NaN", b"-Infinity", b"0x1", b"1_0")
        )
        content = content.replace(rng.choice((b"16", b"64", b'"schema": 1')), number)
    elif kind == 6:
        version = rng.choice(("9.9", "1'; rm -rf ~; '", "\x1b[2J", "9" * 9999, None, 3))
        content = dump({**parts.manifest, "schema": rng.choice((2, 10**9)), "codemill": version})
    else:
        content = rng.choice((b"\xef\xbb\xbf", b"\xff\xfe", b" ", b'{"schema":1,')) + content
    return parts.write(folder, content)


def hostile_tokenizer(rng: Random, parts: Parts, folder: Path) -> Path:
    """A changed tokenizer with the right hashes."""
    return _either(
        rng, parts.with_files(tokenizer=change_tokenizer(rng, parts.files[TOKENIZER])), folder
    )


def hostile_graph(rng: Random, parts: Parts, folder: Path) -> Path:
    """A changed graph with the right hashes; sometimes beside a file that the manifest does not name."""
    changed = parts.with_files(encoder=change_graph(rng, parts))
    return _either(rng, changed, folder)


def damaged_archive(rng: Random, parts: Parts, folder: Path) -> Path:
    """A `.mill` with bytes changed, mostly in the headers and the directory."""
    archive = Archive(parts.entries())
    content = archive.build()
    path = folder / "x.mill"
    path.write_bytes(change_bytes(rng, content, archive.places if rng.randrange(4) else None))
    return path


def lying_archive(rng: Random, parts: Parts, folder: Path) -> Path:
    """A `.mill` whose fields lie."""
    archive = Archive(parts.entries())
    for _ in range(rng.choice((1, 1, 2, 3))):
        if archive.entries:
            _lie(rng, archive)
    path = folder / "x.mill"
    path.write_bytes(archive.build())
    return path


def _either(rng: Random, parts: Parts, folder: Path) -> Path:
    """As a folder, or now and then as a `.mill`."""
    if rng.randrange(4):
        return parts.write(folder)
    path = folder / "x.mill"
    path.write_bytes(Archive(parts.entries()).build())
    return path


MUTATIONS: dict[str, Mutation] = {
    mutation.__name__: mutation
    for mutation in (
        *(
            damaged_file,
            moved_files,
            lying_manifest,
            odd_manifest,
            hostile_tokenizer,
            hostile_graph,
        ),
        *(damaged_archive, lying_archive),
    )
}
# what reaches native code is drawn more often
DRAWN = (*MUTATIONS, *["hostile_graph"] * 4, *["hostile_tokenizer"] * 2)
