"""Partitions on their way through Dask. Only `mxq.distributed.jobs` imports this, once Dask is known to be there.

Each result comes to the client at once and is forgotten by its worker. A worker that dies loses the partition it was
working on, and perhaps one whose result had not been fetched; Dask gives them to another. As many partitions are under
way as there are workers, and a tenth more where there are many: so a partition that ends its workers can be named, and
memory does not grow with the number of partitions.
"""

from __future__ import annotations

import time
import uuid
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any, Final

import dask
import distributed
from distributed.comm.addressing import get_address_host

from mxq.distributed import worker
from mxq.distributed.cluster import TIMEOUT
from mxq.distributed.tasks import Job, Outcome
from mxq.errors import ConfigError, MxqError, RuntimeFailure, WorkerError
from mxq.version import __version__

RECOUNT: Final = 5.0
"""Seconds after which the workers are counted again: clusters grow and shrink."""

EARLY: Final = 4
"""Results that may wait for an earlier partition, for each one under way, where the order matters."""


DASK: Final[Any] = distributed
"""The same without types: what of it has some changes from version to version."""


class Scheduled:
    """A ``job`` on the workers of ``client``; with ``ordered``, results keep the order of the partitions."""

    def __init__(self, client: Any, job: Job[Any], *, ordered: bool) -> None:
        self._client, self._job, self._ordered = client, job, ordered
        self._name = f"mxq-{uuid.uuid4().hex}"
        self._running: dict[Any, str] = {}
        self._early: dict[str, Outcome] = {}
        self._slots, self._counted = 0, -RECOUNT

    def results(self, wanted: Sequence[tuple[str, Any]]) -> Iterator[tuple[str, Outcome]]:
        """(key, outcome) of the partitions ``wanted``, (key, payload) each.

        Raises:
            MxqError: a partition failed, or Dask did; the message names the partition.
        """
        packed = [(key, _packed(f"partition {key!r}", payload)) for key, payload in wanted]
        job = self._spread()
        completed = DASK.as_completed(loop=self._client.loop, with_results=True, raise_errors=False)
        waiting, order = enumerate(packed), deque(key for key, _ in wanted)
        try:
            self._begin(completed, job, waiting)
            for future, found in completed:
                key = self._running.pop(future)
                self._early[key] = _outcome(key, future, found)
                del future, found  # or the worker would keep the result until the next one is there
                while self._early and (not self._ordered or order[0] in self._early):
                    key = order.popleft() if self._ordered else next(iter(self._early))
                    yield key, self._early.pop(key)
                self._begin(completed, job, waiting)
        except OSError as error:  # also Dask's CommClosedError and TimeoutError
            raise WorkerError(f"the scheduler {self._client.scheduler.address} was lost: {error}") from error
        finally:
            self._client.cancel([*self._running, job], force=True)

    def _spread(self) -> Any:
        """Has every worker settle its threads, then take the job; a worker that comes later fetches it from another.

        It is a task's result, not scattered data, so that Dask makes it again where all who had it have died.
        """
        packed = _packed("the job (network, load, metric)", self._job)
        try:
            self._client.wait_for_workers(1, timeout=TIMEOUT)
            hosts = Counter(get_address_host(address) for address in self._client.nthreads())
            self._client.register_plugin(worker.Threads(hosts))
        except TimeoutError as error:
            raise ConfigError(f"no worker has come to {self._client.scheduler.address}: {error}") from error
        except (ImportError, AttributeError) as error:
            raise ConfigError(f"the workers have no mxq, or another one than {__version__}: {error}") from error
        with dask.config.set({"distributed.admin.large-graph-warning-threshold": "1 TB"}):
            job = self._client.submit(worker.unpack, packed, __version__, key=f"{self._name}-job")
        DASK.wait([job])
        if job.status != "finished":
            raise _refused(job)
        self._client.replicate([job])
        return job

    def _begin(self, completed: Any, job: Any, waiting: Iterator[tuple[int, tuple[str, bytes]]]) -> None:
        """Submits as many partitions as there is room for."""
        if time.monotonic() - self._counted >= RECOUNT:
            workers = max(1, len(self._client.nthreads()))
            self._slots, self._counted = workers + workers // 10, time.monotonic()
        running = len(self._running)
        room = min(self._slots - running, self._slots * (1 + EARLY) - running - len(self._early))
        for number, (key, payload) in islice(waiting, max(0, room)):
            place = (f"{self._name}-partition", number)
            future = self._client.submit(worker.perform, job, self._name, key, payload, key=place)
            self._running[future] = key
            completed.add(future)


def _outcome(key: str, future: Any, found: Any) -> Outcome:
    """What a partition gave.

    Raises:
        MxqError: it failed.
    """
    if future.status == "finished" and isinstance(found, Outcome):
        return found
    error = found[1] if isinstance(found, tuple) else found
    if isinstance(error, MxqError):
        raise error
    if isinstance(error, DASK.KilledWorker):
        raise RuntimeFailure(
            f"partition {key!r} ended the worker that ran it, {error.allowed_failures + 1} time(s): it ran out of "
            "memory, or crashed; the workers' logs tell which"
        ) from error
    why = (str(error) or type(error).__name__).splitlines()[0]
    raise WorkerError(f"partition {key!r} was given up by Dask ({future.status}): {why}") from error


def _refused(job: Any) -> MxqError:
    """Why the workers cannot take a job."""
    error = job.exception() if job.status == "error" else None
    if isinstance(error, MxqError):
        return error
    return ConfigError(
        f"the workers cannot take the job: {type(error).__name__}: {error}; the modules of load and metric must be "
        "installed there too"
    )


def _packed(what: str, value: Any) -> bytes:
    """``value`` pickled, functions of scripts included.

    Raises:
        ConfigError: it cannot be.
    """
    try:
        packed: bytes = DASK.protocol.pickle.dumps(value)
    except Exception as error:  # whatever the pickling of the user's objects raises
        raise ConfigError(f"{what} cannot be sent to a worker: {error}; allowed: what pickles") from error
    return packed
