"""What ships: the bundle format, this machine, and inference. numpy, onnxruntime, tokenizers only.

Importing this package imports none of the three: names are fetched from their modules when first
used, so that a command that only prints its help does not pay for an inference engine.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import os

    from codemill.runtime.archive import pack, unpack
    from codemill.runtime.bundle import (
        FileRecord,
        Manifest,
        Variant,
        digest,
        read_manifest,
        size_bytes,
        verify_bundle,
        write_bundle,
    )
    from codemill.runtime.classifier import Answers, Classifier, Prediction
    from codemill.runtime.completion.completer import Completer, Completion, Stream
    from codemill.runtime.encoder import Encoder
    from codemill.runtime.find import Hit, Index
    from codemill.runtime.functions import Function, functions_of
    from codemill.runtime.machine import Machine, this_machine
    from codemill.runtime.opening import bytes_to_load

__all__ = [
    "Answers",
    "Classifier",
    "Completer",
    "Completion",
    "Encoder",
    "FileRecord",
    "Function",
    "Hit",
    "Index",
    "Machine",
    "Manifest",
    "Prediction",
    "Stream",
    "Variant",
    "bytes_to_load",
    "digest",
    "functions_of",
    "load",
    "load_classifier",
    "load_completer",
    "load_encoder",
    "pack",
    "read_manifest",
    "size_bytes",
    "this_machine",
    "unpack",
    "verify_bundle",
    "write_bundle",
]

_HOMES = {
    "archive": ("pack", "unpack"),
    "bundle": (
        "FileRecord",
        "Manifest",
        "Variant",
        "digest",
        "read_manifest",
        "size_bytes",
        "verify_bundle",
        "write_bundle",
    ),
    "classifier": ("Answers", "Classifier", "Prediction"),
    "completion.completer": ("Completer", "Completion", "Stream"),
    "encoder": ("Encoder",),
    "find": ("Hit", "Index"),
    "functions": ("Function", "functions_of"),
    "machine": ("Machine", "this_machine"),
    "opening": ("bytes_to_load",),
}
_EMBEDS = "retrieval with output 'embedding'"
_LABELS = "classification or pair-classification with output 'labels'"
_COMPLETES = "completion with output 'tokens'"
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}


def load(
    path: str | os.PathLike[str], variant: str | None = None, threads: int | None = None
) -> Encoder | Classifier | Completer:
    """Load a bundle, a folder or a `.mill` file, ready to run on this machine.

    "code-search" is one that codemill brings, unless a bundle lies at that path.
    A bundle that embeds gives an Encoder, one with labels a Classifier, one that completes a Completer.
    Every file is checked against the manifest first. `variant` names one of the bundle's variants;
    None takes the best one this machine has an execution provider for (accelerators before the
    CPU, and int8 before wider types on the CPU). `threads` is the number of threads of one call,
    at most; None means the physical cores this process may use.

    Raises BundleError (missing, malformed, of a newer schema, no such variant), IntegrityError
    (files that are not those of the manifest) or ProviderError (the variant's execution provider
    is not here: another one is never taken in its place).
    """
    from codemill.runtime.classifier import classifies, open_classifier
    from codemill.runtime.completion.completer import completes, open_completer
    from codemill.runtime.encoder import embeds, open_encoder
    from codemill.runtime.opening import open_folder, refuse_task

    folder, manifest = open_folder(path)
    if classifies(manifest):
        return open_classifier(folder, manifest, variant=variant, threads=threads)
    if completes(manifest):
        return open_completer(folder, manifest, variant=variant, threads=threads)
    if not embeds(manifest):
        from codemill import __version__

        raise refuse_task(
            manifest, f"codemill {__version__} runs: {_EMBEDS}, {_LABELS}, {_COMPLETES}"
        )
    return open_encoder(folder, manifest, variant=variant, threads=threads)


def load_encoder(
    path: str | os.PathLike[str], variant: str | None = None, threads: int | None = None
) -> Encoder:
    """`load` for a bundle that has to be one that embeds; BundleError for any other."""
    from codemill.runtime.encoder import embeds, open_encoder
    from codemill.runtime.opening import open_folder, refuse_task

    folder, manifest = open_folder(path)
    if not embeds(manifest):
        raise refuse_task(manifest, f"expected {_EMBEDS}")
    return open_encoder(folder, manifest, variant=variant, threads=threads)


def load_classifier(
    path: str | os.PathLike[str], variant: str | None = None, threads: int | None = None
) -> Classifier:
    """`load` for a bundle that has to be one with labels; BundleError for any other."""
    from codemill.runtime.classifier import classifies, open_classifier
    from codemill.runtime.opening import open_folder, refuse_task

    folder, manifest = open_folder(path)
    if not classifies(manifest):
        raise refuse_task(manifest, f"expected {_LABELS}")
    return open_classifier(folder, manifest, variant=variant, threads=threads)


def load_completer(
    path: str | os.PathLike[str], variant: str | None = None, threads: int | None = None
) -> Completer:
    """`load` for a bundle that has to be one that completes; BundleError for any other."""
    from codemill.runtime.completion.completer import completes, open_completer
    from codemill.runtime.opening import open_folder, refuse_task

    folder, manifest = open_folder(path)
    if not completes(manifest):
        raise refuse_task(manifest, f"expected {_COMPLETES}")
    return open_completer(folder, manifest, variant=variant, threads=threads)


def __getattr__(name: str) -> object:
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value: object = getattr(import_module(f"{__name__}.{_HOME_OF[name]}"), name)
    globals()[name] = value
    return value
