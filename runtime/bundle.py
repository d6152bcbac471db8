"""The bundle: what is shipped. Its format, its reader and its writer.

    manifest.json                       names, sizes and hashes of everything below; canonical JSON
    tokenizer.json                      Hugging Face tokenizers
    variants/<variant>/encoder.onnx     one compiled form of the model each; with labels also head.onnx
    report.json  report.html  evaluation.jsonl.gz      beside them: neither hashed nor shipped; also
    validation.jsonl.gz  plain.mill                    what new variants are judged by, and made of

A bundle holds no code: reading one parses JSON and compares hashes. A path in a manifest is a
relative POSIX path that stays inside the folder, and no part of it may be a link. What runs a
variant is `session.py`; the single-file form is `archive.py`.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, NoReturn

from codemill.errors import BundleError, IntegrityError
from codemill.runtime.atomic import write_atomically
from codemill.runtime.completion.decoding import COMPLETION, check_decoding
from codemill.runtime.engines import ENGINES
from codemill.runtime.graph import check_graph
from codemill.runtime.ir import SUFFIX as IR_SUFFIX
from codemill.runtime.ir import check_ir
from codemill.runtime.labels import LABEL_TASKS, check_labelling
from codemill.runtime.machine import NEEDS
from codemill.runtime.values import check_name, check_whole, kind_of, some_of

__all__ = [
    "MANIFEST",
    "SCHEMA",
    "TOKENIZER",
    "UNSHIPPED",
    "FileRecord",
    "Manifest",
    "Variant",
    "check_files",
    "check_graphs",
    "digest",
    "manifest_from_bytes",
    "plain",
    "read_manifest",
    "size_bytes",
    "update_bundle",
    "verify_bundle",
    "write_bundle",
    "write_bundle_like",
]

SCHEMA = 1
MANIFEST = "manifest.json"
TOKENIZER = "tokenizer.json"
UNSHIPPED = (
    *("report.json", "report.html", "evaluation.jsonl.gz", "validation.jsonl.gz", "plain.mill"),
)
"""Files that may lie in a bundle's folder without being part of the bundle."""

# bounds far beyond any real bundle: a manifest may lie, and memory is taken by what it says
MANIFEST_LIMIT_BYTES = 2**20
_TOKENIZER_LIMIT_BYTES = 128 * 2**20
_LARGEST_MAX_TOKENS = 2**20
_LARGEST_DIM = 2**16
_DEEPEST_JSON = 64
_LONGEST_NAME = 200
_LONGEST_MESSAGE = 1000

# names Windows gives to devices, whatever follows the first dot
_DEVICES = re.compile(r"(con|prn|aux|nul|conin\$|conout\$|(com|lpt)[0-9¹²³])(\..*)?", re.IGNORECASE)
_VERSION = re.compile(r"[0-9][0-9a-zA-Z.+!-]{0,31}")

_OPTIONAL: dict[str, Any] = {
    "license": None,
    "architecture": {},
    "metrics": {},
    "provenance": {},
    "exits": [],
}
_KEYS = {"schema", "codemill", "name", "task", "input", "output", "variants", "files", *_OPTIONAL}


@dataclass(frozen=True, slots=True)
class FileRecord:
    """What a file has to be: `sha256` in lower-case hex, and its size."""

    sha256: str
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Variant:
    """One compiled form of the model.

    `segments` are the graphs in the order they run; `files` is everything this variant reads
    besides the tokenizer: its segments and the weights they refer to. `built_for`: of an engine, the library's version
    and the GPUs; of what was made for a target, which systems, architectures and instruction sets it asks for (none:
    any); as plain JSON.
    """

    provider: str
    precision: str
    segments: tuple[str, ...]
    files: tuple[str, ...]
    built_for: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Manifest:
    """A checked manifest.json. The mappings are plain JSON and not to be written to.

    `input` holds at least `max_tokens`, `output` at least `kind`, and for an embedding `dim`; what
    they hold for a task with labels is typed by `labels.labelling_of`.
    """

    name: str
    task: str
    input: Mapping[str, Any]
    output: Mapping[str, Any]
    variants: Mapping[str, Variant]
    files: Mapping[str, FileRecord]
    codemill: str
    schema: int = SCHEMA
    license: str | None = None
    architecture: Mapping[str, Any] = field(default_factory=dict)
    metrics: Mapping[str, Any] = field(default_factory=dict)
    provenance: Mapping[str, Any] = field(default_factory=dict)
    exits: tuple[Any, ...] = ()

    @property
    def max_tokens(self) -> int:
        """Longest input in tokens, the special ones included; the rest is cut off."""
        return int(self.input["max_tokens"])

    @property
    def dim(self) -> int | None:
        """Width of the embedding, None where the output is something else."""
        return int(self.output["dim"]) if self.output["kind"] == "embedding" else None

    def variant(self, name: str) -> Variant:
        """The variant called `name`; BundleError names those there are."""
        if name not in self.variants:
            raise BundleError(
                f"bundle {self.name!r} has no variant {name!r}; it has: {', '.join(self.variants)}"
            )
        return self.variants[name]

    def to_json(self) -> dict[str, Any]:
        """The manifest as plain JSON."""
        return {
            "schema": self.schema,
            "codemill": self.codemill,
            "name": self.name,
            "task": self.task,
            "license": self.license,
            "input": dict(self.input),
            "output": dict(self.output),
            "architecture": dict(self.architecture),
            "metrics": dict(self.metrics),
            "provenance": dict(self.provenance),
            "exits": list(self.exits),
            "variants": {
                name: {
                    "provider": variant.provider,
                    "precision": variant.precision,
                    "segments": list(variant.segments),
                    "files": list(variant.files),
                    **({"built_for": dict(variant.built_for)} if variant.built_for else {}),
                }
                for name, variant in self.variants.items()
            },
            "files": {
                path: {"sha256": record.sha256, "size_bytes": record.size_bytes}
                for path, record in self.files.items()
            },
        }

    def to_bytes(self) -> bytes:
        """Canonical JSON: sorted keys, no spaces, UTF-8. What is on disk, and what is hashed."""
        text = json.dumps(
            self.to_json(),
            sort_keys=True,
            separators=(",", ":"),
            ensure_ascii=False,
            allow_nan=False,
        )
        return text.encode()


def digest(manifest: Manifest) -> str:
    """`sha256:<hex>` of the canonical manifest, and thereby of every file it names."""
    return f"sha256:{hashlib.sha256(manifest.to_bytes()).hexdigest()}"


def read_manifest(folder: str | os.PathLike[str]) -> Manifest:
    """Read and check the manifest of the bundle in `folder`; its files are not looked at.

    Raises BundleError, which says what is wrong and, for a newer schema, what reads it.
    """
    path = Path(folder) / MANIFEST
    try:
        there = Path(folder).is_dir()
    except OSError as error:
        raise BundleError(
            f"the bundle {os.fspath(folder)!r} cannot be looked into: {error.strerror or error}"
        ) from error
    if not there:
        raise BundleError(f"there is no bundle at {os.fspath(folder)!r}: no such folder")
    try:
        mode = path.lstat().st_mode
        if stat.S_ISLNK(mode):
            raise IntegrityError(f"{path} is a link; a bundle's files are files of its own folder")
        # before opening: a pipe in its place would never end
        if not stat.S_ISREG(mode):
            raise IntegrityError(f"{path} is not a file")
        with path.open("rb") as file:
            content = file.read(MANIFEST_LIMIT_BYTES + 1)
    except FileNotFoundError as error:
        raise BundleError(f"{os.fspath(folder)!r} is not a bundle: it has no {MANIFEST}") from error
    except OSError as error:
        raise BundleError(f"cannot read {path}: {error.strerror or error}") from error
    return manifest_from_bytes(content, os.fspath(folder))


def manifest_from_bytes(content: bytes, where: str) -> Manifest:
    """Parse and check a manifest; `where` is what error messages call the bundle.

    Raises BundleError.
    """

    def fail(message: str) -> NoReturn:
        raise BundleError(f"{MANIFEST} of {where!r}: {message}")

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            raise ValueError("a key occurs twice in one object")
        return found

    def refuse(constant: str) -> NoReturn:
        raise ValueError(f"{constant} is not JSON")

    if len(content) > MANIFEST_LIMIT_BYTES:
        fail(f"larger than {MANIFEST_LIMIT_BYTES} bytes")
    try:
        data = json.loads(content.decode(), object_pairs_hook=unique, parse_constant=refuse)
        _check_depth(data)
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{MANIFEST} of {where!r} is not valid JSON: {plain(error)}") from error
    try:
        manifest = _manifest(data)
        # a number beyond a float's range, or half a surrogate pair, has no canonical form
        manifest.to_bytes()
    except ValueError as error:
        raise BundleError(f"{MANIFEST} of {where!r}: {plain(error)}") from error
    return manifest


def plain(said: object) -> str:
    """What is said of a bundle, fit to be shown: names found in one may hold anything, at any length."""
    text = str(said).strip()
    if len(text) > _LONGEST_MESSAGE:
        text = f"{text[:_LONGEST_MESSAGE]} ..."
    return "".join(c if c.isprintable() or c == "\n" else "\ufffd" for c in text)


def check_files(folder: str | os.PathLike[str], manifest: Manifest) -> None:
    """Hash every file the manifest names.

    Raises IntegrityError for the first one that is missing, a link, of another size or content.
    """
    for path, record in manifest.files.items():
        _check_file(Path(folder), path, record)


def check_graphs(folder: str | os.PathLike[str], variant: Variant) -> None:
    """Check that the variant's graphs read nothing but its files; BundleError."""
    for path in variant.segments:
        if variant.provider in ENGINES:
            # what it holds only the GPU's library can tell
            continue
        check = check_ir if path.endswith(IR_SUFFIX) else check_graph
        check(Path(folder), path, variant.files)


def verify_bundle(folder: str | os.PathLike[str], expect: str | None = None) -> str:
    """Check that `folder` holds a bundle and nothing else; returns its digest.

    `expect` is the digest it must have. The files in `UNSHIPPED` are let be. Raises BundleError
    for a malformed manifest or graph and IntegrityError for anything that differs from it.
    """
    manifest = read_manifest(folder)
    found = digest(manifest)
    if expect is not None and expect.removeprefix("sha256:") != found.removeprefix("sha256:"):
        raise IntegrityError(
            f"the bundle in {os.fspath(folder)!r} has digest {found}, expected {expect}"
        )
    check_files(folder, manifest)
    for variant in manifest.variants.values():
        check_graphs(folder, variant)
    extra = sorted(_files_in(Path(folder)) - {MANIFEST, *manifest.files, *UNSHIPPED})
    if extra:
        raise IntegrityError(
            f"{os.fspath(folder)!r} holds files its manifest does not name: {some_of(extra)}"
        )
    return found


def size_bytes(folder: str | os.PathLike[str], variant: str) -> int:
    """What a user ships for one variant: the manifest, the tokenizer and that variant's files."""
    manifest = read_manifest(folder)
    names = {TOKENIZER, *manifest.variant(variant).files}
    return (Path(folder) / MANIFEST).stat().st_size + sum(
        manifest.files[name].size_bytes for name in names
    )


def write_bundle(
    folder: str | os.PathLike[str],
    *,
    name: str,
    task: str,
    input: Mapping[str, Any],
    output: Mapping[str, Any],
    variants: Mapping[str, Variant],
    license: str | None = None,
    architecture: Mapping[str, Any] | None = None,
    metrics: Mapping[str, Any] | None = None,
    provenance: Mapping[str, Any] | None = None,
    exits: Iterable[Any] = (),
) -> Manifest:
    """Make a bundle of the files already in `folder`: hash them and write manifest.json, last.

    The manifest appears by an atomic rename, so a folder with one is complete. An older manifest
    is replaced. Raises BundleError for a field the reader would refuse, a file that is missing,
    or one that lies in the folder and belongs to no variant.
    """
    from codemill import __version__

    root = Path(folder)
    wanted = {TOKENIZER}.union(*(variant.files for variant in variants.values()))
    present = _files_in(root)
    if wanted - present:
        raise BundleError(
            f"cannot write a bundle in {str(root)!r}: missing: {some_of(sorted(wanted - present))}"
        )
    extra = present - wanted - {MANIFEST, *UNSHIPPED}
    if extra:
        raise BundleError(
            f"cannot write a bundle in {str(root)!r}: no variant names: {some_of(sorted(extra))}"
        )
    manifest = Manifest(
        name=name,
        task=task,
        codemill=__version__,
        license=license,
        input=input,
        output=output,
        architecture=architecture or {},
        metrics=metrics or {},
        provenance=provenance or {},
        exits=tuple(exits),
        variants=dict(sorted(variants.items())),
        files={path: _record(root / path) for path in sorted(wanted)},
    )
    try:
        content = manifest.to_bytes()
    except (TypeError, ValueError) as error:
        raise BundleError(f"a field of the manifest is not plain JSON: {error}") from error
    # whatever is written has passed the reader
    manifest = manifest_from_bytes(content, str(root))
    write_atomically(root / MANIFEST, lambda file: file.write(content))
    return manifest


def update_bundle(folder: str | os.PathLike[str], **changes: Any) -> Manifest:
    """Write the manifest in `folder` anew, with some fields of `write_bundle` changed, after its files were."""
    return write_bundle_like(folder, read_manifest(folder), **changes)


def write_bundle_like(folder: str | os.PathLike[str], other: Manifest, **changes: Any) -> Manifest:
    """`write_bundle` with another bundle's fields, some of them changed."""
    kept = {item.name: getattr(other, item.name) for item in fields(other)}
    for written in ("codemill", "schema", "files"):
        del kept[written]
    return write_bundle(folder, **{**kept, **changes})


def _manifest(data: object) -> Manifest:
    """A manifest of parsed JSON; ValueError says what is wrong with it."""
    if not isinstance(data, dict):
        raise ValueError(f"expected an object, found {kind_of(data)}")
    schema = data.get("schema")
    if not isinstance(schema, int) or isinstance(schema, bool) or schema < 1:
        raise ValueError(f"'schema' should be a whole number from 1, found {schema!r}")
    if schema > SCHEMA:
        from codemill import __version__

        writer = data.get("codemill")
        # it goes into a command that people paste
        known = isinstance(writer, str) and _VERSION.fullmatch(writer)
        raise ValueError(
            f"it is of schema {schema}, written by codemill {writer if known else 'unknown'}; "
            f"this is codemill {__version__}, which reads schemas up to {SCHEMA}. "
            f"Upgrade: pip install --upgrade 'codemill{f'>={writer}' if known else ''}'"
        )
    missing = sorted(_KEYS - _OPTIONAL.keys() - data.keys())
    if missing:
        raise ValueError(f"missing: {', '.join(missing)}")
    unknown = sorted(data.keys() - _KEYS)
    if unknown:
        raise ValueError(f"unknown in schema {schema}: {some_of(unknown)}")
    values = {**_OPTIONAL, **data}
    for key in ("codemill", "name", "task"):
        check_name(values[key], key)
    if values["license"] is not None:
        check_name(values["license"], "license")
    for key in ("input", "output", "architecture", "metrics", "provenance", "variants", "files"):
        if not isinstance(values[key], dict):
            raise ValueError(f"{key!r} should be an object, found {kind_of(values[key])}")
    if not isinstance(values["exits"], list):
        raise ValueError(f"'exits' should be a list, found {kind_of(values['exits'])}")
    check_whole(values["input"], "max_tokens", "input", _LARGEST_MAX_TOKENS)
    check_name(values["output"].get("kind"), "output.kind")
    if values["output"]["kind"] == "embedding":
        check_whole(values["output"], "dim", "output", _LARGEST_DIM)
    files = {_path(path): _file_record(path, record) for path, record in values["files"].items()}
    _check_distinct(files)
    variants = {name: _variant(name, item, files) for name, item in values["variants"].items()}
    if not variants:
        raise ValueError("'variants' is empty")
    if TOKENIZER not in files:
        raise ValueError(f"'files' does not name {TOKENIZER}")
    if files[TOKENIZER].size_bytes > _TOKENIZER_LIMIT_BYTES:
        raise ValueError(f"{TOKENIZER} is larger than {_TOKENIZER_LIMIT_BYTES} bytes")
    if values["task"] in LABEL_TASKS:
        check_labelling(values, variants)
    elif values["task"] == COMPLETION:
        check_decoding(values, variants)
    unused = files.keys() - {TOKENIZER}.union(*(variant.files for variant in variants.values()))
    if unused:
        raise ValueError(f"'files' names what no variant uses: {some_of(sorted(unused))}")
    return Manifest(
        **{
            **values,
            "exits": tuple(values["exits"]),
            "files": files,
            "variants": variants,
        }
    )


def _variant(name: str, item: object, files: Mapping[str, FileRecord]) -> Variant:
    where = f"variants.{check_name(name, 'the name of a variant')}"
    needed = {"provider", "precision", "segments", "files"}
    if not isinstance(item, dict) or item.keys() - {"built_for"} != needed:
        raise ValueError(f"{where!r} should have provider, precision, segments and files")
    if not isinstance(item.get("built_for", {}), dict):
        raise ValueError(f"'{where}.built_for' should be an object")
    for key in NEEDS:
        names = item.get("built_for", {}).get(key, [])
        if not isinstance(names, list) or not all(isinstance(each, str) for each in names):
            raise ValueError(f"'{where}.built_for.{key}' should be a list of names")
    for key in ("provider", "precision"):
        check_name(item[key], f"{where}.{key}")
    for key in ("segments", "files"):
        paths = item[key]
        if not isinstance(paths, list) or not paths or not all(isinstance(p, str) for p in paths):
            raise ValueError(f"'{where}.{key}' should be a list of at least one path")
        if len(set(paths)) != len(paths):
            raise ValueError(f"'{where}.{key}' names a file twice")
        unnamed = [path for path in paths if path not in files]
        if unnamed:
            raise ValueError(f"'{where}.{key}' names what 'files' does not: {some_of(unnamed)}")
    if not set(item["segments"]) <= set(item["files"]):
        raise ValueError(f"'{where}.segments' names what '{where}.files' does not")
    return Variant(
        provider=item["provider"],
        precision=item["precision"],
        segments=tuple(item["segments"]),
        files=tuple(item["files"]),
        built_for=item.get("built_for", {}),
    )


def _file_record(path: str, item: object) -> FileRecord:
    where = f"files.{path}"
    if not isinstance(item, dict) or item.keys() != {"sha256", "size_bytes"}:
        raise ValueError(f"{where!r} should have sha256 and size_bytes")
    sha256, size = item["sha256"], item["size_bytes"]
    if not isinstance(sha256, str) or len(sha256) != 64 or set(sha256) - set("0123456789abcdef"):
        raise ValueError(f"'{where}.sha256' should be 64 lower-case hex digits, found {sha256!r}")
    if not isinstance(size, int) or isinstance(size, bool) or size < 0:
        raise ValueError(f"'{where}.size_bytes' should be a whole number, found {size!r}")
    return FileRecord(sha256=sha256, size_bytes=size)


def _path(path: str) -> str:
    """`path` if it is a relative POSIX path that stays inside, on Windows too; ValueError."""
    parts = path.split("/")
    if (
        any(part in ("", ".", "..") or part[-1] in ". " for part in parts)
        or any(
            _DEVICES.fullmatch(part) or len(part.encode("utf-8", "replace")) > _LONGEST_NAME
            for part in parts
        )
        or any(character in '\\:*?"<>|' for character in path)
        # control characters, halves of surrogate pairs, marks that turn the reading direction
        or not path.isprintable()
        or _alike(path) in (MANIFEST, *UNSHIPPED)
        or len(path) > 512
    ):
        raise ValueError(f"{path!r} is not a path a bundle may name")
    return path


def _check_distinct(paths: Iterable[str]) -> None:
    """Paths are different files on every file system, and none lies below another; ValueError."""
    folders: set[str] = set()
    seen: set[str] = set()
    for path in map(_alike, paths):
        if path in seen:
            raise ValueError(f"'files' has two paths that differ in case or form only: {path!r}")
        seen.add(path)
        parts = path.split("/")
        folders.update("/".join(parts[:depth]) for depth in range(1, len(parts)))
    if folders & seen:
        raise ValueError(
            f"'files' names both a file and a folder: {some_of(sorted(folders & seen))}"
        )


def _alike(path: str) -> str:
    """The same for paths that some file system takes for one: case, and how accents are composed."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", path).casefold())


def _check_depth(data: object) -> None:
    """ValueError where JSON nests so deep that using it later could exceed the stack."""
    level = [data]
    for _ in range(_DEEPEST_JSON):
        level = [
            child
            for item in level
            if isinstance(item, dict | list)
            for child in (item.values() if isinstance(item, dict) else item)
        ]
    if level:
        raise ValueError(f"it nests more than {_DEEPEST_JSON} deep")


def _check_file(root: Path, path: str, record: FileRecord) -> None:
    place = root
    try:
        for part in path.split("/"):
            place = place / part
            if stat.S_ISLNK(place.lstat().st_mode):
                raise IntegrityError(
                    f"{place} is a link; a bundle's files are files of its own folder"
                )
        # before opening: a pipe in a file's place would never end
        if not place.is_file():
            raise IntegrityError(f"{place} is not a file")
        found = _record(place, limit_bytes=record.size_bytes)
    except OSError as error:
        raise IntegrityError(
            f"{place} is named by the manifest and cannot be read: {error.strerror or error}"
        ) from error
    if found.size_bytes != record.size_bytes:
        raise IntegrityError(
            f"{place} has {place.stat().st_size} bytes, the manifest says {record.size_bytes}"
        )
    if found.sha256 != record.sha256:
        raise IntegrityError(
            f"{place} was changed: its sha256 is {found.sha256}, "
            f"the manifest says {record.sha256}. Get the bundle again"
        )


def _record(path: Path, limit_bytes: int | None = None) -> FileRecord:
    """Hash a file, at most a byte more of it than `limit_bytes`."""
    hasher = hashlib.sha256()
    size = 0
    with path.open("rb") as file:
        while chunk := file.read(2**20):
            hasher.update(chunk)
            size += len(chunk)
            if limit_bytes is not None and size > limit_bytes:
                break
    return FileRecord(sha256=hasher.hexdigest(), size_bytes=size)


def _files_in(root: Path) -> set[str]:
    """Everything below `root` that is not a folder, as relative POSIX paths; links as files."""
    found: set[str] = set()
    for parent, folders, files in os.walk(root):
        links = [name for name in folders if (Path(parent) / name).is_symlink()]
        found.update((Path(parent) / name).relative_to(root).as_posix() for name in files + links)
    return found
