"""Rounding for kernels that add two products in 16 bits (`saturation`): which code a weight may have beside another.

Formula. Columns i and j of a weight that stand in one pair meet activation codes up to A_i and A_j. Their sums are
exact while (1) of `saturation` holds, so beside a code v of column j the code w of column i is within

    -(32768 - A_j |v|) / A_i <= w   where v < 0,        w <= (32767 - A_j v) / A_i   where v > 0                (1)

`rounding` gives codes to one column after the other, and what one errs by the next ones make up for; under (1) that is
so for the limits, too. Where activations hardly ever are that large together, a pair that is left alone costs less. So
each output channel takes what errs least, rounding and saturation together.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from mxq.graph.ir import Array
from mxq.quant import MXNET, WEIGHT
from mxq.saturation.kernels import BOTTOM, HIGHEST, SHIFT, TOP, Kernel, at_risk, limit_pairs, lost
from mxq.saturation.remedies import change, highest_of

FEW: Final = 512
MARGIN: Final = 1.25
"""Where fewer than `FEW` places are seen, as behind a global pooling, other data may have values so many times as
large: with the values as they are, a CIFAR ResNet-56 loses 1 dB in its last layer."""
FEEDBACK: Final = 0.3
"""What is left of a limit's cost once other weights make up for it: 0.1 to 0.6 of it for weights and inputs that are
normal and correlated."""


@dataclass(frozen=True)
class Sums:
    """How a layer's kernel adds products, and what it multiplies.

    Attributes:
        kernel: "pairs" or "shifted".
        scale: activation codes per unit.
        samples: (n, I, positions) float32, activation codes.
        highest: (I,) int32, the largest code of each input channel, 0..255.
        shift: as of `mxq.saturation.kernels.lost`.
    """

    kernel: Kernel
    scale: float
    samples: Array
    highest: Array
    shift: int = SHIFT

    @staticmethod
    def of(kernel: Kernel, scale: float, inputs: Array, channels: int, shift: int = SHIFT) -> Sums:
        """Of a layer that reads ``inputs`` (N, K) float32, in activation units; K is positions, then ``channels``."""
        codes = np.rint(inputs[:: -(-len(inputs) // FEW)] * np.float32(scale))
        top = inputs.max(axis=0).reshape(-1, channels).max(axis=0) * scale * (MARGIN if len(inputs) < FEW else 1.0)
        top = np.ceil(top) + (shift if kernel == "shifted" else 0)
        return Sums(kernel, scale, by_channel(codes, channels), np.clip(top, 0, HIGHEST).astype(np.int32), shift)

    def breaks(self, codes: Array) -> Array:
        """Whether a pair of codes (O, K) can saturate, for each output: (O,) bool."""
        return at_risk(self._by_channel(codes), self.highest) > 0

    def lost(self, codes: Array, step: Array) -> Array:
        """The mean square of what saturation takes from each output, (O,), in activation units; ``step`` (O,)."""
        found = lost(self._by_channel(codes), self.samples, kernel=self.kernel, shift=self.shift)
        return np.asarray(found * np.square(step / self.scale))

    def limited(self, codes: Array) -> Array:
        """Codes (O, K) as `limit_pairs` has them."""
        found = limit_pairs(self._by_channel(codes), self.highest)
        return np.asarray(found.swapaxes(1, 2).reshape(codes.shape))

    def partner(self, column: int) -> int:
        """The column (0 .. K - 1) that stands in a pair with another; -1 where none does."""
        channels = len(self.highest)
        position, channel = divmod(column, channels)
        return -1 if channel ^ 1 >= channels else position * channels + (channel ^ 1)

    def room(self, column: int, beside: Array, most: int) -> tuple[Array, Array]:
        """The least and the largest code of ``column`` beside its partner's, ``beside``, by (1); at most ``most``."""
        channel = column % len(self.highest)
        mine = int(self.highest[channel])
        if mine == 0:
            return np.full(beside.shape, -most), np.full(beside.shape, most)
        taken = beside.astype(np.int64) * int(self.highest[channel ^ 1])
        low = np.where(taken < 0, -((taken - BOTTOM) // mine), -most)
        high = np.where(taken > 0, (TOP - taken) // mine, most)
        return np.maximum(low, -most), np.minimum(high, most)

    def _by_channel(self, columns: Array) -> Array:
        return by_channel(columns, len(self.highest))


def by_channel(columns: Array, channels: int) -> Array:
    """(M, K), K being positions, then channels, as (M, channels, positions)."""
    return np.ascontiguousarray(columns.reshape(len(columns), -1, channels).swapaxes(1, 2))


@dataclass(frozen=True)
class Exposed:
    """A layer that saturates, before its weights are chosen: what that may cost it in a range.

    Attributes:
        kernel: "pairs" or "shifted".
        codes: (O, I, positions) int8, the nearest to its weights.
        step: (O,), of its weights.
        inputs: (n, I, positions) float32, what it multiplies, in activation units.
        energy: of what it makes of these, the mean over n, summed over outputs.
        shift: as of `mxq.saturation.kernels.lost`.
    """

    kernel: Kernel
    codes: Array
    step: Array
    inputs: Array
    energy: float
    shift: int = SHIFT

    @staticmethod
    def of(kernel: Kernel, weight: Array, inputs: Array, shift: int = SHIFT) -> Exposed | None:
        """Of a layer with ``weight`` (O, I, ...) that reads ``inputs`` (n, I, positions).

        None where no pair of its weights can saturate, or where it makes nothing.
        """
        rows = weight.reshape(*weight.shape[:2], -1)
        bounds = np.abs(rows).max(axis=(1, 2))
        codes = MXNET.covering(WEIGHT, rows).quantize(rows)
        made = inputs.reshape(len(inputs), -1) @ rows.reshape(len(rows), -1).T
        energy = float(np.square(made).mean(axis=0).sum())
        if energy == 0 or not at_risk(codes).any():
            return None
        return Exposed(kernel, codes, bounds.astype(np.float64) / MXNET.top(WEIGHT), inputs, energy, shift)

    def cost(self, per_unit: float) -> float:
        """What saturation, or limits against it, add to the noise of its output, in shares of its energy.

        Args:
            per_unit: activation codes.
        """
        low = 0 if self.kernel == "pairs" else -self.shift
        samples = np.clip(np.rint(self.inputs * np.float32(per_unit)), low, low + HIGHEST)
        square = np.square(self.step / per_unit) / self.energy
        gone = lost(self.codes, samples, kernel=self.kernel, shift=self.shift) @ square
        if gone == 0:
            return 0.0
        limits = limit_pairs(self.codes, highest_of(samples, self.kernel, shift=self.shift))
        return float(min(gone, FEEDBACK * (change(self.codes, limits, samples) @ square)))
