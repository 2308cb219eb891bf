"""Libraries that draw, asked for when something is to be drawn."""

from __future__ import annotations

import importlib
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
