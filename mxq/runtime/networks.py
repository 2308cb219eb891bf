"""Networks in: a Gluon block, a symbol with its parameters, or a pair of files becomes a `Model`."""

from __future__ import annotations

import glob
import inspect
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, TypeAlias

from mxq.checksums import intact
from mxq.errors import FormatError, QuantizeError
from mxq.files import is_file
from mxq.ir import Array, Graph, Model, Node
from mxq.operators import check_graph, check_parameters
from mxq.runtime.mxnet import mx, mxnet_says, sentence, to_numpy
from mxq.runtime.registry import REGISTRY
from mxq.serde import read_symbol, write_symbol

Net: TypeAlias = Any
"""A HybridBlock, a SymbolBlock, ``(sym, arg_params, aux_params)``, or the prefix of an exported pair."""

TRAINING_HEADS: Final = MappingProxyType(
    {
        "SoftmaxOutput": "softmax",
        "LinearRegressionOutput": "_copy",
        "MAERegressionOutput": "_copy",
        "SVMOutput": "_copy",
        "LogisticRegressionOutput": "sigmoid",
    }
)
"""Operators that take a label, and what they compute in inference."""


def load_model(net: Net, epoch: int | None = None) -> Model:
    """The `Model` of a network; the network itself is not changed.

    Args:
        net: see `Net`. A HybridBlock must be initialised, with all shapes known (run it once if they are not).
        epoch: for a prefix, which ``prefix-NNNN.params`` to read; by default the only or the latest one.

    Raises:
        FormatError: a file is missing, damaged, or not MXNet's; an operator is unknown to this MXNet.
        QuantizeError: ``net`` is none of the allowed kinds, or has parameters without values.
    """
    if isinstance(net, Model):
        return net
    if isinstance(net, str | Path):
        return from_prefix(Path(net), epoch)
    if isinstance(net, tuple | list) and len(net) == 3:
        return from_symbol(*net)
    if isinstance(net, mx.gluon.HybridBlock):
        return _from_block(net)
    raise QuantizeError(
        f"net is a {type(net).__name__}; allowed: HybridBlock, SymbolBlock, (sym, arg_params, aux_params), or the "
        "prefix of prefix-symbol.json and prefix-0000.params"
    )


def from_symbol(sym: Any, arg_params: Mapping[str, Any], aux_params: Mapping[str, Any] | None) -> Model:
    """The `Model` of a symbol (or its JSON file) and its parameters (NDArrays or numpy arrays)."""
    if isinstance(sym, str | Path):
        sym = _load_symbol(Path(sym))
    if not isinstance(sym, mx.sym.Symbol):
        raise QuantizeError(f"sym is a {type(sym).__name__}; allowed: a Symbol, or the path of its JSON file")
    graph = read_symbol(sym.tojson(), "the symbol")
    check_graph(graph, REGISTRY)
    graph = _without_labels(graph)
    wanted = {n.name for n in graph.variables}
    aux_names = set(sym.list_auxiliary_states())
    values = {**(arg_params or {}), **(aux_params or {})}
    arrays = {k: to_numpy(v) for k, v in values.items() if k in wanted}
    model = Model(
        graph,
        {k: v for k, v in arrays.items() if k not in aux_names},
        {k: v for k, v in arrays.items() if k in aux_names},
    )
    missing = sorted(aux_names - set(model.auxs))
    if missing:
        raise FormatError(f"the parameters lack the auxiliary state {missing[0]!r} ({len(missing)} missing in all)")
    check_parameters(model)
    return model


def _without_labels(graph: Graph) -> Graph:
    """Training heads as what they compute in inference on the CPU, so that no label has to be fed.

    ``SoftmaxOutput`` normalises axis 1 with multi_output, else the last one (``mkldnn_softmax_output.cc``); the
    regression outputs pass on their data, the logistic one its sigmoid.
    """
    heads = (n for n in graph.operators if n.op in TRAINING_HEADS)
    changes = {n.name: (_inference_form(n),) for n in heads}
    return graph.replace(changes) if changes else graph


def _inference_form(head: Node) -> Node:
    axis = {"axis": "1" if head.flag("multi_output") else "-1"} if head.op == "SoftmaxOutput" else {}
    return replace(head, op=TRAINING_HEADS[head.op], attrs=axis, inputs=head.inputs[:1])


def _load_symbol(path: Path) -> Any:
    if not is_file(path):
        raise FormatError(f"no file {str(path)!r}")
    text = path.read_text(encoding="utf-8", errors="replace")
    graph = read_symbol(text, str(path))
    check_graph(graph, REGISTRY, str(path))
    with mxnet_says(f"MXNet cannot read {str(path)!r}", FormatError):
        return mx.sym.load_json(write_symbol(graph))  # what was checked, rather than what the file holds beside it


def params_path(prefix: Path, epoch: int | None = None) -> Path:
    """The parameter file of ``prefix``: of ``epoch``, or the latest there is.

    Raises:
        FormatError: there is none.
    """
    if epoch is not None:
        path = prefix.parent / f"{prefix.name}-{epoch:04d}.params"
        found = [path] if path.is_file() else []
    else:
        found = sorted(prefix.parent.glob(f"{glob.escape(prefix.name)}-[0-9][0-9][0-9][0-9].params"))
    if not found:
        wanted = f"{prefix}-{'NNNN' if epoch is None else f'{epoch:04d}'}.params"
        raise FormatError(f"no parameter file {wanted!r} beside {prefix.name}-symbol.json")
    return found[-1]


def from_prefix(prefix: Path, epoch: int | None) -> Model:
    with intact(prefix):
        return _from_prefix(prefix, epoch)


def _from_prefix(prefix: Path, epoch: int | None) -> Model:
    sym = _load_symbol(prefix.parent / f"{prefix.name}-symbol.json")
    table = load_params(params_path(prefix, epoch))
    model = from_symbol(sym, table, {})
    absent = [n for n in model.inputs if n.endswith(("weight", "bias", "gamma", "beta"))]
    if absent:
        raise FormatError(f"{params_path(prefix, epoch)} has no value for {absent[0]!r} ({len(absent)} missing in all)")
    return model


def load_params(path: Path) -> dict[str, Array]:
    """Name -> array of a ``.params`` file; the prefixes "arg:" and "aux:" are dropped.

    Raises:
        FormatError: missing, truncated, or not a parameter file.
    """
    if not is_file(path):
        raise FormatError(f"no file {str(path)!r}")
    with mxnet_says(f"MXNet cannot read {str(path)!r} (truncated, or not a parameter file)", FormatError):
        table = mx.nd.load(str(path))
    if not isinstance(table, dict):
        raise FormatError(f"{str(path)!r} holds {len(table)} arrays without names; allowed: named parameters")
    return {name.split(":", 1)[-1]: to_numpy(value) for name, value in table.items()}


def _from_block(net: Any) -> Model:
    params = {p.name: p for p in net.collect_params().values()}
    try:
        values = {name: to_numpy(p.data(p.list_ctx()[0])) for name, p in params.items()}
    except (mx.gluon.parameter.DeferredInitializationError, RuntimeError) as error:
        raise QuantizeError(
            f"the network has parameters without values ({sentence(str(error))}); initialise or load them, and run "
            "the network once on a batch so that every shape is known"
        ) from error
    return from_symbol(_trace(net), values, {})


def _trace(net: Any) -> Any:
    """The block's symbol. Calling a block with symbols traces it without hybridizing, so ``net`` stays as it is."""
    if isinstance(net, mx.gluon.SymbolBlock):
        return net._cached_graph[1]  # noqa: SLF001  (MXNet offers no other way to a SymbolBlock's symbol)
    names = _input_names(net)
    result = net(*(mx.sym.var(name) for name in names))
    flat = list(_flatten(result))
    return flat[0] if len(flat) == 1 else mx.sym.Group(flat)


def _input_names(net: Any) -> list[str]:
    """"data", or "data0", "data1", ... as ``HybridBlock.export`` names inputs; counted from ``hybrid_forward``."""
    registered = set(net._reg_params)  # noqa: SLF001  (parameters arrive as arguments of hybrid_forward)
    positional = [
        p
        for p in list(inspect.signature(net.hybrid_forward).parameters.values())[1:]
        if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)
        and p.name not in registered
        and p.default is inspect.Parameter.empty
    ]
    return ["data"] if len(positional) <= 1 else [f"data{i}" for i in range(len(positional))]


def _flatten(result: Any) -> Iterator[Any]:
    if isinstance(result, list | tuple):
        for item in result:
            yield from _flatten(item)
    else:
        yield result
