"""GraphCodeBERT's input: who attends to whom, and what a variable is made of."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from transformers import BertModel, RobertaForSequenceClassification, RobertaModel

from codemill.compress.models.dataflow import (
    FlowClassifier,
    FlowInput,
    flow_batch,
    flow_inputs,
    most_variables,
)
from codemill.compress.models.heads import detach_head
from codemill.compress.models.roberta import as_bert
from codemill.compress.rewrite.flow import Flow, data_flow
from codemill.errors import ModelError

from .families import LABELS, noisy, roberta_config

CODE = "def f(path):\n    name = path\n    return name"


def flow_of(tokenizer: Tokenizer, text: str | tuple[str, str], most: int = 60) -> FlowInput:
    texts: Any = [text]
    (found,) = flow_inputs(tokenizer.to_str(), texts, most, "python")
    return found


def test_a_variable_is_found_in_the_tokens_that_spell_it(byte_pairs: Tokenizer) -> None:
    found = flow_of(byte_pairs, CODE)
    tokens = byte_pairs.encode(CODE).tokens
    spelled = ["".join(tokens[start:end]).strip("Ġ") for start, end in found.spans.tolist()]
    assert spelled == ["path", "name", "path", "name"]
    # name = path; the path there comes from the parameter, the name returned from the one assigned
    assert found.edges.tolist() == [[0, 2], [1, 3], [2, 1]]
    assert len(found) == len(tokens) + 4


def test_attention_follows_the_paper(byte_pairs: Tokenizer) -> None:
    found = flow_of(byte_pairs, CODE)
    batch = flow_batch([found, flow_of(byte_pairs, "x")])
    seen = batch.attention[0].numpy()
    code, whole = len(found.ids), len(found)
    # code sees code; padding is seen by nobody but itself
    assert seen[:code, :code].all()
    assert not seen[:whole, whole:].any()
    # [CLS] and [SEP] see everything there is
    assert seen[0, :whole].all()
    assert seen[code - 1, :whole].all()
    inner = range(1, code - 1)
    for variable, (start, end) in enumerate(found.spans.tolist()):
        place = code + variable
        own = set(range(start, end))
        assert {token for token in range(code) if seen[place, token]} == own
        assert {token for token in inner if seen[token, place]} == own
    among = seen[code:whole, code:whole]
    expected = np.eye(4, dtype=bool)
    for source, target in ((0, 2), (1, 3), (2, 1)):
        expected[target, source] = True
    assert (among == expected).all()
    # the second text has no variables at all
    assert not batch.variables[1].any()


def test_a_variable_is_the_mean_of_its_code_and_has_no_place(byte_pairs: Tokenizer) -> None:
    found = flow_of(byte_pairs, "def f(zzqx):\n    return zzqx")
    batch = flow_batch([found])
    code = len(found.ids)
    (start, end), _ = found.spans.tolist()
    assert end - start > 1
    weights = batch.means[0, code]
    assert weights[start:end].tolist() == pytest.approx([1 / (end - start)] * (end - start))
    assert weights.sum() == pytest.approx(1)
    assert batch.positions[0, :code].tolist() == list(range(code))
    assert batch.variables[0].nonzero().flatten().tolist() == [code, code + 1]


def test_code_and_variables_have_room_of_their_own(byte_pairs: Tokenizer) -> None:
    assert (most_variables(256), most_variables(512)) == (64, 128)
    long = "def f(a):\n" + "".join(f"    a = a + {number}\n" for number in range(40))
    found = flow_of(byte_pairs, long, 48)
    assert len(found.ids) == 48
    assert 0 < len(found.spans) <= 12
    assert found.spans.max() < 48
    assert found.edges.max() < len(found.spans)


def test_a_flow_is_found_once_for_all_calls_and_only_in_the_code_that_is_kept(
    byte_pairs: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    ends: list[int] = []

    def counted(code: str, language: str, end: int) -> Flow:
        ends.append(end)
        return data_flow(code, language, end)

    monkeypatch.setattr("codemill.compress.models.dataflow.data_flow", counted)
    long = "def once(a):\n" + "".join(f"    a = a + {number}\n" for number in range(50))
    first = flow_of(byte_pairs, long, 48)
    again, pair = flow_of(byte_pairs, long, 48), flow_of(byte_pairs, (long, long), 48)
    assert len(ends) == 1
    assert 0 < ends[0] < len(long)
    assert np.array_equal(first.edges, again.edges)
    assert len(pair.spans)


def test_two_joined_texts_have_no_edge_between_them(byte_pairs: Tokenizer) -> None:
    pair = ("def f(a):\n    return a", "def g(a):\n    return a")
    found = flow_of(byte_pairs, pair)
    assert found.ids.tolist() == byte_pairs.encode(*pair).ids
    assert found.edges.tolist() == [[0, 1], [2, 3]]
    assert found.special.sum() == 4


def test_data_flow_gives_what_robertas_own_classes_give(byte_pairs: Tokenizer) -> None:
    config = roberta_config(byte_pairs.get_vocab_size(), id2label=LABELS)
    config._attn_implementation = "eager"
    model = noisy(RobertaForSequenceClassification(config))
    found = flow_of(byte_pairs, CODE)
    # by hand, one row, unpadded
    table = model.roberta.embeddings.word_embeddings.weight
    words = [table[index] for index in found.ids.tolist()]
    words += [table[found.ids[start:end].tolist()].mean(0) for start, end in found.spans.tolist()]
    code, whole = len(found.ids), len(found)
    places = [*range(2, 2 + code), *([0] * len(found.spans))]
    seen = flow_batch([found]).attention[:, :whole, :whole].long()
    with torch.inference_mode():
        expected = model(
            inputs_embeds=torch.stack(words)[None],
            position_ids=torch.tensor([places]),
            attention_mask=seen,
        ).logits.softmax(-1)
    encoder, head, pooling = detach_head(model, None)  # type: ignore[arg-type]
    classifier = FlowClassifier(as_bert(encoder), head.eval(), 1, pooling).eval()
    longer = flow_of(byte_pairs, CODE + "\n" + CODE.replace("name", "other"))
    both = classifier.probabilities([found, longer], np.array([[0], [1]]))  # type: ignore[arg-type]
    np.testing.assert_allclose(both[:1], expected.numpy(), atol=1e-5)
    # and it matters: without its variables the same code is another input
    bare = FlowInput(found.ids, found.special, found.spans[:0], found.edges[:0])
    alone = classifier.probabilities([bare], np.array([[0]]))  # type: ignore[arg-type]
    assert abs(alone - both[:1]).max() > 1e-3


def test_gradients_reach_a_teacher_that_reads_data_flow(byte_pairs: Tokenizer) -> None:
    model = noisy(RobertaModel(roberta_config(byte_pairs.get_vocab_size())))
    classifier = FlowClassifier(as_bert(model), torch.nn.Linear(32, 2), 1)
    inputs = [flow_of(byte_pairs, CODE)] * 20
    loss = classifier.logits(inputs, np.arange(20)[:, None]).sum()  # type: ignore[arg-type]
    loss.backward()
    gradient = classifier.encoder.encoder.layer[0].attention.self.query.weight.grad
    assert gradient is not None
    assert gradient.abs().sum() > 0


def test_a_bert_has_no_place_for_variables(teacher: object) -> None:
    model = teacher.model  # type: ignore[attr-defined]
    assert isinstance(model, BertModel)
    with pytest.raises(ModelError, match="GraphCodeBERT"):
        FlowClassifier(model, torch.nn.Linear(32, 2), 1)
