"""The table for stock MXNet 1.9.1 with oneDNN (the PyPI wheel).

Read from ``src/operator/subgraph/mkldnn`` and ``src/operator/quantization`` of MXNet 1.9.1 and checked by running
the kernels (``tests/test_backends_mxnet_kernels.py``). Where a kernel exists but computes something else, the row says
so.
"""

from __future__ import annotations

from dataclasses import replace

from mxq.backends.mxnet import run_time
from mxq.backends.mxnet.run_time import NO_RANGES
from mxq.backends.spec import BackendSpec, OpSpec, PostOp, Requirement

_LAYOUT = Requirement("layout", ("None", "NCHW", "NCDHW"))

_RELU = PostOp("Activation", {"act_type": ("relu",)}, unsigned=True)
_OTHER_ACTIVATIONS = PostOp(
    "Activation",
    {"act_type": ("sigmoid", "tanh", "softrelu")},
    int8=False,
    reason="the int8 convolution applies it to the scaled integers instead of the values",
)
_CLIP = PostOp(
    "clip",
    {"a_min": ("0",)},
    unsigned=True,
    saturates=True,
)

CONVOLUTION = OpSpec(
    float_op="Convolution",
    int8_op="_sg_mkldnn_conv",
    role="compute",
    fused_op="_sg_mkldnn_conv",
    needs=(
        Requirement("kernel", ranks=(2, 3)),
        _LAYOUT,
        Requirement(
            "num_group",
            ("1",),
            default="1",
            same_as="num_filter",
            why="with several channels in each group it scales a channel's weights by another channel's maximum",
            int8_only=True,
        ),
    ),
    output="post_op",
    calibrated=True,
    with_sum=True,
    post_ops=(
        _RELU,
        _OTHER_ACTIVATIONS,
        PostOp("LeakyReLU", {"act_type": ("leaky",), "slope": ("0",)}, unsigned=True),
        PostOp("LeakyReLU", {"act_type": ("leaky",)}, before_sum=True),
        PostOp(
            "LeakyReLU",
            {"act_type": ("gelu",)},
            int8=False,
            reason="the int8 convolution applies GELU to the scaled integers instead of the values",
        ),
        _CLIP,
    ),
)

FULLY_CONNECTED = OpSpec(
    float_op="FullyConnected",
    int8_op="_sg_mkldnn_fully_connected",
    role="compute",
    fused_op="_sg_mkldnn_fully_connected",
    output="post_op",
    calibrated=True,
    float_output=True,
    post_ops=(
        _RELU,
        PostOp("Activation", {"act_type": ("sigmoid", "softrelu")}, unsigned=True),
        PostOp("Activation", {"act_type": ("tanh",)}),
        PostOp(
            "LeakyReLU",
            {"act_type": ("leaky",)},
            int8=False,
            reason="the int8 fully connected kernel writes u8 after leaky ReLU, which is negative in part",
        ),
        PostOp("LeakyReLU", {"act_type": ("elu", "gelu")}),
        PostOp("abs", unsigned=True),
        _CLIP,
        PostOp("square", int8=False, reason="fused in float only"),
        PostOp("sqrt", int8=False, reason="fused in float only"),
        PostOp("exp", int8=False, reason="fused in float only"),
    ),
)

_ATTENTION_IN_FLOAT = (
    "the int8 kernel was no quicker than the fused float one, which takes half the time of MXNet's own, and cost a "
    "transformer 6 dB; quantize_mode 'full' makes it int8"
)


def _attention(name: str, takes: tuple[str, ...]) -> OpSpec:
    """One of the two products of attention over interleaved queries, keys and values."""
    fused = f"_sg_mkldnn_selfatt_{name}"
    return OpSpec(
        float_op=f"_contrib_interleaved_matmul_selfatt_{name}",
        int8_op=fused,
        role="passthrough",
        fused_op=fused,
        data_inputs=tuple(range(len(takes))),
        takes=takes,
        output="post_op",
        calibrated=True,
        float_output=True,
        kept=("heads",),
        full_only=_ATTENTION_IN_FLOAT,
    )


ATTENTION = (_attention("qk", ("int8",)), _attention("valatt", ("int8", "uint8")))

POOLING = OpSpec(
    float_op="Pooling",
    int8_op="_contrib_quantized_pooling",
    role="passthrough",
    exact={"pool_type": ("max", ""), "global_pool": ("False", "0", "")},
    needs=(
        Requirement("kernel", ranks=(2, 3)),
        Requirement("pool_type", ("max", "avg"), default="max"),
        Requirement("pooling_convention", ("valid", "full"), default="valid"),
        Requirement(
            "count_include_pad",
            ("False", "0"),
            default="True",
            when={"pool_type": ("avg",), "pooling_convention": ("full",), "global_pool": ("", "False", "0")},
            why="it counts positions beyond the padding, as float pooling does not",
        ),
        _LAYOUT,
    ),
)

MXNET_191 = BackendSpec(
    name="MXNet 1.9.1",
    ops=(
        CONVOLUTION,
        FULLY_CONNECTED,
        POOLING,
        OpSpec(
            float_op="Concat",
            int8_op="_contrib_quantized_concat",
            role="passthrough",
            data_inputs=(),
            needs=(
                Requirement("dim", tuple("01234"), default="1", why="an axis counted from the end kills the process"),
            ),
            output="widest",
        ),
        OpSpec(
            float_op="elemwise_add",
            int8_op="_contrib_quantized_elemwise_add",
            role="passthrough",
            data_inputs=(0, 1),
            output="widest",
            calibrated=True,
        ),
        OpSpec(float_op="Flatten", int8_op="_contrib_quantized_flatten", role="passthrough"),
        OpSpec(
            float_op="Activation",
            int8_op="_contrib_quantized_act",
            role="passthrough",
            needs=(Requirement("act_type", ("relu",)),),
            output="int8",
            s8_only=True,
        ),
        OpSpec(
            float_op="BatchNorm",
            int8_op="_contrib_quantized_batch_norm",
            role="passthrough",
            needs=(
                Requirement("axis", ("1",), default="1"),
                Requirement("output_mean_var", ("False", "0"), default="False"),
                Requirement(
                    "fix_gamma", ("False", "0"), default="True", why="it multiplies by gamma whatever fix_gamma says"
                ),
            ),
            halves_u8=True,
            absorbs=("relu",),
            output="int8",
            calibrated=True,
        ),
        *ATTENTION,
    ),
    no_kernel={
        "softmax": "softmax needs float exponentials; MXNet 1.9.1 has no int8 kernel for it",
        "elemwise_mul": "the int8 elemwise_mul kernel does not read oneDNN memory; it is left in float",
        "RNN": "the int8 LSTM takes twice the time of float's where it was measured (AVX2)",
        "Embedding": "int8 embeddings are not supported by mxq yet; they copy rows and gain nothing",
        "Deconvolution": "MXNet 1.9.1 has no int8 transposed convolution",
        "broadcast_add": "MXNet 1.9.1 adds int8 tensors of one shape alone, which nothing shows these to have",
    },
)

_KEEPS_FIRST = f"the int8 fully connected kernel keeps the range of the first batch that it sees {NO_RANGES}"
_SUM_OVERFLOWS = f"without calibrated ranges the int8 sum may leave 32 bits, and comes out negated {NO_RANGES}"

RUN_TIME = BackendSpec(
    name=MXNET_191.name,
    ops=(
        replace(CONVOLUTION, with_sum=False, post_ops=tuple(p for p in CONVOLUTION.post_ops if p is not _CLIP)),
        POOLING,
        *(spec for spec in MXNET_191.ops if spec.float_op in ("Flatten", "Activation")),
    ),
    no_kernel={
        **MXNET_191.no_kernel,
        FULLY_CONNECTED.float_op: _KEEPS_FIRST,
        FULLY_CONNECTED.fused_op: _KEEPS_FIRST,
        "elemwise_add": _SUM_OVERFLOWS,
        "Concat": f"without calibrated ranges the int8 Concat fails where all that it joins is zero {NO_RANGES}",
        **{
            op: f"the int8 kernels of attention keep the range of the first batch that they see {NO_RANGES}"
            for spec in ATTENTION
            for op in (spec.float_op, spec.fused_op)
        },
        "BatchNorm": f"the int8 kernel of BatchNorm needs calibrated ranges {NO_RANGES}",
    },
    float_ops=MXNET_191.ops,
    refuses=run_time.refusal,
)
"""`MXNET_191` where ranges are found at run time: what is right then (``tests/test_backends_mxnet_run_time.py``).

A sum that a convolution adds has no row: it is scaled to the units of the products, which may leave 32 bits too.
"""
