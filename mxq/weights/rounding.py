"""Round weights so that the *output* of their layer changes least, not each weight.

Formula. With X the layer's input as the quantized network makes it, choose codes Q on the steps s (one for each output
channel) to minimise

    || W X - s Q X - b ||^2        b: what the bias takes                                                  (1)

over calibration data. The bias takes the mean (`bias`), so (1) is ``tr (W - s Q) H (W - s Q)'`` with H the covariance
of X. Inputs are rounded one after the other, and each takes over the error of those before it; `descend` may then go
over all of them again. With ``H = U D U'``, U unit upper triangular,

    q_k = rint( (w_k + sum_{i<k} (w_i - s q_i) u_ik) / s )                                                (2)

Sources: Nagel et al., "Up or Down? Adaptive Rounding for Post-Training Quantization" (AdaRound, arXiv:2004.10568),
eq. 10 and 21, for (1); Frantar et al., "Optimal Brain Compression" (arXiv:2208.11580) and "GPTQ" (arXiv:2210.17323),
eq. 2 to 4; Chee et al., "QuIP" (arXiv:2307.13304), eq. 3 and theorem 6, for the form (2) of GPTQ. There are no
gradients: the cost is a Cholesky factorization for each layer.

AdaRound's asymmetric target (eq. 25: the float layer's result on the *float* input) was tried and is worse here by 1 to
3 dB on MobileNets: weights then follow noise that earlier layers have by chance. The bias alone has it.

Arrays are of G groups with O output channels and K inputs each: G = 1 for a dense layer, O = 1 for a depthwise one.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Final, TypeAlias

import numpy as np
from numpy.typing import ArrayLike

from mxq.graph.ir import Array
from mxq.saturation.limits import Sums

BLOCK = 64
"""Columns between two updates by matrix product."""
FACTORED = 128
"""Columns that are factored at once."""
TINY: Final = 1e-12
"""The least that is added to a diagonal."""


def covariance(inputs: Array) -> Array:
    """(G, K, K) float32, of samples (G, N, K) float32."""
    centred = inputs - inputs.mean(axis=1, keepdims=True)
    found: Array = np.swapaxes(centred, 1, 2) @ centred
    found /= np.float32(inputs.shape[1])
    return found


def damped(covariance: Array, share: float) -> Array:
    """The covariance with ``share`` of the mean of its diagonal added to that, which makes it positive definite."""
    found: Array = covariance.copy()
    diagonal = np.einsum("gkk->gk", found)  # a view
    diagonal += np.maximum(diagonal.mean(axis=1, keepdims=True) * share, np.float32(TINY))
    return found


Factor: TypeAlias = tuple[Array, Array]
"""Of a covariance (G, K, K): the order (G, K) in which inputs are rounded, and U of (2) in that order."""


def factored(hessian: Array) -> Factor:
    """The inputs of the largest energy come first."""
    order = np.argsort(-np.einsum("gkk->gk", hessian), axis=1)
    return order, _unit_upper(_permuted(hessian, order[:, ::-1]))


def successive(
    wanted: Array,
    hessian: Array,
    step: Array,
    fixed: Array,
    most: int,
    sums: Sums | None = None,
    factor: Factor | None = None,
) -> Array:
    """Codes by (2).

    Args:
        wanted: (G, O, K) float, W.
        hessian: (G, K, K) float32, positive definite.
        step: (G, O) float64, s.
        fixed: (G, O, K) int16, codes that are given; 0 where free.
        most: the largest code of the others.
        sums: of a kernel that adds pairs in 16 bits, whose limits hold too; G is 1 then.
        factor: `factored` of ``hessian``, where that is known.

    Returns:
        (G, O, K) int16.
    """
    order, upper = factor or factored(hessian)
    weight, given = (np.take_along_axis(a, order[:, None], axis=2).swapaxes(1, 2) for a in (wanted, fixed))
    weight, given = (np.ascontiguousarray(a, np.float32) for a in (weight, given))  # (G, K, O): rows by input
    free, scale, size = given == 0, step.astype(np.float32), wanted.shape[2]
    error, codes, back = np.zeros_like(weight), given, np.argsort(order, axis=1)
    for start in range(0, size, BLOCK):
        stop = min(start + BLOCK, size)
        pulled = weight[:, start:stop] + upper[:, :start, start:stop].swapaxes(1, 2) @ error[:, :start]
        within = np.ascontiguousarray(upper[:, start:stop, start:stop].swapaxes(1, 2))
        for k in range(start, stop):
            near = pulled[:, k - start] + (within[:, None, k - start, : k - start] @ error[:, start:k])[:, 0]
            near /= scale
            np.rint(near, out=near)
            low, high = limits_of(sums, int(order[0, k]), codes, back[0], 1, most)
            np.maximum(near, low, out=near)
            np.minimum(near, high, out=near)
            np.copyto(codes[:, k], near, where=free[:, k])
            error[:, k] = weight[:, k] - scale * codes[:, k]
    return np.take_along_axis(codes.swapaxes(1, 2), back[:, None], axis=2).astype(np.int16)


def _permuted(matrices: Array, order: Array) -> Array:
    """(G, K, K) with rows and columns in ``order`` (G, K)."""
    return np.stack([m[np.ix_(o, o)] for m, o in zip(matrices, order, strict=True)])


def _unit_upper(backwards: Array) -> Array:
    """U of ``h = U D U'``, from h read backwards: its Cholesky factor, backwards."""
    try:
        lower = _cholesky(backwards)
    except np.linalg.LinAlgError:  # beyond float32
        lower = _cholesky(backwards.astype(np.float64)).astype(np.float32)
    lower /= np.einsum("gkk->gk", lower)[:, None].copy()
    return np.ascontiguousarray(lower[:, ::-1, ::-1])


def _cholesky(matrices: Array) -> Array:
    """What `numpy.linalg.cholesky` gives, which computes in float64; here only blocks on the diagonal are."""
    lower = np.zeros_like(matrices, order="C")
    for start in range(0, matrices.shape[1], FACTORED):
        stop = start + FACTORED
        left, row = lower[:, start:, :start], np.swapaxes(lower[:, start:stop, :start], 1, 2)
        panel = matrices[:, start:, start:stop] - left @ row
        own = lower[:, start:stop, start:stop] = np.linalg.cholesky(panel[:, :FACTORED])
        if stop < matrices.shape[1]:
            lower[:, stop:, start:stop] = panel[:, FACTORED:] @ np.swapaxes(np.linalg.inv(own), 1, 2)
    return lower


def descend(
    codes: Array,
    wanted: Array,
    hessian: Array,
    step: Array,
    fixed: Array,
    most: int,
    sweeps: int,
    sums: Sums | None = None,
) -> Array:
    """Codes after coordinate descent: one input after the other takes the best code, given all others.

    Args:
        codes: (G, O, K) int16, where to begin.
        sweeps: how often to go over all inputs; it ends early where nothing changes.
        wanted, hessian, step, fixed, most, sums: as for `successive`.

    Returns:
        (G, O, K) int16, of no larger error.
    """
    codes = codes.copy()
    diagonal, places = np.einsum("gkk->gk", hessian), np.arange(codes.shape[2])
    for _ in range(sweeps):
        gradient = (wanted - step[:, :, None] * codes) @ hessian
        changes = 0
        for k in range(codes.shape[2]):
            best = np.rint(gradient[:, :, k] / diagonal[:, None, k] / step)
            low, high = limits_of(sums, k, codes, places, 2, most)
            new = np.clip(codes[:, :, k] + best, low, high).astype(np.int16)
            change = np.where(fixed[:, :, k] != 0, 0, new - codes[:, :, k])
            if change.any():
                changes += int(np.count_nonzero(change))
                codes[:, :, k] += change
                gradient = gradient - (step * change)[:, :, None] * hessian[:, None, k]
        if not changes:
            break
    return codes


def limits_of(
    sums: Sums | None, column: int, codes: Array, places: Array, axis: int, most: int
) -> tuple[ArrayLike, ArrayLike]:
    """The least and the largest code of a column; others' are in ``codes``, along ``axis`` at their ``places``."""
    other = -1 if sums is None else sums.partner(column)
    if sums is None or other < 0:
        return -most, most
    return sums.room(column, codes.take(places[other], axis), most)


def error_of(codes: Array, wanted: Array, hessian: Array, step: Array) -> Array:
    """``(W - s Q) H (W - s Q)'`` of each output channel: (G, O)."""
    off = wanted - step.astype(np.float32)[:, :, None] * codes
    error: Array = np.einsum("gok,gok->go", off @ hessian, off)
    return error


@dataclass(frozen=True)
class Covariance:
    """A damped covariance (G, K, K), factored once for all that is rounded by it."""

    matrix: Array

    @staticmethod
    def of(inputs: Array, share: float) -> Covariance:
        """Of samples (G, N, K) float32; see `damped`."""
        return Covariance(damped(covariance(inputs), share))

    @cached_property
    def _factor(self) -> Factor:
        return factored(self.matrix)

    def successive(self, wanted: Array, step: Array, fixed: Array, most: int, sums: Sums | None = None) -> Array:
        """`successive`."""
        return successive(wanted, self.matrix, step, fixed, most, sums, self._factor)

    def descend(
        self, codes: Array, wanted: Array, step: Array, fixed: Array, most: int, sweeps: int, sums: Sums | None = None
    ) -> Array:
        """`descend`."""
        return descend(codes, wanted, self.matrix, step, fixed, most, sweeps, sums)

    def error_of(self, codes: Array, wanted: Array, step: Array) -> Array:
        """`error_of`."""
        return error_of(codes, wanted, self.matrix, step)
