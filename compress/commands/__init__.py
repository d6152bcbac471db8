"""The command `compress`: one module a command or a small group of them.

A command module imports click and nothing heavier when it is loaded, and only the one that is
called is loaded at all, so that help is instant and the base install can run what it is able to.
How a command ends (messages, exit codes) is `codemill.cli`'s.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module

import click

from codemill import __version__

__all__ = ["Options", "compress"]

# command -> module; in the order in which help lists them
_MODULES = {
    "run": "run",
    "search": "search",
    "export": "export",
    "quantize": "quantize",
    "profile": "profile",
    "estimate": "estimate",
    "analyze": "analyze",
    "telly": "telly",
    "init": "recipes",
    "recipes": "recipes",
    "inspect": "bundle",
    "verify": "bundle",
    "encode": "encode",
    "predict": "predict",
    "complete": "complete",
    "find": "find",
    "bench": "bench",
    "targets": "targets",
    "detect": "targets",
    "report": "bench",
    "cache": "cache",
}


@dataclass
class Options:
    """Options of every command. `codemill.cli` hands one in and reads it when a command fails.

    continues: whether the command, given again, goes on from here (`output.continues`).
    """

    debug: bool = False
    continues: bool = False


class _LazyGroup(click.Group):
    """Knows its commands by name; imports a command's module when that command is needed."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        return list(_MODULES)

    def get_command(
        self,
        ctx: click.Context,  # noqa: ARG002
        cmd_name: str,
    ) -> click.Command | None:
        if cmd_name not in _MODULES:
            return None
        module = import_module(f"{__name__}.{_MODULES[cmd_name]}")
        # `init` and such would hide a builtin or a module: their functions end in _command
        command: click.Command = getattr(module, f"{cmd_name}_command")
        return command


@click.group(
    cls=_LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(__version__, prog_name="codemill")
@click.option("--debug", is_flag=True, help="Print the whole traceback when something fails.")
@click.pass_context
def compress(ctx: click.Context, debug: bool) -> None:
    """Mill a large model of code down to one that fits a laptop, and ship it.

    `compress run code-search` makes a bundle from what is on this machine.
    """
    ctx.ensure_object(Options).debug = debug
