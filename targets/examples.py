"""A few rows of a test and what a bundle makes of them, right and wrong, for people to look at."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from codemill.targets.figures import Found, RankingExample
from codemill.targets.metrics import cosines

if TYPE_CHECKING:
    import numpy.typing as npt

    from codemill.targets.evaluation import Evaluation

__all__ = ["evenly", "ranking_examples"]

_SHOWN = 3
"""Functions of a query."""
_MOST_LINES, _MOST_CHARACTERS = 12, 600


def ranking_examples(
    evaluation: Evaluation,
    queries: npt.NDArray[np.floating],
    codes: npt.NDArray[np.floating],
    ranks: npt.NDArray[np.int64],
    count: int,
) -> dict[int, RankingExample]:
    """By number of the query: half of `count` answered right, half not, these evenly over their ranks.

    `queries` and `codes` are [n, dim], `ranks` as `metrics.ranks` gives them. The other engines' ranks are still
    missing.
    """
    right = np.flatnonzero(ranks == 1)
    wrong = np.flatnonzero(ranks > 1)
    wrong = wrong[np.argsort(ranks[wrong], kind="stable")]
    chosen = [*evenly(right, count - count // 2), *evenly(wrong, count // 2)]
    if not chosen:
        return {}
    scores = cosines(queries[chosen], codes)
    found = {}
    for query, row in zip(chosen, scores, strict=True):
        first = np.argsort(-row, kind="stable")[:_SHOWN]
        found[query] = RankingExample(
            query=_shortened(evaluation.queries[query]),
            code=_shortened(evaluation.codes[query]),
            rank=int(ranks[query]),
            ranks={},
            found=tuple(
                Found(_shortened(evaluation.codes[i]), float(row[i]), bool(i == query))
                for i in first
            ),
        )
    return found


def _shortened(text: str) -> str:
    """At most 12 lines and 600 characters of a text, with an ellipsis where it goes on."""
    short = "\n".join(text.splitlines()[:_MOST_LINES])[:_MOST_CHARACTERS].rstrip()
    return short if len(short) >= len(text.rstrip()) else f"{short} …"


def evenly(numbers: npt.NDArray[np.int64], count: int) -> list[int]:
    """`count` of them, or all, from the middles of equal parts."""
    count = min(count, len(numbers))
    return [int(numbers[(2 * part + 1) * len(numbers) // (2 * count)]) for part in range(count)]
