"""ReLU by saturation: an int8 BatchNorm whose lowest code is the zero of the ReLU after it.

Before:  x -> BatchNorm -> y in [-m, m] -> relu -> z in codes 0..127 -> conv1x1(w, b)
After:   x -> BatchNorm(beta - c) -> z - c in codes -128..127 -> conv1x1(w, b + c sum(w))

The stock int8 BatchNorm and int8 ReLU write s8 (``mkldnn_quantized_batch_norm.cc``, ``mkldnn_quantized_act.cc``), so
that a ReLU leaves half of the codes unused, and each passes over the tensor. Written with c = 128 steps less, what is
below zero saturates at code -128, which then means zero: one operator less and one bit more, as if the tensor were u8.

Conditions: BatchNorm and ReLU become int8, nothing else reads between them, and beta is BatchNorm's alone. What reads
the ReLU is int8 convolutions without padding (which would be zeros, in this code c), most of them 1x1, each with a bias
that is its own or none; poolings without padding may lie between, as they keep the offset.
Formula (`mxq.quant.records`): step s = max(z) / 255.5, as of u8; c = 128 s; codes q = z / s - 128; and
sum_i w_i z_i + b = sum_i w_i (s q_i) + b + c sum_i w_i, w as the kernel rounds it.
"""

from __future__ import annotations

from collections.abc import Collection

from mxq.backends import BackendSpec, layer_of
from mxq.graph.ir import Model, Node, Ref
from mxq.passes.biases import has_bias
from mxq.passes.shapes import is_global_pooling, pads

RELU = "Activation"


def absorbed_relus(model: Model, quantized: Collection[str], spec: BackendSpec) -> dict[str, str]:
    """Of each ReLU that is done by saturation, the BatchNorm that does it, by name.

    Args:
        model: fused, float.
        quantized: names of the nodes that become int8.
        spec: says whose codes may saturate so (`OpSpec.absorbs`).
    """
    found = {}
    for node in model.graph.operators:
        if node.op == RELU and node.name in quantized:
            norm = model.graph[node.inputs[0].name]
            row = spec.find(norm.op)
            absorbed = row is not None and node.attrs.get("act_type") in row.absorbs and norm.name in quantized
            if absorbed and _alone(model, norm, node) and _stands_offset(model, node, quantized):
                found[node.name] = norm.name
    return found


def _alone(model: Model, norm: Node, relu: Node) -> bool:
    """Whether ``norm``, a BatchNorm, serves ``relu`` alone, its beta too."""
    if relu.inputs[0].output or norm.name in model.graph.head_names:
        return False
    return model.graph.consumers[norm.name] == (relu,) and model.is_own(norm.inputs[2].name)


def _stands_offset(model: Model, node: Node, quantized: Collection[str]) -> bool:
    """Whether all that reads ``node`` is right if a constant is added to it, or can be made so."""
    readers = model.graph.consumers[node.name]
    if not readers or node.name in model.graph.head_names:
        return False
    return all(r.name in quantized and _reads_offset(model, r, node.out, quantized) for r in readers)


def _reads_offset(model: Model, reader: Node, ref: Ref, quantized: Collection[str]) -> bool:
    if reader.inputs.count(ref) != 1 or reader.inputs[0] != ref:
        return False
    if reader.op == "Pooling":
        inside = not pads(reader) and reader.attrs.get("pooling_convention", "valid") == "valid"
        return (inside or is_global_pooling(reader)) and _stands_offset(model, reader, quantized)
    layer = layer_of(reader)
    if layer is None or layer.op != "Convolution" or pads(layer):
        return False
    return not has_bias(reader) or model.is_own(reader.inputs[2].name)
