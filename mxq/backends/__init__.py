"""What a backend's kernels can do, as rows of a table."""

from mxq.backends.onednn import MXNET_191, RUN_TIME, layer_of, summand_of, the_layer_of
from mxq.backends.spec import BackendSpec, Need, OpSpec, PostOp

__all__ = ["MXNET_191", "RUN_TIME", "BackendSpec", "Need", "OpSpec", "PostOp", "layer_of", "summand_of", "the_layer_of"]
