"""`Row`: how one operator of MXNet is lowered."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

from mxq.backends.onnx.context import Context, Result


@dataclass(frozen=True)
class Row:
    """One row of the table.

    Attributes:
        lower: writes a node; raises `Unfit` for one that it cannot write.
        limits: which nodes it cannot write, for the documentation; empty where it can write all.
    """

    lower: Callable[[Context], Result]
    limits: str = ""


Rows: TypeAlias = Mapping[str, Row]
"""Rows by the operator's own name."""


def rows_of(operators: str, lower: Callable[[Context], Result], limits: str = "") -> dict[str, Row]:
    """One row for each of ``operators``, whose names stand between spaces."""
    return dict.fromkeys(operators.split(), Row(lower, limits))
