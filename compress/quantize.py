"""Quantization-aware training (1712.05877): a student runs in torch as its dynamic int8 form will, and learns so.

Weights, tables and what goes into a product are rounded by torch's own fake-quantize operators, whose gradient passes
through the rounding as if it were not there. What is rounded, and how, is what ONNX Runtime does to a fused graph
(`export/quantize/dynamic.py`); the weights that were trained are then exported plainly and quantized by that method.
Not NNCF's training: it learns fixed ranges, and its graph runs in OpenVINO alone (docs/LOG.md).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel
from transformers.models.bert.modeling_bert import BertEmbeddings

from codemill.compress.distill.loop import Schedule
from codemill.compress.models.cutting import FactorizedEmbedding
from codemill.compress.recipe import Recipe

__all__ = ["rounded", "schedule_of"]

_TOP = 255
"""The largest of the 8 bits of an activation or of a table's number, whose zero lies anywhere among them."""
_LEAST = 1e-12


def schedule_of(recipe: Recipe) -> Schedule:
    """As the student was distilled, for as long and as fast as `quantize` says; in float32."""
    asked = recipe.quantize
    usual = Schedule.of(recipe.distill, bf16=False)
    return replace(usual, epochs=asked.epochs, learning_rate=asked.learning_rate)


@contextmanager
def rounded(model: nn.Module, reduced_range: bool) -> Iterator[None]:
    """Let `model` compute as its dynamic int8 form, one text a call; its parameters stay what they are.

    reduced_range: 7-bit weights. Products of two activations, sums and norms stay as they are, as they do in the form.
    """
    seen = _Seen()
    # what it reads is a table's row, which has its 8 bits already
    of_tables = {module.up for module in model.modules() if isinstance(module, FactorizedEmbedding)}
    with ExitStack() as stack:
        for module in model.modules():
            if isinstance(module, nn.Linear):
                limit = 64 if reduced_range else 127
                _replace(stack, module, _product(module, limit, seen, module not in of_tables))
            elif isinstance(module, nn.Embedding):
                _replace(stack, module, _look_up(module))
            elif isinstance(module, BertEmbeddings) and isinstance(
                module.word_embeddings, nn.Embedding
            ):
                # one operator looks up, sums and normalises, and has the norm's weights at 8 bits too
                _replace(stack, module.LayerNorm, _norm(module.LayerNorm))
            elif isinstance(module, PreTrainedModel):
                hook = module.register_forward_pre_hook(seen.note, with_kwargs=True)
                stack.callback(hook.remove)
        yield


@dataclass
class _Seen:
    """Which tokens of the texts that run now are real: int64 [batch, tokens]. A text alone has no others."""

    mask: Tensor | None = None

    def note(self, _: nn.Module, _args: object, kwargs: dict[str, object]) -> None:
        """Before an encoder runs."""
        found = kwargs.get("attention_mask")
        self.mask = found if isinstance(found, Tensor) else None


def _replace(stack: ExitStack, module: nn.Module, forward: Callable[[Tensor], Tensor]) -> None:
    """Let `module` run another function until the stack is left."""
    module.forward = forward
    # the class's own is found again
    stack.callback(delattr, module, "forward")


def _product(
    module: nn.Linear, limit: int, seen: _Seen, rounds_input: bool
) -> Callable[[Tensor], Tensor]:
    def forward(inputs: Tensor) -> Tensor:
        weight = _rounded_weight(module.weight, limit)
        taken = _rounded_input(inputs, seen.mask) if rounds_input else inputs
        return functional.linear(taken, weight, module.bias)

    return forward


def _rounded_weight(weight: Tensor, limit: int) -> Tensor:
    """weight [outputs, inputs]: whole numbers from -limit to limit, a scale for each output."""
    scale = (weight.detach().abs().amax(1) / limit).clamp_min(_LEAST)
    zero = torch.zeros_like(scale, dtype=torch.int32)
    return torch.fake_quantize_per_channel_affine(weight, scale, zero, 0, -limit, limit)


def _rounded_input(inputs: Tensor, mask: Tensor | None) -> Tensor:
    """inputs [batch, .., width]: 8 bits over the range that each text, or row, has at its real tokens."""
    real = inputs.detach()
    if mask is not None and mask.shape == inputs.shape[:-1]:
        # zero is in every range
        real = real * mask.unsqueeze(-1)
    rows = real.flatten(1)
    scale, zero = _range(rows.amin(1), rows.amax(1))
    return torch.fake_quantize_per_channel_affine(inputs, scale, zero, 0, 0, _TOP)


def _look_up(module: nn.Embedding) -> Callable[[Tensor], Tensor]:
    def forward(ids: Tensor) -> Tensor:
        rows = functional.embedding(ids, module.weight, module.padding_idx)
        # over the range of the whole table
        return _rounded_as(rows, module.weight)

    return forward


def _norm(module: nn.LayerNorm) -> Callable[[Tensor], Tensor]:
    def forward(inputs: Tensor) -> Tensor:
        weight, bias = (_rounded_as(value, value) for value in (module.weight, module.bias))
        return functional.layer_norm(inputs, module.normalized_shape, weight, bias, module.eps)

    return forward


def _rounded_as(values: Tensor, of: Tensor) -> Tensor:
    """8 bits over the range of `of`."""
    scale, zero = _range(of.detach().amin(), of.detach().amax())
    return torch.fake_quantize_per_tensor_affine(values, scale, zero, 0, _TOP)


def _range(low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """Scale and zero point of the 8 bits that span from `low` to `high`, and zero."""
    low, high = low.clamp_max(0), high.clamp_min(0)
    scale = ((high - low) / _TOP).clamp_min(_LEAST)
    return scale, (-low / scale).round().to(torch.int32)
