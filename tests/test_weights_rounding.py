"""Rounding by the layer's output: never worse than to the nearest, on the kernels' codes, each group by itself."""

from __future__ import annotations

import numpy as np
import pytest
from helpers import assert_close

from mxq.weights.grid import FULL, HALVED, Grid, extremes, nearest, steps
from mxq.weights.rounding import FACTORED, _cholesky, _unit_upper, covariance, damped, descend, error_of, successive

SHAPES = [(1, 6, 20), (1, 3, 150), (4, 5, 9), (7, 1, 9)]
"""Groups, output channels, inputs: dense, dense of more than one block, grouped, depthwise."""


def correlated(groups: int, inputs: int, seed: int = 0) -> np.ndarray:
    """(groups, 600, inputs): few causes, a mean, and a little noise of each input's own."""
    rng = np.random.default_rng(seed)
    causes = rng.standard_normal((groups, 600, 3)) @ rng.standard_normal((groups, 3, inputs))
    noise = 0.3 * rng.standard_normal((groups, 600, inputs))
    return np.maximum(causes + noise + 0.5, 0).astype(np.float32)


class Case:
    """A layer of random weights, few bits wide so that rounding matters."""

    def __init__(self, shape: tuple[int, int, int], levels: Grid = FULL, seed: int = 0) -> None:
        groups, _, inputs = shape
        rng = np.random.default_rng(seed + 100)
        self.wanted = rng.standard_normal(shape).astype(np.float32)
        self.samples = correlated(groups, inputs, seed)
        self.hessian = damped(covariance(self.samples), 0.01)
        self.step = steps(self.wanted, np.square(self.samples).mean(axis=1), levels)
        self.fixed = extremes(self.wanted, levels)
        self.most = levels.most
        self.nearest = nearest(self.wanted, self.step, self.fixed, levels)

    @property
    def successive(self) -> np.ndarray:
        return successive(self.wanted, self.hessian, self.step, self.fixed, self.most)

    def descended(self, codes: np.ndarray, sweeps: int = 3) -> np.ndarray:
        return descend(codes, self.wanted, self.hessian, self.step, self.fixed, self.most, sweeps)

    def error(self, codes: np.ndarray) -> np.ndarray:
        return error_of(codes, self.wanted, self.hessian, self.step)


def test_covariance_is_that_of_numpy() -> None:
    samples = correlated(2, 7)
    found = covariance(samples)
    assert found.dtype == np.float32
    for group, rows in zip(found, samples, strict=True):
        assert_close(group, np.cov(rows.T, bias=True), rtol=1e-4, atol=1e-4)


def test_damping_makes_it_positive_definite() -> None:
    dead = np.zeros((1, 50, 5), np.float32)
    dead[..., :2] = correlated(1, 2)[:, :50]
    before = covariance(dead)
    after = damped(before, 0.01)
    assert np.linalg.eigvalsh(before[0]).min() < 1e-6
    assert np.linalg.eigvalsh(after[0]).min() > 0.9 * 0.01 * before[0].trace() / 5
    assert_close(after - before, 0.01 * before[0].trace() / 5 * np.eye(5)[None], rtol=1e-3, atol=1e-6)
    assert np.linalg.eigvalsh(damped(np.zeros((1, 3, 3), np.float32), 0.01)[0]).min() > 0


@pytest.mark.parametrize(("groups", "size"), [(1, 12), (3, 9)])
def test_the_factor_is_unit_upper_triangular(groups: int, size: int) -> None:
    """``H = U D U'``, read from H backwards."""
    hessian = damped(covariance(correlated(groups, size)), 0.01)
    upper = _unit_upper(hessian[:, ::-1, ::-1])
    for h, u in zip(hessian.astype(np.float64), upper.astype(np.float64), strict=True):
        assert_close(np.diag(u), np.ones(size), rtol=0, atol=1e-6)
        assert_close(np.tril(u, -1), np.zeros((size, size)), rtol=0, atol=0)
        inverse = np.linalg.inv(u)
        middle = inverse @ h @ inverse.T
        assert np.diag(middle).min() > 0
        assert_close(middle - np.diag(np.diag(middle)), np.zeros_like(h), rtol=0, atol=1e-3 * np.abs(h).max())


@pytest.mark.parametrize("size", [9, FACTORED, 2 * FACTORED + 7])
def test_the_factor_by_blocks_is_that_of_numpy(size: int) -> None:
    hessian = damped(covariance(correlated(2, size)), 0.01)
    lower = _cholesky(hessian)
    assert lower.dtype == np.float32
    assert_close(lower, np.linalg.cholesky(hessian), rtol=0, atol=1e-4 * np.abs(lower).max())


def test_what_float32_cannot_factor_float64_does() -> None:
    size = 2 * FACTORED
    causes = np.random.default_rng(0).standard_normal((1, size, 3))
    hessian = (causes @ causes.swapaxes(1, 2) + 5e-6 * np.eye(size)).astype(np.float32)
    assert np.linalg.eigvalsh(hessian.astype(np.float64)).min() > 0
    with pytest.raises(np.linalg.LinAlgError):
        _cholesky(hessian)
    upper = _unit_upper(hessian)
    assert upper.dtype == np.float32
    assert np.isfinite(upper).all()
    assert_close(np.tril(upper[0]), np.eye(size), rtol=0, atol=1e-6)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("levels", [FULL, HALVED])
def test_never_worse_than_nearest(shape: tuple[int, int, int], levels: Grid, seed: int) -> None:
    case = Case(shape, levels, seed)
    plain, found = case.error(case.nearest), case.successive
    assert case.error(found).sum() < 0.8 * plain.sum()
    for codes, bar in ((found, case.error(found)), (case.nearest, plain)):
        assert (case.error(case.descended(codes)) <= bar * (1 + 1e-4) + 1e-9).all()
    assert case.error(case.descended(case.nearest)).sum() < 0.9 * plain.sum()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("levels", [FULL, HALVED])
def test_codes_are_in_range_and_fixed_ones_kept(shape: tuple[int, int, int], levels: Grid) -> None:
    case = Case(shape, levels)
    case.wanted[..., 1] *= 3  # beyond the grid, for the step of the others
    free = case.fixed == 0
    assert 0 < (~free).sum() < free.size
    for codes in (case.successive, case.descended(case.successive), case.descended(case.nearest)):
        assert codes.shape == shape
        assert codes.dtype == np.int16
        assert np.abs(codes[free]).max() == levels.most
        np.testing.assert_array_equal(codes[~free], case.fixed[~free])


@pytest.mark.parametrize("shape", [(4, 5, 9), (7, 1, 9), (3, 2, 80)])
def test_groups_are_by_themselves(shape: tuple[int, int, int]) -> None:
    case = Case(shape)
    start = case.successive
    swept = case.descended(start)
    for g in range(shape[0]):
        own = [a[g : g + 1] for a in (case.wanted, case.hessian, case.step, case.fixed)]
        alone = successive(*own, case.most)
        np.testing.assert_array_equal(alone[0], start[g])
        np.testing.assert_array_equal(descend(alone, *own, case.most, 3)[0], swept[g])


def test_without_correlation_it_is_nearest() -> None:
    case = Case((2, 4, 30))
    case.hessian = np.stack([np.diag(np.linspace(1, 2, 30)).astype(np.float32)] * 2)
    np.testing.assert_array_equal(case.successive, case.nearest)
    np.testing.assert_array_equal(case.descended(case.nearest), case.nearest)


def test_formula_of_successive_rounding_in_float64() -> None:
    """(2) of the module, one input at a time, for one channel; blocks must not show."""
    case = Case((1, 1, 130), seed=5)
    case.fixed[:] = 0
    order = np.argsort(-np.diag(case.hessian[0]))
    h = case.hessian[0].astype(np.float64)[np.ix_(order, order)]
    factor = np.linalg.cholesky(h[::-1, ::-1])[::-1, ::-1]
    u = factor / np.diag(factor)
    w, s = case.wanted[0, 0].astype(np.float64)[order], case.step[0, 0]
    error, codes = np.zeros(130), np.zeros(130)
    for k in range(130):
        codes[k] = np.clip(np.rint((w[k] + error[:k] @ u[:k, k]) / s), -127, 127)
        error[k] = w[k] - s * codes[k]
    assert (case.successive[0, 0][order] != codes).mean() < 0.03  # float32 may round a half the other way


def test_descent_ends_where_no_single_code_improves() -> None:
    case = Case((1, 4, 12))
    found = case.descended(case.nearest, 50)
    bar = case.error(found)
    for k in range(12):
        for change in (-1, 1):
            other = found.copy()
            other[..., k] += change
            movable = (case.fixed[..., k] == 0) & (np.abs(other[..., k]) <= case.most)
            assert (case.error(other)[movable] >= bar[movable] * (1 - 1e-4)).all()


def test_no_sweep_changes_nothing_and_the_start_is_not_written_to() -> None:
    case = Case((1, 4, 12))
    before = case.nearest.copy()
    np.testing.assert_array_equal(case.descended(case.nearest, 0), before)
    assert (case.descended(case.nearest, 2) != before).any()
    np.testing.assert_array_equal(case.nearest, before)


def test_error_is_that_of_the_centred_output() -> None:
    """(1) of the module: the bias takes the mean."""
    case = Case((2, 3, 8))
    hessian = covariance(case.samples)
    off = case.wanted - case.step[:, :, None] * case.nearest
    made = case.samples.astype(np.float64) @ np.swapaxes(off, 1, 2)
    assert_close(error_of(case.nearest, case.wanted, hessian, case.step), made.var(axis=1), rtol=2e-3, atol=1e-6)


def test_a_dead_channel_and_a_dead_input() -> None:
    case = Case((1, 3, 10))
    case.wanted[0, 1] = 0
    case.samples[..., 4] = 0
    case.hessian = damped(covariance(case.samples), 0.01)
    case.step, case.fixed = steps(case.wanted, np.square(case.samples).mean(axis=1), FULL), extremes(case.wanted, FULL)
    found = case.successive
    assert not found[0, 1].any()
    assert np.isfinite(case.error(found)).all()
