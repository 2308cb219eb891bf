"""Sums and the like under other names: what becomes elementwise, what does not, and what is known of shapes."""

from __future__ import annotations

import numpy as np
import pytest
from graphs import (
    CONV1,
    RELU,
    assert_same_outputs,
    build,
    conv,
    fc,
    graph,
    op_names,
    quantized,
    refusals,
    rewritten,
    run,
)

from mxq.graph.ir import VARIABLE, Graph, Model, Node, Ref
from mxq.numerics import sqnr_db
from mxq.passes.same_shape import Side, Whole, shapes_of
from mxq.passes.simplify import SIMPLIFY
from mxq.runtime import to_symbol

EXACT = {"rtol": 0, "atol": 0}
STEM = (conv("a", "data"), "ra = Activation(a) " + RELU)
NOT_SHOWN = "nothing shows that both of its operands have one shape"


def residual(total: str) -> tuple[str, ...]:
    return (*STEM, conv("b", "ra"), total, "r = Activation(s) " + RELU, conv("e", "r"), "return e")


@pytest.mark.parametrize(
    "total",
    ["s = broadcast_add(b, ra)", "s = broadcast_add(ra, b)", 's = add_n(b, ra) num_args="2"', "s = _grad_add(b, ra)"],
)
def test_every_sum_is_fused(total: str) -> None:
    model, plain = build(*residual(total)), build(*residual("s = elemwise_add(b, ra)"))
    made = quantized(model)
    assert made.report.plan["r"].op == "Convolution+elemwise_add+Activation"
    assert [n.op for n in made.model.graph] == [n.op for n in quantized(plain).model.graph]
    np.testing.assert_array_equal(run(made.model)[0], run(quantized(plain).model)[0])
    assert sqnr_db(run(model)[0], run(made.model)[0]) > 25


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("broadcast_add", "elemwise_add"), ("broadcast_sub", "elemwise_sub"), ("broadcast_mul", "elemwise_mul"),
        ("broadcast_div", "elemwise_div"), ("broadcast_maximum", "_maximum"), ("broadcast_minimum", "_minimum"),
        ("_grad_add", "elemwise_add"),
    ],
)  # fmt: skip
def test_others_of_one_shape(before: str, after: str) -> None:
    model = build(*STEM, conv("b", "ra"), f"s = {before}(b, ra)", "return s")
    result = rewritten(SIMPLIFY, model)
    assert op_names(result)[-1] == after
    assert_same_outputs(model, result, **EXACT)
    assert rewritten(SIMPLIFY, result) is result


def test_a_sum_of_one_goes() -> None:
    model = build(*STEM, 's = add_n(ra) num_args="1"', conv("b", "s"), "return b")
    result = rewritten(SIMPLIFY, model)
    assert "s" not in result.graph
    assert_same_outputs(model, result, **EXACT)


@pytest.mark.parametrize(
    "lines",
    [
        (*STEM, 'p = Pooling(ra) kernel="(1, 1)" pool_type="avg" global_pool="True"', "s = broadcast_add(ra, p)"),
        (*STEM, "s = broadcast_add(ra, bias)"),
        (*STEM, "s = broadcast_add(ra, data)"),  # the channels of the input are not known
        (*STEM, 't = slice_axis(ra) axis="0" begin="0" end="1"', "s = broadcast_add(ra, t)"),
        (*STEM, conv("b", "ra", 'kernel="(6, 6)" num_filter="8"'), "s = broadcast_add(ra, b)"),
        (*STEM, conv("b", "ra", 'kernel="(1, 1)" num_filter="1"'), "s = broadcast_add(ra, b)"),
    ],
    ids=["pooled", "parameter", "input", "slice", "smaller", "one channel"],
)
def test_what_may_broadcast_stays(lines: tuple[str, ...]) -> None:
    stated = 'bias = null __shape__="(1, 8, 1, 1)"'
    model = build(stated, *lines, "return s") if "bias" in lines[-1] else build(*lines, "return s")
    assert refusals(SIMPLIFY, model, "of_one_shape") == [NOT_SHOWN]
    plan = quantized(model).report.plan
    assert plan["s"].reason == "MXNet 1.9.1 adds int8 tensors of one shape alone, which nothing shows these to have"


def test_more_than_two_summands_stay() -> None:
    model = build(*STEM, conv("b", "ra"), 's = add_n(a, ra, b) num_args="3"', "return s")
    assert refusals(SIMPLIFY, model, "of_one_shape") == []


class TestShapes:
    def test_of_two_inputs_may_differ(self) -> None:
        shape = (2, 8, 6, 6)
        lines = (conv("a", "x"), conv("b", "y"), "s = broadcast_add(a, b)", "return s")
        assert refusals(SIMPLIFY, build(*lines, x=shape, y=shape), "of_one_shape") == [NOT_SHOWN]

    def test_of_layers(self) -> None:
        made = shapes_of(build(fc("f", "data"), fc("g", "f", 'num_hidden="4" flatten="False"'), "return g"))
        assert made[Ref("f")] == (Side(Ref("data"), 0), 10)
        assert made[Ref("g")] == (Side(Ref("data"), 0), 4)

    def test_of_layers_that_keep_axes(self) -> None:
        keep = 'num_hidden="10" flatten="False"'
        lines = (fc("f", "data", keep), "n = LayerNorm(f, n_gamma, n_beta)", fc("g", "n", keep))
        model = build(*lines, "s = broadcast_add(f, g)", "return s", data=(2, 3, 5))
        assert shapes_of(model)[Ref("s")] == Whole(Ref("data"), 10)
        assert op_names(rewritten(SIMPLIFY, model))[-1] == "elemwise_add"

    def test_with_a_known_input(self) -> None:
        model = build(*STEM, "s = broadcast_add(ra, data)", "return s")
        data = model.graph["data"].noted(input_shape=(8, 6, 6))
        known = model.with_graph(model.graph.replace({"data": (data,)}))
        assert shapes_of(known)[Ref("ra")] == (Side(Ref("data"), 0), 8, 6, 6)
        assert op_names(rewritten(SIMPLIFY, known))[-1] == "elemwise_add"

    @pytest.mark.parametrize("attr", ["stride", "pad"])
    def test_of_windows_that_mxnet_refuses(self, attr: str) -> None:
        pool = Node("p", "Pooling", {"kernel": "(2, 2)", "pool_type": "max", attr: "(1,)"}, (Ref("data"),))
        model = Model(Graph((Node("data", VARIABLE), pool), (Ref("p"),)))
        assert shapes_of(model)[Ref("p")] == Whole(Ref("p"))

    def test_of_a_concat(self) -> None:
        lines = (*STEM, conv("b", "ra", CONV1), 'k = Concat(ra, b) dim="1" num_args="2"')
        made = shapes_of(build(*lines, "return k"))[Ref("k")]
        assert made == (Side(Ref("data"), 0), 16, Side(Ref("data"), 2), Side(Ref("data"), 3))

    @pytest.mark.parametrize("seed", range(20))
    def test_are_those_that_mxnet_infers(self, seed: int) -> None:
        """Chains of convolutions and poolings with any windows, on images of two sizes."""
        rng, lines, last = np.random.default_rng(seed), [], "data"
        for i in range(3):
            kernel, stride, dilate = (tuple(map(int, rng.integers(1, high, 2))) for high in (5, 4, 3))
            pad = tuple(int(rng.integers(0, side)) for side in kernel)
            attrs = f'kernel="{kernel}" stride="{stride}" pad="{pad}"'
            lines.append(
                f'n{i} = Convolution({last}, w{i}) {attrs} dilate="{dilate}" num_filter="3" no_bias="True"'
                if rng.integers(2)
                else f'n{i} = Pooling({last}) {attrs} pooling_convention="{rng.choice(["valid", "full"])}"'
            )
            last = f"n{i}"
        net = graph(*lines, f"return {last}")
        found = shapes_of(Model(net))[Ref(last)]
        assert isinstance(found, tuple)
        for image in ((1, 3, 140, 137), (2, 3, 161, 164)):
            _, (wanted,), _ = to_symbol(net).infer_shape(data=image)
            assert tuple(n if isinstance(n, int) else (image[n.axis] + n.offset) // n.stride for n in found) == wanted
