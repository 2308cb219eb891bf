"""A journal: a file of JSON lines that only grows, so that whatever ends a long search, what was measured is kept.

The first line says what the journal is about; every further one is a measurement. A last line that a kill cut short is
dropped when the file is opened.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, TypeVar

from mxq.errors import ConfigError, FormatError, StorageError
from mxq.formats.documents import parse_json
from mxq.storage.writing import regular, write_text

FORMAT: Final = "mxq-journal/1"

T = TypeVar("T")


@dataclass
class Journal:
    """An open journal.

    Attributes:
        path: the file; None keeps nothing.
        entries: all of it but the first line, in order.
    """

    path: Path | None = None
    entries: list[Mapping[str, Any]] = field(default_factory=list)

    @staticmethod
    def open(path: Path | None, about: Mapping[str, object]) -> Journal:
        """Reads the journal at ``path``, or begins it.

        Args:
            path: the file; its folder is made where it is missing.
            about: JSON-ready; what the measurements depend on.

        Raises:
            ConfigError: the file is about something else; the message names the first difference.
            FormatError: it is no journal, or is damaged.
            StorageError: it cannot be read or written.
        """
        if path is None:
            return Journal()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            text = path.read_text(encoding="utf-8") if regular(path).exists() else ""
        except OSError as error:
            raise StorageError(f"{path} cannot be used as a journal: {error}") from error
        except UnicodeDecodeError as error:
            raise FormatError(f"{path} cannot be used as a journal: {error}") from None
        if not text:
            write_text(path, _line({"format": FORMAT, "about": about}))
            return Journal(path)
        whole, end, rest = text.rpartition("\n")
        lines = [_parsed(path, number, line) for number, line in enumerate(whole.split("\n"), start=1)]
        if not isinstance(lines[0], dict) or lines[0].get("format") != FORMAT:
            raise FormatError(f"{path} is no journal of mxq (format {FORMAT!r})")
        _check(path, lines[0].get("about"), json.loads(_line(about)))
        if rest:
            write_text(path, whole + end)
        return Journal(path, lines[1:])

    def append(self, entry: Mapping[str, Any]) -> None:
        """Adds a measurement; it is on disk when this returns, or nothing of it is.

        Raises:
            StorageError: the file cannot be written.
        """
        line = _line(entry)
        if self.path is not None:
            try:
                _append(self.path, line.encode())
            except OSError as error:
                raise StorageError(f"{self.path} cannot be written: {error.strerror or error}") from error
        self.entries.append(json.loads(line))

    def read(self, parse: Callable[[Mapping[str, Any]], T]) -> list[T]:
        """What ``parse`` makes of each entry.

        Raises:
            FormatError: it cannot read one, which means that the file is damaged.
        """
        found = []
        for number, entry in enumerate(self.entries, start=2):
            try:
                found.append(parse(entry))
            except (FormatError, KeyError, TypeError, ValueError, AttributeError) as error:
                why = f"{type(error).__name__}: {error}"
                raise FormatError(
                    f"{self.path}, line {number} is damaged ({why}); delete the file to begin anew"
                ) from None
        return found


def _append(path: Path, line: bytes) -> None:
    """Adds a line to a file, or leaves it as it was and raises."""
    with path.open("ab", buffering=0) as stream:
        before = os.fstat(stream.fileno()).st_size
        try:
            while line:  # what a disk took of it before it was full is no error yet
                line = line[stream.write(line) :]
            os.fsync(stream.fileno())
        except BaseException:
            os.ftruncate(stream.fileno(), before)
            raise


def json_numbers(numbers: Mapping[str, float] | None) -> dict[str, float | str] | None:
    """Numbers by name as JSON has them: what it cannot say is a text such as "inf"."""
    return None if numbers is None else {k: v if math.isfinite(v) else str(v) for k, v in numbers.items()}


def numbers_of(found: Mapping[str, Any] | None) -> dict[str, float] | None:
    """The reverse of `json_numbers`."""
    return None if found is None else {k: float(v) for k, v in found.items()}


def _line(entry: Mapping[str, Any]) -> str:
    return json.dumps(entry, allow_nan=False, sort_keys=True) + "\n"


def _parsed(path: Path, number: int, line: str) -> Any:
    try:
        return parse_json(line, f"{path}, line {number}")
    except FormatError as error:
        raise FormatError(f"{error}; delete the file to begin anew") from None


def _check(path: Path, found: Any, wanted: Any) -> None:
    difference = _difference(found, wanted)
    if difference is not None:
        raise ConfigError(
            f"{path} is about something else: its {difference}; allowed: the same network, data and settings, or "
            "another workdir"
        )


def _difference(found: Any, wanted: Any, place: str = "") -> str | None:
    """The first place where two JSON documents differ, in words; None where they are equal."""
    if isinstance(found, dict) and isinstance(wanted, dict):
        keys = dict.fromkeys((*wanted, *found))
        inner = (_difference(found.get(k), wanted.get(k), f"{place} {k}".strip()) for k in keys)
        return next(filter(None, inner), None)
    return None if found == wanted else f"{place or 'subject'} is {_short(found)}, now {_short(wanted)}"


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return f"{text[:40]}..." if len(text) > 43 else text
