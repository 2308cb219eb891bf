"""Ctrl-C at a moment when Python can raise it: C code that calls Python back loses what is raised there."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def held() -> Iterator[None]:
    """Within, Ctrl-C waits for the end; then it is raised as KeyboardInterrupt.

    Where another handler than Python's own is installed, or in another thread than the first, it is left alone.
    """
    own = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if not own or threading.current_thread() is not threading.main_thread():
        yield
        return
    asked = list[int]()

    def later(number: int, _: FrameType | None) -> None:
        asked.append(number)

    signal.signal(signal.SIGINT, later)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        if asked:
            raise KeyboardInterrupt
