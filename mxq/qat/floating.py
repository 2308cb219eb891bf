"""A float network as a block that trains: what training alone brings, to hold training with quantization against."""

from __future__ import annotations

from mxq import runtime
from mxq.errors import QuantizeError
from mxq.graph.ir import Model, Node
from mxq.passes.simplify import DONE, OwnName, check_float
from mxq.qat.folding import in_training
from mxq.qat.network import softmax_head, with_head
from mxq.rewrite import apply_rules


def float_block(net: runtime.Net) -> runtime.TrainableBlock:
    """A block of ``net`` that trains as `mxq.qat.prepare`'s does, without quantization.

    BatchNorms use the batch's statistics while it trains, and a softmax at the end is left out.

    Raises:
        QuantizeError: the network is quantized, or has no parameters.
    """
    source, head = trainable(runtime.load_model(net))
    source = in_training(source)
    block = runtime.trainable_block(source, constant=frozenset(source.auxs), undecayed=())
    block.head = head
    return block


def written(block: runtime.TrainableBlock) -> Model:
    """The network of a `float_block` as it is now, its softmax at its place."""
    return with_head(runtime.load_model(block), getattr(block, "head", ()))


def trainable(model: Model) -> tuple[Model, tuple[Node, ...]]:
    """What trains of a network, and the softmax that follows it, or nothing.

    Raises:
        QuantizeError: the network is quantized, trains with quantization already, or has no parameters.
    """
    check_float(model, "a float network")
    refusal = DONE.check(model)
    if refusal is not None:
        raise QuantizeError(
            f"the network trains with quantization already: {refusal.reason}; allowed: the float network that it was "
            "made of"
        )
    if not model.args:
        raise QuantizeError("the network has no parameters, so there is nothing to train; allowed: a trained network")
    return softmax_head(apply_rules(model, (OwnName(),), "own_names")[0])
