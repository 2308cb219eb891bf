"""The passes for CPUs without VNNI: channels put in another order, weights limited, ranges widened."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pytest
from graphs import CHANNELS, CONV1, RELU, assert_same_outputs, bn, build, conv, decided, fc, feeds

from mxq import pipeline
from mxq.config import QuantConfig
from mxq.graph.ir import Model, Ref
from mxq.numerics import sqnr_db
from mxq.passes.limit_saturation import limit_saturation
from mxq.passes.pair_channels import PAIR_CHANNELS, weight_codes
from mxq.passes.partition import partition, with_carried
from mxq.pipeline import Calibrated, Prepared
from mxq.quant import QuantizedNetwork
from mxq.quant.thresholds import Range, Threshold, Thresholds
from mxq.runtime import MxnetRunner
from mxq.saturation.activity import sampled
from mxq.saturation.kernels import at_risk
from mxq.saturation.pairing import conflicts
from mxq.verification import verify

pytestmark = pytest.mark.kernels

DW = f'kernel="(3, 3)" num_filter="{CHANNELS}" pad="(1, 1)" num_group="{CHANNELS}"'
CHAIN = (conv("a", "data"), "r = Activation(a) " + RELU, conv("z", "r"), "return z")
CONFIG = QuantConfig(effort="fast", num_calib_examples="100%")


def large(model: Model, *names: str) -> Model:
    """``model`` where neighbouring input channels of these layers have large weights of one sign."""
    args = dict(model.args)
    for name in names:
        weight = args[f"{name}_weight"]
        at = np.arange(weight.shape[1])
        factor = np.where(at < weight.shape[1] // 2, 1.0, 0.05).reshape(1, -1, *[1] * (weight.ndim - 2))
        args[f"{name}_weight"] = (np.sign(weight[:, :1]) * np.abs(weight) * factor).astype(np.float32)
    return replace(model, args=args)


def of(prepared: Prepared, model: Model) -> QuantizedNetwork:
    """``model`` under a plan, without ranges."""
    return QuantizedNetwork(model, prepared.plan, Thresholds(), {}, ())


def guarded(prepared: Prepared, thresholds: Thresholds, samples: Mapping[str, np.ndarray], target: str = "avx2"):
    """Ranges and records of a planned network."""
    network = decided(prepared, thresholds, target=target).after(limit_saturation(prepared.backend.spec, samples))
    return network.thresholds, network.saturation


def planned(*lines: str, dangerous: tuple[str, ...] = ("z",)) -> Prepared:
    return pipeline.plan(large(build(*lines), *dangerous), CONFIG)


def paired(*lines: str, dangerous: tuple[str, ...] = ("z",)) -> tuple[Prepared, Model]:
    prepared = planned(*lines, dangerous=dangerous)
    return prepared, of(prepared, prepared.fused).after(PAIR_CHANNELS).fused


def cost(model: Model, weight: str) -> float:
    codes = weight_codes(model.args[weight])
    at = np.arange(0, codes.shape[1] - 1, 2)
    return float(conflicts(codes)[at, at + 1].sum())


class TestPairChannels:
    @pytest.mark.parametrize(
        ("lines", "dangerous"),
        [
            (CHAIN, ("z",)),
            ((conv("a", "data"), "r = Activation(a) " + RELU, conv("d", "r", DW), conv("z", "d"), "return z"), ("z",)),
            ((conv("a", "data"), bn("n", "a"), "r = Activation(n) " + RELU, conv("z", "r"), "return z"), ("z",)),
            (
                (
                    conv("a", "data"),
                    "r = Activation(a) " + RELU,
                    conv("b", "r"),
                    "s = elemwise_add(b, r)",
                    "t = Activation(s) " + RELU,
                    conv("z", "t"),
                    conv("y", "t"),
                    "u = elemwise_add(z, y)",
                    "return u",
                ),
                ("z", "b"),
            ),
            (
                (
                    conv("a", "data"),
                    "r = Activation(a) " + RELU,
                    'p = Pooling(r) global_pool="True" kernel="(1, 1)" pool_type="avg"',
                    fc("z", "p"),
                    "return z",
                ),
                ("z",),
            ),
            (
                (
                    conv("a", "data"),
                    "g = hard_sigmoid(a)",
                    "h = elemwise_mul(a, g)",
                    conv("z", "h"),
                    "return z",
                ),
                ("z",),
            ),
        ],
        ids=["chain", "depthwise", "batch norm", "residual", "pooled", "hard swish"],
    )
    def test_the_float_network_is_the_same_and_less_saturates(self, lines, dangerous):
        prepared, found = paired(*lines, dangerous=dangerous)
        assert found is not prepared.fused
        assert_same_outputs(prepared.fused, found, rtol=1e-4, atol=1e-4)
        assert cost(found, "z_weight") < cost(prepared.fused, "z_weight")

    def test_attributes_say_where_channels_were(self):
        prepared, found = paired(*CHAIN)
        order = list(found.graph["r"].note.order)
        taps = (Ref("r"),)
        before, after = (MxnetRunner().compile(m, taps)(feeds())[len(m.graph.heads)] for m in (prepared.fused, found))
        np.testing.assert_allclose(after, before[:, order], rtol=1e-5, atol=1e-6)
        assert (found.args["z_weight"] == prepared.fused.args["z_weight"][:, order]).all()
        assert not found.graph["z"].note.order

    @pytest.mark.parametrize(
        "lines",
        [
            (conv("z", "data"), "return z"),
            (conv("a", "data"), "r = Activation(a) " + RELU, conv("z", "r"), "return z, r"),
            (conv("a", "data"), "r = Activation(a) " + RELU, "s = softmax(r)", conv("z", "r"), "return z, s"),
            (
                conv("a", "data"),
                "r = Activation(a) " + RELU,
                conv("z", "r"),
                "m = elemwise_add(r, data)",
                "return z, m",
            ),
            (conv("a", "data"), "r = Activation(a) " + RELU, fc("z", "r"), "return z"),
            (
                'c = Convolution(data, z_weight) no_bias="True" kernel="(1, 1)" num_filter="8"',
                'd = Convolution(c, z_weight) no_bias="True" kernel="(1, 1)" num_filter="8"',
                "return d",
            ),
            (
                conv("a", "data"),
                'p = Pooling(a) kernel="(2, 2)" pool_type="max" layout="NHWC"',
                conv("z", "p"),
                "return z",
            ),
        ],
        ids=[
            "input",
            "output",
            "unknown operator",
            "sum with the input",
            "several values a channel",
            "shared weight",
            "channels elsewhere",
        ],
    )
    def test_what_is_seen_from_outside_stays(self, lines):
        prepared, found = paired(*lines)
        assert found is prepared.fused

    def test_a_second_time_changes_nothing(self):
        prepared, found = paired(*CHAIN)
        assert of(prepared, found).after(PAIR_CHANNELS).fused is found

    def test_layers_can_still_be_compared(self):
        prepared = planned(*CHAIN)
        for target in ("avx512_vnni", "avx2"):
            made = replace(prepared, config=replace(CONFIG, target=target))
            data = feeds()["data"]
            int8 = pipeline.quantize(made, pipeline.calibrate(made, data, MxnetRunner(), progress=False)).model
            found = verify(MxnetRunner(), prepared.source, int8, [{"data": data}], layers=True)
            assert min(layer.sqnr for layer in found.layers) > 25
        assert any(n.note.order for n in int8.graph)


class TestGuard:
    def guarded(self, prepared: Prepared, top: float = 4.0, target: str = "avx2", given: object = True, **changed):
        table = {str(r): Threshold(Range(0 if r.name == "r" else -top, top), "naive") for r in prepared.plan.observe}
        samples = {}
        if given is not None:
            rng = np.random.default_rng(0)
            samples = {"z": np.clip(top * rng.uniform(0.5, 1.2, (200, CHANNELS, 9)), 0, top).astype(np.float32)}
        thresholds, asked = Thresholds(table), replace(prepared, config=replace(prepared.config, **changed))
        network = decided(asked, thresholds, target=target).after(limit_saturation(prepared.backend.spec, samples))
        return thresholds, network.trace.events, network.fused, network.thresholds, network.saturation

    def test_large_values_widen_the_range(self):
        prepared = planned(*CHAIN)
        before, events, model, thresholds, records = self.guarded(prepared)
        assert model is prepared.fused
        assert thresholds.range("r").max > 1.15 * before.range("r").max
        assert "widened" in thresholds["r"].note
        assert records["z"].remedy == "range"
        assert records["z"].factor == pytest.approx(thresholds.range("r").max / 4)
        assert (records["z"].kernel, records["z"].assumed) == ("pairs", False)
        assert [e.node for e in events] == ["z"]
        assert "a" not in records  # reads s8, whose kernel halves its weights

    @pytest.mark.parametrize(("more", "factor"), [((), 1.15), (('m = Activation(p) act_type="tanh"',), 1.0)])
    def test_of_a_tensor_that_is_carried_to_the_layer_too(self, more, factor):
        """Unless something else reads it on the way."""
        pool = 'p = Pooling(r) kernel="(2, 2)" stride="(2, 2)" pool_type="max"'
        heads = "return z" if not more else "return z, m"
        prepared = planned(*CHAIN[:2], pool, conv("z", "p"), *more, heads)
        assert prepared.plan["p"].int8
        table = {str(r): Threshold(Range(0 if r.name == "r" else -4.0, 4.0), "naive") for r in prepared.plan.observe}
        values = np.random.default_rng(0).uniform(2, 4, (200, CHANNELS, 9)).astype(np.float32)
        samples = {"z": values}
        thresholds, records = guarded(prepared, Thresholds(table), samples)
        assert records["z"].factor == pytest.approx(thresholds.range("r").max / 4)
        assert thresholds.range("r").max == 4 if factor == 1 else thresholds.range("r").max > 4 * factor

    def test_few_samples_do_not_show_the_largest_values(self):
        prepared = planned(*CHAIN)
        table = {str(r): Threshold(Range(0 if r.name == "r" else -4.0, 4.0), "naive") for r in prepared.plan.observe}
        rows = np.random.default_rng(0).uniform(1, 3, (100, CHANNELS, 9)).astype(np.float32)
        factors = []
        for times in (1, 10):
            samples = {"z": np.tile(rows, (times, 1, 1))}
            factors.append(guarded(prepared, Thresholds(table), samples)[1]["z"].factor)
        assert factors[0] > factors[1]

    def test_a_range_that_somebody_fixed_stays(self):
        prepared = planned(*CHAIN)
        table = {str(r): Threshold(Range(0 if r.name == "r" else -4, 4), "fixed") for r in prepared.plan.observe}
        samples = {"z": np.full((200, CHANNELS, 9), 4, np.float32)}
        thresholds, records = guarded(prepared, Thresholds(table), samples)
        assert thresholds.range("r") == Range(0, 4)
        assert records["z"].factor == 1

    def test_pixels_stay_codes(self):
        """Without VNNI too: bright pixels saturate here, but their range is what makes pixels codes."""
        rng = np.random.default_rng(0)
        model = build(conv("c", "data", CONV1), "r = relu(c)", conv("d", "r", CONV1), "return d")
        model = replace(model, args={**model.args, "c_weight": rng.uniform(0.9, 1, (8, 8, 1, 1)).astype(np.float32)})
        pixels = rng.integers(200, 256, (16, 8, 6, 6))
        data = {"data": (pixels / 255).astype(np.float32)}
        config = replace(CONFIG, effort="default", input_dtype="uint8", preprocess={"scale": 1 / 255}, target="avx2")
        prepared, runner = pipeline.plan(model, config), MxnetRunner()
        ranges = pipeline.calibrate(prepared, data["data"], runner, progress=False)
        int8 = pipeline.quantize(prepared, ranges, runner=runner, data=[data]).model
        assert "data_normalize" not in int8.graph
        assert int8.graph["data"].input_dtype == "uint8"

    def test_a_clip_or_another_reader_keeps_the_range(self):
        clipped = planned(conv("a", "data"), 'r = clip(a) a_min="0" a_max="4"', conv("z", "r"), "return z")
        before, _, _, thresholds, _ = self.guarded(clipped)
        assert thresholds is before
        summed = (*CHAIN[:3], conv("y", "r"), "s = elemwise_add(y, r)", "return z, s")
        before, _, _, thresholds, _ = self.guarded(planned(*summed))
        assert thresholds.range("r") == before.range("r")

    def test_an_output_of_the_network_keeps_its_range(self):
        before, _, _, thresholds, records = self.guarded(planned(*CHAIN[:3], "return z, r"))
        assert thresholds.range("r") == before.range("r")
        assert records["z"].remedy != "range"

    @pytest.mark.parametrize("shared", [False, True])
    def test_a_weight_that_another_layer_has_too_is_not_limited(self, shared):
        again = 'y = Convolution(z, z_weight, z_bias) kernel="(3, 3)" num_filter="8" pad="(1, 1)"'
        prepared = planned(*CHAIN[:3], again if shared else conv("y", "z"), "return y")
        codes = np.random.default_rng(0).integers(-60, 60, (CHANNELS, CHANNELS, 3, 3)).astype(np.float32)
        codes[:, 0, 0, 0], codes[:, 1], codes[0, 2:4, 1, 1] = 127.5, -1, (64, 65)
        model = replace(prepared.fused, args={**prepared.fused.args, "z_weight": codes * np.float32(0.003)})
        _, _, found, _, records = self.guarded(replace(prepared, fused=model), given=None)
        assert records["z"].at_risk == 1
        assert records["z"].limited == (0 if shared else 1)
        assert (found.args["z_weight"] is model.args["z_weight"]) == shared

    def test_limited_weights_are_read_back_as_they_were_meant(self):
        prepared = planned(*CHAIN)
        codes = np.random.default_rng(0).integers(-60, 60, (CHANNELS, CHANNELS, 3, 3)).astype(np.float32)
        codes[:, 0, 0, 0], codes[:, 1] = 127.5, -1
        codes[0, 2:4, 1, 1] = 64, 65
        weight = codes * np.float32(0.003)
        model = replace(prepared.fused, args={**prepared.fused.args, "z_weight": weight})
        _, _, found, _, records = self.guarded(replace(prepared, fused=model), given=None)
        assert records["z"].remedy == "pairs"
        assert (records["z"].at_risk, records["z"].limited) == (1, 1)
        assert at_risk(weight_codes(found.args["z_weight"])).sum() == 0
        largest = [np.abs(m.args["z_weight"]).reshape(CHANNELS, -1).max(axis=1) for m in (model, found)]
        assert (largest[0] == largest[1]).all()
        same = weight_codes(found.args["z_weight"]) == weight_codes(weight)
        assert (found.args["z_weight"][same] == weight[same]).all()

    def test_nothing_to_do(self):
        prepared = planned(*CHAIN)
        before, events, model, thresholds, records = self.guarded(prepared, target="avx512_vnni")
        assert model is prepared.fused
        assert thresholds is before
        assert (records, events) == ({}, ())

    def test_ranges_found_at_run_time_stay(self):
        prepared = planned(*CHAIN)
        before, _, model, thresholds, records = self.guarded(prepared, given=None, calib_mode="none")
        assert thresholds is before
        assert records["z"].remedy in ("none", "pairs")
        assert (model is prepared.fused) == (records["z"].limited == 0)

    def test_without_samples_they_are_assumed(self):
        _, _, _, _, records = self.guarded(planned(*CHAIN), given=None)
        assert records["z"].assumed

    def test_a_layer_that_nothing_helps_is_named_for_float(self):
        """Two inputs that are large together: their weights cannot make up for each other's limits."""
        model = build(fc("z", "data", 'num_hidden="4"', bias=False), "return z", data=(4, 2))
        weight = np.array([[1, 0.98], [0.97, 1], [-1, -0.99], [1, -1]], np.float32)
        prepared = pipeline.plan(replace(model, args={"z_weight": weight}), CONFIG)
        table = Thresholds({"data": Threshold(Range(-1.0, 1.0), "fixed")})
        values = np.random.default_rng(0).uniform(-1, 1, (1000, 2, 1)).astype(np.float32)
        record = guarded(prepared, table, {"z": values})[1]["z"]
        assert record.remedy == "float"
        assert record.noise > 2e-3 > 10 * record.noise_with_vnni
        prepared = pipeline.plan(replace(model, args={"z_weight": weight * np.float32([1, 0.1])}), CONFIG)
        apart = guarded(prepared, table, {"z": values})[1]["z"]
        assert apart.remedy in ("none", "pairs")
        assert apart.noise < 2e-3

    @pytest.mark.parametrize(
        ("second", "size", "is_float"),
        [(0.2, 1.0, True), (0.13, 1.0, True), (0.1, 1.0, False), (1.0, 0.05, False)],
        ids=["below 30 dB", "just below", "above", "hardly better with VNNI"],
    )
    def test_a_decent_layer_is_not(self, second, size, is_float):
        """Nor one whose input uses a twentieth of its range, which VNNI would not help much either."""
        model = build(fc("z", "data", 'num_hidden="4"', bias=False), "return z", data=(4, 2))
        weight = np.array([[1, 0.98], [0.97, 1], [-1, -0.99], [1, -1]], np.float32) * np.float32([1, second])
        prepared = pipeline.plan(replace(model, args={"z_weight": weight}), CONFIG)
        table = Thresholds({"data": Threshold(Range(-1.0, 1.0), "fixed")})
        values = np.random.default_rng(0).uniform(-size, size, (1000, 2, 1)).astype(np.float32)
        record = guarded(prepared, table, {"z": values})[1]["z"]
        added = record.noise - record.noise_with_vnni
        assert (record.remedy == "float") == is_float
        assert added > 4e-4
        assert added < 6e-3  # near the bar on either side
        assert (added > 1.5e-3) == (second not in (0.1, 0.13))


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (conv("z", "data", 'kernel="(3, 2)" num_filter="5" pad="(1, 0)" stride="(2, 1)"'), (4, 6, 7, 5)),
        (conv("z", "data", 'kernel="(3, 1, 2)" num_filter="5" pad="(1, 0, 0)" dilate="(2, 1, 1)"'), (4, 3, 7, 5, 4)),
        (fc("z", "data"), (30, 6)),
        (fc("z", "data"), (30, 3, 2, 2)),
        (fc("z", "data", 'num_hidden="10" flatten="False"'), (6, 7, 5)),
        (fc("z", "data", 'num_hidden="10" flatten="False"'), (7, 7, 7)),
        (fc("z", "data", 'num_hidden="10" flatten="False"'), (4, 3, 5, 6)),
    ],
)
def test_samples_are_what_each_layer_multiplies(layer, shape):
    """With its weight they give values of its output, all inputs of a place together."""
    model, data = build(layer, "return z", data=shape), feeds(data=shape)
    model = pipeline.plan(model, CONFIG).fused
    found = sampled(MxnetRunner(), model, [model.graph["z"]], [data, data], places=20)["z"]
    weight = model.args["z_weight"]
    assert found.shape == (20, weight.shape[1], weight[0, 0].size)
    made = found.reshape(20, -1) @ weight.reshape(len(weight), -1).T + model.args["z_bias"]
    (value,) = MxnetRunner().compile(model)(data)
    rows = np.moveaxis(value, 1 if "Convolution" in layer else -1, -1).reshape(-1, len(weight))
    assert np.abs(made[:, None] - rows[None]).max(axis=2).min(axis=1).max() < 1e-5


def test_few_places_of_a_layer_with_many_inputs(monkeypatch):
    monkeypatch.setattr("mxq.saturation.activity.VALUES", 7 * CHANNELS * 9)
    prepared = planned(*CHAIN)
    found = sampled(MxnetRunner(), prepared.fused, [prepared.fused.graph["z"]], [feeds(), feeds()])
    assert found["z"].shape == (7, CHANNELS, 9)


def test_the_report_says_what_was_done():
    prepared = planned(*CHAIN)
    for target in ("avx2", "avx512_vnni"):
        made = replace(prepared, config=replace(CONFIG, target=target))
        ranges: Calibrated = pipeline.calibrate(made, feeds()["data"], MxnetRunner(), progress=False)
        report = pipeline.quantize(made, ranges).report
        assert report.target == target
        assert bool(report.saturation) == (target == "avx2")


def twins(rows: int) -> np.ndarray:
    """Weights (rows, 2) that are large together, as nothing can make up for."""
    return (np.random.default_rng(0).choice([-1, 1], (rows, 1)) * [1, 0.98]).astype(np.float32)


class TestFloat:
    """Layers that the guard names for float, through the pipeline."""

    lines = (
        fc("z", "data", 'num_hidden="64"'),
        "r = Activation(z) " + RELU,
        fc("c", "r", 'num_hidden="32"'),
        "rc = Activation(c) " + RELU,
        fc("d", "rc"),
        "return d",
    )

    def made(self, *lines: str, **options) -> tuple[Model, pipeline.Quantized, dict[str, np.ndarray]]:
        model = build(*lines, data=(72, 2))
        model = replace(model, args={**model.args, "z_weight": twins(len(model.args["z_weight"]))})
        data = {"data": np.random.default_rng(1).uniform(-1, 1, (720, 2)).astype(np.float32)}
        config = QuantConfig(num_calib_examples="100%", **{"target": "avx2", **options})
        prepared, runner = pipeline.plan(model, config), MxnetRunner()
        calibrated = pipeline.calibrate(prepared, data["data"], runner, progress=False)
        return model, pipeline.quantize(prepared, calibrated, runner=runner, data=[data]), data

    @pytest.mark.parametrize("effort", ["fast", "default"])
    def test_a_poor_layer_stays_in_float_and_the_report_says_why(self, effort):
        model, found, data = self.made(*self.lines, effort=effort)
        decision = found.report.plan["r"]
        assert not decision.int8
        assert decision.reason.startswith("without VNNI its sums saturate: in int8 it would be at ")
        assert found.report.plan["d"].int8
        assert found.report.saturation["r"].remedy == "float"
        assert found.report.summary["float"] == sum(not d.int8 for d in found.report.plan.decisions)
        (wanted,), (got,) = (MxnetRunner().compile(m)(data) for m in (model, found.model))
        assert sqnr_db(wanted, got) > 30

    def test_what_was_said_of_other_operators_is_still_said(self):
        """Deciding anew forgets neither what passes took out nor why operators were not fused."""
        lines = (*self.lines[:-1], 'e = Dropout(d) p="0.5"', fc("g", "e"), "return g")
        plans = [self.made(*lines, target=target)[1].report.plan for target in ("avx2", "avx512_vnni")]
        assert [d.node for d in plans[0].removed] == ["e"]
        assert plans[0].removed == plans[1].removed
        assert not plans[0]["r"].int8

    def test_with_vnni_it_is_int8(self):
        assert self.made(*self.lines, target="avx512_vnni")[1].report.plan["r"].int8

    def test_unless_int8_is_asked_for(self):
        _, found, _ = self.made(*self.lines, overrides={"z": {"quantize": True}})
        assert found.report.plan["r"].int8
        assert found.report.saturation["r"].remedy == "none"
        assert "float" not in [event.get("rule") for event in found.report.trace]

    def test_codes_that_are_fed_are_read(self):
        _, found, _ = self.made(*self.lines, input_dtype="int8")
        assert found.report.plan["r"].int8
        assert found.report.input.dtype == "int8"

    def test_nothing_but_float_may_be_left(self):
        model, found, data = self.made(fc("z", "data"), "return z")
        assert found.report.summary["int8"] == 0
        (wanted,), (got,) = (MxnetRunner().compile(m)(data) for m in (model, found.model))
        np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-5)

    def test_the_trace_is_that_of_what_was_made(self):
        _, found, _ = self.made(*self.lines)
        assert not [t for t in found.report.trace if t.get("rule") == "float"]

    def test_ranges_of_what_was_carried(self):
        """The pooling is float once what it reads is, and what it makes is quantized: in the range that it carried."""
        graph = build(
            conv("a", "data"),
            "r = Activation(a) " + RELU,
            'p = Pooling(r) kernel="(2, 2)" pool_type="avg"',
            conv("b", "p"),
            "return b",
        )
        prepared = pipeline.plan(graph, CONFIG)
        thresholds = pipeline.calibrate(prepared, feeds()["data"], MxnetRunner(), progress=False).thresholds
        plan = partition(prepared.fused, CONFIG, prepared.backend.spec, kept={"r": "why not"})
        assert plan["r"].reason == "why not"
        assert not plan["p"].int8
        assert "p" not in thresholds
        found = with_carried(prepared.fused.graph, plan, thresholds)
        assert {str(r) for r in plan.observe} <= set(found)
        assert found.range("p") == thresholds.range("r")
        assert found["p"].note == "the range of what is carried to it"
