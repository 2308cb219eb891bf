"""`Bits`: how many bits codes have, those of weights and those of all other tensors: "W4A8"."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

from mxq.errors import ConfigError
from mxq.quant.spec import LEAST_BITS, MOST_BITS

_PAIR: Final = re.compile(r"w(\d{1,2})a(\d{1,2})", re.IGNORECASE | re.ASCII)
_ONE: Final = re.compile(r"\d{1,2}", re.ASCII)


@dataclass(frozen=True, slots=True)
class Bits:
    """So many bits for each code of ``weights``, so many for each of ``activations``.

    Raises:
        ConfigError: one of them is not 2 to 8.
    """

    weights: int = MOST_BITS
    activations: int = MOST_BITS

    def __post_init__(self) -> None:
        if not all(type(n) is int and LEAST_BITS <= n <= MOST_BITS for n in (self.weights, self.activations)):
            raise _refusal("bits", (self.weights, self.activations))

    @staticmethod
    def parse(value: Any, field: str = "bits") -> Bits:
        """Reads 4, "4", "W4A8" or the pair (4, 8): of weights, then of activations.

        Raises:
            ConfigError: it is none of these, or a number is not 2 to 8; names ``field``.
        """
        if isinstance(value, Bits):
            return value
        try:
            return Bits(*_numbers(value))
        except (ConfigError, TypeError, ValueError):
            raise _refusal(field, value) from None

    def __str__(self) -> str:
        return f"W{self.weights}A{self.activations}"


Width: TypeAlias = int | str | Sequence[int] | Bits
"""What `Bits.parse` reads: 4, "4", "W4A8" or (4, 8)."""


def several(field: str, values: Width | Sequence[Width]) -> tuple[Bits, ...]:
    """Widths, each once; a single one is one of them.

    Raises:
        ConfigError: one of ``values`` is none; names ``field``.
    """
    given = [values] if isinstance(values, int | str | Bits) or not isinstance(values, Iterable) else values
    return tuple(dict.fromkeys(Bits.parse(value, field) for value in given))


def _numbers(value: Any) -> tuple[Any, ...]:
    if isinstance(value, str):
        if pair := _PAIR.fullmatch(value.strip()):
            return int(pair[1]), int(pair[2])
        value = int(value) if _ONE.fullmatch(value.strip()) else None
    if isinstance(value, tuple | list):
        weights, activations = value
        return weights, activations
    return value, value


def _refusal(field: str, value: Any) -> ConfigError:
    return ConfigError(
        f"{field} is {value!r}; allowed: {LEAST_BITS} to {MOST_BITS}, of weights and activations alike or of each, "
        "such as 4, 'W4A8' or (4, 8)"
    )
