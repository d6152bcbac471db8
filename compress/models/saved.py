"""A student in its folder: architecture.json, config.json, model.safetensors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors.torch import load_file, save_file
from torch import nn

from codemill.compress.architecture import Architecture

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["fill", "read_saved", "save_student"]

_ARCHITECTURE_FILE = "architecture.json"
_CONFIG_FILE = "config.json"
_WEIGHTS_FILE = "model.safetensors"


def save_student(student: PreTrainedModel, architecture: Architecture, folder: Path) -> None:
    """Write config, architecture and weights (safetensors) into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / _ARCHITECTURE_FILE).write_text(json.dumps(architecture.to_json(), indent=1))
    values: dict[str, Any] = student.config.to_dict()
    values.pop("pruned_heads", None)
    (folder / _CONFIG_FILE).write_text(json.dumps(values, indent=1, sort_keys=True))
    save_file(
        {name: value.contiguous() for name, value in student.state_dict().items()},
        folder / _WEIGHTS_FILE,
    )


def read_saved(folder: Path) -> tuple[Architecture, dict[str, Any]]:
    """The architecture and the values of config.json that `save_student` wrote."""
    architecture = Architecture.from_json(json.loads((folder / _ARCHITECTURE_FILE).read_text()))
    return architecture, json.loads((folder / _CONFIG_FILE).read_text())


def fill(student: nn.Module, folder: Path) -> None:
    """Load the weights that `save_student` wrote."""
    student.load_state_dict(load_file(folder / _WEIGHTS_FILE))
