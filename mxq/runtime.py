"""The only door to MXNet: networks in, executables, blocks and file pairs out.

Everything else in mxq works on `Model`. MXNet's errors become `RuntimeFailure` or `FormatError` with MXNet's own
sentence in them.
"""

from __future__ import annotations

import inspect
import json
import os
import platform
import re
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from mxq.compat import unloadable
from mxq.errors import FormatError, MxqError, QuantizeError, RuntimeFailure
from mxq.ir import Array, Executable, Graph, Model, Ref
from mxq.serde import read_symbol, write_symbol
from mxq.version import __version__

try:
    import mxnet as mx
except OSError as error:
    raise unloadable(error) from error

Net: TypeAlias = Any
"""A HybridBlock, a SymbolBlock, ``(sym, arg_params, aux_params)``, or the prefix of an exported pair."""

_NOISE = re.compile(r"\[\d\d:\d\d:\d\d\] \S+:\d+: |Error in operator \S+: (?=Error in operator)")
"""Time stamps, source positions and outer operators in MXNet's messages."""

BLOCK_ATTRIBUTE = "mxq_report"
"""Attribute of a block that mxq returns: its report."""


@contextmanager
def _mxnet_says(what: str, error: type[MxqError] = RuntimeFailure) -> Iterator[None]:
    try:
        yield
    except mx.base.MXNetError as failure:
        raise error(f"{what}: {_sentence(str(failure))}") from failure


def _sentence(text: str) -> str:
    """The informative line of an MXNet error, which comes with a stack trace."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    useful = [x for x in lines if not x.startswith(("Traceback", "File ", "[bt]", "Stack trace"))]
    return _NOISE.sub("", (useful or lines or ["no message"])[0]).removeprefix("MXNetError: ")


# ---- networks in ---------------------------------------------------------------------------------------------


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
        return _from_prefix(Path(net), epoch)
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
    wanted = {n.name for n in graph.variables}
    aux_names = set(sym.list_auxiliary_states())
    values = {**(arg_params or {}), **(aux_params or {})}
    arrays = {k: _to_numpy(v) for k, v in values.items() if k in wanted}
    model = Model(
        graph,
        {k: v for k, v in arrays.items() if k not in aux_names},
        {k: v for k, v in arrays.items() if k in aux_names},
    )
    missing = sorted(aux_names - set(model.auxs))
    if missing:
        raise FormatError(f"the parameters lack the auxiliary state {missing[0]!r} ({len(missing)} missing in all)")
    _check_weights(model)
    return model


def _check_weights(model: Model) -> None:
    """Every layer's weight has the shape its attributes ask for; MXNet would say so only when running, or crash."""
    for node in model.graph.operators:
        if node.op not in ("Convolution", "FullyConnected") or node.inputs[1].name not in model.args:
            continue
        shape = model.args[node.inputs[1].name].shape
        channels = int(node.number("num_filter" if node.op == "Convolution" else "num_hidden", 0))
        kernel = node.ints("kernel")
        right = shape[:1] == (channels,) and (node.op != "Convolution" or shape[2:] == kernel)
        if not right and node.attrs.get("layout", "None") in ("None", "NCW", "NCHW", "NCDHW"):
            wanted = [channels, "*", *kernel] if kernel else [channels, "*"]
            raise FormatError(
                f"the parameter {node.inputs[1].name!r} of {node.name!r} has shape {list(shape)}; the graph asks for "
                f"{str(wanted).replace(chr(39), '')}"
            )


def _to_numpy(value: Any) -> Array:
    return np.asarray(value.asnumpy() if hasattr(value, "asnumpy") else value)


def _load_symbol(path: Path) -> Any:
    if not path.is_file():
        raise FormatError(f"no file {str(path)!r}")
    text = path.read_text(encoding="utf-8", errors="replace")
    read_symbol(text, str(path))  # a clear message for what is not a symbol at all
    with _mxnet_says(f"MXNet cannot read {str(path)!r}", FormatError):
        return mx.sym.load_json(text)


def params_path(prefix: Path, epoch: int | None = None) -> Path:
    """The parameter file of ``prefix``: of ``epoch``, or the latest there is.

    Raises:
        FormatError: there is none.
    """
    if epoch is not None:
        path = prefix.parent / f"{prefix.name}-{epoch:04d}.params"
        found = [path] if path.is_file() else []
    else:
        found = sorted(prefix.parent.glob(f"{prefix.name}-[0-9][0-9][0-9][0-9].params"))
    if not found:
        wanted = f"{prefix}-{'NNNN' if epoch is None else f'{epoch:04d}'}.params"
        raise FormatError(f"no parameter file {wanted!r} beside {prefix.name}-symbol.json")
    return found[-1]


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
    if not path.is_file():
        raise FormatError(f"no file {str(path)!r}")
    with _mxnet_says(f"MXNet cannot read {str(path)!r} (truncated, or not a parameter file)", FormatError):
        table = mx.nd.load(str(path))
    if not isinstance(table, dict):
        raise FormatError(f"{str(path)!r} holds {len(table)} arrays without names; allowed: named parameters")
    return {name.split(":", 1)[-1]: _to_numpy(value) for name, value in table.items()}


def _from_block(net: Any) -> Model:
    params = {p.name: p for p in net.collect_params().values()}
    try:
        values = {name: _to_numpy(p.data(p.list_ctx()[0])) for name, p in params.items()}
    except (mx.gluon.parameter.DeferredInitializationError, RuntimeError) as error:
        raise QuantizeError(
            f"the network has parameters without values ({_sentence(str(error))}); initialise or load them, and run "
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


# ---- running -------------------------------------------------------------------------------------------------


class MxnetRunner:
    """`mxq.ir.Runner` on MXNet's executor, on the CPU."""

    def compile(self, model: Model, taps: Sequence[Ref] = ()) -> Executable:
        """Binds ``model``; see `Runner`. Feeds may change shape between calls (the executable binds anew)."""
        heads = (*model.graph.heads, *taps)
        graph = Graph(model.graph.nodes, heads, model.graph.attrs)
        return _Bound(to_symbol(graph), model)


class _Bound:
    def __init__(self, sym: Any, model: Model) -> None:
        self._sym, self._inputs = sym, model.inputs
        arguments, states = set(sym.list_arguments()), set(sym.list_auxiliary_states())
        params = {**model.args, **model.auxs}
        self._args = {k: _to_ndarray(params[k]) for k in arguments if k in params}
        self._auxs = {k: _to_ndarray(params[k]) for k in states if k in params}
        self._needed = [name for name in model.inputs if name in arguments]
        self._shapes: dict[str, tuple[tuple[int, ...], Any]] = {}
        self._executor: Any = None

    def __call__(self, feeds: Mapping[str, Array]) -> Sequence[Array]:
        return _Outputs(self.forward(feeds))

    def forward(self, feeds: Mapping[str, Array]) -> list[Any]:
        """Runs, and returns MXNet's arrays without waiting for or copying them."""
        missing = [name for name in self._needed if name not in feeds]
        if missing:
            raise RuntimeFailure(f"input {missing[0]!r} is not fed; fed: {', '.join(map(repr, feeds)) or 'nothing'}")
        arrays = {name: np.asarray(feeds[name]) for name in self._needed}
        shapes = {name: (value.shape, value.dtype) for name, value in arrays.items()}
        with _mxnet_says("MXNet cannot run the network on input " + _describe(shapes)):
            if shapes != self._shapes:
                self._bind(arrays)
                self._shapes = shapes
            return list(self._executor.forward(is_train=False, **{k: _to_ndarray(v) for k, v in arrays.items()}))

    def _bind(self, arrays: Mapping[str, Array]) -> None:
        inputs = {name: _to_ndarray(value) for name, value in arrays.items()}
        with _as_written():
            self._executor = self._sym.bind(
                mx.cpu(), {**self._args, **inputs}, aux_states=self._auxs, grad_req="null"
            )


@contextmanager
def _as_written() -> Iterator[None]:
    """Binds graphs as they are written.

    Left alone, ``bind`` fuses on its own, and where a convolution has a second reader it fuses wrongly: the float
    ``cifar_resnet20_v2`` of gluoncv is 30 % off. A reference must not be. The backend "default" fuses only operators
    that were named to it, here none; "NONE" does the same with a line on stderr for every bind.
    """
    wanted = {"MXNET_SUBGRAPH_BACKEND": "default", "MXNET_SUBGRAPH_VERBOSE": "0"}
    before = {key: os.environ.get(key) for key in wanted}
    os.environ.update(wanted)
    try:
        yield
    finally:
        for key, value in before.items():
            if value is None:
                del os.environ[key]
            else:
                os.environ[key] = value


class _Outputs(Sequence[Array]):
    """MXNet's results, each copied to numpy when it is read, so that not all of them are in memory twice."""

    def __init__(self, arrays: Sequence[Any]) -> None:
        self._arrays = arrays

    def __len__(self) -> int:
        return len(self._arrays)

    def __getitem__(self, index: Any) -> Any:
        found = self._arrays[index]
        return [a.asnumpy() for a in found] if isinstance(index, slice) else found.asnumpy()


def _describe(shapes: Mapping[str, tuple[tuple[int, ...], Any]]) -> str:
    return ", ".join(f"{name!r} {dtype}{list(shape)}" for name, (shape, dtype) in shapes.items())


def _to_ndarray(value: Array) -> Any:
    return mx.nd.array(value, dtype=value.dtype)


def to_symbol(graph: Graph) -> Any:
    """MXNet's symbol of ``graph``.

    Raises:
        RuntimeFailure: MXNet refuses it.
    """
    with _mxnet_says("MXNet refuses the graph"):
        return mx.sym.load_json(write_symbol(graph))


# ---- blocks and files out ------------------------------------------------------------------------------------


def to_arrays(table: Mapping[str, Array]) -> dict[str, Any]:
    """The same table with MXNet's arrays."""
    return {name: _to_ndarray(value) for name, value in table.items()}


def write_pair(model: Model, prefix: Path) -> tuple[Path, Path]:
    """Writes ``prefix-symbol.json`` and ``prefix-0000.params``; each appears whole or not at all.

    Raises:
        FormatError: the directory does not exist or cannot be written.
    """
    symbol, params = (prefix.parent / f"{prefix.name}{end}" for end in ("-symbol.json", "-0000.params"))
    table = {f"arg:{k}": v for k, v in to_arrays(model.args).items()}
    table |= {f"aux:{k}": v for k, v in to_arrays(model.auxs).items()}
    sym = to_symbol(model.graph)
    try:
        with tempfile.TemporaryDirectory(dir=prefix.parent, prefix=".mxq-") as folder:
            temporary = Path(folder)
            sym.save(str(temporary / "symbol"))
            mx.nd.save(str(temporary / "params"), table)
            (temporary / "params").replace(params)
            (temporary / "symbol").replace(symbol)
    except OSError as error:
        raise FormatError(f"cannot write {str(symbol)!r}: {error.strerror}") from error
    return symbol, params


def read_block(prefix: Path, epoch: int | None = None) -> Any:
    """The pair as a SymbolBlock.

    Raises:
        FormatError: see `load_model`.
    """
    return to_block(_from_prefix(prefix, epoch))


class QuantizedBlock(mx.gluon.SymbolBlock):  # type: ignore[misc]  # MXNet is untyped
    """A SymbolBlock whose ``export`` writes the parameters also before it has run once.

    Stock ``SymbolBlock.export`` then writes a parameter file without parameters, and says nothing.
    """

    def export(self, path: str, epoch: int = 0, remove_amp_cast: bool = True) -> Any:
        """As `HybridBlock.export`: writes ``path-symbol.json`` and ``path-NNNN.params``."""
        if not self._cached_op_args:
            self._build_cache()
        return super().export(path, epoch, remove_amp_cast)


def to_block(model: Model) -> Any:
    """A hybridizable block of ``model``, with the parameters read from a file as users of the written pair do."""
    with tempfile.TemporaryDirectory(prefix="mxq-") as folder:
        _, params = write_pair(model, Path(folder) / "net")
        with _mxnet_says("MXNet cannot load what was written"), warnings.catch_warnings():
            # An int8 graph does not fix its input's type, which is float32 unless the caller feeds integers.
            warnings.filterwarnings("ignore", "Cannot decide type")
            block = QuantizedBlock(to_symbol(model.graph), [mx.sym.var(name) for name in model.inputs])
            block.collect_params().load(str(params), ctx=mx.cpu(), cast_dtype=True, dtype_source="saved")
    return block


def versions() -> dict[str, str]:
    """Versions that a result depends on."""
    return {
        "mxq": __version__,
        "mxnet": mx.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
    }


def features() -> dict[str, bool]:
    """MXNet's build features that matter here."""
    found = mx.runtime.Features()
    return {name: found.is_enabled(name) for name in ("MKLDNN", "OPENMP", "INT64_TENSOR_SIZE")}


def quiet_environment() -> None:
    """Stops MXNet from reporting each bind on stderr; what the user set stays."""
    os.environ.setdefault("MXNET_SUBGRAPH_VERBOSE", "0")


def symbol_json(model: Model) -> dict[str, Any]:
    """The model's symbol as MXNet itself writes it."""
    result: dict[str, Any] = json.loads(to_symbol(model.graph).tojson())
    return result
