"""SSD-300 on the VGG16-reduced topology, at any width, written with Gluon.

`SSD` is the network that is trained: it returns class scores, box offsets and anchors.
`DeploySSD` wraps it for inference: softmax, box decoding and non-maximum suppression.
The layers are named as in the VGG16 SSD literature (conv1_1 ... conv5_3, fc6, fc7, extra layers).
"""

# ruff: noqa: N803  (Gluon calls the operator namespace F)

from __future__ import annotations

from types import ModuleType
from typing import NamedTuple

import mxnet as mx
from mxnet import nd, sym
from mxnet.gluon import HybridBlock, nn

Tensor = nd.NDArray | sym.Symbol

SIZE = 300  # side of the input image, in pixels
VARIANCES = (0.1, 0.1, 0.2, 0.2)  # scale of the box offsets (x, y, w, h)
L2_SCALE = 20.0  # first value of the learned scale on conv4_3


class Source(NamedTuple):
    """One feature map with predictions on it.

    Attributes:
        name: layer the features come from.
        sizes: anchor sides as fractions of the image side, (small, large).
        ratios: width / height of the anchors.
        step: distance between anchor centres, in pixels of the 300x300 input.
    """

    name: str
    sizes: tuple[float, float]
    ratios: tuple[float, ...]
    step: int

    @property
    def anchors(self) -> int:
        """Number of anchors at each position."""
        return len(self.sizes) + len(self.ratios) - 1


FEW = (1.0, 2.0, 0.5)
MANY = (1.0, 2.0, 0.5, 3.0, 1.0 / 3.0)
SOURCES = (
    Source("conv4_3", (0.1, 0.141), FEW, 8),  # 38x38
    Source("fc7", (0.2, 0.272), MANY, 16),  # 19x19
    Source("conv6_2", (0.37, 0.447), MANY, 32),  # 10x10
    Source("conv7_2", (0.54, 0.619), MANY, 64),  # 5x5
    Source("conv8_2", (0.71, 0.79), FEW, 100),  # 3x3
    Source("conv9_2", (0.88, 0.961), FEW, 300),  # 1x1
)


class ConvBlock(HybridBlock):
    """Convolution, BatchNorm where asked for, and ReLU.

    Args:
        name: layer name, the prefix of all parameter names.
        channels: output channels.
        batch_norm: put a BatchNorm between convolution and ReLU.
        kernel, stride, pad, dilate: of the convolution, in pixels.
    """

    def __init__(
        self,
        name: str,
        channels: int,
        batch_norm: bool,
        *,
        kernel: int = 3,
        stride: int = 1,
        pad: int = 1,
        dilate: int = 1,
    ) -> None:
        super().__init__(prefix=f"{name}_")
        with self.name_scope():
            self.conv = nn.Conv2D(channels, kernel, stride, pad, dilate, use_bias=not batch_norm, prefix="")
            self.norm = nn.BatchNorm(prefix="bn_") if batch_norm else None

    def hybrid_forward(self, F: ModuleType, x: Tensor) -> Tensor:
        """Map (N, C, H, W) float32 to (N, channels, H', W') float32, non-negative."""
        x = self.conv(x)
        if self.norm is not None:
            x = self.norm(x)
        return F.Activation(x, act_type="relu", name="relu")


class VGG16Reduced(HybridBlock):
    """VGG16 up to fc7, with fc6 and fc7 as convolutions, and the four extra SSD layers.

    Args:
        width: channel count as a factor of VGG16's (1.0 gives 64 to 1024 channels).
        batch_norm: put a BatchNorm after every convolution.
    """

    def __init__(self, width: float, batch_norm: bool) -> None:
        super().__init__(prefix="")

        def conv(name: str, channels: int, **shape: int) -> ConvBlock:
            return ConvBlock(name, max(8, round(channels * width)), batch_norm, **shape)

        stages = ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))
        self.stage1, self.stage2, self.stage3, self.stage4, self.stage5 = (
            _sequence(*(conv(f"conv{i}_{j}", channels) for j in range(1, count + 1)))
            for i, (channels, count) in enumerate(stages, start=1)
        )
        self.pool1 = nn.MaxPool2D(2, 2, prefix="pool1_")
        self.pool2 = nn.MaxPool2D(2, 2, prefix="pool2_")
        self.pool3 = nn.MaxPool2D(2, 2, ceil_mode=True, prefix="pool3_")  # 75 to 38
        self.pool4 = nn.MaxPool2D(2, 2, prefix="pool4_")
        self.pool5 = nn.MaxPool2D(3, 1, 1, prefix="pool5_")
        self.fc6 = conv("fc6", 1024, pad=6, dilate=6)
        self.fc7 = conv("fc7", 1024, kernel=1, pad=0)
        self.conv6 = _sequence(conv("conv6_1", 256, kernel=1, pad=0), conv("conv6_2", 512, stride=2))
        self.conv7 = _sequence(conv("conv7_1", 128, kernel=1, pad=0), conv("conv7_2", 256, stride=2))
        self.conv8 = _sequence(conv("conv8_1", 128, kernel=1, pad=0), conv("conv8_2", 256, pad=0))
        self.conv9 = _sequence(conv("conv9_1", 128, kernel=1, pad=0), conv("conv9_2", 256, pad=0))
        with self.name_scope():
            self.scale = self.params.get(
                "conv4_3_scale",
                shape=(1, max(8, round(512 * width)), 1, 1),
                init=mx.init.Constant(L2_SCALE),
            )

    def hybrid_forward(self, F: ModuleType, x: Tensor, scale: Tensor) -> tuple[Tensor, ...]:
        """Compute the features the predictions are made from.

        Args:
            F: mxnet.ndarray or mxnet.symbol.
            x: (N, 3, 300, 300) float32 normalised images.
            scale: (1, C, 1, 1) float32, learned.

        Returns:
            One (N, C, H, W) float32 tensor for each of `SOURCES`, in that order.
        """
        x = self.pool2(self.stage2(self.pool1(self.stage1(x))))
        conv4 = self.stage4(self.pool3(self.stage3(x)))
        unit = F.L2Normalization(conv4, mode="channel", name="conv4_3_l2")
        x = self.pool5(self.stage5(self.pool4(conv4)))
        fc7 = self.fc7(self.fc6(x))
        conv6 = self.conv6(fc7)
        conv7 = self.conv7(conv6)
        conv8 = self.conv8(conv7)
        conv9 = self.conv9(conv8)
        return F.broadcast_mul(unit, scale, name="conv4_3_norm"), fc7, conv6, conv7, conv8, conv9


class SSD(HybridBlock):
    """The network that is trained.

    Args:
        classes: number of object classes (the background is added to them).
        width: channel count as a factor of VGG16's.
        batch_norm: put a BatchNorm after every convolution but those of the heads.
    """

    def __init__(self, classes: int = 10, width: float = 0.125, batch_norm: bool = True) -> None:
        super().__init__(prefix="")
        self.classes = classes
        self.features = VGG16Reduced(width, batch_norm)
        self.class_heads = nn.HybridSequential(prefix="")
        self.box_heads = nn.HybridSequential(prefix="")
        for source in SOURCES:
            outputs = source.anchors * (classes + 1)
            self.class_heads.add(nn.Conv2D(outputs, 3, 1, 1, prefix=f"{source.name}_cls_"))
            self.box_heads.add(nn.Conv2D(source.anchors * 4, 3, 1, 1, prefix=f"{source.name}_loc_"))

    def hybrid_forward(self, F: ModuleType, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Predict classes and boxes at all A anchors (8732 of them).

        Args:
            F: mxnet.ndarray or mxnet.symbol.
            x: (N, 3, 300, 300) float32 normalised images.

        Returns:
            Class scores (N, classes + 1, A) float32 logits, class 0 being the background; box
            offsets (N, A * 4) float32 in units of `VARIANCES`; anchors (1, A, 4) float32, xmin,
            ymin, xmax, ymax as fractions of the side.
        """
        scores, offsets, anchors = [], [], []
        heads = zip(SOURCES, self.features(x), self.class_heads, self.box_heads, strict=True)
        for source, features, class_head, box_head in heads:
            scores.append(_flat(F, class_head(features), f"{source.name}_cls"))
            offsets.append(_flat(F, box_head(features), f"{source.name}_loc"))
            step = source.step / SIZE
            prior = F.contrib.MultiBoxPrior(
                features,
                sizes=source.sizes,
                ratios=source.ratios,
                steps=(step, step),
                name=f"{source.name}_anchors",
            )
            anchors.append(prior)
        logits = F.concat(*scores, dim=1, name="cls_concat")
        logits = F.reshape(logits, shape=(0, -1, self.classes + 1), name="cls_rows")
        return (
            F.transpose(logits, axes=(0, 2, 1), name="cls_pred"),
            F.concat(*offsets, dim=1, name="loc_pred"),
            F.concat(*anchors, dim=1, name="anchors"),
        )


class DeploySSD(HybridBlock):
    """The network that is shipped: an `SSD` followed by the choice of detections.

    Args:
        ssd: trained network; its parameters are shared.
        nms_threshold: of two boxes of a class that overlap more (IoU), the weaker is dropped.
        top: number of boxes kept before that, and length of the output.
    """

    def __init__(self, ssd: SSD, nms_threshold: float = 0.45, top: int = 400) -> None:
        super().__init__(prefix="")
        self.ssd = ssd
        self.nms_threshold = nms_threshold
        self.top = top

    def hybrid_forward(self, F: ModuleType, x: Tensor) -> Tensor:
        """Detect objects.

        Args:
            F: mxnet.ndarray or mxnet.symbol.
            x: (N, 3, 300, 300) float32 normalised images.

        Returns:
            (N, top, 6) float32, best first: class (-1 in unused rows), score in [0, 1], xmin,
            ymin, xmax, ymax as fractions of the side.
        """
        logits, offsets, anchors = self.ssd(x)
        found = F.contrib.MultiBoxDetection(
            F.softmax(logits, axis=1, name="cls_prob"),
            offsets,
            anchors,
            nms_threshold=self.nms_threshold,
            nms_topk=self.top,
            variances=VARIANCES,
            name="all_detections",
        )
        return F.slice_axis(found, axis=1, begin=0, end=self.top, name="detections")


def _flat(F: ModuleType, x: Tensor, name: str) -> Tensor:
    """Turn predictions (N, C, H, W) into (N, H * W * C), position by position."""
    x = F.transpose(x, axes=(0, 2, 3, 1), name=f"{name}_nhwc")
    return F.flatten(x, name=f"{name}_flat")


def _sequence(*blocks: HybridBlock) -> nn.HybridSequential:
    """Chain blocks."""
    chain = nn.HybridSequential(prefix="")
    chain.add(*blocks)
    return chain
