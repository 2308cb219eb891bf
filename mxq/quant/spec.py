"""`QuantSpec`: the kind of integers that values become. It says nothing of their range; `mxq.quant.qparams` does."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from types import MappingProxyType
from typing import Any, Final, Literal, TypeAlias

from mxq.errors import ConfigError, one_of

ScaleKind: TypeAlias = Literal["float", "power_of_two"]
SCALES: Final = ("float", "power_of_two")
LEAST_BITS, MOST_BITS = 2, 8
LEAST_IN_FILES: Final = 4
"""Bits of weights that ONNX files can have."""


@dataclass(frozen=True, slots=True)
class QuantSpec:
    """How values become integers.

    Attributes:
        bits: of a code, 2 to 8.
        signed: whether codes may be negative; None where the range is to tell (see `settled`).
        symmetric: whether code 0 stands for value 0; else a zero point does.
        axis: along which the tensor has a scale (and zero point) for each index, its channels; None for one of all.
        scale: "float", or "power_of_two": a scale that a shift multiplies by.
        narrow: whether a signed code's lowest value is left out, so that codes are as many below 0 as above.

    Raises:
        ConfigError: a field is none of these, or ``narrow`` is set for unsigned codes.
    """

    bits: int = 8
    signed: bool | None = True
    symmetric: bool = True
    axis: int | None = None
    scale: ScaleKind = "float"
    narrow: bool = False

    def __post_init__(self) -> None:
        if type(self.bits) is not int or not LEAST_BITS <= self.bits <= MOST_BITS:
            raise ConfigError(f"bits is {self.bits!r}; allowed: {LEAST_BITS} to {MOST_BITS}")
        for name, allowed in (("signed", (True, False, None)), ("symmetric", (True, False)), ("narrow", (True, False))):
            if not any(getattr(self, name) is value for value in allowed):
                raise one_of(name, getattr(self, name), allowed)
        if self.axis is not None and (type(self.axis) is not int or self.axis < 0):
            raise ConfigError(f"axis is {self.axis!r}; allowed: an axis counted from the front, or None")
        if self.scale not in SCALES:
            raise one_of("scale", self.scale, SCALES)
        if self.narrow and self.signed is False:
            raise ConfigError("narrow is True for unsigned codes; allowed: for signed ones, whose lowest it leaves out")

    @property
    def lowest(self) -> int:
        """The lowest code."""
        return (-(1 << self.bits - 1) + self.narrow) if self._sign else 0

    @property
    def highest(self) -> int:
        """The highest code."""
        return (1 << self.bits - self._sign) - 1

    @property
    def dtype(self) -> str:
        """The type that holds a code: "int8" or "uint8", also where it has fewer bits."""
        return "int8" if self._sign else "uint8"

    @property
    def _sign(self) -> bool:
        if self.signed is None:
            raise ConfigError(f"nothing says whether codes of {self} are signed; settle the spec by a range first")
        return self.signed

    def settled(self, low: float) -> QuantSpec:
        """This with ``signed`` known: unsigned where no value is below 0, the range's ``low`` says.

        A zero point holds negative values in unsigned codes as well, so such codes are unsigned.
        """
        if self.signed is not None:
            return self
        return replace(self, signed=self.symmetric and low < 0, narrow=self.narrow and self.symmetric and low < 0)

    def to_json(self) -> dict[str, Any]:
        """All fields, JSON-ready."""
        return asdict(self)

    def __str__(self) -> str:
        kind = {True: "int", False: "uint", None: "int or uint"}[self.signed]
        return ", ".join(
            filter(
                None,
                (
                    f"{kind}{self.bits}",
                    "" if self.symmetric else "zero point",
                    "" if self.axis is None else f"per channel on axis {self.axis}",
                    "" if self.scale == "float" else "power-of-two scale",
                    "narrow" if self.narrow else "",
                ),
            )
        )


INT8: Final = QuantSpec()
UINT8: Final = QuantSpec(signed=False)
ANY8: Final = QuantSpec(signed=None)
"""`UINT8` where the range has no values below 0, else `INT8`."""
BY_DTYPE: Final[Mapping[str, QuantSpec]] = MappingProxyType({"int8": INT8, "uint8": UINT8})
"""Type of a tensor in MXNet's memory -> the spec of its codes."""
