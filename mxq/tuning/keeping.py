"""The best network of an earlier run, which `mxq.artifacts.pair` wrote."""

from __future__ import annotations

import json
from pathlib import Path

from mxq import runtime
from mxq.artifacts import record
from mxq.config import QuantConfig
from mxq.errors import MxqError
from mxq.graph.ir import Model
from mxq.quant.plan import Report


def load(prefix: Path, config: QuantConfig) -> tuple[Model, Report] | None:
    """What `mxq.artifacts.pair` wrote, where it is whole and was made by ``config``; else None."""
    try:
        report = record.read(prefix)
        wanted = json.loads(json.dumps(config.to_json()))
        if report.config != wanted or record.check(prefix):
            return None
        return runtime.load_model(prefix), report
    except MxqError:
        return None
