"""The application: its global options, and how a command reports an error."""

from __future__ import annotations

import atexit
import errno
import functools
import inspect
import os
import signal
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Annotated, Any, NoReturn, TypeVar, get_type_hints

import typer
from typer.core import TyperCommand, TyperGroup

from mxq.cli.console import say
from mxq.cli.options import option, with_choices
from mxq.errors import MxqError
from mxq.logs import LOG
from mxq.text import one_line, printable

FAILED, REFUSED, INTERRUPTED, TERMINATED = 1, 2, 130, 143
ORDER = (
    "quantize", "tune", "train", "calibrate", "merge-stats", "plot", "draw", "report", "inspect", "explain", "verify",
    "compare", "evaluate", "sensitivity", "sweep-bits", "choose-bits", "bench", "doctor", "export", "pack", "unpack",
)  # fmt: skip
EXIT_CODES = (
    "Exit codes: 0 all is well; 1 a check failed; 2 wrong usage or an error, named in one line; 130 Ctrl-C; "
    "143 SIGTERM."
)
_DEBUG: ContextVar[bool] = ContextVar("debug", default=False)
_KEPT = ("workdir", "stats")
"""Parameters that name where a command keeps what it has; what is there, the rooms below say."""
_Function = TypeVar("_Function", bound=Callable[..., None])


def end_interrupted(workdir: Path | None) -> NoReturn:
    """Ends a command of which Ctrl-C left what was measured by then."""
    kept = "" if workdir is None else f"; {workdir} holds what was measured, the same command goes on from there"
    LOG.warning("interrupted%s", kept)
    raise typer.Exit(INTERRUPTED)


class _Group(TyperGroup):
    """Takes ``--debug`` anywhere on the line, and lists the commands in the order of their use."""

    def list_commands(self, ctx: Any) -> list[str]:
        return sorted(super().list_commands(ctx), key=ORDER.index)

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        debug = ["--debug"] if "--debug" in args else []
        return super().parse_args(ctx, [*debug, *(a for a in args if a != "--debug")])

    def make_context(self, *args: Any, **given: Any) -> Any:
        with _usage():
            return super().make_context(*args, **given)

    def invoke(self, ctx: Any) -> Any:
        with _usage():
            return super().invoke(ctx)


class _Command(TyperCommand):
    """Its help lists what settings may be, which installed packages have a say in."""

    def format_help(self, *args: Any) -> None:
        for parameter in self.params:
            shown: Any = parameter
            shown.metavar = shown.metavar and with_choices(shown.metavar, "|")
            if getattr(shown, "help", None):
                shown.help = with_choices(shown.help, ", ")
        super().format_help(*args)


@contextmanager
def _usage() -> Iterator[None]:
    """Errors of usage, which quote the arguments, can be shown on a terminal."""
    try:
        yield
    except Exception as error:
        if hasattr(error, "format_message") and hasattr(error, "message"):  # click's, or Typer's copy of it
            error.message = printable(str(error.message))
        raise


app = typer.Typer(
    cls=_Group,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="INT8 quantization of MXNet networks: quantize, look into the result, verify it, time it.",
    epilog=EXIT_CODES,
)


def _show_version(wanted: bool) -> None:
    if wanted:
        from mxq.version import __version__

        typer.echo(f"mxq {__version__}")
        raise typer.Exit


@app.callback()
def _common(
    debug: Annotated[bool, option("--debug", help="Show the traceback of an error.")] = False,
    version: Annotated[
        bool, option("--version", help="Show the version.", is_eager=True, callback=_show_version)
    ] = False,
) -> None:
    del version
    _DEBUG.set(debug)


def command(function: _Function) -> _Function:
    """Registers a subcommand whose `MxqError`, or failure of a file or of memory, becomes one line and exit code 2.

    A parameter whose type is a dataclass stands for a group of options, one for each of its fields.
    """
    parameters, groups = _spelled_out(function)

    @functools.wraps(function)
    def run(**given: Any) -> None:
        made = {name: group(**{f.name: given.pop(f.name) for f in fields(group)}) for name, group in groups.items()}
        try:
            function(**given, **made)
            sys.stdout.flush()
        except KeyboardInterrupt:
            if not any(given.get(kept) for kept in _KEPT):
                say("mxq: interrupted; nothing was kept")
            raise
        except (MxqError, OSError, MemoryError) as error:
            if _DEBUG.get() or getattr(error, "errno", None) == errno.EPIPE:
                raise
            words = str(error) if isinstance(error, MxqError) else f"{type(error).__name__}: {error}"
            say(f"mxq: error: {' '.join(words.split())}")
            _give_up_stdout()
            raise typer.Exit(REFUSED) from None

    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {p.name: p.annotation for p in parameters}
    literal = (inspect.getdoc(function) or "").replace("[", r"\[")  # else rich takes "[onnx]" for markup
    app.command(cls=_Command, help=literal, epilog=EXIT_CODES)(run)
    return function


def _spelled_out(function: Callable[..., None]) -> tuple[list[inspect.Parameter], dict[str, Any]]:
    """The parameters of a command as Typer is to see them, and the groups among its own, by name."""
    hints, parameters, groups = get_type_hints(function, include_extras=True), list[inspect.Parameter](), {}
    for name, own in inspect.signature(function).parameters.items():
        if not is_dataclass(hints[name]):
            parameters.append(own.replace(annotation=hints[name], kind=own.KEYWORD_ONLY))
            continue
        groups[name], inner = hints[name], get_type_hints(hints[name], include_extras=True)
        parameters += [
            inspect.Parameter(f.name, own.KEYWORD_ONLY, default=f.default, annotation=inner[f.name])
            for f in fields(hints[name])
        ]
    return parameters, groups


def _give_up_stdout() -> None:
    """What cannot be written there is dropped, or Python would try again when it ends, and complain."""
    out: Any = sys.stdout
    try:
        out.flush()
    except OSError:
        if sys.__stdout__ is not None and out is sys.__stdout__:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.__stdout__.fileno())


def _open_closed() -> None:
    """Where a shell closed stdout or stderr (``>&-``), what goes there is dropped; Python has None in its place."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, Path(os.devnull).open("w", encoding="utf-8"))  # noqa: SIM115  (until the end)


def main() -> None:
    """The console entry. SIGTERM ends a command as Ctrl-C does: what was measured is kept, drafts go."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(TERMINATED))
    _open_closed()
    sys.excepthook = _show_traceback
    warnings.formatwarning = _formatted  # type: ignore[assignment]
    try:
        app(prog_name="mxq")
    except SystemExit as ended:
        if ended.code == INTERRUPTED:
            _end(INTERRUPTED)
        raise


def _end(code: int) -> None:
    """Ends the process with ``code``, as Python would not where Ctrl-C came in text that it was running (``exec``).

    MXNet's import is such text; Python then forgets that the interrupt was dealt with, and ends by the signal.
    """
    atexit._run_exitfuncs()  # noqa: SLF001  (what Python does itself at its end)
    _give_up_stdout()
    with suppress(OSError, ValueError):
        sys.stderr.flush()
    os._exit(code)


def _show_traceback(*error: Any) -> None:
    sys.stderr.write(printable("".join(traceback.format_exception(*error))))


def _formatted(message: Warning | str, category: type[Warning], *_: Any) -> str:
    return f"{one_line(f'{category.__name__}: {message}')}\n"
