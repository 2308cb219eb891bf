"""Text on its way to a terminal, which would obey the control characters in it.

Names come from files of strangers: of nodes, tensors and files, in records, in what MXNet says of them. Files and JSON
documents keep them as they are. What is `Shown` prints, as ``str``, what the command line shows of it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

_LAYOUT: Final = "\n\t"


class Shown:
    """A result whose ``str`` is what the command line prints of it; its ``repr`` stays that of a dataclass.

    Results stand below the tables that are made of them (`mxq.reporting.plain`), so the package's root, which may
    import anything, says who makes those: `show_by`.
    """

    __slots__ = ()

    def __str__(self) -> str:
        return _shown_by(self)

    def _repr_html_(self) -> str:
        """What a notebook shows."""
        return _html_by(self)

    def _repr_mimebundle_(self, include: object = None, exclude: object = None) -> dict[str, str]:
        """The same for IPython, which else would show the ``repr`` of a dataclass where it shows text."""
        del include, exclude
        return {"text/plain": str(self), "text/html": self._repr_html_()}


_shown_by: Callable[[object], str] = repr
_html_by: Callable[[object], str] = repr


def show_by(function: Callable[[object], str], html: Callable[[object], str]) -> None:
    """Lets ``function`` make the ``str`` of all that is `Shown`, and ``html`` what notebooks show of it."""
    global _shown_by, _html_by
    _shown_by, _html_by = function, html


def printable(text: str, layout: str = _LAYOUT) -> str:
    r"""``text`` with whatever is no letter, mark or sign written out: an escape character becomes "\x1b".

    That takes the controls of both sets, what turns the direction of writing, and the halves of characters that stand
    for undecodable bytes in names of files.

    Args:
        text: from anywhere.
        layout: characters that stay beside those: by default ends of lines and tabs.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in layout else _written_out(c) for c in text)


def one_line(text: str) -> str:
    """As `printable`, and ends of lines are written out too, so that a name cannot look like another message."""
    return printable(text, "\t")


def megabytes(size: int) -> str:
    """A number of bytes in words."""
    return f"{size / 1e6:.1f} MB" if size >= 1e5 else f"{size / 1e3:.1f} kB"


def _written_out(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")
