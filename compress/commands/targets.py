"""`compress targets` and `detect`: the kinds of machine to ship to, and which of them this one is."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from codemill.compress.commands.output import json_option, print_json

if TYPE_CHECKING:
    from codemill.targets.profile import TargetSpec


@click.command("targets")
@json_option
def targets_command(as_json: bool) -> None:
    """List the kinds of machine to ship to.

    For each, whether this machine can stand for it, or make a variant for it, and if not, why.
    """
    from codemill.targets import all_targets, availability, buildable
    from codemill.targets.codec import to_json

    found = [(target, availability(target), buildable(target)) for target in all_targets()]
    if as_json:
        print_json(
            [
                {
                    **to_json(target),
                    "runs_here": why is None,
                    "why_not": why,
                    "builds_here": lacking is None,
                    "why_not_built": lacking,
                }
                for target, why, lacking in found
            ]
        )
        return
    for target, why, lacking in found:
        click.echo(f"{click.style(target.name, bold=True)}  {target.description}")
        if why is None:
            click.echo("    runs here")
        elif lacking is None:
            click.echo(f"    built here; does not run here: {why}")
        else:
            click.echo(f"    not here: {lacking}")


@click.command("detect")
@json_option
def detect_command(as_json: bool) -> None:
    """Print this machine as a target profile."""
    from codemill.runtime import this_machine
    from codemill.runtime.gpus import gpus
    from codemill.targets import all_targets, availability
    from codemill.targets.codec import to_json
    from codemill.targets.profile import profile_of

    machine = this_machine()
    profile = profile_of(machine)
    runs = [target.name for target in all_targets() if availability(target) is None]
    if as_json:
        found = {"machine": machine.to_json(), "gpus": [str(gpu) for gpu in gpus()]}
        print_json({**found, "profile": to_json(profile), "runs": runs})
        return
    said = ", ".join(runs) or "none"
    click.echo(f"# {machine.cpu}, {machine.logical_cores} logical cores; {machine.os}")
    for gpu in gpus():
        click.echo(f"# {gpu}")
    click.echo(f"# ONNX Runtime {machine.onnxruntime}: {', '.join(machine.providers)}")
    click.echo(f"# runs the targets: {said}")
    click.echo(_yaml(profile), nl=False)


def _yaml(profile: TargetSpec) -> str:
    import yaml

    from codemill.targets.codec import to_json

    values = to_json(profile)
    kept = {key: value for key, value in values.items() if value not in ("", [], ())}
    text: str = yaml.safe_dump(
        kept, sort_keys=False, allow_unicode=True, default_flow_style=None, width=100
    )
    return text
