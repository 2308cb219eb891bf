"""A float network and what was made of it: which is which, and the data to compare them on."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

from mxq import runtime
from mxq.errors import ConfigError
from mxq.images import Source
from mxq.ir import Model
from mxq.logs import LOG
from mxq.passes.simplify import FLOAT
from mxq.pipeline import fingerprint
from mxq.preparation import Preparation
from mxq.report import record
from mxq.workflow.opening import Measured, open_labelled


@dataclass(frozen=True)
class Pair:
    """A float network, and the one that is compared with it."""

    float: Model
    int8: Model


def pair_of(float_prefix: Path, int8_prefix: Path, *, epoch: int | None = None, logger: logging.Logger = LOG) -> Pair:
    """Reads both; warns where the second is float too, or was made from another network.

    Args:
        float_prefix, int8_prefix: the two, in this order.
        epoch: which parameters of the first.
        logger: receives the warning.

    Raises:
        ConfigError: the first is quantized.
        FormatError: a file is missing or damaged.
    """
    found = Pair(runtime.load_model(float_prefix, epoch), runtime.load_model(int8_prefix))
    float_first, float_second = (FLOAT.check(model) is None for model in (found.float, found.int8))
    if not float_first:
        remedy = f"give {int8_prefix} {float_prefix}" if float_second else "mxq compare holds two of them together"
        raise ConfigError(
            f"{float_prefix}, given as the float network, is quantized, and {int8_prefix} is "
            f"{'float' if float_second else 'quantized, too'}; {remedy}"
        )
    check_origin(found.float, float_prefix, int8_prefix, logger)
    if float_second and float_prefix.resolve() != int8_prefix.resolve() and not record.recorded(int8_prefix):
        logger.warning("%s, given as the int8 network, is float", int8_prefix)
    return found


def check_origin(model: Model, name: Path, int8_prefix: Path, logger: logging.Logger = LOG) -> None:
    """Warns where the record of the quantized network says that it was made from other parameters than ``model``'s."""
    if not record.recorded(int8_prefix):
        return
    made_from = record.read(int8_prefix).source.get("params_sha256")
    if made_from is not None and made_from != fingerprint(model)["params_sha256"]:
        logger.warning(
            "%s was not made from %s: its record names a float network of other parameters", int8_prefix, name
        )


def compared_on(
    measured: Measured, model: Model, preparation: Preparation, batch_size: int, logger: logging.Logger = LOG
) -> Source:
    """What ``measured`` has at its path, for networks that are compared on it."""
    source: Source = open_labelled(measured, model, preparation, batch_size, logger)[0]
    logger.info("comparing on %d of %s", source.examples, source.description)
    return source
