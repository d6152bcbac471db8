"""A RoBERTa encoder (CodeBERT, UniXcoder, GraphCodeBERT) as the BERT it is, so that one surgery serves both.

The layers are BERT's. Different is the numbering of positions: RoBERTa counts them from
pad_token_id + 1 and by the ids that are not padding. Texts are padded on the right here, so the
table without its first rows, counted from 0, gives the same vectors to every real token. As a
BERT it exports, fuses and is cut like one, and no pad id has to be carried to a runtime.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from transformers import BertConfig, BertModel

from codemill.errors import ModelError

if TYPE_CHECKING:
    from transformers import RobertaConfig, RobertaModel

__all__ = ["as_bert", "first_position"]

_OWN = ("model_type", "architectures", "pruned_heads", "auto_map", "tokenizer_class")
"""Keys of a RobertaConfig that say what it is, not what shape it has."""


def first_position(config: RobertaConfig) -> int:
    """The row of the position table that a text's first token takes."""
    first: int = config.pad_token_id + 1
    return first


def as_bert(model: RobertaModel) -> BertModel:
    """The same encoder as a BertModel without pooling head; the weights are shared, not copied.

    Raises ModelError for positions that are not in a table.
    """
    config = model.config
    if getattr(config, "position_embedding_type", "absolute") != "absolute":
        raise ModelError(
            f"this RoBERTa has {config.position_embedding_type} positions; only absolute ones are supported"
        )
    first = first_position(config)
    values = {key: value for key, value in config.to_dict().items() if key not in _OWN}
    values["max_position_embeddings"] = config.max_position_embeddings - first
    # on no device: the tensors are given below, and twice the teacher would not fit everywhere
    with torch.device("meta"):
        bert = BertModel(BertConfig(**values, attn_implementation="sdpa"), add_pooling_layer=False)
    state = {
        name: value for name, value in model.state_dict().items() if not name.startswith("pooler.")
    }
    table = "embeddings.position_embeddings.weight"
    # the row before all others is that of GraphCodeBERT's variables (dataflow.py)
    unnumbered = state[table][0].clone()
    state[table] = state[table][first:].clone()
    bert.load_state_dict(state, assign=True)
    # not in the state, and so still on no device
    numbers = torch.arange(values["max_position_embeddings"])[None]
    bert.embeddings.register_buffer("position_ids", numbers, persistent=False)
    bert.embeddings.register_buffer("token_type_ids", torch.zeros_like(numbers), persistent=False)
    bert.embeddings.register_buffer("unnumbered", unnumbered, persistent=False)
    return bert.eval()
