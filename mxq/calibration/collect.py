"""Calibration proper: runs a model over batches and folds an observer over each tensor of interest.

Tensors are looked at one by one while the network makes them, so memory is that of a plain run and 64 KiB a tensor,
whatever the number of batches. A `Checkpoint` keeps the statistics on disk; started again, `collect` goes on after
the last batch that is in them.
"""

from __future__ import annotations

import hashlib
import operator
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from tqdm import tqdm

from mxq.calibration.statistics import DataSegment, Statistics
from mxq.data.feed import examples_in
from mxq.data.feeding import Feeds
from mxq.errors import CalibrationError, DataError, StorageError
from mxq.graph.ir import Array, Model, Ref, Runner, Watched
from mxq.observers import Observer
from mxq.storage import locks
from mxq.storage.writing import regular

EVERY_BATCHES: Final = 4
EVERY_SECONDS: Final = 1.0
"""A checkpoint is written after so many batches, unless the last one is younger than that."""


def alone(path: Path) -> AbstractContextManager[None]:
    """While inside, no other run keeps statistics in the file ``path``.

    Raises:
        StorageError: another one does.
    """
    return locks.alone(path, "wait for its end, or give another file, then merge")


@dataclass
class Checkpoint:
    """A file of statistics, written while they grow.

    Attributes:
        path: the file.
        network: the fingerprint of the network, written into the file and compared with what it holds.
        data: what the data is called; one name for what is the same each time.
        clock: seconds.
    """

    path: Path
    network: Mapping[str, object] = field(default_factory=dict)
    data: str = ""
    clock: Callable[[], float] = time.monotonic
    _written: float = field(default=0.0, init=False)

    def open(self, kinds: Mapping[str, str]) -> Statistics | None:
        """What the file holds already; None where there is no file. Finds out now whether it can be written.

        Args:
            kinds: tensor -> the statistic to collect.

        Raises:
            CalibrationError: it is of another network, other tensors or other data.
            FormatError: it is no file of statistics, or cannot be written.
        """
        self._written = self.clock()
        locks.tidy(self.path.parent)
        target = regular(self.path)
        if not target.exists():
            Statistics(network=self.network).save(target)
            target.unlink()
            return None
        found = Statistics.load(self.path)
        if not found.stretches:  # of a run killed while it tried whether it could write
            return None
        try:
            found.check(self.network, kinds)
        except CalibrationError as error:
            raise CalibrationError(f"{self.path}: {error}") from None
        if len(found.stretches) != 1 or found.stretches[0].name != self.data:
            held = ", ".join(repr(s.name) for s in found.stretches)
            raise CalibrationError(
                f"{self.path} holds statistics of {held}, this run is on {self.data!r}; give another file, then merge"
            )
        return found

    def due(self, batches: int) -> bool:
        """Whether to write after so many batches."""
        return batches % EVERY_BATCHES == 0 and self.clock() - self._written >= EVERY_SECONDS

    def save(self, statistics: Statistics) -> None:
        """Writes them."""
        statistics.save(self.path)
        self._written = self.clock()


def collect(
    runner: Runner,
    model: Model,
    feeds: Iterable[Mapping[str, Array]],
    observers: Mapping[Ref, Observer[Any]],
    *,
    progress: bool = True,
    checkpoint: Checkpoint | None = None,
) -> Statistics:
    """Runs ``model`` over all ``feeds`` and shows each tensor to its observer.

    Args:
        runner: what runs the model.
        model: the graph whose tensors are observed.
        feeds: batches ``{input name: (n, ...) array}``, see `mxq.data.feeding.feeds`.
        observers: tensor -> its observer. An input of the model is taken from the feeds.
        progress: whether to show a bar, which stays silent where stderr is no terminal.
        checkpoint: where to keep the statistics meanwhile. Ended in any way, they are on disk up to the last batch or
            nearly; called again with the same, it continues there and ends with the same result.

    Returns:
        The states after all batches.

    Raises:
        DataError: no batches, or a tensor holds NaN or Inf; the message names tensor and batch.
        CalibrationError: an observed tensor is a parameter; the checkpoint is of something else.
        GraphError: the graph has no such node.
        StorageError: another run uses the checkpoint's file, or it cannot be written.
    """
    with alone(checkpoint.path) if checkpoint else nullcontext():
        return _collected(runner, model, feeds, observers, progress, checkpoint)


def _collected(
    runner: Runner,
    model: Model,
    feeds: Iterable[Mapping[str, Array]],
    observers: Mapping[Ref, Observer[Any]],
    progress: bool,
    checkpoint: Checkpoint | None,
) -> Statistics:
    start = checkpoint.open({str(ref): o.statistic for ref, o in observers.items()}) if checkpoint else None
    if start is not None and start.complete:
        for feed in feeds:
            _check_first(start.stretches[0], feed)
            break
        return start
    fold = _Fold.of(runner, model, observers, start, checkpoint)
    total = operator.length_hint(feeds) or None
    bar = tqdm(total=total, desc="calibrate", unit="batch", leave=False, disable=None if progress else True)
    try:
        with bar:
            bar.update(fold.stretch.batches)
            for feed in fold.remaining(feeds):
                fold.add(feed)
                bar.update()
                if checkpoint is not None and checkpoint.due(fold.stretch.batches):
                    checkpoint.save(fold.statistics)
    except BaseException:
        if checkpoint is not None and fold.stretch.batches:
            with suppress(StorageError):  # what came first is what is told
                checkpoint.save(fold.statistics)
        raise
    if fold.stretch.batches == 0:
        raise DataError("calibration data holds no batch; at least one is needed")
    fold.stretch = replace(fold.stretch, complete=True)
    if checkpoint is not None:
        checkpoint.save(fold.statistics)
    return fold.statistics


@dataclass
class _Fold:
    """The states so far. Those of a batch count once all of it has been seen."""

    observers: Mapping[Ref, Observer[Any]]
    inputs: tuple[Ref, ...]
    watched: Watched
    states: dict[Ref, Any]
    stretch: DataSegment
    network: Mapping[str, object]

    @staticmethod
    def of(
        runner: Runner,
        model: Model,
        observers: Mapping[Ref, Observer[Any]],
        start: Statistics | None,
        checkpoint: Checkpoint | None,
    ) -> _Fold:
        for ref in observers:
            if model.graph[ref.name].is_variable and ref.name not in model.inputs:
                raise CalibrationError(f"tensor {str(ref)!r} is a parameter; allowed: inputs and operator outputs")
        inputs = tuple(ref for ref in observers if ref.name in model.inputs)
        made = [ref for ref in observers if ref.name not in model.inputs]
        states = {ref: start.states[str(ref)] if start else o.empty() for ref, o in observers.items()}
        named = DataSegment(name=checkpoint.data) if checkpoint else DataSegment()
        return _Fold(
            observers=observers,
            inputs=inputs,
            watched=runner.watch(model, made),  # also where inputs alone are observed: what cannot run is found so
            states=states,
            stretch=start.stretches[0] if start else named,
            network=checkpoint.network if checkpoint else {},
        )

    @property
    def statistics(self) -> Statistics:
        return Statistics({str(ref): state for ref, state in self.states.items()}, (self.stretch,), self.network)

    def remaining(self, feeds: Iterable[Mapping[str, Array]]) -> Iterator[Mapping[str, Array]]:
        """The batches that are not in the states yet.

        Raises:
            CalibrationError: the first batch is not the one that the statistics began with.
        """
        done, examples = self.stretch.batches, self.stretch.examples
        if done and isinstance(feeds, Feeds):
            feeds = feeds.resumed(done, examples)
        elif done:
            feeds = (feed for number, feed in enumerate(feeds) if number == 0 or number >= done)
        for number, feed in enumerate(feeds):
            if number == 0:
                if done:
                    _check_first(self.stretch, feed)
                    continue
                self.stretch = replace(self.stretch, first=checksum(feed))
            yield feed

    def add(self, feed: Mapping[str, Array]) -> None:
        """One more batch."""
        states = dict(self.states)

        def visit(ref: Ref, value: Array) -> None:
            try:
                states[ref] = self.observers[ref].update(states[ref], value)
            except DataError as error:
                where = f"tensor {str(ref)!r} in batch {self.stretch.batches + 1}"
                raise DataError(f"{where} of the calibration data: {error}") from error

        for ref in self.inputs:
            visit(ref, feed[ref.name])
        self.watched(feed, visit)
        examples = self.stretch.examples + examples_in(feed)
        stretch = replace(self.stretch, examples=examples, batches=self.stretch.batches + 1)
        self.states, self.stretch = states, stretch  # both or, where an interrupt comes, neither


def _check_first(stretch: DataSegment, feed: Mapping[str, Array]) -> None:
    """Refuses data that does not begin as the one seen before."""
    first = checksum(feed)
    if first != stretch.first:
        raise CalibrationError(
            f"the first batch of {stretch.name!r} has changed since the statistics were begun (sha256 "
            f"{stretch.first[:12]}, now {first[:12]}): other data, order, batch size or preparation"
        )


def checksum(feed: Mapping[str, Array]) -> str:
    """The sha256 of a batch."""
    digest = hashlib.sha256()
    for name, array in sorted(feed.items()):
        digest.update(f"{name}{array.dtype}{array.shape}".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()
