"""Means and variances of a tensor's channels over batches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mxq.graph.ir import Array
from mxq.numerics import channel_rows


@dataclass(frozen=True, slots=True)
class Moments:
    """Of each channel over all examples and places: (C,) float64 each; the variance divides by their number."""

    mean: NDArray[np.float64]
    var: NDArray[np.float64]

    @staticmethod
    def of(batches: Sequence[Array], axis: int = 1) -> Moments:
        """Those of a tensor whose channels are on ``axis``.

        The sums are of what is left of the first batch's mean, so that a large mean costs a variance no digits.
        """
        rows = channel_rows(batches, axis)
        middle = rows[0].mean(axis=1, dtype=np.float64)
        count, total, squares = 0, np.zeros_like(middle), np.zeros_like(middle)
        for row in rows:
            off = row - middle[:, None]
            count += off.shape[1]
            total += off.sum(axis=1)
            squares += np.einsum("cn,cn->c", off, off)
        mean = total / count
        return Moments(middle + mean, np.maximum(squares / count - mean**2, 0.0))
