"""Pages of a mapped file are dropped, and read again where they are asked for."""

from __future__ import annotations

import mmap
import sys
from pathlib import Path

import pytest

from codemill.runtime.pages import let_go_of_mapped

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
