"""How the kernel of a layer of a network adds products: `Adding`."""

from __future__ import annotations

from dataclasses import dataclass

from mxq.graph.ir import Array, Node
from mxq.quant import QParams, QuantizedNetwork
from mxq.quant.products import Odd
from mxq.saturation.kernels import SHIFT, Kernel, kernel_of

_FULL = 8
"""Bits of codes that can saturate; a product with one of fewer is at most half as large."""


@dataclass(frozen=True, slots=True)
class Adding:
    """What a kernel does without VNNI, see `mxq.saturation.kernels`.

    Attributes:
        kernel: of which kind it is.
        shift: what a "shifted" one adds to activation codes before it multiplies them.
        certain: whether it is known which channels make a pair.
    """

    kernel: Kernel
    shift: int = SHIFT
    certain: bool = True

    @property
    def saturates(self) -> bool:
        return self.kernel in ("pairs", "shifted")


def adding(network: QuantizedNetwork, layer: Node, weight: str, dtype: str, data: QParams | None) -> Adding:
    """What the kernel of a layer does.

    Args:
        network: what it is of.
        layer: the convolution or fully connected operator.
        weight: the name of its weight.
        dtype: of its data, in MXNet's kernels.
        data: the codes of its data, where they are others; None where that is not known.
    """
    if network.is_of_kernels:
        return Adding(kernel_of(layer.op, dtype, depthwise=layer.integer("num_group", 1) > 1))
    value = network.fused.args[weight]
    depthwise = layer.integer("num_group", 1) > 1 and value.shape[1] == 1
    if network.products is None or data is None or depthwise:
        return Adding("exact")
    if min(network.weight_of(weight).bits, data.spec.bits) < _FULL:
        return Adding("exact")
    certain = network.products.odd is Odd.ALONE or not _is_odd(value)
    zero = int(data.zero_point)
    return Adding("shifted", zero, certain) if zero else Adding("pairs", certain=certain)


def _is_odd(weight: Array) -> bool:
    """Whether a weight (O, I, ...) has an odd number of inputs at each of several kernel places."""
    return bool(weight.shape[1] % 2) and weight[0, 0].size > 1
