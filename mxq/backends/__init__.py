"""What a backend's kernels can do, as rows of a table."""

from mxq.backends.onednn import (
    MXNET_191,
    RUN_TIME,
    code_places,
    layer_of,
    ranges_read,
    result_of,
    summand_of,
    summand_place,
    the_layer_of,
)
from mxq.backends.spec import BackendSpec, Need, OpSpec, PostOp

__all__ = [
    "MXNET_191",
    "RUN_TIME",
    "BackendSpec",
    "Need",
    "OpSpec",
    "PostOp",
    "code_places",
    "layer_of",
    "ranges_read",
    "result_of",
    "summand_of",
    "summand_place",
    "the_layer_of",
]
