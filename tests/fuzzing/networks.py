"""Small networks of the kinds that mxq is for: depthwise, a detector's head, attention, an LSTM, a loop; and int8."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

KINDS = ("depthwise", "detector", "attention", "lstm", "loop", "module")
INT8 = ("depthwise-int8", "detector-int8", "attention-int8")


def make(where: Path, mx: Any) -> None:
    """The pair and the inputs (``NAME-inputs.npz``) of each of `KINDS` and `INT8`, in ``where``."""
    import mxq

    rng = np.random.default_rng(3)
    for name in KINDS:
        sym, inputs = BUILDERS[name](mx, rng)
        shapes = {k: v.shape for k, v in inputs.items()}
        args, _, states = sym.infer_shape(**shapes)
        table = {f"arg:{n}": _value(mx, rng, n, s) for n, s in zip(sym.list_arguments(), args, strict=True)}
        table |= {f"aux:{n}": _value(mx, rng, n, s) for n, s in zip(sym.list_auxiliary_states(), states, strict=True)}
        sym.save(str(where / f"{name}-symbol.json"))
        kept = {k: v for k, v in table.items() if k.partition(":")[2] not in inputs}
        mx.nd.save(str(where / f"{name}-0000.params"), kept)
        np.savez(where / f"{name}-inputs.npz", **inputs)
    for name in INT8:
        data = np.load(where / f"{name.removesuffix('-int8')}-inputs.npz")["data"]
        mxq.save(mxq.quantize_net(str(where / name.removesuffix("-int8")), data, effort="fast"), where / name)
        np.savez(where / f"{name}-inputs.npz", data=data)


def _value(mx: Any, rng: Any, name: str, shape: tuple[int, ...]) -> Any:
    low, high = (0.5, 1.5) if name.endswith(("var", "gamma")) else (-0.4, 0.4)
    return mx.nd.array(rng.uniform(low, high, shape).astype(np.float32))


def _images(rng: Any) -> dict[str, Any]:
    return {"data": rng.normal(size=(2, 3, 8, 8)).astype(np.float32)}


def _conv(mx: Any, x: Any, name: str, filters: int, size: int = 3, **options: Any) -> Any:
    pad = (size // 2, size // 2)
    return mx.sym.Convolution(x, name=name, num_filter=filters, kernel=(size, size), pad=pad, **options)


def _depthwise(mx: Any, rng: Any) -> tuple[Any, dict[str, Any]]:
    sym = mx.sym
    stem = sym.LeakyReLU(sym.BatchNorm(_conv(mx, sym.var("data"), "stem", 8, no_bias=True)), act_type="prelu")
    each = _conv(mx, stem, "each", 8, num_group=8, no_bias=True)
    point = sym.clip(_conv(mx, sym.BatchNorm(each, fix_gamma=False), "point", 8, 1), a_min=0, a_max=6)
    up = sym.Deconvolution(point + stem, name="up", num_filter=4, kernel=(2, 2), stride=(2, 2))
    gate = sym.sigmoid(sym.Pooling(up, global_pool=True, kernel=(1, 1), pool_type="avg"))
    mixed = sym.InstanceNorm(sym.broadcast_mul(up, gate))
    pooled = sym.Pooling(mixed, kernel=(2, 2), stride=(2, 2), pool_type="avg", count_include_pad=False)
    hidden = sym.Activation(sym.FullyConnected(pooled, name="hidden", num_hidden=6), act_type="relu")
    return sym.FullyConnected(sym.Dropout(hidden), name="last", num_hidden=3), _images(rng)


def _detector(mx: Any, rng: Any) -> tuple[Any, dict[str, Any]]:
    sym = mx.sym
    norm = sym.BatchNorm(_conv(mx, sym.var("data"), "c0", 8), name="b0", fix_gamma=False)
    body = sym.Activation(norm, act_type="relu")
    half = sym.Pooling(body, kernel=(2, 2), stride=(2, 2), pool_type="max")
    both = sym.Concat(body, sym.UpSampling(half, scale=2, sample_type="nearest"), dim=1)
    scores = sym.Reshape(sym.transpose(_conv(mx, both, "scores", 6, 1), axes=(0, 2, 3, 1)), shape=(0, -1, 3))
    boxes = sym.Flatten(sym.transpose(_conv(mx, both, "boxes", 8, 1), axes=(0, 2, 3, 1)))
    anchors = sym.contrib.MultiBoxPrior(both, sizes=(0.2, 0.4), ratios=(1,))
    found = sym.contrib.MultiBoxDetection(
        sym.transpose(sym.softmax(scores), axes=(0, 2, 1)), boxes, anchors, name="found"
    )
    kept = sym.contrib.box_nms(found, overlap_thresh=0.45, topk=20)
    first = sym.slice_axis(kept, axis=1, begin=0, end=10)
    return sym.Group([first, sym.topk(scores, k=2, ret_typ="both")[0], sym.L2Normalization(body)]), _images(rng)


def _attention(mx: Any, rng: Any) -> tuple[Any, dict[str, Any]]:
    sym = mx.sym
    words = sym.Embedding(sym.var("data"), name="words", input_dim=20, output_dim=16)
    parts = sym.FullyConnected(words, name="qkv", num_hidden=48, flatten=False)
    query, key, value = sym.split(parts, num_outputs=3, axis=2)
    weights = sym.softmax(sym.batch_dot(query, key, transpose_b=True) / 4.0)
    mixed = sym.FullyConnected(sym.batch_dot(weights, value), name="mix", num_hidden=16, flatten=False)
    normed = sym.LayerNorm(words + mixed, name="norm")
    answer = sym.FullyConnected(normed, name="answer", num_hidden=4)
    return sym.Group([answer, sym.mean(normed, axis=1)]), {"data": rng.integers(0, 20, (4, 6)).astype(np.float32)}


def _lstm(mx: Any, rng: Any) -> tuple[Any, dict[str, Any]]:
    sym = mx.sym
    states = [sym.zeros((4, 2, 6)), sym.zeros((4, 2, 6))]
    layers = {"mode": "lstm", "state_size": 6, "num_layers": 2, "bidirectional": True}
    read = sym.RNN(sym.transpose(sym.var("data"), axes=(1, 0, 2)), sym.var("weights"), *states, name="rnn", **layers)
    answer = sym.FullyConnected(sym.transpose(read, axes=(1, 0, 2)), name="answer", num_hidden=4)
    return answer, {"data": rng.normal(size=(2, 5, 4)).astype(np.float32)}


def _loop(mx: Any, rng: Any) -> tuple[Any, dict[str, Any]]:
    sym = mx.sym
    data = sym.var("data")
    first = sym.Reshape(sym.slice_axis(data, axis=1, begin=0, end=1), shape=(-3, 0))
    steps = sym.transpose(data, axes=(1, 0, 2))
    made, states = sym.contrib.foreach(lambda x, s: (x + s[0], [x * s[0]]), steps, [first])
    answer = sym.FullyConnected(made, name="answer", num_hidden=3)
    return sym.Group([answer, states[0]]), {"data": rng.normal(size=(2, 4, 6)).astype(np.float32)}


def _module(mx: Any, rng: Any) -> tuple[Any, dict[str, Any]]:
    """As written for ``mx.mod.Module``: a training head, and a factor for each channel."""
    sym = mx.sym
    scaled = sym.broadcast_mul(_conv(mx, sym.var("data"), "c0", 8), sym.var("factor", shape=(1, 8, 1, 1)))
    pooled = sym.Pooling(
        sym.LRN(sym.LeakyReLU(scaled, act_type="leaky"), nsize=3), global_pool=True, kernel=(1, 1), pool_type="avg"
    )
    answer = sym.FullyConnected(sym.Flatten(pooled), name="answer", num_hidden=5)
    return sym.SoftmaxOutput(answer, name="softmax", label=sym.zeros((2,))), _images(rng)


BUILDERS = {
    "depthwise": _depthwise,
    "detector": _detector,
    "attention": _attention,
    "lstm": _lstm,
    "loop": _loop,
    "module": _module,
}
