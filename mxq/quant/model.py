"""`QuantizedModel`: all that is decided of a quantized network before anything of it is written."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from types import MappingProxyType

import numpy as np

from mxq.errors import QuantizeError
from mxq.ir import Model, Ref
from mxq.plan import Plan, TensorRecord
from mxq.quant.qparams import QParams
from mxq.quant.scheme import MXNET
from mxq.quant.spec import INT8, UINT8, QuantSpec

WEIGHT = QuantSpec(axis=0)
"""Of weights (O, ...): a scale for each output channel."""


@dataclass(frozen=True, slots=True)
class Operation:
    """An operator that reads codes.

    Attributes:
        reads: place of an input -> how that is stored when it is read.
        writes: how its result is stored, or would be read where it writes float.
        writes_float: whether its kernel writes float itself.
        passes_on: whether it has nothing to do: its result is stored as what it reads.
        norm: the BatchNorm that does its work with its own; empty where there is none.
    """

    reads: Mapping[int, TensorRecord]
    writes: TensorRecord
    writes_float: bool = False
    passes_on: bool = False
    norm: str = ""


@dataclass(frozen=True)
class QuantizedModel:
    """A network in which some operators read and write codes.

    Attributes:
        fused: the float network, its weights those that are to become codes.
        plan: which of its operators are int8.
        operations: of each of these, by name.
        made: tensors that an int8 operator writes as codes -> how they are stored.
        quantized: (tensor, type) -> how a tensor that exists in float, or in another type, is stored for readers.
        at_run_time: whether ranges are found while the network runs; then records have none.
    """

    fused: Model
    plan: Plan
    operations: Mapping[str, Operation]
    made: Mapping[Ref, TensorRecord]
    quantized: Mapping[tuple[Ref, str], TensorRecord]
    at_run_time: bool = False

    def __post_init__(self) -> None:
        for name in ("operations", "made", "quantized"):
            object.__setattr__(self, name, MappingProxyType(dict(getattr(self, name))))

    def stored(self, ref: Ref) -> TensorRecord | None:
        """How int8 operators find ``ref``: as one makes it or, where none does, as it is quantized first; or None."""
        return self.made.get(ref) or self._first.get(ref)

    @cached_property
    def _first(self) -> Mapping[Ref, TensorRecord]:
        return {ref: record for (ref, _), record in list(self.quantized.items())[::-1]}

    @property
    def refs(self) -> tuple[Ref, ...]:
        """The tensors that are stored as codes for somebody."""
        return tuple(dict.fromkeys([*self.made, *self._first]))

    @cached_property
    def tensors(self) -> Mapping[Ref, QParams]:
        """Scale and zero point of each of `refs`, as `stored`.

        Raises:
            QuantizeError: ranges are found at run time.
        """
        return MappingProxyType({ref: qparams(record) for ref in self.refs if (record := self.stored(ref)) is not None})

    @cached_property
    def weights(self) -> Mapping[str, QParams]:
        """Parameter -> its scales, one for each output channel."""
        found = {}
        for name in self.operations:
            node = self.fused.graph[name]
            if node.subgraphs and len(node.inputs) > 1 and node.inputs[1].name in self.fused.args:
                weight = self.fused.args[node.inputs[1].name]
                largest = np.abs(weight).reshape(len(weight), -1).max(axis=1)
                found[node.inputs[1].name] = MXNET.params(WEIGHT, -largest, largest)
        return MappingProxyType(found)


def qparams(record: TensorRecord) -> QParams:
    """The parameters of a stored tensor, by MXNet's rule; its offset is not in them.

    Raises:
        QuantizeError: its range is found at run time.
    """
    if record.min is None or record.max is None:
        raise QuantizeError("a range is found at run time; allowed: calibrated ranges")
    size = max(abs(record.min), abs(record.max))
    return MXNET.params({"int8": INT8, "uint8": UINT8}[record.dtype], 0.0 if record.dtype == "uint8" else -size, size)
