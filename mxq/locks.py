"""Files that one process at a time has to itself; the kernel lets go of them when the process ends in any way.

A lock is on an open file (flock), so a file that is there but locked by nobody was left by a process that was killed,
and may go. Locks hold between threads too. A child made by fork gives up its copies, or it could outlive its parent and
keep a lock for ever.
"""

from __future__ import annotations

import errno
import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Final
from weakref import WeakSet

from mxq.errors import StorageError

_NO_LOCKS: Final = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
"""Of file systems that know none; there nobody can be kept out."""

_READ_ONLY: Final = (errno.EACCES, errno.EPERM, errno.EROFS)

_held: WeakSet[IO[bytes]] = WeakSet()


def _let_go() -> None:
    for stream in list(_held):
        stream.close()


os.register_at_fork(after_in_child=_let_go)


def beside(target: Path, kind: str) -> Path:
    """A hidden name in the folder of ``target``, the same each time: "part", "lock" or "old" of it."""
    return target.with_name(f".{target.name}.mxq-{kind}")


def claim(path: Path, patience: float = 0.0) -> IO[bytes]:
    """Makes the file ``path`` and locks it, until the stream that it returns is closed.

    What a process that has ended left there goes first.

    Args:
        path: the file.
        patience: seconds to wait where another process has it.

    Raises:
        BlockingIOError: another process has it.
        OSError: it cannot be made.
    """
    until = time.monotonic() + patience
    while True:
        try:
            stream = _claimed(path)
        except BlockingIOError:
            if time.monotonic() >= until:
                raise
            time.sleep(0.01)
            continue
        if stream is not None:
            return stream


def _claimed(path: Path) -> IO[bytes] | None:
    """The file, made and locked; None where it has to be tried again, because another one was there."""
    old = os.path.lexists(path)
    try:
        number = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | (0 if old else os.O_CREAT | os.O_EXCL), 0o666)
    except FileExistsError:
        return None
    except FileNotFoundError:
        if not old:  # the folder is missing
            raise
        return None
    stream = os.fdopen(number, "r+b", buffering=0)
    try:
        _lock(stream)
        ours = is_at(stream, path)
        if ours and old:
            path.unlink()
    except BaseException:
        stream.close()
        raise
    if ours and not old:
        _held.add(stream)
        return stream
    stream.close()
    return None


def _lock(stream: IO[bytes]) -> None:
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise


def is_at(stream: IO[bytes], path: Path) -> bool:
    """Whether the open file is the one that has the name ``path`` now."""
    with suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(stream.fileno()), path.lstat())
    return False


def tidy(folder: Path) -> None:
    """Removes what processes that were killed have left in a folder."""
    for path in (*folder.glob(".*.mxq-part"), *folder.glob(".*.mxq-lock")):
        with suppress(OSError), claim(path):
            path.unlink()


@contextmanager
def alone(path: Path, remedy: str) -> Iterator[None]:
    """While inside, no other run is inside for the same ``path``, a file (that need not be there) or a folder.

    Where nothing can be written, nothing has to be kept apart.

    Args:
        path: what is used.
        remedy: what to do where another run uses it.

    Raises:
        StorageError: another run uses it (the message names the process where the kernel tells), or nobody can.
    """
    if "\0" in os.fspath(path):
        raise StorageError(f"{os.fspath(path)!r} cannot be used: its name has a NUL")
    real = Path(os.path.realpath(path))
    lock = beside(real / "workdir" if real.is_dir() else real, "lock")
    held = None
    try:
        held = claim(lock)
    except BlockingIOError:
        raise StorageError(f"{path} is in use by {_holder(lock)}; {remedy}") from None
    except OSError as error:
        if error.errno not in _READ_ONLY:
            raise StorageError(f"{path} cannot be used: {error.strerror or error}") from error
    try:
        yield
    finally:
        if held is not None:
            with held:
                if is_at(held, lock):  # else somebody has removed it, and it may be another run's
                    lock.unlink()


def _holder(lock: Path) -> str:
    """The process that has locked a file, as far as the kernel tells (another machine's it does not)."""
    with suppress(OSError, ValueError, IndexError):
        inode = str(lock.stat().st_ino)
        for line in Path("/proc/locks").read_text(encoding="ascii").splitlines():
            _, kind, *_, pid, place, _, _ = line.split()  # 1: FLOCK ADVISORY WRITE 4711 fe:00:1234 0 EOF
            if kind == "FLOCK" and place.rpartition(":")[2] == inode:
                command = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                return f"process {pid} ({command.strip()[:80]})"
    return "another process"
