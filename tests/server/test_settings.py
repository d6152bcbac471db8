"""What a client may set, and what is said of what is wrong."""

from __future__ import annotations

from typing import Any

import pytest

from codemill.runtime.languages import _OF_SUFFIX
from codemill.server.serve import _WATCHED
from codemill.server.settings import (
    Bundle,
    Completion,
    Diagnostics,
    Search,
    Settings,
    settings_of,
)


@pytest.mark.parametrize("value", [None, {}, [], {"codemill": {}}, {"codemill": None}])
def test_nothing_is_on_by_itself(value: Any) -> None:
    assert settings_of(value) == Settings()


def test_a_bundle_is_enough_and_the_rest_has_defaults() -> None:
    found = settings_of(
        {name: {"bundle": "x.mill"} for name in ("completion", "search", "diagnostics")}
    )
    assert found == Settings(
        Completion(Bundle("x.mill")), Search(Bundle("x.mill")), Diagnostics(Bundle("x.mill"))
    )


def test_every_setting_is_read_under_codemill_or_without() -> None:
    value = {
        "completion": {
            **{"bundle": "c", "variant": "cpu-int4", "threads": 2, "max_tokens": 9},
            **{"mode": "none", "exits": False, "context_chars": 500},
            **{"debounce_ms": 0, "memory_mb": 64},
        },
        "search": {"bundle": "s", "exclude": ["build"], "top": 3},
        "diagnostics": {
            **{"bundle": "d", "labels": {"bad": "warning"}, "least_score": 0.9},
            **{"on": "save", "debounce_ms": 1},
        },
        "trace": {"server": "off"},
    }
    wanted = Settings(
        Completion(Bundle("c", "cpu-int4", 2), 9, "none", False, 500, 0, 64),
        Search(Bundle("s"), ("build",), 3),
        Diagnostics(Bundle("d"), {"bad": "warning"}, 0.9, "save", 1),
    )
    assert settings_of(value) == settings_of({"codemill": value}) == wanted


def test_a_part_without_a_bundle_is_off_whatever_else_it_says() -> None:
    assert settings_of({"search": {"bundle": None, "top": 3}, "completion": None}) == Settings()


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("x.mill", "should be an object, found 'x.mill'"),
        ({"serach": {}}, "there is no setting codemill.serach"),
        ({"search": "x.mill"}, "codemill.search should be an object, found 'x.mill'"),
        (
            {"search": {"bundle": 3}},
            "codemill.search.bundle should be the path of a bundle, found 3",
        ),
        (
            {"search": {"bundle": "x", "tpo": 3}},
            "there is no setting codemill.search.tpo; there are:",
        ),
        (
            {"search": {"bundel": "x"}},
            "there is no setting codemill.search.bundel; there are: bundle,",
        ),
        ({"search": {"top": 0}}, "a whole number from 1 to 1000, found 0"),
        ({"search": {"bundle": "x", "top": 0}}, "a whole number from 1 to 1000, found 0"),
        ({"search": {"bundle": "x", "top": True}}, "a whole number from 1 to 1000, found True"),
        (
            {"search": {"bundle": "x", "exclude": "a"}},
            "a list of patterns as in .gitignore, found 'a'",
        ),
        (
            {"completion": {"bundle": "x", "mode": "word"}},
            "should be line, block or none, found 'word'",
        ),
        ({"completion": {"bundle": "x", "exits": 1}}, "should be true or false, found 1"),
        (
            {"diagnostics": {"bundle": "x", "labels": {"a": "bad"}}},
            "an object of labels, each with one of",
        ),
        ({"diagnostics": {"bundle": "x", "least_score": 2}}, "a number from 0 to 1, found 2"),
        ({"diagnostics": {"bundle": "x", "on": "open"}}, "should be change or save, found 'open'"),
    ],
)
def test_what_is_wrong_is_said_with_its_name_and_value(value: Any, said: str) -> None:
    (problem,) = settings_of(value).problems
    assert said in problem


def test_a_wrong_part_is_off_and_the_others_hold() -> None:
    found = settings_of({"search": {"bundle": "x", "top": -1}, "completion": {"bundle": "x"}})
    assert found.search is None
    assert found.completion == Completion(Bundle("x"))
    assert len(found.problems) == 1


def test_every_file_that_the_index_reads_is_watched() -> None:
    assert set(_WATCHED.removeprefix("**/*.{").removesuffix("}").split(",")) == set(_OF_SUFFIX)
