"""Each family the whole way: load, cut, distil a step, export, and decide as torch does."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from tests.compress.conftest import make_pairs, train_tokenizer
from tokenizers import Tokenizer

from codemill.compress.architecture import Architecture
from codemill.compress.commands.export import export_command
from codemill.compress.distill.labels import LabelTargets, label_loss
from codemill.compress.models.classifier import Classifier, Head
from codemill.compress.models.export import export_classifier
from codemill.compress.models.load import TeacherModel, load_teacher
from codemill.compress.models.surgery import architecture_of, cut_student, word_embedding_of
from codemill.compress.models.tokenize import tokenize
from codemill.compress.models.vocabulary import Pruned, Trained
from codemill.compress.models.wordpiece import count_tokens
from codemill.compress.recipe import Distill
from codemill.errors import InputError, ModelError
from codemill.runtime import load_classifier, load_encoder

from .families import FAMILIES, HEADED, LABELS, LONGEST, noisy, save, train_bpe

TEXTS = [text for pair in make_pairs(200, seed=4) for text in (pair.query, pair.code)]


def checkpoint(name: str, folder: Path, headed: bool) -> Path:
    tokenizer = train_tokenizer(TEXTS) if name == "bert" else train_bpe(TEXTS)
    rows = tokenizer.get_vocab_size() + 3
    make = (HEADED if headed else FAMILIES)[name]
    return save(noisy(make(rows)), tokenizer, folder, old_files=False)


def student_of(
    teacher: TeacherModel, layers: tuple[int, ...]
) -> tuple[Classifier, str, Architecture]:
    counts = count_tokens(teacher.tokenizer_json, TEXTS)
    kept = Pruned(teacher.tokenizer_json, counts).at(400)
    whole = architecture_of(teacher, LONGEST)
    smaller = Architecture(
        **{**whole.to_json(), "vocab_size": 400, "layers": len(layers), "copied_layers": layers}
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        head = Head(whole.hidden_size, 2, 1, 16)
    encoder = cut_student(teacher, smaller, kept.kept, kept.counts)
    return Classifier(encoder, head, 1), kept.tokenizer_json, smaller


@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_a_student_of_each_family_learns_a_step_and_decides_in_its_bundle_as_in_torch(
    name: str, tmp_path: Path
) -> None:
    teacher = load_teacher(checkpoint(name, tmp_path / "teacher", headed=False))
    student, tokenizer_json, architecture = student_of(teacher, (0, 2))
    tokens = tokenize(tokenizer_json, TEXTS, LONGEST)
    rows = np.arange(len(TEXTS))[:, None]
    gold = np.array([index % 2 for index in range(len(TEXTS))])
    loss_of = label_loss(student, LabelTargets(tokens, rows, gold), Distill(), False)
    optimizer = torch.optim.SGD(student.parameters(), lr=0.05)
    before = loss_of(np.arange(32))
    before.backward()  # type: ignore[no-untyped-call]
    assert all(value.grad is not None for value in student.head.parameters())
    optimizer.step()
    assert float(loss_of(np.arange(32)).detach()) < float(before.detach())
    export_classifier(
        student.eval(),
        tmp_path / "bundle",
        labels=("text", "code"),
        heads=architecture.heads,
        tokenizer_json=tokenizer_json,
        max_tokens=LONGEST,
        precisions=("fp32",),
        name="tiny",
        architecture=architecture.to_json(),
    )
    expected = student.probabilities(tokens, rows)
    with load_classifier(tmp_path / "bundle") as classifier:
        found = classifier.probabilities(TEXTS)
    assert found == pytest.approx(expected, abs=1e-3)
    assert (found.argmax(1) == expected.argmax(1)).mean() >= 0.999


@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_tokens_of_its_own_start_from_those_they_are_written_with(
    name: str, tmp_path: Path
) -> None:
    teacher = load_teacher(checkpoint(name, tmp_path / "teacher", headed=False))
    found = Trained(TEXTS, teacher.tokenizer_json).at(300)
    whole = architecture_of(teacher, LONGEST)
    wanted = replace(whole, vocab_size=300)
    student = cut_student(teacher, wanted, found.parts, found.counts)
    table = word_embedding_of(teacher.model).weight
    rows = word_embedding_of(student).weight
    written = [number for number, ids in enumerate(found.parts) if ids]
    assert 150 < len(written) < 300
    for number in written:
        expected = table[found.parts[number]].mean(0)
        assert (rows[number] - expected).abs().max() < 1e-6
    uses = torch.tensor([found.counts[number] + 1.0 for number in written])
    mean = (uses[:, None] * rows[written]).sum(0) / uses.sum()
    for number in set(range(300)) - set(written):
        assert (rows[number] - mean).abs().max() < 1e-5


@pytest.mark.parametrize("name", sorted(HEADED))
def test_a_model_that_a_user_has_is_exported_with_its_head(name: str, tmp_path: Path) -> None:
    folder = checkpoint(name, tmp_path / "model", headed=True)
    ended = CliRunner().invoke(
        export_command,
        [str(folder), "--task", "classify", "--out", str(tmp_path / "out"), "--json"],
        catch_exceptions=False,
    )
    assert ended.exit_code == 0
    teacher = load_teacher(folder)
    assert teacher.head is not None
    model = Classifier(teacher.model, teacher.head, 1, teacher.pooling).eval()
    tokens = tokenize(teacher.tokenizer_json, TEXTS[:60], LONGEST)
    expected = model.probabilities(tokens, np.arange(60)[:, None])
    with load_classifier(tmp_path / "out") as classifier:
        assert classifier.labels == tuple(LABELS.values())
        found = classifier.probabilities(TEXTS[:60])
    assert found == pytest.approx(expected, abs=1e-3)


def test_a_model_is_exported_as_an_encoder_with_labels_lengths_and_names_of_ones_own(
    tmp_path: Path,
) -> None:
    folder = checkpoint("roberta", tmp_path / "model", headed=True)

    def export(*arguments: str) -> None:
        CliRunner().invoke(export_command, [str(folder), *arguments], catch_exceptions=False)

    export("--precision", "int8", "--max-tokens", "40", "--out", str(tmp_path / "encoder.mill"))
    with load_encoder(tmp_path / "encoder.mill") as encoder:
        assert encoder.manifest.max_tokens == 40
        assert encoder.encode(["def f(): pass"]).shape == (1, 32)
    named = ("--task", "classify", "--labels", "fine,risky", "--out", str(tmp_path / "named"))
    export(*named)
    with load_classifier(tmp_path / "named") as classifier:
        assert classifier.labels == ("fine", "risky")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--task", "classify", "--labels", "one"], "expected 2 distinct names"),
        (["--max-tokens", "100"], "takes inputs of 60 tokens at most"),
        (["--tokenizer", "not-there.json"], "not a tokenizer.json"),
    ],
)
def test_what_cannot_be_exported_is_said(
    arguments: list[str], message: str, tmp_path: Path
) -> None:
    folder = checkpoint("roberta", tmp_path / "model", headed=True)
    out = tmp_path / "out"
    with pytest.raises(InputError, match=message):
        CliRunner().invoke(
            export_command, [str(folder), *arguments, "--out", str(out)], catch_exceptions=False
        )
    assert not out.exists()


def test_a_model_without_a_head_labels_nothing(tmp_path: Path) -> None:
    folder = checkpoint("roberta", tmp_path / "model", headed=False)
    with pytest.raises(ModelError, match="without a classification head"):
        CliRunner().invoke(
            export_command, [str(folder), "--task", "classify"], catch_exceptions=False
        )


def test_a_tokenizer_of_another_model_is_refused(tmp_path: Path) -> None:
    folder = checkpoint("roberta", tmp_path / "model", headed=False)
    larger = train_bpe([*TEXTS, *(f"name{number} other{number}" for number in range(500))], 900)
    assert isinstance(larger, Tokenizer)
    larger.save(str(tmp_path / "larger.json"))
    with pytest.raises(InputError, match="another model's"):
        CliRunner().invoke(
            export_command,
            [
                str(folder),
                "--tokenizer",
                str(tmp_path / "larger.json"),
                "--out",
                str(tmp_path / "out"),
            ],
            catch_exceptions=False,
        )
