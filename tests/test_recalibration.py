"""BatchNorm recalibration against numpy, before folding and after it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from graphs import CONV1, RELU, bn, build, conv, fc, run
from helpers import assert_close

import mxq  # isort: skip  (before mxnet)

import mxnet as mx

from mxq import pipeline
from mxq.backends.mxnet.exact import exact
from mxq.backends.simulate import simulate
from mxq.config import QuantConfig
from mxq.errors import DataError, QuantizeError
from mxq.graph.ir import Model, Ref
from mxq.numerics import sqnr_db
from mxq.quant import QuantSpec
from mxq.recalibration import recalibrated, restored
from mxq.recalibration.folded import moved
from mxq.recalibration.moments import Moments
from mxq.runtime import MxnetRunner
from mxq.weights.layerwise_executor import LayerwiseExecutor

RUNNER = MxnetRunner()
NET = (
    conv("c0", "data", bias=False), bn("n0", "c0"), "r0 = Activation(n0) " + RELU,
    conv("c1", "r0"), bn("n1", "c1"), "s = elemwise_add(n1, r0)", "r1 = Activation(s) " + RELU,
    bn("n2", "r1"), "r2 = Activation(n2) " + RELU, conv("c3", "r2", CONV1), fc("f", "c3"), "return f",
)  # fmt: skip
"""BatchNorm folded, folded before a sum, and before an activation, where it stays."""
CHAIN = (conv("c0", "data", bias=False), bn("n0", "c0"), conv("c1", "n0"), bn("n1", "c1"), fc("f", "n1"), "return f")
DATA = np.random.default_rng(5).normal(0.3, 1.0, (48, 3, 8, 8)).astype(np.float32)


def net(seed: int = 0) -> Model:
    return build(*NET, seed=seed, data=(2, 3, 8, 8))


def tapped(model: Model, *names: str, data: np.ndarray = DATA) -> list[np.ndarray]:
    heads = len(model.graph.heads)
    return run(model, {"data": data}, taps=tuple(map(Ref, names)))[heads:]


def feeds(size: int) -> list[dict[str, np.ndarray]]:
    return [{"data": DATA[i : i + size]} for i in range(0, len(DATA), size)]


class TestMoments:
    def test_are_those_of_numpy_over_batches_of_any_size(self) -> None:
        x = np.random.default_rng(0).normal(1e4, 1.0, (7, 5, 3, 2)).astype(np.float32)
        found = Moments.of([x[:3], x[3:4], x[4:]])
        exact64 = x.astype(np.float64)
        assert_close(found.mean, exact64.mean(axis=(0, 2, 3)), rtol=1e-12, atol=0)
        assert_close(found.var, exact64.var(axis=(0, 2, 3)), rtol=1e-9, atol=0)

    def test_of_another_axis(self) -> None:
        x = np.random.default_rng(0).normal(size=(4, 2, 6)).astype(np.float32)
        assert_close(Moments.of([x], axis=2).var, x.astype(np.float64).var(axis=(0, 1)), rtol=1e-9, atol=0)


class TestStatistics:
    def test_are_those_of_what_each_norm_reads_in_the_new_network(self) -> None:
        found = recalibrated(RUNNER, net(), feeds(10))
        assert not found.kept
        for name, read in (("n0", "c0"), ("n1", "c1"), ("n2", "r1")):
            (seen,) = tapped(found.model, read)
            mean, var = (found.model.auxs[f"{name}_moving_{what}"] for what in ("mean", "var"))
            assert_close(mean, seen.mean(axis=(0, 2, 3), dtype=np.float64), rtol=1e-5, atol=1e-5)
            assert_close(var, seen.astype(np.float64).var(axis=(0, 2, 3)), rtol=1e-4, atol=1e-6)

    def test_do_not_depend_on_the_batch_size(self) -> None:
        one, other = (recalibrated(RUNNER, net(), feeds(size)).model.auxs for size in (7, 48))
        for name in one:
            assert_close(one[name], other[name], rtol=1e-5, atol=1e-6)

    def test_that_two_norms_share_stay(self) -> None:
        lines = (conv("c0", "data"), bn("n0", "c0"), "return n0")
        model = build(*lines, data=(2, 3, 8, 8))
        twice = model.graph["n0"]
        other = mxq.graph.ir.Node("n1", "BatchNorm", twice.attrs, (Ref("n0"), *twice.inputs[1:]))
        graph = mxq.graph.ir.Graph((*model.graph.nodes, other), (other.out,))
        found = recalibrated(RUNNER, Model(graph, model.args, model.auxs), feeds(48))
        assert found.kept == {
            "n0": "'n0_moving_mean' is shared with 'n1'", "n1": "'n0_moving_mean' is shared with 'n0'"
        }  # fmt: skip
        assert all(np.array_equal(found.model.auxs[k], v) for k, v in model.auxs.items())


class TestFolded:
    def test_moved_parameters_give_the_wanted_moments(self) -> None:
        rng = np.random.default_rng(0)
        weight, bias = rng.normal(size=(4, 6)).astype(np.float32), rng.normal(size=4).astype(np.float32)
        x = rng.normal(size=(500, 6)).astype(np.float32)
        wanted = Moments(rng.normal(size=4), rng.uniform(0.5, 2, 4))
        new = moved(weight, bias, Moments.of([x @ weight.T + bias]), wanted)
        found = Moments.of([x @ new[0].T + new[1]])
        assert_close(found.mean, wanted.mean, rtol=1e-4, atol=1e-4)
        assert_close(found.var, wanted.var, rtol=1e-3, atol=0)  # EPS is 1e-5 of a variance

    def test_a_dead_channel_keeps_its_weight(self) -> None:
        nothing = Moments(np.zeros(2), np.zeros(2))
        weight = np.zeros((2, 3), np.float32)
        new, bias = moved(weight, np.ones(2, np.float32), nothing, Moments(np.full(2, 3.0), np.zeros(2)))
        assert np.array_equal(new, weight)
        assert np.array_equal(bias, [4.0, 4.0])

    @pytest.mark.parametrize(
        ("weight", "left"),
        [(QuantSpec(bits=4, axis=0), 1e-3), (QuantSpec(bits=6), 0.5)],  # of one scale, weights are rounded anew
        ids=["channels", "tensor"],
    )
    def test_every_layer_has_the_float_moments_again(self, weight: QuantSpec, left: float) -> None:
        model = build(*CHAIN, data=(2, 3, 8, 8))
        network = decided(model).respecified(QuantSpec(bits=4, signed=None), weight)
        found = restored(RUNNER, network, network.fused, feeds(16), model)
        assert found.trace.fired("restore_moments") == 2
        floats = tapped(network.fused, "n0", "n1")
        before, after = (tapped(simulate(each), "n0_exact", "n1_exact") for each in (network, found))
        for truth, given, new in zip(floats, before, after, strict=True):
            wanted = Moments.of([truth])
            assert distance(Moments.of([new]), wanted) < left * distance(Moments.of([given]), wanted)

    def test_codes_of_weights_stay_where_scales_are_of_channels(self) -> None:
        network = decided(net())
        found = restored(RUNNER, network, network.fused, feeds(16), net())
        for name, params in network.weights.items():
            old, new = network.fused.args[name], found.fused.args[name]
            assert np.abs(params.quantize(old).astype(int) - found.weights[name].quantize(new)).max() <= 1
            assert np.mean(params.quantize(old) == found.weights[name].quantize(new)) > 0.99  # but for float32's ties

    def test_layers_without_a_norm_stay(self) -> None:
        network = decided(net())
        found = restored(RUNNER, network, network.fused, feeds(16), net())
        assert np.array_equal(found.fused.args["f_weight"], net().args["f_weight"])
        assert np.array_equal(found.fused.args["c3_weight"], net().args["c3_weight"])


def decided(model: Model) -> object:
    made = quantized(model)
    assert made.network is not None
    return made.network


def quantized(model: Model, **options: object) -> pipeline.Quantized:
    config = QuantConfig(
        quantize_mode="full", effort="fast", num_calib_examples="100%", target="avx512_vnni", stem="int8", **options
    )
    prepared = pipeline.plan(model, config)
    ranges = pipeline.calibrate(prepared, DATA, RUNNER, progress=False)
    return pipeline.quantize(prepared, ranges, runner=RUNNER, data=[{"data": DATA}])


def distance(one: Moments, other: Moments) -> float:
    return float(np.abs(one.mean - other.mean).sum() + np.abs(np.sqrt(one.var) - np.sqrt(other.var)).sum())


class TestPipeline:
    def test_the_int8_network_has_the_float_moments(self) -> None:
        model = net(3)
        plain, new = (quantized(model, recalibrate_batchnorm=on) for on in (False, True))
        assert new.trace.fired("restore_moments") == 3
        assert plain.trace.fired("restore_moments") == 0
        heads = [run(exact(made.model), {"data": DATA})[0] for made in (plain, new)]
        truth = run(model, {"data": DATA})[0]
        assert sqnr_db(truth, heads[1]) > sqnr_db(truth, heads[0]) - 0.5
        assert new.report.config["recalibrate_batchnorm"] is True

    def test_the_moments_are_those_before_biases_were_corrected(self) -> None:
        """A bias correction moves biases on purpose; taken for the float network's, they would be corrected twice."""
        model = build(*CHAIN, seed=4, data=(2, 3, 8, 8))
        plain, both = (
            quantized(model, bits=4, simulate=True, recalibrate_batchnorm=True, bias_correction=bias)
            for bias in ("none", "empirical")
        )
        wanted = tapped(plain.prepared.fused, "n0", "n1")
        for made in (plain, both):
            for truth, new in zip(wanted, tapped(simulate(made.network), "n0_exact", "n1_exact"), strict=True):
                assert_close(Moments.of([new]).mean, Moments.of([truth]).mean, rtol=0, atol=1e-3)

    def test_without_data_a_warning_says_so(self) -> None:
        config = QuantConfig(effort="fast", recalibrate_batchnorm=True)
        prepared = pipeline.plan(net(), config)
        ranges = pipeline.calibrate(prepared, DATA, RUNNER, progress=False)
        assert "there is no calibration data" in pipeline.quantize(prepared, ranges).warnings[0]


class TestFunction:
    def block(self) -> mx.gluon.HybridBlock:
        mx.random.seed(0)
        made = mx.gluon.nn.HybridSequential(prefix="net_")
        with made.name_scope():
            made.add(mx.gluon.nn.Conv2D(4, 3), mx.gluon.nn.BatchNorm(), mx.gluon.nn.Dense(2))
        made.initialize()
        return made

    def test_sets_the_statistics_of_a_block(self) -> None:
        block = self.block()
        found = mxq.recalibrate_batchnorm(block, DATA, batch_size=20)
        assert found is block
        read = block[0](mx.nd.array(DATA)).asnumpy().astype(np.float64)
        assert_close(block[1].running_mean.data().asnumpy(), read.mean(axis=(0, 2, 3)), rtol=1e-4, atol=1e-5)
        assert_close(block[1].running_var.data().asnumpy(), read.var(axis=(0, 2, 3)), rtol=1e-4, atol=1e-6)

    def test_gives_a_block_of_a_pair(self, tmp_path: Path) -> None:
        block = self.block()
        block.hybridize()
        block(mx.nd.array(DATA))
        block.export(str(tmp_path / "net"))
        found = mxq.recalibrate_batchnorm(tmp_path / "net", DATA)
        mxq.recalibrate_batchnorm(block, DATA)
        assert_close(found(mx.nd.array(DATA)).asnumpy(), block(mx.nd.array(DATA)).asnumpy(), rtol=1e-5, atol=1e-5)

    def test_refuses_what_it_cannot_do(self) -> None:
        plain = mx.gluon.nn.Dense(2)
        plain.initialize()
        with pytest.raises(QuantizeError, match="the network has no BatchNorm; allowed: one whose BatchNorms"):
            mxq.recalibrate_batchnorm(plain, DATA.reshape(48, -1))
        with pytest.raises(DataError, match="data is None; allowed: examples"):
            mxq.recalibrate_batchnorm(self.block(), None)
        int8 = mxq.quantize_net(self.block(), DATA, effort="fast")
        with pytest.raises(QuantizeError, match=r"quantized already: .*recalibrate_batchnorm=True where"):
            mxq.recalibrate_batchnorm(int8, DATA)


@pytest.mark.parametrize(
    ("factor", "message"),
    [
        (np.nan, "calibration data, batch 1: 6144 of 6144 values of 'data' are not finite; allowed: no NaN, no Inf"),
        (1e30, "'.*running_.*' would not be finite: .*; the network is as it was"),
    ],
)
def test_data_that_gives_no_numbers_leaves_the_block_as_it_was(factor: float, message: str) -> None:
    block = mx.gluon.nn.HybridSequential()
    block.add(mx.gluon.nn.Conv2D(4, 3, in_channels=3), mx.gluon.nn.BatchNorm())
    block.initialize()
    block(mx.nd.array(DATA))
    before = block[1].running_mean.data().asnumpy()
    with pytest.raises(DataError, match=message):
        mxq.recalibrate_batchnorm(block, (DATA * factor).astype(np.float32))
    assert np.array_equal(block[1].running_mean.data().asnumpy(), before)


def test_a_layer_whose_weight_is_computed_runs_alone_on_many_batches() -> None:
    layer = 'c = Convolution(data, w2) kernel="(1, 1)" num_filter="8" no_bias="True"'
    lines = ('w2 = _mul_scalar(w) scalar="2.0"', layer)
    model = build(*lines, bn("n", "c"), "return n", data=(2, 3, 8, 8), w=(8, 3, 1, 1))
    weight = np.random.default_rng(0).normal(size=(8, 3, 1, 1)).astype(np.float32)
    model = Model(model.graph, {**model.args, "w": weight}, model.auxs)
    live = LayerwiseExecutor.of(RUNNER, model, feeds(12))
    for node in model.graph.operators:
        live.held |= live.step(model, node)
    assert not live.apart
    made = np.concatenate(live.held[Ref("c")])
    assert_close(made, np.einsum("oi,nihw->nohw", 2 * weight[:, :, 0, 0], DATA), rtol=1e-4, atol=1e-5)
