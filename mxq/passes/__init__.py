"""The passes, one page each: simplify, fold_bn, fuse, partition, quantize."""

from mxq.passes.fold_bn import FOLD_BN
from mxq.passes.fuse import FUSE_FLOAT, FUSE_INT8
from mxq.passes.partition import partition
from mxq.passes.quantize import quantize_graph
from mxq.passes.shift_summand import shift_summands
from mxq.passes.simplify import SIMPLIFY

__all__ = ["FOLD_BN", "FUSE_FLOAT", "FUSE_INT8", "SIMPLIFY", "partition", "quantize_graph", "shift_summands"]
