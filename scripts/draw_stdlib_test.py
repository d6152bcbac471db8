"""Draw the names of the standard library functions that every figure is measured on.

Run once, with Python 3.11; the list is committed and not drawn again, so that figures stay comparable.
"""

from __future__ import annotations

import os
import random
import sysconfig
from pathlib import Path

from codemill.compress.data.installed import TEST_LIST, pairs_of_file
from codemill.compress.data.leakage import remove_duplicates
from codemill.compress.data.pairs import Pair

_COUNT = 1000
_SKIPPED = {"test", "tests", "site-packages", "idlelib", "lib2to3", "turtledemo", "__pycache__"}


def candidates() -> list[str]:
    """All usable functions, distinct in code and in query."""
    root = Path(sysconfig.get_path("stdlib"))
    found: dict[str, Pair] = {}
    for folder, subfolders, files in os.walk(root):
        subfolders[:] = sorted(set(subfolders) - _SKIPPED)
        for file in sorted(files):
            path = Path(folder, file)
            if path.suffix == ".py":
                relative = path.relative_to(root).with_suffix("")
                parts = relative.parts[:-1] if relative.name == "__init__" else relative.parts
                for pair in pairs_of_file((str(path), ".".join(parts))):
                    found.setdefault(pair.origin, pair)
    pairs, _ = remove_duplicates(list(found.values()))
    by_query: dict[str, Pair] = {}
    for pair in pairs:
        by_query.setdefault(pair.query.lower(), pair)
    return sorted(pair.origin for pair in by_query.values())


if __name__ == "__main__":
    names = candidates()
    random.Random(0).shuffle(names)
    header = (
        "# module:function of the 1,000 standard library functions (Python 3.11) that figures are measured on,\n"
        "# drawn at random (seed 0) from those with a docstring by scripts/draw_stdlib_test.py\n"
    )
    TEST_LIST.write_text(header + "\n".join(sorted(names[:_COUNT])) + "\n")
