from __future__ import annotations

import json
import shutil
import stat
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from codemill.errors import BundleError, IntegrityError, MachineError
from codemill.runtime import load, pack, unpack, verify_bundle

ENCODER = "variants/cpu-fp32/encoder.onnx"


@pytest.fixture
def mill(built: Path, tmp_path: Path) -> Path:
    return pack(built, tmp_path / "tiny.mill")


def repack(
    bundle: Path, target: Path, change: Callable[[zipfile.ZipInfo, bytes], bytes], *extra: str
) -> Path:
    with zipfile.ZipFile(target, "w") as archive:
        for name in ("manifest.json", "tokenizer.json", ENCODER):
            info = zipfile.ZipInfo(name)
            archive.writestr(info, change(info, (bundle / name).read_bytes()))
        for name in extra:
            archive.writestr(name, b"x")
    return target


def test_what_is_unpacked_is_what_was_packed(bundle: Path, mill: Path, cache: Path) -> None:
    folder = unpack(mill)
    assert folder.is_relative_to(cache)
    assert verify_bundle(folder) == verify_bundle(bundle)
    assert folder.name == verify_bundle(bundle).replace(":", "-")
    assert (folder / ENCODER).read_bytes() == (bundle / ENCODER).read_bytes()


def test_a_mill_loads_and_gives_what_its_folder_gives(built: Path, mill: Path) -> None:
    with load(mill) as packed, load(built) as folder:
        assert np.array_equal(packed.encode(["parse a file"]), folder.encode(["parse a file"]))


def test_packing_is_stored_and_reproducible_and_leaves_reports_out(
    bundle: Path, mill: Path, tmp_path: Path
) -> None:
    (bundle / "report.json").write_text("{}")
    time.sleep(0.01)
    again = pack(bundle, tmp_path / "again.mill")
    assert again.read_bytes() == mill.read_bytes()
    with zipfile.ZipFile(mill) as archive:
        assert archive.namelist() == ["manifest.json", "tokenizer.json", ENCODER]
        assert {info.compress_type for info in archive.infolist()} == {zipfile.ZIP_STORED}


def test_a_bundle_that_is_not_sound_is_not_packed(bundle: Path, tmp_path: Path) -> None:
    (bundle / ENCODER).write_bytes(b"other")
    with pytest.raises(IntegrityError):
        pack(bundle, tmp_path / "bad.mill")
    assert not (tmp_path / "bad.mill").exists()


def test_packing_into_no_folder_is_a_machine_error(built: Path, tmp_path: Path) -> None:
    with pytest.raises(MachineError, match="cannot write"):
        pack(built, tmp_path / "none" / "tiny.mill")


def test_unpacking_twice_uses_the_first_copy(mill: Path) -> None:
    first = unpack(mill)
    inode = (first / ENCODER).stat().st_ino
    assert unpack(mill) == first
    assert (first / ENCODER).stat().st_ino == inode


def test_a_damaged_copy_in_the_cache_is_replaced(mill: Path, built: Path) -> None:
    folder = unpack(mill)
    (folder / ENCODER).write_bytes(b"damaged")
    assert unpack(mill) == folder
    assert (folder / ENCODER).read_bytes() == (built / ENCODER).read_bytes()
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


def test_a_file_in_the_place_of_the_copy_is_replaced(mill: Path) -> None:
    folder = unpack(mill)
    shutil.rmtree(folder)
    folder.write_text("in the way")
    verify_bundle(unpack(mill))


def test_processes_that_unpack_at_once_all_get_the_bundle(mill: Path, cache: Path) -> None:
    code = "import sys; from codemill.runtime import unpack; print(unpack(sys.argv[1]))"
    processes = [
        subprocess.Popen([sys.executable, "-c", code, str(mill)], stdout=subprocess.PIPE, text=True)
        for _ in range(4)
    ]
    folders = {process.communicate(timeout=60)[0].strip() for process in processes}
    assert [process.returncode for process in processes] == [0] * 4
    (folder,) = folders
    verify_bundle(folder)
    assert len(list((cache / "bundles").iterdir())) == 1


def test_a_process_that_came_second_uses_the_first_ones_copy(
    mill: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    rename = Path.rename
    first = unpack(mill)
    shutil.move(first, tmp_path / "first")

    def late(self: Path, target: Path) -> Path:
        if self.name.startswith("tmp-"):
            shutil.copytree(tmp_path / "first", target)
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", late)
    assert unpack(mill) == first
    assert [path.name for path in first.parent.iterdir()] == [first.name]


def test_a_changed_byte_is_an_integrity_error(bundle: Path, tmp_path: Path, cache: Path) -> None:
    def flip(info: zipfile.ZipInfo, content: bytes) -> bytes:
        return content[:-1] + bytes([content[-1] ^ 1]) if info.filename == ENCODER else content

    with pytest.raises(IntegrityError, match=r"encoder\.onnx.*was changed"):
        unpack(repack(bundle, tmp_path / "bad.mill", flip))
    assert list((cache / "bundles").iterdir()) == []


def test_a_byte_changed_in_the_file_itself_is_a_bundle_error(mill: Path) -> None:
    content = bytearray(mill.read_bytes())
    content[content.index(b"attention_mask")] ^= 1
    mill.write_bytes(content)
    with pytest.raises(BundleError):
        unpack(mill)


def test_compressed_entries_are_refused(bundle: Path, tmp_path: Path) -> None:
    def compress(info: zipfile.ZipInfo, content: bytes) -> bytes:
        info.compress_type = zipfile.ZIP_DEFLATED
        return content

    with pytest.raises(BundleError, match="compressed"):
        unpack(repack(bundle, tmp_path / "bomb.mill", compress))


def test_links_are_refused(bundle: Path, tmp_path: Path) -> None:
    def link(info: zipfile.ZipInfo, content: bytes) -> bytes:
        info.create_system = 3
        info.external_attr = (stat.S_IFLNK | 0o777) << 16
        return content

    with pytest.raises(BundleError, match="not a plain file"):
        unpack(repack(bundle, tmp_path / "link.mill", link))


@pytest.mark.parametrize("name", ["../evil", "/evil", "report.json", "variants/more.onnx", "x/"])
def test_entries_the_manifest_does_not_name_are_refused(
    bundle: Path, tmp_path: Path, name: str
) -> None:
    with pytest.raises(BundleError, match="exactly the files"):
        unpack(repack(bundle, tmp_path / "evil.mill", lambda info, content: content, name))
    assert not (tmp_path / "evil").exists()


@pytest.mark.parametrize("name", ["manifest.json", "tokenizer.json"])
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_duplicates_are_refused(bundle: Path, tmp_path: Path, name: str) -> None:
    with pytest.raises(BundleError, match="manifest"):
        unpack(repack(bundle, tmp_path / "twice.mill", lambda info, content: content, name))


def test_another_size_than_the_manifests_is_refused(bundle: Path, tmp_path: Path) -> None:
    def grow(info: zipfile.ZipInfo, content: bytes) -> bytes:
        return content + b" " if info.filename == "tokenizer.json" else content

    with pytest.raises(IntegrityError, match=r"tokenizer\.json.*the manifest says"):
        unpack(repack(bundle, tmp_path / "size.mill", grow))


def test_entries_that_claim_more_than_the_file_holds_are_refused(
    bundle: Path, tmp_path: Path, cache: Path
) -> None:
    manifest = json.loads((bundle / "manifest.json").read_bytes())
    manifest["files"][ENCODER]["size_bytes"] = 10**12
    (bundle / "manifest.json").write_text(json.dumps(manifest))
    target = tmp_path / "claims.mill"
    with zipfile.ZipFile(target, "w") as archive:
        for name in ("manifest.json", "tokenizer.json", ENCODER):
            archive.write(bundle / name, name)
        # the directory at the end is written from these
        info = archive.getinfo(ENCODER)
        info.file_size = info.compress_size = 10**12
    with pytest.raises(BundleError, match="larger than the file"):
        unpack(target)
    assert not (cache / "bundles").exists()


def test_a_file_that_was_cut_off_is_a_bundle_error(mill: Path) -> None:
    mill.write_bytes(mill.read_bytes()[:-1000])
    with pytest.raises(BundleError, match="not a sound"):
        unpack(mill)


def test_a_file_that_is_no_archive_and_one_that_is_not_there(tmp_path: Path) -> None:
    (tmp_path / "text.mill").write_text("hello")
    with pytest.raises(BundleError, match=r"not a sound \.mill file"):
        unpack(tmp_path / "text.mill")
    with pytest.raises(BundleError, match="there is no bundle"):
        unpack(tmp_path / "none.mill")


def test_a_cache_that_cannot_be_made_is_a_machine_error(
    mill: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("CODEMILL_CACHE", str(tmp_path / "file"))
    with pytest.raises(MachineError, match="CODEMILL_CACHE"):
        unpack(mill)


@pytest.mark.skipif(sys.platform != "linux", reason="limits the size of files")
def test_a_disk_that_is_full_is_a_machine_error_and_leaves_nothing(mill: Path, cache: Path) -> None:
    import resource

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))
    try:
        with pytest.raises(MachineError, match="cannot unpack"):
            unpack(mill)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert list((cache / "bundles").iterdir()) == []
    verify_bundle(unpack(mill))
