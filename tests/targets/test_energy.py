from __future__ import annotations

from pathlib import Path

from codemill.targets.energy import rapl_counter


def zone(root: Path, folder: str, name: str, energy_uj: int) -> Path:
    path = root / folder
    path.mkdir(parents=True)
    (path / "name").write_text(name + "\n")
    (path / "energy_uj").write_text(f"{energy_uj}\n")
    (path / "max_energy_range_uj").write_text("1000000000\n")
    return path


def test_only_whole_packages_are_counted_and_a_wrap_is_undone(tmp_path: Path) -> None:
    first = zone(tmp_path, "intel-rapl:0", "package-0", 999_000_000)
    second = zone(tmp_path, "intel-rapl:1", "package-1", 5_000_000)
    zone(tmp_path, "intel-rapl:0:0", "core", 1)
    zone(tmp_path, "intel-rapl:2", "psys", 1)
    zone(tmp_path, "intel-rapl-mmio:0", "package-0", 1)
    counter = rapl_counter(tmp_path)
    assert counter is not None
    assert counter.files == (first / "energy_uj", second / "energy_uj")
    before = counter.read_uj()
    (first / "energy_uj").write_text("2000000\n")
    (second / "energy_uj").write_text("6500000\n")
    assert counter.spent_j(before, counter.read_uj()) == 3.0 + 1.5


def test_no_counter_or_one_that_may_not_be_read_is_none(tmp_path: Path) -> None:
    assert rapl_counter(tmp_path) is None
    broken = zone(tmp_path, "intel-rapl:0", "package-0", 1)
    (broken / "energy_uj").unlink()
    assert rapl_counter(tmp_path) is None
