"""A small ResNet (v1, basic blocks) for 48x48 RGB images, written with Gluon."""

# ruff: noqa: N803  (Gluon calls the operator namespace F)

from __future__ import annotations

from types import ModuleType

from mxnet import nd, sym
from mxnet.gluon import HybridBlock, nn

Tensor = nd.NDArray | sym.Symbol


class BasicBlock(HybridBlock):
    """Two 3x3 convolutions and a shortcut: ``relu(body(x) + shortcut(x))``.

    The shortcut is the identity, or a 1x1 convolution with BatchNorm where the block changes the
    shape (the downsample branch).

    Args:
        channels: output channels.
        stride: spatial stride of the first convolution.
        in_channels: input channels.
        prefix: prefix of the block's parameter names.
    """

    def __init__(self, channels: int, stride: int, in_channels: int, prefix: str) -> None:
        super().__init__(prefix=prefix)
        with self.name_scope():
            self.conv1 = _conv(channels, 3, stride, "conv1_")
            self.bn1 = nn.BatchNorm(prefix="bn1_")
            self.conv2 = _conv(channels, 3, 1, "conv2_")
            self.bn2 = nn.BatchNorm(prefix="bn2_")
            self.down = None
            if stride != 1 or in_channels != channels:
                self.down = nn.HybridSequential(prefix="down_")
                with self.down.name_scope():
                    self.down.add(_conv(channels, 1, stride, "conv_"), nn.BatchNorm(prefix="bn_"))

    def hybrid_forward(self, F: ModuleType, x: Tensor) -> Tensor:
        """Apply the block: (N, in_channels, H, W) to (N, channels, H/stride, W/stride) float32."""
        shortcut = x if self.down is None else self.down(x)
        x = F.Activation(self.bn1(self.conv1(x)), act_type="relu", name="relu1")
        x = self.bn2(self.conv2(x))
        x = F.elemwise_add(x, shortcut, name="add")
        return F.Activation(x, act_type="relu", name="relu2")


class ResNet(HybridBlock):
    """Stem, stages of :class:`BasicBlock`, global average pooling and a Dense layer.

    Args:
        classes: number of classes.
        channels: output channels of each stage; every stage after the first halves the size.
        blocks: basic blocks in each stage.
    """

    def __init__(
        self,
        classes: int = 10,
        channels: tuple[int, ...] = (32, 64, 128),
        blocks: tuple[int, ...] = (2, 2, 2),
    ) -> None:
        super().__init__(prefix="")
        if len(channels) != len(blocks):
            raise ValueError(f"channels and blocks must have one entry per stage, got {channels} and {blocks}")
        self.features = nn.HybridSequential(prefix="")
        self.features.add(
            _conv(channels[0], 3, 2, "stem_conv_"),
            nn.BatchNorm(prefix="stem_bn_"),
            nn.Activation("relu", prefix="stem_relu_"),
        )
        width = channels[0]
        for stage, (out, count) in enumerate(zip(channels, blocks, strict=True), start=1):
            for index in range(1, count + 1):
                stride = 2 if stage > 1 and index == 1 else 1
                self.features.add(BasicBlock(out, stride, width, f"stage{stage}_block{index}_"))
                width = out
        self.features.add(nn.GlobalAvgPool2D(prefix="pool_"), nn.Flatten(prefix="flatten_"))
        self.output = nn.Dense(classes, in_units=width, prefix="fc_")

    def hybrid_forward(self, F: ModuleType, x: Tensor) -> Tensor:
        """Classify (N, 3, H, W) float32 normalised images: (N, classes) float32 logits."""
        return self.output(self.features(x))


def _conv(channels: int, kernel: int, stride: int, prefix: str) -> nn.Conv2D:
    """Convolution without bias (a BatchNorm follows), padded to keep the size at stride 1."""
    return nn.Conv2D(channels, kernel, strides=stride, padding=kernel // 2, use_bias=False, prefix=prefix)
