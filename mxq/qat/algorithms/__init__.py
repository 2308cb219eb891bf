"""Ways to fake-quantize a tensor in training, one page each."""

from mxq.qat.algorithms.protocol import (
    SCALED,
    Algorithm,
    Gridded,
    Role,
    Site,
    compiled_name,
    fake_node,
    fake_nodes,
    scale_name,
    site_of,
)
from mxq.qat.algorithms.registry import ALGORITHMS, get, register
from mxq.registration import OP_TYPE

__all__ = [
    "ALGORITHMS",
    "OP_TYPE",
    "SCALED",
    "Algorithm",
    "Gridded",
    "Role",
    "Site",
    "compiled_name",
    "fake_node",
    "fake_nodes",
    "get",
    "register",
    "scale_name",
    "site_of",
]
