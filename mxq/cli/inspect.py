"""``mxq inspect``: what was, or would be, decided of a network."""

from __future__ import annotations

import typer

from mxq.cli.app import FAILED, command
from mxq.cli.console import print_json, say, show_result
from mxq.cli.networks import inspected
from mxq.cli.options import AllSettings, Effort, Epoch, Json, Prefix, prefix_of


@command
def inspect(
    prefix: Prefix,
    *,
    settings: AllSettings,
    effort: Effort = None,
    epoch: Epoch = None,
    as_json: Json = False,
) -> None:
    """Show what is int8 and what is not, and why. For a float network: what would happen."""
    found = inspected(prefix_of(prefix), epoch, settings.config(effort))
    print_json(found.to_json()) if as_json else show_result(found)
    for problem in found.problems:
        say(f"mxq: check failed: {problem}")
    if found.problems:
        raise typer.Exit(FAILED)
