"""`codemill-lsp`: started by an editor, speaks on stdin and stdout until the editor says exit or goes away."""

from __future__ import annotations

import argparse
import gc
import logging
import signal
import sys
from collections.abc import Sequence

from codemill import __version__

__all__ = ["main"]

_ABOUT = (
    "A language server that runs codemill's bundles. Editors start it; docs/editors.md says how."
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve one client; the exit code: 0 where it said shutdown before exit, as the protocol has it, else 1."""
    parser = argparse.ArgumentParser(prog="codemill-lsp", description=_ABOUT)
    parser.add_argument("--version", action="version", version=f"codemill-lsp {__version__}")
    parser.add_argument("--stdio", action="store_true", help="the default, and the only way")
    parser.add_argument(
        "--verbose", action="store_true", help="tell on stderr what is received and sent"
    )
    asked = parser.parse_args(arguments)
    # the protocol's hundreds of classes are there to stay: looking for garbage among them takes a tenth of their import
    gc.disable()
    try:
        # what is received and sent is told of with all that is in it
        if not asked.verbose:
            from codemill.server.types_quickly import import_types

            import_types()
        import pygls.lsp.server  # noqa: F401
    except ImportError:
        print("error: codemill-lsp needs pygls: pip install 'codemill[lsp]'", file=sys.stderr)
        return 1
    from codemill.server.serve import Server

    gc.freeze()
    gc.enable()
    # pygls logs every error that is answered, with a traceback
    logging.basicConfig(level=logging.DEBUG if asked.verbose else logging.CRITICAL + 1)
    if sys.stdin.isatty():
        print(
            "codemill-lsp waits for an editor on stdin; see docs/editors.md. Ctrl-D ends it.",
            file=sys.stderr,
        )
    # the thread that reads stdin would be waited for; and Python looks at a signal between two steps only: one that
    # comes just before the loop begins to wait would wait with it
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    return Server().serve()


if __name__ == "__main__":
    sys.exit(main())
