"""Variants of a bundle that completes, for TensorRT and OpenVINO: what they hold, and that they say the same."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import codemill
from codemill.errors import BundleError, ModelError, ProviderError
from codemill.export.decoder import derive as module
from codemill.export.decoder.bundle import Prompting, write_completion
from codemill.export.decoder.derive import decoder_profiles, derive_decoder, most_exact
from codemill.export.decoder.families import of_module
from codemill.export.decoder.standard import write_standard
from codemill.export.quantize.settings import Method
from codemill.export.tensorrt import Built, build_engine
from codemill.runtime import Completer, read_manifest, verify_bundle
from codemill.runtime.bundle import Variant, update_bundle
from codemill.runtime.completion.cache import Cache
from codemill.runtime.completion.decoding import decoding_of
from codemill.runtime.completion.device import DeviceCache
from codemill.runtime.engines import OPENVINO, TENSORRT, TENSORRT_RTX
from codemill.runtime.gpus import Gpu
from codemill.runtime.session import available_providers, choose_variant
from codemill.runtime.tensorrt import gpus

from .decoder.conftest import small_decoder
from .decoder.test_exits import COUNT, PROMPT, exits, tokenizer, written
from .fake_engines import GraphCuda, GraphLibrary, RtxGraphLibrary

GPUS = ("8.6", "8.9", "12.0")
SHIPS = "cpu-fp32"
BOUNDS: list[Any] = [((0.3, None), (0.4, None)), ((0.4, 0.6), (None, 0.9)), ((None, None),) * 2]
NAMES = [
    *("segment-0", "exit-0", "project-0", "segment-1", "exit-1", "project-1", "segment-2", "head"),
]
without_gpu = pytest.mark.skipif(bool(gpus()), reason="a GPU is here")


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return written(tmp_path / "bundle", exits(0), BOUNDS[0])


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> GraphCuda:
    """A GPU that there is not; engines are built as graphs that stand for them."""
    from codemill.runtime import tensorrt

    found = GraphCuda()
    libraries = {TENSORRT: GraphLibrary(found), TENSORRT_RTX: RtxGraphLibrary(found)}
    monkeypatch.setattr(tensorrt, "tensorrt", libraries.__getitem__)
    monkeypatch.setattr(tensorrt, "logger", lambda _: None)
    monkeypatch.setattr(tensorrt, "_cuda", lambda: found)
    monkeypatch.setattr(tensorrt, "gpus", lambda: ["8.6"])
    here = Gpu("made up", "GPU-1", "8.6", None, "999.1")
    monkeypatch.setattr(tensorrt, "first_gpu", lambda: here)
    monkeypatch.setenv("CODEMILL_CACHE", str(tmp_path / "cache"))

    def built(source: Path, path: Path, *_: Any) -> Built:
        kept = tmp_path / "graphs" / path.parent.name
        kept.mkdir(parents=True, exist_ok=True)
        onnx.save(onnx.load(str(source)), str(kept / source.name))
        path.write_text(str(kept / source.name))
        return Built("0.0", GPUS, {}, {}, {}, 0)

    monkeypatch.setattr(module, "build_engine", built)
    return found


def completer(folder: Path, variant: str) -> Completer:
    found = codemill.load(folder, variant=variant)
    assert isinstance(found, Completer)
    return found


def said(model: Any, **values: Any) -> tuple[Any, ...]:
    result = model.complete(PROMPT, max_tokens=COUNT, drafts=False, **values)
    return result.tokens, result.layers_used, result.finish_reason


@pytest.mark.parametrize("bounds", BOUNDS)
@pytest.mark.parametrize("seed", range(4))
def test_engines_say_what_the_graphs_say_that_ship(
    cuda: GraphCuda, tmp_path: Path, seed: int, bounds: Any
) -> None:
    folder = written(tmp_path / "bundle", exits(seed), bounds)
    derive_decoder(folder, Method.FP32, name="rtx", provider=TENSORRT_RTX, capabilities=GPUS)
    with completer(folder, SHIPS) as ships, completer(folder, "rtx") as rtx:
        assert said(rtx) == said(ships)
        assert said(rtx, exits=False) == said(ships, exits=False)
        # drafts are several tokens at once, behind others that are there
        text = PROMPT * 3
        wanted = ships.complete(text, max_tokens=COUNT, exits=False)
        assert rtx.complete(text, max_tokens=COUNT, exits=False).tokens == wanted.tokens
    del rtx
    gc.collect()
    assert not cuda.memory


def test_keys_and_values_of_a_completion_stay_on_the_gpu(cuda: GraphCuda, bundle: Path) -> None:
    derive_decoder(bundle, Method.FP32, name="rtx", provider=TENSORRT_RTX, capabilities=GPUS)
    kinds = GraphCuda.cudaMemcpyKind
    with completer(bundle, "rtx") as model:
        model.complete(PROMPT, max_tokens=4, exits=False)
        assert set(cuda.kinds) == {kinds.cudaMemcpyDeviceToDevice}
        # a text is kept, in the GPU's memory: 128 places, and those of a run
        assert model.kept_bytes == 2 * decoding_of(model.manifest).kv_bytes_per_token * 128
        # what exits skipped comes from the host's
        model.complete(PROMPT, max_tokens=COUNT)
        assert kinds.cudaMemcpyHostToDevice in cuda.kinds


def test_half_precision_keeps_keys_and_values_in_it(cuda: GraphCuda, bundle: Path) -> None:
    derive_decoder(bundle, Method.FP16, name="rtx", provider=TENSORRT, capabilities=())
    assert read_manifest(bundle).variants["rtx"].precision == "fp16"
    with completer(bundle, SHIPS) as ships, completer(bundle, "rtx") as rtx:
        same = rtx.predictions(PROMPT * 4)[1] == ships.predictions(PROMPT * 4)[1]
        assert same.mean() > 0.95
        found = rtx.complete(PROMPT, max_tokens=COUNT)
        assert min(found.layers_used) < 3
        decoding = decoding_of(rtx.manifest)
        assert rtx.kept_bytes == decoding.kv_bytes_per_token * 128


def test_what_was_edited_is_moved_on_the_gpu_too(cuda: GraphCuda, bundle: Path) -> None:
    decoding = decoding_of(read_manifest(bundle))
    chance = np.random.default_rng(0)
    here, there = Cache(decoding), DeviceCache(decoding, np.float32)
    shape = (1, decoding.kv_heads, 20, decoding.head_size)
    rows = [
        (chance.normal(size=shape).astype(np.float32), chance.normal(size=shape).astype(np.float32))
        for _ in range(decoding.layers)
    ]
    at = np.array([*range(12), *range(30, 38)])
    for cache in (here, there):
        cache.write(0, at, rows)
        cache.move(5, 12, 9)
        cache.move(30, 38, 20)
        assert cache.capacity == 128
        # beyond what the model takes: only to see what was there stay there
        cache.grow(300)
    assert there.capacity == here.capacity
    for pair, arrays in zip(here.layers, there.on_device, strict=True):
        for wanted, array in zip(pair, arrays, strict=True):
            np.testing.assert_array_equal(array.take(0, 128), wanted[:, :, :128])
            assert not array.take(128, 300).any()
    with pytest.raises(ValueError, match="rotary"):
        DeviceCache(decoding_without_rotary(bundle), np.float32).move(0, 1, 2)


def decoding_without_rotary(bundle: Path) -> Any:
    from dataclasses import replace

    return replace(decoding_of(read_manifest(bundle)), rotary=None)


def test_engines_of_another_interface_are_refused(
    cuda: GraphCuda, bundle: Path, tmp_path: Path
) -> None:
    derive_decoder(bundle, Method.FP32, name="rtx", provider=TENSORRT_RTX, capabilities=GPUS)
    ships = bundle / "variants" / SHIPS
    for name, wrong, what in (
        ("segment-1", "segment-0", "takes"),
        ("segment-2", "segment-1", "takes"),
        ("project-0", "project-1", "gives"),
        ("head", "exit-0", "takes"),
    ):
        path = bundle / "variants/rtx" / f"{name}.engine"
        before = path.read_text()
        path.write_text(before.replace(name, wrong))
        update_bundle(bundle)
        with pytest.raises(BundleError, match=rf"{what} .*expected"):
            codemill.load(bundle, variant="rtx")
        # the graph that ships, of ONNX Runtime's own operators
        path.write_text(str(ships / f"{name}.onnx"))
        update_bundle(bundle)
        if name.startswith("segment"):
            with pytest.raises(BundleError, match=r"seqlens_k.*expected"):
                codemill.load(bundle, variant="rtx")
        path.write_text(before)
    update_bundle(bundle)
    codemill.load(bundle, variant="rtx").close()


@pytest.mark.parametrize("method", [Method.FP16, Method.FP32])
def test_engines_are_built_for_several_gpus_without_one(bundle: Path, method: Method) -> None:
    pytest.importorskip("tensorrt_rtx")
    derive_decoder(bundle, method, name="laptop-rtx", provider=TENSORRT_RTX, capabilities=GPUS)
    verify_bundle(bundle)
    variant = read_manifest(bundle).variants["laptop-rtx"]
    assert variant.segments == tuple(f"variants/laptop-rtx/{name}.engine" for name in NAMES)
    assert variant.files == variant.segments
    assert variant.precision == method.precision
    assert variant.built_for["compute_capabilities"] == list(GPUS)
    assert variant.built_for["profiles"] == [
        {"sizes": ["tokens", "past"], "least": [1, 1], "usual": [1, 128], "most": [128, 128]}
    ]
    assert len(variant.built_for["layers"]) == len(NAMES)
    assert all((bundle / path).stat().st_size > 1000 for path in variant.files)
    # what it was made of is gone
    assert sorted(path.name for path in bundle.parent.iterdir()) == ["bundle"]
    assert choose_variant(read_manifest(bundle), available_providers()) == SHIPS


@without_gpu
def test_without_a_gpu_an_engine_says_so(bundle: Path) -> None:
    pytest.importorskip("tensorrt_rtx")
    derive_decoder(bundle, Method.FP16, name="rtx", provider=TENSORRT_RTX, capabilities=("8.6",))
    with pytest.raises(ProviderError, match="needs an NVIDIA GPU and its driver"):
        codemill.load(bundle, variant="rtx")


def test_names_types_and_shapes_of_what_goes_in_and_out(bundle: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx")
    variant = read_manifest(bundle).variants[SHIPS]
    paths = write_standard(bundle, variant.segments, tmp_path / "half", half=True)
    profiles = decoder_profiles(128, TENSORRT_RTX)
    found = {
        path.stem: build_engine(path, tmp_path / "x.engine", profiles, ["8.6"])
        for path in paths
        if path.stem in ("segment-0", "segment-2", "exit-0", "project-1", "head")
    }
    kept, rows = "half [1, 2, any, 16]", "half [1, 2, any, 16]"
    assert found["segment-0"].inputs == {
        "input_ids": "int64 [1, any]",
        "position_ids": "int64 [1, any]",
        "past_key_values.0.key": kept,
        "past_key_values.0.value": kept,
    }
    assert found["segment-0"].outputs == {
        "hidden_out": "float [1, any, 64]",
        "key.0": rows,
        "value.0": rows,
    }
    assert list(found["segment-2"].outputs) == ["state", "key.2", "value.2"]
    assert found["exit-0"].outputs == {
        "state": "float [1, any, 64]",
        "decision": "float [1, any, 3]",
    }
    assert found["project-1"].outputs == {"key.2": rows, "value.2": rows}
    assert found["head"].outputs == {"logits": "float [1, any, 300]"}


def test_profiles_are_for_a_token_and_for_a_prompt() -> None:
    (both,) = decoder_profiles(2048, TENSORRT_RTX)
    assert (both.least, both.usual, both.most) == ((1, 1), (1, 512), (128, 2048))
    one, many = decoder_profiles(2048, TENSORRT)
    assert (one.usual, one.most) == ((1, 512), (1, 2048))
    assert (many.usual, many.most) == ((128, 512), (128, 2048))


def test_it_is_made_of_what_was_rounded_least(bundle: Path) -> None:
    manifest = read_manifest(bundle)
    assert most_exact(manifest) == SHIPS
    other = Variant(OPENVINO, "fp32", ("x",), ("x",))
    with pytest.raises(ModelError, match="no variant for ONNX Runtime to make others of"):
        most_exact(_with(manifest, {"intel": other}))
    rounded = {
        name: Variant("CPUExecutionProvider", name, ("x",), ("x",)) for name in ("int4", "int8")
    }
    assert most_exact(_with(manifest, rounded)) == "int8"


def _with(manifest: Any, variants: dict[str, Variant]) -> Any:
    from dataclasses import replace

    return replace(manifest, variants=variants)


def test_what_is_not_made_is_said(bundle: Path) -> None:
    with pytest.raises(ValueError, match="weights-int8 is not made of a decoder for TensorRT-RTX"):
        derive_decoder(bundle, Method.WEIGHTS_INT8, name="x", provider=TENSORRT_RTX)
    assert list(read_manifest(bundle).variants) == [SHIPS]


@pytest.mark.parametrize("seed", range(4))
def test_openvino_says_what_onnx_runtime_says(tmp_path: Path, seed: int) -> None:
    pytest.importorskip("openvino")
    folder = written(tmp_path / "bundle", exits(seed), BOUNDS[seed % 2])
    derive_decoder(folder, Method.FP32, name="intel", provider=OPENVINO)
    verify_bundle(folder)
    variant = read_manifest(folder).variants["intel"]
    assert variant.segments == tuple(f"variants/intel/{name}.xml" for name in NAMES)
    assert set(variant.files) == {
        *variant.segments,
        *(path.replace(".xml", ".bin") for path in variant.segments),
    }
    with completer(folder, SHIPS) as ships, completer(folder, "intel") as intel:
        assert said(intel) == said(ships)
        assert said(intel, exits=False) == said(ships, exits=False)
        assert said(intel, temperature=0.7, seed=seed) == said(ships, temperature=0.7, seed=seed)
        intel.close()
        with pytest.raises(RuntimeError):
            intel.complete(PROMPT)


@pytest.mark.parametrize("family", ["llama", "llama-untied-scaled", "gpt2", "codegen"])
def test_openvino_says_it_again_from_its_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, family: str
) -> None:
    pytest.importorskip("openvino")
    monkeypatch.setenv("CODEMILL_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "bundle"
    write_completion(
        of_module(small_decoder(family)),
        folder,
        name=family,
        tokenizer_json=tokenizer().to_str(),
        prompting=Prompting(),
        max_tokens=128,
        precisions=("fp32",),
    )
    derive_decoder(folder, Method.FP32, name="intel", provider=OPENVINO)
    with completer(folder, SHIPS) as ships:
        wanted = said(ships)
    for _ in range(2):
        with completer(folder, "intel") as intel:
            assert said(intel) == wanted
    assert any((tmp_path / "cache" / "openvino").iterdir())


@pytest.mark.parametrize(("method", "least"), [(Method.FP16, 0.97), (Method.WEIGHTS_INT8, 0.9)])
def test_openvino_with_smaller_weights(bundle: Path, method: Method, least: float) -> None:
    pytest.importorskip("openvino")
    derive_decoder(bundle, Method.FP32, name="full", provider=OPENVINO)
    derive_decoder(bundle, method, name="intel", provider=OPENVINO)
    sizes = {
        name: sum(
            (bundle / path).stat().st_size
            for path in read_manifest(bundle).variants[name].files
            if path.endswith(".bin")
        )
        for name in ("full", "intel")
    }
    assert sizes["intel"] < 0.6 * sizes["full"]
    with completer(bundle, SHIPS) as ships, completer(bundle, "intel") as ov:
        same = ov.predictions(PROMPT * 4)[1] == ships.predictions(PROMPT * 4)[1]
        assert same.mean() >= least


@pytest.mark.parametrize("precision", ["int4", "int8"])
def test_openvino_keeps_weights_that_are_rounded(tmp_path: Path, precision: str) -> None:
    pytest.importorskip("openvino")
    folder = written(tmp_path / "bundle", exits(0), BOUNDS[0], precision)
    derive_decoder(folder, Method.FP32, name="full", provider=OPENVINO)
    derive_decoder(folder, Method.WEIGHTS_INT8, name="intel", provider=OPENVINO)
    verify_bundle(folder)
    variants = read_manifest(folder).variants
    assert variants["intel"].precision == precision
    with completer(folder, "full") as full, completer(folder, "intel") as intel:
        same = intel.predictions(PROMPT * 4)[1] == full.predictions(PROMPT * 4)[1]
        assert same.mean() > 0.9
