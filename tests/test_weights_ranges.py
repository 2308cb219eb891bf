"""Ranges narrowed for what reads a tensor, and the codes they are measured with."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from graphs import build, conv, decided, quantized, run
from helpers import assert_close, kernel_params

from mxq.quant import QuantSpec, scheme_of
from mxq.quant.plan import TensorRecord
from mxq.quant.thresholds import Range
from mxq.saturation.kernels import Kernel
from mxq.saturation.limits import Exposed
from mxq.weights.coding import Code, code_all, codes_of
from mxq.weights.ranges import GAIN, MANY, QUIET, SHARES, Reader, narrowed, telling

INT8, UINT8 = Code("int8"), Code("uint8")


def identity(x: np.ndarray) -> np.ndarray:
    return x


def linear(*row: float) -> Reader:
    """A reader with one output: of channels (axis 1), those of ``row``."""
    return lambda x: np.tensordot(x, np.array(row, np.float32), axes=(1, 0))


def tails(seed: int = 0) -> np.ndarray:
    """(8, 2, 400): channel 0 is small and dense, channel 1 has one large value in each example."""
    rng = np.random.default_rng(seed)
    value = rng.uniform(0, 4, (8, 2, 400)).astype(np.float32)
    value[:, 1] *= 0.02
    value[:, 1, 0] = 10
    return value


class TestNarrowed:
    def test_values_that_fill_their_range_keep_it(self) -> None:
        value = np.random.default_rng(0).uniform(-3, 3, (4, 5, 100)).astype(np.float32)
        span = Range(-3.0, 3.0)
        assert narrowed([value], span, INT8, [identity]) is span

    def test_a_range_twice_too_wide_is_halved(self) -> None:
        value = np.random.default_rng(0).uniform(0, 1, (4, 5, 100)).astype(np.float32)
        assert narrowed([value], Range(0.0, 2.0), UINT8, [identity]) == Range(0.0, 1.0)
        assert narrowed([value - 0.5], Range(-1.0, 0.5), INT8, [identity]) == Range(-0.5, 0.25)

    def test_the_reader_decides(self) -> None:
        """A large value matters to what reads it, not to what does not."""
        value, span = tails(), Range(0.0, 10.0)
        assert narrowed([value], span, UINT8, [linear(0, 1)]) is span
        assert narrowed([value], span, UINT8, [linear(1, 0)]) == Range(0.0, 4.2)

    def test_all_readers_are_heard(self) -> None:
        """One that cares for the large values alone is enough; how large its weights are does not count."""
        value, span = tails(), Range(0.0, 10.0)
        assert narrowed([value], span, UINT8, [linear(1, 0), linear(0, 0.001)]) is span
        assert narrowed([value], span, UINT8, [linear(1000, 0), linear(0, 0.001)]) is span

    def test_it_is_the_best_of_the_shares_by_the_formula(self) -> None:
        rng = np.random.default_rng(3)
        value = rng.uniform(-4, 4, (8, 4, 500)).astype(np.float32)
        value[0, 0, 0] = 7
        span = Range(float(value.min()), float(value.max()))
        weight = rng.standard_normal((6, 4)).astype(np.float32)

        def reader(x: np.ndarray) -> np.ndarray:
            return np.einsum("oc,ncp->nop", weight, x)

        errors = []
        for share in SHARES:
            off = kernel_params(span.absmax * share, "int8").fake(value).astype(np.float64) - value
            errors.append(float((reader(off) ** 2).sum()))
        best = SHARES[int(np.argmin(errors))]
        assert best < 1
        assert min(errors) < GAIN * errors[0]
        found = narrowed([value], span, INT8, [reader])
        assert found == Range(span.min * best, span.max * best)

    def test_examples_count_alike(self) -> None:
        """One is two hundred times as large as the others. By what is lost of all energy it would keep its range."""
        rng = np.random.default_rng(3)
        value = rng.standard_normal((8, 4, 500)).astype(np.float32) / 10
        value[0, :, :40] *= 200
        span, shares = Range(float(value.min()), float(value.max())), []
        off = [kernel_params(span.absmax * share, "int8").fake(value).astype(np.float64) - value for share in SHARES]
        for axes in ((1, 2), (0, 1, 2)):
            energy = np.square(value, dtype=np.float64).sum(axis=axes)
            errors = [np.mean(np.square(each).sum(axis=axes) / (energy + QUIET * energy.mean())) for each in off]
            shares.append(SHARES[int(np.argmin(errors))])
        assert shares[0] < 0.3 < shares[1]
        assert narrowed([value], span, INT8, [identity]) == span.times(shares[0])

    def test_an_example_of_nearly_nothing_does_not_decide(self) -> None:
        value = np.random.default_rng(0).uniform(-1, 1, (8, 4, 500)).astype(np.float32)
        value[0] *= 1e-4
        span = Range(-1.0, 1.0)
        assert narrowed([value], span, INT8, [identity]) is span

    def test_with_a_zero_point_the_nearer_end_stays(self) -> None:
        """Most values of a hard-swish are at its low end, where no range may end earlier."""
        x = np.random.default_rng(0).normal(-1, 1.5, (8, 2, 400)).astype(np.float32)
        value = (x * np.clip(x / 6 + 0.5, 0, 1)).astype(np.float32)
        value[:, 1, 0] = 30
        affine = QuantSpec(signed=False, symmetric=False)
        code = Code("int8", other=affine, scheme=scheme_of(affine))
        span = Range(float(value.min()), 30.0)
        found = narrowed([value], span, code, [linear(1, 0)])
        assert found.min == span.min
        assert found.max <= 15
        assert narrowed([value], span, INT8, [linear(1, 0)]).min > span.min
        assert code.within(Range(-4.0, 10.0), 0.3) == Range(-3.0, 3.0)
        assert code.within(Range(-4.0, 10.0), 1.3) == Range(-4.0, 10.0).times(1.3)

    def test_of_many_values_shares_are_tried_until_the_error_has_grown(self) -> None:
        rng, heard = np.random.default_rng(0), list[int]()

        def reader(x: np.ndarray) -> np.ndarray:
            heard.append(x.size)
            return x

        value = rng.uniform(0, 0.78, (4, 5, MANY)).astype(np.float32)
        assert narrowed([value], Range(0.0, 1.0), UINT8, [reader]) == Range(0.0, 0.8)
        assert len(heard) == 1 + 4  # the values, then the shares 1, 0.9, 0.8 and 0.7

    @pytest.mark.parametrize(("large", "tried"), [(16, 3), (40, 2)], ids=["1.3, then 2.6 times", "twice"])
    @pytest.mark.parametrize("missing", [0, 1], ids=["many", "fewer"])
    def test_an_error_that_has_grown_a_little_may_shrink_again(self, large: int, tried: int, missing: int) -> None:
        """Large values, cut off by any share below 1: what that costs, in shares of the least error. Of fewer values
        all shares are tried."""
        heard = list[int]()

        def reader(x: np.ndarray) -> np.ndarray:
            heard.append(x.size)
            return x

        value = np.random.default_rng(0).uniform(-0.5, 0.5, (1, 1, (1 << 16) - missing)).astype(np.float32)
        value[..., :large] = 1
        narrowed([value], Range(-1.0, 1.0), INT8, [reader])
        assert len(heard) == 1 + (len(SHARES) if missing else tried)

    def test_small_gains_are_not_worth_it(self) -> None:
        """A calibrated range a little too wide: by 1 % the step would be finer, by 2 % the error smaller; not by a
        tenth, the least that is tried."""
        value = np.random.default_rng(0).uniform(0, 1, (4, 5, 100)).astype(np.float32)
        span = Range(0.0, 1.01)
        assert narrowed([value], span, UINT8, [identity]) is span

    @pytest.mark.parametrize(("count", "share"), [(175_000, 1.0), (260_000, 0.9)], ids=["1 %", "6 %"])
    def test_what_little_there_is_to_gain_is_not_worth_clipping(self, count: int, share: float) -> None:
        """Four values at the end of the range, which a narrower one would cut off, and many that it would serve."""
        value = np.random.default_rng(0).uniform(0, 0.9, (1, 1, count)).astype(np.float32)
        value[..., :4] = 1
        span = Range(0.0, 1.0)
        errors = [float(np.square(UINT8.coded(value, span.times(s)) - value).sum()) for s in (1.0, 0.9)]
        assert errors[1] < errors[0]
        assert narrowed([value], span, UINT8, [identity]) == span.times(share)

    @pytest.mark.parametrize("kernel", ["pairs", "shifted"])
    def test_where_sums_saturate_it_is_wider(self, kernel: Kernel) -> None:
        """Unless a clip ends it, and not where no two large weights stand beside each other."""
        value = np.random.default_rng(0).uniform(2, 4, (400, 4)).astype(np.float32)
        span, code = (Range(0.0, 4.0), UINT8) if kernel == "pairs" else (Range(-4.0, 4.0), INT8)
        large, small = np.array([[1, 1, 1, 1]], np.float32), np.array([[1, 0, 1, 0]], np.float32)
        for weight, widen, wider in ((large, True, True), (large, False, False), (small, True, False)):
            exposed = Exposed.of(kernel, weight[:, :, None], value[:, :, None])
            assert (exposed is not None) == (weight is large)
            risks = [exposed] if exposed is not None else []
            found = narrowed([value], span, code, [linear(*weight[0])], risks, widen=widen)
            assert found.absmax > 1.5 * span.absmax if wider else found.absmax <= span.absmax

    def test_a_tensor_of_zeros(self) -> None:
        span = Range(0.0, 1.0)
        assert narrowed([np.zeros((2, 3, 4), np.float32)], span, UINT8, [identity]) is span


class TestTelling:
    def test_the_largest_and_some_of_the_rest_in_order(self) -> None:
        value = np.ones((20, 3), np.float32)
        value[[3, 7, 11, 19], 1] = 9
        (found,) = telling([value[:8], value[8:]], 20)
        assert len(found) == 8
        assert (found.max(axis=1) == 9).sum() == 4

    def test_other_sizes_stand_apart(self) -> None:
        batches = [np.full((2, 3, n), n, np.float32) for n in (4, 6, 4, 5)]
        found = telling(batches, 8)
        assert [v.shape for v in found] == [(4, 3, 4), (2, 3, 6), (2, 3, 5)]
        assert {float(v.max()) for v in found} == {4, 5, 6}

    def test_as_much_of_rows_as_of_examples(self) -> None:
        """Of 32 examples of 10 words each, in rows: those of 8 examples."""
        rows = np.random.default_rng(0).standard_normal((320, 5)).astype(np.float32)
        (found,) = telling([rows], 32)
        assert 70 <= len(found) <= 80

    def test_few_steps_of_time(self) -> None:
        assert [v.shape for v in telling([np.ones((3, 32, 5), np.float32)], 32)] == [(3, 32, 5)]

    def test_nothing(self) -> None:
        assert telling([np.ones((0, 4), np.float32), np.ones((2, 0), np.float32)], 8) == []

    def test_pieces_are_one_tensor(self) -> None:
        """A range is chosen for all of them together."""
        value = np.random.default_rng(0).uniform(-1, 1, (8, 3, 400)).astype(np.float32)
        value[0, 1] *= 3  # the second channel, which nobody reads
        span, reader = Range(-3.0, 3.0), linear(1, 0, 0)
        whole = narrowed([value], span, INT8, [reader])
        assert whole == span.times(0.35)
        assert narrowed([value[:, :, :30], value[:, :, 30:]], span, INT8, [reader]) == whole


class TestCode:
    @pytest.mark.parametrize(("dtype", "span"), [("int8", Range(-3.0, 2.0)), ("uint8", Range(0.0, 5.0))])
    def test_coded_is_what_the_kernels_hold(self, dtype: str, span: Range) -> None:
        value = np.linspace(-6, 6, 999).astype(np.float32)
        wanted = kernel_params(span.absmax, dtype).fake(value)
        assert_close(Code(dtype).coded(value, span), wanted, rtol=0, atol=1e-6)
        (again,) = code_all([value], Code(dtype), span)
        np.testing.assert_array_equal(again, Code(dtype).coded(value, span))

    def test_doubled_uses_half_the_codes(self) -> None:
        record = TensorRecord("uint8", 0.0, 2.0 * 255.5 / 127.5, widened=255.5 / 127.5)
        code = Code.of(record, Range(0.0, 2.0))
        assert code.widened == 255.5 / 127.5
        assert Code.of(replace(record, widened=1.0), Range(0.0, 2.0)).widened == 1.0  # written so for another reason
        value = np.linspace(0, 4, 1000).astype(np.float32)
        found = code.coded(value, Range(0.0, 2.0))
        assert len(np.unique(found)) == 128
        assert found.max() == pytest.approx(2.0, rel=0.01)

    def test_a_clip_bounds_the_range(self) -> None:
        code = Code.of(TensorRecord("uint8", 0.0, 6.0), Range(0.0, 8.0))
        assert code.bound == 6
        assert code.scale(Range(0.0, 8.0)) == pytest.approx(255.5 / 6)
        assert code.scale(Range(0.0, 4.0)) == pytest.approx(255.5 / 4)

    def test_what_the_builder_wrote_is_found_by_tensor(self) -> None:
        """Codes of a whole int8 network: as its own quantize and dequantize operators hold values."""
        model = build(conv("c0", "data"), 'r0 = Activation(c0) act_type="relu"', conv("c1", "r0"), "return c1")
        done = quantized(model, effort="fast", target="avx512_vnni")
        spans = {name: t.range for name, t in done.thresholds.items()}
        prepared = done.prepared
        codes = codes_of(decided(prepared, done.thresholds), spans)
        assert {str(r): c.dtype for r, c in codes.items()} == {"data": "int8", "r0": "uint8", "c1": "int8"}
        out = next(c for r, c in codes.items() if r.name == "c1")
        got = run(done.model)[0]  # on the grid of its code
        assert_close(out.coded(got, spans["c1"]), got, rtol=1e-5, atol=1e-5)
