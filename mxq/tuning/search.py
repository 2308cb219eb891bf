"""The search for the fastest network that meets the bar. Nothing here knows of networks: settings go out, trials come.

The workflow is that of figure 5 of H. Wu et al., "Integer quantization for deep learning inference: principles and
empirical evaluation" (2020): every calibrator, then methods for weights, then layers left in float, then training with
quantization where there is data for it. All networks that are wholly int8 are equally fast, so the first of them that
meets the bar ends the search.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Final

from mxq.config import QuantConfig
from mxq.formats.documents import converted
from mxq.qat.schedule import TrainConfig
from mxq.tuning.choices import with_floats

CALIBRATORS, METHODS, LAYERS, TRAINING = "calibrators", "methods", "layers", "training"
"""The stages, in order."""

DONE, FAILED, SKIPPED = "done", "failed", "skipped"
INTERRUPTED: Final = "it was interrupted"
WHOLE: Final = "a network wholly in int8 meets the bar, and none is faster"
SLACK: Final = 1e-9
"""0.844 - 0.839 is more than 0.005 to a computer."""


@dataclass(frozen=True, slots=True)
class Method:
    """What is done for accuracy beyond calibration: fields of `mxq.config.QuantConfig`; None leaves the user's."""

    effort: str = "fast"
    equalize: bool | None = None
    bias_correction: str | None = None
    rounding: str | None = None
    range_choice: str | None = None
    weight_calib_mode: str | None = None

    def __str__(self) -> str:
        rest = (f"{f.name}={v}" for f in fields(self)[1:] if (v := getattr(self, f.name)) is not None)
        return ", ".join((self.effort, *rest))


@dataclass(frozen=True, slots=True)
class Settings:
    """One network of the search: its calibrator, its method, the layers left in float, and how it is trained, if so."""

    calib_mode: str
    method: Method = Method()
    floats: tuple[str, ...] = ()
    training: TrainConfig | None = None

    @property
    def how(self) -> str:
        """Its method, in words."""
        return str(self.method) if self.training is None else "trained with quantization"

    def config(self, base: QuantConfig) -> QuantConfig:
        """``base`` with these settings."""
        changes = {k: v for k, v in asdict(self.method).items() if v is not None}
        return with_floats(replace(base, calib_mode=self.calib_mode, **changes), self.floats)

    def to_json(self) -> dict[str, Any]:
        found = {"calib_mode": self.calib_mode, "method": asdict(self.method), "floats": list(self.floats)}
        return found if self.training is None else {**found, "training": self.training.to_json()}


@dataclass(frozen=True, slots=True)
class Trial:
    """One network that was tried.

    Attributes:
        stage: "calibrators", "methods", "layers" or "training".
        settings: what was tried.
        state: "done", "failed", or "skipped" for want of time.
        score: more is better; None where there is none.
        cost: modelled time, see `mxq.tuning.cost`.
        seconds: making and measuring took.
        reason: why it failed or was skipped.
        again: whether a later run tries it anew: it failed for want of memory, or nobody knows.
    """

    stage: str
    settings: Settings
    state: str = DONE
    score: float | None = None
    cost: float | None = None
    seconds: float = 0.0
    reason: str = ""
    again: bool = False

    def to_json(self) -> dict[str, Any]:
        table = {f.name: getattr(self, f.name) for f in fields(self)}
        return {**table, "settings": self.settings.to_json()}

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> Trial:
        again = data.get("again", data.get("state") == FAILED)  # older journals do not say whose fault it was
        return converted({**data, "again": again}, Trial, "a trial")


@dataclass(frozen=True, slots=True)
class Bar:
    """What is asked for: at most ``max_drop`` less than the ``reference``, the float network's score."""

    reference: float
    max_drop: float

    def drop(self, trial: Trial) -> float | None:
        """How much worse than float; below 0 where it is better."""
        return None if trial.score is None else self.reference - trial.score

    def met(self, trial: Trial) -> bool:
        drop = self.drop(trial)
        return drop is not None and drop <= self.max_drop + SLACK

    def best(self, trials: Iterable[Trial]) -> Trial | None:
        """Of those that meet the bar the fastest, else the most accurate; of equals the more accurate, then the first.

        None where all failed.
        """
        done = [trial for trial in trials if trial.state == DONE]
        return max(done, key=self._rank, default=None)

    def _rank(self, trial: Trial) -> tuple[bool, float, float]:
        score, speed = trial.score or 0.0, -(trial.cost or 0.0)
        return (True, speed, score) if self.met(trial) else (False, score, speed)


@dataclass(frozen=True)
class Space:
    """What to try.

    Attributes:
        calibrators: in order; the first is the user's.
        methods: in order, the first tried with two calibrators.
        rank: called once, with the best settings so far: the layers, in the order in which to leave them in float, with
            the time that each costs there.
        training: how to train, where nothing else meets the bar; None where there is no data for it.
    """

    calibrators: Sequence[Settings]
    methods: Sequence[Method]
    rank: Callable[[Settings], Mapping[str, float]]
    training: TrainConfig | None = None


Asking = Generator[tuple[str, Settings], Trial, str]
"""Yields a stage and settings, is sent the trial of them, returns why the search is over."""


def strategy(space: Space, bar: Bar) -> Asking:
    """What to try next, given what was found so far."""
    seen: list[Trial] = []
    for settings in space.calibrators:
        seen.append((yield CALIBRATORS, settings))
        if bar.met(seen[-1]):
            return WHOLE
    best = bar.best(seen)
    if best is None:
        return "every calibrator failed"
    seen += yield from _methods(best.settings, space, bar)
    if bar.met(seen[-1]):
        return WHOLE
    best = bar.best(seen) or best
    return (yield from _partial(best.settings, space, bar))


def _methods(best: Settings, space: Space, bar: Bar) -> Generator[tuple[str, Settings], Trial, list[Trial]]:
    """The first method with the best calibrator and the user's, all others with that which serves the first better.

    Which calibrator is best without methods says little: a ResNet with outlier channels was at 9 % with one and at 0
    with another, then at 74 % and 82 %.
    """
    seen: list[Trial] = []
    bases = list(dict.fromkeys((best, space.calibrators[0])))
    for method in space.methods:
        for base in bases:
            seen.append((yield METHODS, replace(base, method=method)))
            if bar.met(seen[-1]):
                return seen
        if len(bases) > 1 and (found := bar.best(seen)) is not None:
            bases = [found.settings]
    return seen


def _partial(base: Settings, space: Space, bar: Bar) -> Asking:
    """Leaves ever more layers in float until the bar is met, then as few of them as will do."""
    costs = space.rank(base)
    order = tuple(costs)
    fails, meets = 0, 0
    for count in _doubling(len(order) - 1):  # one at least stays int8
        if bar.met((yield LAYERS, replace(base, floats=order[:count]))):
            meets = count
            break
        fails = count
    if not meets:
        missed = f"with {fails} of {len(order)} layers in float the bar is still missed"
        return missed if space.training is None else (yield from _trained(base, space.training, bar, missed))
    while meets - fails > 1:
        count = (fails + meets) // 2
        met = bar.met((yield LAYERS, replace(base, floats=order[:count])))
        fails, meets = (fails, count) if met else (count, meets)
    kept = order[:meets]
    for name in sorted(kept[:-1], key=lambda n: -costs[n]):
        fewer = tuple(n for n in kept if n != name)
        if bar.met((yield LAYERS, replace(base, floats=fewer))):
            kept = fewer
    return f"{len(kept)} of {len(order)} layers in float meet the bar, with fewer of these it is missed"


def _trained(base: Settings, training: TrainConfig, bar: Bar, missed: str) -> Asking:
    """The last resort. Training chooses weights, so that methods for them have nothing to add."""
    trial = yield TRAINING, Settings(base.calib_mode, training=training)
    return f"{missed}; trained with quantization the network {'meets' if bar.met(trial) else 'misses'} it"


def _doubling(most: int) -> list[int]:
    """1, 2, 4, ... and ``most``."""
    return [1 << i for i in range(most.bit_length()) if 1 << i < most] + ([most] if most > 0 else [])
