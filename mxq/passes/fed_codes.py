"""Fed codes: the range and type of the input of a network that is fed integers, so that they are its codes.

"int8": what a quantize node would make of floats is fed, codes of the calibrated range, s8. "uint8": pixels are fed.
Where one factor takes them all to the network's input, they are codes of the range [0, 255.5 a], whose scale is 1 / a;
otherwise the backend has to normalise them (`mxq.backends.mxnet.integer_input`).

Conditions: the network has one input. Formula: ``x = (p * scale - mean_c) / std_c = a_c * p + b_c`` for pixel p of
channel c, which may not contradict the data that the network was calibrated on.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from mxq import quant
from mxq.config import QuantConfig
from mxq.data.preprocess import Preprocess
from mxq.errors import ConfigError, QuantizeError
from mxq.graph.ir import Array, Model
from mxq.quant import MXNET, NetworkPass, QuantizedNetwork, Requests
from mxq.quant.plan import InputRecord
from mxq.quant.thresholds import FIXED, Range, Threshold, Thresholds
from mxq.rewrite import NO_EVENTS, Trace

INT8, UINT8, FLOAT32 = "int8", "uint8", "float32"
CODES, PIXELS = "codes", "pixels"
PIXEL_TOP = MXNET.top(quant.UINT8)
"""The maximum of a u8 range in which a code is a pixel."""
_SLACK = 0.02
"""How far calibration data may lie outside of what pixels can become, as a share of that."""
_LEAST = 0.02
"""What share of it they must fill."""


def check_input(model: Model, config: QuantConfig) -> None:
    """Refuses, before anything runs, what a backend could not do.

    Raises:
        ConfigError: pixels were asked for without ``preprocess``, or that is not allowed.
        QuantizeError: the network has several inputs.
    """
    settings = preprocess_of(config)
    if config.input_dtype == FLOAT32:
        return
    if len(model.inputs) != 1:
        raise QuantizeError(
            f"input_dtype is {config.input_dtype!r}, but the network has {len(model.inputs)} inputs "
            f"({', '.join(model.inputs)}); allowed: a network with one, or 'float32'"
        )
    if config.input_dtype == UINT8 and settings is None:
        raise ConfigError(
            "input_dtype is 'uint8', but preprocess is missing: how a pixel becomes the network's input; allowed: "
            "{'mean': [...], 'std': [...], 'scale': 1.0} or a Preprocess, or input_dtype 'int8'"
        )


def fed_input(model: Model, config: QuantConfig, requests: Requests) -> InputRecord | None:
    """What the network is to be fed, its scale still open; None for float.

    Raises:
        ConfigError: the settings contradict each other.
    """
    if config.input_dtype == FLOAT32:
        return None
    name = model.inputs[0]
    if config.input_dtype == INT8 and requests.of(name) == UINT8:
        raise ConfigError(f"input_dtype is 'int8', but overrides say that {name!r} is 'uint8'; allowed: one of them")
    holds = CODES if config.input_dtype == INT8 else PIXELS
    return InputRecord(name, config.input_dtype, holds, preprocess=config.preprocess)


def preprocess_of(holder: QuantConfig | InputRecord) -> Preprocess | None:
    """The settings that a configuration or a record holds.

    Raises:
        FormatError: an unknown field.
        ConfigError: a field has a value that is not allowed.
    """
    return None if holder.preprocess is None else Preprocess.from_json(holder.preprocess)


def _chosen(network: QuantizedNetwork) -> tuple[QuantizedNetwork, Trace]:
    return _coded(network), NO_EVENTS


CHOOSE_CODES = NetworkPass("fed_codes", _chosen)
"""The input is coded as it will be fed; types are to be assigned."""


def _coded(network: QuantizedNetwork) -> QuantizedNetwork:
    """What `CHOOSE_CODES` makes.

    Raises:
        ConfigError: ``preprocess`` contradicts the data that was calibrated on.
    """
    fed, requests = network.input, network.requests
    if fed is None:
        return network
    name, settings, thresholds = fed.name, preprocess_of(fed), network.thresholds
    if name not in thresholds:
        return network
    if settings is not None:
        _check_span(name, thresholds[name], settings)
    if fed.dtype == INT8:
        return _asking(network, name, INT8)
    scale = None if settings is None else factor(settings)
    if scale is None or (requests.of(name) or requests.default) == INT8:
        return network
    whole = Threshold(Range(0.0, PIXEL_TOP * scale), FIXED, source="input_dtype", note="its codes are the pixels")
    return _asking(network.with_thresholds(Thresholds({**thresholds, name: whole})), name, UINT8)


def _asking(network: QuantizedNetwork, name: str, dtype: str) -> QuantizedNetwork:
    dtypes: Mapping[str, str] = {**network.requests.dtypes, name: dtype}
    return replace(network, requests=replace(network.requests, dtypes=dtypes))


def _check_span(name: str, found: Threshold, settings: Preprocess) -> None:
    """What was calibrated on can be what ``settings`` make of pixels: the mistake is to forget the settings."""
    a, b = affine(settings)
    low, high = float(b.min()), float((255 * a + b).max())
    seen, span = found.observed, high - low
    if seen is None:
        return
    inside = seen.min >= low - _SLACK * span and seen.max <= high + _SLACK * span
    if not inside or seen.max - seen.min < _LEAST * span:
        raise ConfigError(
            f"preprocess takes pixels to {low:.6g} .. {high:.6g}, but the data that {name!r} was calibrated on is in "
            f"{seen.min:.6g} .. {seen.max:.6g}; give the preprocess that this data was made with"
        )


def affine(settings: Preprocess) -> tuple[Array, Array]:
    """``a`` and ``b`` of x = a_c * p + b_c, each (C,) float64."""
    mean, std = np.asarray(settings.mean, np.float64), np.asarray(settings.std, np.float64)
    return settings.scale / std, (0.0 - mean) / std  # 0, not -0, where there is no mean


def factor(settings: Preprocess) -> float | None:
    """The number that takes every pixel to the input; None where more is needed."""
    a, b = affine(settings)
    return float(a[0]) if np.all(b == 0) and np.all(a == a[0]) else None
