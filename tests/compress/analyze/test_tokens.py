from __future__ import annotations

from itertools import pairwise

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from codemill.compress.analyze.tokens import CodeToken, code_tokens, name_of, subwords_of
from codemill.compress.data.pairs import Pair
from codemill.compress.rewrite.syntax import grammar_of, parse

PYTHON = '@cached\ndef read_é(self, n=1):\n    # all\n    return self.file[n] + "ü" if n is not None else f(n)'
SAMPLES = {
    "python": PYTHON,
    "java": "public int read(char[] b) { return b[0] + f(true, null, 'c', \"é\"); } // é",
    "c": 'static int read(char *s) { if (s == NULL) return -1; return s->a + f("é"); }',
    "cpp": "int read(const T &a) { auto x = new Foo(a); return std::max(x, 1.5); }",
    "javascript": "function read(a, b = 1) { const y = `é${a}`; return a === null ? /x/ : this.b; }",
    "php": "function read($a) { return $this->foo($a . 'é', null); }",
    "go": 'func Read(a int) error { x := a + 1; return f(x, nil, "é") }',
    "ruby": "def read(a, b = 1)\n  @y = a + 'é'.size\n  foo(b)\nend",
}


def tokens_of(code: str, language: str = "python") -> list[CodeToken]:
    parsed = parse(code, grammar_of(language))
    assert parsed is not None
    return code_tokens(parsed)


@pytest.mark.parametrize("language", SAMPLES)
def test_tokens_stand_where_they_say_and_leave_only_white_space(language: str) -> None:
    code = SAMPLES[language]
    found = tokens_of(code, language)
    assert all(code[token.start : token.end] == token.text for token in found)
    assert all(one.end <= two.start for one, two in pairwise(found))
    written = "".join(token.text for token in found)
    assert "".join(written.split()) == "".join(code.split())
    name = name_of(found)
    assert name is not None
    assert name.text.lower() == ("read_é" if language == "python" else "read")


@pytest.mark.parametrize("language", SAMPLES)
def test_the_usual_kinds_are_known_in_every_language(language: str) -> None:
    kinds = {token.text: token.kind for token in tokens_of(SAMPLES[language], language)}
    expected = {"(": "delimiter", "=": "operator", "+": "operator", "return": "keyword"}
    expected |= {"null": "constant", "NULL": "constant", "nil": "constant", "None": "constant"}
    expected |= {"1": "number", "1.5": "number", "é": "string", "ü": "string"}
    expected |= {"a": "identifier", "s": "identifier", "# all": "comment", "// é": "comment"}
    shown = {text: kind for text, kind in kinds.items() if text in expected}
    assert shown == {text: expected[text] for text in shown}
    assert len(shown) >= 3


def test_a_token_knows_its_place_in_the_tree() -> None:
    found = {token.text: token for token in tokens_of("def f(a, b):\n    return g(a)")}
    assert found["f"].parent == "function_definition"
    assert found["b"].parent == "parameters"
    assert found["g"].parent == "call"
    assert found["def"].depth < found["b"].depth < found["g"].depth
    # the parentheses of a parameter list have one parent, def and ( have not
    assert found[","].parent_number == found["b"].parent_number
    assert found["def"].parent_number != found["b"].parent_number


def test_the_depth_does_not_depend_on_what_a_fragment_was_wrapped_in() -> None:
    plain = tokens_of("def f(a):\n    return a")
    method = tokens_of("    def f(a):\n        return a")
    assert [token.text for token in plain] == [token.text for token in method]
    steps = {two.depth - one.depth for one, two in zip(plain, method, strict=True)}
    assert len(steps) == 1


@pytest.mark.parametrize("kind", ["wordpiece", "bpe"])
def test_subwords_are_matched_by_the_characters_they_stand_for(
    kind: str, tokenizer_json: str, pairs: list[Pair]
) -> None:
    tokenizer = Tokenizer.from_str(tokenizer_json)
    if kind == "bpe":
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        trainer = trainers.BpeTrainer(
            vocab_size=500,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        tokenizer.train_from_iterator([pair.code for pair in pairs], trainer)
    tokenizer.no_padding()
    tokenizer.no_truncation()
    code = pairs[0].code
    tokens = tokens_of(code)
    encoding = tokenizer.encode(code)
    found = subwords_of(tokens, encoding.offsets, encoding.special_tokens_mask)
    for token, place in zip(tokens, found, strict=True):
        assert place is not None
        first, last = place
        covered = code[encoding.offsets[first][0] : encoding.offsets[last - 1][1]]
        assert token.text in covered
        # nothing of the neighbours but what one subword holds together
        for at in range(first, last):
            start, end = encoding.offsets[at]
            assert start < token.end
            assert end > token.start


def test_a_subword_over_two_tokens_belongs_to_both() -> None:
    tokens = tokens_of("x = f()")
    offsets = [(0, 0), (0, 1), (1, 3), (3, 5), (5, 7), (0, 0)]
    found = subwords_of(tokens, offsets, [1, 0, 0, 0, 0, 1])
    assert [token.text for token in tokens] == ["x", "=", "f", "(", ")"]
    assert found == [(1, 2), (2, 3), (3, 4), (4, 5), (4, 5)]


def test_a_token_that_the_input_ends_in_has_no_subwords() -> None:
    tokens = tokens_of("x = reading")
    assert subwords_of(tokens, [(0, 1), (2, 3), (4, 8)], [0, 0, 0])[-1] is None
    assert subwords_of(tokens, [(0, 0)], [1]) == [None, None, None]


def test_a_decorator_is_not_the_name_of_a_function() -> None:
    found = name_of(tokens_of("@cache(1)\ndef f(a):\n    return g(a)"))
    assert found is not None
    assert found.text == "f"
    assert name_of(tokens_of("x = 1")) is None
