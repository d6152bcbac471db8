"""The kit of graphs that `compress profile` measures: a spread of architectures, exported for real.

The weights are random, which a product's time does not depend on; the path from torch to the file is
the one that a bundle's graph takes. Measuring is `codemill.targets.latency`'s, and needs no torch.
"""

from __future__ import annotations

import hashlib
import math
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from codemill.compress.architecture import Architecture
from codemill.compress.parallel import map_processes
from codemill.targets.latency import SCHEMA, Kit, KitGraph, KitTarget, write_kit
from codemill.targets.profile import Shape, TargetSpec

__all__ = ["ANCHOR", "SHAPES", "kit_architectures", "make_kit"]

_MAX_TOKENS = 512
SHAPES = (
    *(Shape(tokens) for tokens in (32, 64, 128, 256, _MAX_TOKENS)),
    *(Shape(tokens, 8) for tokens in (32, 128)),
)
"""What is measured: the lengths of functions, one a call, and batches up to what the runtime makes."""

ANCHOR = Architecture(6000, 192, 4, 6, 32, 512, _MAX_TOKENS)
"""What all others are measured against: of the middle in every respect."""

# the corners of the space: deep and thin, shallow and wide, the default teacher, what is cut from it
_CORNERS = (
    Architecture(1000, 96, 12, 6, 16, 64, _MAX_TOKENS),
    Architecture(4000, 384, 1, 12, 32, 512, _MAX_TOKENS, 128),
    Architecture(8000, 384, 1, 6, 32, 1536, _MAX_TOKENS, 96),
    Architecture(6000, 384, 12, 12, 32, 1536, _MAX_TOKENS),
    Architecture(5000, 384, 3, 6, 32, 384, _MAX_TOKENS, 128),
    Architecture(1000, 64, 1, 2, 32, 64, _MAX_TOKENS),
    Architecture(2000, 768, 2, 12, 64, 1536, _MAX_TOKENS, 256),
    Architecture(1000, 768, 1, 6, 64, 768, _MAX_TOKENS),
)
_SPREAD = 17


def kit_architectures() -> tuple[Architecture, ...]:
    """The anchor, the corners, and a spread that fills the space between evenly; always the same.

    The spread is Roberts' R-sequence (additive recurrence by powers of the generalised golden ratio,
    which is the root of x^(d+1) = x + 1): any first part of it fills d dimensions evenly.
    """
    dimensions = 7
    root = 2.0
    for _ in range(50):
        root = (1 + root) ** (1 / (dimensions + 1))
    points = (
        [(0.5 + (number + 1) * root ** -(place + 1)) % 1 for place in range(dimensions)]
        for number in range(_SPREAD)
    )
    return (ANCHOR, *_CORNERS, *map(_architecture, points))


def _architecture(point: Sequence[float]) -> Architecture:
    """The architecture at a point of the unit cube; sizes that are products are spread by ratio."""
    width, depth, size, share, inner, table, rank = point
    hidden_size = _between(64, 384, width, 32)
    head_size = (16, 32, 64)[int(3 * size)]
    # a width that whole heads make up
    hidden_size = max(1, round(hidden_size / head_size)) * head_size
    # half have all heads, of the others some are dropped; fusing takes heads that divide the width
    most = hidden_size // head_size * min(1.0, 0.25 + 1.5 * share)
    heads = max(
        count
        for count in range(1, hidden_size)
        if count <= max(1, most) and hidden_size % count == 0
    )
    return Architecture(
        vocab_size=_between(1000, 12000, table, 1000),
        hidden_size=hidden_size,
        layers=_between(1, 12, depth, 1),
        heads=heads,
        head_size=head_size,
        intermediate_size=_between(64, 1536, inner, 32),
        max_tokens=_MAX_TOKENS,
        # half have a full table
        embedding_rank=None
        if rank < 0.5
        else max(32, round((rank - 0.25) * hidden_size / 16) * 16),
    )


def _between(least: int, most: int, share: float, step: int) -> int:
    return max(least, round(least * math.exp(share * math.log(most / least)) / step) * step)


def make_kit(
    folder: Path,
    target: TargetSpec,
    *,
    architectures: Sequence[Architecture] | None = None,
    shapes: Sequence[Shape] = SHAPES,
    workers: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> Kit:
    """Write a kit for `target` into `folder`: the first architecture is the anchor.

    Each is there in int8, and every other one in fp32 too. `progress` is told how many are exported,
    of how many. Raises what the export raises.
    """
    from codemill import __version__

    chosen = kit_architectures() if architectures is None else tuple(architectures)
    folder.mkdir(parents=True, exist_ok=True)
    items = [
        (f"{number:02}", architecture, ("int8", "fp32") if number % 2 == 0 else ("int8",))
        for number, architecture in enumerate(chosen)
    ]
    graphs: list[KitGraph] = []
    for done, made in enumerate(map_processes(partial(_export, folder), items, workers), start=1):
        graphs += made
        if progress is not None:
            progress(done, len(items))
    kit = Kit(
        schema=SCHEMA,
        codemill=__version__,
        target=KitTarget(target.name, target.provider, target.threads),
        anchor=graphs[0].id,
        shapes=tuple(shapes),
        graphs=tuple(graphs),
    )
    write_kit(folder, kit)
    return kit


def _export(folder: Path, item: tuple[str, Architecture, tuple[str, ...]]) -> list[KitGraph]:
    """One architecture's graphs, through the steps of `export/candidates.py`."""
    import torch
    from transformers import BertConfig

    from codemill.compress.models.bert import empty_student, student_config
    from codemill.export.encoder import export_encoder
    from codemill.export.fuse import fuse_encoder
    from codemill.export.quantize.dynamic import quantize_dynamic_int8

    name, architecture, precisions = item
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = empty_student(architecture, student_config(architecture, BertConfig())).eval()
    made = []
    with tempfile.TemporaryDirectory() as scratch:
        plain, fused = Path(scratch, "plain.onnx"), Path(scratch, "fused.onnx")
        export_encoder(model, plain)
        fuse_encoder(plain, fused, architecture.heads, architecture.hidden_size)
        for precision in precisions:
            path = folder / f"{name}-{precision}.onnx"
            if precision == "int8":
                quantize_dynamic_int8(fused, path, reduce_range=True)
            else:
                path.write_bytes(fused.read_bytes())
            made.append(_graph(path, precision, architecture))
    return made


def _graph(path: Path, precision: str, architecture: Architecture) -> KitGraph:
    shape: dict[str, Any] = {**architecture.to_json(), "bits": 8 if precision == "int8" else 32}
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    return KitGraph(path.stem, path.name, sha256, precision, shape)
