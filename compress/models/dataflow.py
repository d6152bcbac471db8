"""GraphCodeBERT's input: code, and the variables in it as further tokens that attend along its data flow (2009.08366).

    [CLS] code [SEP] variable variable ...

A variable has no text and no place of its own: its embedding is the mean of those of the code tokens it was found in,
its position RoBERTa's 0, which no code token has. Code attends to code; a variable and the code tokens it was found in
attend to each other; a variable attends to itself and to those its value comes from; [CLS] and [SEP] attend to all.

In torch only: an attention of [tokens, tokens] for each row is no input that the graphs here have. As a teacher it
labels; what ships never sees data flow. Where it comes from is `rewrite/flow.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from tokenizers import Encoding, Tokenizer
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from codemill.compress.models.classifier import Classifier
from codemill.compress.models.frugal import texts_at_once
from codemill.compress.models.joined import encode_pair, pair_tokenizer
from codemill.compress.models.pooling import Pooling, pool
from codemill.compress.rewrite.flow import Flow, data_flow
from codemill.errors import ModelError

if TYPE_CHECKING:
    from transformers import BertModel

__all__ = [
    "FlowBatch",
    "FlowClassifier",
    "FlowInput",
    "flow_batch",
    "flow_inputs",
    "most_variables",
]

_TEXTS_PER_RUN = 16
_LENGTH_STEP = 16
_CODE_PER_VARIABLE = 4
_FLOWS_KEPT = 16_384
"""Texts recur, in many pairs and in each call."""


@dataclass(frozen=True)
class FlowInput:
    """One text, or two joined, as the model reads it.

    ids: int [code tokens], special ones included. special: bool [code tokens]. spans: int [variables, 2], the code
    tokens [start, end) that each was found in. edges: int [edges, 2], (from, to) of variables.
    """

    ids: np.ndarray
    special: np.ndarray
    spans: np.ndarray
    edges: np.ndarray

    def __len__(self) -> int:
        return len(self.ids) + len(self.spans)


@dataclass(frozen=True)
class FlowBatch:
    """Padded rows: ids, positions int64 [batch, tokens] (positions from 0, as the encoder here counts them).

    variables: bool [batch, tokens]. means: float32 [batch, tokens, tokens], in a variable's row the weights of the
    code tokens whose mean it is. attention: bool [batch, tokens, tokens], who (second) attends to whom (third).
    real: int64 [batch, tokens], 0 where there is but padding.
    """

    ids: Tensor
    positions: Tensor
    variables: Tensor
    means: Tensor
    attention: Tensor
    real: Tensor


def most_variables(max_tokens: int) -> int:
    """So many variables beside `max_tokens` of code: 64 beside 256, 128 beside 512, as published."""
    return max_tokens // _CODE_PER_VARIABLE


def flow_inputs(
    tokenizer_json: str,
    texts: Sequence[str] | Sequence[tuple[str, str]],
    max_tokens: int,
    language: str,
) -> list[FlowInput]:
    """The inputs of texts, or of pairs of them joined; code cut to `max_tokens`, variables to a quarter as many.

    Of a text that cannot be parsed as `language` the code alone.
    """
    single = Tokenizer.from_str(tokenizer_json)
    single.no_padding()
    single.enable_truncation(max_tokens)
    ends: dict[str, int] = {}

    def flow_of(text: str) -> Flow:
        if text not in ends:
            # beside another it has no more room than alone
            ends[text] = max((end for _, end in single.encode(text).offsets), default=0)
        return _flow(text, language, ends[text])

    found: list[FlowInput] = []
    for item in texts:
        if isinstance(item, str):
            encoding, parts = single.encode(item), [item]
        else:
            if not found:
                pair_tokenizer(tokenizer_json)
            encoding, parts = encode_pair(single, *item, max_tokens), [*item]
        found.append(_input(encoding, [flow_of(part) for part in parts], max_tokens))
    return found


@lru_cache(maxsize=_FLOWS_KEPT)
def _flow(text: str, language: str, end: int) -> Flow:
    return data_flow(text, language, end)


def _input(encoding: Encoding, flows: Sequence[Flow], max_tokens: int) -> FlowInput:
    offsets = np.asarray(encoding.offsets, dtype=np.int64).reshape(-1, 2)
    sequence = np.asarray([-1 if i is None else i for i in encoding.sequence_ids])
    spans: list[tuple[int, int]] = []
    edges: list[tuple[int, int]] = []
    # two texts share the room evenly
    room = most_variables(max_tokens) // len(flows)
    for number, flow in enumerate(flows):
        numbers: dict[int, int] = {}
        own = np.flatnonzero((sequence == number) & (offsets[:, 1] > offsets[:, 0]))
        starts, ends = offsets[own, 0], offsets[own, 1]
        for variable, (start, end) in enumerate(flow.variables):
            first = int(np.searchsorted(ends, start, side="right"))
            last = int(np.searchsorted(starts, end, side="left"))
            # cut off with the end of the text, or beyond the limit
            if first >= last or len(numbers) == room:
                continue
            numbers[variable] = len(spans)
            spans.append((int(own[first]), int(own[last - 1]) + 1))
        edges += [(numbers[a], numbers[b]) for a, b in flow.edges if a in numbers and b in numbers]
    return FlowInput(
        ids=np.asarray(encoding.ids, dtype=np.int32),
        special=np.asarray(encoding.special_tokens_mask, dtype=bool),
        spans=np.asarray(spans, dtype=np.int32).reshape(-1, 2),
        edges=np.asarray(edges, dtype=np.int32).reshape(-1, 2),
    )


def flow_batch(inputs: Sequence[FlowInput]) -> FlowBatch:
    """Padded to the longest, rounded up to a multiple of 16."""
    count = len(inputs)
    longest = -(-max(map(len, inputs)) // _LENGTH_STEP) * _LENGTH_STEP
    ids = np.zeros((count, longest), dtype=np.int64)
    positions, real = np.zeros_like(ids), np.zeros_like(ids)
    variables = np.zeros((count, longest), dtype=bool)
    means = np.zeros((count, longest, longest), dtype=np.float32)
    attention = np.zeros((count, longest, longest), dtype=bool)
    # padding looks at itself, so that no row of attention is empty
    attention[:, np.arange(longest), np.arange(longest)] = True
    for row, item in enumerate(inputs):
        code, whole = len(item.ids), len(item)
        ids[row, :code] = item.ids
        positions[row, :code] = np.arange(code)
        real[row, :whole] = 1
        variables[row, code:whole] = True
        attention[row, :code, :code] = True
        attention[row, np.flatnonzero(item.special), :whole] = True
        for place, (start, end) in enumerate(item.spans.tolist(), code):
            means[row, place, start:end] = 1 / (end - start)
            attention[row, place, start:end] = attention[row, start:end, place] = True
        for source, target in item.edges.tolist():
            attention[row, code + target, code + source] = True
    arrays = (ids, positions, variables, means, attention, real)
    return FlowBatch(*map(torch.from_numpy, arrays))


class FlowClassifier(Classifier):
    """A classifier whose texts are `FlowInput`s. Raises ModelError for an encoder that is no RoBERTa."""

    def __init__(
        self, encoder: BertModel, head: nn.Module, texts: int, pooling: Pooling = "mean"
    ) -> None:
        if getattr(encoder.embeddings, "unnumbered", None) is None:
            raise ModelError(
                "data flow is read by a RoBERTa (GraphCodeBERT), whose position 0 is that of variables; this teacher "
                f"is a {encoder.config.model_type}: leave teacher.data_flow out"
            )
        super().__init__(encoder, head, texts, pooling)

    def embed_flow(self, batch: FlowBatch, bf16: bool = False) -> Tensor:
        """Pooled float32 [batch, dim] of padded rows; the mean is over all but padding."""
        device = self.encoder.device
        tables = self.encoder.embeddings
        variables = batch.variables.to(device).unsqueeze(-1)
        words = tables.word_embeddings(batch.ids.to(device))
        # the encoder's table begins where code does, so that of position 0 is carried beside it
        moved = tables.unnumbered - tables.position_embeddings.weight[0]
        words = torch.where(variables, batch.means.to(device) @ words + moved, words)
        positions = batch.positions.to(device)
        attention = batch.attention.to(device)
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            hidden = self.encoder(
                inputs_embeds=words,
                position_ids=positions,
                token_type_ids=torch.zeros_like(positions),
                attention_mask=attention.long(),
            ).last_hidden_state
        return pool(hidden, batch.real.to(device), self.pooling)

    def embed_distinct(
        self, tokens: Any, indices: Sequence[int], bf16: bool = False
    ) -> tuple[Tensor, dict[int, int]]:
        """As a classifier's; `tokens` are `FlowInput`s. For backward nothing but the inputs of a run is kept."""
        order = sorted(indices, key=lambda index: (len(tokens[index]), index))
        training = torch.is_grad_enabled()
        size = _TEXTS_PER_RUN
        if training:
            size = min(size, texts_at_once(self.encoder, len(tokens[order[-1]])))
        rows = []
        for start in range(0, len(order), size):
            batch = flow_batch([tokens[index] for index in order[start : start + size]])
            if training:
                rows.append(checkpoint(self.embed_flow, batch, bf16, use_reentrant=False))
            else:
                rows.append(self.embed_flow(batch, bf16))
        return torch.cat(rows), {index: row for row, index in enumerate(order)}
