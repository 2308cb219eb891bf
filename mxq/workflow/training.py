"""A float network is fine-tuned, with quantization or without, on labelled data at a path or in memory."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mxq import runtime
from mxq.artifacts import pair
from mxq.backends.runtimes import RUNTIMES
from mxq.data.feeding import feeds
from mxq.data.preparation import Preparation
from mxq.errors import ConfigError
from mxq.formats.onnx_file import require_onnx
from mxq.logs import LOG
from mxq.qat.config import QatConfig
from mxq.qat.converting import converted, planned, simulated, trained
from mxq.qat.floating import float_block, written
from mxq.qat.network import QatNetwork
from mxq.qat.preparing import prepare
from mxq.qat.result import Trained
from mxq.qat.schedule import TrainConfig
from mxq.qat.training import fit
from mxq.quant.bits import Bits
from mxq.workflow.exporting import export_onnx
from mxq.workflow.opening import Measured, check_labelled, open_labelled, preparation_of
from mxq.workflow.requesting import FileRequest


@dataclass(frozen=True)
class TrainRecipe:
    """How a network is trained.

    Attributes:
        training: the schedule.
        qat: how it is quantized meanwhile; None trains it in float.
        baseline: whether the float network is fine-tuned as well, to compare with.
    """

    training: TrainConfig
    qat: QatConfig | None = None
    baseline: bool = True


def train(
    net: runtime.Net,
    data: Measured,
    evaluated: Measured | None,
    recipe: TrainRecipe,
    preparation: Preparation | None = None,
    *,
    workdir: Path | None = None,
    epoch: int | None = None,
    logger: logging.Logger = LOG,
) -> Trained:
    """Fine-tunes ``net``.

    Args:
        net: float; see `mxq.runtime.load_model`.
        data: what it trains on, with labels; ranges start from a part of it.
        evaluated: what to measure on; None: nothing.
        recipe: how.
        preparation: how pictures are read; what is known of the network where None.
        workdir: see `mxq.qat.fit`.
        epoch: which parameters of a prefix.
        logger: receives what is said meanwhile.

    Raises:
        DataError: data at a path has no labels, and others as of `mxq.qat.fit`.
        QuantizeError: as of `mxq.qat.prepare`.
    """
    model = runtime.load_model(net, epoch)
    preparation = preparation or preparation_of(net)
    size = recipe.training.examples

    def opened(measured: Measured, what: str) -> tuple[Any, Any]:
        found, labels = open_labelled(measured, model, preparation, size, logger)
        check_labelled(measured, found, labels, what)
        return found, labels

    train_data, labels = opened(data, "training data")
    eval_data, eval_labels = (None, None) if evaluated is None else opened(evaluated, "data to measure on")
    block = float_block(model)
    baseline = None
    if recipe.qat is not None:
        budget = recipe.qat.quantization.budget
        baseline = block if recipe.baseline else None
        block = prepare(model, feeds(train_data, model.arguments, budget, batch_size=size), recipe.qat)
    return fit(
        block,
        train_data,
        labels=labels,
        eval_data=eval_data,
        eval_labels=eval_labels,
        metric=None if evaluated is None else evaluated.metric,
        baseline=baseline,
        config=recipe.training,
        workdir=workdir,
        logger=logger,
    )


def is_file(out: Path) -> bool:
    """Whether what is written is an ONNX file, not a pair."""
    return out.suffix == ".onnx"


def check_out(out: Path, qat: QatConfig | None) -> None:
    """Whether what is trained can be written there, looked at before any work.

    Raises:
        ConfigError: it is to be an ONNX file and cannot be one, or onnx is not installed.
    """
    if not is_file(out):
        return
    require_onnx()
    if qat is None or not qat.is_written:
        found = "a float network" if qat is None else f"{Bits(qat.bits_w, qat.bits_a)} for {qat.row.library}"
        raise ConfigError(
            f"--out is {str(out)!r}, an ONNX file, but {found} is trained; allowed: W4A8 to W8A8 on "
            f"{', '.join(RUNTIMES.values())} (--hardware), or a prefix for a pair"
        )


def write(
    found: Trained, prefix: Path, target: str = "native", preparation: Preparation | None = None
) -> tuple[Path, ...]:
    """Writes what was trained as a pair: INT8 where MXNet's kernels hold it, else float that computes the same.

    Args:
        found: from `train`.
        prefix: of the files; or an ONNX file (``.onnx``), see `check_out`.
        target: the CPU that an INT8 network is for.
        preparation: how pictures become inputs, for an ONNX file.

    Returns:
        The files; of an INT8 network the record is the last.

    Raises:
        StorageError: they cannot be written.
    """
    if not isinstance(getattr(found.block, "qat", None), QatNetwork):
        return runtime.write_pair(written(found.block), prefix)
    network = trained(found.block)
    if is_file(prefix):
        made = converted(network, target, runtime.MxnetRunner(), runtime.versions())
        return export_onnx(FileRequest(net=planned(network, made, preparation).block, path=prefix))
    if not network.config.is_held:
        return runtime.write_pair(simulated(network), prefix)
    made = converted(network, target, runtime.MxnetRunner(), runtime.versions())
    return pair.write(made.model, made.report, prefix)


def made(found: Trained, target: str = "native") -> runtime.Net:
    """The network that was trained with quantization: INT8 where MXNet's kernels hold it, else its simulation."""
    network = trained(found.block)
    if not network.config.is_held:
        return simulated(network)
    result = converted(network, target, runtime.MxnetRunner(), runtime.versions())
    return runtime.reported_block(result.model, result.report)
