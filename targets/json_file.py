"""Reading a JSON file that this program wrote, or somebody else: bounded, and with errors that name it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from codemill.errors import DataError

__all__ = ["read_json_file"]

_MOST_BYTES = 20_000_000


def read_json_file(file: Path, kind: str, missing: str) -> Any:
    """The value in `file`. Raises DataError: `missing` where it is not there, else why it is not `kind`."""
    try:
        with file.open("rb") as opened:
            content = opened.read(_MOST_BYTES + 1)
        if len(content) > _MOST_BYTES:
            raise DataError(f"{file} is not {kind}: it has more than {_MOST_BYTES:,} bytes")
        if not content.strip():
            raise DataError(f"{file} is not {kind}: it is empty")
        return json.loads(content.decode("utf-8"))
    except FileNotFoundError as error:
        raise DataError(missing) from error
    except (OSError, ValueError, RecursionError) as error:
        said = error.strerror if isinstance(error, OSError) else error
        raise DataError(f"{file} is not {kind}: {said}") from error
