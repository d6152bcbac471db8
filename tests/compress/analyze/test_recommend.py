from __future__ import annotations

import pytest

from codemill.compress.analyze.recommend import made_by, most_frozen, recommend
from codemill.targets.analysis import CodeProperty, Kind, LayerFigures, Probe


def asked(name: str, kind: Kind) -> CodeProperty:
    return CodeProperty(name, kind, "?", 2, 100, 50, 0.5)


def read(name: str, accuracy: float) -> Probe:
    return Probe(name, accuracy, 0.5, accuracy - 0.5, 0.01)


def layers(
    alike: list[tuple[float, float] | None], **accuracies: list[float]
) -> list[LayerFigures]:
    return [
        LayerFigures(
            number,
            tuple(read(name, values[number]) for name, values in accuracies.items()),
            rsa=None if pair is None else pair[0],
            cka=None if pair is None else pair[1],
        )
        for number, pair in enumerate(alike)
    ]


@pytest.mark.parametrize(("count", "most"), [(12, 8), (30, 20), (6, 4), (1, 0)])
def test_no_more_than_two_thirds_of_the_layers_are_recommended(count: int, most: int) -> None:
    assert most_frozen(count) == most
    found = recommend([], layers([(1.0, 1.0)] * (count + 1)))
    assert (found.freeze_layers, found.rule) == (most, "similarity")


def test_layers_are_frozen_up_to_the_first_that_fine_tuning_changed() -> None:
    alike = [
        (1.0, 1.0),
        (0.99, 0.99),
        (0.95, 0.97),
        (0.89, 0.99),
        (0.95, 0.95),
        (0.4, 0.3),
        (0.1, 0.1),
    ]
    found = recommend([], layers(list(alike)))
    assert found.freeze_layers == 2
    assert "layers 1 to 2" in found.reason
    assert "at layer 3 RSA is 0.89 and CKA 0.99" in found.reason


def test_either_measure_can_show_that_a_layer_changed() -> None:
    by_cka = layers([(1.0, 1.0), (0.99, 0.5), (0.99, 0.99), (0.99, 0.99)])
    assert recommend([], by_cka).freeze_layers == 0
    assert "from its first layer on" in recommend([], by_cka).reason


def test_embeddings_that_changed_do_not_stop_the_layers_above_from_being_frozen() -> None:
    assert recommend([], layers([(0.2, 0.2), *[(0.95, 0.95)] * 6])).freeze_layers == 4


def test_without_a_fine_tuned_model_the_layers_that_make_the_basic_properties_are_frozen() -> None:
    by_layer = layers(
        [None] * 7,
        kind=[0.95, 0.96, 0.96, 0.96, 0.96, 0.96, 0.96],
        parent=[0.5, 0.6, 0.72, 0.79, 0.8, 0.7, 0.6],
        words=[0.5, 0.5, 0.5, 0.5, 0.6, 0.8, 0.9],
    )
    properties = [
        asked("kind", "lexical"),
        asked("parent", "syntactic"),
        asked("words", "semantic"),
    ]
    found = recommend(properties, by_layer)
    assert (found.freeze_layers, found.rule) == (3, "probes")
    assert "kind by layer 0, parent by layer 3" in found.reason
    assert "Words, which is semantic, is read best at layer 6 (0.90)" in found.reason


def test_a_semantic_property_alone_freezes_the_embeddings_only() -> None:
    by_layer = layers([None] * 4, words=[0.5, 0.6, 0.8, 0.9])
    assert recommend([asked("words", "semantic")], by_layer).freeze_layers == 0


def test_a_property_is_made_where_nine_tenths_of_what_the_layers_add_are_there() -> None:
    by_layer = layers([None] * 5, x=[0.4, 0.7, 0.86, 0.88, 0.9])
    assert made_by("x", by_layer) == 2


def test_a_hundredth_more_is_no_reason_to_look_higher() -> None:
    assert made_by("x", layers([None] * 3, x=[0.971, 0.975, 0.98])) == 0


def test_the_reason_says_which_properties_are_made_above_the_frozen_layers() -> None:
    by_layer = layers([(1.0, 1.0), (0.95, 0.95), (0.5, 0.5), (0.5, 0.5)], x=[0.2, 0.5, 0.9, 0.9])
    found = recommend([asked("x", "syntactic")], by_layer)
    assert found.freeze_layers == 1
    assert "Made only above them: x (layer 2)." in found.reason
