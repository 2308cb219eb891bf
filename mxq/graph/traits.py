"""What operators of MXNet do to values, shapes and channels: `traits_of` a node, from one table for all that ask.

A trait is a claim about an operator in inference. Below, y = f(x_1, ..., x_n) is its first output and x_1 ... x_n are
its data, which may be (N, C, ...) with channels on axis 1. ``tests/test_graph_traits.py`` runs MXNet to see that each
claim holds. Of an operator that has no row nothing is claimed, and nothing may be concluded.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from enum import Enum
from types import MappingProxyType
from typing import Any, Final

from mxq.graph.ir import Node
from mxq.graph.operator_names import OWN_NAME


class Arithmetic(Enum):
    """What an operator does with two numbers."""

    ADD = "a + b"
    SUBTRACT = "a - b"
    MULTIPLY = "a b"
    DIVIDE = "a / b"
    MODULO = "a mod b"
    MAXIMUM = "the greater of a and b"
    MINIMUM = "the lesser of a and b"


class Operand(Enum):
    """Where the second number comes from."""

    SAME_SHAPE = "a tensor of one shape with the first"
    BROADCAST = "a tensor that is repeated to the shape of the first, or the first to its own"
    SCALAR = "the attribute scalar"
    DIVIDEND = "the tensor; the attribute scalar is the first number"
    MANY = "any number of tensors of one shape"


@dataclass(frozen=True, slots=True)
class Traits:
    """What is known of an operator; see the module for y and x.

    Attributes:
        data: how many of its first inputs are data, parameters of its own follow; None: all are.
        pointwise: y at a place is a function of the data at that place, one and the same for all places of a channel.
        keeps_shape: y has the shape of x_1, as all data have.
        ranked_by: the place of an input with as many axes as y; None where none is known to be.
        per_channel: channel c of y is a function of channel c of each x_i, one and the same for all c; y has as many
            axes and channels.
        channel_axis: the axis along which its parameters are; None where it has none of that kind.
        carries_scale: f(s x_1, ..., s x_n) = s f(x_1, ..., x_n) for positive s, one for each channel.
        identity: y = x_1.
        moves: every value of y is one of the data's, as it is.
        keeps_order: the values of y are those of x_1 in their order, whatever its shape.
        nonnegative: y >= 0.
        keeps_nonnegative: y >= 0 where all data are.
        distribution: y >= 0, and sums to 1 along an axis.
        arithmetic: what it computes of two numbers at a place; None where it is something else.
        operand: the second of these numbers.
        shape_input: the place of the input of which it reads nothing but the shape; None where there is none.
        learned: the parameters that it reads are learned: none is a constant that masks something with an infinity.
        variance_input: the place of the variance whose root it takes; None where there is none.
        reads_codes: x_1 are codes of 8 or 32 bits, not floats.
        writes_codes: y are codes, and the minimum and maximum of their range are its second and third outputs.
        recodes: y holds the values of x_1, up to rounding, as codes or as floats.
        random: two runs may differ.
        fills: y, which has no input, follows from the attributes.
        sized_by_values: the shape of y follows from values, not from shapes.
        in_inference: the operator that gives y of x_1 alone; what else it reads are labels. Empty for most.
    """

    data: int | None = 1
    pointwise: bool = False
    keeps_shape: bool = False
    ranked_by: int | None = None
    per_channel: bool = False
    channel_axis: int | None = None
    carries_scale: bool = False
    identity: bool = False
    moves: bool = False
    keeps_order: bool = False
    nonnegative: bool = False
    keeps_nonnegative: bool = False
    distribution: bool = False
    arithmetic: Arithmetic | None = None
    operand: Operand | None = None
    shape_input: int | None = None
    learned: bool = False
    variance_input: int | None = None
    reads_codes: bool = False
    writes_codes: bool = False
    recodes: bool = False
    random: bool = False
    fills: bool = False
    sized_by_values: bool = False
    in_inference: str = ""

    def places(self, node: Node) -> range:
        """The places of the data among the inputs of ``node``."""
        return range(len(node.inputs) if self.data is None else min(self.data, len(node.inputs)))

    @property
    def is_same_sum(self) -> bool:
        """Whether it adds two tensors of one shape."""
        return self.arithmetic is Arithmetic.ADD and self.operand is Operand.SAME_SHAPE


UNKNOWN: Final = Traits(data=None)
"""Of an operator that has no row."""


# ---- rows ----------------------------------------------------------------------------------------------------

_SHAPED: Final = Traits(keeps_shape=True, ranked_by=0)
_POINTWISE: Final = replace(_SHAPED, pointwise=True, per_channel=True)
_POSITIVE: Final = replace(_POINTWISE, nonnegative=True, keeps_nonnegative=True)
_IDENTITY: Final = replace(
    _POINTWISE, identity=True, moves=True, keeps_order=True, carries_scale=True, keeps_nonnegative=True
)
_NORM: Final = replace(_SHAPED, learned=True)
_BATCH_NORM: Final = replace(_NORM, pointwise=True, channel_axis=1, variance_input=4)
_IMAGE: Final = Traits(per_channel=True, ranked_by=0, carries_scale=True, keeps_nonnegative=True)
_MOVE: Final = Traits(moves=True, keeps_nonnegative=True)
_RESHAPE: Final = replace(_MOVE, keeps_order=True)
_CUT: Final = replace(_MOVE, ranked_by=0)
_LAYER: Final = Traits(learned=True)
_CODES: Final = Traits(reads_codes=True, writes_codes=True)
_OTHER: Final = Traits(data=None)


def _rows(operators: str, base: Traits, **more: Any) -> dict[str, Traits]:
    """One row for each of ``operators``, whose names stand between spaces."""
    return dict.fromkeys(operators.split(), replace(base, **more))


def _arithmetic(
    what: Arithmetic, same: str, broadcast: str, scalar: str, dividend: str = "", *, many: str = ""
) -> dict[str, Traits]:
    """The rows of one operation, by where its operands come from."""
    linear = what in (Arithmetic.ADD, Arithmetic.SUBTRACT, Arithmetic.MAXIMUM, Arithmetic.MINIMUM)
    safe = what in (Arithmetic.ADD, Arithmetic.MULTIPLY, Arithmetic.MAXIMUM, Arithmetic.MINIMUM)
    one, two = replace(_POINTWISE, arithmetic=what), Traits(None, arithmetic=what, keeps_nonnegative=safe)
    alike = replace(_POINTWISE, data=None, arithmetic=what, carries_scale=linear, keeps_nonnegative=safe)
    return {
        **_rows(many, alike, operand=Operand.MANY),
        **_rows(same, alike, operand=Operand.SAME_SHAPE),
        **_rows(broadcast, two, operand=Operand.BROADCAST),
        **_rows(scalar, one, operand=Operand.SCALAR),
        **_rows(dividend, one, operand=Operand.DIVIDEND),
    }


_DISTRIBUTIONS: Final = "uniform normal gamma exponential poisson negative_binomial generalized_negative_binomial"

TABLE: Final[Mapping[str, Traits]] = MappingProxyType(
    {
        # arithmetic
        **_arithmetic(Arithmetic.ADD, "elemwise_add _grad_add", "broadcast_add", "_plus_scalar", many="add_n"),
        **_arithmetic(Arithmetic.SUBTRACT, "elemwise_sub", "broadcast_sub", "_minus_scalar", "_rminus_scalar"),
        **_arithmetic(Arithmetic.MULTIPLY, "elemwise_mul", "broadcast_mul", "_mul_scalar"),
        **_arithmetic(Arithmetic.DIVIDE, "elemwise_div", "broadcast_div", "_div_scalar", "_rdiv_scalar"),
        **_arithmetic(Arithmetic.MODULO, "_mod", "broadcast_mod", "_mod_scalar", "_rmod_scalar"),
        **_arithmetic(Arithmetic.MODULO, "", "_npi_mod", "_npi_mod_scalar", "_npi_rmod_scalar"),
        **_arithmetic(Arithmetic.MAXIMUM, "_maximum", "broadcast_maximum", "_maximum_scalar"),
        **_arithmetic(Arithmetic.MINIMUM, "_minimum", "broadcast_minimum", "_minimum_scalar"),
        # functions of one number
        **_rows("Activation clip log sin cos reciprocal rsqrt", _POINTWISE),
        "LeakyReLU": replace(_POINTWISE, learned=True),
        **_rows("relu abs", _POSITIVE, carries_scale=True),
        **_rows("sigmoid hard_sigmoid exp square", _POSITIVE),
        **_rows("_equal_scalar _not_equal_scalar _greater_scalar _greater_equal_scalar", _POSITIVE),
        **_rows("_lesser_scalar _lesser_equal_scalar", _POSITIVE),
        **_rows("tanh softsign erf sqrt cbrt sign expm1 log1p", _POINTWISE, keeps_nonnegative=True),
        **_rows("ceil floor round rint fix trunc Cast amp_cast", _POINTWISE, keeps_nonnegative=True),
        "negative": replace(_POINTWISE, carries_scale=True),
        # what serves training
        **_rows("_copy BlockGrad make_loss MakeLoss Dropout", _IDENTITY),
        **_rows("LinearRegressionOutput MAERegressionOutput SVMOutput", _IDENTITY, in_inference="_copy"),
        "LogisticRegressionOutput": replace(_POSITIVE, in_inference="sigmoid"),
        # normalisations
        **_rows("BatchNorm BatchNorm_v1 _contrib_SyncBatchNorm", _BATCH_NORM),
        "_contrib_BatchNormWithReLU": replace(_BATCH_NORM, nonnegative=True, keeps_nonnegative=True),
        "InstanceNorm": replace(_NORM, channel_axis=1),
        "LayerNorm": replace(_NORM, channel_axis=-1),
        "GroupNorm": _NORM,  # its parameters are of groups
        **_rows("L2Normalization LRN", _SHAPED, keeps_nonnegative=True),
        **_rows("softmax softmin SoftmaxActivation SoftmaxOutput", _SHAPED, nonnegative=True, distribution=True),
        "log_softmax": _SHAPED,
        # images
        **_rows("Pooling _contrib_AdaptiveAvgPooling2D _contrib_BilinearResize2D", _IMAGE),
        "UpSampling": replace(_OTHER, ranked_by=0),
        # the same values at other places
        **_rows("Reshape _np_reshape _npx_reshape expand_dims squeeze", _RESHAPE),
        "Flatten": replace(_RESHAPE, carries_scale=True),
        **_rows("slice slice_axis SliceChannel transpose SwapAxis reverse depth_to_space space_to_depth", _CUT),
        "Concat": replace(_CUT, data=None),
        "stack": replace(_MOVE, data=None),
        **_rows("tile repeat broadcast_axis broadcast_to", _MOVE),
        "where": replace(_OTHER, ranked_by=1, keeps_nonnegative=True),
        # shapes of other tensors
        **_rows("slice_like broadcast_like", _CUT, shape_input=1),
        "reshape_like": replace(_RESHAPE, shape_input=1),
        **_rows("zeros_like ones_like", _SHAPED, data=0, shape_input=0, nonnegative=True),
        **_rows("shape_array size_array _contrib_arange_like _npi_full_like", Traits(0), shape_input=0),
        # layers
        **_rows("Convolution Convolution_v1 Deconvolution FullyConnected", _LAYER),
        **_rows("Embedding _contrib_SparseEmbedding", _LAYER),
        "_contrib_DeformableConvolution": replace(_LAYER, data=2),
        "_contrib_ModulatedDeformableConvolution": replace(_LAYER, data=3),
        **_rows("RNN dot _np_dot batch_dot", _LAYER, data=None),
        **_rows("_sg_mkldnn_conv _sg_mkldnn_fully_connected", _LAYER, data=None),
        **_rows("_sg_mkldnn_selfatt_qk _sg_mkldnn_selfatt_valatt", _LAYER, data=None),
        # codes
        **_rows("_contrib_quantize _contrib_quantize_v2", Traits(), writes_codes=True, recodes=True),
        "_contrib_requantize": replace(_CODES, recodes=True),
        "_contrib_dequantize": Traits(reads_codes=True, recodes=True),
        **_rows("_contrib_quantized_act _contrib_quantized_pooling", _CODES, carries_scale=True),
        **_rows("_contrib_quantized_flatten _contrib_quantized_elemwise_add", _CODES, carries_scale=True),
        **_rows("_contrib_quantized_concat _contrib_quantized_elemwise_mul", _CODES),
        **_rows("_contrib_quantized_conv _contrib_quantized_fully_connected", _CODES, learned=True),
        "_contrib_quantized_embedding": replace(_CODES, learned=True),
        "_contrib_quantized_batch_norm": replace(_CODES, learned=True, variance_input=4),
        "_contrib_quantize_asym": Traits(recodes=True),
        "_contrib_quantized_rnn": Traits(reads_codes=True, learned=True),
        # what does not follow from shapes, or from its inputs
        **_rows("_arange _zeros _ones _full _eye", Traits(0), fills=True),
        **_rows("_contrib_boolean_mask _npx_nonzero _npi_unique _npi_delete", _OTHER, sized_by_values=True),
        **_rows("_npi_bincount _npi_insert_tensor _cond _while_loop", _OTHER, sized_by_values=True),
        **_rows("Custom _CustomFunction _shuffle", _OTHER, random=True),
        **_rows("_sample_unique_zipfian _sample_multinomial _random_randint", _OTHER, random=True),
        **_rows(" ".join(f"_random_{d} _sample_{d}" for d in _DISTRIBUTIONS.split()), _OTHER, random=True),
        **_rows(" ".join(f"_random_{d}_like" for d in _DISTRIBUTIONS.split()), Traits(0), shape_input=0, random=True),
        **_rows(
            "_npi_bernoulli _npi_choice _npi_exponential _npi_gamma _npi_gumbel _npi_logistic", _OTHER, random=True
        ),
        **_rows("_npi_multinomial _npi_normal _npi_normal_n _npi_pareto _npi_powerd", _OTHER, random=True),
        **_rows("_npi_rayleigh _npi_uniform _npi_uniform_n _npi_weibull", _OTHER, random=True),
        **_rows("_image_random_brightness _image_random_color_jitter _image_random_contrast", _OTHER, random=True),
        **_rows("_image_random_flip_left_right _image_random_flip_top_bottom", _OTHER, random=True),
        **_rows("_image_random_hue _image_random_lighting _image_random_saturation", _OTHER, random=True),
    }
)
"""The traits of each operator with attributes as they are by default, or where these do not matter; see `traits_of`."""

# ---- what attributes decide ----------------------------------------------------------------------------------


def _activation(node: Node, row: Traits) -> Traits:
    kind = node.attrs.get("act_type", "")
    known = kind in ("relu", "sigmoid", "tanh", "softrelu", "softsign")
    positive = kind in ("relu", "sigmoid", "softrelu")
    return replace(row, carries_scale=kind == "relu", nonnegative=positive, keeps_nonnegative=known)


def _leaky_relu(node: Node, row: Traits) -> Traits:
    kind = node.attrs.get("act_type", "leaky")
    row = replace(row, carries_scale=kind in ("leaky", "prelu"), keeps_nonnegative=True)
    return replace(row, per_channel=False, channel_axis=1) if kind == "prelu" else row


def _clip(node: Node, row: Traits) -> Traits:
    low, high = node.number("a_min", -1.0), node.number("a_max", -1.0)
    return replace(row, nonnegative=0 <= low <= high, keeps_nonnegative=high >= 0)


def _dropout(node: Node, row: Traits) -> Traits:
    return replace(_POINTWISE, random=True) if node.attrs.get("mode") == "always" else row


def _of_axis(node: Node, row: Traits) -> Traits:
    return replace(row, channel_axis=node.integer("axis", row.channel_axis or 1))


def _pooling(node: Node, row: Traits) -> Traits:
    if not node.is_channels_first:
        return Traits(ranked_by=0, keeps_nonnegative=True)
    return replace(row, carries_scale=node.attrs.get("pool_type", "max") in ("max", "avg", "sum"))


def _upsampling(node: Node, row: Traits) -> Traits:
    nearest = node.attrs.get("sample_type") == "nearest" and len(node.inputs) == 1
    return replace(_IMAGE, moves=True) if nearest else row


def _slice_channel(node: Node, row: Traits) -> Traits:
    return _MOVE if node.flag("squeeze_axis") else row


def _with_scalar(node: Node, row: Traits) -> Traits:
    """An operation on a tensor and ``scalar``."""
    scalar = node.number("scalar", 0.0)
    positive = {
        Arithmetic.ADD: scalar >= 0,
        Arithmetic.SUBTRACT: scalar <= 0,
        Arithmetic.MULTIPLY: scalar >= 0,
        Arithmetic.DIVIDE: scalar > 0,
        Arithmetic.MAXIMUM: True,
        Arithmetic.MINIMUM: scalar >= 0,
    }
    factor = row.arithmetic is Arithmetic.MULTIPLY or (row.arithmetic is Arithmetic.DIVIDE and scalar != 0)
    always = row.arithmetic is Arithmetic.MAXIMUM and scalar >= 0
    kept = row.arithmetic is not None and positive.get(row.arithmetic, False)
    return replace(row, carries_scale=factor, nonnegative=always, keeps_nonnegative=kept)


_BY_ATTRIBUTES: Final[Mapping[str, Callable[[Node, Traits], Traits]]] = {
    "Activation": _activation,
    "LeakyReLU": _leaky_relu,
    "clip": _clip,
    "Dropout": _dropout,
    **dict.fromkeys(("BatchNorm", "_contrib_BatchNormWithReLU", "LayerNorm"), _of_axis),
    "Pooling": _pooling,
    "UpSampling": _upsampling,
    "SliceChannel": _slice_channel,
    **{op: _with_scalar for op, row in TABLE.items() if row.operand is Operand.SCALAR},
}


# ---- asking --------------------------------------------------------------------------------------------------


def traits_of(node: Node) -> Traits:
    """The traits of an operator with its attributes; `UNKNOWN` for what has no row, and for variables."""
    op = OWN_NAME.get(node.op, node.op)
    row = TABLE.get(op, UNKNOWN)
    if op in _BY_ATTRIBUTES:
        return _BY_ATTRIBUTES[op](node, row)
    if node.flag("quantized"):  # a fused one
        row = replace(row, reads_codes=True, writes_codes=True)
    return replace(row, writes_codes=False) if node.flag("enable_float_output") else row


def operators(which: Callable[[Traits], bool]) -> tuple[str, ...]:
    """The operators, by all of their names, that have traits of that kind with attributes as they are by default."""
    own = [op for op in TABLE if which(traits_of(Node(op, op)))]
    return (*own, *(alias for alias, op in OWN_NAME.items() if op in own))
