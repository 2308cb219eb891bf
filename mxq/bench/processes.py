"""Runs a setup: processes held on their CPUs, which load the network, wait for each other, and time it at once.

A process takes its CPUs before it imports anything, so all its threads, of OpenMP too, are born on them. It is
what ``OMP_NUM_THREADS=4 taskset -c 0-3`` does.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

from mxq.bench.sweep_result import Reading, Setup, combine
from mxq.errors import RuntimeFailure, StorageError

BOOT = (
    "import json, os, sys; spec = json.loads(sys.argv[1]); sys.path[:] = spec['path']; "
    "os.sched_setaffinity(0, spec['cpus']); from mxq.bench.worker import main; main(spec)"
)
BINDING = ("GOMP_CPU_AFFINITY", "KMP_AFFINITY", "OMP_PLACES", "OMP_PROC_BIND")
"""Variables that would hold all processes on the same CPUs; a sweep's processes do not get them."""


@dataclass(frozen=True, slots=True)
class Job:
    """What to time.

    Attributes:
        prefix: of the network.
        shapes: input -> shape of one example.
        batches: sizes to try, in order.
        seconds: how long to time each, once all processes are ready.
        warmup: calls before that; fewer where they take longer than ``seconds``.
        epoch: which parameters; None: see `mxq.storage.checksums.params_of`.
        patience: seconds after which the processes of a setup are given up, beside the timing.
    """

    prefix: Path
    shapes: Mapping[str, Sequence[int]]
    batches: tuple[int, ...]
    seconds: float = 2.0
    warmup: int = 10
    epoch: int | None = None
    patience: float = 600.0

    def run(self, setup: Setup) -> Generator[Reading, None, None]:
        """A reading for each of ``batches``; when it is closed, its processes are gone.

        Raises:
            RuntimeFailure: one of the processes ended or did not answer in time.
        """
        workers: list[_Worker] = []
        timer = threading.Timer(self.patience + self.seconds * len(self.batches), _give_up, [workers])
        timer.daemon = True
        try:
            environ = environment(setup.threads)
            workers.extend(_Worker(self.spec(cpus), environ) for cpus in setup.sets)
            timer.start()
            for batch in self.batches:
                for worker in workers:
                    worker.answer()
                for worker in workers:
                    worker.go()
                yield combine([worker.answer() for worker in workers], batch)
        finally:
            timer.cancel()
            for worker in workers:
                worker.close()

    def spec(self, cpus: Sequence[int]) -> dict[str, Any]:
        """What a process is told (see `mxq.bench.worker.main`)."""
        return {
            "path": [str(Path(entry).resolve()) for entry in sys.path],
            "cpus": list(cpus),
            "prefix": str(self.prefix.resolve()),
            "epoch": self.epoch,
            "shapes": {name: list(shape) for name, shape in self.shapes.items()},
            "batches": list(self.batches),
            "seconds": self.seconds,
            "warmup": self.warmup,
        }


def environment(threads: int) -> dict[str, str]:
    """This process's variables, with ``threads`` for OpenMP and none that bind them elsewhere."""
    kept = {name: value for name, value in os.environ.items() if name not in BINDING}
    return kept | {"OMP_NUM_THREADS": str(threads), "MXNET_SUBGRAPH_VERBOSE": "0"}


def _give_up(workers: Sequence[_Worker]) -> None:
    for worker in workers:
        worker.give_up("no answer in time")


@contextmanager
def _explained() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StorageError(f"a process to time cannot be started: {error.strerror or error}") from error


class _Worker:
    """One process, from outside. Ctrl-C does not reach it: whoever started it ends it."""

    def __init__(self, spec: Mapping[str, Any], environ: Mapping[str, str]) -> None:
        with _explained():
            self._errors = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115  (see close)
        self._cpus = spec["cpus"]
        self._given_up = ""
        try:
            with _explained():
                self._process = subprocess.Popen(  # noqa: S603  (this Python, this package)
                    [sys.executable, "-I", "-c", BOOT, json.dumps(spec)],
                    env=dict(environ),
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=self._errors,
                    text=True,
                    start_new_session=True,
                )
        except BaseException:
            self._errors.close()
            raise
        self._asks, self._answers = cast("IO[str]", self._process.stdin), cast("IO[str]", self._process.stdout)

    def answer(self) -> Any:
        """The next line it writes.

        Raises:
            RuntimeFailure: it has ended.
        """
        line = self._answers.readline()
        if not line:
            raise RuntimeFailure(self._reason())
        return json.loads(line)

    def go(self) -> None:
        try:
            self._asks.write("go\n")
            self._asks.flush()
        except BrokenPipeError:
            raise RuntimeFailure(self._reason()) from None

    def give_up(self, why: str) -> None:
        self._given_up = why
        self._process.kill()

    def close(self) -> None:
        self._process.kill()
        with suppress(BrokenPipeError):  # a "go" that it did not live to read
            self._asks.close()
        self._answers.close()
        self._process.wait()
        self._errors.close()

    def _reason(self) -> str:
        """Why it ended: what it said last, or the signal."""
        if self._given_up:
            return self._given_up
        code = self._process.wait()
        self._errors.seek(0)
        said = [line.strip() for line in self._errors if line.strip()]
        if code < 0:
            name = signal.Signals(-code).name
            said = [f"killed by {name}{' (out of memory?)' if name == 'SIGKILL' else ''}"]
        return f"process on CPU {self._cpus[0]}: {said[-1] if said else f'exit code {code}'}"
