"""Drafts by a model's own lower layers, checked by its upper ones at once: what is taken is what all layers say.

Self-speculation (2309.08168, 2404.16710): an exit says some tokens, one after another; the layers above it then run
over all of these at once, on the lower layers' states that are there already. Which exit drafts, and how many tokens,
is watched, as with drafts that are looked up: how often each was right, and what each part took.
"""

from __future__ import annotations

from codemill.runtime.completion.lookup import Mean

__all__ = ["Speculation"]

_LONGEST = 6
"""Tokens of a draft, at most."""
_TRIED = 2
"""Tokens of the first drafts of an exit."""
_TRIALS = 4
"""Drafts of an exit before it is judged."""
_AGAIN_AFTER = 64
"""Steps after which what is not done now is tried once more: the text, or the machine's load, may have changed."""
_WEIGHT = 0.1
"""Of a new observation in the share that is right."""
_LEAST_RIGHT = 0.2


class _Drafter:
    """What was seen of one exit. draft: seconds of a drafted token; check: of checking so many tokens."""

    def __init__(self) -> None:
        self.right = 0.5
        self.draft = Mean()
        self.check: dict[int, Mean] = {}
        self.trials = 0

    def checking(self, tokens: int) -> float:
        """Seconds of checking so many tokens: as seen, or in proportion to the nearest number seen, never below it."""
        # a copy: another thread may see something at the same time
        seen = dict(self.check)
        nearest = min(seen, key=lambda count: abs(count - tokens))
        return seen[nearest].seconds * max(1.0, tokens / nearest)


class Speculation:
    """Which of `exits` exits drafts, and how many tokens."""

    def __init__(self, exits: int) -> None:
        self._drafters = [_Drafter() for _ in range(exits)]
        self._one = Mean()
        self._steps = 0

    def plan(self, most: int) -> tuple[int, int]:
        """The exit, from 0, and the tokens to draft, up to `most`; 0 of them: none now."""
        self._steps += 1
        again = self._steps % _AGAIN_AFTER == 0
        if most < 1 or not self._one.seconds:
            return 0, 0
        for number, item in enumerate(self._drafters):
            if item.trials < _TRIALS:
                return number, min(most, _TRIED)
        best, chosen = 1.0 / self._one.seconds, (0, 0)
        for number, item in enumerate(self._drafters):
            for length in range(1, min(most, _LONGEST) + 1):
                expected = sum(item.right**place for place in range(length + 1))
                # the last one drafted goes through the lower layers too
                seconds = (length + 1) * item.draft.seconds + item.checking(length + 1)
                if expected / seconds > best:
                    best, chosen = expected / seconds, (number, length)
        if not again:
            return chosen
        # a token without a draft where there are drafts, a draft where there are none
        tried = self._steps // _AGAIN_AFTER % len(self._drafters)
        return (0, 0) if chosen[1] else (tried, min(most, _TRIED))

    def saw_one(self, seconds: float) -> None:
        """A token without a draft took this long."""
        self._one.saw(seconds)

    def saw(self, exit: int, drafted: int, right: int, draft_s: float, check_s: float) -> None:
        """Of a draft the first `right` were taken; drafting took so many seconds, checking it so many."""
        item = self._drafters[exit]
        # tokens behind the first wrong one were never judged
        for place in range(min(right + 1, drafted)):
            item.right += _WEIGHT * ((place < right) - item.right)
        # a text that is easier again has to be noticed
        item.right = max(item.right, _LEAST_RIGHT)
        item.draft.saw(draft_s / (drafted + 1))
        item.check.setdefault(drafted + 1, Mean()).saw(check_s)
        item.trials += 1
