"""Plain or half-precision ONNX -> an engine of TensorRT for RTX, or of TensorRT; the former without a GPU.

An engine of TensorRT for RTX holds intermediate code for several compute capabilities, and is compiled to the end on
the GPU that runs it; one of TensorRT is built on that GPU, and for it alone.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from codemill.errors import CodemillError, InputError, ProviderError
from codemill.runtime.engines import TENSORRT, TENSORRT_RTX
from codemill.runtime.gpus import first_gpu
from codemill.runtime.nvidia import MOST_TEXTS
from codemill.runtime.tensorrt import logger, tensorrt

__all__ = [
    "Built",
    "Profile",
    "build_engine",
    "inspected",
    "profiles_of",
    "said_of_engines",
    "said_of_profiles",
]

_WORKSPACE_BYTES = 2**30
_APART = 2
"""Short and long texts have profiles of their own where the medians of both are further apart than so many times."""


@dataclass(frozen=True)
class Profile:
    """Shapes that an engine is tuned for: the least, the usual and the most, each (batch, tokens).

    names: what the graph calls these two sizes, where its inputs do not all have both, in this order.
    """

    least: tuple[int, int]
    usual: tuple[int, int]
    most: tuple[int, int]
    names: tuple[str, ...] = ()


@dataclass(frozen=True)
class Built:
    """What an engine was built with, for which GPUs, and of which network: layers by their kind, inputs and outputs.

    compute_capabilities: of TensorRT's that of the GPU that built it. layers: of the network as it was read from ONNX,
    before TensorRT fuses it; which layers the engine has, `inspected` tells, on a GPU.
    """

    library: str
    compute_capabilities: tuple[str, ...]
    layers: dict[str, int]
    inputs: dict[str, str]
    outputs: dict[str, str]
    size_bytes: int


def profiles_of(
    lengths: Sequence[int], max_tokens: int, provider: str = TENSORRT, most_batch: int = MOST_TEXTS
) -> list[Profile]:
    """One text at a time, and many; each once for short and once for long texts, where `lengths` hold both.

    lengths: of the texts that are usual, in tokens. In the order in which a session looks for the first that fits.

    TensorRT for RTX has one profile for all, tuned for the median: it compiles kernels for the shapes it meets, and a
    further profile takes 2.6 MB of a file of 6.6 MB, and twice the time to build (measured, of an encoder of two
    layers). So have ONNX Runtime's providers.
    """
    found = sorted(max(1, min(length, max_tokens)) for length in lengths)
    if provider != TENSORRT:
        usual = _median(found, max_tokens)
        return [Profile((1, 1), (1, usual), (most_batch, max_tokens))]
    return [
        Profile((1, 1), (texts, usual), (most_texts, most))
        for texts, most_texts in ((1, 1), (max(1, most_batch // 2), most_batch))
        for usual, most in _tuned(found, max_tokens)
    ]


def _tuned(found: Sequence[int], max_tokens: int) -> list[tuple[int, int]]:
    """Lengths to tune for, and up to which: the median of sorted ones, or that of each half where they lie apart."""
    half = len(found) // 2
    short, long = _median(found[:half], max_tokens), _median(found[half:], max_tokens)
    if not half or long <= _APART * short:
        return [(_median(found, max_tokens), max_tokens)]
    # in between, as a ratio: each length goes to the one that it is nearer to
    return [(short, math.isqrt(short * long)), (long, max_tokens)]


def _median(found: Sequence[int], max_tokens: int) -> int:
    """Of sorted lengths; of none at all half of what is taken."""
    return found[len(found) // 2] if found else max(1, max_tokens // 2)


def build_engine(
    source: Path,
    path: Path,
    profiles: Sequence[Profile],
    capabilities: Sequence[str] = (),
    provider: str = TENSORRT_RTX,
) -> Built:
    """Build the engine of an ONNX graph of standard operators.

    capabilities: such as 8.6, of TensorRT for RTX. Inputs [rows, ..] take a profile's batch, [.., tokens, ..] its
    tokens. Raises ProviderError where the package is not installed, InputError for a compute capability that it does
    not know, and CodemillError where it cannot parse or build.
    """
    library = tensorrt(provider)
    builder = library.Builder(logger(provider))
    flag = 1 << int(library.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    network = builder.create_network(flag)
    parser = library.OnnxParser(network, logger(provider))
    if not parser.parse_from_file(str(source)):
        errors = "; ".join(str(parser.get_error(i)) for i in range(parser.num_errors))
        raise CodemillError(f"{provider} {library.__version__} cannot read {source.name}: {errors}")
    config = builder.create_builder_config()
    config.set_memory_pool_limit(library.MemoryPoolType.WORKSPACE, _WORKSPACE_BYTES)
    config.profiling_verbosity = library.ProfilingVerbosity.DETAILED
    inputs = [network.get_input(i) for i in range(network.num_inputs)]
    outputs = [network.get_output(i) for i in range(network.num_outputs)]
    for profile in profiles:
        made = builder.create_optimization_profile()
        for item in inputs:
            shapes = [
                _shape(item, at, profile.names)
                for at in (profile.least, profile.usual, profile.most)
            ]
            made.set_shape(item.name, *shapes)
        config.add_optimization_profile(made)
    if provider == TENSORRT_RTX:
        _aim(library, config, capabilities)
    else:
        here = first_gpu()
        capabilities = () if here is None else (here.compute_capability,)
    layers = Counter(network.get_layer(i).type.name for i in range(network.num_layers))
    engine = builder.build_serialized_network(network, config)
    if engine is None:
        raise CodemillError(
            f"{provider} {library.__version__} cannot build {source.name}; what it printed says why"
        )
    content = bytes(engine)
    path.write_bytes(content)
    return Built(
        library.__version__,
        tuple(capabilities),
        dict(layers.most_common()),
        {item.name: _said_of(item) for item in inputs},
        {item.name: _said_of(item) for item in outputs},
        len(content),
    )


def said_of_profiles(profiles: Sequence[Profile]) -> list[dict[str, Any]]:
    """What a variant says of its profiles (`built_for`)."""
    return [
        {
            **({"sizes": list(item.names)} if item.names else {}),
            **{"least": list(item.least), "usual": list(item.usual), "most": list(item.most)},
        }
        for item in profiles
    ]


def said_of_engines(built: Sequence[Built], profiles: Sequence[Profile]) -> dict[str, Any]:
    """What a variant says of the engines it is made of (`built_for`); layers: of their networks, as in `Built`."""
    first = built[0]
    return {
        "library": first.library,
        "compute_capabilities": list(first.compute_capabilities),
        "profiles": said_of_profiles(profiles),
        "layers": [item.layers for item in built],
    }


def inspected(path: Path, provider: str) -> dict[str, Any]:
    """What TensorRT's inspector says of an engine, layer by layer.

    On a GPU that the engine was built for: an engine is deserialized before it is inspected, which needs CUDA.
    Raises ProviderError where it cannot be opened.
    """
    library = tensorrt(provider)
    runtime = library.Runtime(logger(provider))
    # as in a session: never code for the host
    runtime.engine_host_code_allowed = False
    engine = runtime.deserialize_cuda_engine(path.read_bytes())
    if engine is None:
        raise ProviderError(f"{path} cannot be inspected by {provider} {library.__version__} here")
    said = engine.create_engine_inspector().get_engine_information(
        library.LayerInformationFormat.JSON
    )
    return {"layers": engine.num_layers, "said": json.loads(said)}


def _aim(library: Any, config: Any, capabilities: Sequence[str]) -> None:
    """Tell the builder which GPUs; it asks for one where none is named."""
    known = {
        name: f"{name[2:-1]}.{name[-1]}"
        for name in dir(library.ComputeCapability)
        if name.startswith("SM")
    }
    unknown = [item for item in capabilities if item not in known.values()]
    if unknown or not capabilities:
        found = ", ".join(unknown) or "none"
        raise InputError(
            f"compute capabilities: found {found}; TensorRT for RTX {library.__version__} builds for "
            f"{', '.join(sorted(known.values(), key=float))}"
        )
    names = {value: name for name, value in known.items()}
    config.num_compute_capabilities = len(capabilities)
    for number, item in enumerate(capabilities):
        config.set_compute_capability(getattr(library.ComputeCapability, names[item]), number)


def _shape(item: Any, sizes: Sequence[int], names: Sequence[str]) -> tuple[int, ...]:
    """Of an input at these sizes: by their names, else [rows, tokens, ..] or [rows, width]."""
    if names:
        by_name = dict(zip(names, sizes, strict=True))
        return tuple(
            by_name[item.get_dimension_name(axis)] if size < 0 else size
            for axis, size in enumerate(item.shape)
        )
    open_sizes = iter(sizes)
    return tuple(next(open_sizes) if size < 0 else size for size in item.shape)


def _said_of(item: Any) -> str:
    sizes = ", ".join("any" if size < 0 else str(size) for size in item.shape)
    return f"{item.dtype.name.lower()} [{sizes}]"
