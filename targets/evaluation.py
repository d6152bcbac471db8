"""The labelled queries that quality is measured on, and the texts that latency is measured on.

Both are real functions, and the same for every engine. The evaluation set travels beside a bundle
(`evaluation.jsonl.gz`), so that another machine can measure quality too.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from codemill.errors import DataError
from codemill.targets.json_lines import json_lines, text_of

__all__ = [
    "CountTokens",
    "Evaluation",
    "LabelledEvaluation",
    "read_evaluation",
    "read_labelled_evaluation",
    "texts_of_length",
    "write_evaluation",
]

_MOST_BYTES = 500_000_000

CountTokens = Callable[[Sequence[str]], list[int]]


@dataclass(frozen=True)
class Evaluation:
    """Query i's one right answer is code i. `name` says what set this is, for the report."""

    name: str
    queries: tuple[str, ...]
    codes: tuple[str, ...]

    def __post_init__(self) -> None:
        if len(self.queries) != len(self.codes) or not self.queries:
            raise DataError(
                f"evaluation {self.name!r} needs as many queries as codes and at least one, "
                f"found {len(self.queries)} and {len(self.codes)}"
            )

    @property
    def sha256(self) -> str:
        """Of its rows, whatever its name."""
        return _sha256(self)


def read_evaluation(path: str | os.PathLike[str], name: str | None = None) -> Evaluation:
    """Read lines of {"query": ..., "code": ...}, gzipped when the name ends so.

    Raises DataError naming the file and the line.
    """
    file = Path(path)
    queries: list[str] = []
    codes: list[str] = []
    # it may come with a bundle from anywhere: what is small packed may be large unpacked
    for where, row in json_lines(file, "evaluation file", ("query", "code"), _MOST_BYTES):
        queries.append(text_of(row, "query", where))
        codes.append(text_of(row, "code", where))
    return Evaluation(name or file.name.split(".")[0], tuple(queries), tuple(codes))


@dataclass(frozen=True)
class LabelledEvaluation:
    """Rows of one or two texts, and what is true of each: an index into `labels`, -1 where it is not known.

    `rows` are indices into `texts`, which are distinct; `groups` are of the rows, None where there are none.
    """

    name: str
    labels: tuple[str, ...]
    texts: tuple[str, ...]
    rows: tuple[tuple[int, ...], ...]
    truth: tuple[int, ...]
    groups: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        sides = {len(row) for row in self.rows}
        if len(self.rows) != len(self.truth) or not self.rows or sides not in ({1}, {2}):
            raise DataError(
                f"evaluation {self.name!r} needs rows of one text, or of two, and a truth for each; found "
                f"{len(self.rows)} rows of {sorted(sides)} texts and {len(self.truth)} truths"
            )
        if any(not 0 <= index < len(self.texts) for row in self.rows for index in row):
            raise DataError(f"evaluation {self.name!r} has rows of texts that it has not")
        if any(not -1 <= index < len(self.labels) for index in self.truth):
            raise DataError(f"evaluation {self.name!r} has rows of labels that it has not")
        if self.groups is not None and len(self.groups) != len(self.rows):
            raise DataError(f"evaluation {self.name!r} needs a group for each row, or none at all")

    @property
    def items(self) -> list[Any]:
        """The rows as a classifier takes them: a text each, or two."""
        texts = [tuple(self.texts[index] for index in row) for row in self.rows]
        return [row[0] for row in texts] if len(self.rows[0]) == 1 else list(texts)

    @property
    def sha256(self) -> str:
        """Of its rows, whatever its name."""
        return _sha256(self)


def read_labelled_evaluation(
    path: str | os.PathLike[str], name: str | None = None
) -> LabelledEvaluation:
    """Read a line of {"labels": [...]}, lines of {"text": ...}, then lines of {"row": [...], "label": ...}.

    Raises DataError naming the file and the line.
    """
    file = Path(path)
    labels: list[str] = []
    texts: list[str] = []
    rows: list[tuple[int, ...]] = []
    truth: list[int] = []
    groups: list[str | None] = []
    for where, row in json_lines(file, "evaluation file", ("text", "row"), _MOST_BYTES):
        if "labels" in row:
            if not isinstance(row["labels"], list) or not row["labels"]:
                raise DataError(f"{where}: labels: expected a list, found {row['labels']!r:.80}")
            labels = [str(label) for label in row["labels"]]
        elif "text" in row:
            texts.append(text_of(row, "text", where))
        elif not labels or "row" not in row:
            raise DataError(
                f"{where}: has {', '.join(map(repr, row))}; this bundle labels, and its evaluation file is a line of "
                '{"labels": [...]}, lines of {"text": ...}, then lines of {"row": [...], "label": ...}'
            )
        else:
            try:
                rows.append(tuple(int(index) for index in row["row"]))
                truth.append(-1 if row.get("label") is None else labels.index(row["label"]))
            except (KeyError, TypeError, ValueError) as error:
                raise DataError(
                    f"{where}: expected a row of text numbers and one of the labels {labels!r:.200}"
                ) from error
            groups.append(row.get("group"))
    grouped = all(group is not None for group in groups)
    return LabelledEvaluation(
        name or file.name.split(".")[0],
        tuple(labels),
        tuple(texts),
        tuple(rows),
        tuple(truth),
        tuple(map(str, groups)) if grouped and groups else None,
    )


def write_evaluation(
    path: str | os.PathLike[str], evaluation: Evaluation | LabelledEvaluation
) -> None:
    """Write what `read_evaluation` or `read_labelled_evaluation` reads, gzipped; the same set gives the same bytes."""
    buffer = io.BytesIO()
    with gzip.GzipFile(filename="", mode="wb", fileobj=buffer, mtime=0) as packed:
        packed.writelines(_lines_of(evaluation))
    Path(path).write_bytes(buffer.getvalue())


def _sha256(evaluation: Evaluation | LabelledEvaluation) -> str:
    return hashlib.sha256(b"".join(_lines_of(evaluation))).hexdigest()


def _lines_of(evaluation: Evaluation | LabelledEvaluation) -> Iterator[bytes]:
    for value in _values_of(evaluation):
        yield json.dumps(value, ensure_ascii=False).encode("utf-8", errors="replace") + b"\n"


def _values_of(evaluation: Evaluation | LabelledEvaluation) -> Iterator[dict[str, Any]]:
    if isinstance(evaluation, Evaluation):
        for query, code in zip(evaluation.queries, evaluation.codes, strict=True):
            yield {"query": query, "code": code}
        return
    yield {"labels": list(evaluation.labels)}
    for text in evaluation.texts:
        yield {"text": text}
    for number, (row, truth) in enumerate(zip(evaluation.rows, evaluation.truth, strict=True)):
        label = None if truth < 0 else evaluation.labels[truth]
        group = {} if evaluation.groups is None else {"group": evaluation.groups[number]}
        yield {"row": list(row), "label": label, **group}


def texts_of_length(
    functions: Sequence[str], count_tokens: CountTokens, tokens: int, n: int
) -> list[str]:
    """`n` texts of `tokens` tokens each, by `count_tokens`, made from real functions.

    The functions of at least that length which are nearest to it, cut after the shortest prefix
    that reaches it; where too few are that long, the longest of the others joined; where that is
    too few texts still, some of them twice. A length that the tokenizer steps over (one more
    character, two more tokens) is exceeded by that step. Counting may saturate (a tokenizer that
    truncates): only "at least" is asked of it. Deterministic. Raises DataError when all the
    functions together are too short.
    """
    counts = count_tokens(functions)
    by_length = sorted(range(len(functions)), key=lambda i: (counts[i], len(functions[i]), i))
    long_enough = [functions[i] for i in by_length if counts[i] >= tokens]
    chosen = long_enough[:n]
    short = [functions[i] for i in by_length if counts[i] < tokens and functions[i].strip()]
    while len(chosen) < n and short:
        joined = short.pop()
        while short and count_tokens([joined])[0] < tokens:
            joined += "\n\n" + short.pop()
        if count_tokens([joined])[0] >= tokens:
            chosen.append(joined)
    if not chosen:
        raise DataError(
            f"{len(functions)} function{'s are' if len(functions) != 1 else ' is'} too few or too short "
            f"for a text of {tokens} tokens; give an evaluation with more of them, or longer ones"
        )
    texts = [_cut(text, count_tokens, tokens) for text in chosen]
    # fewer than asked for: go round them again, since a batch of like texts is still that batch
    return [texts[i % len(texts)] for i in range(n)]


def _cut(text: str, count_tokens: CountTokens, tokens: int) -> str:
    """The shortest prefix of at least `tokens` tokens, by bisection (counts grow with prefixes)."""
    low, high = 0, len(text)
    while low < high:
        middle = (low + high) // 2
        if count_tokens([text[:middle]])[0] >= tokens:
            high = middle
        else:
            low = middle + 1
    return text[:low]
