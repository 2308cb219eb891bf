"""Float against int8: do the outputs agree, how much noise was added, and which layer adds it.

Both models run over the same batches; only sums are kept (energies, counts), so memory does not grow with the
number of examples. With ``layers=True`` each batch's intermediate tensors are held once: use small batches.
"""

from __future__ import annotations

from mxq.verify.compare import Tap, corresponding, verify
from mxq.verify.measures import Boxes, Energy, match_boxes
from mxq.verify.result import Accuracy, Layer, Output, Verification

__all__ = [
    "Accuracy",
    "Boxes",
    "Energy",
    "Layer",
    "Output",
    "Tap",
    "Verification",
    "corresponding",
    "match_boxes",
    "verify",
]
