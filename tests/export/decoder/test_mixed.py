"""Which matrices stay at 8 bits: none where nothing is lost, more where more is, until the loss is what is allowed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from transformers import PreTrainedModel

from codemill.export.decoder import mixed
from codemill.export.decoder.families import of_module
from codemill.export.decoder.mixed import round_decoder
from codemill.export.decoder.rounding import Rounding
from codemill.export.decoder.running import text_loss
from codemill.export.decoder.write import write_decoder

from .test_rounding import pieces


@pytest.mark.parametrize("segments", [1, 2])
def test_the_loss_of_graphs_is_that_of_transformers(
    decoder: PreTrainedModel, tmp_path: Path, segments: int
) -> None:
    import torch

    weights = of_module(decoder)
    after = range(1, segments)
    write_decoder(weights, tmp_path, Rounding(32), after, max_tokens=24)
    found = text_loss(tmp_path, weights.shape, after, pieces(), 1)
    ids = torch.tensor(np.stack(pieces()))
    with torch.inference_mode():
        expected = float(decoder(input_ids=ids, labels=ids).loss)
    assert found == pytest.approx(expected, rel=1e-4)


def test_a_real_decoder_gets_what_it_asks_for(decoder: PreTrainedModel, tmp_path: Path) -> None:
    weights = of_module(decoder)
    said: list[str] = []
    found = round_decoder(
        weights,
        4,
        pieces(),
        pieces(),
        1e6,
        folder=tmp_path,
        threads=1,
        report=lambda _, what: said.append(what),
    )
    assert found.eight == ()
    assert found.bits == 4
    assert any(found.rounded(name) for name in found.blocks)
    assert said[-1].endswith("4 bits")
    assert not list(tmp_path.iterdir())
    assert round_decoder(weights, 32, pieces()) == Rounding(32)
    # no text to round by, and none to judge by
    assert round_decoder(weights, 4, ()) == Rounding(4)
    with pytest.raises(ValueError, match="there are none"):
        round_decoder(weights, 4, (), (), 0.0)


@pytest.mark.parametrize("count", [0, 1, 2, None])
def test_what_wins_most_a_byte_comes_first(
    monkeypatch: pytest.MonkeyPatch, decoder: PreTrainedModel, count: int | None
) -> None:
    shape = of_module(decoder).shape
    rates = {"words": 1, "head": 1.5, "qkv": 20, "out": 2, "up": 3, "down": 40}
    # of each kind, what it costs at 4 bits: by its size, so that the order is the same for every family
    costs = {kind: rates[kind] * size for kind, size in mixed._elements(shape).items()}
    total = sum(costs.values())
    order = sorted(costs, key=lambda kind: -rates[kind])

    def of(_: object, rounding: Rounding) -> float:
        lost = 0 if rounding.bits == 8 else sum(costs[k] for k in costs if k not in rounding.eight)
        return 1 + lost / total

    monkeypatch.setattr(mixed._Losses, "of", of)
    kept = order[:count]
    # what is lost with just so many kept, and for the last one a loss that cannot be met
    allowed = 1e-12 if count is None else of(None, Rounding(4, tuple(kept))) - 1 + 1e-9
    losses = mixed._Losses.__new__(mixed._Losses)
    found = mixed._mixed(
        Rounding(4), losses, shape, float(np.expm1(allowed)), None, lambda *_: None
    )
    assert found.eight == tuple(kept)


def test_what_has_no_room_stays_at_4_bits(
    monkeypatch: pytest.MonkeyPatch, decoder: PreTrainedModel
) -> None:
    shape = of_module(decoder).shape
    sizes = mixed._elements(shape)
    asked: list[Rounding] = []

    def of(_: object, rounding: Rounding) -> float:
        asked.append(rounding)
        lost = 0 if rounding.bits == 8 else sum(sizes[k] for k in sizes if k not in rounding.eight)
        return 1 + lost / sum(sizes.values())

    monkeypatch.setattr(mixed._Losses, "of", of)
    losses = mixed._Losses.__new__(mixed._Losses)
    # half a byte of each weight more, and of each block half a byte of zero point
    least = min(sizes.values())
    room = least // 2 + least // 2 // 64 + 1
    found = mixed._mixed(Rounding(4), losses, shape, 0.0, room, lambda *_: None)
    assert [sizes[kind] for kind in found.eight] == [least]
    assert all(sizes[kind] <= 2 * room for item in asked for kind in item.eight)
    assert mixed._mixed(Rounding(4), losses, shape, 0.0, 0, lambda *_: None).eight == ()
