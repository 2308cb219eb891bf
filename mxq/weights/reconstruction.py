"""Round weights so that their layer's output changes least: `rounding`, or `lowrank` for layers of many inputs.

Channels for which the nearest codes are better keep them. Where the kernel's sums saturate, each channel takes what
errs least, rounding and saturation together (`limits`).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Final, Literal

import numpy as np

from mxq.graph.ir import Array
from mxq.saturation.limits import Sums
from mxq.weights import lowrank
from mxq.weights.lowrank import LowRank
from mxq.weights.methods import Rounder, Seen, Unrounded
from mxq.weights.rounding import Covariance

DAMPING: Final = 0.01
"""Of the covariance, in shares of its mean variance; GPTQ's (arXiv:2210.17323)."""


@dataclass(frozen=True)
class Reconstruction:
    """See the module."""

    name: ClassVar[str] = "reconstruction"
    needs: ClassVar[Literal["nothing", "data"]] = "data"
    in_tune: ClassVar[bool] = False  # the effort "default" has it

    def rounder(self, seen: Seen | None) -> Rounder:
        if seen is None:
            raise ValueError("reconstruction is of what data shows")
        groups, _, inputs = seen.inputs.shape
        hessian = (LowRank if lowrank.is_wide(groups, inputs) else Covariance).of(seen.inputs, DAMPING)
        return partial(_reconstructed, hessian)


def _reconstructed(hessian: Covariance | LowRank, channels: Unrounded) -> Array:
    wanted, step, fixed, sums = channels.weight, channels.step, channels.fixed, channels.sums
    most = channels.grid.most

    def best(*limits: Sums | None) -> Array:
        found = hessian.successive(wanted, step, fixed, most, *limits)
        return hessian.descend(found, wanted, step, fixed, most, channels.sweeps, *limits)

    codes = best()
    before, after = (hessian.error_of(c, wanted, step) for c in (channels.nearest, codes))
    codes = np.where((after < before)[:, :, None], codes, channels.nearest)
    if sums is None or not sums.breaks(codes[0]).any():
        return codes
    tried = [codes, best(sums), sums.limited(codes[0])[None]]
    errors = [hessian.error_of(c, wanted, step)[0] + sums.lost(c[0], step[0]) for c in tried]
    chosen = np.argmin(errors, axis=0)
    return np.asarray(np.choose(chosen[None, :, None], tried))
