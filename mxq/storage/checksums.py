"""Whether the files of a quantized pair are those that were written together: its record holds their checksums.

A record takes its place before the files that it speaks of (`mxq.artifacts.pair`), so a save that a kill cut short
leaves files that do not match it.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from mxq.errors import FormatError, StorageError
from mxq.formats.documents import read_json
from mxq.storage.writing import epochs_of, is_file

SUFFIX: Final = "-mxq.json"
PACKED: Final = "-packed.npz"
"""How the name of a packed pair ends."""
_ENDING: Final = re.compile(r"-symbol\.json$|-\d{4,}\.params$")
_CHUNK: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class Mismatch:
    """A file that is not what the record says: ``problem`` is "missing" or "changed"."""

    file: str
    problem: str

    def __str__(self) -> str:
        return (
            f"{self.file} is missing" if self.problem == "missing" else f"{self.file} has changed since it was written"
        )


def path_of(prefix: str | os.PathLike[str]) -> Path:
    """Where the record of the pair ``prefix`` lies; a dot in the prefix is part of it, not a suffix."""
    return Path(f"{os.fspath(prefix)}{SUFFIX}")


def recorded(prefix: str | os.PathLike[str]) -> bool:
    """Whether the pair ``prefix`` has a record."""
    return is_file(path_of(prefix))


def checksum(file: str | os.PathLike[str]) -> str:
    """The sha256 of a file, in hexadecimal; reads it piece by piece.

    Raises:
        StorageError: it cannot be read.
    """
    digest = hashlib.sha256()
    try:
        with Path(file).open("rb") as stream:
            while piece := stream.read(_CHUNK):
                digest.update(piece)
    except OSError as error:
        raise StorageError(f"{os.fspath(file)} cannot be read: {error.strerror or error}") from error
    return digest.hexdigest()


def mismatches(prefix: str | os.PathLike[str], files: Mapping[str, Any]) -> tuple[Mismatch, ...]:
    """The files of the pair ``prefix`` that are not what its record says.

    Args:
        prefix: of the pair.
        files: of the record: name -> sha256. Only the endings of the names count: a pair may be renamed.

    Raises:
        FormatError: a name is none of a pair's.
    """
    found = []
    for name, expected in files.items():
        ending = _ENDING.search(name)
        if ending is None:
            raise FormatError(
                f"{path_of(prefix)}: 'files' names {name!r}; allowed: names that end in -symbol.json or -NNNN.params"
            )
        file = Path(f"{os.fspath(prefix)}{ending[0]}")
        if not file.is_file():
            found.append(Mismatch(file.name, "missing"))
        elif checksum(file) != expected:
            found.append(Mismatch(file.name, "changed"))
    return tuple(found)


def params_of(prefix: Path) -> Path | None:
    """The parameter file that is read where nobody asks for an epoch: the one that the record is of, else the latest.

    A pair that was written over the float network that it was made from may have files of later epochs beside it.

    Raises:
        FormatError: the record is damaged.
    """
    found = epochs_of(prefix)
    if recorded(prefix):
        endings = [_ENDING.search(name) for name in files_in(read_json(path_of(prefix)), path_of(prefix))]
        written = {f"{prefix.name}{ending[0]}" for ending in endings if ending is not None}
        found = {epoch: path for epoch, path in found.items() if path.name in written} or found
    return found[max(found)] if found else None


def sizes_of(prefix: Path) -> dict[str, int]:
    """Bytes of the files of the pair ``prefix``, by name."""
    files = [prefix.with_name(f"{prefix.name}-symbol.json")]
    files += [path for path in (params_of(prefix),) if path is not None]
    return {f.name: f.stat().st_size for f in files if f.is_file()}


@contextmanager
def intact(prefix: str | os.PathLike[str]) -> Iterator[None]:
    """Inside, the files of the pair ``prefix`` may be read; where it has no record, anything goes.

    Raises:
        FormatError: a file is missing or has changed since the record was written, or does while it is read.
    """
    before = _state(prefix)
    if recorded(prefix):
        broken = mismatches(prefix, files_in(read_json(path_of(prefix)), path_of(prefix)))
        if broken:
            raise FormatError(
                f"{os.fspath(prefix)}: {broken[0]} (a save that was cut short leaves that, too); write the pair anew, "
                f"or, where its files are right, remove {path_of(prefix).name}, which is of others"
            )
    yield
    if _state(prefix) != before:
        raise FormatError(f"{os.fspath(prefix)}: its files were replaced while they were read; read them again")


def _state(prefix: str | os.PathLike[str]) -> tuple[object, ...]:
    """What changes when the record or the symbol is replaced."""
    found: list[object] = []
    for path in (path_of(prefix), Path(f"{os.fspath(prefix)}-symbol.json")):
        try:
            stat = path.stat()
            found.append((stat.st_ino, stat.st_mtime_ns, stat.st_size))
        except (OSError, ValueError):
            found.append(None)
    return tuple(found)


def files_in(document: Any, path: Path) -> Mapping[str, Any]:
    """The checksums in a record, name -> sha256, from its JSON; ``path`` is for the message.

    Raises:
        FormatError: there is no such table.
    """
    files = document.get("files", {}) if isinstance(document, dict) else None
    if not isinstance(files, dict):
        raise FormatError(f"{path}: 'files' is {type(files).__name__}, not a table of file name: sha256")
    return files
