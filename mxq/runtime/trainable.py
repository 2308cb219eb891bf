"""A `Model` as a block that trains, and what it has learned."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Final

import numpy as np

from mxq.errors import one_of
from mxq.graph.ir import Array, Model
from mxq.runtime.mxnet import mx, mxnet_says, of_mode, to_arrays, to_numpy, to_symbol, variable

KEPT: Final = ("qat", "head")
"""Attributes of a `TrainableBlock` that others set."""
WAYS: Final = ("grad_req", "lr_mult", "wd_mult")
"""What a parameter says of how it trains."""


class TrainableBlock(mx.gluon.SymbolBlock):  # type: ignore[misc]  # MXNet is untyped
    """A hybridizable block for `autograd.record` and a ``gluon.Trainer``, on its own or within another block.

    Attributes:
        qat: the `mxq.qat.QatNetwork` that it was made of, with the values that training began with.
    """

    qat: Any
    _made_of: tuple[Model, Collection[str], Collection[str]]

    def __reduce__(self) -> tuple[Any, ...]:
        """Copies and pickles are made anew: MXNet's objects leave what they have to do with gradients behind."""
        kept = {name: value for name in KEPT if (value := getattr(self, name, None)) is not None}
        ways = {name: [getattr(p, each) for each in WAYS] for name, p in self.collect_params().items()}
        return _again, (*self._made_of, self.trained, ways, kept)

    def cast(self, dtype: Any) -> None:
        """Refuses any type but float32.

        Raises:
            ConfigError: it is another.
        """
        try:
            found = np.dtype(dtype)
        except TypeError:
            raise one_of("dtype", dtype, ("float32",)) from None
        if found != np.float32:
            raise one_of("dtype", found.name, ("float32",))
        super().cast("float32")

    @property
    def trained(self) -> dict[str, Array]:
        """The values that its parameters have now, by name: copies."""
        mx.nd.waitall()
        return {name: to_numpy(parameter.data()) for name, parameter in self.collect_params().items()}

    def assign(self, values: Mapping[str, Array]) -> None:
        """Gives parameters, by name, other values.

        Raises:
            ConfigError: it has no parameter of a name.
            RuntimeFailure: MXNet refuses one, as of another shape.
        """
        found = self.collect_params()
        unknown = next((name for name in values if name not in found), None)
        if unknown is not None:
            raise one_of("parameter", unknown, found)
        with mxnet_says("the parameters do not fit the network"):
            for name, value in values.items():
                found[name].set_data(of_mode(mx.nd.array(value, dtype=value.dtype)))


def trainable_block(model: Model, constant: Collection[str], undecayed: Collection[str]) -> TrainableBlock:
    """A block of ``model``, with its values.

    Args:
        model: what trains.
        constant: names of what gradients do not change.
        undecayed: names of what weight decay does not change, unless their ``wd_mult`` is set again.

    Raises:
        RuntimeFailure: MXNet refuses the graph.
    """
    with mxnet_says("MXNet cannot load what is to be trained"), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Cannot decide type")
        inputs = [variable(name or f"unread{i}") for i, name in enumerate(model.arguments)]
        block = TrainableBlock(of_mode(to_symbol(model.graph)), inputs)
        arrays = {name: of_mode(array) for name, array in to_arrays({**model.args, **model.auxs}).items()}
        found = block.collect_params()
        found.load_dict(arrays, ctx=mx.cpu(), cast_dtype=True, dtype_source="saved")
        for name in constant:
            found[name].grad_req = "null"
        for name in undecayed:
            found[name].wd_mult = 0.0
    block._made_of = model, constant, undecayed  # noqa: SLF001  (MXNet makes blocks of symbols by a call of its own)
    return block


def _again(
    model: Model,
    constant: Collection[str],
    undecayed: Collection[str],
    values: Mapping[str, Array],
    ways: Mapping[str, Sequence[Any]],
    kept: Mapping[str, Any],
) -> TrainableBlock:
    """The block that `TrainableBlock.__reduce__` took apart."""
    block = trainable_block(model, constant, undecayed)
    block.assign(values)
    for name, parameter in block.collect_params().items():
        for way, value in zip(WAYS, ways[name], strict=True):
            setattr(parameter, way, value)
    for name, value in kept.items():
        setattr(block, name, value)
    return block
