"""HTML pages from the templates beside this module."""

from __future__ import annotations

from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined


def render(template: str, **values: Any) -> str:
    """The page that a template makes of these values; every text in it is escaped."""
    loader = PackageLoader("boxsup_dist.reporting", "templates")
    environment = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, keep_trailing_newline=True)
    return environment.get_template(f"{template}.html.jinja").render(values)
