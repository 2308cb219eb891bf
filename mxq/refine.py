"""Refining: what calibration data says beyond ranges, put into the fused network before it is quantized.

::

    fused Model + Thresholds --equalize--> --biases, walk--> fused Model + Thresholds, closer to float once quantized
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from mxq.config import QuantConfig
from mxq.ir import Array, Model, Runner
from mxq.passes import quantize_graph
from mxq.passes.biases import add_biases
from mxq.plan import Plan, WeightRecord
from mxq.rewrite import Event, Trace
from mxq.thresholds import Thresholds
from mxq.weights.equalize import channels_seen, equalize
from mxq.weights.live import peak_bytes
from mxq.weights.walk import Setting, walk

EXAMPLES: Final = {"fast": 64, "default": 64, "best": 256}
"""How many examples are looked at, by effort."""
PLACES: Final = {"fast": 1, "default": 1, "best": 4}
"""How many places of a layer's output, in shares of the least."""
FOR_SCALES: Final = 16
"""Examples from which channels' ranges are taken."""
MEMORY: Final = 3 << 30
"""Bytes that tensors may take; fewer examples are looked at where they would take more."""


@dataclass(frozen=True)
class Looked:
    """Calibration data to look at again: ``feeds``, and the ``runner`` for it."""

    runner: Runner
    feeds: Sequence[Mapping[str, Array]]

    @staticmethod
    def at(runner: Runner, model: Model, data: Iterable[Mapping[str, Array]], config: QuantConfig) -> Looked:
        """As many examples of ``data`` as ``config.effort`` and memory allow, at least one batch."""
        most, chosen, count = EXAMPLES[config.effort], list[Mapping[str, Array]](), 0
        for feed in data:
            if not chosen:
                one = {name: value[:1] for name, value in feed.items()}
                most = max(1, min(most, MEMORY // max(2 * peak_bytes(runner, model, one), 1)))
            size = len(next(iter(feed.values())))
            part = feed if size <= most - count else {name: value[: most - count] for name, value in feed.items()}
            chosen.append(part)
            count += min(size, most - count)
            if count >= most:
                break
        return Looked(runner, chosen)


def equalized(looked: Looked, model: Model, thresholds: Thresholds, trace: Trace) -> tuple[Model, Thresholds]:
    """The network with channels scaled; see `mxq.weights.equalize`."""
    some, count = list[Mapping[str, Array]](), 0
    for feed in looked.feeds:
        if count >= FOR_SCALES:
            break
        some.append({name: value[: FOR_SCALES - count] for name, value in feed.items()})
        count += len(next(iter(feed.values())))
    model, thresholds, names = equalize(model, thresholds, channels_seen(looked.runner, model, some))
    trace.events.extend(Event("equalize", "equalize", name) for name in names)
    return model, thresholds


def refined(
    looked: Looked, model: Model, plan: Plan, thresholds: Thresholds, config: QuantConfig, *, exact: bool
) -> tuple[Model, Thresholds, Mapping[str, WeightRecord]]:
    """The network with weights, biases and ranges chosen layer by layer; see `mxq.weights.walk`.

    Args:
        exact: whether the target's kernels add products exactly.
    """
    model = add_biases(model, plan)
    _, records = quantize_graph(model, plan, thresholds, config)
    setting = Setting(model, plan, thresholds, records, config.methods, exact, PLACES[config.effort])
    found = walk(looked.runner, setting, looked.feeds)
    return found.model, found.thresholds, found.weights
