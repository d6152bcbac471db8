"""Labels of functions as diagnostics, over the protocol."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from lsprotocol import types

import codemill
from codemill.runtime import Classifier, functions_of

from .conftest import PARSING, SOCKETS, Editor

pytestmark = pytest.mark.asyncio
TWO = SOCKETS + "\n\ndef times(x):\n    return matrix(x)\n"


def at_once(labelling: Path, **more: Any) -> dict[str, Any]:
    return {"diagnostics": {"bundle": str(labelling), "debounce_ms": 0, **more}}


async def test_each_function_has_its_label_and_score_where_it_begins(
    editor: Editor, labelling: Path
) -> None:
    await editor.begin(at_once(labelling, least_score=0))
    found = await editor.diagnostics(editor.open("two.py", TWO))
    with codemill.load(labelling) as model:
        assert isinstance(model, Classifier)
        wanted = model.predict([function.code for function in functions_of(TWO)])
    assert [item.code for item in found] == [item.label for item in wanted] == ["socket", "matrix"]
    assert [item.data["score"] for item in found] == pytest.approx(
        [item.score for item in wanted], abs=1e-3
    )
    first, second = found
    assert first.message.startswith(f"socket ({wanted[0].score:.2f}): Client.begin")
    assert first.range == types.Range(types.Position(1, 4), types.Position(1, 20))
    assert second.range == types.Range(types.Position(5, 0), types.Position(5, 13))
    assert {item.source for item in found} == {"codemill"}
    assert {item.severity for item in found} == {types.DiagnosticSeverity.Information}


async def test_the_settings_choose_labels_severities_and_scores(
    editor: Editor, labelling: Path
) -> None:
    await editor.begin(at_once(labelling, labels={"matrix": "warning"}, least_score=0))
    uri = editor.open("two.py", TWO)
    (only,) = await editor.diagnostics(uri)
    assert (only.code, only.severity) == ("matrix", types.DiagnosticSeverity.Warning)
    settings = at_once(labelling, least_score=1)
    editor.client.workspace_did_change_configuration(types.DidChangeConfigurationParams(settings))
    assert await editor.diagnostics(uri) == []


async def test_they_follow_edits_and_go_with_the_text(editor: Editor, labelling: Path) -> None:
    await editor.begin(at_once(labelling, least_score=0))
    uri = editor.open("two.py", TWO)
    assert len(await editor.diagnostics(uri)) == 2
    editor.change(uri, "matrix(matrix(self))", (2, 15, 2, 36))
    assert [item.code for item in await editor.diagnostics(uri)] == ["matrix", "matrix"]
    editor.change(uri, PARSING)
    assert [item.code for item in await editor.diagnostics(uri)] != ["matrix", "matrix"]
    editor.close(uri)
    assert await editor.diagnostics(uri) == []


async def test_a_text_that_does_not_parse_keeps_what_is_shown(
    editor: Editor, labelling: Path
) -> None:
    await editor.begin(at_once(labelling, least_score=0))
    uri = editor.open("two.py", TWO)
    assert len(await editor.diagnostics(uri)) == 2
    editor.change(uri, "def broken(:\n" + TWO)
    # the thread answers in order: nothing was published for the first meanwhile
    assert await editor.diagnostics(editor.open("other.py", PARSING))


async def test_on_save_alone_edits_are_not_labelled(editor: Editor, labelling: Path) -> None:
    await editor.begin(at_once(labelling, least_score=0, on="save"))
    uri = editor.open("two.py", PARSING)
    assert len(await editor.diagnostics(uri)) == 1
    editor.change(uri, TWO)
    editor.save(uri)
    assert len(await editor.diagnostics(uri)) == 2


async def test_what_is_not_python_is_not_labelled(editor: Editor, labelling: Path) -> None:
    await editor.begin(at_once(labelling, least_score=0))
    editor.open("notes.txt", TWO, language="plaintext")
    assert await editor.diagnostics(editor.open("two.py", TWO))
