"""Refining: what calibration data says beyond ranges, put into the fused network before it is quantized.

::

    fused Model + Thresholds --equalize--> --biases, walk--> fused Model + Thresholds, closer to float once quantized
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Final

from mxq.backends import layer_of
from mxq.batches import Feed, Feeds, shares
from mxq.config import QuantConfig
from mxq.errors import RuntimeFailure
from mxq.ir import Array, Model, Node, Runner
from mxq.passes import quantize_graph
from mxq.passes.biases import add_biases
from mxq.passes.exact import on_grid
from mxq.passes.guard import kernels
from mxq.plan import Plan, WeightRecord
from mxq.rewrite import Event, Trace
from mxq.thresholds import Thresholds
from mxq.weights.activity import sampled
from mxq.weights.analytic import corrected
from mxq.weights.equalize import channels_seen, equalize
from mxq.weights.live import peak_bytes
from mxq.weights.walk import Setting, walk

EXAMPLES: Final = {"fast": 64, "default": 64, "best": 256}
"""How many examples are looked at, by effort."""
PLACES: Final = {"fast": 1, "default": 1, "best": 4}
"""How many places of a layer's output, in shares of the least."""
FOR_SCALES: Final = 16
"""Examples from which channels' ranges are taken."""
SWEEPS: Final = {"fast": 0, "default": 0, "best": 2}
"""How often rounding goes over the weights of a layer again."""
AT_ONCE: Final = 8
"""Examples of which all tensors are held at once, where the guard against saturation takes samples."""
MEMORY: Final = 3 << 30
"""Bytes that tensors may take; fewer examples are looked at where they would take more."""


@dataclass(frozen=True)
class Looked:
    """Calibration data to look at again: ``feeds``, and the ``runner`` for it."""

    runner: Runner
    feeds: Sequence[Mapping[str, Array]]

    @staticmethod
    def at(runner: Runner, model: Model, data: Iterable[Feed], config: QuantConfig) -> Looked:
        """As many examples of ``data`` as ``config.effort`` and memory allow, at least one; see `Feeds.take`."""
        asked = EXAMPLES[config.effort]
        taken = _taken(data, asked)
        first = next(taken, None)
        if first is None:
            return Looked(runner, [])
        most = max(1, _affordable(runner, model, first))
        return Looked(runner, list(chain((first,), taken) if most >= asked else _taken(data, most)))

    def some(self, examples: int) -> list[Mapping[str, Array]]:
        """The first so many examples."""
        found, count = list[Mapping[str, Array]](), 0
        for feed in self.feeds:
            if count >= examples:
                break
            found.append({name: value[: examples - count] for name, value in feed.items()})
            count += len(next(iter(feed.values())))
        return found

    def pieces(self, size: int) -> Iterator[dict[str, Array]]:
        """All examples, so many at once at most."""
        for feed in self.feeds:
            for start in range(0, len(next(iter(feed.values()))), size):
                yield {name: value[start : start + size] for name, value in feed.items()}


def _taken(data: Iterable[Feed], count: int) -> Iterator[Feed]:
    return data.take(count) if isinstance(data, Feeds) else shares(data, count)


def _affordable(runner: Runner, model: Model, feed: Mapping[str, Array]) -> int:
    """How many examples' tensors fit into memory; a network made for one batch size is asked with that."""
    size = len(next(iter(feed.values())))
    try:
        each = peak_bytes(runner, model, {name: value[:1] for name, value in feed.items()})
    except RuntimeFailure:
        each = peak_bytes(runner, model, feed) // size
    return MEMORY // max(2 * each, 1)


def activations(looked: Looked, model: Model, plan: Plan) -> dict[str, Array]:
    """Samples of what dense int8 layers read, by name; of all examples, as each has but one place after a pooling."""
    nodes = [n for n in model.graph.operators if n.name in plan.quantized and _is_dense(n)]
    return sampled(looked.runner, model, nodes, looked.pieces(AT_ONCE))


def _is_dense(node: Node) -> bool:
    layer = layer_of(node)
    return layer is not None and int(layer.number("num_group", 1)) == 1


def equalized(looked: Looked, model: Model, thresholds: Thresholds, trace: Trace) -> tuple[Model, Thresholds]:
    """The network with channels scaled; see `mxq.weights.equalize`."""
    seen = channels_seen(looked.runner, model, looked.some(FOR_SCALES))
    model, thresholds, names = equalize(model, thresholds, seen)
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
    places, sweeps = PLACES[config.effort], SWEEPS[config.effort]
    setting = Setting(model, plan, thresholds, records, config.methods, exact, places, sweeps)
    found = walk(looked.runner, setting, looked.feeds)
    return found.model, found.thresholds, found.weights


def analytic(
    source: Model,
    before: Model,
    model: Model,
    plan: Plan,
    thresholds: Thresholds,
    config: QuantConfig,
    *,
    exact: bool,
) -> Model:
    """The network with biases corrected by what BatchNorm knows, without data; see `mxq.weights.analytic`.

    Args:
        source: the network as given.
        before: fused, its weights those of float.
        model: the same, its weights as they are written.
        exact: whether the target's kernels add products exactly.
    """
    model = add_biases(model, plan)
    values = {}
    for name, (kernel, _) in kernels(model, plan, thresholds, config).items():
        weight = model.graph[name].inputs[1].name
        values[weight] = on_grid(model.args[weight], halved=kernel == "halved" and not exact)
    return corrected(source, before, model, values, plan)
