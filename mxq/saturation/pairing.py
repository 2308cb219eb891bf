"""Which input channels are best neighbours, so that fewest pairs of their products can saturate (`saturation`).

Formula. The cost of channels i and j as a pair is ``E_ij = sum_o,k max(0, A_i |w_oik| + A_j |w_ojk| - 32767)^2`` over
those weights of one sign, A the largest activation codes. A perfect matching of small cost is found greedily, the
channels of most conflicts first, then improved by exchanges between two pairs until none helps (2-opt).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from mxq.graph.ir import Array
from mxq.host.parallel import compiled
from mxq.saturation.kernels import BOTTOM, HIGHEST, TOP

ROUNDS = 10
_LEAST = 1e-6
"""An exchange must gain this share of the pair's cost, so that rounding cannot make it go in circles."""


def conflicts(codes: Array, highest: ArrayLike = HIGHEST) -> Array:
    """The cost of every two input channels as a pair.

    Args:
        codes: (O, I, ...) integers in -128..127.
        highest: (I,) or one number, the largest activation code of each channel.

    Returns:
        (I, I) float64, symmetric, in squared units of the 16-bit sum, 0 on the diagonal.
    """
    rows = np.moveaxis(codes.reshape(*codes.shape[:2], -1), 2, 1).reshape(-1, codes.shape[1])
    found = np.zeros((codes.shape[1], codes.shape[1]), np.float32)
    for sign, bound in ((1, TOP), (-1, -BOTTOM)):
        sums = (np.maximum(sign * rows.astype(np.int32), 0) * np.asarray(highest, np.int32)).astype(np.float32)
        _add_excess(sums[(sums > bound / 2).any(axis=1)], np.float32(bound), found)
    np.fill_diagonal(found, 0)
    return np.asarray(found + found.T, np.float64)


@compiled
def _add_excess(sums: Array, bound: np.float32, found: Array) -> None:
    """Adds to ``found`` (I, I) how far the sums of each two of a row exceed ``bound``, squared.

    One of two that are too much together is more than half; two that are so meet twice.
    """
    half = bound / 2
    for row in range(sums.shape[0]):
        for i in range(sums.shape[1]):
            if sums[row, i] > half:
                room = bound - sums[row, i]
                for j in range(sums.shape[1]):
                    over = max(sums[row, j] - room, 0)
                    found[i, j] += over * over / 2 if sums[row, j] > half else over * over


def cost_of(order: Array, costs: Array) -> float:
    """The cost of pairing the channels of ``order`` (I,) two by two."""
    even = len(order) - len(order) % 2
    return float(costs[order[0:even:2], order[1:even:2]].sum())


def matching(costs: Array) -> Array:
    """An order of channels in which neighbours, two by two, cost little.

    Args:
        costs: (I, I), from `conflicts`.

    Returns:
        (I,) int, a permutation; the identity where nothing costs less. With I odd the last channel stays alone.
    """
    same = np.arange(len(costs))
    if cost_of(same, costs) == 0:
        return same
    order = _greedy(costs)
    even = len(order) - len(order) % 2
    pairs = order[:even].reshape(-1, 2)
    for _ in range(ROUNDS):
        if not _exchange(pairs, costs):
            break
    order[:even] = pairs.ravel()
    return order if cost_of(order, costs) < cost_of(same, costs) else same


def _greedy(costs: Array) -> Array:
    """Each channel, those of most conflicts first, takes the partner of least cost; of several the hardest to place."""
    total, free, order = costs.sum(axis=1), np.ones(len(costs), bool), []
    for channel in np.argsort(-total, kind="stable"):
        if not free[channel]:
            continue
        free[channel] = False
        order.append(channel)
        if free.any():
            cost = np.where(free, costs[channel], np.inf)
            best = np.flatnonzero(cost == cost.min())
            partner = best[total[best].argmax()]
            free[partner] = False
            order.append(partner)
    return np.array(order)


def _exchange(pairs: Array, costs: Array) -> bool:
    """Exchanges partners between pairs, in place, the costliest first; whether it found any."""
    moved = False
    for at in np.argsort(-costs[pairs[:, 0], pairs[:, 1]], kind="stable"):
        now = costs[pairs[:, 0], pairs[:, 1]]
        if now[at] == 0:
            continue
        for one, two in ((0, 1), (1, 0)):
            gain = now[at] + now - costs[pairs[at, 0], pairs[:, one]] - costs[pairs[at, 1], pairs[:, two]]
            gain[at] = 0
            other = int(gain.argmax())
            if gain[other] > _LEAST * now[at]:
                mine, theirs = pairs[at].copy(), pairs[other].copy()
                pairs[at], pairs[other] = (mine[0], theirs[one]), (mine[1], theirs[two])
                moved, now = True, costs[pairs[:, 0], pairs[:, 1]]
    return moved
