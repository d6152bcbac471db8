"""A bundle as one file: `.mill`, a zip of the shipped files, stored uncompressed.

Stored, because weights do not shrink, and because then no archive unpacks to more than its own
size. It is unpacked once, into a cache folder named by the bundle's digest; a copy that is there
already is checked against its digest and used, and one that was damaged is replaced. Nothing in the
archive is believed before it was compared with the manifest in it.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import stat
import struct
import tempfile
import time
import zipfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from codemill.errors import BundleError, IntegrityError, MachineError
from codemill.runtime.atomic import write_atomically
from codemill.runtime.bundle import (
    MANIFEST,
    MANIFEST_LIMIT_BYTES,
    FileRecord,
    Manifest,
    digest,
    manifest_from_bytes,
    plain,
    read_manifest,
    verify_bundle,
)
from codemill.runtime.cache import cache_folder
from codemill.runtime.lock import held

__all__ = ["pack", "unpack"]

# the same bundle gives the same bytes, whenever and wherever it is packed
_TIMESTAMP = (1980, 1, 1, 0, 0, 0)
_MODE = stat.S_IFREG | 0o644
_UNIX = 3
# what is unpacked under the lock, and may be removed by whoever holds it next; and without
_LOCKED_PREFIX = "tmp-"
_UNLOCKED_PREFIX = "own-"
_ABANDONED_AFTER_S = 24 * 3600

# the records at the end of a zip: sizes, and where the directory's size stands in them
_END, _END_SIZE = struct.Struct("<4s4H2LH"), 5
_END64, _END64_SIZE = struct.Struct("<4sQ2H2L4Q"), 8
_LOCATOR = struct.Struct("<4sLQL")
_DIRECTORY_LIMIT_BYTES = 2**20


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

    Several processes may unpack one file at the same time: one does, and the others wait for it; a
    killed one's leftovers are removed by the next. Raises BundleError for anything that `pack` would
    not have written (other entries than the manifest names, duplicates, links, compressed or encrypted
    entries, wrong sizes), IntegrityError for wrong content, MachineError for a full disk.
    """
    where = os.fspath(path)
    try:
        with Path(path).open("rb") as file:
            return _unpack(file, where)
    except OSError as error:
        # else a folder of the cache that was deleted meanwhile
        if isinstance(error, FileNotFoundError) and not Path(path).exists():
            raise BundleError(f"there is no bundle at {where!r}") from error
        raise MachineError(f"cannot unpack {where!r}: {error.strerror or error}") from error


def _unpack(file: IO[bytes], where: str) -> Path:
    size = os.fstat(file.fileno()).st_size
    with _damage_told(where):
        _check_directory(file, size)
        archive = zipfile.ZipFile(file)
        manifest = _manifest(archive, size, where)
    entries = _entries(archive, manifest, size, where)
    name = digest(manifest)
    cache = cache_folder("bundles")
    home = cache / name.replace(":", "-")
    if _is_sound(home, name):
        return home
    # right without the lock too: then each unpacks, and the first to rename wins
    with held(cache.with_name(f"{cache.name}.lock")) as alone:
        # by the process that had it before
        if alone and _is_sound(home, name):
            return home
        _remove_abandoned(cache, alone)
        prefix = _LOCKED_PREFIX if alone else _UNLOCKED_PREFIX
        temporary = Path(tempfile.mkdtemp(dir=cache, prefix=prefix))
        try:
            for entry in entries:
                record = manifest.files[entry.filename]
                _extract(archive, entry, temporary / entry.filename, record, where)
            # what the digest was made of, not what the archive says when it is read once more
            (temporary / MANIFEST).write_bytes(manifest.to_bytes())
            return _move(temporary, home, name, prefix)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


@contextlib.contextmanager
def _damage_told(where: str) -> Iterator[None]:
    """Raise BundleError for whatever a damaged archive makes zipfile raise."""
    try:
        yield
    # besides its own: names that are not UTF-8, places beyond any file, wrong passwords
    except (
        *(zipfile.BadZipFile, NotImplementedError, EOFError, struct.error),
        *(ValueError, OverflowError, RuntimeError),
    ) as error:
        raise BundleError(f"{where!r} is not a sound .mill file: {plain(error)}") from error


def _check_directory(file: IO[bytes], size: int) -> None:
    """ValueError where the directory is larger than a bundle's: zipfile reads all of it at once."""
    tail_bytes = _END64.size + _LOCATOR.size + _END.size
    file.seek(max(0, size - tail_bytes))
    tail = file.read(tail_bytes)
    if len(tail) < _END.size:
        raise ValueError("too short for an archive")
    end = _END.unpack(tail[-_END.size :])
    if end[0] != b"PK\5\6" or end[-1]:
        raise ValueError("it does not end as an archive does; was it cut off?")
    directory_bytes: int = end[_END_SIZE]
    if len(tail) == tail_bytes and tail[_END64.size :].startswith(b"PK\6\7"):
        _, _, place, _ = _LOCATOR.unpack_from(tail, _END64.size)
        end = _END64.unpack_from(tail)
        if end[0] != b"PK\6\6" or place != size - tail_bytes:
            raise ValueError("its 64-bit end is not where it says")
        directory_bytes = end[_END64_SIZE]
    if directory_bytes > _DIRECTORY_LIMIT_BYTES:
        raise ValueError(f"a directory of {directory_bytes} bytes is not that of a bundle")


def _manifest(archive: zipfile.ZipFile, size: int, where: str) -> Manifest:
    found = [info for info in archive.infolist() if info.filename == MANIFEST]
    if len(found) != 1 or found[0].file_size > MANIFEST_LIMIT_BYTES:
        raise BundleError(f"{where!r} should hold one {MANIFEST}, of a sane size")
    _check_entry(found[0], size, where)
    return manifest_from_bytes(archive.read(found[0]), where)


def _entries(
    archive: zipfile.ZipFile, manifest: Manifest, size: int, where: str
) -> list[zipfile.ZipInfo]:
    """The entries of `archive` besides the manifest: exactly those it names, of the sizes it says."""
    names = Counter(info.filename for info in archive.infolist())
    expected = {MANIFEST, *manifest.files}
    # names of the manifest were checked: what is equal to one of them stays inside the folder
    odd = sorted(names.keys() ^ expected) or [name for name in names if names[name] > 1]
    if odd:
        raise BundleError(
            f"{where!r} does not hold exactly the files of its manifest: "
            f"{odd[0][:200]!r} is missing, unnamed or there twice"
        )
    entries = [info for info in archive.infolist() if info.filename != MANIFEST]
    for info in entries:
        _check_entry(info, size, where)
        expected_size = manifest.files[info.filename].size_bytes
        if info.file_size != expected_size:
            raise IntegrityError(
                f"{info.filename!r} of {where!r} has {info.file_size} bytes, "
                f"the manifest says {expected_size}"
            )
    # entries may overlap, and so repeat what is there once
    if sum(info.file_size for info in archive.infolist()) > size:
        raise BundleError(f"the entries of {where!r} are larger than the file")
    return entries


def _check_entry(info: zipfile.ZipInfo, size: int, where: str) -> None:
    entry = f"{info.filename!r} of {where!r}"
    if info.compress_type != zipfile.ZIP_STORED or info.compress_size != info.file_size:
        raise BundleError(f"{entry} is compressed; a .mill file stores its files as they are")
    if info.flag_bits & 0x1:
        raise BundleError(f"{entry} is encrypted")
    kind = stat.S_IFMT(info.external_attr >> 16)
    if kind not in (0, stat.S_IFREG) or info.is_dir():
        raise BundleError(f"{entry} is not a plain file")
    if not 0 <= info.header_offset <= size:
        raise BundleError(f"{entry} lies outside the file")


def _extract(
    archive: zipfile.ZipFile, entry: zipfile.ZipInfo, target: Path, record: FileRecord, where: str
) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    hasher = hashlib.sha256()
    with _damage_told(where), archive.open(entry) as reader, target.open("xb") as writer:
        # reads `file_size` bytes at most, and raises BadZipFile where the checksum differs
        while chunk := reader.read(2**20):
            hasher.update(chunk)
            writer.write(chunk)
    if hasher.hexdigest() != record.sha256:
        raise IntegrityError(
            f"{entry.filename!r} of {where!r} was changed: its sha256 is "
            f"{hasher.hexdigest()}, the manifest says {record.sha256}. Get the bundle again"
        )


def _is_sound(home: Path, name: str) -> bool:
    try:
        return home.is_dir() and verify_bundle(home, expect=name) == name
    except BundleError:
        return False


def _move(temporary: Path, home: Path, name: str, prefix: str) -> Path:
    """Rename `temporary` to `home`, unless another process was faster."""
    try:
        temporary.rename(home)
    except OSError:
        if _is_sound(home, name):
            return home
        # a damaged copy: out of the way first, as a folder with files cannot be replaced
        aside = Path(tempfile.mkdtemp(dir=home.parent, prefix=prefix))
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


def _remove_abandoned(cache: Path, alone: bool) -> None:
    """Remove what processes that were killed while unpacking left behind."""
    for folder in [*cache.glob(f"{_LOCKED_PREFIX}*"), *cache.glob(f"{_UNLOCKED_PREFIX}*")]:
        try:
            old = time.time() - folder.stat().st_mtime > _ABANDONED_AFTER_S
        except OSError:
            continue
        if old or (alone and folder.name.startswith(_LOCKED_PREFIX)):
            shutil.rmtree(folder, ignore_errors=True)
