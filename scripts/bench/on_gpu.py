"""Everything that needs an NVIDIA GPU, in one go: are engines right, and how fast are they?

    pip install 'codemill[compress,tensorrt]'
    python scripts/bench/on_gpu.py BUNDLE [--data-centre] [--out on_gpu.json]

BUNDLE: the folder of a bundle that `compress run` made (plain.mill and validation.jsonl.gz beside it), one that embeds
or labels, with or without exits; or any that completes (its engines in half precision and float32: next tokens beside
those of the processor, tokens a second of both). Builds engines for the GPU at hand in float16, bfloat16, int8
and float32; compares what they say with the plain graphs on the processor; times calls at batch 1 and 32 and the first
start against the second, which finds what was compiled in the cache; asks the inspector; and runs the float16
ONNX through those of ONNX Runtime's CUDA, TensorRT and TensorRT-RTX providers that are installed. Every figure goes to
the JSON file; what fails is written there with its message, and the rest goes on. Send the file along with an issue.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from codemill.compress.commands.bench import asked_of
from codemill.compress.commands.bundle import folder_of
from codemill.compress.commands.plain import calibration_of, plain_bundle
from codemill.compress.data.code import pieces_from
from codemill.export.candidates import PLAIN
from codemill.export.decoder.derive import derive_decoder, most_exact
from codemill.export.derive import derive
from codemill.export.quantize.settings import Method, Quantization
from codemill.runtime import load, load_classifier, read_manifest, size_bytes
from codemill.runtime.bundle import update_bundle
from codemill.runtime.completion.completer import completes
from codemill.runtime.engines import TENSORRT, TENSORRT_RTX
from codemill.runtime.labels import LABEL_TASKS
from codemill.runtime.session import available_providers
from codemill.runtime.tensorrt import gpus, logger, tensorrt
from codemill.targets.evaluation import Evaluation

PROVIDERS = (
    *("CUDAExecutionProvider", "TensorrtExecutionProvider", "NvTensorRTRTXExecutionProvider"),
)
ROWS, CALLS = 500, 50


def tried(work: Callable[[], Any]) -> Any:
    """What it gives, or what went wrong."""
    try:
        return work()
    except Exception as error:
        traceback.print_exc()
        return {"error": f"{type(error).__name__}: {error}"}


def answers(folder: Path, variant: str, asked: Any) -> tuple[np.ndarray, np.ndarray]:
    """Numbers, and decisions: of a bundle that labels its probabilities, else embeddings and the nearest code."""
    if isinstance(asked, Evaluation):
        with load(folder, variant=variant) as model:
            queries = model.encode(asked.queries[:ROWS])
            codes = model.encode(asked.codes[:ROWS])
        return np.concatenate([queries, codes]), (queries @ codes.T).argmax(1)
    with load_classifier(folder, variant=variant) as model:
        chances = model.probabilities(asked.items[:ROWS])
    return chances, chances.argmax(1)


def timed(folder: Path, variant: str, asked: Any) -> dict[str, Any]:
    """Milliseconds of a call, and of the first start and of the second."""
    found: dict[str, Any] = {}
    labels = read_manifest(folder).task in LABEL_TASKS
    items = asked.items[:ROWS] if labels else list(asked.codes[:ROWS])
    for start in ("first_start_ms", "second_start_ms"):
        began = time.perf_counter()
        model: Any = load(folder, variant=variant)
        call = model.probabilities if labels else model.encode
        call(items[:1])
        found[start] = (time.perf_counter() - began) * 1e3
        if start == "second_start_ms":
            for batch in (1, 32):
                call(items[:batch])
                ms = []
                for number in range(CALLS):
                    at = number * batch % max(1, len(items) - batch)
                    began = time.perf_counter()
                    call(items[at : at + batch])
                    ms.append((time.perf_counter() - began) * 1e3)
                found[f"batch_{batch}_ms_p50"] = statistics.median(ms)
        model.close()
    return found


def inspected(folder: Path, variant: str, provider: str) -> list[Any]:
    """What the inspector says of each engine."""
    library = tensorrt(provider)
    runtime = library.Runtime(logger(provider))
    said = []
    for path in read_manifest(folder).variants[variant].segments:
        engine = runtime.deserialize_cuda_engine((folder / path).read_bytes())
        text = engine.create_engine_inspector().get_engine_information(
            library.LayerInformationFormat.JSON
        )
        said.append({"file": path, "layers": engine.num_layers, "said": json.loads(text)})
    return said


def compared(folder: Path, variant: str, asked: Any, plain: tuple[np.ndarray, np.ndarray]) -> Any:
    """How far a variant's answers are from the plain graphs'."""
    numbers, decisions = answers(folder, variant, asked)
    return {
        "largest_difference": float(np.abs(numbers - plain[0]).max()),
        "same_decisions": float((decisions == plain[1]).mean()),
        "rows": len(decisions),
        "size_bytes": size_bytes(folder, variant),
    }


def completed(folder: Path, variant: str, texts: list[str]) -> dict[str, Any]:
    """The likeliest tokens after each of the texts', and how fast it reads and decodes; starts as in `timed`."""
    found: dict[str, Any] = {}
    for start in ("first_start_ms", "second_start_ms"):
        began = time.perf_counter()
        model: Any = load(folder, variant=variant)
        model.complete(texts[0], max_tokens=1)
        found[start] = (time.perf_counter() - began) * 1e3
        if start == "second_start_ms":
            began = time.perf_counter()
            found["predictions"] = np.concatenate([model.predictions(text)[1] for text in texts])
            found["read_tokens_per_s"] = len(found["predictions"]) / (time.perf_counter() - began)
            for exits in (False, True):
                seconds, tokens = 0.0, 0
                for text in texts:
                    with model.stream(text, max_tokens=64, exits=exits, drafts=False) as stream:
                        next(stream, None)
                        began, before = time.perf_counter(), len(stream.completion.tokens)
                        for _ in stream:
                            pass
                        seconds += time.perf_counter() - began
                        tokens += len(stream.completion.tokens) - before
                name = "decode_tokens_per_s" if exits else "decode_full_depth_tokens_per_s"
                found[name] = tokens / seconds if seconds else None
        model.close()
    return found


def completing(bundle: Path, provider: str, capabilities: tuple[str, ...]) -> dict[str, Any]:
    """Engines of a bundle that completes, beside the variant they are made of."""
    source = most_exact(read_manifest(bundle))
    texts = list(pieces_from("installed", 16, 2000))
    found: dict[str, Any] = {source: completed(bundle, source, texts)}
    for method in (Method.FP16, Method.FP32):
        name = f"engine-{method.precision}"
        print(name, flush=True)

        def built(method: Method = method, name: str = name) -> Any:
            began = time.perf_counter()
            derive_decoder(bundle, method, name=name, provider=provider, capabilities=capabilities)
            return {
                "build_s": time.perf_counter() - began,
                "size_bytes": size_bytes(bundle, name),
            }

        found[name] = {"built": tried(built)}
        if "error" not in found[name]["built"]:
            ran = tried(lambda name=name: completed(bundle, name, texts))
            if "predictions" in ran:
                same = ran["predictions"] == found[source]["predictions"]
                ran["same_next_tokens"] = float(same.mean())
            found[name]["ran"] = ran
            found[name]["inspected"] = tried(lambda name=name: inspected(bundle, name, provider))
    for item in (found[source], *(item.get("ran", {}) for item in found.values())):
        item.pop("predictions", None)
    return found


def main() -> int:
    """Run everything there is; 1 where no GPU is here."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundle")
    parser.add_argument("--data-centre", action="store_true", help="the package tensorrt")
    parser.add_argument("--out", type=Path, default=Path("on_gpu.json"))
    asked_for = parser.parse_args()
    here = gpus()
    if not here:
        print("no NVIDIA GPU, or no driver, or no cuda-python is here", file=sys.stderr)
        return 1
    provider = TENSORRT if asked_for.data_centre else TENSORRT_RTX
    smi = shutil.which("nvidia-smi")
    names = ["--query-gpu=name,driver_version,memory.total", "--format=csv"]
    found: dict[str, Any] = {
        "gpus": here,
        "driver": subprocess.run([smi, *names], capture_output=True, text=True).stdout
        if smi
        else None,
        "library": f"{provider} {tensorrt(provider).__version__}",
        "providers": list(available_providers()),
        "variants": {},
    }
    with tempfile.TemporaryDirectory() as scratch:
        work = Path(scratch, "bundle")
        if completes(read_manifest(folder_of(Path(asked_for.bundle)))):
            shutil.copytree(folder_of(Path(asked_for.bundle)), work)
            capabilities = () if asked_for.data_centre else (here[0],)
            found["variants"] = completing(work, provider, capabilities)
            return _written(asked_for.out, found)
        file = plain_bundle(asked_for.bundle, None, work)
        if file is None:
            print(f"{asked_for.bundle} has no validation.jsonl.gz", file=sys.stderr)
            return 1
        asked = asked_of(read_manifest(work), file)
        calibration = calibration_of(asked)
        plain = answers(work, PLAIN, asked)
        for method in (Method.FP16, Method.BF16, Method.STATIC, Method.FP32):
            name = f"engine-{method.precision}"
            print(name, flush=True)
            how = Quantization(method, reduced_range=False)
            capabilities = () if asked_for.data_centre else (here[0],)

            def built(how: Any = how, name: str = name, capabilities: Any = capabilities) -> Any:
                began = time.perf_counter()
                derive(
                    work,
                    how,
                    name=name,
                    provider=provider,
                    capabilities=capabilities,
                    calibration=calibration,
                )
                return {"build_s": time.perf_counter() - began}

            made = {"built": tried(built)}
            if "error" not in made["built"]:
                made["compared"] = tried(lambda name=name: compared(work, name, asked, plain))
                made["timed"] = tried(lambda name=name: timed(work, name, asked))
                made["inspected"] = tried(lambda name=name: inspected(work, name, provider))
            found["variants"][name] = made
        derive(work, Quantization(Method.FP16), name="half", calibration=calibration)
        for other in PROVIDERS:
            if other not in available_providers():
                continue
            print(other, flush=True)
            variants = dict(read_manifest(work).variants)
            first = variants["half"]
            renamed = type(first)(other, "fp16", first.segments, first.files)
            update_bundle(work, variants={**variants, f"half-{other}": renamed})
            name = f"half-{other}"
            found["variants"][name] = {
                "compared": tried(lambda name=name: compared(work, name, asked, plain)),
                "timed": tried(lambda name=name: timed(work, name, asked)),
            }
    return _written(asked_for.out, found)


def _written(path: Path, found: dict[str, Any]) -> int:
    path.write_text(json.dumps(found, indent=1, default=str))
    print(f"wrote {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
