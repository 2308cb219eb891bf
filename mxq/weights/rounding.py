"""Round weights so that the *output* of their layer changes least, not each weight.

Formula. With the float layer's input X and target T = W X, and X^ the input that the quantized network makes, choose
codes Q and steps s (per output channel) to minimise, over what calibration data shows,

    || T - s Q X^ - b ||^2        b: the bias, free                                                        (1)

The bias takes the means, so all is about them. Without the grid, the minimum of (1) near W is

    W* = W + (T - W X^) X^' (X^ X^' + d I)^-1,                                                             (2)

and (1) is, but for a constant, ``tr (W* - s Q) H (W* - s Q)'`` with ``H = X^ X^' + d I``. Columns are rounded one after
the other, and each takes over the error of those before it: with ``H = U D U'``, U unit upper triangular,

    q_k = rint( (w*_k + sum_{i<k} (w*_i - s q_i) u_ik) / s )                                               (3)

Sources: Nagel et al., "Up or Down? Adaptive Rounding for Post-Training Quantization" (AdaRound, arXiv:2004.10568),
eq. 10, 21 and 25 for (1), the asymmetric input included; Frantar et al., "Optimal Brain Compression" (arXiv:2208.11580)
and "GPTQ" (arXiv:2210.17323), eq. 2 to 4; Chee et al., "QuIP" (arXiv:2307.13304), eq. 3 and theorem 6 for the form (3)
of GPTQ. No gradients: the cost is that of one Cholesky factorization per layer.

Arrays are of G groups with O output channels and K inputs each: G = 1 for a dense layer, O = 1 for a depthwise one.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mxq.ir import Array

LOW, HIGH = -127, 127
"""The codes that are used: -128 would have no counterpart, and costs `grid.written` nothing to leave out."""
BLOCK = 64
"""Columns between two updates by matrix product."""


@dataclass(frozen=True)
class Moments:
    """What (1) needs of the data, about the means.

    Attributes:
        second: (G, K, K) float64, ``X^ X^' / N``.
        cross: (G, O, K) float64, ``(T - W X^) X^' / N``.
        mean_input: (G, K) float64, of X^.
        mean_target: (G, O) float64, of T.
    """

    second: Array
    cross: Array
    mean_input: Array
    mean_target: Array

    @staticmethod
    def of(weight: Array, inputs: Array, target: Array) -> Moments:
        """From samples.

        Args:
            weight: (G, O, K) float32.
            inputs: (G, N, K) float32, X^.
            target: (G, N, O) float32, T.
        """
        count = inputs.shape[1]
        mean_input, mean_target = (a.mean(axis=1, dtype=np.float64) for a in (inputs, target))
        x = inputs - mean_input[:, None].astype(np.float32)
        t = target - mean_target[:, None].astype(np.float32)
        off = t - x @ np.swapaxes(weight, 1, 2)
        second = (np.swapaxes(x, 1, 2) @ x).astype(np.float64) / count
        cross = (np.swapaxes(off, 1, 2) @ x).astype(np.float64) / count
        return Moments(second, cross, mean_input, mean_target)


@dataclass(frozen=True)
class Rounded:
    """Codes (G, O, K) int16, and the error that they leave: (G, O) float64, of (1) per sample and channel."""

    codes: Array
    error: Array


def shrunk(weight: Array, moments: Moments, damping: float) -> tuple[Array, Array]:
    """W* of (2) and H.

    Args:
        weight: (G, O, K).
        damping: d, as a share of the mean of H's diagonal.

    Returns:
        (G, O, K) and (G, K, K), float64.
    """
    size = weight.shape[2]
    diagonal = np.einsum("gkk->gk", moments.second)
    level = np.maximum(diagonal.mean(axis=1) * damping, 1e-12)
    hessian = moments.second + level[:, None, None] * np.eye(size)
    moved = np.swapaxes(np.linalg.solve(hessian, np.swapaxes(moments.cross, 1, 2)), 1, 2)
    return weight + moved, hessian


def successive(wanted: Array, hessian: Array, step: Array, fixed: Array) -> Array:
    """Codes by (3), the inputs of the largest energy first.

    Args:
        wanted: (G, O, K) float64, W*.
        hessian: (G, K, K) float64, positive definite.
        step: (G, O) float64, s.
        fixed: (G, O, K) int16, codes that are given; 0 where free.

    Returns:
        (G, O, K) int16.
    """
    order = np.argsort(-np.einsum("gkk->gk", hessian), axis=1)
    back = np.argsort(order, axis=1)
    w = np.take_along_axis(wanted, order[:, None], axis=2)
    given = np.take_along_axis(fixed, order[:, None], axis=2)
    h = np.take_along_axis(np.take_along_axis(hessian, order[:, :, None], axis=1), order[:, None], axis=2)
    upper = _unit_upper(h)
    size = w.shape[2]
    error, codes = np.zeros_like(w), np.zeros(w.shape, np.int16)
    for start in range(0, size, BLOCK):
        stop = min(start + BLOCK, size)
        carried = error[:, :, :start] @ upper[:, :start, start:stop]
        for k in range(start, stop):
            pull = carried[:, :, k - start]
            if k > start:
                pull = pull + np.einsum("goi,gi->go", error[:, :, start:k], upper[:, start:k, k])
            nearest = np.clip(np.rint((w[:, :, k] + pull) / step), LOW, HIGH).astype(np.int16)
            codes[:, :, k] = np.where(given[:, :, k] != 0, given[:, :, k], nearest)
            error[:, :, k] = w[:, :, k] - step * codes[:, :, k]
    return np.take_along_axis(codes, back[:, None], axis=2)


def _unit_upper(h: Array) -> Array:
    """U of ``h = U D U'``: the Cholesky factor of h read backwards."""
    lower = np.linalg.cholesky(h[:, ::-1, ::-1])
    factor = lower[:, ::-1, ::-1]
    return factor / np.einsum("gkk->gk", factor)[:, None, :]


def descend(codes: Array, wanted: Array, hessian: Array, step: Array, fixed: Array, sweeps: int) -> Array:
    """Codes after coordinate descent: one input after the other takes the best code, given all others.

    Args:
        codes: (G, O, K) int16, where to begin.
        sweeps: how often to go over all inputs; it ends early where nothing changes.
        wanted, hessian, step, fixed: as for `successive`.

    Returns:
        (G, O, K) int16, of no larger error.
    """
    codes = codes.copy()
    diagonal = np.einsum("gkk->gk", hessian)
    for _ in range(sweeps):
        gradient = (wanted - step[:, :, None] * codes) @ hessian
        changes = 0
        for k in range(codes.shape[2]):
            best = np.rint(gradient[:, :, k] / diagonal[:, None, k] / step)
            new = np.clip(codes[:, :, k] + best, LOW, HIGH).astype(np.int16)
            change = np.where(fixed[:, :, k] != 0, 0, new - codes[:, :, k])
            if change.any():
                changes += int(np.count_nonzero(change))
                codes[:, :, k] += change
                gradient -= (step * change)[:, :, None] * hessian[:, None, k]
        if not changes:
            break
    return codes


def error_of(codes: Array, wanted: Array, hessian: Array, step: Array) -> Array:
    """``(W* - s Q) H (W* - s Q)'`` of each output channel: (G, O) float64."""
    off = wanted - step[:, :, None] * codes
    return np.einsum("gok,gok->go", off @ hessian, off)
