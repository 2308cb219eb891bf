"""Results as the tables that a command shows of them, and those as plain text: the ``str`` of a result."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import singledispatch
from typing import Any, Final

from rich.console import Console, ConsoleOptions, RenderableType, RenderResult

from mxq.artifacts.record import Explanation
from mxq.bench.runtimes import BestRuntime
from mxq.evaluation import Evaluation
from mxq.qat.result import Trained
from mxq.quant.plan import Report
from mxq.quant.thresholds import Thresholds
from mxq.reporting import comparing, files, inspection, racing, tables
from mxq.reporting.files import FileInspection
from mxq.reporting.inspection import Inspection
from mxq.text import printable
from mxq.verification import Comparison, FileVerification, Verification

WIDTH: Final = 100
"""Of plain text, in characters."""
_PRE: Final = '<pre style="line-height:1.25;overflow-x:auto;font-family:Menlo,DejaVu Sans Mono,monospace">{code}</pre>'


@dataclass(frozen=True)
class Printable:
    """A renderable of rich whose texts are `printable`; the codes for its colours come later."""

    part: RenderableType

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        for segment in console.render(self.part, options):
            yield segment if segment.control else segment._replace(text=printable(segment.text))


def show(console: Console, *shown: RenderableType) -> None:
    """Prints tables and texts, with an empty line between."""
    for i, part in enumerate(shown):
        if i:
            console.print()
        console.print(Printable(part), crop=False)  # what is written out makes a line longer than it was laid out


def plain(found: object) -> str:
    """The tables of a result in lines of at most `WIDTH` characters, without colours or spaces at their ends."""
    console = _console(color_system=None)
    with console.capture() as captured:
        show(console, *parts(found))
    return "\n".join(line.rstrip() for line in captured.get().rstrip().splitlines())


def html(found: object) -> str:
    """The tables of a result as one element for a notebook, in colours."""
    console = _console(record=True, color_system="truecolor")
    show(console, *parts(found))
    return console.export_html(code_format=_PRE, inline_styles=True)


def _console(**more: Any) -> Console:
    return Console(
        file=io.StringIO(),
        width=WIDTH,
        force_terminal=False,
        force_jupyter=False,
        highlight=False,
        markup=False,
        emoji=False,
        **more,
    )


@singledispatch
def parts(found: object) -> Sequence[RenderableType]:
    """The tables of a result, in order; what stands above this module registers its own kinds."""
    raise TypeError(f"nothing is known of how to show a {type(found).__name__}")


@parts.register(Report)
def _(found: Report) -> Sequence[RenderableType]:
    return inspection.parts(Inspection("", found, written=bool(found.summary)))


@parts.register(Inspection)
def _(found: Inspection) -> Sequence[RenderableType]:
    return inspection.parts(found)


@parts.register(FileInspection)
def _(found: FileInspection) -> Sequence[RenderableType]:
    return files.parts(found)


@parts.register(Explanation)
def _(found: Explanation) -> Sequence[RenderableType]:
    return [tables.explanation(found)]


@parts.register(Thresholds)
def _(found: Thresholds) -> Sequence[RenderableType]:
    return [tables.calibration(found)]


@parts.register(Verification)
def _(found: Verification) -> Sequence[RenderableType]:
    each = [tables.layers(tables.WORST_FIRST, found.worst_first)] if found.layers else []
    return [tables.verification(replace(found, layers=())), *each]


@parts.register(FileVerification)
def _(found: FileVerification) -> Sequence[RenderableType]:
    return files.compared(found)


@parts.register(Comparison)
def _(found: Comparison) -> Sequence[RenderableType]:
    return [*comparing.parts(found)]


@parts.register(BestRuntime)
def _(found: BestRuntime) -> Sequence[RenderableType]:
    return racing.parts(found)


@parts.register(Evaluation)
def _(found: Evaluation) -> Sequence[RenderableType]:
    rows = [(name, tables.percent(value)) for name, value in found.metrics.items()]
    return [tables.facts([("examples", f"{found.examples:,}"), *rows])]


@parts.register(Trained)
def _(found: Trained) -> Sequence[RenderableType]:
    return [tables.trained(found)]
