"""The settings of `TrainConfig` as keyword arguments, for editors and type checkers."""

from __future__ import annotations

from typing import TypedDict

from mxq.options import Unpack as Unpack  # noqa: PLC0414  (from here, as the table is)


class TrainOptions(TypedDict, total=False):
    """All fields of `TrainConfig`, which says what they mean."""

    original_epochs: int
    original_lr: float
    original_batch_size: int
    original_warmup_epochs: float
    max_epochs_divisor: float
    lr_decay_factor: float
    batch_size_divisor: float
    warmup_epochs_divisor: float
    epochs: int | None
    lr: float | None
    batch_size: int | None
    warmup_epochs: float | None
    cosine_final_lr_ratio: float
    momentum: float
    nesterov: bool
    weight_decay: float
    scale_weight_decay: float
    shuffle: bool
    seed: int
