"""Runs a job over partitions, in this process or on a cluster, and hands over each result as it is there."""

from __future__ import annotations

from collections.abc import Generator, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from mxq.distributed.cluster import dask
from mxq.distributed.partitions import Partitions
from mxq.distributed.tasks import Job, Keeping, Outcome
from mxq.errors import ConfigError
from mxq.graph.ir import Runner

if TYPE_CHECKING:
    from distributed import Client


@dataclass
class Run:
    """One job over partitions.

    Attributes:
        job: what is done with each.
        partitions: all of them.
        client: a `distributed.Client`; None: in this process.
        threads: key -> threads the partition ran on, of those that ran on a worker.
        advice: what the user should know of the workers.
    """

    job: Job[Any]
    partitions: Partitions
    client: Client | None = None
    threads: dict[str, int] = field(default_factory=dict)
    advice: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.client is None:
            return
        wanted = dask().Client
        if not isinstance(self.client, wanted) or self.client.asynchronous:
            raise ConfigError(
                f"client is {self.client!r:.80}; allowed: a distributed.Client that is not asynchronous, or None"
            )

    def results(self, keys: Iterable[str], runner: Runner, *, ordered: bool) -> Generator[tuple[str, Any]]:
        """(key, result) of the partitions ``keys``. Close it where it is not read to its end.

        Args:
            keys: which, in the order to begin them.
            runner: what runs the network in this process; workers have their own.
            ordered: whether results keep that order; else they come as they are there.

        Raises:
            MxqError: a partition failed, or Dask did; the message names the partition.
        """
        payloads = dict(self.partitions.items)
        wanted = [(key, payloads[key]) for key in keys]
        if self.client is None:
            kept = Keeping(runner)
            for key, payload in wanted:
                yield key, self.job.perform(kept, key, payload)
        elif wanted:
            from mxq.distributed.scheduling import Scheduled  # noqa: PLC0415  (imports Dask)

            for key, outcome in Scheduled(self.client, self.job, ordered=ordered).results(wanted):
                self._note(key, outcome)
                yield key, outcome.result

    def _note(self, key: str, outcome: Outcome) -> None:
        self.threads[key] = outcome.threads
        self.advice = tuple(dict.fromkeys((*self.advice, *outcome.advice)))
