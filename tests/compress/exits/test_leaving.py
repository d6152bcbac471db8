"""A classifier of each family with exits, as it ships: what the runtime decides, and what calibration promises."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from tests.compress.conftest import make_pairs, train_tokenizer
from tests.compress.models.families import FAMILIES, LONGEST, noisy, save, train_bpe
from transformers import BertConfig, BertModel

from codemill.compress.exits.heads import Exiting, exit_layers, read_heads, write_heads
from codemill.compress.exits.thresholds import leaving
from codemill.compress.models.classifier import Classifier, Head
from codemill.compress.models.export import export_classifier
from codemill.compress.models.load import load_teacher
from codemill.compress.models.surgery import architecture_of
from codemill.compress.models.tokenize import tokenize
from codemill.compress.recipe import parse_recipe
from codemill.compress.stages.classify.leaving import (
    Timed,
    calibrated,
    decided,
    said_of_exits,
    timed,
    with_exits,
)
from codemill.errors import RecipeError
from codemill.runtime import load_classifier

TEXTS = [text for pair in make_pairs(120, seed=4) for text in (pair.query, pair.code)]
ROWS = [(TEXTS[index], TEXTS[(index * 7 + 3) % len(TEXTS)]) for index in range(len(TEXTS))]
EXITS = (1, 3)


def exiting_of(name: str, folder: Path, texts: int) -> tuple[Exiting, str, dict[str, object], int]:
    tokenizer = train_tokenizer(TEXTS) if name == "bert" else train_bpe(TEXTS)
    rows = tokenizer.get_vocab_size()
    if name == "bert":
        config = BertConfig(
            vocab_size=rows,
            hidden_size=32,
            num_hidden_layers=4,
            num_attention_heads=4,
            intermediate_size=48,
            max_position_embeddings=LONGEST,
        )
        model = noisy(BertModel(config, add_pooling_layer=False))
    else:
        model = noisy(FAMILIES[name](rows))
    teacher = load_teacher(save(model, tokenizer, folder, old_files=False))
    shape = architecture_of(teacher, LONGEST)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        heads = [Head(32, 3, texts, 16) for _ in range(3)]
        for head in heads:
            # as a new head of pairs says the same of all of them
            torch.nn.init.normal_(head.outer.weight, std=1.0)
    encoder = teacher.model
    exiting = Exiting(Classifier(encoder, heads[-1], texts), EXITS, heads[:-1]).eval()
    # random heads say nearly the same of all rows: without what is common, every label is decided for some
    for head, logits in zip(heads, in_torch(exiting, teacher.tokenizer_json, texts), strict=True):
        scale = 2.0 / logits.std(0).mean()
        with torch.no_grad():
            head.outer.weight *= scale
            head.outer.bias.copy_(
                torch.from_numpy(-logits.mean(0) * scale) + head.outer.bias * scale
            )
            if texts == 2:
                head.alike.weight *= scale
                head.alike.bias *= scale
    return exiting, teacher.tokenizer_json, shape.to_json(), shape.heads


def export(exiting: Exiting, made: tuple[str, dict[str, object], int], folder: Path) -> Path:
    tokenizer_json, architecture, heads = made
    export_classifier(
        exiting.whole,
        folder,
        labels=("a", "b", "c"),
        heads=heads,
        tokenizer_json=tokenizer_json,
        max_tokens=LONGEST,
        precisions=("fp32",),
        name="tiny",
        architecture=architecture,
        exiting=exiting,
    )
    return folder


def in_torch(exiting: Exiting, tokenizer_json: str, texts: int) -> list[np.ndarray]:
    """Logits [rows, labels] at each exit and at the end."""
    tokens = tokenize(tokenizer_json, TEXTS, LONGEST)
    with torch.inference_mode():
        states, at = exiting.embed_distinct(tokens, range(len(TEXTS)))
        where = {text: at[index] for index, text in enumerate(TEXTS)}
        sides = [states[:, [where[row[side]] for row in ROWS]] for side in range(texts)]
        return [logits.numpy().astype(np.float64) for logits in exiting.judge(sides)]


def softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits - logits.max(1, keepdims=True))
    found: np.ndarray = powers / powers.sum(1, keepdims=True)
    return found


def items(texts: int) -> list[str] | list[tuple[str, str]]:
    return list(ROWS) if texts == 2 else [row[0] for row in ROWS]


@pytest.mark.parametrize(
    ("name", "texts"),
    [("bert", 1), ("bert", 2), ("roberta", 2), ("modernbert", 1), ("t5", 2)],
)
def test_rows_leave_where_a_reference_says_and_with_its_probabilities(
    name: str, texts: int, tmp_path: Path
) -> None:
    exiting, *made = exiting_of(name, tmp_path / "teacher", texts)
    folder = export(exiting, (made[0], made[1], made[2]), tmp_path / "bundle")
    logits = in_torch(exiting, made[0], texts)
    temperatures = [1.5, 0.8, 1.2]
    calm = np.stack([softmax(item / t) for item, t in zip(logits, temperatures, strict=True)])
    certainty = calm.max(2)
    # between two rows, so that the last decimals of none decide
    thresholds = [_gap(row) for row in certainty[:-1]]
    exits = [
        {"layer": layer, "temperature": t, "threshold": threshold}
        for layer, t, threshold in zip(EXITS, temperatures, thresholds, strict=False)
    ]
    with_exits(folder, exits, temperatures[-1])
    with load_classifier(folder, threads=1) as classifier:
        found = classifier.run(items(texts))
        whole = classifier.probabilities(items(texts), exits=False)
    at = leaving(certainty[:-1], thresholds)
    assert found.layers_used.tolist() == np.array([*EXITS, 4])[at].tolist()
    assert len(set(found.layers_used.tolist())) >= 2
    assert np.abs(found.probabilities - calm[at, np.arange(len(ROWS))]).max() < 1e-4
    assert np.abs(whole - calm[-1]).max() < 1e-4


def _gap(values: np.ndarray) -> float:
    """A threshold that about half of the values reach, in the widest gap near there."""
    middle = np.sort(values)[len(values) // 3 : 2 * len(values) // 3]
    widest = int(np.diff(middle).argmax())
    return float(middle[widest : widest + 2].mean())


def test_calibration_keeps_its_bound_for_rows_to_come_and_saves_layers(tmp_path: Path) -> None:
    exiting, *made = exiting_of("bert", tmp_path / "teacher", 1)
    # what the last head says is true: then exits can only lose
    folder = export(exiting, (made[0], made[1], made[2]), tmp_path / "bundle")
    truth = in_torch(exiting, made[0], 1)[-1].argmax(1)
    assert (np.bincount(truth) > 10).all()
    truth[:5] = -1
    used, before = [], np.ones(len(truth), dtype=bool)
    for max_loss in (0.05, 0.2, 0.6):
        found = calibrated(
            folder, "cpu-fp32", 1, items(1), truth, before, max_loss, lambda *_: None
        )
        assert found is not None
        assert found.rows == len(truth) - 5
        assert found.accuracy_without_exits == 1.0
        assert found.accuracy == pytest.approx(1.0 - found.loss)
        assert found.loss < found.loss_upper <= max_loss
        assert sum(found.left.values()) == pytest.approx(1)
        with load_classifier(folder, threads=1) as classifier:
            now = classifier.run(items(1))
        right = (now.probabilities.argmax(1) == truth)[5:]
        assert right.mean() == found.accuracy
        assert now.layers_used[5:].mean() == pytest.approx(found.layers_used)
        used.append(found.layers_used)
    assert used == sorted(used, reverse=True)
    assert used[-1] < used[0]


def test_an_accuracy_that_the_files_do_not_have_has_no_thresholds(tmp_path: Path) -> None:
    exiting, *made = exiting_of("bert", tmp_path / "teacher", 1)
    folder = export(exiting, (made[0], made[1], made[2]), tmp_path / "bundle")
    truth, before = np.arange(len(ROWS)) % 3, np.ones(len(ROWS), dtype=bool)
    found = calibrated(folder, "cpu-fp32", 1, items(1), truth, before, 0.05, lambda *_: None)
    assert found is None


def test_an_exit_at_which_no_row_may_leave_is_written_so_that_none_does(tmp_path: Path) -> None:
    exiting, *made = exiting_of("bert", tmp_path / "teacher", 1)
    with torch.no_grad():
        # certain of one label, whatever the row: 1 in floating point
        exiting.heads[0].outer.weight.zero_()
        exiting.heads[0].outer.bias.copy_(torch.tensor([200.0, 0.0, 0.0]))
    folder = export(exiting, (made[0], made[1], made[2]), tmp_path / "bundle")
    truth = in_torch(exiting, made[0], 1)[-1].argmax(1)
    before = np.ones(len(truth), dtype=bool)
    found = calibrated(folder, "cpu-fp32", 1, items(1), truth, before, 0.2, lambda *_: None)
    assert found is not None
    assert "1" not in found.left
    assert "3" in found.left


def test_rows_too_few_for_the_bound_are_counted_in_the_finding(
    tmp_path: Path,
) -> None:
    exiting, *made = exiting_of("bert", tmp_path / "teacher", 1)
    exited = export(exiting, (made[0], made[1], made[2]), tmp_path / "exited")
    recipe = parse_recipe(
        {
            "name": "x",
            "task": "classification",
            "data": {"source": "a.jsonl"},
            "exits": {"after": [1, 3]},
        }
    )
    truth = in_torch(exiting, made[0], 1)[-1].argmax(1)
    found = decided(recipe, exited, exited, "cpu-fp32", 1, items(1), truth, lambda *_: None)
    assert not found["accepted"]
    said = said_of_exits(found)
    assert said.startswith(
        f"exits do not ship ({len(ROWS)} validation rows with a label are too few"
    )
    assert "takes 385 at least" in said


def test_rows_that_are_timed_are_drawn_by_the_seed_and_the_bundles_take_turns_to_be_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[tuple[str, str]] = []

    class Counted:
        def __init__(self, folder: Path, **_: object) -> None:
            self.name = folder.name

        def __enter__(self) -> Counted:
            return self

        def __exit__(self, *_: object) -> None:
            pass

        def run(self, call: list[str], batch_size: int) -> None:
            if batch_size == 1:
                ran.append((self.name, call[0]))

    monkeypatch.setattr("codemill.compress.stages.classify.leaving.load_classifier", Counted)
    rows = [f"row {number}" for number in range(1000)]
    timed(Path("plain"), Path("early"), "cpu-fp32", 1, rows, 0, lambda *_: None)
    firsts = [name for name, _ in ran[::2]]
    assert firsts.count("plain") == firsts.count("early")
    assert ran[0][1] == ran[1][1]
    seen = {row for _, row in ran}
    assert len(seen) == 64
    assert seen != set(rows[:64])
    ran.clear()
    timed(Path("plain"), Path("early"), "cpu-fp32", 1, rows, 1, lambda *_: None)
    assert {row for _, row in ran} != seen


def test_heads_of_exits_are_read_as_they_were_written(tmp_path: Path) -> None:
    exiting, *_ = exiting_of("bert", tmp_path / "teacher", 2)
    write_heads(exiting, tmp_path)
    again = read_heads(tmp_path, EXITS, 2, ordered=False)
    rows = torch.randn(2, 5, 32, generator=torch.Generator().manual_seed(0))
    for before, after in zip(exiting.heads, again, strict=True):
        assert torch.equal(before(*rows), after(*rows))


@pytest.mark.parametrize(
    ("layers", "expected"),
    [(1, ()), (2, (1,)), (3, (1, 2)), (4, (1, 3)), (6, (2, 4)), (12, (3, 6, 9))],
)
def test_auto_spaces_exits_evenly_below_the_last_layer(
    layers: int, expected: tuple[int, ...]
) -> None:
    assert exit_layers("auto", layers) == expected
    assert exit_layers("none", layers) == ()


def test_an_exit_that_is_not_below_the_last_layer_is_refused() -> None:
    assert exit_layers((1, 2), 3) == (1, 2)
    with pytest.raises(RecipeError, match="lists layer 3, and the student has 3"):
        exit_layers((1, 3), 3)


@pytest.mark.parametrize(
    ("after", "times_faster", "budget", "reason"),
    [
        ("auto", 1.3, None, None),
        ("auto", 0.9, None, "not faster on this machine"),
        ("auto", 1.3, 1000, "over the budget of 1,000"),
        # a list of layers is what the user wants
        ([1, 3], 0.9, None, None),
    ],
)
def test_auto_ships_exits_only_where_they_are_faster_and_fit(
    after: object,
    times_faster: float,
    budget: int | None,
    reason: str | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    exiting, *made = exiting_of("bert", tmp_path / "teacher", 1)
    exited = export(exiting, (made[0], made[1], made[2]), tmp_path / "exited")
    plain = tmp_path / "plain"
    export_classifier(
        exiting.whole,
        plain,
        labels=("a", "b", "c"),
        heads=made[2],
        tokenizer_json=made[0],
        max_tokens=LONGEST,
        precisions=("fp32",),
        name="tiny",
        architecture=made[1],
    )
    truth = in_torch(exiting, made[0], 1)[-1].argmax(1)
    clock = [
        Timed(batch, 2.0, 2.0 / times_faster, times_faster, times_faster - 0.01, 2.0)
        for batch in (1, 8)
    ]
    monkeypatch.setattr("codemill.compress.stages.classify.leaving.timed", lambda *_: clock)
    recipe = parse_recipe(
        {
            "name": "x",
            "task": "classification",
            "data": {"source": "a.jsonl"},
            "exits": {"after": after, "max_loss": 0.2},
            "budget": {"size_bytes": budget},
        }
    )
    found = decided(recipe, plain, exited, "cpu-fp32", 1, items(1), truth, lambda *_: None)
    assert found["accepted"] is (reason is None)
    assert found["accuracy_of_plain"] == found["accuracy_without_exits"] == 1.0
    assert found["accuracy"] == pytest.approx(1.0 - found["loss"])
    assert found["loss"] < found["loss_upper"] <= 0.2 + 1e-6
    assert found["rows"] == len(ROWS)
    if reason is not None:
        assert reason in found["reason"]
    said = said_of_exits(found)
    assert ("exits ship:" in said) is (reason is None)
    assert "2.00 ms for 8 a call" in said


def test_both_bundles_are_timed_on_the_same_rows(tmp_path: Path) -> None:
    exiting, *made = exiting_of("bert", tmp_path / "teacher", 1)
    exited = export(exiting, (made[0], made[1], made[2]), tmp_path / "exited")
    found = timed(exited, exited, "cpu-fp32", 1, items(1)[:9], 0, lambda *_: None)
    assert [item.batch for item in found] == [1, 8]
    assert all(item.low <= item.times_faster <= item.high for item in found)
    # a call of eight rows does more than a call of one
    assert found[1].with_ms > found[0].with_ms
