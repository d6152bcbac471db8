"""What a run computes with: threads, and the precision of products in training."""

from __future__ import annotations

from dataclasses import dataclass

from codemill.compress.recipe import Recipe
from codemill.runtime.machine import this_machine

__all__ = ["Compute", "compute_of"]

_NATIVE_BF16 = {"avx512_bf16", "amx_bf16", "bf16"}


@dataclass(frozen=True)
class Compute:
    """Both shape a result: other threads sum in another order, bf16 rounds. So both are part of a stage's key."""

    threads: int
    bf16: bool


def compute_of(recipe: Recipe) -> Compute:
    """A recipe's `threads` and `precision`, with this machine's for what it leaves open."""
    machine = this_machine()
    native = not _NATIVE_BF16.isdisjoint(machine.instruction_sets)
    bf16 = native if recipe.precision == "auto" else recipe.precision == "bf16"
    return Compute(recipe.threads or machine.physical_cores, bf16)
