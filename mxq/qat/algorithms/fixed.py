"""Fixed: a range found before training stays; gradients pass straight through within it.

::

    y = clip(rint(x / step) + zero, lowest, highest) - zero) * step        (eq. 12)
    dy/dx = 1 where x is within the values of the codes, else 0            (eq. 13)

Source: Wu et al., "Integer Quantization for Deep Learning Inference" (arXiv:2004.09602), section 5.2.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from mxq.qat.algorithms.base import Stepped
from mxq.qat.algorithms.protocol import Site


@dataclass(frozen=True)
class Fixed(Stepped):
    """A range that stays."""

    name: ClassVar[str] = "fixed"
    source: ClassVar[str] = "Wu et al. (arXiv:2004.09602), eq. 12 and 13"

    def learned(self, site: Site) -> tuple[str, ...]:
        return ()
