"""Float against int8: do the outputs agree, how much noise was added, and which layer adds it.

Both models run over the same batches; only sums are kept (energies, counts), so memory does not grow with the
number of examples. With ``layers=True`` each batch's intermediate tensors are held once: use small batches. What
layers are compared by: `mxq.verification.layerwise`; two int8 models without data: `mxq.verification.pair_differences`.
"""

from __future__ import annotations

from mxq.verification.accumulate import Head, heads_of, verify, verify_each
from mxq.verification.agreement import Accuracy, Layer, Output, Verification
from mxq.verification.files import FileVerification
from mxq.verification.measures import Boxes, Energy, match_boxes
from mxq.verification.pair_differences import Differences, Side, differences
from mxq.verification.taps import Tap, corresponding
from mxq.verification.two_quantized import A_B, FLOAT_A, FLOAT_B, TITLES, Comparison

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
    "FileVerification",
    "Head",
    "Layer",
    "Output",
    "Side",
    "Tap",
    "Verification",
    "corresponding",
    "differences",
    "heads_of",
    "match_boxes",
    "verify",
    "verify_each",
]
