"""The rewrite engine: patterns match what they say, sweeps reach a fixpoint, contracts and traces tell the truth."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
from graphs import applied, graph, reasons, rewritten

from mxq.errors import GraphError
from mxq.graph.ir import Model
from mxq.rewrite import (
    NO_EVENTS,
    NO_MATCH,
    Any_,
    Contract,
    Event,
    Match,
    Op,
    Pass,
    Reject,
    Rewrite,
    Trace,
    apply_rules,
    match,
)
from mxq.rewrite.rule import single_consumer


def matches(net, name, pattern):
    return list(match(net, net[name], pattern))


class TestPatterns:
    net = graph(
        "a = relu(data)",
        "b = exp(data)",
        "c = elemwise_add(a, b)",
        's = SliceChannel(c) num_outputs="2"',
        "d = log(s:1)",
        "e = elemwise_add(a, a)",
        "return d, e",
    )

    def test_a_chain_binds_nodes_and_refs(self):
        (found,) = matches(self.net, "c", Op(("elemwise_add",), (Op(("relu",), (Any_("x"),), bind="act"), Any_("y"))))
        assert found["act"].name == "a"
        assert {k: str(v) for k, v in found.refs.items()} == {"x": "data", "y": "b"}
        assert [n.name for n in found.interior] == ["a", "c"]
        assert found.root.name == "c"

    def test_order_counts(self):
        assert not matches(self.net, "c", Op(("elemwise_add",), (Op(("exp",)), Any_())))

    def test_unless_it_commutes(self):
        (found,) = matches(
            self.net, "c", Op(("elemwise_add",), (Op(("exp",), bind="e"), Any_("rest")), commutative=True)
        )
        assert found["e"].name == "b"
        assert str(found.refs["rest"]) == "a"

    def test_every_way_is_yielded(self):
        both = Op(("elemwise_add",), (Op(("relu", "exp"), bind="l"), Any_()), commutative=True)
        assert [f["l"].name for f in matches(self.net, "c", both)] == ["a", "b"]

    def test_only_first_outputs_match(self):
        assert not matches(self.net, "d", Op(("log",), (Op(("SliceChannel",)),)))
        assert matches(self.net, "d", Op(("log",), (Any_(),)))

    def test_too_few_inputs(self):
        assert not matches(self.net, "a", Op(("relu",), (Any_(), Any_())))

    def test_other_operators(self):
        assert not matches(self.net, "a", Op(("exp",)))


@dataclass(frozen=True)
class Merge:
    """exp(log(x)) -> x; refuses what is named "keep..."."""

    name: str = "merge"
    pattern: Op = Op(("exp",), (Op(("log",), bind="log"),))

    def check(self, model: Model, found: Match) -> Reject | None:
        if found.root.name.startswith("keep"):
            return Reject("it is to be kept", (found.root.name,))
        return single_consumer(model, found)

    def build(self, model: Model, found: Match) -> Rewrite:
        log, exp = found["log"], found.root
        return Rewrite({log.name: (), exp.name: (replace(exp, op="_copy", inputs=log.inputs),)})


@dataclass(frozen=True)
class Unwrap:
    """relu(relu(x)) -> relu(x), one level a time."""

    name: str = "unwrap"
    pattern: Op = Op(("relu",), (Op(("relu",), bind="inner"),))

    def check(self, model: Model, found: Match) -> Reject | None:
        return None

    def build(self, model: Model, found: Match) -> Rewrite:
        return Rewrite({found.root.name: (replace(found.root, inputs=found["inner"].inputs),)})


class TestApplyRules:
    def test_nothing_to_do_returns_the_same_object(self):
        model = Model(graph("a = relu(data)", "return a"))
        assert applied(model, (Merge(),)) is model

    def test_several_matches_in_one_sweep(self):
        model = Model(graph("a = log(data)", "b = exp(a)", "c = log(b)", "d = exp(c)", "return d"))
        result, trace = apply_rules(model, (Merge(),))
        assert [n.op for n in result.graph.operators] == ["_copy", "_copy"]
        assert trace.fired("merge") == 2

    def test_overlapping_matches_wait_for_the_next_sweep(self):
        lines = ["r0 = relu(data)", *(f"r{i} = relu(r{i - 1})" for i in range(1, 6)), "return r5"]
        result, trace = apply_rules(Model(graph(*lines)), (Unwrap(),))
        assert [n.name for n in result.graph.operators] == ["r5"]
        assert trace.fired("unwrap") == 5

    def test_the_first_rule_that_fits_wins(self):
        @dataclass(frozen=True)
        class Other(Merge):
            name: str = "other"

        _, trace = apply_rules(Model(graph("a = log(data)", "b = exp(a)", "return b")), (Other(), Merge()))
        assert (trace.fired("other"), trace.fired("merge")) == (1, 0)

    def test_a_refusal_gives_the_next_rule_its_chance(self):
        @dataclass(frozen=True)
        class Never(Merge):
            name: str = "never"

            def check(self, model, found):
                return Reject("never")

        _, trace = apply_rules(Model(graph("a = log(data)", "b = exp(a)", "return b")), (Never(), Merge()))
        assert trace.fired("merge") == 1
        assert reasons(trace, "never") == ["never"]

    def test_refusals_are_kept_once_by_the_innermost_node(self):
        model = Model(graph("a = log(data)", "keep = exp(a)", "c = log(keep)", "d = exp(c)", "return d"))
        _, trace = apply_rules(model, (Merge(),), "step")
        assert trace.refusals("a") == [Event("step", "merge", "a", "it is to be kept")]

    def test_a_node_that_is_not_meant_leaves_no_trace(self):
        class Shy(Merge):
            def check(self, model, found):
                return NO_MATCH

        model = Model(graph("a = log(data)", "b = exp(a)", "return b"))
        result, trace = apply_rules(model, (Shy(),))
        assert result is model
        assert not trace.events


class TestSingleConsumer:
    def test_read_elsewhere(self):
        model = Model(graph("a = log(data)", "b = exp(a)", "c = relu(a)", "return b, c"))
        result, trace = apply_rules(model, (Merge(),))
        assert result is model
        assert reasons(trace, "merge") == ["the output of 'a' is also read by 'c'"]

    def test_an_output_of_the_network(self):
        model = Model(graph("a = log(data)", "b = exp(a)", "return b, a"))
        result, trace = apply_rules(model, (Merge(),))
        assert result is model
        assert reasons(trace, "merge") == ["'a' is an output of the network"]

    def test_the_root_may_have_many_readers(self):
        model = Model(graph("a = log(data)", "b = exp(a)", "c = relu(b)", "d = sin(b)", "return b, c, d"))
        assert applied(model, (Merge(),)) is not model


class TestTrace:
    def test_json_counts_and_collects_refusals(self):
        trace = Trace(
            (Event("s", "r", "a"), Event("s", "r", "b"), Event("s", "r", "c", "no"), Event("t", "r", "a", "x"))
        )
        assert trace.to_json() == (
            {"pass": "s", "rule": "r", "fired": 2, "refused": {"c": "no"}},
            {"pass": "t", "rule": "r", "fired": 0, "refused": {"a": "x"}},
        )


class TestContracts:
    model = Model(graph("a = relu(data)", "return a"))

    def contract(self, op: str) -> Contract[Model]:
        def check(model: Model) -> Reject | None:
            found = [n.name for n in model.graph.operators if n.op == op]
            return Reject(f"{found[0]!r} is {op}", tuple(found)) if found else None

        return Contract(f"no {op}", check)

    def step(self, **contracts) -> Pass:
        return Pass("to_exp", lambda _: (Model(graph("a = exp(data)", "return a")), NO_EVENTS), **contracts)

    def test_what_is_required(self):
        with pytest.raises(GraphError, match="pass 'to_exp' requires 'no relu', but 'a' is relu"):
            rewritten(self.step(requires=(self.contract("relu"),)), self.model)

    def test_what_is_ensured(self):
        with pytest.raises(GraphError, match="pass 'to_exp' ensures 'no exp', but 'a' is exp"):
            rewritten(self.step(ensures=(self.contract("exp"),)), self.model)

    def test_contracts_that_hold(self):
        result = rewritten(self.step(requires=(self.contract("exp"),), ensures=(self.contract("relu"),)), self.model)
        assert result.graph["a"].op == "exp"
