"""No stage's source changes without a decision about its VERSION."""

from __future__ import annotations

import ast
import json
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path
from types import ModuleType

import pytest

from codemill.compress.recipe import parse_recipe
from codemill.compress.run import stages_of

from .complete.small import write_decoder_folder

ROOT = Path(__file__).resolve().parents[2]


def _script() -> ModuleType:
    loader = SourceFileLoader("lock_stages", str(ROOT / "scripts/lock_stages"))
    spec = spec_from_loader(loader.name, loader)
    assert spec is not None
    module = module_from_spec(spec)
    loader.exec_module(module)
    return module


lock_stages = _script()


@pytest.fixture(scope="module")
def now() -> dict[str, dict[str, str]]:
    """The lock as it would be written."""
    found: dict[str, dict[str, str]] = lock_stages.locked()
    return found


def test_every_stage_is_locked_at_its_version(
    made_model: Path, pairs_file: Path, now: dict[str, dict[str, str]], tmp_path: Path
) -> None:
    values = {
        "name": "x",
        "teacher": {"model": str(made_model)},
        "data": {"source": str(pairs_file)},
        # any other has no stage that trains for it
        "quantize": {"method": "auto"},
    }
    found = [f"{stage.name} {stage.version}" for stage in stages_of(parse_recipe(values))]
    # with exits: a recipe without them has no stage for them
    labelled = {**values, "task": "classification", "exits": {"after": "auto"}}
    # the search is that of every run
    found += [
        f"classifier/{stage.name} {stage.version}"
        for stage in stages_of(parse_recipe(labelled))
        if stage.name != "search"
    ]
    completes = {**values, "task": "completion"}
    del completes["quantize"]
    completes["teacher"] = {"model": str(write_decoder_folder(tmp_path / "decoder"))}
    cut = [f"completion/{s.name} {s.version}" for s in stages_of(parse_recipe(completes))]
    # one that stays whole keeps some of its tokens in the place of being cut out
    completes |= {"student": {"init": "whole"}, "complete": {"vocab_size": 300}}
    whole = [f"completion/{s.name} {s.version}" for s in stages_of(parse_recipe(completes))]
    found += [*cut[:2], *(name for name in whole if name not in cut), *cut[2:]]
    assert found == list(now)


@pytest.mark.parametrize("stage", list(lock_stages.ROOMS))
def test_a_stages_source_is_what_its_version_was_decided_for(
    stage: str, now: dict[str, dict[str, str]]
) -> None:
    lock = json.loads(lock_stages.LOCK.read_text(encoding="utf-8"))
    (key,) = [key for key in now if key.split()[0] == stage]
    here, then = now[key], lock.get(key)
    assert then is not None, (
        f"{key!r} is not in the lock. If the VERSION is meant, run scripts/lock_stages"
    )
    changed = [room for room in {**here, **then} if here.get(room) != then.get(room)]
    assert not changed, (
        f"what stage {stage!r} does has changed ({', '.join(changed)}). Decide: would the same inputs "
        f"now give another result? If so, raise VERSION in {lock_stages.ROOMS[stage][0]}, so that "
        "finished work is not taken for the new one's. Then, either way, run scripts/lock_stages"
    )


def imported(path: Path) -> set[str]:
    """Files under compress/ and export/ that a file imports, lazily or not."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("codemill."):
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
            for name in names:
                file = str(name).removeprefix("codemill.").replace(".", "/") + ".py"
                if file.startswith(("compress/", "export/")) and (ROOT / file).is_file():
                    found.add(file)
    return found


@pytest.mark.parametrize("stage", list(lock_stages.ROOMS))
def test_the_table_names_every_room_that_a_stage_uses(stage: str) -> None:
    rooms = lock_stages.ROOMS[stage]
    used = {name for room in rooms if room.endswith(".py") for name in imported(ROOT / room)}
    neutral = tuple(lock_stages.NEUTRAL)
    missing = {name for name in used - set(rooms) if not name.startswith(neutral)}
    missing = {name for name in missing if f"{stage}: {name}" not in neutral}
    assert not missing, "name them in ROOMS or in NEUTRAL of scripts/lock_stages"


SOURCE = '''"""What it does."""
VERSION = 1
LIMIT = 3
"""Why three."""


def work(x: int) -> int:
    """Does it."""
    if x > LIMIT:  # too many
        raise ValueError(f"{x} is too many")
    return x + 1
'''


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("Does it.", "Does it well."),
        ('    """Does it."""\n', ""),
        ("# too many", "# far too many"),
        ("Why three.", "Why not."),
        ("return x + 1", "return (x\n            + 1)"),
        ("is too many", "is more than there may be"),
        ("VERSION = 1", "VERSION = 2"),
    ],
)
def test_what_changes_no_result_needs_no_decision(tmp_path: Path, old: str, new: str) -> None:
    assert digest(tmp_path, SOURCE) == digest(tmp_path, SOURCE.replace(old, new))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("LIMIT = 3", "LIMIT = 4"),
        ("x + 1", "x + 2"),
        ("x > LIMIT", "x >= LIMIT"),
        ("    return x + 1", "    return x - 1"),
        ("ValueError", "TypeError"),
    ],
)
def test_what_may_change_a_result_does(tmp_path: Path, old: str, new: str) -> None:
    assert digest(tmp_path, SOURCE) != digest(tmp_path, SOURCE.replace(old, new))


def digest(folder: Path, source: str) -> str:
    path = folder / "stage.py"
    path.write_text(source)
    return str(lock_stages.digest_of(path))


def test_of_a_list_only_the_comments_are_free(tmp_path: Path) -> None:
    path = tmp_path / "list.txt"
    path.write_text("# one\na:b\n")
    before = lock_stages.digest_of(path)
    path.write_text("# two\na:b\n")
    assert lock_stages.digest_of(path) == before
    path.write_text("# two\na:c\n")
    assert lock_stages.digest_of(path) != before


def test_digests_do_not_depend_on_the_version_of_python() -> None:
    """A golden tree: were the form to change with Python, no two machines would agree."""
    tree = ast.parse("def f(x, *, y=1):\n    return f'{x!r:>{y}}' if x else (x, [], {})\n")
    assert json.dumps(lock_stages.behaviour(tree)) == GOLDEN


GOLDEN = (
    '["Module", ["body", [["FunctionDef", ["name", "\'f\'"], ["args", ["arguments", ["a'
    'rgs", [["arg", ["arg", "\'x\'"]]]], ["kwonlyargs", [["arg", ["arg", "\'y\'"]]]], ["k'
    'w_defaults", [["Constant", ["value", "1"]]]]]], ["body", [["Return", ["value", ['
    '"IfExp", ["test", ["Name", ["id", "\'x\'"]]], ["body", ["JoinedStr", ["values", [['
    '"FormattedValue", ["value", ["Name", ["id", "\'x\'"]]], ["conversion", "114"], ["f'
    'ormat_spec", ["JoinedStr", ["values", [["Constant", ["value", "\'>\'"]], ["Formatt'
    'edValue", ["value", ["Name", ["id", "\'y\'"]]], ["conversion", "-1"]]]]]]]]]]], ["'
    'orelse", ["Tuple", ["elts", [["Name", ["id", "\'x\'"]], ["List"], ["Dict"]]]]]]]]]'
    "]]]]]"
)
