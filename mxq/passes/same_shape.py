"""Same shape: operators of two tensors of one shape get the name that kernels and rules know.

Before:  add_n(x, y), _grad_add(x, y)        broadcast_add(x, y)
After:   elemwise_add(x, y)                  elemwise_add(x, y), where both are known to have one shape

Likewise differences, products, quotients, maxima and minima. ONNX writes every sum as one that may broadcast, so that
residual networks from there have no other; only ``elemwise_add`` is fused into convolutions.

Conditions: add_n joins two tensors (one alone is the tensor itself). For broadcast operators the nodes before must show
that the shapes are equal, whatever size the inputs have.
Formula: a side that convolutions and poolings make of a side h of a tensor is floor((h + a) / s), for one a and s; and
floor((floor((h + a) / s) + b) / t) = floor((h + a + s b) / (s t)), so that two sides of one tensor are equal for every
h where these numbers are.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Final, TypeAlias

from mxq.graph.ir import Model, Node, Ref
from mxq.graph.traits import Arithmetic, Operand, Traits, operators, traits_of
from mxq.rewrite import NO_MATCH, Match, Op, Reject, Rewrite

_NAMES: Final[Mapping[Arithmetic, str]] = {
    Arithmetic.ADD: "elemwise_add", Arithmetic.SUBTRACT: "elemwise_sub", Arithmetic.MULTIPLY: "elemwise_mul",
    Arithmetic.DIVIDE: "elemwise_div", Arithmetic.MAXIMUM: "_maximum", Arithmetic.MINIMUM: "_minimum",
}  # fmt: skip
"""What operators of two tensors are called where both have one shape."""


def _is_of_tensors(traits: Traits) -> bool:
    """Whether it is one of these operations, whatever it is called."""
    of_tensors = traits.operand in (Operand.SAME_SHAPE, Operand.BROADCAST, Operand.MANY)
    return of_tensors and traits.arithmetic in _NAMES


RENAMED: Final = tuple(op for op in operators(_is_of_tensors) if op not in _NAMES.values())
"""Operators of two tensors that have another name."""


@dataclass(frozen=True, slots=True)
class Side:
    """floor((side ``axis`` of the tensor ``of`` + ``offset``) / ``stride``)."""

    of: Ref
    axis: int
    offset: int = 0
    stride: int = 1


@dataclass(frozen=True, slots=True)
class Whole:
    """The shape of the tensor ``of``, of which nothing is known, with ``last`` as its last side where it is given."""

    of: Ref
    last: int | None = None


Length: TypeAlias = int | Side
Shape: TypeAlias = tuple[Length, ...] | Whole


@dataclass(frozen=True)
class OfOneShape:
    """See the module. ``shapes`` are those of the network's tensors."""

    shapes: Mapping[Ref, Shape]
    name: str = "of_one_shape"
    pattern: Op = Op(RENAMED)

    def check(self, model: Model, match: Match) -> Reject | None:
        node = match.root
        if len(node.inputs) == 1 and node.name not in model.graph.head_names:
            return None
        if len(node.inputs) != 2:
            return NO_MATCH
        if traits_of(node).operand is Operand.BROADCAST and len({self.shapes[ref] for ref in node.inputs}) > 1:
            return Reject("nothing shows that both of its operands have one shape", (node.name,))
        return None

    def build(self, model: Model, match: Match) -> Rewrite:
        node = match.root
        if len(node.inputs) == 1:
            return Rewrite({node.name: ()}, {node.out: node.inputs[0]})
        attrs = {key: value for key, value in node.attrs.items() if key != "num_args"}
        made = replace(node, op=_name(traits_of(node)), attrs=attrs)
        return Rewrite({node.name: (made,)})


def _name(traits: Traits) -> str:
    if traits.arithmetic is None:
        raise ValueError("the pattern matches what computes something of two tensors")
    return _NAMES[traits.arithmetic]


def shapes_of(model: Model) -> dict[Ref, Shape]:
    """The shape of every tensor that any operator reads or the network returns, as far as the graph shows it."""
    found: dict[Ref, Shape] = {}
    for node in model.graph:
        found[node.out] = _shape(model, node, found)
        for ref in (*(r for reader in model.graph.consumers[node.name] for r in reader.inputs), *model.graph.heads):
            if ref.name == node.name:
                found.setdefault(ref, Whole(ref))
    return found


def _shape(model: Model, node: Node, known: Mapping[Ref, Shape]) -> Shape:
    if node.is_variable:
        return _of_variable(model, node)
    first = known[node.inputs[0]] if node.inputs else Whole(node.out)
    traits = traits_of(node)
    if traits.keeps_shape or (traits.operand is Operand.BROADCAST and first == known[node.inputs[1]]):
        return first
    made = None
    if node.op in ("Convolution", "Pooling"):
        made = _of_window(node, first)
    elif node.op == "FullyConnected":
        made = _of_dense(node, first)
    elif node.op == "Concat":
        made = _joined([known[ref] for ref in node.inputs], node.integer("dim", 1))
    return Whole(node.out) if made is None else made


def _of_variable(model: Model, node: Node) -> Shape:
    value, example = model.param(node.name), node.note.input_shape
    if value is not None:
        return value.shape
    return (Side(node.out, 0), *example) if example else Whole(node.out)


def _sides(shape: Shape, rank: int) -> tuple[Length, ...] | None:
    """A shape that is known to have so many axes; None where it has not."""
    if isinstance(shape, Whole):
        last = () if shape.last is None else (shape.last,)
        return (*(Side(shape.of, i) for i in range(rank - len(last))), *last)
    return shape if len(shape) == rank else None


def _of_window(node: Node, data: Shape) -> Shape | None:
    """What a convolution or pooling of (N, C, ...) makes."""
    kernel = node.ints("kernel")
    if node.flag("global_pool"):
        if isinstance(data, Whole):
            return None
        kernel = (1,) * (len(data) - 2)
    sides = _sides(data, len(kernel) + 2)
    odd = any(len(node.ints(attr)) not in (0, len(kernel)) for attr in ("pad", "stride", "dilate"))  # MXNet refuses it
    if not kernel or odd or sides is None or not node.is_channels_first:
        return None
    channels = sides[1] if node.op == "Pooling" else node.integer("num_filter", 0)
    if node.flag("global_pool"):
        return (sides[0], channels, *kernel)
    if node.attrs.get("pooling_convention", "valid") not in ("valid", "full"):
        return None
    return (sides[0], channels, *(_windowed(node, i, side) for i, side in enumerate(sides[2:])))


def _windowed(node: Node, axis: int, side: Length) -> Length:
    """How often the window of a convolution or pooling fits along a spatial axis."""
    kernel, pad, stride, dilate = (
        (node.ints(attr) or (default,) * 3)[axis]
        for attr, default in (("kernel", 1), ("pad", 0), ("stride", 1), ("dilate", 1))
    )
    offset = 2 * pad - dilate * (kernel - 1) - 1 + stride
    if node.attrs.get("pooling_convention") == "full":
        offset += stride - 1
    if isinstance(side, int):
        return (side + offset) // stride
    return replace(side, offset=side.offset + side.stride * offset, stride=side.stride * stride)


def _of_dense(node: Node, data: Shape) -> Shape | None:
    hidden = node.integer("num_hidden", 0)
    if node.flag("flatten", default=True):
        return (Side(data.of, 0) if isinstance(data, Whole) else data[0], hidden)
    return Whole(data.of, hidden) if isinstance(data, Whole) else (*data[:-1], hidden)


def _joined(parts: list[Shape], axis: int) -> Shape | None:
    """Of tensors that are alike but for their length along ``axis``."""
    shapes = [part for part in parts if not isinstance(part, Whole)]
    if len(shapes) < len(parts) or not 0 <= axis < len(shapes[0]):
        return None
    lengths = [shape[axis] for shape in shapes]
    others = {(*shape[:axis], *shape[axis + 1 :]) for shape in shapes}
    if len(others) > 1 or not all(isinstance(length, int) for length in lengths):
        return None
    total = sum(length for length in lengths if isinstance(length, int))
    return (*shapes[0][:axis], total, *shapes[0][axis + 1 :])
