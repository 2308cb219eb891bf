"""Bits for each layer under a budget of mean bits: little noise, measured layer by layer, simulated.

Formula. Of the widths b of every layer l choose one, so that

    sum_l noise_l(b_l)  is least,  with  sum_l n_l bits(b_l) <= B sum_l n_l                                 (1)

n_l is the number of weights of layer l, bits(b) the bits of its weights, B the budget. noise_l(b) is the noise of the
network's outputs over their signal where l alone is quantized, to b. Noises of layers add up, roughly
(`mxq.tuning.layer_sensitivity.noise`).

Source: Yao et al., "HAWQ-V3: Dyadic Neural Network Quantization" (arXiv:2011.10680), eq. 8 and 9: an integer linear
program over the layers' perturbations. There these are estimated by the Hessian; here they are measured, as the
sensitivity of Wu et al. (arXiv:2004.09602), section 5.1.

Every measurement goes into a journal at once, so a run that ends in any way goes on where it was.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp
from tqdm import tqdm

from mxq.config import LayerConfig, QuantConfig
from mxq.errors import ConfigError, QuantizeError
from mxq.graph.ir import Model
from mxq.pipeline import Quantized
from mxq.quant.bits import Bits, Width, several
from mxq.quant.plan import Report
from mxq.text import Shown
from mxq.tuning.choices import Layer, with_only
from mxq.tuning.journal import Journal, json_numbers
from mxq.tuning.layer_sensitivity import FLOAT, ONE_INT8, Meter, Numbers, noise

if TYPE_CHECKING:
    from mxq.runtime import QuantizedBlock

JOURNAL: Final = "choose-bits.jsonl"
"""The journal's name in a workdir."""
WORST: Final = 100.0
"""Noise over signal; more is no worse."""
FINE: Final = 1e4
"""What the solver multiplies noises by: it takes differences of 1e-6 for none."""
CHOICES: Final = (2, 3, 4, 5, 6, 8)
UNIFORM, MIXED = "uniform", "mixed"
Real: TypeAlias = float
NOISE: Final = "noise"
"""What tells measurements of single layers from those of whole networks in the journal."""


@dataclass(frozen=True, slots=True)
class LayerBits:
    """One layer.

    Attributes:
        layer: its name in the fused network.
        op: the chain of op types in it.
        weights: how many it has.
        bits: those chosen.
        noise: width -> noise over signal with it alone in codes of that; None where it could not be measured.
    """

    layer: str
    op: str
    weights: int
    bits: Bits
    noise: Mapping[Bits, float | None]

    def to_json(self) -> dict[str, Any]:
        """JSON-ready; infinite noise is a text."""
        noises = {str(b): n for b, n in self.noise.items() if n is not None}
        found = {"layer": self.layer, "op": self.op, "weights": self.weights, "bits": str(self.bits)}
        return {**found, "noise": json_numbers(noises)}


@dataclass(frozen=True)
class MixedBits(Shown):
    """What was chosen.

    Attributes:
        measure: which of the numbers counts; more is better.
        by: how networks were measured, in words.
        hardware: what is simulated.
        budget: the mean bits of weights that were allowed.
        layers: in graph order.
        float: of the float network.
        mixed: of the simulation with these bits.
        uniform: width -> of the simulation with that in all layers: the widest within the budget, and the next.
        model: the simulation.
        record: every decision in it.
        config: its settings; `mxq.simulate` makes it again with them.
    """

    measure: str
    by: str
    hardware: str
    budget: float
    layers: tuple[LayerBits, ...]
    float: Numbers
    mixed: Numbers
    uniform: Mapping[Bits, Numbers | None]
    model: Model
    record: Report
    config: QuantConfig

    @property
    def mean(self) -> Real:
        """Mean bits of all weights."""
        return sum(row.weights * row.bits.weights for row in self.layers) / sum(row.weights for row in self.layers)

    @property
    def overrides(self) -> dict[str, LayerConfig]:
        """The bits as settings: layer -> `LayerConfig`."""
        return {row.layer: LayerConfig(bits=row.bits) for row in self.layers}

    @property
    def block(self) -> QuantizedBlock:
        """The simulation as a Gluon block, which `mxq.save` writes."""
        from mxq import runtime  # noqa: PLC0415  (what was chosen needs no MXNet)

        return runtime.reported_block(self.model, self.record)

    def to_json(self) -> dict[str, Any]:
        """A JSON-ready dictionary. A number that JSON cannot say is a text such as "inf"."""
        return {
            "measure": self.measure,
            "by": self.by,
            "hardware": self.hardware,
            "budget": self.budget,
            "mean_bits": self.mean,
            "float": json_numbers(self.float),
            "mixed": json_numbers(self.mixed),
            "uniform": {str(bits): json_numbers(numbers) for bits, numbers in self.uniform.items()},
            "layers": [row.to_json() for row in self.layers],
            "overrides": {name: {"bits": layer.bits} for name, layer in self.overrides.items()},
        }


@dataclass(frozen=True)
class BitSubject:
    """What is chosen for; functions stand for all that runs a network.

    Attributes:
        layers: in graph order.
        weights: layer -> how many weights it has.
        config: of a simulation.
        make: the simulation of settings.
        measure: a network's numbers, the first being the one that counts.
        noise: a network's numbers against the float network's outputs, see `mxq.tuning.layer_sensitivity.noise`.
        float: the float network.
        by: how ``measure`` does it, in words.
    """

    layers: tuple[Layer, ...]
    weights: Mapping[str, int]
    config: QuantConfig
    make: Callable[[QuantConfig], Quantized]
    measure: Callable[[Model], Numbers]
    noise: Callable[[Model], Numbers]
    float: Model
    by: str = ""


@dataclass(frozen=True)
class _Alone:
    """Networks with one layer quantized, to ``bits``; a subject for `Meter`."""

    of: BitSubject
    bits: Bits

    @property
    def measure(self) -> Callable[[Model], Numbers]:
        return self.of.noise

    def network(self, mode: str, layer: str) -> Model:
        names = [each.name for each in self.of.layers]
        config = with_widths(self.of.config, dict.fromkeys(names, self.bits))
        return self.of.float if mode == FLOAT else self.of.make(with_only(config, names, layer)).model


@dataclass(frozen=True)
class _Whole:
    """Networks with all layers quantized, by the text of their bits; a subject for `Meter`."""

    of: BitSubject
    made: dict[str, Quantized] = field(default_factory=dict)

    @property
    def measure(self) -> Callable[[Model], Numbers]:
        return self.of.measure

    def network(self, mode: str, name: str) -> Model:
        return self.of.float if mode == FLOAT else self.get(name).model

    def get(self, name: str) -> Quantized:
        """The network with those bits, "W4A4", or one for each layer, with blanks between."""
        if name not in self.made:
            widths, names = [Bits.parse(w) for w in name.split()], [each.name for each in self.of.layers]
            widths = widths * len(names) if len(widths) == 1 else widths
            self.made[name] = self.of.make(with_widths(self.of.config, dict(zip(names, widths, strict=True))))
        return self.made[name]


def with_widths(config: QuantConfig, widths: Mapping[str, Bits]) -> QuantConfig:
    """``config`` with these bits of layers, whatever it says of them otherwise."""
    kept = {pattern: layer for pattern, layer in config.overrides.items() if pattern not in widths}
    own = {name: replace(config.overrides.get(name, LayerConfig()), bits=bits) for name, bits in widths.items()}
    return replace(config, overrides={**kept, **own})  # later ones win


def choices_of(budget: float, choices: Sequence[Width] | None) -> tuple[Bits, ...]:
    """The widths to choose from, the fewest bits first.

    Raises:
        ConfigError: they are fewer than two, or the budget is no number that they allow.
    """
    found = tuple(sorted(several("choices", CHOICES if choices is None else choices), key=_size))
    if len(found) < 2:
        raise ConfigError(f"choices are {', '.join(map(str, found)) or 'none'}; allowed: two widths or more")
    least = min(bits.weights for bits in found)
    if isinstance(budget, bool) or not isinstance(budget, int | float) or not budget >= least:
        raise ConfigError(f"mean_bits is {budget!r}; allowed: a number from {least}, the fewest bits to choose from")
    return found


def _size(bits: Bits) -> tuple[int, int]:
    return bits.weights, bits.activations


def choose_bits(
    subject: BitSubject, journal: Journal, budget: float, choices: Sequence[Bits], *, progress: bool = True
) -> MixedBits:
    """Measures what the journal does not have, and chooses by (1).

    Args:
        subject: what is chosen for.
        journal: where the numbers are kept.
        budget: the most mean bits of weights.
        choices: from `choices_of`.
        progress: whether to show a bar, which stays silent where stderr is no terminal.

    Raises:
        QuantizeError: a layer could be measured at no width.
        MxqError: a network cannot be measured, or a file cannot be read or written.
    """
    names = [layer.name for layer in subject.layers]
    total = len(names) * len(choices)
    noises: dict[str, dict[Bits, float | None]] = {name: {} for name in names}
    steps = tqdm(_measured(subject, journal, names, choices), "bits", total, leave=False, unit="network",
                 disable=None if progress else True)  # fmt: skip
    for name, bits, found in steps:
        noises[name][bits] = found
    sizes = [subject.weights[name] for name in names]
    chosen = allocated([noises[name] for name in names], sizes, budget, names)
    whole = _Whole(subject)
    meter = Meter(whole, journal)
    text = " ".join(map(str, chosen))
    reference, mixed = meter.get(FLOAT).numbers or {}, meter.get(MIXED, text)
    if mixed.numbers is None:
        raise QuantizeError(f"the network of these bits could not be measured: {mixed.problem}")
    uniform = {bits: meter.get(UNIFORM, str(bits)).numbers for bits in beside(choices, budget)}
    made = whole.get(text)
    rows = (
        LayerBits(layer.name, layer.op, size, bits, noises[layer.name])
        for layer, size, bits in zip(subject.layers, sizes, chosen, strict=True)
    )
    return MixedBits(
        next(iter(reference)), subject.by, subject.config.hardware, budget, tuple(rows), reference, mixed.numbers,
        uniform, made.model, made.report, made.prepared.config,
    )  # fmt: skip


def beside(choices: Sequence[Bits], budget: float) -> tuple[Bits, ...]:
    """The widest of ``choices`` within the budget, and the next one."""
    within = [bits for bits in choices if bits.weights <= budget]
    above = [bits for bits in choices if bits.weights > budget]
    return (*within[-1:], *above[:1])


def _measured(
    subject: BitSubject, journal: Journal, names: Sequence[str], choices: Sequence[Bits]
) -> Iterator[tuple[str, Bits, float | None]]:
    for bits in choices:
        meter = Meter(_Alone(subject, bits), journal, f"{NOISE} {bits}")
        for name in names:
            numbers = meter.get(ONE_INT8, name).numbers
            yield name, bits, None if numbers is None else noise(numbers)


def allocated(
    noises: Sequence[Mapping[Bits, float | None]], sizes: Sequence[int], budget: float, names: Sequence[str]
) -> list[Bits]:
    """The bits of each layer by (1).

    Args:
        noises: of each layer, width -> its noise; None and infinite where it has none.
        sizes: how many weights each has.
        budget: the most mean bits.
        names: of the layers, for messages.

    Raises:
        QuantizeError: a layer has no finite noise, or what can be measured does not fit the budget.
    """
    options = [
        (i, bits, float(cost))
        for i, each in enumerate(noises)
        for bits, cost in each.items()
        if cost is not None and np.isfinite(cost)
    ]
    missing = [name for i, name in enumerate(names) if all(i != layer for layer, _, _ in options)]
    if missing:
        raise QuantizeError(f"the noise of {missing[0]!r} could be measured at no width; leave it in float (overrides)")
    one_each = np.array([[float(layer == i) for layer, _, _ in options] for i in range(len(names))])
    shares = np.asarray(sizes, np.float64) / sum(sizes)
    used = np.array([[shares[layer] * bits.weights for layer, bits, _ in options]])
    costs = np.minimum([cost for _, _, cost in options], WORST) * FINE
    found = milp(
        costs,
        integrality=np.ones(len(options)),
        bounds=Bounds(0, 1),
        constraints=[LinearConstraint(one_each, 1, 1), LinearConstraint(used, -np.inf, budget + 1e-9)],
        options={"mip_rel_gap": 0},
    )
    if found.x is None:
        raise QuantizeError(f"no bits of the layers have a mean of {budget} or less: {found.message}")
    taken = np.rint(found.x) == 1
    return [bits for (_, bits, _), is_taken in zip(options, taken, strict=True) if is_taken]
