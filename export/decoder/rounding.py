"""How a decoder's matrices are rounded as it is written; and that in a file, with those that were rounded before."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from codemill.export.quantize.blocks import BLOCK, Blocks

__all__ = ["FULL", "Rounding", "read_rounding", "write_rounding"]

FULL = 32
"""Bits of a matrix that is kept in float32."""
_ALL = "all"
_SYMMETRIC = "symmetric"


@dataclass(frozen=True)
class Rounding:
    """How a decoder's matrices are rounded: to `bits`, but to 8 those of the kinds `eight` (`mixed.py`).

    Matrices have names: `words`, `head`; `N/qkv`, `N/out`, `N/up`, `N/down` of layer N; of the exit behind it
    `exit/N/up` and `exit/N/down`. block: weights that share a scale. symmetric: at 4 bits without zero points. blocks:
    those that were rounded before, by name; the others are rounded each as it is.
    """

    bits: int
    eight: tuple[str, ...] = ()
    blocks: Mapping[str, Blocks] = field(default_factory=dict)
    block: int = BLOCK
    symmetric: bool = False

    def bits_of(self, name: str) -> int:
        """4, 8 or 32; an exit's matrices are of no kind."""
        kept = name.rpartition("/")[2] in self.eight and not name.startswith("exit/")
        return 8 if kept else self.bits

    def is_symmetric(self, bits: int) -> bool:
        """Whether a matrix of so many bits has no zero points: at 8 bits they cost no time."""
        return self.symmetric and bits == 4

    def rounded(self, name: str) -> Blocks | None:
        """What a matrix was rounded to before, where that is to as many bits as are asked for now."""
        found = self.blocks.get(name)
        return found if found is not None and found.bits == self.bits_of(name) else None


def write_rounding(path: Path, rounding: Rounding) -> None:
    """Keep it in a file (safetensors)."""
    from safetensors.numpy import save_file

    tensors: dict[str, Any] = {}
    for name, blocks in rounding.blocks.items():
        parts = {
            "values": blocks.values,
            "scales": blocks.scales,
            "zero_points": blocks.zero_points,
        }
        tensors |= {f"{name}:{part}": found for part, found in parts.items() if found is not None}
    facts = {name: f"{blocks.bits} {blocks.columns}" for name, blocks in rounding.blocks.items()}
    facts[_ALL] = " ".join([str(rounding.bits), str(rounding.block), *rounding.eight])
    if rounding.symmetric:
        facts[_SYMMETRIC] = ""
    made = path.with_name(f"{path.name}.partial")
    save_file(tensors, made, metadata=facts)
    made.replace(path)


def read_rounding(path: Path) -> Rounding:
    """What `write_rounding` wrote."""
    from safetensors import safe_open

    with safe_open(path, framework="np") as file:
        facts, there = file.metadata(), set(file.keys())
        symmetric = facts.pop(_SYMMETRIC, None) is not None
        of_all, block, *eight = facts.pop(_ALL).split()
        found = {}
        for name, said in facts.items():
            bits, columns = map(int, said.split())
            zeros = f"{name}:zero_points"
            found[name] = Blocks(
                values=file.get_tensor(f"{name}:values"),
                scales=file.get_tensor(f"{name}:scales"),
                zero_points=file.get_tensor(zeros) if zeros in there else None,
                bits=bits,
                columns=columns,
            )
    return Rounding(int(of_all), tuple(eight), found, int(block), symmetric)
