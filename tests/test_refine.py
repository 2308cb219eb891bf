"""Refining, from `mxq.quantize_net` down: how much data is looked at, what happens without, and that it pays."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from graphs import CHANNELS, CONV1, SHAPE, build, conv, fc, run

import mxq
from mxq import pipeline, refine
from mxq.config import LayerConfig, QuantConfig
from mxq.errors import DataError, RuntimeFailure
from mxq.ir import Model, Ref
from mxq.numerics import sqnr_db
from mxq.passes.exact import exact
from mxq.pipeline import NO_DATA, Quantized
from mxq.refine import EXAMPLES, Looked
from mxq.report import record
from mxq.runtime import MxnetRunner, to_arrays, to_symbol
from mxq.weights.live import peak_bytes

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


def pictures(examples: int, seed: int) -> np.ndarray:
    """Correlated channels and neighbours, of bounded values, as in pictures; float32 (examples, CHANNELS, 6, 6)."""
    rng = np.random.default_rng(seed)
    mix = np.random.default_rng(99).standard_normal((CHANNELS, 3))
    smooth = rng.standard_normal((examples, 3, 6, 6)).cumsum(axis=2).cumsum(axis=3) / 4
    noise = 0.2 * rng.standard_normal((examples, CHANNELS, 6, 6))
    return np.tanh(np.einsum("ck,nkhw->nchw", mix, smooth) + noise).astype(np.float32)


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
        found = Looked.at(MxnetRunner(), build(*NET), batches, QuantConfig(effort=effort))
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
        found = Looked.at(MxnetRunner(), build(*NET), self.Batches(40), QuantConfig())
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


class TestFallback:
    def plain(self) -> Quantized:
        return made(build(*NET), effort="fast")

    def same_weights(self, one: Quantized, other: Quantized) -> bool:
        return one.model.args.keys() == other.model.args.keys() and all(
            np.array_equal(v, other.model.args[k]) for k, v in one.model.args.items()
        )

    @pytest.mark.parametrize("op", ["_sg_mkldnn_fully_connected", "_sg_mkldnn_conv"])
    def test_an_operator_that_does_not_run_alone(self, op: str) -> None:
        class Refusing(MxnetRunner):
            def compile(self, model: Model, taps: tuple[Ref, ...] = ()) -> Any:
                if [n.op for n in model.graph.operators] == [op]:
                    raise RuntimeFailure("MXNet refuses the graph: not alone")
                return super().compile(model, taps)

        done = made(build(*NET), runner=Refusing())
        assert done.warnings == (f"{NO_DATA}: MXNet refuses the graph: not alone",)
        assert done.report.summary["warnings"] == list(done.warnings)
        assert self.same_weights(done, self.plain())

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
        assert any(e.rule == "equalize" for e in made(model).prepared.trace.events)
        done = made(model, runner=Tired())
        assert done.warnings == (f"{NO_DATA}: out of memory",)
        assert self.same_weights(done, made(model, effort="fast"))
        assert not any(e.rule == "equalize" for e in done.prepared.trace.events)

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
