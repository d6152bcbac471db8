"""From a path to what a model is made of: the folder, its checked manifest, a variant, the tokenizer.

What is the same for every kind of bundle, in the order in which it may be believed: files are those
of the manifest, the variant's graphs read nothing else, the tokenizer is bounded. What the graphs
must take and give is known by those who run them, `encoder.py` and `classifier.py`.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from codemill.errors import BundleError
from codemill.runtime.bundle import (
    TOKENIZER,
    Manifest,
    Variant,
    check_files,
    check_graphs,
    read_manifest,
    size_bytes,
)
from codemill.runtime.nvidia import Tuning
from codemill.runtime.pages import give_back_freed
from codemill.runtime.preferred import preferred
from codemill.runtime.ready import bundle_at
from codemill.runtime.session import Session, available_providers, choose_variant, open_session
from codemill.runtime.texts import Texts, check_tokenizer, open_tokenizer

if TYPE_CHECKING:
    from tokenizers import Tokenizer

__all__ = [
    "Opened",
    "best_variant",
    "bytes_to_load",
    "open_folder",
    "open_variant",
    "refuse_task",
]


@dataclass(frozen=True)
class Opened:
    """A bundle whose files were checked, and the variant of it that will run."""

    folder: Path
    manifest: Manifest
    name: str
    variant: Variant
    tokenizer: Tokenizer
    tokenizer_json: bytes

    def session(self, path: str, threads: int | None) -> Session:
        """One of the variant's graphs, opened; raises as `open_session` does."""
        return open_session(
            self.folder / path,
            provider=self.variant.provider,
            threads=threads,
            tuning=_tuning_of(self.manifest, self.variant, path),
            built_for=self.variant.built_for,
        )

    def texts(self) -> Texts:
        """The tokenizer, cutting as the manifest says."""
        return Texts(
            self.tokenizer, self.tokenizer_json, self.manifest.name, self.manifest.max_tokens
        )


def open_folder(path: str | os.PathLike[str]) -> tuple[Path, Manifest]:
    """The folder of a bundle, a `.mill` unpacked, and its manifest; every file is what it says.

    `path` may be the name of a bundle that codemill brings.
    """
    path = bundle_at(path)
    # unlike Path.is_file it raises nothing: what cannot be looked at is refused further on
    if os.path.isfile(path):  # noqa: PTH113
        from codemill.runtime.archive import unpack

        # which has checked every file
        folder = unpack(path)
        return folder, read_manifest(folder)
    folder = Path(path)
    manifest = read_manifest(folder)
    check_files(folder, manifest)
    return folder, manifest


def bytes_to_load(path: str | os.PathLike[str], variant: str | None = None) -> int:
    """Bytes of the files that `codemill.load(path, variant)` reads: about what its weights take in memory.

    For an application with a limit of memory, which can refuse, or let go of another model, before anything is
    loaded. A `.mill` is unpacked. Raises what `codemill.load` raises for a bundle that is missing or malformed, or has
    no variant that runs here; files are not checked yet.
    """
    path = bundle_at(path)
    # unlike Path.is_file it raises nothing
    if os.path.isfile(path):  # noqa: PTH113
        from codemill.runtime.archive import unpack

        path = unpack(path)
    return size_bytes(path, best_variant(read_manifest(path)) if variant is None else variant)


def open_variant(
    folder: Path, manifest: Manifest, variant: str | None, segments: int, joined: bool = False
) -> Opened:
    """The variant that is asked for, or the best one here; it has to have so many `segments`."""
    name = best_variant(manifest) if variant is None else variant
    chosen = manifest.variant(name)
    if len(chosen.segments) != segments:
        raise BundleError(
            f"variant {name!r} has {len(chosen.segments)} segments; "
            f"{'an encoder has one' if segments == 1 else f'{segments} are expected'}"
        )
    check_graphs(folder, chosen)
    try:
        tokenizer_json = (folder / TOKENIZER).read_bytes()
    except OSError as error:
        # gone since it was checked: the cache may be deleted at any time
        raise BundleError(
            f"cannot read {folder / TOKENIZER}: {error.strerror or error}. Load the bundle again"
        ) from error
    tokenizer = open_tokenizer(tokenizer_json, str(folder))
    check_tokenizer(tokenizer, manifest.max_tokens, str(folder), joined)
    # what reading it took: of one with 49,152 tokens 24 MB, where 16 are kept
    give_back_freed()
    return Opened(folder, manifest, name, chosen, tokenizer, tokenizer_json)


def best_variant(manifest: Manifest) -> str:
    """What is run where no variant is named: the one that was measured to be best here, else by what it is made for."""
    providers = available_providers()
    return preferred(manifest, providers) or choose_variant(manifest, providers)


def _tuning_of(manifest: Manifest, variant: Variant, path: str) -> Tuning:
    """What engines that compile a graph are told; of lengths, what the variant was made with."""
    read = "\n".join(f"{name} {manifest.files[name].sha256}" for name in sorted(variant.files))
    usual = manifest.max_tokens // 2
    # written by whoever made the bundle: a hint that is no number in range is none
    with contextlib.suppress(LookupError, TypeError):
        said = variant.built_for["profiles"][0]["usual"][1]
        usual = said if isinstance(said, int) else usual
    return Tuning(
        precision=variant.precision,
        usual_tokens=min(max(1, usual), manifest.max_tokens),
        most_tokens=manifest.max_tokens,
        key=hashlib.sha256(f"{path}\n{read}".encode()).hexdigest(),
    )


def refuse_task(manifest: Manifest, said: str) -> BundleError:
    """The error for a bundle that is made for something else; `said` is what is expected."""
    return BundleError(
        f"bundle {manifest.name!r} is made for {manifest.task!r} with output "
        f"{manifest.output['kind']!r}; {said}"
    )
