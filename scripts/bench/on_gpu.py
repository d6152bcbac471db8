"""Everything that needs an NVIDIA GPU, in one go: are variants for it right, how fast are they, what do they take?

    pip install 'codemill[compress,tensorrt]'                  # engines
    pip install 'onnxruntime-gpu[cuda,cudnn]' 'tensorrt<11'    # in place of onnxruntime: for CUDA, for TensorRT
    pip install onnxruntime-ep-nv-tensorrt-rtx                 # beside onnxruntime: for TensorRT-RTX
    python scripts/bench/on_gpu.py BUNDLE [--data-centre] [--rounds 3] [--out on_gpu.json]
    python scripts/bench/on_gpu.py BUNDLE --dry-run            # all of it that needs no GPU

BUNDLE: the folder of a bundle that `compress run` made (plain.mill and validation.jsonl.gz beside it), one that embeds
or labels, with or without exits. Engines of TensorRT, and graphs for those of ONNX Runtime's CUDA, TensorRT and
TensorRT-RTX providers that are installed, are made in half precision, int8 and float32, engines in bfloat16 too. Of
each: whether it says what the plain graphs say on the processor in float32; the first start against the second, which
finds what was compiled; latency, throughput, memory and energy as `compress bench` measures them; the GPU's memory;
which operators ran elsewhere; of an engine, the inspector's output. Every variant runs in processes of its own.

Or a bundle that completes, with places to complete at (evaluation.jsonl.gz in its folder, or --evaluation): engines of
its segments, exits and projections in half precision and float32, beside what it ships with on the processor. Of each:
whether it says the same next tokens; lines completed at full depth and as it ships, tokens a second, starts, memory.
 All figures go to one JSON file, which is written anew after each variant; what
fails is in it with its message, and the rest goes on. Send the file along with an issue.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import distributions
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from codemill.compress.commands.bench import asked_of
from codemill.compress.commands.bundle import folder_of, is_bundle
from codemill.compress.commands.output import table
from codemill.compress.commands.plain import calibration_of, plain_bundle
from codemill.compress.places import check_file_out
from codemill.errors import CodemillError, InputError
from codemill.export.candidates import PLAIN, PROVIDER
from codemill.export.decoder.derive import DECODER_METHODS, derive_decoder, most_exact
from codemill.export.derive import derive
from codemill.export.quantize.settings import Method, Quantization
from codemill.runtime import read_manifest, size_bytes, verify_bundle
from codemill.runtime.atomic import write_atomically
from codemill.runtime.completion.completer import completes
from codemill.runtime.engines import (
    CUDA,
    ENGINES,
    NVIDIA,
    TENSORRT,
    TENSORRT_PROVIDERS,
    TENSORRT_RTX,
)
from codemill.runtime.gpus import Gpu, first_gpu, gpus, used_bytes
from codemill.runtime.machine import physical_cores, this_machine
from codemill.runtime.nvidia import lacking
from codemill.targets import Engine, EngineProcess, Shape, bundle_engine
from codemill.targets.benchmark import benchmark
from codemill.targets.codec import to_json
from codemill.targets.completion import CompletionEvaluation, read_completion_evaluation
from codemill.targets.completion_benchmark import (
    CompletionEngine,
    benchmark_completion,
    fewest_tokens,
)
from codemill.targets.evaluation import Evaluation, LabelledEvaluation

ROWS = 500
DRY_ROWS = 20
CAPABILITIES = ("8.6", "8.9", "12.0")
"""That engines are built for where there is no GPU."""
_INSPECT = """
import json, sys
from pathlib import Path
from codemill.export.tensorrt import inspected
print(json.dumps([inspected(Path(path), sys.argv[1]) for path in sys.argv[2:]]))
"""
_PACKAGES = ("codemill", "onnxruntime", "tensorrt", "cuda-", "nvidia-", "numpy")

_NEW_TOKENS = 32
_PLACES, _DRY_PLACES, _READ = 100, 2, 16
"""Lines that are completed; beginnings of which next tokens are compared."""

Asked = Evaluation | LabelledEvaluation
Answers = tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True)
class Form:
    """A variant to make and measure."""

    provider: str
    method: Method | None
    """None: as it ships."""

    @property
    def name(self) -> str:
        """Of the variant."""
        kind = "shipped" if self.method is None else self.method.precision
        return f"{self.provider.removesuffix('ExecutionProvider')}-{kind}"


def forms(engine: str) -> list[Form]:
    """Everything that is measured, the processor first."""
    compiled = (Method.FP16, Method.STATIC, Method.FP32)
    return [
        Form(PROVIDER, Method.FP32),
        Form(engine, Method.BF16),
        *(Form(name, method) for name in (engine, *TENSORRT_PROVIDERS) for method in compiled),
        *(Form(CUDA, method) for method in (Method.FP16, Method.FP32)),
    ]


def tried(work: Callable[[], Any]) -> Any:
    """What it gives, or what went wrong."""
    try:
        return work()
    except CodemillError as error:
        return {"error": f"{type(error).__name__}: {error}"}
    # a library's own: the next variant may do better
    except Exception as error:
        traceback.print_exc()
        return {"error": f"{type(error).__name__}: {error}"}


def machine() -> dict[str, Any]:
    """What the figures are of."""
    here = this_machine()
    return {
        "gpus": [asdict(gpu) for gpu in gpus()],
        "machine": here.to_json(),
        "packages": {
            item.metadata["Name"]: item.version
            for item in distributions()
            if str(item.metadata["Name"]).lower().startswith(_PACKAGES)
        },
        "lacking": {name: lacking(name, here.providers) for name in NVIDIA},
    }


def fewer(asked: Asked, rows: int) -> Asked:
    """The first rows of an evaluation."""
    if isinstance(asked, Evaluation):
        return replace(asked, queries=asked.queries[:rows], codes=asked.codes[:rows])
    groups = asked.groups and asked.groups[:rows]
    return replace(asked, rows=asked.rows[:rows], truth=asked.truth[:rows], groups=groups)


def forms_of_decoder(engine: str) -> list[Form]:
    """The same of a bundle that completes; on the processor it is what ships."""
    methods = (Method.FP16, Method.FP32)
    return [
        Form(PROVIDER, None),
        *(Form(engine, each) for each in methods if each in DECODER_METHODS[engine]),
    ]


def answers(process: EngineProcess, asked: Asked) -> Answers:
    """Numbers, and decisions: of a bundle that labels its probabilities, else embeddings and the nearest code."""
    with tempfile.TemporaryDirectory(prefix="codemill-") as folder:
        if isinstance(asked, Evaluation):
            out = Path(folder, "rows.npy")
            texts = [*asked.queries, *asked.codes]
            process.ask({"op": "encode", "texts": texts, "out": str(out)})
            rows = np.load(out, allow_pickle=False)
            queries, codes = rows[: len(asked.queries)], rows[len(asked.queries) :]
            return rows, (queries @ codes.T).argmax(1)
        out = Path(folder, "answers.npz")
        items = [[asked.texts[index] for index in row] for row in asked.rows]
        process.ask({"op": "predict", "rows": items, "out": str(out)})
        with np.load(out, allow_pickle=False) as stored:
            chances = stored["probabilities"]
    return chances, chances.argmax(1)


def next_tokens(process: EngineProcess, asked: CompletionEvaluation) -> np.ndarray:
    """What is said after each token of some beginnings."""
    # of the model alone: n-grams say the same whatever the engine
    requests = [{"op": "said", "text": text, "ngrams": False} for text in asked.prefixes[:_READ]]
    found = [process.ask(request) for request in requests]
    return np.concatenate([np.array(item["said"], np.int64) for item in found])


def compared(found: Answers, plain: Answers) -> Any:
    """How far a variant's answers are from the plain graphs'."""
    return {
        "largest_difference": float(np.abs(found[0] - plain[0]).max()),
        "same_decisions": float((found[1] == plain[1]).mean()),
        "rows": len(found[1]),
    }


def started(
    engine: Engine, on_gpu: bool, ask: Callable[[EngineProcess], dict[str, Any]]
) -> dict[str, Any]:
    """Both starts, what `ask` asks of the second, and what the GPU's memory grew by meanwhile."""
    gpu = first_gpu() if on_gpu else None
    before = used_bytes(gpu) if gpu else None
    found: dict[str, Any] = {}
    with EngineProcess(engine) as process:
        found["first_start_ms"] = process.cold_start_ms
        found["placed"] = process.ready.get("placed")
    with EngineProcess(engine) as process:
        found["second_start_ms"] = process.cold_start_ms
        found |= ask(process)
        after = used_bytes(gpu) if gpu else None
    found["gpu_bytes"] = None if before is None or after is None else after - before
    return found


def built(work: Path, variant: str, began: float) -> dict[str, Any]:
    """Of a variant that was made: seconds, bytes, what it was built for."""
    found = read_manifest(work).variants[variant]
    return {
        "variant": variant,
        "precision": found.precision,
        "build_s": time.perf_counter() - began,
        "size_bytes": size_bytes(work, variant),
        "built_for": dict(found.built_for),
    }


def inspected(work: Path, form: Form) -> Any:
    """What the inspector says of each engine."""
    files = [str(work / path) for path in read_manifest(work).variants[form.name].segments]
    command = [sys.executable, "-c", _INSPECT, form.provider, *files]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    if ended.returncode:
        raise InputError(ended.stderr.strip().splitlines()[-1] if ended.stderr else "it ended")
    return json.loads(ended.stdout)


class Go(Protocol):
    """One go: variants are made in the folder of a bundle, `work`, and measured."""

    work: Path

    def made(self, form: Form) -> dict[str, Any]:
        """Make the variant; see `built`."""

    def plain(self) -> Any:
        """What the others are compared with, on the processor."""

    def measured(self, form: Form, plain: Any) -> dict[str, Any]:
        """Everything that is measured of a variant that was made."""


@dataclass
class EncoderGo:
    """Of a bundle that embeds or labels: what it is asked, and how long each variant is looked at."""

    work: Path
    asked: Asked
    capabilities: tuple[str, ...]
    shapes: Sequence[Shape]
    rounds: int
    repeats: int

    def made(self, form: Form) -> dict[str, Any]:
        """See `Go`."""
        began = time.perf_counter()
        derive(
            self.work,
            Quantization(form.method, reduced_range=False),
            name=form.name,
            provider=form.provider,
            capabilities=self.capabilities if form.provider == TENSORRT_RTX else (),
            calibration=calibration_of(self.asked),
        )
        return built(self.work, form.name, began)

    def plain(self) -> Answers:
        """See `Go`."""
        with EngineProcess(bundle_engine(self.work, PLAIN, physical_cores())) as process:
            return answers(process, self.asked)

    def measured(self, form: Form, plain: Answers) -> dict[str, Any]:
        """See `Go`."""
        with tempfile.TemporaryDirectory(prefix="codemill-", ignore_cleanup_errors=True) as folder:
            engine = bundle_engine(
                self.work, form.name, physical_cores(), form.name, compiled=Path(folder)
            )
            found = started(
                engine,
                form.provider != PROVIDER,
                lambda process: {"parity": compared(answers(process, self.asked), plain)},
            )
            result = benchmark([engine], self.asked, self.shapes, self.rounds, repeats=self.repeats)
        (engine_result,) = result.engines
        return {**found, **to_json(engine_result), "doubts": list(result.doubts)}


@dataclass
class DecoderGo:
    """Of a bundle that completes: places to complete at."""

    work: Path
    asked: CompletionEvaluation
    capabilities: tuple[str, ...]

    def made(self, form: Form) -> dict[str, Any]:
        """See `Go`."""
        began = time.perf_counter()
        if form.provider != PROVIDER:
            derive_decoder(
                self.work,
                form.method,
                name=form.name,
                provider=form.provider,
                capabilities=self.capabilities if form.provider == TENSORRT_RTX else (),
            )
        return built(self.work, self._variant(form), began)

    def plain(self) -> np.ndarray:
        """See `Go`."""
        shipped = bundle_engine(self.work, most_exact(read_manifest(self.work)), physical_cores())
        with EngineProcess(shipped) as process:
            return next_tokens(process, self.asked)

    def measured(self, form: Form, plain: np.ndarray) -> dict[str, Any]:
        """See `Go`."""

        def parity(process: EngineProcess) -> dict[str, Any]:
            said = next_tokens(process, self.asked)
            return {"parity": {"same_decisions": float((said == plain).mean()), "rows": len(said)}}

        with tempfile.TemporaryDirectory(prefix="codemill-", ignore_cleanup_errors=True) as folder:
            engine = bundle_engine(
                self.work,
                self._variant(form),
                physical_cores(),
                form.name,
                compiled=Path(folder),
            )
            found = started(engine, form.provider != PROVIDER, parity)
            settings = {"full depth": False, "as it ships": True}
            engines = [
                CompletionEngine(name, engine, {"exits": on, "drafts": on})
                for name, on in settings.items()
            ]
            results = benchmark_completion(
                engines, self.asked, "full depth", _NEW_TOKENS, examples=0
            )
        return {**found, "completing": to_json(list(results))}

    def _variant(self, form: Form) -> str:
        return most_exact(read_manifest(self.work)) if form.provider == PROVIDER else form.name


def why_not(form: Form, dry: bool) -> str | None:
    """Why a variant is made and not measured."""
    if form.provider == PROVIDER:
        return None
    if dry:
        return "a dry run"
    if form.provider in NVIDIA:
        return lacking(form.provider, this_machine().providers)
    return None if gpus() else "no NVIDIA GPU with a driver is found"


def rows_of(found: dict[str, Any]) -> list[tuple[str, ...]]:
    """The figures for people: of one that embeds or labels a call of one text and the rate of 32, at the first length,
    and a text's energy there; of one that completes a line's time, and tokens a second.
    """
    decoder = found["completes"]
    units = (
        ("ms a line", "read, decoded tokens/s")
        if decoder
        else ("ms", "functions/s", "J", "differs by")
    )
    rows: list[tuple[str, ...]] = [("variant", "first, second start", *units, "same", "")]
    for name, item in found["variants"].items():
        figures = item.get("measured") or {}
        failed = next((part["error"] for part in (item["built"], figures) if "error" in part), None)
        why = failed or item.get("not_run")
        if why is not None:
            rows.append((name, *[""] * (len(units) + 2), why))
            continue
        if item["built"]["variant"] != name:
            # what ships, and how it is rounded
            name = f"{name}: {item['built']['variant']}"
        starts = f"{figures['first_start_ms']:,.0f}, {figures['second_start_ms']:,.0f} ms"
        said = _completing(figures) if decoder else _encoding(figures)
        same, doubts = figures["parity"]["same_decisions"], figures.get("doubts", ())
        rows.append((name, starts, *said, f"{same:.1%}", " ".join(doubts)))
    return rows


def _encoding(figures: dict[str, Any]) -> tuple[str, ...]:
    one, many = figures["latencies"][:2]
    energy = figures["energy"]
    return (
        f"{one['latency_ms_p50']:.2f}",
        f"{many['functions_per_s']:,.0f}",
        f"{energy['energy_j_per_function']:.3g}" if energy else "",
        f"{figures['parity']['largest_difference']:.1e}",
    )


def _completing(figures: dict[str, Any]) -> tuple[str, ...]:
    full = figures["completing"][0]
    rates = f"{full['prefill_tokens_per_s']:,.0f}, {full['decode_tokens_per_s']:,.0f}"
    return f"{full['figures']['completion_ms_mean']:.1f}", rates


def go_of(asked_for: argparse.Namespace, work: Path, here: Gpu | None) -> Go:
    """The bundle, copied or made anew in `work`, and what is asked of it; InputError where there is nothing to ask.

    here: the GPU that sessions run on, whose engines are built.
    """
    dry = asked_for.dry_run
    capabilities = (here.compute_capability,) if here else CAPABILITIES
    home = folder_of(Path(asked_for.bundle)) if is_bundle(asked_for.bundle) else None
    if home is not None and completes(read_manifest(home)):
        verify_bundle(home)
        least, most = fewest_tokens(_NEW_TOKENS, human_eval=False), read_manifest(home).max_tokens
        if most < least:
            raise InputError(
                f"{asked_for.bundle} takes {most} tokens, prompt and completion together; measuring needs {least}"
            )
        places = asked_for.evaluation or home / "evaluation.jsonl.gz"
        if not places.is_file() and asked_for.evaluation is not None:
            raise InputError(f"--evaluation {places}: there is no such file")
        if not places.is_file():
            raise InputError(
                f"{asked_for.bundle} has no evaluation.jsonl.gz, places to complete at; give one with --evaluation"
            )
        shutil.copytree(home, work)
        whole = read_completion_evaluation(places)
        count = _DRY_PLACES if dry else _PLACES
        few = replace(whole, prefixes=whole.prefixes[:count], lines=whole.lines[:count])
        return DecoderGo(work, few, capabilities)
    file = plain_bundle(asked_for.bundle, asked_for.evaluation, work)
    if file is None:
        raise InputError(
            f"{asked_for.bundle} has no validation.jsonl.gz to compare on; give one with --evaluation"
        )
    manifest = read_manifest(work)
    # the energy's shape, 128 tokens and one text, first
    lengths = [min(length, manifest.max_tokens) for length in ((32,) if dry else (128, 32, 256))]
    return EncoderGo(
        work,
        fewer(asked_of(manifest, file), DRY_ROWS if dry else ROWS),
        capabilities,
        [Shape(tokens, batch) for tokens in dict.fromkeys(lengths) for batch in (1, 32)],
        1 if dry else asked_for.rounds,
        3 if dry else 20,
    )


def run(asked_for: argparse.Namespace) -> int:
    """Run everything there is; 1 where a GPU was asked for and not one variant ran on it."""
    dry = asked_for.dry_run
    check_file_out(asked_for.out)
    here = first_gpu()
    if here is None and not dry:
        raise InputError(
            "no NVIDIA GPU with a driver is found (nvidia-smi lists those there are, CUDA_VISIBLE_DEVICES hides some); "
            "--dry-run does what needs none"
        )
    engine = TENSORRT if asked_for.data_centre else TENSORRT_RTX
    found: dict[str, Any] = {"dry_run": dry, **machine(), "variants": {}}

    def keep() -> None:
        content = json.dumps(found, indent=1, default=os.fspath).encode()
        write_atomically(asked_for.out, lambda file: file.write(content))

    with tempfile.TemporaryDirectory(prefix="codemill-") as scratch:
        one_go = go_of(asked_for, Path(scratch, "bundle"), here)
        found["completes"] = isinstance(one_go, DecoderGo)
        plain = one_go.plain()
        wanted = forms_of_decoder if found["completes"] else forms
        for form in wanted(engine):
            print(form.name, file=sys.stderr, flush=True)
            item: dict[str, Any] = {"built": tried(lambda form=form: one_go.made(form))}
            why = why_not(form, dry)
            if why is not None:
                item["not_run"] = why
            elif "error" not in item["built"]:
                item["measured"] = tried(lambda form=form: one_go.measured(form, plain))
                if form.provider in ENGINES:
                    item["inspected"] = tried(lambda form=form: inspected(one_go.work, form))
            found["variants"][form.name] = item
            keep()
    print(table(rows_of(found), heading=True))
    print(f"wrote {asked_for.out}", file=sys.stderr)
    on_gpu = [
        item.get("measured", {"error": ""})
        for name, item in found["variants"].items()
        if name != Form(PROVIDER, Method.FP32).name
    ]
    return 0 if dry or any("error" not in item for item in on_gpu) else 1


def main(arguments: Sequence[str] | None = None) -> int:
    """Read what is asked for, and run it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("bundle", metavar="BUNDLE", help="a bundle's folder")
    parser.add_argument("--evaluation", type=Path, metavar="FILE", help="to compare on")
    parser.add_argument(
        "--data-centre",
        action="store_true",
        help="engines of the package tensorrt, not tensorrt-rtx",
    )
    parser.add_argument(
        "--rounds",
        type=int,
        default=3,
        help="fresh processes of each variant; of a bundle that completes, lines are the rounds",
    )
    parser.add_argument("--out", type=Path, default=Path("on_gpu.json"))
    parser.add_argument("--dry-run", action="store_true", help="all that needs no GPU")
    asked_for = parser.parse_args(arguments)
    if asked_for.rounds < 1:
        parser.error(f"--rounds is 1 or more, found {asked_for.rounds}")
    try:
        return run(asked_for)
    except CodemillError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
