"""How long a network takes, modelled: from its multiply-adds and the bytes it moves, float against int8.

The unit is one float multiply-add. An operator costs its multiply-adds, fewer in int8 by the `GAIN` of the CPU, and its
bytes, of which int8 has a quarter; where a float tensor meets an int8 reader, or the reverse, it is converted once. The
model ranks networks that differ in a few layers; milliseconds are for `mxq.bench`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import Final

from mxq.backends import layer_of
from mxq.data.feed import Feed, examples_in
from mxq.graph.ir import Array, Model, Node, Ref, Runner
from mxq.host import machine

GAIN: Final[Mapping[str, float]] = {"avx512_vnni": 4.0, "avx512": 2.0, "avx2": 1.6, "unsupported": 1.0}
"""Int8 multiply-adds in the time of one in float. VNNI's is what ResNet-50 gains on two cores; without it, products of
16 bits take three instructions (oneDNN's documentation, "Nuances of int8 computations")."""

BYTE: Final = 4.0
"""Float multiply-adds in the time that a byte takes to be moved: about 100e9 a second against 25 GB/s."""


@dataclass(frozen=True, slots=True)
class Work:
    """What an operator does for one example: ``multiply_adds``, and the elements it reads and writes.

    ``weights`` are its parameters' elements.
    """

    multiply_adds: int
    read: int
    written: int
    weights: int = 0


@dataclass(frozen=True)
class CostModel:
    """Costs of one fused network, by what of it is int8.

    Attributes:
        model: the fused float network.
        elements: tensor -> its elements for one example.
        target: which `GAIN`.
    """

    model: Model
    elements: Mapping[Ref, int]
    target: str

    @cached_property
    def work(self) -> Mapping[str, Work]:
        """Operator -> its work."""
        return {node.name: self._work(node) for node in self.model.graph.operators}

    def cost(self, int8: Collection[str]) -> float:
        """The modelled time of one example, in float multiply-adds, where the operators ``int8`` run in int8."""
        chosen = frozenset(int8)
        own = sum(self._own(self.work[n.name], n.name in chosen) for n in self.model.graph.operators)
        return own + sum(BYTE * 5 * self.elements.get(ref, 0) for ref in self._converted(chosen))

    def share(self, name: str) -> float:
        """The share, 0..1, that an operator has in the multiply-adds of the network."""
        total = sum(w.multiply_adds for w in self.work.values())
        return self.work[name].multiply_adds / total if total else 0.0

    def _own(self, work: Work, int8: bool) -> float:
        moved = work.read + work.written + work.weights
        return work.multiply_adds / (GAIN[self.target] if int8 else 1.0) + BYTE * moved * (1 if int8 else 4)

    def _converted(self, int8: frozenset[str]) -> Iterator[Ref]:
        """Tensors that exist in float and in int8, each once: 4 bytes on one side, 1 on the other."""
        graph = self.model.graph
        readers: dict[Ref, set[bool]] = {}
        for node in graph.operators:
            for ref in node.inputs:
                if ref in self.elements:
                    readers.setdefault(ref, set()).add(node.name in int8)
        for head in graph.heads:
            readers.setdefault(head, set()).add(False)
        for ref, kinds in readers.items():
            if kinds != {ref.name in int8}:
                yield ref

    def _work(self, node: Node) -> Work:
        written = self.elements.get(node.out, 0)
        read = sum(self.elements.get(ref, 0) for ref in node.inputs)
        params = [p for ref in node.inputs if (p := self.model.param(ref.name)) is not None]
        macs = written * prod(params[0].shape[1:]) if layer_of(node) is not None and params else 0
        return Work(macs, read, written, sum(p.size for p in params))


def cost_model(runner: Runner, fused: Model, feed: Feed, target: str = "native") -> CostModel:
    """Runs the fused float network once, to see how large its tensors are.

    Args:
        runner: what runs it.
        fused: the network, as `mxq.pipeline.plan` fuses it.
        feed: one batch.
        target: of `mxq.config.QuantConfig`; "native" is this machine.
    """
    examples = examples_in(feed)
    elements = {Ref(name): array.size // examples for name, array in feed.items() if name in fused.graph}

    def visit(ref: Ref, values: Array) -> None:
        elements[ref] = values.size // examples

    runner.watch(fused, [node.out for node in fused.graph.operators])(feed, visit)
    return CostModel(fused, elements, machine.detect().target if target == "native" else target)
