"""Calibration proper: runs a model over batches and folds an observer over each tensor of interest."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from tqdm import tqdm

from mxq.errors import CalibrationError, DataError
from mxq.ir import Array, Executable, Model, Ref, Runner
from mxq.observers import Observer
from mxq.thresholds import Threshold, Thresholds


@dataclass(frozen=True, slots=True)
class Observation:
    """One tensor's observer and the state it has reached."""

    observer: Observer[Any]
    state: Any


@dataclass(frozen=True)
class Statistics:
    """What calibration has seen: tensor name (``str(Ref)``) -> `Observation`, and how much data that was."""

    table: Mapping[str, Observation] = field(default_factory=dict)
    examples: int = 0
    batches: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "table", MappingProxyType(dict(self.table)))

    def thresholds(self, dtype: str | Mapping[str, str] = "auto") -> Thresholds:
        """The range of every tensor, with its provenance. Reading has no effect; read again with another dtype.

        Args:
            dtype: "auto", "int8" or "uint8" for all tensors, or by tensor name ("auto" where a name is missing).

        Raises:
            CalibrationError: a tensor had no values.
            ConfigError: another dtype.
        """
        by_name = dtype if isinstance(dtype, Mapping) else dict.fromkeys(self.table, dtype)
        return Thresholds({name: self._threshold(name, by_name.get(name, "auto")) for name in self.table})

    def _threshold(self, name: str, dtype: str) -> Threshold:
        observer, state = self.table[name].observer, self.table[name].state
        try:
            found = observer.range(state, dtype)
        except CalibrationError as error:
            raise CalibrationError(f"tensor {name!r}: {error}") from error
        return Threshold(
            range=found,
            observer=observer.name,
            examples=self.examples,
            batches=self.batches,
            observed=observer.observed(state),
            note=observer.note(state),
        )


def collect(
    runner: Runner,
    model: Model,
    feeds: Iterable[Mapping[str, Array]],
    observers: Mapping[Ref, Observer[Any]],
    *,
    progress: bool = True,
) -> Statistics:
    """Runs ``model`` over all ``feeds`` and shows each tensor to its observer.

    Args:
        runner: what runs the model.
        model: the graph whose tensors are observed.
        feeds: batches ``{input name: (n, ...) array}``, see `mxq.batches.feeds`.
        observers: tensor -> its observer. An input of the model is taken from the feeds, a head from the heads.
        progress: whether to show a bar, which stays silent where stderr is no terminal.

    Returns:
        The states after all batches.

    Raises:
        DataError: no batches, or a tensor holds NaN or Inf; the message names tensor and batch.
        CalibrationError: an observed tensor is a parameter.
        GraphError: the graph has no such node.
    """
    tapped = _Taps.of(runner, model, observers)
    states = {ref: observer.empty() for ref, observer in observers.items()}
    examples = batches = 0
    total = operator.length_hint(feeds) or None
    bar = tqdm(feeds, "calibrate", total, unit="batch", leave=False, disable=None if progress else True)
    with bar:
        for feed in bar:
            batches += 1
            examples += len(next(iter(feed.values())))
            for ref, value in tapped.values(feed):
                states[ref] = _updated(observers[ref], states[ref], value, f"{str(ref)!r} in batch {batches}")
    if batches == 0:
        raise DataError("calibration data holds no batch; at least one is needed")
    table = {str(ref): Observation(observers[ref], state) for ref, state in states.items()}
    return Statistics(table, examples, batches)


def _updated(observer: Observer[Any], state: Any, value: Array, where: str) -> Any:
    try:
        return observer.update(state, value)
    except DataError as error:
        raise DataError(f"tensor {where} of the calibration data: {error}") from error


@dataclass(frozen=True, slots=True)
class _Taps:
    """Where each observed tensor is found: an input's name, or an index into what the executable returns."""

    executable: Executable | None
    inputs: Mapping[Ref, str]
    outputs: Mapping[Ref, int]

    @staticmethod
    def of(runner: Runner, model: Model, refs: Iterable[Ref]) -> _Taps:
        heads = {(h.name, h.output): index for index, h in reversed(list(enumerate(model.graph.heads)))}
        inputs: dict[Ref, str] = {}
        outputs: dict[Ref, int] = {}
        taps: list[Ref] = []
        for ref in refs:
            if model.graph[ref.name].is_variable:
                if ref.name not in model.inputs:
                    raise CalibrationError(f"tensor {str(ref)!r} is a parameter; allowed: inputs and operator outputs")
                inputs[ref] = ref.name
            elif (ref.name, ref.output) in heads:  # a tensor returned twice does not bind in MXNet
                outputs[ref] = heads[ref.name, ref.output]
            else:
                outputs[ref] = len(model.graph.heads) + len(taps)
                taps.append(ref)
        executable = runner.compile(model, tuple(taps)) if outputs else None
        return _Taps(executable, inputs, outputs)

    def values(self, feed: Mapping[str, Array]) -> Iterable[tuple[Ref, Array]]:
        """Each observed tensor's value for one feed, one at a time: what runs lazily need not hold them all."""
        for ref, name in self.inputs.items():
            yield ref, feed[name]
        if self.executable is not None:
            results = self.executable(feed)
            for ref, index in self.outputs.items():
                yield ref, results[index]
