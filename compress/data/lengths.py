"""A sample of the texts of labelled data, before any corpus is made of them: how long they are is asked of it.

Reads no further than the first rows of a file, so that a gigabyte costs no more than a megabyte. What a bad row
is, and that a file of bad rows is refused, is as in `gather.py`; which split a row will be in is not known here.
"""

from __future__ import annotations

import random
from collections.abc import Iterator

from codemill.compress.data.fields import BadValueError, fields_of, text_in
from codemill.compress.data.gather import first_rows
from codemill.compress.data.rows import Skipped, read_rows
from codemill.compress.data.sources import LabelledSource, SplitFile

__all__ = ["sample_texts"]

_READ = 10_000
"""Rows of a file, from its begin: files are often sorted by label or project, seldom by length."""


def sample_texts(source: LabelledSource, count: int, seed: int) -> list[str]:
    """At most `count` texts that the seed draws from the first rows of the files to learn from.

    Of lists of pairs, from the file of their functions. Raises DataError for a file that cannot be read, or none
    of whose first rows is good.
    """
    if source.functions is not None:
        files = [SplitFile(source.functions)]
        alone = LabelledSource(source=source.functions, code_field=source.code_field)
    else:
        files = [SplitFile(source.source)] if source.source is not None else list(source.train)
        alone = source
    drawn = random.Random(seed)
    kept: list[str] = []
    seen = 0
    for file in files:
        for text in _texts(file, alone):
            seen += 1
            if len(kept) < count:
                kept.append(text)
            elif (place := drawn.randrange(seen)) < count:
                kept[place] = text
    return kept


def _texts(file: SplitFile, source: LabelledSource) -> Iterator[str]:
    skipped = Skipped()
    skipped.begin(file.file)
    names: tuple[str, ...] | None = None
    head, rows = first_rows(read_rows(file.file, skipped))
    for number, row in enumerate(rows):
        if number == _READ:
            break
        try:
            if names is None:
                names = fields_of([each.value for each in head], source, file, source.texts).texts
            texts = [text_in(row.value, name) for name in names]
        except BadValueError as error:
            skipped.bad(error.kind, row.where, str(error))
            continue
        skipped.good()
        yield from texts
    skipped.end()
