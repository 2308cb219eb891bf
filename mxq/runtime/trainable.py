"""A `Model` as a block that trains, and what it has learned."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Mapping
from typing import Any

from mxq.graph.ir import Array, Model
from mxq.runtime.mxnet import mx, mxnet_says, of_mode, to_arrays, to_numpy, to_symbol, variable


class TrainableBlock(mx.gluon.SymbolBlock):  # type: ignore[misc]  # MXNet is untyped
    """A hybridizable block for `autograd.record` and a ``gluon.Trainer``, on its own or within another block.

    Attributes:
        qat: the `mxq.qat.QatNetwork` that it was made of, with the values that training began with.
    """

    qat: Any

    @property
    def trained(self) -> dict[str, Array]:
        """The values that its parameters have now, by name: copies."""
        mx.nd.waitall()
        return {name: to_numpy(parameter.data()) for name, parameter in self.collect_params().items()}

    def assign(self, values: Mapping[str, Array]) -> None:
        """Gives parameters, by name, other values.

        Raises:
            RuntimeFailure: MXNet refuses one, as of another shape.
        """
        found = self.collect_params()
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
    return block
