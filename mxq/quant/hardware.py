"""`Hardware`: how inference libraries quantize, as rows of data; `hardware_of` gives one by name, `register` adds one.

Source of the rows: MQBench (Li et al., arXiv:2111.03759), upper half of table 1 (form of scale, granularity, symmetry,
graph, folding), appendix E (which of weights and activations each is about, signs), sections 3.3 and appendix G (block
graphs, concatenation); of oneDNN, the kernels of MXNet 1.9.1 (``mxq/backends/mxnet/table.py``).

A *block graph* says which tensors are quantized (section 3.3, figure 4):

===== ==================================================================================================
graph quantized
===== ==================================================================================================
1     what convolutions and fully connected layers read; each reader on its own
2     every tensor between operators, once, but one input of each residual add: the convolution that makes
      it adds in 32 bits
3     every tensor between operators, once: all inputs of adds as well
===== ==================================================================================================
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final, Literal, TypeAlias

from mxq.errors import one_of
from mxq.quant import products
from mxq.quant.model import WEIGHT
from mxq.quant.products import PairedProducts
from mxq.quant.scheme import MXNET, Scheme, scheme_of
from mxq.quant.spec import ANY8, INT8, QuantSpec
from mxq.registry import Registry

BlockGraph: TypeAlias = Literal[1, 2, 3]


@dataclass(frozen=True, slots=True)
class Hardware:
    """How one library quantizes.

    Attributes:
        name: by which settings ask for it.
        library: what it is called, and by whom it is made.
        weights: the kind of codes of weights (O, ...), at 8 bits.
        activations: that of all other tensors.
        graph: which tensors are quantized, see the module.
        folds_batch_norm: whether BatchNorm is part of the layer before it when it computes.
        joins_concat: whether all that a Concat joins, and what it makes, has one scale and zero point.
        from_kernels: whether the plan for MXNet's kernels says which tensors are quantized; else ``graph`` does. Of
            oneDNN alone.
        planned: whether training quantizes the tensors that the plan does, operator by operator; else those that
            ``graph`` says.
        rounds_biases: whether kernels add biases to sums of products, in whole units of these.
        adds_unrounded: whether convolutions add what stands beside them in a sum to floats, not to codes of theirs: see
            `mxq.qat.fused_sums`.
        products: how kernels without VNNI add products of 8-bit codes, where sums of two saturate; None where all are
            exact, and for oneDNN in MXNet, whose kernels `mxq.saturation.kernels` knows.
        edge_bits: of first and last layer where nobody says, their weights and what they read; None for those of all.
        source: of the row.
    """

    name: str
    library: str
    weights: QuantSpec
    activations: QuantSpec
    graph: BlockGraph
    folds_batch_norm: bool = True
    joins_concat: bool = True
    from_kernels: bool = False
    planned: bool = False
    rounds_biases: bool = False
    adds_unrounded: bool = False
    products: PairedProducts | None = None
    edge_bits: int | None = None
    source: str = "MQBench (arXiv:2111.03759), table 1 and appendix E"

    def weight(self, bits: int = 8) -> QuantSpec:
        """The kind of codes of weights of that many bits.

        Raises:
            ConfigError: ``bits`` is not 2 to 8.
        """
        return replace(self.weights, bits=bits)

    def activation(self, bits: int = 8, low: float | None = None) -> QuantSpec:
        """The kind of codes of a tensor of that many bits; settled where the ``low`` end of its range is given.

        Raises:
            ConfigError: ``bits`` is not 2 to 8.
        """
        spec = replace(self.activations, bits=bits)
        return spec if low is None else spec.settled(low)

    def scheme(self, spec: QuantSpec) -> Scheme:
        """From the range of a tensor of that spec to its scale and zero point."""
        return MXNET if self.from_kernels and spec.symmetric else scheme_of(spec)


_SIGNED: Final = INT8
_AFFINE: Final = QuantSpec(signed=False, symmetric=False)

ONEDNN: Final = Hardware(
    "onednn",
    "oneDNN in MXNet 1.9.1",
    weights=WEIGHT,
    activations=ANY8,
    graph=2,
    from_kernels=True,
    planned=True,
    rounds_biases=True,
    source="src/operator/subgraph/mkldnn and src/operator/quantization of MXNet 1.9.1 (mxq.backends.mxnet.table)",
)
TENSORRT: Final = Hardware(
    "tensorrt", "NVIDIA TensorRT", weights=replace(_SIGNED, axis=0), activations=_SIGNED, graph=2
)
ACL: Final = Hardware("acl", "Huawei ACL", weights=replace(_SIGNED, axis=0), activations=_AFFINE, graph=1)
TVM: Final = Hardware(
    "tvm",
    "TVM on ARM",
    weights=replace(_SIGNED, scale="power_of_two"),
    activations=replace(_SIGNED, scale="power_of_two"),
    graph=3,
)
SNPE: Final = Hardware("snpe", "Qualcomm SNPE", weights=_AFFINE, activations=_AFFINE, graph=3)
FBGEMM: Final = Hardware("fbgemm", "Facebook FBGEMM", weights=replace(_AFFINE, axis=0), activations=_AFFINE, graph=3)
ONNX: Final = Hardware(
    "onnx",
    "ONNX Runtime and OpenVINO",
    weights=replace(_SIGNED, axis=0),
    activations=_AFFINE,
    graph=3,
    joins_concat=False,
    products=products.PORTABLE,
    planned=True,
    rounds_biases=True,
    source="what both fuse: onnxruntime/core/optimizer/qdq_transformer, OpenVINO's low precision transformations",
)
ONNXRUNTIME: Final = replace(
    ONNX,
    name="onnxruntime",
    library="ONNX Runtime",
    products=products.ONNX_RUNTIME,
    source="onnxruntime/core/optimizer/qdq_transformer",
)
OPENVINO: Final = replace(
    ONNX,
    name="openvino",
    library="OpenVINO",
    adds_unrounded=True,
    products=products.OPENVINO,
    source="src/common/low_precision_transformations of OpenVINO",
)
ACADEMIC: Final = Hardware(
    "academic",
    "papers",
    weights=_SIGNED,
    activations=ANY8,
    graph=1,
    folds_batch_norm=False,
    joins_concat=False,
    edge_bits=8,
    source="MQBench (arXiv:2111.03759), lower half of table 1, appendix B.2.1 (edges) and E (signs by the data)",
)

ROWS: Final = (ONEDNN, TENSORRT, ACL, TVM, SNPE, FBGEMM, ONNX, ONNXRUNTIME, OPENVINO, ACADEMIC)
"""TensorRT and TVM leave a bit of what is never negative unused: "symmetric quantization must waste one bit for
non-negative activation in real-world hardware" (appendix E). ACL is symmetric in weights and asymmetric in activations
(appendix E); SNPE and FBGEMM are asymmetric in both. "Concatenation is not considered to be quantized" by papers
(appendix G)."""

HARDWARE: Final = Registry[Hardware](
    "hardware", "mxq.hardware", Hardware, {row.name: f"{__name__}:{row.name.upper()}" for row in ROWS}
)
"""All rows by name. Entry points of other packages give a row."""

register = HARDWARE.register
"""Makes a row known by its name: to settings, sweeps and training."""


def hardware_of(name: str) -> Hardware:
    """The row of that name, in letters of any size ("oneDNN").

    Raises:
        ConfigError: there is none, with those that there are.
    """
    if not isinstance(name, str):
        raise one_of("hardware", name, HARDWARE.names())
    return HARDWARE.get(name if name in HARDWARE else name.lower())
