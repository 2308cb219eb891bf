"""The functions of ``mxnet.contrib.quantization`` that mxq has no need of itself, by their names and arguments.

A script that uses MXNet's functions changes its import, and nothing else::

    from mxnet.contrib.quantization import quantize_net_v2, quantize_model_mkldnn, quantize_graph, calib_graph
    from mxq import quantize_net_v2, quantize_model_mkldnn, quantize_graph, calib_graph

Arguments stand in MXNet's order. What is left out has mxq's defaults, which docs/mxnet.md lists beside MXNet's.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Final, TypedDict

from mxq import runtime
from mxq.api import QuantizedModel, quantize_model, quantize_net
from mxq.calibration.statistics import Statistics
from mxq.config import QuantConfig
from mxq.errors import ConfigError, DataError
from mxq.graph.ir import Array
from mxq.logs import LOG
from mxq.options import OwnModelOptions, OwnOptions, Unpack
from mxq.quant.thresholds import Thresholds
from mxq.runtime import QuantizedBlock

MOST: Final = 1024
"""Examples that a `Collector` keeps, as many as calibration uses at most by default."""


class _Ranges(TypedDict, total=False):
    """Arguments of mxq's functions that are no settings."""

    config: QuantConfig | None
    thresholds: Thresholds | None
    statistics: Statistics | str | Path | None
    batch_size: int


class More(OwnOptions, _Ranges, total=False):
    """What `mxq.quantize_net` takes and MXNet's does not."""


class MoreOfModel(OwnModelOptions, _Ranges, total=False):
    """What `mxq.quantize_model` takes and MXNet's does not."""


def quantize_net_v2(
    network: Any,
    quantized_dtype: str | None = None,
    quantize_mode: str | None = None,
    quantize_granularity: str | None = None,
    exclude_layers: Any = None,
    exclude_layers_match: Any = None,
    exclude_operators: Any = None,
    calib_data: object = None,
    data_shapes: object = None,
    calib_mode: str | None = "",
    num_calib_examples: int | str | None = None,
    ctx: Any = None,
    LayerOutputCollector: Any = None,  # noqa: N803  (MXNet's name)
    logger: logging.Logger | None = None,
    **options: Unpack[More],
) -> QuantizedBlock:
    """`mxq.quantize_net` with MXNet's order of arguments.

    Args:
        calib_mode: where it is left out, ranges are found on ``calib_data``, or at run time where there is none.
        **options: what MXNet does not have: ``effort``, ``thresholds``, ``config``, ...

    Returns, raises: as `mxq.quantize_net`.
    """
    return quantize_net(
        network,
        calib_data,
        quantized_dtype=quantized_dtype,
        quantize_mode=quantize_mode,
        quantize_granularity=quantize_granularity,
        exclude_layers=exclude_layers,
        exclude_layers_match=exclude_layers_match,
        exclude_operators=exclude_operators,
        data_shapes=data_shapes,
        num_calib_examples=num_calib_examples,
        ctx=ctx,
        LayerOutputCollector=LayerOutputCollector,
        logger=logger,
        **_calibrated_by(calib_mode, calib_data, options),
    )


def quantize_model_mkldnn(
    sym: Any,
    arg_params: Mapping[str, Any],
    aux_params: Mapping[str, Any] | None = None,
    data_names: Iterable[str] | None = None,
    label_names: Iterable[str] | None = None,
    ctx: Any = None,
    excluded_sym_names: Any = None,
    excluded_op_names: Any = None,
    calib_mode: str | None = "",
    calib_data: object = None,
    num_calib_examples: int | str | None = None,
    quantized_dtype: str | None = None,
    quantize_mode: str | None = None,
    quantize_granularity: str | None = None,
    logger: logging.Logger | None = None,
    **options: Unpack[MoreOfModel],
) -> QuantizedModel:
    """`mxq.quantize_model` with MXNet's order of arguments; mxq fuses in any case.

    Args:
        calib_mode: where it is left out, ranges are found on ``calib_data``, or at run time where there is none.
        **options: what MXNet does not have: ``effort``, ``thresholds``, ``config``, ...

    Returns, raises: as `mxq.quantize_model`.
    """
    return quantize_model(
        sym,
        arg_params,
        aux_params,
        calib_data,
        data_names=data_names,
        label_names=label_names,
        ctx=ctx,
        excluded_sym_names=excluded_sym_names,
        excluded_op_names=excluded_op_names,
        num_calib_examples=num_calib_examples,
        quantized_dtype=quantized_dtype,
        quantize_mode=quantize_mode,
        quantize_granularity=quantize_granularity,
        logger=logger,
        **_calibrated_by(calib_mode, calib_data, options),
    )


def _calibrated_by(calib_mode: str | None, calib_data: object, options: Mapping[str, Any]) -> dict[str, Any]:
    """``options`` with the calibrator: what was asked for; else mxq's default, or "none" for want of anything."""
    ranges = [calib_data, *(options.get(name) for name in ("thresholds", "statistics", "config"))]
    if calib_mode == "" and any(given is not None for given in ranges):
        return dict(options)
    return {**options, "calib_mode": calib_mode or "none"}


class Collector:
    """What a monitored executor shows of a network's inputs: calibration data for `calib_graph`.

    Give ``collect`` to ``set_monitor_callback(collector.collect, monitor_all=True)`` of MXNet's executor. Ranges are
    not read off the tensors that pass by, since mxq calibrates the network as it fuses it; the inputs are kept instead,
    `MOST` examples of them, and `calib_graph` runs its own network on them.
    """

    def __init__(self, inputs: Iterable[str], quantize: Callable[..., QuantizedModel]) -> None:
        self.inputs = tuple(inputs)
        self.quantize = quantize
        self.batches: list[dict[str, Array]] = []
        self._waiting: dict[str, Array] = {}
        self._seen: set[str] = set()

    def collect(self, name: str | bytes, array: Any) -> None:
        """A callback of MXNet's monitor.

        Args:
            name: of a tensor: an input's own, "node_argument" of what a node reads, "node_output" of what it writes.
            array: MXNet's array, or the handle of one.
        """
        tensor, held = name.decode() if isinstance(name, bytes) else str(name), runtime.monitored(array)
        if tensor in self.inputs:
            self._waiting.setdefault(tensor, held.asnumpy())
        elif tensor.endswith("_output"):
            self._flush(begins=tensor in self._seen or not self.batches)
            self._seen.add(tensor)

    def _flush(self, *, begins: bool) -> None:
        """What inputs were seen belongs to the run that goes on, or to one that ``begins``."""
        if begins and self._waiting:
            self.batches.append({})
            self._seen.clear()
        if self._waiting and sum(len(next(iter(batch.values()))) for batch in self.batches[:-1] if batch) < MOST:
            self.batches[-1] = {**self._waiting, **self.batches[-1]}
        self._waiting = {}

    def feeds(self) -> list[dict[str, Array]]:
        """The batches that were seen, of all inputs.

        Raises:
            DataError: there is none.
        """
        whole = [batch for batch in self.batches if set(batch) == set(self.inputs)]
        if not whole:
            raise DataError(
                f"the collector has seen no batch of {', '.join(self.inputs)}; allowed: to run the float network after "
                "executor.set_monitor_callback(collector.collect, monitor_all=True)"
            )
        return whole


def quantize_graph(
    sym: Any,
    arg_params: Mapping[str, Any],
    aux_params: Mapping[str, Any] | None = None,
    ctx: Any = None,
    excluded_sym_names: Any = None,
    excluded_op_names: Any = None,
    calib_mode: str | None = "naive",
    quantized_dtype: str | None = None,
    quantize_mode: str | None = None,
    quantize_granularity: str | None = None,
    LayerOutputCollector: Any = None,  # noqa: N803  (MXNet's name)
    logger: logging.Logger | None = None,
    **options: Unpack[MoreOfModel],
) -> tuple[Any, dict[str, Any], dict[str, Any], Collector | None]:
    """A network that finds its ranges at run time, and what collects data for `calib_graph`.

    Args:
        calib_mode: how `calib_graph` will find ranges; None or "none": not at all.
        LayerOutputCollector: None.
        others: as of `mxq.quantize_model`.

    Returns:
        ``(qsym, qarg_params, aux_params, collector)``; the collector is None without calibration.

    Raises:
        MxqError: as `mxq.quantize_model`.
    """
    given = {
        "ctx": ctx,
        "excluded_sym_names": excluded_sym_names,
        "excluded_op_names": excluded_op_names,
        "quantized_dtype": quantized_dtype,
        "quantize_mode": quantize_mode,
        "quantize_granularity": quantize_granularity,
        "LayerOutputCollector": LayerOutputCollector,
        **options,
    }
    model = runtime.from_symbol(sym, arg_params, aux_params)

    def quantize(**more: Any) -> QuantizedModel:
        return quantize_model(sym, arg_params, aux_params, **{**given, "logger": logger, **more})

    collector = None if calib_mode in (None, "none") else Collector(model.inputs, quantize)
    at_run_time = quantize(calib_mode="none", effort="fast")
    return (*at_run_time, collector)


def calib_graph(
    qsym: Any,
    arg_params: Mapping[str, Any],
    aux_params: Mapping[str, Any] | None,
    collector: Collector,
    calib_mode: str = "naive",
    quantized_dtype: str | None = None,
    logger: logging.Logger | None = None,
    **options: Unpack[MoreOfModel],
) -> QuantizedModel:
    """The calibrated network, by what the ``collector`` of `quantize_graph` has seen.

    Args:
        qsym, arg_params, aux_params: as `quantize_graph` returned them; the network is made anew from the float one.
        collector: from `quantize_graph`.
        calib_mode: any calibrator of mxq.
        quantized_dtype: where it is to be another than in `quantize_graph`.

    Returns:
        As `mxq.quantize_model`.

    Raises:
        ConfigError: there is no such collector, or it is not to calibrate.
        DataError: it has seen no batch.
    """
    del qsym, arg_params, aux_params
    if not isinstance(collector, Collector):
        raise ConfigError(
            f"collector is a {type(collector).__name__}; allowed: what mxq.quantize_graph(..., calib_mode='naive') made"
        )
    if calib_mode in (None, "none"):
        raise ConfigError(f"calib_mode is {calib_mode!r}; allowed: a calibrator, as 'naive' or 'entropy'")
    feeds = collector.feeds()
    count = sum(len(feed[collector.inputs[0]]) for feed in feeds)
    more = {} if quantized_dtype is None else {"quantized_dtype": quantized_dtype}
    return collector.quantize(
        calib_data=feeds, calib_mode=calib_mode, num_calib_examples=count, logger=logger or LOG, **{**more, **options}
    )
