from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from tokenizers import Tokenizer

from codemill.errors import BundleError
from codemill.runtime import (
    Classifier,
    Encoder,
    Prediction,
    load,
    load_classifier,
    load_encoder,
    read_manifest,
    verify_bundle,
)
from codemill.runtime.parts import Part
from codemill.runtime.passes import stacked
from codemill.runtime.session import OnnxSession

from .conftest import (
    DIM,
    GROWTH,
    LABELS,
    LAYERS,
    MAX_TOKENS,
    Variant,
    embedding_table,
    head_weights,
    write_head,
    write_labels_bundle,
    write_part,
)

HOME = "variants/cpu-fp32"
TEXTS = [
    *("open the file", "connect a socket", "", "matrix multiply matrix", "read " * 40),
    *("file socket matrix", "the value", "socket", "é ☃", "file file file file name"),
]
PAIRS = [
    *(("file", "file"), ("socket", "file"), ("file", "socket"), ("matrix", "matrix list")),
    *(("file", "file"), ("the name", "socket"), ("", "matrix"), ("socket", "socket")),
]
EXIT = {"layer": 2, "temperature": 1.0, "threshold": 0.6}
# the product of two texts is fainter
PAIR_THRESHOLD = 0.45
Make = Callable[..., Path]


@pytest.fixture(scope="module")
def make(tmp_path_factory: pytest.TempPathFactory) -> Make:
    """A bundle that labels, made anew."""

    def bundle(**options: Any) -> Path:
        return write_labels_bundle(tmp_path_factory.mktemp("labels") / "tiny", **options)

    return bundle


@pytest.fixture(scope="module")
def one(make: Make) -> Path:
    return make()


@pytest.fixture(scope="module")
def pairs(make: Make) -> Path:
    return make(texts=2)


@pytest.fixture(scope="module")
def joined(make: Make) -> Path:
    return make(texts=2, joined=True)


@pytest.fixture(scope="module")
def early(make: Make) -> Path:
    return make(exits=(EXIT,))


@pytest.fixture(scope="module")
def early_pairs(make: Make) -> Path:
    return make(texts=2, exits=({**EXIT, "threshold": PAIR_THRESHOLD},))


class Rows:
    """How many rows each graph was run on, by the name of its file."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.of: dict[str, list[tuple[int, ...]]] = {}
        real = OnnxSession.outputs_for

        def outputs_for(session: OnnxSession, inputs: Any, names: Sequence[str]) -> Any:
            shape = next(iter(inputs.values())).shape
            self.of.setdefault(Path(session.path).stem, []).append(shape)
            return real(session, inputs, names)

        monkeypatch.setattr(OnnxSession, "outputs_for", outputs_for)

    def __getitem__(self, name: str) -> int:
        return sum(shape[0] for shape in self.of.get(name, []))


@pytest.fixture
def rows(monkeypatch: pytest.MonkeyPatch) -> Rows:
    return Rows(monkeypatch)


def embedding(*texts: str, folder: Path) -> NDArray[np.float32]:
    """What the first part computes of one sequence, alone and without padding."""
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.enable_truncation(MAX_TOKENS)
    found: NDArray[np.float32] = embedding_table()[tokenizer.encode(*texts).ids].mean(axis=0)
    return found


def softmax(embedded: NDArray[np.float32], temperature: float = 1.0) -> NDArray[np.float64]:
    logits = np.tanh(embedded.astype(np.float64)) @ head_weights() / temperature
    powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
    found: NDArray[np.float64] = powers / powers.sum(axis=-1, keepdims=True)
    return found


def of_texts(folder: Path, texts: Sequence[str], growth: float = 1.0) -> NDArray[np.float64]:
    return softmax(np.stack([growth * embedding(text, folder=folder) for text in texts]))


def of_pairs(
    folder: Path, items: Sequence[tuple[str, str]], growth: float = 1.0
) -> NDArray[np.float64]:
    return softmax(
        np.stack(
            [
                growth * embedding(a, folder=folder) * growth * embedding(b, folder=folder)
                for a, b in items
            ]
        )
    )


# ------------------------------------------------------------------ labels and probabilities


def test_the_words_of_a_text_are_its_label(one: Path) -> None:
    with load(one, threads=1) as model:
        assert isinstance(model, Classifier)
        found = model.predict(["open the file", "connect a socket", "multiply a matrix"])
        assert [item.label for item in found] == ["file", "socket", "matrix"]
        assert found[0] == Prediction("file", found[0].score, LAYERS, False)
        assert found[0].score == pytest.approx(model.probabilities(["open the file"])[0].max())


@pytest.mark.parametrize("batch_size", [1, 2, 32])
def test_probabilities_are_those_of_the_texts_in_their_order_whatever_the_batches(
    one: Path, batch_size: int
) -> None:
    with load_classifier(one, threads=1) as model:
        found = model.probabilities(TEXTS, batch_size=batch_size)
    assert (found.dtype, found.shape) == (np.float32, (len(TEXTS), len(LABELS)))
    np.testing.assert_allclose(found, of_texts(one, TEXTS), atol=1e-6)


@pytest.mark.parametrize("batch_size", [1, 3, 32])
def test_probabilities_of_pairs_are_those_of_their_two_texts(pairs: Path, batch_size: int) -> None:
    with load_classifier(pairs, threads=1) as model:
        found = model.probabilities(PAIRS, batch_size=batch_size)
        np.testing.assert_allclose(found, of_pairs(pairs, PAIRS), atol=1e-6)
        lists = model.probabilities([list(pair) for pair in PAIRS])
        assert np.array_equal(lists, model.probabilities(PAIRS))


def test_joined_pairs_are_read_as_the_tokenizer_joins_them(joined: Path) -> None:
    with load_classifier(joined, threads=1) as model:
        found = model.probabilities(PAIRS)
    expected = softmax(np.stack([embedding(a, b, folder=joined) for a, b in PAIRS]))
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_more_items_than_are_judged_at_a_time_keep_their_order(
    one: Path, pairs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("codemill.runtime.classifier._WINDOW", 3)
    monkeypatch.setattr("codemill.runtime.passes._ROWS_PER_RUN", 2)
    with load_classifier(one, threads=1) as model:
        np.testing.assert_allclose(model.probabilities(TEXTS), of_texts(one, TEXTS), atol=1e-6)
        assert np.isfinite(model.encode(TEXTS)).all()
    with load_classifier(pairs, threads=1) as model:
        np.testing.assert_allclose(model.probabilities(PAIRS), of_pairs(pairs, PAIRS), atol=1e-6)


def test_run_gives_what_predict_and_probabilities_do(early: Path) -> None:
    with load_classifier(early, threads=1) as model:
        probabilities, layers_used, truncated = model.run(TEXTS, batch_size=4)
        predictions = model.predict(TEXTS, batch_size=4)
        assert np.array_equal(probabilities, model.probabilities(TEXTS, batch_size=4))
    assert (probabilities.dtype, layers_used.dtype, truncated.dtype) == (np.float32, np.int64, bool)
    assert predictions == [
        Prediction(LABELS[row.argmax()], float(row.max()), int(layers), bool(cut))
        for row, layers, cut in zip(probabilities, layers_used, truncated, strict=True)
    ]


def test_no_items_give_no_answers(one: Path, pairs: Path, early: Path) -> None:
    for folder in (one, pairs, early):
        with load_classifier(folder, threads=1) as model:
            assert model.predict([]) == []
            found = model.run([])
            assert found.probabilities.shape == (0, len(LABELS))
            assert (found.layers_used.shape, found.truncated.shape) == ((0,), (0,))
            assert model.encode([]).shape == (0, DIM)


def test_a_temperature_makes_scores_humbler_and_changes_no_label(make: Make, one: Path) -> None:
    with load_classifier(make(temperature=3.0), threads=1) as model:
        found = model.run(TEXTS)
    embedded = np.stack([embedding(text, folder=one) for text in TEXTS])
    np.testing.assert_allclose(found.probabilities, softmax(embedded, 3.0), atol=1e-6)
    assert (found.probabilities.max(axis=1) <= of_texts(one, TEXTS).max(axis=1) + 1e-6).all()


# ------------------------------------------------------------------ each text once


def test_an_item_that_comes_twice_is_answered_once(one: Path, rows: Rows) -> None:
    with load_classifier(one, threads=1) as model:
        found = model.predict(["file", "socket", "file", "file"])
    assert rows["encoder"] == rows["head"] == 2
    assert found[0] == found[2] == found[3] != found[1]


def test_a_text_of_many_pairs_is_encoded_once(
    pairs: Path, rows: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("codemill.runtime.classifier._WINDOW", 2)
    with load_classifier(pairs, threads=1) as model:
        model.predict(PAIRS)
    assert rows["encoder"] == len({text for pair in PAIRS for text in pair})
    assert rows["head"] == len(set(PAIRS))


def test_texts_of_like_length_share_a_batch_of_1024_padded_tokens_at_most(
    one: Path, rows: Rows
) -> None:
    texts = [f"read {i}" for i in range(500)] + [f"{'read ' * 20}{i}" for i in range(10)]
    with load_classifier(one, threads=1) as model:
        model.predict([*texts, *(f"{'a ' * 20}{'b ' * i}" for i in range(70))], batch_size=200)
    shapes = rows.of["encoder"]
    assert shapes[0] == (64, MAX_TOKENS)
    assert all(count * tokens <= 1024 for count, tokens in shapes)


# ------------------------------------------------------------------ exits


def expected_early(folder: Path) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    first, last = of_texts(folder, TEXTS), of_texts(folder, TEXTS, GROWTH)
    leaves = first.max(axis=1) >= EXIT["threshold"]
    return np.where(leaves[:, None], first, last), leaves


@pytest.mark.parametrize("batch_size", [1, 3, 32])
def test_what_is_certain_leaves_at_the_exit_and_the_rest_goes_on(
    early: Path, rows: Rows, batch_size: int
) -> None:
    probabilities, leaves = expected_early(early)
    assert 2 <= leaves.sum() <= len(TEXTS) - 2
    with load_classifier(early, threads=1) as model:
        found = model.run(TEXTS, batch_size=batch_size)
    np.testing.assert_allclose(found.probabilities, probabilities, atol=1e-6)
    assert found.layers_used.tolist() == np.where(leaves, 2, LAYERS).tolist()
    assert (rows["encoder-0"], rows["head-0"]) == (len(TEXTS), len(TEXTS))
    assert rows["encoder-1"] == rows["head-1"] == (~leaves).sum()


def test_without_exits_everything_goes_to_the_end(early: Path, rows: Rows) -> None:
    with load_classifier(early, threads=1) as model:
        found = model.run(TEXTS, exits=False)
    np.testing.assert_allclose(found.probabilities, of_texts(early, TEXTS, GROWTH), atol=1e-6)
    assert set(found.layers_used.tolist()) == {LAYERS}
    assert (rows["encoder-1"], rows["head-0"]) == (len(TEXTS), 0)


def test_the_exits_own_temperature_decides_who_leaves(make: Make) -> None:
    folder = make(exits=({**EXIT, "temperature": 1000.0},))
    with load_classifier(folder, threads=1) as model:
        found = model.run(TEXTS)
    assert set(found.layers_used.tolist()) == {LAYERS}
    np.testing.assert_allclose(found.probabilities, of_texts(folder, TEXTS, GROWTH), atol=1e-6)


def test_three_parts_run_one_after_the_other(make: Make) -> None:
    exits = ({**EXIT, "threshold": 0.9}, {"layer": 4, "temperature": 1.0, "threshold": 0.9})
    folder = make(exits=exits)
    steps = [of_texts(folder, TEXTS, GROWTH**i) for i in range(3)]
    leave = [step.max(axis=1) >= 0.9 for step in steps[:2]]
    expected = np.where(leave[0], 2, np.where(leave[1], 4, LAYERS))
    assert set(expected) == {2, 4, LAYERS}
    with load_classifier(folder, threads=1) as model:
        found = model.run(TEXTS)
        assert found.layers_used.tolist() == expected.tolist()
        np.testing.assert_allclose(model.probabilities(TEXTS, exits=False), steps[2], atol=1e-6)


def test_of_pairs_only_the_texts_of_unfinished_ones_go_on(early_pairs: Path, rows: Rows) -> None:
    first, last = of_pairs(early_pairs, PAIRS), of_pairs(early_pairs, PAIRS, GROWTH)
    leaves = first.max(axis=1) >= PAIR_THRESHOLD
    staying = [pair for pair, leave in zip(PAIRS, leaves, strict=True) if not leave]
    assert 0 < len(staying) < len(PAIRS)
    with load_classifier(early_pairs, threads=1) as model:
        found = model.run(PAIRS)
    assert found.layers_used.tolist() == np.where(leaves, 2, LAYERS).tolist()
    np.testing.assert_allclose(
        found.probabilities, np.where(leaves[:, None], first, last), atol=1e-6
    )
    assert rows["encoder-0"] == len({text for pair in PAIRS for text in pair})
    assert rows["encoder-1"] == len({text for pair in staying for text in pair})


@pytest.mark.parametrize("tokens", [1, 8, 20])
def test_answers_do_not_depend_on_how_many_hidden_states_are_kept(
    early: Path, early_pairs: Path, tokens: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder, items in ((early, TEXTS), (early_pairs, PAIRS)):
        with load_classifier(folder, threads=1) as model:
            expected = model.run(items)  # type: ignore[arg-type]
            with monkeypatch.context() as patch:
                patch.setattr("codemill.runtime.passes._TOKENS_KEPT", tokens)
                found = model.run(items)  # type: ignore[arg-type]
        np.testing.assert_allclose(found.probabilities, expected.probabilities, atol=1e-6)
        assert np.array_equal(found.layers_used, expected.layers_used)
        assert np.array_equal(found.truncated, expected.truncated)


def test_a_text_that_went_to_the_end_is_not_run_again_further_on(
    early_pairs: Path, rows: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("codemill.runtime.passes._TOKENS_KEPT", 1)
    # nothing of the labels in them: none leaves early
    items = [("the", "a"), ("the", "of"), ("the", "name"), ("a", "of")]
    with load_classifier(early_pairs, threads=1) as model:
        assert set(model.run(items).layers_used.tolist()) == {LAYERS}
    assert (rows["encoder-0"], rows["encoder-1"]) == (4, 4)


# ------------------------------------------------------------------ long texts


def test_what_is_cut_off_is_told_and_makes_no_difference(one: Path, pairs: Path) -> None:
    fits = "read " * (MAX_TOKENS - 2)
    with load_classifier(one, threads=1) as model:
        found = model.run([fits, f"{fits} socket"])
        assert found.truncated.tolist() == [False, True]
        assert np.array_equal(found.probabilities[0], found.probabilities[1])
    with load_classifier(pairs, threads=1) as model:
        items = [(fits, "file"), (fits + "socket", "file"), ("file", fits + "socket")]
        assert [item.truncated for item in model.predict(items)] == [False, True, True]


def test_of_a_joined_pair_the_longer_text_is_cut(joined: Path) -> None:
    long, short = "socket " * 9 + "file " * 200, "matrix read"
    with load_classifier(joined, threads=1) as model:
        found = model.run([(long, short), (short, long), ("socket " * 9, short)])
    assert found.truncated.tolist() == [True, True, False]
    # 16 tokens, 3 special ones, 2 of the shorter: 11 are left
    kept = "socket " * 9 + "file " * 2
    expected = softmax(
        np.stack([embedding(kept, short, folder=joined), embedding(short, kept, folder=joined)])
    )
    np.testing.assert_allclose(found.probabilities[:2], expected, atol=1e-6)


def test_two_texts_without_end_are_joined_in_bounded_time_and_memory(joined: Path) -> None:
    # each cut off part of one with each of the other would be a hundred million
    long = "read " * 150_000
    with load_classifier(joined, threads=1) as model:
        found = model.predict([(long, long + "x")])
    assert found[0].truncated


def test_a_split_text_is_judged_by_all_of_it(one: Path) -> None:
    text = "\n".join(["the value of the name", "read the list"] * 4 + ["socket socket socket"])
    with load_classifier(one, threads=1) as model:
        cut = model.predict([text])[0]
        whole = model.predict([text], long="split")[0]
    assert (cut.truncated, whole.truncated) == (True, False)
    assert cut.label != "socket"
    assert whole.label == "socket"


def test_pieces_weigh_by_their_tokens_and_the_odds_of_what_they_show(one: Path) -> None:
    pieces = ["socket " * 10 + "\n", "the name of " * 4 + "\n", "matrix read " * 3]
    with load_classifier(one, threads=1) as model:
        found = model.run(["".join(pieces), "file"], long="split")
    embedded = np.stack([embedding(piece, folder=one) for piece in pieces])
    surest = softmax(embedded).max(axis=1).clip(max=0.99)
    weights = np.array([12, 14, 8]) * surest / (1 - surest)
    mean = (weights[:, None] * embedded).sum(axis=0) / weights.sum()
    np.testing.assert_allclose(found.probabilities[0], softmax(mean), atol=1e-6)
    np.testing.assert_allclose(found.probabilities[1], of_texts(one, ["file"])[0], atol=1e-6)
    assert not found.truncated.any()


def test_pieces_of_a_text_in_a_pair_weigh_by_their_tokens(pairs: Path) -> None:
    pieces = ["socket " * 10 + "\n", "the name of " * 4 + "\n", "matrix read " * 3]
    with load_classifier(pairs, threads=1) as model:
        found = model.run([("".join(pieces), "socket")], long="split")
    embedded = np.stack([embedding(piece, folder=pairs) for piece in pieces])
    mean = (np.array([12, 14, 8])[:, None] * embedded).sum(axis=0) / 34
    expected = softmax(mean * embedding("socket", folder=pairs))
    np.testing.assert_allclose(found.probabilities[0], expected, atol=1e-6)


def test_splitting_makes_no_difference_to_texts_that_fit_and_takes_no_exits(early: Path) -> None:
    texts = [text for text in TEXTS if not text.startswith("read")]
    with load_classifier(early, threads=1) as model:
        found = model.run(texts, long="split")
        np.testing.assert_allclose(
            found.probabilities, model.probabilities(texts, exits=False), atol=1e-6
        )
    assert set(found.layers_used.tolist()) == {LAYERS}


def test_splitting_joined_pairs_is_a_value_error(joined: Path) -> None:
    with (
        load_classifier(joined, threads=1) as model,
        pytest.raises(ValueError, match="use long='truncate'"),
    ):
        model.predict(PAIRS, long="split")


# ------------------------------------------------------------------ embeddings, tokens


@pytest.mark.parametrize("batch_size", [1, 32])
def test_embeddings_are_the_last_parts_and_of_length_1(early: Path, batch_size: int) -> None:
    with load(early, threads=1) as model:
        found = model.encode([*TEXTS, TEXTS[0]], batch_size=batch_size)
        assert model.count_tokens(["parse json", "", "read " * 40]) == [4, 2, 42]
        assert model.dim == DIM
    expected = np.stack([embedding(text, folder=early) for text in [*TEXTS, TEXTS[0]]])
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_one_text_of_a_joined_pair_has_no_embedding(joined: Path) -> None:
    with (
        load_classifier(joined, threads=1) as model,
        pytest.raises(BundleError, match="reads two texts together"),
    ):
        model.encode(["file"])


# ------------------------------------------------------------------ wrong calls


@pytest.mark.parametrize(
    ("items", "message"),
    [
        ("file", r"not one str: predict\(\[text\]\)"),
        ((text for text in TEXTS), "not generator"),
        (["fine", None], r"texts\[1\] should be str, found NoneType"),
        ([("file", "file")], r"texts\[0\] should be str, found tuple"),
    ],
)
def test_items_that_are_no_texts_are_a_type_error(one: Path, items: Any, message: str) -> None:
    with load_classifier(one, threads=1) as model, pytest.raises(TypeError, match=message):
        model.predict(items)


@pytest.mark.parametrize(
    ("items", "message"),
    [
        ("file", "a list of pairs of texts, not str"),
        ({("a", "b")}, "a list of pairs of texts, not set"),
        ([("a", "b"), "ab"], r"items\[1\] should be a pair of two texts, found str"),
        ([("a", "b", "c")], r"items\[0\] .* found 3 texts"),
        ([("a", None)], r"items\[0\]\[1\] should be str, found NoneType"),
    ],
)
def test_items_that_are_no_pairs_are_a_type_error(pairs: Path, items: Any, message: str) -> None:
    with load_classifier(pairs, threads=1) as model, pytest.raises(TypeError, match=message):
        model.predict(items)


def test_settings_that_are_none_are_value_errors(one: Path) -> None:
    with load_classifier(one, threads=1) as model:
        for wrong in (0, -1, 1.5, True):
            with pytest.raises(ValueError, match="batch_size"):
                model.predict(TEXTS, batch_size=wrong)  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="long should be 'truncate' or 'split', found 'cut'"):
            model.predict(TEXTS, long="cut")  # type: ignore[arg-type]


def test_half_a_surrogate_pair_is_text_like_any_other(one: Path, joined: Path) -> None:
    with load_classifier(one, threads=1) as model:
        assert model.predict(["file \ud800"]) == model.predict(["file ?"])
        assert model.predict(["file \ud800 " * 40], long="split")[0].label == "file"
    with load_classifier(joined, threads=1) as model:
        assert model.predict([("\ud800 " * 40, "a")])[0].truncated


# ------------------------------------------------------------------ threads, closing, what it tells


@pytest.mark.parametrize("kind", ["one", "early"])
def test_threads_may_share_a_classifier(kind: str, request: pytest.FixtureRequest) -> None:
    with load_classifier(request.getfixturevalue(kind), threads=1) as model:
        expected = model.predict(TEXTS)
        split = model.predict(TEXTS, long="split")
        with ThreadPoolExecutor(8) as pool:
            found = list(pool.map(lambda _: model.predict(TEXTS), range(24)))
            pieces = list(pool.map(lambda _: model.predict(TEXTS, long="split"), range(24)))
    assert found == [expected] * 24
    assert pieces == [split] * 24


def test_a_closed_classifier_says_so(one: Path) -> None:
    with load_classifier(one) as model:
        pass
    model.close()
    for call in (model.predict, model.encode, model.run):
        with pytest.raises(RuntimeError, match="the classifier is closed"):
            call(["file"])


def test_a_classifier_tells_what_it_runs(early: Path) -> None:
    with load_classifier(early, threads=1) as model:
        assert (model.labels, model.variant) == (LABELS, "cpu-fp32")
        assert model.manifest == read_manifest(early)
        assert model.digest == verify_bundle(early)
        assert repr(model) == "Classifier('tiny', variant='cpu-fp32', labels=3)"
        assert [(e.layer, e.threshold) for e in model.labelling.exits] == [(2, 0.6)]


def test_each_kind_of_bundle_is_loaded_as_what_it_is(one: Path, built: Path) -> None:
    with load(one) as labels, load(built) as embeds:
        assert isinstance(labels, Classifier)
        assert isinstance(embeds, Encoder)
    with pytest.raises(BundleError, match=r"'classification' with output 'labels'; expected retr"):
        load_encoder(one)
    with pytest.raises(BundleError, match=r"'retrieval' .*; expected classification or pair"):
        load_classifier(built)


# ------------------------------------------------------------------ graphs that are not what they should be


def remade(folder: Path, make: Callable[[Path], None], name: str) -> Path:
    """The bundle with one of its graphs written anew."""
    from codemill.runtime import write_bundle

    made = read_manifest(folder)
    make(folder / HOME / name)
    write_bundle(
        folder,
        name=made.name,
        task=made.task,
        input=made.input,
        output=made.output,
        variants=made.variants,
        architecture=made.architecture,
        exits=made.exits,
    )
    return folder


def changed(path: Path, change: Callable[[Any], None]) -> None:
    import onnx

    model = onnx.load_from_string(path.read_bytes())
    change(model.graph)
    path.write_bytes(model.SerializeToString())


def unnamed_shape(graph: Any) -> None:
    """The last axis of the output is of any size, so that only running it tells."""
    graph.output[0].type.tensor_type.shape.dim[1].dim_param = "any"


def nan(graph: Any) -> None:
    from onnx import numpy_helper

    weights = numpy_helper.to_array(graph.initializer[0])
    graph.initializer[0].CopyFrom(numpy_helper.from_array(weights * np.nan, "weights"))


def fewer(graph: Any) -> None:
    from onnx import numpy_helper

    weights = numpy_helper.to_array(graph.initializer[0])
    graph.initializer[0].CopyFrom(numpy_helper.from_array(weights[:, :2].copy(), "weights"))
    unnamed_shape(graph)


def summed(graph: Any) -> None:
    """Hidden states without an axis for the tokens."""
    graph.node[-1].input[0] = "sum"
    dims = graph.output[1].type.tensor_type.shape.dim
    del dims[1:2]
    graph.output[1].type.tensor_type.shape.dim[1].dim_param = "any"
    graph.output[1].type.tensor_type.shape.dim.add().dim_param = "more"


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("head-0.onnx", nan, r"part 0: the head gave logits .* not numbers"),
        ("head-1.onnx", nan, r"part 1: the head gave logits .* not numbers"),
        ("head-0.onnx", fewer, r"gives logits .* shape \['n', 2\]"),
        ("encoder-0.onnx", summed, r"gives hidden .* of shape"),
    ],
)
def test_a_graph_that_lies_about_what_it_gives_is_a_bundle_error(
    make: Make, name: str, change: Callable[[Any], None], message: str
) -> None:
    folder = remade(make(exits=(EXIT,)), lambda path: changed(path, change), name)
    with (
        pytest.raises(BundleError, match=message),
        load_classifier(folder, threads=1) as model,
    ):
        model.predict(TEXTS)


class Fake:
    """A graph that answers with arrays of the shapes it is told, the next one each time."""

    def __init__(self, *shapes: tuple[int, ...], value: float = 0.0) -> None:
        self.shapes = list(shapes)
        self.value = value

    def outputs_for(self, inputs: Any, names: Sequence[str]) -> list[NDArray[Any]]:
        return [
            np.full(self.shapes.pop(0), self.value, dtype=np.float32) for _ in range(len(names))
        ]

    def close(self) -> None:
        pass


def part(encoder: Fake, head: Fake, hands_on: str | None = "hidden") -> Part:
    threshold = None if hands_on is None else 1.0
    return Part(encoder, head, 4, 2, 2, 1.0, threshold, hands_on, "part 0")


IDS = np.ones((2, 3), dtype=np.int64)


@pytest.mark.parametrize("shape", [(2, 5), (1, 4), (2, 4, 1), ()])
def test_an_embedding_of_another_shape_is_a_bundle_error(shape: tuple[int, ...]) -> None:
    with pytest.raises(BundleError, match=r"gave embedding of shape .*expected \[2, 4\]"):
        part(Fake(shape, (2, 3, 6)), Fake()).start(IDS, IDS)


@pytest.mark.parametrize("shape", [(2, 4, 6), (1, 3, 6), (2, 3), ()])
def test_hidden_states_of_another_shape_are_a_bundle_error(shape: tuple[int, ...]) -> None:
    with pytest.raises(BundleError, match=r"gave hidden of shape .*expected \[2, 3, "):
        part(Fake((2, 4), shape), Fake()).start(IDS, IDS)


@pytest.mark.parametrize("shape", [(2, 3), (3, 2), (2,), (2, 2, 1)])
def test_logits_of_another_shape_are_a_bundle_error(shape: tuple[int, ...]) -> None:
    with pytest.raises(BundleError, match=r"gave logits of shape .*expected \[2, 2\]"):
        part(Fake(), Fake(shape)).logits([np.zeros((2, 4), dtype=np.float32)])


def test_numbers_that_are_none_are_a_bundle_error() -> None:
    for value in (np.nan, np.inf):
        with pytest.raises(BundleError, match="not numbers"):
            part(Fake((2, 4), (2, 3, 6), value=value), Fake()).start(IDS, IDS)


def test_hidden_states_of_several_widths_are_a_bundle_error() -> None:
    hidden = [np.zeros((3, width), dtype=np.float32) for width in (6, 7)]
    with pytest.raises(BundleError, match=r"part 0: .* hidden states of several widths"):
        stacked(hidden, "part 0")


def test_a_graph_of_another_interface_is_a_bundle_error(make: Make) -> None:
    cases: list[tuple[str, Callable[[Path], None], str]] = [
        ("head-0.onnx", lambda p: write_head(p, pair=True), "takes .*second.*; a head here takes"),
        ("head-1.onnx", lambda p: write_head(p, pair=False, output="x"), "no output 'logits'"),
        ("encoder-0.onnx", lambda p: write_part(p, True, True), "no output 'hidden'"),
        ("encoder-1.onnx", lambda p: write_part(p, True, True), r"takes .*input_ids"),
    ]
    for name, write, message in cases:
        with pytest.raises(BundleError, match=message):
            load(remade(make(exits=(EXIT,)), write, name))


def test_another_width_or_number_of_labels_than_the_manifests_is_a_bundle_error(
    make: Make,
) -> None:
    output = {"kind": "labels", "labels": ["a", "b"], "dim": DIM}
    with pytest.raises(BundleError, match=r"gives logits .* \['any', 2\]"):
        load(make(output=output))
    output = {"kind": "labels", "labels": list(LABELS), "dim": DIM + 1}
    with pytest.raises(BundleError, match=rf"gives embedding .* \['any', {DIM + 1}\]"):
        load(make(output=output))


def test_a_variant_of_another_provider_does_not_fall_back(one: Path, make: Make) -> None:
    from codemill.errors import ProviderError

    segments = (f"{HOME}/encoder.onnx", f"{HOME}/head.onnx")
    gpu = Variant("CUDAExecutionProvider", "fp16", segments, segments)
    with pytest.raises(ProviderError, match="no variant of bundle"):
        load(make(variants={"gpu": gpu}))


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="reads /proc")
def test_what_a_failed_load_opened_is_closed_again(make: Make) -> None:
    folder = remade(make(), lambda p: write_head(p, pair=True), "head.onnx")
    before = len(os.listdir("/proc/self/task"))  # noqa: PTH208
    for _ in range(3):
        with pytest.raises(BundleError):
            load(folder, threads=3)
    assert len(os.listdir("/proc/self/task")) <= before + 1  # noqa: PTH208


def test_a_bundle_says_what_is_done_with_a_long_text_and_a_call_may_say_otherwise(
    make: Make, one: Path
) -> None:
    texts = ["socket " * 10 + "\n" + "matrix read " * 6, "file"]
    said = {"max_tokens": MAX_TOKENS, "texts": 1, "joined": False, "long": "split"}
    with (
        load_classifier(make(input=said), threads=1) as splits,
        load_classifier(one, threads=1) as cuts,
    ):
        found = splits.run(texts)
        np.testing.assert_array_equal(found.probabilities, cuts.probabilities(texts, long="split"))
        assert not found.truncated.any()
        assert splits.run(texts, long="truncate").truncated.tolist() == [True, False]


@pytest.mark.parametrize(
    ("changed", "texts"), [({"long": "guess"}, 1), ({"long": "split", "joined": True}, 2)]
)
def test_a_long_that_is_none_is_refused(make: Make, changed: dict[str, Any], texts: int) -> None:
    said = {"max_tokens": MAX_TOKENS, "texts": texts, "joined": False, **changed}
    with pytest.raises(BundleError, match=r"input\.long"):
        make(texts=texts, joined=changed.get("joined", False), input=said)
