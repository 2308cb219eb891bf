"""``mxq pack`` and ``mxq unpack``: a quantized pair in one file of a quarter of its size, and back."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mxq.artifacts import packed
from mxq.cli.app import command
from mxq.cli.console import print_json, show
from mxq.cli.options import Json, Prefix, option, prefix_of
from mxq.text import megabytes

Out = Annotated[
    Path | None,
    option(metavar="PREFIX", help="First part of the names of what is written; by default that of what is read."),
]


@command
def pack(prefix: Prefix, out: Out = None, as_json: Json = False) -> None:
    """Write an INT8 network as codes and scales: PREFIX-packed.npz, and PREFIX-unpack.py, which needs numpy alone."""
    found = packed.pack(prefix_of(prefix), out)
    if as_json:
        print_json(found.to_json())
        return
    _show(found.files, f"{megabytes(found.packed)}, {found.packed / found.unpacked:.0%} of {megabytes(found.unpacked)}")


@command
def unpack(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="What mxq pack wrote: PREFIX-packed.npz.")],
    out: Out = None,
    as_json: Json = False,
) -> None:
    """Write the pair of a packed network, bit for bit as it was."""
    files = packed.unpack(file, packed.prefix_of(file) if out is None else out)
    if as_json:
        print_json({"files": [str(path) for path in files]})
    else:
        _show(files, megabytes(sum(path.stat().st_size for path in files)))


def _show(files: tuple[Path, ...], size: str) -> None:
    from mxq.reporting import tables

    show(tables.facts([("written", ", ".join(map(str, files))), ("size", size)]))
