"""Which of several quantized networks is closest to float, by their outputs on examples that nothing was fitted to.

What serves a layer's output need not serve the network's: a layer is hurt most by losing its largest values, which the
network may not need. And what serves the examples that are fitted to need not serve others. So every fourth example is
held back, and a method is kept where it brings the network's outputs closer to float on these.

Formula, over the outputs o of the network, whose examples count together:

    noise = mean_o  sum |y'_o - y_o|^2 / sum |y_o|^2                                                      (1)

y' as exact int8 kernels give it, simulated (`mxq.backends.simulate`). An output that is zero, or not finite, is left
out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

import numpy as np

from mxq.backends.simulate import simulate
from mxq.data.feed import Feed, examples_in, taken
from mxq.graph.ir import Array, Model, Runner
from mxq.quant import QuantizedNetwork

OF: Final = 4
"""Of so many examples, the last is held back."""
LEAST: Final = 8
"""Of fewer examples none is held back."""
MOST: Final = 16
"""How many are held back at most."""
BETTER: Final = 0.97
"""Another network has to bring the noise below so much of that of what is asked for, as examples are few."""
MUCH_BETTER: Final = 0.8
"""The same for where to begin, 1 dB: refinement is still to come, and brings more where ranges hold all values."""


def divided(feeds: Sequence[Feed], *, cut: bool) -> tuple[list[Feed], list[Feed]]:
    """What is fitted to, and what is held back; all and nothing where there is too little.

    Args:
        feeds: batches of examples.
        cut: whether a batch may be cut; else batches count as examples do.
    """
    sizes = [examples_in(feed) if cut else 1 for feed in feeds]
    if sum(sizes) < LEAST:
        return list(feeds), []
    starts = np.cumsum([0, *sizes])
    fitted, held = list[Feed](), list[Feed]()
    for feed, (start, stop) in zip(feeds, pairwise(starts), strict=True):
        places = np.arange(start, stop)
        back = (places % OF == OF - 1) & (places // OF < MOST)
        for found, chosen in ((fitted, ~back), (held, back)):
            if chosen.any():
                found.append(feed if chosen.all() else taken(feed, np.flatnonzero(chosen)))
    return fitted, held


@dataclass(frozen=True)
class Judge:
    """Knows what a float network makes of examples that are held back.

    Attributes:
        runner: what runs networks.
        feeds: the examples, some at a time.
        wanted: of each of ``feeds``, the outputs of the float network.
    """

    runner: Runner
    feeds: Sequence[Mapping[str, Array]]
    wanted: Sequence[Sequence[Array]]

    @staticmethod
    def of(runner: Runner, model: Model, feeds: Sequence[Mapping[str, Array]]) -> Judge:
        """Of a float ``model``."""
        return Judge(runner, feeds, list(_outputs(runner, model, feeds)))

    def noise(self, network: QuantizedNetwork) -> float:
        """See (1); 1 is as much as there is signal."""
        found = _outputs(self.runner, simulate(network), self.feeds)
        energies = np.array([list(map(_energies, *pair)) for pair in zip(self.wanted, found, strict=True)])
        noise, signal = energies.sum(axis=0).T
        heard = signal > 0
        return float((noise[heard] / signal[heard]).mean()) if heard.any() else 0.0

    def best(
        self, first: QuantizedNetwork, others: Mapping[str, Callable[[], QuantizedNetwork]], better: float = BETTER
    ) -> Verdict:
        """The network of least noise, of which each has to be ``better`` than those before it.

        Args:
            first: what is kept where nothing speaks against it.
            others: what else there is, by name; made when it is its turn.
            better: below so much of the noise.
        """
        known, chosen = {"": self.noise(first)}, ("", first)
        for name, make in others.items():
            network = make()
            known[name] = self.noise(network)
            if known[name] < better * known[chosen[0]]:
                chosen = name, network
        return Verdict(*chosen, known)


@dataclass(frozen=True)
class Verdict:
    """What a `Judge` found: the ``network`` to take, its ``name`` among others or "", and the ``noise`` of each."""

    name: str
    network: QuantizedNetwork
    noise: Mapping[str, float]


def _outputs(runner: Runner, model: Model, feeds: Sequence[Mapping[str, Array]]) -> Iterator[list[Array]]:
    call = runner.compile(model)
    for feed in feeds:
        yield [np.array(output) for output in call(feed)]


def _energies(wanted: Array, found: Array) -> tuple[float, float]:
    """Of the noise and of the signal, where both are finite."""
    known = np.isfinite(wanted) & np.isfinite(found)
    signal, noise = (
        np.where(known, a, 0).astype(np.float64) for a in (wanted, np.subtract(found, wanted, where=known))
    )
    return float(np.vdot(noise, noise)), float(np.vdot(signal, signal))
