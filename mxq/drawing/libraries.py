"""Libraries that draw, asked for when something is to be drawn."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

from mxq.errors import ConfigError


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
