"""Each family's weights, by transformers' names, as the one form of `shape.py`.

Families: Llama (SmolLM2, DeepSeek-Coder), Qwen2 (Qwen2.5-Coder), StarCoder2, GPT-2 (CodeGPT), GPT-BigCode (SantaCoder,
StarCoder) and CodeGen. Tensors come through a function, from safetensors or from a module in memory.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from codemill.errors import ModelError
from codemill.export.decoder.shape import (
    Activation,
    DecoderShape,
    DecoderWeights,
    Floats,
    Layer,
    Linear,
    Norm,
    Rotary,
)

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

__all__ = ["FAMILIES", "Tensors", "of_module", "weights_of"]

Tensors = Callable[[str], Floats | None]
"""A tensor by its name in float32, or None where the model has none of this name."""

_ACTIVATIONS: Mapping[str, Activation] = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
}
_TABLED_TOKENS = 2**17
"""Longest context whose angles are kept as a table; longer ones are cut to it."""


def weights_of(config: PretrainedConfig, tensors: Tensors) -> DecoderWeights:
    """The weights of a decoder with this config; ModelError for what is not supported, by name."""
    family = str(config.model_type)
    if family not in FAMILIES:
        raise ModelError(
            f"a decoder of type {family!r} is not supported; expected {', '.join(FAMILIES)}"
        )
    return FAMILIES[family](config, tensors)


def of_module(model: PreTrainedModel) -> DecoderWeights:
    """The weights of a model in memory: a ...ForCausalLM, with or without factorised words."""
    state = model.state_dict()

    def tensor(name: str) -> Floats | None:
        value = state.get(name)
        return None if value is None else value.detach().float().numpy()

    return weights_of(model.config, tensor)


class _Read:
    """What is read alike in all families."""

    shape: DecoderShape
    rotary: Rotary | None = None
    _words = "model.embed_tokens.weight"
    _head = "lm_head.weight"
    _last_norm = "model.norm"
    _positions = ""

    def __init__(self, config: PretrainedConfig, tensors: Tensors) -> None:
        self._config: Any = config
        self._tensors = tensors

    def words(self) -> Floats:
        return self._needed(self._words)

    def widen(self) -> Floats:
        raise ModelError(f"the words of {self.shape.family!r} are not factorised")

    def positions(self) -> Floats:
        return self._needed(self._positions)

    def last_norm(self) -> Norm:
        return self._norm(self._last_norm)

    def head(self) -> Linear:
        name = self._head.removesuffix(".weight")
        return Linear(self._needed(self._head), self._tensors(f"{name}.bias"))

    def _needed(self, name: str) -> Floats:
        found = self._tensors(name)
        if found is None:
            raise ModelError(f"the model's weights lack {name!r}; save the whole model again")
        return found

    def _norm(self, name: str) -> Norm:
        return Norm(self._needed(f"{name}.weight"), self._tensors(f"{name}.bias"))

    def _linear(self, name: str) -> Linear:
        return Linear(self._needed(f"{name}.weight"), self._tensors(f"{name}.bias"))

    def _stacked(self, *names: str) -> Linear:
        """Several products of the same input as one."""
        parts = [self._linear(name) for name in names]
        biases = [part.bias for part in parts]
        bias = None if biases[0] is None else np.concatenate([b for b in biases if b is not None])
        return Linear(np.concatenate([part.weight for part in parts]), bias)

    def _turned(self, name: str) -> Linear:
        """Of GPT-2's Conv1D, whose weight is [in, out]."""
        found = self._linear(name)
        return Linear(np.ascontiguousarray(found.weight.T), found.bias)

    def _activation(self, name: str) -> Activation:
        if name not in _ACTIVATIONS:
            raise ModelError(
                f"the activation {name!r} is not supported; expected one of {', '.join(_ACTIVATIONS)}"
            )
        return _ACTIVATIONS[name]

    def _tied(self, default: bool = True) -> bool:
        return bool(getattr(self._config, "tie_word_embeddings", default))


class _Llama(_Read):
    """Llama and Qwen2."""

    def __init__(self, config: PretrainedConfig, tensors: Tensors) -> None:
        super().__init__(config, tensors)
        c = self._config
        head_size = getattr(c, "head_dim", None) or c.hidden_size // c.num_attention_heads
        rank = getattr(c, "embedding_rank", None)
        self.shape = DecoderShape(
            family=c.model_type,
            vocab_size=c.vocab_size,
            width=c.hidden_size,
            layers=c.num_hidden_layers,
            heads=c.num_attention_heads,
            kv_heads=c.num_key_value_heads or c.num_attention_heads,
            head_size=head_size,
            intermediate_size=c.intermediate_size,
            max_tokens=min(c.max_position_embeddings, _TABLED_TOKENS),
            norm="rms",
            epsilon=c.rms_norm_eps,
            activation=self._activation(c.hidden_act),
            gated=True,
            tied=self._tied() or (rank is not None and tensors(self._head) is None),
            window=self._window(),
            rank=rank,
        )
        if rank is not None:
            self._words = "model.embed_tokens.table.weight"
        self.rotary = _rotary(c, self.shape)

    def widen(self) -> Floats:
        return self._needed("model.embed_tokens.up.weight")

    def layer(self, number: int) -> Layer:
        at = f"model.layers.{number}"
        heads = (f"{at}.self_attn.{name}_proj" for name in "qkv")
        up, down = self._feed_forward(f"{at}.mlp")
        return Layer(
            norm=self._norm(f"{at}.input_layernorm"),
            qkv=self._stacked(*heads),
            out=self._linear(f"{at}.self_attn.o_proj"),
            mlp_norm=self._norm(f"{at}.post_attention_layernorm"),
            up=up,
            down=down,
        )

    def _feed_forward(self, at: str) -> tuple[Linear, Linear]:
        """What widens, and what narrows again."""
        return self._stacked(f"{at}.gate_proj", f"{at}.up_proj"), self._linear(f"{at}.down_proj")

    def _window(self) -> int | None:
        kinds = set(getattr(self._config, "layer_types", None) or ("full_attention",))
        if kinds == {"full_attention"}:
            return None
        if kinds == {"sliding_attention"}:
            return int(self._config.sliding_window)
        raise ModelError(
            f"layers with attention of several kinds ({', '.join(sorted(kinds))}) are not supported; "
            "expected the same in every layer"
        )


class _Starcoder2(_Llama):
    """LayerNorms with biases, and a feed-forward without a gate."""

    def __init__(self, config: PretrainedConfig, tensors: Tensors) -> None:
        _Read.__init__(self, config, tensors)
        c = self._config
        self.shape = DecoderShape(
            family=c.model_type,
            vocab_size=c.vocab_size,
            width=c.hidden_size,
            layers=c.num_hidden_layers,
            heads=c.num_attention_heads,
            kv_heads=c.num_key_value_heads,
            head_size=getattr(c, "head_dim", None) or c.hidden_size // c.num_attention_heads,
            intermediate_size=c.intermediate_size,
            max_tokens=min(c.max_position_embeddings, _TABLED_TOKENS),
            norm="layer",
            epsilon=c.norm_epsilon,
            activation=self._activation(c.hidden_act),
            gated=False,
            tied=self._tied(),
            window=c.sliding_window,
        )
        self.rotary = _rotary(c, self.shape)

    def _feed_forward(self, at: str) -> tuple[Linear, Linear]:
        return self._linear(f"{at}.c_fc"), self._linear(f"{at}.c_proj")


class _Gpt2(_Read):
    """Learned positions, LayerNorms, and weights that lie the other way round."""

    _words = "transformer.wte.weight"
    _positions = "transformer.wpe.weight"
    _last_norm = "transformer.ln_f"

    def __init__(self, config: PretrainedConfig, tensors: Tensors) -> None:
        super().__init__(config, tensors)
        c = self._config
        for name, expected in (
            ("scale_attn_weights", True),
            ("scale_attn_by_inverse_layer_idx", False),
        ):
            if getattr(c, name, expected) != expected:
                raise ModelError(
                    f"attention with {name}={not expected} is not supported; expected {expected}"
                )
        if getattr(c, "add_cross_attention", False):
            raise ModelError(
                "a decoder that attends to an encoder (add_cross_attention) is not supported"
            )
        self.shape = DecoderShape(
            family=c.model_type,
            vocab_size=c.vocab_size,
            width=c.n_embd,
            layers=c.n_layer,
            heads=c.n_head,
            kv_heads=1 if getattr(c, "multi_query", False) else c.n_head,
            head_size=c.n_embd // c.n_head,
            intermediate_size=c.n_inner or 4 * c.n_embd,
            max_tokens=c.n_positions,
            norm="layer",
            epsilon=c.layer_norm_epsilon,
            activation=self._activation(c.activation_function),
            gated=False,
            tied=self._tied(),
            positions=True,
        )

    def layer(self, number: int) -> Layer:
        at = f"transformer.h.{number}"
        return Layer(
            norm=self._norm(f"{at}.ln_1"),
            qkv=self._qkv(f"{at}.attn.c_attn"),
            out=self._product(f"{at}.attn.c_proj"),
            mlp_norm=self._norm(f"{at}.ln_2"),
            up=self._product(f"{at}.mlp.c_fc"),
            down=self._product(f"{at}.mlp.c_proj"),
        )

    def _product(self, name: str) -> Linear:
        return self._turned(name)

    def _qkv(self, name: str) -> Linear:
        return self._product(name)


class _GptBigCode(_Gpt2):
    """GPT-2 with one key and value for all heads; where it has several, each head's lie together."""

    def _product(self, name: str) -> Linear:
        return self._linear(name)

    def _qkv(self, name: str) -> Linear:
        qkv = self._product(name)
        if self.shape.kv_heads == 1:
            return qkv
        return _reordered(qkv, (self.shape.heads, 3), self.shape.head_size, (1, 0))


class _CodeGen(_Read):
    """Attention and feed-forward side by side; some columns of a head are turned, neighbours together."""

    _words = "transformer.wte.weight"
    _last_norm = "transformer.ln_f"
    _parts = 4
    """Its queries, values and keys lie in as many parts, one for each core of the machine it was trained on."""

    def __init__(self, config: PretrainedConfig, tensors: Tensors) -> None:
        super().__init__(config, tensors)
        c = self._config
        head_size = c.n_embd // c.n_head
        self.shape = DecoderShape(
            family=c.model_type,
            vocab_size=c.vocab_size,
            width=c.n_embd,
            layers=c.n_layer,
            heads=c.n_head,
            kv_heads=c.n_head,
            head_size=head_size,
            intermediate_size=c.n_inner or 4 * c.n_embd,
            max_tokens=c.n_positions,
            norm="layer",
            epsilon=c.layer_norm_epsilon,
            activation=self._activation(c.activation_function),
            gated=False,
            tied=self._tied(False),
            parallel=True,
        )
        turned = c.rotary_dim or head_size
        self.rotary = _angles(
            10000.0 ** (-np.arange(0, turned, 2) / turned), c.n_positions, 1.0, True
        )

    def layer(self, number: int) -> Layer:
        at = f"transformer.h.{number}"
        rows = self.shape.query_size // self._parts
        packed = self._linear(f"{at}.attn.qkv_proj")
        # of each part: queries, values, keys
        qvk = _reordered(packed, (self._parts, 3), rows, (1, 0)).weight
        query, value, key = np.split(qvk, 3)
        return Layer(
            norm=self._norm(f"{at}.ln_1"),
            qkv=Linear(np.concatenate([query, key, value])),
            out=self._linear(f"{at}.attn.out_proj"),
            mlp_norm=None,
            up=self._linear(f"{at}.mlp.fc_in"),
            down=self._linear(f"{at}.mlp.fc_out"),
        )


def _reordered(
    packed: Linear, groups: tuple[int, int], rows: int, order: tuple[int, int]
) -> Linear:
    """Rows that lie in groups of groups, in another order."""

    def turn(values: Floats) -> Floats:
        parts = values.reshape(*groups, rows, *values.shape[1:])
        return np.ascontiguousarray(
            parts.transpose(*order, *range(2, parts.ndim)).reshape(values.shape)
        )

    return Linear(turn(packed.weight), None if packed.bias is None else turn(packed.bias))


def _rotary(config: Any, shape: DecoderShape) -> Rotary:
    """The angles that transformers takes for this config; ModelError where they change with the text's length."""
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    scaling = getattr(config, "rope_scaling", None) or {}
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    if kind in ("dynamic", "longrope") or kind not in ROPE_INIT_FUNCTIONS:
        known = [name for name in ROPE_INIT_FUNCTIONS if name not in ("dynamic", "longrope")]
        raise ModelError(
            f"rotary positions of type {kind!r} are not supported; expected one of {', '.join(known)}"
        )
    frequencies, factor = ROPE_INIT_FUNCTIONS[kind](config, "cpu")
    return _angles(frequencies.double().numpy(), shape.max_tokens, float(factor), False)


def _angles(frequencies: Any, tokens: int, factor: float, interleaved: bool) -> Rotary:
    # as the libraries do, in single precision: far from the start, exact angles would be other ones
    places = np.arange(min(tokens, _TABLED_TOKENS), dtype=np.float32)
    angles = np.outer(places, np.asarray(frequencies, dtype=np.float32))
    return Rotary(
        (np.cos(angles) * factor).astype(np.float32),
        (np.sin(angles) * factor).astype(np.float32),
        tuple(map(float, frequencies)),
        interleaved,
    )


FAMILIES: Mapping[str, Callable[[Any, Tensors], DecoderWeights]] = {
    "llama": _Llama,
    "qwen2": _Llama,
    "starcoder2": _Starcoder2,
    "gpt2": _Gpt2,
    "gpt_bigcode": _GptBigCode,
    "codegen": _CodeGen,
}
"""By config.model_type."""
