"""A bundle with exits against the same decisions made in torch: leaving, giving up, what fills the layers skipped."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch.nn import functional
from transformers import LlamaForCausalLM

import codemill
from codemill.export.decoder.bundle import Prompting, write_completion
from codemill.export.decoder.families import of_module
from codemill.export.decoder.shape import Adapter, Exits, Linear, Norm
from codemill.runtime import Completer

from .conftest import small_decoder

AFTER = (1, 2)
PROMPT = "def add(a, b):\n    return "
COUNT = 24


def exits(seed: int, size: int = 64) -> Exits:
    chance = np.random.default_rng(seed)

    def draw(*shape: int, std: float = 0.2) -> Any:
        return chance.normal(scale=std, size=shape).astype(np.float32)

    adapters = [
        Adapter(
            layer,
            1 + draw(size),
            draw(size),
            Norm(1 + draw(size)),
            Linear(draw(96, size)),
            Linear(draw(size, 48)),
        )
        for layer in AFTER
    ]
    return Exits(tuple(adapters), Linear(draw(3, size, std=1.0), draw(3, std=0.5)))


def tokenizer() -> Tokenizer:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    found = Tokenizer(models.BPE({token: n for n, token in enumerate(alphabet)}, []))
    found.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return found


def written(folder: Path, found: Exits, bounds: Any, precision: str = "fp32") -> Path:
    write_completion(
        of_module(small_decoder("llama")),
        folder,
        name="exits",
        tokenizer_json=tokenizer().to_str(),
        prompting=Prompting(),
        max_tokens=128,
        precisions=(precision,),
        exits=found,
        bounds=bounds,
    )
    return folder


class InTorch:
    """SEC's loop, a token at a time, over transformers' own layers and cache."""

    def __init__(self, found: Exits, bounds: Any) -> None:
        model: Any = small_decoder("llama")
        assert isinstance(model, LlamaForCausalLM)
        self.model, self.exits, self.bounds = model, found, bounds

    def adapted(self, adapter: Adapter, h: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x = h * torch.from_numpy(adapter.scale) + torch.from_numpy(adapter.shift)
        normed = functional.rms_norm(
            x, (x.shape[-1],), torch.from_numpy(adapter.norm.weight), self.model.config.rms_norm_eps
        )
        gate, up = (normed @ torch.from_numpy(adapter.up.weight).T).chunk(2, -1)
        x = x + functional.silu(gate) * up @ torch.from_numpy(adapter.down.weight).T
        state = self.model.model.norm(x)
        controller = self.exits.controller
        assert controller.bias is not None
        chosen = state @ torch.from_numpy(controller.weight).T + torch.from_numpy(controller.bias)
        return state, chosen.softmax(-1)

    def run_layers(
        self, h: torch.Tensor, first: int, last: int, past: Any, at: int
    ) -> torch.Tensor:
        """Layers [first, last) over tokens from `at` on; their keys and values go into `past`."""
        places = torch.arange(at, at + h.shape[1])[None]
        angles = self.model.model.rotary_emb(h, places)
        count = h.shape[1]
        mask = torch.ones(count, at + count, dtype=torch.bool).tril(at)[None, None]
        for number in range(first, last):
            h = self.model.model.layers[number](
                h,
                attention_mask=mask,
                position_ids=places,
                past_key_values=past,
                use_cache=True,
                cache_position=places[0],
                position_embeddings=angles,
            )
        return h

    def skip(self, h: torch.Tensor, first: int, past: Any, at: int) -> None:
        """Keys and values of the layers from `first`, each from the same hidden state."""
        from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

        cos, sin = self.model.model.rotary_emb(h, torch.tensor([[at]]))
        for number in range(first, len(self.model.model.layers)):
            layer = self.model.model.layers[number]
            normed = layer.input_layernorm(h)
            attention = layer.self_attn
            shape = (1, 1, -1, attention.head_dim)
            key = attention.k_proj(normed).view(shape).transpose(1, 2)
            value = attention.v_proj(normed).view(shape).transpose(1, 2)
            key, _ = apply_rotary_pos_emb(key, key, cos, sin)
            past.update(key, value, number)

    @torch.inference_mode()
    def complete(self, ids: list[int]) -> tuple[list[int], list[int], str]:
        from transformers import DynamicCache

        past, model = DynamicCache(), self.model
        depth = len(model.model.layers)
        state = self.run_layers(model.model.embed_tokens(torch.tensor([ids])), 0, depth, past, 0)
        token = int(model.lm_head(model.model.norm(state[:, -1:])).argmax())
        tokens, layers = [token], [depth]
        while len(tokens) < COUNT:
            at = len(ids) + len(tokens) - 1
            h = model.model.embed_tokens(torch.tensor([[token]]))
            start = 0
            for adapter, (leave, stop) in zip(self.exits.adapters, self.bounds, strict=True):
                h = self.run_layers(h, start, adapter.layer, past, at)
                start = adapter.layer
                state, chances = self.adapted(adapter, h)
                decision = int(chances.argmax())
                bound = (stop, leave, None)[decision]
                if bound is not None and float(chances[0, 0, decision]) >= bound:
                    if decision == 0:
                        return tokens, layers, "uncertain"
                    self.skip(h, start, past, at)
                    break
            else:
                state = model.model.norm(self.run_layers(h, start, depth, past, at))
                start = depth
            token = int(model.lm_head(state).argmax())
            tokens.append(token)
            layers.append(start)
        return tokens, layers, "length"


@pytest.mark.parametrize(
    "bounds", [((0.3, None), (0.4, None)), ((0.4, 0.6), (None, 0.9)), ((None, None),) * 2]
)
@pytest.mark.parametrize("seed", range(4))
def test_a_bundle_decides_as_torch_does(tmp_path: Path, seed: int, bounds: Any) -> None:
    found = exits(seed)
    wanted = InTorch(found, bounds).complete(tokenizer().encode(PROMPT).ids)
    with codemill.load(written(tmp_path / "bundle", found, bounds)) as model:
        assert isinstance(model, Completer)
        result = model.complete(PROMPT, max_tokens=COUNT, drafts=False)
        assert (list(result.tokens), list(result.layers_used), result.finish_reason) == wanted
        whole = model.complete(PROMPT, max_tokens=COUNT, exits=False)
        assert set(whole.layers_used) == {3}


def test_some_leave_at_each_exit_and_some_are_given_up(tmp_path: Path) -> None:
    """Else the test above would show little."""
    used: set[int] = set()
    reasons = set()
    for seed in range(4):
        for bounds in (((0.3, None), (0.4, None)), ((0.4, 0.6), (None, 0.9))):
            _, layers, reason = InTorch(exits(seed), bounds).complete(
                tokenizer().encode(PROMPT).ids
            )
            used.update(layers)
            reasons.add(reason)
    assert used == {1, 2, 3}
    assert reasons == {"length", "uncertain"}


def test_an_adapter_that_changes_nothing_is_the_last_norm(tmp_path: Path) -> None:
    import onnxruntime

    found = exits(0)
    same = [
        Adapter(
            a.layer,
            np.ones_like(a.scale),
            np.zeros_like(a.shift),
            a.norm,
            a.up,
            Linear(np.zeros_like(a.down.weight)),
        )
        for a in found.adapters
    ]
    folder = written(tmp_path, Exits(tuple(same), found.controller), ((0.5, 0.5),) * 2)
    hidden = np.random.default_rng(0).normal(size=(1, 3, 64)).astype(np.float32)
    path = folder / "variants/cpu-fp32/exit-0.onnx"
    opened = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    state, decision = opened.run(["state", "decision"], {"hidden": hidden})
    model: Any = small_decoder("llama")
    with torch.inference_mode():
        wanted = model.model.norm(torch.from_numpy(hidden)).numpy()
    np.testing.assert_allclose(state, wanted, atol=1e-5)
    np.testing.assert_allclose(decision.sum(-1), 1, atol=1e-5)


def test_exits_run_with_rounded_weights(tmp_path: Path) -> None:
    found = exits(1)
    bounds = ((0.3, None), (0.3, None))
    with codemill.load(written(tmp_path / "bundle", found, bounds, "int4")) as model:
        assert isinstance(model, Completer)
        assert min(model.complete(PROMPT, max_tokens=COUNT).layers_used) < 3


@pytest.mark.parametrize("seed", range(3))
def test_speculation_says_what_full_depth_says(tmp_path: Path, seed: int) -> None:
    with codemill.load(written(tmp_path / "bundle", exits(seed), ((None, None),) * 2)) as model:
        assert isinstance(model, Completer)
        whole = model.complete(PROMPT, max_tokens=COUNT, exits=False, drafts=False)
        found = model.complete(PROMPT, max_tokens=COUNT, speculate=True, drafts=False)
        assert found.tokens == whole.tokens
        assert set(found.layers_used) == {3}
        drawn = {"temperature": 0.8, "seed": seed, "drafts": False, "max_tokens": COUNT}
        again = model.complete(PROMPT, speculate=True, **drawn)
        assert again.tokens == model.complete(PROMPT, exits=False, **drawn).tokens


def test_what_an_exit_is_right_about_is_taken(tmp_path: Path) -> None:
    decoder: Any = copy.deepcopy(small_decoder("llama"))
    last = decoder.model.layers[-1]
    with torch.no_grad():
        # the last layer adds nothing, and so the exit before it is always right
        last.self_attn.o_proj.weight.zero_()
        last.mlp.down_proj.weight.zero_()
    width = decoder.config.hidden_size
    ones, none = np.ones(width, np.float32), np.zeros((width, 48), np.float32)
    norm = Norm(ones)
    adapter = Adapter(
        2, ones, 0 * ones, norm, Linear(np.zeros((96, width), np.float32)), Linear(none)
    )
    write_completion(
        of_module(decoder),
        tmp_path,
        name="sure",
        tokenizer_json=tokenizer().to_str(),
        prompting=Prompting(),
        max_tokens=128,
        precisions=("fp32",),
        exits=Exits((adapter,), Linear(np.zeros((3, width), np.float32), np.zeros(3, np.float32))),
        bounds=((None, None),),
    )
    with codemill.load(tmp_path) as model:
        assert isinstance(model, Completer)
        whole = model.complete(PROMPT, max_tokens=COUNT, exits=False, drafts=False)
        found = model.complete(PROMPT, max_tokens=COUNT, speculate=True, drafts=False)
        assert found.tokens == whole.tokens
        # the first drafts are of two tokens each, and every one of them is right
        assert found.drafted >= 6


def test_speculation_needs_exits(tmp_path: Path) -> None:
    write_completion(
        of_module(small_decoder("llama")),
        tmp_path,
        name="none",
        tokenizer_json=tokenizer().to_str(),
        prompting=Prompting(),
        max_tokens=128,
    )
    with codemill.load(tmp_path) as model:
        assert isinstance(model, Completer)
        with pytest.raises(ValueError, match="bundle 'none' has none"):
            model.complete(PROMPT, speculate=True)
