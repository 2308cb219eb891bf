"""Networks of gluoncv's zoo, and two that are built here, with random weights that behave like trained ones.

A network with freshly drawn weights and untouched BatchNorms has activations that explode or vanish, which says
nothing about quantization. So the moving statistics are those of a batch of noise, as training would have left them.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

import mxq  # isort: skip  (before mxnet)

mxq.use_physical_cores()
os.environ.setdefault("MXNET_SUBGRAPH_VERBOSE", "0")

import mxnet as mx  # noqa: E402
from gluoncv import model_zoo  # noqa: E402
from mxnet.gluon import nn, rnn  # noqa: E402

from mxq.graph.ir import Array, Model  # noqa: E402
from mxq.runtime import load_model  # noqa: E402

MTCNN = "mtcnn"
CLASSIFIER, DETECTOR, DENSE, SEQUENCE = "classifier", "detector", "dense", "sequence"


@dataclass(frozen=True)
class Net:
    """A network: its ``name`` in the zoo, the shape of one example, what it is for, and its usual ``batch``."""

    name: str
    shape: tuple[int, ...]
    kind: str = CLASSIFIER
    batch: int = 1

    def __str__(self) -> str:
        return self.name


def _image(side: int) -> tuple[int, int, int]:
    return (3, side, side)


NETS = {
    net.name: net
    for net in (
        *(
            Net(name, _image(224))
            for name in (
                "resnet18_v1", "resnet50_v1", "resnet101_v1", "resnet50_v1b", "resnet50_v2", "resnext50_32x4d",
                "se_resnext50_32x4d", "mobilenet1.0", "mobilenet0.25", "mobilenetv2_1.0", "mobilenetv3_small",
                "mobilenetv3_large", "squeezenet1.1", "densenet121", "vgg16", "vgg16_bn", "alexnet", "resnest50",
                "senet_154", "hrnet_w18_small_v1_c",
            )
        ),
        Net("inceptionv3", _image(299)),
        Net("cifar_resnet20_v1", _image(32)),
        Net("ssd_300_vgg16_atrous_voc", _image(300), DETECTOR),
        Net("ssd_512_mobilenet1.0_voc", _image(512), DETECTOR),
        Net("ssd_512_resnet50_v1_voc", _image(512), DETECTOR),
        Net("yolo3_darknet53_voc", _image(416), DETECTOR),
        Net("yolo3_mobilenet1.0_voc", _image(416), DETECTOR),
        Net("center_net_resnet18_v1b_voc", _image(512), DETECTOR),
        Net("faster_rcnn_resnet50_v1b_voc", _image(480), DETECTOR),
        Net("mask_rcnn_resnet18_v1b_coco", _image(480), DETECTOR),
        Net("fcn_resnet50_ade", _image(480), DENSE),
        Net("deeplab_resnet50_ade", _image(480), DENSE),
        Net("simple_pose_resnet18_v1b", (3, 256, 192), DENSE),
        Net("transformer_encoder", (64, 256), SEQUENCE),
        Net("lstm_classifier", (64, 128), SEQUENCE),
        Net("mtcnn/det1", _image(384)),
        Net("mtcnn/det2", _image(24), batch=16),  # the windows that det1 found
        Net("mtcnn/det3", _image(48), batch=16),
        Net("mtcnn/det4", (15, 24, 24), batch=16),
    )
}  # fmt: skip
"""Every network of the coverage table, by name."""


class Encoder(nn.HybridBlock):
    """Two layers of a transformer encoder over (N, 64, 256): interleaved self-attention, GELU, layer norms."""

    def __init__(self, units: int = 256, heads: int = 4, length: int = 64) -> None:
        super().__init__()
        self._heads, self._length, self._units = heads, length, units
        with self.name_scope():
            self.blocks = [self._block(i) for i in range(2)]

    def _block(self, index: int) -> dict[str, nn.HybridBlock]:
        layers = {
            "qkv": nn.Dense(3 * self._units, flatten=False, in_units=self._units),
            "out": nn.Dense(self._units, flatten=False, in_units=self._units),
            "up": nn.Dense(4 * self._units, flatten=False, in_units=self._units),
            "down": nn.Dense(self._units, flatten=False, in_units=4 * self._units),
            "norm1": nn.LayerNorm(in_channels=self._units),
            "norm2": nn.LayerNorm(in_channels=self._units),
        }
        for name, layer in layers.items():
            setattr(self, f"{name}{index}", layer)
        return layers

    def hybrid_forward(self, F: Any, x: Any) -> Any:  # noqa: N803 - Gluon's name
        x = F.transpose(x, axes=(1, 0, 2))  # the attention operators want (length, N, units)
        for block in self.blocks:
            qkv = block["qkv"](x)
            scores = F.contrib.interleaved_matmul_selfatt_qk(qkv, heads=self._heads)
            mixed = F.contrib.interleaved_matmul_selfatt_valatt(qkv, F.softmax(scores), heads=self._heads)
            x = block["norm1"](x + block["out"](mixed))
            x = block["norm2"](x + block["down"](F.LeakyReLU(block["up"](x), act_type="gelu")))
        return F.mean(x, axis=0)


class Recurrent(nn.HybridBlock):
    """A two-layer LSTM over (N, 64, 128), and classes from its last state."""

    def __init__(self) -> None:
        super().__init__()
        with self.name_scope():
            self.lstm = rnn.LSTM(256, num_layers=2, layout="NTC", input_size=128)
            self.hidden = nn.Dense(256, activation="relu", in_units=256)
            self.classes = nn.Dense(20, in_units=256)

    def hybrid_forward(self, F: Any, x: Any) -> Any:  # noqa: N803 - Gluon's name
        return self.classes(self.hidden(F.SequenceLast(F.transpose(self.lstm(x), axes=(1, 0, 2)))))


VECTORS = {"gamma": 1.0, "beta": 0.0, "_mean": 0.0, "_var": 1.0, "bias": 0.0}
OWN: dict[str, Callable[[], nn.HybridBlock]] = {"transformer_encoder": Encoder, "lstm_classifier": Recurrent}


def examples(net: Net, count: int, seed: int = 1) -> Array:
    """Smooth noise of unit variance, (count, *shape) float32: neighbours are alike, as in pictures.

    The networks of MTCNN, which are trained, get crops of the picture beside them.
    """
    rng = np.random.default_rng(seed)
    if net.name.startswith(MTCNN):
        return np.stack([_crop(net, rng) for _ in range(count)])
    fine = rng.standard_normal((count, *net.shape)).astype(np.float32)
    if len(net.shape) < 3:
        return fine
    *channels, height, width = net.shape
    coarse = rng.standard_normal((count, *channels, -(-height // 16), -(-width // 16))).astype(np.float32)
    return 0.3 * fine + 0.95 * coarse.repeat(16, -2).repeat(16, -1)[..., :height, :width]


def _crop(net: Net, rng: np.random.Generator) -> Array:
    """A random part of the picture in the size the network takes, for det4 five of them one after the other."""
    channels, height, width = net.shape
    parts = []
    with Image.open(Path(os.environ["MXQ_DATA"]) / "models" / MTCNN / "test.jpg") as picture:
        for _ in range(channels // 3):
            side = rng.uniform(0.1, 0.9) * min(picture.size)
            left, top = (rng.uniform(0, size - side) for size in picture.size)
            part = picture.convert("RGB").resize((width, height), box=(left, top, left + side, top + side))
            parts.append((np.asarray(part, np.float32).transpose(2, 0, 1) - 127.5) / 128)
    return np.concatenate(parts)


def build(name: str, shape: tuple[int, ...] = (), **options: Any) -> Model:
    """The float network ``name`` of `NETS`, for examples of another ``shape`` where one is given.

    Args:
        name: of the network.
        shape: of one example.
        options: gluoncv's, of this network.
    """
    net = replace(NETS[name], shape=shape or NETS[name].shape)
    if name.startswith(MTCNN):
        return load_model(Path(os.environ["MXQ_DATA"]) / "models" / name)
    mx.random.seed(5)
    block = OWN[name]() if name in OWN else model_zoo.get_model(name, pretrained=False, **_untrained(net), **options)
    for param in block.collect_params().values():  # some detectors ask for Xavier's also where there is no matrix
        value = next((v for end, v in VECTORS.items() if param.name.endswith(end)), None)
        if value is not None:
            param.init = mx.init.Constant(value)
    block.initialize(mx.init.MSRAPrelu("in", 0.0))
    settle(block, mx.nd.array(examples(net, 1 if net.kind == DETECTOR else 4, seed=2)))
    return load_model(block)


def _untrained(net: Net) -> dict[str, bool]:
    return {} if net.kind in (CLASSIFIER, SEQUENCE) else {"pretrained_base": False}


def settle(block: nn.HybridBlock, batch: Any) -> None:
    """Gives every BatchNorm the statistics of ``batch``, one layer after the other, in a single pass."""
    norms = [b for b in _children(block) if type(b).__name__ == "BatchNorm"]
    hooks = [norm.register_forward_pre_hook(_measure) for norm in norms]
    outputs = block(batch)
    for output in outputs if isinstance(outputs, list | tuple) else [outputs]:
        output.wait_to_read()
    for hook in hooks:
        hook.detach()


def _measure(norm: nn.BatchNorm, inputs: tuple[Any, ...]) -> None:
    (x,) = inputs
    if norm.running_mean.shape != x.shape[1:2]:
        norm._finish_deferred = norm.infer_shape(x)  # noqa: SLF001
        for param in norm.collect_params().values():
            param._finish_deferred_init()  # noqa: SLF001
    norm.running_mean.set_data(x.mean(axis=1, exclude=True))
    spread = (x - x.mean(axis=1, exclude=True, keepdims=True)) ** 2
    norm.running_var.set_data(spread.mean(axis=1, exclude=True) + 1e-3)


def _children(block: nn.Block) -> Iterator[nn.Block]:
    yield block
    for child in block._children.values():  # noqa: SLF001
        yield from _children(child)
