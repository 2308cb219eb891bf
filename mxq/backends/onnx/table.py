"""The table: one row for each operator of MXNet, by its own name."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from mxq.backends.onnx.row import Row
from mxq.backends.onnx.rows import detection, images, layers, moves, norms, pointwise, pooling, reductions, sequences
from mxq.graph.operator_names import OWN_NAME

TOPICS: Final = {
    "layers": layers.ROWS,
    "activations and arithmetic": pointwise.ROWS,
    "normalization": norms.ROWS,
    "pooling": pooling.ROWS,
    "images": images.ROWS,
    "shapes and parts": moves.ROWS,
    "reductions and order": reductions.ROWS,
    "sequences": sequences.ROWS,
    "detection": detection.ROWS,
}
"""The rows by topic, for the documentation."""

TABLE: Final[Mapping[str, Row]] = MappingProxyType({op: row for rows in TOPICS.values() for op, row in rows.items()})


def row_of(op: str) -> Row | None:
    """The row of an operator, by any of its names."""
    return TABLE.get(OWN_NAME.get(op, op))
