"""Ways to fake-quantize a tensor in training, one page each."""

from mxq.qat.algorithms.protocol import Algorithm, Role, Site, fake_node

__all__ = ["Algorithm", "Role", "Site", "fake_node"]
