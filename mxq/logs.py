"""What mxq says while it works: through the logger "mxq", which by default writes "mxq: ..." to stderr.

The user has the last word, by the usual means of `logging`::

    logging.getLogger("mxq").setLevel(logging.WARNING)     # before or after ``import mxq``
    logging.basicConfig(level=logging.INFO)                # mxq's own handler is silent then

A level set on the logger holds. Where there is none, all from INFO on is said, or what the root logger's level lets
through once a handler there writes it. The default handler writes nothing that another one shows.
"""

from __future__ import annotations

import logging
import sys
from typing import Final

from mxq.text import one_line, printable

LOG: Final = logging.getLogger("mxq")
DEFAULT_LEVEL: Final = logging.INFO - 1
"""INFO, but told from an INFO that the user sets."""


class DefaultHandler(logging.Handler):
    """Writes to whatever ``sys.stderr`` is at the time, where no other handler shows the record."""

    def emit(self, record: logging.LogRecord) -> None:
        if shown_elsewhere(LOG):
            return
        try:
            sys.stderr.write(f"{printable(self.format(record))}\n")
        except Exception:
            self.handleError(record)


class _Message(logging.Formatter):
    """A message on one line; a traceback after it keeps its own."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802  (logging's name)
        return one_line(super().formatMessage(record))


def shown_elsewhere(logger: logging.Logger) -> bool:
    """Whether a handler of the user's shows what ``logger`` gets: one that is not for a file or a buffer."""
    if any(_shows(handler) for handler in logger.handlers):
        return True
    return logger.propagate and logger.parent is not None and shown_elsewhere(logger.parent)


def _shows(handler: logging.Handler) -> bool:
    if isinstance(handler, DefaultHandler | logging.NullHandler):
        return False
    shown = (sys.stderr, sys.stdout, sys.__stderr__, sys.__stdout__)
    return not hasattr(handler, "stream") or any(handler.stream is stream for stream in shown)


def _allowed(record: logging.LogRecord) -> bool:
    """The root logger's level holds where a handler there shows the record and the user set no level here."""
    root = logging.getLogger()
    if LOG.level != DEFAULT_LEVEL or not LOG.propagate or not shown_elsewhere(root):
        return True
    return record.levelno >= root.level


def install() -> None:
    """Gives the logger its default handler and level; what the user set before stays. Once is enough."""
    if any(isinstance(handler, DefaultHandler) for handler in LOG.handlers):
        return
    handler = DefaultHandler()
    handler.setFormatter(_Message("mxq: %(message)s"))
    LOG.addHandler(handler)
    LOG.addFilter(_allowed)
    if LOG.level == logging.NOTSET:
        LOG.setLevel(DEFAULT_LEVEL)
