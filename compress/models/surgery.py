"""One way to cut, draw, save and load a student, whatever its family; which module does it is by the model's type."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, cast

from torch import nn
from transformers import ModernBertConfig, T5Config

from codemill.compress.architecture import Architecture, Family
from codemill.compress.models import bert, t5
from codemill.compress.models.cutting import Origins
from codemill.compress.models.load import TeacherModel
from codemill.compress.models.roberta import as_bert
from codemill.compress.models.saved import fill, read_saved, save_student
from codemill.errors import ModelError

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

__all__ = [
    "architecture_of",
    "cut_student",
    "embeddings_of",
    "fresh_student",
    "layers_of",
    "load_student",
    "save_student",
    "word_embedding_of",
]


def _module(model: TeacherModel | PreTrainedModel) -> PreTrainedModel:
    """The encoder itself, in the form that is cut."""
    found = model.model if isinstance(model, TeacherModel) else model
    family = _family(found)
    if family == "roberta":
        return as_bert(found)
    # a T5EncoderModel is a stack and a second name for its words
    return found.encoder if family == "t5" and hasattr(found, "shared") else found


def _family(value: PreTrainedModel | PretrainedConfig) -> str:
    """model_type of a model's or of its own configuration.

    Not the class: importing ModernBERT's takes torch's compiler along.
    """
    return str(getattr(getattr(value, "config", value), "model_type", None))


def _unknown(value: object) -> ModelError:
    return ModelError(
        f"a {type(value).__name__} is of no family that students are made of; "
        "expected a BERT, a RoBERTa, a ModernBERT or the encoder of a T5"
    )


def cut_student(
    teacher: TeacherModel | PreTrainedModel,
    architecture: Architecture,
    kept_tokens: Origins,
    token_counts: Sequence[int],
) -> PreTrainedModel:
    """A student of `architecture`, of the teacher's family, that starts from the teacher's weights.

    kept_tokens: teacher token ids in the student's id order, or, for tokens of its own, the ids that each
    is written with; token_counts: how often each of these occurs in the data. Raises ModelError where the
    shape cannot be cut out of this teacher.
    """
    model = _module(teacher)
    family = _family(model)
    if family == "bert":
        return bert.cut_student(model, architecture, kept_tokens, token_counts)
    if family == "modernbert":
        from codemill.compress.models import modernbert

        return modernbert.cut_student(model, architecture, kept_tokens, token_counts)
    if family == "t5":
        return t5.cut_student(model, architecture, kept_tokens, token_counts)
    raise _unknown(model)


def fresh_student(architecture: Architecture, base: PretrainedConfig, seed: int) -> PreTrainedModel:
    """A student with random weights, drawn by `seed`, of the family of the configuration `base`."""
    family = _family(base)
    if family == "bert":
        return bert.fresh_student(architecture, base, seed)
    if family == "modernbert":
        from codemill.compress.models import modernbert

        return modernbert.fresh_student(architecture, base, seed)
    if family == "t5":
        return t5.fresh_student(architecture, base, seed)
    raise _unknown(base)


def layers_of(model: PreTrainedModel) -> nn.ModuleList:
    """The stack of layers of an encoder, the bottom one first."""
    family = _family(model)
    if family in ("bert", "roberta"):
        return cast(nn.ModuleList, model.encoder.layer)
    if family == "modernbert":
        return cast(nn.ModuleList, model.layers)
    if family == "t5":
        return cast(nn.ModuleList, model.block)
    raise _unknown(model)


def word_embedding_of(model: PreTrainedModel) -> nn.Module:
    """The table of words, full or factorised."""
    family = _family(model)
    if family in ("bert", "roberta"):
        return cast(nn.Module, model.embeddings.word_embeddings)
    if family == "modernbert":
        return cast(nn.Module, model.embeddings.tok_embeddings)
    if family == "t5":
        return cast(nn.Module, model.embed_tokens)
    raise _unknown(model)


def embeddings_of(model: PreTrainedModel) -> nn.Module:
    """All that comes before the first layer and has weights."""
    if _family(model) == "t5":
        return word_embedding_of(model)
    return cast(nn.Module, model.embeddings)


def architecture_of(teacher: TeacherModel | PreTrainedModel, max_tokens: int) -> Architecture:
    """The full shape of a teacher, all of its layers copied; max_tokens: the longest input wanted.

    The vocabulary is the teacher's table, which may have more rows than its tokenizer has tokens.
    """
    model = _module(teacher)
    config, layers = model.config, layers_of(model)
    if _family(model) == "t5":
        inner, heads, size = config.d_ff, config.num_heads, config.d_kv
    else:
        inner, heads = config.intermediate_size, config.num_attention_heads
        size = config.hidden_size // heads
    # BERT and RoBERTa are one family here
    family = cast(Family, config.model_type)
    return Architecture(
        vocab_size=config.vocab_size,
        hidden_size=config.hidden_size,
        layers=len(layers),
        heads=heads,
        head_size=size,
        intermediate_size=inner,
        max_tokens=max_tokens,
        copied_layers=tuple(range(len(layers))),
        family=family,
    )


def load_student(folder: Path) -> tuple[PreTrainedModel, Architecture]:
    """Read what `save_student` wrote. Raises ModelError for another family."""
    architecture, values = read_saved(folder)
    family = values.get("model_type")
    if family == "bert":
        return bert.load_student(folder)
    if family == "modernbert":
        from codemill.compress.models import modernbert

        config = ModernBertConfig(**values, attn_implementation="sdpa")
        student = modernbert.empty_student(architecture, config)
    elif family == "t5":
        config = T5Config(**values, attn_implementation="eager")
        student = t5.empty_student(architecture, config)
    else:
        raise ModelError(
            f"the student in {folder} is a {family!r}; expected bert, modernbert or t5"
        )
    fill(student, folder)
    return student.eval(), architecture
