"""Runs a search: asks its strategy, tries what it wants, and keeps the journal, the time and the best network."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from mxq.errors import as_storage_errors, of_surroundings
from mxq.tuning.budget import Budget, OutOfTime
from mxq.tuning.journal import Journal
from mxq.tuning.search import DONE, FAILED, INTERRUPTED, METHODS, SKIPPED, Asking, Bar, Settings, Trial

TRIAL, FLOAT, CALIBRATION = "trial", "float", "calibration"
"""Kinds of journal entries."""

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)


@dataclass(frozen=True)
class Made(Generic[T_co]):
    """A network that was made and measured: its ``score``, its modelled ``cost``, and the ``network``."""

    score: float
    cost: float
    network: T_co


@dataclass(frozen=True)
class Found(Generic[T_co]):
    """The ``trials`` in order, the ``best`` (None: all failed), why it ``stopped``; its ``network`` if made now."""

    trials: tuple[Trial, ...]
    best: Trial | None
    stopped: str
    network: T_co | None = None


@dataclass
class Driver(Generic[T]):
    """See the module.

    Attributes:
        bar: what is to be met.
        attempt: makes and measures a network; what it raises fails the trial, unless a disk, a file or a worker failed.
        journal: of trials; those in it are not run again.
        budget: the first trial is run whatever it says, so that there is something to return. A method that takes too
            long is skipped, as networks without it may still be made in time; any other trial ends the search.
        keep: called whenever the best changes, after the trial is in the journal.
        first_guess: how many seconds to expect of a trial before there was any.
        tell: called after each trial that was run.
        guess: how many seconds settings will take, where that is known by other means than trials before.
    """

    bar: Bar
    attempt: Callable[[Settings], Made[T]]
    journal: Journal
    budget: Budget
    keep: Callable[[Trial, T], None]
    first_guess: float = 0.0
    tell: Callable[[Trial], None] = lambda _: None
    guess: Callable[[Settings], float | None] = lambda _: None
    _trials: list[Trial] = field(default_factory=list)
    _best: tuple[Trial, T] | None = None

    def run(self, asking: Asking) -> Found[T]:
        """Until the strategy ends, the time is over, or Ctrl-C.

        Raises:
            KeyboardInterrupt: before there was any trial.
            MxqError: a file cannot be read or written, or workers were lost. The same search may go on later.
        """
        try:
            stage, settings = next(asking)
            while True:
                stage, settings = asking.send(self._get(stage, settings))
        except StopIteration as end:
            stopped = str(end.value)
        except OutOfTime as end:
            stopped = str(end)
        except KeyboardInterrupt:
            if self.bar.best(self._trials) is None:
                raise
            stopped = INTERRUPTED
        best = self.bar.best(self._trials)
        held = self._best[1] if self._best is not None and self._best[0] is best else None
        return Found(tuple(self._trials), best, stopped, held)

    def _get(self, stage: str, settings: Settings) -> Trial:
        """The trial of ``settings``: as it is known, or run now."""
        known = next((t for t in self._known() if t.settings == settings), None)
        if known is not None:
            if known not in self._trials:
                self._trials.append(known)
            return known
        if self.bar.best(self._trials) is not None:
            try:
                self.budget.check("the next trial", self._expected(settings))
            except OutOfTime as end:
                if stage != METHODS:
                    raise
                self._trials.append(Trial(stage, settings, SKIPPED, reason=str(end)))
                return self._trials[-1]
        trial, network = self._run(stage, settings)
        self.journal.append({"kind": TRIAL, **trial.to_json()})
        self._trials.append(trial)
        if network is not None and self.bar.best(self._trials) is trial:
            self._best = (trial, network)
            self.keep(trial, network)
        self.tell(trial)
        return trial

    def _run(self, stage: str, settings: Settings) -> tuple[Trial, T | None]:
        started = self.budget.clock()
        try:
            with as_storage_errors():
                made = self.attempt(settings)
        except Exception as error:  # whatever it is, other settings may do, but for a full disk and the like
            if of_surroundings(error):
                raise
            reason, seconds = f"{type(error).__name__}: {' '.join(str(error).split())}", self.budget.clock() - started
            again = isinstance(error, MemoryError)
            return Trial(stage, settings, FAILED, seconds=seconds, reason=reason, again=again), None
        return Trial(stage, settings, DONE, made.score, made.cost, self.budget.clock() - started), made.network

    def _expected(self, settings: Settings) -> float:
        """Seconds for a trial: as guessed, or the most that one by the same method took, else any."""
        guessed = self.guess(settings)
        if guessed is not None:
            return guessed
        known = self._known()
        alike = [t.seconds for t in known if t.settings.method == settings.method]
        return max(alike or [t.seconds for t in known], default=self.first_guess)

    def _known(self) -> list[Trial]:
        return [trial for trial in trials_in(self.journal) if not trial.again]


def trials_in(journal: Journal) -> list[Trial]:
    """The trials that a journal holds."""
    return [trial for trial in journal.read(_trial) if trial is not None]


def _trial(entry: Mapping[str, Any]) -> Trial | None:
    row = {k: v for k, v in entry.items() if k != "kind"}
    return Trial.from_json(row) if entry["kind"] == TRIAL else None


def seconds_in(journal: Journal) -> float:
    """How long all took that a journal holds."""
    return sum(journal.read(lambda entry: float(entry["seconds"])))
