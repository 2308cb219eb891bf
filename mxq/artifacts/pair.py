"""Writing a quantized network: a pair that stock MXNet loads, and the record beside it."""

from __future__ import annotations

from pathlib import Path

from mxq import runtime
from mxq.artifacts import record
from mxq.errors import FormatError
from mxq.graph.ir import Model
from mxq.quant.plan import Report
from mxq.storage.checksums import checksum, path_of
from mxq.storage.locks import tidy
from mxq.storage.writing import json_text, replacing


def write(model: Model, report: Report, prefix: Path) -> tuple[Path, Path, Path]:
    """Writes ``prefix-symbol.json``, ``prefix-0000.params`` and ``prefix-mxq.json``, all or none of them.

    Each file is whole at any moment. The record takes its place first: where a kill comes between, the other files do
    not match it, which whoever reads them is told (`mxq.storage.checksums`).

    Returns:
        The paths, in that order.

    Raises:
        RuntimeFailure: MXNet refuses the graph.
        FormatError: the record, which names the files, cannot hold their names.
        StorageError: a folder does not exist or cannot be written, or another process writes the same pair.
    """
    try:
        prefix.name.encode()
    except UnicodeEncodeError:
        raise FormatError(f"prefix is {str(prefix)!r}; allowed: one whose last part is Unicode text") from None
    symbol, params = runtime.pair_at(prefix)
    described, files = path_of(prefix), runtime.Files.of(model)

    def text(*checksums: str) -> bytes:
        table = dict(zip((symbol.name, params.name), checksums, strict=True))
        return json_text(described, record.to_json(report, table)).encode()

    size = files.size + len(text("0" * 64, "0" * 64))
    tidy(prefix.parent)
    with replacing(described, symbol, params, size=size) as (described_draft, *drafts):
        files.write(*drafts)
        described_draft.write_bytes(text(*map(checksum, drafts)))
    return symbol, params, described
