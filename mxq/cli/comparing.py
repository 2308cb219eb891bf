"""``mxq compare``: two networks that were made int8."""

# ruff: noqa: PLC0415 - what a command alone needs is imported by it, so that `mxq --help` is quick
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mxq.batches import BATCH
from mxq.cli.app import command
from mxq.cli.console import print_json, progress, show
from mxq.cli.networks import start_mxnet
from mxq.cli.options import (
    DATA,
    BatchSize,
    Json,
    Labels,
    NumExamples,
    Pictures,
    option,
    prefix_of,
)
from mxq.errors import ConfigError

if TYPE_CHECKING:
    from mxq.images import Source
    from mxq.ir import Array, Executable, Model, Ref, Runner, Watched
    from mxq.verification import Side, Verification

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
    num_examples: NumExamples = None,
    batch_size: BatchSize = BATCH,
    labels: Labels = None,
    *,
    pictures: Pictures,
    as_json: Json = False,
) -> None:
    """Show what differs between two INT8 networks: layers, ranges, weights, settings, and results on data."""
    prefixes = [prefix_of(a), prefix_of(b)]
    if reference is not None and data is None:
        raise ConfigError(f"--float is {str(reference)!r} without --data; allowed: both, or neither")
    runner: Runner = start_mxnet()
    from mxq import verification, workflow
    from mxq.report import comparison

    sides = [_side(p) for p in prefixes]
    found = verification.differences(*sides)
    runs: dict[str, Verification] = {}
    if data is not None:
        base = None if reference is None else prefix_of(reference)
        preparation = pictures.preparation(base or prefixes[0])
        measured = workflow.Measured(data, labels, examples=num_examples)
        source = workflow.compared_on(measured, sides[0].model, preparation, batch_size)
        reference_model = None if base is None else workflow.pair_of(base, prefixes[0]).float
        if base is not None and reference_model is not None:
            workflow.check_origin(reference_model, base, prefixes[1])
        runs = _run(runner, prefixes, sides, reference_model, source)
    if as_json:
        print_json({**found.to_json(), "runs": {name: run.to_json() for name, run in runs.items()}})
        return
    show(*comparison.difference(sides, found, {_TITLES[name]: run for name, run in runs.items()}))


def _side(prefix: Path) -> Side:
    """The network at ``prefix``, and its record where that is beside it."""
    from mxq import runtime
    from mxq.report import record
    from mxq.verification import Side

    report = record.read(prefix) if record.recorded(prefix) else None
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
    from mxq import verification
    from mxq.data import feeding, input_of

    a, b = (side.model for side in sides)
    runners = [(s.model, feeding(runner, input_of(p))) for s, p in zip(sides, prefixes, strict=True)]
    each = _Each(runners, runner)
    pairs = {A_B: (a, b)} if reference is None else {FLOAT_A: (reference, a), FLOAT_B: (reference, b), A_B: (a, b)}
    found = {}
    for name, (first, second) in pairs.items():
        labels: Array | None = source.labels
        with progress(_TITLES[name], source.examples) as step:
            found[name] = verification.verify(each, first, second, source, labels=labels, progress=step)
    return found
