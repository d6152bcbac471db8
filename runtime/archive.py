"""A bundle as one file: `.mill`, a zip of the shipped files, stored uncompressed.

Stored, because weights do not shrink, and because then no archive unpacks to more than its own
size. It is unpacked once, into a cache folder named by the bundle's digest; a copy that is there
already is checked against its digest and used, and one that was damaged is replaced.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
import tempfile
import time
import zipfile
from pathlib import Path
from typing import IO

from codemill.errors import BundleError, IntegrityError, MachineError
from codemill.runtime.atomic import write_atomically
from codemill.runtime.bundle import (
    MANIFEST,
    MANIFEST_LIMIT_BYTES,
    Manifest,
    digest,
    manifest_from_bytes,
    read_manifest,
    verify_bundle,
)
from codemill.runtime.cache import cache_folder

__all__ = ["pack", "unpack"]

# the same bundle gives the same bytes, whenever and wherever it is packed
_TIMESTAMP = (1980, 1, 1, 0, 0, 0)
_MODE = stat.S_IFREG | 0o644
_UNIX = 3
_TEMPORARY_PREFIX = "tmp-"
_ABANDONED_AFTER_S = 24 * 3600


def pack(folder: str | os.PathLike[str], path: str | os.PathLike[str]) -> Path:
    """Write the bundle in `folder` to the file `path`; returns `path`.

    Only what ships goes in: not the reports beside it. The same bundle gives the same bytes.
    Raises BundleError or IntegrityError where `folder` is not a sound bundle.
    """
    verify_bundle(folder)
    manifest = read_manifest(folder)

    def write(file: IO[bytes]) -> None:
        with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
            for name in (MANIFEST, *sorted(manifest.files)):
                info = zipfile.ZipInfo(name, _TIMESTAMP)
                info.create_system = _UNIX
                info.external_attr = _MODE << 16
                source = Path(folder) / name
                # zipfile has to know beforehand whether it needs 64-bit sizes
                info.file_size = source.stat().st_size
                with source.open("rb") as reader, archive.open(info, "w") as writer:
                    shutil.copyfileobj(reader, writer, 2**20)

    try:
        write_atomically(Path(path), write)
    except OSError as error:
        raise MachineError(
            f"cannot write {os.fspath(path)!r}: {error.strerror or error}"
        ) from error
    return Path(path)


def unpack(path: str | os.PathLike[str]) -> Path:
    """The folder of the bundle packed in `path`, checked, in the cache.

    Several processes may unpack one file at the same time: each unpacks into a folder of its own,
    and the first to rename it wins. Raises BundleError for anything that `pack` would not have
    written (other entries than the manifest names, duplicates, links, compressed or encrypted
    entries, wrong sizes), IntegrityError for wrong content, MachineError for a full disk.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            manifest = _manifest(archive, path)
            name = digest(manifest)
            entries = _entries(archive, manifest, path)
            cache = cache_folder("bundles")
            home = cache / name.replace(":", "-")
            if _is_sound(home, name):
                return home
            _remove_abandoned(cache)
            temporary = Path(tempfile.mkdtemp(dir=cache, prefix=_TEMPORARY_PREFIX))
            try:
                for entry in entries:
                    _extract(archive, entry, temporary / entry.filename, manifest)
                return _move(temporary, home, name)
            finally:
                shutil.rmtree(temporary, ignore_errors=True)
    except (zipfile.BadZipFile, NotImplementedError, EOFError) as error:
        raise BundleError(f"{os.fspath(path)!r} is not a sound .mill file: {error}") from error
    except FileNotFoundError as error:
        raise BundleError(f"there is no bundle at {os.fspath(path)!r}") from error
    except OSError as error:
        raise MachineError(
            f"cannot unpack {os.fspath(path)!r}: {error.strerror or error}"
        ) from error


def _manifest(archive: zipfile.ZipFile, path: str | os.PathLike[str]) -> Manifest:
    found = [info for info in archive.infolist() if info.filename == MANIFEST]
    if len(found) != 1 or found[0].file_size > MANIFEST_LIMIT_BYTES:
        raise BundleError(f"{os.fspath(path)!r} should hold one {MANIFEST}, of a sane size")
    _check_entry(found[0], path)
    return manifest_from_bytes(archive.read(found[0]), os.fspath(path))


def _entries(
    archive: zipfile.ZipFile, manifest: Manifest, path: str | os.PathLike[str]
) -> list[zipfile.ZipInfo]:
    """The entries of `archive`, which are exactly those `manifest` names, none larger than said."""
    entries = archive.infolist()
    names = [info.filename for info in entries]
    expected = {MANIFEST, *manifest.files}
    # names of the manifest were checked: what is equal to one of them stays inside the folder
    if len(names) != len(set(names)) or set(names) != expected:
        odd = sorted(set(names) ^ expected) or sorted(n for n in names if names.count(n) > 1)
        raise BundleError(
            f"{os.fspath(path)!r} does not hold exactly the files of its manifest: "
            f"{odd[0]!r} is missing, unnamed or there twice"
        )
    for info in entries:
        _check_entry(info, path)
        if info.filename != MANIFEST:
            expected_size = manifest.files[info.filename].size_bytes
            if info.file_size != expected_size:
                raise IntegrityError(
                    f"{info.filename!r} of {os.fspath(path)!r} has {info.file_size} bytes, "
                    f"the manifest says {expected_size}"
                )
    # entries may overlap, and so repeat what is there once
    if sum(info.file_size for info in entries) > Path(path).stat().st_size:
        raise BundleError(f"the entries of {os.fspath(path)!r} are larger than the file")
    return entries


def _check_entry(info: zipfile.ZipInfo, path: str | os.PathLike[str]) -> None:
    where = f"{info.filename!r} of {os.fspath(path)!r}"
    if info.compress_type != zipfile.ZIP_STORED or info.compress_size != info.file_size:
        raise BundleError(f"{where} is compressed; a .mill file stores its files as they are")
    if info.flag_bits & 0x1:
        raise BundleError(f"{where} is encrypted")
    kind = stat.S_IFMT(info.external_attr >> 16)
    if kind not in (0, stat.S_IFREG) or info.is_dir():
        raise BundleError(f"{where} is not a plain file")


def _extract(
    archive: zipfile.ZipFile, entry: zipfile.ZipInfo, target: Path, manifest: Manifest
) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    hasher = hashlib.sha256()
    with archive.open(entry) as reader, target.open("xb") as writer:
        # reads `file_size` bytes at most, and raises BadZipFile where the checksum differs
        while chunk := reader.read(2**20):
            hasher.update(chunk)
            writer.write(chunk)
    if entry.filename != MANIFEST:
        record = manifest.files[entry.filename]
        if hasher.hexdigest() != record.sha256:
            raise IntegrityError(
                f"{entry.filename!r} of {archive.filename!r} was changed: its sha256 is "
                f"{hasher.hexdigest()}, the manifest says {record.sha256}. Get the bundle again"
            )


def _is_sound(home: Path, name: str) -> bool:
    try:
        return home.is_dir() and verify_bundle(home, expect=name) == name
    except BundleError:
        return False


def _move(temporary: Path, home: Path, name: str) -> Path:
    """Rename `temporary` to `home`, unless another process was faster."""
    try:
        temporary.rename(home)
    except OSError:
        if _is_sound(home, name):
            return home
        # a damaged copy: out of the way first, as a folder with files cannot be replaced
        aside = Path(tempfile.mkdtemp(dir=home.parent, prefix=_TEMPORARY_PREFIX))
        try:
            if home.is_symlink() or not home.is_dir():
                home.unlink(missing_ok=True)
            else:
                home.rename(aside / "damaged")
            temporary.rename(home)
        except OSError:
            # two processes repairing at once: the other one's copy will do
            if not _is_sound(home, name):
                raise
        finally:
            shutil.rmtree(aside, ignore_errors=True)
    return home


def _remove_abandoned(cache: Path) -> None:
    """Remove what processes that were killed while unpacking left behind."""
    for folder in cache.glob(f"{_TEMPORARY_PREFIX}*"):
        try:
            if time.time() - folder.stat().st_mtime > _ABANDONED_AFTER_S:
                shutil.rmtree(folder, ignore_errors=True)
        except OSError:
            continue
