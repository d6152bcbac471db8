"""Pages of a mapped file are dropped, and read again where they are asked for; what was freed is given back."""

from __future__ import annotations

import mmap
import platform
import sys
from pathlib import Path

import numpy as np
import pytest

from codemill.runtime import load
from codemill.runtime.pages import give_back_freed, let_go_of_mapped

from .conftest import write_labels_bundle

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="elsewhere nothing is done")


def _resident(path: Path) -> int:
    """Kilobytes of a file's mappings that are in this process's memory."""
    total, inside = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if "-" in line.split(" ", 1)[0]:
            inside = line.endswith(str(path))
        elif inside and line.startswith("Rss:"):
            total += int(line.split()[1])
    return total


def test_what_is_mapped_to_be_read_is_let_go_and_still_there(tmp_path: Path) -> None:
    folder = tmp_path / "with space"
    folder.mkdir()
    other = tmp_path / "with space beside"
    content = bytes(range(256)) * 4096
    for path in (folder / "weights.bin", other):
        path.write_bytes(content)
    with (folder / "weights.bin").open("rb") as file, other.open("rb") as outside:
        flags = {"flags": mmap.MAP_PRIVATE, "prot": mmap.PROT_READ}
        mapped, kept = (mmap.mmap(item.fileno(), 0, **flags) for item in (file, outside))
        written = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        written[0:3] = b"new"
        assert mapped[:] == kept[:] == content
        before = _resident(folder / "weights.bin"), _resident(other)
        assert let_go_of_mapped(folder) == len(content)
        after = _resident(folder / "weights.bin"), _resident(other)
        assert after[0] <= before[0] - len(content) // 1024
        assert after[1] == before[1]
        # what was changed in memory alone stays changed
        assert written[0:3] == b"new"
        assert mapped[:] == content
        del mapped, kept, written


def test_a_folder_of_which_nothing_is_mapped(tmp_path: Path) -> None:
    assert let_go_of_mapped(tmp_path) == 0
    assert let_go_of_mapped(tmp_path / "nowhere") == 0


def _anonymous() -> int:
    """Kilobytes of this process's memory that are no file's."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon:"))


@pytest.mark.skipif(not platform.libc_ver()[0], reason="another C library than glibc")
def test_what_was_freed_is_given_back() -> None:
    # of a size that lies in the heap; what is between stays, as in life
    arrays = [np.ones(80_000, np.uint8) for _ in range(1000)]
    kept = arrays[::100]
    full = _anonymous()
    del arrays
    give_back_freed()
    assert _anonymous() < full - 50_000
    assert all(array[-1] for array in kept)


def test_a_model_gives_back_what_it_took(
    built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed: list[str] = []
    for name in ("encoder", "classifier"):
        given = f"codemill.runtime.{name}.give_back_freed"
        monkeypatch.setattr(given, lambda name=name: closed.append(name))
    load(built).close()
    load(write_labels_bundle(tmp_path / "labels")).close()
    assert closed == ["encoder", "classifier"]
