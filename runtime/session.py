"""One graph, opened on the execution provider that was asked for, or not at all.

The only module that touches ONNX Runtime's inference API, and where its exceptions are translated; OpenVINO's is
touched in `openvino.py`. What to feed a session, and what its output means, is the callers' (`encoder.py`,
`parts.py`).
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Protocol

from codemill.errors import BundleError, ProviderError
from codemill.runtime.bundle import Manifest, plain
from codemill.runtime.engines import ENGINES, OPENVINO
from codemill.runtime.machine import physical_cores

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
    "NvTensorRTRTXExecutionProvider",
    "TensorrtExecutionProvider",
    "CUDAExecutionProvider",
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
    path: str | os.PathLike[str], *, provider: str = _CPU, threads: int | None = None
) -> Session:
    """Open a graph with the engine that `provider` names; raises as `OnnxSession` does."""
    if provider == OPENVINO:
        from codemill.runtime.openvino import OpenVinoSession

        return OpenVinoSession(path, threads=threads)
    if provider in ENGINES:
        from codemill.runtime.tensorrt import TensorRtSession

        return TensorRtSession(path, provider=provider)
    return OnnxSession(path, provider=provider, threads=threads)


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

    Raises ProviderError where `provider` is not here, and BundleError where the file is no graph
    that this ONNX Runtime can run.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        provider: str = _CPU,
        threads: int | None = None,
    ) -> None:
        check_threads(threads)
        _require(provider)
        import onnxruntime as ort

        # for an application that has imported it before codemill; see codemill/__init__.py
        ort.disable_telemetry_events()

        options = ort.SessionOptions()
        options.intra_op_num_threads = self.threads = threads or physical_cores()
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
        self.path = os.fspath(path)
        try:
            session = ort.InferenceSession(
                self.path,
                options,
                providers=[(provider, _PROVIDER_OPTIONS.get(provider, {}))],
                enable_fallback=0,
            )
            inputs, outputs = session.get_inputs(), session.get_outputs()
            self.inputs = {item.name: str(item.type) for item in inputs}
            given: dict[str, tuple[str, tuple[int | str | None, ...]]]
            given = {item.name: (str(item.type), tuple(item.shape)) for item in outputs}
        # ONNX Runtime's exceptions share no base below Exception; a name may not be UTF-8
        except Exception as error:
            raise BundleError(
                f"ONNX Runtime {ort.__version__} cannot load {self.path}: {plain(error)}"
            ) from error
        # a provider whose libraries do not load is dropped with a warning only
        if provider not in session.get_providers():
            raise ProviderError(
                f"{provider} was asked for and could not start; this session would run on "
                f"{', '.join(session.get_providers())}. Check its driver and libraries, or "
                "choose another variant"
            )
        self.provider = provider
        self.outputs = given
        self._session: Any = session

    def outputs_for(
        self, inputs: Mapping[str, NDArray[Any]], names: Sequence[str]
    ) -> list[NDArray[Any]]:
        """The outputs called `names` for `inputs`; BundleError where the graph fails."""
        session = self._session
        if session is None:
            raise RuntimeError(f"the session of {self.path} is closed")
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

    Not the engines, which are never chosen: to ask for a GPU takes its driver (`tensorrt.available`).
    """
    import onnxruntime

    others = (OPENVINO,) if find_spec("openvino") is not None else ()
    return (*onnxruntime.get_available_providers(), *others)


def choose_variant(manifest: Manifest, providers: tuple[str, ...]) -> str:
    """The name of the best variant that one of `providers` runs.

    Accelerators come before the CPU; on the CPU int8 comes first, on an accelerator fp16. An engine (ENGINES) is never
    chosen: it holds code, and is run only where it is named. Raises ProviderError, with what each variant wants and
    what is here, where none can run.
    """
    here = {
        name: item
        for name, item in manifest.variants.items()
        if item.provider in providers and item.provider not in ENGINES
    }
    if not here:
        wants = ", ".join(f"{name} ({item.provider})" for name, item in manifest.variants.items())
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
    if provider not in here:
        raise ProviderError(
            f"{provider} was asked for and is not here. This ONNX Runtime has: {', '.join(here)}. "
            "Choose a variant made for one of these, or install the onnxruntime package that "
            "has it; another provider is never taken in its place"
        )
