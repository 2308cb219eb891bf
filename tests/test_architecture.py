"""Who may import whom. Reads the imports of every module of mxq, also those inside functions, without running any."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[1] / "mxq"

LEVELS: tuple[tuple[str, ...], ...] = (
    # Lowest first; a module may import what is below its own level. A dotted name is a part of a room with a level of
    # its own.
    ("registration", "text", "version"),
    ("errors", "logs"),
    ("formats", "graph", "host", "mxnet_arguments", "numerics", "registry"),
    ("compat", "operators", "rewrite", "storage", "threads"),
    ("quant",),
    ("qat.algorithms",),
    ("backends", "observers", "runtime"),
    ("artifacts", "bench", "engines"),
    ("data",),
    ("calibration", "evaluation", "images"),
    ("saturation",),
    ("weights",),
    ("config",),
    ("options", "passes", "recipe"),
    ("backends.mxnet", "recalibration", "refine"),
    ("backends.hardware", "noisy", "planned"),
    ("pipeline", "verification"),
    ("qat",),
    ("drawing",),
    ("distributed", "reporting"),
    ("tuning",),
    ("workflow",),
    ("api", "cli"),
    ("__main__", "contrib"),
    ("__init__",),
)

IMPORTERS = {
    "mxnet": "runtime",
    "gluoncv": "runtime",
    "distributed": "distributed",
    "onnx": "formats/onnx_file.py",
    "onnxruntime": "engines/onnxruntime.py",
    "openvino": "engines/openvino.py",
}
"""The room, or the one module, that may import a package."""


class Import(NamedTuple):
    """One import of module ``target`` (dotted) at ``path``:``line``."""

    path: str
    line: int
    target: str


def imports_of(path: str, source: str) -> Iterator[Import]:
    """Every import in ``source``. ``path`` is relative to the package: "passes/fuse.py".

    ``from mxq import numerics`` counts as ``mxq.numerics``; relative imports are resolved. So does
    ``importlib.import_module("onnx")``.
    """
    package = ["mxq", *Path(path).parts[:-1]]
    for node in ast.walk(ast.parse(source, path)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(path, node.lineno, alias.name)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            for alias in node.names:
                yield Import(path, node.lineno, f"{base}.{alias.name}" if base == "mxq" else base)
        elif isinstance(node, ast.Call) and ast.unparse(node.func) == "importlib.import_module":
            yield from (Import(path, node.lineno, one.value) for one in node.args if isinstance(one, ast.Constant))


def room(dotted_or_path: str) -> str:
    """The room of ``mxq.passes.fuse`` or ``passes/fuse.py``, or its part: "passes"; of the package root "__init__"."""
    parts = dotted_or_path.removesuffix(".py").replace("/", ".").split(".")
    parts = parts[1:] if parts[0] == "mxq" else parts
    part = ".".join(parts[:2])
    return part if level(part) is not None else parts[0] if parts else "__init__"


def level(name: str) -> int | None:
    return next((i for i, names in enumerate(LEVELS) if name in names), None)


def violations(path: str, source: str) -> list[str]:
    """What is wrong with the imports of one module, a sentence each."""
    here = room(path)
    if level(here) is None:
        return [f"mxq/{path}: {here!r} stands on no level; add it to LEVELS"]
    found = {one: foreign(path, one.target) or forbidden(here, one.target) for one in imports_of(path, source)}
    return [f"mxq/{one.path}:{one.line}: imports {one.target}: {reason}" for one, reason in found.items() if reason]


def foreign(path: str, target: str) -> str | None:
    """Why the module at ``path`` may not import the package of ``target``; None where it may."""
    top = target.partition(".")[0]
    allowed = IMPORTERS.get(top)
    return None if allowed is None or allowed in (path, room(path)) else f"only {allowed} may import {top}"


def forbidden(here: str, target: str) -> str | None:
    """Why ``here`` may not import ``target``; None where it may."""
    if target.partition(".")[0] != "mxq":
        return None
    there = room(target)
    mine, theirs = level(here), level(there)
    if theirs is None and not (ROOT / there).is_dir() and not (ROOT / f"{there}.py").is_file():
        there, theirs = "__init__", level("__init__")  # from mxq import quantize_net
    if there == "__init__":
        return "nothing imports from the package root; name the module"
    if theirs is None:
        return f"{there!r} stands on no level; add it to LEVELS"
    assert mine is not None
    if here == there or theirs < mine:
        return None
    side = "the same level" if theirs == mine else "a higher level"
    return f"{there!r} is on {side}; {here!r} may import {allowed(here)}"


def allowed(here: str) -> str:
    below = [name for names in LEVELS[: level(here)] for name in names]
    return ", ".join(below) or "nothing of mxq"


def modules() -> list[Path]:
    return sorted(ROOT.rglob("*.py"))


def test_imports_go_downwards() -> None:
    assert modules(), f"no modules under {ROOT}"
    found = [
        text
        for path in modules()
        for text in violations(path.relative_to(ROOT).as_posix(), path.read_text(encoding="utf-8"))
    ]
    assert not found, "\n" + "\n".join(found)


def test_packages_have_no_circles() -> None:
    """Within a room the levels say nothing, so modules are checked against each other."""
    names = {path: ".".join(("mxq", *path.relative_to(ROOT).with_suffix("").parts)) for path in modules()}
    known = set(names.values())
    graph = {
        name: {
            found.target
            for found in imports_of(path.relative_to(ROOT).as_posix(), path.read_text(encoding="utf-8"))
            if found.target in known
        }
        for path, name in names.items()
    }
    assert circle(graph) is None, f"modules import each other in a circle: {circle(graph)}"


def circle(graph: dict[str, set[str]]) -> list[str] | None:
    """The names of one circle in ``graph``, or None."""
    done: set[str] = set()

    def visit(name: str, trail: list[str]) -> list[str] | None:
        if name in trail:
            return [*trail[trail.index(name) :], name]
        if name in done:
            return None
        for other in sorted(graph.get(name, ())):
            if found := visit(other, [*trail, name]):
                return found
        done.add(name)
        return None

    return next((found for name in sorted(graph) if (found := visit(name, []))), None)


def test_rooms_stand_on_one_level_each() -> None:
    names = [name for names in LEVELS for name in names]
    assert len(names) == len(set(names))


@pytest.mark.parametrize(
    ("path", "source", "says"),
    [
        (
            "graph/ir.py",
            "x = 1\nfrom mxq.passes import fuse",
            "mxq/graph/ir.py:2: imports mxq.passes: 'passes' is on a h",
        ),
        ("graph/ir.py", "def f():\n    import mxq.storage", "mxq/graph/ir.py:2: imports mxq.storage"),
        ("passes/fuse.py", "from mxq.options import Options", "'options' is on the same level"),
        ("passes/fuse.py", "from ..cli import main", "imports mxq.cli"),
        ("passes/fuse.py", "from .. import cli", "imports mxq.cli"),
        ("cli.py", "from mxq import quantize_net", "nothing imports from the package root"),
        ("cli.py", "import mxq", "nothing imports from the package root"),
        ("verification.py", "import mxnet as mx", "only runtime may import mxnet"),
        (
            "formats/arrays.py",
            'import importlib\nimportlib.import_module("onnx")',
            "only formats/onnx_file.py may import",
        ),
        ("engines/session.py", "def f():\n    import openvino.opset1", "only engines/openvino.py may import openvino"),
        (
            "numerics.py",
            "from mxq.quant.thresholds import Range",
            "'numerics' may import registration, text, v",
        ),
        ("cellar.py", "", "'cellar' stands on no level"),
    ],
)
def test_checker_refuses(path: str, source: str, says: str) -> None:
    found = violations(path, source)
    assert len(found) == 1
    assert says in found[0]


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("passes/fuse.py", "from mxq.graph.ir import Node\nfrom mxq import numerics\nfrom .simplify import FLOAT"),
        ("runtime.py", "import mxnet as mx"),
        ("formats/onnx_file.py", 'import importlib\nimportlib.import_module("onnx")'),
        ("compat.py", "from mxq.host.machine import detect"),
        ("__init__.py", "from mxq.pipeline import quantize"),
    ],
)
def test_checker_allows(path: str, source: str) -> None:
    assert violations(path, source) == []


def test_circles_are_seen() -> None:
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c", "b"]
    assert circle({"a": {"b", "c"}, "b": {"c"}, "c": set()}) is None


ACROSS = {
    "architecture": "imports, and the names of tests",
    "benchmarks": "the scripts in benchmarks/",
    "docs": "README and docs/",
    "examples": "the scripts in examples/",
    "extending": "docs/extending.md, its code",
    "fuzz": "damaged files of every format",
    "helpers": "what tests share",
    "int8_numbers": "small networks through the whole pipeline",
    "real_nets": "trained networks on real images",
    "zoo": "networks of the model zoos",
}
"""What a test module may be called after, besides what it tests: what it is about."""


def test_a_test_is_called_after_what_it_tests() -> None:
    """``test_passes_fold_bn.py`` tests ``mxq/passes/fold_bn.py``, ``test_observers_specs.py`` a room's specs."""
    paths = [path.relative_to(ROOT).with_suffix("") for path in modules()]
    rooms = {"_".join(part.parts) for path in paths for part in (path, path.parent)} - {""}
    names = [path.stem.removeprefix("test_") for path in Path(__file__).parent.glob("test_*.py")]
    assert len(names) > 50
    assert not [name for name in names if not any(f"{name}_".startswith(f"{of}_") for of in rooms | ACROSS.keys())]
    assert not [name for name in ACROSS if not any(f"{one}_".startswith(f"{name}_") for one in names)]
