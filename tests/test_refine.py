"""Refining, from `mxq.quantize_net` down: how much data is looked at, what happens without, and that it pays."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
from graphs import CHANNELS, CONV1, SHAPE, build, conv, decided, fc, pictures, randomized, run

import mxq  # isort: skip  (before mxnet)

import mxnet as mx

from mxq import pipeline, refine
from mxq.artifacts import record
from mxq.backends.mxnet.exact import exact
from mxq.calibration.collect import collect
from mxq.config import LayerConfig, QuantConfig
from mxq.errors import DataError, RuntimeFailure
from mxq.graph.annotation_text import SHIFTED
from mxq.graph.ir import Model, Ref
from mxq.numerics import sqnr_db
from mxq.passes.biases import with_biases
from mxq.pipeline import Quantized
from mxq.quant import QuantizedNetwork
from mxq.quant.thresholds import Range, Thresholds
from mxq.refine import EXAMPLES, NO_DATA, CalibrationSubset, kept, refined
from mxq.runtime import MxnetRunner, from_symbol, to_arrays, to_symbol
from mxq.weights import layer
from mxq.weights.held_out import Judge
from mxq.weights.layer import choose_places
from mxq.weights.layerwise_executor import peak_bytes
from mxq.weights.layerwise_refinement import LayerwiseResult

NET = (
    conv("conv0", "data"),
    'relu0 = Activation(conv0) act_type="relu"',
    conv("conv1", "relu0"),
    "sum = elemwise_add(conv1, relu0)",
    'relu1 = Activation(sum) act_type="relu"',
    conv("conv2", "relu1", CONV1, bias=False),
    fc("fc0", "conv2"),
    "return fc0",
)


DATA, HELD_OUT = pictures(64, 0), pictures(64, 1)


def made(model: Model, runner: Any = None, data: Any = "given", **options: Any) -> Quantized:
    config = QuantConfig(**{"num_calib_examples": "100%", "target": "avx512_vnni", **options})
    prepared = pipeline.plan(model, config)
    ranges = pipeline.calibrate(prepared, DATA, MxnetRunner(), progress=False)
    feeds = [{"data": DATA}] if isinstance(data, str) else data
    return pipeline.quantize(prepared, ranges, runner=runner or MxnetRunner(), data=feeds)


def sqnr(model: Model, done: Quantized) -> float:
    """On data not seen before, in exact arithmetic."""
    return sqnr_db(*(run(m, {"data": HELD_OUT})[0] for m in (model, exact(done.model))))


class TestLookedAt:
    class Batches:
        """Batches of one size, that tell how many were read."""

        def __init__(self, size: int, count: int = 1000) -> None:
            self.size, self.count, self.read = size, count, 0

        def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
            for i in range(self.count):
                self.read += 1
                yield {"data": np.full((self.size, *SHAPE[1:]), i, np.float32)}

    def looked(self, batches: Any, effort: str = "default") -> list[int]:
        found = CalibrationSubset.at(MxnetRunner(), build(*NET), batches, QuantConfig(effort=effort))
        return [len(f["data"]) for f in found.feeds]

    @pytest.mark.parametrize("effort", EXAMPLES)
    def test_as_many_examples_as_the_effort_says(self, effort: str) -> None:
        batches = self.Batches(30)
        sizes = self.looked(batches, effort)
        assert sum(sizes) == EXAMPLES[effort]
        assert set(sizes[:-1]) == {30}
        assert batches.read == -(-EXAMPLES[effort] // 30)

    def test_a_multiple_of_the_batch_reads_no_batch_more(self) -> None:
        batches = self.Batches(32)
        assert self.looked(batches) == [32, 32]
        assert batches.read == 2

    def test_all_where_there_are_fewer(self) -> None:
        assert self.looked(self.Batches(5, 3)) == [5, 5, 5]

    def test_the_first_examples_in_order(self) -> None:
        found = CalibrationSubset.at(MxnetRunner(), build(*NET), self.Batches(40), QuantConfig())
        assert [f["data"].flat[0] for f in found.feeds] == [0, 1]

    @pytest.mark.parametrize(("room", "sizes"), [(10, [4, 4, 2]), (3, [3]), (0, [1])])
    def test_memory_limits_them(self, monkeypatch: pytest.MonkeyPatch, room: int, sizes: list[int]) -> None:
        """Of both networks' tensors at the most; one example in any case."""
        one = {"data": DATA[:1]}
        monkeypatch.setattr(refine, "MEMORY", room * 2 * peak_bytes(MxnetRunner(), build(*NET), one))
        assert self.looked(self.Batches(4)) == sizes

    def test_no_data(self) -> None:
        assert self.looked([]) == []


class TestEndToEnd:
    @pytest.mark.parametrize("seed", [0, 1, 2])
    def test_closer_to_float_than_fast(self, seed: int) -> None:
        model = build(*NET, seed=seed)
        fast, better = (made(model, effort=e) for e in ("fast", "default"))
        assert better.warnings == ()
        assert sqnr(model, better) > sqnr(model, fast) + 0.5

    def test_it_is_recorded(self) -> None:
        done = made(build(*NET))
        assert set(done.report.weights) == {"relu0", "relu1", "conv2", "fc0"}
        again = record.from_json(record.to_json(done.report))
        assert again.weights == done.report.weights
        assert {r.rounding for r in again.weights.values()} == {"reconstruction"}

    def test_what_an_observer_clipped_is_recorded_with_its_rounding(self) -> None:
        done = made(build(*NET), weight_calib_mode="mse")
        assert {r.observer for r in done.report.weights.values()} == {"mse"}
        assert {r.rounding for r in done.report.weights.values()} == {"reconstruction"}

    def test_heads_and_inputs_stay(self) -> None:
        model = build(*NET)
        done = made(model)
        assert done.model.inputs == ("data",)
        assert done.model.graph.heads == model.graph.heads

    def test_fast_looks_at_nothing(self) -> None:
        def never() -> Iterator[Any]:
            raise AssertionError("calibration data was read")
            yield

        done = made(build(*NET), data=never(), effort="fast")
        assert done.warnings == ()
        assert done.report.weights == {}

    def test_a_fixed_range_is_as_it_was_given(self) -> None:
        given = {"relu0": LayerConfig(threshold=(0.0, 9.0))}
        done = made(build(*NET), overrides=given)
        found = done.thresholds["relu0"]
        assert found.observer == "fixed"
        assert (found.range.min, found.range.max) == (0.0, 9.0)

    @pytest.mark.parametrize("target", ["avx512_vnni", "avx2"])
    def test_ranges_that_calib_mode_gives_are_as_given(self, target: str) -> None:
        """A shifted one moves with its tensor."""
        given = Range(-3.0, 5.0)
        done = made(build(*NET), calib_mode="fixed:-3,5", target=target)
        moved = {name for name in done.thresholds if name.endswith(SHIFTED)}
        assert {done.thresholds.range(name) for name in done.thresholds.keys() - moved} == {given}
        assert {done.thresholds.range(name) for name in moved} <= {Range(0.0, 8.0)}
        assert not {"equalize", "align_ranges"} & {step["pass"] for step in done.report.trace if step["fired"]}

    def test_the_best_effort_looks_at_four_times_as_many_places(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """As docs/accuracy.md says; of the layer of most places there are 64 x 36."""
        counts: dict[str, list[int]] = {}
        monkeypatch.setattr(layer, "LEAST_PLACES", 256)
        for effort in ("default", "best"):
            seen = counts.setdefault(effort, [])

            def counted(*args: Any, seen: list[int] = seen) -> Any:
                places = choose_places(*args)
                seen.append(sum(map(len, places)))
                return places

            monkeypatch.setattr(layer, "choose_places", counted)
            made(build(*NET), effort=effort)
        assert max(counts["default"]) == 256
        assert max(counts["best"]) == 4 * 256

    def test_is_repeatable(self) -> None:
        one, other = made(build(*NET)), made(build(*NET))
        assert one.model.graph == other.model.graph
        for name, value in one.model.args.items():
            np.testing.assert_array_equal(value, other.model.args[name])

    @pytest.mark.parametrize("target", ["avx2", "avx512"])
    def test_sums_are_guarded_as_by_fast(self, target: str) -> None:
        """Without VNNI, what saturates is recorded whatever the effort."""
        fast, better = (made(build(*NET), effort=e, target=target) for e in ("fast", "default"))
        assert fast.report.saturation
        assert set(better.report.saturation) == set(fast.report.saturation)


class TestHeldBack:
    """A method stays where the network's outputs gain by it, on examples that it was not fitted to."""

    @pytest.fixture
    def found(self) -> tuple[Judge, QuantizedNetwork, LayerwiseResult]:
        """Who judges, a network, and what refinement makes of it."""
        model, config = build(*NET), QuantConfig(target="avx512_vnni", num_calib_examples="100%")
        prepared = pipeline.plan(model, config)
        ranges = pipeline.calibrate(prepared, DATA, MxnetRunner(), progress=False)
        looked, held = CalibrationSubset.at(MxnetRunner(), model, [{"data": DATA}], config).divided()
        network = with_biases(decided(prepared, ranges.thresholds))
        judge = Judge.of(MxnetRunner(), prepared.fused, held)
        return judge, network, refined(looked, network, prepared.backend.spec, config)

    @staticmethod
    def narrow(network: QuantizedNetwork) -> QuantizedNetwork:
        table = {k: t.ranged(t.range.times(0.1), "") for k, t in network.thresholds.items()}
        return network.with_thresholds(Thresholds(table))

    def test_what_helps_stays(self, found: tuple[Judge, QuantizedNetwork, LayerwiseResult]) -> None:
        judge, before, after = found
        assert kept(judge, before, after) == after

    def test_ranges_that_harm_are_undone_alone(self, found: tuple[Judge, QuantizedNetwork, LayerwiseResult]) -> None:
        judge, before, after = found
        stays = kept(judge, before, replace(after, network=self.narrow(after.network)))
        assert stays.network.thresholds == before.thresholds
        for name in ("conv0_weight", "fc0_weight"):
            np.testing.assert_array_equal(stays.network.fused.args[name], after.network.fused.args[name])
        assert stays.weights == after.weights

    def test_biases_that_harm_are_undone_alone(self, found: tuple[Judge, QuantizedNetwork, LayerwiseResult]) -> None:
        judge, before, after = found
        args = after.network.fused.args
        stays = kept(
            judge, before, replace(after, network=after.network.with_weights({"fc0_bias": args["fc0_bias"] + 9}))
        )
        np.testing.assert_array_equal(stays.network.fused.args["fc0_bias"], before.fused.args["fc0_bias"])
        np.testing.assert_array_equal(stays.network.fused.args["fc0_weight"], args["fc0_weight"])

    def test_weights_that_harm_are_undone_and_not_recorded(
        self, found: tuple[Judge, QuantizedNetwork, LayerwiseResult]
    ) -> None:
        judge, before, after = found
        wrong = after.network.with_weights({"fc0_weight": -before.fused.args["fc0_weight"]})
        stays = kept(judge, before, replace(after, network=wrong))
        np.testing.assert_array_equal(stays.network.fused.args["fc0_weight"], before.fused.args["fc0_weight"])
        assert stays.network.thresholds == after.network.thresholds
        assert stays.weights == {}

    def test_where_all_harms_nothing_is_done(self, found: tuple[Judge, QuantizedNetwork, LayerwiseResult]) -> None:
        judge, before, after = found
        wrong = self.narrow(after.network.with_weights({"fc0_weight": -before.fused.args["fc0_weight"]}))
        assert kept(judge, before, replace(after, network=wrong)).network is before

    def test_what_is_held_back_is_not_fitted_to(self, monkeypatch: pytest.MonkeyPatch) -> None:
        sizes = []

        def counted(looked: CalibrationSubset, *args: Any) -> LayerwiseResult:
            sizes.append(sum(len(f["data"]) for f in looked.feeds))
            return refined(looked, *args)

        monkeypatch.setattr(pipeline, "refined", counted)
        made(build(*NET))
        assert sizes == [48]

    def test_ranges_leave_out_what_few_examples_hold(self) -> None:
        """One picture of 32 is a hundred times as bright, and the network only says whether there is something."""
        model, bright = build(*NET[:-1], "seen = sigmoid(fc0)", "return seen"), DATA.copy()
        bright[::32] *= 100
        done = {}
        for choice in ("tensor", "layer"):
            prepared = pipeline.plan(model, QuantConfig(range_choice=choice, target="avx512_vnni"))
            ranges = pipeline.calibrate(prepared, bright, MxnetRunner(), progress=False)
            done[choice] = pipeline.quantize(prepared, ranges, runner=MxnetRunner(), data=[{"data": bright}])
        assert "which few examples fill" in done["layer"].thresholds["data"].note
        assert done["tensor"].thresholds["data"].note == ""
        assert sqnr(model, done["layer"]) > sqnr(model, done["tensor"]) + 6


class TestSizes:
    """Batches of other sizes, axes in another order: what counts examples and channels follows from the network."""

    RNN = 'r = RNN({0}, r_parameters, {1}) state_size="8" num_layers="1" mode="gru"'
    FLAT = 'num_hidden="{}" flatten="False"'

    def refined(self, model: Model, *feeds: dict[str, np.ndarray], layers: int, **options: Any) -> Quantized:
        """By the default, with nothing to warn of; closer to float than by "fast", on the data itself."""
        config = {"num_calib_examples": "100%", "target": "avx512_vnni", **options}
        done, noise = [], []
        for effort in ("fast", "default"):
            prepared = pipeline.plan(model, QuantConfig(effort=effort, **config), MxnetRunner())
            ranges = pipeline.calibrate(prepared, list(feeds), MxnetRunner(), progress=False)
            done.append(pipeline.quantize(prepared, ranges, runner=MxnetRunner(), data=feeds))
            made, given = exact(done[-1].model), [(run(model, f)[0], f) for f in feeds]
            noise.append(sum(float(np.square(run(made, f)[0] - wanted).sum()) for wanted, f in given))
            assert done[-1].warnings == ranges.warnings == ()
        records = done[1].report.weights
        assert [r.rounding for r in records.values()] == ["reconstruction"] * layers
        assert noise[1] < 0.9 * noise[0]
        return done[1]

    def test_pictures_of_other_sizes(self) -> None:
        sizes = ((2, 6, 6), (1, 9, 5), (4, 7, 12), (3, 6, 6), (1, 20, 31))
        rng = np.random.default_rng(0)
        feeds = [{"data": rng.standard_normal((n, CHANNELS, h, w)).astype(np.float32)} for n, h, w in sizes]
        pool = 'pool = Pooling(relu1) pool_type="avg" kernel="(2, 2)"'
        self.refined(build(*NET[:5], pool, conv("conv2", "pool"), "return conv2"), *feeds, layers=3)

    def test_texts_of_other_lengths(self) -> None:
        lines = (
            'e = Embedding(data, e_weight) input_dim="30" output_dim="16"',
            'x = expand_dims(e) axis="1"',
            conv("conv0", "x", 'kernel="(3, 16)" num_filter="8"'),
            'relu0 = Activation(conv0) act_type="relu"',
            'm = max(relu0) axis="(2, 3)"',
            fc("fc0", "m"),
            "return fc0",
        )
        rng = np.random.default_rng(0)
        feeds = [{"data": rng.integers(0, 30, (8, n)).astype(np.float32)} for n in (5, 9, 12, 20, 7)]
        self.refined(build(*lines, data=(8, 5)), *feeds, layers=2)

    @pytest.mark.parametrize("effort", ["default", "best"])
    def test_time_before_the_batch(self, effort: str) -> None:
        """In the input and inside; each batch has another length. No time step is taken for an example."""
        lines = (
            fc("fc0", "data", self.FLAT.format(8)),
            'relu0 = Activation(fc0) act_type="relu"',
            'z = _zeros() shape="(1, 0, 8)"',
            self.RNN.format("relu0", "z"),
            fc("fc1", "r", self.FLAT.format(8)),
            'relu1 = Activation(fc1) act_type="relu"',
            fc("fc2", "relu1", self.FLAT.format(5)),
            "return fc2",
        )
        rng = np.random.default_rng(0)
        feeds = [{"data": rng.standard_normal((t, n, 4)).astype(np.float32)} for t, n in ((9, 6), (4, 8), (13, 3))]
        model = build(*lines, data=(9, 6, 4))
        looked = CalibrationSubset.at(MxnetRunner(), model, feeds, QuantConfig(effort=effort))
        assert not looked.cut
        assert [f["data"].shape for f in looked.feeds] == [f["data"].shape for f in feeds]
        assert [f["data"].shape for f in looked.pieces(2)] == [f["data"].shape for f in feeds]
        assert [f["data"].shape for f in looked.some(10)] == [f["data"].shape for f in feeds[:2]]
        if effort == "default":
            self.refined(model, *feeds, layers=3)

    def test_begin_states_as_inputs(self) -> None:
        lines = (self.RNN.format("data", "state"), fc("fc1", "r", self.FLAT.format(8)), "return fc1")
        rng = np.random.default_rng(0)
        shapes = [{"data": (7, n, 4), "state": (1, n, 8)} for n in (6, 3)]
        feeds = [{k: rng.standard_normal(s).astype(np.float32) for k, s in each.items()} for each in shapes]
        model, config = build(*lines, **shapes[0]), QuantConfig(target="avx512_vnni")
        prepared = pipeline.plan(model, config)
        ranges = pipeline.ranges(prepared, collect(MxnetRunner(), prepared.fused, feeds, pipeline.wanted(prepared)))
        done = pipeline.quantize(prepared, ranges, runner=MxnetRunner(), data=feeds)
        assert done.warnings == ()
        assert [r.rounding for r in done.report.weights.values()] == ["reconstruction"]

    def test_a_batch_size_inside_a_reshape(self) -> None:
        lines = (
            *NET[:2],
            f'rows = Reshape(relu0) shape="(24, {CHANNELS // 2}, 6, 6)"',
            conv("conv1", "rows"),
            'relu1 = Activation(conv1) act_type="relu"',
            f'back = Reshape(relu1) shape="(12, {2 * CHANNELS}, 6, 6)"',
            fc("fc0", "back"),
            "return fc0",
        )
        self.refined(build(*lines, data=(12, *SHAPE[1:])), *({"data": DATA[i : i + 12]} for i in (0, 12)), layers=3)

    def test_batches_of_five_axes(self) -> None:
        views = f'v = Reshape(data) shape="(-1, {CHANNELS}, 6, 6)"'
        lines = (
            views,
            conv("conv0", "v"),
            *NET[1:5],
            f'w = Reshape(relu1) shape="(-1, 4, {CHANNELS}, 6, 6)"',
            'm = mean(w) axis="1"',
            fc("fc0", "m"),
            "return fc0",
        )
        five = DATA.reshape(16, 4, *SHAPE[1:])
        self.refined(build(*lines, data=five.shape), {"data": five}, layers=3)

    def test_volumes_of_other_sizes(self) -> None:
        three = 'kernel="(3, 3, 3)" num_filter="8" pad="(1, 1, 1)"'
        lines = (conv("conv0", "data", three), NET[1], conv("conv1", "relu0", three), "return conv1")
        rng = np.random.default_rng(0)
        sizes = ((3, 5, 6, 7), (2, 4, 8, 5))
        smooth = [rng.standard_normal((n, 2, *size)).cumsum(axis=2).cumsum(axis=3) / 4 for n, *size in sizes]
        feeds = [{"data": np.tanh(x).astype(np.float32)} for x in smooth]
        self.refined(build(*lines, data=feeds[0]["data"].shape), *feeds, layers=2)

    def test_a_larger_picture_counts_for_more(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Memory is that of what is fed, whatever the first batch was."""
        model, small = build(*NET[:5], "return relu1"), {"data": DATA[:2]}
        large = {"data": np.tile(DATA[:2], (1, 1, 4, 4))}
        one = peak_bytes(MxnetRunner(), model, {"data": DATA[:1]})
        monkeypatch.setattr(refine, "MEMORY", 2 * one * (2 + 16))
        looked = CalibrationSubset.at(MxnetRunner(), model, [small, large, small], QuantConfig())
        assert [f["data"].shape for f in looked.feeds] == [small["data"].shape, (1, CHANNELS, 24, 24)]

    @pytest.mark.parametrize("cell", ["lstm", "gru"])
    def test_cells_unrolled_share_weights_and_cost_no_other_layer_its_refinement(self, cell: str) -> None:
        """Their begin states are zeros of shape (0, 8); that they are zero is no sign of broken data."""
        x = mx.sym.Activation(mx.sym.FullyConnected(mx.sym.var("data"), num_hidden=6, flatten=False), act_type="relu")
        kind = {"lstm": mx.rnn.LSTMCell, "gru": mx.rnn.GRUCell}[cell]
        outputs, _ = kind(8, prefix="c_").unroll(3, inputs=x, layout="NTC", merge_outputs=True)
        net = from_symbol(mx.sym.FullyConnected(outputs, num_hidden=5, flatten=False, name="last"), {}, {})
        model, data = randomized(net.graph, data=(9, 3, 4)), np.random.default_rng(0).standard_normal((9, 3, 4))
        prepared = pipeline.plan(model, QuantConfig(target="avx512_vnni"), MxnetRunner())
        ranges = pipeline.calibrate(prepared, data.astype(np.float32), MxnetRunner(), progress=False)
        done = pipeline.quantize(prepared, ranges, runner=MxnetRunner(), data=[{"data": data.astype(np.float32)}])
        assert (ranges.warnings, done.warnings) == ((), ())
        records = done.report.weights
        shared = {name for name, found in records.items() if "no parameter of this layer alone" in found.note}
        assert len(shared) == 6
        assert {records[n].rounding for n in records.keys() - shared} == {"reconstruction"}
        assert len(records) == 8


class TestFallback:
    def plain(self) -> Quantized:
        return made(build(*NET), effort="fast")

    def same_weights(self, one: Quantized, other: Quantized) -> bool:
        return one.model.args.keys() == other.model.args.keys() and all(
            np.array_equal(v, other.model.args[k]) for k, v in one.model.args.items()
        )

    @dataclass
    class Refusing(MxnetRunner):
        """Runs no ``op`` alone and shows, of the whole network, no tensor called ``tap``."""

        op: str
        tap: str = ""

        def compile(self, model: Model, taps: tuple[Ref, ...] = ()) -> Any:
            if [n.op for n in model.graph.operators] == [self.op]:
                raise RuntimeFailure("MXNet refuses the graph: not alone")
            if self.tap in {ref.name for ref in taps}:
                raise RuntimeFailure("not shown")
            return super().compile(model, taps)

    @pytest.mark.parametrize("op", ["_sg_mkldnn_fully_connected", "_sg_mkldnn_conv"])
    def test_an_operator_that_does_not_run_alone(self, op: str) -> None:
        """All layers are refined, as the float network shows what they read."""
        model = build(*NET)
        done = made(model, runner=self.Refusing(op))
        layers = [n.name for n in done.prepared.fused.graph.operators if n.op == op]
        assert done.warnings == tuple(
            f"what follows it is refined on its values in float: {name!r} ({op}) does not run alone: "
            "MXNet refuses the graph: not alone"
            for name in layers
        )
        assert done.report.summary["warnings"] == list(done.warnings)
        assert {r.rounding for r in done.report.weights.values()} == {"reconstruction"}
        assert sqnr(model, done) > sqnr(model, self.plain()) + 0.5

    def test_an_operator_that_cannot_be_run_costs_what_follows_it_alone(self) -> None:
        model = build(*NET[:-2], "e = exp(conv2)", fc("fc0", "e"), "return fc0")
        done = made(model, runner=self.Refusing("exp", "e"))
        (warning,) = done.warnings
        assert warning == f"{NO_DATA} in 'fc0': 'e' (exp) does not run alone: MXNet refuses the graph: not alone"
        records = done.report.weights
        assert {n: r.rounding for n, r in records.items() if n != "fc0"} == dict.fromkeys(
            ("relu0", "relu1", "conv2"), "reconstruction"
        )
        assert (records["fc0"].rounding, records["fc0"].bias_correction) == ("nearest", "none")
        assert records["fc0"].note in warning
        np.testing.assert_array_equal(done.model.args["fc0_weight"], model.args["fc0_weight"])
        again = record.from_json(record.to_json(done.report))
        assert again.weights == records

    def test_an_operator_that_fails_only_in_the_walk(self) -> None:
        class Tired(MxnetRunner):
            left = 12

            def compile(self, model: Model, taps: tuple[Ref, ...] = ()) -> Any:
                Tired.left -= 1
                if Tired.left < 0:
                    raise RuntimeFailure("out of memory")
                return super().compile(model, taps)

        model = build(*NET)
        weight = model.args["conv2_weight"] * np.array([80, *[1] * 7], np.float32).reshape(-1, 1, 1, 1)
        columns = model.args["fc0_weight"].copy()
        columns[:, :36] /= 80
        model = replace(model, args={**model.args, "conv2_weight": weight, "fc0_weight": columns})
        assert any(e.rule == "equalize" for e in made(model).trace.events)
        done = made(model, runner=Tired())
        assert done.warnings == (f"{NO_DATA}: out of memory",)
        assert self.same_weights(done, made(model, effort="fast"))
        assert not any(e.rule == "equalize" for e in done.trace.events)

    def test_no_data(self) -> None:
        done = made(build(*NET), data=None)
        assert done.warnings == (f"{NO_DATA}: there is no calibration data",)
        assert self.same_weights(done, self.plain())

    def test_without_ranges_there_is_nothing_to_choose_for(self) -> None:
        done = made(build(*NET), calib_mode="none")
        assert done.warnings == ()
        assert done.report.weights == {}


class TestQuantizeNet:
    def args(self, calib_data: Any, **options: Any) -> tuple[dict[str, np.ndarray], Any]:
        model = build(*NET)
        net = (to_symbol(model.graph), to_arrays(model.args), {})
        done = mxq.quantize_model(*net, calib_data, target="avx512_vnni", **options)
        return {k: v.asnumpy() for k, v in done[1].items()}, done.report

    def batches(self) -> list[np.ndarray]:
        return [DATA[:12], DATA[12:24], DATA[24:32]]

    def test_a_generator_is_looked_at_twice(self) -> None:
        model = build(*NET)
        net = (to_symbol(model.graph), to_arrays(model.args), {})
        block = mxq.quantize_net(net, (b for b in self.batches()), target="avx512_vnni", num_calib_examples=32)
        report = block.mxq_report
        assert report.summary["warnings"] == []
        assert report.summary["calibration_examples"] == 32
        assert {r.rounding for r in report.weights.values()} == {"reconstruction"}

    def test_it_is_as_a_list(self) -> None:
        one, _ = self.args((b for b in self.batches()), num_calib_examples=32)
        other, _ = self.args(self.batches(), num_calib_examples=32)
        fast, _ = self.args(self.batches(), num_calib_examples=32, effort="fast")
        assert one.keys() == other.keys()
        assert all(np.array_equal(v, other[k]) for k, v in one.items())
        assert any(not np.array_equal(v, other[k]) for k, v in fast.items())

    def test_ranges_alone_warn(self) -> None:
        model = build(*NET)
        net = (to_symbol(model.graph), to_arrays(model.args), {})
        found = mxq.calibrate(net, self.batches(), num_calib_examples=32)
        done = mxq.quantize_model(*net, thresholds=found)
        assert done.report.summary["warnings"] == [f"{NO_DATA}: there is no calibration data"]

    def test_bad_data_is_still_refused(self) -> None:
        with pytest.raises(DataError, match="empty list"):
            self.args([])
