"""Simplify: what it drops and rewrites, that the numbers stay, and when it refuses."""

from __future__ import annotations

import numpy as np
import pytest
from graphs import (
    GOLDENS,
    RELU,
    applied,
    assert_same_outputs,
    bn,
    build,
    conv,
    graph,
    op_names,
    reasons,
    rewritten,
    run,
)
from helpers import assert_golden

from mxq.errors import GraphError
from mxq.graph.ir import Model, Ref
from mxq.graph.serde import write_text
from mxq.passes.simplify import SIMPLIFY, AsActivation, DropIdentity, ExplicitGamma, UseGlobalStats
from mxq.rewrite import Rewrite, apply_rules, run_pass

EXACT = {"rtol": 0.0, "atol": 0.0}


def everything() -> Model:
    return build(
        'd = Dropout(data) p="0.5"',
        "c = _copy(d)",
        bn("b", "c", 'fix_gamma="True"'),
        "r = relu(b)",
        "g = BlockGrad(r)",
        "m = make_loss(g)",
        "out = exp(m)",
        "return out",
    )


def test_all_rules_together(update_goldens):
    model = everything()
    result, trace = run_pass(SIMPLIFY, model)
    fired = {r: trace.fired(r) for r in ("drop_identity", "use_global_stats", "explicit_gamma", "as_activation")}
    assert fired == {"drop_identity": 4, "use_global_stats": 1, "explicit_gamma": 1, "as_activation": 1}
    assert_golden(write_text(result.graph), GOLDENS / "simplify.txt", update=update_goldens)
    assert_same_outputs(model, result, **EXACT)
    assert rewritten(SIMPLIFY, result) is result


def test_nothing_to_do_returns_the_same_object():
    model = build(conv("c", "data"), "return c")
    assert rewritten(SIMPLIFY, model) is model


class TestDropIdentity:
    @pytest.mark.parametrize(
        "line",
        [
            "i = _copy(a)",
            "i = BlockGrad(a)",
            "i = make_loss(a)",
            "i = MakeLoss(a)",
            'i = Dropout(a) p="0.9"',
            "i = identity(a)",
        ],
    )
    def test_fires(self, line):
        model = build("a = exp(data)", line, "z = sin(i)", "return z")
        result, trace = apply_rules(model, (DropIdentity(),))
        assert trace.fired("drop_identity") == 1
        assert op_names(result) == ["exp", "sin"]
        if "identity" not in line:  # an alias, which MXNet's own JSON never holds
            assert_same_outputs(model, result, **EXACT)

    @pytest.mark.parametrize(
        ("lines", "reason"),
        [
            (("i = _copy(data)", "return i"), "it is an output of the network, whose name must stay"),
            (
                ('i = Dropout(data) p="0.5" mode="always"', "z = exp(i)", "return z"),
                "Dropout in mode 'always' also drops in inference",
            ),
            (('i = Dropout(data) p="0.5"', "z = exp(i:1)", "return z"), "its second output (the mask) is read"),
        ],
    )
    def test_refuses(self, lines, reason):
        model = Model(graph(*lines))
        result, trace = apply_rules(model, (DropIdentity(),))
        assert result is model
        assert reasons(trace, "drop_identity") == [reason]

    def test_dropping_what_computes_is_noticed(self):
        model = build("a = tanh(data)", "z = exp(a)", "return z")
        wrong = model.with_graph(model.graph.replace({"a": ()}, {Ref("a"): Ref("data")}))
        with pytest.raises(AssertionError, match="Not equal"):
            assert_same_outputs(model, wrong, **EXACT)


class TestOwnName:
    @pytest.mark.parametrize(
        ("line", "op"),
        [
            ("y = flatten(a)", "Flatten"),
            ('y = concat(a, a) dim="1" num_args="2"', "Concat"),
            ('y = _MulScalar(a) scalar="2"', "_mul_scalar"),
            ("y = _Plus(a, a)", "elemwise_add"),
            ('y = reshape(a) shape="(0, -1)"', "Reshape"),
            ("y = broadcast_minus(a, a)", "elemwise_sub"),
        ],
    )
    def test_an_alias_gives_way(self, line, op):
        model = build("a = exp(data)", "return a")
        model = model.with_graph(graph("a = exp(data)", line, "return y"))
        assert op_names(rewritten(SIMPLIFY, model)) == ["exp", op]

    def test_numbers_are_those_of_the_operator(self):
        plain = build(conv("c", "data"), "r = relu(c)", "f = Flatten(r)", "return f")
        alias = Model(graph(conv("c", "data"), "r = _sparse_relu(c)", "f = flatten(r)", "return f"), plain.args)
        np.testing.assert_array_equal(run(rewritten(SIMPLIFY, alias))[0], run(plain)[0])


class TestUseGlobalStats:
    model = build(bn("b", "data"), "return b")

    def test_fires(self):
        result, trace = apply_rules(self.model, (UseGlobalStats(),))
        assert trace.fired("use_global_stats") == 1
        assert result.graph["b"].flag("use_global_stats")
        assert_same_outputs(self.model, result, **EXACT)

    @pytest.mark.parametrize(
        ("attrs", "wanted"),
        [
            ('use_global_stats="True"', []),  # nothing to report
            ('output_mean_var="True"', ["its batch mean and variance are outputs"]),
        ],
    )
    def test_refuses(self, attrs, wanted):
        model = build(bn("b", "data", attrs), "return b")
        result, trace = apply_rules(model, (UseGlobalStats(),))
        assert result is model
        assert reasons(trace, "use_global_stats") == wanted

    def test_changing_more_is_noticed(self):
        class Wrong(UseGlobalStats):
            def build(self, model, match):
                return Rewrite({"b": (match.root.with_attrs(use_global_stats="True", fix_gamma="True"),)})

        with pytest.raises(AssertionError, match="Not equal"):
            assert_same_outputs(self.model, applied(self.model, (Wrong(),)), **EXACT)


class TestExplicitGamma:
    fixed = 'fix_gamma="True"'

    def test_fires(self):
        model = build(bn("b", "data", self.fixed), "return b")
        result, trace = apply_rules(model, (ExplicitGamma(),))
        assert trace.fired("explicit_gamma") == 1
        assert not result.graph["b"].flag("fix_gamma", default=True)
        assert np.all(result.args["b_gamma"] == 1)
        assert_same_outputs(model, result, **EXACT)

    def test_fix_gamma_is_the_default(self):
        model = build(bn("b", "data", ""), "return b")
        assert_same_outputs(model, applied(model, (ExplicitGamma(),)), **EXACT)

    def test_refuses_where_done(self):
        model = build(bn("b", "data"), "return b")
        result, trace = apply_rules(model, (ExplicitGamma(),))
        assert result is model
        assert not trace.events

    def test_refuses_where_gamma_is_fed(self):
        made = build(bn("b", "data", self.fixed), "return b")
        model = Model(made.graph, {"b_beta": made.args["b_beta"]}, made.auxs)
        result, trace = apply_rules(model, (ExplicitGamma(),))
        assert result is model
        assert reasons(trace, "explicit_gamma") == ["gamma 'b_gamma' is not a parameter of this node alone"]

    def test_a_gamma_that_another_node_reads_keeps_its_value(self):
        model = build(bn("b", "data", self.fixed), "z = exp(b_gamma)", "return b, z")
        result = applied(model, (ExplicitGamma(),))
        assert_same_outputs(model, result, **EXACT)

    def test_another_gamma_is_noticed(self):
        class Wrong(ExplicitGamma):
            def build(self, model, match):
                return Rewrite(super().build(model, match).changes)  # the flag goes, gamma stays

        model = build(bn("b", "data", self.fixed), "return b")
        with pytest.raises(AssertionError, match="Not equal"):
            assert_same_outputs(model, applied(model, (Wrong(),)), **EXACT)


class TestAsActivation:
    model = build("r = relu(data)", "return r")

    def test_fires(self):
        result, trace = apply_rules(self.model, (AsActivation(),))
        assert trace.fired("as_activation") == 1
        assert op_names(result) == ["Activation"]
        assert_same_outputs(self.model, result, **EXACT)

    def test_another_activation_is_noticed(self):
        class Wrong(AsActivation):
            def build(self, model, match):
                node = super().build(model, match).changes["r"][0]
                return Rewrite({"r": (node.with_attrs(act_type="softrelu"),)})

        with pytest.raises(AssertionError, match="Not equal"):
            assert_same_outputs(self.model, applied(self.model, (Wrong(),)), **EXACT)


@pytest.mark.parametrize(
    "line",
    [
        'q = _contrib_quantize_v2(data) out_type="int8"',
        "q = _contrib_quantized_flatten(data, a, b)",
        'q = _sg_mkldnn_conv(data, w) quantized="true"',
    ],
)
def test_an_int8_network_is_refused(line):
    with pytest.raises(GraphError, match=r"pass 'simplify' requires 'a float network', but 'q' .* is already int8"):
        rewritten(SIMPLIFY, Model(graph(line, "return q")))


def test_dropout_in_the_middle_of_a_real_chain_keeps_names():
    model = build(conv("c", "data"), 'd = Dropout(c) p="0.5"', "r = Activation(d) " + RELU, "return r")
    result = rewritten(SIMPLIFY, model)
    assert [str(r) for r in result.graph["r"].inputs] == ["c"]
    assert len(run(result)) == 1
