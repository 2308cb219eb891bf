"""The passes, one page each: simplify, fold_bn, fuse, partition, assign, and what goes between and after.

`mxq.passes.order` says in which order the first of them run, and takes those of other packages.
"""

from mxq.passes.order import PASSES, ForKernels, Placed, Stage, check_excluded, register, steps

__all__ = ["PASSES", "ForKernels", "Placed", "Stage", "check_excluded", "register", "steps"]
