"""What passes say of the tensor that a node makes: `Annotation`, a field of every `mxq.graph.ir.Node`.

It is typed here; how files hold it is the business of `mxq.graph.annotation_text` alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class RouteKind(Enum):
    """In which way a node came to stand for original ones of other kinds; the value begins the sentence on it."""

    QUICKER = "quicker than"
    AVERAGE = "an average, as a convolution with a range of its own"
    AVERAGE_LAST = "an average of the channels that are left"
    READ_PIXELS = "makes only the pixels that are read"
    AVERAGED_PIXELS = "makes one pixel of what was averaged"
    SUBSAMPLING = "the pixels that are read, by pooling of one each"
    FLATTENED = "between a convolution and a fully connected layer, which MXNet's kernel does not read as it is"
    CONV1X1_TO_DENSE = "a fully connected layer for a 1x1 convolution over a pooled image, which MXNet's memory planning does not stand"  # noqa: E501
    DENSE_PART = "a dense part of a grouped convolution, whose int8 kernel scales weights by other channels' maxima"
    OTHER = ""
    """Of another release of mxq."""


@dataclass(frozen=True, slots=True)
class Route:
    """One step on the way from the original nodes to this one: its ``kind``, and ``why`` in words, for reports."""

    kind: RouteKind
    why: str

    @classmethod
    def of(cls, kind: RouteKind, more: str = "") -> Route:
        """With the sentence of that kind, and what ends it."""
        return cls(kind, f"{kind.value} {more}" if more else kind.value)


@dataclass(frozen=True, slots=True)
class Annotation:
    """What passes say of the first output of a node, (N, C, ...).

    What a node holds of the float network's tensor is ``held = value * scale + offset``, its channels in ``order``, of
    every so many pixels (``stride``). What only codes, decodes or recodes a tensor holds what it reads, unsaid.

    Attributes:
        origins: names of the original nodes that it stands for, in order; empty where it is one itself.
        routes: what it is instead of those and why, the first step first; empty where it is of their kind.
        tensor: name of the float tensor whose codes it gives, in the network that was quantized; empty where that is
            its own name, and for what quantizes a float tensor that it reads.
        unshifted: name of the tensor, in the network as it was given, of which it gives a form shifted by ``offset``;
            empty where it gives none.
        order: (C,); the channels (axis 1) are the float network's in another order: of each, which it is there. Other
            fields speak of channels as they are here. Empty where they stand alike.
        scale: (C,); by what each channel is multiplied. What operators that carry scales (`mxq.graph.traits.Traits`)
            make of the tensor is scaled likewise. Empty for 1.
        axis: the axis that ``scale`` is along, 1 or -1.
        offset: what is added to all values, after any scale.
        stride: of how many rows and columns (axes 2, 3) of the float network's tensor one is held.
        input_shape: of an input that has one shape alone: that of an example, such as (3, 224, 224).
        input_place: of an input of a network that takes several arguments: its place, and how many there are.
        fakes: name of the tensor that it fake-quantizes, in a network that trains with quantization.
    """

    origins: tuple[str, ...] = ()
    routes: tuple[Route, ...] = ()
    tensor: str = ""
    unshifted: str = ""
    order: tuple[int, ...] = ()
    scale: tuple[float, ...] = ()
    axis: int = 1
    offset: float = 0.0
    stride: tuple[int, int] = (1, 1)
    input_shape: tuple[int, ...] = ()
    input_place: tuple[int, int] | None = None
    fakes: str = ""

    @property
    def why(self) -> str:
        """The sentences of ``routes``, for reports."""
        return "; ".join(route.why for route in self.routes)

    def took(self, kind: RouteKind) -> bool:
        """Whether a step of that kind is among ``routes``."""
        return any(route.kind is kind for route in self.routes)


NOTHING = Annotation()
"""The note of a node of which nothing is said."""
