"""How many of the lowest layers to freeze: figures by layer -> a number and its reason in words."""

from __future__ import annotations

from collections.abc import Sequence

from codemill.targets.analysis import BASIC, CodeProperty, LayerFigures, Recommendation

__all__ = ["SIMILAR", "made_by", "most_frozen", "recommend"]

SIMILAR = 0.9
"""Two models are alike at a layer where both RSA and CKA are at least this."""
_GAINED = 0.9
"""A property is made at the layer that has this share of all that the layers add to the embeddings ..."""
_CLOSE = 0.01
"""... or is so close to the best, which is what a probe's accuracy can be trusted to."""


def most_frozen(layers: int) -> int:
    """The most that is recommended: two thirds of the layers, rounded down.

    Of the 12 layers of UniXcoder, 8 can be frozen without a loss in four of five tasks, 10 in two (2304.05216;
    search-python MRR .720 with none frozen, .723 with 8, .710 with 10, .690 with 11).
    """
    return 2 * layers // 3


def made_by(name: str, by_layer: Sequence[LayerFigures]) -> int:
    """The first layer at which a property can be read about as well as anywhere in the model.

    That is where the probe's accuracy is within max(0.01, a tenth of best less embeddings) of the best.
    """
    found = [probe.accuracy for layer in by_layer if (probe := layer.probe(name)) is not None]
    best = max(found)
    close = max(_CLOSE, (1 - _GAINED) * (best - found[0]))
    return next(layer for layer, accuracy in enumerate(found) if accuracy >= best - close)


def recommend(
    properties: Sequence[CodeProperty], by_layer: Sequence[LayerFigures]
) -> Recommendation:
    """Freeze the lowest K layers, embeddings included (K = 0: those alone).

    With a fine-tuned model (rule "similarity"): K is the highest layer up to which every layer, that one included,
    has RSA and CKA >= 0.9: fine-tuning changed nothing there that the layers above could not undo linearly, so
    nothing is lost by not doing it. The embeddings are not judged: whatever K is, they are frozen.

    Without one (rule "probes"): K is the layer by which the last lexical, syntactic or structural property is made
    (`made_by`): below, the model builds what every task needs; above, it turns to its task.

    Either way at most two thirds of the layers (`most_frozen`).
    """
    layers = len(by_layer) - 1
    most = most_frozen(layers)
    made = {item.name: made_by(item.name, by_layer) for item in properties if item.kind in BASIC}
    compared = all(layer.rsa is not None and layer.cka is not None for layer in by_layer)
    if compared:
        alike = _alike(by_layer)
        chosen = min(alike, most)
        said = [_similarity_said(by_layer, alike, layers)]
    else:
        alike = max(made.values(), default=0)
        chosen = min(alike, most)
        said = [_made_said(made)]
    if alike > chosen:
        said.append(
            f"That would be {alike}; no more than two thirds of the {layers} layers are recommended, since published "
            "fine-tuning loses quality beyond."
        )
    if compared and made:
        late = {name: layer for name, layer in made.items() if layer > chosen}
        if late:
            names = " and ".join(f"{name} (layer {layer})" for name, layer in late.items())
            said.append(f"Made only above them: {names}.")
        else:
            said.append(f"{_capital(_listed(list(made)))} can be read there as well as anywhere.")
    said += [_semantic_said(item, by_layer) for item in properties if item.kind == "semantic"]
    return Recommendation(chosen, "similarity" if compared else "probes", " ".join(said))


def _alike(by_layer: Sequence[LayerFigures]) -> int:
    """The highest layer up to which all are alike; 0 where the first is not."""
    alike = 0
    for layer in by_layer[1:]:
        if _least(layer) < SIMILAR:
            break
        alike = layer.layer
    return alike


def _least(layer: LayerFigures) -> float:
    assert layer.rsa is not None
    assert layer.cka is not None
    return min(layer.rsa, layer.cka)


def _similarity_said(by_layer: Sequence[LayerFigures], alike: int, layers: int) -> str:
    if alike == layers:
        least = min(_least(layer) for layer in by_layer[1:])
        return f"Fine-tuning changed no layer much: RSA and CKA are at least {least:.2f} in all {layers}."
    first = by_layer[alike + 1]
    changed = (
        f"at layer {first.layer} RSA is {first.rsa:.2f} and CKA {first.cka:.2f}, below {SIMILAR:g}"
    )
    if not alike:
        return f"Fine-tuning changed the model from its first layer on: {changed}."
    least = min(_least(layer) for layer in by_layer[1 : alike + 1])
    return (
        f"Fine-tuning left layers 1 to {alike} as they were (RSA and CKA at least {least:.2f}); {changed}."
        if alike > 1
        else f"Fine-tuning left layer 1 as it was (RSA and CKA at least {least:.2f}); {changed}."
    )


def _made_said(made: dict[str, int]) -> str:
    if not made:
        return "No basic property could be probed on this data, so only the embeddings are frozen."
    each = ", ".join(f"{name} by layer {layer}" for name, layer in made.items())
    return f"What every task needs is made in the lower layers: {each}."


def _semantic_said(item: CodeProperty, by_layer: Sequence[LayerFigures]) -> str:
    found = [probe.accuracy for layer in by_layer if (probe := layer.probe(item.name)) is not None]
    best = max(found)
    return f"{_capital(item.name)}, which is semantic, is read best at layer {found.index(best)} ({best:.2f})."


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
