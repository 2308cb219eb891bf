"""Ranges that serve most examples: averages of what each example holds, where calibration takes the largest of all.

Where one picture of twenty excites a tensor ten times as much as the others, a range that holds all its values leaves
the others a tenth of the codes. Whether the network can do without these values its outputs tell (`held_out`), no
layer's.

Formula, x_n what example n makes of the tensor, within the calibrated range:

    mean:      [ mean_n min x_n, mean_n max x_n ]                                                         (1)
    quantile:  [ -q, q ],   q = median_n of the `QUANTILE` of |x_n|                                       (2)

Source: (1) Jacob et al., arXiv:1712.05877, section 3.1, an average of what batches hold; (2) Wu et al.,
arXiv:2004.09602, section 5.2, percentiles.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Final

import numpy as np

from mxq.graph.ir import Array, Model, Ref, Runner
from mxq.quant.thresholds import Range, Thresholds

QUANTILE: Final = 0.9999
EXAMPLES: Final = 16
"""How many are looked at."""
Rule = Callable[[Array], Range]
"""From (n, 3) float64, of each example least and largest value and quantile, to a range."""


def _mean(seen: Array) -> Range:
    return Range(min(float(seen[:, 0].mean()), 0.0), max(float(seen[:, 1].mean()), 0.0))


def _quantile(seen: Array) -> Range:
    size = float(np.median(seen[:, 2]))
    return Range(-size, size)


RULES: Final[Mapping[str, Rule]] = MappingProxyType({"mean": _mean, "quantile": _quantile})


def seen_of(
    runner: Runner, model: Model, refs: Sequence[Ref], examples: Sequence[Mapping[str, Array]]
) -> dict[str, Array]:
    """Of tensors of a float ``model``, (n, 3) float64 each: what `Rule` asks for.

    Args:
        runner: what runs the network.
        model: the network.
        refs: the tensors.
        examples: n batches of one example.
    """
    call, heads = runner.compile(model, refs), len(model.graph.heads)
    made = (call(example) for example in examples)
    found = np.array([[_told(np.asarray(each[heads + i])) for i in range(len(refs))] for each in made], np.float64)
    return {str(ref): found[:, i] for i, ref in enumerate(refs)}


def _told(value: Array) -> tuple[float, float, float]:
    sizes = np.abs(value).ravel()
    place = min(int(QUANTILE * sizes.size), sizes.size - 1)
    return float(value.min()), float(value.max()), float(np.partition(sizes, place)[place])


def ruled(thresholds: Thresholds, seen: Mapping[str, Array], rule: Rule) -> Thresholds:
    """Ranges by a rule, each within the calibrated one; those that are given stay."""
    table = dict(thresholds)
    for name, each in seen.items():
        was, asked = table[name], rule(each)
        span = was.range
        found = Range(max(span.min, min(asked.min, 0.0)), min(span.max, max(asked.max, 0.0)))
        if not was.is_fixed and found != span and found.absmax > 0:
            note = f"from [{span.min:.6g}, {span.max:.6g}], which few examples fill"
            table[name] = was.ranged(found, note)
    return Thresholds(table)
