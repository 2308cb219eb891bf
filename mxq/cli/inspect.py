"""``mxq inspect``: what was, or would be, decided of a network."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import typer

from mxq.cli.app import FAILED, command
from mxq.cli.console import print_json, say, show_result
from mxq.cli.networks import inspected
from mxq.cli.options import AllSettings, Effort, Epoch, Json, PrefixOrFile, prefix_of

if TYPE_CHECKING:
    from mxq.config import QuantConfig
    from mxq.reporting.files import FileInspection
    from mxq.reporting.inspection import Inspection


@command
def inspect(
    prefix: PrefixOrFile,
    *,
    settings: AllSettings,
    effort: Effort = None,
    epoch: Epoch = None,
    as_json: Json = False,
) -> None:
    """Show what is int8 and what is not, and why. For a float network: what would happen."""
    found = _found(prefix, epoch, settings.config(effort))
    print_json(found.to_json()) if as_json else show_result(found)
    for problem in found.problems:
        say(f"mxq: check failed: {problem}")
    if found.problems:
        raise typer.Exit(FAILED)


def _found(network: Path, epoch: int | None, config: QuantConfig) -> Inspection | FileInspection:
    from mxq.formats.onnx_file import is_onnx

    if not is_onnx(network):
        return inspected(prefix_of(network), epoch, config)
    from mxq.reporting.files import FileInspection

    return FileInspection.of(network, config, epoch)
