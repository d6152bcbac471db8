"""What passes between a model's layers while it runs.

Read by hooks, not by `output_hidden_states`, whose last entry is normalised in some families and not in others: the
output of a layer here is what the next one gets.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from torch import Tensor, nn

__all__ = ["watched"]


@contextlib.contextmanager
def watched(layers: Sequence[nn.Module], wanted: Iterable[int]) -> Iterator[dict[int, Tensor]]:
    """Of `wanted`, what stood behind so many layers in the pass that is run meanwhile: [batch, tokens, width]."""
    seen: dict[int, Tensor] = {}

    def before(_: nn.Module, args: tuple[Any, ...], named: dict[str, Any]) -> None:
        seen[0] = args[0] if args else named["hidden_states"]

    def after(layer: int) -> Callable[[nn.Module, Any, Any], None]:
        def keep(_: nn.Module, __: Any, output: Any) -> None:
            seen[layer] = output[0] if isinstance(output, tuple) else output

        return keep

    with contextlib.ExitStack() as hooks:
        for layer in wanted:
            if layer:
                handle = layers[layer - 1].register_forward_hook(after(layer))
            else:
                handle = layers[0].register_forward_pre_hook(before, with_kwargs=True)
            hooks.callback(handle.remove)
        yield seen
