"""Text on its way to a terminal, which would obey the control characters in it.

Names come from files of strangers: of nodes, tensors and files, in records, in what MXNet says of them. Files and JSON
documents keep them as they are.
"""

from __future__ import annotations

from typing import Final

_LAYOUT: Final = "\n\t"


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


def _written_out(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")
