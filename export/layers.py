"""Some consecutive layers of an encoder as an encoder of its own: what a segment of a bundle with exits is made of,
and what training starts from where the layers below are frozen (compress/freeze).

A part shares its weights with the whole, and runs the family's own forward pass, so that masks, positions and
norms are the library's and not copied here. Where a family normalises after its last layer (ModernBERT, T5), a part
gives its hidden states normalised so to the head, and raw to the part after it. A Llama's decoder (LlamaModel) can be
divided as well.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

from codemill.errors import ModelError

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedModel

__all__ = ["HIDDEN", "LAST", "NEXT_HIDDEN", "final_norm", "layers_in", "part_of", "states_after"]

LAST = "last_hidden_state"
"""What a part gives to pool: its hidden states, normalised as the last layer's are."""
HIDDEN = "hidden"
"""What the first part hands on, and what every later one takes: [batch, tokens, width]."""
NEXT_HIDDEN = "next_hidden"
"""What a later part hands on."""
_FINAL_NORMS = {
    "bert": None,
    "modernbert": "final_norm",
    "t5": "final_layer_norm",
    "llama": "norm",
}
_TAKE_HIDDEN_STATES = ("t5", "llama")
"""In the place of words, as they are."""


def states_after(
    model: PreTrainedModel, ids: Tensor, mask: Tensor, layers: tuple[int, ...]
) -> list[Tensor]:
    """Hidden states [batch, tokens, width] after these layers (counted from 1), and after all of them, last.

    Each is normalised as if its layer were the last. ids, mask: int64 [batch, tokens].
    """
    found = model(input_ids=ids, attention_mask=mask, output_hidden_states=True)
    norm = final_norm(model)
    states = [found.hidden_states[layer] for layer in layers]
    return [state if norm is None else norm(state) for state in states] + [found.last_hidden_state]


def final_norm(model: PreTrainedModel) -> nn.Module | None:
    """What normalises after the last layer; ModelError for a family without parts."""
    family = str(model.config.model_type)
    if family not in _FINAL_NORMS:
        raise ModelError(
            f"an encoder of type {family!r} cannot be divided at exits; expected {', '.join(_FINAL_NORMS)}"
        )
    name = _FINAL_NORMS[family]
    return None if name is None else getattr(model, name)


def layers_in(model: PreTrainedModel) -> int:
    """How many layers an encoder has; ModelError for a family without parts."""
    final_norm(model)
    return len(_layers(model))


def _layers(model: Any) -> Any:
    family = model.config.model_type
    if family == "bert":
        return model.encoder.layer
    return model.block if family == "t5" else model.layers


def part_of(model: PreTrainedModel, start: int, end: int) -> PreTrainedModel:
    """The layers [start, end) of `model`, a view that leaves it as it is.

    From layer 0: forward(input_ids, attention_mask); from a later one: forward(hidden, attention_mask). It gives
    a dict of `LAST` and, where layers follow, `HIDDEN` or `NEXT_HIDDEN`. Raises ModelError for other families.
    """
    norm, layers = final_norm(model), _layers(model)
    family = model.config.model_type
    view = _changed(model)
    if family == "bert":
        view.encoder = _changed(model.encoder)
        view.encoder.layer = layers[start:end]
    elif family == "t5":
        view.block = layers[start:end]
        if start:
            view.block[0] = _with_positions(layers[start], layers[0])
    else:
        view.layers = layers[start:end]
    if start and family not in _TAKE_HIDDEN_STATES:
        view.embeddings = _passing()
    handed_on = None if end == len(layers) else NEXT_HIDDEN if start else HIDDEN
    return _with_forward(view, start > 0, norm, handed_on)


def _changed(module: Any) -> Any:
    """A copy whose parts are the same, and may be replaced without the original knowing."""
    view = copy.copy(module)
    view._modules = dict(module._modules)
    return view


def _passing() -> nn.Module:
    """In the place of embeddings: hidden states pass as they are."""
    from torch import nn

    class Passing(nn.Module):
        def forward(self, inputs_embeds: Tensor, **_: object) -> Tensor:
            return inputs_embeds

    return Passing()


def _with_positions(block: Any, first: Any) -> Any:
    """A T5 block with the table of relative positions, which lies in the first one and serves all."""
    view = _changed(block)
    view.layer = _changed(block.layer)
    outer = _changed(block.layer[0])
    attention = _changed(outer.SelfAttention)
    attention.has_relative_attention_bias = True
    attention.relative_attention_bias = first.layer[0].SelfAttention.relative_attention_bias
    outer.SelfAttention = attention
    view.layer[0] = outer
    return view


def _with_forward(
    view: Any, later: bool, norm: nn.Module | None, handed_on: str | None
) -> PreTrainedModel:
    from torch import nn
    from transformers.utils import ModelOutput

    if norm is not None:
        # the library's own forward gives the raw states then; a norm that is in no module would be no parameter
        view.add_module("norm_of_states", norm)
        view.add_module(_FINAL_NORMS[view.config.model_type], nn.Identity())
    run = type(view).forward
    # what a decoder keeps for the next token is of no use here
    options = {"use_cache": False} if view.config.model_type == "llama" else {}

    def given(**inputs: Tensor) -> Any:
        raw = run(view, **inputs, **options).last_hidden_state
        found = {LAST: raw if norm is None else norm(raw)}
        if handed_on is not None:
            found[handed_on] = raw
        return ModelOutput(found)

    def first(input_ids: Tensor, attention_mask: Tensor) -> Any:
        return given(input_ids=input_ids, attention_mask=attention_mask)

    def after(hidden: Tensor, attention_mask: Tensor) -> Any:
        return given(inputs_embeds=hidden, attention_mask=attention_mask)

    view.forward = after if later else first
    made: PreTrainedModel = view
    return made
