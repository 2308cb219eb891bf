"""A process of this Python, held on its CPUs before it imports anything, that answers what it is asked over pipes.

All threads that it starts, of OpenMP too, are born on these CPUs. It is what ``OMP_NUM_THREADS=4 taskset -c 0-3`` does.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, Final, cast

from mxq.errors import RuntimeFailure, StorageError

BOOT: Final = (
    "import json, os, sys; spec = json.loads(sys.argv[1]); sys.path[:] = spec['path']; "
    "os.sched_setaffinity(0, spec['cpus']); "
)
"""What it runs first. ``spec`` has "path", "cpus", and what else it is told."""
BINDING: Final = ("GOMP_CPU_AFFINITY", "KMP_AFFINITY", "OMP_PLACES", "OMP_PROC_BIND")
"""Variables that would hold all processes on the same CPUs; a child does not get them."""


def environment(threads: int) -> dict[str, str]:
    """This process's variables, with ``threads`` for OpenMP and none that bind them elsewhere."""
    kept = {name: value for name, value in os.environ.items() if name not in BINDING}
    return kept | {"OMP_NUM_THREADS": str(threads), "MXNET_SUBGRAPH_VERBOSE": "0"}


def spec_of(cpus: Sequence[int], **more: Any) -> dict[str, Any]:
    """What a process is told: the CPUs it is held on, where its modules are, and ``more``."""
    return {"path": [str(Path(entry).resolve()) for entry in sys.path], "cpus": list(cpus), **more}


@contextmanager
def _explained() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StorageError(f"a process cannot be started: {error.strerror or error}") from error


class Child:
    """One process, from outside. Ctrl-C does not reach it: whoever started it ends it (`close`).

    Attributes:
        asks, answers: its stdin and stdout.
    """

    def __init__(self, program: str, spec: Mapping[str, Any], environ: Mapping[str, str]) -> None:
        with _explained():
            self._errors = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115  (see close)
        self._cpus = spec["cpus"]
        self._given_up = ""
        try:
            with _explained():
                self._process = subprocess.Popen(  # noqa: S603  (this Python, this package)
                    [sys.executable, "-I", "-c", program, json.dumps(spec)],
                    env=dict(environ),
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=self._errors,
                    start_new_session=True,
                )
        except BaseException:
            self._errors.close()
            raise
        self.asks, self.answers = cast("IO[bytes]", self._process.stdin), cast("IO[bytes]", self._process.stdout)

    def ask(self, message: bytes) -> None:
        """Writes to it.

        Raises:
            RuntimeFailure: it has ended.
        """
        try:
            self.asks.write(message)
            self.asks.flush()
        except BrokenPipeError:
            raise self.failure() from None

    def give_up(self, why: str) -> None:
        """Ends it; ``why`` is what its `failure` says."""
        self._given_up = why
        self._process.kill()

    @contextmanager
    def within(self, seconds: float) -> Iterator[None]:
        """Inside, it is given up after ``seconds``."""
        timer = threading.Timer(seconds, self.give_up, ["no answer in time"])
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()

    def close(self) -> None:
        """Ends it, and takes its leftovers away."""
        self._process.kill()
        with suppress(BrokenPipeError):  # what it did not live to read
            self.asks.close()
        self.answers.close()
        self._process.wait()
        self._errors.close()

    def failure(self) -> RuntimeFailure:
        """Why it ended: what it said last, or the signal."""
        if self._given_up:
            return RuntimeFailure(self._given_up)
        code = self._process.wait()
        self._errors.seek(0)
        said = [line.strip() for line in self._errors if line.strip()]
        if code < 0:
            name = signal.Signals(-code).name
            said = [f"killed by {name}{' (out of memory?)' if name == 'SIGKILL' else ''}"]
        return RuntimeFailure(f"process on CPU {self._cpus[0]}: {said[-1] if said else f'exit code {code}'}")
