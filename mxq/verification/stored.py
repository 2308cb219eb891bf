"""How the int8 network holds the tensors of the float network: under which name, in which codes, scaled and shifted.

Which tensor's codes an operator gives, and what a pass made of it, is in the node's note (`Annotation`): ``held = value
* scale + offset``, its channels in ``order``, of every so many pixels (``stride``). Dequantizers and operators left in
float have the tensor's own name. What only codes, decodes or recodes a tensor holds what it reads.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from mxq.backends import summand_of
from mxq.backends.mxnet.written import QUANTIZE, dtype_of, is_coded, ranges_read, recodes, tensor_name
from mxq.graph.annotation import Annotation
from mxq.graph.ir import Array, Graph, Model, Node, Ref
from mxq.graph.traits import traits_of
from mxq.quant import BY_DTYPE, INT8, MXNET, UINT8, QParams

LEVELS: Final = UINT8.highest + 1
_ALL = (1, 1)
_INT32 = 2**31 - 1
_ROUNDS = 0.51
"""How far a value may lie beyond the last code, in codes: a half, where the range's own maximum is, and a little."""


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """Where the int8 network holds a tensor, and as what.

    Attributes:
        refs: one float tensor, or the values, minimum and maximum of a coded one.
        order: which channel of the float network's tensor each is; empty where they stand alike.
        scale: what each channel's values are multiplied by, in the float network's order; empty for 1.
        offset: what is added then.
        top: the highest code that can occur, where that is below the type's own.
        stride: of how many rows and columns one is held.
        axis: which one ``scale`` is along, 1 or -1.
    """

    refs: tuple[Ref, ...]
    order: tuple[int, ...] = ()
    scale: tuple[float, ...] = ()
    offset: float = 0.0
    top: int = LEVELS
    stride: tuple[int, int] = (1, 1)
    axis: int = 1

    @property
    def is_whole(self) -> bool:
        """Whether all pixels are held."""
        return self.stride == (1, 1)

    def part(self, whole: Array) -> Array:
        """What is held of the float network's tensor."""
        return whole if self.is_whole else whole[:, :, :: self.stride[0], :: self.stride[1]]

    def read(self, arrays: Sequence[Array]) -> Reading:
        """What ``arrays``, the tensors ``refs``, say."""
        codes = arrays[0][:, np.argsort(self.order)] if self.order else arrays[0]
        if len(arrays) == 1 or codes.dtype.kind == "f":
            return Reading(self, codes, 1.0)
        absmax = max(abs(float(bound.ravel()[0])) for bound in arrays[1:])
        if codes.dtype == np.int32:  # a sum before it is requantized: its range spans all of int32
            return Reading(self, codes, _INT32 / absmax if absmax else math.inf)
        return Reading(self, codes, float(MXNET.params(BY_DTYPE[str(codes.dtype)], -absmax, absmax).scale))

    def factors(self, shape: tuple[int, ...]) -> Array | float:
        """``scale``, to be broadcast over a tensor of that shape; flattened, a channel has several places in a row."""
        if not self.scale:
            return 1.0
        each = np.repeat(np.asarray(self.scale, np.float64), shape[self.axis] // len(self.scale))
        if self.axis < 0:
            return each
        return each.reshape(1, -1, *(1,) * (len(shape) - 2))


@dataclass(frozen=True, slots=True)
class Reading:
    """A tensor of the int8 network in one batch: ``codes``, of which ``step`` make a unit; floats have ``step`` 1."""

    stored: StoredTensor
    codes: Array
    step: float

    @property
    def is_coded(self) -> bool:
        """Whether there are 256 codes."""
        return str(self.codes.dtype) in BY_DTYPE

    @property
    def values(self) -> Array:
        """float32, in units of the float network's tensor."""
        found = self.codes
        if self.codes.dtype == np.int32:
            found = np.asarray(self.codes / self.step, np.float32)
        elif self.is_coded:
            found = QParams(BY_DTYPE[str(self.codes.dtype)], self.step).dequantize(self.codes)
        if self.stored.offset or self.stored.scale:
            found = np.asarray((found - self.stored.offset) / self.stored.factors(found.shape), np.float32)
        return found

    def clipped(self, wanted: Array) -> int:
        """How many codes are the first or the last one because the range has no room for the value ``wanted``.

        Args:
            wanted: the shape of ``codes``, float, in units of the float network's tensor.
        """
        if not self.is_coded:
            return 0
        spec = BY_DTYPE[str(self.codes.dtype)]
        low, high = spec.lowest, min(spec.highest, self.stored.top)
        scaled = (wanted * self.stored.factors(wanted.shape) + self.stored.offset) * self.step
        above = (self.codes >= high) & (scaled > high + _ROUNDS)
        below = (self.codes <= low) & (scaled < low - _ROUNDS)
        return int(np.count_nonzero(above | below))

    def used(self) -> Array:
        """(256,) bool: which codes occur; none of a float tensor."""
        if not self.is_coded:
            return np.zeros(LEVELS, bool)
        return np.asarray(np.bincount(self.codes.view(np.uint8).ravel(), minlength=LEVELS) > 0)


@dataclass(frozen=True)
class Counterparts:
    """Which tensor of the float model, ``reference``, each tensor of the ``int8`` model stands for."""

    reference: Model
    int8: Model

    def float_of(self, ref: Ref) -> Ref | None:
        """The float network's tensor that ``ref`` of the int8 network holds; None where there is no such."""
        node = self.int8.graph[ref.name]
        if is_coded(node) and ref.output:  # a bound of its range
            return None
        if node.is_variable:
            return Ref(node.name) if node.name in self.int8.inputs and node.name in self.reference.inputs else None
        if node.op == QUANTIZE and not node.note.tensor:
            return self.float_of(node.inputs[0])
        known = self.reference.graph.by_name
        for name in (tensor_name(node), node.name, node.note.unshifted):
            if name in known and not known[name].is_variable:
                return Ref(name, ref.output)
        return self.float_of(node.inputs[0]) if recodes(node) else self._door(node)

    def stored(self, ref: Ref) -> StoredTensor:
        """How the tensor ``ref`` is stored."""
        node = self.int8.graph[ref.name]
        order, scale = channels_of(self.int8.graph, node)
        offset = _noted(self.int8.graph, node, lambda note: note.offset).offset
        axis = _noted(self.int8.graph, node, lambda note: note.scale, _carries_scale).axis
        top, stride = _top(self.int8.graph, node), self._stride(node, ref)
        return StoredTensor(self._refs(node, ref), order, scale, offset, top, stride, axis)

    def around(self, node: Node, own: Ref | None) -> dict[Ref, StoredTensor]:
        """The nearest tensors before ``node`` that the float network has, but for ``own``, and that are held whole."""
        found: dict[Ref, StoredTensor] = {}
        seen: set[Ref] = set()
        pending = list(reversed(node.inputs))
        while pending:
            ref = pending.pop()
            maker = self.int8.graph[ref.name]
            if ref in seen or (is_coded(maker) and ref.output):
                continue
            seen.add(ref)
            tensor = self.float_of(ref)
            stored = None if tensor is None or tensor == own else self.stored(ref)
            if tensor is None or stored is None or not stored.is_whole:
                pending.extend(reversed(maker.inputs))
            else:
                found.setdefault(tensor, stored)
        return found

    def _stride(self, node: Node, ref: Ref) -> tuple[int, int]:
        """Beside the float network, which may hold a part itself, as a fused one does."""
        rows, columns = _noted(self.int8.graph, node, lambda note: note.stride != _ALL).stride
        tensor = self.float_of(ref)
        first = _ALL if tensor is None else self.reference.graph[tensor.name].note.stride
        return rows // first[0], columns // first[1]

    def _refs(self, node: Node, ref: Ref) -> tuple[Ref, ...]:
        if is_coded(node):
            return (node.out, Ref(node.name, 1), Ref(node.name, 2))
        return (ref, *self._fed_range(ref)) if node.is_variable else (ref,)

    def _fed_range(self, ref: Ref) -> tuple[Ref, ...]:
        """Minimum and maximum of an input of codes, as an operator that reads it finds them; none of another."""
        for reader in self.int8.graph.consumers[ref.name]:
            for place, bounds in ranges_read(reader).items():
                if reader.inputs[place] == ref:
                    return bounds
        return ()

    def _door(self, node: Node) -> Ref | None:
        """The float input that ``node`` makes of an integer one."""
        name = node.note.tensor
        return Ref(name) if name in self.reference.inputs and name in self.int8.inputs else None


def channels_of(graph: Graph, node: Node) -> tuple[tuple[int, ...], tuple[float, ...]]:
    """`StoredTensor.order` and `StoredTensor.scale` of what ``node`` of an int8 network makes."""
    order = _noted(graph, node, lambda note: note.order).order
    scale = _noted(graph, node, lambda note: note.scale, _carries_scale).scale
    return order, tuple(scale[i] for i in np.argsort(order)) if order and scale else scale


def _carries_scale(node: Node) -> bool:
    """Whether what ``node`` makes is scaled as what it reads."""
    return traits_of(node).carries_scale or recodes(node)


def _noted(
    graph: Graph, node: Node, says: Callable[[Annotation], object], passes: Callable[[Node], bool] = recodes
) -> Annotation:
    """The first note that ``says`` something of what ``node`` makes: its own, or of what it ``passes`` on."""
    while not says(node.note) and passes(node):
        node = graph[node.inputs[0].name]
    return node.note


def _top(graph: Graph, node: Node) -> int:
    """The last code of a conv + sum, which writes into its summand's memory: 127 of an unsigned one in a signed one."""
    summand = summand_of(node)
    if summand is None or not is_coded(node) or dtype_of(graph, node.out) != "uint8":
        return LEVELS
    return INT8.highest if dtype_of(graph, summand) == "int8" else LEVELS
