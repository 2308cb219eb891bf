"""What partition decides: int8 or float and why (`Decision`), and which tensors need a range (`Plan`)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from types import MappingProxyType
from typing import Any

from mxq.graph.ir import Ref
from mxq.text import Shown


@dataclass(frozen=True, slots=True)
class Decision:
    """What happens to one operator of the fused graph.

    ``op`` is its op type, for a fused node the chain, e.g. "Convolution+elemwise_add+Activation"; ``members``
    are the names of the original nodes in it. ``reason`` says why it stays in float, or why it is int8.
    """

    node: str
    op: str
    members: tuple[str, ...]
    int8: bool
    reason: str


@dataclass(frozen=True)
class Plan:
    """Decisions in graph order, and the tensors of the fused float graph that calibration must observe.

    ``removed`` is about operators of the network as it was given that passes took out. ``absorbed`` names the int8
    operators that others do with their own work, and which: each ReLU that a BatchNorm does
    (`mxq.passes.fuse_relu_into_batchnorm`).
    """

    decisions: tuple[Decision, ...] = ()
    observe: tuple[Ref, ...] = ()
    removed: tuple[Decision, ...] = ()
    absorbed: Mapping[str, str] = field(default_factory=dict, compare=False)

    @cached_property
    def quantized(self) -> frozenset[str]:
        """Names of the nodes that become int8."""
        return frozenset(d.node for d in self.decisions if d.int8)

    def __getitem__(self, node: str) -> Decision:
        return self._by_node[node]

    def __contains__(self, node: object) -> bool:
        return node in self._by_node

    @cached_property
    def _by_node(self) -> Mapping[str, Decision]:
        return MappingProxyType({d.node: d for d in self.decisions})


@dataclass(frozen=True, slots=True)
class TensorRecord:
    """How one int8 tensor of the written graph is coded: ``dtype`` "int8" or "uint8" and the range written for it.

    ``note`` says where that differs from the calibrated range and why. ``offset`` is added to values before
    they are coded, in activation units. ``widened`` is the written range in shares of the calibrated one where it was
    widened on purpose. ``of`` names the tensor of the fused float network that an int8 operator makes here; it is empty
    for what is quantized from float, or fed. Without a range, it is that of its input or, with ``at_run_time``, found
    while the network runs.
    """

    dtype: str
    min: float | None = None
    max: float | None = None
    note: str = ""
    offset: float = 0.0
    widened: float = 1.0
    of: str = ""
    at_run_time: bool = False


@dataclass(frozen=True)
class Tensors(Mapping[str, TensorRecord]):
    """The records of an int8 network's tensors, by their names there and by the float network's tensors.

    Attributes:
        by_name: name of each int8 tensor -> its record.
        names: tensor of the fused float network -> the name of its codes: those that an int8 operator makes or, where
            none does, the first ones that it is quantized to.
    """

    by_name: Mapping[str, TensorRecord]
    names: Mapping[Ref, str]

    def of(self, ref: Ref) -> TensorRecord | None:
        """How the float network's tensor ``ref`` is coded; None where it is not."""
        return self.by_name.get(self.names.get(ref, ""))

    def __getitem__(self, name: str) -> TensorRecord:
        return self.by_name[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.by_name)

    def __len__(self) -> int:
        return len(self.by_name)


@dataclass(frozen=True, slots=True)
class WeightRecord:
    """What became of a weight: the ``observer`` that chose its channels' ranges, and what asked for it (``source``).

    ``clipped_channels`` of its ``channels`` lost something, ``clipped_share`` of all its values (0..1) were clipped.
    ``rounding`` and ``bias_correction`` are fields of `QuantConfig`; ``moved_share`` of the codes (0..1) are not the
    nearest. ``note`` says why calibration data had no say in them.
    """

    observer: str
    source: str
    channels: int
    clipped_channels: int
    clipped_share: float
    rounding: str = "nearest"
    bias_correction: str = "none"
    moved_share: float = 0.0
    note: str = ""


@dataclass(frozen=True, slots=True)
class SaturationRecord:
    """What was done about sums of two products of one layer that saturate on CPUs without VNNI.

    Attributes:
        kernel: "pairs", "shifted" or "halved" (see `mxq.saturation.kernels`).
        remedy: "none", "pairs" (weights of such pairs are limited), "range" (its input's range is widened, and
            what can saturate then is limited, too) or "float" (it stays in float).
        at_risk: how many pairs could saturate at the largest activation codes.
        limited: how many weights were changed.
        factor: by which the range of the input was widened; 1 where it was not.
        assumed: whether activations were assumed, for want of data.
        noise: what is left in int8, in shares of the energy of its output, without what a bias takes; 0 if unknown.
        noise_with_vnni: what there would be with VNNI.
    """

    kernel: str
    remedy: str
    at_risk: int
    limited: int = 0
    factor: float = 1.0
    assumed: bool = True
    noise: float = 0.0
    noise_with_vnni: float = 0.0

    @property
    def supposed(self) -> bool:
        """What `assumed` was called in older releases."""
        return self.assumed


@dataclass(frozen=True, slots=True)
class NoiseRecord:
    """How much noise one layer brings, as measured on calibration data; see `mxq.noisy`.

    Attributes:
        noise: what its own rounding does to the network's outputs, in shares of their variance.
        total: what the rounding of all layers together does.
        multiply_adds, weights, elements: its shares of what the network's layers multiply, hold, and read and write,
            0..1.
        to_float: whether it stays in float for that.
    """

    noise: float
    total: float
    multiply_adds: float
    weights: float
    elements: float
    to_float: bool

    @property
    def share(self) -> float:
        """Its noise in shares of that of all layers."""
        return self.noise / self.total if self.total else 0.0


@dataclass(frozen=True, slots=True)
class InputRecord:
    """What a network with an input of integers is to be fed.

    Attributes:
        name: of the input.
        dtype: "int8" or "uint8".
        holds: "pixels", 0..255; or "codes": those of the float network's input x, ``saturate(rint(x * scale))``.
        scale: codes per unit of x, a float32; None for pixels.
        preprocess: from a picture to x, the fields of `mxq.images.Preprocess`; None where nobody said.
    """

    name: str
    dtype: str
    holds: str
    scale: float | None = None
    preprocess: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Report(Shown):
    """The record that goes beside a quantized pair as ``prefix-mxq.json``; all fields are JSON-ready but the plan.

    Attributes:
        plan: every decision.
        tensors: name of each int8 tensor -> `TensorRecord`.
        weights: name of each layer whose weight was looked at -> `WeightRecord`.
        thresholds: `Thresholds.to_json`.
        config: `QuantConfig.to_json`.
        versions: mxq, mxnet, numpy, python.
        source: fingerprint of the float network: sha256 of graph and parameters, input names.
        trace: which pass fired which rule how often, with refusals and their reasons.
        summary: counts, e.g. {"int8": 54, "float": 3, "calibration_examples": 64}.
        input: what to feed a network that takes integers; None where it takes float.
        target: the CPU that it was made for, one of `mxq.host.machine.TARGETS`; "" where nobody said.
        saturation: name of each layer that was guarded for that -> `SaturationRecord`.
        noise: name of each layer whose noise was measured, the worst -> `NoiseRecord`.
    """

    plan: Plan
    tensors: Mapping[str, TensorRecord] = field(default_factory=dict)
    weights: Mapping[str, WeightRecord] = field(default_factory=dict)
    thresholds: Mapping[str, object] = field(default_factory=dict)
    config: Mapping[str, object] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    source: Mapping[str, object] = field(default_factory=dict)
    trace: tuple[Mapping[str, object], ...] = ()
    summary: Mapping[str, object] = field(default_factory=dict)
    input: InputRecord | None = None
    target: str = ""
    saturation: Mapping[str, SaturationRecord] = field(default_factory=dict)
    noise: Mapping[str, NoiseRecord] = field(default_factory=dict)
