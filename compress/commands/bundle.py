"""`compress inspect` and `compress verify`: what a bundle is, and whether it is what it says."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from codemill.compress.commands.output import in_bytes, json_option, print_json, table

if TYPE_CHECKING:
    from codemill.runtime import Manifest

_LABELS_SHOWN = 12


@click.command("inspect")
@click.argument("bundle", type=click.Path(path_type=Path))
@json_option
def inspect_command(bundle: Path, as_json: bool) -> None:
    """Show what is in BUNDLE, a folder or a .mill file."""
    from codemill.runtime.bundle import digest, read_manifest, size_bytes
    from codemill.runtime.machine import unlike
    from codemill.runtime.session import available_providers
    from codemill.runtime.tensorrt import available

    folder = folder_of(bundle)
    manifest = read_manifest(folder)
    sizes = {name: size_bytes(folder, name) for name in manifest.variants}
    providers = (*available_providers(), *available())
    why_not = {
        name: unlike(variant.built_for)
        or (None if variant.provider in providers else f"needs {variant.provider}")
        for name, variant in manifest.variants.items()
    }
    if as_json:
        print_json(
            {
                "bundle": bundle,
                "digest": digest(manifest),
                "variants": {
                    name: {"size_bytes": sizes[name], "runs_here": why_not[name] is None}
                    for name in manifest.variants
                },
                "manifest": manifest.to_json(),
            }
        )
        return
    output = manifest.output["kind"] + (f", {manifest.dim} wide" if manifest.dim else "")
    rows = [
        ("name", manifest.name),
        ("task", manifest.task),
        ("licence", manifest.license or "not stated"),
        ("digest", digest(manifest)),
        ("input", f"up to {manifest.max_tokens} tokens"),
        ("output", output),
        *_label_rows(manifest),
        *_completion_rows(manifest),
        ("made by", f"codemill {manifest.codemill}, bundle schema {manifest.schema}"),
    ]
    rows += [(f"architecture {key}", _short(v)) for key, v in manifest.architecture.items()]
    click.echo(table(rows))
    click.echo()
    lines = [("variant", "precision", "provider", "ships", "runs here")]
    for name, variant in manifest.variants.items():
        here = "yes" if why_not[name] is None else f"no, {why_not[name]}"
        lines.append((name, variant.precision, variant.provider, in_bytes(sizes[name]), here))
    click.echo(table(lines, heading=True))
    _echo_plain("metrics", manifest.metrics)
    _echo_plain("provenance", manifest.provenance)


@click.command("verify")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--expect", metavar="DIGEST", help="The digest it must have: sha256:...")
@json_option
def verify_command(bundle: Path, expect: str | None, as_json: bool) -> None:
    """Check BUNDLE and print its digest.

    Every file is compared with the manifest, and nothing else may be there.
    """
    from codemill.runtime.bundle import verify_bundle

    found = verify_bundle(folder_of(bundle), expect=expect)
    if as_json:
        print_json({"bundle": bundle, "digest": found, "verified": True})
    else:
        click.echo(found)


def folder_of(bundle: Path) -> Path:
    """The folder of a bundle, which may be a ready one's name; a `.mill` is checked and unpacked into the cache."""
    from codemill.runtime.ready import bundle_at

    bundle = bundle_at(bundle)
    # unlike Path.is_file it raises nothing: what cannot be looked at is refused further on
    if not os.path.isfile(bundle):  # noqa: PTH113
        return bundle
    from codemill.runtime.archive import unpack

    return unpack(bundle)


def is_bundle(name: str) -> bool:
    """Whether there is a bundle of this name, a folder or a `.mill`."""
    path = Path(name)
    # unlike Path.is_file it raises nothing: what cannot be looked at is refused further on
    return any(os.path.isfile(each) for each in (path, path / "manifest.json"))  # noqa: PTH113


def _label_rows(manifest: Manifest) -> list[tuple[str, str]]:
    """What a bundle with labels says besides."""
    from codemill.runtime.labels import LABEL_TASKS, labelling_of

    if manifest.task not in LABEL_TASKS:
        return []
    found = labelling_of(manifest)
    texts = {1: "one", 2: "two, joined" if found.joined else "two"}[found.texts]
    exits = ", ".join(f"after layer {e.layer} from {e.threshold:g}" for e in found.exits)
    more = f", ... ({len(found.labels):,} in all)" if len(found.labels) > _LABELS_SHOWN else ""
    return [
        ("texts", texts),
        ("labels", ", ".join(found.labels[:_LABELS_SHOWN]) + more),
        ("exits", exits or "none"),
    ]


def _completion_rows(manifest: Manifest) -> list[tuple[str, str]]:
    """What a bundle that completes says besides."""
    from codemill.runtime.completion.decoding import COMPLETION, Exit, decoding_of

    if manifest.task != COMPLETION:
        return []
    found = decoding_of(manifest)

    def said(exit_: Exit) -> str:
        bounds = (("leaves", exit_.exit), ("stops", exit_.stop))
        used = [f"{what} from {bound:g}" for what, bound in bounds if bound is not None]
        return f"after layer {exit_.layer}: {' and '.join(used) or 'unused'}"

    return [
        ("fills gaps", "no" if found.fill is None else "yes"),
        ("n-grams", "weigh beside the model" if found.escapes else "none"),
        ("exits", ", ".join(map(said, found.exits)) or "none"),
    ]


def _echo_plain(name: str, value: Mapping[str, Any]) -> None:
    if value:
        click.echo(f"\n{name}")
        click.echo(table([(f"  {key}", _short(item)) for key, item in value.items()]))


def _short(value: object, limit: int = 100) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= limit else f"{text[: limit - 3]}..."
