"""Results to stdout, messages and progress to stderr. What goes through here cannot control a terminal (`mxq.text`)."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import typer

from mxq.text import one_line, printable

if TYPE_CHECKING:
    from rich.console import RenderableType

    from mxq.text import Shown


PIPED = 200
"""Width where what is shown goes to no terminal: lines there are for programs, which want them whole."""


def show(*parts: RenderableType) -> None:
    """Tables and texts, with an empty line between; brackets in a text are no markup."""
    from rich.console import Console

    from mxq.reporting import plain

    console = Console(highlight=False, markup=False, emoji=False)
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = PIPED
    plain.show(console, *parts)


def show_result(found: Shown) -> None:
    """What ``str`` says of a result, in the terminal's width and colours."""
    from mxq.reporting import plain

    show(*plain.parts(found))


def tell(text: str) -> None:
    """Text to stdout, as it is."""
    typer.echo(printable(text))


def print_json(data: Any) -> None:
    typer.echo(json.dumps(data, indent=1, allow_nan=False))


def say(message: str) -> None:
    """A message of one line to stderr."""
    typer.echo(one_line(message), err=True)


@contextmanager
def progress(what: str, total: int) -> Iterator[Callable[[int], None]]:
    """A bar on stderr, where that is a terminal; yields what is to be told how much is done."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(one_line(what), total=total)

        def step(done: int) -> None:
            bar.update(task, completed=done)

        yield step
