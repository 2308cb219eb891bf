"""What a comparison found, JSON-ready."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any

from mxq.text import Shown
from mxq.verification.measures import Boxes


@dataclass(frozen=True, slots=True)
class Output:
    """One output of the network.

    Attributes:
        kind: "scores" (one row of class scores per example), "boxes" or "tensor".
        sqnr: in dB, float against int8; None for boxes, which NMS may reorder.
        centred_sqnr: of the logits less their mean over the classes (what softmax sees), in dB; of the logarithm
            where the output is a softmax, which is the same thing. None but for scores.
        max_abs_error: largest difference of one element, in units of the output; None for boxes.
    """

    name: str
    kind: str
    sqnr: float | None = None
    centred_sqnr: float | None = None
    cosine: float | None = None
    max_abs_error: float | None = None


@dataclass(frozen=True, slots=True)
class Layer:
    """One tensor that both models compute. All SQNR are in dB, against the energy of the float network's tensor.

    Attributes:
        name: the tensor's; of what quantizes a float tensor, the quantizer's.
        dtype: how the int8 model holds it.
        sqnr: of all its noise.
        introduced: of the noise that the layer itself adds: its result against what the float layer, with its
            original weights, makes of the int8 network's inputs. None where that cannot be told.
        inherited: of the noise that comes in: what the float layer makes of those inputs against the float network.
        clipped: share of values, 0..1, that the float layer puts beyond the range; None of float tensors.
        levels: how many of the 256 codes occur; None of float tensors.
    """

    name: str
    op: str
    dtype: str
    sqnr: float
    cosine: float
    introduced: float | None = None
    inherited: float | None = None
    clipped: float | None = None
    levels: int | None = None

    @property
    def blame(self) -> float:
        """What layers are ranked by: the SQNR of the noise it introduces, or of all where that is not known."""
        return self.sqnr if self.introduced is None else self.introduced


@dataclass(frozen=True, slots=True)
class Accuracy:
    """Shares of examples whose label is the best class, or among the best five (None below six classes)."""

    float_top1: float
    int8_top1: float
    float_top5: float | None
    int8_top5: float | None


@dataclass(frozen=True)
class Verification(Shown):
    """What `verify` found. Shares are in 0..1.

    Attributes:
        agreement: share of examples with the same best class; None where no output is class scores.
        layers: in graph order; empty unless asked for.
    """

    examples: int
    agreement: float | None
    outputs: tuple[Output, ...]
    accuracy: Accuracy | None = None
    boxes: Boxes | None = None
    layers: tuple[Layer, ...] = field(default=())

    @property
    def sqnr(self) -> float | None:
        """The worst output's, in dB: centred where that is known. None where all outputs are boxes."""
        values = [o.sqnr if o.centred_sqnr is None else o.centred_sqnr for o in self.outputs]
        return min((v for v in values if v is not None), default=None)

    @property
    def worst_first(self) -> tuple[Layer, ...]:
        """The layers by the noise that they introduce, the noisiest first."""
        return tuple(sorted(self.layers, key=lambda layer: layer.blame))

    def failures(self, min_agreement: float | None = None, min_sqnr: float | None = None) -> tuple[str, ...]:
        """Which of the bars were missed, as sentences; a bar on something that could not be measured is missed."""
        agreement = self.agreement
        if agreement is None and self.boxes is not None:
            agreement = self.boxes.agreement
        found = []
        for name, value, bar, unit, factor in (
            ("agreement", agreement, min_agreement, " %", 100),
            ("SQNR", self.sqnr, min_sqnr, " dB", 1),
        ):
            if bar is None or (value is not None and value >= bar):
                continue
            measured = "could not be measured" if value is None else f"is {value * factor:.2f}{unit}"
            found.append(f"{name} {measured}; asked for {bar * factor:g}{unit} or more")
        return tuple(found)

    def to_json(self) -> dict[str, Any]:
        """A JSON-ready dictionary. An infinite SQNR, which JSON cannot say, is the text "inf" or "-inf"."""
        return {
            "examples": self.examples,
            "agreement": self.agreement,
            "sqnr": json_number(self.sqnr),
            "accuracy": asdict(self.accuracy) if self.accuracy else None,
            "boxes": {**asdict(self.boxes), "agreement": self.boxes.agreement} if self.boxes else None,
            "outputs": [{k: json_number(v) for k, v in asdict(o).items()} for o in self.outputs],
            "layers": [{k: json_number(v) for k, v in asdict(layer).items()} for layer in self.layers],
        }


def json_number(value: Any) -> Any:
    """``value``; an infinite number, which JSON cannot say, as text."""
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
