"""Every decision of the loop, with a backend that computes nothing: exit, stop, fill, rewind, a draft that is wrong."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from threading import Event
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from codemill.runtime.completion.cache import Cache
from codemill.runtime.completion.decoding import Decoding, Exit, Rotary
from codemill.runtime.completion.document import Document
from codemill.runtime.completion.lookup import Costs, Drafts, Mean
from codemill.runtime.completion.loop import Settings, Taken, generate
from codemill.runtime.completion.speculation import Speculation

VOCAB, END = 50, 49
STOP, EXIT, GO_ON = [1.0, 0, 0], [0, 1.0, 0], [0, 0, 1.0]


def decoding(exits: Sequence[Exit] = (), rotary: Rotary | None = None) -> Decoding:
    return Decoding(
        vocab_size=VOCAB,
        layers=6,
        width=1,
        kv_heads=1,
        head_size=2,
        max_tokens=1000,
        begin=(),
        end=(END,),
        fill=None,
        rotary=rotary,
        exits=tuple(exits),
    )


@dataclass
class Counting:
    """A model that says that n + 1 follows n. A hidden state is its token; keys are tokens, in each layer they reach.

    decisions: what the controller says, in order; then that it goes on.
    """

    decoding: Decoding
    decisions: list[list[float]] = field(default_factory=list)
    calls: list[tuple[Any, ...]] = field(default_factory=list)
    fail_at: int | None = None

    def cache(self) -> Cache:
        return Cache(self.decoding)

    def segment(
        self, number: int, inputs: NDArray[Any], cache: Cache, past: int
    ) -> NDArray[np.float32]:
        tokens = np.asarray(inputs, np.float32).reshape(len(inputs), 1)
        self.calls.append(("segment", number, [int(t) for t in tokens[:, 0]], past))
        if self.fail_at == len(self.calls):
            raise RuntimeError("the graph fell over")
        ends = (0, *self.decoding.ends)
        for layer in range(ends[number], ends[number + 1]):
            cache.layers[layer][0][0, 0, past : past + len(tokens)] = tokens
        return tokens

    def judge(
        self, exit: int, hidden: NDArray[np.float32]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        self.calls.append(("judge", exit))
        chances = self.decisions.pop(0) if self.decisions else GO_ON
        return hidden, np.asarray(chances, np.float32)

    def fill(self, document: Document) -> None:
        self.calls.append(("fill", [(item.at, item.exit) for item in document.left]))
        for item in document.left:
            for layer in range(self.decoding.ends[item.exit], self.decoding.layers):
                document.cache.layers[layer][0][0, 0, item.at] = item.hidden[0]
        document.left.clear()

    def logits(self, state: NDArray[np.float32]) -> NDArray[np.float32]:
        found = np.zeros((len(state), VOCAB), np.float32)
        found[np.arange(len(state)), np.minimum(state[:, 0].astype(int) + 1, END)] = 1
        return found

    def close(self) -> None:
        pass


def greedy(logits: NDArray[np.float32]) -> int:
    return int(logits.argmax())


def run(
    backend: Counting, prompt: Sequence[int], document: Document | None = None, **values: Any
) -> tuple[list[Taken], Any, Document]:
    document = document or Document(backend.cache())
    values = {"choose": greedy, "max_tokens": 5, "exits": backend.decoding.exits, **values}
    *taken, ended = generate(backend, document, prompt, Settings(**values))
    assert all(isinstance(item, Taken) for item in taken)
    return taken, ended, document  # type: ignore[return-value]


def keys(document: Document, layer: int) -> list[int]:
    return [int(key) for key in document.cache.layers[layer][0][0, 0, : len(document.tokens), 0]]


def test_tokens_follow_one_another_up_to_the_limit() -> None:
    backend = Counting(decoding())
    taken, ended, document = run(backend, [3, 4, 5])
    assert [item.id for item in taken] == [6, 7, 8, 9, 10]
    assert {item.layers for item in taken} == {6}
    assert ended == "length"
    # the last one was never run: nothing asked what follows it
    assert document.tokens == [3, 4, 5, 6, 7, 8, 9]
    assert keys(document, 5) == document.tokens


def test_it_ends_where_the_model_says_so() -> None:
    taken, ended, _ = run(Counting(decoding()), [46])
    assert ([item.id for item in taken], ended) == ([47, 48], "end")


def test_an_exit_leaves_early_and_its_upper_layers_are_filled_before_they_are_needed() -> None:
    exits = [Exit(2, 0.5, 0.5), Exit(4, 0.5, 0.5)]
    backend = Counting(decoding(exits), [EXIT, GO_ON, EXIT, GO_ON, GO_ON])
    taken, ended, document = run(backend, [10])
    assert [item.id for item in taken] == [11, 12, 13, 14, 15]
    # the first is never left early
    assert [item.layers for item in taken] == [6, 2, 4, 6, 6]
    assert ended == "length"
    fills = [call[1] for call in backend.calls if call[0] == "fill"]
    assert fills == [[(1, 0)], [(2, 1)]]
    assert document.left == []
    assert keys(document, 5) == document.tokens == [10, 11, 12, 13, 14]


def test_what_left_early_last_is_filled_by_the_next_completion() -> None:
    backend = Counting(decoding([Exit(2, 0.5, 0.5)]), [EXIT])
    _, _, document = run(backend, [10], max_tokens=2)
    assert [item.at for item in document.left] == [1]
    run(backend, [10, 11, 12, 13], document, max_tokens=1)
    assert keys(document, 5) == [10, 11, 12, 13]


def test_a_stop_ends_the_completion_without_the_token() -> None:
    backend = Counting(decoding([Exit(2, 0.5, 0.5)]), [GO_ON, STOP])
    taken, ended, document = run(backend, [10])
    assert ([item.id for item in taken], ended) == ([11, 12], "uncertain")
    assert document.tokens == [10, 11]


@pytest.mark.parametrize("bounds", [(None, None), (0.99, 0.99)])
def test_a_decision_below_its_bound_is_not_followed(
    bounds: tuple[float | None, float | None],
) -> None:
    exits = [Exit(2, *bounds)]
    backend = Counting(decoding(exits), [[0.9, 0.1, 0], [0.1, 0.9, 0]])
    taken, ended, _ = run(backend, [10], max_tokens=3)
    assert [item.layers for item in taken] == [6, 6, 6]
    assert ended == "length"


def test_without_exits_no_controller_is_asked() -> None:
    backend = Counting(decoding([Exit(2, 0.5, 0.5)]), [STOP])
    taken, _, _ = run(backend, [10], exits=())
    assert len(taken) == 5
    assert not [call for call in backend.calls if call[0] == "judge"]


def test_an_exit_that_is_never_followed_is_not_asked() -> None:
    exits = [Exit(2, None, None), Exit(4, 0.5, None)]
    backend = Counting(decoding(exits), [[0.1, 0.9, 0], [0, 0.1, 0.9]])
    taken, _, _ = run(backend, [10], max_tokens=3)
    assert [item.layers for item in taken] == [6, 4, 6]
    assert {call[1] for call in backend.calls if call[0] == "judge"} == {1}


def test_a_prompt_that_goes_on_costs_what_is_new() -> None:
    backend = Counting(decoding())
    _, _, document = run(backend, list(range(20)), max_tokens=1)
    backend.calls.clear()
    run(backend, [*range(20), 20, 21], document, max_tokens=1)
    assert backend.calls == [("segment", 0, [20, 21], 20)]


def test_the_same_prompt_again_costs_its_last_token() -> None:
    backend = Counting(decoding())
    _, _, document = run(backend, list(range(20)))
    backend.calls.clear()
    taken, _, _ = run(backend, list(range(20)), document, max_tokens=1)
    assert [item.id for item in taken] == [20]
    assert backend.calls == [("segment", 0, [19], 19)]


def test_a_long_prompt_is_run_in_pieces_and_a_cancel_seen_between_them() -> None:
    class After:
        """Is set when asked for the third time."""

        asked = 0

        def is_set(self) -> bool:
            self.asked += 1
            return self.asked > 2

    backend = Counting(decoding())
    prompt = [n % 40 for n in range(500)]
    taken, ended, document = run(backend, prompt, cancel=After())
    assert (taken, ended) == ([], "cancelled")
    assert [len(call[2]) for call in backend.calls] == [128, 128]
    # what was read stays
    assert document.tokens == prompt[:256]


def test_a_cancel_takes_effect_within_a_token() -> None:
    cancel = Event()
    backend = Counting(decoding())
    found = generate(backend, Document(backend.cache()), [1], Settings(greedy, 40, cancel=cancel))
    assert isinstance(next(found), Taken)
    cancel.set()
    assert list(found) == ["cancelled"]


def test_a_graph_that_fails_in_a_prompt_leaves_nothing_half_written() -> None:
    backend = Counting(decoding(), fail_at=2)
    document = Document(backend.cache())
    with pytest.raises(RuntimeError, match="fell over"):
        run(backend, list(range(40)) * 5, document)
    assert document.tokens == []
    backend.fail_at = None
    taken, _, _ = run(backend, [7], document, max_tokens=2)
    assert [item.id for item in taken] == [8, 9]


def test_a_right_draft_is_taken_at_once() -> None:
    backend = Counting(decoding())
    prompt = [*range(5, 25), 40, *range(5, 12)]
    taken, _, document = run(backend, prompt, max_tokens=8, drafts=Drafts(Costs()), costs=None)
    assert [item.id for item in taken] == list(range(12, 20))
    assert any(item.drafted for item in taken)
    runs = [len(call[2]) for call in backend.calls]
    assert len(runs) < 9
    assert max(runs[1:]) > 1
    assert keys(document, 5) == document.tokens


def test_a_wrong_draft_costs_time_but_changes_nothing() -> None:
    backend = Counting(decoding())
    # after 5 6 7 8 stood 30 once: the model says 9
    prompt = [5, 6, 7, 8, 30, 31, 32, 5, 6, 7]
    taken, _, document = run(backend, prompt, max_tokens=4, drafts=Drafts(Costs()))
    assert [item.id for item in taken] == [8, 9, 10, 11]
    assert document.tokens == [*prompt, 8, 9, 10]
    assert keys(document, 5) == document.tokens


def test_a_draft_may_come_from_another_text_and_reach_beyond_the_end() -> None:
    backend = Counting(decoding())
    other = np.array([44, 45, 46, 47, 48, END, 3, 4], np.int64)
    taken, ended, _ = run(
        backend, [44, 45, 46], max_tokens=20, drafts=Drafts(Costs()), others=[other]
    )
    assert ([item.id for item in taken], ended) == ([47, 48], "end")


ROTARY = Rotary((0.5,), False)


def test_an_edit_in_the_middle_moves_what_follows() -> None:
    backend = Counting(decoding(rotary=ROTARY))
    end = [n % 30 for n in range(100)]
    _, _, document = run(backend, [1, 2, 3, *end], max_tokens=1)
    backend.calls.clear()
    run(backend, [1, 2, 40, 41, 42, *end], document, max_tokens=1)
    assert backend.calls == [("segment", 0, [40, 41, 42], 2), ("segment", 0, [9], 104)]
    assert document.tokens == [1, 2, 40, 41, 42, *end]


def test_an_edit_after_an_answer_moves_what_was_asked_with_and_drops_the_answer() -> None:
    backend = Counting(decoding(rotary=ROTARY))
    end = [n % 30 for n in range(100)]
    _, _, document = run(backend, [1, 2, 3, *end], max_tokens=9)
    backend.calls.clear()
    run(backend, [1, 2, 40, 41, *end], document, max_tokens=9)
    assert backend.calls[:2] == [("segment", 0, [40, 41], 2), ("segment", 0, [9], 103)]
    assert document.tokens[:104] == [1, 2, 40, 41, *end]
    # and again
    backend.calls.clear()
    run(backend, [1, *end], document, max_tokens=1)
    assert backend.calls == [("segment", 0, [9], 100)]


def test_what_is_cut_out_of_the_middle_moves_what_follows_back() -> None:
    backend = Counting(decoding(rotary=ROTARY))
    end = [n % 30 for n in range(100)]
    _, _, document = run(backend, [1, 2, 3, 4, 5, *end], max_tokens=1)
    moved = document.cache.layers[0][0][0, 0, 5:104].copy()
    backend.calls.clear()
    run(backend, [1, 2, *end], document, max_tokens=1)
    assert backend.calls == [("segment", 0, [9], 101)]
    # turned back by three places
    angle = -3 * 0.5
    turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    found = document.cache.layers[0][0][0, 0, 2:101]
    np.testing.assert_allclose(found, moved @ turn, atol=1e-4)


@pytest.mark.parametrize(
    ("rotary", "move", "count"),
    [(None, True, 100), (ROTARY, False, 100), (ROTARY, True, 20)],
    ids=["learned positions", "not wanted", "short"],
)
def test_an_end_is_computed_again_where_it_cannot_be_moved(
    rotary: Rotary | None, move: bool, count: int
) -> None:
    backend = Counting(decoding(rotary=rotary))
    end = [n % 30 for n in range(count)]
    _, _, document = run(backend, [1, 2, 3, *end], max_tokens=1)
    backend.calls.clear()
    run(backend, [1, 2, 40, *end], document, max_tokens=1, move=move)
    assert backend.calls[0] == ("segment", 0, [40, *end], 2)


class Doubtful(Counting):
    """Its exits are wrong about some of the tokens they say: those behind the tokens in `wrong`."""

    wrong: frozenset[int] = frozenset()

    def judge(
        self, exit: int, hidden: NDArray[np.float32]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        state, chances = super().judge(exit, hidden)
        return (state + 1 if int(state[0, 0]) in self.wrong else state), chances


def speculating(lengths: Sequence[int], wrong: Sequence[int] = ()) -> tuple[Any, Any]:
    """A backend with exits after 2 and 4 layers, and a plan that drafts so many tokens by the second in turn."""
    backend = Doubtful(decoding([Exit(2, None, None), Exit(4, None, None)]))
    backend.wrong = frozenset(wrong)
    plan = Speculation(2)
    waiting = list(lengths)
    plan.plan = lambda most: (1, min(most, waiting.pop(0) if waiting else 0))  # type: ignore[method-assign]
    return backend, plan


def test_exits_draft_and_the_layers_above_check_all_at_once() -> None:
    backend, plan = speculating([3])
    taken, ended, document = run(backend, [10], max_tokens=6, exits=(), speculation=plan)
    assert [item.id for item in taken] == [11, 12, 13, 14, 15, 16]
    assert [item.drafted for item in taken] == [False, True, True, True, False, False]
    assert {item.layers for item in taken} == {6}
    assert ended == "length"
    upper = [call for call in backend.calls if call[:2] == ("segment", 2)]
    # the prompt, the token with its draft, and the last one
    assert [call[2] for call in upper] == [[10], [11, 12, 13, 14], [15]]
    assert document.tokens == [10, 11, 12, 13, 14, 15]
    assert keys(document, 0) == keys(document, 5) == document.tokens


def test_what_an_exit_is_wrong_about_changes_nothing() -> None:
    backend, plan = speculating([3, 2, 3], wrong=[12, 15])
    taken, _, document = run(backend, [10], max_tokens=8, exits=(), speculation=plan)
    assert [item.id for item in taken] == list(range(11, 19))
    # behind 12 it says 14, and all that follows is thrown away
    assert [item.drafted for item in taken][:3] == [False, True, False]
    assert document.tokens == list(range(10, 18))
    assert keys(document, 0) == keys(document, 5) == document.tokens


def test_a_draft_is_no_longer_than_what_is_wanted() -> None:
    backend, plan = speculating([6])
    taken, ended, _ = run(backend, [10], max_tokens=3, exits=(), speculation=plan)
    assert ([item.id for item in taken], ended) == ([11, 12, 13], "length")
    assert max(len(call[2]) for call in backend.calls if call[0] == "segment") == 2


def test_speculation_goes_by_what_it_saw() -> None:
    plan = Speculation(2)
    # nothing is known of a token's time yet
    assert plan.plan(5) == (0, 0)
    plan.saw_one(1.0)
    for exit, right in ((0, 0), (1, 2)):
        for _ in range(4):
            assert plan.plan(5) == (exit, 2)
            plan.saw(exit, 2, right, 3 * 0.2, 0.7)
    # the second is right, and cheap
    exit, length = plan.plan(5)
    assert exit == 1
    assert length >= 2
    assert plan.plan(1) == (1, 1)
    assert plan.plan(0) == (0, 0)
    # now and then a token alone, or its time would be forgotten
    assert {plan.plan(5) for _ in range(200)} == {(0, 0), (exit, length)}
    for _ in range(60):
        plan.saw(0, 2, 0, 3 * 0.2, 1.2)
        plan.saw(1, 2, 0, 3 * 0.2, 1.2)
    # now and then one is tried again
    assert {plan.plan(5) for _ in range(600)} == {(0, 0), (0, 2), (1, 2)}
    for _ in range(20):
        plan.saw(1, 2, 2, 3 * 0.2, 0.7)
    assert (1, 2) in {plan.plan(2) for _ in range(2)}


def test_what_was_seen_cold_is_forgotten() -> None:
    mean = Mean()
    assert mean.seconds == 0
    for seconds in (5.0, 1.0, 1.2):
        mean.saw(seconds)
    assert 1.0 <= mean.seconds <= 1.05
    # a run that waited for another program says little
    mean.saw(1000.0)
    assert mean.seconds < 1.2


def test_what_followed_nearby_counts_beside_the_model() -> None:
    # the model says that 4 follows 3; in the text 7 did, again and again
    prompt = [3, 7, 5, 3, 7, 5, 3, 7, 5, 3]
    alone, _, _ = run(Counting(decoding()), prompt)
    assert alone[0].id == 4
    sure, _, document = run(Counting(decoding()), prompt, escapes=(0.01, 0.01))
    # what was taken counts as well, and the model's own tokens are those of the text
    assert [item.id for item in sure] == [7, 5, 3, 7, 5]
    assert document.tokens == [*prompt, 7, 5, 3, 7]
    unsure, _, _ = run(Counting(decoding()), prompt, escapes=(1e6, 1e6))
    assert [item.id for item in unsure] == [item.id for item in alone]


def test_drafts_change_nothing_where_ngrams_count() -> None:
    prompt = [3, 4, 5, 9, 3, 4, 5, 9, 3, 4]
    for escapes in ((0.05, 0.05, 0.05), (2.0, 1.0)):
        plain, _, one = run(Counting(decoding()), prompt, max_tokens=20, escapes=escapes)
        drafts = Drafts(Costs())
        drafted, _, other = run(
            Counting(decoding()), prompt, max_tokens=20, escapes=escapes, drafts=drafts
        )
        assert [item.id for item in drafted] == [item.id for item in plain]
        assert any(item.drafted for item in drafted)
        assert one.tokens == other.tokens


def test_ngrams_of_other_texts_count() -> None:
    taken, _, _ = run(
        Counting(decoding()), [1, 20], escapes=(0.01,), others=[np.array([20, 30, 31])]
    )
    assert [item.id for item in taken][:2] == [30, 31]


def test_ngrams_count_behind_exits_and_behind_what_exits_drafted() -> None:
    # the model says that 20 follows 19; in the text 4 did
    prompt = [19, 4, 5, 19, 4, 6, 19, 4, 7, 19]
    plain, _, _ = run(Counting(decoding()), prompt, max_tokens=6, escapes=(0.05, 0.05))
    wanted = [item.id for item in plain]
    assert wanted[0] == 4
    leaving = Counting(decoding([Exit(2, 0.5, 0.5)]), [EXIT, GO_ON, EXIT, EXIT, EXIT])
    taken, _, document = run(leaving, prompt, max_tokens=6, escapes=(0.05, 0.05))
    assert [item.id for item in taken] == wanted
    assert {item.layers for item in taken} == {2, 6}
    assert document.tokens == [*prompt, *wanted[:-1]]
    backend, plan = speculating([3, 1, 2])
    taken, _, document = run(
        backend, prompt, max_tokens=6, exits=(), speculation=plan, escapes=(0.05, 0.05)
    )
    assert [item.id for item in taken] == wanted
    assert document.tokens == [*prompt, *wanted[:-1]]
