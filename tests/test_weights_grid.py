"""The kernels' grid for weights: what is written is read back as the codes that were chosen."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from graphs import VERSION, feed_graph
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mxq.errors import ConfigError
from mxq.graph.serde import read_text
from mxq.quant import MXNET, SYMMETRIC, QuantSpec, scheme_of
from mxq.quant.spec import ScaleKind
from mxq.weights import grid
from mxq.weights.grid import FULL, HALVED, SHARES, Grid, Nearest, extremes, nearest, steps, values, written

GRIDS = pytest.mark.parametrize("levels", [FULL, HALVED], ids=["full", "halved"])
STEPS = st.floats(1e-8, 1e6, allow_nan=False).map(np.float64)


def absmax(weight: np.ndarray) -> np.ndarray:
    return np.abs(weight).max(axis=2, keepdims=True)


def read(weight: np.ndarray) -> np.ndarray:
    """Codes by ``GetQuantizeScale`` and a reorder, all in float32: ``rint(w * fl(127.5 / absmax))``."""
    assert weight.dtype == np.float32
    return np.clip(np.rint(weight * (np.float32(127.5) / absmax(weight))), -128, 127).astype(int)


def read_halved(weight: np.ndarray, nudge: int = 0) -> np.ndarray:
    """Codes of kernels that read s8 without VNNI: ``2 * rint(w * 63.75 / absmax)``.

    Which float32 operations make the scale is theirs to choose: ``nudge`` moves it by units in the last place.
    """
    scale = np.float32(127.5) / absmax(weight) * np.float32(0.5)
    for _ in range(abs(nudge)):
        scale = np.nextafter(scale, np.float32(np.inf if nudge > 0 else 0))
    return 2 * np.rint(weight * scale).astype(int)


@st.composite
def chosen(draw: st.DrawFn, levels: Grid) -> tuple[np.ndarray, np.ndarray]:
    """Codes (1, O, K), each channel with an extreme one of either sign at any place, and steps (1, O)."""
    rows, size = draw(st.integers(1, 4)), draw(st.integers(1, 12))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    codes = rng.integers(-levels.most, levels.most + 1, (1, rows, size))
    codes[0, np.arange(rows), rng.integers(0, size, rows)] = rng.choice([-levels.top, levels.top], rows)
    return codes.astype(np.int16), np.array([[draw(STEPS) for _ in range(rows)]])


@settings(max_examples=400, deadline=None)
@given(chosen(FULL))
def test_written_codes_are_read_back(case: tuple[np.ndarray, np.ndarray]) -> None:
    codes, step = case
    weight = written(codes, step, FULL)
    assert weight.dtype == np.float32
    found = read(weight)
    assert np.all((found == codes) | ((found == -128) & (codes == -127)))
    np.testing.assert_allclose(grid.read(weight, codes, step, FULL), found * step[:, :, None])


SPECS = [QuantSpec(bits, axis=0, narrow=narrow) for bits in range(2, 9) for narrow in (False, True)]
OTHERS = [Grid(spec, scheme) for spec in SPECS for scheme in (MXNET, SYMMETRIC)]


def read_as(weight: np.ndarray, levels: Grid) -> np.ndarray:
    """Codes by arXiv:2004.09602, eq. 7, with the scale of a channel's largest weight, all in float32."""
    top = np.float32(2 ** (levels.spec.bits - 1) - (0.5 if levels.scheme is MXNET else 1))
    highest = 2 ** (levels.spec.bits - 1) - 1
    return np.clip(np.rint(weight * (top / absmax(weight))), -highest - (not levels.spec.narrow), highest).astype(int)


@settings(max_examples=400, deadline=None)
@given(st.sampled_from(OTHERS).flatmap(lambda levels: st.tuples(st.just(levels), chosen(levels))))
def test_written_codes_of_any_spec_are_read_back(case: tuple[Grid, tuple[np.ndarray, np.ndarray]]) -> None:
    levels, (codes, step) = case
    weight = written(codes, step, levels)
    found, last = read_as(weight, levels), levels.spec.highest
    assert np.all((found == codes) | ((found == -last - 1) & (codes == -last)))
    if not levels.is_moved:
        np.testing.assert_array_equal(found, codes)
    np.testing.assert_allclose(grid.read(weight, codes, step, levels), found * step[:, :, None])


@pytest.mark.parametrize("levels", [g for g in OTHERS if g.is_moved], ids=lambda levels: str(levels.spec.bits))
def test_few_negative_extremes_are_read_as_the_code_below(levels: Grid) -> None:
    last = levels.spec.highest
    step = np.random.default_rng(0).uniform(1e-4, 1, (1, 2000))
    found = read_as(written(np.full((1, 2000, 1), -last, np.int16), step, levels), levels)
    assert np.mean(found == -last) > {2: 0.6, 3: 0.8, 4: 0.9}.get(levels.spec.bits, 0.95)


@pytest.mark.parametrize("levels", [g for g in OTHERS if g.spec.bits == 4], ids=lambda g: f"{g.scheme.name} {g.spec}")
def test_four_bits_against_an_oracle(levels: Grid) -> None:
    """The step of each channel is the best of the ratios, and codes are the nearest."""
    rng = np.random.default_rng(4)
    weight, importance = rng.laplace(size=(2, 5, 300)).astype(np.float32), rng.uniform(0.1, 2, (2, 300))
    step, fixed = steps(weight, importance, levels), extremes(weight, levels)
    codes = nearest(weight, step, fixed, levels)
    span = 7.5 if levels.scheme is MXNET else 7.0
    for group, output in np.ndindex(2, 5):
        row = weight[group, output].astype(np.float64)
        tried = [float(np.abs(row).max()) * ratio / span for ratio in (span / 7, *SHARES)]
        costs = [importance[group] @ (s * np.clip(np.rint(row / s), -7, 7) - row) ** 2 for s in tried]
        assert costs[int(np.argmin(np.abs(tried - step[group, output])))] <= min(costs) * (1 + 1e-5)
        extreme = int(np.abs(row).argmax())
        wanted = np.clip(np.rint(row / step[group, output]), -7, 7)
        wanted[extreme] = 7 * np.sign(row[extreme])
        np.testing.assert_array_equal(codes[group, output], wanted)
    assert (step < np.abs(weight).max(axis=2) / span).all()  # of 15 codes some are better clipped for


@pytest.mark.parametrize(
    "spec",
    [QuantSpec(), QuantSpec(signed=False, axis=0), QuantSpec(axis=0, scale="power_of_two"), QuantSpec(axis=1)],
    ids=str,
)
def test_codes_that_weights_do_not_have(spec: QuantSpec) -> None:
    with pytest.raises(ConfigError, match=r"the codes of weights are .*; allowed: intN, per channel on axis 0"):
        Grid(spec)


@settings(max_examples=300, deadline=None)
@given(chosen(HALVED), st.integers(-1, 1))
def test_halved_codes_are_read_back(case: tuple[np.ndarray, np.ndarray], nudge: int) -> None:
    codes, step = case
    np.testing.assert_array_equal(read_halved(written(codes, step, HALVED), nudge), 2 * codes)


@settings(max_examples=500, deadline=None)
@given(STEPS)
@example(np.float64(1.0))
@example(np.float64(1 / 3))
@example(np.float64(0.1))
def test_a_negative_extreme_moves_by_less_than_a_code(step: np.float64) -> None:
    codes = np.array([[[-127, 126, -1, 0]]], np.int16)
    weight = written(codes, np.array([[step]]), FULL)
    assert read(weight).tolist() in ([[[-127, 126, -1, 0]]], [[[-128, 126, -1, 0]]])
    assert absmax(weight)[0, 0, 0] == pytest.approx(127.5 * step, rel=1e-4)


def test_it_has_to_be_moved() -> None:
    """What `written` does for negative extremes is needed: plainly written, some are -128."""
    plain = np.array([[[-127.5, 3.0]]], np.float32)
    assert read(plain).tolist() == [[[-128, 3]]]
    steps_ = np.random.default_rng(5).uniform(0.01, 1, (1, 500))
    moved = read(written(np.full((1, 500, 1), -127, np.int16), steps_, FULL))
    assert np.mean(moved == -127) > 0.95


@GRIDS
def test_a_dead_channel(levels: Grid) -> None:
    weight = np.zeros((1, 2, 3), np.float32)
    weight[0, 1] = [1, -2, 0.5]
    step = steps(weight, np.ones((1, 3)), levels)
    fixed = extremes(weight, levels)
    assert step[0, 0] == 1
    assert not fixed[0, 0].any()
    assert fixed[0, 1].tolist() == [0, -levels.top, 0]
    made = written(nearest(weight, step, fixed, levels), step, levels)
    assert not made[0, 0].any()


@GRIDS
def test_nearest_is_within_half_a_step(levels: Grid) -> None:
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((2, 3, 50)).astype(np.float32)
    step = np.abs(weight).max(axis=2) / levels.span
    fixed = extremes(weight, levels)
    codes = nearest(weight, step, fixed, levels)
    off = np.abs(values(codes, step) - weight) / step[:, :, None]
    beyond = np.abs(weight) / step[:, :, None] > levels.most + 0.5
    assert off[~beyond].max() <= 0.5 + 1e-5
    assert off.max() <= 1 + 1e-5  # the grid ends half a step or, halved, less than a step before the extreme
    assert np.abs(codes).max() == levels.top
    np.testing.assert_array_equal(codes[fixed != 0], fixed[fixed != 0])


@GRIDS
def test_steps_cost_no_more_than_the_largest_weight(levels: Grid) -> None:
    rng = np.random.default_rng(1)
    weight = rng.standard_t(3, (2, 5, 400)).astype(np.float32)
    importance = rng.uniform(0.1, 2, (2, 400))

    def cost(step: np.ndarray) -> np.ndarray:
        codes = np.clip(np.rint(weight / step[:, :, None]), -levels.top, levels.top)
        return np.einsum("gok,gk->go", (values(codes, step) - weight) ** 2, importance)

    largest = np.abs(weight).max(axis=2) / levels.span
    found = steps(weight, importance, levels)
    assert (cost(found) <= cost(largest) * (1 + 1e-5)).all()
    shares = found / largest
    assert (np.abs(shares[..., None] - np.array(levels.ratios)).min(axis=-1) < 1e-6).all()


def test_importance_decides_what_is_clipped() -> None:
    """An input that is always zero may have the largest weight of all."""
    weight = np.full((1, 1, 65), 0.5, np.float32)
    weight[0, 0, :64] = np.linspace(-0.5, 0.5, 64)
    weight[0, 0, 64] = 1.0
    importance = np.ones((1, 65))
    assert steps(weight, importance, FULL)[0, 0] > 0.95 / 127.5
    importance[0, 64] = 0
    assert steps(weight, importance, FULL)[0, 0] < 0.6 / 127.5


@pytest.mark.parametrize("ratio", [1.0, 0.5, 1 / 3])
def test_weights_that_were_codes_once_lose_nothing(ratio: float) -> None:
    codes = np.random.default_rng(2).integers(-126, 127, (1, 4, 200))
    codes[0, :, 7] = [127, -127, 127, -127]
    weight = (codes * ratio).astype(np.float32)
    step = steps(weight, np.ones((1, 200)), FULL)
    found = nearest(weight, step, extremes(weight, FULL), FULL)
    np.testing.assert_array_equal(found, codes)
    np.testing.assert_allclose(values(found, step), weight, rtol=1e-6)


def kernel_reads(weight: np.ndarray, dtype: str) -> np.ndarray:
    """What MXNet's int8 convolution makes of a (O, K) weight: each example excites one input, by 1."""
    outputs, inputs = weight.shape
    low, high = (0.0, 255.5) if dtype == "uint8" else (-127.5, 127.5)
    net = read_text(
        f"{VERSION}\nx = null\nw = null\nb = null\n"
        f'q = _contrib_quantize_v2(x) out_type="{dtype}" min_calib_range="{low}" max_calib_range="{high}"\n'
        'f = _sg_mkldnn_conv(q, w, b, q:1, q:2) quantized="true" {\nd0 = null\nw0 = null\nb0 = null\n'
        f'c = Convolution(d0, w0, b0) kernel="(1, 1)" num_filter="{outputs}"\nreturn c\n}}\nreturn f'
    )
    one = np.eye(inputs, dtype=np.float32)[:, :, None, None]
    given = {"x": one, "w": weight[:, :, None, None], "b": np.zeros(outputs, np.float32)}
    (sums,) = feed_graph(net, given)
    return np.rint(sums[:, :, 0, 0].T).astype(int)


def test_the_kernel_reads_the_chosen_codes() -> None:
    rng = np.random.default_rng(3)
    codes = rng.integers(-127, 128, (1, 24, 16)).astype(np.int16)
    codes[0, np.arange(24), rng.integers(0, 16, 24)] = rng.choice([-127, 127], 24)
    step = rng.uniform(1e-4, 1, (1, 24))
    weight = written(codes, step, FULL)
    found = np.concatenate(
        [kernel_reads(row[None], "uint8") for row in weight[0]]
    )  # without ranges: a scale per tensor
    np.testing.assert_array_equal(found, np.rint(grid.read(weight, codes, step, FULL)[0] / step[0][:, None]))
    assert np.mean(found != codes[0]) < 0.02


AFFINE = QuantSpec(4, signed=False, symmetric=False)
PLAIN = {
    "one zero point": AFFINE,
    "a zero point for each channel": replace(AFFINE, axis=0),
    "one scale": QuantSpec(3),
    "one power of two": QuantSpec(4, scale="power_of_two"),
}


def _clipped(weight: np.ndarray, share: float, spec: QuantSpec) -> np.ndarray:
    """Rounded in ``share`` of the range of ``weight`` (O, K), in float64, without mxq."""
    axis = None if spec.axis is None else 1
    low, high = (end(weight, axis=axis, keepdims=True) * share for end in (np.min, np.max))
    if spec.symmetric:
        step = np.maximum(-low, high) / spec.highest
        step = 2.0 ** np.ceil(np.log2(step)) if spec.scale == "power_of_two" else step
        inside = np.clip(weight, -np.maximum(-low, high), np.maximum(-low, high))
        return np.asarray(np.clip(np.rint(inside / step), spec.lowest, spec.highest) * step)
    step = (high - low) / spec.highest
    return (
        np.asarray(np.clip(np.rint(weight / step) - np.rint(low / step), 0, spec.highest) + np.rint(low / step)) * step
    )


@pytest.mark.parametrize("spec", PLAIN.values(), ids=PLAIN)
def test_codes_of_no_grid_are_the_nearest_in_the_best_range(spec: QuantSpec) -> None:
    weight = np.random.default_rng(0).standard_t(3, (8, 40)).astype(np.float32)  # a few values far out
    found = Nearest.of(weight.reshape(8, 4, 10), spec, scheme_of(spec))
    axis = None if spec.axis is None else 1
    errors = [np.square(_clipped(weight.astype(np.float64), s, spec) - weight).sum(axis=axis) for s in SHARES]
    mine = np.square(found.values.reshape(8, 40) - weight.astype(np.float64)).sum(axis=axis)
    np.testing.assert_allclose(mine, np.min(errors, axis=0), rtol=1e-4)
    assert np.all(np.min(errors, axis=0) <= errors[0])
    params = scheme_of(spec).covering(spec, found.weight)
    np.testing.assert_array_equal(params.fake(found.weight), found.values)  # what a network makes of it
    assert found.part(slice(2, 5)).values.shape == (3, 4, 10)


def test_a_weight_of_zeros_in_codes_of_no_grid() -> None:
    for spec in PLAIN.values():
        found = Nearest.of(np.zeros((3, 4), np.float32), spec, scheme_of(spec))
        np.testing.assert_array_equal(found.values, 0)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("scale", ["float", "power_of_two"])
def test_codes_of_one_scale_are_read_back(bits: int, scale: ScaleKind) -> None:
    """Whatever is rounded up or down, as long as the largest weight keeps its code; some channels at a time, too."""
    rng, spec = np.random.default_rng(bits), QuantSpec(bits, scale=scale)
    weight = rng.standard_t(4, (6, 30)).astype(np.float32)
    levels = Grid.of_whole(weight, spec, scheme_of(spec))
    for parts in ([slice(0, 6)], [slice(0, 2), slice(2, 6)]):
        codes, made = [], []
        for rows in parts:
            wanted = weight[None, rows]
            step, fixed = steps(wanted, np.ones((1, 30)), levels), extremes(wanted, levels)
            moved = nearest(wanted, step, fixed, levels) + rng.integers(-1, 2, wanted.shape)
            chosen = np.where(fixed != 0, fixed, np.clip(moved, -levels.most, levels.most))
            codes.append(chosen[0])
            made.append(written(chosen, step, levels)[0])
        params = scheme_of(spec).covering(spec, np.concatenate(made))
        np.testing.assert_allclose(params.step, levels.step, rtol=1e-6)
        np.testing.assert_array_equal(params.quantize(np.concatenate(made)), np.concatenate(codes))
