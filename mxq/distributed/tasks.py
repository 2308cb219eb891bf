"""What is done with one partition, in whichever process. Nothing here knows of a cluster."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Generic, Protocol, TypeVar

from mxq import evaluation
from mxq.calibration.collect import collect
from mxq.calibration.statistics import DataSegment
from mxq.data.feeding import feeds
from mxq.errors import DataError, MxqError, ReadError, of_surroundings
from mxq.evaluation import ALL, Metric, Tally
from mxq.graph.ir import Executable, Model, Ref, Runner, Watched
from mxq.observers import Observer, State

R_co = TypeVar("R_co", covariant=True)


class Task(Protocol[R_co]):
    """From the batches of a partition to a result that merges; pickled."""

    def __call__(self, runner: Runner, model: Model, key: str, batches: Any) -> R_co: ...


@dataclass(frozen=True)
class Seen:
    """The statistics of one partition, the ``stretch``: tensor -> state."""

    stretch: DataSegment
    states: dict[str, State]


@dataclass(frozen=True)
class Collecting:
    """Shows each tensor to its observer."""

    observers: dict[Ref, Observer[Any]]

    def __call__(self, runner: Runner, model: Model, key: str, batches: Any) -> Seen:
        found = collect(runner, model, feeds(batches, model.arguments, ALL), self.observers, progress=False)
        (stretch,) = found.stretches
        return Seen(replace(stretch, name=key), dict(found.states))


@dataclass(frozen=True)
class Evaluating:
    """Holds the outputs against the labels."""

    metric: Metric[Any]

    def __call__(self, runner: Runner, model: Model, key: str, batches: Any) -> Tally:
        return evaluation.evaluate(runner, model, batches, self.metric, progress=False)


@dataclass(frozen=True)
class Job(Generic[R_co]):
    """What every partition of a run has in common."""

    model: Model
    task: Task[R_co]
    load: Callable[[Any], Any]

    def perform(self, runner: Runner, key: str, payload: Any) -> R_co:
        """The result of one partition.

        Raises:
            MxqError: reading or running failed; the message names the partition.
        """
        try:
            return self.task(runner, self.model, key, self.load(payload))
        except MxqError as error:
            unread = isinstance(error, DataError) and of_surroundings(error)  # which a pickled error would not tell
            raise (ReadError if unread else type(error))(f"partition {key!r}: {error}") from error
        except Exception as error:
            kind = ReadError if of_surroundings(error) else DataError
            raise kind(f"partition {key!r}: {type(error).__name__}: {error}") from error


@dataclass(frozen=True)
class Outcome:
    """The ``result`` of a partition, the ``threads`` it ran on, and what the user should know of its worker."""

    result: Any
    threads: int
    advice: tuple[str, ...] = ()


@dataclass
class Keeping:
    """A runner that binds a network once, over however many partitions it runs."""

    runner: Runner
    _bound: dict[tuple[str, int, tuple[Ref, ...]], tuple[Model, Any]] = field(default_factory=dict)

    def compile(self, model: Model, taps: Sequence[Ref] = ()) -> Executable:
        found: Executable = self._kept("compile", model, taps)
        return found

    def watch(self, model: Model, refs: Sequence[Ref]) -> Watched:
        found: Watched = self._kept("watch", model, refs)
        return found

    def _kept(self, how: str, model: Model, refs: Sequence[Ref]) -> Any:
        key = (how, id(model), tuple(refs))
        if key not in self._bound:
            self._bound[key] = (model, getattr(self.runner, how)(model, refs))  # the model stays, so its id is its own
        return self._bound[key][1]


def merged(observers: Mapping[Ref, Observer[Any]], a: Mapping[str, State], b: Mapping[str, State]) -> dict[str, State]:
    """The states of the data of both, that of ``b`` after that of ``a``."""
    return {str(ref): observer.merge(a[str(ref)], b[str(ref)]) for ref, observer in observers.items()}
