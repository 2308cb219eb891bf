"""Where the work runs: workers on this machine, or a Dask cluster that is there already."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

from mxq.errors import ConfigError
from mxq.host import environment, machine

if TYPE_CHECKING:
    from distributed import Client

TIMEOUT = 30.0
"""Seconds to wait for a scheduler to answer, and for its first worker."""


def dask() -> Any:
    """Dask's module ``distributed``.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        import distributed  # noqa: PLC0415  (an extra)
    except ImportError as error:
        raise ConfigError(f"to run on workers, Dask is needed: pip install 'mxq[distributed]' ({error})") from error
    return distributed


@contextmanager
def local_client(workers: int) -> Iterator[Client]:
    """A client of as many worker processes on this machine, which end with it.

    They share the threads that this process may use: ``OMP_NUM_THREADS``, or one for each core. A script that calls
    it needs ``if __name__ == "__main__":``, because each worker imports the script.

    Raises:
        ConfigError: ``workers`` is not positive, or Dask is not installed.
    """
    if isinstance(workers, bool) or not isinstance(workers, int) or workers < 1:
        raise ConfigError(f"workers is {workers!r}; allowed: a whole number from 1")
    distributed = dask()
    from dask import config as settings  # noqa: PLC0415  (an extra)

    threads = str(share(workers))
    # Where Dask's own choice, 1, stands in the configuration, a 1 of ours would not be told from it (see `worker`).
    no_default = {"distributed": {"nanny": {"pre-spawn-environ": {"OMP_NUM_THREADS": None}}}}
    with ExitStack() as stack:
        with _variable("OMP_NUM_THREADS", threads):  # a worker imports the script, perhaps MXNet, before it sees env
            cluster = stack.enter_context(
                distributed.LocalCluster(
                    n_workers=workers,
                    threads_per_worker=1,
                    processes=True,
                    dashboard_address="127.0.0.1:0",
                    silence_logs=logging.ERROR,  # a worker with MXNet takes its time to end, and is ended; nobody minds
                    env={"OMP_NUM_THREADS": threads},
                    config=settings.merge(settings.config, no_default),
                )
            )
        yield stack.enter_context(distributed.Client(cluster))


@contextmanager
def _variable(name: str, value: str) -> Iterator[None]:
    """While inside, this process has an environment variable, and hands it down."""
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


@contextmanager
def connect(address: str) -> Iterator[Client]:
    """A client of the scheduler at ``address``, such as "tcp://10.0.0.1:8786". The cluster stays when it ends.

    Raises:
        ConfigError: nobody answers there, or Dask is not installed.
    """
    distributed = dask()
    try:
        client = distributed.Client(address, timeout=TIMEOUT)
    except (OSError, ValueError) as error:
        raise ConfigError(f"no Dask scheduler answers at {address!r}: {str(error) or type(error).__name__}") from error
    with client:
        yield client


def share(workers: int) -> int:
    """Threads for each of ``workers`` on this machine."""
    asked = environment.check_omp_num_threads(os.environ)
    together = asked if asked is not None and asked > 0 else environment.recommended_threads(machine.detect())
    return max(1, together // workers)
