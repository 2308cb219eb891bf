"""What LayerNorms make scaled by channel: the float network stays what it is, the int8 one comes closer."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from graphs import build, feeds, run
from helpers import assert_close

from mxq import pipeline
from mxq.backends.mxnet.exact import exact
from mxq.config import QuantConfig
from mxq.graph.ir import Model, Ref
from mxq.numerics import sqnr_db
from mxq.quant.thresholds import FIXED, Range, Threshold, Thresholds
from mxq.runtime import MxnetRunner
from mxq.weights.smooth import norms, smooth

SIZE, WORDS, EXAMPLES = 16, 5, 24
X = feeds(data=(EXAMPLES, WORDS, SIZE))["data"]
OTHERS = feeds(seed=2, data=(EXAMPLES, WORDS, SIZE))["data"]
FLAT = f'num_hidden="{SIZE}" flatten="False"'
OUTLIERS = (3, 11)


def dense(name: str, data: str, attrs: str = FLAT, weight: str = "") -> str:
    return f"{name} = FullyConnected({data}, {weight or name + '_weight'}, {name}_bias) {attrs}"


def norm(name: str, data: str, attrs: str = 'axis="-1"', gamma: str = "") -> str:
    return f"{name} = LayerNorm({data}, {gamma or name + '_gamma'}, {name}_beta) {attrs}"


BLOCK = (
    dense("fc0", "data"),
    norm("ln0", "fc0"),
    dense("fc1", "ln0"),
    "sum1 = elemwise_add(fc1, ln0)",
    norm("ln1", "sum1"),
    dense("fc2", "ln1"),
    "return fc2",
)
"""LayerNorms behind sums, as in BERT."""


def net(*lines: str, outliers: float = 100.0) -> Model:
    """The network of ``lines`` with two channels that are so many times as large in what each LayerNorm makes."""
    model = build(*lines, data=X.shape)
    args = {k: v.copy() for k, v in model.args.items()}
    for name, value in args.items():
        if name.endswith(("_gamma", "_beta")):
            value[list(OUTLIERS)] *= outliers
    return Model(model.graph, args, model.auxs)


def planned(model: Model, **options: Any) -> tuple[pipeline.Prepared, Thresholds]:
    prepared = pipeline.plan(model, QuantConfig(num_calib_examples="100%", target="avx512_vnni", **options))
    return prepared, pipeline.calibrate(prepared, X, MxnetRunner(), progress=False).thresholds


def smoothed(model: Model) -> tuple[Model, Model, Thresholds, tuple[str, ...]]:
    """The fused network before and after."""
    prepared, ranges = planned(model)
    return prepared.fused, *smooth(MxnetRunner(), prepared.fused, ranges, prepared.plan.quantized, [{"data": X}])


def test_the_float_network_stays_what_it_is() -> None:
    before, after, _, names = smoothed(net(*BLOCK))
    assert names == ("ln0", "ln1")
    wanted, found = (run(m, {"data": OTHERS})[0] for m in (before, after))
    assert_close(found, wanted, rtol=1e-4, atol=1e-4 * float(np.abs(wanted).max()))


def test_layers_read_scaled_channels_and_sums_read_them_as_they_were() -> None:
    before, after, thresholds, _ = smoothed(net(*BLOCK))
    (plain,) = (n for n in after.graph.operators if n.op == "broadcast_mul")  # ln1 is read by a layer alone
    taps = (Ref("ln0"), plain.out)
    was, (scaled, unscaled) = run(before, {"data": X}, taps[:1])[1], run(after, {"data": X}, taps)[1:]
    assert_close(unscaled, was, rtol=1e-5, atol=1e-4)
    scale = np.array(after.graph["ln0"].note.scale)
    assert_close(scaled, was * scale, rtol=1e-4, atol=1e-3)
    assert scale[list(OUTLIERS)].max() < 0.2 * np.delete(scale, OUTLIERS).min()
    assert_close(after.args["fc1_weight"], before.args["fc1_weight"] / scale, rtol=1e-6, atol=0)
    assert thresholds.range("ln0").max == pytest.approx(scaled.max(), rel=0.01)
    assert [r.name for n in after.graph.operators for r in n.inputs if r == plain.out] == [plain.name]


@pytest.mark.parametrize("backend", ["mxnet", "onnx"])
def test_the_int8_network_comes_closer(backend: str) -> None:
    model, found = net(*BLOCK), dict[bool, float]()
    for equalize in (False, True):
        config = QuantConfig(num_calib_examples="100%", target="avx512_vnni", equalize=equalize, backend=backend)
        prepared = pipeline.plan(model, config, MxnetRunner())
        ranges = pipeline.calibrate(prepared, X, MxnetRunner(), progress=False)
        done = pipeline.quantize(prepared, ranges, runner=MxnetRunner(), data=[{"data": X}])
        found[equalize] = sqnr_db(*(run(m, {"data": OTHERS})[0] for m in (model, exact(done.model))))
    assert found[True] > found[False] + 1.5


def test_channels_that_are_alike_stay() -> None:
    before, after, _, names = smoothed(net(*BLOCK, outliers=1.0))
    assert names == ()
    assert after is before


def test_a_range_that_is_given_stays_with_its_values() -> None:
    prepared, ranges = planned(net(*BLOCK))
    given = Thresholds({**ranges, "ln0": Threshold(Range(-9.0, 9.0), FIXED)})
    model, found, names = smooth(MxnetRunner(), prepared.fused, given, prepared.plan.quantized, [{"data": X}])
    assert names == ("ln1",)
    assert found["ln0"] == given["ln0"]
    np.testing.assert_array_equal(model.args["ln0_gamma"], prepared.fused.args["ln0_gamma"])


def test_layers_that_stay_float_need_no_scales() -> None:
    prepared, _ = planned(net(*BLOCK))
    assert set(norms(prepared.fused, ["fc2"])) == {"ln1"}
    assert norms(prepared.fused, []) == {}


@pytest.mark.parametrize(
    "lines",
    [
        (dense("fc0", "data"), norm("ln0", "fc0"), dense("fc1", "ln0"), "return fc1, ln0"),
        (dense("fc0", "data"), norm("ln0", "fc0", 'axis="1"'), dense("fc1", "ln0"), "return fc1"),
        (dense("fc0", "data"), norm("ln0", "fc0"), dense("fc1", "ln0", f'num_hidden="{SIZE}"'), "return fc1"),
        (
            dense("fc0", "data"),
            norm("ln0", "fc0"),
            dense("fc1", "ln0"),
            norm("ln1", "fc1", gamma="ln0_gamma"),
            "return ln1",
        ),
        (norm("ln0", "data"), dense("fc1", "ln0"), dense("fc2", "fc1", weight="fc1_weight"), "return fc2"),
    ],
    ids=["output", "axis", "flattened", "gamma", "weight"],
)
def test_what_cannot_be_scaled(lines: tuple[str, ...]) -> None:
    model = build(*lines, data=X.shape)
    assert norms(model, [n.name for n in model.graph.operators]) == {}
    prepared = pipeline.plan(model, QuantConfig())
    assert norms(prepared.fused, prepared.plan.quantized) == {}
