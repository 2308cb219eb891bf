"""Arguments of ``mxnet.contrib.quantization`` in mxq's own terms, so that switching is a change of import."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Mapping
from operator import index
from typing import Any

from mxq.errors import ConfigError

Shape = tuple[int, ...]


def own_options(options: Mapping[str, Any], logger: logging.Logger) -> dict[str, Any]:
    """Options as fields of `QuantConfig`: MXNet's way to say "no calibration", its granularity, its collector.

    Args:
        options: as a caller names them; None stands for a default, but for ``calib_mode``, where it means "none".
        logger: receives what has no effect.

    Raises:
        ConfigError: a LayerOutputCollector, which cannot see the tensors of a network that mxq fuses.
    """
    found = {name: value for name, value in options.items() if value is not None}
    if "calib_mode" in options and options["calib_mode"] is None:
        found["calib_mode"] = "none"
    if found.pop("LayerOutputCollector", None) is not None:
        raise ConfigError(
            "LayerOutputCollector is given; allowed: None. Name a calibrator instead, calib_mode='percentile:99.99', "
            "give ranges as thresholds=, or register an observer (mxq.observers)"
        )
    if found.get("quantize_granularity") == "tensor-wise":
        logger.warning(
            "quantize_granularity 'tensor-wise' is taken as 'channel-wise', which is more accurate and as quick"
        )
        del found["quantize_granularity"]
    return found


def names_given(field: str, names: Any) -> tuple[Any, ...]:
    """What is called ``field``, one name or several, as a tuple.

    Raises:
        ConfigError: it is neither.
    """
    if names is None or isinstance(names, str):
        return (names,) if names else ()
    try:
        return tuple(names)
    except TypeError:
        raise ConfigError(f"{field} is {names!r}; allowed: names, one or a list") from None


def excluded(
    field: str, names: str | Iterable[str] | None, known: Collection[str], logger: logging.Logger
) -> tuple[str, ...]:
    """Those of ``names`` that are ``known``; of the others the ``logger`` hears, as MXNet passes over them in silence.

    Raises:
        ConfigError: they are no text.
    """
    given = names_given(field, names)
    for name in given:
        if not isinstance(name, str):
            raise ConfigError(f"{field} holds {name!r}; allowed: names, one or a list")
        if name not in known:
            logger.warning("%s: the network has no %r; nothing is excluded by it", field, name)
    return tuple(name for name in given if name in known)


def shapes_of(data_shapes: Any, inputs: Iterable[str]) -> dict[str, Shape]:
    """The shape of a batch of each input.

    Args:
        data_shapes: for each input a DataDesc, a pair (name, shape), or a shape; or the only input's.
        inputs: their names, in order; names in ``data_shapes`` need not be the same, as in MXNet.

    Raises:
        ConfigError: it is nothing of that kind, or of another number of inputs.
    """
    names = tuple(inputs)
    try:
        items = [data_shapes] if _is_shape(data_shapes) else list(data_shapes)
        shapes = [_shape(item) for item in items]
    except (TypeError, IndexError):
        shapes = []
    if len(shapes) < len(names) or not all(min(shape, default=0) > 0 for shape in shapes):
        raise ConfigError(
            f"data_shapes is {data_shapes!r}; allowed: for each input ({', '.join(names)}) a DataDesc, a pair of name "
            "and shape, or a shape, with the batch size first"
        )
    return dict(zip(names, shapes, strict=False))  # what follows are labels


def _is_shape(value: Any) -> bool:
    return isinstance(value, tuple) and bool(value) and all(isinstance(v, int) for v in value)


def _shape(item: Any) -> Shape:
    named = hasattr(item, "shape") or (isinstance(item, tuple | list) and bool(item) and isinstance(item[0], str))
    shape = item.shape if hasattr(item, "shape") else item[1] if named else item
    return tuple(index(side) for side in shape)
