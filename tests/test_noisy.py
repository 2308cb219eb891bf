"""Layers that bring most of a network's noise for little work stay in float: stems, tails, and only where data says."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from graphs import RELU, build, conv, run
from helpers import assert_close

from mxq import noisy, pipeline
from mxq.artifacts import record
from mxq.config import LayerConfig, QuantConfig
from mxq.graph.ir import Model
from mxq.noisy import BESIDE, DOMINANT, why_float
from mxq.numerics import sqnr_db
from mxq.pipeline import Quantized
from mxq.quant.plan import NoiseRecord
from mxq.runtime import MxnetRunner

SIDE, EXAMPLES = 4, 16
SHAPE = (EXAMPLES, 3, SIDE, SIDE)
WIDE = 'kernel="(3, 3)" num_filter="32" pad="(1, 1)"'
STEM = (
    conv("stem", "data", 'kernel="(1, 1)" num_filter="4"'),
    'p = LeakyReLU(stem, slopes) act_type="prelu"',
    conv("each", "p", 'kernel="(1, 1)" num_filter="4" num_group="4"'),
    conv("a", "each", WIDE),
    "ra = Activation(a) " + RELU,
    conv("b", "ra", WIDE),
    "rb = Activation(b) " + RELU,
    conv("c", "rb", WIDE),
    "return c",
)
"""Two small layers with a PReLU between them, before three large ones."""
TAIL = (
    conv("a", "data", WIDE),
    "ra = Activation(a) " + RELU,
    conv("m", "ra", WIDE),
    "rm = Activation(m) " + RELU,
    conv("b", "rm", WIDE),
    "rb = Activation(b) " + RELU,
    'half = Pooling(rb) pool_type="max" kernel="(2, 2)" stride="(2, 2)"',
    conv("pool", "half", f'kernel="({SIDE // 2}, {SIDE // 2})" num_filter="32" num_group="32"'),
    "return pool",
)
"""A learned pooling of all places at the end."""


def data(seed: int, spread: float = 1.0) -> np.ndarray:
    """Normal values, those of the first channel ``spread`` times as large."""
    found = np.random.default_rng(seed).standard_normal(SHAPE).astype(np.float32)
    found[:, 0] *= np.float32(spread)
    return found


def stem(spread: float) -> Model:
    """`STEM` that makes channels of equal importance of such data: its input has few codes for the others."""
    model = build(*STEM, data=SHAPE)
    weight = model.args["stem_weight"].copy()
    weight[:, 0] /= spread
    return model.with_graph(model.graph, {"stem_weight": weight})


def tail(level: float) -> Model:
    """`TAIL` that looks at small differences of values that are all about ``level``."""
    model = build(*TAIL, data=SHAPE)
    weight = model.args["pool_weight"]
    weight = weight - weight.mean(axis=(2, 3), keepdims=True)
    return model.with_graph(model.graph, {"pool_weight": weight, "b_bias": model.args["b_bias"] + np.float32(level)})


def made(model: Model, given: np.ndarray, **options: Any) -> Quantized:
    """Without refinement, which takes time."""
    usual = {"num_calib_examples": "100%", "target": "avx512_vnni", "effort": "fast", "stem": "float"}
    config = QuantConfig(**{**usual, **options})
    prepared = pipeline.plan(model, config, MxnetRunner())
    ranges = pipeline.calibrate(prepared, given, MxnetRunner(), progress=False)
    return pipeline.quantize(prepared, ranges, runner=MxnetRunner(), data=[{"data": given}])


def floats(done: Quantized) -> set[str]:
    """The layers of the network that stayed in float."""
    return {d.node for d in done.report.plan.decisions if not d.int8 and "Convolution" in d.op}


def sqnr(model: Model, done: Quantized, given: np.ndarray) -> float:
    return sqnr_db(*(run(m, {"data": given})[0] for m in (model, done.model)))


class TestStem:
    def test_what_brings_the_noise_stays_in_float(self) -> None:
        model, given = stem(1000.0), data(1, 1000.0)
        done = made(model, given)
        assert "stem" in floats(done)
        assert not floats(done) & {"ra", "rb", "c"}
        found = done.report.noise["stem"]
        assert found.to_float
        assert found.share > 0.5
        assert done.report.plan["stem"].reason.startswith(why_float(found))
        assert sqnr(model, done, data(2, 1000.0)) > sqnr(model, made(model, given, stem="int8"), data(2, 1000.0)) + 6

    def test_by_what_is_measured_and_not_by_its_form(self) -> None:
        done = made(stem(1.0), data(1))
        assert floats(done) == {name for name, found in done.report.noise.items() if found.to_float}
        assert "stem" not in floats(done)

    def test_onnx_files_alike(self) -> None:
        assert "stem" in floats(made(stem(1000.0), data(1, 1000.0), backend="onnx"))

    def test_the_same_every_time(self) -> None:
        first, second = (made(stem(1000.0), data(1, 1000.0)).report.noise for _ in range(2))
        assert dict(first) == dict(second)

    @pytest.mark.parametrize(
        "options",
        [
            {"stem": "int8"},
            {"stem": None},
            {"quantize_mode": "full"},
            {"overrides": {"stem": LayerConfig(quantize=True)}},
            {"input_dtype": "int8", "stem": None, "effort": "default"},
            {"backend": "mxnet", "simulate": True, "hardware": "tensorrt"},
        ],
        ids=str,
    )
    def test_int8_where_asked_for(self, options: dict[str, Any]) -> None:
        assert "stem" not in floats(made(stem(1000.0), data(1, 1000.0), **options))

    def test_the_default_measures(self) -> None:
        assert "stem" in floats(made(stem(1000.0), data(1, 1000.0), effort="default", stem=None))

    def test_nothing_without_data(self) -> None:
        prepared = pipeline.plan(stem(1000.0), QuantConfig(target="avx512_vnni", num_calib_examples="100%"))
        ranges = pipeline.calibrate(prepared, data(1, 1000.0), MxnetRunner(), progress=False)
        done = pipeline.quantize(prepared, ranges)
        assert not floats(done)
        assert not done.report.noise


class TestTail:
    def test_a_learned_pooling_stays_in_float(self) -> None:
        model, given = tail(300.0), data(1)
        done = made(model, given)
        assert floats(done) == {"pool"}
        assert sqnr(model, done, data(2)) > sqnr(model, made(model, given, stem="int8"), data(2)) + 6

    def test_a_quiet_one_is_int8(self) -> None:
        found = made(tail(0.0), data(1)).report.noise
        assert not found["pool"].to_float
        assert found["pool"].share < DOMINANT.noise


class TestLimits:
    def test_shares_are_of_work_and_weights(self) -> None:
        found = made(stem(1000.0), data(1, 1000.0)).report.noise["stem"]
        products = 3 * 4, 4, 4 * 9 * 32, 32 * 9 * 32, 32 * 9 * 32
        assert_close(found.multiply_adds, products[0] / sum(products), rtol=1e-12, atol=0)
        assert_close(found.weights, found.multiply_adds, rtol=1e-12, atol=0)  # of one place each
        elements = 3 + 4, 4 + 4, 4 + 32, 32 + 32, 32 + 32
        assert_close(found.elements, elements[0] / sum(elements), rtol=1e-12, atol=0)

    @pytest.mark.parametrize("name", ["BESIDE", "ALL"])  # of one, and of all
    @pytest.mark.parametrize("place", range(3), ids=["multiply-adds", "weights", "elements"])
    def test_a_layer_of_much_work_is_int8(self, name: str, place: int, monkeypatch: pytest.MonkeyPatch) -> None:
        work = (1e-4 if place == 0 else 1.0, 1e-4 if place == 1 else 1.0, 1e-4 if place == 2 else 1.0)
        monkeypatch.setattr(noisy, name, work if name == "ALL" else replace(BESIDE, work=work))
        assert not floats(made(stem(1000.0), data(1, 1000.0)))

    def test_less_noise_will_do_where_all_around_is_float(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """The stem reads the input, and a PReLU reads it, which is float; the tail reads codes."""
        never = replace(BESIDE, noise=2.0)
        monkeypatch.setattr(noisy, "DOMINANT", never)
        assert "stem" in floats(made(stem(1000.0), data(1, 1000.0)))
        assert not floats(made(tail(300.0), data(1)))
        monkeypatch.setattr(noisy, "BESIDE", never)
        assert not floats(made(stem(1000.0), data(1, 1000.0)))

    def test_good_networks_stay_whole(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(noisy, "GOOD", 1e9)
        assert not floats(made(stem(1000.0), data(1, 1000.0)))


def test_records_survive_files() -> None:
    noise = {"a": NoiseRecord(0.001, 0.004, 0.01, 0.02, 0.03, to_float=True)}
    assert_close(noise["a"].share, 0.25, rtol=1e-12, atol=0)
    report = replace(made(stem(1.0), data(1)).report, noise=noise)
    assert record.from_json(record.to_json(report)).noise == noise
    older = record.to_json(report)
    del older["noise"]
    assert record.from_json(older).noise == {}
