"""Where a command is told to write: looked at before the work, written whole after it."""

from __future__ import annotations

import contextlib
import glob
import shutil
import tempfile
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path

from codemill.compress.pipeline import stage_of
from codemill.errors import BundleError, InputError
from codemill.runtime.atomic import write_atomically

__all__ = [
    "check_bundle_out",
    "check_file_out",
    "check_folder",
    "put_bundle",
    "scratch_beside",
    "write_out",
]

_ABANDONED_AFTER_S = 3600


def check_folder(folder: Path, option: str = "--out") -> None:
    """Raise InputError where `folder`, which may be still to be made, cannot be written into.

    Makes nothing. `option` is what the message asks to choose anew.
    """
    _check_room(folder, folder, option)


def _check_room(asked: Path, folder: Path, option: str, name: str | None = None) -> None:
    """`folder` can be made and written into, and can hold `name`, under which `asked` is written first."""
    names = [] if name is None else [name]
    place = culprit = folder.absolute()
    try:
        while not _is_there(place):
            names.append(place.name)
            place = culprit = place.parent
        if not place.is_dir():
            raise InputError(f"{place} is not a folder; choose another {option}")
        # asks the file system itself: permissions do not tell of one that is mounted read-only
        with tempfile.TemporaryFile(dir=place):
            pass
        culprit = asked
        for each in names:
            _is_there(place / each)
    except OSError as error:
        raise InputError(
            f"{culprit} cannot be written to ({error.strerror or error}); choose another {option}"
        ) from error


def _is_there(path: Path) -> bool:
    """Whether anything is, a link to nowhere too. Raises OSError where nothing could be."""
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def check_file_out(path: Path, option: str = "--out") -> None:
    """Raise InputError where the file `path` cannot be written, or written over."""
    if path.name in ("", ".."):
        raise InputError(
            f"{option} {str(path)!r} names no file; give one, such as {path / 'out.json'}"
        )
    try:
        # what is renamed into the place of a device or a pipe replaces it
        if path.exists() and not path.is_file():
            kind = "a folder" if path.is_dir() else "not a plain file"
            raise InputError(f"{path} is {kind}; choose another {option}")
    except OSError as error:
        raise InputError(
            f"{path} cannot be written ({error.strerror or error}); choose another {option}"
        ) from error
    _check_room(path, path.absolute().parent, option, f".{path.name}.{'0' * 16}")


def write_out(path: Path, content: bytes) -> None:
    """Write the file whole, or raise InputError and leave what was there."""
    check_file_out(path)
    try:
        path.absolute().parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, lambda file: file.write(content))
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error.strerror or error}") from error


def check_bundle_out(out: Path, work: Path) -> None:
    """Raise InputError where a run that works in `work` must not, or cannot, put its bundle at `out`.

    What is there will be replaced, so it must be a bundle and nothing more.
    """
    if out.name in ("", ".."):
        raise InputError(f"--out {out} names no new folder; give one, such as {out / 'my-bundle'}")
    try:
        _check_apart(out, work)
        if out.suffix == ".mill":
            _check_replaceable_file(out)
            for suffix in (".report.html", ".report.json"):
                check_file_out(out.with_suffix(suffix))
            return check_file_out(out)
        if out.is_symlink():
            raise InputError(f"{out} is a link; name the folder itself with --out")
        if out.exists() and not (out.is_dir() and not any(out.iterdir())):
            _check_replaceable(out)
    # RuntimeError: links that go round
    except (OSError, RuntimeError) as error:
        said = error.strerror if isinstance(error, OSError) else error
        raise InputError(f"{out} cannot be looked at ({said}); choose another --out") from error
    return _check_room(out, out.absolute().parent, "--out", f".{out.name}.partial-{'0' * 8}")


@contextlib.contextmanager
def scratch_beside(out: Path) -> Iterator[Path]:
    """A new folder beside `out`, on its disk, removed in the end, with those that runs killed an hour ago left."""
    out.absolute().parent.mkdir(parents=True, exist_ok=True)
    prefix = f".{out.name}.partial-"
    for left in out.parent.glob(f"{glob.escape(prefix)}*"):
        with contextlib.suppress(OSError):
            if time.time() - left.stat().st_mtime > _ABANDONED_AFTER_S:
                shutil.rmtree(left)
    scratch = Path(tempfile.mkdtemp(prefix=prefix, dir=out.absolute().parent))
    try:
        yield scratch
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def put_bundle(made: Path, out: Path, scratch: Path) -> None:
    """Move a bundle's folder from `scratch` to `out`, or pack it there as a .mill; half of it is never at `out`."""
    from codemill.runtime import pack

    if out.suffix == ".mill":
        pack(made, out)
        return
    try:
        if out.exists():
            # out of the way whole
            out.rename(scratch / "old")
        made.rename(out)
    except BaseException:
        if (scratch / "old").exists():
            (scratch / "old").rename(out)
        raise


def _check_apart(out: Path, work: Path) -> None:
    whole, kept = out.resolve(), work.resolve()
    if kept.is_relative_to(whole):
        raise InputError(
            f"the work folder {work} lies in --out {out}, which the bundle replaces; "
            "choose another --out or --work"
        )
    if whole.is_relative_to(kept) and stage_of(whole.relative_to(kept).parts[0]) is not None:
        raise InputError(
            f"--out {out} lies in a stage's folder of the work folder {work}; choose another --out"
        )


def _check_replaceable_file(out: Path) -> None:
    if out.is_file() and not out.is_symlink():
        with contextlib.suppress(zipfile.BadZipFile), zipfile.ZipFile(out) as archive:
            if "manifest.json" in archive.namelist():
                return
        raise InputError(f"{out} exists and is no bundle; choose another --out or remove it")


def _check_replaceable(out: Path) -> None:
    from codemill.runtime.bundle import verify_bundle

    try:
        verify_bundle(out)
    except BundleError as error:
        raise InputError(
            f"{out} exists and is not just a bundle ({error}); choose another --out or remove it"
        ) from error
