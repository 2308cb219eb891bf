"""`QuantizedNetwork`: all that is decided of a quantized network before anything of it is written."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from types import MappingProxyType
from typing import Final, TypeAlias

from mxq.errors import QuantizeError
from mxq.graph.ir import Array, Model, Ref
from mxq.host.machine import VNNI
from mxq.quant.plan import InputRecord, Plan, SaturationRecord, TensorRecord
from mxq.quant.products import PairedProducts
from mxq.quant.qparams import QParams
from mxq.quant.records import Operation, Records
from mxq.quant.scheme import MXNET, Scheme, scheme_of
from mxq.quant.spec import BY_DTYPE, QuantSpec
from mxq.quant.thresholds import Thresholds
from mxq.rewrite import NO_EVENTS, Step, Trace, run_passes

WEIGHT: Final = QuantSpec(axis=0)
"""Of weights (O, ...) in MXNet's kernels: a scale for each output channel."""
HALVED: Final = QuantSpec(bits=7, signed=False)
"""Of a u8 tensor that a kernel writes into s8 memory, which holds 0..127."""


@dataclass(frozen=True, slots=True)
class Requests:
    """The types that users ask for: of tensors, by the names of their nodes, and of all others that are quantized."""

    dtypes: Mapping[str, str] = field(default_factory=dict)
    default: str = "auto"

    def of(self, node: str) -> str:
        """The type asked for what ``node`` makes; empty where nothing was."""
        return self.dtypes.get(node, "")

    def renamed(self, names: Mapping[str, str]) -> Requests:
        """The same where nodes have new names."""
        return replace(self, dtypes={names.get(node, node): dtype for node, dtype in self.dtypes.items()})


@dataclass(frozen=True)
class QuantizedNetwork:
    """A network in which some operators read and write codes. Types are decided once; ranges follow ``thresholds``.

    Attributes:
        fused: the float network, its weights those that are to become codes.
        plan: which of its operators are int8.
        thresholds: the range of every tensor in ``plan.observe``.
        operations: of each int8 operator, by name, in graph order.
        conversions: what is quantized, or converted from another type, for readers, and to which type.
        requests: what users ask of types.
        target: the CPU that it is for, one of `mxq.host.machine.TARGETS`.
        input: what it is to be fed; None for float.
        at_run_time: whether ranges are found while the network runs; then records have none.
        activation, weight: the kind of codes, where they are not those of MXNet's kernels, which records name.
        scheme: of such codes, from their spec.
        widths: node, also of a weight -> how many bits codes of what it makes have, where that is not as
            ``activation`` and ``weight`` say.
        given: tensor, as `str`, or weight -> its scale and zero point where these are given, such as training learned
            them; those of all else follow from ranges and largest weights.
        products: how kernels add products of such codes without VNNI; None where those are exact.
        saturation: name of each layer that was guarded against it -> what was done.
        trace: what was done on the way.
    """

    fused: Model
    plan: Plan
    thresholds: Thresholds
    operations: Mapping[str, Operation]
    conversions: tuple[tuple[Ref, str], ...]
    requests: Requests = field(default_factory=Requests)
    target: str = VNNI
    input: InputRecord | None = None
    at_run_time: bool = False
    activation: QuantSpec | None = None
    weight: QuantSpec | None = None
    scheme: Callable[[QuantSpec], Scheme] = scheme_of
    widths: Mapping[str, int] = field(default_factory=dict)
    given: Mapping[str, QParams] = field(default_factory=dict)
    products: PairedProducts | None = None
    saturation: Mapping[str, SaturationRecord] = field(default_factory=dict)
    trace: Trace = NO_EVENTS

    def __post_init__(self) -> None:
        object.__setattr__(self, "operations", MappingProxyType(dict(self.operations)))

    @property
    def exact(self) -> bool:
        """Whether products are added exactly: by the target's kernels, or as no kernel has such codes.

        MXNet's others halve the weights of layers that read s8.
        """
        return self.target == VNNI or not (self.is_of_kernels or self.products)

    @property
    def is_of_kernels(self) -> bool:
        """Whether codes are those of MXNet's kernels."""
        return self.activation is None

    # ---- changed ----

    def with_weights(self, args: Mapping[str, Array]) -> QuantizedNetwork:
        """With new values of some parameters; the same object where there are none."""
        return replace(self, fused=self.fused.with_graph(self.fused.graph, args)) if args else self

    def with_thresholds(self, thresholds: Thresholds) -> QuantizedNetwork:
        """With other ranges, each of the sign that it had: types stay. What was `given` goes with a range."""
        if thresholds is self.thresholds:
            return self
        changed = {name for name, found in thresholds.items() if found != self.thresholds.get(name)}
        given = {name: params for name, params in self.given.items() if name not in changed}
        return replace(self, thresholds=thresholds, given=given)

    def with_given(self, given: Mapping[str, QParams]) -> QuantizedNetwork:
        """With scales and zero points of tensors and weights that do not follow from ranges; see `given`."""
        widths = {name: params.spec.bits for name, params in given.items()}
        return replace(self, given=given, widths={**self.widths, **widths}) if given else self

    def after(self, *steps: Step[QuantizedNetwork]) -> QuantizedNetwork:
        """What steps make of it, one after the other; its trace has what they did."""
        found, trace = run_passes(steps, self)
        return replace(found, trace=self.trace + trace)

    # ---- read ----

    @cached_property
    def _records(self) -> Records:
        graph, at_run_time = self.fused.graph, self.at_run_time
        return Records.of(graph, self.operations, self.conversions, self.thresholds, at_run_time=at_run_time)

    @property
    def made(self) -> Mapping[Ref, TensorRecord]:
        """Tensors that an int8 operator makes as codes -> how they are stored."""
        return self._records.made

    @property
    def quantized(self) -> Mapping[tuple[Ref, str], TensorRecord]:
        """(tensor, type) -> how a tensor that exists in float, or in another type, is stored for readers."""
        return self._records.quantized

    def read(self, ref: Ref, dtype: str) -> TensorRecord:
        """How those that read ``ref`` as a type find it stored."""
        made = self.made.get(ref)
        return made if made is not None and made.dtype == dtype else self.quantized[ref, dtype]

    def layer_input(self, layer: str) -> TensorRecord | None:
        """How the data of an int8 layer is stored; None where it reads none."""
        dtype = self.operations[layer].reads.get(0)
        return None if dtype is None else self.read(self.fused.graph[layer].inputs[0], dtype)

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
        for ref in self.refs:
            if record := self.stored(ref):
                low = 0.0 if record.dtype == "uint8" or record.offset else -1.0
                other = self.activation_of(ref)
                yield f"tensor {str(ref)!r}", BY_DTYPE[record.dtype] if other is None else other.settled(low)
        for name in self._read_weights:
            yield f"weight {name!r}", self.weight_of(name)

    def activation_of(self, ref: Ref) -> QuantSpec | None:
        """The kind of codes of a tensor, as ``activation`` has it; None for those of MXNet's kernels."""
        return None if self.activation is None else self._of_width(self.activation, ref.name)

    def weight_of(self, name: str) -> QuantSpec:
        """The kind of codes of a weight."""
        return WEIGHT if self.weight is None else self._of_width(self.weight, name)

    def weight_scheme(self, name: str) -> Scheme:
        """From the range of a weight to its scale."""
        return MXNET if self.weight is None else self.scheme(self.weight_of(name))

    def _of_width(self, spec: QuantSpec, name: str) -> QuantSpec:
        return replace(spec, bits=self.widths[name]) if name in self.widths else spec

    def made_as(self, ref: Ref) -> QParams:
        """The parameters by which an int8 operator writes ``ref``."""
        return self._params(ref, self.made[ref])

    def stored_as(self, ref: Ref, dtype: str) -> QParams:
        """The parameters by which readers of a type find ``ref``, whether it is made so or quantized for them."""
        return self._params(ref, self.read(ref, dtype))

    def read_as(self, ref: Ref, dtype: str) -> QParams:
        """The parameters by which ``ref`` is quantized for readers of a type."""
        return self._params(ref, self.quantized[ref, dtype])

    def _params(self, ref: Ref, record: TensorRecord) -> QParams:
        if (given := self.given.get(str(ref))) is not None:
            return given
        if record.min is None or record.max is None:
            raise QuantizeError(f"the range of tensor {str(ref)!r} is found at run time; allowed: a calibrated one")
        other = self.activation_of(ref)
        if other is not None:
            low, high = record.min, record.max / record.widened
            if record.offset:
                low, high = 0.0, record.max - record.offset
            return self.scheme(other).params(other, low, high)
        spec, size = BY_DTYPE[record.dtype], max(abs(record.min), abs(record.max))
        params = MXNET.params(spec, -size if spec.signed else 0.0, size)
        return params if record.widened == 1 else QParams(HALVED, params.scale)

    @cached_property
    def weights(self) -> Mapping[str, QParams]:
        """Parameter -> its scales."""
        return MappingProxyType({name: self.weight_as(name, self.fused.args[name]) for name in self._read_weights})

    def weight_as(self, name: str, value: Array) -> QParams:
        """The scales that ``value`` (O, ...) has as the weight ``name`` of this network."""
        spec, given = self.weight_of(name), self.given.get(name)
        if given is not None and given.spec == spec:  # else it was narrowed since
            return given
        return self.weight_scheme(name).covering(spec, value)

    @property
    def _read_weights(self) -> Iterator[str]:
        for name in self.operations:
            node = self.fused.graph[name]
            if node.subgraphs and len(node.inputs) > 1 and node.inputs[1].name in self.fused.args:
                yield node.inputs[1].name

    def respecified(
        self,
        activation: QuantSpec,
        weight: QuantSpec,
        scheme: Callable[[QuantSpec], Scheme] = scheme_of,
        widths: Mapping[str, int] = MappingProxyType({}),
        products: PairedProducts | None = None,
    ) -> QuantizedNetwork:
        """The same decisions and ranges with codes of another kind, such as fewer bits; no MXNet kernel has them.

        Args:
            activation: of tensors; ``signed`` None takes the sign that each range asks for.
            weight: of weights.
            scheme: from a spec to how its scale follows from a range.
            widths: node, also of a weight -> the bits of what it makes, where they are others.
            products: how kernels add products of 8-bit codes without VNNI; None where those are exact.

        Raises:
            QuantizeError: ``activation`` has an axis.
        """
        if activation.axis is not None:
            raise QuantizeError(f"activations are {activation}; allowed: one scale for a tensor")
        return replace(self, activation=activation, weight=weight, scheme=scheme, widths=widths, products=products)


NetworkPass: TypeAlias = Step[QuantizedNetwork]
"""A step that changes what is decided of a network: its ranges, types, weights or layers."""
