"""The shape and type of every tensor of a network, by MXNet's own inference, for one batch size or for all."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from math import prod
from types import MappingProxyType
from typing import Any, Final, TypeAlias

import numpy as np

from mxq.errors import ConfigError, RuntimeFailure
from mxq.graph.ir import Graph, Model, Ref
from mxq.graph.tensors import Open, Shape, Tensor, affine
from mxq.graph.traits import traits_of
from mxq.operators.limits import is_of_numpy
from mxq.runtime.mxnet import mx, mxnet_says, to_symbol

MORE: Final = 64
"""Pixels that pictures are higher or wider by, where any size is to do; networks halve sizes up to five times."""
PROBES: Final = (2, 3, 4, 6)
"""Batch sizes that are tried where any is to do; not 1, which broadcasts."""


def tensors_of(
    model: Model,
    shapes: Mapping[str, Sequence[int]],
    batch: int | None = None,
    pictures: Mapping[str, tuple[int, int]] = MappingProxyType({}),
) -> dict[Ref, Tensor]:
    """What every tensor is that an operator reads or makes, or the network gives.

    Args:
        model: the network.
        shapes: input -> shape of one example, without the batch.
        batch: examples to a batch; None: any number, which sides of shapes then follow.
        pictures: input -> the axes of an example that are height and width, where these are to be of any size.

    Raises:
        ConfigError: the network does not work with batches, or pictures, of any size.
        RuntimeFailure: it does not work with these shapes at all.
    """
    graph = model.graph
    every = [*(r for n in graph.operators for r in (*n.inputs, n.out)), *graph.heads]
    refs = tuple(dict.fromkeys(Ref(r.name, r.output) for r in every))
    symbol = to_symbol(Graph(graph.nodes, refs, graph.attrs))
    with _semantics(model):
        types = _types(symbol, model)
        infer = partial(_at, symbol, refs, model)
        found = _probed(partial(infer, shapes), shapes) if batch is None else [infer(shapes, batch)]
        resized = _resized(infer, shapes, pictures, PROBES[0] if batch is None else batch)
    if batch is None:
        sides = [_shape(model, ref, each) for ref, each in zip(refs, zip(*found, strict=True), strict=True)]
    else:
        sides = [*found[0]]
    base = next((tuple(shapes[name][axis] for axis in axes) for name, axes in pictures.items()), (0, 0))
    sides = [_opened(shape, now, other, base) for shape, now, other in zip(sides, found[0], resized, strict=True)]
    return {ref: Tensor(shape, dtype) for ref, shape, dtype in zip(refs, sides, types, strict=True)}


Inferred: TypeAlias = Sequence[tuple[int, ...]]
"""Shapes, one for each tensor."""


def _resized(
    infer: Callable[[Mapping[str, Sequence[int]], int], Inferred],
    shapes: Mapping[str, Sequence[int]],
    pictures: Mapping[str, tuple[int, int]],
    batch: int,
) -> list[tuple[tuple[int, ...], ...]]:
    """The shapes of each tensor for pictures that are higher, wider, or both.

    Raises:
        ConfigError: the network does not take these.
    """
    if not pictures:
        return [() for _ in infer(shapes, batch)]
    found = []
    for higher, wider in ((MORE, 0), (0, MORE), (MORE, MORE)):
        other = {name: [*shape] for name, shape in shapes.items()}
        for name, (height, width) in pictures.items():
            other[name][height] += higher
            other[name][width] += wider
        try:
            found.append(infer(other, batch))
        except RuntimeFailure as failure:
            raise ConfigError(
                f"pictures of any size do not fit the network: {failure}; allowed: one size, without dynamic_size"
            ) from None
    return [*zip(*found, strict=True)]


def _opened(shape: Shape, now: tuple[int, ...], resized: Sequence[tuple[int, ...]], base: tuple[int, ...]) -> Shape:
    """``shape`` with those sides open that differ from ``now`` for pictures of other sizes than ``base``."""
    if not resized:
        return shape
    changes = zip(*([size - was for size, was in zip(other, now, strict=True)] for other in resized), strict=True)
    return tuple(
        side if not any(change) else _open(was, change, base)
        for side, was, change in zip(shape, now, changes, strict=True)
    )


def _open(now: int, change: tuple[int, ...], base: tuple[int, ...]) -> Open:
    """Sides that are equal for all sizes that were tried count as equal."""
    for kind, of, size in (("height", (MORE, 0, MORE), base[0]), ("width", (0, MORE, MORE), base[1])):
        if change == of:
            return Open(kind if now == size else f"{kind}{now - size:+d}")
    return Open(f"size_{now}_{'_'.join(map(str, change))}")


def _probed(
    at: Callable[[int], list[tuple[int, ...]]], shapes: Mapping[str, Sequence[int]]
) -> list[list[tuple[int, ...]]]:
    """What ``at`` gives for each of `PROBES`.

    Raises:
        ConfigError: for some of them nothing, or for none of them, not even for one example.
    """
    found, failures = list[list[tuple[int, ...]]](), list[RuntimeFailure]()
    for size in PROBES:
        try:
            found.append(at(size))
        except RuntimeFailure as failure:
            failures.append(failure)
    if not failures:
        return found
    if found or _works(at, 1):
        raise ConfigError(f"batches of any size do not fit the network: {failures[0]}; give one batch_size")
    listed = ", ".join(f"{name!r} {'x'.join(map(str, shape))}" for name, shape in shapes.items())
    raise ConfigError(
        f"the network does not take examples of {listed}: {failures[0]}; allowed: an input_shape that it takes; where "
        "it is made for batches of one size alone, give that batch_size"
    )


def _works(at: Callable[[int], object], batch: int) -> bool:
    try:
        at(batch)
    except RuntimeFailure:
        return False
    return True


@contextmanager
def _semantics(model: Model) -> Iterator[None]:
    """Numpy's shapes where an operator asks for them: elsewhere MXNet says () of what it does not know, too."""
    if not any(is_of_numpy(node.op) for node in model.graph.operators):
        yield
        return
    with mx.util.np_shape(active=True):
        yield


def _types(symbol: Any, model: Model) -> list[str]:
    given = {name: value.dtype for name, value in {**model.args, **model.auxs}.items()}
    given |= {name: np.dtype(model.graph[name].input_dtype) for name in model.inputs}
    names = set(symbol.list_inputs())
    with mxnet_says("MXNet cannot infer types"):
        _, found, _ = symbol.infer_type_partial(**{k: v for k, v in given.items() if k in names})
    return [np.dtype(each or np.float32).name for each in found]


def _at(
    symbol: Any, refs: Sequence[Ref], model: Model, shapes: Mapping[str, Sequence[int]], batch: int
) -> list[tuple[int, ...]]:
    given = {name: value.shape for name, value in {**model.args, **model.auxs}.items()}
    given |= {name: (batch, *shapes[name]) for name in model.inputs}
    names = set(symbol.list_inputs())
    with mxnet_says(f"MXNet cannot infer shapes for batches of {batch}"):
        # infer_shape itself would print all shapes where it fails
        _, found, _ = symbol._infer_shape_impl(False, **{k: v for k, v in given.items() if k in names})  # noqa: SLF001
    known = dict(zip(refs, found or (), strict=bool(found)))
    for node in model.graph.operators:
        made = known.get(node.out)
        if made is None:
            raise RuntimeFailure(f"MXNet cannot tell the shape that {node.name!r} ({node.op}) makes of batches")
        if traits_of(node).keeps_order and prod(read := known[Ref(node.inputs[0].name, node.inputs[0].output)]) != prod(
            made
        ):
            raise RuntimeFailure(  # MXNet does not look
                f"{node.name!r} ({node.op}) would make {list(made)} of {list(read)} for batches of {batch}"
            )
    return list(found)


def _shape(model: Model, ref: Ref, found: Sequence[tuple[int, ...]]) -> Shape:
    """The shape of a tensor from those that it has at the batch sizes of `PROBES`."""
    sides = [affine(PROBES, sizes) for sizes in zip(*found, strict=True)] if len({*map(len, found)}) == 1 else [None]
    shape = tuple(side for side in sides if side is not None)
    if len(shape) == len(sides):
        return shape
    node = model.graph[ref.name]
    seen = ", ".join(f"{list(shape)} of {batch}" for shape, batch in zip(found, PROBES, strict=True))
    raise ConfigError(
        f"batches of any size do not fit the network: {node.name!r} ({node.op}) makes {seen} examples; give one "
        "batch_size"
    )
