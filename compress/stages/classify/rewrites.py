"""A sample of the test, its code rewritten without another meaning: what robustness is measured on.

A sample, because a bundle that reads long texts in pieces takes an hour to read a large test again for each
kind of rewriting, and a few hundred functions tell the share of decisions that survive to a few per cent.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from codemill.compress.rewrite import Rewrite, commonest_language, rewrite
from codemill.targets.evaluation import LabelledEvaluation

__all__ = ["MOST_TEXTS", "rewritten", "sampled_texts"]

MOST_TEXTS = 400
"""So many distinct texts are rewritten at most, in each way, and read again by every engine."""
_FEWEST_ROWS = 300


def rewritten(
    evaluation: LabelledEvaluation, seed: int, most_texts: int = MOST_TEXTS
) -> dict[str, tuple[str | None, ...]]:
    """Kind of rewrite -> the texts rewritten, None for those outside the sample and those that cannot be.

    Empty where their language is not known.
    """
    language = commonest_language(evaluation.texts)
    if language is None:
        return {}
    chosen = sampled_texts(evaluation.rows, len(evaluation.texts), seed, most_texts)
    texts = [text if mine else None for text, mine in zip(evaluation.texts, chosen, strict=True)]
    return {
        kind.value: tuple(
            None if text is None else rewrite(text, language, kind, seed) for text in texts
        )
        for kind in Rewrite
    }


def sampled_texts(
    rows: Sequence[tuple[int, ...]], texts: int, seed: int, most: int
) -> NDArray[np.bool_]:
    """bool [texts]: `most` of them, drawn by the seed; the rows all of whose texts are drawn are the sample.

    Of pairs, texts are drawn where enough of them meet in a row, which leaves the mixture of labels as it is.
    Else rows are drawn, until their texts are as many; to prefer texts that are in many rows would give more
    rows, and of one label more than the test has: clones come in clusters.
    """
    if texts <= most:
        return np.ones(texts, bool)
    generator, sides = np.random.default_rng(seed), np.array(rows)
    chosen: NDArray[np.bool_] = generator.permutation(texts) < most
    if sides.shape[1] == 1 or chosen[sides].all(1).sum() >= _FEWEST_ROWS:
        return chosen
    chosen, left = np.zeros(texts, bool), most
    for row in generator.permutation(len(sides)):
        missing = {text for text in rows[row] if not chosen[text]}
        if len(missing) <= left:
            chosen[list(missing)] = True
            left -= len(missing)
    return chosen
