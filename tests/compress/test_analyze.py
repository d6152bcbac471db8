"""The analysis on small models of every family, and the command."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    CodeGenConfig,
    GPT2Config,
    GPTBigCodeConfig,
    LlamaConfig,
    PretrainedConfig,
    Qwen2Config,
    Starcoder2Config,
)

from codemill.cli import main
from codemill.compress.analyze.analysis import Settings, analyze
from codemill.compress.analyze.properties import plan
from codemill.compress.analyze.source import Snippet
from codemill.compress.analyze.stack import Stack, Units, load_finetuned, load_stack, outputs
from codemill.compress.data.pairs import Pair
from codemill.errors import DataError, MachineError, ModelError
from codemill.targets.analysis import read_analysis

from .models.families import FAMILIES, HEADS, HIDDEN, INNER, LAYERS, LONGEST, noisy, save, train_bpe

_SMALL = {"n_embd": HIDDEN, "n_layer": LAYERS, "n_head": HEADS, "n_positions": LONGEST}
_LLAMA: dict[str, Any] = {
    "hidden_size": HIDDEN,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "num_key_value_heads": 2,
    "intermediate_size": INNER,
    "max_position_embeddings": LONGEST,
}
DECODERS: dict[str, Callable[[int], PretrainedConfig]] = {
    "llama": lambda rows: LlamaConfig(vocab_size=rows, **_LLAMA),
    "qwen2": lambda rows: Qwen2Config(vocab_size=rows, **_LLAMA),
    "starcoder2": lambda rows: Starcoder2Config(vocab_size=rows, **_LLAMA),
    "gpt2": lambda rows: GPT2Config(vocab_size=rows, **_SMALL),
    "gpt_bigcode": lambda rows: GPTBigCodeConfig(vocab_size=rows, **_SMALL),
    "codegen": lambda rows: CodeGenConfig(vocab_size=rows, rotary_dim=4, **_SMALL),
}


@pytest.fixture(scope="session")
def byte_pairs(pairs: list[Pair]) -> Tokenizer:
    return train_bpe([text for pair in pairs for text in (pair.query, pair.code)])


@pytest.fixture(scope="session")
def folder_of(
    byte_pairs: Tokenizer, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Path]:
    """The folder of a family's small model; not to be written to."""
    made: dict[str, Path] = {}

    def folder(family: str) -> Path:
        if family not in made:
            rows = byte_pairs.get_vocab_size()
            if family in DECODERS:
                model = AutoModelForCausalLM.from_config(DECODERS[family](rows))
            else:
                model = FAMILIES[family](rows)
            made[family] = save(noisy(model), byte_pairs, tmp_path_factory.mktemp(family), False)
        return made[family]

    return folder


@pytest.fixture(scope="session")
def snippets(pairs: list[Pair]) -> list[Snippet]:
    return [Snippet(pair.code, pair.query) for pair in pairs[:60]]


def texts(count: int, rows: int) -> list[np.ndarray]:
    chance = np.random.default_rng(0)
    return [chance.integers(5, rows, size) for size in (31, 7, 18, 25, 3)[:count]]


# importing GPTBigCode has torch compile its activations
@pytest.mark.filterwarnings("ignore:.torch.jit.script.*:DeprecationWarning")
@pytest.mark.parametrize("family", [*FAMILIES, *DECODERS])
def test_what_a_layer_hands_on_is_what_transformers_says_it_is(
    folder_of: Callable[[str], Path], byte_pairs: Tokenizer, family: str
) -> None:
    stack = load_stack(str(folder_of(family)))
    assert (len(stack.layers), stack.hidden_size) == (LAYERS, HIDDEN)
    given = texts(5, byte_pairs.get_vocab_size())
    units = Units(
        np.array([0, 0, 2, 4, 3]), np.array([0, 4, -1, 1, -1]), np.array([3, 5, -1, 3, -1])
    )
    # the last is normalised by some families and by others not
    layers = range(LAYERS)
    found = outputs(stack, given, units, layers)
    assert found.shape == (LAYERS, 5, HIDDEN)
    for row, (text, first, last) in enumerate(
        zip(units.text, units.first, units.last, strict=True)
    ):
        ids = torch.from_numpy(given[text])[None]
        with torch.inference_mode():
            hidden = stack.model(
                input_ids=ids, attention_mask=torch.ones_like(ids), output_hidden_states=True
            ).hidden_states
        for layer in layers:
            whole = hidden[layer][0].numpy()
            expected = (whole if first < 0 else whole[first:last]).mean(0)
            np.testing.assert_allclose(found[layer, row], expected, atol=2e-5)


def test_the_last_layer_is_given_as_it_is_and_not_normalised(
    folder_of: Callable[[str], Path],
) -> None:
    stack = load_stack(str(folder_of("llama")))
    units = Units(np.array([0]), np.array([0]), np.array([1]))
    given = texts(1, 100)
    found = torch.from_numpy(outputs(stack, given, units, range(LAYERS, LAYERS + 1)))[0]
    last = stack.model(input_ids=torch.from_numpy(given[0])[None]).last_hidden_state[0, :1]
    assert not torch.allclose(found, last, atol=1e-3)
    assert torch.allclose(stack.model.norm(found), last, atol=1e-5)


@pytest.mark.parametrize("family", ["roberta", "llama"])
def test_a_whole_analysis_is_the_same_for_one_seed_however_little_memory_it_has(
    folder_of: Callable[[str], Path], snippets: list[Snippet], family: str
) -> None:
    stack = load_stack(str(folder_of(family)))
    names = ("m", "d", None)
    found = [
        analyze(snippets, stack, None, Settings(60, 400, 0, memory), names) for memory in (10**9, 1)
    ]
    assert found[0] == found[1]
    first = found[0]
    assert [layer.layer for layer in first.by_layer] == list(range(LAYERS + 1))
    assert [item.kind for item in first.properties] == [
        *("lexical", "syntactic", "syntactic", "structural", "semantic")
    ]
    assert first.language == "python"
    assert first.recommendation.rule == "probes"
    # what kind of token it is, even random embeddings tell
    kind = first.by_layer[0].probe("token-type")
    assert kind is not None
    assert kind.accuracy > first.properties[0].majority + 0.2


def test_a_model_that_changed_from_a_layer_on_is_frozen_up_to_it(
    folder_of: Callable[[str], Path], snippets: list[Snippet], tmp_path: Path
) -> None:
    folder = folder_of("roberta")
    stack = load_stack(str(folder))
    # as the stage `teacher` leaves a fine-tuned model in its folder
    state = {name: value.clone() for name, value in stack.model.state_dict().items()}
    noise = torch.Generator().manual_seed(0)
    for name, value in state.items():
        if name.startswith(("encoder.layer.2.", "encoder.layer.3.")):
            value += torch.randn(value.shape, generator=noise)
    save_file(state, tmp_path / "finetuned.safetensors")
    other = load_finetuned(str(tmp_path), str(folder), stack)
    found = analyze(snippets, stack, other, Settings(60, 300), ("m", "d", "f"))
    alike = [(layer.rsa, layer.cka) for layer in found.by_layer]
    assert alike[:3] == [(pytest.approx(1), pytest.approx(1))] * 3
    assert min(x for x in alike[3] if x is not None) < 0.9
    assert (found.recommendation.freeze_layers, found.recommendation.rule) == (2, "similarity")
    for layer in found.by_layer[:3]:
        assert layer.finetuned_probes == layer.probes
    assert found.by_layer[3].finetuned_probes != found.by_layer[3].probes


def test_a_stage_of_a_classifier_is_read_too(
    folder_of: Callable[[str], Path], tmp_path: Path
) -> None:
    stack = load_stack(str(folder_of("roberta")))
    state = {f"encoder.{name}": value + 1 for name, value in stack.model.state_dict().items()}
    save_file({**state, "head.weight": torch.zeros(2)}, tmp_path / "finetuned.safetensors")
    other = load_finetuned(str(tmp_path), str(folder_of("roberta")), stack)
    for name, value in stack.model.state_dict().items():
        assert torch.equal(other.model.state_dict()[name], value + 1)
    (tmp_path / "finetuned.safetensors").write_bytes(b"x")
    with pytest.raises(ModelError, match="cannot be read"):
        load_finetuned(str(tmp_path), str(folder_of("roberta")), stack)


def _copied(folder: Path, to: Path) -> Path:
    return Path(shutil.copytree(folder, to))


def test_another_model_is_not_a_fine_tuned_form(
    folder_of: Callable[[str], Path], byte_pairs: Tokenizer, tmp_path: Path
) -> None:
    name = str(folder_of("llama"))
    stack = load_stack(name)
    narrow = DECODERS["llama"](byte_pairs.get_vocab_size())
    narrow.hidden_size, narrow.num_hidden_layers = 16, 2
    save(AutoModel.from_config(narrow), byte_pairs, tmp_path / "narrow", False)
    with pytest.raises(ModelError, match=r"has layers 2, .* has 4"):
        load_finetuned(str(tmp_path / "narrow"), name, stack)
    with pytest.raises(ModelError, match=r"has family qwen2, .* has llama"):
        load_finetuned(str(folder_of("qwen2")), name, stack)
    renamed = _copied(folder_of("llama"), tmp_path / "renamed")
    value = json.loads((renamed / "tokenizer.json").read_text())
    value["model"]["vocab"]["zzz"] = value["model"]["vocab"].pop("z")
    value["model"]["merges"] = []
    (renamed / "tokenizer.json").write_text(json.dumps(value))
    with pytest.raises(ModelError, match="another tokenizer"):
        load_finetuned(str(renamed), name, stack)


def test_weights_that_are_missing_are_not_filled_with_random_numbers(
    folder_of: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = _copied(folder_of("llama"), tmp_path / "cut")
    state = load_file(folder / "model.safetensors")
    state.pop(next(name for name in state if "layers.1.mlp.up_proj" in name))
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"lack 1 of its tensors \(layers.1.mlp.up_proj"):
        load_stack(str(folder))
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"neither model.safetensors nor"):
        load_stack(str(folder))


def test_a_gguf_file_says_what_reads_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MachineError, match="pip install --no-deps gguf accelerate"):
        load_stack(str(tmp_path))
    (tmp_path / "two.gguf").write_bytes(b"GGUF")
    with pytest.raises(ModelError, match=r"several GGUF files \(model.gguf, two.gguf\)"):
        load_stack(str(tmp_path))


def test_the_semantic_property_is_what_the_data_has(
    byte_pairs: Tokenizer, pairs: list[Pair]
) -> None:
    def named(snippets: list[Snippet]) -> str:
        planned = plan(snippets, "python", byte_pairs.to_str(), 60, 400, 0)
        return planned.tasks[-1].asked.name

    some = pairs[:80]
    assert (
        named([Snippet(pair.code, pair.query, str(i % 2)) for i, pair in enumerate(some)])
        == "label"
    )
    assert named([Snippet(pair.code, pair.query) for pair in some]) == "docstring"
    assert named([Snippet(pair.code) for pair in some]) == "name"


def test_the_code_that_a_name_is_matched_with_lacks_the_name(
    byte_pairs: Tokenizer, pairs: list[Pair]
) -> None:
    planned = plan(
        [Snippet(pair.code) for pair in pairs[:80]], "python", byte_pairs.to_str(), 60, 400, 0
    )
    task = planned.tasks[-1]
    words, code = (
        byte_pairs.decode(planned.texts[planned.units.text[row]]) for row in task.rows[0]
    )
    name = "_".join(words.split())
    assert any(f"def {name}(" in pair.code for pair in pairs)
    assert re.match(r"def f\(", code)
    assert name not in code


def test_siblings_cannot_be_told_by_distance_or_kind_of_token(
    byte_pairs: Tokenizer, snippets: list[Snippet]
) -> None:
    planned = plan(snippets, "python", byte_pairs.to_str(), 60, 100_000, 0)
    task = next(task for task in planned.tasks if task.asked.name == "siblings")
    gaps = planned.units.first[task.rows[:, 1]] - planned.units.first[task.rows[:, 0]]
    for gap in np.unique(gaps)[:1]:
        # a token may be several subwords, so only the nearest are surely of one distance
        assert task.labels[gaps == gap].mean() == pytest.approx(0.5, abs=0.25)
    assert task.labels.mean() == 0.5


def test_no_function_is_learned_from_and_tested_on(
    byte_pairs: Tokenizer, snippets: list[Snippet]
) -> None:
    planned = plan(snippets, "python", byte_pairs.to_str(), 60, 400, 0)
    for task in planned.tasks:
        learned = set(planned.units.text[task.rows[task.train]].ravel().tolist())
        tested = set(planned.units.text[task.rows[~task.train]].ravel().tolist())
        assert learned
        assert tested
        assert not learned & tested


def test_prose_is_no_code(folder_of: Callable[[str], Path]) -> None:
    stack = load_stack(str(folder_of("roberta")))
    prose = [
        Snippet(f"There is no code in here, {number}: believe me. (At all!") for number in range(50)
    ]
    with pytest.raises(DataError, match="--language"):
        analyze(prose, stack, None, Settings(), ("m", "prose.jsonl", None))
    with pytest.raises(DataError, match="only 0 of 50 distinct snippets can be parsed as java"):
        analyze(prose, stack, None, Settings(language="java"), ("m", "prose.jsonl", None))


def _data(path: Path, snippets: list[Snippet]) -> Path:
    rows = [{"query": each.query, "code": each.code} for each in snippets]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_the_command_prints_one_document_and_writes_the_same_and_a_page(
    folder_of: Callable[[str], Path],
    snippets: list[Snippet],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    data, out = _data(tmp_path / "d.jsonl", snippets), tmp_path / "out"
    arguments = ["analyze", "--model", str(folder_of("gpt2")), "--data", str(data)]
    arguments += ["--finetuned", str(folder_of("gpt2")), "--items", "200", "--out", str(out)]
    assert main([*arguments, "--json"]) == 0
    said = capsys.readouterr()
    document = json.loads(said.out)
    assert document.pop("files") == [str(out / name) for name in ("analysis.json", "analysis.html")]
    assert document == json.loads((out / "analysis.json").read_text())
    found = read_analysis(out / "analysis.json")
    assert found.recommendation.freeze_layers == 2
    assert "analyzing: done" in said.err
    page = (out / "analysis.html").read_text()
    assert "Freeze the lowest 2 of 4 layers" in page
    assert page.count("<svg") == 3
    assert main(arguments) == 0
    said = capsys.readouterr()
    assert "freeze the lowest 2 of 4 layers" in said.out
    assert "token-type" in said.out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "nowhere/at/all"], "is not a folder here"),
        (["--data", "nothing.jsonl"], "nothing.jsonl"),
        (["--language", "klingon"], "klingon"),
        (["--finetuned", "./nowhere"], "is not a folder here"),
    ],
)
def test_the_command_says_what_was_wrong(
    folder_of: Callable[[str], Path],
    snippets: list[Snippet],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    given = {
        "--model": str(folder_of("gpt2")),
        "--data": str(_data(tmp_path / "d.jsonl", snippets)),
    }
    given |= dict([tuple(arguments)])  # type: ignore[list-item]
    code = main(["analyze", *[word for pair in given.items() for word in pair]])
    said = capsys.readouterr()
    assert (code, said.out) == (1, "")
    assert message in said.err
    assert "bug" not in said.err


def test_a_stack_is_bounded_by_its_positions(folder_of: Callable[[str], Path]) -> None:
    stack: Stack = load_stack(str(folder_of("roberta")))
    assert stack.most_tokens == LONGEST
