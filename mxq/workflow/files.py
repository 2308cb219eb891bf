"""ONNX files, run in the runtimes that are installed and held against the float network."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypedDict

from mxq import runtime, verification
from mxq.data.examples import Source
from mxq.data.feeding import BATCH
from mxq.data.preparation import Preparation
from mxq.data.preprocess import VALUES, Preprocess
from mxq.engines import Engine, Served, chosen
from mxq.errors import ConfigError
from mxq.formats.onnx_file import OnnxFile, is_onnx, read
from mxq.graph.ir import VARIABLE, Array, Executable, Graph, Model, Node
from mxq.host.cores import one_process
from mxq.logs import LOG
from mxq.passes.simplify import FLOAT
from mxq.pipeline import fingerprint
from mxq.verification import FileVerification, Head, Verification, heads_of
from mxq.workflow.comparing import Progress, called, examples_of, silent, verify
from mxq.workflow.opening import Measured, preparation_of


def verify_any(
    float_net: runtime.Net,
    other: runtime.Net,
    measured: Measured,
    preparation: Preparation | None = None,
    *,
    runtimes: Sequence[str] | None = None,
    layers: bool = False,
    batch_size: int | None = None,
    logger: logging.Logger = LOG,
    progress: Progress = silent,
) -> Verification | FileVerification:
    """`verify_file` of an ONNX file, `mxq.workflow.comparing.verify` of any other network.

    Raises:
        ConfigError: one is asked for what the other has: layers, runtimes.
    """
    shared: _Shared = {"batch_size": batch_size, "logger": logger, "progress": progress}
    if is_onnx(other):
        if layers:
            raise ConfigError(f"layers are asked for, but {other} is an ONNX file; allowed: for a pair")
        return verify_file(float_net, Path(other), measured, preparation, runtimes=runtimes, **shared)
    if runtimes or is_onnx(float_net):
        found = f"runtimes are {', '.join(runtimes)}" if runtimes else f"{float_net} is given as the float network"
        raise ConfigError(f"{found}, but {called(other)} is no ONNX file; allowed: one, after the float network")
    return verify(float_net, other, measured, preparation, layers=layers, **shared)


class _Shared(TypedDict):
    """Arguments that both have."""

    batch_size: int | None
    logger: logging.Logger
    progress: Progress


def verify_file(
    float_net: runtime.Net,
    path: Path,
    measured: Measured,
    preparation: Preparation | None = None,
    *,
    runtimes: Sequence[str] | None = None,
    batch_size: int | None = None,
    logger: logging.Logger = LOG,
    progress: Progress = silent,
) -> FileVerification:
    """Runs an ONNX file in each runtime over the same data as the float network, and compares what they give.

    Args:
        float_net: see `mxq.runtime.load_model`; or a float ONNX file, which the first of the runtimes runs.
        path: the file that was made of it.
        measured, logger, progress: as of `mxq.workflow.comparing.verify`.
        preparation: how pictures are read; where nothing says it, as a file does that prepares them itself. Such a file
            is fed the pixels that the float network's inputs were made from.
        runtimes: names, see `mxq.engines.chosen`.
        batch_size: where None that of a file that takes one size alone, else `BATCH`.

    Raises:
        ConfigError: the first network is quantized; a runtime is missing or too old.
        DataError: inputs or outputs differ; a file takes pixels, and the data is no prepared pictures.
        FormatError: a file is damaged, or a runtime does not take it.
    """
    file, engines = read(path), chosen(runtimes)
    preparation = _prepared(preparation or preparation_of(float_net), file)
    cpus, threads = one_process(os.environ)
    batch = file.inputs[0].shape[0] if file.inputs and file.inputs[0].shape else BATCH
    own = batch if isinstance(batch, int) else BATCH
    size = own if batch_size is None else batch_size
    with ExitStack() as open_:

        def opened(engine: Engine, given: OnnxFile, names: Mapping[str, str]) -> Executable:
            served = open_.enter_context(closing(Served(engine, given.path, cpus, threads)))
            return _reading(served, given, names, preparation.settings)

        reference = _reference(float_net, file, lambda given: opened(engines[0], given, _own(given)), logger)
        examples = examples_of(measured, reference.model, preparation, size, logger)
        if file.pictures or (isinstance(examples.data, Source) and examples.data.pictures):
            _compare_with_record(file, preparation, logger)
        names = _fed(file, called(float_net), reference.model.inputs)
        candidates = {engine.name: opened(engine, file, names) for engine in engines}
        feeds, labels = examples.read()
        ran = "MXNet" if reference.is_mxnet else engines[0].title
        with progress("comparing", examples.count) as step:
            runs = verification.verify_each(
                reference.run, candidates, reference.heads, feeds, labels=labels, progress=step
            )
    return FileVerification(
        str(path), f"{called(float_net)} in {ran}", runs, {one.name: one.version() for one in engines}
    )


@dataclass(frozen=True)
class _Reference:
    """The float network: what ``run`` runs it, its outputs, and a ``model`` that has its inputs."""

    run: Executable
    heads: Sequence[Head]
    model: Model
    is_mxnet: bool


def _reference(
    net: runtime.Net, file: OnnxFile, opened: Callable[[OnnxFile], Executable], logger: logging.Logger
) -> _Reference:
    """The float network, by MXNet or by what ``opened`` makes of a file."""
    if is_onnx(net):
        found = read(Path(net))
        _check_first(called(net), quantized=found.kind == "int8")
        heads = [Head(port.name, port.maker == "Softmax") for port in found.outputs]
        inputs = Graph(tuple(Node(port.name, VARIABLE) for port in found.inputs), ())
        return _Reference(opened(found), heads, Model(inputs), is_mxnet=False)
    model = runtime.load_model(net)
    _check_first(called(net), quantized=FLOAT.check(model) is not None)
    made_from = None if file.record is None else file.record.source.get("params_sha256")
    if made_from is not None and made_from != fingerprint(model)["params_sha256"]:
        logger.warning("%s was not made from %s: it names a float network of other parameters", file.path, called(net))
    return _Reference(runtime.MxnetRunner().compile(model), heads_of(model.graph), model, is_mxnet=True)


def _check_first(name: str, *, quantized: bool) -> None:
    if quantized:
        raise ConfigError(f"{name}, given as the float network, is quantized; give the float one first")


def _prepared(preparation: Preparation, file: OnnxFile) -> Preparation:
    """How pictures are read: what ``file`` says of values where nothing else does."""
    said = _recorded(file)
    if preparation.normalized or said is None:
        return preparation
    if preparation.origin:  # it says a size
        asked = preparation.settings
        said = replace(said, short_side=asked.short_side, crop=asked.crop, resize=asked.resize)
    return Preparation(said, f"as {file.path} says", normalized=True)


def _recorded(file: OnnxFile) -> Preprocess | None:
    """How ``file`` prepares pictures or, of one that takes prepared ones, how those of its calibration were."""
    if file.record is None:
        return None
    found = file.record.preprocess or file.record.config.get("preprocess")
    return Preprocess.from_json(dict(found), f"the metadata of {file.path}") if found else None


def _compare_with_record(file: OnnxFile, preparation: Preparation, logger: logging.Logger) -> None:
    """Says where pictures are prepared otherwise than ``file`` records."""
    said, asked = _recorded(file), preparation.settings
    odd = [] if said is None else [name for name in VALUES if getattr(said, name) != getattr(asked, name)]
    if not odd:
        return
    found, recorded = (
        ", ".join(f"{name} {getattr(each, name)}" for name in odd) for each in (asked, said) if each is not None
    )
    logger.warning(
        "pictures are prepared with %s (%s), but %s was made for %s: if that is not meant, prepare them so, by "
        "preprocess or preprocess.json",
        found,
        preparation.origin or "nothing says how",
        file.path,
        recorded,
    )


def _own(file: OnnxFile) -> dict[str, str]:
    """Each input of ``file`` -> itself."""
    return {port.name: port.name for port in file.inputs}


def _fed(file: OnnxFile, net: str, inputs: Sequence[str]) -> dict[str, str]:
    """Each input of ``file`` -> the one of ``net`` that it is fed; one that nothing reads it has not.

    Raises:
        ConfigError: the file has others.
    """
    names = [port.name for port in file.inputs]
    if len(names) == len(inputs) == 1:  # other programs call it as they like
        return {names[0]: inputs[0]}
    if not set(names) <= set(inputs):
        raise ConfigError(
            f"the inputs of {file.path} are {', '.join(names)}, those of {net} {', '.join(inputs)}; allowed: inputs of "
            "the same names, or one of each"
        )
    return _own(file)


def _reading(session: Served, file: OnnxFile, names: Mapping[str, str], settings: Preprocess) -> Executable:
    """``session``, each of whose inputs is fed what ``names`` says.

    Of one that takes pixels it is fed those from which the input was made by ``settings``.
    """
    pictures = file.pictures

    def run(feeds: Mapping[str, Array]) -> list[Array]:
        read = {name: feeds[fed] for name, fed in names.items()}
        return session({name: settings.as_fed(value) if name in pictures else value for name, value in read.items()})

    return run
