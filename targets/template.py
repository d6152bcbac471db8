"""The pages' templates: one environment, one style, and nothing fetched from anywhere."""

from __future__ import annotations

from importlib.resources import files
from typing import TYPE_CHECKING

from codemill.errors import MachineError

if TYPE_CHECKING:
    from jinja2 import Template

__all__ = ["template_named"]


def template_named(name: str) -> Template:
    """A template of this folder, which may import and extend others here. Raises MachineError without Jinja2."""
    try:
        import jinja2
        from markupsafe import Markup
    except ImportError as error:
        raise MachineError(
            "the page needs Jinja2, which is not installed: pip install 'codemill[bench]'"
        ) from error
    house = files("codemill.targets")
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(
            lambda asked: house.joinpath(asked).read_text(encoding="utf-8")
        ),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters["first_line"] = _first_line
    environment.globals["style"] = Markup(house.joinpath("report.css").read_text(encoding="utf-8"))
    return environment.get_template(name)


def _first_line(code: str) -> str:
    """What a function is recognised by: its first line that is no decorator."""
    lines = [line.strip() for line in code.splitlines() if line.strip()]
    return next((line for line in lines if not line.startswith("@")), "")
