"""Libraries that draw, asked for when something is to be drawn."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any, Final

from mxq.errors import ConfigError
from mxq.storage.writing import check_suffix

PAGES: Final = (".html", ".htm")
"""Suffixes of a page."""


def library(name: str) -> Any:
    """The module ``name``.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        return importlib.import_module(name)
    except ImportError:
        raise ConfigError(f"pictures of networks need {name}; pip install 'mxq[report]'") from None


def template(path: Path, **known: Any) -> Any:
    """The Jinja2 template ``path``, which may include others of its folder and call what is ``known``.

    Raises:
        ConfigError: Jinja2 is not installed.
    """
    jinja = library("jinja2")
    loader = jinja.FileSystemLoader(path.parent)
    environment = jinja.Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= known
    environment.globals |= known
    return environment.get_template(path.name)


def check_page(path: Path) -> None:
    """Whether a page can be written there, looked at before any work whose result it shows.

    Raises:
        ConfigError: another suffix, no such folder, or a library that draws is missing.
    """
    check_suffix(path, "page", PAGES)
    if not path.parent.is_dir():
        raise ConfigError(f"page is {str(path)!r}, but there is no folder {str(path.parent)!r}")
    for name in ("matplotlib", "igraph", "jinja2"):
        library(name)
