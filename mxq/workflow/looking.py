"""What was decided for a network, or would be."""

from __future__ import annotations

import logging
from pathlib import Path

from mxq import runtime
from mxq.artifacts import record
from mxq.config import QuantConfig
from mxq.errors import QuantizeError
from mxq.logs import LOG
from mxq.reporting.inspection import Inspection
from mxq.storage.checksums import sizes_of
from mxq.workflow.making import planned
from mxq.workflow.opening import report_in


def inspect(
    net: runtime.Net, config: QuantConfig, *, epoch: int | None = None, logger: logging.Logger = LOG
) -> Inspection:
    """Every decision on the operators of a network.

    Args:
        net: see `mxq.runtime.load_model`. What mxq made is looked up in its record, not in the network.
        config: the settings by which a float network would be quantized.
        epoch: which parameters of a prefix without a record.
        logger: receives warnings about the settings.

    Raises:
        QuantizeError: it is int8, without a record.
        FormatError: a file is missing or damaged.
    """
    if not isinstance(net, str | Path):
        known = report_in(net)
        report = known or planned(net, config, epoch=epoch, logger=logger)
        return Inspection(type(net).__name__, report, written=known is not None)
    prefix = Path(net)
    if record.recorded(prefix):
        return Inspection.of_record(prefix)
    try:
        report = planned(prefix, config, epoch=epoch, logger=logger)
    except QuantizeError as error:
        raise QuantizeError(f"{prefix} has no record {record.path_of(prefix).name} beside it, and {error}") from None
    return Inspection(str(prefix), report, written=False, bytes=sizes_of(prefix))
