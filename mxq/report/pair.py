"""Writing a quantized network: a pair that stock MXNet loads, and the record beside it."""

from __future__ import annotations

import tempfile
from pathlib import Path

from mxq import runtime
from mxq.errors import FormatError
from mxq.ir import Model
from mxq.plan import Report
from mxq.report import record


def write(model: Model, report: Report, prefix: Path) -> tuple[Path, Path, Path]:
    """Writes ``prefix-symbol.json``, ``prefix-0000.params`` and ``prefix-mxq.json``, all or none of them.

    Each file is whole at any moment, and a record never is beside another's pair.

    Returns:
        The paths, in that order.

    Raises:
        FormatError: the folder does not exist or cannot be written.
    """
    try:
        with tempfile.TemporaryDirectory(dir=prefix.parent, prefix=".mxq-") as folder:
            draft = Path(folder) / prefix.name
            symbol, params = runtime.write_pair(model, draft)
            described = record.write(draft, report, (symbol, params))
            # An older record must not outlive the pair that it describes.
            record.path_of(prefix).unlink(missing_ok=True)
            symbol, params, described = (f.replace(prefix.parent / f.name) for f in (symbol, params, described))
            return symbol, params, described
    except OSError as error:
        raise FormatError(f"cannot write '{prefix}-symbol.json': {error.strerror or error}") from error
