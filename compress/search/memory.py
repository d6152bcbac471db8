"""Peak activation memory of one run, as formulas: what ONNX Runtime allocates beside the weights.

Of the fused encoder graph, float or dynamic int8. Letters as in `cost.py`; everything below is in floats
(4 bytes) a token, times batch x T. Assumed: float32 activations; every input padded to T tokens; one
thread; tensors with at least the size of H / 8 (ids, masks and scalars are left out, and so is what the
caller hands in); ONNX Runtime's arena off. With the arena, which asks the system for more than it hands out, a process
grew by 13 to 28 % more in its first run.

The terms were read off ONNX Runtime 1.32's own allocations, by size, at the moment of their peak. Three
things beside the tensors that are alive by the graph: buffers inside the kernels; a copy in int8 of
what enters a dynamically quantized product; and, where the planner knows all shapes, buffers that it
keeps for a later tensor of the same size although nothing alive is in them.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from codemill.compress.architecture import Architecture
from codemill.errors import RecipeError

__all__ = ["activation_bytes"]


def activation_bytes(architecture: Architecture, tokens: int, batch: int = 1) -> int:
    """Most bytes of activations alive at once in one run over `batch` inputs of `tokens` tokens.

    The fields of the architecture, `tokens` and `batch` may be numpy arrays that broadcast. Raises RecipeError for a
    decoder, whose prompts are run a few tokens at a time.
    """
    if architecture.family == "llama":
        raise RecipeError("the peak of activations is known of encoders, not of decoders")
    floats = _encoder(architecture, np.asarray(tokens))
    size = np.rint(4 * floats * tokens * batch).astype(int)
    return size if size.ndim else int(size)


def _encoder(architecture: Architecture, tokens: Any) -> Any:
    """Floats a token at the peak: the largest of three moments.

    attention       H its input, A its output, and inside the kernel 3 A (query, key, value), heads T
                    (scores), A (weighted values before heads are joined); in int8 also H / 4, its
                    input quantized
    feed-forward    H the residual, I the product, I its GELU, I inside the GELU's kernel (bias added)
    norms           4 H: of the sum before one, two inputs, the output, and one more inside the kernel

    In an int8 graph, and in a float one with a full table, the planner knows all shapes and lets
    tensors of one size share buffers, which then live from the first to the last of them: three of H
    (two before the only layer's norms), and from the second layer on, two of I through attention and
    one of A through the feed-forward; sizes that happen to be equal share with each other. A
    float graph with a factorised embedding has unknown shapes and keeps nothing.
    """
    h, i = architecture.hidden_size, architecture.intermediate_size
    a = architecture.heads * architecture.head_size
    integer = architecture.bits == 8
    kernel = 4 * a + architecture.heads * tokens + (h / 4 if integer else 0)
    norms = 4 * h
    if not integer and architecture.embedding_rank is not None:
        return np.maximum(np.maximum(h + a + kernel, h + 3 * i), norms)
    again = np.asarray(architecture.layers) > 1
    joined, inner = np.where(a == h, 0, a), np.where(i == h, 0, 2 * i)
    attention = (2 + again) * h + joined + again * inner + kernel
    feed_forward = 3 * h + again * np.where(a == i, 0, joined) + inner + i
    return np.maximum(attention, feed_forward)
