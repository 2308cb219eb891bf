"""What a row of the table lowers a node with: operators to write, and all that is known of what the node reads."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Any, Final, Protocol, TypeAlias

import numpy as np

from mxq.graph.ir import Array, Model, Node, Ref
from mxq.graph.tensors import Open, Shape, Side, Tensor, size_of

Attribute: TypeAlias = "int | float | str | Sequence[int] | Sequence[float] | Sequence[str] | None"
Result: TypeAlias = str | tuple[str, ...]
"""The ONNX name of a node's output, or those of its outputs."""

OPSET: Final = 17
OPSET_INT4: Final = 21
"""That of files with codes of 4 bits, which older ones do not have."""
FEW: Final = 64
"""Values up to which equal constants are one."""
LARGEST: Final = 2**31 - 1
"""A bound that ``Slice`` takes for "to the end", in a type that every runtime has."""


class Why(Enum):
    """Why a node cannot be written as ONNX; the value begins the sentence on it."""

    OPERATOR = "mxq has no ONNX form of this operator"
    ATTRIBUTE = "this attribute has no counterpart in ONNX"
    INPUT = "this input has to be a constant"
    OUTPUT = "this output is not made"
    SHAPE = "this shape has no counterpart in ONNX"
    BATCH = "this takes one batch size alone"
    SIZE = "this takes pictures of one size alone"
    VALUES = "the shape of what it makes follows from values"


def plain(ref: Ref) -> Ref:
    """A reference without the version of an auxiliary state."""
    return Ref(ref.name, ref.output)


def whole(side: Side | None, what: str) -> int:
    """A side that must not follow the batch size; ``what`` says of what it is one."""
    if not isinstance(side, int):
        raise Unfit(Why.SIZE if isinstance(side, Open) else Why.BATCH, f"{what} is {side}")
    return side


class Unfit(Exception):
    """Raised by a row for a node that it cannot lower.

    Attributes:
        why: the kind of reason.
        detail: what of the node it is.
    """

    def __init__(self, why: Why, detail: str = "") -> None:
        super().__init__(why, detail)
        self.why, self.detail = why, detail


@dataclass(frozen=True)
class Body:
    """A graph within an operator, of float32 tensors that are its own: what it is given, gives, and does."""

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    operators: tuple[Operator, ...]


@dataclass(frozen=True)
class Operator:
    """One ONNX operator: its ``kind``, the names of its tensors, its attributes, ``body`` and its own ``name``."""

    name: str
    kind: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attrs: Mapping[str, Attribute] = field(default_factory=dict)
    body: Body | None = None


class Feed(Protocol):
    """How tensors come to operators: as they are, or by way of codes."""

    def row(self, node: Node) -> Callable[[Context], Result] | None:
        """How ``node`` is written where that is not as the table says."""

    def read(self, context: Context, place: int, moved: Callable[[str], str]) -> str:
        """What stands for the tensor that the node of ``context`` reads at ``place``, its values ``moved``."""

    def weight(self, context: Context, place: int, value: Array, axes: tuple[int, ...]) -> str:
        """The parameter at ``place`` of the node, ``value`` with its axes in another order."""

    def made(self, builder: Builder, ref: Ref, tensor: str) -> str:
        """What stands for ``tensor``, made as ``ref``, for all that read it."""


class FloatFeed:
    """All tensors as they are."""

    def row(self, node: Node) -> Callable[[Context], Result] | None:
        return None

    def read(self, context: Context, place: int, moved: Callable[[str], str]) -> str:
        return moved(context.raw(place))

    def weight(self, context: Context, place: int, value: Array, axes: tuple[int, ...]) -> str:
        if axes == tuple(range(value.ndim)):
            return context.builder.names[plain(context.node.inputs[place])]
        return context.builder.constant(value.transpose(axes), f"{context.node.inputs[place].name}_transposed")

    def made(self, builder: Builder, ref: Ref, tensor: str) -> str:
        return tensor


@dataclass
class Builder:
    """An ONNX graph in the making.

    Attributes:
        model: what is lowered.
        tensors: what its tensors are, by `plain` references.
        feed: how they come to operators.
        operators: those written so far.
        constants: initializers by name; parameters among them as they are read.
        narrow: those of codes of 4 bits, each a byte here.
        names: of each tensor of ``model`` that is there, by `plain` references, the ONNX name.
    """

    model: Model
    tensors: Mapping[Ref, Tensor]
    feed: Feed = field(default_factory=FloatFeed)
    operators: list[Operator] = field(default_factory=list)
    constants: dict[str, Array] = field(default_factory=dict)
    narrow: set[str] = field(default_factory=set)
    names: dict[Ref, str] = field(default_factory=dict)
    _taken: set[str] = field(default_factory=set)
    _known: dict[tuple[Any, ...], str] = field(default_factory=dict)
    _batch: str = ""

    def unused(self, name: str) -> str:
        """``name``, or with a number after it; taken from now on."""
        found, count = name, 0
        while found in self._taken or found in self.model.graph:
            count += 1
            found = f"{name}_{count}"
        self._taken.add(found)
        return found

    def emit(
        self,
        of: str,
        kind: str,
        inputs: Sequence[str],
        attrs: Mapping[str, Attribute],
        outputs: int = 1,
        body: Body | None = None,
    ) -> tuple[str, ...]:
        """Writes an operator, named after ``of``; gives its outputs."""
        name = self.unused(f"{of}_{kind}")
        made = (name, *(self.unused(f"{name}_output{i}") for i in range(1, outputs)))
        kept = {key: value for key, value in attrs.items() if value is not None}
        while inputs and not inputs[-1]:
            inputs = inputs[:-1]
        self.operators.append(Operator(name, kind, tuple(inputs), made, kept, body))
        return made

    def constant(self, value: Array, name: str = "constant") -> str:
        """The initializer of a value; one alone of each, but for large ones."""
        array = np.asarray(value)
        key = (array.dtype.str, array.shape, array.tobytes()) if array.size <= FEW else ("array", id(array))
        if key not in self._known:
            self._known[key] = self.unused(name)
            self.constants[self._known[key]] = array
        return self._known[key]

    def narrow_constant(self, codes: Array, name: str) -> str:
        """The initializer of codes of 4 bits, int8 here."""
        found = self.unused(name)
        self.constants[found] = codes
        self.narrow.add(found)
        return found

    def extents(self, shape: Sequence[Side]) -> str:
        """The int64 vector of a shape, computed where it follows the batch size."""
        if all(isinstance(side, int) for side in shape):
            return self.constant(np.array(shape, np.int64), "shape")
        key = ("extents", *shape)
        if key not in self._known:
            parts = [self._extent(side) for side in shape]
            self._known[key] = parts[0] if len(parts) == 1 else self.emit("shape", "Concat", parts, {"axis": 0})[0]
        return self._known[key]

    def _extent(self, side: Side) -> str:
        """A vector of one size."""
        if isinstance(side, int):
            return self.constant(np.array([side], np.int64), "size")
        if isinstance(side, Open):
            raise Unfit(Why.SIZE, f"a side of what it makes is {side}")
        key = ("extent", side)
        if key not in self._known:
            found = self.batch
            for kind, number, neutral in (("Mul", side.times, 1), ("Add", side.plus, 0)):
                if number != neutral:
                    (found,) = self.emit("batch", kind, [found, self._extent(number)], {})
            self._known[key] = found
        return self._known[key]

    @property
    def batch(self) -> str:
        """The number of examples, as a vector of one."""
        if not self._batch:
            first = self.model.inputs[0]
            (shape,) = self.emit("batch", "Shape", [first], {})
            (self._batch,) = self.emit("batch", "Gather", [shape, self._extent(0)], {})
        return self._batch

    def rename(self, since: int, old: str, new: str) -> None:
        """Gives a tensor that operators from place ``since`` on made another name."""
        for i in range(since, len(self.operators)):
            one = self.operators[i]
            swap = {old: new}
            inputs, outputs = (tuple(swap.get(n, n) for n in names) for names in (one.inputs, one.outputs))
            self.operators[i] = replace(one, inputs=inputs, outputs=outputs)
        for key, name in self._known.items():
            if name == old:
                self._known[key] = new
        self._batch = new if self._batch == old else self._batch


@dataclass(frozen=True)
class Context:
    """One ``node`` and the graph that it is written to."""

    node: Node
    builder: Builder

    # ---- what is known ----

    def tensor(self, place: int = 0) -> Tensor:
        """What the node reads at ``place``."""
        return self.builder.tensors[plain(self.node.inputs[place])]

    def shape(self, place: int = 0) -> Shape:
        return self.tensor(place).shape

    def rank(self, place: int = 0) -> int:
        return len(self.shape(place))

    @property
    def made(self) -> Tensor:
        """What the node's first output is."""
        return self.builder.tensors[self.node.out]

    def fixed(self, place: int, axis: int) -> int:
        """A side of what is read, which must not follow the batch size."""
        return whole(self.shape(place)[axis], f"axis {axis} of its input")

    def parameter(self, place: int) -> Array | None:
        """The value at ``place`` where that is a parameter."""
        return self.builder.model.param(self.node.inputs[place].name) if place < len(self.node.inputs) else None

    def known(self, place: int, what: str) -> Array:
        """The value at ``place``, which must be a parameter."""
        value = self.parameter(place)
        if value is None:
            raise Unfit(Why.INPUT, what)
        return value

    def axis(self, attr: str, default: int, place: int = 0) -> int:
        """The attribute, an axis of what is read, counted from the front."""
        return self.node.integer(attr, default) % max(1, self.rank(place))

    # ---- what is read ----

    def read(self, place: int = 0, moved: Callable[[str], str] = lambda tensor: tensor) -> str:
        """The tensor at ``place``; ``moved`` writes what keeps its values, be they floats or codes."""
        return self.builder.feed.read(self, place, moved)

    def raw(self, place: int = 0) -> str:
        """The tensor at ``place`` as it is, for what only moves its values."""
        return self.builder.names[plain(self.node.inputs[place])]

    def reads(self) -> list[str]:
        """All that the node reads."""
        return [self.read(i) for i in range(len(self.node.inputs))]

    def weight(self, place: int, axes: Sequence[int] | None = None) -> str:
        """The parameter or tensor at ``place``, its axes in another order."""
        value = self.parameter(place)
        if value is not None:
            return self.builder.feed.weight(self, place, value, tuple(range(value.ndim) if axes is None else axes))
        tensor = self.read(place)
        return tensor if axes is None else self.emit("Transpose", tensor, perm=list(axes))

    # ---- what is written ----

    def emit(self, kind: str, *inputs: str, **attrs: Attribute) -> str:
        """Writes an operator of one output."""
        return self.builder.emit(self.node.name, kind, inputs, attrs)[0]

    def emit_many(self, kind: str, *inputs: str, outputs: int, **attrs: Attribute) -> tuple[str, ...]:
        """Writes an operator of several outputs."""
        return self.builder.emit(self.node.name, kind, inputs, attrs, outputs)

    def constant(self, value: Any, dtype: Any = np.float32) -> str:
        """A constant, of rank 0 where it is a number."""
        return self.builder.constant(np.asarray(value, dtype))

    def number(self, value: float, place: int = 0) -> str:
        """A number of the type that is read at ``place``."""
        return self.constant(value, self.tensor(place).dtype)

    def integers(self, *values: int) -> str:
        return self.constant(values, np.int64)

    def reshape(self, tensor: str, shape: Sequence[Side], of: Sequence[Side] | None = None) -> str:
        """``tensor``, of shape ``of`` where that is known, in another shape."""
        if of is not None and tuple(of) == tuple(shape):
            return tensor
        open_ = [side for side in shape if not isinstance(side, int)]
        if of is not None and len(open_) == 2 and shape[0] == of[0] == open_[0]:  # the batch stays where it is
            return self.emit("Reshape", tensor, self.integers(0, *(s if isinstance(s, int) else -1 for s in shape[1:])))
        if len(open_) > 1 or 0 in shape or (open_ and not isinstance(open_[0], Open) and size_of(shape) is None):
            return self.emit("Reshape", tensor, self.builder.extents(shape))
        target = [side if isinstance(side, int) else -1 for side in shape]
        return self.emit("Reshape", tensor, self.integers(*target))

    def expand(self, tensor: str, shape: Sequence[Side]) -> str:
        """``tensor`` broadcast to a shape."""
        return self.emit("Expand", tensor, self.builder.extents(shape))

    def sliced(self, tensor: str, axis: int, begin: int, end: int | None = None, step: int = 1) -> str:
        """A part of ``tensor`` along one axis."""
        last = (LARGEST if step > 0 else -LARGEST) if end is None else end
        return self.emit(
            "Slice", tensor, self.integers(begin), self.integers(last), self.integers(axis), self.integers(step)
        )

    def cast(self, tensor: str, dtype: str, of: str = "") -> str:
        """``tensor`` in another type."""
        return tensor if dtype == of else self.emit("Cast", tensor, to=ELEMENT[dtype])

    def indices(self, place: int) -> str:
        """What is read at ``place`` as int64; MXNet holds indices as floats and drops what follows the point."""
        return self.cast(self.read(place), "int64", self.tensor(place).dtype)


ELEMENT: Final[Mapping[str, int]] = {
    "float32": 1, "uint8": 2, "int8": 3, "int32": 6, "int64": 7, "bool": 9, "float16": 10, "float64": 11,
}  # fmt: skip
"""numpy's name of a type -> its number in ONNX (``TensorProto.DataType``)."""
