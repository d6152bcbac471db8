"""Drafts, what is drawn, where a text ends, keys that move: each by itself."""

from __future__ import annotations

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from codemill.runtime.completion.cache import STEP, Cache, turned
from codemill.runtime.completion.decoding import Decoding, Rotary
from codemill.runtime.completion.document import shared
from codemill.runtime.completion.ending import Growing
from codemill.runtime.completion.lookup import LONGEST, Costs, Drafts, find
from codemill.runtime.completion.sampling import Sampler


def decoding(max_tokens: int = 10_000) -> Decoding:
    return Decoding(10, 3, 4, 2, 4, max_tokens, (), (), None, None, ())


def test_a_cache_grows_in_steps_and_keeps_what_is_there() -> None:
    cache = Cache(decoding())
    assert cache.capacity == STEP
    cache.layers[1][0][0, 1, 7] = 5
    version = cache.version
    cache.grow(STEP + 1)
    assert STEP < cache.capacity <= 3 * STEP
    assert cache.version > version
    assert (cache.layers[1][0][0, 1, 7] == 5).all()
    assert cache.size_bytes == cache.capacity * 3 * 2 * 2 * 4 * 4
    before = cache.layers
    cache.grow(10)
    assert cache.layers is before


def test_a_cache_is_no_longer_than_the_model_reads() -> None:
    cache = Cache(decoding(300))
    cache.grow(290)
    assert cache.capacity == 300


@pytest.mark.parametrize("interleaved", [False, True])
def test_turning_adds_up(interleaved: bool) -> None:
    rotary = Rotary((1.0, 0.1), interleaved)
    keys = np.random.default_rng(0).normal(size=(1, 2, 5, 6)).astype(np.float32)
    there = turned(turned(keys, 5, rotary), -3, rotary)
    np.testing.assert_allclose(there, turned(keys, 2, rotary), atol=1e-5)
    # columns that positions do not turn
    np.testing.assert_array_equal(there[..., 4:], keys[..., 4:])
    np.testing.assert_allclose(turned(keys, 0, rotary), keys)


def test_shared_counts_from_the_beginning() -> None:
    long = list(range(1000))
    assert shared(long, long) == 1000
    assert shared(long, [*range(700), -1, *range(701, 1000)]) == 700
    assert shared(long, long, 10) == 10
    assert shared([], long) == 0


def test_what_followed_last_is_found() -> None:
    tokens = [1, 2, 3, 4, 50, 1, 2, 3, 4, 60, 61, 62, 1, 2, 3, 4]
    assert find(tokens, [], 2) == [60, 61]
    assert find(tokens, [], 100) == [60, 61, 62, 1, 2, 3, 4]
    assert find([7, 8, 9, 10], [], 4) == []
    assert find([1, 2], [], 4) == []


def test_a_longer_match_comes_before_a_nearer_one() -> None:
    tokens = [9, 1, 2, 3, 70, 8, 1, 2, 3, 80, 9, 1, 2, 3]
    assert find(tokens, [], 1) == [70]
    other = np.array([5, 9, 1, 2, 3, 90], np.int64)
    assert find([9, 1, 2, 3], [other], 1) == [90]


def test_drafts_are_longer_the_more_often_they_are_right_and_never_die_out() -> None:
    drafts = Drafts(Costs())
    for _ in range(100):
        drafts.saw(4, 4)
    sure = drafts.length(100)
    assert sure == LONGEST
    assert drafts.length(3) <= 3
    for _ in range(100):
        drafts.saw(4, 0)
    assert drafts.length(100) < sure


def test_drafts_are_not_made_where_they_do_not_pay() -> None:
    costs = Costs()
    for tokens in range(1, LONGEST + 2):
        costs.saw(tokens, 0.01 * tokens)
    drafts = Drafts(costs)
    assert drafts.length(8) == 0
    cheap = Costs()
    for tokens in range(1, LONGEST + 2):
        cheap.saw(tokens, 0.01)
    assert Drafts(cheap).length(8) > 0


def test_a_run_that_waited_hardly_counts() -> None:
    costs = Costs()
    costs.saw(1, 0.01)
    costs.saw(2, 0.01)
    costs.saw(2, 100.0)
    assert costs.relative(2) < 1.2


def test_without_temperature_the_first_of_the_likeliest_is_taken() -> None:
    assert Sampler()(np.array([0, 3, 1, 3], np.float32)) == 1


def test_draws_follow_the_probabilities_and_the_seed() -> None:
    logits = np.log(np.array([0.1, 0.6, 0.3], np.float32))
    drawn = [Sampler(1.0, seed=seed)(logits) for seed in range(2000)]
    shares = np.bincount(drawn, minlength=3) / len(drawn)
    np.testing.assert_allclose(shares, [0.1, 0.6, 0.3], atol=0.04)
    assert Sampler(1.0, seed=5)(logits) == Sampler(1.0, seed=5)(logits)


def test_top_p_leaves_out_what_is_unlikely() -> None:
    logits = np.log(np.array([0.1, 0.6, 0.3], np.float32))
    assert {Sampler(1.0, 0.8, seed)(logits) for seed in range(200)} == {1, 2}
    assert {Sampler(1.0, 0.5, seed)(logits) for seed in range(200)} == {1}


@pytest.mark.parametrize("values", [(-1, 1), (float("nan"), 1), (1, 0), (1, 1.5), (True, 1)])
def test_values_out_of_range_are_refused(values: tuple[float, float]) -> None:
    with pytest.raises(ValueError, match=r"temperature|top_p"):
        Sampler(*values)


@pytest.fixture(scope="module")
def letters() -> Tokenizer:
    """A token for each byte."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({token: n for n, token in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def grown(
    tokenizer: Tokenizer, text: str, prefix: str = "x", **values: object
) -> tuple[list[str], bool]:
    growing = Growing(tokenizer, tokenizer.encode(prefix).ids, prefix, **values)  # type: ignore[arg-type]
    pieces = []
    for token in tokenizer.encode(text).ids:
        pieces.append(growing.add(token))
        if growing.ended:
            break
    else:
        pieces.append(growing.end())
    assert "".join(pieces) == growing.text
    return [piece for piece in pieces if piece], growing.ended


def test_text_comes_whole_characters_at_a_time(letters: Tokenizer) -> None:
    assert grown(letters, "aé日🎉") == (["a", "é", "日", "🎉"], False)


def test_half_a_character_at_the_end_is_shown_as_such(letters: Tokenizer) -> None:
    growing = Growing(letters, [], "")
    ids = letters.encode("é").ids
    assert growing.add(ids[0]) == ""
    assert growing.end() == "\ufffd"


def test_a_stop_string_ends_it_and_is_not_shown(letters: Tokenizer) -> None:
    pieces, ended = grown(letters, "ab<end>cd", stop=["<end>"])
    assert ("".join(pieces), ended) == ("ab", True)
    # nothing that may be its beginning was shown before
    assert pieces == ["a", "b"]
    assert "".join(grown(letters, "ab<enx", stop=["<end>"])[0]) == "ab<enx"


def test_a_line_ends_at_its_end(letters: Tokenizer) -> None:
    assert "".join(grown(letters, "a = 1\nb = 2", mode="line")[0]) == "a = 1"
    assert grown(letters, "\nb", mode="line") == ([], True)


def test_a_block_ends_where_a_line_is_indented_less(letters: Tokenizer) -> None:
    text = "x = 1\n    if x:\n\n        y = 2\n    return y\n\ndef g():\n"
    prefix = "def f():\n    "
    pieces, ended = grown(letters, text, prefix, mode="block")
    assert "".join(pieces) == "x = 1\n    if x:\n\n        y = 2\n    return y"
    assert ended
    # at no indentation nothing is indented less
    assert grown(letters, "a\nb\n", "", mode="block") == (["a", "\nb", "\n"], False)


@pytest.mark.parametrize("values", [{"mode": "word"}, {"stop": [""]}, {"stop": "abc"}])
def test_other_ways_to_end_are_refused(letters: Tokenizer, values: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"mode|stop"):
        grown(letters, "a", **values)


def test_a_line_of_windows_ends_before_its_return(letters: Tokenizer) -> None:
    assert "".join(grown(letters, "a = 1\r\nb", mode="line")[0]) == "a = 1"
    # a return alone is none
    assert "".join(grown(letters, "a\rb\n", mode="line")[0]) == "a\rb"
    text = "x = 1\r\ny = 2\r\n\r\ndef g():"
    assert "".join(grown(letters, text, "    ", mode="block")[0]) == "x = 1"


@pytest.fixture(scope="module")
def pieces() -> Tokenizer:
    """As Llama's: words begin with a mark for their space, what is no word is bytes."""
    words = ["\u2581a", "\u2581=", "\u2581", "a", "b", "="]
    names = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), *words]
    found = Tokenizer(
        models.BPE(
            {name: n for n, name in enumerate(names)},
            [("\u2581", "a"), ("\u2581", "=")],
            unk_token="<unk>",
            byte_fallback=True,
        )
    )
    found.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    found.decoder = decoders.Sequence(
        [
            decoders.Replace("\u2581", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    return found


@pytest.mark.parametrize("prefix", ["a = ", "a\u65e5\u672c", "\U0001f389\u65e5", ""])
@pytest.mark.parametrize("text", ["\u65e5b", "\U0001f389", "\u8a9e\u00e9a", " a = b"])
def test_characters_of_several_bytes_come_whole(pieces: Tokenizer, prefix: str, text: str) -> None:
    whole = pieces.encode(prefix + text).ids
    asked = pieces.encode(prefix).ids
    count = len(asked) if whole[: len(asked)] == asked else len(asked) - 1
    growing = Growing(pieces, whole[:count], prefix)
    found = [growing.add(token) for token in whole[count:]]
    assert not any("\ufffd" in piece for piece in found)
    assert ("".join(found) + growing.end()).strip() == text.strip()


def test_a_long_text_is_not_decoded_again_for_each_token(letters: Tokenizer) -> None:
    class Counting:
        decoded = 0

        def decode(self, ids: list[int], **options: object) -> str:
            self.decoded += len(ids)
            found: str = letters.decode(ids, **options)
            return found

    counting = Counting()
    growing = Growing(counting, [], "")  # type: ignore[arg-type]
    text = "value = 1\n" * 200
    for token in letters.encode(text).ids:
        growing.add(token)
    assert growing.text + growing.end() == text
    assert counting.decoded < 60 * len(text)


def test_a_temperature_next_to_nothing_takes_the_likeliest() -> None:
    logits = np.array([0, 3, 1], np.float32)
    assert {Sampler(1e-320, seed=seed)(logits) for seed in range(5)} == {1}


def test_stop_strings_may_come_one_by_one(letters: Tokenizer) -> None:
    growing = Growing(letters, [], "", (item for item in ["b"]))  # type: ignore[arg-type]
    for token in letters.encode("abc").ids:
        growing.add(token)
    assert (growing.text, growing.ended) == ("a", True)
