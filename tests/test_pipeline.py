"""The whole arrow, network to int8 network: what each step keeps, decides, records and refuses."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from graphs import CHANNELS, SHAPE, bn, build, conv, fc, feeds, op_names, quantized, run
from helpers import assert_close
from hypothesis import given, settings
from hypothesis import strategies as st

from mxq import pipeline
from mxq.artifacts import record
from mxq.config import LayerConfig, QuantConfig
from mxq.errors import CalibrationError, ConfigError, DataError, QuantizeError
from mxq.graph.ir import Model
from mxq.pipeline import Calibrated, fingerprint
from mxq.quant.thresholds import Range, Threshold, Thresholds
from mxq.runtime import MxnetRunner

RESIDUAL = (
    conv("conv0", "data", bias=False),
    bn("bn0", "conv0"),
    'relu0 = Activation(bn0) act_type="relu"',
    conv("conv1", "relu0"),
    bn("bn1", "conv1"),
    "sum = elemwise_add(bn1, relu0)",
    'relu1 = Activation(sum) act_type="relu"',
    'pool = Pooling(relu1) pool_type="avg" global_pool="True" kernel="(1, 1)"',
    fc("fc0", "pool"),
    "prob = softmax(fc0)",
    "return prob",
)
LAYERS = ("conv0", "conv1", "fc0")
X = feeds()["data"]


def residual() -> Model:
    return build(*RESIDUAL)


def planned(model: Model | None = None, **options: Any) -> pipeline.Prepared:
    return pipeline.plan(residual() if model is None else model, QuantConfig(num_calib_examples="100%", **options))


def calibrated(prepared: pipeline.Prepared, data: Any = X) -> Calibrated:
    return pipeline.calibrate(prepared, data, MxnetRunner(), progress=False)


def sqnr(wanted: np.ndarray, found: np.ndarray) -> float:
    """Signal to quantization noise in dB."""
    return float(10 * np.log10((wanted**2).sum() / ((wanted - found) ** 2).sum()))


class TestPrepare:
    def test_folds_and_keeps_the_outputs(self) -> None:
        model = residual()
        prepared, _ = pipeline.prepare(model)
        assert "BatchNorm" in op_names(model)
        assert "BatchNorm" not in op_names(prepared)
        assert not prepared.auxs
        assert_close(run(prepared)[0], run(model)[0], rtol=1e-5, atol=1e-6)

    def test_leaves_the_given_model_alone(self) -> None:
        model = residual()
        before = {k: v.copy() for k, v in {**model.args, **model.auxs}.items()}
        graph = model.graph
        pipeline.prepare(model)
        assert model.graph is graph
        for name, value in before.items():
            np.testing.assert_array_equal(model.param(name), value)

    def test_a_second_time_changes_nothing(self) -> None:
        once, _ = pipeline.prepare(residual())
        assert pipeline.prepare(once)[0] is once

    def test_records_what_fired(self) -> None:
        _, trace = pipeline.prepare(residual())
        assert {e["pass"] for e in trace.to_json() if e["fired"]} >= {"fold_bn"}

    @pytest.mark.parametrize("step", [pipeline.prepare, pipeline.fuse_float, planned])
    def test_an_int8_network_is_refused(self, step: Any) -> None:
        int8 = quantized(residual()).model
        with pytest.raises(QuantizeError, match=r"quantized already: .* is already int8; allowed: a float network"):
            step(int8)


class TestFuseFloat:
    def test_fuses_and_keeps_the_outputs(self) -> None:
        fused = pipeline.fuse_float(residual())
        assert not set(op_names(fused)) & {"Convolution", "Activation", "elemwise_add", "BatchNorm"}
        assert_close(run(fused)[0], run(residual())[0], rtol=1e-5, atol=1e-6)


@st.composite
def networks(draw: st.DrawFn) -> Model:
    """Three to eight layers, each reading any tensor made before it; the last two tensors are the outputs."""
    lines, made = [], ["data"]
    for i in range(draw(st.integers(3, 8))):
        name, read = f"n{i}", draw(st.sampled_from(made[-3:]))
        kind = draw(st.sampled_from(["conv", "conv", "conv without bias", "bn", "relu", "clip", "sum", "sigmoid"]))
        other = draw(st.sampled_from(made))
        lines.append(
            {
                "conv": conv(name, read),
                "conv without bias": conv(name, read, bias=False),
                "bn": bn(name, read),
                "relu": f'{name} = Activation({read}) act_type="relu"',
                "sigmoid": f'{name} = Activation({read}) act_type="sigmoid"',
                "clip": f'{name} = clip({read}) a_min="0.0" a_max="6.0"',
                "sum": f"{name} = elemwise_add({read}, {other})",
            }[kind]
        )
        made.append(name)
    return build(*lines, f"return {made[-1]}, {made[-2]}" if made[-2] != "data" else f"return {made[-1]}")


class TestOnAnyNetwork:
    @settings(max_examples=25, deadline=None)
    @given(networks())
    def test_float_steps_keep_the_outputs(self, model: Model) -> None:
        wanted = run(model)
        for step in (lambda m: pipeline.prepare(m)[0], pipeline.fuse_float, lambda m: planned(m).fused):
            for found, value in zip(run(step(model)), wanted, strict=True):
                assert_close(found, value, rtol=1e-4, atol=1e-4 * float(np.abs(value).max() + 1))

    @settings(max_examples=15, deadline=None)
    @given(networks())
    def test_every_operator_of_the_fused_graph_has_a_decision_with_a_reason(self, model: Model) -> None:
        prepared = planned(model)
        operators = [n.name for n in prepared.fused.graph.operators]
        assert [d.node for d in prepared.plan.decisions] == operators
        assert all(d.reason for d in prepared.plan.decisions)
        if not prepared.plan.quantized:
            return
        result = pipeline.quantize(prepared, calibrated(prepared))
        assert len(run(result.model)) == len(model.graph.heads)
        assert result.model.inputs == ("data",)


class TestPlan:
    def test_decisions_name_every_operator_once(self) -> None:
        prepared = planned()
        members = [m for d in prepared.plan.decisions for m in d.members]
        assert len(members) == len(set(members))
        assert set(members) >= set(LAYERS) | {"relu0", "sum", "relu1", "pool", "prob"}
        assert {m for d in prepared.plan.decisions if d.int8 for m in d.members} >= set(LAYERS)

    def test_softmax_stays_float(self) -> None:
        decision = next(d for d in planned().plan.decisions if "prob" in d.members)
        assert not decision.int8
        assert decision.reason

    def test_observed_tensors_exist(self) -> None:
        prepared = planned()
        assert prepared.plan.observe
        assert all(r.name in prepared.fused.graph for r in prepared.plan.observe)

    def test_an_unknown_mode_is_refused_before_anything_runs(self) -> None:
        allowed = "'auto', 'ema_minmax', 'entropy', 'fixed', .*'naive', .*'none'"
        with pytest.raises(ConfigError, match=f"calib_mode is 'median'; allowed: {allowed}"):
            planned(calib_mode="median")


class TestCalibrate:
    def test_naive_ranges_are_those_of_the_float_network(self) -> None:
        prepared = planned()
        found = calibrated(prepared)
        assert set(found.thresholds) == {str(r) for r in prepared.plan.observe}
        refs = tuple(r for r in prepared.plan.observe if not prepared.fused.graph[r.name].is_variable)
        values = run(prepared.fused, {"data": X}, refs)[len(prepared.fused.graph.heads) :]
        for ref, value in zip(refs, values, strict=True):
            got = found.thresholds.range(str(ref))
            assert (got.min, got.max) == (float(value.min()), float(value.max()))
        assert found.statistics.examples == len(X)
        assert found.statistics.batches == 1

    def test_mode_none_reads_no_data(self) -> None:
        def never() -> Any:
            raise AssertionError("calibration data was read")
            yield

        assert calibrated(planned(calib_mode="none"), never()) == Calibrated(Thresholds())

    def test_no_data(self) -> None:
        with pytest.raises(DataError, match="calib_data is None, but calib_mode 'entropy' needs data"):
            calibrated(planned(calib_mode="entropy"), None)

    def test_a_fixed_threshold_is_taken_as_it_is(self) -> None:
        prepared = planned(overrides={"data": LayerConfig(threshold=(-2.0, 1.5))})
        found = calibrated(prepared).thresholds
        assert found["data"] == Threshold(Range(-2.0, 1.5), "fixed", source="overrides 'data'")
        assert {t.observer for name, t in found.items() if name != "data"} == {"naive"}

    def test_where_all_are_fixed_no_data_is_needed(self) -> None:
        found = calibrated(planned(overrides={"*": LayerConfig(threshold=(-3.0, 3.0))}), None)
        assert {t.observer for t in found.thresholds.values()} == {"fixed"}
        assert found.statistics.examples == 0

    def test_a_layer_may_have_its_own_mode(self) -> None:
        own = planned(overrides={"data": LayerConfig(calib_mode="entropy")})
        found = calibrated(own).thresholds
        assert found["data"].observer == "entropy"
        assert {t.observer for name, t in found.items() if name != "data"} == {"naive"}
        everywhere = calibrated(planned(calib_mode="entropy")).thresholds
        assert found["data"] == replace(everywhere["data"], source="overrides 'data'")

    def test_an_unknown_mode_of_a_layer(self) -> None:
        with pytest.raises(ConfigError, match=r"overrides 'data': calib_mode is 'median'; allowed: 'auto', .*'naive'"):
            calibrated(planned(overrides={"data": LayerConfig(calib_mode="median")}))

    def test_the_budget_is_kept(self) -> None:
        prepared = pipeline.plan(residual(), QuantConfig(num_calib_examples=1))
        found = calibrated(prepared)
        assert found.statistics.examples == 1
        assert found.thresholds.range("data") == Range(float(X[0].min()), float(X[0].max()))

    def test_warnings_of_the_data_are_passed_on(self) -> None:
        found = calibrated(pipeline.plan(residual(), QuantConfig(num_calib_examples=9)))
        assert found.warnings == ("9 calibration examples were asked for, the data held 2",)


class TestQuantize:
    @pytest.mark.parametrize("mode", ["naive", "entropy", "none"])
    def test_int8_is_close_to_float(self, mode: str) -> None:
        logits = build(*RESIDUAL[:-2], "return fc0")
        result = quantized(logits, calib_mode=mode)
        bar = 20 if mode == "entropy" else 30  # entropy clips, on 2 x 8 x 6 x 6 values rather much
        assert sqnr(run(logits)[0], run(result.model)[0]) > bar

    def test_wrong_ranges_show(self) -> None:
        logits = build(*RESIDUAL[:-2], "return fc0")
        prepared = planned(logits, quantize_mode="full")
        wrong = {
            n: Threshold(Range(t.range.min * 20, t.range.max * 20), "fixed")
            for n, t in calibrated(prepared).thresholds.items()
        }
        result = pipeline.quantize(prepared, Calibrated(Thresholds(wrong)))
        assert sqnr(run(logits)[0], run(result.model)[0]) < 20

    def test_a_missing_range(self) -> None:
        prepared = planned()
        table = dict(calibrated(prepared).thresholds)
        last = str(prepared.plan.observe[-1])
        del table[last]
        match = rf"thresholds lack tensor '{last}' \(1 missing in all\); allowed: those that calibrate finds"
        with pytest.raises(CalibrationError, match=match):
            pipeline.quantize(prepared, Calibrated(Thresholds(table)))

    def test_nothing_int8(self) -> None:
        prepared = planned(exclude_operators=("Convolution", "FullyConnected"))
        made = pipeline.quantize(prepared, Calibrated(Thresholds()))
        assert made.model is prepared.source
        (warning,) = made.report.summary["warnings"]
        assert re.match(r"no operator of the network can be int8, it stays as it is: .*exclude_operators", warning)
        assert made.report.summary["int8"] == 0

    def test_is_repeatable(self) -> None:
        one, other = quantized(residual()), quantized(residual())
        assert one.model.graph == other.model.graph
        assert record.to_json(one.report) == record.to_json(other.report)
        for name, value in one.model.args.items():
            np.testing.assert_array_equal(value, other.model.args[name])

    def test_names_of_heads_and_inputs_stay(self) -> None:
        model = residual()
        result = quantized(model)
        assert result.model.inputs == model.inputs
        assert [h.name for h in result.model.graph.heads] == ["prob"]
        assert result.prepared.source is model


class TestReport:
    def test_summary_counts_the_decisions(self) -> None:
        report = quantized(residual(), effort="fast").report
        int8 = [d for d in report.plan.decisions if d.int8]
        assert report.summary["int8"] == len(int8)
        assert report.summary["float"] == len(report.plan.decisions) - len(int8)
        assert report.summary["calibration_examples"] == SHAPE[0]
        assert report.summary["calibration_batches"] == 1
        assert report.summary["warnings"] == []

    def test_every_decision_has_a_reason(self) -> None:
        report = quantized(residual(), exclude_layers=("conv1",)).report
        assert all(d.reason and d.op and d.members for d in report.plan.decisions)
        excluded = next(d for d in report.plan.decisions if "conv1" in d.members)
        assert not excluded.int8
        assert "exclude_layers" in excluded.reason

    def test_every_quantizer_and_int8_layer_is_recorded(self) -> None:
        result = quantized(residual())
        made = {n.name for n in result.model.graph.operators}
        assert set(result.report.tensors) <= made
        assert {t.dtype for t in result.report.tensors.values()} <= {"int8", "uint8"}
        quantizers = [n.name for n in result.model.graph.operators if n.op == "_contrib_quantize_v2"]
        assert set(quantizers) <= set(result.report.tensors)

    def test_is_json_and_survives_it(self) -> None:
        report = quantized(residual(), overrides={"fc0": {"quantize": False}}).report
        text = json.dumps(record.to_json(report), allow_nan=False)
        assert record.to_json(record.from_json(text)) == json.loads(text)

    def test_holds_what_was_asked_for_and_found(self) -> None:
        result = quantized(residual(), calib_mode="entropy")
        assert result.report.config["calib_mode"] == "entropy"
        assert result.report.thresholds == result.thresholds.to_json()
        assert result.report.source == fingerprint(result.prepared.source)
        assert any(step["rule"] == "fuse_conv_add_act" and step["fired"] for step in result.report.trace)


class TestFingerprint:
    def test_is_the_same_for_the_same_network(self) -> None:
        assert fingerprint(residual()) == fingerprint(residual())
        assert fingerprint(residual())["inputs"] == ["data"]

    def test_changes_with_one_weight(self) -> None:
        model = residual()
        weight = model.args["conv0_weight"].copy()
        weight.flat[5] = np.nextafter(weight.flat[5], np.float32(9))
        one, other = fingerprint(model), fingerprint(model.with_graph(model.graph, {"conv0_weight": weight}))
        assert one["graph_sha256"] == other["graph_sha256"]
        assert one["params_sha256"] != other["params_sha256"]

    def test_changes_with_a_shape_or_type_alone(self) -> None:
        model = residual()
        bias = model.args["conv1_bias"]
        found = {
            str(fingerprint(model.with_graph(model.graph, {"conv1_bias": b}))["params_sha256"])
            for b in (bias, bias.reshape(2, CHANNELS // 2), bias.view(np.int32))
        }
        assert len(found) == 3

    def test_changes_with_the_graph(self) -> None:
        model = residual()
        nodes = {"relu0": [model.graph["relu0"].with_attrs(act_type="sigmoid")]}
        one, other = fingerprint(model), fingerprint(model.with_graph(model.graph.replace(nodes)))
        assert one["params_sha256"] == other["params_sha256"]
        assert one["graph_sha256"] != other["graph_sha256"]
