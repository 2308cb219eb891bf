"""Layer after layer: how noisy its tensor is, and how much of that it adds itself.

With x the tensor in the float network, y in the int8 one, and f what the float network's own layer, with its original
weights, makes of the int8 network's inputs: ``y - x = (y - f) + (f - x)``, the error introduced and the error
inherited. Both are measured against the energy of x, so that they can be compared with each other and with the whole.

f is found by running the piece of the float network between the tensors that both have (`mxq.verification.taps.cut`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from mxq.graph.ir import Array, Model, Ref, Runner
from mxq.verification.agreement import Layer
from mxq.verification.measures import Energy
from mxq.verification.stored import LEVELS, Reading, StoredTensor
from mxq.verification.taps import Part, Tap, cut


@dataclass(frozen=True)
class Sums:
    """Sums over batches for one tap.

    Attributes:
        dtype: of the int8 network's tensor; empty where the two networks never had the same shape.
        total, introduced, inherited: see the module; the latter two are None where f is not known.
        clipped: how many of ``elements`` were clipped.
        used: (256,) bool: which codes occurred.
    """

    dtype: str = ""
    total: Energy = field(default_factory=Energy)
    introduced: Energy | None = field(default_factory=Energy)
    inherited: Energy | None = field(default_factory=Energy)
    clipped: int = 0
    elements: int = 0
    used: Array = field(default_factory=lambda: np.zeros(LEVELS, bool))

    def add(self, x: Array, reading: Reading, f: Array | None) -> Sums:
        """Takes in one batch."""
        wide, y = x.astype(np.float64), reading.values.astype(np.float64)
        introduced = inherited = None
        if f is not None and self.introduced is not None and self.inherited is not None:
            introduced = self.introduced.update(wide, wide + (y - f))  # the error y - f, against the energy of x
            inherited = self.inherited.update(wide, f)
        return Sums(
            str(reading.codes.dtype),
            self.total.update(wide, y),
            introduced,
            inherited,
            self.clipped + reading.clipped(x if f is None else f),
            self.elements + y.size,
            self.used | reading.used(),
        )

    def layer(self, tap: Tap) -> Layer:
        """The measures."""
        coded = bool(self.used.any())
        return Layer(
            tap.name,
            tap.op,
            self.dtype,
            self.total.sqnr,
            self.total.cosine,
            introduced=None if self.introduced is None else self.introduced.sqnr,
            inherited=None if self.inherited is None else self.inherited.sqnr,
            clipped=self.clipped / self.elements if coded else None,
            levels=int(self.used.sum()) if coded else None,
        )


class LayerTally:
    """Running sums of all taps. Tensors are read one by one, and a layer's own run is over before the next one's."""

    def __init__(self, runner: Runner, model: Model, taps: Sequence[Tap]) -> None:
        self.taps = taps
        self.float_refs = tuple(dict.fromkeys(tap.float for tap in taps))
        stored = (ref for tap in taps for h in (tap.stored, *tap.reads.values()) for ref in h.refs)
        self.int8_refs = tuple(dict.fromkeys(stored))
        self._runner, self._inputs = runner, frozenset(model.inputs)
        self._sums = [Sums() for _ in taps]
        self._parts = [cut(model, tap.float, tap.reads) for tap in taps]

    def add(self, reference: Callable[[int], Array], candidate: Callable[[int], Array]) -> None:
        """Takes in one batch: ``float_refs[i]`` of the float model is ``reference(i)``; likewise of the int8 one."""
        places = {ref: i for i, ref in enumerate(self.int8_refs)}
        sources = {ref: i for i, ref in enumerate(self.float_refs)}
        shapes: dict[Ref, tuple[int, ...]] = {}

        def read(stored: StoredTensor) -> Reading:
            return stored.read([candidate(places[ref]) for ref in stored.refs])

        for i, tap in enumerate(self.taps):
            x, reading = reference(sources[tap.float]), read(tap.stored)
            shapes[tap.float] = x.shape
            part = tap.stored.part
            if part(x).shape == reading.codes.shape:
                inputs = {ref: read(stored).values for ref, stored in tap.reads.items()}
                f = x if tap.float.name in self._inputs else self._exact(i, inputs, shapes)
                self._sums[i] = self._sums[i].add(part(x), reading, None if f is None else part(f))

    def _exact(self, i: int, inputs: Mapping[Ref, Array], shapes: Mapping[Ref, tuple[int, ...]]) -> Array | None:
        """What the float layer of tap ``i`` makes of ``inputs``; None where it cannot be told."""
        target, part = self.taps[i].float, self._parts[i]
        if any(shapes.get(ref, value.shape) != value.shape for ref, value in inputs.items()):
            return None
        if target in inputs:  # a quantizer leaves the value as it is
            return inputs[target]
        if part is None:
            return None
        found = _run(self._runner, part, inputs)
        return found if found.shape == shapes[target] else None

    def result(self) -> tuple[Layer, ...]:
        """The layers that could be compared, in graph order."""
        return tuple(s.layer(tap) for tap, s in zip(self.taps, self._sums, strict=True) if s.dtype)


def _run(runner: Runner, part: Part, inputs: Mapping[Ref, Array]) -> Array:
    # Bound anew for each batch: kept, the executors of all layers would hold every tensor of the network once more.
    return runner.compile(part.model)(part.feeds(inputs))[0]
