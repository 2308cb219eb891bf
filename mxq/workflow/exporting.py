"""A network written for other runtimes."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from types import MappingProxyType
from typing import Final

from mxq import runtime
from mxq.backends import onnx
from mxq.backends.runtimes import RUNTIMES
from mxq.config import ONNX, QuantConfig, Shape
from mxq.data.feed import Feed
from mxq.data.preparation import Preparation
from mxq.errors import ConfigError, QuantizeError, StorageError, one_of
from mxq.formats.onnx_file import SUFFIX, is_onnx, require_onnx
from mxq.formats.onnx_record import FileRecord
from mxq.graph.ir import Model, Ref
from mxq.graph.tensors import Tensor
from mxq.logs import LOG
from mxq.passes.constants import fold_constants
from mxq.passes.simplify import FLOAT, check_done
from mxq.passes.take_pixels import pictures_in, pixels_shape, take_pixels
from mxq.pipeline import fingerprint
from mxq.planned import Planned
from mxq.qat.converting import convert
from mxq.qat.network import QatNetwork
from mxq.rewrite import run_pass
from mxq.workflow.making import Opened
from mxq.workflow.opening import Given, preparation_of, shapes_said

PORTABLE: Final = "portable"
"""The runtime of files that all runtimes are to run, see `mxq.backends.runtimes`."""


@dataclass(frozen=True)
class FileForm:
    """What a file is to take.

    Attributes:
        shapes: input -> shape of one example; under "" that of the only input.
        batch_size: examples to a batch; None: any number.
        pixels: whether pictures are prepared in the file; or the input that takes them.
        any_size: whether pictures may be of any height and width.
    """

    shapes: Mapping[str, Shape] = field(default_factory=dict)
    batch_size: int | None = None
    pixels: bool | str = False
    any_size: bool = False

    def __post_init__(self) -> None:
        """Raises ConfigError for what is no batch size, and no input."""
        size = self.batch_size
        if size is not None and (not isinstance(size, int) or isinstance(size, bool) or size < 1):
            raise ConfigError(f"batch_size is {size!r}; allowed: a whole number, 1 or more, or None for any")
        if not isinstance(self.pixels, bool | str):
            raise ConfigError(f"with_preprocess is {self.pixels!r}; allowed: True, False, or the name of an input")
        if not isinstance(self.any_size, bool):
            raise one_of("dynamic_size", self.any_size, (True, False))

    def tensors_of(self, model: Model, inputs: Mapping[str, Shape]) -> dict[Ref, Tensor]:
        """What the tensors of ``model`` are, whose ``inputs`` have these shapes of one example.

        Raises:
            ConfigError: the network takes no pictures, or not of any size, or not batches of any.
        """
        pictures: dict[str, tuple[int, int]] = {}
        if self.any_size:
            pixels = [name for name in inputs if model.graph[name].input_dtype == "uint8"]
            pictures = {name: (0, 1) if name in pixels else (1, 2) for name, shape in inputs.items() if len(shape) == 3}
            if not pictures:
                listed = ", ".join(f"{name!r} {tuple(shape)}" for name, shape in inputs.items())
                raise ConfigError(f"dynamic_size is for pictures, examples of three axes; the inputs are {listed}")
        return runtime.tensors_of(model, inputs, self.batch_size, pictures)


def export_onnx(
    net: runtime.Net,
    path: Path,
    form: FileForm,
    *,
    runtime_name: str = PORTABLE,
    epoch: int | None = None,
    given: Given | None = None,
    preparation: Preparation | None = None,
    config: QuantConfig | None = None,
    logger: logging.Logger = LOG,
) -> tuple[Path, ...]:
    """Writes a network as an ONNX file.

    Args:
        net: see `mxq.runtime.load_model`; or the block of a `Planned`, or one in training for runtimes of such files,
            without ``given`` and ``config``.
        path: the file.
        form: what the file is to take.
        runtime_name: whose kernels decide which tensors of an int8 file are codes, one of `RUNTIMES`.
        epoch: for a prefix, which parameters.
        given: what ranges of an int8 file are to come from; None writes a float one.
        preparation: how pictures become inputs; as is known of the network where None.
        config: the settings of an int8 file.
        logger: receives what is said meanwhile.

    Returns:
        The files: ``path``, and ``path.data`` where the network is larger than one can be.

    Raises:
        ConfigError: onnx is not installed, or a shape is missing; there are settings without data; the network does
            not take batches of any size, or pictures.
        QuantizeError: the network is int8, or operators of it cannot be written: all of them are named.
        StorageError: a file cannot be written.
    """
    require_onnx()
    _check_path(path)
    if not isinstance(runtime_name, str) or runtime_name not in RUNTIMES:
        raise one_of("runtime", runtime_name, RUNTIMES)
    net = _trained(net)
    planned, settings = Planned.of(net), _for(runtime_name, config or QuantConfig())
    if planned is not None:
        _check_nothing_more(runtime_name, given, config or QuantConfig())
        return _write_int8(planned, path, form)
    if given is not None:
        return _write_int8(quantized_for_files(net, given, settings, form, epoch=epoch, logger=logger), path, form)
    if replace(settings, preprocess=None) != QuantConfig():
        raise ConfigError(
            "settings are given without calibration data; allowed: both (an INT8 file), or neither (a float one)"
        )
    model = runtime.load_model(net, epoch)
    _check_float(model)
    examples = _examples(net, model, form.shapes)
    about = FileRecord("float", inputs=examples, source=fingerprint(model))
    model, _ = run_pass(fold_constants(runtime.MxnetRunner()), model)
    prepared = preparation or preparation_of(net, settings)
    model, about = _taking_pixels(model, about, form, prepared)
    return onnx.write(onnx.lower(model, form.tensors_of(model, about.inputs)), path, about)


def _check_path(path: Path) -> None:
    """Looks at where a file is to go before any work.

    Raises:
        ConfigError: its name is none of an ONNX file.
        StorageError: its folder does not exist.
    """
    if not is_onnx(path):
        raise ConfigError(
            f"the file is {str(path)!r}; allowed: a name that ends in {SUFFIX}, which tells it from a pair"
        )
    if not path.parent.is_dir():
        raise StorageError(f"{path} cannot be written: there is no folder {str(path.parent)!r}; make it first")


def _check_nothing_more(name: str, given: Given | None, config: QuantConfig) -> None:
    """Raises ConfigError for what a network that is quantized already has no use of."""
    usual = QuantConfig().to_json()
    odd = [field for field, value in config.to_json().items() if value != usual[field]]
    odd += [what for what, found in (("runtime", name != PORTABLE), ("data", given is not None)) if found]
    if odd:
        raise ConfigError(
            f"{', '.join(odd)} given for a network that is quantized for ONNX files already; allowed: nothing more "
            "(give data, settings, and a runtime as hardware, to quantize_net), or the float network"
        )


def _for(name: str, config: QuantConfig) -> QuantConfig:
    """The settings of a file for a runtime."""
    hardware = RUNTIMES[name]
    if name == PORTABLE or config.hardware == hardware:
        return config
    if config.hardware != QuantConfig().hardware:
        raise ConfigError(
            f"hardware is {config.hardware!r} for an ONNX file of runtime {name!r}; allowed: {hardware!r}"
        )
    return replace(config, hardware=hardware)


def quantized_for_files(
    net: runtime.Net,
    given: Given,
    config: QuantConfig,
    form: FileForm,
    *,
    epoch: int | None = None,
    logger: logging.Logger = LOG,
) -> Planned:
    """The network that is to be written; arguments as of `export_onnx`."""
    config = replace(config, backend=ONNX)
    if config.input_dtype != "float32":
        raise ConfigError(f"input_dtype is {config.input_dtype!r} for an ONNX file; allowed: 'float32'")
    given = given if form.batch_size is None else replace(given, batch_size=form.batch_size)
    if not runtime.is_deferred(net):
        _check_float(runtime.load_model(net, epoch))
    again = isinstance(given.data, Iterator) or None  # the shape of an example is in what is read once
    opened = Opened.of(net, given, config, epoch, logger, again=again)
    examples = _examples(net, opened.prepared.source, form.shapes, _fed(opened.batches))
    preparation = opened.given.preparation or Preparation()
    _picture(examples, form, preparation)  # before any work
    made = opened.quantized()
    if made.network is None:
        raise QuantizeError(f"{made.prepared.nothing_int8}; allowed: the float file (--float, no calib_data)")
    return Planned(made.network, made.model, made.report, examples, preparation)


def _trained(net: runtime.Net) -> runtime.Net:
    """``net``, or what a block becomes that was trained for ONNX files.

    Raises:
        QuantizeError: it was trained for other hardware.
    """
    network = getattr(net, "qat", None)
    if not isinstance(network, QatNetwork):
        return net
    if not network.config.is_for_files:
        raise QuantizeError(
            f"the network was trained for {network.config.row.library}, which is no runtime of ONNX files; allowed: "
            f"one of mxq.qat.prepare with hardware {', '.join(map(repr, RUNTIMES.values()))}, or mxq.save of "
            "mxq.qat.convert(block) for a pair"
        )
    return convert(net)


def _check_float(model: Model) -> None:
    """Raises QuantizeError for a pair that is quantized: MXNet's kernels have other codes than other runtimes."""
    check_done(model)
    refusal = FLOAT.check(model)
    if refusal is not None:
        raise QuantizeError(
            f"the network is quantized, for MXNet's kernels: {refusal.reason}; allowed: the float network that it was "
            "made of, as mxq.export_onnx(net, path, calib_data), or quantize_net(net, calib_data, backend='onnx')"
        )


def _write_int8(planned: Planned, path: Path, form: FileForm) -> tuple[Path, ...]:
    coded, report = onnx.Coded.of(planned.network), planned.report
    examples = {**planned.examples, **_named(form.shapes, coded.model)}
    name = next(name for name, hardware in RUNTIMES.items() if hardware == report.config["hardware"])
    about = FileRecord("int8", name, planned.network.target, report.config, examples, report.source)
    model, about = _taking_pixels(coded.model, about, form, planned.preparation)
    coded = replace(coded, model=model)
    tensors = form.tensors_of(model, about.inputs)
    return onnx.write(onnx.lower(model, tensors, onnx.CodeFeed(coded)), path, about)


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
