"""Drafts by a model's own lower layers, checked by its upper ones at once: what is taken is what all layers say.

Self-speculation (2309.08168, 2404.16710): an exit says some tokens, one after another; the layers above it then run
over all of these at once, on the lower layers' states that are there already. Which exit drafts, and how many tokens,
is watched, as with drafts that are looked up: how often each was right, and what each part took.
"""

from __future__ import annotations

__all__ = ["LONGEST", "Speculation"]

LONGEST = 6
"""Tokens of a draft, at most."""
_TRIED = 2
"""Tokens of the first drafts of an exit."""
_TRIALS = 4
"""Drafts of an exit before it is judged."""
_AGAIN_AFTER = 256
"""Steps after which an exit that did not pay is tried once more: another text may be easier."""
_WEIGHT = 0.1
"""Of a new observation in the running mean."""


class _Exit:
    """What was seen of one exit. seconds: of a drafted token, and of checking, as a line over the number of tokens."""

    def __init__(self) -> None:
        self.right = 0.5
        self.draft_s = 0.0
        self.check_s: dict[int, float] = {}
        self.trials = 0

    def checking(self, tokens: int) -> float:
        """Seconds of checking so many tokens: as seen, or from those nearest to it, by their number."""
        seen = self.check_s.get(tokens)
        if seen is not None:
            return seen
        nearest = min(self.check_s, key=lambda count: abs(count - tokens))
        # more rows cost more, but never in proportion: a row less costs no less, a row more its share
        return self.check_s[nearest] * max(1.0, tokens / nearest)


class Speculation:
    """Which of `exits` exits drafts, and how many tokens."""

    def __init__(self, exits: int) -> None:
        self._exits = [_Exit() for _ in range(exits)]
        self._one_s: float | None = None
        self._steps = 0

    def plan(self, most: int) -> tuple[int, int]:
        """The exit, from 0, and the tokens to draft, up to `most`; 0 of them: none now."""
        self._steps += 1
        if most < 1 or self._one_s is None:
            return 0, 0
        for number, item in enumerate(self._exits):
            if item.trials < _TRIALS:
                return number, min(most, _TRIED)
        best, chosen = 1.0 / self._one_s, (0, 0)
        for number, item in enumerate(self._exits):
            for length in range(1, min(most, LONGEST) + 1):
                expected = sum(item.right**place for place in range(length + 1))
                # the last one drafted goes through the lower layers too
                seconds = (length + 1) * item.draft_s + item.checking(length + 1)
                if expected / seconds > best:
                    best, chosen = expected / seconds, (number, length)
        if not chosen[1] and self._steps % _AGAIN_AFTER == 0:
            tried = self._steps // _AGAIN_AFTER % len(self._exits)
            return tried, min(most, _TRIED)
        return chosen

    def saw_one(self, seconds: float) -> None:
        """A token without a draft took this long."""
        self._one_s = _mean(self._one_s, seconds)

    def saw(self, exit: int, drafted: int, right: int, draft_s: float, check_s: float) -> None:
        """Of a draft the first `right` were taken; drafting took so many seconds, checking it so many."""
        item = self._exits[exit]
        # tokens behind the first wrong one were never judged
        for place in range(min(right + 1, drafted)):
            item.right += _WEIGHT * ((place < right) - item.right)
        item.draft_s = _mean(item.draft_s or None, draft_s / (drafted + 1))
        item.check_s[drafted + 1] = _mean(item.check_s.get(drafted + 1), check_s)
        item.trials += 1


def _mean(before: float | None, seconds: float) -> float:
    # a run that waited for another program says little
    return seconds if before is None else before + _WEIGHT * (min(seconds, 2 * before) - before)
