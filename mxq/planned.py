"""`Planned`: a network that is quantized for ONNX files, until it is written."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from mxq import runtime
from mxq.config import Shape
from mxq.data.preparation import Preparation
from mxq.graph.ir import Model
from mxq.quant import QuantizedNetwork
from mxq.quant.plan import Report
from mxq.runtime import QuantizedBlock

PLANNED: Final = "mxq_planned"
"""Attribute of a block that is planned for files."""


@dataclass(frozen=True)
class Planned:
    """A network that is quantized for ONNX files.

    Attributes:
        network: what is to be written.
        simulated: a float network that computes the same.
        report: what was decided for it.
        examples: input -> shape of one example.
        preparation: how pictures become inputs.
    """

    network: QuantizedNetwork
    simulated: Model
    report: Report
    examples: Mapping[str, Shape]
    preparation: Preparation

    @property
    def block(self) -> QuantizedBlock:
        """What can be called as a network, and `export_onnx` writes."""
        found = runtime.reported_block(self.simulated, self.report)
        setattr(found, PLANNED, self)
        return found

    @staticmethod
    def of(net: object) -> Planned | None:
        """That of a `block`."""
        found = getattr(net, PLANNED, None)
        return found if isinstance(found, Planned) else None
