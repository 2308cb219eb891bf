"""Hardware that MXNet has no kernels for: what each library quantizes, as a table, and the backend that simulates it.

Quantizers stand where quantized operators read, as in MQBench (arXiv:2111.03759), figure 4 and appendix G; every
operator writes float, which is the same wherever all that read it quantize it. By block graph:

===== =======================================================================================
graph operators that read codes
===== =======================================================================================
1     convolutions and fully connected layers
2     those, what a convolution adds to its result in 32 bits, poolings, Concat, other sums
3     those, poolings, Concat, all sums
===== =======================================================================================

All that a Concat joins has one scale where the library demands it. What has no row (softmax, a sigmoid alone, a
BatchNorm that was not folded) computes in float; runtimes of ONNX files hold more (`mxq.backends.runtimes`). So does
what only moves values (Flatten): what reads it quantizes it, which changes nothing where these were codes. Passes that
serve oneDNN's speed do not run.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Final

from mxq.backends import get
from mxq.backends.mxnet.table import CONVOLUTION, FULLY_CONNECTED, POOLING
from mxq.backends.protocol import Backend, Lowered
from mxq.backends.runtimes import RUNTIMES, rounds_results, rows_of
from mxq.backends.simulate import simulate
from mxq.backends.spec import BackendSpec, OpSpec
from mxq.passes.align_ranges import align_ranges
from mxq.passes.assignment import assigned_anew
from mxq.passes.avgpool_after_conv1x1 import AVGPOOL_AFTER_CONV1X1
from mxq.passes.avgpool_to_depthwise import AVGPOOL_TO_DEPTHWISE
from mxq.passes.conv1x1_to_dense import CONV1X1_TO_DENSE, HEAD_TO_DENSE
from mxq.passes.flat_ranges import FLAT_RANGES
from mxq.passes.fold_bn import FOLD_BN
from mxq.passes.reduce_strength import UPSAMPLING_AS_DECONVOLUTION
from mxq.passes.split_groups import SPLIT_GROUPS
from mxq.passes.subsample_early import SUBSAMPLE_EARLY
from mxq.quant import QuantizedNetwork
from mxq.quant.hardware import Hardware, hardware_of

_FOR_SPEED: Final = (
    AVGPOOL_AFTER_CONV1X1.name,
    SUBSAMPLE_EARLY.name,
    CONV1X1_TO_DENSE.name,
    AVGPOOL_TO_DEPTHWISE.name,
    SPLIT_GROUPS.name,
)
"""Passes that give oneDNN something quicker, which is then quantized elsewhere or otherwise."""
_DENSE: Final = replace(FULLY_CONNECTED, needs=())
_BETWEEN: Final = (
    OpSpec("Pooling", "", "passthrough", exact=POOLING.exact, calibrated=True, float_output=True),
    OpSpec("Concat", "", "passthrough", data_inputs=(), output="widest"),
    OpSpec("elemwise_add", "", "passthrough", data_inputs=(0, 1), output="widest", calibrated=True, float_output=True),
)


def table_of(hardware: Hardware) -> BackendSpec:
    """The operators that ``hardware`` quantizes, and what it fuses."""
    without = (*_FOR_SPEED, *(() if hardware.folds_batch_norm else (FOLD_BN.name,)))
    of_files = hardware.name in RUNTIMES.values()
    others = UPSAMPLING_AS_DECONVOLUTION if of_files else HEAD_TO_DENSE
    between = () if hardware.graph == 1 else tuple(replace(row, between=of_files) for row in _BETWEEN)
    return BackendSpec(
        name=f"the simulation of {hardware.library}",
        ops=(_convolution(hardware), _DENSE, *between, *rows_of(hardware.name)),
        holds=(),
        whole=True,
        float_stems=of_files,
        norms_as_convolutions=of_files,
        without=(*without, others.name),
    )


def _convolution(hardware: Hardware) -> OpSpec:
    floats = tuple(need for need in CONVOLUTION.needs if not need.int8_only)
    row = replace(CONVOLUTION, needs=floats, with_sum=hardware.graph == 2, float_output=True)
    if not rounds_results(hardware.name):
        return row
    return replace(row, codes_for_all=True, post_ops=tuple(post for post in row.post_ops if post.unsigned))


@dataclass(frozen=True)
class SimulatedHardware:
    """The backend that writes a float network which computes what ``hardware`` would."""

    hardware: Hardware

    @property
    def name(self) -> str:
        """What it is called in records."""
        return f"simulate_{self.hardware.name}"

    @cached_property
    def spec(self) -> BackendSpec:
        """See `table_of`."""
        return table_of(self.hardware)

    def constrain(self, network: QuantizedNetwork) -> QuantizedNetwork:
        """Ranges as far as readers tell values apart, in runtimes; one for what a Concat joins, where that is asked."""
        steps = [FLAT_RANGES] if self.hardware.name in RUNTIMES.values() else []
        if self.hardware.joins_concat:
            steps.append(align_ranges(self.spec))
        return assigned_anew(network.after(*steps), self.spec) if steps else network

    def lower(self, network: QuantizedNetwork) -> Lowered:
        """See `mxq.backends.simulate.simulate`."""
        return Lowered(simulate(network))


@dataclass(frozen=True)
class OnnxFiles(SimulatedHardware):
    """The backend of networks that ONNX files are written of; until then they are simulated."""

    @property
    def name(self) -> str:
        return self.hardware.name


ONNX: Final = OnnxFiles(hardware_of("onnx"))


def simulated(hardware: str) -> Backend:
    """The backend that writes a float network which computes what one on ``hardware`` would.

    Raises:
        ConfigError: there is no such hardware.
    """
    row = hardware_of(hardware)
    return get("simulate") if row.from_kernels else SimulatedHardware(row)
