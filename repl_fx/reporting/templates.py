"""Templates of Jinja, which lie beside the modules that fill them in; Jinja is of the extra `report`."""

from __future__ import annotations

from collections.abc import Callable
from importlib.resources import files

from jinja2 import Environment, StrictUndefined, Template


def template_of(package: str, name: str, *, markup: bool = True, **filters: Callable[..., str]) -> Template:
    """The template of a file of a package; what is filled in is escaped where the file is markup."""
    environment = Environment(autoescape=markup, undefined=StrictUndefined)
    environment.filters |= filters
    return environment.from_string(files(package).joinpath(name).read_text("utf-8"))
