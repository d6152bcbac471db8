"""Inline completion over the protocol: what is answered, and what is not answered any more."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from lsprotocol import types
from pygls.exceptions import JsonRpcException

import codemill
from codemill.runtime import Completer
from codemill.server.completing import first_read

from .conftest import Editor

pytestmark = pytest.mark.asyncio
TEXT = "def add(a, b):\n    return a + b\n\nprint(add(1, 2))\n"
CANCELLED, MODIFIED, FAILED = -32800, -32801, -32803
# of a completion that is to be stopped on the way
LONG = {"max_tokens": 1024, "mode": "none", "debounce_ms": 0}


def by_the_runtime(decoder: Path, text: str, line: int, character: int, count: int) -> list[str]:
    """What the runtime completes by itself at a place (of lines that end with \\n), as items."""
    at = sum(len(item) for item in text.splitlines(keepends=True)[:line]) + character
    with codemill.load(decoder) as model:
        assert isinstance(model, Completer)
        suffix = text[at:] if model.fills else ""
        found = model.complete(text[:at], suffix, max_tokens=count, mode="line").text
    return [found] if found.strip() else []


async def code_of(asked: Any) -> int:
    """The error code that a request is answered with; 0 where it is answered with a result."""
    try:
        await asked
    except JsonRpcException as error:
        return error.code
    return 0


async def test_it_is_what_the_runtime_completes_of_the_text_as_it_is_now(
    editor: Editor, decoder: Path
) -> None:
    await editor.begin({"completion": {"bundle": str(decoder), "max_tokens": 12}})
    uri = editor.open("new.py", TEXT)
    assert await editor.complete(uri, 4, 0) == by_the_runtime(decoder, TEXT, 4, 0, 12)
    assert await editor.complete(uri, 0, 9) == by_the_runtime(decoder, TEXT, 0, 9, 12)
    editor.change(uri, "ab", (4, 0, 4, 0))
    editor.change(uri, "sub", (0, 4, 0, 7))
    changed = TEXT.replace("def add", "def sub") + "ab"
    assert await editor.complete(uri, 4, 2) == by_the_runtime(decoder, changed, 4, 2, 12)


async def test_places_count_as_the_protocol_counts_them(editor: Editor, decoder: Path) -> None:
    await editor.begin({"completion": {"bundle": str(decoder), "max_tokens": 8}})
    # a form feed and U+2028 end no line, a carriage return does; a smiley is two units
    text = "a = 1\fb = 2\u2028c\rd = '\U0001f600' + x\n"
    uri = editor.open("new.py", text)
    whole = len(text)
    assert await editor.complete(uri, 2, 0) == by_the_runtime(decoder, text, 0, whole, 8)
    editor.change(uri, "yz", (1, 11, 1, 12))
    changed = text.replace("+ x", "+ yz")
    assert await editor.complete(uri, 2, 0) == by_the_runtime(decoder, changed, 0, whole + 1, 8)


async def test_a_model_that_does_not_see_what_follows_completes_at_ends_of_lines_only(
    editor: Editor, behind: Path
) -> None:
    await editor.begin({"completion": {"bundle": str(behind), "max_tokens": 12}})
    uri = editor.open("new.py", TEXT)
    assert await editor.complete(uri, 1, 11) == []
    assert await editor.complete(uri, 0, 14) == by_the_runtime(behind, TEXT, 0, 14, 12)


async def test_of_a_long_text_what_is_near_is_read_in_steps(editor: Editor, decoder: Path) -> None:
    settings = {"bundle": str(decoder), "max_tokens": 8, "context_chars": 100}
    await editor.begin({"completion": settings})
    text = "".join(f"x{number} = {number}\n" for number in range(100))
    uri = editor.open("new.py", text)
    at = len(text)
    assert [first_read(place, 100) for place in (0, 100, 101, 125, 126)] == [0, 0, 25, 25, 50]
    near = text[first_read(at, 100) :]
    assert 75 <= len(near) <= 100
    found = await editor.complete(uri, 100, 0)
    assert found == by_the_runtime(decoder, near, near.count("\n"), 0, 8)


async def test_it_is_off_where_no_bundle_is_named(editor: Editor) -> None:
    await editor.begin({})
    uri = editor.open("new.py", TEXT)
    assert await editor.complete(uri, 4, 0) is None


async def test_a_cancel_takes_effect_within_a_token(editor: Editor, endless: Path) -> None:
    await editor.begin({"completion": {"bundle": str(endless), **LONG}})
    uri = editor.open("new.py", TEXT)
    # one that has ended before the cancel is received says nothing: another one is asked for
    for number in range(50):
        base = (await editor.status()).completion.tokens
        asked = editor.ask(uri, 4, 0, msg_id=f"asked-{number}")
        await editor.until(lambda status, base=base: status.completion.tokens > base)
        editor.client.protocol.notify(types.CANCEL_REQUEST, types.CancelParams(f"asked-{number}"))
        # messages are handled in their order: this is answered as the cancel is
        behind = await editor.status()
        if await code_of(asked) == CANCELLED:
            break
    else:
        pytest.fail("no request was cancelled before it had ended")
    after = await editor.status()
    assert after.completion.tokens - behind.completion.tokens <= 1
    assert after.completion.tokens - base < 1024
    # and the thread is free for the next
    assert await code_of(editor.ask(uri, 4, 0)) == 0
    assert (await editor.status()).completion.tokens == after.completion.tokens + 1024


async def test_a_request_that_is_cancelled_while_it_waits_computes_nothing(
    editor: Editor, endless: Path
) -> None:
    await editor.begin({"completion": {"bundle": str(endless), **LONG, "debounce_ms": 10_000}})
    uri = editor.open("new.py", TEXT)
    asked = editor.ask(uri, 4, 0, by_hand=False, msg_id="asked")
    editor.client.protocol.notify(types.CANCEL_REQUEST, types.CancelParams("asked"))
    assert await code_of(asked) == CANCELLED
    assert (await editor.status()).completion.tokens == 0


async def test_a_request_for_a_text_that_has_changed_is_not_answered(
    editor: Editor, endless: Path
) -> None:
    await editor.begin({"completion": {"bundle": str(endless), **LONG}})
    uri = editor.open("new.py", TEXT)
    await editor.until(lambda status: status.completion.state == "ready")
    asked = editor.ask(uri, 4, 0)
    editor.change(uri, "x", (4, 0, 4, 0))
    assert await code_of(asked) == MODIFIED


async def test_of_several_requests_the_newest_is_answered(editor: Editor, decoder: Path) -> None:
    settings = {"bundle": str(decoder), "max_tokens": 8, "debounce_ms": 10_000}
    await editor.begin({"completion": settings})
    uri = editor.open("new.py", TEXT)
    waiting = [editor.ask(uri, 4, 0, by_hand=False) for _ in range(5)]
    newest = editor.ask(uri, 4, 0)
    assert [await code_of(one) for one in waiting] == [MODIFIED] * 5
    assert await code_of(newest) == 0


async def test_requests_for_other_texts_do_not_stop_each_other(
    editor: Editor, decoder: Path
) -> None:
    await editor.begin({"completion": {"bundle": str(decoder), "max_tokens": 8}})
    uris = [editor.open(f"{number}.py", TEXT + f"x{number} = ") for number in range(5)]
    asked = [editor.ask(uri, 4, 5, by_hand=False) for uri in uris]
    assert [await code_of(one) for one in asked] == [0] * 5


async def test_typing_is_never_answered_with_what_was_before(editor: Editor, decoder: Path) -> None:
    settings = {"bundle": str(decoder), "max_tokens": 6, "debounce_ms": 1}
    await editor.begin({"completion": settings, "search": {"bundle": "missing"}})
    uri = editor.open("new.py", "")
    text, known = "", {}
    answered = 0
    for number in range(120):
        letter = "value = read(name)\n"[number % 19]
        line, character = text.count("\n"), len(text.rpartition("\n")[2])
        editor.change(uri, letter, (line, character, line, character))
        text += letter
        line, character = text.count("\n"), len(text.rpartition("\n")[2])
        known[text] = editor.ask(uri, line, character, by_hand=number % 3 == 0)
        if number % 4 == 0:
            # the writer pauses and waits for what is offered
            items = await known[text]
            wanted = by_the_runtime(decoder, text, line, character, 6)
            assert [item.insert_text for item in items] == wanted
            answered += 1
    codes = [await code_of(one) for one in known.values()]
    assert answered == 30
    assert set(codes) <= {0, MODIFIED}
    assert codes.count(0) >= 30
    await editor.lives()


async def test_a_model_that_is_gone_keeps_nothing(editor: Editor, decoder: Path) -> None:
    await editor.begin({"completion": {"bundle": str(decoder)}})
    await editor.complete(editor.open("new.py", TEXT), 4, 0)
    assert (await editor.status()).completion.kept_bytes > 0
    for completion in ({"bundle": str(decoder), "memory_mb": 9}, None):
        editor.client.workspace_did_change_configuration(
            types.DidChangeConfigurationParams({"codemill": {"completion": completion}})
        )
        status = await editor.until(lambda status: status.completion.state in ("ready", "off"))
        assert status.completion.kept_bytes == 0
