"""Narrow a tensor's range where that helps the layers that read it: fewer values represented, all others finer.

Formula. Of the ranges ``a * r``, r the calibrated one and a in `SHARES` (with a zero point, the part of r in which no
absolute value exceeds a times the largest), take the one of least

    sum_j  mean_n  || W_j (q_a(x_n) - x_n) ||^2 / || W_j x_n ||^2                                         (1)

over the layers j that read x; for a reader that is no layer (a sum, a pooling) W_j is the identity. Examples n count
alike, and so do the words of texts, which LayerNorms behind a layer bring to one size: where one is a hundred times as
large as the others, a range for it leaves these few codes. To each denominator
`QUIET` of its mean is added, as an example that is nearly zero is not to decide. What rounding adds falls with a^2 and
what clipping adds grows, so shares are tried in order until the sum has grown. Source: the reconstruction error of a
layer's output as a criterion for ranges, Wang et al., "Towards Accurate Post-training Network Quantization via
Bit-Split and Stitching" (ICML 2020), section 3.2; Nagel et al., arXiv:2106.08295, eq. 11 for the tensor's own. Where
layers saturate, (1) has what that costs in a range (`limits.Exposed`), and wider ones are tried.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from mxq.graph.ir import Array
from mxq.quant.thresholds import Range
from mxq.saturation.limits import Exposed
from mxq.saturation.remedies import factors
from mxq.weights.coding import Code

SHARES = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.42, 0.35, 0.3, 0.25, 0.2, 0.16, 0.13, 0.1)
QUIET = 0.01
GAIN = 0.98
"""A narrower range has to bring the error below so much of the calibrated one's, or it is not worth its clipping."""
ENOUGH, MANY = 1.5, 1 << 16
"""Where the error is so many times the least, no further shares are tried; of fewer values chance may make it grow."""
EXAMPLES = 8
"""How many examples' worth of a tensor is looked at."""
Reader = Callable[[Array], Array]
"""The linear part of what reads a tensor: (n, ...) to (n, ...). All that reads int8 takes each of the n by itself. What
takes each row of (n, ..., C) by itself may give (n * ..., O): then rows count as examples."""


def telling(batches: Sequence[Array], examples: int) -> list[Array]:
    """Little of a tensor: half of it where its largest values are, which a narrower range would cut off.

    Args:
        batches: (n, ...) each, of any n and sizes: the n are examples, steps of time, or both in a row.
        examples: how many examples the batches are of.

    Returns:
        Arrays (n, ...), one for each size that occurs.
    """
    filled = [b for b in batches if b.size]
    if not filled:
        return []
    largest = np.concatenate([np.abs(b).reshape(len(b), -1).max(axis=1) for b in filled])
    order = np.argsort(-largest, kind="stable")
    half = max(EXAMPLES, round(EXAMPLES * len(order) / max(examples, 1))) // 2
    rest = order[half:]
    chosen = np.sort([*order[:half], *rest[:: max(1, -(-len(rest) // half))]])
    starts = np.cumsum([0, *(len(b) for b in filled)])
    alike: dict[tuple[int, ...], list[Array]] = {}
    for at, place in zip(np.searchsorted(starts, chosen, side="right") - 1, chosen, strict=True):
        alike.setdefault(filled[at].shape[1:], []).append(filled[at][place - starts[at]])
    return [np.stack(found) for found in alike.values()]


def narrowed(
    values: Sequence[Array],
    span: Range,
    code: Code,
    readers: Sequence[Reader],
    exposed: Sequence[Exposed] = (),
    *,
    widen: bool = True,
) -> Range:
    """The range of least error (1).

    Args:
        values: (n, ...) float32, pieces of the tensor before it is coded.
        span: the calibrated range.
        code: how the tensor is coded.
        readers: at least one.
        exposed: those of them that saturate.
        widen: whether the range may be wider for them.
    """
    energies = ((reader, _energies(reader, values)) for reader in readers)
    heard = [(reader, energy + QUIET * energy.mean()) for reader, energy in energies if energy.sum() > 0]
    spans, costs, size = [code.within(span, share) for share in SHARES], list[float](), sum(v.size for v in values)

    def cost(tried: Range) -> float:
        noise = [code.coded(value, tried) - value for value in values]
        saturated = sum(e.cost(code.scale(tried)) for e in exposed)
        return saturated + sum(float((_energies(reader, noise) / energy).mean()) for reader, energy in heard)

    for tried in spans:
        costs.append(cost(tried))
        if size >= MANY and costs[-1] > ENOUGH * min(costs):
            break
    if exposed and widen:
        wider = [span.times(f) for f in max((factors(e.kernel) for e in exposed), key=len)]
        spans, costs = [*spans[: len(costs)], *wider], [*costs, *map(cost, wider)]
    best = int(np.argmin(costs))
    return spans[best] if costs[best] < GAIN * costs[0] else span


def _energies(reader: Reader, values: Sequence[Array]) -> Array:
    """Of each example in what ``reader`` makes of all ``values``, float64."""
    rows = (made.reshape(len(made), -1) for made in map(reader, values))
    return np.concatenate([np.einsum("nk,nk->n", row, row, dtype=np.float64) for row in rows])
