"""The passes, one page each: simplify, fold_bn, fuse, partition, quantize, and what goes between and after."""

from mxq.passes.align_ranges import align_ranges
from mxq.passes.assignment import assign
from mxq.passes.averages import AVERAGES
from mxq.passes.constants import fold_constants
from mxq.passes.declare import declare
from mxq.passes.detection import DETECTION
from mxq.passes.fix_shape import fix_shape, with_shapes
from mxq.passes.fold_bn import FOLD_BN
from mxq.passes.fold_scale import FOLD_SCALE
from mxq.passes.fuse import FUSE_FLOAT, FUSE_INT8, FUSE_RUN_TIME
from mxq.passes.guard import guard
from mxq.passes.pair_channels import pair_channels
from mxq.passes.partition import partition, unmatched
from mxq.passes.pool_last import POOL_LAST
from mxq.passes.pooled_dense import POOLED_DENSE
from mxq.passes.quantize import quantize_graph
from mxq.passes.reduce_strength import REDUCE_STRENGTH, REDUCE_WHAT_IS_LEFT
from mxq.passes.removed import removed
from mxq.passes.shape_only import SHAPE_ONLY
from mxq.passes.shift_streams import shift_streams
from mxq.passes.shift_summand import shift_summands
from mxq.passes.simplify import SIMPLIFY
from mxq.passes.split_groups import SPLIT_GROUPS
from mxq.passes.subsample_early import SUBSAMPLE_EARLY

__all__ = [
    "AVERAGES",
    "DETECTION",
    "FOLD_BN",
    "FOLD_SCALE",
    "FUSE_FLOAT",
    "FUSE_INT8",
    "FUSE_RUN_TIME",
    "POOLED_DENSE",
    "POOL_LAST",
    "REDUCE_STRENGTH",
    "REDUCE_WHAT_IS_LEFT",
    "SHAPE_ONLY",
    "SIMPLIFY",
    "SPLIT_GROUPS",
    "SUBSAMPLE_EARLY",
    "align_ranges",
    "assign",
    "declare",
    "fix_shape",
    "fold_constants",
    "guard",
    "pair_channels",
    "partition",
    "quantize_graph",
    "removed",
    "shift_streams",
    "shift_summands",
    "unmatched",
    "with_shapes",
]
