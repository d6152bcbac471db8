"""The test's code, rewritten without another meaning: what robustness is measured on."""

from __future__ import annotations

from collections.abc import Sequence

from codemill.compress.rewrite import Rewrite, language_of, rewrite

__all__ = ["rewritten"]

_MOST_TEXTS = 2_000
"""So many texts are rewritten at most; the rest stays out of this figure."""
_SAMPLE = 20


def rewritten(texts: Sequence[str], seed: int) -> dict[str, tuple[str | None, ...]]:
    """Kind of rewrite -> the texts rewritten, None where one cannot be. Empty where their language is not known."""
    language = _language(texts)
    if language is None:
        return {}
    return {
        kind.value: tuple(
            rewrite(text, language, kind, seed) if number < _MOST_TEXTS else None
            for number, text in enumerate(texts)
        )
        for kind in Rewrite
    }


def _language(texts: Sequence[str]) -> str | None:
    """What most of the first texts are written in; a set of many languages has each text's guessed by `rewrite`."""
    found = [language_of(text) for text in texts[:_SAMPLE]]
    known = [name for name in found if name is not None]
    return max(sorted(set(known)), key=known.count) if known else None
