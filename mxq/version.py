"""The version of mxq, read by ``setup.py`` without importing the package."""

from __future__ import annotations

__version__ = "0.2.0"
