"""A network and what was made of it, or two that were: which is which, the data to compare them on, the result."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from itertools import tee
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from mxq import runtime, verification
from mxq.data.examples import Source
from mxq.data.feeding import BATCH, LAYER_BATCH
from mxq.data.integers import feeding
from mxq.data.preparation import Preparation
from mxq.errors import ConfigError
from mxq.evaluation import labelled
from mxq.graph.ir import Array, Executable, Model, Ref, Runner, Watched
from mxq.logs import LOG
from mxq.passes.simplify import FLOAT
from mxq.pipeline import fingerprint
from mxq.verification import A_B, FLOAT_A, FLOAT_B, TITLES, Comparison, Side, Verification
from mxq.workflow.measuring import input_of
from mxq.workflow.opening import Measured, open_labelled, preparation_of, report_of

Progress: TypeAlias = Callable[[str, int], AbstractContextManager[Callable[[int], None]]]
"""From what is done and how many examples there are (0: not known) to what is told how many are done."""


def silent(_what: str, _total: int) -> AbstractContextManager[Callable[[int], None]]:
    """Shows nothing."""
    return nullcontext(lambda _: None)


def verify(
    float_net: runtime.Net,
    int8_net: runtime.Net,
    measured: Measured,
    preparation: Preparation | None = None,
    *,
    layers: bool = False,
    batch_size: int | None = None,
    logger: logging.Logger = LOG,
    progress: Progress = silent,
) -> Verification:
    """Runs both networks over the same data and compares what they give.

    Args:
        float_net, int8_net: see `pair_of`. One that takes integers is fed those of the other's inputs.
        measured: the data, with labels where accuracy is asked for.
        preparation: how pictures are read; where None, as is known of the float network.
        layers: compare every layer, too.
        batch_size: `BATCH` where None, with ``layers`` `LAYER_BATCH`.
        logger: receives what is said meanwhile.
        progress: shows how far it is.
    """
    pair = pair_of(float_net, int8_net, logger=logger)
    size = (LAYER_BATCH if layers else BATCH) if batch_size is None else batch_size
    examples = examples_of(measured, pair.float, preparation or preparation_of(float_net), size, logger)
    return run(pair, int8_net, examples, layers=layers, progress=progress)


def run(pair: Pair, int8_net: runtime.Net, examples: Examples, *, layers: bool, progress: Progress) -> Verification:
    """Runs ``pair``, whose second is ``int8_net``, over ``examples``; it is fed integers where it takes these."""
    runner = feeding(runtime.MxnetRunner(), input_of(int8_net))
    with progress("comparing", examples.count) as step:
        return examples.verify(runner, pair.float, pair.int8, step, layers=layers)


def compare(
    a: runtime.Net,
    b: runtime.Net,
    measured: Measured | None = None,
    float_net: runtime.Net = None,
    preparation: Preparation | None = None,
    *,
    batch_size: int = BATCH,
    logger: logging.Logger = LOG,
    progress: Progress = silent,
) -> Comparison:
    """What differs between two quantized networks.

    Args:
        a, b: the two.
        measured: data to run them on, too.
        float_net: the float network, to hold each against on the data.
        preparation: how pictures are read; where None, as is known of the float network, or of ``a``.
        batch_size, logger, progress: as of `verify`.
    """
    sides = (_side(a), _side(b))
    found = Comparison(sides, verification.differences(*sides))
    if measured is None:
        return found
    first, second = (side.model for side in sides)
    known = a if float_net is None else float_net
    examples = examples_of(measured, first, preparation or preparation_of(known), batch_size, logger).held()
    pairs = {A_B: (first, second)}
    if float_net is not None:
        reference = pair_of(float_net, a, logger=logger).float
        check_origin(reference, float_net, b, logger)
        pairs = {FLOAT_A: (reference, first), FLOAT_B: (reference, second), **pairs}
    plain = runtime.MxnetRunner()
    runners = [(side.model, feeding(plain, input_of(net))) for side, net in zip(sides, (a, b), strict=True)]
    runs = {}
    for name, models in pairs.items():
        with progress(TITLES[name], examples.count) as step:
            runs[name] = examples.verify(_Each(runners, plain), *models, step)
    return replace(found, runs=runs)


# ---- networks ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Pair:
    """A float network, and the one that is compared with it."""

    float: Model
    int8: Model


def pair_of(
    float_net: runtime.Net, int8_net: runtime.Net, *, epoch: int | None = None, logger: logging.Logger = LOG
) -> Pair:
    """Reads both; warns where the second is float too, or was made from another network.

    Args:
        float_net, int8_net: the two, in this order; see `mxq.runtime.load_model`.
        epoch: which parameters of the first.
        logger: receives the warning.

    Raises:
        ConfigError: the first is quantized.
        FormatError: a file is missing or damaged.
    """
    found = Pair(runtime.load_model(float_net, epoch), runtime.load_model(int8_net))
    float_first, float_second = (FLOAT.check(model) is None for model in (found.float, found.int8))
    first, second = called(float_net), called(int8_net)
    if not float_first:
        remedy = f"give {second} {first}" if float_second else "mxq compare holds two of them together"
        raise ConfigError(
            f"{first}, given as the float network, is quantized, and {second} is "
            f"{'float' if float_second else 'quantized, too'}; {remedy}"
        )
    check_origin(found.float, float_net, int8_net, logger)
    if float_second and not _same(float_net, int8_net) and report_of(int8_net) is None:
        logger.warning("%s, given as the int8 network, is float", second)
    return found


def check_origin(model: Model, net: runtime.Net, int8_net: runtime.Net, logger: logging.Logger = LOG) -> None:
    """Warns where the record of the quantized network says that it was made from other parameters than ``model``'s."""
    report = report_of(int8_net)
    made_from = None if report is None else report.source.get("params_sha256")
    if made_from is not None and made_from != fingerprint(model)["params_sha256"]:
        logger.warning(
            "%s was not made from %s: its record names a float network of other parameters",
            called(int8_net),
            called(net),
        )


def _side(net: runtime.Net) -> Side:
    name = str(net) if isinstance(net, str | Path) else type(net).__name__
    return Side(name, runtime.load_model(net), report_of(net))


def called(net: runtime.Net) -> str:
    """A network in a message."""
    return str(net) if isinstance(net, str | Path) else f"the {type(net).__name__}"


def short_name(net: runtime.Net) -> str:
    """A network in a title."""
    return Path(net).name if isinstance(net, str | Path) else type(net).__name__


def _same(first: runtime.Net, second: runtime.Net) -> bool:
    if isinstance(first, str | Path) and isinstance(second, str | Path):
        return Path(first).resolve() == Path(second).resolve()
    return first is second


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


# ---- data ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Examples:
    """What networks are compared on: a `Source`, or data in another form of `mxq.data`, with labels or without."""

    data: Any
    labels: Any
    inputs: tuple[str, ...]
    batch_size: int

    @property
    def count(self) -> int:
        """How many there are; 0 where that is not known."""
        return self.data.examples if isinstance(self.data, Source) else 0

    def held(self) -> Examples:
        """The same, to be read again and again: what can be read only once is held."""
        once = isinstance(self.data, Iterator) and not hasattr(self.data, "reset")  # MXNet's DataIter can be
        return replace(self, data=list(self.data)) if once else self

    def first(self, most: int) -> Examples:
        """At most so many: of a `Source` spread evenly, else the first batches that have them."""
        if isinstance(self.data, Source):
            return self if self.data.examples <= most else replace(self, data=self.data.take(most))
        batches, count = list[Any](), 0
        for feed, labels in labelled(self.data, self.inputs, self.labels, self.batch_size):
            batches.append(dict(feed) if labels is None else {**feed, "label": labels})
            count += len(next(iter(feed.values())))
            if count >= most:
                break
        return replace(self, data=batches, labels=None)

    def verify(
        self, runner: Runner, first: Model, second: Model, step: Callable[[int], None], *, layers: bool = False
    ) -> Verification:
        feeds, labels = self.read()
        return verification.verify(runner, first, second, feeds, layers, labels=labels, progress=step)

    def read(self) -> tuple[Iterable[Mapping[str, Array]], Any]:
        """The batches, and the labels: of all examples, or of each batch in turn."""
        if isinstance(self.data, Source):
            return self.data, self.data.labels if self.labels is None else self.labels
        feeds, labels = tee(labelled(self.data, self.inputs, self.labels, self.batch_size))
        return (feed for feed, _ in feeds), (_classes(each) for _, each in labels)


def _classes(labels: Any) -> Array | None:
    """Labels (n,) or (n, 1), numbers of any type, as (n,) int64; None where they are something else, such as boxes."""
    given = None if labels is None else np.asarray(labels)
    if given is None or given.ndim not in (1, 2) or given[0].size != 1 or given.dtype.kind not in "fiub":
        return None
    return given.reshape(-1).astype(np.int64)


def examples_of(
    measured: Measured, model: Model, preparation: Preparation, batch_size: int, logger: logging.Logger
) -> Examples:
    """The data of ``measured``, opened for the inputs of ``model``."""
    if measured.examples is not None and not isinstance(measured.data, str | Path):
        kind = type(measured.data).__name__
        raise ConfigError(f"num_examples is {measured.examples} beside a {kind}; allowed: beside a path")
    data, labels = open_labelled(measured, model, preparation, batch_size, logger)
    if isinstance(data, Source):
        logger.info("comparing on %d of %s", data.examples, data.description)
    return Examples(data, labels, tuple(model.arguments), batch_size)
