"""What a bundle may cost at most.

`search/` keeps to it before training, the pipeline's gates after.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from decimal import Decimal

from codemill.errors import RecipeError

__all__ = ["Budget", "parse_size"]

_UNITS = {
    "": 1,
    "B": 1,
    "KB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "KIB": 2**10,
    "MIB": 2**20,
    "GIB": 2**30,
}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([A-Za-z]*)", re.ASCII)


@dataclass(frozen=True)
class Budget:
    """Upper limits, each None where there is none.

    `size_bytes`: what a user ships for one variant (graph, tokenizer, manifest); `gflops`: dense
    products of one function of the data's mean length, 1e9 operations; `latency_ms`: one function.
    """

    size_bytes: int | None = None
    gflops: float | None = None
    latency_ms: float | None = None

    def __post_init__(self) -> None:
        for key in ("size_bytes", "gflops", "latency_ms"):
            value = getattr(self, key)
            if value is not None and not (math.isfinite(value) and value > 0):
                raise RecipeError(
                    f"budget: {key} must be a number above 0, not {value!r}; "
                    "leave it out for no limit"
                )


def parse_size(value: str | int) -> int:
    """Bytes of a size as people write it: "3MB" -> 3_000_000, "3MiB" -> 3_145_728.

    A bare number is bytes. Case and a space before the unit do not matter; a fraction of a byte is
    dropped. Raises RecipeError that names the value and the accepted forms.
    """
    match = _SIZE.fullmatch(str(value).strip())
    factor = _UNITS.get(match[2].upper()) if match else None
    size_bytes = 0 if match is None or factor is None else int(Decimal(match[1]) * factor)
    if size_bytes < 1:
        raise RecipeError(
            f"size {value!r} is not understood; expected a number above 0 with a unit of "
            "B, KB, MB, GB (powers of 1000) or KiB, MiB, GiB (powers of 1024), "
            "for example 3MB or 2.5MiB"
        )
    return size_bytes
