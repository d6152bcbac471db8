"""What the parts of a bundle's encoder are fed with while they are made, and how good each is.

Each part is quantized on what those before it give once they are quantized. Its score is the task's metric on
validation: of embeddings, or of the decisions of the head behind it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from codemill.errors import ModelError
from codemill.export.candidates import PLAIN, PROVIDER
from codemill.export.classifier import LOGITS
from codemill.export.encoder import OUTPUT, handed_on, inputs_of
from codemill.export.quantize.static import Feed, Score
from codemill.runtime.bundle import TOKENIZER, Manifest
from codemill.runtime.labels import labelling_of
from codemill.runtime.passes import stacked
from codemill.runtime.session import OnnxSession, open_session
from codemill.runtime.texts import Texts, batches, open_tokenizer
from codemill.targets.evaluation import Evaluation, LabelledEvaluation
from codemill.targets.metrics import mrr

__all__ = ["Chain"]

_BATCH = 16
_SIDES = ("first", "second")


@dataclass
class Chain:
    """What the parts of a bundle's encoder are fed with: the calibration's rows, and the validation's.

    `go_on` takes both through a part that was made, so that the next one sees what it will see.
    """

    folder: Path
    manifest: Manifest
    validation: Evaluation | LabelledEvaluation | None
    calibration: Sequence[tuple[str, ...]]

    def __post_init__(self) -> None:
        content = (self.folder / TOKENIZER).read_bytes()
        tokenizer = open_tokenizer(content, str(self.folder))
        texts = Texts(tokenizer, content, self.manifest.name, self.manifest.max_tokens)
        self._texts = texts
        self._seen: list[Any] = [_ids(texts, row) for row in self.calibration]
        self._judged: list[Any] = [_ids(texts, row) for row in self._validated_rows()]

    def _validated_rows(self) -> list[tuple[str, ...]]:
        asked = self.validation
        if asked is None:
            return []
        if isinstance(asked, Evaluation):
            return [(text,) for text in (*asked.queries, *asked.codes)]
        if labelling_of(self.manifest).joined:
            return [tuple(asked.texts[index] for index in row) for row in asked.rows]
        return [(text,) for text in asked.texts]

    def feeds(self, number: int) -> list[Feed]:
        """The calibration's rows, one a run."""
        return [feed for _, feed in self._runs(self._seen, number, 1)]

    def lengths(self) -> list[int]:
        """Tokens of each row of the calibration."""
        return [len(item) for item in self._seen]

    def go_on(self, path: Path, number: int, provider: str = PROVIDER) -> None:
        """Through the part at `path`, to the next one."""
        session = open_session(path, provider=provider)
        hands = handed_on(number)
        for kept in (self._seen, self._judged):
            found: list[Any] = [None] * len(kept)
            for rows, feed in self._runs(kept, number, _BATCH):
                (hidden,) = session.outputs_for(feed, (hands,))
                for place, row in enumerate(rows):
                    found[row] = hidden[place, : max(1, len(kept[row]))]
            kept[:] = found
        session.close()

    def score(self, number: int) -> Score:
        """The task's metric on validation of a session of part `number`: of its own head, where there are heads."""
        asked = self.validation
        if asked is None:
            raise ModelError("controlled-int8 needs validation data")
        head = None
        if isinstance(asked, LabelledEvaluation):
            segments = self.manifest.variants[PLAIN].segments
            head = OnnxSession(self.folder / segments[2 * number + 1])

        def score(session: Any) -> float:
            rows = np.zeros((len(self._judged), int(self.manifest.output["dim"])), np.float32)
            for at, feed in self._runs(self._judged, number, _BATCH):
                (rows[at],) = session.run([OUTPUT], dict(feed))
            if isinstance(asked, Evaluation):
                return mrr(rows[: len(asked.queries)], rows[len(asked.queries) :])
            assert head is not None
            return _accuracy(head, rows, asked, labelling_of(self.manifest).joined)

        return score

    def _runs(self, kept: list[Any], number: int, size: int) -> Iterator[tuple[list[int], Feed]]:
        names = inputs_of(number)
        for rows in batches([len(item) for item in kept], size):
            found = [kept[row] for row in rows]
            first, mask = (
                stacked(found, self.manifest.name) if number else self._texts.padded(found)
            )
            yield rows, dict(zip(names, (first, mask), strict=True))


def _ids(texts: Texts, row: tuple[str, ...]) -> Sequence[int]:
    return (texts.cut(row[0]) if len(row) == 1 else texts.cut_pair(*row)).ids


def _accuracy(
    head: OnnxSession, rows: np.ndarray, asked: LabelledEvaluation, joined: bool
) -> float:
    texts = 1 if joined else len(asked.rows[0])
    sides = [rows if joined else rows[[row[side] for row in asked.rows]] for side in range(texts)]
    (logits,) = head.outputs_for(dict(zip(_SIDES[:texts], sides, strict=True)), (LOGITS,))
    truth = np.array(asked.truth)
    known = truth >= 0
    return float((logits.argmax(1) == truth)[known].mean())
