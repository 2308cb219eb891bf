"""`Served`: a session in a process of its own, on CPUs of its own choice."""

from __future__ import annotations

import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from mxq import errors
from mxq.engines.row import Engine
from mxq.errors import MxqError, RuntimeFailure
from mxq.graph.ir import Array
from mxq.host import child
from mxq.host.child import Child, environment, spec_of

BOOT = f"{child.BOOT}from mxq.engines.worker import main; main(spec)"
PATIENCE: Final = 600.0
"""Seconds that one answer may take."""


class Served:
    """A file that an engine holds open in another process; `close` ends that.

    Args:
        engine: what runs it.
        path: the file, or the prefix of a pair.
        cpus: on which its threads stay.
        threads: how many; one for each of ``cpus`` where None.

    Raises:
        FormatError: the file is damaged, or the engine does not take it.
        RuntimeFailure: the process ended.
    """

    def __init__(self, engine: Engine, path: Path, cpus: Sequence[int], threads: int | None = None) -> None:
        count = len(cpus) if threads is None else threads
        engine.check()
        self.engine, self.path = engine, path
        spec = spec_of(cpus, engine=engine.name, file=str(path), threads=count)
        self._child = Child(BOOT, spec, environment(count))
        try:
            self._answer()
        except BaseException:
            self.close()
            raise

    def __call__(self, feeds: Mapping[str, Array]) -> list[Array]:
        """The outputs, as of `mxq.engines.session.Session`."""
        found: list[Array] = self._asked("run", dict(feeds))
        return found

    def hold(self, feeds: Mapping[str, Array]) -> None:
        """Runs it on ``feeds``, which it is timed on from now on."""
        self._asked("hold", dict(feeds))

    def seconds(self, calls: int = 1) -> float:
        """Of one call, the mean of ``calls``, by the clock of its process.

        One call before them does not count: in it threads wake and caches fill, which others have used since.
        """
        found: float = self._asked("time", calls)
        return found

    def _asked(self, what: str, content: Any) -> Any:
        self._child.ask(pickle.dumps((what, content), protocol=5))
        return self._answer()

    def _answer(self) -> Any:
        with self._child.within(PATIENCE):
            try:
                kind, content = pickle.load(self._child.answers)  # noqa: S301  (of our own process)
            except (EOFError, pickle.UnpicklingError):
                raise RuntimeFailure(f"{self.engine.title} ended with {self.path}: {self._child.failure()}") from None
        if kind:
            error: type[MxqError] = getattr(errors, kind)
            raise error(content)
        return content

    def close(self) -> None:
        """Ends the process."""
        self._child.close()
