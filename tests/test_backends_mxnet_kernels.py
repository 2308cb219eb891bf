"""What the stock int8 kernels of MXNet 1.9.1 compute: every claim of `mxq.backends.mxnet.table`, faults included.

Each test runs one kernel on a hand-written graph. Where a kernel is wrong, the test holds that it still is: when
MXNet is updated and one of these fails, a row of the table can go.
"""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from typing import ClassVar

import mxnet as mx
import numpy as np
import pytest
from graphs import VERSION, feed_graph, graph
from helpers import assert_close, kernel_params

from mxq.errors import MxqError
from mxq.graph.ir import Graph, Model
from mxq.graph.serde import read_text
from mxq.numerics import sqnr_db
from mxq.quant import MXNET, WEIGHT
from mxq.runtime import MxnetRunner

pytestmark = pytest.mark.kernels

GOOD, POOR = 35.0, 25.0
"""SQNR in dB: above `GOOD` a kernel does what float does at 8 bits; below `POOR` something is wrong."""
HALF = 255.5 / 127.5
RNG = np.random.default_rng(0)


def normal(*shape: int, size: float = 1.0) -> np.ndarray:
    return (size * RNG.standard_normal(shape)).astype(np.float32)


X = np.abs(normal(2, 16, 10, 10))
SIGNED = normal(2, 16, 10, 10, size=2)
W, B = normal(16, 16, 3, 3, size=0.1), normal(16, size=0.1)
FLAT, FW, FB = normal(8, 32), normal(12, 32, size=0.2), normal(12, size=0.2)
FW[:, 1::2] = 0  # without VNNI two products are added in 16 bits (`test_saturation`): one of them is zero

RELU = 'Activation({}) act_type="relu"'
LEAKY = 'LeakyReLU({}) act_type="leaky" slope="0.2"'
GELU = 'LeakyReLU({}) act_type="gelu"'
ELU = 'LeakyReLU({}) act_type="elu" slope="1.0"'
SIGMOID = 'Activation({}) act_type="sigmoid"'
TANH = 'Activation({}) act_type="tanh"'
SOFTRELU = 'Activation({}) act_type="softrelu"'
REFUSED = (MxqError, mx.base.MXNetError)
"""What a CHECK in a kernel raises, when the graph is bound or when its result is read."""
CLIP = 'clip({}) a_min="0" a_max="1.0"'


def bounds(low: float, high: float) -> str:
    return f'min_calib_range="{float(low)!r}" max_calib_range="{float(high)!r}"'


def quantizer(name: str, data: str, value: np.ndarray, dtype: str = "") -> str:
    dtype = dtype or ("uint8" if value.min() >= 0 else "int8")
    return f'{name} = _contrib_quantize_v2({data}) out_type="{dtype}" {bounds(value.min(), value.max())}'


@dataclass(frozen=True)
class Result:
    """Float and int8 results of one kernel: ``wanted``, ``got`` (dequantized), ``codes``."""

    wanted: np.ndarray
    got: np.ndarray
    codes: np.ndarray

    @property
    def sqnr(self) -> float:
        return sqnr_db(self.wanted, self.got)


# ---- convolution ---------------------------------------------------------------------------------------------


def conv_graph(act: str, summed: bool, quantized: str, tail: str, attrs: str, *, early: bool = False) -> Graph:
    """A fused convolution over data (and summand), float or, with ``quantized`` attributes, int8.

    ``early``: the activation comes before the sum.
    """
    late = summed and not early
    flags = ['with_sum="true"'] * summed + [f'{"with_postsum_act" if late else "with_act"}="true"'] * bool(act)
    int8 = bool(quantized)
    ranges = ", qd:1, qd:2" + (", qs:1, qs:2" if summed else "") if int8 else ""
    data, summand = ("qd", ", qs") if int8 else ("data", ", s")
    lines = [VERSION, "data = null", "w = null", "b = null", *(["s = null"] * summed), tail]
    lines += [
        f"f = _sg_mkldnn_conv({data}, w, b{summand if summed else ''}{ranges}) {' '.join(flags)} {quantized} {{",
        "d0 = null",
        "w0 = null",
        "b0 = null",
        f"c = Convolution(d0, w0, b0) {attrs}",
    ]
    steps = [("z", act)] * bool(act) + [("a", "elemwise_add({}, s0)")] * summed
    last, lines = "c", [*lines, *["s0 = null"] * summed]
    for name, step in steps if early else reversed(steps):
        lines.append(f"{name} = {step.format(last)}")
        last = name
    lines += [f"return {last}", "}"]
    return read_text(
        "\n".join([*lines, *(["y = _contrib_dequantize(f, f:1, f:2)", "return y, f"] if int8 else ["return f"])])
    )


KERNEL = 'kernel="(3, 3)" num_filter="16" pad="(1, 1)"'


def conv(
    act: str = "",
    summand: np.ndarray | None = None,
    *,
    early: bool = False,
    sum_dtype: str = "",
    widen: float = 1.0,
    low: float | None = None,
    top: float | None = None,
    weight: np.ndarray = W,
    data: np.ndarray = X,
    attrs: str = KERNEL,
) -> Result:
    """Runs conv [+ sum] [+ act] in float and int8, its result written in the range of the float result."""
    arrays = {"data": data, "w": weight, "b": B} | ({} if summand is None else {"s": summand})
    (wanted,) = feed_graph(conv_graph(act, summand is not None, "", "", attrs, early=early), arrays)
    tail = quantizer("qd", "data", data)
    if summand is not None:
        tail += "\n" + quantizer("qs", "s", summand, sum_dtype)
    written = 'quantized="true" ' + bounds(wanted.min() if low is None else low, (top or wanted.max()) * widen)
    net = conv_graph(act, summand is not None, written, tail, attrs, early=early)
    got, codes = feed_graph(net, arrays)
    return Result(wanted, got, codes)


class TestConvolution:
    @pytest.mark.parametrize(
        ("act", "dtype"), [("", np.int8), (RELU, np.uint8), (LEAKY, np.int8), (CLIP, np.uint8)], ids=str
    )
    def test_right_alone(self, act, dtype):
        result = conv(act)
        assert result.codes.dtype == dtype
        assert result.sqnr > GOOD

    @pytest.mark.parametrize(("act", "dtype"), [("", np.int8), (LEAKY, np.int8)], ids=str)
    def test_right_after_an_s8_sum(self, act, dtype):
        result = conv(act, SIGNED)
        assert result.codes.dtype == dtype
        assert result.sqnr > GOOD

    def test_right_with_leaky_relu_before_the_sum(self):
        result = conv(LEAKY, SIGNED, early=True)
        plain = mx.nd.Convolution(*map(mx.nd.array, (X, W, B)), kernel=(3, 3), num_filter=16, pad=(1, 1))
        wanted = mx.nd.LeakyReLU(plain, act_type="leaky", slope=0.2).asnumpy() + SIGNED
        np.testing.assert_allclose(result.wanted, wanted, rtol=1e-5, atol=1e-5)
        assert result.codes.dtype == np.int8
        assert result.sqnr > GOOD

    def test_right_after_a_u8_sum(self):
        result = conv(RELU, np.abs(SIGNED))
        assert result.codes.dtype == np.uint8
        assert result.sqnr > GOOD

    def test_leaky_with_slope_zero_is_written_as_u8(self):
        result = conv('LeakyReLU({}) act_type="leaky" slope="0"')
        assert result.codes.dtype == np.uint8
        assert result.sqnr > GOOD

    @pytest.mark.parametrize("act", [GELU, SIGMOID, TANH, SOFTRELU])
    def test_post_ops_on_scaled_integers_are_wrong(self, act):
        assert conv(act).sqnr < POOR

    def test_a_sum_with_gelu_is_refused(self):
        with pytest.raises(REFUSED, match=r"Check failed: full_conv_param\.postsum_act_param.alg"):
            conv(GELU, SIGNED)

    def test_a_sum_with_clip_is_refused(self):
        with pytest.raises(REFUSED, match=r"Check failed: full_conv_param\.postsum_act_param.alg"):
            conv(CLIP, SIGNED)

    def test_an_s8_summand_under_relu_saturates_at_half(self):
        full, half = conv(RELU, SIGNED), conv(RELU, SIGNED, widen=HALF)
        assert full.codes.dtype == half.codes.dtype == np.uint8
        assert full.codes.max() == half.codes.max() == 127  # what s8 memory holds
        assert half.sqnr > 30
        assert full.sqnr < half.sqnr - 15

    def test_a_u8_summand_without_activation_loses_what_is_negative(self):
        summand = np.abs(SIGNED) / 4
        result = conv("", summand)
        assert result.wanted.min() < -0.5
        assert result.got.min() >= 0
        assert result.sqnr < POOR
        assert conv("", summand, sum_dtype="int8").sqnr > GOOD

    def test_clip_is_the_scale_of_the_result(self):
        """The kernel clips by saturation: it writes in whatever range it is told, above a_max too."""
        result = conv(CLIP, top=2.0)
        assert result.wanted.max() == 1.0
        assert result.got.max() > 1.1
        assert conv(CLIP).got.max() <= 1.0 + 1e-6

    def test_a_negative_minimum_of_u8_costs_resolution(self):
        """The scale comes from the larger of the two bounds, though nothing below zero is written."""
        assert conv(RELU, low=-1.0).codes.max() == 255
        coarse = conv(RELU, low=-40.0)
        assert coarse.codes.dtype == np.uint8
        assert coarse.codes.max() < 40
        assert coarse.sqnr < conv(RELU).sqnr - 10

    def test_clip_is_wrong_once_its_weights_were_written_anew(self):
        """A second initialisation halves the results: parameters must be in place before the first forward."""
        tail, clipped = quantizer("qd", "data", X), 'quantized="true" ' + bounds(0, 1)
        arrays = {"data": X, "w": W, "b": B}
        (wanted,) = feed_graph(conv_graph(CLIP, False, "", "", KERNEL), arrays)
        executable = MxnetRunner().compile(Model(conv_graph(CLIP, False, clipped, tail, KERNEL)))
        assert sqnr_db(wanted, executable(arrays)[0]) > GOOD
        assert sqnr_db(wanted, executable(arrays)[0]) < POOR

    def test_depthwise_is_right(self):
        assert conv(weight=normal(16, 1, 3, 3, size=0.3), attrs=KERNEL + ' num_group="16"').sqnr > GOOD

    @pytest.mark.parametrize("groups", [2, 4, 8])
    def test_groups_of_several_channels_are_wrong(self, groups):
        """A channel's weights are scaled with the maximum of the channel whose index is the group's."""
        attrs = f'{KERNEL} num_group="{groups}"'
        weight = normal(16, 16 // groups, 3, 3, size=0.3) * np.linspace(0.5, 2, 16, dtype=np.float32).reshape(
            -1, 1, 1, 1
        )
        assert conv(weight=weight, attrs=attrs).sqnr < POOR
        alike = weight / np.abs(weight).max(axis=(1, 2, 3), keepdims=True)
        assert conv(weight=alike, attrs=attrs).sqnr > GOOD

    def test_weights_are_scaled_per_channel_by_127_and_a_half(self):
        """One pixel in, the weights' own integers out, up to what the step of the result adds."""
        weight = normal(16, 16, 1, 1) * np.logspace(-1, 1, 16, dtype=np.float32).reshape(-1, 1, 1, 1)
        result = conv(weight=weight, attrs='kernel="(1, 1)" num_filter="16"')
        fake = MXNET.covering(WEIGHT, weight).fake(weight)
        data = kernel_params(X.max(), "uint8").fake(X)
        exact = np.einsum("nihw,oi->nohw", data, fake[:, :, 0, 0]) + B.reshape(1, -1, 1, 1)
        step = np.abs(result.wanted).max() / 127.5
        assert_close(result.got, exact, rtol=0, atol=0.51 * step)
        per_tensor = kernel_params(np.abs(weight).max(), "int8").fake(weight)
        wrong = np.einsum("nihw,oi->nohw", data, per_tensor[:, :, 0, 0]) + B.reshape(1, -1, 1, 1)
        with pytest.raises(AssertionError, match="Not equal"):
            assert_close(result.got, wrong, rtol=0, atol=0.51 * step)


# ---- fully connected -----------------------------------------------------------------------------------------


def fc(act: str = "", *, to_float: bool = False, attrs: str = 'num_hidden="12"') -> Result:
    """Runs fc [+ act] with channel-wise weights in float and int8."""

    def net(data: str, flags: str, ranges: str, tail: str, end: str) -> Graph:
        eltwise = 'with_eltwise="True" ' if act else ""
        return read_text(
            f"{VERSION}\ndata = null\nw = null\nb = null\n{tail}\n"
            f"f = _sg_mkldnn_fully_connected({data}, w, b{ranges}) {eltwise}{flags} {{\n"
            f"d0 = null\nw0 = null\nb0 = null\nc = FullyConnected(d0, w0, b0) {attrs}\n"
            + (f"z = {act.format('c')}\nreturn z\n}}\n" if act else "return c\n}\n")
            + end
        )

    arrays = {"data": FLAT, "w": FW, "b": FB}
    (wanted,) = feed_graph(net("data", "", "", "", "return f"), arrays)
    flags = 'quantized="true" channel_wise_quantize="True" '
    flags += 'enable_float_output="True"' if to_float else bounds(wanted.min(), wanted.max())
    end = "return f, qd" if to_float else "y = _contrib_dequantize(f, f:1, f:2)\nreturn y, f"
    got, codes = feed_graph(net("qd", flags, ", qd:1, qd:2", quantizer("qd", "data", FLAT), end), arrays)
    return Result(wanted, got, codes)


class TestFullyConnected:
    @pytest.mark.parametrize(
        ("act", "dtype"),
        [
            ("", np.int8),
            (RELU, np.uint8),
            (ELU, np.int8),
            (GELU, np.int8),
            ("abs({})", np.uint8),
            (CLIP, np.uint8),
            (SIGMOID, np.uint8),
            (TANH, np.int8),
            (SOFTRELU, np.uint8),
        ],
    )
    def test_right_as_int8(self, act, dtype):
        result = fc(act)
        assert result.codes.dtype == dtype
        assert result.sqnr > GOOD

    @pytest.mark.parametrize("act", ["", RELU, ELU, GELU, "abs({})", CLIP, SIGMOID, TANH, SOFTRELU, LEAKY])
    def test_right_with_float_output(self, act):
        result = fc(act, to_float=True)
        assert result.got.dtype == np.float32
        assert result.sqnr > GOOD

    def test_inner_axes(self):
        assert fc(attrs='num_hidden="12" flatten="False"').sqnr > GOOD

    def test_leaky_is_typed_u8(self):
        """Its result is negative in part, which is lost."""
        result = fc(LEAKY)
        assert result.codes.dtype == np.uint8
        assert result.sqnr < POOR


# ---- what carries int8 ---------------------------------------------------------------------------------------


def carried(line: str, arrays: dict[str, np.ndarray], dtypes: str = "", **params: np.ndarray) -> Result:
    """Runs ``line`` ("y = op(a, b)" over ``arrays``) in float and its ``_contrib_quantized_`` form.

    ``dtypes`` is "u8" to quantize all inputs as uint8, else it follows from their signs.
    """
    head, attrs = line.split(")", 1)
    op, names = head.removeprefix("y = ").split("(")
    inputs = [n.strip() for n in names.split(",")]
    (wanted, *_) = feed_graph(graph(line, "return y"), {**arrays, **params})
    quantizers = [quantizer(f"q_{n}", n, v, dtypes) for n, v in arrays.items()]
    data = [f"q_{n}" if n in arrays else n for n in inputs]
    ranges = [f"q_{n}:{i}" for n in inputs if n in arrays for i in (1, 2)]
    calibrated = bounds(wanted.min(), wanted.max()) if op in ("elemwise_add", "BatchNorm") else ""
    kernel = {"Concat": "concat", "Pooling": "pooling", "Flatten": "flatten", "Activation": "act"}.get(op, op)
    kernel = "batch_norm" if op == "BatchNorm" else kernel
    net = graph(
        *quantizers,
        f"k = _contrib_quantized_{kernel}({', '.join([*data, *ranges])}) {attrs} {calibrated}",
        "y = _contrib_dequantize(k, k:1, k:2)",
        "return y, k",
    )
    got, codes = feed_graph(net, {**arrays, **params})
    return Result(wanted, got, codes)


class TestConcat:
    line = 'y = Concat(a, b) num_args="2" dim="1"'

    def test_u8_stays_u8_and_is_rescaled(self):
        result = carried(self.line, {"a": X, "b": 4 * X})
        assert result.codes.dtype == np.uint8
        assert result.sqnr > GOOD
        assert result.codes[:, :16].max() in range(60, 68)  # a quarter of what "a" alone had

    def test_one_s8_makes_s8(self):
        result = carried(self.line, {"a": X, "b": SIGNED})
        assert result.codes.dtype == np.int8
        assert result.sqnr > GOOD

    @pytest.mark.parametrize("axis", [0, 1, 2, 3])
    def test_every_axis(self, axis):
        assert carried(f'y = Concat(a, b) num_args="2" dim="{axis}"', {"a": X, "b": SIGNED}).sqnr > GOOD

    @pytest.mark.slow
    def test_a_negative_axis_ends_the_process(self):
        program = (
            "import sys; sys.path[:0] = sys.argv[1:]\n"
            "from test_backends_mxnet_kernels import *\n"
            "carried('y = Concat(a, b) num_args=\"2\" dim=\"-1\"', {'a': X, 'b': SIGNED})"
        )
        command = [sys.executable, "-c", program, *sys.path]
        # It reads memory that is not its own, which now and then does no visible harm, or harms so that it hangs.
        assert any(fails(command) for _ in range(4))


def fails(command: list[str]) -> bool:
    """Whether a process does not end well within a time that is ample."""
    try:
        return subprocess.run(command, capture_output=True, timeout=60, check=False).returncode != 0
    except subprocess.TimeoutExpired:
        return True


class TestPooling:
    pool = 'kernel="(3, 3)" stride="(2, 2)"'

    @pytest.mark.parametrize("data", [X, SIGNED], ids=["u8", "s8"])
    @pytest.mark.parametrize(
        "attrs",
        [
            'pool_type="max"',
            'pool_type="max" pad="(1, 1)"',
            'pool_type="max" pooling_convention="full"',
            'pool_type="avg"',
            'pool_type="avg" pad="(1, 1)"',
            'pool_type="avg" pad="(1, 1)" count_include_pad="False"',
            'pool_type="avg" pooling_convention="full" count_include_pad="False"',
        ],
    )
    def test_right_in_the_type_of_its_input(self, data, attrs):
        result = carried(f"y = Pooling(a) {self.pool} {attrs}", {"a": data})
        assert result.codes.dtype == (np.uint8 if data is X else np.int8)
        assert result.sqnr > 30

    def test_over_all(self):
        assert carried('y = Pooling(a) global_pool="True" kernel="(1, 1)" pool_type="avg"', {"a": X}).sqnr > GOOD

    def test_over_all_needs_a_kernel_too(self):
        with pytest.raises(REFUSED, match="kernel_ndims"):
            carried('y = Pooling(a) global_pool="True" pool_type="avg"', {"a": X})

    def test_full_average_counts_beyond_the_padding(self):
        attrs = f'{self.pool} pool_type="avg" pooling_convention="full"'
        assert carried(f"y = Pooling(a) {attrs}", {"a": X}).sqnr < POOR


class TestAddition:
    line = "y = elemwise_add(a, b)"

    @pytest.mark.parametrize(
        ("a", "b", "dtype"),
        [(X, 3 * X, np.uint8), (SIGNED, SIGNED[::-1], np.int8), (X, SIGNED, np.int8)],
        ids=["u8", "s8", "both"],
    )
    def test_right(self, a, b, dtype):
        result = carried(self.line, {"a": a, "b": np.ascontiguousarray(b)})
        assert result.codes.dtype == dtype
        assert result.sqnr > GOOD


class TestActivation:
    def test_relu_of_s8(self):
        result = carried('y = Activation(a) act_type="relu"', {"a": SIGNED})
        assert result.codes.dtype == np.int8
        assert result.codes.min() == 0
        assert result.sqnr > 30  # half of the codes go unused

    def test_relu_of_u8_is_wrong(self):
        """Its codes are taken for s8."""
        result = carried('y = Activation(a) act_type="relu"', {"a": X})
        assert result.codes.dtype == np.int8
        assert result.sqnr < POOR


class TestFlatten:
    @pytest.mark.parametrize("data", [X, SIGNED], ids=["u8", "s8"])
    def test_changes_no_value(self, data):
        result = carried("y = Flatten(a)", {"a": data})
        assert result.codes.shape == (2, 1600)
        fake = kernel_params(np.abs(data).max(), str(result.codes.dtype)).fake(data)
        assert_close(result.got, fake.reshape(2, -1), rtol=1e-6, atol=0)


class TestBatchNorm:
    gamma = RNG.uniform(0.5, 3, 16).astype(np.float32)
    stats: ClassVar = {
        "g": gamma,
        "b": normal(16),
        "m": normal(16),
        "v": RNG.uniform(0.5, 2, 16).astype(np.float32),
    }

    def run(self, fix: str, **changed) -> Result:
        line = f'y = BatchNorm(a, g, b, m, v) eps="1e-05" fix_gamma="{fix}" use_global_stats="True"'
        return carried(line, {"a": SIGNED}, **{**self.stats, **changed})

    def test_right_with_its_own_gamma(self):
        result = self.run("False")
        assert result.codes.dtype == np.int8
        assert result.sqnr > 30

    def test_it_ignores_fix_gamma(self):
        assert self.run("True").sqnr < POOR
        assert self.run("True", g=np.ones_like(self.gamma)).sqnr > 30

    def test_u8_input(self):
        line = 'y = BatchNorm(a, g, b, m, v) eps="1e-05" fix_gamma="False" use_global_stats="True"'
        result = carried(line, {"a": X}, **self.stats)
        assert result.codes.dtype == np.int8
        assert result.sqnr > 30


# ---- quantize and back ---------------------------------------------------------------------------------------


class TestQuantize:
    @pytest.mark.parametrize(("data", "dtype"), [(X, "uint8"), (X, "int8"), (SIGNED, "int8")])
    def test_is_the_oracles(self, data, dtype):
        net = graph(quantizer("q", "a", data, dtype), "y = _contrib_dequantize(q, q:1, q:2)", "return y, q")
        got, codes = feed_graph(net, {"a": data})
        assert codes.dtype == dtype
        assert_close(got, kernel_params(np.abs(data).max(), dtype).fake(data), rtol=1e-6, atol=0)

    def test_what_is_beyond_the_range_saturates(self):
        net = graph(f'q = _contrib_quantize_v2(a) out_type="int8" {bounds(-1, 1)}', "return q")
        (codes,) = feed_graph(net, {"a": np.array([[-5, -1, 0.996, 5]], np.float32)})
        assert codes.tolist() == [[-128, -128, 127, 127]]
