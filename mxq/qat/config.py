"""`QatConfig`: what is trained, at how many bits, for which hardware. It validates itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Final

from mxq import observers
from mxq.backends.runtimes import RUNTIMES
from mxq.config import ONNX, QuantConfig, in_files
from mxq.errors import ConfigError, one_of
from mxq.passes.batch_norm_to_depthwise import NAME as BATCH_NORM_TO_DEPTHWISE
from mxq.qat import algorithms
from mxq.qat.folding import Folding, folding_of
from mxq.quant.bits import Bits
from mxq.quant.hardware import Hardware, hardware_of
from mxq.quant.spec import LEAST_BITS, MOST_BITS

FORMS: Final = ("compiled", "operators")


@dataclass(frozen=True)
class QatConfig:
    """Everything about how a network is trained with quantization.

    Attributes:
        bits_w, bits_a: of the codes of weights and of other tensors, 2 to 8.
        algorithm: how tensors are fake-quantized, and what is learned of their ranges; see `mxq.qat.algorithms`.
        weight_algorithm: the same for weights, where it is another. By default that is ``algorithm``, but "max" for
            8 bits on oneDNN: its kernel takes a channel's largest weight for its range, so that a learned one is lost.
        hardware: whose quantizers there are, by name; see `mxq.quant.hardware`.
        bn_strategy: what BatchNorm after a layer is while it trains, -1 to 4 or its name; see `mxq.qat.folding`. By
            default -1 where folding and rounding commute (each output channel of a weight has a float scale and no
            zero point) or nothing is folded, else 4, which works best generally (MQBench, section 5.3).
        init: the calibrator that finds the ranges to start from, an observer's name and its parameters. By default
            "naive" for 8 bits; fewer cannot cover all values, and start from "mse".
        weight_init: the same for weights.
        edge_bits: of the first and last layers, their weights and what they read; by default as the hardware says.
        exclude_layers: names or shell patterns of layers that stay in float.
        num_calib_examples: count or percentage, as of `mxq.QuantConfig`.
        form: "compiled", kernels of the CPU, or "operators" of MXNet, for other devices.
    """

    bits_w: int = 8
    bits_a: int = 8
    algorithm: str = "lsq"
    weight_algorithm: str | None = None
    hardware: str = "onednn"
    bn_strategy: int | str | None = None
    init: str | None = None
    weight_init: str | None = None
    edge_bits: int | None = None
    exclude_layers: tuple[str, ...] = ()
    num_calib_examples: int | str | None = None
    form: str = "compiled"

    def __post_init__(self) -> None:
        for name in ("bits_w", "bits_a", "edge_bits"):
            _check_bits(name, getattr(self, name))
        object.__setattr__(self, "hardware", hardware_of(self.hardware).name)
        if self.bn_strategy is not None:
            folding_of(self.bn_strategy)
        for name in ("algorithm", "weight_algorithm"):
            _check_algorithm(name, getattr(self, name))
        for name in ("init", "weight_init"):
            _check_observer(name, getattr(self, name))
        if self.form not in FORMS:
            raise one_of("form", self.form, FORMS)
        given = self.quantization  # which checks the fields that it has, too
        object.__setattr__(self, "exclude_layers", given.exclude_layers)
        object.__setattr__(self, "num_calib_examples", given.num_calib_examples)

    @property
    def row(self) -> Hardware:
        """The hardware."""
        return hardware_of(self.hardware)

    @property
    def folding(self) -> Folding:
        """What BatchNorm after a layer is."""
        if self.bn_strategy is not None:
            return folding_of(self.bn_strategy)
        weights = self.row.weights
        commutes = weights.axis == 0 and weights.symmetric and weights.scale == "float"
        return folding_of(-1 if commutes or not self.row.folds_batch_norm else 4)

    @property
    def of_weights(self) -> str:
        """The algorithm of weights of `bits_w`."""
        if self.weight_algorithm is not None:
            return self.weight_algorithm
        return "max" if self.is_held else self.algorithm

    @property
    def calibrator(self) -> str:
        """The observer that finds the ranges that activations start from."""
        return _calibrator(self.bits_a) if self.init is None else self.init

    @property
    def weight_calibrator(self) -> str:
        """The same of weights."""
        return _calibrator(self.bits_w) if self.weight_init is None else self.weight_init

    @property
    def edges(self) -> int | None:
        """Bits of first and last layers; None where they are as all others."""
        return self.row.edge_bits if self.edge_bits is None else self.edge_bits

    @property
    def is_held(self) -> bool:
        """Whether MXNet's int8 kernels can hold what is trained."""
        bits = {self.bits_w, self.bits_a, *([] if self.edges is None else [self.edges])}
        return self.row.from_kernels and bits == {8}

    @property
    def is_for_files(self) -> bool:
        """Whether it is trained for runtimes of ONNX files, which are then written of it."""
        return self.hardware in RUNTIMES.values()

    @property
    def is_written(self) -> bool:
        """Whether an ONNX file can hold what is trained, and is written of it."""
        return self.is_for_files and in_files(Bits(self.bits_w, self.bits_a)) and self.edges in (None, MOST_BITS)

    @property
    def quantization(self) -> QuantConfig:
        """How the network is planned, and quantized when it is trained: as it is, by the ranges that were learned."""
        return QuantConfig(
            calib_mode=self.calibrator,
            effort="fast",
            exclude_layers=self.exclude_layers,
            num_calib_examples=self.num_calib_examples,
        )

    @property
    def planning(self) -> QuantConfig:
        """The same for the hardware that it is trained for, whose codes MXNet may simulate alone."""
        own = replace(self.quantization, exclude_passes=(BATCH_NORM_TO_DEPTHWISE,))  # BatchNorms train
        if self.is_for_files:
            return replace(own, backend=ONNX, hardware=self.hardware)
        return self.quantization if self.row.from_kernels else replace(own, simulate=True, hardware=self.hardware)

    def to_json(self) -> dict[str, Any]:
        """A JSON-ready dictionary."""
        return {**asdict(self), "exclude_layers": list(self.exclude_layers)}

    @staticmethod
    def from_json(data: Any) -> QatConfig:
        """Reads what `to_json` wrote; fields that are missing have their defaults.

        Raises:
            ConfigError: an unknown field, or a value that is not allowed.
        """
        allowed = [f.name for f in fields(QatConfig)]
        if not isinstance(data, Mapping):
            raise ConfigError(f"settings are {data!r}; allowed: a mapping of {', '.join(allowed)}")
        unknown = [name for name in data if name not in allowed]
        if unknown:
            raise one_of("field", unknown[0], allowed)
        return QatConfig(**data)


def _calibrator(bits: int) -> str:
    return "naive" if bits == MOST_BITS else "mse"


def _check_bits(name: str, value: object) -> None:
    if value is None and name == "edge_bits":
        return
    if type(value) is not int or not LEAST_BITS <= value <= MOST_BITS:
        raise ConfigError(f"{name} is {value!r}; allowed: {LEAST_BITS} to {MOST_BITS}")


def _check_algorithm(name: str, value: object) -> None:
    if value is None and name == "weight_algorithm":
        return
    known = algorithms.ALGORITHMS.names()
    if not isinstance(value, str) or value.partition(":")[0].strip() not in known:
        raise one_of(name, value, known)
    algorithms.get(value)


def _check_observer(name: str, value: object) -> None:
    if value is None:
        return
    known = (*observers.names(), *observers.OBSERVERS.aliases)
    if not isinstance(value, str) or value.partition(":")[0].strip() not in known:
        raise one_of(name, value, known)
    try:
        observer = observers.get(value)
    except ConfigError as error:
        raise ConfigError(f"{name}: {error}") from None
    if observer.ordered and name == "weight_init":
        raise ConfigError(f"{name} is {value!r}, an average over batches; a weight is the same in all of them")
