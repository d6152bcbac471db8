"""A bundle is put where it is asked for whole, or what was there stays."""

from __future__ import annotations

from pathlib import Path

import pytest

from codemill.compress.places import put_bundle, scratch_beside


@pytest.mark.parametrize("renamed", [1, 2])
def test_a_bundle_that_was_there_outlives_an_interrupt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, renamed: int
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "old").write_text("")
    real, left = Path.rename, [renamed]

    def rename(self: Path, target: Path) -> Path:
        left[0] -= 1
        if left[0] == 0 and renamed == 2:
            raise KeyboardInterrupt
        found = real(self, target)
        if left[0] == 0:
            raise KeyboardInterrupt
        return found

    monkeypatch.setattr(Path, "rename", rename)
    with scratch_beside(out) as scratch:
        (scratch / "made").mkdir()
        with pytest.raises(KeyboardInterrupt):
            put_bundle(scratch / "made", out, scratch)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert [path.name for path in out.iterdir()] == ["old"]
