"""What the frozen layers make of a text is computed once, and training from it is the same training."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.compress.conftest import tiny_bert
from tests.compress.models.families import FAMILIES, LAYERS, noisy
from transformers import LlamaConfig, LlamaModel

from codemill.compress.freeze import cache
from codemill.compress.freeze.cache import (
    FrozenStates,
    Kind,
    TooLarge,
    clear,
    distinct,
    frozen_states,
    needed_bytes,
)
from codemill.compress.freeze.freeze import bottom_of, freeze_bottom
from codemill.compress.freeze.resume import computed_once, starting_from
from codemill.compress.models.pooling import embed, pad
from codemill.compress.models.roberta import as_bert
from codemill.compress.recipe import Finetune

FROZEN = 2
NAMES = ["bert", "roberta", "modernbert", "t5", "gated-t5", "llama"]


def encoder_of(name: str) -> Any:
    if name == "bert":
        return tiny_bert(300)
    if name == "llama":
        config = LlamaConfig(
            vocab_size=300,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=LAYERS,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=60,
        )
        return noisy(LlamaModel(config))
    model: Any = noisy(FAMILIES[name](300))
    if name == "roberta":
        return as_bert(model).eval()
    return model.encoder.eval() if name.endswith("t5") else model


def texts(count: int = 12, seed: int = 0) -> list[np.ndarray]:
    chance = np.random.default_rng(seed)
    lengths = chance.integers(3, 41, count)
    return [chance.integers(3, 290, length).astype(np.uint16) for length in lengths]


def quiet(fraction: float, message: str) -> None:
    pass


def kept(model: Any, folder: Path, some: list[np.ndarray], kind: Kind = "fp32") -> FrozenStates:
    return frozen_states(model, FROZEN, distinct(some), kind, folder, False, quiet)


def gradients(model: Any, some: list[np.ndarray]) -> dict[str, torch.Tensor]:
    """Of the trained parameters, of a loss in which every embedding counts."""
    model.zero_grad()
    found = embed(model, *pad(some))
    weights = torch.randn(found.shape, generator=torch.Generator().manual_seed(1))
    (found * weights).sum().backward()
    return {n: v.grad.clone() for n, v in model.named_parameters() if v.grad is not None}


def ran(model: Any) -> list[int]:
    """Filled with the number of texts of each run of the lowest layer from here on."""
    seen: list[int] = []
    _, stack = bottom_of(model)
    stack[0].register_forward_hook(lambda module, inputs, output: seen.append(len(inputs[0])))
    return seen


@pytest.mark.parametrize("name", NAMES)
def test_gradients_from_kept_states_are_those_of_plain_frozen_training(
    name: str, tmp_path: Path
) -> None:
    model, some = encoder_of(name), texts()
    freeze_bottom(model, FROZEN)
    plain = gradients(model, some)
    states = kept(model, tmp_path, some)
    seen = ran(model)
    with starting_from(model, FROZEN, states):
        found = gradients(model, some)
    assert not seen, "no frozen layer has run"
    trained = {name for name, value in model.named_parameters() if value.requires_grad}
    assert plain.keys() == found.keys()
    assert plain.keys() <= trained
    largest = max(float(value.abs().max()) for value in plain.values())
    assert largest > 1e-3
    apart = max(float((plain[name] - found[name]).abs().max()) for name in plain)
    assert apart < 1e-5 * max(1.0, largest)


@pytest.mark.parametrize("name", NAMES)
def test_a_trained_layer_counts_at_once_and_afterwards_the_encoder_is_whole(
    name: str, tmp_path: Path
) -> None:
    model, some = encoder_of(name), texts()
    freeze_bottom(model, FROZEN)
    with starting_from(model, FROZEN, kept(model, tmp_path, some)), torch.no_grad():
        for value in model.parameters():
            if value.requires_grad:
                value.mul_(1.1)
        inside = embed(model, *pad(some))
    seen = ran(model)
    with torch.no_grad():
        after = embed(model, *pad(some))
    assert seen
    assert (inside - after).abs().max() < 1e-5


def test_a_different_text_never_hits_and_goes_through_the_frozen_layers(tmp_path: Path) -> None:
    model, some = encoder_of("bert"), texts()
    states = kept(model, tmp_path, some)
    longest = max(some, key=len)
    changed = longest.copy()
    changed[5] += 1
    for other in (changed, longest[:-1], np.append(longest[:-1], 7)):
        assert states.of(*pad([other])) is None
        with torch.no_grad():
            expected = embed(model, *pad([other, some[0]]))
            with starting_from(model, FROZEN, states):
                found = embed(model, *pad([other, some[0]]))
        assert torch.equal(found, expected)
    assert states.of(*pad([longest])) is not None
    ids, mask = pad([longest])
    mask[0, 0] = 0
    assert states.of(ids, mask) is None, "a token that is hidden makes another text"


def test_only_real_tokens_are_kept_and_each_text_once(tmp_path: Path) -> None:
    model, some = encoder_of("bert"), texts()
    states = kept(model, tmp_path, [*some, *some], "fp16")
    tokens = sum(map(len, some))
    assert states.size_bytes == tokens * 32 * 2 == (tmp_path / "frozen.bin").stat().st_size
    assert states.size_bytes == needed_bytes(some, 32, "fp16")
    assert isinstance(states.values, np.memmap)


@pytest.mark.parametrize(("kind", "within"), [("fp32", 1e-5), ("fp16", 4e-3), ("bf16", 3e-2)])
def test_states_are_those_of_the_layer_to_the_precision_they_are_kept_in(
    kind: Kind, within: float, tmp_path: Path
) -> None:
    model, some = encoder_of("bert"), texts()
    ids, mask = pad(some)
    with torch.no_grad():
        every = model(input_ids=ids, attention_mask=mask, output_hidden_states=True)
    found = kept(model, tmp_path, some, kind).of(ids, mask)
    assert found is not None
    expected = every.hidden_states[FROZEN] * mask.unsqueeze(-1)
    assert (found - expected).abs().max() < within * expected.abs().max()


def test_states_that_their_kind_cannot_hold_are_kept_in_fp32(tmp_path: Path) -> None:
    model, some = encoder_of("t5"), texts()
    with torch.no_grad():
        model.embed_tokens.weight.mul_(1e6)
    with pytest.raises(TooLarge, match="cannot be kept as fp16"):
        kept(model, tmp_path, some, "fp16")
    settings = Finetune(cache="fp16")
    with computed_once(model, FROZEN, some, 99, settings, tmp_path, False, quiet) as found:
        assert found.kind == "fp32"


def killed_after(texts_done: int) -> Callable[[Any, Any, Any], None]:
    """A hook of a layer that ends the run once so many texts went through it."""
    seen = 0

    def hook(module: Any, inputs: Any, output: Any) -> None:
        nonlocal seen
        seen += len(inputs[0])
        if seen > texts_done:
            raise KeyboardInterrupt

    return hook


def test_a_run_that_is_killed_goes_on_with_the_texts_that_are_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache, "_MARK_EVERY_S", 0.0)
    monkeypatch.setattr(cache, "_TOKENS_PER_RUN", 40)
    model, some = encoder_of("bert"), texts(20)
    whole = kept(model, tmp_path / "whole", some)
    hook = bottom_of(model)[1][0].register_forward_hook(killed_after(10))
    with pytest.raises(KeyboardInterrupt):
        kept(model, tmp_path / "killed", some)
    hook.remove()
    # what came after the mark may be anything
    with (tmp_path / "killed/frozen.bin").open("ab") as file:
        file.write(b"\xff" * 1000)
    seen = ran(model)
    found = kept(model, tmp_path / "killed", some)
    assert 0 < sum(seen) < 20
    np.testing.assert_array_equal(found.values, whole.values)
    seen.clear()
    kept(model, tmp_path / "killed", some)
    assert not seen, "what is finished is not computed again"


def test_a_run_killed_before_its_first_mark_leaves_none_of_another_model(tmp_path: Path) -> None:
    model, some = encoder_of("bert"), texts()
    first = np.array(kept(model, tmp_path, some).values)
    weight = bottom_of(model)[1][1].output.dense.bias
    with torch.no_grad():
        weight.add_(0.1)
    hook = bottom_of(model)[1][FROZEN - 1].register_forward_hook(killed_after(0))
    with pytest.raises(KeyboardInterrupt):
        kept(model, tmp_path, [*some, *texts(20)])
    hook.remove()
    # what was written in its stead is as long as the mark would have it
    (tmp_path / "frozen.bin").write_bytes(b"\x01" * first.nbytes)
    with torch.no_grad():
        weight.sub_(0.1)
    np.testing.assert_allclose(kept(model, tmp_path, some).values, first, atol=1e-5)


def test_what_fell_back_to_fp32_goes_on_in_fp32_after_a_kill(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache, "_MARK_EVERY_S", 0.0)
    monkeypatch.setattr(cache, "_TOKENS_PER_RUN", 40)
    model, some, settings = encoder_of("t5"), texts(20), Finetune(cache="fp16")
    with torch.no_grad():
        model.embed_tokens.weight.mul_(1e6)
    asked = (model, FROZEN, some, 99, settings, tmp_path, False, quiet)
    with pytest.raises(KeyboardInterrupt), computed_once(*asked):
        raise KeyboardInterrupt
    seen = ran(model)
    with computed_once(*asked) as found:
        assert found.kind == "fp32"
    assert not seen, "what was finished is not computed again, and not destroyed"


@pytest.mark.parametrize("what", ["weights", "texts", "layers", "kind", "cut off"])
def test_what_was_kept_of_anything_else_is_computed_anew(what: str, tmp_path: Path) -> None:
    model, some = encoder_of("bert"), texts()
    kept(model, tmp_path, some)
    kind: Kind = "fp32"
    layers = FROZEN
    if what == "weights":
        with torch.no_grad():
            bottom_of(model)[1][1].output.dense.bias.add_(0.1)
    elif what == "texts":
        some[3][0] += 1
    elif what == "layers":
        layers = 1
    elif what == "kind":
        kind = "fp16"
    else:
        with (tmp_path / "frozen.bin").open("r+b") as file:
            file.truncate(100)
    seen = ran(model)
    found = frozen_states(model, layers, distinct(some), kind, tmp_path, False, quiet)
    assert sum(seen) == len(some)
    ids, mask = pad(some)
    with torch.no_grad():
        every = model(input_ids=ids, attention_mask=mask, output_hidden_states=True)
    states = found.of(ids, mask)
    assert states is not None
    assert (states - every.hidden_states[layers] * mask.unsqueeze(-1)).abs().max() < 0.05


@pytest.mark.parametrize(
    ("settings", "layers", "runs", "why_not"),
    [
        ({}, FROZEN, 60, "cache is none"),
        ({"cache": "fp16"}, 0, 60, "no layer is frozen"),
        ({"cache": "fp16"}, None, 60, "no layer is frozen"),
        ({"cache": "fp16"}, FROZEN, 12, "each text is run 1.0 times"),
        ({"cache": "fp16", "cache_gb": 1e-6}, FROZEN, 60, "cache_gb allows 1e-06"),
    ],
)
def test_nothing_is_kept_where_it_is_not_asked_for_not_worth_it_or_too_large(
    settings: dict[str, Any], layers: int | None, runs: int, why_not: str, tmp_path: Path
) -> None:
    model, some = encoder_of("bert"), texts()
    seen = ran(model)
    with computed_once(
        model, layers, some, runs, Finetune(**settings), tmp_path, False, quiet
    ) as found:
        assert found.kind is None
        assert why_not in str(found.why_not)
        embed(model, *pad(some))
    assert sum(seen) == len(some)
    assert not list(tmp_path.iterdir())


def test_what_is_kept_goes_with_the_training_and_stays_for_the_next_where_that_fails(
    tmp_path: Path,
) -> None:
    model, some, settings = encoder_of("bert"), texts(), Finetune(cache="fp16")
    with (
        pytest.raises(KeyboardInterrupt),
        computed_once(model, FROZEN, some, 60, settings, tmp_path, False, quiet),
    ):
        raise KeyboardInterrupt
    assert (tmp_path / "frozen.bin").is_file()
    seen = ran(model)
    with computed_once(model, FROZEN, some, 60, settings, tmp_path, False, quiet) as found:
        assert (found.kind, found.texts) == ("fp16", len(some))
        assert found.size_bytes == (tmp_path / "frozen.bin").stat().st_size
    assert not seen
    assert not list(tmp_path.iterdir())
    clear(tmp_path)


def test_what_is_read_in_another_way_goes_through_the_whole_encoder(tmp_path: Path) -> None:
    model, some = encoder_of("bert"), texts()
    ids, mask = pad(some)
    states = kept(model, tmp_path, some)
    with torch.no_grad():
        words = model.embeddings.word_embeddings(ids)
        expected = model(inputs_embeds=words, attention_mask=mask).last_hidden_state
        with starting_from(model, FROZEN, states):
            found = model(inputs_embeds=words, attention_mask=mask).last_hidden_state
    assert torch.equal(found, expected)
