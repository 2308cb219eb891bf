"""Ranges found at run time: right for any batch after any other, whatever its size, and for any weights."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from graphs import CONV1, CONV3, RELU, bn, build, conv, fc, feeds, op_names, quantized, run

from mxq.backends.mxnet.run_time import least_range
from mxq.errors import QuantizeError
from mxq.graph.ir import Model
from mxq.numerics import sqnr_db
from mxq.runtime import MxnetRunner, from_symbol, to_arrays, to_symbol

HEAD = (conv("c", "data"), "r = Activation(c) " + RELU)
DEPTHWISE = CONV3 + ' num_group="8"'
NETS = {
    "conv": (conv("c", "data"), "return c"),
    "no_bias": (conv("c", "data", bias=False), "return c"),
    "chain": (*HEAD, conv("d", "r"), "return d"),
    "depthwise": (conv("c", "data", DEPTHWISE), "r = Activation(c) " + RELU, conv("d", "r"), "return d"),
    "residual": (
        *HEAD, conv("d", "r"), "s = elemwise_add(d, r)", "t = Activation(s) " + RELU, conv("e", "t"), "return e"
    ),
    "summand": (conv("c", "data"), "s = elemwise_add(c, data)", conv("d", "s"), "return d"),
    "doubled": ("s = elemwise_add(data, data)", conv("c", "s"), "return c"),
    "clip": (conv("c", "data"), 'k = clip(c) a_min="0" a_max="0.5"', conv("d", "k"), "return d"),
    "leaky": (conv("c", "data"), 'k = LeakyReLU(c) act_type="leaky" slope="0.1"', conv("d", "k"), "return d"),
    "max": (*HEAD, 'p = Pooling(r) kernel="(2, 2)" stride="(2, 2)" pool_type="max"', conv("d", "p"), "return d"),
    "average": (*HEAD, 'p = Pooling(r) kernel="(2, 2)" stride="(2, 2)" pool_type="avg"', conv("d", "p"), "return d"),
    "concat": (*HEAD, conv("d", "data"), 'k = Concat(r, d) dim="1" num_args="2"', conv("e", "k"), "return e"),
    "twice": ('k = Concat(data, data) dim="1" num_args="2"', conv("c", "k"), "return c"),
    "dense": (*HEAD, fc("f", "r"), fc("g", "f"), "return g"),
    "norm": (bn("b", "data"), "r = Activation(b) " + RELU, conv("c", "r"), "return c"),
    "product": (conv("c", "data"), "s = elemwise_mul(c, c)", conv("d", "s"), "return d"),
}  # fmt: skip
X = feeds()["data"]
BATCHES = {
    "first": X, "ten times": 10 * X, "small": 0.01 * X, "zero": 0 * X, "as the first": X, "negative": -np.abs(X),
    "ones": 0 * X + 1, "minus ones": 0 * X - 1, "next to nothing": 1e-9 * X, "large": 1e6 * X,
}  # fmt: skip
"""One after the other through one bound network: kernels keep what they saw first."""


def changed(model: Model, weights: float, biases: float) -> Model:
    factors = {n: weights if n.endswith("weight") else biases if n.endswith("bias") else 1.0 for n in model.args}
    return replace(model, args={n: (factors[n] * v).astype(np.float32) for n, v in model.args.items()})


@pytest.mark.parametrize("mode", ["smart", "full"])
@pytest.mark.parametrize(("weights", "biases"), [(1, 1), (1e-9, 1), (1, 1e4)], ids=["usual", "weights", "biases"])
@pytest.mark.parametrize("name", NETS)
def test_every_batch_is_close_to_float(name: str, weights: float, biases: float, mode: str) -> None:
    model = changed(build(*NETS[name]), weights, biases)
    made = quantized(model, calib_mode="none", quantize_mode=mode).model
    exact, int8 = (MxnetRunner().compile(m) for m in (model, made))
    for batch, x in BATCHES.items():
        wanted, found = (np.array(call({"data": x.astype(np.float32)})[0]) for call in (exact, int8))
        assert np.isfinite(found).all(), batch
        assert not np.any(wanted - found) or sqnr_db(wanted, found) > 15, batch


@pytest.mark.parametrize("name", NETS)
def test_stands_mxnets_own_last_step(name: str) -> None:
    made = quantized(build(*NETS[name]), calib_mode="none", quantize_mode="full").model
    after = to_symbol(made.graph).get_backend_symbol("MKLDNN_QUANTIZE")
    found = run(from_symbol(after, to_arrays(made.args), to_arrays(made.auxs)))
    np.testing.assert_array_equal(found[0], run(made)[0])


class TestLeftInFloat:
    @pytest.mark.parametrize(
        ("name", "node", "reason"),
        [
            ("dense", "f", "keeps the range of the first batch"),
            ("summand", "s", "may leave 32 bits"),
            ("concat", "k", "all that it joins is zero"),
            ("norm", "b", "needs calibrated ranges"),
        ],
    )
    def test_with_a_reason(self, name: str, node: str, reason: str) -> None:
        plan = quantized(build(*NETS[name]), calib_mode="none", quantize_mode="full").report.plan
        assert not plan[node].int8
        assert reason in plan[node].reason
        assert plan[node].reason.endswith("(calib_mode is 'none')")

    def test_a_layer_of_zeros(self) -> None:
        model = build(*HEAD, conv("d", "r"), "return d")
        dead = replace(model, args={**model.args, "d_weight": 0 * model.args["d_weight"]})
        made = quantized(dead, calib_mode="none")
        assert made.report.plan["d"].reason == (
            "its weights are all zero, with which the int8 kernel loses the bias (calib_mode is 'none')"
        )
        assert sqnr_db(run(dead)[0], run(made.model)[0]) > 100  # the bias alone

    def test_sums_that_leave_no_room(self) -> None:
        shape = (1, 70_000, 1, 1)
        model = build(conv("c", "data", CONV1), conv("d", "c", CONV1), "return d", data=shape)
        plan = quantized(model, feeds(data=shape), calib_mode="none").report.plan
        assert plan["c"].reason.startswith("the sums of 70000 products and a bias do not fit in 32 bits")
        assert plan["d"].int8


class TestLeastRange:
    def test_is_where_the_bias_fills_its_share(self) -> None:
        model = quantized(build(*NETS["conv"]), calib_mode="none").prepared.fused
        least = least_range(model, model.graph["c"], "int8")
        assert least is not None
        codes = np.abs(model.args["c_bias"]).max() * 127.5 / np.abs(model.args["c_weight"]).max() * 127.5 / least
        assert codes == pytest.approx(2**30, rel=1e-6)
        unsigned = least_range(model, model.graph["c"], "uint8")
        assert unsigned == pytest.approx(least * 255.5 / 127.5)

    def test_not_without_a_bias(self) -> None:
        made = quantized(build(*NETS["no_bias"]), calib_mode="none")
        assert "_maximum_scalar" not in op_names(made.model)
        assert least_range(made.prepared.fused, made.prepared.fused.graph["c"], "int8") is None


class TestUint8:
    @pytest.mark.parametrize("options", [{"quantized_dtype": "uint8"}, {"overrides": {"data": {"dtype": "uint8"}}}])
    def test_is_refused_as_nothing_shows_the_sign(self, options: dict[str, object]) -> None:
        with pytest.raises(QuantizeError, match=r"nothing shows that tensor 'data' has no negative values.*use 'auto'"):
            quantized(build(*NETS["conv"]), calib_mode="none", **options)

    def test_what_a_relu_makes_is_unsigned(self) -> None:
        made = quantized(build(*NETS["chain"]), calib_mode="none", quantized_dtype="int8")
        assert made.report.tensors["requantize_r"].dtype == "uint8"
