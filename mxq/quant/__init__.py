"""Quantization as data: how values become integers (`QuantSpec`), with what numbers (`QParams`), and from which range.

Two conventions run through all of mxq. ``scale`` is in codes per unit of value, as in Wu et al. (arXiv:2004.09602) and
MXNet's kernels; many papers call its reciprocal, the step, the scale. Rounding is to the nearest integer, halves to the
even one.
"""

from mxq.quant.model import WEIGHT, NetworkPass, QuantizedNetwork, Requests
from mxq.quant.qparams import QParams
from mxq.quant.records import Operation
from mxq.quant.scheme import AFFINE, MXNET, SCHEMES, SYMMETRIC, Scheme, scheme_of
from mxq.quant.spec import ANY8, BY_DTYPE, INT8, UINT8, QuantSpec

__all__ = [
    "AFFINE",
    "ANY8",
    "BY_DTYPE",
    "INT8",
    "MXNET",
    "SCHEMES",
    "SYMMETRIC",
    "UINT8",
    "WEIGHT",
    "NetworkPass",
    "Operation",
    "QParams",
    "QuantSpec",
    "QuantizedNetwork",
    "Requests",
    "Scheme",
    "scheme_of",
]
