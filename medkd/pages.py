"""Templates of the pages that medkd writes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import jinja2


@cache
def _environment(package: str) -> jinja2.Environment:
    # Names of slides, sites and files are other people's text: everything is escaped.
    return jinja2.Environment(
        loader=jinja2.PackageLoader(package),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def page_template(
    package: str, name: str, filters: Mapping[str, Callable[..., Any]] | None = None
) -> jinja2.Template:
    """A page's template, in which every value is escaped and none may be missing.

    Args:
        package: in whose folder ``templates`` it lies.
        name: of the file.
        filters: that the template uses beside jinja2's own.
    """
    environment = _environment(package)
    environment.filters |= dict(filters or {})
    return environment.get_template(name)
