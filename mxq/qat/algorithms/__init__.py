"""Ways to fake-quantize a tensor in training, one page each."""

from mxq.qat.algorithms.protocol import OP_TYPE, Algorithm, Role, Site, fake_node, site_of
from mxq.qat.algorithms.registry import ALGORITHMS, get, register

__all__ = ["ALGORITHMS", "OP_TYPE", "Algorithm", "Role", "Site", "fake_node", "get", "register", "site_of"]
