"""The public functions: what `mxq.quantize_net` and its siblings do."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import wraps
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ParamSpec, TypeVar

import numpy as np

from mxq import pipeline, runtime, threads, tuning, workflow
from mxq.artifacts import packed as packing
from mxq.artifacts import pair, record
from mxq.artifacts.record import Explanation
from mxq.bench.runtimes import BestRuntime
from mxq.calibration.statistics import Statistics
from mxq.config import ONNX, QuantConfig, Shape, check_shape, quant_spec, with_options
from mxq.data.preparation import Preparation
from mxq.data.preprocess import Preprocess
from mxq.drawing.libraries import check_page
from mxq.errors import ConfigError, FormatError, QuantizeError
from mxq.evaluation import Evaluation, Function, Metric
from mxq.formats.reading import path_given
from mxq.graph.ir import Model
from mxq.host import machine
from mxq.logs import LOG
from mxq.mxnet_arguments import excluded, names_given, own_options, shapes_of
from mxq.options import MxnetOptions, Options, Unpack
from mxq.planned import Planned
from mxq.qat.schedule import TrainConfig
from mxq.quant.bits import Width
from mxq.quant.plan import Report
from mxq.quant.thresholds import Thresholds
from mxq.reporting import plots
from mxq.reporting.files import FileInspection
from mxq.reporting.inspection import Inspection
from mxq.runtime import LoadedBlock, QuantizedBlock
from mxq.verification import Comparison, FileVerification, Verification
from mxq.workflow import CodesRequest, FileForm, FileRequest, Given, Measured, TrainingData

_P = ParamSpec("_P")
_R = TypeVar("_R")


class QuantizedModel(tuple[Any, dict[str, Any], dict[str, Any]]):
    """``(qsym, qarg_params, aux_params)``, as MXNet's `quantize_model` returns, with the ``report`` beside."""

    report: Report

    @staticmethod
    def of(quantized: pipeline.Quantized) -> QuantizedModel:
        """From the pipeline's result."""
        model = quantized.model
        parts = (runtime.to_symbol(model.graph), runtime.to_arrays(model.args), runtime.to_arrays(model.auxs))
        result = QuantizedModel(parts)
        result.report = quantized.report
        return result


def _releasing_threads(function: Callable[_P, _R]) -> Callable[_P, _R]:
    """``function``, which runs networks and reads what they give, and then leaves OpenMP's threads to MXNet's engine.

    With those that it starts in this thread ResNet-50 takes half as long again at batch 1, see
    `mxq.host.environment.disable_parallel_copy`.
    """

    @wraps(function)
    def wrapped(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        try:
            return function(*args, **kwargs)
        finally:
            threads.release_openmp_threads()

    return wrapped


@_releasing_threads
def quantize_net(
    net: runtime.Net = None,
    calib_data: object = None,
    *,
    network: runtime.Net = None,
    data_shapes: object = None,
    config: QuantConfig | None = None,
    thresholds: Thresholds | None = None,
    statistics: Statistics | str | Path | None = None,
    batch_size: int = 32,
    ctx: Any = None,
    logger: logging.Logger | None = None,
    report: str | Path | None = None,
    **options: Unpack[MxnetOptions],
) -> QuantizedBlock:
    """Quantizes a network to INT8.

    Args:
        net: a HybridBlock, a SymbolBlock, a Module, ``(sym, arg_params, aux_params)``, or the prefix of an exported
            pair ("model" for model-symbol.json and model-0000.params). It is not changed, but for parameters that wait
            for data to tell their shapes: those are settled on the first batch. A block that was hybridized and run
            takes the arguments that it ran with, another those that its call requires.
        calib_data: examples from the task's data: a Gluon DataLoader, a DataIter, an NDArray or numpy array, a
            dictionary of them by input name, a list or generator of batches; or the path of a folder of images, a .npy
            or an .npz file. Arrays are (N, ...), as the network takes them: floats become float32, integers stay. Those
            of a tuple go by the order of the call; those after them, labels, are ignored.
            `mxq.data` says which examples are used where not all are.
        network, data_shapes: MXNet's arguments: another name for ``net``, and the shape of a batch of each input, which
            settles those of a network that was never run where there is no data.
        config: a `QuantConfig`; ``options`` change single fields of it.
        thresholds: ranges found earlier by `calibrate`, instead of ``calib_data``.
        statistics: a file that `calibrate` kept (``stats=``), or what `Statistics.load` read, instead of
            ``calib_data``: ranges follow from it without running the network.
        batch_size: how whole arrays and files are cut; 1 for networks made for one example at a time (Faster R-CNN).
        ctx: the CPU, if anything; there is no other int8 backend.
        logger: receives what mxq says instead of ``logging.getLogger("mxq")``, which writes it to stderr.
        report: an .html file that a page about the result goes to, see `mxq.report`; of 64 of the examples.
        **options: fields of `QuantConfig` (`mxq.Options`), named as in ``mxnet.contrib.quantization.quantize_net``:
            ``calib_mode``, ``quantized_dtype``, ``num_calib_examples``, ``exclude_layers``, ...;
            ``backend="onnx"``, for what `export_onnx` writes without calibrating again, and computes here what its file
            will; ``preprocess``, by which pictures at a path are read (by default as the ``preprocess.json`` beside the
            network says, or its record); and ``input_dtype``, for a network that is fed integers (`mxq.data`).

    Returns:
        A hybridizable SymbolBlock with the inputs and outputs of ``net``, float32 but with ``input_dtype``; `save` or
        its own ``export`` writes the pair that stock MXNet loads. Its attribute ``mxq_report`` holds every decision.

    Raises:
        MxqError: see `mxq.errors`; the message names what is wrong and what is allowed.
    """
    if (net is None) == (network is None):
        both = "both given" if network is not None else "both missing"
        raise ConfigError(f"net and network are {both}; allowed: one of them, they are two names for one argument")
    net = _settled(net if network is None else network, data_shapes)
    given, asked = Given(calib_data, thresholds, statistics, batch_size=batch_size), _config(config, options, logger)
    _check_ctx(ctx)
    if asked.backend == ONNX:
        _no_page(report)
        _settle_by(net, asked.shapes)
        request = CodesRequest(
            net=net, form=FileForm(asked.shapes), given=given, config=replace(asked, input_shape=None)
        )
        return workflow.quantized_for_files(request, _heard(logger)).block
    page = _page(report, "calib_data", calib_data)
    quantized = _quantize(net, given, asked, ctx, logger)
    block = runtime.reported_block(quantized.model, quantized.report)
    _write_page(page, net, block, Measured(calib_data), logger)
    return block


@_releasing_threads
def simulate(
    net: runtime.Net,
    calib_data: object = None,
    *,
    config: QuantConfig | None = None,
    thresholds: Thresholds | None = None,
    statistics: Statistics | str | Path | None = None,
    batch_size: int = 32,
    logger: logging.Logger | None = None,
    **options: Unpack[Options],
) -> QuantizedBlock:
    """A float network that computes what ``net`` would on other hardware, or with fewer bits.

    Values are rounded to the codes of that hardware where it has codes (`mxq.quant.hardware`); sums are exact. The
    methods of `quantize_net` serve it, too: equalization, rounding, bias correction, choice of ranges.

    Args:
        net, calib_data, config, thresholds, statistics, batch_size, logger, **options: as for `quantize_net`. Of the
            options ``hardware`` is "onednn", "tensorrt", "acl", "tvm", "snpe", "fbgemm", "onnx", "onnxruntime",
            "openvino" or "academic", ``bits`` 2 to 8: 4, or of weights and of all else "W4A8" or (4, 8); single layers
            have others by ``overrides``.

    Returns:
        As of `quantize_net`, but all of it is float; for oneDNN with 8 bits, the block gives what the INT8 one would.

    Raises:
        MxqError: see `mxq.errors`; the message names what is wrong and what is allowed.
    """
    options["simulate"] = True
    given = Given(calib_data, thresholds, statistics, batch_size=batch_size)
    made = _quantize(net, given, _config(config, options), None, logger)
    return runtime.reported_block(made.model, made.report)


@_releasing_threads
def quantize_model(
    sym: Any,
    arg_params: Mapping[str, Any],
    aux_params: Mapping[str, Any] | None = None,
    calib_data: object = None,
    *,
    config: QuantConfig | None = None,
    thresholds: Thresholds | None = None,
    statistics: Statistics | str | Path | None = None,
    batch_size: int = 32,
    data_names: Iterable[str] | None = None,
    label_names: Iterable[str] | None = None,
    excluded_sym_names: str | Iterable[str] | None = None,
    excluded_op_names: str | Iterable[str] | None = None,
    ctx: Any = None,
    logger: logging.Logger | None = None,
    **options: Unpack[MxnetOptions],
) -> QuantizedModel:
    """Quantizes a symbol and its parameters; see `quantize_net`.

    Args:
        data_names: the symbol's inputs, in the order of a batch's arrays.
        label_names: ignored, as labels are.
        excluded_sym_names, excluded_op_names: MXNet's names for ``exclude_layers``, ``exclude_operators``, one or a
            list; of names that the network does not have the logger hears.

    Returns:
        ``(qsym, qarg_params, aux_params)`` with an attribute ``report``.
    """
    del label_names
    data_names = names_given("data_names", data_names)
    model = runtime.from_symbol(sym, arg_params, aux_params, data_names)
    unknown = [name for name in data_names if name not in model.inputs]
    if unknown:
        raise ConfigError(f"data_names: {unknown[0]!r} is no input; the inputs are {', '.join(model.inputs)}")
    known = frozenset(node.name for node in model.graph.operators)
    layers = excluded("excluded_sym_names", excluded_sym_names, known, _heard(logger))
    operators = names_given("excluded_op_names", excluded_op_names)
    options["exclude_layers"] = _both("exclude_layers", options, layers)
    options["exclude_operators"] = _both("exclude_operators", options, operators)
    given = Given(calib_data, thresholds, statistics, batch_size=batch_size)
    return QuantizedModel.of(_quantize(model, given, _config(config, options, logger), ctx, logger))


@_releasing_threads
def calibrate(
    net: runtime.Net,
    calib_data: object = None,
    *,
    config: QuantConfig | None = None,
    stats: str | Path | None = None,
    client: Any = None,
    batch_size: int = 32,
    logger: logging.Logger | None = None,
    **options: Unpack[Options],
) -> Thresholds:
    """Finds the ranges that `quantize_net` would use; give them back to it as ``thresholds``.

    Args:
        net, calib_data, config, batch_size, logger, **options: as for `quantize_net`.
        stats: a file to keep the statistics in, written every few batches. Ended in any way and called again with the
            same data, it goes on where it was and ends with the same result. Without ``calib_data`` the file is read,
            so that other calibrators can be asked without running the network again.
        client: a Dask client; ``calib_data`` must be a path or `Partitions`, which its workers read and run. The
            result is that of one process.

    Returns:
        Tensor name -> range with its provenance.

    Raises:
        MxqError: see `mxq.errors`; the message names what is wrong and what is allowed.
    """
    file = None if stats is None else path_given("stats", stats)
    given = Given(calib_data, stats=file, batch_size=batch_size, client=client)
    return workflow.calibrate(net, given, _config(config, options), logger=_heard(logger)).thresholds


@_releasing_threads
def recalibrate_batchnorm(
    net: runtime.Net,
    calib_data: object,
    *,
    num_calib_examples: int | str | None = None,
    batch_size: int = 32,
    preprocess: Preprocess | Mapping[str, Any] | None = None,
    logger: logging.Logger | None = None,
) -> Any:
    """Takes BatchNorm's moving mean and variance anew from data: as a network computes now, not as it did in training.

    Quantization moves both; in a network that is trained with fake quantization it is worth doing before `evaluate`
    and before it is made int8. Data of another kind than that of training moves them too. Where BatchNorm is folded
    already, the setting ``recalibrate_batchnorm`` of `quantize_net` does what comes to the same.

    Source: MQBench, arXiv:2111.03759, appendix C.3; see `mxq.recalibration`.

    Args:
        net, calib_data, batch_size, logger: as for `quantize_net`.
        num_calib_examples: how much of the data, a count or a percentage; up to 4096 examples by default. Fewer are
            looked at where their tensors would take more than 3 GiB.
        preprocess: how pictures at a path are read, see `quantize_net`.

    Returns:
        ``net`` itself where it is a Gluon block: its statistics are set. Else a block of it.

    Raises:
        QuantizeError: the network is int8, or has no BatchNorm.
        MxqError: see `mxq.errors`; the message names what is wrong and what is allowed.
    """
    given = _preparation(preprocess)
    return workflow.recalibrate_batchnorm(
        net, calib_data, num_calib_examples, given, batch_size=batch_size, logger=_heard(logger)
    )


@_releasing_threads
def evaluate(
    net: runtime.Net,
    data: object,
    *,
    metric: Metric[Any] | Function | None = None,
    labels: Any = None,
    client: Any = None,
    batch_size: int = 32,
    preprocess: Preprocess | Mapping[str, Any] | None = None,
    logger: logging.Logger | None = None,
) -> Evaluation:
    """Accuracy, or another measure, of a network, float or int8, over labelled data.

    Args:
        net: as for `quantize_net`.
        data: as ``calib_data`` of `quantize_net`, all of it, with labels: after the inputs in a batch, in the file
            ``labels.csv`` of a folder, or as ``labels``. Or `Partitions` whose batches have them.
        metric: by default the shares of examples whose label is the first output's best class ("top1") or among its
            best five ("top5"). A function from a batch's outputs and labels to numbers by name is averaged over
            examples; what needs a state has the methods of `mxq.evaluation.Metric`.
        labels: (examples, ...), where they are not in the data; for a folder also a file like ``labels.csv``.
        client: a Dask client, for a path or `Partitions`. The result is that of one process.
        batch_size: how whole arrays and files are cut.
        preprocess: how pictures at a path are read, see `quantize_net`.
        logger: as for `quantize_net`.

    Returns:
        The number of examples, and the numbers by name.

    Raises:
        MxqError: see `mxq.errors`; the message names what is wrong and what is allowed.
    """
    measured, given = Measured(data, labels, metric), _preparation(preprocess)
    return workflow.evaluate(net, measured, given, batch_size=batch_size, client=client, logger=_heard(logger))


@_releasing_threads
def inspect(
    net: runtime.Net,
    *,
    epoch: int | None = None,
    config: QuantConfig | None = None,
    logger: logging.Logger | None = None,
    **options: Unpack[Options],
) -> Inspection:
    """What is int8 in a network and what is not, and why; of a float one, what would be. See ``mxq inspect``.

    Args:
        net: as for `quantize_net`, or what that, `quantize_model` or `load` returned. Of what mxq made, the report is
            looked up, not the network. ONNX files: `inspect_onnx`.
        epoch: which ``prefix-NNNN.params`` of a float pair; the latest by default.
        config, logger, **options: as for `quantize_net`, for a float network.

    Returns:
        The report, sizes in bytes of a pair's files, and which of them are not as they were written; ``str`` is the
        table.

    Raises:
        QuantizeError: the network is int8, without a record.
        MxqError: see `mxq.errors`.
    """
    return workflow.inspect(net, _config(config, options, logger), epoch=epoch, logger=_heard(logger))


def inspect_onnx(path: str | Path) -> FileInspection:
    """What is in an ONNX file, of mxq or another program, and what it says of how it was made. See ``mxq inspect``.

    Raises:
        ConfigError: onnx is not installed.
        FormatError: there is no such file, it is none of ONNX, or damaged.
    """
    return FileInspection.of(path_given("path", path))


@_releasing_threads
def explain(
    net: runtime.Net,
    node: str,
    *,
    epoch: int | None = None,
    config: QuantConfig | None = None,
    logger: logging.Logger | None = None,
    **options: Unpack[Options],
) -> Explanation:
    """Why one node is int8 or float. See ``mxq explain``.

    Args:
        net, epoch, config, logger, **options: as for `inspect`.
        node: a node's name in the float network, the fused or the int8 one.

    Returns:
        The decision on the operator that the node is part of, its parts, range, weight, and the rules that refused it;
        ``str`` is the table.

    Raises:
        ConfigError: no operator has that name; the message lists close ones.
        MxqError: as of `inspect`.
    """
    found = workflow.inspect(net, _config(config, options, logger), epoch=epoch, logger=_heard(logger))
    return record.explained(found.report, node)


@_releasing_threads
def verify(
    float_net: runtime.Net,
    int8_net: runtime.Net,
    data: object,
    *,
    layers: bool = False,
    labels: Any = None,
    num_examples: int | None = None,
    batch_size: int | None = None,
    preprocess: Preprocess | Mapping[str, Any] | None = None,
    logger: logging.Logger | None = None,
) -> Verification:
    """How close an INT8 network is to the float one: equal answers, noise, accuracy where there are labels.

    See ``mxq verify``, whose bars are ``failures(min_agreement, min_sqnr)`` of the result.

    Args:
        float_net: as for `quantize_net`.
        int8_net: what was made of it, in any of these forms; one that takes integers is fed those of ``data``. ONNX
            files: `verify_onnx`.
        data: as ``calib_data`` of `quantize_net`, all of it: inputs of the float network.
        layers: compare every tensor that both have, to find which layers introduce noise.
        labels: class numbers (examples,), where they are not in the data; for a folder also a file like ``labels.csv``.
        num_examples: so many of a path's examples, spread evenly; all by default.
        batch_size: how whole arrays and files are cut; 32 by default, 4 with ``layers``.
        preprocess: how pictures at a path are read, see `quantize_net`.
        logger: as for `quantize_net`.

    Returns:
        Shares in 0..1, SQNR in dB; ``str`` is the table.

    Raises:
        ConfigError: ``float_net`` is quantized.
        DataError: no examples, labels that do not fit, or outputs that differ in number or shape.
        MxqError: see `mxq.errors`.
    """
    return workflow.verify(
        float_net,
        int8_net,
        Measured(data, labels, examples=num_examples),
        _preparation(preprocess),
        layers=layers,
        batch_size=batch_size,
        logger=_heard(logger),
    )


@_releasing_threads
def report(
    float_net: runtime.Net,
    int8_net: runtime.Net,
    data: object,
    path: str | Path = "report.html",
    *,
    batch_sizes: Sequence[int] = (1, 16),
    onnx_files: Sequence[str | Path] = (),
    added: Sequence[object] = (),
    labels: Any = None,
    num_examples: int | None = None,
    preprocess: Preprocess | Mapping[str, Any] | None = None,
    logger: logging.Logger | None = None,
) -> Path:
    """Writes one HTML page about an INT8 network: accuracy, speed, both networks drawn, every layer and its noise.

    The page needs no other file and no network access.

    Args:
        float_net, int8_net, data: as of `verify`.
        path: the page, .html.
        batch_sizes: the batches that are timed, on noise of the shape of ``data``; none where empty.
        onnx_files: of the same network; they are timed beside it in each runtime that is installed.
        added: what else the page shows: what `sensitivity`, `tune`, `best_runtime` or `mxq.qat.fit` (with a workdir)
            returned, files that the commands wrote with ``--json``, or the workdir of a training.
        labels, num_examples, preprocess, logger: as of `verify`.

    Returns:
        ``path``.

    Raises:
        MxqError: another suffix, a library is missing (``pip install "mxq[report]"``), and as of `verify`.
    """
    return workflow.report(
        float_net,
        int8_net,
        Measured(data, labels, examples=num_examples),
        path_given("path", path),
        _preparation(preprocess),
        batch_sizes=batch_sizes,
        files=[path_given("onnx_files", file) for file in onnx_files],
        added=added,
        logger=_heard(logger),
    )


@_releasing_threads
def verify_onnx(
    float_net: runtime.Net,
    path: str | Path,
    data: object,
    *,
    labels: Any = None,
    num_examples: int | None = None,
    batch_size: int | None = None,
    preprocess: Preprocess | Mapping[str, Any] | None = None,
    runtimes: str | Sequence[str] | None = None,
    logger: logging.Logger | None = None,
) -> FileVerification:
    """How close an ONNX file is to the float network, in each runtime that is installed. See ``mxq verify``.

    Args:
        float_net: as for `quantize_net`, or the path of a float ONNX file.
        path: the file that was made of it.
        data, labels, num_examples, batch_size, preprocess, logger: as for `verify`.
        runtimes: "onnxruntime", "openvino" or several; by default all that are installed.

    Returns:
        What `verify` gives, for each runtime in ``runs``; ``str`` is the table.

    Raises:
        ConfigError: ``float_net`` is quantized; a runtime is missing or too old.
        FormatError: the file is damaged, or a runtime does not take it.
        MxqError: as of `verify`.
    """
    return workflow.verify_file(
        float_net,
        path_given("path", path),
        Measured(data, labels, examples=num_examples),
        _preparation(preprocess),
        runtimes=names_given("runtimes", runtimes),
        batch_size=batch_size,
        logger=_heard(logger),
    )


@_releasing_threads
def best_runtime(
    *nets: runtime.Net,
    batch_size: int | Sequence[int] = 1,
    input_shape: Sequence[int] | Mapping[str, Sequence[int]] | None = None,
    runtimes: str | Sequence[str] | None = None,
    repeats: int = 50,
    warmup: int = 10,
    logger: logging.Logger | None = None,
) -> BestRuntime:
    """Which runtime of this machine runs a network fastest: pairs in MXNet, ONNX files in all that are installed.

    Each runs in a process of its own, on the same cores and the same number of threads, and they take turns, so that
    what slows the machine slows all. See ``mxq bench --runtimes``.

    Args:
        *nets: forms of one network: pairs as for `quantize_net`, and paths of ONNX files. Others are compared with the
            first.
        batch_size: examples to a batch, or several sizes.
        input_shape: of one example, without the batch, by name where there are several inputs; by default as an ONNX
            file or ``preprocess.json`` says.
        runtimes: those for ONNX files: "onnxruntime", "openvino"; all that are installed by default.
        repeats, warmup: rounds that count, and before them that do not.
        logger: as for `quantize_net`.

    Returns:
        A row for each, and which is ``best`` at each batch size, with the lines that start it; ``str`` is the table.

    Raises:
        ConfigError: no network, an unknown shape, a runtime that is missing or too old.
        RuntimeFailure: none of them ran.
        MxqError: see `mxq.errors`.
    """
    asked = QuantConfig(input_shape=input_shape)  # type: ignore[arg-type]
    sizes = tuple(batch_size) if isinstance(batch_size, Iterable) else (batch_size,)
    wrong = [size for size in sizes if not isinstance(size, int) or isinstance(size, bool) or size < 1]
    if wrong or not sizes:
        raise ConfigError(f"batch_size is {batch_size!r}; allowed: a whole number, 1 or more, or several")
    return workflow.best_runtime(
        nets,
        batch_sizes=sizes,
        shapes=asked.shapes,
        runtimes=names_given("runtimes", runtimes),
        repeats=repeats,
        warmup=warmup,
        logger=_heard(logger),
    )


@_releasing_threads
def compare(
    a: runtime.Net,
    b: runtime.Net,
    data: object = None,
    *,
    float_net: runtime.Net = None,
    labels: Any = None,
    num_examples: int | None = None,
    batch_size: int = 32,
    preprocess: Preprocess | Mapping[str, Any] | None = None,
    logger: logging.Logger | None = None,
) -> Comparison:
    """What differs between two INT8 networks: operators, ranges, weights, settings, and results on data.

    See ``mxq compare``.

    Args:
        a, b: the two, in any of the forms of `quantize_net`, or what that, `quantize_model` or `load` returned.
        data: run them on it, too, as for `verify`.
        float_net: the float network, to hold each against on ``data``.
        labels, num_examples, batch_size, preprocess, logger: as for `verify`.

    Returns:
        ``differences``, and under ``runs`` a result as of `verify` for each pair; ``str`` is the tables.

    Raises:
        ConfigError: ``float_net`` without ``data``, or it is quantized.
        MxqError: as of `verify`.
    """
    if float_net is not None and data is None:
        raise ConfigError("float_net is given without data; allowed: both, or neither")
    return workflow.compare(
        a,
        b,
        None if data is None else Measured(data, labels, examples=num_examples),
        float_net,
        _preparation(preprocess),
        batch_size=batch_size,
        logger=_heard(logger),
    )


def plot(
    statistics: Statistics | str | Path,
    tensor: str,
    path: str | Path,
    *,
    calib_mode: str | None = None,
    dtype: str = "auto",
    network: Any = None,
) -> Path:
    """Draws a tensor's histogram, on a log scale, with the threshold of every calibrator on it.

    Args:
        statistics: a file that `calibrate` kept (``stats=``), or what `Statistics.load` read.
        tensor: its name in the fused network; the command ``mxq plot FILE`` lists them.
        path: the picture, .png, .svg or .pdf.
        calib_mode: the calibrator to mark as chosen.
        dtype: "auto", "int8" or "uint8".
        network: the quantized network whose range to mark as used: a prefix, or what `quantize_net`,
            `quantize_model` or `load` returned. Without it and ``calib_mode``, the calibrator of the least expected
            error is marked as that.

    Returns:
        ``path``.

    Raises:
        MxqError: no such tensor or calibrator, no histogram of it, the statistics are of another network, or
            matplotlib is missing.
    """
    if network is not None and calib_mode is not None:
        raise ConfigError(f"calib_mode is {calib_mode!r} beside a network, whose range is marked; allowed: one of them")
    picture = path_given("path", path)
    found = statistics if isinstance(statistics, Statistics) else Statistics.load(path_given("statistics", statistics))
    used = None
    if network is not None:
        report = record.read(network) if isinstance(network, str | Path) else _report_of("plot", network)
        used = plots.used_by(report, found, tensor)
    return plots.draw(found, tensor, plots.compared(found, tensor, calib_mode, quant_spec(dtype), used), picture)


def draw(*networks: Any, path: str | Path, epoch: int | None = None, zoom: float = 1.0) -> Path:
    """Draws networks side by side: operators as boxes, tensors as arrows, what is INT8 in blue.

    Args:
        networks: float or quantized ones, from left to right: prefixes, blocks, or what MXNet's functions return.
        path: the picture, .svg or .png.
        epoch: which parameters of the first, where that is a prefix.
        zoom: size of a .png, in shares of the .svg's; smaller where that would be above 60 million pixels.

    Returns:
        ``path``.

    Raises:
        MxqError: there is no network, another suffix, or a library is missing: ``pip install "mxq[report]"``.
    """
    return workflow.draw(networks, path_given("path", path), epoch=epoch, zoom=zoom)


def save(quantized: Any, prefix: str | Path, *, packed: bool = False) -> tuple[Path, ...]:
    """Writes ``prefix-symbol.json``, ``prefix-0000.params`` and the report ``prefix-mxq.json``, all or none of them.

    Args:
        quantized: what `quantize_net`, `quantize_model` or `load` returned.
        prefix: path and first part of the names; the directory must exist.
        packed: whether to write these in one file of a quarter of their size instead; see `pack`.

    Returns:
        The paths, in that order; of the packed file and the script that unpacks it.

    Raises:
        QuantizeError: ``quantized`` does not come from mxq.
        FormatError: the directory does not exist or cannot be written.
    """
    report = _report_of("save", quantized)
    if Planned.of(quantized) is not None:
        raise QuantizeError(
            "save got a network that is quantized for ONNX files (backend='onnx'), which is no pair; allowed: "
            "mxq.export_onnx(quantized, path), or quantize_net without backend for a pair"
        )
    target = _written_prefix(prefix)
    if not packed:
        return pair.write(runtime.load_model(quantized), report, target)
    with TemporaryDirectory() as folder:
        inside = Path(folder) / target.name
        pair.write(runtime.load_model(quantized), report, inside)
        return packing.pack(inside, target).files


def pack(prefix: str | Path, out: str | Path | None = None) -> tuple[Path, ...]:
    """Writes the pair ``prefix`` as codes and scales, in one file of a quarter of its size: ``out-packed.npz``.

    Beside it goes ``out-unpack.py``, which makes the pair of it with numpy alone:
    ``python out-unpack.py out-packed.npz``. Weights that are no codes stay float32; a warning names them.

    Args:
        prefix: of a pair that `save` wrote.
        out: path and first part of the names; ``prefix`` by default.

    Returns:
        The paths of both.

    Raises:
        FormatError: a file is missing, damaged or changed, or its parameters are not as mxq writes them.
        StorageError: a file cannot be written.
    """
    target = None if out is None else _written_prefix(out, "out")
    return packing.pack(path_given("prefix", prefix), target).files


def unpack(file: str | Path, prefix: str | Path | None = None) -> tuple[Path, ...]:
    """Writes the pair of a packed file, bit for bit as it was.

    Args:
        file: what `pack` wrote.
        prefix: path and first part of the names of the pair; that of ``file``, without ``-packed.npz``, by default.

    Returns:
        The paths of report, symbol and parameters.

    Raises:
        ConfigError: there is no ``prefix``, and ``file`` has none in its name.
        FormatError: ``file`` is damaged, or no packed pair.
        StorageError: a file cannot be written.
    """
    source = path_given("file", file)
    return packing.unpack(source, packing.prefix_of(source) if prefix is None else _written_prefix(prefix))


def _written_prefix(prefix: str | Path, name: str = "prefix") -> Path:
    target = path_given(name, prefix)
    if target.name in ("", "..") or os.fspath(prefix).endswith("/"):
        raise FormatError(f"{name} is {str(prefix)!r}; allowed: a path whose last part begins the files' names")
    return target


def load(prefix: str | Path, epoch: int | None = None) -> LoadedBlock:
    """Reads a pair as a SymbolBlock, with its report in ``mxq_report`` where ``prefix-mxq.json`` is there.

    Plain MXNet reads it too, without mxq: ``SymbolBlock.imports``, ``Module.load``, ``load_checkpoint``. Where it was
    made for a CPU with VNNI and this one has none, the logger "mxq" warns.

    Raises:
        FormatError: a file is missing, damaged or changed since it was written.
    """
    target = path_given("prefix", prefix)
    report = None
    if record.recorded(target):
        report = record.read(target)
        unfit = machine.target_mismatch(report.target, machine.detect())
        if unfit:
            LOG.warning("%s: %s", target, unfit)
    block = runtime.read_block(target, epoch)
    block.mxq_report = report
    return block


@_releasing_threads
def export_onnx(
    net: runtime.Net,
    path: str | Path,
    calib_data: object = None,
    *,
    runtime: str = "portable",
    config: QuantConfig | None = None,
    thresholds: Thresholds | None = None,
    statistics: Statistics | str | Path | None = None,
    batch_size: int | None = None,
    with_preprocess: bool | str = False,
    dynamic_size: bool = False,
    epoch: int | None = None,
    logger: logging.Logger | None = None,
    **options: Unpack[Options],
) -> tuple[Path, ...]:
    """Writes a network as an ONNX file (opset 17), which other runtimes run; the package onnx is needed.

    With calibration data, thresholds or statistics it is quantized, for the CPU that ``target`` says: QuantizeLinear
    and DequantizeLinear stand where runtimes fuse them to integer operators. Tensors are u8 with a zero point, weights
    s8 by channel, biases 32 bits.

    Args:
        net: as for `quantize_net`; a float network, what `quantize_net` with ``backend="onnx"`` returned, or what was
            trained for runtimes of ONNX files: a block of `mxq.qat.prepare`, or of `mxq.qat.convert`.
        path: the file; its folder must exist.
        runtime: what an int8 file is to be quick in: "onnxruntime", "openvino", or "portable", both. Any of them runs
            any of the files. `mxq.simulate` computes the same with ``hardware`` "onnxruntime", "openvino" or "onnx".
        calib_data, config, thresholds, statistics, logger, **options: as for `quantize_net`. Without any of the first,
            ``thresholds`` and ``statistics`` the file is float. Of the options, ``input_shape`` is that of one example,
            without the batch, such as (3, 224, 224), by name where there are several inputs; by default as the data has
            it, or the ``preprocess.json`` beside the network says.
        batch_size: examples to a batch, for a network that is made for one size; None: batches of any size.
        with_preprocess: whether the file prepares pictures: it takes pixels, uint8 (N, H, W, C) in red, green, blue,
            and does what ``preprocess`` says of mean, std, scale, order and layout of channels, and turning. Their size
            is the caller's business. Of several inputs that take pictures, the name of one.
        dynamic_size: whether the file takes pictures of any height and width, where the network does.
        epoch: for a prefix, which ``prefix-NNNN.params``.

    Returns:
        The files: ``path``, and ``path.data`` beside it for a network of more than 2 GB.

    Raises:
        ConfigError: onnx is not installed, a shape is missing, or the network does not take batches of any size.
        QuantizeError: the network is int8, or operators of it have no form in ONNX: the message names all; or nothing
            of it can be quantized.
        MxqError: see `mxq.errors`; the message names what is wrong and what is allowed.
    """
    target, asked = path_given("path", path), _config(config, options)
    form = FileForm(asked.shapes, batch_size, with_preprocess, dynamic_size)
    _settle_by(net, asked.shapes)
    sources = (calib_data, thresholds, statistics)
    request = FileRequest(
        net=net,
        path=target,
        form=form,
        runtime=runtime,
        epoch=epoch,
        given=None if all(each is None for each in sources) else Given(*sources),
        config=replace(asked, input_shape=None),
    )
    return workflow.export_onnx(request, _heard(logger))


@_releasing_threads
def sensitivity(
    net: runtime.Net,
    calib_data: object,
    *,
    metric: Metric[Any] | Function | None = None,
    data: object = None,
    labels: Any = None,
    mode: str = "both",
    config: QuantConfig | None = None,
    workdir: str | Path | None = None,
    client: Any = None,
    batch_size: int = 32,
    logger: logging.Logger | None = None,
    **options: Unpack[Options],
) -> tuning.Sensitivity:
    """Measures each layer alone: in int8 while all others are float, and in float while all others are int8.

    Args:
        net, calib_data, config, batch_size, logger, **options: as for `quantize_net`; with ``hardware`` or ``bits`` as
            for `simulate`, whose codes are then meant where int8 is said. One pass over ``calib_data``
            serves all networks. ``effort`` is "fast" unless it is among the ``options``: other methods would be applied
            anew for every layer.
        metric, labels: as for `evaluate`, of ``data``; the first number counts, more being better.
        data: what to measure on. With labels, accuracy or ``metric`` counts. Without, the outputs are held against the
            float network's: SQNR in dB, KL divergence of the softmax, and equal answers. By default all of
            ``calib_data``, with its labels, where that is whole arrays or a path; else the batches that were
            calibrated on, without labels.
        mode: "one-int8", "one-float", or "both".
        workdir: a folder for the journal. Ended in any way and called again, what was measured is not measured again.
        client: a Dask client, for a path or `Partitions`.

    Returns:
        The layers, the worst first; after Ctrl-C those measured by then.

    Raises:
        MxqError: see `mxq.errors`; the message names what is wrong and what is allowed.
    """
    asked = _config(config, {"effort": "fast", **options})
    given = Given(calib_data, batch_size=batch_size, client=client)
    measured = Measured(data, labels, metric)
    return workflow.sensitivity(net, given, asked, measured, mode=mode, workdir=workdir, logger=_heard(logger))


@_releasing_threads
def sweep_bits(
    net: runtime.Net,
    calib_data: object,
    *,
    libraries: Sequence[str] | None = None,
    widths: Sequence[Width] | None = None,
    metric: Metric[Any] | Function | None = None,
    data: object = None,
    labels: Any = None,
    config: QuantConfig | None = None,
    workdir: str | Path | None = None,
    batch_size: int = 32,
    logger: logging.Logger | None = None,
    **options: Unpack[Options],
) -> tuning.BitSweep:
    """What the accuracy of a network would be on all hardware and at 8 to 2 bits, simulated as by `simulate`.

    Args:
        net, calib_data, config, batch_size, logger, **options: as for `quantize_net`, without ``hardware`` and
            ``bits``. All widths of a hardware share one pass over ``calib_data``.
        libraries: the hardware to go over, such as ("tensorrt", "tvm"); all by default.
        widths: the bits to go over, such as (8, 4, "W4A8"); 8 to 2 by default.
        metric, data, labels: as for `sensitivity`.
        workdir: a folder for the journal and the statistics. Ended in any way and called again, what was measured is
            not measured again.

    Returns:
        The numbers by hardware and width; ``str`` is the table. After Ctrl-C those measured by then.

    Raises:
        MxqError: see `mxq.errors`; the message names what is wrong and what is allowed.
    """
    asked, given = _config(config, options), Given(calib_data, batch_size=batch_size)
    measured, heard = Measured(data, labels, metric), _heard(logger)
    return workflow.sweep_bits(
        net, given, asked, measured, hardware=libraries, widths=widths, workdir=workdir, logger=heard
    )


@_releasing_threads
def choose_bits(
    net: runtime.Net,
    calib_data: object,
    *,
    mean_bits: float = 4.0,
    choices: Sequence[Width] | None = None,
    metric: Metric[Any] | Function | None = None,
    data: object = None,
    labels: Any = None,
    config: QuantConfig | None = None,
    workdir: str | Path | None = None,
    batch_size: int = 32,
    logger: logging.Logger | None = None,
    **options: Unpack[Options],
) -> tuning.MixedBits:
    """Chooses how many bits each layer has, so that weights have no more than ``mean_bits`` in the mean; simulated.

    Each layer is measured alone at every width, then an integer program takes the bits of least noise.

    Args:
        net, calib_data, config, batch_size, logger, **options: as for `simulate`. ``effort`` is "fast" unless it is
            among the ``options``: other methods would be applied anew for every layer.
        mean_bits: the budget, each layer counting by its number of weights.
        choices: the bits to choose from, such as (2, 4, 8) or ("W4A8", "W8A8"); 2, 3, 4, 5, 6 and 8 by default.
        metric, data, labels: what to measure whole networks by, as for `sensitivity`. Layers are always chosen by the
            noise of the outputs on ``calib_data``.
        workdir: a folder for the journal and the statistics. Ended in any way and called again, what was measured is
            not measured again.

    Returns:
        The simulated network as ``block``, the bits as ``overrides`` to give back to `simulate`, and what both come
        from; ``str`` is the table.

    Raises:
        MxqError: see `mxq.errors`; the message names what is wrong and what is allowed.
    """
    asked = _config(config, {"effort": "fast", **options})
    given, measured = Given(calib_data, batch_size=batch_size), Measured(data, labels, metric)
    return workflow.choose_bits(
        net, given, asked, measured, mean_bits=mean_bits, choices=choices, workdir=workdir, logger=_heard(logger)
    )


@_releasing_threads
def tune(
    net: runtime.Net,
    calib_data: object,
    eval_fn: Callable[[Any], float] | None = None,
    *,
    max_drop: float = 0.005,
    time_budget: float | None = None,
    workdir: str | Path | None = None,
    config: QuantConfig | None = None,
    eval_data: object = None,
    labels: Any = None,
    metric: Metric[Any] | Function | None = None,
    client: Any = None,
    batch_size: int = 32,
    train_data: object = None,
    train_labels: Any = None,
    training: TrainConfig | None = None,
    logger: logging.Logger | None = None,
    report: str | Path | None = None,
    **options: Unpack[Options],
) -> tuning.Tuned:
    """Finds the fastest INT8 network whose score is at most ``max_drop`` below the float network's.

    Tried in this order, until the bar is met: every calibrator, methods for weights, then layers left in float, as few
    and as cheap ones as will do, then training with quantization, where there is data to train on.

    Args:
        net, calib_data, config, batch_size, logger, **options: as for `quantize_net`; the search chooses
            ``calib_mode``, ``effort`` and layers, what else is set stays. One pass over ``calib_data`` serves all.
        eval_fn: from a network, as a Gluon block, to its score; more is better.
        max_drop: how much less than float is allowed, in the unit of the score: 0.005 is half a point of accuracy.
        time_budget: seconds for the search, over all runs in ``workdir``. A trial that is expected to end later is not
            begun; one network is tried in any case.
        workdir: a folder for the journal, the statistics and the best network so far (``best-symbol.json``, ...). Ended
            in any way and called again, no trial is repeated, and the result is as if it had never been interrupted.
        eval_data, labels, metric: instead of ``eval_fn``, labelled data and what to measure, as for `evaluate`; its
            first number counts; without either ``calib_data`` serves as for `sensitivity`. Without labels the score is
            the share of answers that are the float network's. Accuracy cannot drop by more than that share lacks, so
            this is stricter than accuracy: think of 0.02.
        client: a Dask client, for paths or `Partitions` as ``calib_data``, ``eval_data`` or both.
        train_data, train_labels: labelled data as for `mxq.qat.fit`, or a path. Where nothing else meets the bar, the
            network is trained with them, wholly in INT8; what that takes is measured and said first, and counts as any
            trial does for ``time_budget``.
        training: how; `mxq.qat.TrainConfig()` where None.
        report: an .html file that a page about the result and all trials goes to, see `mxq.report`; of 64 examples.

    Returns:
        The network and how it was found: ``block``, ``met``, ``report``, ... Where nothing meets the bar, it is the
        most accurate one; after Ctrl-C the best by then.

    Raises:
        MxqError: see `mxq.errors`; the message names what is wrong and what is allowed.
    """
    if eval_fn is not None and eval_data is not None:
        raise ConfigError("eval_fn and eval_data are both given; allowed: one of them, or neither")
    if eval_fn is not None and not callable(eval_fn):
        raise ConfigError(f"eval_fn is a {type(eval_fn).__name__}; allowed: a function from a Gluon block to a number")
    name, seen = ("calib_data", calib_data) if eval_data is None else ("eval_data", eval_data)
    page = _page(report, name, seen)
    found = workflow.tune(
        net,
        Given(calib_data, batch_size=batch_size, client=client),
        _config(config, options),
        Measured(eval_data, labels, metric, eval_fn),
        max_drop=max_drop,
        time_budget=time_budget,
        workdir=workdir,
        training=_training(train_data, train_labels, training),
        logger=_heard(logger),
    )
    _write_page(page, net, found.block, Measured(seen, labels), logger, [found])
    return found


# ---- helpers -------------------------------------------------------------------------------------------------


def _config(
    config: QuantConfig | None, options: Mapping[str, Any], logger: logging.Logger | None = None
) -> QuantConfig:
    return with_options(QuantConfig(), config, own_options(options, _heard(logger)))


def _training(data: object, labels: Any, config: TrainConfig | None) -> TrainingData | None:
    if data is None:
        for name, given in (("train_labels", labels), ("training", config)):
            if given is not None:
                raise ConfigError(f"{name} is given without train_data; allowed: both, or neither")
        return None
    if not isinstance(config, TrainConfig | None):
        raise ConfigError(f"training is {config!r:.80}; allowed: a mxq.qat.TrainConfig, or None")
    return TrainingData(Measured(data, labels), config or TrainConfig())


def _page(path: str | Path | None, name: str, data: object) -> Path | None:
    """Where a page goes that shows a result on ``data``, the argument ``name``; None where none is asked for."""
    if path is None:
        return None
    page = path_given("report", path)
    check_page(page)
    workflow.check_rereadable(name, data)
    return page


def _write_page(
    page: Path | None,
    net: Any,
    block: Any,
    shown: Measured,
    logger: logging.Logger | None,
    added: Sequence[object] = (),
) -> None:
    if page is not None:
        workflow.report(net, block, shown, page, added=added, most=workflow.PAGE_EXAMPLES, logger=_heard(logger))


def _no_page(path: str | Path | None) -> None:
    if path is not None:
        raise ConfigError(
            f"report is {str(path)!r} beside backend 'onnx'; allowed: for pairs, and mxq.report(onnx_files=)"
        )


def _preparation(preprocess: Preprocess | Mapping[str, Any] | None) -> Preparation | None:
    return None if preprocess is None else Preparation.given(preprocess)


def _heard(logger: logging.Logger | None) -> logging.Logger:
    """``logger``, or mxq's own where it is None. The module `logging` and adapters have what is needed, too."""
    if logger is not None and not all(callable(getattr(logger, name, None)) for name in ("info", "warning")):
        raise ConfigError(f"logger is {logger!r}; allowed: a logging.Logger, or None")
    return LOG if logger is None else logger


def _settle_by(net: runtime.Net, shapes: Mapping[str, Shape]) -> None:
    """Gives a block that waits for shapes those of one example of each input; "" is the only one."""
    if runtime.is_deferred(net) and shapes:
        names = runtime.arguments(net)
        zeros = {name or names[0]: np.zeros((1, *shape), np.float32) for name, shape in shapes.items()}
        runtime.settle(net, zeros)


def _settled(net: runtime.Net, data_shapes: object) -> runtime.Net:
    """``net``, its parameters' shapes settled on zeros of ``data_shapes`` where they are still open."""
    if data_shapes is not None and runtime.is_deferred(net):
        shapes = shapes_of(data_shapes, runtime.arguments(net))
        for shape in shapes.values():
            check_shape("data_shapes", shape)
        runtime.settle(net, {name: np.zeros(shape, np.float32) for name, shape in shapes.items()})
    return net


def _both(field: str, options: Mapping[str, Any], more: Any) -> tuple[Any, ...] | None:
    """An option of `QuantConfig` with what MXNet's name for it adds; None where neither says anything."""
    found = [*_listed(options.get(field)), *_listed(more)]
    return tuple(found) or None


def _listed(value: Any) -> tuple[Any, ...]:
    return () if value is None else (value,) if isinstance(value, str) or callable(value) else tuple(value)


def _check_ctx(ctx: Any) -> None:
    if ctx is not None and getattr(ctx, "device_type", "cpu") != "cpu":
        raise ConfigError(f"ctx is {ctx}; allowed: mx.cpu(), the int8 kernels are oneDNN's")


def _quantize(
    net: runtime.Net | Model, given: Given, config: QuantConfig, ctx: Any, logger: logging.Logger | None
) -> pipeline.Quantized:
    if config.backend == ONNX:
        raise ConfigError(
            "backend is 'onnx', whose networks are files; allowed: quantize_net and export_onnx, or "
            "mxq export PREFIX --data ... --out FILE.onnx"
        )
    _check_ctx(ctx)
    return workflow.quantize(net, given, config, logger=_heard(logger))


def _report_of(function: str, quantized: Any) -> Report:
    report = workflow.report_in(quantized)
    if report is None:
        raise QuantizeError(
            f"{function} got a {type(quantized).__name__} without a report; allowed: what quantize_net, "
            "quantize_model, mxq.qat.convert or load returned"
        )
    return report
