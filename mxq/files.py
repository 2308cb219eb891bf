"""Writing a file whole or not at all."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from mxq.errors import FormatError


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Gives a name beside ``path`` to write to; at the end that file takes its place, or goes if anything was raised.

    Raises:
        FormatError: the folder does not exist or cannot be written.
    """
    target = Path(path)
    draft = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        yield draft
        draft.replace(target)
    except OSError as error:
        raise FormatError(f"{target} cannot be written: {error.strerror or error}") from error
    finally:
        with suppress(NotADirectoryError):  # where a file stands in the folder's place, nothing was written
            draft.unlink(missing_ok=True)


def write_text(path: str | os.PathLike[str], text: str) -> Path:
    """Writes text as UTF-8."""
    with replacing(path) as draft:
        draft.write_text(text, encoding="utf-8")
    return Path(path)


def write_json(path: str | os.PathLike[str], data: Any) -> Path:
    """Writes a JSON document.

    Raises:
        FormatError: it holds something that JSON has no word for, such as NaN, or cannot be written.
    """
    try:
        text = json.dumps(data, indent=1, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise FormatError(f"{os.fspath(path)} cannot be written as JSON: {error}") from None
    return write_text(path, text + "\n")
