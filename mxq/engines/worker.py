"""The process that a `mxq.engines.served.Served` runs in, already pinned, with its threads set."""

from __future__ import annotations

import os
import pickle
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    from mxq.engines.session import Session

Answer: TypeAlias = tuple[str, Any]
"""The name of an error and what it says, or "" and what was asked for."""


def main(spec: Mapping[str, Any]) -> None:
    """Answers on stdout, one by one, what is asked on stdin. What an engine itself prints goes to stderr.

    Args:
        spec: "engine", "file" and "threads", as in `mxq.engines.served.Served`.
    """
    with os.fdopen(os.dup(1), "wb") as answers, suppress(BrokenPipeError, EOFError):
        os.dup2(2, 1)

        def tell(answer: Answer) -> None:
            pickle.dump(answer, answers, protocol=5)
            answers.flush()

        from mxq.engines.table import engine_of  # noqa: PLC0415  (after stdout is safe)

        engine, opened = engine_of(spec["engine"]), list[_Server]()
        tell(_answer(lambda: opened.append(_Server(engine.open(Path(spec["file"]), spec["threads"])))))
        while opened:
            what, content = pickle.load(sys.stdin.buffer)  # noqa: S301  (of the process that started this one)
            tell(_answer(partial(getattr(opened[0], what), content)))


def _answer(work: Callable[[], Any]) -> Answer:
    from mxq.errors import MxqError  # noqa: PLC0415  (after stdout is safe)

    try:
        return "", work()
    except MxqError as error:
        return type(error).__name__, str(error)


@dataclass
class _Server:
    """What can be asked of an open file; see `mxq.engines.served.Served`."""

    session: Session
    held: Callable[[], object] = field(default=lambda: None)

    def run(self, feeds: Mapping[str, Any]) -> list[Any]:
        return self.session(feeds)

    def hold(self, feeds: Mapping[str, Any]) -> None:
        self.held = self.session.held(feeds)

    def time(self, calls: int) -> float:
        return seconds(self.held, calls)


def seconds(call: Callable[[], object], calls: int, clock: Callable[[], float] = time.perf_counter) -> float:
    """Of one call, the mean of ``calls``, after one that does not count."""
    call()
    start = clock()
    for _ in range(calls):
        call()
    return (clock() - start) / calls
