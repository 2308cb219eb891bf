"""PACT: the range of an activation is learned.

::

    y = x clipped to 0 .. c, and rounded to the grid whose top is c        (eq. 1 and 2)
    dy/dx = 1 within the range, else 0
    dy/dc = 1 above the range, else 0                                      (eq. 3)

Signed codes reach below 0 as well, and a zero point gives the lower end a parameter of its own: see
`mxq.qat.algorithms.clipped` (MQBench, arXiv:2111.03759, appendix F). The range starts from the calibrated one; the
papers start at 6 or from max. Weights are those of DoReFa.

Source: Choi et al., "PACT: Parameterized Clipping Activation for Quantized Neural Networks" (arXiv:1805.06085); Wu et
al. (arXiv:2004.09602), section 5.3.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from mxq.qat.algorithms.base import ByRole, Uniform
from mxq.qat.algorithms.clipped import Clipped
from mxq.qat.algorithms.dorefa import TanhWeights


@dataclass(frozen=True)
class LearnedRange(Clipped):
    """Activations to a learned range."""

    name: ClassVar[str] = "pact"
    source: ClassVar[str] = "Choi et al. (arXiv:1805.06085), eq. 1 to 3"


@dataclass(frozen=True)
class Pact(ByRole):
    """Activations to a learned range, weights through tanh."""

    name: ClassVar[str] = "pact"
    source: ClassVar[str] = "Choi et al. (arXiv:1805.06085), eq. 1 to 3"
    weight: ClassVar[Uniform] = TanhWeights()
    activation: ClassVar[Uniform] = LearnedRange()
