"""Backends: what kernels can do, as rows of a table, what their files ask for, and how a quantized network is written.

`get` gives a backend by name, `default` the one where none is named; `register` adds another. That of other hardware is
`mxq.backends.hardware.simulated`.
"""

from __future__ import annotations

from typing import Final

from mxq.backends.protocol import Backend, Lowered
from mxq.backends.spec import BackendSpec, OpSpec, PostOp, Requirement
from mxq.graph.layers import groups_of, layer_of, result_of, summand_of, summand_place, the_layer_of
from mxq.registry import Registry

__all__ = [
    "BACKENDS",
    "Backend",
    "BackendSpec",
    "Lowered",
    "OpSpec",
    "PostOp",
    "Requirement",
    "default",
    "get",
    "groups_of",
    "layer_of",
    "names",
    "register",
    "result_of",
    "summand_of",
    "summand_place",
    "the_layer_of",
]

BACKENDS: Final = Registry[Backend](
    "backend",
    "mxq.backends",
    Backend,
    {
        "mxnet": "mxq.backends.mxnet:MXNET",
        "mxnet_run_time": "mxq.backends.mxnet:MXNET_RUN_TIME",
        "simulate": "mxq.backends.simulate:SIMULATED_MXNET",
        "onnx": "mxq.backends.hardware:ONNX",
    },
)
get, names, register = BACKENDS.get, BACKENDS.names, BACKENDS.register


def default(*, at_run_time: bool = False) -> Backend:
    """The backend where none is named: stock MXNet, whose kernels differ where ranges are found ``at_run_time``."""
    return get("mxnet_run_time" if at_run_time else "mxnet")
