"""The search space: what can be cut out of a teacher, and what a recipe may ask for."""

from __future__ import annotations

import pytest

from codemill.compress.budget import Budget, parse_size
from codemill.compress.search.space import Choices, Space, default_space
from codemill.errors import RecipeError

MINILM = {
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
    )
    genes = [
        (a, b, c, d, 0) for a in range(2) for b in range(2) for c in range(3) for d in range(2)
    ]
    assert space.size == len(genes) == len({space.architecture(row) for row in genes})
    chosen = space.architecture((1, 0, 2, 0, 0))
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
