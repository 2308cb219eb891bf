"""``mxq inspect`` and ``mxq explain``: what was, or would be, decided."""

# ruff: noqa: PLC0415 - what a command alone needs is imported by it, so that `mxq --help` is quick
from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from mxq.cli.app import FAILED, command
from mxq.cli.console import print_json, say, show_result
from mxq.cli.networks import inspected
from mxq.cli.options import (
    Epoch,
    Json,
    Layers,
    Prefix,
    option,
    prefix_of,
)


@command
def inspect(
    prefix: Prefix,
    *,
    layers: Layers,
    epoch: Epoch = None,
    as_json: Json = False,
) -> None:
    """Show what is int8 and what is not, and why. For a float network: what would happen."""
    found = inspected(prefix_of(prefix), epoch, layers.config())
    print_json(found.to_json()) if as_json else show_result(found)
    for problem in found.problems:
        say(f"mxq: check failed: {problem}")
    if found.problems:
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
    from mxq.artifacts import record

    about = record.explained(inspected(prefix_of(prefix), epoch, layers.config()).report, node)
    if as_json:
        print_json({"asked": node, **asdict(about)})
        return
    if node != about.decision.node:
        say(f"{node} is part of {about.decision.node}")
    show_result(about)
