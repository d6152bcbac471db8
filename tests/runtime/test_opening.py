"""What a bundle would take is known before it is loaded."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from codemill.errors import BundleError, ProviderError
from codemill.runtime import Variant, bytes_to_load, pack, size_bytes

from .conftest import cpu_variant


def test_bytes_to_load_are_those_of_the_variant_that_load_takes(
    built: Path, bundle: Path, tmp_path: Path, rewrite: Callable[..., Path]
) -> None:
    assert bytes_to_load(built) == size_bytes(built, "cpu-fp32")
    packed = tmp_path / "tiny.mill"
    pack(built, packed)
    assert bytes_to_load(packed) == bytes_to_load(str(built))
    path = "variants/cpu-int8/encoder.onnx"
    (bundle / path).parent.mkdir()
    (bundle / path).write_bytes(b"0" * 5)
    small = cpu_variant("cpu-int8", "int8")
    rewrite(variants={"cpu-fp32": cpu_variant("cpu-fp32"), "cpu-int8": small})
    assert bytes_to_load(bundle) == size_bytes(bundle, "cpu-int8")
    assert bytes_to_load(bundle, "cpu-fp32") == size_bytes(bundle, "cpu-fp32")
    assert bytes_to_load(bundle) < bytes_to_load(bundle, "cpu-fp32")


def test_what_cannot_be_loaded_has_no_bytes(
    bundle: Path, tmp_path: Path, rewrite: Callable[..., Path]
) -> None:
    with pytest.raises(BundleError, match="gone"):
        bytes_to_load(tmp_path / "gone")
    with pytest.raises(BundleError, match="other"):
        bytes_to_load(bundle, "other")
    elsewhere: Variant = cpu_variant("cpu-fp32", provider="CUDAExecutionProvider")
    rewrite(variants={"cuda-fp32": elsewhere})
    with pytest.raises(ProviderError, match="CUDAExecutionProvider"):
        bytes_to_load(bundle)
