"""One network on all hardware and at all widths: what its accuracy would be, simulated.

MQBench (arXiv:2111.03759), tables 3 and 10, has the same columns. Every measurement goes into a journal at once, so a
run that ends in any way goes on where it was.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from tqdm import tqdm

from mxq.config import QuantConfig
from mxq.errors import ConfigError, one_of
from mxq.graph.ir import Model
from mxq.quant.bits import Bits, Width, several
from mxq.quant.hardware import HARDWARE, hardware_of
from mxq.text import Shown
from mxq.tuning.journal import Journal, json_numbers
from mxq.tuning.layer_sensitivity import FLOAT, Meter, Numbers
from mxq.tuning.material import Material, make
from mxq.tuning.running import about
from mxq.tuning.scoring import Judge

JOURNAL: Final = "sweep-bits.jsonl"
"""The journal's name in a workdir."""
WIDTHS: Final = (8, 7, 6, 5, 4, 3, 2)
SIMULATED: Final = "simulated"
"""The mode of measurements in the journal that are not of the float network."""


@dataclass(frozen=True, slots=True)
class Point:
    """One simulation: its ``numbers``, or the ``problem`` that there are none."""

    hardware: str
    bits: Bits
    numbers: Numbers | None = None
    problem: str = ""

    def to_json(self) -> dict[str, Any]:
        """JSON-ready."""
        found = {"hardware": self.hardware, "bits": str(self.bits), "numbers": json_numbers(self.numbers)}
        return {**found, "problem": self.problem or None}


@dataclass(frozen=True)
class BitSweep(Shown):
    """What was found.

    Attributes:
        measure: which of the numbers counts, such as "top1" or "sqnr" (dB); more is better.
        by: how it was measured, in words.
        float: of the float network.
        points: hardware by hardware, widths in the order that was asked for.
        complete: whether all was measured.
    """

    measure: str
    by: str
    float: Numbers
    points: tuple[Point, ...]
    complete: bool = True

    @property
    def hardware(self) -> tuple[str, ...]:
        """What there are points of."""
        return tuple(dict.fromkeys(point.hardware for point in self.points))

    @property
    def widths(self) -> tuple[Bits, ...]:
        """At which there are points."""
        return tuple(dict.fromkeys(point.bits for point in self.points))

    def at(self, hardware: str, bits: Bits) -> Point | None:
        """The point there; None where it was not measured."""
        return next((p for p in self.points if (p.hardware, p.bits) == (hardware, bits)), None)

    def to_json(self) -> dict[str, Any]:
        """A JSON-ready dictionary. A number that JSON cannot say is a text such as "inf"."""
        return {
            "measure": self.measure,
            "by": self.by,
            "complete": self.complete,
            "float": json_numbers(self.float),
            "points": [point.to_json() for point in self.points],
        }


@dataclass(frozen=True)
class Simulations:
    """Networks by hardware and width.

    Attributes:
        materials: hardware -> what its networks are made from.
        judge: what measures them.
    """

    materials: Mapping[str, Material]
    judge: Judge
    names: dict[str, tuple[str, Bits]] = field(default_factory=dict)

    @property
    def measure(self) -> Callable[[Model], Numbers]:
        """See `Judge`."""
        return self.judge.measure

    def name(self, hardware: str, bits: Bits) -> str:
        """Of a network, in the journal."""
        name = f"{hardware} {bits}"
        self.names[name] = hardware, bits
        return name

    def network(self, mode: str, name: str) -> Model:
        """The simulation of that `name`, or the float network."""
        if mode == FLOAT:
            return next(iter(self.materials.values())).prepared.source
        hardware, bits = self.names[name]
        material = self.materials[hardware]
        return make(material, replace(material.prepared.config, bits=str(bits))).model


def asked(
    config: QuantConfig, hardware: Sequence[str] | None, widths: Sequence[Width] | None
) -> tuple[tuple[str, ...], tuple[Bits, ...]]:
    """The hardware and widths to go over, each once: all where None.

    Raises:
        ConfigError: one is unknown, there is none, or ``config`` has one of its own.
    """
    if (config.hardware, config.bits) != ("onednn", None):
        name, value = ("bits", config.bits) if config.bits is not None else ("hardware", config.hardware)
        raise ConfigError(
            f"{name} is {value!r} among the settings of a sweep, which has many; allowed: as libraries= or widths="
        )
    names = HARDWARE.names() if hardware is None else [hardware] if isinstance(hardware, str) else hardware
    if not isinstance(names, Iterable):
        raise one_of("hardware", names, HARDWARE.names())
    found = tuple(dict.fromkeys(hardware_of(name).name for name in names))
    bits = several("bits", WIDTHS if widths is None else widths)
    for name, values in (("hardware", found), ("bits", bits)):
        if not values:
            raise ConfigError(f"{name} to sweep over is empty; allowed: one or more, or None for all")
    return found, bits


def swept(
    materials: Mapping[str, Material],
    widths: Sequence[Bits],
    judge: Judge,
    workdir: Path | None = None,
    *,
    progress: bool = True,
) -> BitSweep:
    """Measures the network of every hardware and width, those that the journal has excepted.

    After an interruption (Ctrl-C) what there is by then is the result, unless not even the float network is measured.

    Args:
        materials: hardware -> what its networks are made from; at least one.
        widths: of codes.
        judge: what measures networks.
        workdir: where the journal is; None keeps nothing.
        progress: whether to show a bar, which stays silent where stderr is no terminal.

    Raises:
        MxqError: the float network cannot be measured, or a file cannot be read or written.
    """
    subject = Simulations(materials, judge)
    journal = Journal.open(None if workdir is None else workdir / JOURNAL, _about(materials, judge))
    meter = Meter(subject, journal)
    reference, complete = meter.get(FLOAT).numbers or {}, True
    todo = [(h, b) for h in materials for b in widths]
    try:
        for hardware, bits in tqdm(todo, "sweep", leave=False, unit="network", disable=None if progress else True):
            meter.get(SIMULATED, subject.name(hardware, bits))
    except KeyboardInterrupt:
        complete = False
    known = [(h, b, meter.known(SIMULATED, subject.name(h, b))) for h, b in todo]
    points = tuple(Point(h, b, m.numbers, m.problem) for h, b, m in known if m is not None)
    return BitSweep(next(iter(reference)), judge.by, reference, points, complete)


def _about(materials: Mapping[str, Material], judge: Judge) -> Mapping[str, object]:
    """What measurements depend on beside hardware and width."""
    material = next(iter(materials.values()))
    config = replace(material.prepared.config, hardware="onednn", bits=None)
    return {**about(material, judge), "settings": config.to_json()}
