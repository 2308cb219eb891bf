"""Whether a graph that was read can be given to MXNet at all: operators, attributes, arity, outputs, parameter shapes.

MXNet's own code trusts a symbol JSON: an output that an operator does not have, a convolution of zero groups or a
BatchNorm without inputs ends the process. What is checked here raises an `mxq.errors.MxqError` instead. What an
operator takes is what MXNet itself says of it (a `Registry`); `limits` adds, one row each, what it does not say.
"""

from mxq.operators.check import check_graph
from mxq.operators.parameters import check_parameters
from mxq.operators.signature import Ports, Registry, Signature

__all__ = ["Ports", "Registry", "Signature", "check_graph", "check_parameters"]
