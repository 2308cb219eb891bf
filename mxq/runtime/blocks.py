"""Gluon blocks: their symbol, the order of their arguments, and parameters whose shapes only data settles."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from mxq.errors import QuantizeError
from mxq.graph.ir import Array
from mxq.runtime.mxnet import drain, mx, of_mode, sentence, to_ndarray, variable

REMEDY = "hybridize it and run it once on a batch (net.hybridize(); net(x, ...)), so that its arguments are known"


def traced(net: Any) -> tuple[Any, tuple[str, ...]]:
    """The symbol of a HybridBlock and the names of its arguments, in the order of a call, lists taken apart.

    A block that has been hybridized and run takes what it ran with: optional arguments, ``*args`` and lists too. One
    that has not takes what its call requires. Calling a block with symbols traces it without hybridizing.

    Raises:
        QuantizeError: the block cannot be called with so many symbols.
    """
    if isinstance(net, mx.gluon.SymbolBlock):
        inputs, symbol = net._cached_graph  # noqa: SLF001  (MXNet offers no other way to a SymbolBlock's symbol)
        return symbol, tuple(s.name for s in inputs)
    names, form = arguments(net), _form(net)
    variables = iter([variable(name) for name in names])
    try:
        result = net(*_formed(form, variables))
        flat = list(_flatten(result))
        return (flat[0] if len(flat) == 1 else mx.sym.Group(flat, type(flat[0]))), names
    except Exception as error:  # it is the user's code that runs
        listed = ", ".join(names)
        raise QuantizeError(
            f"{type(net).__name__} cannot be traced with {listed} ({type(error).__name__}: {sentence(str(error))}); "
            f"{REMEDY}"
        ) from error


def arguments(net: Any) -> tuple[str, ...]:
    """Names of a HybridBlock's arguments: "data", or "data0", "data1", ... as ``HybridBlock.export`` has them."""
    if isinstance(net, mx.gluon.SymbolBlock) or _has_run(net):
        return tuple(s.name for s in net._cached_graph[0])  # noqa: SLF001  (it is not kept elsewhere)
    count = len(_required(net))
    return ("data",) if count <= 1 else tuple(f"data{i}" for i in range(count))


def left_out(net: Any) -> tuple[str, ...]:
    """Names of the optional arguments that a HybridBlock is traced without, as it has not been hybridized and run."""
    if not isinstance(net, mx.gluon.HybridBlock) or isinstance(net, mx.gluon.SymbolBlock) or _has_run(net):
        return ()
    return tuple(p.name for p in _taken(net) if p.default is None)


def _has_run(net: Any) -> bool:
    """Whether it keeps what it was called with; blocks with a call of their own (RNN layers) add to that."""
    return bool(net._cached_graph) and type(net).__call__ is mx.gluon.Block.__call__  # noqa: SLF001


def _form(net: Any) -> list[Any]:
    """The structure of the arguments, as MXNet keeps it: 0 for an array, -1 for None, lists within lists."""
    return list(net._in_format) if _has_run(net) else [0] * len(arguments(net))  # noqa: SLF001


def _formed(form: Any, variables: Iterator[Any]) -> Any:
    if isinstance(form, list):
        return [_formed(part, variables) for part in form]
    return None if form == -1 else next(variables)


def _required(net: Any) -> list[inspect.Parameter]:
    """The arguments that a call must give."""
    return [p for p in _taken(net) if p.default is inspect.Parameter.empty]


def _taken(net: Any) -> list[inspect.Parameter]:
    """The arguments by place of a call; in ``hybrid_forward`` F comes first, and the block's own parameters too."""
    kind, registered = type(net), set(net._reg_params)  # noqa: SLF001
    if kind.__call__ is not mx.gluon.Block.__call__:
        taken = list(inspect.signature(net.__call__).parameters.values())
    elif kind.forward is not mx.gluon.HybridBlock.forward:
        taken = list(inspect.signature(net.forward).parameters.values())
    else:
        taken = list(inspect.signature(net.hybrid_forward).parameters.values())[1:]
    by_place = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return [p for p in taken if p.kind in by_place and p.name not in registered]


def _flatten(result: Any) -> Iterator[Any]:
    if isinstance(result, list | tuple):
        for item in result:
            yield from _flatten(item)
    else:
        yield result


# ---- parameters ----------------------------------------------------------------------------------------------


def parameters(net: Any, names: Sequence[str]) -> dict[str, Any]:
    """The parameters of a block that are among ``names``, as MXNet's arrays.

    Raises:
        QuantizeError: one has no value yet.
    """
    found = {p.name: p for p in net.collect_params().values()}
    try:  # data() would refuse the row_sparse ones
        return {n: _value(found[n]) for n in names if n in found}
    except (mx.gluon.parameter.DeferredInitializationError, RuntimeError) as error:
        raise QuantizeError(
            f"the network has parameters without values ({sentence(str(error))}); initialise or load them, and run "
            "the network once on a batch so that every shape is known"
        ) from error


def _value(parameter: Any) -> Any:
    return parameter._check_and_get(parameter._data, parameter.list_ctx()[0])  # noqa: SLF001


def is_deferred(net: Any) -> bool:
    """Whether ``net`` is a block that was initialised, but has parameters whose shapes only data tells."""
    if not isinstance(net, mx.gluon.HybridBlock):
        return False
    return any(p._data is None and p._deferred_init for p in net.collect_params().values())  # noqa: SLF001


def settle(net: Any, feed: Mapping[str, Array]) -> None:
    """Runs ``net`` once, as the user would have, so that its deferred parameters get their shapes and values.

    Args:
        net: a HybridBlock.
        feed: one array for each of its `arguments`.

    Raises:
        QuantizeError: it does not run.
    """
    make = mx.np.array if mx.util.is_np_array() else mx.nd.array
    given = iter([make(feed[name], dtype=feed[name].dtype) for name in arguments(net)])
    try:
        with mx.autograd.pause():
            for output in _flatten(net(*_formed(_form(net), given))):
                output.wait_to_read()
    except Exception as error:  # it is the user's code that runs
        drain()
        shapes = ", ".join(f"{name} {list(array.shape)}" for name, array in feed.items())
        raise QuantizeError(
            f"the shapes of {type(net).__name__}'s parameters cannot be settled on the first batch, {shapes} "
            f"({type(error).__name__}: {sentence(str(error))}); run the network once on a batch that it takes"
        ) from error


def is_block(net: Any) -> bool:
    """Whether ``net`` is a Gluon block, whose parameters can be set."""
    return isinstance(net, mx.gluon.Block)


def set_values(net: Any, values: Mapping[str, Array]) -> None:
    """Gives those parameters of a block that have these names new values, of the type that each has."""
    found = {p.name: p for p in net.collect_params().values()}
    for name, value in values.items():
        found[name].set_data(of_mode(to_ndarray(value)).astype(found[name].dtype))
