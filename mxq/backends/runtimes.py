"""What runs on codes in the runtimes of ONNX files: one `Kernel` for each operator, with the runtimes that hold it.

A runtime computes an operator in integers where a DequantizeLinear (DQ) stands before each input and a QuantizeLinear
(Q) after its result. Which operators, and whether both are needed, differs:

* ONNX Runtime has integer kernels (``QLinear...``) that need both. Without a Q after it a convolution is one of float
  weights. Activations are tables of 256 entries, so that a Q before and after them is quicker than float vectors.
* OpenVINO writes any convolution in float, or takes what follows it (sigmoid, leaky ReLU, hard-swish, sums) into it
  before it makes codes. A Q in between makes an operator of its own of that.

Files for both (``"onnx"``) are as ONNX Runtime wants them: what that costs in OpenVINO is a fraction of what the
opposite costs in ONNX Runtime.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from mxq.backends.spec import OpSpec, Requirement

ONNX_RUNTIME, OPENVINO, BOTH = "onnxruntime", "openvino", "onnx"
"""Names of hardware, see `mxq.quant.hardware`."""
RUNTIMES: Final[Mapping[str, str]] = MappingProxyType(
    {"portable": BOTH, "onnxruntime": ONNX_RUNTIME, "openvino": OPENVINO}
)
"""As files are asked for -> whose codes they have."""

_ALL: Final = (ONNX_RUNTIME, OPENVINO, BOTH)
_TABLES: Final = (ONNX_RUNTIME, BOTH)


@dataclass(frozen=True, slots=True)
class Kernel:
    """An operator that works on codes.

    Attributes:
        row: the operator, beside layers with weights; ``int8_op`` is what ONNX Runtime calls its kernel.
        runtimes: those that hold it, by the names of their hardware.
        source: where that is to be seen.
    """

    row: OpSpec
    runtimes: tuple[str, ...]
    source: str


def _pointwise(op: str, kernel: str, *needs: Requirement, operands: int = 1) -> OpSpec:
    """A function of numbers one by one, whose result has a range of its own."""
    return OpSpec(
        op,
        kernel,
        "passthrough",
        data_inputs=tuple(range(operands)),
        needs=needs,
        output="int8",
        calibrated=True,
        float_output=True,
        between=True,
    )


_SELECTORS: Final = "onnxruntime/core/optimizer/qdq_transformer/selectors_actions/qdq_selector_action_transformer.cc"
_LOW: Final = "openvino/src/common/low_precision_transformations/src"
_SIGMOID: Final = Requirement("act_type", ("sigmoid",))
_LEAKY: Final = Requirement("act_type", ("leaky",), default="leaky")
_NEAREST: Final = {"sample_type": ("nearest",), "num_args": ("1", "")}

KERNELS: Final = (
    Kernel(_pointwise("elemwise_mul", "QLinearMul", operands=2), _TABLES, _SELECTORS),
    Kernel(_pointwise("broadcast_mul", "QLinearMul", operands=2), _ALL, f"{_SELECTORS}, {_LOW}/multiply.cpp"),
    Kernel(_pointwise("broadcast_add", "QLinearAdd", operands=2), _ALL, f"{_SELECTORS}, {_LOW}/add.cpp"),
    Kernel(_pointwise("_plus_scalar", "QLinearAdd"), _TABLES, _SELECTORS),
    Kernel(_pointwise("_mul_scalar", "QLinearMul"), _TABLES, _SELECTORS),
    Kernel(_pointwise("hard_sigmoid", "QLinearAdd"), _TABLES, f"{_SELECTORS}: a sum whose codes end at 0 and 1"),
    Kernel(_pointwise("Activation", "QLinearSigmoid", _SIGMOID), _TABLES, _SELECTORS),
    Kernel(_pointwise("sigmoid", "QLinearSigmoid"), _TABLES, _SELECTORS),
    Kernel(_pointwise("LeakyReLU", "QLinearLeakyRelu", _LEAKY), _TABLES, _SELECTORS),
    Kernel(
        OpSpec("UpSampling", "Resize", "passthrough", exact=_NEAREST, between=True,
               needs=tuple(Requirement(attr, values, default=values[0]) for attr, values in _NEAREST.items())),
        _ALL,
        f"{_SELECTORS}, {_LOW}/interpolate.cpp: it moves codes",
    ),
)  # fmt: skip


def rows_of(hardware: str) -> tuple[OpSpec, ...]:
    """The rows of what a runtime holds beside layers, poolings, Concat and sums; none for other hardware."""
    return tuple(kernel.row for kernel in KERNELS if hardware in kernel.runtimes)


def rounds_results(hardware: str) -> bool:
    """Whether convolutions have integer sums only where they make codes, so that they do for float readers, too."""
    return hardware in _TABLES
