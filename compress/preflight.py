"""Checks before a run starts: what can be known in seconds and would otherwise fail after hours."""

from __future__ import annotations

import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from codemill.compress.models.load import load_teacher, resolve_model
from codemill.compress.recipe import Recipe
from codemill.errors import CodemillError, MachineError, RecipeError
from codemill.runtime.machine import this_machine
from codemill.targets.profile import availability, target_named

__all__ = ["Check", "Preflight", "preflight"]

_BASE_MEMORY_BYTES = 900_000_000
"""torch, transformers and the corpus, before any model."""
_OPTIMIZER_COPIES = 4
"""A trained weight is held four times: itself, its gradient and Adam's two moments."""
_ACTIVATION_BYTES = 16
"""Activations kept for backward, in floats per token, trained layer and hidden unit."""
_LABEL_BYTES = 2
_GRAPH_COPIES = 4


@dataclass(frozen=True)
class Check:
    """One question and its answer; `passed` False stops the run."""

    name: str
    passed: bool
    found: str


@dataclass(frozen=True)
class Preflight:
    """All checks, and the estimates they rest on."""

    checks: tuple[Check, ...]
    memory_bytes: int
    disk_bytes: int

    def lines(self) -> list[str]:
        """For people, a line a check."""
        return [
            f"{'ok ' if check.passed else 'NO '} {check.name}: {check.found}"
            for check in self.checks
        ]

    def to_json(self) -> dict[str, Any]:
        """For machines."""
        return asdict(self)

    def raise_if_impossible(self) -> None:
        """Raise MachineError naming every check that failed."""
        failed = [check for check in self.checks if not check.passed]
        if failed:
            raise MachineError("; ".join(f"{check.name}: {check.found}" for check in failed))


def preflight(recipe: Recipe, work: Path) -> Preflight:
    """Look at teacher, target, memory and disk.

    Raises what opening the teacher raises, and RecipeError for inputs longer than it takes.
    """
    teacher = load_teacher(resolve_model(recipe.teacher.model))
    parameters = sum(value.numel() for value in teacher.model.parameters())
    config = teacher.model.config
    _check_lengths(recipe, config.max_position_embeddings)
    memory = _memory_bytes(recipe, parameters, config.hidden_size, config.num_hidden_layers)
    disk = _disk_bytes(recipe, parameters, config.hidden_size)
    checks = [
        Check(
            "teacher",
            True,
            f"{config.model_type}, {config.num_hidden_layers} layers, {parameters / 1e6:.1f} M parameters",
        ),
        _target(recipe),
        _memory(memory),
        _disk(disk, work),
    ]
    return Preflight(tuple(checks), memory, disk)


def _check_lengths(recipe: Recipe, positions: int) -> None:
    for key, tokens in (
        ("teacher.max_tokens", recipe.teacher.max_tokens),
        ("data.max_tokens", recipe.data.max_tokens),
        ("student.max_tokens", recipe.student.max_tokens),
    ):
        if tokens > positions:
            raise RecipeError(
                f"{key} is {tokens}, but the teacher takes inputs of {positions} tokens at most; "
                f"set --set {key}={positions} or less"
            )


def _memory_bytes(recipe: Recipe, parameters: int, hidden_size: int, layers: int) -> int:
    """Upper estimate of the fine-tuning step, the hungriest: weights, optimizer, activations of one batch."""
    settings = recipe.teacher.finetune
    trained = max(0, layers - settings.freeze_layers) if settings.pairs else 0
    tokens = settings.batch_size * recipe.data.max_tokens * 1.3
    activations = int(tokens * trained * hidden_size * 4 * _ACTIVATION_BYTES)
    return _BASE_MEMORY_BYTES + parameters * 4 * _OPTIMIZER_COPIES + activations


def _disk_bytes(recipe: Recipe, parameters: int, hidden_size: int) -> int:
    labels = 2 * recipe.data.train_pairs * hidden_size * _LABEL_BYTES
    return labels + _GRAPH_COPIES * parameters * 4 + 200_000_000


def _target(recipe: Recipe) -> Check:
    try:
        reason = availability(target_named(recipe.target))
    except CodemillError as error:
        return Check("target", False, str(error))
    supported = recipe.target in ("cpu-int8", "cpu-fp32")
    if not supported:
        return Check(
            "target", False, f"{recipe.target} cannot be built yet; choose cpu-int8 or cpu-fp32"
        )
    wanted = "cpu-int8" if recipe.quantize.method == "dynamic-int8" else "cpu-fp32"
    if recipe.target != wanted:
        return Check(
            "target",
            False,
            f"target {recipe.target} and quantize.method {recipe.quantize.method!r} contradict each "
            f"other; set target to {wanted}, or quantize.method to what {recipe.target} says",
        )
    return Check(
        "target", reason is None, recipe.target if reason is None else f"{recipe.target}: {reason}"
    )


def _memory(needed: int) -> Check:
    available = this_machine().memory_available_bytes
    found = f"about {needed / 1e9:.1f} GB needed"
    if available is None:
        return Check("memory", True, found + ", what is available cannot be told")
    found += f", {available / 1e9:.1f} GB available"
    if needed > available:
        return Check(
            "memory",
            False,
            found + "; lower teacher.finetune.batch_size or teacher.finetune.pairs to 0",
        )
    return Check("memory", True, found)


def _disk(needed: int, work: Path) -> Check:
    folder = work.absolute()
    while not folder.exists():
        folder = folder.parent
    if not folder.is_dir():
        return Check(
            "disk", False, f"{folder} is a file and no folder to work in; choose another --work"
        )
    free = shutil.disk_usage(folder).free
    found = f"about {needed / 1e9:.1f} GB needed under {work}, {free / 1e9:.1f} GB free"
    return Check(
        "disk", needed <= free, found if needed <= free else found + "; choose another --work"
    )
