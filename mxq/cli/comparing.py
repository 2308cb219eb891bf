"""``mxq compare``: two networks that were made int8; and the tables of it and of ``mxq verify --layers``."""

# ruff: noqa: PLC0415 - what a command alone needs is imported by it, so that `mxq --help` is quick
from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mxq.cli.app import command
from mxq.cli.console import print_json, progress, say, show
from mxq.cli.networks import open_data, start_mxnet
from mxq.cli.options import (
    DATA,
    BatchSize,
    Color,
    Crop,
    Json,
    Mean,
    PreprocessFile,
    Resize,
    Scale,
    ShortSide,
    Std,
    option,
    prefix_of,
    preprocess_of,
)
from mxq.errors import ConfigError

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table
    from rich.text import Text

    from mxq.images import Source
    from mxq.ir import Array, Executable, Model, Ref, Runner, Watched
    from mxq.plan import TensorRecord, WeightRecord
    from mxq.verify import Differences, Layer, Side, Verification

BATCH = 16
FLOAT_A, FLOAT_B, A_B = "float_a", "float_b", "a_b"
_TITLES = {FLOAT_A: "A against float", FLOAT_B: "B against float", A_B: "B against A"}


@command
def compare(
    a: Annotated[Path, typer.Argument(metavar="A", help="Prefix of a quantized network.", show_default=False)],
    b: Annotated[Path, typer.Argument(metavar="B", help="Prefix of another.", show_default=False)],
    data: Annotated[Path | None, option(metavar="PATH", help=f"Run them, too. {DATA}")] = None,
    reference: Annotated[
        Path | None, option("--float", metavar="PREFIX", help="The float network, to compare both with on the data.")
    ] = None,
    num_examples: Annotated[
        int | None, option(min=1, metavar="N", help="Use so many examples, spread evenly; all by default.")
    ] = None,
    batch_size: BatchSize = BATCH,
    labels: Annotated[
        Path | None, option(metavar="FILE", help="Like labels.csv (columns file and label), for a folder.")
    ] = None,
    preprocess: PreprocessFile = None,
    mean: Mean = None,
    std: Std = None,
    scale: Scale = None,
    short_side: ShortSide = None,
    crop: Crop = None,
    resize: Resize = None,
    color: Color = None,
    as_json: Json = False,
) -> None:
    """Show what differs between two INT8 networks: layers, ranges, weights, settings, and results on data."""
    prefixes = [prefix_of(a), prefix_of(b)]
    if reference is not None and data is None:
        raise ConfigError(f"--float is {str(reference)!r} without --data; allowed: both, or neither")
    pictures: dict[str, Any] = {"mean": mean, "std": std, "scale": scale, "color": color}
    pictures |= {"short_side": short_side, "crop": crop, "resize": resize}
    runner: Runner = start_mxnet()
    from mxq import runtime
    from mxq import verify as verifying

    sides = [_side(p) for p in prefixes]
    found = verifying.differences(*sides)
    runs: dict[str, Verification] = {}
    if data is not None:
        base = None if reference is None else prefix_of(reference)
        given = preprocess_of(base or prefixes[0], preprocess, **pictures)
        source = open_data(data, sides[0].model, given, batch_size, labels)
        source = source.take(num_examples or source.examples)
        say(f"comparing on {source.examples} of {source.description}")
        runs = _run(runner, prefixes, sides, None if base is None else runtime.load_model(base), source)
    if as_json:
        print_json({**found.to_json(), "runs": {name: run.to_json() for name, run in runs.items()}})
        return
    show(*_parts(sides, found, runs))


def _side(prefix: Path) -> Side:
    """The network at ``prefix``, and its record where that is beside it."""
    from mxq import runtime
    from mxq.report import record
    from mxq.verify import Side

    report = record.read(prefix) if record.path_of(prefix).is_file() else None
    return Side(str(prefix), runtime.load_model(prefix), report)


@dataclass(frozen=True)
class _Each:
    """Runs each model by a runner of its own: two may take integers that are made in two ways."""

    runners: Sequence[tuple[Model, Runner]]
    other: Runner

    def compile(self, model: Model, taps: Sequence[Ref] = ()) -> Executable:
        return self._of(model).compile(model, taps)

    def watch(self, model: Model, refs: Sequence[Ref]) -> Watched:
        return self._of(model).watch(model, refs)

    def _of(self, model: Model) -> Runner:
        return next((runner for known, runner in self.runners if known is model), self.other)


def _run(
    runner: Runner, prefixes: Sequence[Path], sides: Sequence[Side], reference: Model | None, source: Source
) -> dict[str, Verification]:
    """Each against float where that is given, and b against a."""
    from mxq import verify as verifying
    from mxq.data import feeding, input_of

    a, b = (side.model for side in sides)
    runners = [(s.model, feeding(runner, input_of(p))) for s, p in zip(sides, prefixes, strict=True)]
    each = _Each(runners, runner)
    pairs = {A_B: (a, b)} if reference is None else {FLOAT_A: (reference, a), FLOAT_B: (reference, b), A_B: (a, b)}
    found = {}
    for name, (first, second) in pairs.items():
        labels: Array | None = source.labels
        with progress(_TITLES[name], source.examples) as step:
            found[name] = verifying.verify(each, first, second, source, labels=labels, progress=step)
    return found


# ---- tables --------------------------------------------------------------------------------------------------


def layers_table(layers: Sequence[Layer]) -> RenderableType:
    """A line for each layer, as they come: all its noise, what of it is its own, and what becomes of its codes."""
    from rich.text import Text

    from mxq.report.tables import decibels, percent, short_op

    title = "layers, the noisiest first: by what they introduce themselves (by all, where that is not known)"
    table = _table(title, ("layer", "op", "as", ">SQNR", ">introduced", ">inherited", ">cosine", ">clipped", ">levels"))
    for layer in layers:
        table.add_row(
            Text(layer.name),
            Text(short_op(layer.op)),
            layer.dtype,
            decibels(layer.sqnr),
            decibels(layer.introduced),
            decibels(layer.inherited),
            f"{layer.cosine:.4f}",
            "-" if layer.clipped is None else percent(layer.clipped),
            "-" if layer.levels is None else str(layer.levels),
        )
    return table


def _parts(sides: Sequence[Side], found: Differences, runs: Mapping[str, Verification]) -> Iterator[RenderableType]:
    from mxq.report.tables import facts

    rows = [(name, side.name) for name, side in zip("AB", sides, strict=True)]
    rows += [("int8 operators", f"{found.int8[0]}, {found.int8[1]}")]
    counts = {"operators": found.decisions, "tensors": found.tensors, "weights": found.weights}
    rows += [(f"{k} that differ", f"{len(v)}; both have {found.compared[k]}") for k, v in counts.items()]
    yield facts([*rows, *(("note", note) for note in found.notes)])
    tables = (_decisions(found), _tensors(found), _weights(found), _settings(found), _runs(runs))
    yield from (table for table in tables if table.row_count)


def _decisions(found: Differences) -> Table:
    table = _table("operators", ("node", "A", "B", "because"))
    for d in found.decisions:
        why = dict.fromkeys(f"{name}: {text}" for name, text in (("A", d.reason_a), ("B", d.reason_b)) if text)
        table.add_row(*_texts(d.node, d.a or "-", d.b or "-", "; ".join(why)))
    return table


def _tensors(found: Differences) -> Table:
    """The ranges furthest apart first; tensors that one network alone has are last."""
    table = _table("int8 tensors", ("tensor", "A", "B", ">B / A"))
    ratios = {t.tensor: abs(math.log(t.ratio)) if t.ratio else -1.0 for t in found.tensors}
    for t in sorted(found.tensors, key=lambda t: -ratios[t.tensor]):
        table.add_row(*_texts(t.tensor, _coding(t.a), _coding(t.b), "-" if t.ratio is None else f"{t.ratio:.3f}"))
    return table


def _weights(found: Differences) -> Table:
    from rich.text import Text

    from mxq.report.tables import decibels

    table = _table("weights, B against A", ("layer", ">weight", ">bias", "A", "B"))
    for w in found.weights:
        table.add_row(
            Text(w.layer), decibels(w.sqnr), decibels(w.bias_sqnr), *_texts(_weight_words(w.a), _weight_words(w.b))
        )
    return table


def _settings(found: Differences) -> Table:
    table = _table("settings", ("", "A", "B"))
    for s in found.settings:
        table.add_row(*_texts(s.name, *(v if isinstance(v, str) else json.dumps(v) for v in (s.a, s.b))))
    return table


def _runs(runs: Mapping[str, Verification]) -> Table:
    from mxq.report.tables import decibels, percent

    table = _table("on the data", ("", ">same answers", ">SQNR", ">top-1"))
    for name, run in runs.items():
        same = run.agreement if run.boxes is None else run.boxes.agreement
        accuracy = "-" if run.accuracy is None else percent(run.accuracy.int8_top1)
        table.add_row(_TITLES[name], "-" if same is None else percent(same), decibels(run.sqnr), accuracy)
    return table


def _coding(record: TensorRecord | None) -> str:
    if record is None:
        return "-"
    span = "" if record.min is None or record.max is None else f" {record.min:.4g} .. {record.max:.4g}"
    return f"{record.dtype}{span}"


def _weight_words(record: WeightRecord | None) -> str:
    return "-" if record is None else f"{record.observer}, {record.clipped_channels} of {record.channels} clipped"


def _texts(*cells: str) -> tuple[Text, ...]:
    """Cells that are shown as they are, brackets too."""
    from rich.text import Text

    return tuple(map(Text, cells))


def _table(title: str, columns: Sequence[str]) -> Table:
    """As those of `mxq.report.tables`; a leading ">" aligns a column right."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, title=Text(title, "bold"), title_justify="left", pad_edge=False, show_edge=False)
    for name in columns:
        right = name.startswith(">")
        table.add_column(
            name.removeprefix(">"), justify="right" if right else "left", no_wrap=right, overflow="fold", min_width=4
        )
    return table
