"""BatchNorm's statistics of a network, taken anew from data."""

from __future__ import annotations

import logging
from typing import Any, Final

import numpy as np

from mxq import runtime, tuning
from mxq.data.budget import Budget
from mxq.data.feed import check_finite, examples_in
from mxq.data.feeding import BATCH
from mxq.data.preparation import Preparation
from mxq.errors import DataError, QuantizeError
from mxq.graph.ir import Model
from mxq.logs import LOG
from mxq.passes.shapes import input_ranks
from mxq.passes.simplify import check_float
from mxq.recalibration import recalibrated
from mxq.recalibration.statistics import norms_of
from mxq.refine import CalibrationSubset
from mxq.workflow.opening import Given, open_data, preparation_of, settled

MOST: Final = 4096
"""Examples that are looked at where nobody says how many: as many as in MQBench."""


def recalibrate_batchnorm(
    net: runtime.Net,
    data: object,
    num_calib_examples: int | str | None = None,
    preparation: Preparation | None = None,
    *,
    batch_size: int = BATCH,
    logger: logging.Logger = LOG,
) -> Any:
    """``net``, a block, with the statistics that ``data`` shows; of another form, a block of it that has them.

    Raises:
        DataError: there is no data, or it has values that are not finite, or the network makes such of it.
        QuantizeError: the network is int8, or has no BatchNorm.
    """
    preparation = preparation or preparation_of(net)
    budget = Budget(count=MOST) if num_calib_examples is None else Budget.parse(num_calib_examples)
    if data is None:
        raise DataError("data is None; allowed: examples to take BatchNorm's statistics from, see mxq.data")
    data = settled(net, Given(data, batch_size=batch_size), preparation).data
    model = runtime.load_model(net)
    check_float(model, "one whose BatchNorms are still there, or recalibrate_batchnorm=True where it is quantized")
    if not norms_of(model):
        raise QuantizeError("the network has no BatchNorm; allowed: one whose BatchNorms were not folded")
    opened = open_data(data, model, preparation, batch_size, logger=logger)
    ranks = input_ranks(model)
    batches = tuning.repeatable(opened, model.arguments, budget, batch_size=batch_size, ranks=ranks)
    runner = runtime.MxnetRunner()
    looked = CalibrationSubset.of(runner, model, batches, getattr(batches, "planned", None) or MOST)
    for batch, feed in enumerate(looked.feeds, start=1):
        check_finite(feed, f"calibration data, batch {batch}")
    found = recalibrated(runner, model, looked.feeds)
    _check_statistics(found.model)
    for name, why in found.kept.items():
        logger.warning("the statistics of BatchNorm %r stay: %s", name, why)
    examples = sum(map(examples_in, looked.feeds))
    logger.info("statistics of %d BatchNorms are of %d examples", len(norms_of(model)) - len(found.kept), examples)
    if not runtime.is_block(net):
        return runtime.to_block(found.model)
    runtime.set_values(net, found.model.auxs)
    return net


def _check_statistics(model: Model) -> None:
    """Whether new statistics are numbers: they are set in the user's block."""
    for name, value in model.auxs.items():
        if not np.isfinite(value).all():
            raise DataError(
                f"{name!r} would not be finite: what the BatchNorm reads is beyond float32 on this data; allowed: data "
                "as in training; the network is as it was"
            )
