"""A model of any supported family as a stack of layers: what comes out of each, for the tokens that are asked for.

The output of a layer here is what the next one gets (`models/passing.py`), and so what freezing up to it keeps.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from codemill.compress.models.decoders import (
    DECODERS,
    is_decoder,
    load_decoder,
    resolve_decoder,
)
from codemill.compress.models.load import load_teacher
from codemill.compress.models.passing import watched
from codemill.compress.models.pooling import pad, positions
from codemill.compress.models.surgery import layers_of
from codemill.errors import ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["Stack", "Units", "load_finetuned", "load_stack", "outputs"]

_TOKENS_PER_RUN = 4096
_FINETUNED = "finetuned.safetensors"


@dataclass(frozen=True)
class Stack:
    """A model and its layers, the lowest first; `family` is config.model_type."""

    model: PreTrainedModel
    layers: Sequence[nn.Module]
    tokenizer_json: str
    family: str
    hidden_size: int

    @property
    def most_tokens(self) -> int | None:
        """The longest input it has positions for; None where that is not bounded."""
        return positions(self.model)


@dataclass(frozen=True)
class Units:
    """What is represented by one row: the mean over subwords [first, last) of a text.

    text, first, last: int [units]; first -1: over all subwords of the text.
    """

    text: NDArray[np.int64]
    first: NDArray[np.int64]
    last: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.text)


def load_stack(model: str) -> Stack:
    """Load a folder, a Hugging Face id or `package:NAME`. Raises ModelError."""
    folder = resolve_decoder(model)
    if is_decoder(folder):
        decoder = load_decoder(folder)
        return _stack(decoder.model, decoder.tokenizer_json)
    teacher = load_teacher(folder, head=False)
    return _stack(teacher.model, teacher.tokenizer_json)


def _stack(model: PreTrainedModel, tokenizer_json: str) -> Stack:
    config = model.config
    family = str(config.model_type)
    layers = _decoder_layers(model) if family in DECODERS else layers_of(model)
    return Stack(model.eval(), list(layers), tokenizer_json, family, int(config.hidden_size))


def _decoder_layers(model: PreTrainedModel) -> nn.ModuleList:
    # GPT-2 and its descendants say h
    return cast(nn.ModuleList, model.layers if hasattr(model, "layers") else model.h)


def load_finetuned(finetuned: str, model: str, stack: Stack) -> Stack:
    """The fine-tuned form of `model`, whose stack is given.

    A model of its own, or a folder with `finetuned.safetensors` as a run's `teacher` stage leaves it. Raises
    ModelError where it is not the same model: other layers, width or tokens.
    """
    weights = Path(finetuned) / _FINETUNED
    other = _tuned(weights, load_stack(model)) if weights.is_file() else load_stack(finetuned)
    mine, its = (
        {
            "family": item.family,
            "layers": len(item.layers),
            "hidden_size": item.hidden_size,
        }
        for item in (stack, other)
    )
    for key, value in mine.items():
        if its[key] != value:
            raise ModelError(
                f"--finetuned {finetuned} has {key} {its[key]}, {model} has {value}; "
                "expected the same model after fine-tuning"
            )
    if _vocabulary(stack) != _vocabulary(other):
        raise ModelError(
            f"--finetuned {finetuned} has another tokenizer than {model}; expected the same model after fine-tuning"
        )
    return other


def _vocabulary(stack: Stack) -> dict[str, int]:
    from tokenizers import Tokenizer

    found: dict[str, int] = Tokenizer.from_str(stack.tokenizer_json).get_vocab()
    return found


def _tuned(weights: Path, stack: Stack) -> Stack:
    """`stack` with the weights of a stage; a classifier's are called encoder.*, beside its head."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        state = load_file(weights)
    except (OSError, SafetensorError) as error:
        raise ModelError(f"{weights} cannot be read: {error}") from error
    wanted = stack.model.state_dict().keys()
    if not wanted <= state.keys():
        state = {name.removeprefix("encoder."): value for name, value in state.items()}
    try:
        stack.model.load_state_dict({name: state[name] for name in wanted})
    except (KeyError, RuntimeError) as error:
        why = " ".join(str(error).split())[:300]
        raise ModelError(f"{weights} holds the weights of another model: {why}") from error
    return stack


@torch.inference_mode()
def outputs(
    stack: Stack,
    texts: Sequence[NDArray[Any]],
    units: Units,
    layers: range,
    progress: Callable[[float], None] = lambda _: None,
) -> NDArray[np.float32]:
    """What the layers `layers` (0: the embeddings) give for each unit: float32 [layers, units, width].

    texts: token ids of each, int [tokens]; progress(share of the tokens done).
    """
    found = np.zeros((len(layers), len(units), stack.hidden_size), dtype=np.float32)
    rows_of: dict[int, list[int]] = {}
    for row, text in enumerate(units.text.tolist()):
        rows_of.setdefault(text, []).append(row)
    order = sorted(rows_of, key=lambda index: (len(texts[index]), index))
    total, done = sum(len(texts[index]) for index in order), 0
    for batch in _batches(order, texts):
        ids, mask = pad([texts[index] for index in batch], stack.most_tokens)
        rows = [rows_of[index] for index in batch]
        weights = _weights(units, rows, mask)
        with watched(stack.layers, layers) as seen:
            stack.model(input_ids=ids, attention_mask=mask)
        for place, layer in enumerate(layers):
            means = torch.bmm(weights, seen[layer].float()).numpy()
            for text, own in enumerate(rows):
                found[place, own] = means[text, : len(own)]
        done += sum(len(texts[index]) for index in batch)
        progress(done / total)
    for place, layer in enumerate(layers):
        if not np.isfinite(found[place]).all():
            raise ModelError(
                f"layer {layer} of this model gives numbers that are none: its weights are damaged, or a fine-tuning "
                "went astray; nothing can be said of it"
            )
    return found


def _batches(order: Sequence[int], texts: Sequence[NDArray[Any]]) -> Iterator[list[int]]:
    """Texts of like length together, so many that the padded batch stays small."""
    batch: list[int] = []
    for index in order:
        if batch and (len(batch) + 1) * len(texts[index]) > _TOKENS_PER_RUN:
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch


def _weights(units: Units, rows: Sequence[Sequence[int]], mask: Tensor) -> Tensor:
    """float32 [batch, most units, tokens]: each row of it makes the mean of one unit's subwords."""
    weights = np.zeros((len(rows), max(map(len, rows)), mask.shape[1]), dtype=np.float32)
    for text, own in enumerate(rows):
        whole = int(mask[text].sum())
        for place, row in enumerate(own):
            first, last = int(units.first[row]), int(units.last[row])
            if first < 0:
                first, last = 0, whole
            weights[text, place, first:last] = 1 / (last - first)
    return torch.from_numpy(weights)
