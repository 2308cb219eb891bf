"""A batch as a network is fed it, and what of it counts examples."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from mxq.errors import DataError

Array = NDArray[Any]
INTEGERS: Final = ("uint8", "int8", "int32", "int64")
"""The types of integers that MXNet has."""


class Feed(dict[str, Array]):
    """A batch, ``{input name: array}``.

    Attributes:
        examples: how many examples it holds.
        axes: along which axis each array counts them; None where nothing says so, and the batch cannot be cut.
    """

    __slots__ = ("axes", "examples")

    def __init__(self, arrays: Mapping[str, Array], examples: int, axes: Mapping[str, int] | None) -> None:
        super().__init__(arrays)
        self.examples, self.axes = examples, axes

    def __reduce__(self) -> tuple[Any, ...]:
        return Feed, (dict(self), self.examples, self.axes)

    def only(self, names: Iterable[str]) -> Feed:
        """The same examples of the arrays ``names``."""
        axes = None if self.axes is None else {name: self.axes[name] for name in names}
        return Feed({name: self[name] for name in names}, self.examples, axes)

    def with_arrays(self, arrays: Mapping[str, Array]) -> Feed:
        """The same examples with more ``arrays``, which count them along their first axis."""
        axes = None if self.axes is None else {**self.axes, **dict.fromkeys(arrays, 0)}
        return Feed({**self, **arrays}, self.examples, axes)


def examples_in(feed: Mapping[str, Array]) -> int:
    """The number of examples in a batch: what it says, or the length of its first array."""
    return feed.examples if isinstance(feed, Feed) else len(next(iter(feed.values())))


def example_axes(feed: Mapping[str, Array]) -> Mapping[str, int] | None:
    """Along which axis each array of a batch counts examples, see `Feed`.

    Where it is none, the first one if that is equally long in all.
    """
    if isinstance(feed, Feed):
        return feed.axes
    return dict.fromkeys(feed, 0) if len({len(array) for array in feed.values()}) == 1 else None


def taken(feed: Mapping[str, Array], places: slice | Sequence[int] | Array) -> Feed:
    """Some examples of a batch, in the order of ``places``; all of it where it cannot be cut."""
    axes = example_axes(feed)
    if axes is None:
        return feed if isinstance(feed, Feed) else Feed(feed, examples_in(feed), None)
    arrays = {name: array[(slice(None),) * axes[name] + (places,)] for name, array in feed.items()}
    return Feed(arrays, len(np.arange(examples_in(feed))[places]), axes)


def made(given: Mapping[str, object], axes_said: Mapping[str, int | None], pad: int) -> Feed:
    """A batch of arrays, without its last ``pad`` examples.

    Args:
        given: an array for each input.
        axes_said: along which axis arrays count examples, where a DataIter says so.
        pad: examples that repeat others.
    """
    arrays = {name: _array(name, value) for name, value in given.items()}
    axes = {name: axes_said.get(name, 0) for name in arrays}
    sizes = {a.shape[axis] for n, a in arrays.items() if (axis := axes[n]) is not None and axis < a.ndim}
    known = {name: axis for name, axis in axes.items() if axis is not None and axis < arrays[name].ndim}
    if len(known) < len(arrays) or len(sizes) != 1:
        return Feed(arrays, _common_size(list(arrays.values())), None)
    feed = Feed(arrays, sizes.pop(), known)
    if pad >= feed.examples:
        raise DataError(f"all of its {feed.examples} examples are padding")
    return taken(feed, slice(feed.examples - pad)) if pad else feed


def segmented(feed: Feed, ranks: Mapping[str, int]) -> Feed:
    """A batch of (N, segments, ...) as one of N x segments examples, where a network takes an axis less.

    Loaders of videos give such batches, and ``mxnet.contrib.quantization`` takes them so (``_DataIterWrapper``).

    Args:
        feed: a batch.
        ranks: input -> how many axes the network takes, where its graph tells.
    """
    deeper = [name for name, array in feed.items() if array.ndim == ranks.get(name, array.ndim) + 1]
    if not deeper:
        return feed
    arrays = {name: a.reshape(-1, *a.shape[2:]) if name in deeper else a for name, a in feed.items()}
    same = len({len(array) for array in arrays.values()}) == 1
    return Feed(arrays, len(arrays[deeper[0]]), dict.fromkeys(arrays, 0) if same else None)


def _common_size(arrays: Sequence[Array]) -> int:
    """A size that all arrays have along some axis, the first array's first one before others: (T, N, C), (L, N, H)."""
    first = arrays[0].shape
    return next((n for n in first if all(n in array.shape for array in arrays)), first[0])


def _array(name: str, value: Any) -> Array:
    """``value`` as numpy: float32, or a type of integers that MXNet has as it is."""
    if not is_array(value):
        raise DataError(f"input {name!r} is {described(value)}; allowed: an array of numpy or MXNet")
    array: Array = value if isinstance(value, np.ndarray) else value.asnumpy()
    if array.dtype.kind != "f" and array.dtype.name not in INTEGERS:
        raise DataError(f"input {name!r} has dtype {array.dtype}; allowed: floats, {', '.join(INTEGERS)}")
    if array.ndim == 0:
        raise DataError(f"input {name!r} has rank 0; allowed: rank 1 or more, the first axis counting examples")
    if array.size == 0:
        raise DataError(f"input {name!r} holds no examples; its shape is {array.shape}")
    return array.astype(np.float32, copy=False) if array.dtype.kind == "f" else array


def check_ranks(feed: Feed, ranks: dict[str, int]) -> None:
    """Ranks must stay what the first batch made them."""
    for name, array in feed.items():
        if ranks.setdefault(name, array.ndim) != array.ndim:
            raise DataError(f"input {name!r} has rank {array.ndim}; the batches before it had rank {ranks[name]}")


def is_array(value: object) -> bool:
    """Whether it is an array of numpy or of MXNet."""
    return isinstance(value, np.ndarray) or hasattr(value, "asnumpy")


def flattened(items: Iterable[object]) -> Iterator[object]:
    """What is in lists and tuples within lists and tuples, in order, but for None."""
    for item in items:
        if isinstance(item, list | tuple):
            yield from flattened(item)
        elif item is not None:
            yield item


def described(value: object) -> str:
    text = repr(value) if isinstance(value, str | bytes | int | float) or value is None else ""
    return f"{type(value).__name__} {text[:60]}".rstrip()


def check_finite(feed: Feed, where: str) -> None:
    """Refuses inputs that are not finite. A clip may make numbers of them, and nobody would be told.

    Raises:
        DataError: names the input.
    """
    for name, value in feed.items():
        wrong = value.size - np.count_nonzero(np.isfinite(value))
        if wrong:
            raise DataError(
                f"{where}: {wrong} of {value.size} values of {name!r} are not finite; allowed: no NaN, no Inf"
            )
