"""The protocol's classes, made without what nobody here asks of them.

`lsprotocol.types` makes 554 classes with attrs, each with code of its own that is compiled on every start: half a
second. Without a `repr` of their own and without slots it takes two thirds of that.
"""

from __future__ import annotations

from typing import Any

import attrs

__all__ = ["import_types"]


def import_types() -> None:
    """Import `lsprotocol.types`; raises ImportError where it is not installed."""
    define = attrs.define

    def plainer(maybe_cls: Any = None, **options: Any) -> Any:
        return define(maybe_cls, **{"repr": False, "slots": False, **options})

    attrs.define = plainer
    try:
        import lsprotocol.types  # noqa: F401
    finally:
        attrs.define = define
