"""Files that one process at a time has to itself; the kernel lets go of them when the process ends in any way.

A lock is on an open file (flock), so a file that is there but locked by nobody was left by a process that was killed,
and may go. Locks hold between threads too. A child made by fork gives up its copies, or it could outlive its parent and
keep a lock for ever.
"""

from __future__ import annotations

import atexit
import errno
import fcntl
import io
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, Final
from weakref import WeakSet

from mxq.errors import StorageError

_NO_LOCKS: Final = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
"""Of file systems that know none; there nobody can be kept out."""

_READ_ONLY: Final = (errno.EACCES, errno.EPERM, errno.EROFS)

_held: WeakSet[Claim] = WeakSet()


class Claim(io.FileIO):
    """An open file that goes when it is closed, or forgotten: unless it has another name by then, or another's lock.

    Ctrl-C may come between any two steps, so what removes the file belongs to the object from the moment it is made.
    """

    def __init__(self, path: Path, *how: Any) -> None:
        super().__init__(path, *how)
        _held.add(self)

    def close(self) -> None:
        try:
            if not self.closed:
                with suppress(BlockingIOError):
                    self.lock()
                    if self.is_there():
                        Path(str(self.name)).unlink()
        finally:
            super().close()

    def lock(self) -> None:
        """Locks the file, again where it is.

        Raises:
            BlockingIOError: another process has it.
            OSError: it cannot be locked.
        """
        try:
            fcntl.flock(self, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise

    def is_there(self) -> bool:
        """Whether it is still the file that has its name."""
        with suppress(FileNotFoundError):
            return os.path.samestat(os.fstat(self.fileno()), os.lstat(self.name))
        return False


def _let_go() -> None:
    for claim in list(_held):
        io.FileIO.close(claim)  # the file stays, it is the parent's


def _close() -> None:
    for claim in list(_held):
        claim.close()


os.register_at_fork(after_in_child=_let_go)
atexit.register(_close)


@contextmanager
def unbroken() -> Iterator[None]:
    """What is done inside is done to its end: Ctrl-C and SIGTERM, where Python handles them, wait until then."""
    came: list[int] = []
    handlers: dict[signal.Signals, Any] = {}
    if threading.current_thread() is threading.main_thread():  # no other is ever interrupted
        found = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
        handlers = {number: handler for number, handler in found.items() if callable(handler)}
    try:
        for number in handlers:
            signal.signal(number, lambda number, _: came.append(number))
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        for late in came:
            signal.raise_signal(late)


def beside(target: Path, kind: str) -> Path:
    """A hidden name in the folder of ``target``, the same each time: "part", "lock" or "old" of it."""
    return target.with_name(f".{target.name}.mxq-{kind}")


def claim(path: Path, patience: float = 0.0) -> Claim:
    """Makes the file ``path`` and locks it.

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
            found = _attempt(path)
        except BlockingIOError:
            if time.monotonic() >= until:
                raise
            time.sleep(0.01)
            continue
        if found is not None:
            return found


def _attempt(path: Path) -> Claim | None:
    """The file, made and locked; None where it has to be tried again, because another one was there."""
    if os.path.lexists(path):
        with suppress(FileNotFoundError), Claim(path, "r+", True, _without_links) as old:
            old.lock()  # nobody has it: it goes
        return None
    try:
        made = Claim(path, "x+")
    except FileExistsError:
        return None
    try:
        made.lock()
        if made.is_there():
            return made
    except BaseException:
        made.close()
        raise
    made.close()
    return None


def _without_links(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW)


def tidy(folder: Path) -> None:
    """Removes what processes that were killed have left in a folder."""
    for path in (*folder.glob(".*.mxq-part"), *folder.glob(".*.mxq-lock")):
        with suppress(OSError), claim(path):
            pass


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
    with ExitStack() as held:
        try:
            held.enter_context(claim(lock))
        except BlockingIOError:
            raise StorageError(f"{path} is in use by {_holder(lock)}; {remedy}") from None
        except OSError as error:
            if error.errno not in _READ_ONLY:
                raise StorageError(f"{path} cannot be used: {error.strerror or error}") from error
        yield


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
