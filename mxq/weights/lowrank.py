"""`rounding` for layers of many inputs, in the space of the samples: no matrix of inputs by inputs.

Formula. With the N samples A (N, K), centred and over sqrt(N), the damped covariance is ``H = A'A + r I``, of rank N
but for the ridge r. Of columns after k, A_>, the inverse that (2) of `rounding` needs is by Woodbury's identity one of
samples by samples,

    H_ij - H_i> H_>>^-1 H_>j = a_i' M a_j + r [i = j],        M = (I + A_> A_>' / r)^-1                       (1)

so that what the errors e_i of the inputs before k pull at it is (sum_i e_i a_i') M a_k over the k-th pivot: all that
they have done to the output, seen by input k. Columns are taken in blocks b, with one M after each:

    r I + A_b' M A_b = U D U',        pull = (sum_i e_i a_i') M A_b U'^-1 D^-1                                 (2)

It is the same rounding, with another order of sums, at the cost K N^2 + K N O in place of K^3 + K^2 O and with the
memory of the samples. Source of the identity: Woodbury, "Inverting modified matrices" (1950).

Arrays are of one group: O output channels and K inputs.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Final

import numpy as np
from scipy.linalg import cho_factor, cho_solve, solve_triangular

from mxq.graph.ir import Array
from mxq.saturation.limits import Sums
from mxq.weights.rounding import TINY, limits_of

LARGEST: Final = 5000
"""Inputs of a layer up to which their covariance is a matrix: 96 MiB, of which five are held at once."""
PLACES: Final = 2048
"""How many samples there may be at most; what they cost grows with their square."""
VALUES: Final = 1 << 25
"""How many values all samples may have: 128 MiB."""
LEAST_BLOCK: Final = 128
_SPAN: Final = 4096


def is_wide(groups: int, inputs: int) -> bool:
    """Whether a layer has too many inputs for a covariance matrix."""
    return groups == 1 and inputs > LARGEST


def places(inputs: int) -> int:
    """How many samples of so many inputs there may be."""
    return max(1, min(PLACES, VALUES // inputs))


@dataclass(frozen=True)
class _Block:
    """Columns that are rounded together: which, U (B, B), and what pulls at them by (2), (N, B)."""

    columns: Array
    upper: Array
    pull: Array


@dataclass(frozen=True)
class LowRank:
    """A damped covariance as its samples (N, K) float32, centred and over sqrt(N), and the ``ridge``."""

    samples: Array
    ridge: float

    @staticmethod
    def of(inputs: Array, share: float) -> LowRank:
        """Of samples (1, N, K) float32; the ridge is a ``share`` of the mean variance."""
        rows = inputs[0] - inputs[0].mean(axis=0, keepdims=True)
        rows /= np.float32(np.sqrt(len(rows)))
        return LowRank(rows, max(float(_energy(rows).mean()) * share, TINY))

    @cached_property
    def _diagonal(self) -> Array:
        """(K,) float64."""
        return _energy(self.samples) + self.ridge

    @cached_property
    def _blocks(self) -> tuple[_Block, ...]:
        """Columns by falling energy, with all of (2) that does not depend on weights."""
        order, size = np.argsort(-self._diagonal, kind="stable"), max(LEAST_BLOCK, len(self.samples) // 4)
        parts = [order[start : start + size] for start in range(0, len(order), size)]
        after, found = np.eye(len(self.samples)), list[_Block]()
        for columns in reversed(parts):
            samples = self.samples[:, columns].astype(np.float64)
            seen = cho_solve(cho_factor(after, lower=True), samples)
            upper, pivots = _factored(samples.T @ seen + self.ridge * np.eye(len(columns)))
            pull = solve_triangular(upper, seen.T, unit_diagonal=True).T / pivots
            found.append(_Block(columns, upper.astype(np.float32), pull.astype(np.float32)))
            after += samples @ samples.T / self.ridge
        return tuple(reversed(found))

    def successive(self, wanted: Array, step: Array, fixed: Array, most: int, sums: Sums | None = None) -> Array:
        """As `rounding.successive`; groups are one."""
        codes = np.ascontiguousarray(fixed[0].T)  # (K, O): rows by input
        scale, free = step[0].astype(np.float32), codes == 0
        done, places = np.zeros((len(self.samples), codes.shape[1]), np.float32), np.arange(len(codes))
        for block in self._blocks:
            weight = np.ascontiguousarray(wanted[0][:, block.columns].T)
            pulled, error = weight + block.pull.T @ done, np.zeros_like(weight)
            for i, k in enumerate(block.columns):
                near = np.rint((pulled[i] + block.upper[:i, i] @ error[:i]) / scale)
                low, high = limits_of(sums, int(k), codes[None], places, 1, most)
                np.copyto(codes[k], np.clip(near, low, high).reshape(-1), casting="unsafe", where=free[k])
                error[i] = weight[i] - scale * codes[k]
            done += self.samples[:, block.columns] @ error
        return np.ascontiguousarray(codes.T)[None]

    def descend(
        self, codes: Array, wanted: Array, step: Array, fixed: Array, most: int, sweeps: int, sums: Sums | None = None
    ) -> Array:
        """As `rounding.descend`; groups are one."""
        codes, places = codes.copy(), np.arange(codes.shape[2])
        done, scale = self._output(codes, wanted, step), step[0].astype(np.float32)
        for _ in range(sweeps):
            changes = 0
            for k in range(codes.shape[2]):
                sample = self.samples[:, k]
                off = wanted[0, :, k] - scale * codes[0, :, k]
                best = np.rint((done @ sample + self.ridge * off) / self._diagonal[k] / scale)
                low, high = limits_of(sums, k, codes, places, 2, most)
                new = np.clip(codes[0, :, k] + best, low, high).reshape(-1).astype(np.int16)
                change = np.where(fixed[0, :, k] != 0, 0, new - codes[0, :, k])
                if change.any():
                    changes += int(np.count_nonzero(change))
                    codes[0, :, k] += change
                    done -= np.outer(scale * change, sample)
            if not changes:
                break
        return codes

    def error_of(self, codes: Array, wanted: Array, step: Array) -> Array:
        """As `rounding.error_of`: (1, O)."""
        done = self._output(codes, wanted, step)
        own = sum(np.einsum("ok,ok->o", off, off) for _, off in self._off(codes, wanted, step))
        found: Array = np.einsum("on,on->o", done, done) + self.ridge * own
        return found[None]

    def _output(self, codes: Array, wanted: Array, step: Array) -> Array:
        """What is off in the layer's output at the samples, (O, N) float32."""
        found = np.zeros((wanted.shape[1], len(self.samples)), np.float32)
        for columns, off in self._off(codes, wanted, step):
            found += off @ self.samples[:, columns].T
        return found

    def _off(self, codes: Array, wanted: Array, step: Array) -> Iterator[tuple[slice, Array]]:
        """What is off in the weights, columns after columns, (O, some) float32."""
        scale = step[0].astype(np.float32)[:, None]
        for start in range(0, wanted.shape[2], _SPAN):
            columns = slice(start, start + _SPAN)
            yield columns, wanted[0, :, columns] - scale * codes[0, :, columns]


def _energy(samples: Array) -> Array:
    """Of each column, float64."""
    return np.asarray(np.einsum("nk,nk->k", samples, samples, dtype=np.float64))


def _factored(matrix: Array) -> tuple[Array, Array]:
    """U, unit upper triangular, and the diagonal of D, of a matrix U D U'."""
    lower = np.linalg.cholesky(matrix[::-1, ::-1])
    pivots = np.diag(lower)
    return np.ascontiguousarray((lower / pivots)[::-1, ::-1]), np.square(pivots[::-1])
