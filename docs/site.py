"""Pages of the site that are made from the code: all commands with their options, and the Python functions."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from typer.main import get_command

import mxq
from mxq.cli import app
from mxq.cli.options import with_choices

MODULES = {"Training": "qat", "Integers": "data", "Threads": "threads"}
"""Heading -> the public module that is below it."""


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds both pages."""
    files.append(File.generated(config, "commands.md", content="\n".join(commands())))
    files.append(File.generated(config, "api.md", content="\n".join(functions())))
    return files


def commands() -> Iterator[str]:
    """Every command with its arguments and options, as ``mxq COMMAND --help`` has them."""
    group: Any = get_command(app)
    yield "# All commands and options\n"
    yield f"Made from the commands themselves. {group.epilog}\n"
    context = group.make_context("mxq", [], resilient_parsing=True)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        yield f"## mxq {name}\n"
        yield f"{_literal(command.help)}\n"
        yield "| option | value | |\n|---|---|---|"
        yield from (_row(parameter) for parameter in command.params)
        yield ""


def _row(parameter: Any) -> str:
    argument = parameter.param_type_name == "argument"
    names = parameter.metavar if argument else ", ".join((*parameter.opts, *parameter.secondary_opts))
    shown = "" if argument or not parameter.metavar else with_choices(parameter.metavar, " or ")
    needed = "" if not parameter.required or argument else " Needed."
    default = f" Default: {parameter.default}." if getattr(parameter, "show_default", False) is True else ""
    return f"| `{names}` | {_literal(shown)} | {_literal(with_choices(parameter.help or '', ', '))}{needed}{default} |"


def _literal(text: str) -> str:
    """Text that Markdown takes as it is, also in a table."""
    for mark in ("\\", "|", "*", "_", "<", "[", "`"):
        text = text.replace(mark, f"\\{mark}")
    return " ".join(text.replace("\\\\[", "\\[").split())


def functions() -> Iterator[str]:
    """What `mxq` has, where its documentation stands."""
    yield "# Python\n"
    yield "All of it is reached as `mxq.NAME`; signatures and texts are those of the code.\n"
    for title, names in _sorted().items():
        yield f"## {title}\n"
        yield from (f"::: {place}\n    options:\n      heading: mxq.{name}\n" for name, place in names)
    for title, module in MODULES.items():
        yield f"## {title}\n"
        yield f"::: mxq.{module}\n"


def _sorted() -> dict[str, list[tuple[str, str]]]:
    """Heading -> the names below it, each with the place where it is defined."""
    found: dict[str, list[tuple[str, str]]] = {"Functions": [], "Settings and results": [], "Errors": []}
    for name in mxq.__all__:
        value = getattr(mxq, name)
        module = getattr(value, "__module__", None)
        if module is None or name in MODULES.values():
            continue
        kind = "Functions" if not isinstance(value, type) else "Settings and results"
        found["Errors" if module == "mxq.errors" else kind].append((name, f"{module}.{value.__qualname__}"))
    return found
