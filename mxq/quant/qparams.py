"""`QParams`: the numbers by which a tensor's values become codes, and codes values again."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mxq.errors import ConfigError
from mxq.quant.spec import QuantSpec

Array: TypeAlias = NDArray[Any]
Floats: TypeAlias = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class QParams:
    """A `QuantSpec` with its scale and zero point.

    Attributes:
        spec: with ``signed`` settled.
        scale: codes per unit of value, float32, above 0: (C,) with ``spec.axis``, else ().
        zero_point: the code of value 0, int32, of the shape of ``scale``; 0 where the spec is symmetric.

    Raises:
        ConfigError: the spec is not settled; a scale is not finite and above 0, or no power of two where it is to be
            one; a zero point is no code, or not 0 where it has to be; the shapes are none of these.
    """

    spec: QuantSpec
    scale: Floats
    zero_point: NDArray[np.int32]

    def __init__(self, spec: QuantSpec, scale: ArrayLike, zero_point: ArrayLike = 0) -> None:
        scales = np.array(scale, dtype=np.float32)
        zeros = np.array(np.broadcast_to(np.asarray(zero_point), scales.shape))
        _check_shape(spec, scales)
        _check_scale(spec, scales)
        _check_zeros(spec, zeros)
        zeros = zeros.astype(np.int32)
        scales.flags.writeable = zeros.flags.writeable = False
        for name, value in (("spec", spec), ("scale", scales), ("zero_point", zeros)):
            object.__setattr__(self, name, value)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, QParams):
            return NotImplemented
        same = np.array_equal(self.scale, other.scale) and np.array_equal(self.zero_point, other.zero_point)
        return self.spec == other.spec and same

    def __hash__(self) -> int:
        return hash((self.spec, self.scale.tobytes(), self.zero_point.tobytes()))

    @property
    def step(self) -> Floats:
        """Units of value between two codes: the reciprocal of ``scale``."""
        return np.asarray(np.float32(1) / self.scale, dtype=np.float32)

    @property
    def low(self) -> Floats:
        """The value of the lowest code, of the shape of ``scale``."""
        return np.asarray((self.spec.lowest - self.zero_point) / self.scale, dtype=np.float32)

    @property
    def high(self) -> Floats:
        """The value of the highest code, of the shape of ``scale``."""
        return np.asarray((self.spec.highest - self.zero_point) / self.scale, dtype=np.float32)

    def ordered(self, order: NDArray[np.integer[Any]]) -> QParams:
        """Those of a tensor whose channels were put in another order, ``new = old[order]``."""
        return self if self.spec.axis is None else QParams(self.spec, self.scale[order], self.zero_point[order])

    def quantize(self, x: ArrayLike) -> Array:
        """The codes of ``x``: ``clip(rint(x * scale) + zero_point)``; the shape of ``x``, of ``spec.dtype``.

        In float32, halves to the even integer, as oneDNN's reorder and ONNX's QuantizeLinear. Source: Wu et al.,
        arXiv:2004.09602, eq. 4 (zero point) and 7 (symmetric); there the zero point is added before rounding, which
        differs at halves alone.

        Raises:
            ConfigError: ``x`` does not have the channels of the scale.
        """
        return np.asarray(self._codes(x).astype(self.spec.dtype))

    def dequantize(self, codes: ArrayLike) -> Floats:
        """The values of ``codes``: ``(codes - zero_point) / scale``, float32. Source: arXiv:2004.09602, eq. 5 and 8."""
        return self._values(np.array(codes, dtype=np.float32))

    def fake(self, x: ArrayLike) -> Floats:
        """``x`` as its codes represent it, float32 of its shape. Source: arXiv:2004.09602, eq. 12."""
        return self._values(self._codes(x))

    def _codes(self, x: ArrayLike) -> Floats:
        """The codes of ``x`` as float32, in memory of their own."""
        values = np.asarray(x, dtype=np.float32)
        with np.errstate(over="ignore"):  # a product beyond float32 saturates like any other
            codes = np.asarray(values * self._beside(values, self.scale))
        np.rint(codes, out=codes)
        if not self.spec.symmetric:
            codes += self._beside(codes, self.zero_point).astype(np.float32)
        return np.clip(codes, self.spec.lowest, self.spec.highest, out=codes)

    def _values(self, codes: Floats) -> Floats:
        """What float32 ``codes`` stand for, in their place."""
        if not self.spec.symmetric:
            codes -= self._beside(codes, self.zero_point).astype(np.float32)
        codes /= self._beside(codes, self.scale)
        return codes

    def _beside(self, x: Array, numbers: Array) -> Array:
        """``numbers``, of the shape of ``scale``, in a shape that goes with ``x``."""
        axis = self.spec.axis
        if axis is None:
            return numbers
        if x.ndim <= axis or x.shape[axis] != len(numbers):
            raise ConfigError(
                f"the tensor is {list(x.shape)}; allowed: {len(numbers)} channels on axis {axis}, one for each scale"
            )
        return numbers.reshape([-1 if i == axis else 1 for i in range(x.ndim)])


def _check_shape(spec: QuantSpec, scales: Floats) -> None:
    wanted = 0 if spec.axis is None else 1
    if scales.ndim != wanted:
        allowed = "one number" if spec.axis is None else "(C,), one for each channel"
        raise ConfigError(f"the scale of {spec} has shape {scales.shape}; allowed: {allowed}")


def _check_scale(spec: QuantSpec, scales: Floats) -> None:
    bad = ~(np.isfinite(scales) & (scales > 0))
    if bad.any():
        raise ConfigError(f"a scale is {scales[bad].flat[0]}; allowed: finite, above 0")
    if spec.scale == "power_of_two" and np.any(odd := np.frexp(scales)[0] != 0.5):
        raise ConfigError(f"a scale is {scales[odd].flat[0]}; allowed for {spec}: a power of two")


def _check_zeros(spec: QuantSpec, zeros: Array) -> None:
    if zeros.dtype.kind not in "iu":
        raise ConfigError(f"zero_point is {zeros.dtype}; allowed: integers")
    wrong = (zeros != 0) if spec.symmetric else (zeros < spec.lowest) | (zeros > spec.highest)
    if wrong.any():
        allowed = "0" if spec.symmetric else f"{spec.lowest} .. {spec.highest}"
        raise ConfigError(f"a zero point of {spec} is {zeros[wrong].flat[0]}; allowed: {allowed}")
