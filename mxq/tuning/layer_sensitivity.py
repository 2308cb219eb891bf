"""Which layer costs how much: one at a time in int8 while all others are float, and one at a time left in float.

Section 5.1 of H. Wu et al., "Integer quantization for deep learning inference: principles and empirical evaluation"
(2020), figure 3. All networks come from one calibration pass. Every measurement goes into a journal at once, so a run
that ends in any way goes on where it was.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final, Protocol

from tqdm import tqdm

from mxq.config import QuantConfig
from mxq.errors import MxqError, as_storage_errors, of_surroundings, one_of
from mxq.graph.ir import Model
from mxq.text import Shown
from mxq.tuning.choices import Layer, with_floats, with_only
from mxq.tuning.journal import Journal, json_numbers, numbers_of

ONE_INT8, ONE_FLOAT, BOTH = "one-int8", "one-float", "both"
MODES: Final = (BOTH, ONE_INT8, ONE_FLOAT)
FLOAT, INT8 = "float", "int8"

Numbers = Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Measurement:
    """A measurement: its ``numbers``, the first being the one that counts, or the ``problem`` that there are none.

    With ``again``, a later run tries it anew: memory was short, or nobody knows what the matter was.
    """

    numbers: Numbers | None = None
    problem: str = ""
    again: bool = False


@dataclass(frozen=True, slots=True)
class LayerSensitivity:
    """One layer.

    Attributes:
        layer: its name in the fused network.
        op: the chain of op types in it.
        share: of the network's multiply-adds, 0..1.
        only_int8: what was measured with it alone in int8; None where that was not, or failed.
        only_float: what was measured with it alone in float.
        problem: why a measurement failed.
    """

    layer: str
    op: str
    share: float
    only_int8: Numbers | None = None
    only_float: Numbers | None = None
    problem: str = ""

    def to_json(self) -> dict[str, Any]:
        return {
            "layer": self.layer,
            "op": self.op,
            "multiply_adds_share": self.share,
            "only_int8": json_numbers(self.only_int8),
            "only_float": json_numbers(self.only_float),
            "problem": self.problem or None,
        }


@dataclass(frozen=True)
class Sensitivity(Shown):
    """What was found.

    Attributes:
        measure: which of the numbers counts, such as "top1" or "sqnr" (dB); more is better.
        by: how it was measured, in words.
        layers: worst first: those that alone in int8 leave the least, or alone in float give the most.
        float: of the float network.
        int8: of the network with all layers in int8.
        complete: whether all layers were measured.
        codes: what stands for int8 where other codes are simulated, such as "tensorrt W4A4".
    """

    measure: str
    by: str
    layers: tuple[LayerSensitivity, ...]
    float: Numbers
    int8: Numbers | None = None
    complete: bool = True
    codes: str = INT8

    def to_json(self) -> dict[str, Any]:
        """A JSON-ready dictionary. A number that JSON cannot say is a text such as "inf"."""
        return {
            "measure": self.measure,
            "by": self.by,
            "complete": self.complete,
            "codes": self.codes,
            "float": json_numbers(self.float),
            "int8": json_numbers(self.int8),
            "layers": [layer.to_json() for layer in self.layers],
        }


@dataclass(frozen=True)
class Subject:
    """What is looked at, and how; functions stand for all that runs a network.

    Attributes:
        layers: in graph order.
        shares: layer -> its share of the multiply-adds.
        config: with all layers in int8.
        make: the int8 network of settings.
        measure: a network's numbers, the first being the one that counts.
        float: the float network.
        by: how ``measure`` does it, in words.
    """

    layers: tuple[Layer, ...]
    shares: Mapping[str, float]
    config: QuantConfig
    make: Callable[[QuantConfig], Model]
    measure: Callable[[Model], Numbers]
    float: Model
    by: str = ""

    @cached_property
    def names(self) -> tuple[str, ...]:
        return tuple(layer.name for layer in self.layers)

    def network(self, mode: str, layer: str) -> Model:
        """That in which ``layer`` is the one that differs; in mode "float" the float network."""
        return self.float if mode == FLOAT else self.make(self.settings(mode, layer))

    def settings(self, mode: str, layer: str) -> QuantConfig:
        """Of the network in which ``layer`` is the one that differs."""
        if mode == ONE_INT8:
            return with_only(self.config, self.names, layer)
        return with_floats(self.config, (layer,)) if mode == ONE_FLOAT else self.config


class Measurable(Protocol):
    """Networks by name, and how they are measured."""

    @property
    def measure(self) -> Callable[[Model], Numbers]:
        """A network's numbers, the first being the one that counts."""

    def network(self, mode: str, layer: str, /) -> Model:
        """The network of that name; in mode "float" the float one.

        Raises:
            MxqError: it cannot be made.
        """


@dataclass
class Meter:
    """Measures what is not in the ``journal`` yet, and writes it there.

    Attributes:
        subject: what is measured.
        journal: where the numbers are kept.
        label: told apart by it are entries of several subjects in one journal.
        before: called before each measurement; may raise to end them.
        clock: seconds.
    """

    subject: Measurable
    journal: Journal
    label: str = ""
    before: Callable[[], None] = lambda: None
    clock: Callable[[], float] = time.monotonic

    def known(self, mode: str, layer: str = "") -> Measurement | None:
        """What the journal has of it, the last where there are several."""
        return dict(self.journal.read(_measured)).get((self.label, mode, layer))

    def get(self, mode: str, layer: str = "") -> Measurement:
        """The measurement; a network that cannot be made or run is one too, with its problem.

        Raises:
            MxqError: the float network cannot be measured, a file cannot be read or written, or workers were lost.
        """
        found = self.known(mode, layer)
        if found is not None and not found.again:
            return found
        self.before()
        started = self.clock()
        try:
            with as_storage_errors():
                found = Measurement(self._numbers(mode, layer))
        except (MxqError, MemoryError) as error:
            if mode == FLOAT or of_surroundings(error):
                raise
            short = isinstance(error, MemoryError)
            found = Measurement(problem=" ".join(f"{'MemoryError: ' if short else ''}{error}".split()), again=short)
        entry = {"label": self.label, "mode": mode, "layer": layer, "seconds": self.clock() - started}
        pairs = None if found.numbers is None else [[k, v] for k, v in (json_numbers(found.numbers) or {}).items()]
        self.journal.append({**entry, "numbers": pairs, "problem": found.problem, "again": found.again})
        return found

    def _numbers(self, mode: str, layer: str) -> Numbers:
        return self.subject.measure(self.subject.network(mode, layer))


def _measured(entry: Mapping[str, Any]) -> tuple[tuple[str, str, str], Measurement]:
    """An entry of a journal: which measurement it is, and what was found."""
    problem, numbers = str(entry["problem"]), numbers_of(dict(entry["numbers"]) if entry["numbers"] else None)
    again = bool(entry.get("again", problem))  # older journals do not say whose fault it was
    return (str(entry["label"]), str(entry["mode"]), str(entry["layer"])), Measurement(numbers, problem, again)


def measured(subject: Subject, journal: Journal, mode: str = BOTH, *, progress: bool = True) -> Sensitivity:
    """Measures every layer, those that the journal has excepted.

    After an interruption (Ctrl-C) what there is by then is the result, unless not even the float network is measured.

    Args:
        subject: what is measured.
        journal: where the numbers are kept.
        mode: "one-int8", "one-float", or "both".
        progress: whether to show a bar, which stays silent where stderr is no terminal.

    Raises:
        ConfigError: another mode.
        MxqError: the float network cannot be measured, a file cannot be read or written, or workers were lost.
    """
    if mode not in MODES:
        raise one_of("mode", mode, MODES)
    meter = Meter(subject, journal)
    reference = meter.get(FLOAT).numbers or {}
    complete = True
    try:
        for _ in tqdm(
            _steps(meter, subject.names, mode),
            "sensitivity",
            1 + len(subject.layers) * (2 if mode == BOTH else 1),
            leave=False,
            unit="network",
            disable=None if progress else True,
        ):
            pass
    except KeyboardInterrupt:
        complete = False
    measure = next(iter(reference))
    rows = sorted(_rows(meter, subject), key=lambda row: _badness(row, measure))
    whole = _numbers(meter.known(INT8))
    config = subject.config
    codes = f"{config.hardware} {config.width}" if config.simulate else INT8
    return Sensitivity(measure, subject.by, tuple(rows), reference, whole, complete, codes)


def _steps(meter: Meter, names: Sequence[str], mode: str) -> Iterator[Measurement]:
    yield meter.get(INT8)
    for each in (ONE_INT8, ONE_FLOAT):
        if mode in (each, BOTH):
            for name in names:
                yield meter.get(each, name)


def _rows(meter: Meter, subject: Subject) -> Iterator[LayerSensitivity]:
    for layer in subject.layers:
        alone, left = (meter.known(mode, layer.name) for mode in (ONE_INT8, ONE_FLOAT))
        if alone is not None or left is not None:
            yield LayerSensitivity(
                layer.name,
                layer.op,
                subject.shares.get(layer.name, 0.0),
                _numbers(alone),
                _numbers(left),
                "; ".join(m.problem for m in (alone, left) if m is not None and m.problem),
            )


def _numbers(found: Measurement | None) -> Numbers | None:
    return None if found is None else found.numbers


def _badness(row: LayerSensitivity, measure: str) -> tuple[float, float]:
    """Sorts the worst first: by what is left with it in int8, then by what it gives back in float."""
    left, gained = row.only_int8, row.only_float
    return (
        math.inf if left is None else left.get(measure, math.inf),
        math.inf if gained is None else -gained.get(measure, -math.inf),
    )


def noise(numbers: Numbers) -> float:
    """How much a layer's int8 form disturbs the outputs: noise over signal, or the share of answers that change.

    Noises of layers add up, roughly, which decibels do not.
    """
    if "sqnr" in numbers:
        return math.inf if numbers["sqnr"] == -math.inf else float(10 ** (-numbers["sqnr"] / 10))
    return 1.0 - numbers.get("agreement", 1.0)


def ordered(costs: Mapping[str, float], noises: Mapping[str, float]) -> Sequence[str]:
    """Layers by the noise that goes for each unit of time that float costs, the best bargain first.

    Args:
        costs: layer -> how much slower the network is with it in float.
        noises: layer -> `noise`.
    """
    least = max(costs.values(), default=0.0) * 1e-6 or 1.0
    return sorted(noises, key=lambda name: -noises[name] / max(costs[name], least))
