"""Every network of the coverage list as ONNX, float and INT8, in each engine that is installed, beside MXNet.

    MXQ_DATA=... python benchmarks/onnx_coverage.py [NET ...] [--json FILE] [--markdown FILE]

"float" is the largest difference of an output from MXNet's, relative to the largest value of that output. "int8" is the
least SQNR of the outputs in dB; beside it that of the pair, in MXNet. Where a network ends in boxes, which change place
with the slightest noise, INT8 is that of the network up to non-maximum suppression. Weights are random (see `zoo`), and
so are the four calibration examples. Each network is made in a process of its own. What cannot be written says why.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from children import in_its_own_process
from rich.console import Console
from rich.progress import track
from rich.table import Table
from zoo import NETS, NMS, Net, build, examples, without_nms

import mxq
from mxq.engines import FILE_ENGINES, Engine
from mxq.errors import MxqError
from mxq.graph.ir import Array, Model
from mxq.numerics import sqnr_db
from mxq.runtime import MxnetRunner, load_model, to_arrays, to_symbol

CALIBRATION = 4
Results = dict[str, Any]


def measure(net: Net, folder: Path) -> Results:
    """Both files of a network, as they are in each engine."""
    model = build(net.name)
    batch = {model.inputs[0]: examples(net, net.batch)}
    found: Results = {"name": net.name}
    with refusals(found, "float"):
        path = folder / "float.onnx"
        mxq.export_onnx(triple(model), path, input_shape=net.shape, batch_size=net.batch)
        found["float"] = in_engines(path, batch, MxnetRunner().compile(model)(batch), furthest)
    raw = without_nms(model) if any(node.op in NMS for node in model.graph.operators) else model
    wanted = list(MxnetRunner().compile(raw)(batch))
    calibration = np.concatenate([examples(net, 1, seed) for seed in range(10, 10 + CALIBRATION)])
    with refusals(found, "int8"):
        path = folder / "int8.onnx"
        mxq.export_onnx(triple(raw), path, calibration, batch_size=net.batch, num_calib_examples="100%")
        found["int8"] = in_engines(path, batch, wanted, noise)
    with refusals(found, "pair"):
        pair = load_model(mxq.quantize_net(triple(raw), calibration, num_calib_examples="100%", batch_size=1))
        found["pair"] = noise(wanted, list(MxnetRunner().compile(pair)(batch)))
    return found


def triple(model: Model) -> tuple[Any, Any, Any]:
    """As mxq's functions take it."""
    return to_symbol(model.graph), to_arrays(model.args), to_arrays(model.auxs)


@contextmanager
def refusals(found: Results, form: str) -> Iterator[None]:
    """What mxq cannot do is a result."""
    try:
        yield
    except MxqError as error:
        found[form] = f"{error}"


def in_engines(
    path: Path, batch: Mapping[str, Array], wanted: Sequence[Array], measured: Any
) -> dict[str, float | str]:
    """Engine -> how far its outputs are, or why it does not run the file."""
    found: dict[str, float | str] = {}
    for engine in FILE_ENGINES:
        try:
            found[engine.name] = measured(wanted, outputs(engine, path, batch))
        except MxqError as error:
            found[engine.name] = f"{error}"
    return found


def outputs(engine: Engine, path: Path, batch: Mapping[str, Array]) -> list[Array]:
    """Of one batch."""
    engine.check()
    return engine.open(path, 1)(batch)


def furthest(wanted: Sequence[Array], found: Sequence[Array]) -> float:
    """The largest difference of an output, relative to its largest value."""
    pairs = zip(wanted, found, strict=True)
    return max(float(np.abs(a - b).max() / max(np.abs(a).max(), 1e-30)) for a, b in pairs)


def noise(wanted: Sequence[Array], found: Sequence[Array]) -> float:
    """The least SQNR of the outputs, about their means."""
    return min(sqnr_db(a - a.mean(), b - a.mean()) for a, b in zip(wanted, found, strict=True))


COLUMNS = ("network", *(f"{form} {engine.name}" for form in ("float", "int8") for engine in FILE_ENGINES), "pair")


def row(found: Results) -> tuple[str, ...]:
    """One line of the table."""
    cells = [
        cell(form if isinstance(form := found.get(kind, "-"), str) else form[engine.name], style)
        for kind, style in (("float", ".0e"), ("int8", ".1f"))
        for engine in FILE_ENGINES
    ]
    return (found["name"], *cells, found.get("error") or cell(found.get("pair", "-"), ".1f"))


def cell(value: float | str, style: str) -> str:
    """A figure, or that there is none."""
    return format(value, style) if isinstance(value, float) else "refused" if len(value) > 1 else value


def reasons(results: Sequence[Results]) -> list[str]:
    """Each refusal, whole."""
    lines = []
    for found in results:
        for kind in ("float", "int8", "pair"):
            form = found.get(kind)
            said = form.items() if isinstance(form, dict) else [("", form)]
            lines += [f"{found['name']}, {kind} {engine}: {text}" for engine, text in said if isinstance(text, str)]
    return lines


def markdown(results: Sequence[Results]) -> str:
    """The table, and the refusals under it."""
    rows = [COLUMNS, ("---",) * len(COLUMNS), *map(row, results)]
    return "\n".join([*(f"| {' | '.join(one)} |" for one in rows), "", *(f"- {line}" for line in reasons(results)), ""])


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("nets", nargs="*", default=[*NETS])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--markdown", type=Path)
    parser.add_argument("--child", choices=NETS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        with tempfile.TemporaryDirectory(prefix="mxq-onnx-") as folder:
            sys.stdout.write("\n" + json.dumps(measure(NETS[args.child], Path(folder))) + "\n")
        return
    results, console = [], Console(width=150)
    for name in track(args.nets, "networks", console=Console(stderr=True)):
        results.append(in_its_own_process(__file__, name))
        console.print(" | ".join(row(results[-1])), markup=False, highlight=False)
        if args.json:
            args.json.write_text(json.dumps(results, indent=1))
        if args.markdown:
            args.markdown.write_text(markdown(results))
    table = Table(*COLUMNS)
    for found in results:
        table.add_row(*row(found))
    console.print(table)
    for line in reasons(results):
        console.print(line, markup=False, highlight=False)


if __name__ == "__main__":
    main()
