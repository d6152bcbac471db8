"""One graph in OpenVINO, on the processor; the only module that touches its API.

What it compiles is kept in the cache, so that a second start takes a fraction of the first. A graph is a file of its
format (.xml, weights in the .bin beside it), which `ir.py` has looked at before.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from codemill.errors import BundleError, ProviderError
from codemill.runtime.bundle import plain
from codemill.runtime.cache import compiled_folder
from codemill.runtime.engines import OPENVINO
from codemill.runtime.machine import physical_cores
from codemill.runtime.session import check_threads

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["OpenVinoSession", "openvino", "without_telemetry"]

_DEVICE = "CPU"
_TYPES = {"i64": "tensor(int64)", "i32": "tensor(int32)", "f32": "tensor(float)"}
"""What ONNX Runtime calls them."""


def without_telemetry() -> None:
    """Keep OpenVINO's tools, and NNCF, from the package that reports home; where it is missing they use a stub."""
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]


def openvino() -> Any:
    """OpenVINO, without the telemetry that its tools would start; ProviderError where it is not installed."""
    without_telemetry()
    try:
        import openvino as found
    except ImportError as error:
        raise ProviderError(
            "this variant runs in OpenVINO, which is not installed: pip install 'codemill[openvino]', or choose "
            "another variant"
        ) from error
    return found


class OpenVinoSession:
    """A graph compiled by OpenVINO: a `Session`.

    `threads` (None: the physical cores) is how many threads one run uses. Each thread that calls has a request of its
    own. key: stands for the content of the graph's files, and what is compiled of them is kept under it; without one
    nothing is kept. OpenVINO itself knows a graph by its path and by the size and time of the .xml, and so would answer
    with the weights that lay there before. Raises ProviderError where OpenVINO is not here, and BundleError where it
    cannot run the file.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        threads: int | None = None,
        key: str | None = None,
    ) -> None:
        check_threads(threads)
        library = openvino()
        self.path = os.fspath(path)
        self.provider = OPENVINO
        self.threads = threads or physical_cores()
        options = {
            "PERFORMANCE_HINT": "LATENCY",
            "NUM_STREAMS": "1",
            "INFERENCE_NUM_THREADS": str(self.threads),
            # float32 stays float32 where the processor has bfloat16 products: variants say what they are
            "INFERENCE_PRECISION_HINT": "f32",
        }
        if key is not None:
            options["CACHE_DIR"] = os.fspath(compiled_folder(f"openvino/{key}"))
        try:
            compiled = _in_a_thread(
                lambda: library.Core().compile_model(self.path, _DEVICE, options)
            )
            self.inputs = {str(item.get_any_name()): _type_of(item) for item in compiled.inputs}
            self.outputs = {
                _output_name(item): (_type_of(item), _shape_of(item)) for item in compiled.outputs
            }
        # OpenVINO raises RuntimeError and its kin
        except Exception as error:
            raise BundleError(
                f"OpenVINO {library.__version__} cannot load {self.path}: {plain(error)}"
            ) from error
        self._compiled: Any = compiled
        self._requests = threading.local()

    def outputs_for(
        self, inputs: Mapping[str, NDArray[Any]], names: Sequence[str]
    ) -> list[NDArray[Any]]:
        """The outputs called `names` for `inputs`; BundleError where the graph fails."""
        compiled = self._compiled
        if compiled is None:
            raise RuntimeError(f"the session of {self.path} is closed")
        request = getattr(self._requests, "request", None)
        try:
            if request is None:
                request = self._requests.request = compiled.create_infer_request()
            found = request.infer(dict(inputs), share_inputs=True)
            # the request keeps its arrays for the next run
            return [found[name].copy() for name in names]
        except Exception as error:
            raise BundleError(f"{self.path} failed while running: {plain(error)}") from error

    def close(self) -> None:
        """Free the graph; a run under way in another thread ends first."""
        self._compiled = None
        self._requests = threading.local()


def _in_a_thread(work: Callable[[], Any]) -> Any:
    """What `work` gives, done in a thread that ends with it.

    OpenVINO gives the thread that loads it a stack for signals, and frees it with the last model, in whatever thread
    that is: the next signal of the first one would then end the process.
    """
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(work).result()


def _output_name(item: Any) -> str:
    """What the graph calls an output; a node before it that changes nothing is dropped, and leaves it its name too."""
    name = str(item.get_node().get_friendly_name()).removesuffix("/sink_port_0")
    return name if name in item.get_names() else str(item.get_any_name())


def _type_of(item: Any) -> str:
    kind: str = item.get_element_type().get_type_name()
    return _TYPES.get(kind, kind)


def _shape_of(item: Any) -> tuple[int | str | None, ...]:
    return tuple(
        None if size.is_dynamic else size.get_length() for size in item.get_partial_shape()
    )
