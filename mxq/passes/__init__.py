"""The passes, one page each: simplify, fold_bn, fuse, partition, quantize, and what goes between and after.

`mxq.passes.order` says in which order the first of them run, and takes those of other packages.
"""

from mxq.passes.order import PASSES, Placed, Stage, register, steps

__all__ = ["PASSES", "Placed", "Stage", "register", "steps"]
