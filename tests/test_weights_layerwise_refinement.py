"""Layer-by-layer refinement: what it gives layers, what it leaves alone, and that the result is closer to float."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
from graphs import CHANNELS, CONV1, bn, build, conv, decided, fc, pictures, run
from helpers import assert_close

from mxq import pipeline
from mxq.backends.mxnet.exact import exact
from mxq.config import QuantConfig
from mxq.errors import RuntimeFailure
from mxq.graph.ir import Model, Ref
from mxq.numerics import sqnr_db
from mxq.passes.biases import add_biases
from mxq.quant.thresholds import Range, Thresholds
from mxq.runtime import MxnetRunner
from mxq.weights.grid import on_grid
from mxq.weights.layerwise_executor import LayerwiseExecutor, Schedule, alone, ancestors, peak_bytes
from mxq.weights.layerwise_refinement import LayerwiseConfig, LayerwiseResult, refine_layerwise

RELU0 = 'relu0 = Activation(conv0) act_type="relu"'
RESIDUAL = (
    conv("conv0", "data", bias=False),
    bn("bn0", "conv0"),
    'relu0 = Activation(bn0) act_type="relu"',
    conv("conv1", "relu0"),
    bn("bn1", "conv1"),
    "sum = elemwise_add(bn1, relu0)",
    'relu1 = Activation(sum) act_type="relu"',
    conv("conv2", "relu1", CONV1),
    'relu2 = Activation(conv2) act_type="relu"',
    'pool = Pooling(relu2) pool_type="avg" global_pool="True" kernel="(1, 1)"',
    fc("fc0", "pool"),
    "return fc0",
)


DATA, HELD_OUT = pictures(64, 0), pictures(64, 1)


@dataclass
class Case:
    """A network ready to be refined."""

    prepared: pipeline.Prepared
    model: Model
    thresholds: Thresholds

    @staticmethod
    def of(model: Model, **options: Any) -> Case:
        config = QuantConfig(**{"num_calib_examples": "100%", "target": "avx512_vnni", "equalize": False, **options})
        prepared = pipeline.plan(model, config)
        ranges = pipeline.calibrate(prepared, DATA, MxnetRunner(), progress=False)
        return Case(prepared, add_biases(prepared.fused, prepared.plan), ranges.thresholds)

    def refined(
        self, runner: Any = None, feed: Any = None, target: str = "avx512_vnni", **changes: Any
    ) -> LayerwiseResult:
        network = decided(self.prepared, self.thresholds, self.model, target=target)
        setting = LayerwiseConfig(network, self.prepared.backend.spec, self.prepared.config.methods)
        given = [{"data": DATA[:20]}, {"data": DATA[20:]}] if feed is None else feed
        return refine_layerwise(runner or MxnetRunner(), replace(setting, **changes), given, progress=False)

    def int8(self, found: LayerwiseResult | None = None) -> Model:
        network = decided(self.prepared, self.thresholds, self.model) if found is None else found.network
        return exact(self.prepared.backend.lower(network).model)


def sqnr(model: Model, other: Model, data: np.ndarray = HELD_OUT) -> float:
    return sqnr_db(run(model, {"data": data})[0], run(other, {"data": data})[0])


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_it_comes_closer_to_float(seed: int) -> None:
    """On data that it has not seen, in exact arithmetic."""
    case = Case.of(build(*RESIDUAL, seed=seed), range_choice="tensor", quantize_mode="full")
    assert sqnr(case.model, case.int8(case.refined())) > sqnr(case.model, case.int8()) + 1


@pytest.mark.parametrize(
    "only", [{"rounding": "reconstruction"}, {"bias_correction": "empirical"}], ids=["rounding", "bias"]
)
def test_each_method_alone_helps(only: dict[str, str]) -> None:
    gains = []
    for seed in range(3):
        case = Case.of(build(*RESIDUAL, seed=seed), effort="fast", **only)
        gains.append(sqnr(case.model, case.int8(case.refined())) - sqnr(case.model, case.int8()))
    assert np.mean(gains) > 0.5


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_choosing_ranges_does_no_harm(seed: int) -> None:
    """Not on the data it looks at, of which it must not forget the largest values."""
    case = Case.of(build(*RESIDUAL, seed=seed), effort="fast", range_choice="layer")
    assert sqnr(case.model, case.int8(case.refined()), DATA) > sqnr(case.model, case.int8(), DATA) - 0.5


@pytest.mark.parametrize("pool", ["max", "avg"])
def test_what_it_simulates_is_what_the_network_computes(pool: str) -> None:
    """The refinement's own int8 tensors equal those of the network that is built from its result."""
    case = Case.of(build(*(line.replace("avg", pool) for line in RESIDUAL)), range_choice="tensor")
    held: dict[str, np.ndarray] = {}

    class Spy(MxnetRunner):
        def compile(self, model: Model, taps: tuple[Ref, ...] = ()) -> Any:
            call = super().compile(model, taps)
            name = model.graph.operators[-1].name

            def called(given: Any) -> Any:
                held[name] = call(given)[0].copy()  # the second run of each operator is that of the int8 network
                return [held[name]]

            return called

    found = case.refined(Spy(), [{"data": DATA[:8]}])
    got = run(case.int8(found), {"data": DATA[:8]})[0]
    assert sqnr_db(got, held["fc0"]) > 55


def test_weights_are_written_for_the_kernels_grid() -> None:
    case = Case.of(build(*RESIDUAL))
    found = case.refined()
    assert set(found.weights) == {n.name for n in case.model.graph.operators if n.op.startswith("_sg_")}
    for name, record in found.weights.items():
        node = case.model.graph[name]
        weight, before = (m.args[node.inputs[1].name] for m in (found.network.fused, case.model))
        assert weight.shape == before.shape
        assert weight.dtype == np.float32
        rows = weight.reshape(len(weight), -1)
        codes = on_grid(weight).reshape(rows.shape) / (np.abs(rows).max(axis=1, keepdims=True) / 127.5)
        assert (np.abs(codes).max(axis=1) < 127.6).all()  # no -128
        inner = np.abs(codes) < 126.9
        assert np.abs(codes - np.rint(codes))[inner].max() < 1e-2
        assert record.observer == "layer"
        assert record.source == "rounding"
        assert record.channels == len(weight)
        assert (record.rounding, record.bias_correction) == ("reconstruction", "empirical")
        assert record.moved_share is not None
        assert 0 <= record.moved_share < 0.7
    assert max(r.moved_share or 0 for r in found.weights.values()) > 0.05


def test_halved_codes_where_kernels_of_s8_have_no_vnni() -> None:
    case = Case.of(build(conv("conv0", "data"), RELU0, conv("conv1", "relu0"), "return conv1"))
    found = case.refined(target="avx2")
    for name, span in (("relu0", 63.75), ("conv1", 127.5)):  # data is s8, relu0 u8
        weight = found.network.fused.args[case.model.graph[name].inputs[1].name].reshape(CHANNELS, -1)
        codes = weight / (np.abs(weight).max(axis=1, keepdims=True) / span)
        inner = np.abs(codes) < span - 0.6
        assert np.abs(codes - np.rint(codes))[inner].max() < 1e-2
    whole = case.refined()
    name = case.model.graph["relu0"].inputs[1].name
    assert not np.array_equal(whole.network.fused.args[name], found.network.fused.args[name])


def test_shared_weights_are_left_alone() -> None:
    again = 'again = Convolution(relu0, conv1_weight, conv1_bias) kernel="(3, 3)" num_filter="8" pad="(1, 1)"'
    lines = (conv("conv0", "data"), RELU0, conv("conv1", "relu0"), again, conv("conv2", "again"), "return conv1, conv2")
    case = Case.of(build(*lines))
    found = case.refined()
    notes = {name: record.note for name, record in found.weights.items()}
    shared = "'conv1_weight' is no parameter of this layer alone"
    assert notes == {"relu0": "", "conv1": shared, "again": shared, "conv2": ""}
    assert found.weights["again"].rounding == "nearest"
    assert found.lost == {}
    for name in ("conv1_weight", "conv1_bias"):
        np.testing.assert_array_equal(found.network.fused.args[name], case.model.args[name])
    assert not np.array_equal(found.network.fused.args["conv2_weight"], case.model.args["conv2_weight"])


def test_float_layers_are_left_alone() -> None:
    case = Case.of(build(*RESIDUAL), exclude_layers=("fc0",))
    found = case.refined()
    assert "fc0" not in found.weights
    np.testing.assert_array_equal(found.network.fused.args["fc0_weight"], case.model.args["fc0_weight"])


class TestRanges:
    def widened(self, observer: str) -> tuple[Case, LayerwiseResult]:
        """Twice what was calibrated."""
        case = Case.of(build(*RESIDUAL))
        table = {
            name: replace(t, observer=observer, range=Range(2 * t.range.min, 2 * t.range.max))
            for name, t in case.thresholds.items()
        }
        wide = replace(case, thresholds=Thresholds(table))
        return wide, wide.refined()

    def test_of_too_wide_ones_all_are_narrowed(self) -> None:
        case, found = self.widened("naive")
        for name, threshold in found.network.thresholds.items():
            before = case.thresholds[name].range
            assert threshold.range.absmax <= 0.61 * before.absmax
            assert threshold.range.min * before.max == pytest.approx(threshold.range.max * before.min)
            assert threshold.note.startswith(f"from [{before.min:.6g}, {before.max:.6g}]")

    def test_fixed_ones_are_not(self) -> None:
        case, found = self.widened("fixed")
        assert found.network.thresholds == case.thresholds

    def test_none_is_where_the_tensor_alone_decides(self) -> None:
        case = Case.of(build(*RESIDUAL), range_choice="tensor")
        table = {k: replace(t, range=Range(2 * t.range.min, 2 * t.range.max)) for k, t in case.thresholds.items()}
        wide = replace(case, thresholds=Thresholds(table))
        assert wide.refined().network.thresholds == wide.thresholds

    def test_what_a_concat_joins_keeps_its_range(self) -> None:
        """Such ranges were aligned, so that it only copies; also where a pooling lies between."""
        lines = (
            conv("conv0", "data"),
            RELU0,
            'pool = Pooling(relu0) pool_type="max" kernel="(3, 3)" pad="(1, 1)"',
            conv("conv1", "data"),
            'relu1 = Activation(conv1) act_type="relu"',
            'cat = Concat(pool, relu1) num_args="2" dim="1"',
            conv("conv2", "cat"),
            "return conv2",
        )
        case = Case.of(build(*lines))
        assert "cat" in case.prepared.plan.quantized
        table = {k: replace(t, range=Range(2 * t.range.min, 2 * t.range.max)) for k, t in case.thresholds.items()}
        wide = replace(case, thresholds=Thresholds(table))
        found = wide.refined().network.thresholds
        assert found["relu1"] == wide.thresholds["relu1"]
        assert found["relu0"] == wide.thresholds["relu0"]
        assert found["data"] != wide.thresholds["data"]


def test_it_is_repeatable_and_the_given_model_stays() -> None:
    case = Case.of(build(*RESIDUAL))
    before = {k: v.copy() for k, v in case.model.args.items()}
    one, other = case.refined(), case.refined()
    for name, value in one.network.fused.args.items():
        np.testing.assert_array_equal(value, other.network.fused.args[name])
    assert one.network.thresholds == other.network.thresholds
    assert all(np.array_equal(case.model.args[k], v) for k, v in before.items())


def test_batches_do_not_matter_much() -> None:
    case = Case.of(build(*RESIDUAL), range_choice="tensor")
    whole, parts = (case.refined(feed=[{"data": p} for p in np.split(DATA, n)]) for n in (1, 8))
    one, other = (sqnr(case.model, case.int8(w)) for w in (whole, parts))
    assert one == pytest.approx(other, abs=3)


def test_mxnet_says_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    """Graphs of one operator carry the version too; without it MXNet takes them for those of 0.8 and upgrades them."""
    case = Case.of(build(*RESIDUAL))
    capfd.readouterr()
    case.refined()
    assert "legacy_json" not in capfd.readouterr().err


class TestLive:
    NET = build(conv("conv0", "data"), RELU0, conv("conv1", "relu0"), "sum = elemwise_add(conv1, relu0)", "return sum")

    def test_operators_one_after_the_other_are_the_network(self) -> None:
        live = LayerwiseExecutor(MxnetRunner(), {Ref("data"): [DATA[:3], DATA[3:5]]})
        for node in self.NET.graph.operators:
            live.held |= live.run(self.NET, node)
        wanted = [run(self.NET, {"data": d})[0] for d in (DATA[:3], DATA[3:5])]
        for found, value in zip(live.held[Ref("sum")], wanted, strict=True):
            assert_close(found, value, rtol=1e-6, atol=1e-6)

    def test_batches_of_one_size_are_not_overwritten(self) -> None:
        """An executable's arrays are valid until its next call."""
        live = LayerwiseExecutor(MxnetRunner(), {Ref("data"): [DATA[:2], DATA[2:4]]})
        node = self.NET.graph["conv0"]
        first, second = live.run(self.NET, node)[node.out]
        both = run(alone(self.NET, node), {"data__0": DATA[:4]})[0]
        assert_close(np.concatenate([first, second]), both, rtol=1e-6, atol=1e-6)

    def test_all_outputs_of_an_operator(self) -> None:
        model = build('s = SliceChannel(data) num_outputs="2"', "t = elemwise_add(s:0, s:1)", "return t")
        node = model.graph["s"]
        live = LayerwiseExecutor(MxnetRunner(), {Ref("data"): [DATA[:2]]})
        assert Schedule.of(model.graph.operators).outputs(node) == (Ref("s", 0), Ref("s", 1))
        live.held |= live.run(model, node, (Ref("s", 0), Ref("s", 1)))
        assert_close(live.held[Ref("s", 1)][0], DATA[:2, CHANNELS // 2 :], rtol=0, atol=0)
        (found,) = live.run(model, model.graph["t"])[Ref("t")]
        assert_close(found, DATA[:2, : CHANNELS // 2] + DATA[:2, CHANNELS // 2 :], rtol=0, atol=1e-6)

    def test_ancestors_and_last_readers(self) -> None:
        nodes = self.NET.graph.operators
        assert [n.name for n in ancestors(self.NET.graph, ["relu0"])] == ["conv0", "relu0"]
        assert [n.name for n in ancestors(self.NET.graph, ["sum"])] == [n.name for n in nodes]
        schedule = Schedule.of(nodes)
        last_reader = {name: node.name for node in nodes for name in schedule.done(node)}
        assert last_reader["relu0"] == "sum"
        assert last_reader["data"] == "conv0"

    def test_the_most_bytes_at_once(self) -> None:
        one = 4 * CHANNELS * 36
        assert peak_bytes(MxnetRunner(), self.NET, {"data": DATA[:1]}) == 3 * one  # relu0, conv1 and their sum
        assert peak_bytes(MxnetRunner(), self.NET, {"data": DATA[:4]}) == 12 * one

    def test_names_of_tensors_and_parameters_do_not_meet(self) -> None:
        layer = '{} = FullyConnected(data, {}) num_hidden="8" no_bias="True"'
        model = build(layer.format("x", "data__0"), "return x", data=(3, 8))
        renamed = build(layer.format("data__0", "w"), "return data__0", data=(3, 8))
        x = DATA[:3, :, 0, 0]
        for net in (model, renamed):
            live = LayerwiseExecutor.of(MxnetRunner(), net, [{"data": x}])
            (node,) = net.graph.operators
            (found,) = live.run(net, node)[node.out]
            assert_close(found, run(net, {"data": x})[0], rtol=1e-6, atol=1e-6)

    STATES = build(
        'z = _zeros() shape="(0, 8)"',
        fc("h", "z", 'num_hidden="8"'),
        fc("i", "data", 'num_hidden="8"'),
        "s = elemwise_add(i, h)",
        'y = _zeros() shape="(0, 8)"',
        "t = elemwise_add(s, y)",
        "return t",
        data=(3, 8),
    )

    def test_zeros_that_learn_their_size_from_what_reads_them(self) -> None:
        """From one run of the whole network; each batch has its own."""
        runs: list[tuple[Ref, ...]] = []

        class Counting(MxnetRunner):
            def compile(self, model: Model, taps: tuple[Ref, ...] = ()) -> Any:
                runs.append(tuple(taps))
                return super().compile(model, taps)

        feeds = [{"data": DATA[:3, :, 0, 0]}, {"data": DATA[3:5, :, 0, 0]}]
        live = LayerwiseExecutor.of(Counting(), self.STATES, feeds)
        for node in self.STATES.graph.operators:
            live.held |= live.step(self.STATES, node)
        assert [v.shape for v in live.held[Ref("z")]] == [(3, 8), (2, 8)]
        assert set(live.apart) == {"z", "y"}
        assert live.lost == {}
        assert [taps for taps in runs if taps] == [(Ref("z"), Ref("y"))]
        for found, feed in zip(live.held[Ref("t")], feeds, strict=True):
            assert_close(found, run(self.STATES, feed)[0], rtol=1e-6, atol=1e-6)

    def test_what_cannot_be_had_is_lost_with_what_follows_alone(self) -> None:
        class Refusing(MxnetRunner):
            def compile(self, model: Model, taps: tuple[Ref, ...] = ()) -> Any:
                if [n.name for n in model.graph.operators] == ["i"] or Ref("i") in taps:
                    raise RuntimeFailure("not i")
                return super().compile(model, taps)

        live = LayerwiseExecutor.of(Refusing(), self.STATES, [{"data": DATA[:3, :, 0, 0]}])
        for node in self.STATES.graph.operators:
            live.held |= live.step(self.STATES, node)
        assert set(live.lost) == {Ref("i")}
        assert live.lost[Ref("i")] == "'i' (FullyConnected) does not run alone: not i"
        assert {"h", "s", "t"} <= {r.name for r in live.held}  # s from a run of the whole network
        assert set(live.apart) == {"z", "y", "s"}

    def test_forgets(self) -> None:
        live = LayerwiseExecutor(MxnetRunner(), {Ref("a"): [DATA], Ref("a", 1): [DATA], Ref("b"): [DATA]})
        live.forget(["a"])
        assert list(live.held) == [Ref("b")]
