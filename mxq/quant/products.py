"""How kernels without VNNI add products of u8 codes, where those are not MXNet's: what differs between runtimes.

All add the products of two input channels, 2k and 2k + 1, at one kernel place in signed 16 bits (``vpmaddubsw``), which
saturates (`mxq.saturation.kernels`). They add the codes as they are: a zero point is taken away after the sum. What
they do with an odd number of channels differs.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Final


class Odd(Enum):
    """What stands beside the last of an odd number of input channels."""

    ALONE = "nothing: channels are padded by zeros at each place"
    NEXT_PLACE = "the first channel of the next kernel place: a row of im2col is cut into pairs"


@dataclass(frozen=True, slots=True)
class PairedProducts:
    """The rule of one runtime, or of several.

    Attributes:
        odd: see there.
        source: where it is to be seen.
    """

    odd: Odd
    source: str


OPENVINO: Final = PairedProducts(Odd.ALONE, "oneDNN's jit_uni_x8s8s32x_conv_kernel.cpp")
ONNX_RUNTIME: Final = PairedProducts(
    Odd.NEXT_PLACE, "MLAS, QgemmU8S8KernelAvx2.asm; qlinearconv.cc, whose im2col has channels last"
)
PORTABLE: Final = PairedProducts(Odd.NEXT_PLACE, "what holds for both: no pair of an odd number is relied on")
