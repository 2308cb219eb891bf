"""``mxq merge-stats``: statistics of one network, collected on different data, in one file."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from mxq.cli.app import command
from mxq.cli.console import print_json, show
from mxq.cli.options import Json, option
from mxq.errors import ConfigError
from mxq.logs import LOG


@command
def merge_stats(
    parts: Annotated[list[Path], typer.Argument(metavar="FILE...", help="Files of statistics, in the data's order.")],
    out: Annotated[Path, option(metavar="FILE", help="Where to write the statistics of all data.")],
    as_json: Json = False,
) -> None:
    """Merge statistics of one network that were collected on different data."""
    from mxq.calibration import statistics
    from mxq.calibration.collect import alone

    if len(parts) < 2:
        raise ConfigError(f"merge-stats got {len(parts)} file; allowed: two or more")
    repeated = next((p for p in parts if parts.count(p) > 1), None)
    if repeated is not None:
        raise ConfigError(f"merge-stats got {str(repeated)!r} twice; its data would count twice")
    loaded = {str(path): statistics.Statistics.load(path) for path in parts}
    total = statistics.merge(loaded)
    with alone(out):
        total.save(out)
    for name, part in loaded.items():
        if not part.complete:
            LOG.warning("%s is not complete: %d examples so far", name, part.examples)
    if as_json:
        stretches = [asdict(s) for s in total.stretches]
        print_json({"examples": total.examples, "batches": total.batches, "stretches": stretches})
    else:
        from mxq.reporting import tables

        show(tables.facts(tables.statistics_rows(total, out)))
