"""What config.json says of a teacher, checked before anything is loaded."""

from __future__ import annotations

import json
import reprlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from codemill.errors import ModelError

__all__ = ["FAMILIES", "TeacherShape", "read_config", "read_shape", "weight_files"]

FAMILIES = ("bert", "roberta", "modernbert", "t5", "codet5p_embedding")
"""config.model_type of the families a student can be cut out of."""

_CLASSES = (
    "bert (BertModel and the classes built on it, such as BertForMaskedLM), roberta (CodeBERT, "
    "UniXcoder, GraphCodeBERT), modernbert, t5 and codet5p_embedding (the encoders of T5, CodeT5, CodeT5+)"
)
_UNSUPPORTED = {
    "quantization_config": (None, "give the model as it was before quantization"),
    "is_decoder": (False, "only encoders are supported so far"),
    "add_cross_attention": (False, "only encoders are supported so far"),
    "position_embedding_type": ("absolute", "only absolute positions are supported so far"),
}
"""Key of config.json -> the one value that is understood, and what to say of another."""
_MOST = {
    "vocab_size": 10_000_000,
    "hidden_size": 100_000,
    "layers": 1_000,
    "heads": 10_000,
    "intermediate_size": 1_000_000,
    "positions": 1_000_000,
    "head_size": 100_000,
}
"""The most that is believed."""
_BERT = {
    "vocab_size": ("vocab_size", 30_522),
    "hidden_size": ("hidden_size", 768),
    "layers": ("num_hidden_layers", 12),
    "heads": ("num_attention_heads", 12),
    "intermediate_size": ("intermediate_size", 3_072),
    "positions": ("max_position_embeddings", 512),
}
_T5 = {
    "vocab_size": ("vocab_size", 32_128),
    "hidden_size": ("d_model", 512),
    "layers": ("num_layers", 6),
    "heads": ("num_heads", 8),
    "intermediate_size": ("d_ff", 2_048),
    # no table: what it was trained with, where that is said
    "positions": ("n_positions", 512),
    "head_size": ("d_kv", 64),
}
_KEYS: dict[str, dict[str, tuple[str, int]]] = {
    "bert": _BERT,
    "roberta": _BERT | {"vocab_size": ("vocab_size", 50_265)},
    "modernbert": _BERT
    | {
        "vocab_size": ("vocab_size", 50_368),
        "layers": ("num_hidden_layers", 22),
        "intermediate_size": ("intermediate_size", 1_152),
        "positions": ("max_position_embeddings", 8_192),
    },
    "t5": _T5,
    "codet5p_embedding": _T5,
}
"""Family -> our name -> the key of config.json, and what transformers takes where it is missing."""
_EPSILON = {"modernbert": "norm_eps", "t5": "layer_norm_epsilon"}
_PAD = {"bert": 0, "roberta": 1, "modernbert": 50_283, "t5": 0, "codet5p_embedding": 0}
_MOST_CONFIG_BYTES = 1_000_000
_LFS = b"version https://git-lfs"


@dataclass(frozen=True)
class TeacherShape:
    """What config.json says of a teacher's shape; `positions` is its longest input.

    `head_size`: where heads x head size is not the width (T5). `gated`: three matrices in a
    feed-forward layer, not two. `tabled`: positions have a table.
    """

    vocab_size: int
    hidden_size: int
    layers: int
    heads: int
    intermediate_size: int
    positions: int
    family: str = "bert"
    head_size: int | None = None
    gated: bool = False
    tabled: bool = True
    pad_token_id: int = 0

    @property
    def parameters(self) -> int:
        """Parameters of its tables and matrices."""
        inner = self.heads * self.head_size if self.head_size else self.hidden_size
        feed_forward = (3 if self.gated else 2) * self.hidden_size * self.intermediate_size
        layer = 4 * self.hidden_size * inner + feed_forward
        rows = self.vocab_size + (self.positions if self.tabled else 0)
        return rows * self.hidden_size + self.layers * layer


def read_config(folder: Path) -> dict[str, Any]:
    """The object in config.json. Raises ModelError where there is none."""
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
    value, path = read_config(folder), folder / "config.json"
    family = value.get("model_type")
    if not isinstance(family, str) or family not in FAMILIES:
        named = value.get("architectures")
        classes = f" ({reprlib.repr(named)})" if named else ""
        raise ModelError(
            f"{folder} holds a model of type {reprlib.repr(family)}{classes}; "
            f"supported so far: {_CLASSES}"
        )
    for key, (plain, why) in _UNSUPPORTED.items():
        if value.get(key, plain) not in (plain, None):
            raise ModelError(f"{path}: {key} is {reprlib.repr(value[key])}: {why}")
    numbers = {
        name: _whole(path, key, value.get(key, default), 1, _MOST[name])
        for name, (key, default) in _KEYS[family].items()
    }
    key = _EPSILON.get(family, "layer_norm_eps")
    epsilon = value.get(key, 1e-12)
    if not isinstance(epsilon, int | float) or not 0 < epsilon < 1:
        raise ModelError(
            f"{path}: {key}: expected a small number above 0, found {reprlib.repr(epsilon)}"
        )
    pad = value.get("pad_token_id", _PAD[family])
    if family == "roberta":
        # rows before the first are never reached
        pad = _whole(path, "pad_token_id", pad, 0, numbers["positions"] - 2)
        numbers["positions"] -= pad + 1
    gated = family == "modernbert" or "gated" in str(value.get("feed_forward_proj", ""))
    shape = TeacherShape(
        **numbers,
        family=family,
        gated=gated,
        tabled=family in ("bert", "roberta"),
        pad_token_id=pad if isinstance(pad, int) else _PAD[family],
    )
    if shape.head_size is None and shape.hidden_size % shape.heads:
        raise ModelError(
            f"{path}: a hidden_size of {shape.hidden_size} does not divide into "
            f"{shape.heads} attention heads"
        )
    _check_weights(folder, shape)
    return shape


def _whole(path: Path, key: str, number: object, least: int, most: int) -> int:
    if not isinstance(number, int) or isinstance(number, bool) or not least <= number <= most:
        raise ModelError(
            f"{path}: {key}: expected a whole number from {least} to {most:,}, found {reprlib.repr(number)}"
        )
    return number


def _check_weights(folder: Path, shape: TeacherShape) -> None:
    weights = weight_files(folder)
    if weights and _begins_with(weights[0], _LFS):
        raise ModelError(
            f"{weights[0]} is a pointer of git-lfs, not the weights; fetch them with: git lfs pull"
        )
    weights_bytes = sum(file.stat().st_size for file in weights)
    # a quantized one would have a byte a parameter at least
    if weights_bytes and shape.parameters > weights_bytes:
        raise ModelError(
            f"{folder / 'config.json'} describes at least {shape.parameters:,} parameters, more than "
            f"the {weights_bytes:,} bytes "
            "of weights beside it can hold: one of them is cut short or another model's"
        )


def _begins_with(path: Path, start: bytes) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(len(start)) == start
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror or error}") from error


def weight_files(folder: Path) -> list[Path]:
    """The files of weights, safetensors where there are any; by name."""
    files = sorted(folder.glob("*.safetensors")) or sorted(folder.glob("*.bin"))
    return [file for file in files if file.is_file()]
