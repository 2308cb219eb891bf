"""Calibration over partitions: the statistics of each, merged; kept in a file meanwhile."""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import closing, nullcontext, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from tqdm import tqdm

from mxq import observers as known
from mxq import pipeline
from mxq.calibration.collect import alone
from mxq.calibration.statistics import DataSegment, Statistics
from mxq.distributed.jobs import Run
from mxq.distributed.partitions import Partitions
from mxq.distributed.tasks import Collecting, Job, Seen, merged
from mxq.errors import CalibrationError, ConfigError, StorageError
from mxq.graph.ir import Ref, Runner
from mxq.observers import Observer
from mxq.pipeline import Calibrated, Prepared
from mxq.storage.locks import tidy
from mxq.storage.writing import regular

if TYPE_CHECKING:
    from distributed import Client

EVERY_SECONDS: Final = 5.0
"""How old a file of statistics may become while partitions arrive; more where writing it takes over `SHARE` of that."""
SHARE: Final = 0.05


def calibrate(
    prepared: Prepared,
    data: object,
    runner: Runner,
    client: Client | None = None,
    *,
    progress: bool = True,
    stats: Path | None = None,
) -> Calibrated:
    """`mxq.pipeline.calibrate` over partitions, all of them.

    Args:
        prepared: from `mxq.pipeline.plan`.
        data: the partitions.
        runner: what runs the network where there is no client.
        client: where to run; in this process where None. The result is the same.
        progress: whether to show a bar.
        stats: a file to keep the statistics in; see `collect`. As with a checkpoint, histograms are collected then.

    Raises:
        DataError: a partition does not fit the network; the message names it.
        CalibrationError: the file is of something else.
        ConfigError: the data is no partitions, or a number of examples was asked for.
    """
    partitions = check_partitions(data)
    asked = pipeline.wanted(prepared)
    if not asked:
        return pipeline.ranges(prepared, Statistics())
    if prepared.config.num_calib_examples is not None:
        raise ConfigError(
            f"num_calib_examples is {prepared.config.num_calib_examples!r} beside partitions, all of which are used; "
            "allowed: None, or fewer partitions"
        )
    if stats is not None:
        asked = {ref: known.collector(observer) for ref, observer in asked.items()}
    network = prepared.fingerprint
    run = Run(Job(prepared.fused, Collecting(asked), partitions.load), partitions, client)
    statistics = collect(run, runner, asked, network=network, progress=progress, stats=stats)
    found = pipeline.ranges(prepared, statistics)
    return replace(found, warnings=(*run.advice, *found.warnings))


def collect(
    run: Run,
    runner: Runner,
    observers: Mapping[Ref, Observer[Any]],
    *,
    network: Mapping[str, object],
    progress: bool = True,
    stats: Path | None = None,
) -> Statistics:
    """The statistics of all partitions of ``run``, whose task is `Collecting`.

    A stretch for each partition, in their order, whatever the order in which they ended.

    Args:
        run: what is run where.
        runner: what runs the network where there is no client.
        observers: tensor -> its observer.
        network: the fingerprint of the network.
        progress: whether to show a bar, which stays silent where stderr is no terminal.
        stats: a file, written every few seconds and however it ends; called again with the same, only the partitions
            that are missing in it are run.

    Raises:
        StorageError: another run uses the file, or it cannot be written.
    """
    with alone(stats) if stats is not None else nullcontext():
        return _collected(run, runner, observers, network, progress, stats)


def _collected(
    run: Run,
    runner: Runner,
    observers: Mapping[Ref, Observer[Any]],
    network: Mapping[str, object],
    progress: bool,
    stats: Path | None,
) -> Statistics:
    ordered = any(observer.ordered for observer in observers.values())
    total = Total.of(observers, run.partitions, network, stats)
    if not total.missing:
        return total.statistics
    total.save()  # finds out now whether it can be written
    bar = progress_bar("calibrate", len(run.partitions), shown=progress)
    try:
        with bar, closing(run.results(total.missing, runner, ordered=ordered)) as results:
            bar.update(len(run.partitions) - len(total.missing))
            for _, seen in results:
                total.add(seen)
                bar.update()
                if time.monotonic() >= total.due:
                    total.save()
    except BaseException:
        with suppress(StorageError):  # what came first is what is told
            total.save()
        raise
    total.save()
    return total.statistics


def progress_bar(what: str, partitions: int, *, shown: bool) -> Any:
    """A bar on stderr, silent where that is no terminal."""
    return tqdm(total=partitions, desc=what, unit="partition", leave=False, disable=None if shown else True)


def check_partitions(data: object) -> Partitions:
    """Refuses other data.

    Raises:
        ConfigError: the message says what it is.
    """
    if isinstance(data, Partitions):
        return data
    makers = ", ".join(f"Partitions.{name}" for name in ("images", "files", "recordio", "of"))
    raise ConfigError(f"the data is a {type(data).__name__}; on workers it has to be partitions: {makers}")


@dataclass
class Total:
    """The states of the partitions so far, and their stretches by key; those that are missing have empty ones.

    ``due`` is when to write the file again, on the clock of `time.monotonic`.
    """

    observers: Mapping[Ref, Observer[Any]]
    network: Mapping[str, object]
    path: Path | None
    states: Mapping[str, Any]
    stretches: dict[str, DataSegment]
    due: float = 0.0

    @staticmethod
    def of(
        observers: Mapping[Ref, Observer[Any]],
        partitions: Partitions,
        network: Mapping[str, object],
        path: Path | None,
    ) -> Total:
        """What there is before any partition is run: nothing, or what the file holds.

        Raises:
            CalibrationError: the file is of another network, other tensors or other partitions.
            FormatError: it is no file of statistics.
        """
        states = {str(ref): observer.empty() for ref, observer in observers.items()}
        total = Total(observers, network, path, states, {key: DataSegment(key) for key in partitions.keys})
        if path is None:
            return total
        tidy(path.parent)
        if regular(path).exists():
            try:
                total._take_up(Statistics.load(path), partitions.name)
            except CalibrationError as error:
                raise CalibrationError(f"{path}: {error}") from None
        return total

    @property
    def missing(self) -> tuple[str, ...]:
        return tuple(key for key, stretch in self.stretches.items() if not stretch.complete)

    @property
    def statistics(self) -> Statistics:
        return Statistics(self.states, tuple(self.stretches.values()), self.network)

    def add(self, seen: Seen) -> None:
        self.states = merged(self.observers, self.states, seen.states)
        self.stretches[seen.stretch.name] = seen.stretch

    def save(self) -> None:
        if self.path is not None:
            started = time.monotonic()
            self.statistics.save(self.path)
            ended = time.monotonic()
            self.due = ended + max(EVERY_SECONDS, (ended - started) / SHARE)

    def _take_up(self, found: Statistics, name: str) -> None:
        found.check(self.network, self.statistics.kinds)
        for stretch in (s for s in found.stretches if s.batches):
            if stretch.name not in self.stretches:
                raise CalibrationError(
                    f"the statistics hold data {stretch.name!r}, which is none of the {len(self.stretches)} partitions "
                    f"of {name}; give another file, and merge them"
                )
            if not stretch.complete:
                raise CalibrationError(f"the statistics hold a part of {stretch.name!r}; a partition is all or nothing")
            self.stretches[stretch.name] = stretch
        self.states = dict(found.states)
        done = [stretch.complete for stretch in self.stretches.values()]
        if any(observer.ordered for observer in self.observers.values()) and sorted(done, reverse=True) != done:
            late = list(self.stretches)[done.index(False)]
            raise CalibrationError(
                f"the statistics are averages over batches in order, and partition {late!r} is missing before others; "
                "calibrate anew, or with an observer without order"
            )
