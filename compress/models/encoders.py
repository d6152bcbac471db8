"""Weights -> the torch encoder of a family, with transformers' own classes: no code of a folder is ever run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import transformers

from codemill.compress.models.heads import TeacherHead, detach_head
from codemill.compress.models.roberta import as_bert
from codemill.compress.models.shape import TeacherShape, read_config, weight_files
from codemill.errors import ModelError

if TYPE_CHECKING:
    from codemill.compress.models.pooling import Pooling

__all__ = ["read_encoder"]

_HEADED = "ForSequenceClassification"
_BEYOND = {"modernbert": "layers.", "t5": "encoder.block.", "codet5p_embedding": "encoder.block."}
"""Family -> what the names of a layer's tensors hold; BERT's where it is not here."""
_NAMES = {
    "bert": "BERT",
    "roberta": "RoBERTa",
    "modernbert": "ModernBERT",
    "t5": "T5",
    "codet5p_embedding": "T5",
}
_NOT_SHAPE = ("auto_map", "model_type", "architectures", "tokenizer_class", "transformers_version")


def read_encoder(
    folder: Path, shape: TeacherShape, *, with_head: bool = True
) -> tuple[transformers.PreTrainedModel, TeacherHead | None, Pooling]:
    """Encoder, head or None (there is none, or it is not asked for), and how the head pools (the mean, without one).

    Raises ModelError for weights that are missing, damaged or another model's.
    """
    value = read_config(folder)
    named = str(value.get("architectures"))
    headed = _HEADED in named and with_head
    if headed and shape.family in ("t5", "codet5p_embedding"):
        raise ModelError(
            f"the head in {folder} ({named}) reads T5's decoder, and only encoders are supported so far; "
            "save the encoder alone (T5EncoderModel), and give labels in a file"
        )
    kind, options = _class(shape.family, headed, value)
    model = _loaded(kind, folder, shape, options)
    if headed:
        encoder, head, pooling = detach_head(model, folder)
        head.eval()
    else:
        encoder, head, pooling = model, None, "mean"
    if shape.family == "roberta":
        encoder = as_bert(encoder)
    if isinstance(encoder, transformers.T5EncoderModel):
        # the stack alone: no tensor has two names there
        encoder = encoder.encoder
    return encoder.eval(), head, pooling


def _class(
    family: str, headed: bool, config: dict[str, Any]
) -> tuple[type[transformers.PreTrainedModel], dict[str, Any]]:
    """Transformers' class of a family, and how to load it."""
    options: dict[str, Any] = {"attn_implementation": "sdpa"}
    if family == "modernbert":
        # here, because importing it takes torch's compiler along
        from codemill.compress.models import modernbert

        options["reference_compile"] = False
        if headed:
            return modernbert.ModernBertForSequenceClassification, options
        return modernbert.ModernBertModel, options
    if family in ("bert", "roberta"):
        if headed and family == "bert":
            return transformers.BertForSequenceClassification, options
        if headed:
            return transformers.RobertaForSequenceClassification, options
        options["add_pooling_layer"] = False
        return transformers.BertModel if family == "bert" else transformers.RobertaModel, options
    options["attn_implementation"] = "eager"
    if family != "t5":
        # its class is code that comes with the folder; its encoder is a T5's
        values = {key: item for key, item in config.items() if key not in _NOT_SHAPE}
        options = {"config": transformers.T5Config(**values, attn_implementation="eager")}
    return transformers.T5EncoderModel, options


def _loaded(
    kind: type[transformers.PreTrainedModel],
    folder: Path,
    shape: TeacherShape,
    options: dict[str, Any],
) -> transformers.PreTrainedModel:
    weights = weight_files(folder)
    if not weights:
        raise ModelError(
            f"the model in {folder} cannot be loaded: it has neither model.safetensors nor pytorch_model.bin"
        )
    verbosity = transformers.logging.get_verbosity()
    # it warns that the pooling head is left unused, which is what was asked for
    transformers.logging.set_verbosity_error()
    try:
        # transformers loads a .bin with torch's weights_only=True: nothing is unpickled
        model, loaded = kind.from_pretrained(
            folder,
            local_files_only=True,
            torch_dtype=torch.float32,
            # options say the attention, or a config could name one to be fetched
            output_loading_info=True,
            **options,
        )
    except MemoryError:
        raise
    # damaged files and odd configurations end in errors of every kind there
    except Exception as error:
        raise ModelError(
            f"the model in {folder} cannot be loaded: {_why_not(weights, error)}"
        ) from error
    finally:
        transformers.logging.set_verbosity(verbosity)
    if loaded["missing_keys"]:
        # transformers fills them with random numbers and only warns
        names = sorted(loaded["missing_keys"])
        raise ModelError(
            f"the weights in {folder} lack {len(names)} tensor{'s' if len(names) > 1 else ''} "
            f"of a {_NAMES[shape.family]} encoder ({names[0]} ...); save the whole model there again"
        )
    # and the ones it has no place for it leaves out: a shorter model than was trained
    within = _BEYOND.get(shape.family, "encoder.layer.")
    beyond = sorted(name for name in loaded["unexpected_keys"] if within in name)
    if beyond:
        raise ModelError(
            f"the weights in {folder} hold {beyond[0]}, which a model of {shape.layers} layers has not; "
            "its config.json is another model's"
        )
    return model


def _why_not(weights: Sequence[Path], error: Exception) -> str:
    """Why the weights could not be loaded, without the libraries' advice to load them all the same."""
    if weights[0].suffix == ".bin":
        return (
            f"{weights[0].name} is damaged, or holds more than tensors, which are all that is ever unpickled; "
            "save the model as safetensors (save_pretrained(folder))"
        )
    return " ".join(str(error).split())[:500]
