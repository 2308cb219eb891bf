"""What saturates in the kernels without VNNI, and the arithmetic of `mxq.saturation.kernels` that says so.

The kernels' tests run in this process where the CPU has no VNNI, else in one that holds oneDNN at AVX2.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from graphs import VERSION, build, decided, feed_graph
from helpers import fresh_python
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from mxq import pipeline
from mxq.config import QuantConfig
from mxq.graph.serde import read_text
from mxq.host import machine
from mxq.numerics import sqnr_db
from mxq.passes.limit_saturation import limit_saturation
from mxq.passes.pair_channels import weight_codes
from mxq.runtime import MxnetRunner
from mxq.saturation.activity import PLACES, sampled
from mxq.saturation.kernels import BOTTOM, TOP, at_risk, excess, kernel_of, limit_pairs, lost, pairs, summed
from mxq.saturation.limits import Sums
from mxq.saturation.pairing import conflicts, cost_of, matching
from mxq.saturation.remedies import (
    assumed_activations,
    change,
    coarser,
    factors,
    highest_of,
    remedy,
    widened,
)

pytestmark = pytest.mark.kernels

SATURATES = machine.detect().saturates
on_avx2 = pytest.mark.skipif(not SATURATES, reason="sums are exact here; test_in_a_process_held_at_avx2 runs these")
LAYERS = [(3, 3, 16), (4, 3, 16), (16, 3, 8), (5, 1, 7), (64, 1, 64), (20, 5, 24), (3, 7, 64), (130, 1, 33)]
"""Input channels, kernel, output channels."""


def random_codes(*shape: int, seed: int = 0) -> np.ndarray:
    """Weight codes, of any size, with an extreme one in each output channel."""
    rng = np.random.default_rng(seed)
    codes = rng.integers(-128, 128, shape)
    codes.reshape(len(codes), -1)[:, 0] = rng.choice([-128, 127], len(codes))
    return codes


def written(codes: np.ndarray) -> np.ndarray:
    """Float weights that the kernel reads as ``codes``, with a step of 1: the extremes are +-127.5."""
    return np.where(codes == 127, 127.5, np.where(codes == -128, -127.5, codes)).astype(np.float32)


def quantizer(dtype: str) -> str:
    low, high = (0.0, 255.5) if dtype == "uint8" else (-127.5, 127.5)
    return f'q = _contrib_quantize_v2(x) out_type="{dtype}" min_calib_range="{low}" max_calib_range="{high}"'


def summed_by(op: str, layer: str, data: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """The int32 sums of an int8 kernel over activation codes ``data`` and float ``weight``."""
    dtype = "int8" if data.min() < 0 else "uint8"
    net = read_text(
        f"{VERSION}\nx = null\nw = null\nb = null\n{quantizer(dtype)}\n"
        f'f = {op}(q, w, b, q:1, q:2) quantized="true" {{\nd0 = null\nw0 = null\nb0 = null\n'
        f"c = {layer}\nreturn c\n}}\nreturn f"
    )
    bias = np.zeros(len(weight), np.float32)
    (sums,) = feed_graph(net, {"x": data.astype(np.float32), "w": weight, "b": bias})
    return np.rint(sums).astype(np.int64)


def conv_sums(data: np.ndarray, weight: np.ndarray, groups: int = 1) -> np.ndarray:
    kernel = weight.shape[2:]
    attrs = f'kernel="{kernel}" num_filter="{len(weight)}" num_group="{groups}"'
    return summed_by("_sg_mkldnn_conv", f"Convolution(d0, w0, b0) {attrs}", data, weight)


def dense_sums(data: np.ndarray, weight: np.ndarray) -> np.ndarray:
    layer = f'FullyConnected(d0, w0, b0) num_hidden="{len(weight)}"'
    op = "_sg_mkldnn_fully_connected"
    net = read_text(
        f"{VERSION}\nx = null\nw = null\nb = null\n{quantizer('int8' if data.min() < 0 else 'uint8')}\n"
        f'f = {op}(q, w, b, q:1, q:2) quantized="true" channel_wise_quantize="True" enable_float_output="True" {{\n'
        f"d0 = null\nw0 = null\nb0 = null\nc = {layer}\nreturn c\n}}\nreturn f"
    )
    given = {"x": data.astype(np.float32), "w": weight, "b": np.zeros(len(weight), np.float32)}
    return np.rint(feed_graph(net, given)[0]).astype(np.int64)


def patches(data: np.ndarray, kernel: int) -> np.ndarray:
    """(examples x places, I, kernel x kernel) of data (N, I, H, W), without padding."""
    seen = np.lib.stride_tricks.sliding_window_view(data, (kernel, kernel), axis=(2, 3))
    return seen.transpose(0, 2, 3, 1, 4, 5).reshape(-1, data.shape[1], kernel * kernel).astype(np.int64)


def pairwise(data: np.ndarray, codes: np.ndarray) -> np.ndarray:
    """(n, O) sums as the kernel makes them: of data (n, I, K), each pair saturated in 16 bits."""
    seen, weight = pairs(data), pairs(codes).astype(np.int64)
    return np.clip(np.einsum("npsk,opsk->nopk", seen, weight), BOTTOM, TOP).sum(axis=(2, 3))


def places_last(sums: np.ndarray) -> np.ndarray:
    """(n, O) of the sums (N, O, H, W)."""
    return np.moveaxis(sums, 1, -1).reshape(-1, sums.shape[1])


def activations(*shape: int, low: int = 96, high: int = 256) -> np.ndarray:
    return np.random.default_rng(1).integers(low, high, shape)


@on_avx2
class TestKernels:
    @pytest.mark.parametrize(("channels", "kernel", "filters"), LAYERS)
    def test_neighbouring_channels_of_u8_are_added_in_16_bits(self, channels, kernel, filters):
        codes, data = random_codes(filters, channels, kernel, kernel), activations(2, channels, 8, 8)
        found, seen = places_last(conv_sums(data, written(codes))), patches(data, kernel)
        assert (found == pairwise(seen, codes)).all()
        assert (found != np.einsum("nik,oik->no", seen, codes.reshape(filters, channels, -1))).any()

    @pytest.mark.parametrize(("channels", "kernel", "filters"), LAYERS)
    def test_limited_codes_give_the_exact_sums(self, channels, kernel, filters):
        codes = limit_pairs(random_codes(filters, channels, kernel, kernel))
        data = activations(2, channels, 8, 8)
        exact = np.einsum("nik,oik->no", patches(data, kernel), codes.reshape(filters, channels, -1))
        assert (places_last(conv_sums(data, written(codes))) == exact).all()

    @pytest.mark.parametrize("channels", [5, 8, 16])
    def test_depthwise_is_exact(self, channels):
        codes, data = random_codes(channels, 1, 3, 3), activations(2, channels, 8, 8)
        exact = np.einsum("nik,ik->ni", patches(data, 3), codes.reshape(channels, 9))
        assert (places_last(conv_sums(data, written(codes), channels)) == exact).all()

    @pytest.mark.parametrize("groups", [1, 16])
    def test_weights_are_halved_where_the_source_is_s8(self, groups):
        """They are rounded once, from float, and the largest counts as 128."""
        data = activations(2, 16, 8, 8, low=-128, high=128)
        weight = np.random.default_rng(2).uniform(-127, 127, (16, 16 // groups, 3, 3)).astype(np.float32)
        weight[:, 0, 0, 0] = 127.5
        halved = 2 * np.rint(weight.astype(np.float64) / 2).astype(np.int64).reshape(16, -1, 9)
        rows = "nik,oik->no" if groups == 1 else "nok,oik->no"
        assert (places_last(conv_sums(data, weight, groups)) == np.einsum(rows, patches(data, 3), halved)).all()

    @pytest.mark.parametrize(("rows", "inputs", "hidden"), [(1, 16, 8), (5, 64, 32), (3, 101, 7), (64, 100, 10)])
    def test_fully_connected_of_u8(self, rows, inputs, hidden):
        codes, data = random_codes(hidden, inputs), activations(rows, inputs)
        found = dense_sums(data, written(codes))
        assert (found == pairwise(data[:, :, None], codes)).all()
        assert (found != data @ codes.T).any()
        safe = limit_pairs(codes)
        assert (dense_sums(data, written(safe)) == data @ safe.T).all()

    @pytest.mark.parametrize(("rows", "inputs", "hidden"), [(1, 16, 8), (5, 64, 32), (3, 101, 7)])
    def test_fully_connected_shifts_s8_by_128(self, rows, inputs, hidden):
        codes, data = random_codes(hidden, inputs), activations(rows, inputs, low=-128, high=128)
        found = dense_sums(data, written(codes))
        assert (found == pairwise(data[:, :, None] + 128, codes) - 128 * codes.sum(axis=1)).all()
        assert (found != data @ codes.T).any()
        safe = limit_pairs(codes)
        assert (dense_sums(data, written(safe)) == data @ safe.T).all()


def dangerous() -> tuple:
    """A network of two convolutions that saturates: neighbouring channels are alike, and large at once."""
    rng = np.random.default_rng(3)
    model = build(
        'c = Convolution(data, c_weight, c_bias) kernel="(1, 1)" num_filter="16"',
        'r = Activation(c) act_type="relu"',
        'd = Convolution(r, d_weight, d_bias) kernel="(1, 1)" num_filter="8"',
        "return d",
    )
    alike = rng.choice([-1.0, 1.0], (8, 8)).repeat(2, axis=1) * rng.uniform(0.85, 1, (8, 16))
    args = {**model.args, "c_weight": 3 * np.repeat(model.args["c_weight"][:8], 2, axis=0)}
    args |= {"d_weight": alike[:, :, None, None].astype(np.float32), "c_bias": np.full(16, 3, np.float32)}
    data = rng.standard_normal((16, 8, 6, 6)).astype(np.float32)
    return replace(model, args=args), data


def sqnr_for(target: str) -> float:
    """SQNR in dB of the network of `dangerous`, guarded for ``target``, on this machine."""
    model, data = dangerous()
    config = QuantConfig(num_calib_examples="100%", effort="fast", target="avx512_vnni")  # so that it is guarded here
    prepared = pipeline.plan(model, config)
    ranges = pipeline.calibrate(prepared, data, MxnetRunner(), progress=False)
    layers = [n for n in prepared.fused.graph.operators if n.name in prepared.plan.quantized]
    samples = sampled(MxnetRunner(), prepared.fused, layers, [{"data": data}])
    network = decided(prepared, ranges.thresholds, target=target).after(
        limit_saturation(prepared.backend.spec, samples)
    )
    found = pipeline.quantize(replace(prepared, fused=network.fused), replace(ranges, thresholds=network.thresholds))
    wanted, got = (MxnetRunner().compile(m)({"data": data})[0] for m in (model, found.model))
    return sqnr_db(wanted, got)


@on_avx2
def test_a_network_breaks_unguarded_and_not_guarded():
    assert sqnr_for("avx512_vnni") < 20
    assert sqnr_for("avx2") > 35


@pytest.mark.slow
@pytest.mark.skipif(SATURATES, reason="the tests above run here")
@pytest.mark.parametrize("isa", ["AVX2", "AVX512_CORE"])
def test_in_a_process_held_at_an_older_isa(isa):
    code = (
        f"import sys; sys.path[:0] = {sys.path!r}\n"
        "import pytest; sys.exit(pytest.main(['-q', '-p', 'no:cacheprovider', "
        f"{__file__!r} + '::TestKernels', {__file__!r} + '::test_a_network_breaks_unguarded_and_not_guarded', "
        f"{str(Path(__file__).with_name('test_saturation_kernels.py'))!r}]))"
    )
    done = fresh_python(code, DNNL_MAX_CPU_ISA=isa)
    assert done.returncode == 0, done.stdout
    assert "skipped" not in done.stdout


class TestArithmetic:
    weights = arrays(np.int16, st.tuples(*[st.integers(1, 5)] * 3), elements=st.integers(-128, 127))

    @settings(max_examples=200, deadline=None)
    @given(weights, st.data())
    def test_limited_codes_cannot_saturate_and_keep_an_extreme(self, codes, data):
        size = codes.shape[1]
        highest = data.draw(arrays(np.int32, size, elements=st.integers(0, 255)))
        found = limit_pairs(codes, highest)
        assert at_risk(found, highest).sum() == 0
        assert (np.abs(found) <= np.abs(codes)).all()
        assert (found.astype(int) * codes >= 0).all()
        largest = [np.abs(c).reshape(len(codes), -1).max(axis=1) for c in (codes, found)]
        assert (largest[0] == largest[1]).all()
        untouched = (excess(codes, highest) == 0)[:, :, None] & np.ones((1, 1, 2, 1), bool)
        assert (pairs(found) == pairs(codes))[untouched].all()

    def test_a_pair_at_the_edge_is_left_alone(self):
        edge = np.array([[64, 64], [-64, -64], [127, 1], [-128, 0]])
        assert at_risk(edge).tolist() == [0, 0, 0, 0]
        beyond = edge + np.array([[1, 0], [0, -1], [0, 1], [0, -1]])
        assert at_risk(beyond).tolist() == [1, 1, 1, 1]
        assert limit_pairs(edge) is edge

    def test_the_change_is_shared_out(self):
        assert limit_pairs(np.array([[100, 100, 127]])).tolist() == [[64, 64, 127]]
        assert limit_pairs(np.array([[127, 120]])).tolist() == [[127, 1]]
        assert limit_pairs(np.array([[-128, -90]])).tolist() == [[-128, 0]]

    @pytest.mark.parametrize("kernel", ["pairs", "shifted"])
    @pytest.mark.parametrize("places", [1, 4])
    def test_what_is_lost_is_what_the_kernel_loses(self, kernel, places):
        codes = random_codes(6, 7, places)
        data = activations(200, 7, places, low=0 if kernel == "pairs" else -128, high=256 if kernel == "pairs" else 128)
        shifted = data + (128 if kernel == "shifted" else 0)
        gone = pairwise(shifted, codes) - np.einsum("nik,oik->no", shifted, codes)
        assert gone.any()
        np.testing.assert_allclose(lost(codes, data, kernel=kernel), np.square(gone).mean(axis=0), rtol=1e-4)

    @pytest.mark.parametrize("kernel", ["pairs", "shifted", "exact"])
    def test_sums_are_the_kernels(self, kernel):
        codes, signed = random_codes(6, 7, 4), kernel == "shifted"
        data = activations(50, 7, 4, low=-128 if signed else 0, high=128 if signed else 256)
        exact = np.einsum("nik,oik->on", data, codes)
        saturated = pairwise(data + 128 * signed, codes).T - 128 * signed * codes.sum(axis=(1, 2))[:, None]
        assert (summed(codes, data, kernel) == (exact if kernel == "exact" else saturated)).all()
        assert (exact != saturated).any()

    def test_large_layers_are_looked_at_in_blocks(self, monkeypatch):
        codes, data = random_codes(7, 6, 3), activations(20, 6, 3)
        whole = [f(codes) for f in (at_risk, limit_pairs, lambda c: lost(c, data), lambda c: summed(c, data, "pairs"))]
        monkeypatch.setattr("mxq.saturation.kernels._BLOCK", 40)
        parts = [f(codes) for f in (at_risk, limit_pairs, lambda c: lost(c, data), lambda c: summed(c, data, "pairs"))]
        for one, other in zip(whole, parts, strict=True):
            np.testing.assert_array_equal(one, other)

    def test_half_the_range_never_loses(self):
        codes = random_codes(6, 8, 3)
        data = activations(100, 8, 3)
        assert lost(codes, data).sum() > lost(codes, data, 2**0.5).sum() > 0
        assert lost(codes, data, 2.0).sum() == 0
        assert (coarser(codes, 2.0) == 3 / 12 * np.square(codes).sum(axis=(1, 2))).all()

    def test_kernels(self):
        kinds = [("Convolution", "uint8", False), ("Convolution", "uint8", True), ("Convolution", "int8", True)]
        assert [kernel_of(o, d, depthwise=w) for o, d, w in kinds] == ["pairs", "exact", "halved"]
        assert [kernel_of("FullyConnected", d) for d in ("uint8", "int8")] == ["pairs", "shifted"]

    def test_change(self):
        codes, data = random_codes(4, 6, 2), activations(50, 6, 2)
        other = limit_pairs(codes)
        wanted = np.square(np.einsum("nik,oik->no", data, other - codes)).mean(axis=0)
        np.testing.assert_allclose(change(codes, other, data), wanted, rtol=1e-5)
        assert not change(codes, codes, data).any()


class TestRemedy:
    def test_nothing_where_nothing_can_saturate(self):
        found = remedy(random_codes(8, 8) // 2, assumed_activations(8, bounded=True))
        assert (found.kind, found.cost, found.exact) == ("none", 0, True)

    def test_what_activations_never_reach_is_left(self):
        found = remedy(np.full((8, 8), 120), activations(100, 8, low=0, high=60))
        assert (found.kind, found.cost, found.exact) == ("none", 0, False)

    def test_large_activations_widen_the_range(self):
        codes = random_codes(32, 32)
        found = remedy(codes, activations(100, 32, low=200))
        assert found.kind == "range"
        assert found.cost < found.unguarded / 10
        assert remedy(codes, activations(100, 32, low=200), widen=False).kind != "range"

    def test_few_pairs_a_little_beyond_are_limited(self):
        codes = np.random.default_rng(0).integers(-60, 60, (32, 64))
        codes[:, 0], codes[0, 2:4] = 127, 65
        codes[:, 1] = -1
        found = remedy(codes, activations(100, 64))
        assert (found.kind, found.exact, found.pairs) == ("pairs", True, 1)

    @pytest.mark.parametrize(("code", "count", "share", "kind"), [(65, 2, 0.04, "pairs"), (66, 1, 0.08, "none")])
    def test_limits_that_cost_next_to_nothing_are_for_any_data(self, code, count, share, kind):
        """Where no sum saturates on the samples: in shares of the noise that rounding the weights has anyway."""
        codes, data = np.random.default_rng(0).integers(-60, 60, (32, 64)), activations(200, 64, low=0, high=100)
        codes[:count, :2] = code
        noise = codes.size * np.square(data).mean() / 12
        assert change(codes, limit_pairs(codes), data).sum() / noise == pytest.approx(share, rel=0.1)
        found = remedy(codes, data)
        assert (found.kind, found.exact, found.unguarded) == (kind, kind == "pairs", 0)

    @pytest.mark.parametrize(
        ("kernel", "low", "seed", "more"),
        [("pairs", 0, 0, 1.05), ("pairs", 0, 2, 1.05), ("pairs", 200, 1, 1.2), ("shifted", -28, 0, 1.05)],
    )
    def test_no_widening_is_much_better_than_those_that_are_tried(self, kernel, low, seed, more):
        codes, data = random_codes(16, 32, seed=seed), activations(100, 32, low=low, high=256 if low >= 0 else 128)
        tried, any_other = (
            min(widened(codes, data, f, kernel=kernel).cost for f in every)
            for every in (factors(kernel), 2 ** np.arange(1 / 16, 2.01, 1 / 16))
        )
        assert tried < more * any_other

    def test_a_wider_range_leaves_the_lesser_of_what_saturates_and_what_limits_cost(self):
        codes, data = random_codes(16, 32), activations(100, 32)
        for factor in factors("pairs"):
            found, free = (widened(codes, data, factor, limit=limit) for limit in (True, False))
            limits = change(codes, limit_pairs(codes, highest_of(data, factor=factor)), data).sum()
            coarse = coarser(codes, factor).sum()
            assert free.cost == pytest.approx(lost(codes, data, factor).sum() + coarse, rel=1e-6)
            assert found.cost == pytest.approx(min(free.cost, limits + coarse), rel=1e-6)
            assert found.exact == (lost(codes, np.full((1, 32), 255), factor).sum() == 0)

    @pytest.mark.parametrize(("bounded", "least", "most"), [(True, 60, 106), (False, 45, 80)])
    def test_assumed_activations_are_of_the_larger_ones_that_there_are(self, bounded, least, most):
        """Root mean squares of trained networks' codes: 25 to 106 below a clip, 7 to 80 elsewhere."""
        found = assumed_activations(256, bounded=bounded)
        assert least < np.sqrt(np.square(found).mean()) < most

    def test_samples_of_many_places_are_not_few(self):
        """A margin for what few places do not show is for layers that have but few."""
        assert Sums.of("pairs", 1.0, np.ones((PLACES, 4), np.float32), 4).highest.max() == 1
        assert Sums.of("pairs", 1.0, np.ones((PLACES // 2, 4), np.float32), 4).highest.max() == 2


class TestPairing:
    def test_the_cost_of_a_pair(self):
        codes = random_codes(5, 7, 2)
        costs = conflicts(codes)
        order = np.array([3, 5, 0, 1, 2, 4, 6])
        assert cost_of(order, costs) == pytest.approx(np.square(excess(codes[:, order])[:, :3], dtype=float).sum())

    def test_large_weights_are_parted(self):
        codes = np.array([[127, 120, 1, 2], [-120, -128, 3, 4]])
        order = matching(conflicts(codes))
        assert sorted(order) == [0, 1, 2, 3]
        assert cost_of(order, conflicts(codes)) == 0

    @pytest.mark.parametrize("seed", range(3))
    def test_no_exchange_of_partners_is_left_that_gains(self, seed):
        costs = conflicts(random_codes(64, 128, seed=seed))
        one, other = matching(costs).reshape(-1, 2).T
        now = costs[one, other]
        across = costs[np.ix_(one, other)]  # of each pair's first with each one's second
        for exchanged in (costs[np.ix_(one, one)] + costs[np.ix_(other, other)], across + across.T):
            gain = now[:, None] + now - exchanged
            np.fill_diagonal(gain, 0)
            assert gain.max() <= 1e-5 * now.max()

    @pytest.mark.parametrize("channels", [1, 2, 3, 64, 65])
    def test_never_worse_than_as_it_is(self, channels):
        costs = conflicts(random_codes(32, channels, seed=channels))
        order = matching(costs)
        assert sorted(order) == list(range(channels))
        assert cost_of(order, costs) <= cost_of(np.arange(channels), costs)


def test_a_weight_in_codes_of_its_kernel():
    assert (weight_codes(written(random_codes(4, 3, 3, 3))) == random_codes(4, 3, 3, 3)).all()
