"""The numpy oracle: what stock MXNet's int8 kernels compute, and the measures by which mxq judges a result.

Sources: ``GetQuantizeScale`` in ``src/operator/quantization/quantization_utils.h`` (scales) and
``mkldnn_quantize_v2-inl.h`` (a oneDNN reorder: multiply in float32, round half to even, saturate).
There is no zero point in MXNet 1.9.1: code 0 is value 0.
"""

from __future__ import annotations

import math
from typing import Any, Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mxq.errors import ConfigError, one_of

Array = NDArray[Any]
Floats = NDArray[np.float32]

SPAN: Final = {"int8": 127.5, "uint8": 255.5}
"""What the absolute maximum of a range maps to, in codes (``kInt8Range``, ``kUint8Range``)."""

CODES: Final = {"int8": (-128, 127), "uint8": (0, 255)}
"""The lowest and highest code."""

ZERO_RANGE_SCALE: Final = float(2**31 - 1)
"""The scale of an empty range: INT_MAX, where a division would give infinity."""


def scale(absmax: ArrayLike, dtype: str) -> Floats:
    """Codes per unit of value, in float32 as the kernels compute it.

    Args:
        absmax: any shape, in units of the tensor: largest absolute value of the range (``Range.absmax``), one
            per tensor or per channel.
        dtype: "int8" or "uint8".

    Returns:
        Shape of ``absmax``, float32. An ``absmax`` of 0 gives `ZERO_RANGE_SCALE`. `quantize_v2` alone does
        not: it divides by zero and codes 0 as 127, so an empty range must not reach it.
    """
    _check(dtype)
    bound = np.asarray(absmax, dtype=np.float32)
    if not np.all(np.isfinite(bound)) or np.any(bound < 0):
        raise ConfigError(f"absmax is {absmax!r}; allowed: finite values >= 0")
    with np.errstate(over="ignore"):
        ratio = np.float32(SPAN[dtype]) / np.where(bound == 0, np.float32(1), bound)
    return np.asarray(np.where(bound == 0, np.float32(ZERO_RANGE_SCALE), ratio), dtype=np.float32)


def quantize(x: ArrayLike, scale: ArrayLike, dtype: str) -> Array:
    """The int8 codes of ``x``: ``saturate(rint(x * scale))``, halves to the even neighbour.

    Args:
        x: any shape, float, in units of the tensor.
        scale: codes per unit, broadcast against ``x``.
        dtype: "int8" or "uint8".

    Returns:
        Shape of ``x``, of ``dtype``.
    """
    _check(dtype)
    low, high = CODES[dtype]
    with np.errstate(over="ignore"):  # a product beyond float32 saturates like any other
        scaled = np.asarray(x, dtype=np.float32) * np.asarray(scale, dtype=np.float32)
    codes: Array = np.clip(np.rint(scaled), low, high).astype(dtype)
    return codes


def dequantize(codes: ArrayLike, scale: ArrayLike) -> Floats:
    """The values of ``codes``, float32, in units of the tensor: ``codes / scale``."""
    return np.asarray(np.asarray(codes, dtype=np.float32) / np.asarray(scale, dtype=np.float32), dtype=np.float32)


def fake_quantize(x: ArrayLike, scale: ArrayLike, dtype: str) -> Floats:
    """``x`` as its codes represent it: shape of ``x``, float32, in units of the tensor."""
    return dequantize(quantize(x, scale, dtype), scale)


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


def _check(dtype: str) -> None:
    if dtype not in SPAN:
        raise one_of("dtype", dtype, SPAN)


def _pair(a: ArrayLike, b: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    first, second = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if first.shape != second.shape:
        raise ConfigError(f"shapes are {first.shape} and {second.shape}; allowed: two equal shapes")
    return first, second


def _energy(x: NDArray[np.float64]) -> float:
    return float(np.vdot(x, x))
