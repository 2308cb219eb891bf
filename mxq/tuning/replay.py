"""A runner that remembers what the float network said, for many comparisons with it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from mxq.data.feed import examples_in
from mxq.graph.ir import Array, Executable, Graph, Model, Ref, Runner, Watched
from mxq.graph.traits import traits_of

MOST_BYTES: Final = 1 << 29
"""How much of the float network's outputs is kept; what does not fit is computed again each time."""

_TINY: Final = float(np.finfo(np.float64).tiny)


class Divergence:
    """The KL divergence of the int8 network's class probabilities from the float network's, sum_i p_i log(p_i / q_i).

    It looks at the first output that is class scores, (examples, classes); there may be none.
    """

    def __init__(self, graph: Graph) -> None:
        self._softmax = [traits_of(graph[head.name]).distribution for head in graph.heads]
        self._total, self._examples = 0.0, 0

    @property
    def mean(self) -> float | None:
        """Nats per example; None where no output is class scores."""
        return self._total / self._examples if self._examples else None

    def add(self, reference: Sequence[Array], candidate: Sequence[Array], examples: int) -> None:
        """One batch of outputs of both."""
        for i, softmax in enumerate(self._softmax):
            scores = reference[i]
            if scores.ndim == 2 and scores.shape[0] == examples and scores.shape[1] > 1:
                p, q = (_log_probabilities(s, softmax) for s in (scores, candidate[i]))
                self._total += float(np.sum(np.exp(p) * (p - q)))
                self._examples += examples
                return


@dataclass
class Replaying:
    """Runs ``reference`` from memory where its outputs of a batch are known; batches must come in the same order."""

    runner: Runner
    reference: Model
    _kept: list[tuple[Array, ...]] = field(default_factory=list)
    _bytes: int = 0

    def beside(self, divergence: Divergence) -> _Comparing:
        """A runner for one comparison, which shows ``divergence`` each batch."""
        return _Comparing(self, divergence)

    def recall(self, batch: int) -> tuple[Array, ...] | None:
        """The outputs of a batch, counted from 0."""
        return self._kept[batch] if batch < len(self._kept) else None

    def remember(self, batch: int, outputs: tuple[Array, ...]) -> None:
        size = sum(array.nbytes for array in outputs)
        if batch == len(self._kept) and self._bytes + size <= MOST_BYTES:
            self._kept.append(outputs)
            self._bytes += size


@dataclass
class _Comparing:
    """`mxq.graph.ir.Runner` for one `mxq.verification.accumulate.verify`."""

    replaying: Replaying
    divergence: Divergence
    _reference: tuple[Array, ...] = ()
    _begun: bool = False

    def compile(self, model: Model, taps: Sequence[Ref] = ()) -> Executable:
        if model is self.replaying.reference and not self._begun:  # else it is compared with itself
            self._begun = True
            return self._replayed(model)
        bound = self.replaying.runner.compile(model, taps)

        def run(feeds: Mapping[str, Array]) -> Sequence[Array]:
            outputs = tuple(bound(feeds)[:])
            self.divergence.add(self._reference, outputs, examples_in(feeds))
            return outputs

        return run

    def watch(self, model: Model, refs: Sequence[Ref]) -> Watched:
        return self.replaying.runner.watch(model, refs)

    def _replayed(self, model: Model) -> Executable:
        bound: list[Executable] = []
        count = 0

        def run(feeds: Mapping[str, Array]) -> Sequence[Array]:
            nonlocal count
            known = self.replaying.recall(count)
            if known is None:
                if not bound:
                    bound.append(self.replaying.runner.compile(model))
                known = tuple(bound[0](feeds)[:])
                self.replaying.remember(count, known)
            self._reference = known
            count += 1
            return known

        return run


def _log_probabilities(scores: Array, softmax: bool) -> Array:
    """(n, classes) float64; of logits, or of probabilities where the output is a softmax already."""
    wide = scores.astype(np.float64)
    if softmax:
        return np.asarray(np.log(np.maximum(wide, _TINY)))
    centred = wide - wide.max(axis=1, keepdims=True)
    return np.asarray(centred - np.log(np.exp(centred).sum(axis=1, keepdims=True)))
