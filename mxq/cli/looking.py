"""``mxq inspect`` and ``mxq explain``: what was, or would be, decided."""

# ruff: noqa: PLC0415 - what a command alone needs is imported by it, so that `mxq --help` is quick
from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from mxq.cli.app import FAILED, command
from mxq.cli.console import megabytes, print_json, say, show
from mxq.cli.networks import report_of, sizes_of
from mxq.cli.options import (
    Epoch,
    Json,
    Layers,
    Prefix,
    option,
    prefix_of,
)

if TYPE_CHECKING:
    from mxq.plan import Report


@command
def inspect(
    prefix: Prefix,
    *,
    layers: Layers,
    epoch: Epoch = None,
    as_json: Json = False,
) -> None:
    """Show what is int8 and what is not, and why. For a float network: what would happen."""
    from mxq.report import record, tables

    prefix = prefix_of(prefix)
    report, known = report_of(prefix, epoch, layers.config())
    broken = record.check(prefix) if known else ()
    sizes = sizes_of(prefix)
    if as_json:
        problems = [{"file": m.file, "problem": m.problem} for m in broken]
        print_json({"written": known, "bytes": sizes, "problems": problems, **record.to_json(report)})
    else:
        state = "quantized by mxq" + _versions(report.versions) if known else "float; this is what quantizing would do"
        rows = [("network", f"{prefix} ({state})"), ("operators", tables.tally(report))]
        rows += [("calibration", _calibration(report))] if known else []
        rows += tables.input_rows(report)
        rows += [("size", ", ".join(f"{name} {megabytes(size)}" for name, size in sizes.items()))]
        show(tables.facts(rows), tables.decisions(report))
    for mismatch in broken:
        say(f"mxq: check failed: {mismatch}")
    if broken:
        raise typer.Exit(FAILED)


@command
def explain(
    prefix: Prefix,
    node: Annotated[str, option("--node", metavar="NAME", help="A node of the float or the int8 network.")],
    *,
    layers: Layers,
    epoch: Epoch = None,
    as_json: Json = False,
) -> None:
    """Say why one node is int8 or float: the decision, its parts, its ranges, and the rules that refused."""
    from mxq.report import record, tables

    prefix = prefix_of(prefix)
    report, _ = report_of(prefix, epoch, layers.config())
    made = record.find(report, node)
    about = record.explain(report, made)
    if as_json:
        print_json({"asked": node, **asdict(about)})
    else:
        if node != made.node:
            say(f"{node} is part of {made.node}")
        show(tables.explanation(about))


def _calibration(report: Report) -> str:
    config, summary = report.config, report.summary
    words = [f"calib_mode {config.get('calib_mode')}"]
    if summary.get("calibration_examples"):
        words.append(f"{summary['calibration_examples']} examples")
    return ", ".join([*words, f"dtype {config.get('quantized_dtype')}", f"mode {config.get('quantize_mode')}"])


def _versions(versions: Mapping[str, str]) -> str:
    return f" {versions['mxq']}, MXNet {versions.get('mxnet', '?')}" if "mxq" in versions else ""
