"""Each row of the ONNX table against MXNet: `mxq.backends.onnx.rows`."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from graphs import build

from mxq.backends.onnx import TABLE

pytest.importorskip("onnx", reason="onnx is not installed (mxq[onnx])")
pytest.importorskip("onnxruntime", reason="onnxruntime is not installed (mxq[runtimes])")

from onnx_files import assert_same

IMAGE = (4, 7, 6)
"""Of one example, as all shapes here."""
RTOL, ATOL = 1e-5, 2e-6
"""Float32 sums in another order; values are near 1."""


@dataclass(frozen=True)
class Case:
    """One operator on random inputs: ``others`` are more inputs (a shape) or parameters (without one)."""

    op: str
    attrs: str = ""
    shape: tuple[int, ...] = IMAGE
    others: dict[str, tuple[int, ...] | None] = field(default_factory=dict)
    span: tuple[float, float] | None = None
    lines: tuple[str, ...] = ()
    batch: int | None = None

    def __str__(self) -> str:
        return f"{self.op} {self.attrs}".strip()

    @property
    def text(self) -> tuple[str, ...]:
        return self.lines or (f"y = {self.op}({', '.join(['data', *self.others])}) {self.attrs}", "return y")

    def feeds(self, batch: int, seed: int) -> dict[str, np.ndarray]:
        rng = np.random.default_rng(seed)
        shapes = {"data": self.shape, **{k: v for k, v in self.others.items() if v is not None}}
        if self.span is None:
            return {k: rng.standard_normal((batch, *v)).astype(np.float32) for k, v in shapes.items()}
        return {k: rng.uniform(*self.span, (batch, *v)).astype(np.float32) for k, v in shapes.items()}


def one(op: str, *attrs: str, **more: object) -> list[Case]:
    return [Case(op, each, **more) for each in attrs or ("",)]  # type: ignore[arg-type]


def with_source(op: str, attrs: str, line: str = "y = broadcast_add(data, x)", shape: tuple[int, ...] = IMAGE) -> Case:
    """An operator without inputs, whose numbers are added to the data."""
    return Case(op, attrs, shape=shape, lines=(f"x = {op}() {attrs}", line, "return y"))


WEIGHTS: dict[str, None] = {"w_weight": None, "w_bias": None}
NORM: dict[str, None] = {"w_gamma": None, "w_beta": None}
BATCH_NORM: dict[str, None] = {**NORM, "w_moving_mean": None, "w_moving_var": None}
HALVES = (-3.25, 3.25)

UNARY = [
    *("relu", "sigmoid", "tanh", "exp", "abs", "negative", "floor", "ceil", "sign", "erf", "sin", "cos", "tan"),
    *("arctan", "sinh", "cosh", "arcsinh", "softsign", "cbrt", "square", "fix", "trunc", "expm1", "logical_not"),
    *("_copy", "BlockGrad", "make_loss", "MakeLoss"),
]
POSITIVE = ["log", "sqrt", "rsqrt", "log2", "log10", "log1p", "reciprocal"]
INSIDE = ["arcsin", "arccos", "arctanh"]
BINARY = [
    *("add", "sub", "mul", "maximum", "minimum"),
    *("equal", "not_equal", "greater", "greater_equal", "lesser", "lesser_equal"),
]
LSTM = 'state_size="5" num_layers="{}" mode="{}" bidirectional="{}" state_outputs="{}"'


def recurrent(mode: str, layers: int = 1, *, both: bool = False, states: bool = False) -> Case:
    """A recurrent layer that begins with zeros, on (T, N, C) made of examples (T, C)."""
    attrs = LSTM.format(layers, mode, both, states)
    rows = layers * (2 if both else 1)
    cell = ", c" if mode == "lstm" else ""
    lines = [
        'x = SwapAxis(data) dim1="0" dim2="1"',
        f'h = _zeros() shape="({rows}, 0, 5)"',
        *([f'c = _zeros() shape="({rows}, 0, 5)"'] if cell else []),
        f"y = RNN(x, w_weight, h{cell}) {attrs}",
        f"return y{', y:1' if states else ''}{', y:2' if states and cell else ''}",
    ]
    return Case("RNN", attrs, shape=(6, 3), lines=tuple(lines))


TABLE_OF_BOXES = (
    'c = SliceChannel(data) axis="2" num_outputs="6"',
    'm = _mul_scalar(c:0) scalar="3"',
    "k = floor(m)",
    "right = broadcast_add(c:2, c:4)",
    "low = broadcast_add(c:3, c:5)",
    't = Concat(k, c:1, c:2, c:3, right, low) dim="2" num_args="6"',
)
"""Rows of a class from 0 to 2, a score, and corners, made of six random numbers each."""


def attention() -> tuple[str, ...]:
    return (
        'x = transpose(data) axes="(1, 0, 2)"',
        's = _contrib_interleaved_matmul_selfatt_qk(x) heads="2"',
        'a = softmax(s) axis="-1"',
        'y = _contrib_interleaved_matmul_selfatt_valatt(x, a) heads="2"',
        "return s, y",
    )


def encoder_decoder() -> tuple[str, ...]:
    return (
        'q = transpose(data) axes="(1, 0, 2)"',
        'kv = transpose(other) axes="(1, 0, 2)"',
        's = _contrib_interleaved_matmul_encdec_qk(q, kv) heads="2"',
        'a = softmax(s) axis="-1"',
        'y = _contrib_interleaved_matmul_encdec_valatt(kv, a) heads="2"',
        "return s, y",
    )


def by_length(op: str, attrs: str = "") -> Case:
    """An operator on (T, N, C) made of examples (T, C), whose lengths are their second input."""
    lines = (
        'x = SwapAxis(data) dim1="0" dim2="1"',
        'lengths = slice_axis(other) axis="1" begin="0" end="1"',
        'n = Reshape(lengths) shape="(-1,)"',
        f'y = {op}(x, n) use_sequence_length="True" {attrs}',
        "return y",
    )
    return Case(op, attrs, shape=(6, 3), others={"other": (1,)}, span=(1, 6.9), lines=lines)


CASES: dict[str, list[Case]] = {
    # layers
    "Convolution": [
        *one("Convolution", 'kernel="(3, 2)" num_filter="6" pad="(1, 2)" stride="(2, 1)"', others=WEIGHTS),
        *one("Convolution", 'kernel="(3, 3)" num_filter="4" num_group="2" dilate="(2, 1)" no_bias="True"',
             others={"w_weight": None}),
        *one("Convolution", 'kernel="(3,)" num_filter="6"', shape=(4, 7), others=WEIGHTS),
        *one("Convolution", 'kernel="(2, 2, 2)" num_filter="3"', shape=(2, 4, 4, 4), others=WEIGHTS),
    ],
    "Convolution_v1": one("Convolution_v1", 'kernel="(3, 3)" num_filter="6"', others=WEIGHTS),
    "Deconvolution": [
        *one("Deconvolution", 'kernel="(3, 3)" num_filter="6" stride="(2, 2)" pad="(1, 1)" adj="(1, 0)"',
             others={"w_weight": None}),
        *one("Deconvolution", 'kernel="(4, 2)" num_filter="6" stride="(2, 2)" num_group="2" no_bias="False"',
             others=WEIGHTS),
        *one("Deconvolution", 'kernel="(3, 3)" num_filter="2" dilate="(2, 2)"', others={"w_weight": None}),
    ],
    "FullyConnected": [
        *one("FullyConnected", 'num_hidden="5"', others=WEIGHTS),
        *one("FullyConnected", 'num_hidden="5" flatten="False"', others=WEIGHTS),
        *one("FullyConnected", 'num_hidden="5" no_bias="True"', shape=(4,), others={"w_weight": None}),
    ],
    "Embedding": one("Embedding", 'input_dim="7" output_dim="3"', shape=(4,), others={"w_weight": None}, span=(-1, 9)),
    "_contrib_SparseEmbedding": one("_contrib_SparseEmbedding", 'input_dim="7" output_dim="3"', shape=(4,),
                                    others={"w_weight": None}, span=(0, 6.9)),
    "batch_dot": [
        *one("batch_dot", shape=(4, 5), others={"other": (5, 3)}),
        *one("batch_dot", 'transpose_a="True" transpose_b="True"', shape=(4, 5), others={"other": (3, 4)}),
    ],
    "dot": [
        Case("dot", shape=(4, 5), batch=3, lines=(
            'a = Reshape(data) shape="(-3, 0)"', 'b = Reshape(other) shape="(-3, 0)"',
            'y = dot(a, b) transpose_b="True"', "return y"), others={"other": (2, 5)}),
        Case("dot", shape=(4, 5), batch=3, lines=(
            'a = Reshape(data) shape="(-1,)"', 'b = Reshape(other) shape="(-1,)"', "y = dot(a, b)", "return y"),
            others={"other": (4, 5)}),
    ],
    "_linalg_gemm2": [
        *one("_linalg_gemm2", 'alpha="0.5" transpose_b="True"', shape=(4, 5), others={"other": (3, 5)}),
        *one("_linalg_gemm2", 'transpose_a="True"', shape=(4, 5), others={"other": (4, 3)}),
    ],
    # one number
    **{op: one(op, span=HALVES) for op in UNARY},
    "round": [*one("round", span=HALVES), Case("round", lines=(
        'a = _mul_scalar(data) scalar="2"', "b = floor(a)", 'c = _div_scalar(b) scalar="2"', "y = round(c)",
        "return y"))],
    "rint": [*one("rint", span=HALVES), Case("rint", lines=(
        'a = _mul_scalar(data) scalar="2"', "b = floor(a)", 'c = _div_scalar(b) scalar="2"', "y = rint(c)",
        "return y"))],
    **{op: one(op, span=(0.1, 4)) for op in POSITIVE},
    **{op: one(op, span=(-0.9, 0.9)) for op in INSIDE},
    "arccosh": one("arccosh", span=(1.1, 3)),
    "hard_sigmoid": one("hard_sigmoid", "", 'alpha="0.3" beta="0.4"'),
    "clip": one("clip", 'a_min="-0.5" a_max="1.5"'),
    "smooth_l1": one("smooth_l1", "", 'scalar="2"'),
    "Dropout": one("Dropout", 'p="0.5"'),
    "Cast": one("Cast", 'dtype="int32"', 'dtype="float32"', span=HALVES),
    "amp_cast": one("amp_cast", 'dtype="float32"'),
    "Activation": one("Activation", *(f'act_type="{k}"' for k in ("relu", "sigmoid", "tanh", "softrelu", "softsign"))),
    "LeakyReLU": [
        *one("LeakyReLU", *(f'act_type="{k}"' for k in ("leaky", "elu", "selu", "gelu", "rrelu"))),
        *one("LeakyReLU", 'act_type="leaky" slope="0.1"'),
        *one("LeakyReLU", 'act_type="prelu"', others={"w_gamma": None}),
        *one("LeakyReLU", 'act_type="prelu"', shape=(4,), others={"w_gamma": None}),
    ],
    **{op: one(op, others={"label": (1,)}, shape=(1,))
       for op in ("LinearRegressionOutput", "MAERegressionOutput", "LogisticRegressionOutput")},
    "SVMOutput": [Case("SVMOutput", shape=(5,), lines=(
        'n = sum(data) axis="1"', "y = SVMOutput(data, n)", "return y"))],
    "IdentityAttachKLSparseReg": one("IdentityAttachKLSparseReg", shape=(5,), others={"w_moving_avg": None}),
    # several tensors
    **{f"elemwise_{op}": one(f"elemwise_{op}", others={"other": IMAGE}) for op in ("add", "sub", "mul")},
    "elemwise_div": one("elemwise_div", others={"other": IMAGE}, span=(0.5, 2)),
    "_grad_add": one("_grad_add", others={"other": IMAGE}),
    **{f"broadcast_{op}": one(f"broadcast_{op}", others={"other": (4, 1, 1)}, span=HALVES) for op in BINARY},
    "broadcast_div": one("broadcast_div", others={"other": (4, 1, 1)}, span=(0.5, 2)),
    "broadcast_power": one("broadcast_power", others={"other": (4, 1, 1)}, span=(0.5, 2)),
    "broadcast_mod": one("broadcast_mod", others={"other": (4, 1, 1)}, span=(0.6, 4)),
    **{f"_{op}": one(f"_{op}", others={"other": IMAGE}, span=HALVES)
       for op in BINARY if op not in ("add", "sub", "mul")},
    "_power": one("_power", others={"other": IMAGE}, span=(0.5, 2)),
    "_mod": [
        *one("_mod", others={"other": IMAGE}, span=(0.6, 4)),
        Case("_mod", lines=('d = _greater_scalar(other) scalar="1"', "y = _mod(data, d)", "return y"),
             others={"other": IMAGE}, span=HALVES),  # by 0, too
    ],
    **{f"{op}_scalar": one(f"{op}_scalar", 'scalar="0.75"', 'scalar="-1.5"', span=HALVES) for op in (
        "_plus", "_minus", "_rminus", "_mul", "_div", "_maximum", "_minimum", "_equal", "_not_equal", "_greater",
        "_greater_equal", "_lesser", "_lesser_equal")},
    "_mod_scalar": one("_mod_scalar", 'scalar="0.75"', 'scalar="1.5"', 'scalar="0"', span=HALVES),
    **{f"{op}_scalar": one(f"{op}_scalar", 'scalar="1.75"', span=(0.5, 3)) for op in ("_rdiv", "_rpower", "_rmod")},
    "_power_scalar": one("_power_scalar", 'scalar="1.75"', 'scalar="-0.5"', span=(0.5, 3)),
    **{op: [Case(op, lines=("a = floor(data)", "b = floor(other)", f"y = {op}(a, b)", "return y"),
                 others={"other": IMAGE})]
       for kind in ("and", "or", "xor") for op in (f"broadcast_logical_{kind}", f"_logical_{kind}")},
    **{f"_logical_{kind}_scalar": [Case("", f"_logical_{kind}_scalar", lines=(
        "a = floor(data)", f'y = _logical_{kind}_scalar(a) scalar="{scalar}"', "return y")) for scalar in (0, 2)]
       for kind in ("and", "or", "xor")},
    "add_n": one("add_n", 'num_args="3"', others={"other": IMAGE, "third": IMAGE}),
    "where": [
        *one("where", lines=("c = relu(data)", "y = where(c, data, other)", "return y"), others={"other": IMAGE}),
        *one("where", lines=('c = sum(data) axis="(1, 2, 3)"', "r = relu(c)", "y = where(r, data, other)", "return y"),
             others={"other": IMAGE}),
    ],
    # normalization
    "BatchNorm": [
        *one("BatchNorm", 'fix_gamma="False" eps="1e-05"', "", others=BATCH_NORM),
        *one("BatchNorm", 'fix_gamma="False" axis="3"', others=BATCH_NORM),
        *one("BatchNorm", 'fix_gamma="False"', shape=(4,), others=BATCH_NORM),
    ],
    "BatchNorm_v1": one("BatchNorm_v1", 'fix_gamma="False"', others=BATCH_NORM),
    "_contrib_SyncBatchNorm": one("_contrib_SyncBatchNorm", 'fix_gamma="False" key="k"', others=BATCH_NORM),
    "_contrib_BatchNormWithReLU": one("_contrib_BatchNormWithReLU", 'fix_gamma="False"', others=BATCH_NORM),
    "LayerNorm": one("LayerNorm", "", 'axis="1"', 'eps="0.01"', others=NORM),
    "InstanceNorm": one("InstanceNorm", "", 'eps="0.1"', others=NORM),
    "GroupNorm": one("GroupNorm", 'num_groups="2"', others=NORM),
    "L2Normalization": one("L2Normalization", "", 'mode="channel"', 'mode="spatial" eps="0.01"'),
    "LRN": one("LRN", 'nsize="3"', 'nsize="5" alpha="0.1" beta="0.5" knorm="1"'),
    "softmax": one("softmax", "", 'axis="1"', 'temperature="2.5"'),
    "log_softmax": one("log_softmax", "", 'axis="1"'),
    "softmin": one("softmin", ""),
    "SoftmaxActivation": one("SoftmaxActivation", "", 'mode="channel"'),
    "SoftmaxOutput": [
        *one("SoftmaxOutput", shape=(5,), lines=('n = sum(data) axis="1"', "y = SoftmaxOutput(data, n)", "return y")),
        *one("SoftmaxOutput", lines=(
            'n = sum(data) axis="1"', 'y = SoftmaxOutput(data, n) multi_output="True"', "return y")),
        *one("SoftmaxOutput", lines=(
            'n = sum(data) axis="3"', 'y = SoftmaxOutput(data, n) preserve_shape="True"', "return y")),
    ],
    # pooling
    "Pooling": [
        *one("Pooling", *(
            f'kernel="(3, 2)" pool_type="{kind}" stride="(2, 2)" pad="(1, 0)" pooling_convention="{convention}"'
            for kind in ("max", "avg", "sum") for convention in ("valid", "full")
        )),
        *one("Pooling", *(
            f'kernel="(3, 3)" pool_type="avg" stride="(2, 2)" pad="(1, 1)" pooling_convention="{convention}" '
            f'count_include_pad="{counted}"' for convention in ("valid", "full") for counted in (True, False)
        )),
        *one("Pooling", 'kernel="(3, 3)" pool_type="avg" pad="(1, 1)" count_include_pad="None"'),
        *one("Pooling", *(f'pool_type="{kind}" global_pool="True"' for kind in ("max", "avg", "sum"))),
        *one("Pooling", *(f'kernel="(2, 2)" pool_type="lp" p_value="{p}" stride="(2, 2)"' for p in (1, 2, 3)),
             span=(0.1, 2)),
        *one("Pooling", 'pool_type="lp" p_value="2" global_pool="True"'),
        *one("Pooling", 'kernel="(3,)" pool_type="max" pooling_convention="full" stride="(2,)"', shape=(4, 8)),
        *one("Pooling", 'kernel="(2, 2, 2)" pool_type="avg"', shape=(2, 4, 4, 4)),
    ],
    "Pooling_v1": one(
        "Pooling_v1", 'kernel="(3, 3)" pool_type="max"', 'kernel="(3, 3)" pool_type="avg"',
        'kernel="(2, 2)" pool_type="avg" stride="(2, 2)" pooling_convention="full"',
    ),
    "_contrib_AdaptiveAvgPooling2D": one("_contrib_AdaptiveAvgPooling2D", 'output_size="(1,)"', 'output_size="(3, 4)"',
                                         'output_size="(5, 9)"'),
    # images
    "UpSampling": [
        *one("UpSampling", 'scale="2" sample_type="nearest" num_args="1"'),
        *one("UpSampling", 'scale="2" sample_type="nearest" num_args="2"', others={"other": (3, 14, 12)}),
        *one("UpSampling", 'scale="2" sample_type="nearest" num_args="2" multi_input_mode="sum"',
             others={"other": (4, 14, 12)}),
        *one("UpSampling", 'scale="2" sample_type="bilinear" num_args="2" num_filter="4"', others={"w_weight": None}),
        *one("UpSampling", 'scale="3" sample_type="bilinear" num_args="2" num_filter="4"', others={"w_weight": None}),
    ],
    "_contrib_BilinearResize2D": one(
        "_contrib_BilinearResize2D", 'height="12" width="9"', 'height="3" width="4"',
        'height="14" width="6" align_corners="False"', 'scale_height="2" scale_width="1.5" mode="odd_scale"',
    ),
    # shapes and parts
    "Reshape": one("Reshape", 'shape="(0, -1)"', 'shape="(-3, 0, 0)"', 'shape="(0, -4, 2, -1, -2)"',
                   'shape="(-1, 6)"', 'shape="(-1, 0)" reverse="True"', 'shape="(0, 0, -3)"'),
    "_np_reshape": [],
    "_npx_reshape": [],
    "squeeze": [*one("squeeze", 'axis="1"', shape=(1, 4, 1)), *one("squeeze", 'axis="(1, 3)"', shape=(1, 4, 1))],
    "reshape_like": one("reshape_like", others={"other": (7, 24)}),
    "Flatten": one("Flatten"),
    "expand_dims": one("expand_dims", 'axis="1"', 'axis="-1"'),
    "transpose": one("transpose", "", 'axes="(0, 2, 3, 1)"'),
    "SwapAxis": one("SwapAxis", 'dim1="1" dim2="3"', 'dim1="0" dim2="1"'),
    "depth_to_space": one("depth_to_space", 'block_size="2"', shape=(8, 3, 2)),
    "space_to_depth": one("space_to_depth", 'block_size="2"', shape=(3, 4, 6)),
    "slice": one("slice", 'begin="(None, 1)" end="(None, 3)"', 'begin="(None, None, 5)" end="(None, None, 0)" '
                 'step="(None, None, -2)"', 'begin="(0, -3, 1)" end="(None, -1, None)" step="(1, 1, 3)"'),
    "slice_axis": one("slice_axis", 'axis="1" begin="1" end="3"', 'axis="-1" begin="-4" end="None"'),
    "slice_like": [
        *one("slice_like", 'axes="(2, 3)"', others={"other": (1, 3, 2)}),
        *one("slice_like", "", others={"other": (3, 3, 2)}),
    ],
    "SliceChannel": [
        Case("SliceChannel", f'axis="1" num_outputs="{n}" {more}', lines=(
            f'x = SliceChannel(data) axis="1" num_outputs="{n}" {more}', *last))
        for n, more, last in (
            (2, "", ("y = elemwise_sub(x:0, x:1)", "return y")),
            (4, 'squeeze_axis="True"', ("return x, x:3",)),
            (1, "", ("y = relu(x)", "return y")),
        )
    ],
    "_split_v2": [
        Case("_split_v2", more, lines=(f"x = _split_v2(data) {more}", "return x, x:1"))
        for more in ('axis="1" indices="(0, 1)"', 'axis="2" indices="(0, 5)"', 'axis="1" indices="()" sections="2"')
    ],
    "reverse": one("reverse", 'axis="(1,)"', 'axis="(2, 3)"'),
    "Concat": [
        *one("Concat", 'dim="1" num_args="2"', others={"other": (3, 7, 6)}),
        *one("Concat", 'dim="0" num_args="2"', 'dim="-1" num_args="2"', others={"other": IMAGE}),
    ],
    "_rnn_param_concat": [],
    "stack": one("stack", 'axis="1" num_args="2"', 'axis="-1" num_args="2"', others={"other": IMAGE}),
    "tile": one("tile", 'reps="(2, 1)"', 'reps="(1, 2, 1, 3)"', 'reps="(2, 1, 1, 1, 2)"'),
    "repeat": one("repeat", 'repeats="2" axis="1"', 'repeats="3" axis="-1"', 'repeats="2"', 'repeats="2" axis="0"'),
    "broadcast_axis": one("broadcast_axis", 'axis="2" size="3"', shape=(4, 1, 6)),
    "broadcast_to": one("broadcast_to", 'shape="(0, 4, 3, 6)"', shape=(4, 1, 6)),
    "broadcast_like": one("broadcast_like", shape=(4, 1, 6), others={"other": (4, 3, 6)}),
    "Pad": one("Pad", *(f'mode="{mode}" pad_width="(0, 0, 0, 0, 1, 2, 3, 1)" constant_value="0.5"'
                        for mode in ("constant", "edge", "reflect"))),
    "shape_array": one("shape_array"),
    "size_array": one("size_array"),
    "zeros_like": one("zeros_like"),
    "ones_like": one("ones_like"),
    "_zeros": [with_source("_zeros", 'shape="(4, 1, 1)"'),
               with_source("_zeros", 'shape="(0, 4, 7, 6)"', "y = elemwise_add(data, x)")],
    "_ones": [with_source("_ones", 'shape="(4, 1, 1)"')],
    "_full": [with_source("_full", 'shape="(4, 1, 1)" value="2.5"')],
    "_arange": [with_source("_arange", 'start="1" stop="4"', shape=(4, 3)),
                with_source("_arange", 'start="3" stop="None" repeat="2"', shape=(4, 6)),
                with_source("_arange", 'start="1" stop="4" step="0.5" repeat="2"', shape=(4, 12))],
    "_contrib_arange_like": one("_contrib_arange_like", 'axis="2"', 'axis="0" start="2" step="0.5"'),
    "_eye": [with_source("_eye", 'N="3" M="4" k="1"', shape=(3, 4))],
    # reductions and order
    **{op: one(op, "", 'axis="1"', 'axis="(2, 3)" keepdims="True"', 'axis="1" exclude="True"', span=(0.8, 1.2))
       for op in ("sum", "mean", "max", "min", "prod")},
    "sum": one("sum", "", 'axis="1"', 'axis="(2, 3)" keepdims="True"', 'axis="(0, 1, 2, 3)" exclude="True"'),
    "norm": one("norm", 'axis="1"', 'ord="1" axis="2" keepdims="True"', ""),
    "argmax": one("argmax", 'axis="1"', 'axis="-1" keepdims="True"', ""),
    "argmin": one("argmin", 'axis="2"'),
    "argmax_channel": one("argmax_channel", shape=(5,)),
    "topk": [
        *one("topk", 'k="3" axis="-1" ret_typ="value"', 'k="2" axis="1"', 'k="1" is_ascend="True" ret_typ="value"'),
        Case("topk", 'ret_typ="both"', lines=('x = topk(data) k="2" axis="2" ret_typ="both"', "return x, x:1")),
    ],
    "sort": one("sort", "", 'axis="1" is_ascend="False"'),
    "argsort": one("argsort", "", 'axis="1" is_ascend="False"'),
    "take": [
        *one("take", 'axis="1"', 'axis="1" mode="wrap"', span=(-3, 9), lines=(), shape=(4, 5), others={"other": (2,)}),
    ],
    "pick": [
        Case("pick", more, shape=(4,), span=(-1, 5), lines=(
            'i = max(data) axis="1"', f"y = pick(data, i) {more}", "return y"))
        for more in ("", 'axis="1" keepdims="True"')
    ],
    "gather_nd": [Case("gather_nd", shape=(3, 2), lines=(
        'i = _contrib_arange_like(data) axis="0"', 'j = reverse(i) axis="(0,)"', 'k = Reshape(j) shape="(1, -1)"',
        "y = gather_nd(data, k)", "return y"))],
    "one_hot": one("one_hot", 'depth="4"', 'depth="3" on_value="2" off_value="-1"', shape=(3,), span=(-1, 6)),
    # sequences
    "RNN": [
        *(recurrent(mode, layers, both=both, states=states)
          for mode in ("lstm", "gru", "rnn_tanh", "rnn_relu")
          for layers, both, states in ((1, False, False), (2, True, True))),
        Case("RNN", "given states", shape=(6, 3), others={"h": (1, 5), "c": (1, 5)}, lines=(
            'x = SwapAxis(data) dim1="0" dim2="1"', 'a = SwapAxis(h) dim1="0" dim2="1"',
            'b = SwapAxis(c) dim1="0" dim2="1"', f'y = RNN(x, w_weight, a, b) {LSTM.format(1, "lstm", False, False)}',
            "return y")),
    ],
    "SequenceLast": [*one("SequenceLast", 'axis="1"', shape=(6, 3)), by_length("SequenceLast")],
    "SequenceMask": [*one("SequenceMask"), by_length("SequenceMask", 'value="-1"')],
    "SequenceReverse": [*one("SequenceReverse", lines=(
        'x = SwapAxis(data) dim1="0" dim2="1"', "y = SequenceReverse(x)", "return y")), by_length("SequenceReverse")],
    **{f"_contrib_interleaved_matmul_selfatt_{part}": one("", part, shape=(5, 24), lines=attention())
       for part in ("qk", "valatt")},
    **{f"_contrib_interleaved_matmul_encdec_{part}": one(
        "", part, shape=(5, 8), others={"other": (6, 16)}, lines=encoder_decoder()) for part in ("qk", "valatt")},
    "_contrib_div_sqrt_dim": one("_contrib_div_sqrt_dim"),
    # detection
    "_contrib_MultiBoxPrior": [
        Case("_contrib_MultiBoxPrior", more, lines=(f"y = _contrib_MultiBoxPrior(data) {more}", "return y"))
        for more in (
            'sizes="(0.4, 0.7)" ratios="(1, 2, 0.5)"',
            'sizes="(0.2,)" ratios="(2, 1)" clip="True" steps="(0.1, 0.2)" offsets="(0.3, 0.6)"',
        )
    ],
    "_contrib_box_decode": [
        Case("_contrib_box_decode", more, shape=(6, 4), span=(0.1, 1), lines=(
            'a = slice_axis(other) axis="0" begin="0" end="1"', f"y = _contrib_box_decode(data, a) {more}", "return y"),
            others={"other": (6, 4)})
        for more in ('std0="0.1" std1="0.1" std2="0.2" std3="0.2"', 'format="corner" clip="0.5"')
    ],
    "_contrib_box_nms": [
        Case("_contrib_box_nms", more, shape=(40, 6), span=(0, 1), lines=(*TABLE_OF_BOXES, f"y = {op}(t) {more}",
                                                                         "return y"))
        for op in ("_contrib_box_nms",) for more in (
            'overlap_thresh="0.3" valid_thresh="0.2" topk="25" id_index="0"',
            'overlap_thresh="0.3" valid_thresh="0.2" id_index="0" force_suppress="True"',
            'overlap_thresh="0.5" topk="60"',
            'overlap_thresh="0.2" valid_thresh="2"',
            'overlap_thresh="0.3" id_index="0" in_format="center" out_format="corner"',
            'overlap_thresh="0.3" topk="30" in_format="corner" out_format="center"',
        )
    ],
    "_contrib_MultiBoxDetection": [
        Case("_contrib_MultiBoxDetection", more, shape=(4, 40), others={"moves": (160,), "boxes": (40, 4)}, span=(0, 1),
             lines=(
                 'p = softmax(data) axis="1"', 'a = slice_axis(boxes) axis="0" begin="0" end="1"',
                 'b = sort(a) axis="2"', 'c = SliceChannel(b) axis="2" num_outputs="4"',
                 'd = Concat(c:0, c:1, c:2, c:3) dim="2" num_args="4"',
                 f"y = _contrib_MultiBoxDetection(p, moves, d) {more}", "return y"))
        for more in (
            'nms_threshold="0.3" threshold="0.3"',
            'nms_threshold="0.4" threshold="0.29" nms_topk="12" clip="False" variances="(0.1, 0.2, 0.3, 0.1)"',
            'nms_threshold="0.4" force_suppress="True"',
            'threshold="0.9"',
        )
    ],
    "_contrib_ROIAlign": [
        Case("_contrib_ROIAlign", more, shape=(2, 12, 12), others={"other": (4,)}, span=(0, 1), lines=(
            'i = _contrib_arange_like(other) axis="0"', 'j = Reshape(i) shape="(-1, 1)"', 's = sort(other) axis="1"',
            'b = _mul_scalar(s) scalar="20"', 'r = Concat(j, b) dim="1" num_args="2"',
            f"y = _contrib_ROIAlign(data, r) {more}", "return y"))
        for more in (
            'pooled_size="(3, 2)" spatial_scale="0.5" sample_ratio="2"',
            'pooled_size="(2, 2)" spatial_scale="0.5" sample_ratio="-1"',
            'pooled_size="(2, 2)" spatial_scale="0.5" sample_ratio="2" aligned="True"',
        )
    ],
}  # fmt: skip
"""Of each row nodes that show it; of none that `NOT_RUN` names."""

NOT_RUN = {
    "_np_reshape": "it runs with numpy's semantics alone",
    "_npx_reshape": "it runs with numpy's semantics alone",
    "_rnn_param_concat": "it makes parameters of parameters, which are constants before rows are asked",
}
"""Rows without cases -> why."""

TOPICAL = [case for cases in CASES.values() for case in cases]


def test_every_row_is_run() -> None:
    assert CASES.keys() == TABLE.keys()
    assert {op for op, cases in CASES.items() if not cases} == NOT_RUN.keys()


@pytest.mark.parametrize("case", TOPICAL, ids=str)
def test_as_mxnet(case: Case, tmp_path: Path) -> None:
    batches = [case.feeds(n, seed) for seed, n in enumerate([case.batch] if case.batch else (5, 1))]
    model = build(*case.text, **{name: value.shape for name, value in batches[0].items()})
    assert_same(model, tmp_path / "net.onnx", *batches, batch=case.batch, rtol=RTOL, atol=ATOL)
