"""Networks and data, opened for a command; MXNet is imported no sooner."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mxq.cli.console import progress
from mxq.errors import ConfigError
from mxq.logs import LOG

if TYPE_CHECKING:
    from mxq.config import QuantConfig
    from mxq.data.preparation import Preparation
    from mxq.reporting.inspection import Inspection
    from mxq.runtime import MxnetRunner
    from mxq.workflow import Measured


def start_mxnet(*, quiet: bool = False) -> MxnetRunner:
    """Settles the number of threads, then imports MXNet."""
    from mxq.host import environment, machine

    best = environment.recommended_threads(machine.detect())
    if "mxnet" not in sys.modules and environment.apply_threads(os.environ, best) and not quiet:
        LOG.info("OMP_NUM_THREADS=%s: one thread a core; set it yourself to choose another number", best)
    os.environ.setdefault("MXNET_SUBGRAPH_VERBOSE", "0")
    from mxq.runtime import MxnetRunner

    return MxnetRunner()


def write_page(
    path: Path | None,
    prefix: Path,
    epoch: int | None,
    made: Any,
    measured: Measured,
    preparation: Preparation | None,
    added: Sequence[object] = (),
) -> tuple[Path, ...]:
    """Writes the page that ``--report`` asks for, of a network and what was ``made`` of it; none without ``path``."""
    if path is None:
        return ()
    from mxq import runtime, workflow

    net, few = prefix if epoch is None else runtime.load_model(prefix, epoch), workflow.PAGE_EXAMPLES
    return (workflow.report(net, made, measured, path, preparation, added=added, most=few, progress=progress),)


@contextmanager
def cluster(workers: int | None, scheduler: str | None) -> Iterator[Any]:
    """The Dask client that ``--workers`` or ``--scheduler`` asks for; None where neither does."""
    if workers is not None and scheduler is not None:
        raise ConfigError(f"--workers is {workers} beside --scheduler {scheduler!r}; allowed: one of them")
    if workers is None and scheduler is None:
        yield None
        return
    from mxq import distributed

    with distributed.local_client(workers) if workers else distributed.connect(str(scheduler)) as client:
        yield client


def inspected(prefix: Path, epoch: int | None, config: QuantConfig) -> Inspection:
    """What was decided for a quantized network, which needs no MXNet, or would be for a float one."""
    from mxq.artifacts import record
    from mxq.reporting.inspection import Inspection

    if record.recorded(prefix):
        return Inspection.of_record(prefix)
    start_mxnet()
    from mxq import workflow

    return workflow.inspect(prefix, config, epoch=epoch)
