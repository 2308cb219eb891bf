"""Time that a search may take."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from numbers import Real

from mxq.errors import ConfigError


def is_number(value: object) -> bool:
    """Whether it can be compared with numbers."""
    return isinstance(value, Real)


class OutOfTime(Exception):
    """What comes next is expected to end after the time is over. It ends a search, not the program."""


@dataclass
class Budget:
    """A number of ``seconds`` for all runs of one search together; None: as long as it takes.

    Attributes:
        clock: seconds.
        spent: by earlier runs.
    """

    seconds: float | None = None
    clock: Callable[[], float] = time.monotonic
    spent: float = 0.0
    _started: float = field(init=False, default=0.0)

    def __post_init__(self) -> None:
        if self.seconds is not None and not (is_number(self.seconds) and 0 < self.seconds < math.inf):
            raise ConfigError(f"time_budget is {self.seconds!r}; allowed: a positive number of seconds, or None")
        self._started = self.clock()

    @property
    def elapsed(self) -> float:
        """Seconds used so far, by this run and earlier ones."""
        return self.spent + self.clock() - self._started

    def check(self, what: str, expected: float) -> None:
        """Raises `OutOfTime` where ``what``, which takes so many seconds, would not end in time."""
        if self.seconds is not None and self.elapsed + expected > self.seconds:
            raise OutOfTime(
                f"the time budget of {self.seconds:g} s: {self.elapsed:.0f} s are used, and {what} takes about "
                f"{expected:.0f} s"
            )
