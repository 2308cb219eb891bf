"""Networks in: a Gluon block, a symbol with its parameters, or a pair of files becomes a `Model`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, TypeAlias

import numpy as np

from mxq.errors import ConfigError, FormatError, QuantizeError, close_to
from mxq.formats.onnx_file import is_onnx
from mxq.formats.params import read_params
from mxq.graph.ir import Array, Model
from mxq.graph.serde import read_symbol, write_symbol
from mxq.operators import check_graph, check_parameters
from mxq.runtime.blocks import parameters, traced
from mxq.runtime.inference import as_float32, dense, inference_form
from mxq.runtime.mxnet import check_idle, mx, mxnet_says, to_numpy
from mxq.runtime.operator_registry import REGISTRY
from mxq.runtime.ordering import first_versions, in_call_order
from mxq.runtime.reshapes import without_target_shapes
from mxq.runtime.values import check_values
from mxq.storage.checksums import PACKED, intact, params_of
from mxq.storage.writing import epochs_of, is_file

Net: TypeAlias = Any
"""A HybridBlock, a SymbolBlock, a Module, ``(sym, arg_params, aux_params)``, or the prefix of an exported pair."""

ALLOWED: Final = (
    "HybridBlock, SymbolBlock, Module, (sym, arg_params, aux_params), or the prefix of prefix-symbol.json and "
    "prefix-0000.params"
)


TYPES: Final = ("float32", "uint8", "int8", "int32", "int64", "bool")
"""Of parameters, beside the precisions that become float32."""


def load_model(net: Net, epoch: int | None = None) -> Model:
    """The `Model` of a network; the network itself is not changed.

    Args:
        net: see `Net`. A HybridBlock must be initialised, with all shapes known (see `mxq.runtime.settle`).
        epoch: for a prefix, which ``prefix-NNNN.params`` to read; by default the one of its record, or the latest.

    Raises:
        FormatError: a file is missing, damaged, or not MXNet's; an operator is unknown to this MXNet.
        QuantizeError: ``net`` is none of the allowed kinds, or has parameters without values or with impossible ones.
        RuntimeFailure: MXNet failed in what it was asked to do before.
    """
    if isinstance(net, Model):
        return net
    if isinstance(net, str | Path):
        return from_prefix(Path(net), epoch)
    if isinstance(net, tuple | list) and len(net) == 3:
        return from_symbol(*net)
    if isinstance(net, mx.gluon.HybridBlock):
        symbol, arguments = traced(net)
        return from_symbol(symbol, parameters(net, symbol.list_inputs()), {}, arguments)
    if isinstance(net, mx.mod.BaseModule):
        return _from_module(net)
    if isinstance(net, mx.gluon.Block):
        raise QuantizeError(
            f"net is a {type(net).__name__}, a Block whose graph cannot be seen; allowed: a HybridBlock "
            "(HybridSequential instead of Sequential)"
        )
    raise QuantizeError(f"net is a {type(net).__name__}; allowed: {ALLOWED}")


def other_precision(net: Net) -> str:
    """Which of float16 and float64 a network in memory has parameters of, its `Model` having float32; else nothing."""
    if isinstance(net, mx.gluon.Block):
        types = {np.dtype(p.dtype).name for p in net.collect_params().values() if p.dtype != "bfloat16"}
    elif isinstance(net, tuple | list) and len(net) == 3 and isinstance(net[1], Mapping):
        types = {np.dtype(v.dtype).name for v in net[1].values() if hasattr(v, "dtype")}
    else:
        types = set()
    return next((name for name in ("float16", "float64") if name in types), "")


def from_symbol(
    sym: Any,
    arg_params: Mapping[str, Any],
    aux_params: Mapping[str, Any] | None,
    order: Sequence[str] | None = None,
) -> Model:
    """The `Model` of a symbol and its parameters.

    Args:
        sym: a Symbol, or the path of its JSON file.
        arg_params, aux_params: NDArrays or numpy arrays; half and double precision become float32.
        order: names of the inputs in the order of a call, see `in_call_order`.

    Raises:
        FormatError, QuantizeError, RuntimeFailure: as by `load_model`.
    """
    if isinstance(sym, str | Path):
        sym = _load_symbol(Path(sym))
    if not isinstance(sym, mx.sym.Symbol):
        raise QuantizeError(f"sym is a {type(sym).__name__}; allowed: a Symbol, or the path of its JSON file")
    with mxnet_says("MXNet cannot say what is in the symbol", FormatError):
        text = sym.tojson()
    graph = read_symbol(text, "the symbol")
    check_graph(graph, REGISTRY)
    graph = first_versions(without_target_shapes(inference_form(graph)))
    values = {**_table("arg_params", arg_params), **_table("aux_params", aux_params)}
    read = frozenset(n.name for n in graph.variables if n.name in values)
    graph = in_call_order(dense(graph, read), read, order)
    aux_names = set(sym.list_auxiliary_states())
    arrays = {name: _array(name, values[name]) for name in values if name in read}
    check_idle()
    model = Model(
        graph,
        {k: v for k, v in arrays.items() if k not in aux_names},
        {k: v for k, v in arrays.items() if k in aux_names},
    )
    missing = sorted(aux_names - set(model.auxs))
    if missing:
        raise FormatError(f"the parameters lack the auxiliary state {missing[0]!r} ({len(missing)} missing in all)")
    check_parameters(model)
    check_values(model)
    return model


def _table(argument: str, given: Any) -> Mapping[str, Any]:
    if given is not None and not isinstance(given, Mapping):
        raise QuantizeError(f"{argument} is a {type(given).__name__}; allowed: a dictionary of arrays by name, or None")
    return given or {}


def _array(name: str, value: Any) -> Array:
    with mxnet_says(f"MXNet failed while it made the parameter {name!r}"):
        array = as_float32(to_numpy(value))
    if array.dtype.name not in TYPES:
        raise QuantizeError(f"parameter {name!r} is {array.dtype}; allowed: {', '.join(TYPES)}")
    return array


def _from_module(net: Any) -> Model:
    """Of a Module: its parameters from the device where it is bound, else those that it was loaded with."""
    if not net.params_initialized or getattr(net, "symbol", None) is None:
        raise QuantizeError(
            f"net is a {type(net).__name__} without a symbol or parameters; allowed: one that was bound and got "
            "parameters (init_params, set_params, load), or (sym, arg_params, aux_params)"
        )
    tables = net.get_params() if net.binded else (net._arg_params, net._aux_params)  # noqa: SLF001
    args, auxs = tables
    inputs = set(net.symbol.list_inputs()) - set(args) - set(auxs)
    return from_symbol(net.symbol, args, auxs, [name for name in net.data_names if name in inputs])


def _load_symbol(path: Path) -> Any:
    if not is_file(path):
        raise FormatError(f"no file {str(path)!r}{_beside(path)}")
    text = path.read_text(encoding="utf-8", errors="replace")
    graph = read_symbol(text, str(path))
    check_graph(graph, REGISTRY, str(path))
    with mxnet_says(f"MXNet cannot read {str(path)!r}", FormatError):
        return mx.sym.load_json(write_symbol(graph))  # what was checked, rather than what the file holds beside it


def _beside(path: Path) -> str:
    """Says what could have been meant by the missing ``path``: up to three networks in its folder."""
    with suppress(OSError, ValueError):
        names = sorted(p.name.removesuffix("-symbol.json") for p in path.parent.glob("*-symbol.json"))
        close = close_to(path.name.removesuffix("-symbol.json"), names, cutoff=0) or names[:3]
        return f"; networks there: {', '.join(close)}" if close else ""
    return ""


def params_path(prefix: Path, epoch: int | None = None) -> Path:
    """The parameter file of ``prefix``: of ``epoch``, or `mxq.storage.checksums.params_of` it.

    Raises:
        ConfigError: ``epoch`` is no number.
        FormatError: there is none, or the record is damaged.
    """
    if epoch is not None and (not isinstance(epoch, int) or isinstance(epoch, bool) or epoch < 0):
        raise ConfigError(f"epoch is {epoch!r}; allowed: a whole number, 0 or more, or None for the latest")
    chosen = params_of(prefix) if epoch is None else epochs_of(prefix).get(epoch)
    if chosen is None:
        wanted = f"{prefix}-{'NNNN' if epoch is None else f'{epoch:04d}'}.params"
        found = sorted(epochs_of(prefix))
        there = f"; latest epochs there: {', '.join(map(str, found[-5:]))}" if found else ""
        raise FormatError(f"no parameter file {wanted!r} beside {prefix.name}-symbol.json{there}")
    return chosen


def from_prefix(prefix: Path, epoch: int | None) -> Model:
    if is_onnx(prefix) and is_file(prefix):
        raise FormatError(
            f"{str(prefix)!r} is an ONNX file, which MXNet does not run; allowed: the prefix of a pair; "
            "functions for files: verify_onnx, inspect_onnx, best_runtime"
        )
    if packed := _packed(prefix):
        raise FormatError(f"{str(packed)!r} is a packed pair; allowed: the pair, after mxq unpack {packed}")
    with intact(prefix):
        return _from_prefix(prefix, epoch)


def _packed(prefix: Path) -> Path | None:
    """The packed pair that is meant by a prefix that is none."""
    packed = prefix if prefix.name.endswith(PACKED) else prefix.parent / f"{prefix.name}{PACKED}"
    symbol = prefix.parent / f"{prefix.name}-symbol.json"
    return packed if is_file(packed) and not is_file(symbol) else None


def _from_prefix(prefix: Path, epoch: int | None) -> Model:
    sym = _load_symbol(prefix.parent / f"{prefix.name}-symbol.json")
    table = load_params(params_path(prefix, epoch))
    model = from_symbol(sym, table, {})
    absent = [n for n in model.inputs if n.endswith(("weight", "bias", "gamma", "beta"))]
    if absent:
        raise FormatError(f"{params_path(prefix, epoch)} has no value for {absent[0]!r} ({len(absent)} missing in all)")
    return model


def load_params(path: Path) -> dict[str, Array]:
    """Name -> array of a ``.params`` file; the prefixes "arg:" and "aux:" are dropped, where there are any.

    Raises:
        FormatError: missing, truncated, or not a parameter file.
    """
    return {name.removeprefix("arg:").removeprefix("aux:"): value for name, value in read_params(path).items()}
