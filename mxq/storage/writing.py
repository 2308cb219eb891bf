"""Writing files: each whole or not at all, several together or none, and by one process at a time.

What is written goes to a draft beside the file first, which then takes its name. A draft is locked
(`mxq.storage.locks`): one that nobody has locked was left by a process that was killed, and goes when the file is
written again.

What was there keeps its mode, a new file gets what the umask says. A link stays, and what it leads to is replaced. A
pipe or a device is written to.
"""

from __future__ import annotations

import errno
import json
import os
import re
import resource
import shutil
import stat
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final

from mxq.errors import ConfigError, FormatError, StorageError
from mxq.storage.locks import Claim, beside, claim, unbroken

PATIENCE: Final = 10.0
"""Seconds to wait for another process that writes the same file, or for one that reads a pipe."""

_NO_ROOM: Final = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@dataclass(frozen=True)
class _Draft:
    """What is to take the place of ``target``: a file at ``path``, locked through ``stream``."""

    path: Path
    target: Path
    stream: Claim

    @property
    def backup(self) -> Path:
        return beside(self.target, "old")


@contextmanager
def replacing(*paths: str | os.PathLike[str], size: int = 0) -> Iterator[tuple[Path, ...]]:
    """Gives a draft for each file; at the end all take their places, in that order, or none does.

    Args:
        *paths: the files, at most one of each. Pipes and devices cannot be replaced, see `write_bytes`.
        size: how many bytes will be written, which a message says where there is no room for them.

    Raises:
        StorageError: a folder does not exist or cannot be written, or something else than a file is in the way.
    """
    with _explained(Path(paths[0]), size):
        targets = [_regular(Path(path)) for path in paths]
        with ExitStack() as stack:
            drafts = [stack.enter_context(_drafted(target)) for target in targets]
            yield tuple(draft.path for draft in drafts)
            for draft in drafts:
                os.fsync(draft.stream)
            with unbroken():
                _take_places(drafts)


@contextmanager
def _drafted(target: Path) -> Iterator[_Draft]:
    path = beside(target, "part")
    with claim(path, PATIENCE) as stream:
        _like(target, stream)
        yield _Draft(path, target, stream)


def _like(target: Path, stream: Claim) -> None:
    """Gives a draft the owner, where that is allowed, and the mode of the file that it will replace."""
    with suppress(FileNotFoundError):
        old, new = target.stat(), os.fstat(stream.fileno())
        if (old.st_uid, old.st_gid) != (new.st_uid, new.st_gid):
            with suppress(PermissionError):
                os.fchown(stream.fileno(), old.st_uid, old.st_gid)
        os.fchmod(stream.fileno(), stat.S_IMODE(old.st_mode))


def _take_places(drafts: Sequence[_Draft]) -> None:
    """Renames all, or puts back what was there and raises. One alone has been renamed or has not."""
    if len(drafts) == 1:
        drafts[0].path.replace(drafts[0].target)
        return
    done: list[_Draft] = []
    try:
        for draft in drafts:
            _back_up(draft)
            done.append(draft)
            draft.path.replace(draft.target)
    except BaseException:
        for draft in reversed(done):  # the one that failed is among them: its draft or its backup is still there
            _put_back(draft)
        raise
    finally:
        for draft in drafts:
            draft.backup.unlink(missing_ok=True)


def _back_up(draft: _Draft) -> None:
    draft.backup.unlink(missing_ok=True)  # of a process that was killed
    if not draft.target.exists():
        return
    try:
        os.link(draft.target, draft.backup)
    except OSError:  # a file system without hard links
        shutil.copy2(draft.target, draft.backup)


def _put_back(draft: _Draft) -> None:
    if draft.backup.exists():
        draft.backup.replace(draft.target)
    elif not draft.path.exists():  # it has taken the place of nothing
        draft.target.unlink(missing_ok=True)


def is_file(path: str | os.PathLike[str]) -> bool:
    """Whether a file is there, also for a name that no file can have."""
    try:
        return Path(path).is_file()
    except (OSError, ValueError):
        return False


def check_suffix(path: Path, what: str, allowed: Sequence[str]) -> None:
    """Whether a file of that kind can have that name.

    Raises:
        ConfigError: it ends otherwise.
    """
    if path.suffix.lower() not in allowed:
        raise ConfigError(f"{what} {path.name!r} has suffix {path.suffix!r}; allowed: {', '.join(allowed)}")


def check_writable(path: Path) -> None:
    """Whether a file can be written there, shown by a draft that goes again.

    Raises:
        StorageError: a folder does not exist or cannot be written, or something else than a file is in the way.
    """
    with _explained(path), _drafted(_regular(path)):
        pass


def regular(path: str | os.PathLike[str]) -> Path:
    """Where the file ``path`` is, links followed; it need not be there.

    Raises:
        StorageError: the name cannot be one, or something else than a file is there.
    """
    target = Path(path)
    with _explained(target):
        return _regular(target)


def _regular(path: Path) -> Path:
    if "\0" in os.fspath(path):
        raise StorageError(f"{os.fspath(path)!r} cannot be a file: its name has a NUL")
    with suppress(FileNotFoundError):
        mode = path.stat().st_mode
        if stat.S_ISDIR(mode):
            raise StorageError(f"{path} cannot be written: Is a directory")
        if not stat.S_ISREG(mode):
            raise StorageError(f"{path} cannot be written: it is a pipe or a device; allowed: a file, there or not")
    return Path(os.path.realpath(path))


@contextmanager
def _explained(target: Path, size: int = 0) -> Iterator[None]:
    try:
        yield
    except BlockingIOError as error:
        raise StorageError(f"{target} cannot be written: another process is writing it") from error
    except OSError as error:
        room = _room(target, size, error.errno)
        raise StorageError(f"{target} cannot be written: {error.strerror or error}{room}") from error


def _room(target: Path, size: int, why: int | None) -> str:
    """What is needed, and what there is, now that the draft has gone."""
    if why not in _NO_ROOM:
        return ""
    needed = f"{size:,} bytes are needed, " if size else ""
    if why == errno.EFBIG:
        return f" ({needed}a file may have {resource.getrlimit(resource.RLIMIT_FSIZE)[0]:,}, see ulimit -f)"
    with suppress(OSError):
        found = os.statvfs(os.path.realpath(target.parent))
        return f" ({needed}{found.f_bavail * found.f_frsize:,} bytes are free)"
    return ""


def write_bytes(path: str | os.PathLike[str], content: bytes) -> Path:
    """Writes a file, or to a pipe or a device.

    Raises:
        StorageError: it cannot be written.
    """
    target = Path(path)
    stream = _stream(target)
    if stream is not None:
        with _explained(target, len(content)), stream:
            stream.write(content)
        return target
    with replacing(target, size=len(content)) as (draft,):
        draft.write_bytes(content)
    return target


def _stream(path: Path) -> IO[bytes] | None:
    """What is written to, not replaced: a pipe, a device, or where this process's own output goes (/dev/stdout)."""
    try:
        found = path.stat()
    except (OSError, ValueError):
        return None
    if stat.S_ISDIR(found.st_mode):
        return None
    for own, number in ((sys.stdout, 1), (sys.stderr, 2)):
        with suppress(OSError):
            if os.path.samestat(found, os.fstat(number)):
                own.flush()
                return os.fdopen(os.dup(number), "wb")
    if stat.S_ISREG(found.st_mode):
        return None
    with _explained(path):
        number = _opened(path)
        os.set_blocking(number, True)
        return os.fdopen(number, "wb")


def _opened(path: Path) -> int:
    """A descriptor to write to a pipe or device; a pipe that nobody reads is waited for, not for ever."""
    until = time.monotonic() + PATIENCE
    while True:
        try:
            return os.open(path, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            if error.errno != errno.ENXIO:
                raise
            if time.monotonic() > until:
                raise StorageError(f"{path} cannot be written: nobody reads this pipe") from None
            time.sleep(0.01)


def write_text(path: str | os.PathLike[str], text: str) -> Path:
    """Writes text as UTF-8; see `write_bytes`."""
    return write_bytes(path, text.encode())


def write_json(path: str | os.PathLike[str], data: Any) -> Path:
    """Writes a JSON document; see `write_bytes`.

    Raises:
        FormatError: it holds something that JSON has no word for, such as NaN, or cannot be written.
    """
    return write_text(path, json_text(path, data))


def json_text(path: str | os.PathLike[str], data: Any) -> str:
    """The text of a JSON document that is to be written to ``path``.

    Raises:
        FormatError: it holds something that JSON has no word for, such as NaN.
    """
    try:
        return json.dumps(data, indent=1, allow_nan=False) + "\n"
    except (TypeError, ValueError) as error:
        raise FormatError(f"{os.fspath(path)} cannot be written as JSON: {error}") from None


def epochs_of(prefix: Path) -> dict[int, Path]:
    """The files ``prefix-NNNN.params`` by their number, of four digits or, where it is larger, more."""
    ending = re.compile(re.escape(prefix.name) + r"-(\d{4}|[1-9]\d{4,17})\.params", re.ASCII)
    try:
        entries = sorted(prefix.parent.iterdir())
    except OSError:
        return {}
    return {int(found[1]): path for path in entries if (found := ending.fullmatch(path.name)) and path.is_file()}
