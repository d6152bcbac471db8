"""Which questions are put to every layer, and to which tokens, pairs of tokens and texts.

    token-type   lexical     is a token an identifier, a keyword, an operator ...
    parent       syntactic   the type of an identifier's parent node, which its text does not tell
    depth        syntactic   how many nodes lie above a token, in quarters
    siblings     structural  have two tokens one parent node
    label        semantic    the data's label of a function, where it has one; else
    docstring    semantic    do words and code belong together, where the data has words; else
    name         semantic    do a function's name and its code without that name belong together

Siblings rather than distance in the tree: a distance is told well by the distance in the text, which a model's
positions give away at layer 0. Of the pairs here as many are siblings as not at each distance in the text and for each
pair of token types. Items are split by text, so that no probe is tested on a function that it has seen.
"""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from codemill.compress.analyze.probes import control_labels
from codemill.compress.analyze.source import Snippet
from codemill.compress.analyze.stack import Units
from codemill.compress.analyze.tokens import CodeToken, code_tokens, name_of, subwords_of
from codemill.compress.rewrite.syntax import Edit, Parsed, edited, grammar_of, parse
from codemill.errors import DataError
from codemill.targets.analysis import CodeProperty, Kind

__all__ = ["Plan", "Task", "plan"]

_TEST_SHARE = 0.3
_LEAST_SNIPPETS = 20
_LEAST_SHARE = 0.01
_LEAST_ITEMS = 10
"""A class of fewer, or of a smaller share, is left out: no probe could learn it."""
_LEAST_ALL = 60
_MOST_CLASSES = 20
_FARTHEST = 8
"""Tokens between which siblings are asked for."""
_CANDIDATES = 8
"""Tokens that are looked at for each item that is wanted: of many texts, some of each."""


@dataclass(frozen=True)
class Task:
    """A property with its items.

    rows: int [items, 1 | 2], units of the plan. labels, control: int [items]. train: bool [items].
    """

    asked: CodeProperty
    rows: NDArray[np.int64]
    labels: NDArray[np.int64]
    control: NDArray[np.int64]
    train: NDArray[np.bool_]


@dataclass(frozen=True)
class Plan:
    """Texts as token ids, the units to be represented, and the tasks; `alike`: units that models are compared by."""

    texts: list[NDArray[Any]]
    units: Units
    tasks: list[Task]
    alike: NDArray[np.int64]
    snippets: int
    notes: tuple[str, ...]


@dataclass(frozen=True)
class _Read:
    """A snippet that was parsed: which text it is, its tokens that the input holds, and their subwords."""

    text: int
    test: bool
    tokens: list[CodeToken]
    subwords: list[tuple[int, int]]


@dataclass(frozen=True)
class _Item:
    """An item before it is numbered: units (text, first, last), class, word type, whether it is for the test."""

    units: tuple[tuple[int, int, int], ...]
    label: str
    word: str
    test: bool


class _Texts:
    """Texts encoded once, in the order they come; equal ones are one."""

    def __init__(self, tokenizer_json: str, max_tokens: int) -> None:
        self.tokenizer = Tokenizer.from_str(tokenizer_json)
        self.tokenizer.no_padding()
        self.tokenizer.enable_truncation(max_tokens)
        self.ids: list[NDArray[Any]] = []
        self.cut = 0
        self._numbers: dict[str, int] = {}

    def add(self, text: str) -> tuple[int, Any]:
        """Its number and its encoding. An empty encoding, which no model reads, has the number -1."""
        encoding = self.tokenizer.encode(text)
        if not encoding.ids:
            return -1, encoding
        if text not in self._numbers:
            self._numbers[text] = len(self.ids)
            self.ids.append(np.asarray(encoding.ids, dtype=np.int64))
            self.cut += bool(encoding.overflowing)
        return self._numbers[text], encoding


def plan(
    snippets: Sequence[Snippet],
    language: str,
    tokenizer_json: str,
    max_tokens: int,
    items: int,
    seed: int,
) -> Plan:
    """What to ask, of which tokens: at most `items` items of each property, drawn by `seed`.

    language: as rewriting names it. Raises DataError where too little of the code can be parsed.
    """
    chance = random.Random(seed)
    texts = _Texts(tokenizer_json, max_tokens)
    grammar = grammar_of(language)
    read: list[_Read] = []
    parsed_of: list[tuple[Snippet, Parsed, _Read]] = []
    unread = 0
    distinct = list({snippet.code: snippet for snippet in snippets}.values())
    for snippet in distinct:
        parsed = parse(snippet.code, grammar)
        # a method that is indented is read as it is written
        tokens = [] if parsed is None else code_tokens(parsed)
        number, encoding = texts.add(snippet.code) if tokens else (-1, None)
        if parsed is None or encoding is None or number < 0:
            unread += 1
            continue
        places = subwords_of(tokens, encoding.offsets, encoding.special_tokens_mask)
        whole = [(token, at) for token, at in zip(tokens, places, strict=True) if at is not None]
        test = chance.random() < _TEST_SHARE
        found = _Read(number, test, [token for token, _ in whole], [at for _, at in whole])
        read.append(found)
        parsed_of.append((snippet, parsed, found))
    if len(read) < _LEAST_SNIPPETS:
        raise DataError(
            f"only {len(read)} of {len(distinct)} distinct snippets can be parsed as {language}; expected "
            f"{_LEAST_SNIPPETS} or more: name their language with --language, or give more code"
        )
    most = max(_FARTHEST, _CANDIDATES * items // len(read))
    some = [sorted(chance.sample(range(len(x.tokens)), min(most, len(x.tokens)))) for x in read]
    asked: list[tuple[str, Kind, str, list[_Item]]] = [
        ("token-type", "lexical", "which kind of token is it?", _token_items(read, some, _type_of)),
        (
            "parent",
            "syntactic",
            "which node of the syntax tree is an identifier in?",
            _token_items(read, some, _parent_of),
        ),
        (
            "depth",
            "syntactic",
            "how deep in the syntax tree is a token, in quarters?",
            _in_quarters(_token_items(read, some, lambda token: str(token.depth))),
        ),
        (
            "siblings",
            "structural",
            "have two tokens one parent in the syntax tree?",
            _sibling_items(read, some, chance),
        ),
        _semantic(parsed_of, texts, chance),
    ]
    numbers: dict[tuple[int, int, int], int] = {}
    tasks, notes = [], []
    for name, kind, question, candidates in asked:
        task = _task(name, kind, question, candidates, items, seed, chance, numbers)
        if task is None:
            notes.append(f"{name}: not probed, the data has too few items of two classes.")
        else:
            tasks.append(task)
    if not tasks:
        raise DataError(
            f"none of the properties can be probed on {len(read)} snippets; give more code, or longer functions"
        )
    if unread:
        notes.append(f"{unread} of {len(distinct)} snippets cannot be parsed as {language}.")
    if texts.cut:
        notes.append(f"{texts.cut} of {len(texts.ids)} texts were cut at {max_tokens} tokens.")
    shared = _shared(read)
    if shared:
        notes.append(f"{shared:.0%} of the code's tokens share a subword with another token.")
    table = np.asarray(list(numbers), dtype=np.int64).reshape(-1, 3)
    units = Units(*(np.ascontiguousarray(table[:, column]) for column in range(3)))
    of_tokens = np.flatnonzero(units.first >= 0)
    if len(of_tokens) < _LEAST_ITEMS:
        of_tokens = np.arange(len(units))
    return Plan(texts.ids, units, tasks, of_tokens, len(read), tuple(notes))


def _type_of(token: CodeToken) -> str | None:
    return token.kind


def _parent_of(token: CodeToken) -> str | None:
    return token.parent if token.kind == "identifier" else None


def _token_items(
    read: Sequence[_Read],
    some: Sequence[Sequence[int]],
    label_of: Callable[[CodeToken], str | None],
) -> list[_Item]:
    """An item for each token of `some`, by number in its text, that has a label."""
    return [
        _Item(((each.text, *each.subwords[at]),), label, each.tokens[at].text, each.test)
        for each, numbers in zip(read, some, strict=True)
        for at in numbers
        if (label := label_of(each.tokens[at])) is not None
    ]


def _in_quarters(items: Sequence[_Item]) -> list[_Item]:
    """Depths as the quarter of all depths that they are in: what order they have, four classes show."""
    if not items:
        return []
    depths = np.asarray([int(item.label) for item in items])
    bounds = np.unique(np.percentile(depths, (25, 50, 75), method="lower"))
    quarters = np.searchsorted(bounds, depths, side="left")
    return [
        _Item(item.units, str(quarter), item.word, item.test)
        for item, quarter in zip(items, quarters.tolist(), strict=True)
    ]


def _sibling_items(
    read: Sequence[_Read], some: Sequence[Sequence[int]], chance: random.Random
) -> list[_Item]:
    """Pairs of near tokens: as many siblings as others at each distance, for each pair of kinds, in each split."""
    groups: dict[tuple[Any, ...], dict[bool, list[_Item]]] = {}
    for each, numbers in zip(read, some, strict=True):
        for first in numbers:
            for gap in range(1, _FARTHEST + 1):
                if first + gap >= len(each.tokens):
                    break
                one, two = each.tokens[first], each.tokens[first + gap]
                same = one.parent_number == two.parent_number
                units = tuple((each.text, *each.subwords[at]) for at in (first, first + gap))
                if units[0] == units[1]:
                    continue
                item = _Item(units, str(same), f"{one.text} {two.text}", each.test)
                group = groups.setdefault(
                    (gap, one.kind, two.kind, each.test), {True: [], False: []}
                )
                group[same].append(item)
    found: list[_Item] = []
    for _, group in sorted(groups.items()):
        count = min(len(group[True]), len(group[False]))
        for same in (True, False):
            found += chance.sample(group[same], count)
    return found


def _semantic(
    parsed_of: Sequence[tuple[Snippet, Parsed, _Read]], texts: _Texts, chance: random.Random
) -> tuple[str, Kind, str, list[_Item]]:
    """The semantic property that this data allows."""
    labelled = [found for found in parsed_of if found[0].label is not None]
    if len({snippet.label for snippet, _, _ in labelled}) > 1:
        items = [
            _Item(((each.text, -1, -1),), str(snippet.label), _first_name(each), each.test)
            for snippet, _, each in labelled
        ]
        return "label", "semantic", "which label does the data give the function?", items
    said = [
        (snippet.query, each.text, each.test) for snippet, _, each in parsed_of if snippet.query
    ]
    if len(said) >= len(parsed_of) / 2:
        items = _matches(said, texts, chance)
        return "docstring", "semantic", "do the words belong to the code?", items
    named = []
    for _, parsed, each in parsed_of:
        name = name_of(each.tokens)
        if name is None:
            continue
        number, _ = texts.add(_without(parsed, name.text))
        named.append((" ".join(_words(name.text)) or name.text, number, each.test))
    items = _matches(named, texts, chance)
    return "name", "semantic", "does the name belong to the code, which lacks it?", items


def _matches(
    said: Iterable[tuple[str, int, bool]], texts: _Texts, chance: random.Random
) -> list[_Item]:
    """Each text of words with its code, and with another's of the same split."""
    found: list[_Item] = []
    of_split: dict[bool, list[tuple[str, int]]] = {True: [], False: []}
    for words, code, test in said:
        of_split[test].append((words, code))
    for test, own in of_split.items():
        order = list(range(len(own)))
        chance.shuffle(order)
        # each takes the code of the next in a random circle: never its own
        other = {order[i]: order[(i + 1) % len(order)] for i in range(len(order))}
        for index, (words, code) in enumerate(own):
            query, _ = texts.add(words)
            wrong = own[other[index]][1]
            if query < 0 or code < 0 or wrong < 0 or wrong == code:
                continue
            word = next(iter(_words(words)), words)
            for label, choice in (("own", code), ("other", wrong)):
                found.append(_Item(((query, -1, -1), (choice, -1, -1)), label, word, test))
    return found


def _words(name: str) -> list[str]:
    """`readHTTPBody2` and `read_body` in words, lower case."""
    return [word.lower() for word in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", name)]


def _first_name(each: _Read) -> str:
    name = name_of(each.tokens)
    return "" if name is None else next(iter(_words(name.text)), name.text)


def _without(parsed: Parsed, name: str) -> str:
    """The code with `f` for every identifier of that name."""
    leaves = (node for node in parsed.root.walk() if not node.children and node.text == name)
    return edited(parsed, [Edit(node.start, node.end, b"f") for node in leaves])


def _task(
    name: str,
    kind: Kind,
    question: str,
    candidates: Sequence[_Item],
    most: int,
    seed: int,
    chance: random.Random,
    numbers: dict[tuple[int, int, int], int],
) -> Task | None:
    """A task of at most `most` candidates; None where they cannot be learned from."""
    # pairs of a kind stand together and are balanced together: the sample is drawn from all
    drawn = sorted(chance.sample(range(len(candidates)), min(most, len(candidates))))
    chosen = [candidates[index] for index in drawn]
    counts = Counter(item.label for item in chosen)
    least = max(_LEAST_ITEMS, _LEAST_SHARE * len(chosen))
    common = [label for label, count in counts.most_common(_MOST_CLASSES) if count >= least]
    # those of one class that the training half lacks could not be told
    trained = {item.label for item in chosen if not item.test}
    classes = sorted(label for label in common if label in trained)
    chosen = [item for item in chosen if item.label in classes]
    tests = [item.label for item in chosen if item.test]
    if len(classes) < 2 or len(chosen) < _LEAST_ALL or len(tests) < _LEAST_ITEMS:
        return None
    labels = np.asarray([classes.index(item.label) for item in chosen], dtype=np.int64)
    rows = [[numbers.setdefault(unit, len(numbers)) for unit in item.units] for item in chosen]
    train = np.asarray([not item.test for item in chosen], dtype=bool)
    commonest = int(np.bincount(labels[train]).argmax())
    asked = CodeProperty(
        name=name,
        kind=kind,
        question=question,
        classes=len(classes),
        train_items=int(train.sum()),
        test_items=len(tests),
        majority=float((labels[~train] == commonest).mean()),
    )
    control = control_labels([item.word for item in chosen], labels, seed)
    return Task(asked, np.asarray(rows, dtype=np.int64), labels, control, train)


def _shared(read: Sequence[_Read]) -> float:
    """The share of tokens one of whose subwords is another's too."""
    total = together = 0
    for each in read:
        users = Counter(place for first, last in each.subwords for place in range(first, last))
        for first, last in each.subwords:
            total += 1
            together += any(users[place] > 1 for place in range(first, last))
    return together / total if total else 0.0
