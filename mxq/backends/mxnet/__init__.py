"""Stock MXNet 1.9.1 with oneDNN: its table of int8 kernels, what they ask for, and the int8 graph that it runs."""

from __future__ import annotations

from dataclasses import dataclass, replace

from mxq.backends.mxnet.constrain import constrained
from mxq.backends.mxnet.integer_input import with_integer_input
from mxq.backends.mxnet.lower import int8_graph
from mxq.backends.mxnet.table import MXNET_191, RUN_TIME
from mxq.backends.protocol import Backend, Lowered
from mxq.backends.spec import BackendSpec
from mxq.passes.declare import DECLARE
from mxq.quant import QuantizedNetwork
from mxq.rewrite import run_pass

__all__ = ["MXNET", "MXNET_191", "MXNET_RUN_TIME", "RUN_TIME", "Mxnet"]


@dataclass(frozen=True)
class Mxnet:
    """The backend; ``spec`` says which kernels may be used."""

    name: str
    spec: BackendSpec

    def constrain(self, network: QuantizedNetwork) -> QuantizedNetwork:
        """See `mxq.backends.mxnet.constrain`."""
        return constrained(network, self.spec)

    def lower(self, network: QuantizedNetwork) -> Lowered:
        """The int8 graph; see `mxq.backends.mxnet.lower` and, where it is fed integers, ``integer_input``."""
        model, tensors = int8_graph(network, self.spec)
        lowered = with_integer_input(Lowered(model, tensors), network.input)
        declared, trace = run_pass(DECLARE, lowered.model)
        return replace(lowered, model=declared, trace=lowered.trace + trace)


MXNET: Backend = Mxnet("mxnet", MXNET_191)
MXNET_RUN_TIME: Backend = Mxnet("mxnet_run_time", RUN_TIME)
"""Where ranges are found while the network runs (``calib_mode="none"``)."""
