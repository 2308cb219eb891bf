"""Weight clipping: what a channel keeps, what the kernels make of it, and what is recorded."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from graphs import build, conv, fc, feeds, quantized, run
from helpers import assert_close, kernel_params

from mxq import observers, pipeline
from mxq.artifacts import record
from mxq.config import LayerConfig, QuantConfig
from mxq.errors import ConfigError
from mxq.graph.ir import Model
from mxq.numerics import sqnr_db
from mxq.quant.plan import WeightRecord
from mxq.runtime import MxnetRunner
from mxq.weights.clip import WeightObserverRequest, channel_bounds, clip_weights

RELU0 = 'relu0 = Activation(conv0) act_type="relu"'
NET = (conv("conv0", "data"), RELU0, conv("conv1", "relu0"), fc("fc0", "conv1"), "return fc0")
SPECS = ("naive", "percentile:90", "entropy", "mse", "norm", "mean_std:2", "fixed:-0.1,0.2", "auto")


def planned(**options: Any) -> pipeline.Prepared:
    return pipeline.plan(build(*NET), QuantConfig(**options))


def int8(**options: Any) -> pipeline.Quantized:
    prepared = planned(**options)
    return pipeline.quantize(prepared, pipeline.calibrate(prepared, [feeds()["data"]], MxnetRunner()))


@pytest.mark.parametrize("spec", SPECS)
def test_each_channel_as_if_it_were_alone(spec: str) -> None:
    weight = np.random.default_rng(0).standard_t(3, (5, 40, 3, 3)).astype(np.float32) * np.float32(0.1)
    observer = observers.get(spec)
    together = channel_bounds(observer, weight)
    assert together.shape == (5,)
    assert together.dtype == np.float32
    for row, bound in zip(weight, together, strict=True):
        assert channel_bounds(observer, row[None])[0] == bound
        assert 0 < bound <= np.abs(row).max()


def test_a_dead_channel_stays_dead() -> None:
    weight = np.zeros((2, 4), np.float32)
    weight[1] = 1
    assert channel_bounds(observers.get("mse"), weight).tolist() == [0, 1]


def test_mse_quantizes_every_channel_no_worse_than_its_largest_weight() -> None:
    weight = np.random.default_rng(1).standard_t(3, (8, 5000)).astype(np.float32)
    bounds = channel_bounds(observers.get("mse"), weight)

    def noise(row: np.ndarray, bound: float) -> float:
        return float(np.square(row - kernel_params(bound, "int8").fake(row)).sum())

    mine = [noise(row, b) for row, b in zip(weight, bounds, strict=True)]
    plain = [noise(row, np.abs(row).max()) for row in weight]
    assert sum(mine) < 0.98 * sum(plain)
    assert all(m <= 1.01 * p for m, p in zip(mine, plain, strict=True))


def test_clips_to_the_bounds_and_records() -> None:
    model = pipeline.fuse_float(build(*NET))
    layer = next(n for n in model.graph.operators if n.op == "_sg_mkldnn_conv")
    name = layer.inputs[1].name
    found, records = clip_weights(model, {layer.name: WeightObserverRequest("percentile:90", "overrides 'conv0'")})
    before, after = model.args[name], found.args[name]
    bounds = channel_bounds(observers.get("percentile:90"), before)[:, None, None, None]
    np.testing.assert_array_equal(after, np.clip(before, -bounds, bounds))
    assert all(found.args[k] is v or np.array_equal(found.args[k], v) for k, v in model.args.items() if k != name)
    share = float((np.abs(before) > bounds).mean())
    assert records == {layer.name: WeightRecord("percentile:90", "overrides 'conv0'", 8, 8, share)}
    assert 0.05 < share < 0.15


@pytest.mark.parametrize("asked", [{}, {"conv0": WeightObserverRequest("naive", "weight_calib_mode")}])
def test_nothing_asked_changes_nothing(asked: dict[str, WeightObserverRequest]) -> None:
    model = build(*NET)
    found, records = clip_weights(model, asked)
    assert found is model
    assert records == {}


def test_the_kernel_uses_the_clipped_range() -> None:
    """Far from the float network, near the float network with clipped weights: the kernel saw no others."""
    done = int8(weight_calib_mode="fixed:-0.1,0.1")
    source = done.prepared.fused
    values = {k: np.clip(v, -0.1, 0.1) if k.endswith("weight") else v for k, v in source.args.items()}
    clipped = run(Model(source.graph, values))[0]
    got = run(done.model)[0]
    assert sqnr_db(clipped, got) > sqnr_db(run(source)[0], got) + 6


def test_settings_reach_their_layers_and_the_report() -> None:
    done = int8(
        weight_calib_mode="mse",
        overrides={
            "conv1": LayerConfig(weight_calib_mode="percentile:99"),
            "op:FullyConnected": {"weight_calib_mode": "naive"},
        },
    )
    found = {name: (r.observer, r.source) for name, r in done.report.weights.items()}
    assert found == {"relu0": ("mse", "weight_calib_mode"), "conv1": ("percentile:99", "overrides 'conv1'")}
    again = record.from_json(record.to_json(done.report))
    assert again.weights == done.report.weights
    about = record.explain(done.report, record.find(done.report, "conv0"))
    assert about.weight is not None
    assert about.weight.observer == "mse"


def test_an_override_may_name_the_weight() -> None:
    done = int8(overrides={"conv1_weight": LayerConfig(weight_calib_mode="percentile:99")})
    assert done.report.weights["conv1"].source == "overrides 'conv1_weight'"


def test_a_report_from_before_has_no_weights() -> None:
    data = record.to_json(quantized(build(*NET)).report)
    del data["weights"]
    assert record.from_json(data).weights == {}


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"weight_calib_mode": "median"}, "weight_calib_mode is 'median'; allowed: 'auto'"),
        ({"weight_calib_mode": "ema_minmax"}, "weight_calib_mode is 'ema_minmax', an average over batches"),
        ({"weight_calib_mode": "percentile:3"}, r"weight_calib_mode: percentile is 3\.0; allowed: 50 to 100"),
        ({"overrides": {"*": {"weight_calib_mode": "none"}}}, r"overrides '\*': weight_calib_mode is 'none'; allowed"),
        ({"overrides": {"conv0": {"calib_mode": "none"}}}, "overrides 'conv0': calib_mode is 'none'; allowed"),
        ({"calib_mode": "fixed"}, "calib_mode: observer 'fixed' needs parameters: fixed:MIN,MAX"),
    ],
)
def test_what_is_refused(options: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        planned(**options)


def test_nearly_lossless_where_little_is_clipped() -> None:
    plain, clipped = int8(), int8(weight_calib_mode="percentile:100")
    assert_close(run(clipped.model)[0], run(plain.model)[0], rtol=0, atol=1e-6)
