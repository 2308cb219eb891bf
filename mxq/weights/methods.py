"""Methods for weights by name: how weights become codes, and how biases make up for what that does.

A method is told of one int8 layer at a time and knows nothing of the network. Adding one takes a class on a page of
its own and a line in `ROUNDINGS` or `BIAS_CORRECTIONS`; in another package, an entry point of the group "mxq.rounding"
or "mxq.bias_correction". It can then be asked for in `QuantConfig`, in recipes and on the command line. See
docs/extending.md.

Arrays are of G groups with O output channels and K inputs each: G = 1 for a dense layer, O = 1 for a depthwise one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Final, Literal, Protocol, TypeAlias, runtime_checkable

from mxq.calibration.patches import Geometry
from mxq.graph.ir import Array, Node
from mxq.registry import Registry
from mxq.saturation.limits import Sums
from mxq.weights.grid import Grid


@dataclass(frozen=True)
class Seen:
    """What calibration data shows of a layer at some places of its output.

    Attributes:
        inputs: (G, N, K) float32, what the quantized network multiplies with the weights.
        target: (G, N, O) float32, what the float network's weights make of its own inputs; with a fused sum, plus the
            difference between the float and the quantized summand.
    """

    inputs: Array
    target: Array


@dataclass(frozen=True)
class Unrounded:
    """Some output channels of a layer, on the grid of its kernel.

    Attributes:
        weight: (G, O, K) float32, in units of the weight.
        step: (G, O) float64, between two codes.
        nearest: (G, O, K) int16, the codes nearest to the weights.
        fixed: (G, O, K) int16, the code of each channel's extreme weight at its place, which has to stay; 0 elsewhere.
        grid: the codes that the kernel has: up to ``grid.most`` in size.
        sums: of a kernel whose sums saturate, what codes it can add; None where it adds exactly.
        sweeps: how often to go over all weights again, by effort, for a method that can.
    """

    weight: Array
    step: Array
    nearest: Array
    fixed: Array
    grid: Grid
    sums: Sums | None = None
    sweeps: int = 0


Rounder: TypeAlias = Callable[[Unrounded], Array]
"""Chooses codes, (G, O, K) integers, for some output channels of a layer."""


@runtime_checkable
class RoundingMethod(Protocol):
    """How weights become codes."""

    name: ClassVar[str]
    """What settings call it."""

    needs: ClassVar[Literal["nothing", "data"]]
    """What it cannot do without: where there is no calibration data, a method that needs it is left out."""

    in_tune: ClassVar[bool]
    """Whether `mxq.tune` tries it with the effort "default"."""

    def rounder(self, seen: Seen | None) -> Rounder:
        """Called once for a layer with what data shows of it, or None; what it gives is called for its channels."""
        ...


@dataclass(frozen=True)
class Rounded:
    """A layer whose weights are chosen.

    Attributes:
        node: fused; see `mxq.weights.bias.Activation`.
        geometry: how its weights are grouped.
        weight: (O, ...) float32, the float network's.
        values: (G, O, K), what its codes stand for; `Geometry.grouped` brings ``weight`` to that form.
        bias: (O,) float32, as it is.
        seen: what data shows of it; None where there is none.
        mean: of each channel it reads, (C,) float64, by BatchNorm's statistics; given to methods that need these.
    """

    node: Node
    geometry: Geometry
    weight: Array
    values: Array
    bias: Array
    seen: Seen | None = None
    mean: Array | None = None


@runtime_checkable
class BiasMethod(Protocol):
    """How biases make up for what quantizing does to a layer."""

    name: ClassVar[str]
    """What settings call it."""

    needs: ClassVar[Literal["nothing", "data", "batch_norm"]]
    """What it cannot do without; of "batch_norm", only layers are looked at of whose inputs BatchNorm tells."""

    in_tune: ClassVar[bool]
    """Whether `mxq.tune` tries it with the effort "default"."""

    def correction(self, layer: Rounded) -> Array | None:
        """What to add to the bias, (O,); None where it stays, as where what the method needs is not there."""
        ...


NEAREST: Final = "nearest"
"""The rounding that the kernels do themselves: without data, weights are written as they are."""

ROUNDINGS: Final = Registry[RoundingMethod](
    "rounding",
    "mxq.rounding",
    RoundingMethod,
    own={NEAREST: "mxq.weights.nearest:Nearest", "reconstruction": "mxq.weights.reconstruction:Reconstruction"},
)
BIAS_CORRECTIONS: Final = Registry[BiasMethod](
    "bias correction",
    "mxq.bias_correction",
    BiasMethod,
    own={
        "none": "mxq.weights.bias:Kept",
        "analytic": "mxq.weights.analytic:Analytic",
        "empirical": "mxq.weights.bias:Empirical",
    },
)


@dataclass(frozen=True, slots=True)
class Methods:
    """What is done for accuracy beyond ranges that observers find; see `mxq.config.QuantConfig` for the fields.

    All but a bias correction by BatchNorm's statistics look at calibration data once more: ``stem`` in `mxq.noisy`, the
    others, layer after layer, in `mxq.weights.layerwise_refinement`, and `mxq.recalibration` after it.
    """

    equalize: bool
    bias_correction: str
    rounding: str
    range_choice: str
    stem: str
    recalibrate_batchnorm: bool = False

    @property
    def bias(self) -> BiasMethod:
        return BIAS_CORRECTIONS.get(self.bias_correction)

    @property
    def round(self) -> RoundingMethod:
        return ROUNDINGS.get(self.rounding)

    @property
    def need_data(self) -> bool:
        """Whether any of them looks at activations."""
        return self.layerwise or self.recalibrate_batchnorm or self.stem == "float"

    @property
    def layerwise(self) -> bool:
        """Whether any of them is applied layer after layer; see `mxq.weights.layerwise_refinement`."""
        asked = (self.bias.needs == "data", self.round.needs == "data", self.range_choice == "layer")
        return self.equalize or any(asked)

    @property
    def round_alone(self) -> bool:
        """Whether weights are rounded otherwise than by the kernels also where there is no data."""
        return self.rounding != NEAREST and self.round.needs == "nothing"
