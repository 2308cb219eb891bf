"""A network written for other runtimes."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from itertools import islice
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

from mxq import runtime
from mxq.backends import onnx
from mxq.backends.runtimes import RUNTIMES
from mxq.config import QuantConfig, Shape
from mxq.data.feed import Feed
from mxq.data.preparation import beside
from mxq.errors import ConfigError, QuantizeError, one_of
from mxq.formats.onnx_file import require_onnx
from mxq.formats.onnx_record import FileRecord
from mxq.graph.ir import Model
from mxq.logs import LOG
from mxq.passes.constants import fold_constants
from mxq.passes.simplify import FLOAT
from mxq.pipeline import fingerprint
from mxq.quant import QuantizedNetwork
from mxq.quant.plan import Report
from mxq.rewrite import run_pass
from mxq.workflow.making import Opened
from mxq.workflow.opening import Given

PORTABLE: Final = "portable"
"""The runtime of files that all runtimes are to run, see `mxq.backends.runtimes`."""


def export_onnx(
    net: runtime.Net,
    path: Path,
    *,
    runtime_name: str = PORTABLE,
    shapes: Mapping[str, Shape],
    batch_size: int | None = None,
    epoch: int | None = None,
    given: Given | None = None,
    config: QuantConfig | None = None,
    logger: logging.Logger = LOG,
) -> tuple[Path, ...]:
    """Writes a network as an ONNX file.

    Args:
        net: see `mxq.runtime.load_model`.
        path: the file.
        runtime_name: whose kernels decide which tensors of an int8 file are codes, one of `RUNTIMES`.
        shapes: input -> shape of one example; under "" that of the only input.
        batch_size: examples to a batch; None: any number.
        epoch: for a prefix, which parameters.
        given: what ranges of an int8 file are to come from; None writes a float one.
        config: the settings of an int8 file.
        logger: receives what is said meanwhile.

    Returns:
        The files: ``path``, and ``path.data`` where the network is larger than one can be.

    Raises:
        ConfigError: onnx is not installed, or a shape is missing; there are settings without data; the network does
            not take batches of any size.
        QuantizeError: the network is int8, or operators of it cannot be written: all of them are named.
        StorageError: a file cannot be written.
    """
    require_onnx()
    if not isinstance(runtime_name, str) or runtime_name not in RUNTIMES:
        raise one_of("runtime", runtime_name, RUNTIMES)
    if batch_size is not None and (not isinstance(batch_size, int) or isinstance(batch_size, bool) or batch_size < 1):
        raise ConfigError(f"batch_size is {batch_size!r}; allowed: a whole number, 1 or more, or None for any")
    if given is None and (config not in (None, QuantConfig()) or runtime_name != PORTABLE):
        raise ConfigError(
            "settings are given without calibration data; allowed: both (an INT8 file), or neither (a float one)"
        )
    if given is not None:
        given = given if batch_size is None else replace(given, batch_size=batch_size)
        network, report, examples = _quantized(
            net, given, _for(runtime_name, config or QuantConfig()), epoch, shapes, logger
        )
        coded = onnx.Coded.of(network)
        tensors = runtime.tensors_of(coded.model, examples, batch_size)
        about = FileRecord("int8", runtime_name, network.target, report.config, examples, report.source)
        return onnx.write(onnx.lower(coded.model, tensors, onnx.CodeFeed(coded)), path, about)
    model = runtime.load_model(net, epoch)
    refusal = FLOAT.check(model)
    if refusal is not None:
        raise QuantizeError(f"the network is quantized: {refusal.reason}; allowed: the float network")
    examples = _examples(net, model, shapes)
    about = FileRecord("float", inputs=examples, source=fingerprint(model))
    model, _ = run_pass(fold_constants(runtime.MxnetRunner()), model)
    return onnx.write(onnx.lower(model, runtime.tensors_of(model, examples, batch_size)), path, about)


def _for(name: str, config: QuantConfig) -> QuantConfig:
    """The settings of a file for a runtime."""
    hardware = RUNTIMES[name]
    for field in ("hardware", "bits", "simulate", "input_dtype"):
        value = getattr(config, field)
        if value != getattr(QuantConfig(), field) and (field, value) != ("hardware", hardware):
            raise ConfigError(f"{field} is {value!r} for an ONNX file (runtime {name!r}); allowed: the default")
    return replace(config, simulate=True, hardware=hardware)


def _quantized(
    net: runtime.Net,
    given: Given,
    config: QuantConfig,
    epoch: int | None,
    shapes: Mapping[str, Shape],
    logger: logging.Logger,
) -> tuple[QuantizedNetwork, Report, dict[str, Shape]]:
    """The network that is written, what was decided for it, and the shape of one example of each input."""
    again = isinstance(given.data, Iterator) or None  # the shape of an example is in what is read once
    opened = Opened.of(net, given, config, epoch, logger, again=again)
    examples = _examples(net, opened.prepared.source, shapes, _fed(opened.batches))
    made = opened.quantized()
    if made.network is None:
        raise QuantizeError(f"{made.prepared.nothing_int8}; allowed: the float file (--float, no calib_data)")
    return made.network, made.report, examples


def _fed(batches: Iterable[Feed] | None) -> dict[str, Shape]:
    """The shapes of examples that calibration is fed."""
    feeds = iter(()) if batches is None else iter(batches)
    return {name: tuple(value.shape[1:]) for feed in islice(feeds, 1) for name, value in feed.items()}


def _examples(
    net: runtime.Net, model: Model, given: Mapping[str, Shape], fed: Mapping[str, Shape] = MappingProxyType({})
) -> dict[str, Shape]:
    """Input -> shape of one example: as given, as data has it, as the network says, or as its preprocess.json does.

    Raises:
        ConfigError: no such input, or the shape of one is not known.
    """
    unknown = [name for name in given if name and name not in model.inputs]
    if unknown or ("" in given and len(model.inputs) != 1):
        raise ConfigError(f"input_shape is of {unknown or 'one input'}; the inputs are {', '.join(model.inputs)}")
    found = {name: model.graph[name].note.input_shape for name in model.inputs}
    found = _pictures(net, model) | {name: shape for name, shape in found.items() if shape} | dict(fed)
    found |= {name or model.inputs[0]: shape for name, shape in given.items()}
    missing = [name for name in model.inputs if name not in found]
    if missing:
        raise ConfigError(
            f"the shape of input {missing[0]!r} is not known; give input_shape, such as 3x224x224, without the batch"
        )
    return found


def _pictures(net: Any, model: Model) -> dict[str, Shape]:
    if not isinstance(net, str | os.PathLike) or len(model.inputs) != 1:
        return {}
    shape = beside(Path(net)).settings.shape
    return {} if shape is None else {model.inputs[0]: shape}
