"""Passes on random small networks: outputs stay, the second application changes nothing, int8 stays close."""

from __future__ import annotations

import numpy as np
import pytest
from graphs import CONV1, CONV3, RELU, build, conv, feeds, quantized, rewritten, run
from helpers import assert_close
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from mxq import pipeline
from mxq.backends.mxnet import MXNET_191
from mxq.config import QuantConfig
from mxq.graph.ir import Model
from mxq.graph.serde import read_symbol, write_symbol
from mxq.numerics import sqnr_db
from mxq.passes.fold_bn import FOLD_BN
from mxq.passes.fuse import fuse_float, fuse_int8
from mxq.passes.simplify import SIMPLIFY

QUICK = settings(deadline=None, max_examples=12, suppress_health_check=[HealthCheck.too_slow])
NORM = 'eps="1e-05" fix_gamma="{}" use_global_stats="{}"'

ONE_INPUT = (
    "{n} = Activation({x}) " + RELU,
    "{n} = relu({x})",
    '{n} = Activation({x}) act_type="tanh"',
    '{n} = LeakyReLU({x}) act_type="leaky" slope="0.1"',
    '{n} = LeakyReLU({x}) act_type="gelu"',
    '{n} = clip({x}) a_min="0" a_max="6"',
    "{n} = _copy({x})",
    '{n} = Dropout({x}) p="0.5"',
    '{n} = Pooling({x}) kernel="(3, 3)" pad="(1, 1)" pool_type="max"',
    '{n} = Pooling({x}) kernel="(3, 3)" pad="(1, 1)" pool_type="avg"',
    "{n} = BatchNorm({x}, {n}_gamma, {n}_beta, {n}_moving_mean, {n}_moving_var) " + NORM.format("False", "False"),
    "{n} = BatchNorm({x}, {n}_gamma, {n}_beta, {n}_moving_mean, {n}_moving_var) " + NORM.format("True", "True"),
)
CONVS = (
    (CONV3, True),
    (CONV3, False),
    (CONV1, True),
    (CONV3 + ' num_group="8"', True),
    (CONV3 + ' num_group="2"', False),
)


@st.composite
def networks(draw) -> tuple[str, ...]:
    """Up to ten operators that keep the shape, wired at random, with one to three heads."""
    names, lines = ["data"], []
    for i in range(draw(st.integers(2, 10))):
        name, x = f"n{i}", draw(st.sampled_from(names[-3:]))
        kind = draw(st.sampled_from(("conv", "conv", "one", "one", "add")))
        if kind == "conv":
            attrs, bias = draw(st.sampled_from(CONVS))
            lines.append(conv(name, x, attrs, bias=bias))
        elif kind == "one":
            lines.append(draw(st.sampled_from(ONE_INPUT)).format(n=name, x=x))
        else:
            lines.append(f"{name} = elemwise_add({x}, {draw(st.sampled_from(names))})")
        names.append(name)
    heads = [names[-1], *draw(st.lists(st.sampled_from(names[1:]), max_size=2))]
    lines.append("return " + ", ".join(dict.fromkeys(heads)))
    return tuple(lines)


def assert_keeps_outputs(model: Model, result: Model) -> None:
    """Equal to 1e-5 of each output's largest value: float32 sums in another order."""
    assert [str(h) for h in result.graph.heads] == [str(h) for h in model.graph.heads]
    for wanted, got in zip(run(model), run(result), strict=True):
        size = np.abs(wanted).max() + 1e-30
        assert_close(got / size, wanted / size, rtol=0, atol=1e-5)


@given(networks())
@QUICK
def test_passes_keep_outputs_and_settle(lines):
    model = build(*lines)
    for last in (fuse_float(MXNET_191), fuse_int8(MXNET_191)):
        result = model
        for step in (SIMPLIFY, FOLD_BN, last):
            result = rewritten(step, result)
            assert rewritten(step, result) is result
        assert_keeps_outputs(model, result)
        assert read_symbol(write_symbol(result.graph)) == result.graph


@pytest.mark.parametrize("options", [{}, {"quantize_mode": "full"}, {"calib_mode": "none"}], ids=str)
def test_int8_networks_run_and_stay_close(options):
    @given(networks())
    @QUICK
    def check(lines):
        model = build(*lines)
        assume(pipeline.plan(model, QuantConfig(**options)).plan.quantized)
        result = quantized(model, **options).model
        for wanted, got in zip(run(model), run(result), strict=True):
            if np.ptp(wanted) > 1e-3:  # a constant has no signal
                assert sqnr_db(wanted, got) > 18
        fed = {"data": 0.5 * feeds(seed=9)["data"]}
        assert all(np.isfinite(a).all() for a in run(result, fed))

    check()
