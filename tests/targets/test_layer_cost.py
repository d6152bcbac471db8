"""What the parts of a model cost: together, what the search's formulas say of the whole."""

from __future__ import annotations

from dataclasses import replace

import pytest

from codemill.compress.architecture import Architecture
from codemill.compress.search import decoder
from codemill.compress.search.cost import gflops, parameters
from codemill.targets.layer_cost import parts_of

ENCODER = Architecture(8000, 384, 2, 6, 32, 1024, 256, 64)
DECODER = Architecture(4096, 192, 3, 6, 32, 512, 256, family="llama", kv_heads=2)


@pytest.mark.parametrize("rank", [64, None])
def test_an_encoders_parts_add_up_to_the_whole(rank: int | None) -> None:
    shape = replace(ENCODER, embedding_rank=rank)
    parts = parts_of(shape.to_json(), 128)
    assert parts is not None
    assert sum(part.parameters for part in parts) == parameters(shape)
    assert sum(part.gflops for part in parts) == pytest.approx(gflops(shape, 128))
    assert [(part.kind, part.layer) for part in parts] == [
        ("embedding", None),
        *[(kind, layer) for layer in (1, 2) for kind in ("attention", "feed-forward")],
    ]


@pytest.mark.parametrize("rank", [48, None])
def test_a_decoders_parts_add_up_to_the_whole(rank: int | None) -> None:
    shape = replace(DECODER, embedding_rank=rank)
    parts = parts_of(shape.to_json(), 100)
    assert parts is not None
    assert sum(part.parameters for part in parts) == decoder.parameters(shape)
    # its own key is one of those that a token attends to; the angles are no part of the model
    token = decoder.gflops_per_token(shape, 99) - shape.head_size / 1e9
    assert sum(part.gflops for part in parts) == pytest.approx(token)
    assert parts[-1].kind == "head"


@pytest.mark.parametrize(
    "change",
    [{"family": "t5"}, {"layers": 10**6}, {"heads": 0}, {"hidden_size": "wide"}, {"layers": True}],
)
def test_of_what_it_does_not_know_it_says_nothing(change: dict[str, object]) -> None:
    assert parts_of({**ENCODER.to_json(), **change}, 128) is None
    assert parts_of({"layers": 1}, 128) is None
