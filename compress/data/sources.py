"""Where labelled data come from: the files, what their fields are called, and which split is which.

Only descriptions; `rows.py` reads the files, `labelled.py` makes a corpus of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from codemill.errors import RecipeError
from codemill.runtime.values import check_name

__all__ = ["AUTO", "SPLITS", "LabelledSource", "SplitFile"]

AUTO = "auto"
"""As a field's name: find it by the names it usually has."""
SPLITS = ("train", "validation", "test")


@dataclass(frozen=True)
class SplitFile:
    """One file of a split. `label_field=None` leaves its rows unlabelled, whatever columns it has."""

    file: str
    label_field: str | None = AUTO
    """AUTO: as `LabelledSource.label_field` says."""
    teacher_field: str | None = None
    """a hard label, probabilities or logits that a teacher gave; None: as the source says."""


@dataclass(frozen=True)
class LabelledSource:
    """Either `source`, one file that is split here, or files for each split.

    A split that is not given is drawn from `train`. A file is a path or `hf:owner/name[:config][@split]`.
    """

    source: str | None = None
    train: tuple[SplitFile, ...] = ()
    validation: tuple[SplitFile, ...] = ()
    test: tuple[SplitFile, ...] = ()
    functions: str | None = None
    """a file of ids and code; the files of the splits are then lists of pairs of ids."""
    texts: int | None = None
    """1 or 2 texts a row; None: two where there are `functions`, `pairs_from_label` or a second code field."""
    code_field: str | None = None
    code2_field: str | None = None
    label_field: str | None = AUTO
    """AUTO: `label` or `target`, where there is one; None: there are no labels."""
    id_field: str | None = None
    group_field: str | None = None
    """rows of one group stay in one split; None: `group`, `project` or `repo`, where there is one."""
    split_field: str | None = None
    """of `source`: the field that names the split (train, valid/validation/val/dev, test)."""
    teacher_field: str | None = None
    labels: tuple[str, ...] | None = None
    """the labels in order; None: those found, sorted."""
    symmetric: bool = True
    """of pairs: (a, b) and (b, a) are the same pair."""
    pairs_from_label: bool = False
    """make balanced same/different pairs out of rows of one text and a label (POJ-104)."""

    def __post_init__(self) -> None:
        given = [name for name in SPLITS if self.files(name)]
        if (self.source is None) == (not given):
            found = f"both, {self.source!r} and {given}" if given else "neither"
            raise RecipeError(
                "labelled data: expected either `source`, one file that is split here, or `train` "
                f"(with `validation` and `test`); found {found}"
            )
        if given and "train" not in given:
            raise RecipeError(f"labelled data: `train` is missing; found only {', '.join(given)}")
        if self.split_field is not None and self.source is None:
            raise RecipeError("labelled data: `split_field` goes with `source`, not with `train`")
        if self.functions is not None and self.pairs_from_label:
            raise RecipeError(
                "labelled data: `functions` and `pairs_from_label` exclude each other"
            )
        if self.texts not in (None, 1, 2):
            raise RecipeError(f"labelled data: texts: {self.texts!r} is neither 1 nor 2")
        if self.texts == 1 and (self.functions or self.pairs_from_label or self.code2_field):
            raise RecipeError(
                "labelled data: texts: 1 does not go with `functions`, `pairs_from_label` or `code2_field`, "
                "which make pairs"
            )
        if self.labels is not None:
            _check_labels(self.labels)
        if self.pairs_from_label and self.labels is not None and len(self.labels) != 2:
            raise RecipeError(
                "labelled data: pairs_from_label makes two labels, different and same; "
                f"`labels` names {len(self.labels)}"
            )

    def files(self, split: str) -> tuple[SplitFile, ...]:
        """The files of a split; none where `source` is what is given."""
        by_name: Mapping[str, tuple[SplitFile, ...]] = {
            "train": self.train,
            "validation": self.validation,
            "test": self.test,
        }
        return by_name[split]


def _check_labels(labels: Sequence[str]) -> None:
    if len(labels) < 2 or len(set(labels)) != len(labels):
        raise RecipeError(
            f"labelled data: labels: expected two or more distinct names, found {list(labels)!r:.200}"
        )
    for number, label in enumerate(labels):
        try:
            check_name(label, f"labels[{number}]")
        except ValueError as error:
            raise RecipeError(
                f"labelled data: no bundle can hold the label {label!r:.100}: {error!s:.150}"
            ) from error
