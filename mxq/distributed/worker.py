"""What runs inside Dask's workers. Only `mxq.distributed.jobs` imports this, once Dask is known to be there."""

from __future__ import annotations

import os
import pickle
import sys
import threading
from collections.abc import Mapping, MutableMapping
from typing import Any, Final

import dask
from distributed import Worker, WorkerPlugin
from distributed.comm.addressing import get_address_host

from mxq.distributed.tasks import Job, Keeping, Outcome
from mxq.errors import ConfigError
from mxq.host import environment, machine
from mxq.version import __version__

ONE_AT_A_TIME: Final = threading.Lock()
"""A worker with several threads takes several partitions; the network runs over one, on all threads it may use."""

_kept: dict[str, Keeping] = {}
_advice: list[str] = []


class Threads(WorkerPlugin):
    """Gives each worker its share of its host's cores, before it imports MXNet; also workers that come later.

    Attributes:
        workers: host -> how many workers run there.
    """

    name = "mxq-threads"

    def __init__(self, workers: Mapping[str, int]) -> None:
        self.workers = dict(workers)

    def setup(self, worker: Worker) -> None:
        host = get_address_host(worker.address)
        cores = environment.recommended_threads(machine.detect())
        together = self.workers.get(host) or max(1, cores // worker.state.nthreads)
        said = settle_threads(max(1, cores // together), host, os.environ, chosen_by_dask(worker))
        _advice[:] = [said] if said else []


def settle_threads(share: int, host: str, environ: MutableMapping[str, str], default: str | None) -> str:
    """Sets ``OMP_NUM_THREADS`` to ``share``, unless somebody has or it is too late.

    Args:
        share: how many threads this process should use.
        host: what messages call the machine.
        environ: the variables of this process.
        default: the value that Dask gives the variable on its own, which is nobody's wish; None where it gives none.

    Returns:
        What is wrong, if anything.

    Raises:
        ConfigError: ``OMP_NUM_THREADS`` is not one number.
    """
    if "mxnet" not in sys.modules:
        if environ.get("OMP_NUM_THREADS") == default:
            environ["OMP_NUM_THREADS"] = str(share)
        environment.apply_threads(environ, share)
        return ""
    used = environment.threads_mxnet_would_pick(machine.detect(), environ)
    if used <= share:
        return ""
    return (
        f"a worker on {host} imported MXNet before mxq could limit its threads: it runs on {used}, its share of the "
        f"cores is {share}; start the workers with OMP_NUM_THREADS={share}, or anew"
    )


def chosen_by_dask(worker: Worker) -> str | None:
    """What Dask's nanny sets ``OMP_NUM_THREADS`` to, 1 unless configured; None where it does not."""
    table = dask.config.get("distributed.nanny.pre-spawn-environ", {})
    value = table.get("OMP_NUM_THREADS") if worker.nanny else None
    return None if value is None else str(value)


def unpack(packed: bytes, version: str) -> Job[Any]:
    """The job, once in a worker that was asked for it."""
    if version != __version__:
        raise ConfigError(f"a worker has mxq {__version__}, the client {version}; allowed: the same version everywhere")
    job: Job[Any] = pickle.loads(packed)  # noqa: S301  (from the client, which may run any code here)
    return job


def perform(job: Job[Any], run: str, key: str, payload: bytes) -> Outcome:
    """One partition.

    Args:
        job: what all partitions have in common.
        run: identifies the job; the network that was bound for another one is given up.
        key: of the partition.
        payload: of the partition, pickled.
    """
    from mxq.runtime import MxnetRunner  # noqa: PLC0415  (after the plugin has settled the threads)

    with ONE_AT_A_TIME:
        if run not in _kept:
            _kept.clear()
            _kept[run] = Keeping(MxnetRunner())
        result = job.perform(_kept[run], key, pickle.loads(payload))  # noqa: S301
        return Outcome(result, environment.threads_mxnet_would_pick(machine.detect(), os.environ), tuple(_advice))
