"""`TrainConfig`: how a network is fine-tuned, as its original training with a few things changed; and learning rates.

Wu et al. (NVIDIA), arXiv:2004.09602, section 6 and appendix A.2: a tenth of the original schedule, at 1 % of its
learning rate, by half a cosine down to 1 % of that. Deci, "The Ultimate Guide to Deep Learning Model Quantization",
adds half the batch size and a tenth of the warm-up; the fields that say so have its names. SGD with momentum and
Nesterov's gradients as in Li et al., "MQBench", arXiv:2111.03759, section 4.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Final

from mxq.errors import ConfigError, nearest

COUNTS: Final = ("original_epochs", "original_batch_size", "batch_size", "epochs")
POSITIVE: Final = (
    "original_lr", "lr", "batch_size_divisor", "max_epochs_divisor", "warmup_epochs_divisor", "lr_decay_factor"
)  # fmt: skip
NOT_NEGATIVE: Final = ("original_warmup_epochs", "warmup_epochs", "weight_decay", "scale_weight_decay")
SHARES: Final = ("cosine_final_lr_ratio", "momentum")
LEAST, MOST = 1e-9, 1e9
"""Of numbers: products of a few of them are still numbers of MXNet, in float32."""


@dataclass(frozen=True)
class TrainConfig:
    """How a network is fine-tuned.

    What is None follows from the original training and a modification: ``lr`` is ``original_lr * lr_decay_factor``.

    Attributes:
        original_epochs, original_lr, original_batch_size, original_warmup_epochs: of the float network's training.
        max_epochs_divisor, lr_decay_factor, batch_size_divisor, warmup_epochs_divisor: what is changed of them.
        epochs: passes over the training data, at least 1.
        lr: the learning rate after the warm-up, the highest.
        batch_size: examples to a step, of whole arrays and of files; what comes in batches keeps those.
        warmup_epochs: epochs, or a part of one, in which the learning rate rises from near 0.
        cosine_final_lr_ratio: the last learning rate, in shares of ``lr``.
        momentum: of SGD, 0 to less than 1.
        nesterov: whether gradients are taken where momentum leads.
        weight_decay: of weights, biases and BatchNorms' factors.
        scale_weight_decay: of what is learned of ranges, such as steps. MQBench, appendix B.2.3: it narrows ranges, and
            there the right one brought 2.3 points; 0 leaves them to the gradients.
        shuffle: whether each epoch has another order.
        seed: of the order, and of all that is random in training.
    """

    original_epochs: int = 100
    original_lr: float = 0.1
    original_batch_size: int = 128
    original_warmup_epochs: float = 5.0
    max_epochs_divisor: float = 10.0
    lr_decay_factor: float = 0.01
    batch_size_divisor: float = 2.0
    warmup_epochs_divisor: float = 10.0
    epochs: int | None = None
    lr: float | None = None
    batch_size: int | None = None
    warmup_epochs: float | None = None
    cosine_final_lr_ratio: float = 0.01
    momentum: float = 0.9
    nesterov: bool = True
    weight_decay: float = 1e-4
    scale_weight_decay: float = 0.0
    shuffle: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        for names, allowed, fits in (
            (COUNTS, "a whole number, 1 or more", lambda v: type(v) is int and v >= 1),
            (POSITIVE, f"{LEAST:g} to {MOST:g}", lambda v: _is_number(v) and LEAST <= v <= MOST),
            (NOT_NEGATIVE, f"0 to {MOST:g}", lambda v: _is_number(v) and 0 <= v <= MOST),
            (SHARES, "0 to less than 1", lambda v: _is_number(v) and 0 <= v < 1),
            (("nesterov", "shuffle"), "True, False", lambda v: isinstance(v, bool)),
            (("seed",), "0 to 2147483647", lambda v: type(v) is int and 0 <= v < 2**31),
        ):
            for name in names:
                value = getattr(self, name)
                if not (fits(value) or (value is None and name in OPTIONAL)):
                    raise ConfigError(f"{name} is {value!r}; allowed: {allowed}{', or None' * (name in OPTIONAL)}")
        if self.nesterov and self.momentum == 0:
            raise ConfigError("nesterov is True without momentum; allowed: momentum above 0, or nesterov=False")
        if self.warmup > self.passes:
            raise ConfigError(
                f"the warm-up is {self.warmup:g} epochs of {self.passes}, so that the learning rate would never fall; "
                "allowed: warmup_epochs up to epochs"
            )

    @property
    def passes(self) -> int:
        """How many epochs."""
        return max(1, round(self.original_epochs / self.max_epochs_divisor)) if self.epochs is None else self.epochs

    @property
    def highest(self) -> float:
        """The learning rate after the warm-up."""
        return self.original_lr * self.lr_decay_factor if self.lr is None else self.lr

    @property
    def examples(self) -> int:
        """Examples to a step."""
        given = self.batch_size
        return max(1, round(self.original_batch_size / self.batch_size_divisor)) if given is None else given

    @property
    def warmup(self) -> float:
        """Epochs of warm-up."""
        given = self.warmup_epochs
        return self.original_warmup_epochs / self.warmup_epochs_divisor if given is None else given

    def rate(self, step: int, each: int) -> float:
        """The learning rate of a step.

        With W steps of warm-up of T in all, p = (t - W) / (T - W - 1) and the final rate F:

            t < W:   highest (t + 1) / W           else:   F + (highest - F) (1 + cos(pi p)) / 2

        Args:
            step: t, from 0.
            each: steps to an epoch.
        """
        total = self.passes * each
        warm = min(round(self.warmup * each), total - 1)
        if step < warm:
            return self.highest * (step + 1) / warm
        last = self.highest * self.cosine_final_lr_ratio
        done = (step - warm) / max(total - warm - 1, 1)
        return last + (self.highest - last) * (1 + math.cos(math.pi * done)) / 2

    def to_json(self) -> dict[str, Any]:
        """A JSON-ready dictionary."""
        return asdict(self)

    @staticmethod
    def from_json(data: Any) -> TrainConfig:
        """Reads what `to_json` wrote, or a recipe has; fields that are missing have their defaults.

        Raises:
            ConfigError: an unknown field, or a value that is not allowed.
        """
        allowed = [f.name for f in fields(TrainConfig)]
        if not isinstance(data, Mapping):
            raise ConfigError(f"training is {data!r:.80}; allowed: a mapping of fields such as epochs and lr")
        unknown = [name for name in data if name not in allowed]
        if unknown:
            hint = nearest(str(unknown[0]), allowed)
            raise ConfigError(f"training has {unknown[0]!r}; allowed: {', '.join(allowed)}{hint}")
        return TrainConfig(**data)


OPTIONAL: Final = ("epochs", "lr", "batch_size", "warmup_epochs")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
