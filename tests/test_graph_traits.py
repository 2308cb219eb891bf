"""Traits: every claim of the table, held against what MXNet computes of random data, and the names that it has."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, fields
from functools import cache

import mxnet as mx
import numpy as np
import pytest
from graphs import VERSION

from mxq.errors import RuntimeFailure
from mxq.graph.ir import VARIABLE, Array, Graph, Model, Node, Ref
from mxq.graph.operator_names import OWN_NAME
from mxq.graph.ranks import rank_of
from mxq.graph.serde import read_text
from mxq.graph.traits import TABLE, UNKNOWN, Arithmetic, Operand, Traits, operators, traits_of
from mxq.runtime import MxnetRunner
from mxq.runtime.operator_registry import REGISTRY

SHAPE = (2, 4, 3, 5)
ATTRS = read_text(f"{VERSION}\nx = null\nreturn x").attrs


@dataclass(frozen=True)
class Case:
    """An operator with attributes, the shapes of its data, and its other inputs."""

    op: str
    attrs: dict[str, str] = field(default_factory=dict)
    shapes: Sequence[tuple[int, ...]] = (SHAPE,)
    others: Sequence[Array | tuple[int, ...]] = ()
    types: Sequence[str] = ()

    def __str__(self) -> str:
        return " ".join([self.op, *self.attrs.values()])

    @property
    def node(self) -> Node:
        inputs = tuple(Ref(f"in{i}") for i in range(len(self.shapes) + len(self.others)))
        return Node("y", self.op, self.attrs, inputs)

    @property
    def traits(self) -> Traits:
        return traits_of(self.node)

    def data(self, seed: int = 0) -> list[Array]:
        rng = np.random.default_rng(seed)
        return [rng.normal(0, 2, shape).astype(np.float32) for shape in self.shapes]

    def extra(self) -> list[Array]:
        """Parameters are positive, as variances have to be."""
        rng = np.random.default_rng(7)
        made = (rng.uniform(0.2, 1.5, o).astype(np.float32) if isinstance(o, tuple) else o for o in self.others)
        return list(made)

    def run(self, data: Sequence[Array], others: Sequence[Array] | None = None, outputs: int = 1) -> list[Array]:
        """What MXNet makes of it."""
        node, arrays = self.node, [*data, *(self.extra() if others is None else others)]
        variables = [Node(r.name, VARIABLE) for r in node.inputs]
        heads = tuple(Ref("y", i) for i in range(outputs))
        given = {r.name: a for r, a in zip(node.inputs, arrays, strict=True)}
        fed = {ref.name for ref in node.inputs[: len(data)]}
        model = Model(Graph((*variables, node), heads, ATTRS), {k: v for k, v in given.items() if k not in fed})
        return [np.array(a) for a in MxnetRunner().compile(model)({k: given[k] for k in fed})]

    def y(self, data: Sequence[Array], others: Sequence[Array] | None = None) -> Array:
        return self.run(data, others)[0]


def one(op: str, *attrs: dict[str, str], **more: object) -> list[Case]:
    return [Case(op, a, **more) for a in attrs or ({},)]  # type: ignore[arg-type]


C = (SHAPE[1],)
POOLS = [{"kernel": "(2, 2)", "pool_type": kind} for kind in ("max", "avg", "sum")]
LABEL = np.ones(SHAPE, np.float32)
CODES = np.random.default_rng(3).integers(-127, 128, SHAPE).astype(np.int8)
LOW, HIGH = np.array([-2.0], np.float32), np.array([2.0], np.float32)
RANGES = {"min_calib_range": "-2.0", "max_calib_range": "2.0"}

CASES: dict[str, list[Case]] = {
    "Activation": one("Activation", *({"act_type": k} for k in ("relu", "sigmoid", "tanh", "softrelu", "softsign"))),
    "LeakyReLU": [
        *one("LeakyReLU", *({"act_type": k} for k in ("leaky", "elu", "selu", "gelu"))),
        Case("LeakyReLU", {"act_type": "prelu"}, others=[C]),
    ],
    "clip": one("clip", {"a_min": "0", "a_max": "6"}, {"a_min": "-1", "a_max": "1"}, {"a_min": "-3", "a_max": "-1"}),
    "Cast": one("Cast", {"dtype": "float64"}, {"dtype": "float16"}),
    "amp_cast": one("amp_cast", {"dtype": "float16"}),
    "Dropout": one("Dropout", {"p": "0.5"}),
    "Pooling": one("Pooling", *POOLS, {"pool_type": "avg", "global_pool": "True", "kernel": "(1, 1)"}),
    "_contrib_AdaptiveAvgPooling2D": one("_contrib_AdaptiveAvgPooling2D", {"output_size": "(2, 2)"}),
    "_contrib_BilinearResize2D": one("_contrib_BilinearResize2D", {"height": "6", "width": "7"}),
    "UpSampling": one("UpSampling", {"scale": "2", "sample_type": "nearest", "num_args": "1"}),
    "Reshape": one("Reshape", {"shape": "(0, -1)"}, {"shape": "(-1, 2)", "reverse": "True"}),
    "_np_reshape": one("_np_reshape", {"newshape": "(2, -1)"}),
    "_npx_reshape": one("_npx_reshape", {"newshape": "(2, -1)"}),
    "expand_dims": one("expand_dims", {"axis": "1"}),
    "squeeze": one("squeeze", {}, shapes=((2, 1, 3),)),
    "slice": one("slice", {"begin": "(0, 1)", "end": "(1, 3)"}),
    "slice_axis": one("slice_axis", {"axis": "1", "begin": "1", "end": "3"}),
    "SliceChannel": one("SliceChannel", {"num_outputs": "2"}, {"num_outputs": "4", "squeeze_axis": "True"}),
    "transpose": one("transpose", {"axes": "(0, 2, 3, 1)"}, {}),
    "SwapAxis": one("SwapAxis", {"dim1": "1", "dim2": "2"}),
    "reverse": one("reverse", {"axis": "(1,)"}),
    "depth_to_space": one("depth_to_space", {"block_size": "2"}),
    "space_to_depth": one("space_to_depth", {"block_size": "2"}, shapes=((2, 4, 6, 4),)),
    "Concat": one("Concat", {"dim": "1", "num_args": "2"}, {"dim": "2", "num_args": "2"}, shapes=(SHAPE, SHAPE)),
    "stack": one("stack", {"axis": "1", "num_args": "2"}, shapes=(SHAPE, SHAPE)),
    "add_n": one("add_n", {"num_args": "3"}, shapes=(SHAPE, SHAPE, SHAPE)),
    "tile": one("tile", {"reps": "(2, 1, 1, 1, 1)"}),
    "repeat": one("repeat", {"repeats": "2", "axis": "1"}, {"repeats": "2"}),
    "broadcast_axis": one("broadcast_axis", {"axis": "1", "size": "3"}, shapes=((2, 1, 3),)),
    "broadcast_to": one("broadcast_to", {"shape": "(2, 3, 3)"}, shapes=((2, 1, 3),)),
    "where": [
        Case("where", shapes=(SHAPE, SHAPE, SHAPE)),
        Case("where", shapes=((2,), SHAPE, SHAPE)),
    ],
    "slice_like": one("slice_like", {"axes": "(2, 3)"}, others=[(1, 1, 2, 2)]),
    "broadcast_like": one("broadcast_like", shapes=((2, 1, 3, 1),), others=[SHAPE]),
    "reshape_like": one("reshape_like", others=[(4, 30)]),
    **{op: one(op, shapes=(), others=[SHAPE]) for op in ("zeros_like", "ones_like", "shape_array", "size_array")},
    "_contrib_arange_like": one("_contrib_arange_like", {"axis": "1"}, shapes=(), others=[SHAPE]),
    "BatchNorm": [
        Case("BatchNorm", {"fix_gamma": "False"}, others=[C, C, C, C]),
        Case("BatchNorm", {"fix_gamma": "False", "axis": "3"}, others=[(5,)] * 4),
    ],
    "BatchNorm_v1": one("BatchNorm_v1", {"fix_gamma": "False"}, others=[C, C, C, C]),
    "_contrib_SyncBatchNorm": one("_contrib_SyncBatchNorm", {"fix_gamma": "False", "key": "k"}, others=[C, C, C, C]),
    "_contrib_BatchNormWithReLU": one("_contrib_BatchNormWithReLU", {"fix_gamma": "False"}, others=[C, C, C, C]),
    "LayerNorm": [Case("LayerNorm", others=[(5,), (5,)]), Case("LayerNorm", {"axis": "1"}, others=[C, C])],
    "InstanceNorm": one("InstanceNorm", others=[C, C]),
    "GroupNorm": one("GroupNorm", {"num_groups": "2"}, others=[(2,), (2,)]),
    "LRN": one("LRN", {"nsize": "3"}),
    "L2Normalization": one("L2Normalization", *({"mode": mode} for mode in ("instance", "channel", "spatial"))),
    "softmax": one("softmax", {"axis": "-1"}, {"axis": "1"}),
    "SoftmaxActivation": one("SoftmaxActivation", {"mode": "channel"}, {"mode": "instance"}),
    "SoftmaxOutput": one("SoftmaxOutput", shapes=((2, 5),), others=[np.ones(2, np.float32)]),
    **{
        op: one(op, others=[LABEL])
        for op in ("LinearRegressionOutput", "MAERegressionOutput", "LogisticRegressionOutput")
    },
    "SVMOutput": one("SVMOutput", shapes=((2, 5),), others=[np.ones(2, np.float32)]),
    "_arange": one("_arange", {"start": "1", "stop": "7"}, shapes=()),
    **{op: one(op, {"shape": "(2, 3)"}, shapes=()) for op in ("_zeros", "_ones")},
    "_full": one("_full", {"shape": "(2, 3)", "value": "4"}, shapes=()),
    "_eye": one("_eye", {"N": "3"}, shapes=()),
    "_contrib_boolean_mask": one("_contrib_boolean_mask", shapes=((4, 3),), others=[np.float32([1, 0, 1, 0])]),
    "_contrib_quantize_v2": one("_contrib_quantize_v2", {"out_type": "int8"}, {"out_type": "uint8", **RANGES}),
    "_contrib_quantize": one("_contrib_quantize", {"out_type": "int8"}, others=[LOW, HIGH]),
    "_contrib_requantize": one("_contrib_requantize", RANGES, shapes=(), others=[CODES.astype(np.int32), LOW, HIGH]),
    "_contrib_dequantize": one("_contrib_dequantize", shapes=(), others=[CODES, LOW, HIGH]),
    "_contrib_quantized_act": one("_contrib_quantized_act", {"act_type": "relu"}, shapes=(), others=[CODES, LOW, HIGH]),
    "_contrib_quantized_pooling": one("_contrib_quantized_pooling", *POOLS[:2], shapes=(), others=[CODES, LOW, HIGH]),
    "_contrib_quantized_flatten": one("_contrib_quantized_flatten", shapes=(), others=[CODES, LOW, HIGH]),
    "_contrib_quantized_elemwise_add": one(
        "_contrib_quantized_elemwise_add", RANGES, shapes=(), others=[CODES, CODES, LOW, HIGH, LOW, HIGH]
    ),
    "_contrib_quantized_concat": one(
        "_contrib_quantized_concat", {"num_args": "2"}, shapes=(), others=[CODES, CODES, LOW, HIGH, LOW, HIGH]
    ),
    "_contrib_quantized_batch_norm": [
        Case("_contrib_quantized_batch_norm", {"fix_gamma": "False", **RANGES}, (), [CODES, C, C, C, C, LOW, HIGH])
    ],
}  # fmt: skip
"""Operators that ask for attributes or inputs of their own; of the others, `cases` follow from their traits."""

NOT_RUN = {
    **dict.fromkeys((op for op, row in TABLE.items() if row.random), "that it may differ cannot be refuted by running"),
    **dict.fromkeys(
        (op for op, row in TABLE.items() if op.startswith("_sg_mkldnn")),
        "it needs a subgraph, as in test_backends_mxnet_kernels.py"
    ),
    **dict.fromkeys(
        (op for op, row in TABLE.items() if row.learned and op not in CASES),
        "its claim is what MXNet calls its inputs; see test_learned_parameters",
    ),
    **dict.fromkeys(("_cond", "_while_loop"), "it needs subgraphs"),
    **dict.fromkeys(
        ("_npx_nonzero", "_npi_unique", "_npi_delete", "_npi_bincount", "_npi_insert_tensor", "_npi_full_like"),
        "it runs with numpy's semantics alone, which symbols of the runner do not have",
    ),
    **dict.fromkeys(
        ("_contrib_quantized_elemwise_mul", "_contrib_quantize_asym"), "no network that mxq makes has it"
    ),
}  # fmt: skip
"""Rows that are not run -> why."""


def cases(op: str) -> list[Case]:
    """With shapes and attributes in which the traits of ``op`` show."""
    row = TABLE[op]
    if op in CASES:
        return CASES[op]
    if row.operand is Operand.SAME_SHAPE:
        return one(op, shapes=(SHAPE, SHAPE))
    if row.operand is Operand.BROADCAST:
        return [Case(op, shapes=(SHAPE, SHAPE)), Case(op, shapes=(SHAPE, (1, 4, 1, 1)))]
    if row.operand is Operand.SCALAR or row.operand is Operand.DIVIDEND or op.endswith("_scalar"):
        return one(op, {"scalar": "0.75"}, {"scalar": "-1.5"})
    return one(op)


EVERY = [case for op in TABLE if op not in NOT_RUN for case in cases(op)]


def with_trait(name: str, unless: object = False) -> pytest.MarkDecorator:
    """The cases that claim a trait."""
    found = [case for case in EVERY if getattr(case.traits, name) not in (unless, None)]
    assert found, name
    return pytest.mark.parametrize("case", found, ids=str)


def same(found: Array, wanted: Array) -> None:
    assert found.shape == wanted.shape
    np.testing.assert_allclose(found, wanted, rtol=2e-3 if found.dtype == np.float16 else 1e-5, atol=1e-6)


# ---- names ---------------------------------------------------------------------------------------------------


@cache
def own_names() -> dict[str, str]:
    """Every name that MXNet has for an operator -> the operator's own."""
    library = mx.base._LIB  # noqa: SLF001
    size, names = ctypes.c_uint(), ctypes.POINTER(ctypes.c_char_p)()
    mx.base.check_call(library.MXListAllOpNames(ctypes.byref(size), ctypes.byref(names)))
    return {name: _own_name(name) for name in sorted(names[i].decode() for i in range(size.value))}


def _own_name(op: str) -> str:
    handle, library = ctypes.c_void_p(), mx.base._LIB  # noqa: SLF001
    mx.base.check_call(library.NNGetOpHandle(op.encode(), ctypes.byref(handle)))
    name, about, variadic, result = (ctypes.c_char_p() for _ in range(4))
    texts = [ctypes.POINTER(ctypes.c_char_p)() for _ in range(3)]
    where = (name, about, ctypes.c_uint(), *texts, variadic, result)
    mx.base.check_call(library.MXSymbolGetAtomicSymbolInfo(handle, *map(ctypes.byref, where)))
    return name.value.decode()


def test_every_row_is_of_an_operator_by_its_own_name() -> None:
    assert {op: own_names().get(op) for op in TABLE} == {op: op for op in TABLE}


def test_every_alias_that_mxnet_has_is_known() -> None:
    assert dict(OWN_NAME) == {name: own for name, own in own_names().items() if own in TABLE and own != name}


def test_an_alias_has_the_traits_of_its_operator() -> None:
    for alias, op in OWN_NAME.items():
        assert traits_of(Node("y", alias)) == traits_of(Node("y", op))
    assert traits_of(Node("y", "_Plus")).is_same_sum
    assert traits_of(Node("y", "no_such_operator")) is traits_of(Node("y", VARIABLE)) is UNKNOWN


def test_operators_go_by_all_names() -> None:
    found = operators(lambda t: t.identity)
    assert {"_copy", "identity", "BlockGrad", "stop_gradient", "Dropout", "make_loss", "MakeLoss"} <= set(found)


def test_rows_that_are_not_run_say_why() -> None:
    assert NOT_RUN.keys() <= TABLE.keys()
    assert all(NOT_RUN.values())
    assert not NOT_RUN.keys() & CASES.keys()


def test_all_that_draws_is_in_the_table() -> None:
    """Of what MXNet calls random. (``random_pdf`` operators are densities, ``gamma`` is a function.)"""
    words = ("random_", "sample_", "shuffle", "bernoulli", "multinomial", "_npi_normal", "_npi_uniform", "choice")
    drawn = {own for own in own_names().values() if any(word in own for word in words) and "_pdf_" not in own}
    drawn -= {op for op in drawn if op.startswith("_backward")}
    assert drawn <= {op for op, row in TABLE.items() if row.random}


# ---- values and shapes ---------------------------------------------------------------------------------------


def test_traits_imply_others() -> None:
    for case in EVERY:
        traits = case.traits
        assert not traits.pointwise or traits.keeps_shape, case
        assert not traits.keeps_shape or traits.ranked_by == 0, case
        assert not traits.identity or (traits.pointwise and traits.moves and traits.keeps_order), case
        assert not traits.distribution or traits.nonnegative, case


@with_trait("pointwise")
def test_pointwise(case: Case) -> None:
    data, place = case.data(), (1, 2, 0, 3)[: len(case.shapes[0])]
    y, moved = case.y(data), [x.copy() for x in data]
    for x in moved:
        x[place] += 0.5
    changed = case.y(moved) != y
    changed[place] = False
    assert not np.nan_to_num(changed & np.isfinite(y)).any()
    if case.traits.channel_axis in (None, 1):
        same(case.y([x[..., ::-1] for x in data], _turned(case)), y[..., ::-1])


def _turned(case: Case) -> list[Array]:
    """Other inputs, labels as the data."""
    return [o[..., ::-1] if o.shape == SHAPE else o for o in case.extra()]


@with_trait("keeps_shape")
def test_keeps_shape(case: Case) -> None:
    y = case.y(case.data())
    assert all(y.shape == shape for shape in case.shapes)
    assert case.shapes or y.shape == case.extra()[0].shape


@with_trait("ranked_by", None)
def test_ranked_by(case: Case) -> None:
    inputs = [*case.data(), *case.extra()]
    assert case.y(case.data()).ndim == inputs[case.traits.ranked_by or 0].ndim


@with_trait("per_channel")
def test_per_channel(case: Case) -> None:
    data, order = case.data(), [2, 0, 3, 1][: case.shapes[0][1]]
    if len(case.shapes[0]) < 4:
        order = list(range(case.shapes[0][1]))[::-1]
    y = case.y(data)
    assert y.ndim == data[0].ndim
    assert y.shape[1] == data[0].shape[1]
    turned = [o[:, order] if o.shape == SHAPE else o for o in case.extra()]
    same(case.y([x[:, order] for x in data], turned), y[:, order])
    moved = [x.copy() for x in data]
    for x in moved:
        x[:, 1] *= -2
    same(case.y(moved)[:, [0, 2]], y[:, [0, 2]])


@with_trait("channel_axis", None)
def test_channel_axis(case: Case) -> None:
    axis, data = case.traits.channel_axis or 0, case.data()
    y = case.y(data)
    for i, parameter in enumerate(case.extra()):
        assert parameter.shape == (y.shape[axis],)
        moved = case.extra()
        moved[i] = parameter.copy()
        moved[i][2] += 0.5
        places = np.unique(np.nonzero(case.y(data, moved) != y)[axis])
        assert list(places) == [2]


@with_trait("carries_scale")
def test_carries_scale(case: Case) -> None:
    if case.traits.reads_codes:
        return  # its float twin's row is run; the kernels of both, in test_backends_mxnet_kernels.py
    s = np.array([0.25, 2.0, 1.5, 8.0], np.float32)
    s = s[: case.shapes[0][1]] if case.shapes[0][1] <= len(s) else np.resize(s, case.shapes[0][1])
    data = case.data()
    y = case.y(data)
    factors = np.repeat(s, y.shape[1] // len(s)).reshape(1, -1, *[1] * (y.ndim - 2))
    each = [x * s.reshape(1, -1, *[1] * (x.ndim - 2)) for x in data]
    same(case.y(each), y * factors)


@with_trait("identity")
def test_identity(case: Case) -> None:
    data = case.data()
    np.testing.assert_array_equal(case.y(data), data[0])


@with_trait("moves")
def test_moves(case: Case) -> None:
    data = case.data()
    assert np.isin(case.y(data), np.concatenate([x.ravel() for x in data])).all()


@with_trait("keeps_order")
def test_keeps_order(case: Case) -> None:
    data = case.data()
    np.testing.assert_array_equal(case.y(data).ravel(), data[0].ravel())


@with_trait("nonnegative")
def test_nonnegative(case: Case) -> None:
    assert (case.y(case.data()) >= 0).all()


@with_trait("keeps_nonnegative")
def test_keeps_nonnegative(case: Case) -> None:
    data = [np.abs(x) for x in case.data()]
    data[0].ravel()[:3] = 0
    assert (case.y(data) >= 0).all()


@pytest.mark.parametrize(
    ("op", "attrs"),
    [
        ("Activation", {"act_type": "tanh"}),
        ("LeakyReLU", {"act_type": "gelu"}),
        ("clip", {"a_min": "-1", "a_max": "1"}),
        ("_mul_scalar", {"scalar": "-2"}),
        ("_maximum_scalar", {"scalar": "-1"}),
    ],
)
def test_no_sign_is_claimed_where_there_is_none(op: str, attrs: dict[str, str]) -> None:
    case = Case(op, attrs)
    assert not case.traits.nonnegative
    assert (case.y(case.data()) < 0).any()


@with_trait("distribution")
def test_distribution(case: Case) -> None:
    y = case.y(case.data())
    sums = [y.sum(axis) for axis in (-1, 1, tuple(range(1, y.ndim)))]
    assert any(np.allclose(total, 1, atol=1e-5) for total in sums)


# ---- arithmetic ----------------------------------------------------------------------------------------------

MEANING: dict[Arithmetic, Callable[[Array, Array], Array]] = {
    Arithmetic.ADD: np.add,
    Arithmetic.SUBTRACT: np.subtract,
    Arithmetic.MULTIPLY: np.multiply,
    Arithmetic.DIVIDE: np.divide,
    Arithmetic.MODULO: np.mod,
    Arithmetic.MAXIMUM: np.maximum,
    Arithmetic.MINIMUM: np.minimum,
}


def operands(case: Case, data: Sequence[Array]) -> Iterator[Array]:
    scalar = np.float32(case.attrs.get("scalar", "0"))
    yield from {Operand.SCALAR: (data[0], scalar), Operand.DIVIDEND: (scalar, data[0])}.get(case.traits.operand, data)


@with_trait("arithmetic", None)
def test_arithmetic(case: Case) -> None:
    data = case.data()
    first, *others = operands(case, data)
    for other in others:
        first = MEANING[case.traits.arithmetic](first, other)
    same(case.y(data), np.asarray(first, np.float32))


@pytest.mark.parametrize("op", [op for op, row in TABLE.items() if row.operand in (Operand.SAME_SHAPE, Operand.MANY)])
def test_operands_of_one_shape(op: str) -> None:
    attrs = {"num_args": "2"} if TABLE[op].operand is Operand.MANY else {}
    case = Case(op, attrs, shapes=(SHAPE, (1, 4, 1, 1)))
    with pytest.raises(RuntimeFailure):
        case.run(case.data())


# ---- inputs that are no data ---------------------------------------------------------------------------------


@with_trait("shape_input", None)
def test_shape_input(case: Case) -> None:
    others = case.extra()
    np.testing.assert_array_equal(case.y(case.data(), [o * -3 for o in others]), case.y(case.data(), others))


def ports(op: str) -> tuple[str, ...]:
    """What MXNet calls the inputs of an operator."""
    attrs = {
        "RNN": {"mode": "lstm", "state_size": "4", "num_layers": "1"},
        "Embedding": {"input_dim": "3", "output_dim": "3"},
        "_contrib_SparseEmbedding": {"input_dim": "3", "output_dim": "3"},
        "_contrib_quantized_embedding": {"input_dim": "3", "output_dim": "3"},
        "_contrib_quantized_rnn": {"mode": "lstm", "state_size": "4", "num_layers": "1"},
        "LeakyReLU": {"act_type": "prelu"},
        "_contrib_SyncBatchNorm": {"key": "k"},
    }.get(op, {"kernel": "(3, 3)", "num_filter": "4"} if "onv" in op else {"num_hidden": "4"} if "ull" in op else {})
    return REGISTRY.ports(op, attrs).inputs


PRODUCTS = ("dot", "_np_dot", "batch_dot")
"""Of these either input may be a parameter, which only its being one says."""


@pytest.mark.parametrize(
    "op", [op for op, row in TABLE.items() if row.learned and op not in PRODUCTS and not op.startswith("_sg_mkldnn")]
)
def test_learned_parameters(op: str) -> None:
    names = {"weight", "bias", "gamma", "beta", "parameters", "state", "moving_mean", "moving_var"}
    names |= {"state_cell", "moving_inv_var", "aux_moving_mean"}
    row = traits_of(Node("y", op, {"act_type": "prelu"} if op == "LeakyReLU" else {}))
    after = ports(op)[1 if row.data is None else row.data :]
    assert after
    assert all(name in names or name.startswith(("min_", "max_", "data_scale", "data_shift")) for name in after), after


@pytest.mark.parametrize("op", [op for op, row in TABLE.items() if row.variance_input is not None])
def test_variance_input(op: str) -> None:
    assert ports(op)[TABLE[op].variance_input or 0] == "moving_var"


@with_trait("fills")
def test_fills(case: Case) -> None:
    np.testing.assert_array_equal(case.y([]), case.y([]))


@with_trait("sized_by_values")
def test_sized_by_values(case: Case) -> None:
    less, more = (case.y(case.data(), [np.float32(mask)]) for mask in ([1, 0, 0, 0], [1, 1, 0, 1]))
    assert less.shape != more.shape


@with_trait("in_inference", "")
def test_in_inference(case: Case) -> None:
    data = case.data()
    same(case.y(data), Case(case.traits.in_inference, shapes=case.shapes).y(data))


# ---- codes ---------------------------------------------------------------------------------------------------


@with_trait("writes_codes")
def test_writes_codes(case: Case) -> None:
    codes, low, high = case.run(case.data(), outputs=3)
    assert codes.dtype.name in ("int8", "uint8", "int32")
    assert low.size == high.size == 1
    assert low < high


@with_trait("reads_codes")
def test_reads_codes(case: Case) -> None:
    """As it takes integers, it takes no floats, unless it copies them."""
    first, *others = case.extra()
    if case.op == "_contrib_quantized_flatten":
        np.testing.assert_array_equal(case.y([]).ravel(), first.ravel())
        return
    with pytest.raises(RuntimeFailure):
        case.run([], [first.astype(np.float32), *others])


@with_trait("recodes")
def test_recodes(case: Case) -> None:
    back = Case("_contrib_dequantize", shapes=(), others=case.others)
    if case.traits.writes_codes:
        data = [x.clip(0 if case.attrs.get("out_type") == "uint8" else -2, 2) for x in case.data()]
        made = case.run(data, outputs=3)
        wanted = data[0] if data else case.extra()[0] * (2.0 / (2**31 - 1))
        found = Case("_contrib_dequantize", shapes=(), others=made).y([])
        np.testing.assert_allclose(found, wanted, atol=2 / 127)
    else:
        np.testing.assert_allclose(back.y([]), CODES * (2.0 / 127), atol=2 / 127)


# ---- what follows from them ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("lines", "axes"),
    [
        (("y = exp(data)",), None),
        (("f = Flatten(data)", "y = _Plus(f, data)"), 2),
        (('r = reshape(data) shape="(0, -1, 4)"', "y = broadcast_add(data, r)"), None),
        (('r = Reshape(data) shape="(0, -1, 4)"', 'y = Reshape(r) shape="(0, -4, -1, 2)"'), None),
        (('r = Reshape(data) shape="(0, -1, 4)"', "m = Flatten(data)", "y = broadcast_add(m, r)"), 3),
        (('r = Reshape(data) shape="(0, -1, 4)"', "m = Flatten(data)", "y = where(m, r, data)"), 3),
        (('p = Pooling(data) kernel="(3,)"', "y = softmax(p)"), 3),
    ],
)
def test_rank(lines: tuple[str, ...], axes: int | None) -> None:
    assert rank_of(graph_of(*lines), Ref("y")) == axes


def graph_of(*lines: str) -> Graph:
    return read_text("\n".join([VERSION, "data = null", "table = null", *lines, "return y"]))


def test_rank_of_parameters() -> None:
    graph = graph_of("y = broadcast_mul(table, table)")
    assert rank_of(graph, Ref("y"), {"table": np.zeros((1, 2, 3))}) == 3
    assert rank_of(graph, Ref("y")) is None


def test_every_trait_is_described() -> None:
    assert all(f"\n        {each.name}: " in (Traits.__doc__ or "") for each in fields(Traits))
