"""A network written for other runtimes."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from itertools import islice
from pathlib import Path
from types import MappingProxyType

from mxq import runtime
from mxq.backends import onnx
from mxq.backends.runtimes import RUNTIMES
from mxq.config import Shape
from mxq.data.feed import Feed
from mxq.data.preparation import Preparation
from mxq.errors import ConfigError, QuantizeError
from mxq.formats.onnx_record import FileRecord
from mxq.graph.ir import Model
from mxq.logs import LOG
from mxq.passes.constants import fold_constants
from mxq.passes.take_pixels import pictures_in, pixels_shape, take_pixels
from mxq.pipeline import fingerprint
from mxq.planned import Planned
from mxq.qat.converting import convert
from mxq.rewrite import run_pass
from mxq.workflow.making import Opened
from mxq.workflow.opening import Given, preparation_of, shapes_said
from mxq.workflow.requesting import CodesRequest, FileForm, FileRequest, check_unquantized


def export_onnx(asked: FileRequest, logger: logging.Logger = LOG) -> tuple[Path, ...]:
    """Writes a network as an ONNX file.

    Args:
        asked: what is to be written, and where.
        logger: receives what is said meanwhile.

    Returns:
        The files: ``path``, and ``path.data`` where the network is larger than one can be.

    Raises:
        ConfigError: a shape is missing; the network does not take batches of any size, or pictures.
        QuantizeError: operators of it cannot be written: all of them are named.
        StorageError: a file cannot be written.
    """
    form, path = asked.form, asked.path
    net = asked.net if asked.trained is None else convert(asked.net)
    planned = Planned.of(net)
    if planned is None and asked.given is not None:
        planned = quantized_for_files(asked, logger)
    if planned is not None:
        return _write_int8(planned, path, form)
    model = runtime.load_model(net, asked.epoch)
    check_unquantized(model)
    examples = _examples(net, model, form.shapes)
    about = FileRecord("float", inputs=examples, source=fingerprint(model))
    model, _ = run_pass(fold_constants(runtime.MxnetRunner()), model)
    prepared = asked.preparation or preparation_of(net, asked.settings)
    lowering, about = _lowered(model, about, form, prepared)
    return onnx.write(lowering, path, about)


def quantized_for_files(asked: CodesRequest, logger: logging.Logger = LOG) -> Planned:
    """The network that is to be written; all that is refused of it is refused before it is calibrated.

    Raises:
        ConfigError, QuantizeError: as of `export_onnx`; or nothing of it can be quantized.
    """
    form, net = asked.form, asked.net
    given = asked.given or Given()
    given = given if form.batch_size is None else replace(given, batch_size=form.batch_size)
    again = isinstance(given.data, Iterator) or None  # the shape of an example is in what is read once
    opened = Opened.of(net, given, asked.coded, asked.epoch, logger, again=again)
    prepared, preparation = opened.prepared, opened.given.preparation or Preparation()
    examples = _examples(net, prepared.source, form.shapes, _fed(opened.batches))
    if not prepared.plan.quantized:
        raise QuantizeError(f"{prepared.nothing_int8}; allowed: the float file (--float, no calib_data)")
    _lowered(onnx.plain_operators(prepared.fused), FileRecord("float", inputs=examples), form, preparation)
    made = opened.quantized()
    if made.network is None:
        raise QuantizeError(f"{made.prepared.nothing_int8}; allowed: the float file (--float, no calib_data)")
    return Planned(made.network, made.model, made.report, examples, preparation)


def _write_int8(planned: Planned, path: Path, form: FileForm) -> tuple[Path, ...]:
    coded, report = onnx.Coded.of(planned.network), planned.report
    examples = {**planned.examples, **_named(form.shapes, coded.model)}
    name = next(name for name, hardware in RUNTIMES.items() if hardware == report.config["hardware"])
    about = FileRecord("int8", name, planned.network.target, report.config, examples, report.source)
    lowering, about = _lowered(coded.model, about, form, planned.preparation, coded)
    return onnx.write(lowering, path, about)


def _lowered(
    model: Model, about: FileRecord, form: FileForm, preparation: Preparation, coded: onnx.Coded | None = None
) -> tuple[onnx.Lowering, FileRecord]:
    """``model`` as ONNX operators, with codes where it is that of ``coded``, and what its file says of itself."""
    model, about = _taking_pixels(model, about, form, preparation)
    feed = None if coded is None else onnx.CodeFeed(replace(coded, model=model))
    return onnx.lower(model, form.tensors_of(model, about.inputs), feed), about


def _taking_pixels(
    model: Model, about: FileRecord, form: FileForm, preparation: Preparation
) -> tuple[Model, FileRecord]:
    """``model`` and what the file says of itself where pictures are prepared in it; errors as of `_picture`."""
    name, settings = _picture(about.inputs, form, preparation), preparation.settings
    if not name:
        return model, about
    shapes = {**about.inputs, name: pixels_shape(about.inputs[name], settings)}
    return take_pixels(model, name, settings), replace(about, inputs=shapes, preprocess=settings.to_json())


def _picture(shapes: Mapping[str, Shape], form: FileForm, preparation: Preparation) -> str:
    """The input that takes pictures which are prepared in the file; "" where none does.

    Raises:
        ConfigError: nothing says how pictures are prepared, or no one input takes them.
    """
    asked, settings = form.pixels, preparation.settings
    if asked is False:
        return ""
    if not preparation.normalized:
        raise ConfigError(
            "with_preprocess is given, but nothing says how pictures become inputs; allowed: preprocess (mean, std, "
            "...), or preprocess.json beside the network"
        )
    fit = pictures_in(shapes, settings)
    wanted = fit if asked is True else tuple(name for name in fit if name == asked)
    if len(wanted) == 1:
        return wanted[0]
    listed = ", ".join(f"{name!r} {tuple(shape)}" for name, shape in shapes.items())
    several = f"{len(fit)} inputs take such pictures, {', '.join(map(repr, fit))}: name one; " if len(fit) > 1 else ""
    raise ConfigError(
        f"with_preprocess is {asked!r}; {several}allowed: an input of pictures, {settings.channels} channels in "
        f"{settings.layout}; the inputs are {listed}"
    )


def _fed(batches: Iterable[Feed] | None) -> dict[str, Shape]:
    """The shapes of examples that calibration is fed."""
    feeds = iter(()) if batches is None else iter(batches)
    return {name: tuple(value.shape[1:]) for feed in islice(feeds, 1) for name, value in feed.items()}


def _named(given: Mapping[str, Shape], model: Model) -> dict[str, Shape]:
    """The shapes that are ``given``, each under the name of its input.

    Raises:
        ConfigError: there is no such input.
    """
    unknown = [name for name in given if name and name not in model.inputs]
    if unknown or ("" in given and len(model.inputs) != 1):
        raise ConfigError(f"input_shape is of {unknown or 'one input'}; the inputs are {', '.join(model.inputs)}")
    return {name or model.inputs[0]: shape for name, shape in given.items()}


def _examples(
    net: runtime.Net, model: Model, given: Mapping[str, Shape], fed: Mapping[str, Shape] = MappingProxyType({})
) -> dict[str, Shape]:
    """Input -> shape of one example: as given, as data has it, as the network says, or as its preprocess.json does.

    Raises:
        ConfigError: no such input, or the shape of one is not known.
    """
    named = _named(given, model)
    found = shapes_said(net, model) | dict(fed) | named
    missing = [name for name in model.inputs if name not in found]
    if missing:
        raise ConfigError(
            f"the shape of input {missing[0]!r} is not known; give input_shape, such as 3x224x224, without the batch"
        )
    return found
