"""Freezing the bottom K layers, embeddings included."""

from __future__ import annotations

from typing import TYPE_CHECKING

from codemill.errors import RecipeError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["freeze_bottom"]


def freeze_bottom(model: PreTrainedModel, layers: int) -> tuple[int, int]:
    """Stop gradients in the embeddings and the lowest `layers` layers: (trainable, all) parameters.

    Raises RecipeError where the model has no layer left to train.
    """
    from codemill.compress.models.surgery import embeddings_of, layers_of

    stack = layers_of(model)
    if layers >= len(stack):
        raise RecipeError(
            f"teacher.finetune.freeze_layers is {layers}, but the teacher has {len(stack)} layers; "
            f"freeze at most {len(stack) - 1}, or set teacher.finetune.pairs to 0"
        )
    for part in (embeddings_of(model), *stack[:layers]):
        part.requires_grad_(False)
    sizes = [(value.numel(), value.requires_grad) for value in model.parameters()]
    return sum(size for size, trained in sizes if trained), sum(size for size, _ in sizes)
