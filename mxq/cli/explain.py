"""``mxq explain``: why one node is int8 or float."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

from mxq.cli.app import command
from mxq.cli.console import print_json, say, show_result
from mxq.cli.networks import inspected
from mxq.cli.options import AllSettings, Effort, Epoch, Json, Prefix, option, prefix_of


@command
def explain(
    prefix: Prefix,
    node: Annotated[str, option("--node", metavar="NAME", help="A node of the float or the int8 network.")],
    *,
    settings: AllSettings,
    effort: Effort = None,
    epoch: Epoch = None,
    as_json: Json = False,
) -> None:
    """Say why one node is int8 or float: the decision, its parts, its ranges, and the rules that refused."""
    from mxq.artifacts import record

    about = record.explained(inspected(prefix_of(prefix), epoch, settings.config(effort)).report, node)
    if as_json:
        print_json({"asked": node, **asdict(about)})
        return
    if node != about.decision.node:
        say(f"{node} is part of {about.decision.node}")
    show_result(about)
