"""`Plain`: fake quantization written in MXNet's own operators, whose gradients are those of the compiled kernels.

Float32 rounds halves to even where 1.5 * 2^23 is added and taken away, with the derivative 1: the straight-through
estimator, without a word about it.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TypeAlias

from mxq.graph.ir import Node, Ref
from mxq.numerics import TO_WHOLE
from mxq.qat.algorithms.grid import LEAST_STEP, MOST_STEP, NO_RANGE, ends_of, has_range
from mxq.qat.algorithms.protocol import Site, scale_name
from mxq.quant.scheme import ZERO_RANGE_SCALE

End: TypeAlias = Ref | float


@dataclass
class Plain:
    """Writes operators one after the other; those that it adds are named after ``name``.

    Attributes:
        name: of what is made in the end.
        site, source: the tensor.
        x: the tensor in a shape beside which parameters (C,) can stand: (A..., C, B) with an axis, else as it is.
    """

    name: str
    site: Site
    source: Ref
    made: list[Node] = field(default_factory=list)

    def __post_init__(self) -> None:
        axis = self.site.spec.axis
        self.x = self.source if axis is None else self.op("Reshape", self.source, shape=(*[0] * (axis + 1), -1))

    # ---- operators ----

    def op(self, op: str, *inputs: Ref, **attrs: object) -> Ref:
        """The result of one operator."""
        name = f"{self.name}_{len(self.made)}"
        texts = {key: repr(value) if isinstance(value, float) else str(value) for key, value in attrs.items()}
        self.made.append(Node(name, op, texts, inputs))
        return Ref(name)

    def scalar(self, op: str, x: Ref, value: float) -> Ref:
        return self.op(f"_{op}_scalar", x, scalar=float(value))

    def constant(self, x: Ref) -> Ref:
        """``x``, through which no gradient passes."""
        return self.op("BlockGrad", x)

    def round(self, x: Ref) -> Ref:
        """The nearest whole number, straight through."""
        return self.scalar("minus", self.scalar("plus", x, TO_WHOLE), TO_WHOLE)

    def beside(self, parameter: Ref) -> Ref:
        """A parameter (C,) in a shape that goes with `x`."""
        return parameter if self.site.spec.axis is None else self.op("Reshape", parameter, shape=(-1, 1))

    def clip(self, x: Ref, low: End, high: End) -> Ref:
        """``x`` within ends that are numbers, or learned."""
        if isinstance(low, Ref) or isinstance(high, Ref):
            for op, end in (("broadcast_minimum", high), ("broadcast_maximum", low)):
                x = self.op(op, x, end) if isinstance(end, Ref) else self.scalar(op.partition("_")[2], x, end)
            return x
        return self.op("clip", x, a_min=float(low), a_max=float(high))

    def straight(self, value: Ref, *through: tuple[Ref, Ref | None]) -> Ref:
        """``value``, exactly, with the gradient of the sum of ``slope * x`` over ``through``; None is a slope of 1."""
        found = self.constant(value)
        for x, slope in through:
            nothing = self.op("elemwise_sub", x, self.constant(x))
            moved = nothing if slope is None else self.op("broadcast_mul", nothing, self.constant(slope))
            found = self.op("broadcast_add", found, moved)
        return found

    # ---- parts of algorithms ----

    def size(self, x: Ref) -> Ref:
        """`mxq.qat.algorithms.grid.positive`, a constant."""
        return self.constant(self.op("clip", self.op("abs", x), a_min=LEAST_STEP, a_max=MOST_STEP))

    def sign(self, x: Ref) -> Ref:
        """-1 below 0, else 1."""
        return self.scalar("plus", self.scalar("mul", self.scalar("lesser", x, 0.0), -2.0), 1.0)

    def used(self, step: Ref) -> tuple[Ref, Ref]:
        """`mxq.qat.algorithms.grid.used`, constants."""
        size, sign = self.size(step), self.sign(step)
        if self.site.spec.scale != "power_of_two":
            return size, sign
        found = self.scalar("rpower", self.round(self.op("log2", size)), 2.0)
        return self.constant(found), self.op("elemwise_mul", sign, self.op("elemwise_div", found, size))

    def step(self, step: Ref, rate: Ref | None = None) -> Ref:
        """The step that is used for ``step``, whose gradient is multiplied by ``rate``."""
        found, slope = self.used(step)
        return self.straight(found, (step, slope if rate is None else self.op("broadcast_mul", slope, rate)))

    def positive(self, x: Ref, rate: Ref | None = None) -> Ref:
        """`size`, with its gradient, which is multiplied by ``rate``."""
        sign = self.sign(x)
        return self.straight(self.size(x), (x, sign if rate is None else self.op("broadcast_mul", sign, rate)))

    def inverse(self, x: Ref) -> Ref:
        return self.scalar("rdiv", x, 1.0)

    def scale_of(self, step: Ref) -> Ref:
        """`mxq.qat.algorithms.grid.scale_of`."""
        if not has_range(self.site):
            return self.inverse(step)
        top = self.site.scheme.top(self.site.spec)
        return self.scalar("rdiv", self.scalar("mul", step, top), top)

    def code(self, zero: Ref) -> Ref:
        """`mxq.qat.algorithms.grid.rounded`, a constant."""
        return self.constant(self.round(self.clip(zero, *ends_of(self.site.spec))))

    def zero_of(self, low: Ref, scale: Ref) -> Ref:
        """`mxq.qat.algorithms.grid.zero_of`, a constant."""
        code = self.round(self.op("elemwise_mul", low, scale))
        return self.code(self.scalar("rminus", code, self.site.spec.lowest))

    def covering(self, low: Ref, high: Ref) -> tuple[Ref, Ref | None]:
        """Scale and zero point of `mxq.qat.algorithms.grid.covering`, constants."""
        spec, zero = self.site.spec, None
        if not spec.symmetric:
            width = self.op("elemwise_sub", high, low)
        else:
            width = self.op("broadcast_maximum", self.op("negative", low), high) if spec.signed else high
        dead = self.scalar("lesser", width, NO_RANGE)
        scale = self.scalar("rdiv", self.op("elemwise_add", width, dead), self.site.scheme.top(spec))
        scale = self.op("where", dead, self.scalar("mul", self.op("ones_like", dead), ZERO_RANGE_SCALE), scale)
        if spec.scale == "power_of_two":
            scale = self.scalar("rpower", self.op("floor", self.op("log2", scale)), 2.0)
        if not spec.symmetric:
            zero = self.zero_of(low, scale)
        return self.constant(scale), zero

    def extent(self, x: Ref) -> tuple[Ref, Ref]:
        """`mxq.qat.algorithms.grid.extent` of a tensor in the shape of `x`."""
        low, high = self.over("min", x), self.over("max", x)
        return self.scalar("minimum", low, 0.0), self.scalar("maximum", high, 0.0)

    def over(self, op: str, x: Ref) -> Ref:
        """The ``min`` or ``max`` of each channel of a tensor in the shape of `x`, in a shape that goes with it."""
        axis = self.site.spec.axis
        if axis is None:
            return self.op("Reshape", self.op(op, x), shape=(1,))
        others = tuple(i for i in range(axis + 2) if i != axis)
        return self.op("Reshape", self.op(op, x, axis=others), shape=(-1, 1))

    def shared(self) -> Ref:
        """How many values share a step, (1,): see `mxq.qat.algorithms.lsq.shared`."""
        axis = self.site.spec.axis
        if self.site.role == "activation":
            shape = self.op("shape_array", self.x if axis is not None else self.op("Reshape", self.x, shape=(0, -1)))
            count = self.op("slice_axis", shape, axis=0, begin=-1, end=None)
            return self.op("Cast", count, dtype="float32")
        count = self.op("Cast", self.op("size_array", self.x), dtype="float32")
        if axis is None:
            return count
        channels = self.op("slice_axis", self.op("shape_array", self.x), axis=0, begin=axis, end=axis + 1)
        return self.op("elemwise_div", count, self.op("Cast", channels, dtype="float32"))

    def ends(self, zero: Ref | None = None) -> tuple[End, End]:
        """The lowest and the highest code less that of value 0."""
        low, high = ends_of(self.site.spec)
        return (low, high) if zero is None else (self.scalar("rminus", zero, low), self.scalar("rminus", zero, high))

    def fake(self, x: Ref, scale: Ref, low: End, high: End) -> Ref:
        """``x`` on a grid, see `mxq.qat.algorithms.grid.Grid`."""
        self.made.append(Node(scale_name(self.name), "Reshape", {"shape": "(-1,)"}, (scale,)))
        code = self.round(self.clip(self.op("broadcast_mul", x, scale), low, high))
        return self.op("broadcast_div", code, scale)

    def result(self, x: Ref) -> tuple[Node, ...]:
        """All operators, of which the last has the name that was asked for."""
        if x is not self.x and self.site.spec.axis is not None:
            self.op("reshape_like", x, self.source)
        return (*self.made[:-1], replace(self.made[-1], name=self.name))
