"""What a run computes with: threads, the precision of products in training, and the GPUs, where there are any."""

from __future__ import annotations

from dataclasses import dataclass

from codemill.compress.recipe import Recipe
from codemill.errors import MachineError
from codemill.runtime.machine import this_machine

__all__ = ["Compute", "OnGpus", "compute_of", "on_processor"]

_NATIVE_BF16 = {"avx512_bf16", "amx_bf16", "bf16"}


@dataclass(frozen=True)
class Compute:
    """Both shape a result: other threads sum in another order, bf16 rounds. So both are part of a stage's key."""

    threads: int
    bf16: bool

    @property
    def device(self) -> str:
        """Where a classifier is trained, as torch names it."""
        return "cpu"

    @property
    def processes(self) -> int:
        """So many train together, each on a part of every batch."""
        return 1


@dataclass(frozen=True)
class OnGpus(Compute):
    """What they are and how many shapes a result as well, and so is part of the key of what is trained on them."""

    gpu: str
    """name of the first one"""
    count: int

    @property
    def device(self) -> str:
        """Of the process that leads; the others take the next GPUs."""
        return "cuda:0"

    @property
    def processes(self) -> int:
        """One for each GPU."""
        return self.count


def compute_of(recipe: Recipe) -> Compute:
    """A recipe's `threads`, `precision` and `device`, with this machine's for what it leaves open.

    Raises MachineError where GPUs are asked for and CUDA shows none.
    """
    gpus = _gpus(recipe)
    if not gpus:
        return on_processor(recipe)
    threads = recipe.threads or this_machine().physical_cores
    return OnGpus(threads, _bf16(recipe, _gpu_has_bf16()), gpus[0], len(gpus))


def on_processor(recipe: Recipe) -> Compute:
    """The same without GPUs, for what is trained on the processor whatever there is."""
    threads = recipe.threads or this_machine().physical_cores
    return Compute(threads, _bf16(recipe, _native_bf16()))


def _bf16(recipe: Recipe, native: bool) -> bool:
    return native if recipe.precision == "auto" else recipe.precision == "bf16"


def _native_bf16() -> bool:
    return not _NATIVE_BF16.isdisjoint(this_machine().instruction_sets)


def _gpus(recipe: Recipe) -> list[str]:
    """Names of the GPUs that a recipe is trained on."""
    # a retrieval student is trained on the processor
    if recipe.device == "cpu" or (recipe.device == "auto" and recipe.task == "retrieval"):
        return []
    import torch

    if recipe.device == "cuda" and recipe.task == "retrieval":
        raise MachineError(
            "device: cuda is of classifiers, and this task: retrieval is trained on the processor; set device: auto"
        )
    if not torch.cuda.is_available():
        if recipe.device == "auto":
            return []
        raise MachineError(
            f"device: cuda was asked for, and torch {torch.__version__} finds no CUDA GPU here; install a build of "
            "torch for CUDA and its driver, or set device: auto"
        )
    return [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]


def _gpu_has_bf16() -> bool:
    import torch

    return bool(torch.cuda.is_bf16_supported())
