"""What calibration has seen of a network: a state for each tensor, mergeable, and kept in a file of plain arrays.

A file is a NumPy ``.npz`` archive without pickled objects: ``about`` is JSON text (format, the network's fingerprint,
what is collected of each tensor, which data), and every array of the states stands under ``NUMBER.FIELD``. It is
written under another name, then renamed, so at any moment the file is whole: the old one or the new.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

import numpy as np

from mxq import observers
from mxq.errors import CalibrationError, FormatError
from mxq.formats.arrays import Archive, open_npz
from mxq.formats.documents import Count, converted, parse_json
from mxq.observers import Observer, State
from mxq.observers.base import Layout
from mxq.quant import ANY8, MXNET, QuantSpec, Scheme
from mxq.quant.thresholds import Threshold, Thresholds
from mxq.storage.writing import write_bytes

FORMAT: Final = "mxq-statistics/1"


@dataclass(frozen=True, slots=True)
class DataSegment:
    """Data that was seen, in one go or in several.

    Attributes:
        name: what the user calls it: a path, a partition.
        first: sha256 of its first batch; tells other data, or other preprocessing, under the same name.
        examples, batches: how much of it was seen.
        complete: whether that was all that was wanted.
    """

    name: str = ""
    first: str = ""
    examples: Count = 0
    batches: Count = 0
    complete: bool = False


@dataclass(frozen=True)
class Statistics:
    """States by tensor name (``str(Ref)``), of all data in ``stretches``.

    Attributes:
        states: tensor -> state.
        stretches: the data, in order.
        network: the fingerprint of the network (`mxq.pipeline.fingerprint`); empty where nobody asked.
    """

    states: Mapping[str, State] = field(default_factory=dict)
    stretches: tuple[DataSegment, ...] = ()
    network: Mapping[str, object] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "states", MappingProxyType(dict(self.states)))

    @property
    def examples(self) -> int:
        return sum(s.examples for s in self.stretches)

    @property
    def batches(self) -> int:
        return sum(s.batches for s in self.stretches)

    @property
    def complete(self) -> bool:
        """Whether all data that was wanted has been seen."""
        return bool(self.stretches) and all(s.complete for s in self.stretches)

    @property
    def kinds(self) -> dict[str, str]:
        """Tensor -> what is collected of it."""
        return {name: state.statistic for name, state in self.states.items()}

    def merge(self, after: Statistics) -> Statistics:
        """The statistics of the data of both, where it matters that of ``after`` coming later.

        Raises:
            CalibrationError: they are of different networks, tensors or observers, or both hold the same data.
        """
        self.check(after.network, after.kinds)
        twice = {(s.name, s.first) for s in self.stretches if s.first} & {(s.name, s.first) for s in after.stretches}
        if twice:
            name, first = min(twice)
            raise CalibrationError(f"both hold the data {name!r} (first batch {first[:12]}), which would count twice")
        states = {name: _merged(state, after.states[name]) for name, state in self.states.items()}
        return Statistics(states, self.stretches + after.stretches, self.network or after.network)

    def check(self, network: Mapping[str, object], kinds: Mapping[str, str]) -> None:
        """Refuses what cannot go together with these statistics.

        Args:
            network: a fingerprint; an empty one fits all.
            kinds: tensor -> what is collected of it.

        Raises:
            CalibrationError: the message names the first difference.
        """
        if network and self.network:
            self.check_network(network)
        mine = self.kinds
        for name in sorted({*mine, *kinds}):
            if mine.get(name) != kinds.get(name):
                have, wanted = (t.get(name) or "nothing" for t in (mine, kinds))
                raise CalibrationError(
                    f"the statistics hold {have} of tensor {name!r}, wanted is {wanted}; calibrate anew, or ask for "
                    "an observer that these statistics serve"
                )

    def check_network(self, network: Mapping[str, object]) -> None:
        """Refuses a network with another fingerprint.

        Raises:
            CalibrationError: the message names the part that differs.
        """
        for part in sorted({*network, *self.network}):
            if network.get(part) != self.network.get(part):
                raise CalibrationError(
                    f"the statistics are of another network: its {part} is {_short(self.network.get(part))}, "
                    f"this one's is {_short(network.get(part))}"
                )

    def thresholds(
        self,
        wanted: Mapping[str, Observer[Any]],
        specs: Mapping[str, QuantSpec] | QuantSpec = ANY8,
        scheme: Scheme = MXNET,
    ) -> Thresholds:
        """The range of every tensor in ``wanted``, with its provenance. Reading has no effect; read again at will.

        Args:
            wanted: tensor -> its observer; it need not be the one that collected, but must read that statistic.
            specs: what codes are to be, of all tensors, or by tensor (`ANY8` where a name is missing).
            scheme: how scales will follow from ranges.

        Raises:
            CalibrationError: a tensor is not among the statistics, its statistic does not serve the observer, or it had
                no values.
            ConfigError: a spec is not of the scheme.
        """
        by_name = specs if isinstance(specs, Mapping) else dict.fromkeys(wanted, specs)

        def one(name: str) -> Threshold:
            return self._threshold(name, wanted[name], by_name.get(name, ANY8), scheme)

        return Thresholds(dict(zip(wanted, observers.in_parallel(one, wanted), strict=True)))

    def _threshold(self, name: str, observer: Observer[Any], spec: QuantSpec, scheme: Scheme) -> Threshold:
        if name not in self.states:
            raise CalibrationError(f"no range was calibrated for tensor {name!r} ({len(self.states)} others were)")
        state = self.states[name]
        if not observer.reads(state.statistic):
            raise CalibrationError(
                f"tensor {name!r}: the statistics hold its {state.statistic}, observer {observers.spec_of(observer)!r} "
                f"needs its {observer.statistic}; calibrate anew, or ask for another observer"
            )
        try:
            candidates = observer.candidates(state, spec, scheme)
            found = candidates[0].range if candidates else observer.range(state, spec, scheme)
        except CalibrationError as error:
            raise CalibrationError(f"tensor {name!r}: {error}") from error
        return Threshold(
            range=found,
            observer=candidates[0].observer if candidates else observers.spec_of(observer),
            examples=self.examples,
            batches=self.batches,
            observed=observer.observed(state),
            note=observer.note(state, spec),
            candidates=candidates,
        )

    def save(self, path: str | Path) -> None:
        """Writes the file, whole or not at all.

        Raises:
            FormatError: the folder does not exist or cannot be written.
        """
        about = {
            "format": FORMAT,
            "network": dict(self.network),
            "tensors": [{"name": name, "kind": state.kind} for name, state in self.states.items()],
            "stretches": [asdict(s) for s in self.stretches],
        }
        arrays = {
            f"{number}.{key}": value
            for number, state in enumerate(self.states.values())
            for key, value in state.to_arrays().items()
        }
        archive = io.BytesIO()  # zipfile, where a disk is full, complains a second time when it is thrown away
        np.savez(archive, about=np.array(json.dumps(about)), **arrays)
        write_bytes(path, archive.getvalue())

    @staticmethod
    def load(path: str | Path) -> Statistics:
        """Reads what `save` wrote.

        Raises:
            FormatError: no such file, another format, or damaged.
        """
        with open_npz(path, FormatError, "statistics of mxq") as archive:
            try:
                about = _about(archive)
                kinds = {t.name: t.kind for t in about.tensors}
                if len(kinds) < len(about.tensors):
                    raise FormatError("statistics are damaged: they hold a tensor twice")
                states = {name: _state(number, kind, archive) for number, (name, kind) in enumerate(kinds.items())}
            except FormatError as error:
                raise FormatError(str(error) if str(path) in str(error) else f"{path}: {error}") from None
        return Statistics(states, about.stretches, about.network)


@dataclass(frozen=True, slots=True)
class _Tensor:
    """What is collected of a tensor."""

    name: str
    kind: str


@dataclass(frozen=True, slots=True)
class _About:
    """The JSON of a file."""

    format: str
    network: dict[str, Any]
    tensors: list[_Tensor]
    stretches: tuple[DataSegment, ...]


def _about(archive: Archive) -> _About:
    archive.check("about")
    held = archive.headers.get("about")
    if held is None or held.dtype.kind != "U" or held.shape:
        raise FormatError("no statistics of mxq")
    about = parse_json(str(archive["about"]), "'about'")
    found = about.get("format") if isinstance(about, dict) else about
    if found != FORMAT:
        raise FormatError(f"statistics have format {found!r}; this version reads {FORMAT!r}")
    return converted(about, _About, "'about'")


def _state(number: int, kind: str, archive: Archive) -> State:
    made = observers.state_class(kind)
    if made is None:
        raise FormatError(f"a state is of kind {kind!r}; known: {', '.join(observers.STATES)}")
    layout: Layout = made.layout
    for key, (dtype, shape) in layout.items():
        archive.check(f"{number}.{key}")
        held = archive.headers.get(f"{number}.{key}")
        if held is None or (held.dtype, held.shape) != (np.dtype(dtype), shape):
            found = "missing" if held is None else f"{held.dtype}{list(held.shape)}"
            raise FormatError(f"statistics are damaged: {number}.{key} is {found}; needed: {dtype}{list(shape)}")
    state: State = made.from_arrays({key: archive[f"{number}.{key}"] for key in layout})
    return state


def _merged(a: Any, b: Any) -> State:
    state: State = a.merge(b)
    return state


def _short(value: object) -> str:
    return f"{value[:12]}..." if isinstance(value, str) and len(value) > 16 else repr(value)


def merge(parts: Mapping[str, Statistics]) -> Statistics:
    """Merges statistics in order; ``parts`` maps what each is called (a file) to it.

    Raises:
        CalibrationError: two do not fit; the message names them.
    """
    names = list(parts)
    total = parts[names[0]]
    for name in names[1:]:
        try:
            total = total.merge(parts[name])
        except CalibrationError as error:
            raise CalibrationError(f"{names[0]} and {name} do not merge: {error}") from None
    return total
