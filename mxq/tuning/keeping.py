"""The best network so far, in files: a pair that stock MXNet loads, and its record."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

from mxq import runtime
from mxq.config import QuantConfig
from mxq.errors import FormatError, MxqError
from mxq.ir import Model
from mxq.plan import Report
from mxq.report import record


def save(model: Model, report: Report, prefix: Path) -> None:
    """Writes the pair and its record; each file is whole at any moment, and a record never is beside another's pair.

    Raises:
        FormatError: the folder cannot be written.
    """
    try:
        with tempfile.TemporaryDirectory(dir=prefix.parent, prefix=".mxq-") as folder:
            draft = Path(folder) / prefix.name
            pair = runtime.write_pair(model, draft)
            files = (*pair, record.write(draft, report, pair))
            record.path_of(prefix).unlink(missing_ok=True)
            for file in files:
                file.replace(prefix.parent / file.name)
    except OSError as error:
        raise FormatError(f"cannot write '{prefix}-symbol.json': {error.strerror or error}") from error


def load(prefix: Path, config: QuantConfig) -> tuple[Model, Report] | None:
    """What `save` wrote, where it is whole and was made by ``config``; else None."""
    try:
        report = record.read(prefix)
        wanted = json.loads(json.dumps(config.to_json()))
        if report.config != wanted or record.check(prefix):
            return None
        return runtime.load_model(prefix), report
    except MxqError:
        return None
