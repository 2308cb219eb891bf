"""``mxq export``: a network as an ONNX file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

from mxq.cli.app import command
from mxq.cli.console import print_json, show
from mxq.cli.networks import start_mxnet
from mxq.cli.options import DATA, AllSettings, Effort, Epoch, Json, Pictures, Prefix, Stats, option, prefix_of
from mxq.config import QuantConfig, Shape, shape_of
from mxq.errors import ConfigError
from mxq.text import megabytes


@dataclass(frozen=True)
class ExportSettings(AllSettings):
    """Those of `QuantConfig`, but for shapes, which are of any number of inputs and change no operator."""

    input_shape: Annotated[
        list[str] | None,
        option(
            "--input-shape",
            metavar="[INPUT=]CxHxW",
            help="Shape of one example, without the batch; as --data or preprocess.json says by default. May be "
            "repeated, one for each input.",
        ),
    ] = None  # type: ignore[assignment]

    def config(self, effort: str | None = None) -> QuantConfig:
        return replace(AllSettings(**{**vars(self), "input_shape": None}).config(effort), input_shape=None)


@command
def export(
    prefix: Prefix,
    out: Annotated[Path, option(metavar="FILE", help="Where to write the ONNX file.")],
    data: Annotated[Path | None, option(metavar="PATH", help=DATA)] = None,
    stats: Stats = None,
    as_float: Annotated[bool, option("--float", help="Write the float network as it is.")] = False,
    runtime: Annotated[
        str,
        option(metavar="NAME", help="What an INT8 file is to be quick in: onnxruntime, openvino or portable (both)."),
    ] = "portable",
    batch_size: Annotated[
        int | None, option(min=1, metavar="N", help="Take batches of N examples alone; any number by default.")
    ] = None,
    with_preprocess: Annotated[
        bool,
        option(
            "--with-preprocess",
            help="Prepare pictures in the file: it takes pixels, uint8 NHWC in RGB, of the network's size.",
        ),
    ] = False,
    dynamic_size: Annotated[
        bool, option("--dynamic-size", help="Take pictures of any height and width, where the network does.")
    ] = False,
    *,
    settings: ExportSettings,
    effort: Effort = None,
    pictures: Pictures,
    epoch: Epoch = None,
    as_json: Json = False,
) -> None:
    """Write a network as an ONNX file, INT8 or float, for ONNX Runtime, OpenVINO and others (mxq[onnx])."""
    config, prefix = settings.config(effort), prefix_of(prefix)
    if as_float == (data is not None or stats is not None):
        found = "beside --data or --stats" if as_float else "missing, so are --data and --stats"
        raise ConfigError(f"--float is {found}; allowed: calibration data for an INT8 file, or --float for a float one")
    shapes = _shapes(settings.input_shape)
    preparation = pictures.preparation(prefix, config)
    start_mxnet()
    from mxq import workflow
    from mxq.reporting import tables

    given = None if as_float else workflow.Given(data, stats=stats, preparation=preparation)
    form = workflow.FileForm(shapes, batch_size, with_preprocess, dynamic_size)
    request = workflow.FileRequest(
        net=prefix,
        path=out,
        form=form,
        runtime=runtime,
        epoch=epoch,
        given=given,
        preparation=preparation,
        config=config,
    )
    files = workflow.export_onnx(request)
    sizes = {str(file): file.stat().st_size for file in files}
    if as_json:
        print_json({"files": list(sizes), "bytes": sum(sizes.values())})
        return
    show(tables.facts([("size", megabytes(sum(sizes.values()))), *(("written", name) for name in sizes)]))


def _shapes(given: Sequence[str] | None) -> dict[str, Shape]:
    """Input -> shape of one example; under "" that of the only input."""
    found: dict[str, Shape] = {}
    for text in given or ():
        name, _, sides = text.rpartition("=")
        if name in found:
            raise ConfigError(f"--input-shape is {text!r}; allowed: [INPUT=]3x224x224, once for each input")
        found[name] = shape_of(sides, "--input-shape")
    return found
