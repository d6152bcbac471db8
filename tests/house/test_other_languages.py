"""docs/other-languages.md says what a program does with each field that the runtime reads."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import pytest

from codemill.runtime import bundle, labels, parts
from codemill.runtime.completion import decoding
from codemill.runtime.completion import parts as decoder

TEXT = (Path(__file__).resolve().parents[2] / "docs/other-languages.md").read_text()

FIELDS = {
    "manifest": bundle._KEYS,
    "variant": [item.name for item in fields(bundle.Variant)],
    "file": [item.name for item in fields(bundle.FileRecord)],
    "labels": ["max_tokens", "kind", "dim", "labels", "texts", "joined", "temperature", "layers"],
    "long": ["long", "truncate", "split"],
    "exit": labels._EXIT_KEYS,
    "graphs": [parts._IDS, parts._MASK, parts._HIDDEN, parts._NEXT_HIDDEN, parts._EMBEDDING],
    "heads": [parts._FIRST, parts._SECOND, parts._LOGITS],
    "decoder": ["vocab_size", "hidden_size", "kv_heads", "head_size", "begin", "end", "rotary"],
    "its exits": decoding._EXIT_KEYS | decoding._FILL_KEYS | decoding._ROTARY_KEYS,
    "its graphs": [
        *(decoder.PLACES, decoder.STATE, decoder.NEXT, decoder._LAST, decoder._TOTAL),
        *(decoder.DECISION, decoder.LOGITS),
    ],
    "tasks": [*labels.LABEL_TASKS, decoding.COMPLETION, "retrieval"],
}


@pytest.mark.parametrize("what", FIELDS)
def test_every_field_is_explained(what: str) -> None:
    # `name`, `a.name`, "name"
    missing = [
        name
        for name in FIELDS[what]
        if not any(f"{before}{name}{after}" in TEXT for before in '`."' for after in '`."')
    ]
    assert not missing


def test_the_schema_is_the_runtimes() -> None:
    assert f"Refuse another `schema` than {bundle.SCHEMA}" in TEXT
