"""`Engine`: one row of the table."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeAlias

from mxq.engines.session import Session
from mxq.errors import ConfigError

Open: TypeAlias = Callable[[Path, int], Session]
_NUMBERS: Final = re.compile(r"\d+(?:\.\d+)*")


@dataclass(frozen=True)
class Engine:
    """What runs network files.

    Attributes:
        name: what the user calls it.
        title: what it calls itself.
        package: what pip installs.
        least: the oldest version of it that is known to do.
        files: whether it runs ``.onnx`` files; else MXNet's pairs.
        version: of what is installed; raises ImportError, or what a broken installation does.
        open: a file or the prefix of a pair, on so many threads.
        start: (path, threads, inputs) -> the lines of Python that open it without mxq and run a ``batch``.
    """

    name: str
    title: str
    package: str
    least: str
    files: bool
    version: Callable[[], str]
    open: Open
    start: Callable[[Path, int, Sequence[str]], tuple[str, ...]]

    def check(self) -> str:
        """The version that is installed.

        Raises:
            ConfigError: none is, or one that is too old.
        """
        problem = self.problem()
        if problem:
            raise ConfigError(problem)
        return self.version()

    def problem(self) -> str:
        """Why it cannot be used here, with the remedy; "" where it can."""
        try:
            found = self.version()
        except ModuleNotFoundError:
            return f"{self.title} is not installed: {self.remedy}"
        except Exception as failure:
            return f"{self.title} cannot be imported ({' '.join(str(failure).split())}): {self.remedy}"
        if _numbers(found) < _numbers(self.least):
            return f"{self.title} is {found}; allowed: {self.least} or later: {self.remedy}"
        return ""

    @property
    def remedy(self) -> str:
        """What to type where it is missing."""
        return f'pip install "{self.package}>={self.least}"'


def _numbers(version: str) -> tuple[int, ...]:
    """Of "2026.4.1-22982-e213" those in front: (2026, 4, 1)."""
    found = _NUMBERS.match(version)
    return tuple(map(int, found[0].split("."))) if found else ()
