"""Loads pairs in every way that stock MXNet has, and runs them: ``python stock_loaders.py PREFIX...``, without mxq.

Beside each pair lies ``PREFIX-feeds.npz``, its inputs in order. Writes ``PREFIX-LOADER.npz`` with the outputs, or
``PREFIX-LOADER.txt`` with the error. `test_loaders` compares them with those of mxq.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

for name, kind in {"bool": bool, "int": int, "float": float, "object": object, "complex": complex, "str": str}.items():
    setattr(np, name, kind)  # numpy 1.24 removed them, MXNet reads them
sys.modules["mxq"] = None  # type: ignore[assignment]  # importing it would fail

import mxnet as mx  # noqa: E402

Feeds = Mapping[str, np.ndarray]
LIB, check = mx.base._LIB, mx.base.check_call  # noqa: SLF001  (MXNet has no Python form of its C predict API)
TYPE_FLAGS = {"float32": 0, "uint8": 3, "int8": 5}


def arrays(feeds: Feeds) -> dict[str, Any]:
    return {name: mx.nd.array(value, dtype=value.dtype) for name, value in feeds.items()}


def block(prefix: str, feeds: Feeds, **how: bool) -> Any:
    net = mx.gluon.SymbolBlock.imports(f"{prefix}-symbol.json", list(feeds), f"{prefix}-0000.params")
    net.hybridize(**how)
    net(*arrays(feeds).values())
    return net(*arrays(feeds).values())


def static_block(prefix: str, feeds: Feeds) -> Any:
    return block(prefix, feeds, static_alloc=True, static_shape=True)


def module(prefix: str, feeds: Feeds) -> Any:
    return forward(mx.mod.Module.load(prefix, 0, data_names=list(feeds), label_names=None), feeds)


def module_of_checkpoint(prefix: str, feeds: Feeds) -> Any:
    sym, args, auxs = mx.model.load_checkpoint(prefix, 0)
    return forward(mx.mod.Module(sym, data_names=list(feeds), label_names=None), feeds, (args, auxs))


def forward(made: Any, feeds: Feeds, params: Sequence[Any] = ()) -> Any:
    made.bind(for_training=False, data_shapes=[mx.io.DataDesc(n, v.shape, v.dtype) for n, v in feeds.items()])
    if params:
        made.set_params(*params)
    made.forward(mx.io.DataBatch(list(arrays(feeds).values())), is_train=False)
    return made.get_outputs()


def simple_bind(prefix: str, feeds: Feeds) -> Any:
    sym, args, auxs = mx.model.load_checkpoint(prefix, 0)
    executor = sym.simple_bind(mx.cpu(), grad_req="null", **{name: value.shape for name, value in feeds.items()})
    executor.copy_params_from(args, auxs)
    return executor.forward(is_train=False, **arrays(feeds))


def bind(prefix: str, feeds: Feeds, backend: str = "") -> Any:
    sym, args, auxs = mx.model.load_checkpoint(prefix, 0)
    sym = sym.get_backend_symbol(backend) if backend else sym
    return sym.bind(mx.cpu(), {**args, **arrays(feeds)}, aux_states=auxs, grad_req="null").forward(is_train=False)


def backend_symbol(prefix: str, feeds: Feeds) -> Any:
    return bind(prefix, feeds, "MKLDNN")


def backend_symbol_for_int8(prefix: str, feeds: Feeds) -> Any:
    """The last step of what MXNet's users know (``mxnet.contrib.quantization``)."""
    return bind(prefix, feeds, "MKLDNN_QUANTIZE")


def feed_forward(prefix: str, feeds: Feeds) -> Any:
    examples = len(next(iter(feeds.values())))
    return mx.model.FeedForward.load(prefix, 0).predict(mx.io.NDArrayIter(dict(feeds), batch_size=examples))


def c_predict(prefix: str, feeds: Feeds) -> Any:
    """``c_predict_api.h``, which takes every input for float32 unless told."""
    handle = ctypes.c_void_p()
    symbol, params = (Path(f"{prefix}{end}").read_bytes() for end in ("-symbol.json", "-0000.params"))
    names = (ctypes.c_char_p * len(feeds))(*(name.encode() for name in feeds))
    ends = np.cumsum([0, *(value.ndim for value in feeds.values())]).tolist()
    sides = [side for value in feeds.values() for side in value.shape]
    shapes = (ctypes.c_uint * len(ends))(*ends), (ctypes.c_uint * len(sides))(*sides)
    types = (ctypes.c_int * len(feeds))(*(TYPE_FLAGS[str(value.dtype)] for value in feeds.values()))
    count = len(feeds)
    given = (symbol, params, len(params), 1, 0, count, names, *shapes)
    if any(types):
        check(LIB.MXPredCreateEx(*given, count, names, types, ctypes.byref(handle)))
    else:
        check(LIB.MXPredCreate(*given, ctypes.byref(handle)))
    for name, value in feeds.items():
        check(LIB.MXPredSetInput(handle, name.encode(), pointer(value), ctypes.c_uint(value.size)))
    check(LIB.MXPredForward(handle))
    found = [c_output(handle, i) for i in range(len(mx.sym.load(f"{prefix}-symbol.json").list_outputs()))]
    check(LIB.MXPredFree(handle))
    return found


def c_output(handle: ctypes.c_void_p, index: int) -> np.ndarray:
    sides, rank = ctypes.POINTER(ctypes.c_uint)(), ctypes.c_uint()
    check(LIB.MXPredGetOutputShape(handle, index, ctypes.byref(sides), ctypes.byref(rank)))
    value = np.zeros(sides[: rank.value], np.float32)
    check(LIB.MXPredGetOutput(handle, index, pointer(value), ctypes.c_uint(value.size)))
    return value


def pointer(value: np.ndarray) -> Any:
    return np.ascontiguousarray(value).ctypes.data_as(ctypes.POINTER(ctypes.c_float))


LOADERS = (
    block, static_block, module, module_of_checkpoint, simple_bind, bind, backend_symbol, backend_symbol_for_int8,
    feed_forward, c_predict,
)  # fmt: skip


def main(prefixes: Sequence[str]) -> None:
    for prefix in prefixes:
        with np.load(f"{prefix}-feeds.npz") as file:
            feeds = {key: np.ascontiguousarray(file[key]) for key in file.files}
        for loader in LOADERS:
            try:
                found = loader(prefix, feeds)
                outputs = found if isinstance(found, list | tuple) else [found]
                values = [np.asarray(o.asnumpy() if hasattr(o, "asnumpy") else o) for o in outputs]
            except Exception as error:
                Path(f"{prefix}-{loader.__name__}.txt").write_text(f"{type(error).__name__}: {error}", encoding="utf-8")
            else:
                np.savez(f"{prefix}-{loader.__name__}.npz", *values)


if __name__ == "__main__":
    main(sys.argv[1:])
