"""The journal of a training: one JSON document a line, which grows with each epoch.

=========  ============================================================================================================
"kind"     and beside "epoch"
=========  ============================================================================================================
"step"     "step" from 0, "rate", "loss", "examples"
"epoch"    "eval": numbers by name; but for epoch 0, which is before training, "loss", "first", "least", "rate", "train"
"ranges"   "ranges": see `mxq.qat.diagnosis`
"noise"    "sqnr_db": the same
=========  ============================================================================================================
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

from mxq.errors import FormatError, StorageError
from mxq.formats.documents import parse_json
from mxq.storage.writing import regular

JOURNAL: Final = "training.jsonl"


def cut(path: Path, length: int) -> None:
    """Leaves the first so many bytes of a file.

    Raises:
        FormatError: it has fewer, or is missing where it has to have some.
        StorageError: it cannot be written.
    """
    try:
        size = path.stat().st_size if path.exists() else 0
        if size < length:
            raise FormatError(
                f"{path} has {size} bytes, but {length} when the checkpoint beside it was written; allowed: the "
                "journal as it was, or an empty folder, to begin anew"
            )
        if path.exists():
            os.truncate(path, length)
    except OSError as error:
        raise StorageError(f"{path} cannot be written: {error.strerror or error}") from error


def added(path: Path, start: int, lines: Iterable[Mapping[str, Any]]) -> int:
    """Writes lines from byte ``start`` on, so that they are on the disk, and gives where they end."""
    content = "".join(json.dumps(sayable(line), allow_nan=False) + "\n" for line in lines).encode()
    try:
        with regular(path).open("ab") as stream:
            stream.truncate(start)
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
    except OSError as error:
        raise StorageError(f"{path} cannot be written: {error.strerror or error}") from error
    return start + len(content)


def sayable(value: Any) -> Any:
    """``value`` with None for numbers that JSON has no word for, such as a metric of a class without examples."""
    if isinstance(value, Mapping):
        return {name: sayable(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [sayable(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def read_journal(folder: Path) -> list[Mapping[str, Any]]:
    """The lines of a training's journal.

    Raises:
        FormatError: there is none, or it is damaged.
    """
    path = folder / JOURNAL
    try:
        text = regular(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise FormatError(f"{path} cannot be read: {error}; allowed: the workdir of a training") from error
    found = [parse_json(line, f"{path}, line {number}") for number, line in enumerate(text.splitlines(), start=1)]
    if not all(isinstance(line, dict) and isinstance(line.get("kind"), str) for line in found):
        raise FormatError(f"{path} is no journal of a training, or damaged")
    return found
