"""Ways to fake-quantize a tensor in training, one page each."""

from mxq.qat.algorithms.protocol import Algorithm, Role, Site, fake_node, fake_nodes, site_of
from mxq.qat.algorithms.registry import ALGORITHMS, get, register
from mxq.registration import OP_TYPE

__all__ = [
    "ALGORITHMS",
    "OP_TYPE",
    "Algorithm",
    "Role",
    "Site",
    "fake_node",
    "fake_nodes",
    "get",
    "register",
    "site_of",
]
