"""The measures by which mxq judges a result, and channels as the rows that they are taken over."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mxq.errors import ConfigError

LARGEST: Final = float(np.finfo(np.float32).max)
"""The largest float32."""
TO_WHOLE: Final = 1.5 * 2.0**23
"""Added to a float32 below 2^22 and taken away, it leaves the nearest whole number, of two the even one."""


def channel_rows(batches: Sequence[ArrayLike], axis: int) -> list[NDArray[Any]]:
    """Of each batch, (C, n): all values of each channel on ``axis``, in the batch's dtype."""
    return [np.moveaxis(np.asarray(b), axis, 0).reshape(np.shape(b)[axis], -1) for b in batches]


def sqnr_db(reference: ArrayLike, value: ArrayLike) -> float:
    """Signal to quantization noise, ``10 log10(sum(reference^2) / sum((reference - value)^2))``, in dB.

    Args:
        reference: any shape, float; the signal.
        value: the same shape.

    Returns:
        inf where both are equal (also when both are zero); -inf for a zero signal with an error; NaN where
        either holds a NaN.
    """
    signal, other = _pair(reference, value)
    error = _energy(signal - other)
    if error == 0:
        return math.inf
    energy = _energy(signal)
    return -math.inf if energy == 0 else 10 * (math.log10(energy) - math.log10(error))


def centred_sqnr_db(reference: ArrayLike, value: ArrayLike) -> float:
    """`sqnr_db` of logits after each row's mean is subtracted: softmax ignores a constant, so this does too.

    Args:
        reference: (examples, classes) float logits; any shape whose last axis is the classes.
        value: the same shape.
    """
    signal, other = _pair(reference, value)
    if signal.ndim == 0:
        raise ConfigError("logits have rank 0; allowed: rank 1 or more, classes on the last axis")
    centred = [a - a.mean(axis=-1, keepdims=True) for a in (signal, other)]
    return sqnr_db(*centred)


def kl_divergence(p: ArrayLike, q: ArrayLike) -> float:
    """Kullback-Leibler divergence ``sum(p log(p / q))`` of two histograms, in nats.

    Args:
        p: any shape, counts or probabilities >= 0; normalized here.
        q: the same shape.

    Returns:
        0 for equal distributions, inf where ``q`` is zero and ``p`` is not.
    """
    first, second = _pair(p, q)
    for name, a in (("p", first), ("q", second)):
        total = a.sum()
        if not (np.all(a >= 0) and math.isfinite(total) and total > 0):
            raise ConfigError(f"{name} sums to {total}; allowed: finite counts >= 0 with a positive sum")
    mask = first > 0
    here, there = first[mask] / first.sum(), second[mask] / second.sum()
    if np.any(there == 0):
        return math.inf
    return float(np.sum(here * np.log(here / there)))


def cosine(a: ArrayLike, b: ArrayLike) -> float:
    """Cosine of the angle between two tensors of one shape; 1 for two zero tensors, 0 where only one is zero."""
    first, second = _pair(a, b)
    norms = [float(np.linalg.norm(t)) for t in (first, second)]
    if 0 in norms:
        return float(norms == [0, 0])
    return float(np.clip(np.vdot(first / norms[0], second / norms[1]), -1, 1))


def _pair(a: ArrayLike, b: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    first, second = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if first.shape != second.shape:
        raise ConfigError(f"shapes are {first.shape} and {second.shape}; allowed: two equal shapes")
    return first, second


def _energy(x: NDArray[np.float64]) -> float:
    return float(np.vdot(x, x))
