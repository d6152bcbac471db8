"""One graph, opened on the execution provider that was asked for, or not at all.

The only module that touches ONNX Runtime's inference API, and where its exceptions are translated; OpenVINO's is
touched in `openvino.py`. What to feed a session, and what its output means, is the callers' (`encoder.py`,
`parts.py`).
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from codemill.errors import BundleError, ProviderError
from codemill.runtime.bundle import Manifest, plain
from codemill.runtime.engines import CUDA, ENGINES, NVIDIA, OPENVINO, TENSORRT_PROVIDERS, WEB
from codemill.runtime.machine import physical_cores, unlike
from codemill.runtime.nvidia import (
    Tuning,
    could_not_start,
    most_rows,
    options_of,
    require,
    usable,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = [
    "Binding",
    "Graph",
    "OnnxSession",
    "Session",
    "available_providers",
    "choose_variant",
    "open_session",
]

# the most specific first: TensorRT and CUDA serve the same card, and the former is why it is there
_ACCELERATORS = (
    *TENSORRT_PROVIDERS,
    CUDA,
    "MIGraphXExecutionProvider",
    "ROCMExecutionProvider",
    "QNNExecutionProvider",
    "CoreMLExecutionProvider",
    "DmlExecutionProvider",
    "OpenVINOExecutionProvider",
    "WebGpuExecutionProvider",
)
_CPU = "CPUExecutionProvider"
_CPU_PRECISIONS = ("int8", "int4", "fp32", "bf16", "fp16")
_PRECISIONS = {_CPU: _CPU_PRECISIONS, OPENVINO: _CPU_PRECISIONS}
_ACCELERATOR_PRECISIONS = ("fp16", "bf16", "int8", "int4", "fp32")

_PROVIDER_OPTIONS = {"CoreMLExecutionProvider": {"ModelFormat": "MLProgram"}}
PLAIN = "plain-fp32"
"""The variant that others are made of."""

# what it logs as an error it raises as well
_LOG_FATAL_ONLY = 4
_OF_THE_FILE = ("NoSuchFile", "InvalidProtobuf", "InvalidGraph", "InvalidArgument")
"""What ONNX Runtime raises, whatever the provider, of a file that is no graph."""


class Graph(Protocol):
    """What runs a graph: all that encoder and classifier know of an inference engine."""

    def outputs_for(
        self, inputs: Mapping[str, NDArray[Any]], names: Sequence[str]
    ) -> list[NDArray[Any]]:
        """The outputs called `names` for these inputs; may be called from several threads."""

    def close(self) -> None:
        """Let go of the graph and its memory; calling it twice is fine."""


class Session(Graph, Protocol):
    """A graph that was opened, with what it says of itself, in ONNX Runtime's words.

    inputs: names and types, such as tensor(int64); outputs: names, types and shapes, whose open sizes are names or
    None.
    """

    path: str
    inputs: dict[str, str]
    outputs: dict[str, tuple[str, tuple[int | str | None, ...]]]


def open_session(
    path: str | os.PathLike[str],
    *,
    provider: str = _CPU,
    threads: int | None = None,
    tuning: Tuning | None = None,
    built_for: Mapping[str, Any] = MappingProxyType({}),
) -> Session:
    """Open a graph with the engine that `provider` names; raises as `OnnxSession` does.

    built_for: what the manifest says of its variant; one of ENGINES is checked against it.
    """
    if provider == OPENVINO:
        from codemill.runtime.openvino import OpenVinoSession

        return OpenVinoSession(path, threads=threads, key=tuning.key if tuning else None)
    if provider in ENGINES:
        from codemill.runtime.tensorrt import TensorRtSession

        return TensorRtSession(path, provider=provider, built_for=built_for)
    return OnnxSession(path, provider=provider, threads=threads, tuning=tuning)


def in_portions(
    run: Callable[[Mapping[str, NDArray[Any]]], list[NDArray[Any]]],
    inputs: Mapping[str, NDArray[Any]],
    most: int,
) -> list[NDArray[Any]]:
    """What `run` gives for `inputs`, of whose rows it takes so many at once."""
    rows = max((len(array) for array in inputs.values()), default=1)
    found = [
        run({name: array[at : at + most] for name, array in inputs.items()})
        for at in range(0, rows, most)
    ]
    if len(found) == 1:
        return found[0]
    return [np.concatenate(part) for part in zip(*found, strict=True)]


def check_threads(threads: int | None) -> None:
    """Raise ValueError for anything but a whole number from 1, or None."""
    if threads is not None and (
        isinstance(threads, bool) or not isinstance(threads, int) or threads < 1
    ):
        raise ValueError(f"threads should be a whole number from 1 or None, found {threads!r}")


class OnnxSession:
    """A graph loaded by ONNX Runtime.

    `threads` (None: the physical cores) is how many threads one `run` uses. They spin only while
    a `run` is under way and sleep between: ONNX Runtime's default is to spin on for a while after
    each, which keeps a desktop app that embeds a text now and then at full load.
    Graph optimisation is on in full; for a graph that was fused beforehand it costs nothing.

    `tuning` is for providers that compile the graph. `placed`: how many nodes of each operator each provider runs, by
    (provider, operator), of a session that is not on the processor, where this ONNX Runtime tells; else empty.

    Raises ProviderError where `provider` is not here or does not start, and BundleError where the file is no graph
    that this ONNX Runtime can run.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        provider: str = _CPU,
        threads: int | None = None,
        tuning: Tuning | None = None,
    ) -> None:
        check_threads(threads)
        _require(provider)
        import onnxruntime as ort

        # for an application that has imported it before codemill; see codemill/__init__.py
        ort.disable_telemetry_events()

        self.path = os.fspath(path)
        self.threads = threads or physical_cores()
        self.provider = provider
        self._most_rows = most_rows(provider, Path(path), tuning)
        options = {
            **_PROVIDER_OPTIONS.get(provider, {}),
            **options_of(provider, Path(path), tuning),
        }
        try:
            session = _started(self.path, provider, options, self.threads)
            inputs, outputs = session.get_inputs(), session.get_outputs()
            self.inputs = {item.name: str(item.type) for item in inputs}
            given: dict[str, tuple[str, tuple[int | str | None, ...]]]
            given = {item.name: (str(item.type), tuple(item.shape)) for item in outputs}
        # ONNX Runtime's exceptions share no base below Exception; a name may not be UTF-8
        except Exception as error:
            if provider == _CPU or type(error).__name__ in _OF_THE_FILE:
                raise BundleError(
                    f"ONNX Runtime {ort.__version__} cannot load {self.path}: {plain(error)}"
                ) from error
            raise ProviderError(
                could_not_start(provider, f"{self.path}: {plain(error)}")
            ) from error
        self.placed = _placed(session) if provider != _CPU else Counter()
        _check_runs_there(provider, session.get_providers(), self.placed)
        self.outputs = given
        self._session: Any = session

    def outputs_for(
        self, inputs: Mapping[str, NDArray[Any]], names: Sequence[str]
    ) -> list[NDArray[Any]]:
        """The outputs called `names` for `inputs`; BundleError where the graph fails."""
        session = self._session
        if session is None:
            raise RuntimeError(f"the session of {self.path} is closed")
        if self._most_rows is None:
            return self._run(session, inputs, names)
        return in_portions(lambda some: self._run(session, some, names), inputs, self._most_rows)

    def _run(
        self, session: Any, inputs: Mapping[str, NDArray[Any]], names: Sequence[str]
    ) -> list[NDArray[Any]]:
        try:
            found: list[NDArray[Any]] = session.run(list(names), dict(inputs))
        except Exception as error:
            raise BundleError(f"{self.path} failed while running: {plain(error)}") from error
        return found

    def bind(self) -> Binding:
        """Arrays bound to the graph once and used by many runs; each thread needs its own."""
        if self._session is None:
            raise RuntimeError(f"the session of {self.path} is closed")
        return Binding(self._session, self.path)

    def close(self) -> None:
        """Free the graph; a run under way in another thread ends first."""
        self._session = None


class Binding:
    """A graph's inputs and outputs as numpy arrays that it reads and writes in place. On the CPU only.

    One array may be an input and an output, where the graph's operators allow that. The caller answers for shapes: a
    graph that gives more than an array holds is refused by ONNX Runtime.
    """

    def __init__(self, session: Any, path: str) -> None:
        self._session = session
        self._path = path
        self._binding = session.io_binding()
        # ONNX Runtime does not keep the arrays alive
        self._held: dict[str, Any] = {}

    def takes(self, name: str, array: NDArray[Any]) -> None:
        """Read the input `name` from this array in the runs to come."""
        self._binding.bind_ortvalue_input(name, self._value(f"in {name}", array))

    def gives(self, name: str, array: NDArray[Any]) -> None:
        """Write the output `name` into this array in the runs to come."""
        self._binding.bind_ortvalue_output(name, self._value(f"out {name}", array))

    def run(self) -> None:
        """Run the graph; BundleError where it fails."""
        try:
            self._session.run_with_iobinding(self._binding)
        except Exception as error:
            raise BundleError(f"{self._path} failed while running: {plain(error)}") from error

    def _value(self, name: str, array: NDArray[Any]) -> Any:
        import onnxruntime as ort

        value = ort.OrtValue.ortvalue_from_numpy(array)
        self._held[name] = (array, value)
        return value


def available_providers() -> tuple[str, ...]:
    """The execution providers of the installed ONNX Runtime, and OpenVINO where that is installed.

    Not those for NVIDIA GPUs where there is no GPU, nor the engines, which are never chosen (`tensorrt.available`).
    """
    import onnxruntime

    others = (OPENVINO,) if find_spec("openvino") is not None else ()
    return (*usable(onnxruntime.get_available_providers()), *others)


def choose_variant(manifest: Manifest, providers: tuple[str, ...]) -> str:
    """The name of the best variant that one of `providers` runs.

    Accelerators come before the CPU; on the CPU int8 comes first, on an accelerator fp16. An engine (ENGINES) is never
    chosen: it holds code, and is run only where it is named; nor is what was made for another kind of machine. Raises
    ProviderError, with what each variant wants and what is here, where none can run.
    """
    unfit = {name: unlike(item.built_for) for name, item in manifest.variants.items()}
    here = {
        name: item
        for name, item in manifest.variants.items()
        if item.provider in providers and item.provider not in ENGINES and unfit[name] is None
    }
    if not here:
        wants = ", ".join(
            f"{name} ({item.provider}{f'; {unfit[name]}' if unfit[name] else ''})"
            for name, item in manifest.variants.items()
        )
        raise ProviderError(
            f"no variant of bundle {manifest.name!r} runs here. It has: {wants}. "
            f"This machine has: {', '.join(providers)}"
        )

    def rank(name: str) -> tuple[bool, int, int, str]:
        variant = here[name]
        precisions = _PRECISIONS.get(variant.provider, _ACCELERATOR_PRECISIONS)
        return (
            name == PLAIN,
            _place(variant.provider, (*_ACCELERATORS, _CPU, OPENVINO)),
            _place(variant.precision, precisions),
            name,
        )

    return min(here, key=rank)


def _place(item: str, order: tuple[str, ...]) -> int:
    return order.index(item) if item in order else len(order)


def _require(provider: str) -> None:
    import onnxruntime

    here = onnxruntime.get_available_providers()
    if provider in NVIDIA:
        require(provider, here)
    elif provider == WEB:
        raise ProviderError(
            f"a variant for {WEB} runs in a web page, not in Python: examples/browser is one, and "
            "`compress bench BUNDLE --browser` measures it. Choose another variant"
        )
    elif provider not in here:
        raise ProviderError(
            f"{provider} was asked for and is not here. This ONNX Runtime has: {', '.join(here)}. "
            "Choose a variant made for one of these, or install the onnxruntime package that "
            "has it; another provider is never taken in its place"
        )


def _started(path: str, provider: str, provider_options: Mapping[str, str], threads: int) -> Any:
    """A session of ONNX Runtime, on this provider or on none."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.log_severity_level = _LOG_FATAL_ONLY
    options.add_session_config_entry("session.force_spinning_stop", "1")
    options.add_session_config_entry("session.inter_op.allow_spinning", "0")
    # else a name that ends in .ort chooses another parser
    options.add_session_config_entry("session.load_model_format", "ONNX")
    # planned buffers are kept for every shape ever seen, and shapes vary here
    options.enable_mem_pattern = False
    if provider != _CPU:
        options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    if provider in ort.get_available_providers():
        return ort.InferenceSession(
            path, options, providers=[(provider, dict(provider_options))], enable_fallback=0
        )
    # a plugin's is asked for by its devices
    devices = [item for item in ort.get_ep_devices() if item.ep_name == provider]
    options.add_provider_for_devices(devices[:1], dict(provider_options))
    return ort.InferenceSession(path, options, enable_fallback=0)


def _placed(session: Any) -> Counter[tuple[str, str]]:
    """(provider, operator) -> nodes, as ONNX Runtime from 1.24 on tells."""
    ask = getattr(session, "get_provider_graph_assignment_info", None)
    return Counter(
        (str(part.ep_name), str(node.op_type))
        for part in (ask() if ask else ())
        for node in part.get_nodes()
    )


def _check_runs_there(
    provider: str, providers: Sequence[str], placed: Counter[tuple[str, str]]
) -> None:
    """Raise ProviderError where a session would run without the provider that it was asked for."""
    # one whose libraries do not load is dropped with a warning only
    if provider not in providers:
        raise ProviderError(
            could_not_start(
                provider,
                f"this session would run on {', '.join(providers)} (stderr says what ONNX Runtime did not find)",
            )
        )
    if placed and not any(name == provider for name, _ in placed):
        raise ProviderError(
            f"{provider} was asked for and takes none of the graph's nodes; this session would run on "
            f"{', '.join(sorted({name for name, _ in placed}))}. Choose a variant that was made for it"
        )
