"""``mxq export``: a network as an ONNX file."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Final

from mxq.cli.app import command
from mxq.cli.console import print_json, show
from mxq.cli.networks import start_mxnet
from mxq.cli.options import Epoch, Json, Prefix, option, prefix_of
from mxq.errors import ConfigError
from mxq.text import megabytes

_SIDES: Final = re.compile(r"[0-9]{1,9}([x,][0-9]{1,9})*")


@command
def export(
    prefix: Prefix,
    out: Annotated[Path, option(metavar="FILE", help="Where to write the ONNX file.")],
    as_float: Annotated[bool, option("--float", help="Write the float network as it is.")] = False,
    input_shape: Annotated[
        list[str] | None,
        option(
            "--input-shape",
            metavar="[INPUT=]CxHxW",
            help="Shape of one example, without the batch; as preprocess.json says by default. May be repeated, one "
            "for each input.",
        ),
    ] = None,
    batch_size: Annotated[
        int | None, option(min=1, metavar="N", help="Take batches of N examples alone; any number by default.")
    ] = None,
    epoch: Epoch = None,
    as_json: Json = False,
) -> None:
    """Write a network as an ONNX file, for ONNX Runtime, OpenVINO and others (mxq[onnx])."""
    if not as_float:
        raise ConfigError("--float is missing; allowed: --float, which writes the float network")
    shapes = _shapes(input_shape)
    start_mxnet()
    from mxq import workflow
    from mxq.report import tables

    files = workflow.export_onnx(prefix_of(prefix), out, shapes=shapes, batch_size=batch_size, epoch=epoch)
    sizes = {str(file): file.stat().st_size for file in files}
    if as_json:
        print_json({"files": list(sizes), "bytes": sum(sizes.values())})
        return
    show(tables.facts([("size", megabytes(sum(sizes.values()))), *(("written", name) for name in sizes)]))


def _shapes(given: Sequence[str] | None) -> dict[str, tuple[int, ...]]:
    """Input -> shape of one example; under "" that of the only input."""
    found: dict[str, tuple[int, ...]] = {}
    for text in given or ():
        name, _, sides = text.rpartition("=")
        if not _SIDES.fullmatch(sides) or name in found:
            raise ConfigError(f"--input-shape is {text!r}; allowed: [INPUT=]3x224x224, once for each input")
        found[name] = tuple(int(side) for side in re.split("[x,]", sides))
    return found
