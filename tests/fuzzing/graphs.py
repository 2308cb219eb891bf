"""Mutations of symbol JSON: those of any JSON, and those that keep it a graph but make it another one."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Any

from fuzzing.trees import copied, mutated

OPS = (
    *(
        "Convolution",
        "FullyConnected",
        "BatchNorm",
        "Activation",
        "Pooling",
        "Concat",
        "Flatten",
        "elemwise_add",
        "Reshape",
    ),
    *(
        "broadcast_add",
        "broadcast_mul",
        "LeakyReLU",
        "Deconvolution",
        "softmax",
        "SoftmaxOutput",
        "transpose",
        "clip",
        "mean",
    ),
    *(
        "slice_axis",
        "SliceChannel",
        "Dropout",
        "_copy",
        "Embedding",
        "LRN",
        "L2Normalization",
        "UpSampling",
        "Pad",
        "RNN",
    ),
    *(
        "_contrib_quantize_v2",
        "_contrib_dequantize",
        "_contrib_requantize",
        "_contrib_quantized_conv",
        "_sg_mkldnn_conv",
    ),
    *(
        "_sg_mkldnn_fully_connected",
        "_contrib_quantized_pooling",
        "add_n",
        "null",
        "Custom",
        "_np_sum",
        "_contrib_box_nms",
    ),
    *(
        "BlockGrad",
        "expand_dims",
        "squeeze",
        "SequenceMask",
        "take",
        "where",
        "dot",
        "batch_dot",
        "_plus_scalar",
        "nosuch",
    ),
)
NAMES = (
    *(
        "kernel",
        "stride",
        "pad",
        "dilate",
        "num_filter",
        "num_group",
        "no_bias",
        "layout",
        "num_hidden",
        "flatten",
        "axis",
    ),
    *(
        "eps",
        "fix_gamma",
        "act_type",
        "pool_type",
        "global_pool",
        "dim",
        "num_args",
        "shape",
        "p",
        "__shape__",
        "__dtype__",
    ),
    *(
        "__origin__",
        "__route__",
        "__tensor__",
        "__channel_order__",
        "__channel_scale__",
        "__channel_axis__",
        "__offset__",
        "__stride__",
        "__input_place__",
        "__storage_type__",
        "__input_shape__",
        "min_calib_range",
        "max_calib_range",
        "quantized",
        "with_bn",
    ),
    *("with_relu", "with_sum", "out_type", "workspace", "cudnn_off", "num_outputs", "squeeze_axis", "mode", "a_min"),
)
VALUES = (
    *(
        "0",
        "1",
        "-1",
        "2",
        "3",
        "7",
        "64",
        "1000000",
        "2147483647",
        "4294967296",
        "99999999999999999999",
        "1e9",
        "nan",
        "inf",
    ),
    *(
        "()",
        "(0, 0)",
        "(1,)",
        "(1, 1)",
        "(3, 3)",
        "(-1, -1)",
        "(2, 2, 2)",
        "(1, 1",
        "[1, 1]",
        "(1000000, 1000000)",
        "(a, b)",
    ),
    *(
        "None",
        "True",
        "False",
        "true",
        "relu",
        "max",
        "avg",
        "sum",
        "NCHW",
        "NHWC",
        "int8",
        "uint8",
        "float16",
        "0.5",
        "-0.5",
    ),
    *(
        "",
        " ",
        "x",
        "é",
        "\0",
        "1" * 400,
        "(" * 2000,
        "1e-300",
        "(3.5, 3.5)",
        "(0,)",
        "(3,)",
        "(-2,)",
        "1.0",
        "softrelu",
    ),
)
INDICES = (-1, 1, 2, 5, 1000, 2**31, 2**32, -(2**31), 2**63)


def graph_mutated(tree: Any, rng: Random) -> Any:
    """A changed copy of a symbol's JSON object."""
    if not isinstance(tree, dict) or not isinstance(tree.get("nodes"), list) or not tree["nodes"] or rng.random() < 0.2:
        return mutated(tree, rng)
    tree = copied(tree)
    try:
        rng.choice(CHANGES)(tree, rng)
    except (AttributeError, IndexError, KeyError, TypeError, ValueError):  # it is no graph any more
        return mutated(tree, rng)
    return tree


def _operator(tree: Any, rng: Random) -> Any:
    return rng.choice([n for n in tree["nodes"] if n["op"] != "null"])


def _attribute(tree: Any, rng: Random) -> None:
    node = rng.choice(tree["nodes"]) if rng.random() < 0.2 else _operator(tree, rng)
    attrs = node.setdefault("attrs", {})
    name = rng.choice(list(attrs)) if attrs and rng.random() < 0.7 else rng.choice(NAMES)
    attrs[name] = rng.choice(VALUES)


def _lost_attribute(tree: Any, rng: Random) -> None:
    attrs = _operator(tree, rng)["attrs"]
    del attrs[rng.choice(list(attrs))]


def _operation(tree: Any, rng: Random) -> None:
    _operator(tree, rng)["op"] = rng.choice(OPS)


def _reference(tree: Any, rng: Random) -> None:
    """An input or a head of another node, output or version."""
    inputs = rng.choice((_operator(tree, rng)["inputs"], tree["heads"]))
    entry, place = rng.choice(inputs), rng.randrange(3)
    entry[place] = rng.choice((rng.randrange(len(tree["nodes"])) if place == 0 else rng.randrange(4), *INDICES))


def _fewer(tree: Any, rng: Random) -> None:
    node = _operator(tree, rng)
    node["inputs"] = node["inputs"][: rng.randrange(len(node["inputs"]))]


def _more(tree: Any, rng: Random) -> None:
    node = _operator(tree, rng)
    node["inputs"] += [copied(rng.choice(_operator(tree, rng)["inputs"])) for _ in range(rng.randrange(1, 4))]


def _turned(tree: Any, rng: Random) -> None:
    rng.shuffle(_operator(tree, rng)["inputs"])


def _named(tree: Any, rng: Random) -> None:
    rng.choice(tree["nodes"])["name"] = rng.choice(
        (rng.choice(tree["nodes"])["name"], "", "a b", "a:0", "a\0", "arg:x")
    )


def _without(tree: Any, rng: Random) -> None:
    """A node less, all references still to the right ones."""
    gone = rng.randrange(len(tree["nodes"]))
    del tree["nodes"][gone]
    for inputs in (*(n["inputs"] for n in tree["nodes"]), tree["heads"]):
        for entry in inputs:
            entry[0] -= entry[0] > gone
    tree["arg_nodes"] = [i for i, n in enumerate(tree["nodes"]) if n["op"] == "null"]


def _subgraph(tree: Any, rng: Random) -> None:
    inner = {key: copied(tree[key]) for key in ("nodes", "arg_nodes", "heads")}
    _operator(tree, rng)["subgraphs"] = [inner] * rng.randrange(1, 3)


def _within(tree: Any, rng: Random) -> None:
    """A change of a subgraph, where there is one."""
    holders = [n for n in tree["nodes"] if n.get("subgraphs")]
    node = rng.choice(holders)
    node["subgraphs"] = [graph_mutated(s, rng) for s in node["subgraphs"]]


def _long(tree: Any, rng: Random) -> None:
    """A chain of many nodes, for whatever recurses."""
    at = rng.randrange(len(tree["nodes"]))
    name = tree["nodes"][at]["name"]
    for i in range(rng.choice((3, 3, 1200))):
        tree["nodes"].append({"op": "_copy", "name": f"{name}_copy{i}", "inputs": [[at, 0, 0]]})
        at = len(tree["nodes"]) - 1
    tree["heads"] = [[at, 0, 0]]


CHANGES: tuple[Callable[[Any, Random], None], ...] = (
    *(_attribute, _attribute, _attribute, _attribute, _lost_attribute, _operation, _operation, _reference, _reference),
    *(_fewer, _more, _turned, _named, _without, _subgraph, _within, _long),
)
