"""The best network of an earlier run, which `mxq.report.pair` wrote."""

from __future__ import annotations

import json
from pathlib import Path

from mxq import runtime
from mxq.config import QuantConfig
from mxq.errors import MxqError
from mxq.ir import Model
from mxq.plan import Report
from mxq.report import record


def load(prefix: Path, config: QuantConfig) -> tuple[Model, Report] | None:
    """What `mxq.report.pair` wrote, where it is whole and was made by ``config``; else None."""
    try:
        report = record.read(prefix)
        wanted = json.loads(json.dumps(config.to_json()))
        if report.config != wanted or record.check(prefix):
            return None
        return runtime.load_model(prefix), report
    except MxqError:
        return None
