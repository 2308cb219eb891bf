"""Small networks through the whole pipeline: int8 in stock MXNet is as close to float as 8 bits allow."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from graphs import CONV1, RELU, assert_same_outputs, bn, build, conv, fc, feeds, numbers, quantized, run
from helpers import SATURATES, TARGETS, assert_close, has_vnni, kernel_params

from mxq.graph.ir import Ref
from mxq.numerics import sqnr_db
from mxq.quant import MXNET, WEIGHT

pytestmark = pytest.mark.kernels

LESS, FEW = 4, 10
"""Without VNNI, weights of convolutions of s8 have even codes alone: so many dB less. More of a layer of 6 inputs."""
CHAINS = {
    # name: lines, SQNR in dB that int8 must reach against float on the calibration batch
    "conv": ((conv("c", "data"), "return c"), 35),
    "conv 3-D": (
        ('v = Reshape(data) shape="(0, 2, 4, 6, 6)"', conv("c", "v", 'kernel="(3, 3, 3)" num_filter="4"'), "return c"),
        35,
    ),
    "depthwise": ((conv("c", "data", 'kernel="(3, 3)" num_filter="8" num_group="8" pad="(1, 1)"'), "return c"), 35),
    "dilated": ((conv("c", "data", 'kernel="(3, 3)" num_filter="8" dilate="(2, 2)" pad="(2, 2)"'), "return c"), 35),
    "grouped stays float": (
        (conv("c", "data", 'kernel="(3, 3)" num_filter="8" num_group="2"'), conv("d", "c"), "return d"),
        35,
    ),
    "conv bn relu": ((conv("c", "data"), bn("b", "c"), "r = Activation(b) " + RELU, "return r"), 33),
    "conv leaky": (
        (conv("c", "data"), 'r = LeakyReLU(c) act_type="leaky" slope="0.1"', conv("d", "r"), "return d"),
        33,
    ),
    "conv gelu": ((conv("c", "data"), 'r = LeakyReLU(c) act_type="gelu"', conv("d", "r"), "return d"), 33),
    "conv sigmoid": ((conv("c", "data"), 'r = Activation(c) act_type="sigmoid"', conv("d", "r"), "return d"), 33),
    "residual": (
        (
            conv("p", "data"),
            "q = Activation(p) " + RELU,
            conv("c", "q"),
            "s = elemwise_add(c, q)",
            "r = Activation(s) " + RELU,
            conv("e", "r"),
            "return e",
        ),
        33,
    ),
    "residual of its own data": (
        (conv("y", "data"), conv("c", "y"), "s = elemwise_add(c, y)", "r = Activation(s) " + RELU, "return r"),
        30,
    ),
    "same summand twice": ((conv("c", "data"), "s = elemwise_add(c, c)", conv("e", "s"), "return e"), 33),
    "sum leaky": (
        (
            conv("c", "data"),
            conv("d", "c"),
            "s = elemwise_add(d, c)",
            'r = LeakyReLU(s) act_type="leaky" slope="0.1"',
            conv("e", "r"),
            "return e",
        ),
        32,
    ),
    "sum relu6": (
        (
            conv("c", "data"),
            conv("d", "c"),
            "s = elemwise_add(d, c)",
            'r = clip(s) a_min="0" a_max="6"',
            conv("e", "r"),
            "return e",
        ),
        32,
    ),
    "sum clip": (
        (
            conv("c", "data"),
            conv("d", "c"),
            "s = elemwise_add(d, c)",
            'r = clip(s) a_min="0" a_max="0.5"',
            conv("e", "r"),
            "return e",
        ),
        32,
    ),
    "add of two relus": (
        (
            conv("c", "data"),
            "r = Activation(c) " + RELU,
            conv("d", "data"),
            "q = Activation(d) " + RELU,
            "s = elemwise_add(r, q)",
            conv("e", "s"),
            "return e",
        ),
        33,
    ),
    "add of s8 and u8": (
        (
            conv("c", "data"),
            "r = Activation(c) " + RELU,
            conv("d", "data"),
            "x = Flatten(r)",
            "y = Flatten(d)",
            "s = elemwise_add(x, y)",
            fc("f", "s"),
            "return f",
        ),
        33,
    ),
    "max pool": (
        (
            conv("c", "data"),
            'p = Pooling(c) kernel="(3, 3)" stride="(2, 2)" pool_type="max" pooling_convention="full"',
            conv("e", "p"),
            "return e",
        ),
        33,
    ),
    "avg pool": (
        (
            conv("c", "data"),
            'p = Pooling(c) kernel="(2, 2)" stride="(2, 2)" pool_type="avg"',
            conv("e", "p"),
            "return e",
        ),
        31,
    ),
    "avg pool, full": (
        (
            conv("c", "data"),
            'p = Pooling(c) kernel="(3, 3)" stride="(2, 2)" pad="(1, 1)" pool_type="avg" pooling_convention="full"',
            conv("e", "p"),
            "return e",
        ),
        33,
    ),
    "global pool": (
        (
            conv("c", "data"),
            "r = Activation(c) " + RELU,
            'p = Pooling(r) global_pool="True" kernel="(1, 1)" pool_type="avg"',
            fc("f", "p"),
            "return f",
        ),
        33,
    ),
    "concat": (
        (
            conv("c", "data"),
            "r = Activation(c) " + RELU,
            conv("d", "data"),
            'k = Concat(r, d, r) dim="1" num_args="3"',
            conv("e", "k"),
            "return e",
        ),
        32,
    ),
    "concat of rows": (
        (conv("c", "data"), conv("d", "data"), 'k = Concat(c, d) dim="2" num_args="2"', conv("e", "k"), "return e"),
        32,
    ),
    "concat from the end": (
        (conv("c", "data"), conv("d", "data"), 'k = Concat(c, d) dim="-3" num_args="2"', conv("e", "k"), "return e"),
        32,
    ),
    "fc": ((fc("f", "data"), "return f"), 38),
    "fc relu fc": ((fc("f", "data"), "r = Activation(f) " + RELU, fc("g", "r"), "return g"), 35),
    "fc leaky fc": ((fc("f", "data"), 'r = LeakyReLU(f) act_type="leaky" slope="0.2"', fc("g", "r"), "return g"), 35),
    "fc elu fc": ((fc("f", "data"), 'r = LeakyReLU(f) act_type="elu" slope="1"', fc("g", "r"), "return g"), 35),
    "fc sigmoid fc": ((fc("f", "data"), 'r = Activation(f) act_type="sigmoid"', fc("g", "r"), "return g"), 35),
    "fc tanh fc": ((fc("f", "data"), 'r = Activation(f) act_type="tanh"', fc("g", "r"), "return g"), 35),
    "fc abs fc": ((fc("f", "data"), "r = abs(f)", fc("g", "r"), "return g"), 35),
    "fc clip fc": ((fc("f", "data"), 'r = clip(f) a_min="0" a_max="0.5"', fc("g", "r"), "return g"), 35),
    "fc softrelu": ((fc("f", "data"), 'r = Activation(f) act_type="softrelu"', "return r"), 35),
    "fc gelu": ((fc("f", "data"), 'r = LeakyReLU(f) act_type="gelu"', "return r"), 35),
    "fc inner axes": ((fc("f", "data", 'num_hidden="8" flatten="False"'), fc("g", "f"), "return g"), 35),
    "shared weight": (
        (
            f'c = Convolution(data, w_weight) no_bias="True" {CONV1}',
            f'd = Convolution(c, w_weight) no_bias="True" {CONV1}',
            "return d",
        ),
        33,
    ),
}


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", CHAINS)
def test_int8_is_close_to_float(name, target):
    lines, bar = CHAINS[name]
    model = build(*lines)
    found = quantized(model, target=target)
    less = 0 if has_vnni(target) else FEW if name == "fc inner axes" else LESS
    assert_same_outputs(model, found.prepared.fused, rtol=1e-5, atol=1e-5)
    assert sqnr_db(run(model)[0], numbers(found.model, target)[0]) > bar - less


@pytest.mark.parametrize("name", CHAINS)
def test_the_report_tells_how_each_tensor_is_coded(name):
    """Type and range of every int8 tensor, as the kernels hand them out."""
    found = quantized(build(*CHAINS[name][0]))
    tensors = dict(found.report.tensors)
    taps = [Ref(tensor, i) for tensor in tensors for i in range(3)]
    values = iter(run(found.model, taps=tuple(taps))[len(found.model.graph.heads) :])
    for tensor, record in tensors.items():
        codes, low, high = next(values), next(values), next(values)
        assert codes.dtype == record.dtype, tensor
        written, held = max(-record.min, record.max), max(-low.item(), high.item())
        assert held == pytest.approx(written, rel=1e-6), tensor


@pytest.mark.parametrize(
    "name", ["residual", "concat", "add of two relus", "add of s8 and u8", "max pool", "conv leaky"]
)
def test_int8_is_close_to_float_without_calibration(name):
    model = build(*CHAINS[name][0])
    found = quantized(model, calib_mode="none")
    assert not [a for n in found.model.graph for a in n.attrs if "calib_range" in a]
    assert sqnr_db(run(model)[0], run(found.model)[0]) > (26 if SATURATES else 30)


def test_one_convolution_equals_the_oracle():
    """Data, weights and result on their int8 grids, in numpy: equal up to one step of the result."""
    model = build(conv("c", "data", CONV1), "return c")
    found = quantized(model)
    x, w, b = feeds()["data"], model.args["c_weight"], model.args["c_bias"]
    fake_w = MXNET.covering(WEIGHT, w).fake(w)
    fake_x = kernel_params(np.abs(x).max(), "int8").fake(x)
    exact = np.einsum("nihw,oi->nohw", fake_x, fake_w[:, :, 0, 0]) + b.reshape(1, -1, 1, 1)
    span = found.thresholds.range("c").absmax
    assert_close(run(found.model)[0], kernel_params(span, "int8").fake(exact), rtol=0, atol=1.01 * span / 127.5)


class TestTeeth:
    """A wrong int8 graph misses the bars above by far."""

    def spoiled(self, chain: str, name: str, change) -> float:
        """SQNR in dB of the int8 network of `CHAINS` with ``change`` applied to its node ``name``."""
        model = build(*CHAINS[chain][0])
        result = quantized(model).model
        bad = result.with_graph(result.graph.replace({name: (change(result.graph[name]),)}))
        return sqnr_db(run(model)[0], run(bad)[0])

    @pytest.mark.parametrize("factor", [0.5, 16])
    def test_a_wrong_range(self, factor):
        def change(node):
            return node.with_attrs(
                **{k: repr(factor * float(node.attrs[k])) for k in ("min_calib_range", "max_calib_range")}
            )

        assert self.spoiled("residual", "data_quantize", change) < 25

    def test_the_wrong_summand(self):
        def change(node):
            wrong = tuple(replace(r, name="data_quantize") for r in (node.inputs[3], *node.inputs[-2:]))
            return replace(node, inputs=(*node.inputs[:3], wrong[0], *node.inputs[4:6], *wrong[1:]))

        assert self.spoiled("residual", "quantized_r", change) < 15

    def test_a_lost_activation(self):
        def change(node):
            inner = node.subgraphs[0]
            linear = replace(inner, nodes=inner.nodes[:-1], heads=(inner.nodes[-2].out,))
            return replace(node.with_attrs(with_act="false"), subgraphs=(linear,))

        assert self.spoiled("conv leaky", "quantized_r", change) < 15

    def test_ranges_of_the_operands_swapped(self):
        def change(node):
            ends = node.inputs[-4:]
            return replace(node, inputs=(*node.inputs[:-4], *ends[2:], *ends[:2]))

        model = build(
            conv("c", "data"),
            conv("d", "data"),
            '_4x = _mul_scalar(d) scalar="4"',
            "s = elemwise_add(c, _4x)",
            conv("e", "s"),
            "return e",
        )
        result = quantized(model).model
        name = next(n.name for n in result.graph.operators if n.flag("with_sum"))
        bad = result.with_graph(result.graph.replace({name: (change(result.graph[name]),)}))
        assert sqnr_db(run(model)[0], run(result)[0]) > 30
        assert sqnr_db(run(model)[0], run(bad)[0]) < 15
