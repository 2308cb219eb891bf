"""How much of the data to calibrate on."""

from __future__ import annotations

import math
from dataclasses import dataclass

from mxq.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Budget:
    """How much calibration data to use: ``count`` examples, or a ``percent`` of what there is.

    The default, 5 %, is kept between 32 and 1024 examples. A plain count or percentage is kept as it is.
    """

    count: int | None = None
    percent: float | None = None
    least: int = 1
    most: int | None = None

    @staticmethod
    def parse(value: int | str | None) -> Budget:
        """Reads ``num_calib_examples``: None (the default), 500, "500" or "5%".

        Raises:
            ConfigError: not positive, or a percentage outside (0, 100].
        """
        if value is None:
            return Budget(percent=5.0, least=32, most=1024)
        text = str(value).strip()
        number = text.removesuffix("%")
        try:
            amount = float(number)
        except ValueError:
            amount = -1.0
        if text.endswith("%") and 0 < amount <= 100:
            return Budget(percent=amount)
        if not text.endswith("%") and 0 < amount < math.inf and amount == int(amount):
            return Budget(count=int(amount))
        raise ConfigError(
            f"num_calib_examples is {value!r}; allowed: a positive count such as 500, a percentage such as '5%', "
            "or None"
        )

    def examples(self, available: int | None) -> int | None:
        """The number of examples to use of ``available`` (None: unknown); None where only the end of data ends it."""
        if self.count is not None:
            return self.count if available is None else min(self.count, available)
        if available is None:
            return self.most
        wanted = max(round(available * (self.percent or 100.0) / 100), self.least, 1)
        return min(wanted, self.most or wanted, available)
