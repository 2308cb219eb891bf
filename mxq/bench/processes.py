"""Runs a setup: processes held on their CPUs, which load the network, wait for each other, and time it at once.

What a process is: `mxq.host.child`.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mxq.bench.sweep_result import Reading, Setup, combine
from mxq.host import child
from mxq.host.child import Child, environment, spec_of

BOOT = f"{child.BOOT}from mxq.bench.worker import main; main(spec)"


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
        return spec_of(
            cpus,
            prefix=str(self.prefix.resolve()),
            epoch=self.epoch,
            shapes={name: list(shape) for name, shape in self.shapes.items()},
            batches=list(self.batches),
            seconds=self.seconds,
            warmup=self.warmup,
        )


def _give_up(workers: Sequence[_Worker]) -> None:
    for worker in workers:
        worker.give_up("no answer in time")


class _Worker(Child):
    """One process that times."""

    def __init__(self, spec: Mapping[str, Any], environ: Mapping[str, str]) -> None:
        super().__init__(BOOT, spec, environ)

    def answer(self) -> Any:
        """The next line it writes.

        Raises:
            RuntimeFailure: it has ended.
        """
        line = self.answers.readline()
        if not line:
            raise self.failure()
        return json.loads(line)

    def go(self) -> None:
        """Has it begin."""
        self.ask(b"go\n")
