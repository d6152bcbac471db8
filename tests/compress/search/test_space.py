"""The search space: what can be cut out of a teacher, and what a recipe may ask for."""

from __future__ import annotations

from typing import Any

import pytest

from codemill.compress.budget import Budget, parse_size
from codemill.compress.search.space import Choices, FreshSpace, Space, default_space, fresh_space
from codemill.errors import RecipeError

MINILM: dict[str, Any] = {
    "hidden_size": 384,
    "layers": 6,
    "heads": 12,
    "intermediate_size": 1536,
    "vocab_size": 30522,
    "max_tokens": 256,
}


@pytest.mark.parametrize(
    ("text", "size_bytes"),
    [
        ("3MB", 3_000_000),
        ("3 mb", 3_000_000),
        ("2.5MB", 2_500_000),
        ("3MiB", 3_145_728),
        ("1.5KiB", 1536),
        ("2GB", 2_000_000_000),
        ("1GiB", 2**30),
        ("0.1KB", 100),
        ("12345B", 12345),
        ("12345", 12345),
        (12345, 12345),
    ],
)
def test_a_size_is_read_in_si_and_binary_units(text: str | int, size_bytes: int) -> None:
    assert parse_size(text) == size_bytes


@pytest.mark.parametrize(
    "text",
    [
        "",
        "MB",
        "3 parsecs",
        "-3MB",
        "0",
        "0.1B",
        "1e6",
        "nan",
        "inf",
        "3M",
        "3,5MB",
        "3MB 4",
        "٣MB",
    ],
)
def test_a_size_that_is_none_is_refused_by_name(text: str) -> None:
    with pytest.raises(RecipeError) as caught:
        parse_size(text)
    assert repr(text) in str(caught.value)
    assert "MiB" in str(caught.value)


@pytest.mark.parametrize("limit", [0, -1, float("nan"), float("inf")])
def test_a_limit_that_is_not_a_positive_number_is_refused(limit: float) -> None:
    with pytest.raises(RecipeError, match="gflops"):
        Budget(gflops=limit)


def test_the_default_space_holds_only_what_can_be_cut_and_fused() -> None:
    space = default_space(**MINILM)
    assert space.vocab_sizes[-1] == 30522
    assert max(space.vocab_sizes) == 30522
    assert None in space.embedding_ranks
    assert all(rank is None or rank < 384 for rank in space.embedding_ranks)
    assert {(0,), (5,), (0, 5), (0, 2, 5), (0, 1, 2, 3, 4, 5)} <= set(space.layers)
    assert all(384 % heads == 0 and heads <= 12 for heads in space.heads)
    assert max(space.intermediate_sizes) == 1536
    assert space.head_size == 32


@pytest.mark.parametrize(
    ("layers", "heads", "hidden", "intermediate", "vocab"),
    [(1, 1, 16, 16, 50), (12, 12, 768, 3072, 50265)],
)
def test_any_teacher_has_a_space_that_ends_at_itself(
    layers: int, heads: int, hidden: int, intermediate: int, vocab: int
) -> None:
    space = default_space(
        hidden_size=hidden,
        layers=layers,
        heads=heads,
        intermediate_size=intermediate,
        vocab_size=vocab,
        max_tokens=64,
    )
    whole = space.architecture([len(choices) - 1 for choices in space.choices])
    assert (whole.vocab_size, whole.layers, whole.heads, whole.intermediate_size) == (
        vocab,
        layers,
        heads,
        intermediate,
    )
    assert whole.embedding_rank is None
    assert whole.copied_layers == tuple(range(layers))


def test_gene_vectors_and_architectures_correspond_one_to_one() -> None:
    space = Space(
        (10, 20),
        (None, 4),
        ((0,), (1,), (0, 1)),
        (1, 2),
        (8,),
        hidden_size=16,
        head_size=8,
        max_tokens=32,
        tokenizers=("pruned", "bpe"),
    )
    genes = [
        (a, b, c, d, 0, 0, e)
        for a in range(2)
        for b in range(2)
        for c in range(3)
        for d in range(2)
        for e in range(2)
    ]
    assert space.size == len(genes) == len({space.architecture(row) for row in genes})
    chosen = space.architecture((1, 0, 2, 0, 0, 0, 1))
    assert chosen.tokenizer == "bpe"
    assert (chosen.vocab_size, chosen.embedding_rank, chosen.copied_layers, chosen.heads) == (
        20,
        None,
        (0, 1),
        1,
    )


def test_a_recipe_replaces_the_choices_it_names_and_no_others() -> None:
    default = default_space(**MINILM)
    space = default_space(**MINILM, choices=Choices(layers=((3,),), embedding_ranks=(None,)))
    assert space.layers == ((3,),)
    assert space.embedding_ranks == (None,)
    assert space.vocab_sizes == default.vocab_sizes


@pytest.mark.parametrize(
    "choices",
    [
        Choices(vocab_sizes=(40000,)),
        Choices(embedding_ranks=(512,)),
        Choices(layers=((0, 6),)),
        Choices(layers=((-1,),)),
        Choices(layers=((),)),
        Choices(heads=(24,)),
        Choices(heads=(10,)),
        Choices(heads=(0,)),
        Choices(intermediate_sizes=(64, 64)),
        Choices(intermediate_sizes=(4096,)),
    ],
)
def test_a_choice_that_this_teacher_cannot_give_is_refused_by_name(choices: Choices) -> None:
    (name,) = [key for key, value in vars(choices).items() if value is not None]
    with pytest.raises(RecipeError, match=name):
        default_space(**MINILM, choices=choices)


def test_bits_are_a_gene_whose_default_is_eight() -> None:
    assert default_space(**MINILM).bits == (8,)
    both = default_space(**MINILM, choices=Choices(bits=(8, 32)))
    assert both.size == 2 * default_space(**MINILM).size
    last = both.architecture([len(choices) - 1 for choices in both.choices])
    assert last.bits == 32


@pytest.mark.parametrize(
    ("choices", "said"),
    [
        (Choices(vocab_sizes=()), "vocab_sizes has no choices"),
        (Choices(embedding_ranks=()), "embedding_ranks has no choices"),
        (Choices(layers=()), "layers has no choices"),
        (Choices(heads=()), "heads has no choices"),
        (Choices(intermediate_sizes=()), "intermediate_sizes has no choices"),
        (Choices(bits=()), "bits has no choices"),
        (Choices(bits=(4,)), r"bits are of \[8, 32\], not \[4\]"),
        (Choices(bits=(8, 8)), "bits lists a choice twice"),
        (Choices(embedding_ranks=(None, 0)), "embedding_ranks must be at least 1"),
        (Choices(heads=(-1,)), "heads must be at least 1"),
        (Choices(heads=(5,)), r"heads asks for \[5\]"),
        (Choices(hidden_sizes=(128,)), "keeps the teacher's width"),
        (Choices(head_sizes=(16,)), "keeps the teacher's width"),
        (Choices(layers=(2, 4)), r"layers asks for \[2, 4\].* needs the layers it copies"),
    ],
)
def test_choices_that_are_none_for_a_cut_student_are_refused(choices: Choices, said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        default_space(**MINILM, choices=choices)


def test_a_teacher_whose_heads_do_not_divide_its_width_is_refused() -> None:
    with pytest.raises(RecipeError, match="width of 384 does not divide into 7 heads"):
        default_space(**{**MINILM, "heads": 7})


TEACHER: dict[str, Any] = {"hidden_size": 384, "layers": 6, "vocab_size": 30522, "max_tokens": 256}


def test_the_default_fresh_space_holds_only_what_is_fast() -> None:
    space = fresh_space(**TEACHER)
    assert (min(space.hidden_sizes), max(space.hidden_sizes)) == (64, 384)
    assert space.layers == (1, 2, 3, 4, 5, 6)
    assert max(space.vocab_sizes) == 30522
    assert None in space.embedding_ranks
    assert all(size >= 16 and size % 8 == 0 for size in space.head_sizes)
    for genes in ([0] * len(space.choices), [len(choices) - 1 for choices in space.choices]):
        found = space.architecture(genes)
        assert found.heads * found.head_size == found.hidden_size
        assert (found.copied_layers, found.max_tokens) == ((), 256)


@pytest.mark.parametrize("hidden_size", [16, 32, 48, 64, 80, 312, 768])
def test_any_teacher_has_a_fresh_space(hidden_size: int) -> None:
    space = fresh_space(hidden_size=hidden_size, layers=1, vocab_size=300, max_tokens=64)
    assert max(space.hidden_sizes) <= hidden_size
    assert space.vocab_sizes == (300,)


def test_widths_of_a_recipe_s_own_get_heads_that_divide_them() -> None:
    space = fresh_space(**TEACHER, choices=Choices(hidden_sizes=(48, 96)))
    assert space.head_sizes == (16,)


@pytest.mark.parametrize(
    ("choices", "said"),
    [
        (Choices(vocab_sizes=()), "vocab_sizes has no choices"),
        (Choices(embedding_ranks=()), "embedding_ranks has no choices"),
        (Choices(hidden_sizes=()), "hidden_sizes has no choices"),
        (Choices(layers=()), "layers has no choices"),
        (Choices(head_sizes=()), "head_sizes has no choices"),
        (Choices(intermediate_sizes=()), "intermediate_sizes has no choices"),
        (Choices(bits=()), "bits has no choices"),
        (Choices(bits=(4,)), r"bits are of \[8, 32\], not \[4\]"),
        (Choices(layers=(0, 1)), "layers must be at least 1"),
        (Choices(layers=((0,), (0, 5))), "copies no layers"),
        (Choices(heads=(4,)), "give head_sizes"),
        (Choices(head_sizes=(8,)), "head size of 8 is slow"),
        (Choices(head_sizes=(20,)), "head size of 20 is slow"),
        (Choices(head_sizes=(0,)), "head_sizes must be at least 1"),
        (Choices(hidden_sizes=(64, 100)), r"hidden_sizes \[100\] do not divide into heads of 16"),
        (
            Choices(hidden_sizes=(64, 96), head_sizes=(64,)),
            r"hidden_sizes \[96\] do not divide into heads of 64",
        ),
    ],
)
def test_choices_that_are_none_for_a_fresh_student_are_refused(choices: Choices, said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        fresh_space(**TEACHER, choices=choices)


def test_fresh_genes_and_architectures_correspond_one_to_one() -> None:
    values: dict[str, Any] = {
        "vocab_sizes": (1000, 2000),
        "embedding_ranks": (None, 32),
        "hidden_sizes": (64, 96),
        "layers": (1, 3),
        "head_sizes": (16, 32),
        "intermediate_sizes": (64,),
        "max_tokens": 128,
        "bits": (8, 32),
        "tokenizers": ("bpe",),
    }
    space = FreshSpace(**values)
    genes = [
        (a, b, c, d, e, 0, f, 0)
        for a in range(2)
        for b in range(2)
        for c in range(2)
        for d in range(2)
        for e in range(2)
        for f in range(2)
    ]
    assert space.size == len(genes) == len({space.architecture(row) for row in genes})
    found = space.architecture((1, 0, 1, 1, 1, 0, 1, 0))
    assert found.tokenizer == "bpe"
    assert (found.vocab_size, found.hidden_size, found.heads, found.head_size, found.bits) == (
        *(2000, 96, 3, 32),
        32,
    )
