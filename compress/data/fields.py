"""Which fields of a row are its texts, label, teacher's label, group and split; and whether their values are good.

A value that is not good gives a `BadValueError` with its kind, for `rows.Skipped` to count.
"""

from __future__ import annotations

import math
import reprlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from codemill.compress.data.sources import AUTO, LabelledSource, SplitFile
from codemill.errors import DataError

__all__ = [
    "BadValueError",
    "Fields",
    "fields_of",
    "has_label",
    "id_in",
    "label_in",
    "teacher_in",
    "text_in",
]

CODE = ("code", "func", "function", "original_string", "text")
CODE1 = ("code1", "func1", "function1", "text1")
CODE2 = ("code2", "func2", "function2", "text2")
LABEL = ("label", "target")
ID = ("idx", "id", "index")
GROUP = ("group", "project", "repo")
_MOST_CHARACTERS = 1_000_000


class BadValueError(Exception):
    """A row that is left out: `kind` is what it is counted under, the message says why."""

    def __init__(self, kind: str, why: str) -> None:
        super().__init__(why)
        self.kind = kind


@dataclass(frozen=True)
class Fields:
    """What the fields of one file are called; None: there is no such field."""

    texts: tuple[str, ...]
    """one name, or two for pairs"""
    label: str | None
    teacher: str | None
    id: str | None
    group: str | None
    split: str | None

    def as_json(self) -> dict[str, Any]:
        """For the report: the fields there are."""
        named = {**vars(self), "texts": list(self.texts)}
        return {name: value for name, value in named.items() if value is not None}


def fields_of(
    rows: Sequence[Mapping[str, Any]], source: LabelledSource, file: SplitFile, texts: int | None
) -> Fields:
    """The fields of a file whose first rows these are; `texts`: how many a row has, None where the rows decide.

    Several rows, because one may lack what the others have. Of several names that a field may have, the one that
    most of the rows have. Raises BadValueError where none has a field for its texts.
    """
    row = Counter(name for each in rows for name in each)
    label = source.label_field if file.label_field == AUTO else file.label_field
    return Fields(
        texts=_texts(row, source, texts),
        label=_first(row, LABEL) if label == AUTO else label,
        teacher=file.teacher_field or source.teacher_field,
        id=source.id_field or _first(row, ID),
        group=source.group_field or _first(row, GROUP),
        split=source.split_field,
    )


def has_label(row: Mapping[str, Any]) -> bool:
    """Whether a row has a field that a label is usually in."""
    return any(name in row for name in LABEL)


def _texts(row: Counter[str], source: LabelledSource, texts: int | None) -> tuple[str, ...]:
    if source.functions is not None:
        names = ("id1", "id2")
        if all(name in row for name in names):
            return names
        raise _missing("id1' and 'id2", row)
    one, two = _first(row, CODE1), _first(row, CODE2)
    if source.code2_field is None and (texts == 1 or two is None or source.pairs_from_label):
        name = source.code_field or _first(row, CODE)
        if texts == 2:
            raise _missing("code1' and 'code2", row, "name them with code_field and code2_field")
        if name is None:
            raise _missing("' or '".join(CODE), row, "name it with code_field")
        return (name,)
    name, second = source.code_field or one, source.code2_field or two
    if name is None or second is None:
        raise _missing("code1' and 'code2", row, "name them with code_field and code2_field")
    return (name, second)


def _first(row: Counter[str], names: Sequence[str]) -> str | None:
    """The name that most rows have, the earlier of equals; None where no row has any."""
    return max((name for name in names if name in row), key=row.__getitem__, default=None)


def _missing(expected: str, row: Mapping[str, Any], advice: str = "") -> BadValueError:
    found = f"expected {expected!r}".replace('"', "'")
    after = f"; {advice}" if advice else ""
    return BadValueError(
        "missing field", f"{found}, found fields {reprlib.repr(sorted(row))}{after}"
    )


def text_in(row: Mapping[str, Any], name: str) -> str:
    """The text under `name`."""
    if name not in row:
        raise _missing(name, row)
    value = row[name]
    if not isinstance(value, str):
        raise BadValueError("not text", f"{name!r} is {reprlib.repr(value)}")
    if not value.strip():
        raise BadValueError("empty text", f"{name!r} is {reprlib.repr(value)}")
    if len(value) > _MOST_CHARACTERS:
        raise BadValueError(
            "text too long",
            f"{name!r} has {len(value):,} characters, at most {_MOST_CHARACTERS:,} are taken",
        )
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise BadValueError(
            "not Unicode", f"{name!r} holds half a surrogate pair, or bytes that are not UTF-8"
        ) from error
    return value


def id_in(row: Mapping[str, Any], name: str) -> str:
    """The id under `name`, a number or text, as text."""
    value = row.get(name)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if value is None or isinstance(value, (bool, float, list, dict)) or not str(value).strip():
        raise BadValueError("missing id", f"{name!r} is {reprlib.repr(value)}")
    return str(value).strip().encode(errors="replace").decode()


def label_in(row: Mapping[str, Any], name: str, declared: Sequence[str] | None) -> str | None:
    """The label under `name`, as text; None where the value is null or blank: the row is unlabelled."""
    if name not in row:
        raise _missing(name, row, "a row without a label has null there")
    return _label(row[name], name, declared)


def _label(value: Any, name: str, declared: Sequence[str] | None) -> str | None:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    if isinstance(value, bool):
        word = str(value).lower()
        text = word if declared is not None and word in declared else str(int(value))
    elif isinstance(value, float) and value.is_integer():
        text = str(int(value))
    elif isinstance(value, (int, float, str)):
        text = str(value).strip().encode(errors="replace").decode()
    else:
        raise BadValueError("not a label", f"{name!r} is {reprlib.repr(value)}")
    if not text:
        return None
    if declared is not None and text not in declared:
        raise BadValueError(
            "label outside the declared set",
            f"{name!r} is {reprlib.repr(value)}; declared are {reprlib.repr(list(declared))}",
        )
    return text


_ROUNDING = 0.05
"""Of a probability, for each label: so far from 1 may their sum be. Logits that are all between 0 and 1 and add up
to about 1 are not known of any model."""


def teacher_in(
    row: Mapping[str, Any], name: str, declared: Sequence[str] | None, width: int | None, where: str
) -> str | list[float] | None:
    """What a teacher said: a label, or probabilities (made of logits where they do not add up to 1).

    `width` is how many numbers are expected. Raises DataError where the teacher has another number
    of labels, which is no matter of one row.
    """
    value = row.get(name)
    if isinstance(value, str) and value.lstrip().startswith("["):
        value = [_number(part) for part in value.strip().strip("[]").split(",")]
    if not isinstance(value, (list, tuple)):
        if name not in row:
            raise _missing(name, row)
        if isinstance(value, float) and math.isfinite(value) and not value.is_integer():
            raise DataError(
                f"{where}: the teacher's {name!r} is one number, {value}; expected a label, or a list with a "
                "probability for each label"
            )
        return _label(value, name, declared)
    numbers = [
        float(x) if isinstance(x, (int, float)) and not isinstance(x, bool) else math.nan
        for x in value
    ]
    if not numbers or not all(map(math.isfinite, numbers)):
        raise BadValueError("not a teacher's label", f"{name!r} is {reprlib.repr(value)}")
    if width is not None and len(numbers) != width:
        raise DataError(
            f"{where}: the teacher's {name!r} has {len(numbers)} numbers a row, but there are {width} labels"
            + (f" ({reprlib.repr(list(declared))})" if declared is not None else "")
            + "; name the teacher's labels, in its order, under `labels`"
        )
    # rounded to two digits, many of them may miss 1 by some hundredths
    if (
        min(numbers) >= 0
        and max(numbers) <= 1
        and abs(sum(numbers) - 1) <= _ROUNDING * len(numbers)
    ):
        return [x / sum(numbers) for x in numbers]
    powers = [math.exp(x - max(numbers)) for x in numbers]
    return [x / sum(powers) for x in powers]


def _number(part: str) -> float:
    try:
        return float(part)
    except ValueError:
        return math.nan
