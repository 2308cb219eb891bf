"""`QuantizedModel`: all that is decided of a quantized network before anything of it is written."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from types import MappingProxyType
from typing import Final

from mxq.errors import QuantizeError
from mxq.graph.ir import Model, Ref
from mxq.quant.plan import Plan, TensorRecord
from mxq.quant.qparams import QParams
from mxq.quant.scheme import MXNET, scheme_of
from mxq.quant.spec import INT8, UINT8, QuantSpec

WEIGHT: Final = QuantSpec(axis=0)
"""Of weights (O, ...) in MXNet's kernels: a scale for each output channel."""
HALVED: Final = QuantSpec(bits=7, signed=False)
"""Of a u8 tensor that a kernel writes into s8 memory, which holds 0..127."""


@dataclass(frozen=True, slots=True)
class Operation:
    """An operator that reads codes.

    Attributes:
        reads: place of an input -> how that is stored when it is read.
        writes: how its result is stored, or would be read where it writes float.
        writes_float: whether its kernel writes float itself.
        halves: whether its kernel takes half of the u8 codes that it reads, as s8.
        passes_on: whether it has nothing to do: its result is stored as what it reads.
        norm: the BatchNorm that does its work with its own; empty where there is none.
    """

    reads: Mapping[int, TensorRecord]
    writes: TensorRecord
    writes_float: bool = False
    halves: bool = False
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
        activation, weight: the kind of codes, where they are not those of MXNet's kernels, which records name.
    """

    fused: Model
    plan: Plan
    operations: Mapping[str, Operation]
    made: Mapping[Ref, TensorRecord]
    quantized: Mapping[tuple[Ref, str], TensorRecord]
    at_run_time: bool = False
    activation: QuantSpec | None = None
    weight: QuantSpec | None = None

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
        return MappingProxyType({ref: self._params(ref, record) for ref in self.refs if (record := self.stored(ref))})

    @property
    def specs(self) -> Iterator[tuple[str, QuantSpec]]:
        """What is stored, in words, and as what: tensors, then weights."""
        kinds = {"int8": INT8, "uint8": UINT8}
        for ref in self.refs:
            if record := self.stored(ref):
                low = 0.0 if record.dtype == "uint8" or record.offset else -1.0
                yield f"tensor {str(ref)!r}", self.activation.settled(low) if self.activation else kinds[record.dtype]
        for name in self._read_weights:
            yield f"weight {name!r}", self.weight or WEIGHT

    def made_as(self, ref: Ref) -> QParams:
        """The parameters by which an int8 operator writes ``ref``."""
        return self._params(ref, self.made[ref])

    def stored_as(self, ref: Ref, dtype: str) -> QParams:
        """The parameters by which readers of a type find ``ref``, whether it is made so or quantized for them."""
        made = self.made.get(ref)
        return self.made_as(ref) if made is not None and made.dtype == dtype else self.read_as(ref, dtype)

    def read_as(self, ref: Ref, dtype: str) -> QParams:
        """The parameters by which ``ref`` is quantized for readers of a type."""
        return self._params(ref, self.quantized[ref, dtype])

    def _params(self, ref: Ref, record: TensorRecord) -> QParams:
        if record.min is None or record.max is None:
            raise QuantizeError(f"the range of tensor {str(ref)!r} is found at run time; allowed: a calibrated one")
        if self.activation is not None:
            low, high = record.min, record.max / record.widened
            if record.offset:
                low, high = 0.0, record.max - record.offset
            return scheme_of(self.activation).params(self.activation, low, high)
        spec, size = {"int8": INT8, "uint8": UINT8}[record.dtype], max(abs(record.min), abs(record.max))
        params = MXNET.params(spec, -size if spec.signed else 0.0, size)
        return params if record.widened == 1 else QParams(HALVED, params.scale)

    @cached_property
    def weights(self) -> Mapping[str, QParams]:
        """Parameter -> its scales."""
        spec, scheme = (WEIGHT, MXNET) if self.weight is None else (self.weight, scheme_of(self.weight))
        return MappingProxyType({name: scheme.covering(spec, self.fused.args[name]) for name in self._read_weights})

    @property
    def _read_weights(self) -> Iterator[str]:
        for name in self.operations:
            node = self.fused.graph[name]
            if node.subgraphs and len(node.inputs) > 1 and node.inputs[1].name in self.fused.args:
                yield node.inputs[1].name

    def respecified(self, activation: QuantSpec, weight: QuantSpec) -> QuantizedModel:
        """The same decisions and ranges with codes of another kind, such as fewer bits; no MXNet kernel has them.

        Args:
            activation: of tensors; ``signed`` None takes the sign that each range asks for.
            weight: of weights.

        Raises:
            QuantizeError: ``activation`` has an axis.
        """
        if activation.axis is not None:
            raise QuantizeError(f"activations are {activation}; allowed: one scale for a tensor")
        return replace(self, activation=activation, weight=weight)
