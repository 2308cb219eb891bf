"""Float against int8: do the outputs agree, how much noise was added, and which layer adds it.

Both models run over the same batches; only sums are kept (energies, counts), so memory does not grow with the
number of examples. With ``layers=True`` each batch's intermediate tensors are held once: use small batches. What
layers are compared by: `mxq.verification.layers`; two int8 models without data: `mxq.verification.differences`.
"""

from __future__ import annotations

from mxq.verification.compare import verify
from mxq.verification.comparison import A_B, FLOAT_A, FLOAT_B, TITLES, Comparison
from mxq.verification.differences import Differences, Side, differences
from mxq.verification.measures import Boxes, Energy, match_boxes
from mxq.verification.result import Accuracy, Layer, Output, Verification
from mxq.verification.taps import Tap, corresponding

__all__ = [
    "A_B",
    "FLOAT_A",
    "FLOAT_B",
    "TITLES",
    "Accuracy",
    "Boxes",
    "Comparison",
    "Differences",
    "Energy",
    "Layer",
    "Output",
    "Side",
    "Tap",
    "Verification",
    "corresponding",
    "differences",
    "match_boxes",
    "verify",
]
