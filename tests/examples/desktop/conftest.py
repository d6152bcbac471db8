"""The bundles of the runtime's tests and of the command's, and the modules of examples/desktop."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType

import pytest

# fixtures: a bundle that embeds, one that completes, a cache of the test's own
from tests.house.test_complete_command import bundle as coder  # noqa: F401
from tests.house.test_complete_command import decoder  # noqa: F401
from tests.runtime.conftest import built as embedder  # noqa: F401
from tests.runtime.conftest import cache  # noqa: F401

DESKTOP = Path(__file__).resolve().parents[3] / "examples/desktop"


@pytest.fixture(scope="session")
def work() -> ModuleType:
    """Imported as app.py does it: by the name it has in its folder."""
    sys.path.insert(0, str(DESKTOP))
    import work

    return work


@pytest.fixture
def code(tmp_path: Path) -> Path:
    """A folder with three functions."""
    folder = tmp_path / "code"
    folder.mkdir()
    (folder / "a.py").write_text("def parse(text):\n    return json(text)\n")
    (folder / "b.py").write_text("def connect(self):\n    return open(socket)\n")
    (folder / "c.py").write_text("def product(a, b):\n    return matrix(multiply(a, b))\n")
    return folder
