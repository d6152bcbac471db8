"""Every family's matrices, rounded on text: found by name, kept in a file, and better than rounding each by itself."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from transformers import PreTrainedModel

from codemill.export.decoder.by_text import rounded_by_text
from codemill.export.decoder.families import of_module
from codemill.export.decoder.rounding import Rounding, read_rounding, write_rounding
from codemill.export.decoder.write import WEIGHTS, write_decoder

from .test_write import whole


def pieces() -> list[np.ndarray]:
    generator = np.random.default_rng(0)
    return [generator.integers(0, 300, size=24) for _ in range(6)]


def test_all_matrices_of_every_family_are_rounded(decoder: PreTrainedModel, tmp_path: Path) -> None:
    weights = of_module(decoder)
    rounded = rounded_by_text(weights, Rounding(4), pieces(), tmp_path, 1)
    layers = {
        f"{n}/{name}" for n in range(weights.shape.layers) for name in ("qkv", "out", "up", "down")
    }
    assert set(rounded) - {"head"} == layers
    assert ("head" in rounded) is not weights.shape.tied
    rounding = Rounding(4, ("down", "words"), rounded)
    write_rounding(tmp_path / "rounded.safetensors", rounding)
    read = read_rounding(tmp_path / "rounded.safetensors")
    assert (read.bits, read.eight) == (4, ("down", "words"))
    usable = {name for name in rounded if read.rounded(name) is not None}
    assert usable == {name for name in rounded if not name.endswith("/down")}
    assert [read.bits_of(name) for name in ("0/down", "exit/0/down", "words", "0/up")] == [
        8,
        4,
        8,
        4,
    ]
    again = read.blocks
    assert set(again) == set(rounded)
    write_decoder(weights, tmp_path / "a", Rounding(4, blocks=rounded))
    write_decoder(weights, tmp_path / "b", Rounding(4, blocks=again))
    assert (tmp_path / "a" / WEIGHTS).read_bytes() == (tmp_path / "b" / WEIGHTS).read_bytes()
    write_decoder(weights, tmp_path / "plain", Rounding(4))
    write_decoder(weights, tmp_path / "exact", Rounding(32))
    exact, found, plain = (
        whole(tmp_path / name, weights.shape).ravel() for name in ("exact", "a", "plain")
    )
    # the same text that it was rounded by is not what is run here
    assert np.corrcoef(found, exact)[0, 1] > 0.9
    assert np.square(found - exact).mean() < 1.5 * np.square(plain - exact).mean()
