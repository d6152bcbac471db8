"""Freezing the bottom K layers, embeddings included (Telly, 2304.05216). How many is `choose.py`'s."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from codemill.errors import RecipeError

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel

__all__ = ["bottom_of", "freeze_bottom", "stack_of", "trained_of"]


def freeze_bottom(
    model: PreTrainedModel, layers: int | None, key: str = "teacher.finetune.freeze_layers"
) -> tuple[int, int]:
    """Stop gradients in the embeddings and the lowest `layers` layers: (trainable, all) parameters.

    None freezes nothing, not even the embeddings. Where a head is tied to the embeddings it is frozen with them.
    Raises RecipeError, which names `key`, where the model has no layer left to train.
    """
    if layers is not None:
        embeddings, stack = bottom_of(model)
        if layers >= len(stack):
            of_teacher = key.startswith("teacher.")
            instead = "teacher.finetune.pairs to 0" if of_teacher else f"{key} to none"
            raise RecipeError(
                f"{key} is {layers}, but the {'teacher' if of_teacher else 'student'} has {len(stack)} layers; "
                f"freeze at most {len(stack) - 1}, or set {instead}"
            )
        for part in (embeddings, *stack[:layers]):
            part.requires_grad_(False)
    return trained_of(model)


def trained_of(model: nn.Module) -> tuple[int, int]:
    """(trainable, all) parameters."""
    sizes = [(value.numel(), value.requires_grad) for value in model.parameters()]
    return sum(size for size, trained in sizes if trained), sum(size for size, _ in sizes)


def bottom_of(model: PreTrainedModel) -> tuple[nn.Module, nn.ModuleList]:
    """What comes before the first layer and has weights, and the layers, the lowest first; of a Llama too."""
    from codemill.compress.models.surgery import embeddings_of, layers_of

    stack = stack_of(model)
    if stack.config.model_type == "llama":
        return stack.embed_tokens, stack.layers
    return embeddings_of(stack), layers_of(stack)


def stack_of(model: PreTrainedModel) -> Any:
    """The model itself, or the decoder in a Llama with a head."""
    if model.config.model_type == "llama" and hasattr(model, "lm_head"):
        return model.model
    return model
