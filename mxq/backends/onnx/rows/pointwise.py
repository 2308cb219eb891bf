"""Operators on numbers one by one, and on two or more tensors number by number."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Final

import numpy as np

from mxq.backends.onnx.context import Context, Unfit, Why
from mxq.backends.onnx.row import Row, Rows, rows_of
from mxq.graph.ir import Node
from mxq.graph.operator_names import OWN_NAME
from mxq.graph.traits import traits_of

# ---- one tensor ----------------------------------------------------------------------------------------------


def identity(c: Context) -> str:
    if traits_of(c.node).random:
        raise Unfit(Why.ATTRIBUTE, "mode 'always' draws at random")
    return c.raw()


def _unary(kind: str) -> Callable[[Context], str]:
    return lambda c: c.emit(kind, c.read())


def rsqrt(c: Context) -> str:
    return c.emit("Reciprocal", c.emit("Sqrt", c.read()))


def _signed(c: Context, of: str) -> str:
    """``of`` what was read without its sign, with it."""
    return c.emit("Mul", c.emit("Sign", c.read()), of)


def cbrt(c: Context) -> str:
    return _signed(c, c.emit("Pow", c.emit("Abs", c.read()), c.number(1 / 3)))


def truncated(c: Context) -> str:
    return _signed(c, c.emit("Floor", c.emit("Abs", c.read())))


def rounded(c: Context) -> str:
    """Halves away from zero, as C's ``round``; ONNX's takes the even one."""
    return _signed(c, c.emit("Floor", c.emit("Add", c.emit("Abs", c.read()), c.number(0.5))))


def rint(c: Context) -> str:
    """``mshadow_op.h``: of two the lower one."""
    return c.emit("Ceil", c.emit("Sub", c.read(), c.number(0.5)))


def _log(base: float) -> Callable[[Context], str]:
    return lambda c: c.emit("Mul", c.emit("Log", c.read()), c.number(1 / math.log(base)))


def log1p(c: Context) -> str:
    return c.emit("Log", c.emit("Add", c.read(), c.number(1)))


def expm1(c: Context) -> str:
    return c.emit("Sub", c.emit("Exp", c.read()), c.number(1))


def square(c: Context) -> str:
    x = c.read()
    return c.emit("Mul", x, x)


def logical_not(c: Context) -> str:
    return c.cast(c.emit("Equal", c.read(), c.number(0)), c.made.dtype)


def hard_sigmoid(c: Context) -> str:
    return c.emit("HardSigmoid", c.read(), alpha=c.node.number("alpha", 0.2), beta=c.node.number("beta", 0.5))


def clip(c: Context) -> str:
    low, high = c.node.number("a_min", -math.inf), c.node.number("a_max", math.inf)
    return c.emit("Clip", c.read(), c.number(low), c.number(high))


def smooth_l1(c: Context) -> str:
    """``mshadow_op.h``: (s x)^2 / 2 where |x| < 1 / s^2, else |x| - 0.5 / s^2."""
    x, squared = c.read(), c.node.number("scalar", 1.0) ** 2
    size = c.emit("Abs", x)
    inside = c.emit("Mul", c.emit("Mul", x, x), c.number(0.5 * squared))
    outside = c.emit("Sub", size, c.number(0.5 / squared))
    return c.emit("Where", c.emit("Less", size, c.number(1 / squared)), inside, outside)


def cast(c: Context) -> str:
    return c.cast(c.read(), c.made.dtype, c.tensor().dtype)


# ---- activations ---------------------------------------------------------------------------------------------

_ACTIVATIONS: Final[Mapping[str, str]] = {
    "relu": "Relu", "sigmoid": "Sigmoid", "tanh": "Tanh", "softrelu": "Softplus", "softsign": "Softsign",
}  # fmt: skip


def activation(c: Context) -> str:
    kind = c.node.attrs.get("act_type", "")
    if kind not in _ACTIVATIONS:
        raise Unfit(Why.ATTRIBUTE, f"act_type is {kind!r}; allowed: {', '.join(_ACTIVATIONS)}")
    return c.emit(_ACTIVATIONS[kind], c.read())


def _leaky(c: Context) -> str:
    return c.emit("LeakyRelu", c.read(), alpha=c.node.number("slope", 0.25))


def _rrelu(c: Context) -> str:
    """In inference the slope is the mean of those that training draws."""
    bounds = c.node.number("lower_bound", 0.125), c.node.number("upper_bound", 0.334)
    return c.emit("LeakyRelu", c.read(), alpha=sum(bounds) / 2)


def _elu(c: Context) -> str:
    return c.emit("Elu", c.read(), alpha=c.node.number("slope", 0.25))


def _prelu(c: Context) -> str:
    slope, sides = c.weight(1), c.shape(1)
    if sides != (1,):  # ONNX aligns shapes at their ends, MXNet has one slope for each channel
        slope = c.reshape(slope, (*sides, *(1,) * (c.rank() - 2)), sides)
    return c.emit("PRelu", c.read(), slope)


def _gelu(c: Context) -> str:
    """``leaky_relu-inl.h``: x * (1 + erf(x / sqrt(2))) / 2; with a division ONNX Runtime makes one operator of it."""
    x = c.read()
    inner = c.emit("Erf", c.emit("Div", x, c.number(math.sqrt(2))))
    return c.emit("Mul", c.emit("Mul", x, c.emit("Add", inner, c.number(1))), c.number(0.5))


_FAMILY: Final[Mapping[str, Callable[[Context], str]]] = {
    "leaky": _leaky, "prelu": _prelu, "elu": _elu, "selu": _unary("Selu"), "gelu": _gelu, "rrelu": _rrelu,
}  # fmt: skip


def leaky_relu(c: Context) -> str:
    kind = c.node.attrs.get("act_type", "leaky")
    if kind not in _FAMILY:
        raise Unfit(Why.ATTRIBUTE, f"act_type is {kind!r}; allowed: {', '.join(_FAMILY)}")
    return _FAMILY[kind](c)


# ---- several tensors -----------------------------------------------------------------------------------------


def _binary(kind: str) -> Callable[[Context], str]:
    return lambda c: c.emit(kind, c.read(0), c.read(1))


def product(c: Context) -> str:
    """X times ``hard_sigmoid`` of x with ONNX's slope and offset is ``HardSwish``."""
    first, second = c.node.inputs[:2]
    for x, gate in ((first, second), (second, first)):
        node = c.builder.model.graph[gate.name]
        if node.op == "hard_sigmoid" and node.inputs[0] == x and _is_of_hard_swish(node):
            return c.emit("HardSwish", c.read(0 if x == first else 1))
    return c.emit("Mul", c.read(0), c.read(1))


def _is_of_hard_swish(node: Node) -> bool:
    return math.isclose(node.number("alpha", 0.2), 1 / 6, rel_tol=1e-6) and node.number("beta", 0.5) == 0.5


def _scalar(kind: str, *, turned: bool = False) -> Callable[[Context], str]:
    """An operation on a tensor and ``scalar``, which is the first operand where ``turned``."""

    def lower(c: Context) -> str:
        operands = [c.read(), c.number(c.node.number("scalar", 0.0))]
        return c.emit(kind, *(operands[::-1] if turned else operands))

    return lower


def _modulo(c: Context, dividend: str, divisor: str) -> str:
    """``mshadow_op.h``: the rest has the divisor's sign, as in Python; ONNX's ``Mod`` does so for integers alone."""
    if np.issubdtype(c.tensor().dtype, np.integer):
        return c.emit("Mod", dividend, divisor)
    whole = c.emit("Floor", c.emit("Div", dividend, divisor))
    return c.emit("Sub", dividend, c.emit("Mul", whole, divisor))


def _guarded_modulo(c: Context, dividend: str, divisor: str) -> str:
    """As MXNet, 0 where the divisor is 0."""
    none = c.emit("Equal", divisor, c.number(0))
    rest = _modulo(c, dividend, c.emit("Where", none, c.number(1), divisor))
    return c.emit("Where", none, c.number(0), rest)


def modulo(c: Context) -> str:
    return _guarded_modulo(c, c.read(0), c.read(1))


def modulo_scalar(c: Context) -> str:
    x, scalar = c.read(), c.node.number("scalar", 1.0)
    return _modulo(c, x, c.number(scalar)) if scalar else c.emit("Mul", x, c.number(0))


def rmodulo_scalar(c: Context) -> str:
    return _guarded_modulo(c, c.number(c.node.number("scalar", 1.0)), c.read())


def _compared(kind: str, *, negated: bool = False, scalar: bool = False) -> Callable[[Context], str]:
    """A comparison, whose result MXNet holds as 0 and 1 in the type of what it compares."""

    def lower(c: Context) -> str:
        other = c.number(c.node.number("scalar", 0.0)) if scalar else c.read(1)
        found = c.emit(kind, c.read(), other)
        return c.cast(c.emit("Not", found) if negated else found, c.made.dtype)

    return lower


def _logical(kind: str, *, scalar: bool = False) -> Callable[[Context], str]:
    def lower(c: Context) -> str:
        one = c.emit("Cast", c.read(), to=9)
        other = c.constant(c.node.number("scalar", 0.0) != 0, np.bool_) if scalar else c.emit("Cast", c.read(1), to=9)
        return c.cast(c.emit(kind, one, other), c.made.dtype)

    return lower


def total(c: Context) -> str:
    return c.emit("Sum", *c.reads())


def where(c: Context) -> str:
    condition, sides = c.emit("Cast", c.read(0), to=9), c.shape(0)
    if len(sides) < c.rank(1):  # one for each row
        condition = c.reshape(condition, (*sides, *(1,) * (c.rank(1) - 1)))
    return c.emit("Where", condition, c.read(1), c.read(2))


def label_free(c: Context) -> str:
    """Losses, which in inference give what they are fed."""
    return c.emit("Sigmoid", c.read()) if OWN_NAME.get(c.node.op, c.node.op).startswith("Logistic") else identity(c)


_SAME_NAME: Final = (
    "relu Relu, sigmoid Sigmoid, tanh Tanh, exp Exp, log Log, sqrt Sqrt, abs Abs, negative Neg, floor Floor, "
    "ceil Ceil, sign Sign, erf Erf, sin Sin, cos Cos, tan Tan, arcsin Asin, arccos Acos, arctan Atan, sinh Sinh, "
    "cosh Cosh, arcsinh Asinh, arccosh Acosh, arctanh Atanh, softsign Softsign, reciprocal Reciprocal"
)
_ARITHMETIC: Final = {
    "Add": "elemwise_add _grad_add broadcast_add",
    "Sub": "elemwise_sub broadcast_sub",
    "Div": "elemwise_div broadcast_div",
    "Max": "_maximum broadcast_maximum",
    "Min": "_minimum broadcast_minimum",
    "Pow": "_power broadcast_power",
}
_COMPARISONS: Final = {
    "equal": ("Equal", False),
    "not_equal": ("Equal", True),
    "greater": ("Greater", False),
    "greater_equal": ("GreaterOrEqual", False),
    "lesser": ("Less", False),
    "lesser_equal": ("LessOrEqual", False),
}

ROWS: Final[Rows] = {
    **rows_of("_copy BlockGrad make_loss MakeLoss Dropout", identity),
    **rows_of(
        "LinearRegressionOutput MAERegressionOutput SVMOutput LogisticRegressionOutput IdentityAttachKLSparseReg",
        label_free,
    ),
    **{pair.split()[0]: Row(_unary(pair.split()[1])) for pair in _SAME_NAME.split(", ")},
    "rsqrt": Row(rsqrt),
    "cbrt": Row(cbrt),
    "square": Row(square),
    "round": Row(rounded),
    "rint": Row(rint),
    **rows_of("fix trunc", truncated),
    "log2": Row(_log(2)),
    "log10": Row(_log(10)),
    "log1p": Row(log1p),
    "expm1": Row(expm1),
    "logical_not": Row(logical_not),
    "hard_sigmoid": Row(hard_sigmoid),
    "clip": Row(clip),
    "smooth_l1": Row(smooth_l1),
    **rows_of("Cast amp_cast", cast),
    "Activation": Row(activation),
    "LeakyReLU": Row(leaky_relu),
    **{op: Row(_binary(kind)) for kind, ops in _ARITHMETIC.items() for op in ops.split()},
    **rows_of("elemwise_mul broadcast_mul", product),
    "_plus_scalar": Row(_scalar("Add")),
    "_minus_scalar": Row(_scalar("Sub")),
    "_rminus_scalar": Row(_scalar("Sub", turned=True)),
    "_mul_scalar": Row(_scalar("Mul")),
    "_div_scalar": Row(_scalar("Div")),
    "_rdiv_scalar": Row(_scalar("Div", turned=True)),
    "_power_scalar": Row(_scalar("Pow")),
    "_rpower_scalar": Row(_scalar("Pow", turned=True)),
    "_maximum_scalar": Row(_scalar("Max")),
    "_minimum_scalar": Row(_scalar("Min")),
    **rows_of("_mod broadcast_mod", modulo),
    "_mod_scalar": Row(modulo_scalar),
    "_rmod_scalar": Row(rmodulo_scalar),
    **{f"broadcast_{name}": Row(_compared(kind, negated=n)) for name, (kind, n) in _COMPARISONS.items()},
    **{f"_{name}": Row(_compared(kind, negated=n)) for name, (kind, n) in _COMPARISONS.items()},
    **{f"_{name}_scalar": Row(_compared(kind, negated=n, scalar=True)) for name, (kind, n) in _COMPARISONS.items()},
    **{f"broadcast_logical_{kind.lower()}": Row(_logical(kind)) for kind in ("And", "Or", "Xor")},
    **{f"_logical_{kind.lower()}": Row(_logical(kind)) for kind in ("And", "Or", "Xor")},
    **{f"_logical_{kind.lower()}_scalar": Row(_logical(kind, scalar=True)) for kind in ("And", "Or", "Xor")},
    "add_n": Row(total),
    "where": Row(where),
}
