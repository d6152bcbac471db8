"""The classification head that a model was saved with: pooled embeddings -> logits."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor, nn

from codemill.errors import ModelError

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

    from codemill.compress.models.pooling import Pooling

__all__ = ["TeacherHead", "detach_head"]


class TeacherHead(nn.Module):
    """pooled [n, dim] -> logits [n, labels]; `labels` are their names, in order."""

    def __init__(self, labels: tuple[str, ...], layers: nn.Sequential) -> None:
        super().__init__()
        self.labels, self.layers = labels, layers

    def forward(self, pooled: Tensor) -> Tensor:
        """What the model that it was saved with makes of the same embedding."""
        logits: Tensor = self.layers(pooled)
        return logits


def detach_head(
    model: PreTrainedModel, folder: Path
) -> tuple[PreTrainedModel, TeacherHead, Pooling]:
    """Encoder, head and pooling of a Bert-, Roberta- or ModernBertForSequenceClassification.

    Raises ModelError where the head gives no label for a text.
    """
    config = model.config
    labels = _labels(config, folder)
    if config.model_type == "modernbert":
        layers = nn.Sequential(model.head, model.drop, model.classifier)
        return model.model, TeacherHead(labels, layers), config.classifier_pooling
    if config.model_type == "roberta":
        head = model.classifier
        layers = nn.Sequential(head.dropout, head.dense, nn.Tanh(), head.dropout, head.out_proj)
        return model.roberta, TeacherHead(labels, layers), "cls"
    pooler, model.bert.pooler = model.bert.pooler, None
    layers = nn.Sequential(pooler.dense, nn.Tanh(), model.dropout, model.classifier)
    return model.bert, TeacherHead(labels, layers), "cls"


def _labels(config: PretrainedConfig, folder: Path) -> tuple[str, ...]:
    names = config.id2label
    if config.problem_type not in (None, "single_label_classification") or len(names) < 2:
        raise ModelError(
            f"the head in {folder} has {len(names)} output{'s' if len(names) != 1 else ''} and is for "
            f"{config.problem_type or 'a number'}; expected one that chooses one label of two or more"
        )
    if sorted(names) != list(range(len(names))):
        raise ModelError(
            f"{folder / 'config.json'}: id2label names the labels {sorted(names)}; "
            f"expected each from 0 to {len(names) - 1}"
        )
    return tuple(str(names[index]) for index in range(len(names)))
