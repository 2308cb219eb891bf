"""Opening files, and the errors of libraries that read them."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, Final

from mxq.errors import ConfigError, FormatError, MxqError

MOST_BEYOND: Final = 3 << 28
"""Bytes that what is read may take beyond the size of its file: 768 MB."""

MOST_TEXT: Final = 24 << 20
"""Bytes of the longest text that is read at once: parsed, it may take 24 times as much."""

_KINDS: Final = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


def path_given(name: str, value: Any) -> Path:
    """The path that an argument of this ``name`` holds.

    Raises:
        ConfigError: it holds no path.
    """
    try:
        return Path(value)
    except TypeError:
        raise ConfigError(f"{name} is {value!r}; allowed: a path, text or pathlib.Path") from None


@contextmanager
def opened(path: str | os.PathLike[str], error: type[MxqError] = FormatError) -> Iterator[tuple[BinaryIO, int]]:
    """The file, open for reading bytes, and its size.

    Raises:
        MxqError: of type ``error``; there is no such file, it is a pipe, device or folder, or reading it fails.
    """
    stream, size = _opened(path, error)
    try:
        with stream:
            yield stream, size
    except OSError as failure:
        raise error(f"{os.fspath(path)} cannot be read: {failure.strerror or failure}") from None


def _opened(path: str | os.PathLike[str], error: type[MxqError]) -> tuple[BinaryIO, int]:
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # a pipe would wait for who writes to it
    except FileNotFoundError:
        raise error(f"no file {str(path)!r}") from None
    except (OSError, ValueError) as failure:  # ValueError: NUL in the name
        raise error(f"{str(path)!r} cannot be read: {getattr(failure, 'strerror', None) or failure}") from None
    found = os.fstat(handle)
    if not stat.S_ISREG(found.st_mode):
        os.close(handle)
        raise error(f"{str(path)!r} is {_kind(found.st_mode)}; allowed: a file")
    return os.fdopen(handle, "rb"), found.st_size


def _kind(mode: int) -> str:
    return next((name for test, name in _KINDS if test(mode)), "no regular file")


def read_text(path: str | os.PathLike[str], error: type[MxqError] = FormatError, most: int = MOST_TEXT) -> str:
    """The text of a file in UTF-8, without the byte order mark that some editors put first.

    Raises:
        MxqError: of type ``error``; it cannot be read, has more than ``most`` bytes, or is not UTF-8.
    """
    with opened(path, error) as (stream, size):
        if size > most:
            raise error(f"{os.fspath(path)} has {size} bytes; a text of this kind has at most {most}")
        content = stream.read(most + 1)
    return decoded(content, os.fspath(path), error)


def decoded(content: bytes, name: str, error: type[MxqError] = FormatError) -> str:
    """UTF-8 bytes as text.

    Raises:
        MxqError: of type ``error``; they are not.
    """
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as failure:
        raise error(f"{name} is not UTF-8 text: {failure.reason} at byte {failure.start}") from None


@contextmanager
def understood(what: str, error: type[MxqError] = FormatError) -> Iterator[None]:
    """Whatever a library raises about bytes that it does not understand is one error: "``what``: its words", on a line.

    For calls of a library alone: errors of mxq's own code must not be taken for damage of a file.
    """
    try:
        yield
    except MxqError:
        raise
    except Exception as failure:
        words = " ".join(str(failure).split()) or type(failure).__name__
        raise error(f"{what}: {words}") from None
