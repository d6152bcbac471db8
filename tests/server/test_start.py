"""What makes the start quick changes nothing that is asked of the protocol's classes."""

from __future__ import annotations

import subprocess
import sys

CODE = """
import attrs
define = attrs.define
from codemill.server.types_quickly import import_types
import_types()
assert attrs.define is define
from lsprotocol import converters, types
assert not hasattr(types.Position, "__slots__")
place = types.Position(3, 4)
assert place == types.Position(3, 4) != types.Position(3, 5)
assert sorted([types.Position(1, 2), types.Position(0, 9)])[0].line == 0
symbol = types.SymbolInformation(
    name="f", kind=types.SymbolKind.Function, location=types.Location("a", types.Range(place, place))
)
converter = converters.get_converter()
said = converter.unstructure(symbol, types.SymbolInformation)
assert converter.structure(said, types.SymbolInformation) == symbol
"""


def test_the_protocols_classes_are_made_quickly_and_do_what_they_do() -> None:
    ended = subprocess.run(
        [sys.executable, "-c", CODE], capture_output=True, encoding="utf-8", check=False
    )
    assert ended.returncode == 0, ended.stderr
