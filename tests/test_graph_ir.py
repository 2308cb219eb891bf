"""Graphs keep their invariants, and replacing nodes sorts, follows and drops as it says."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from graphs import graph
from hypothesis import given, settings
from hypothesis import strategies as st

from mxq.errors import GraphError
from mxq.graph.annotation import Annotation
from mxq.graph.ir import Graph, Model, Node, Ref, toposort

CHAIN = graph("a = relu(data)", "b = exp(a)", "c = elemwise_add(b, a)", "return c")


class TestNode:
    def test_attributes_cannot_be_changed(self):
        node = Node("n", "relu", {"k": "v"})
        with pytest.raises(TypeError):
            node.attrs["k"] = "w"
        with pytest.raises(dataclasses.FrozenInstanceError):
            node.name = "m"

    def test_attributes_are_a_copy(self):
        given_attrs = {"k": "v"}
        node = Node("n", "relu", given_attrs)
        given_attrs["k"] = "w"
        assert node.attrs["k"] == "v"

    @pytest.mark.parametrize(
        ("text", "wanted"), [("True", True), ("true", True), ("1", True), ("False", False), ("0", False)]
    )
    def test_flags_are_read_as_mxnet_spells_them(self, text, wanted):
        assert Node("n", "op", {"f": text}).flag("f") is wanted

    @pytest.mark.parametrize("attrs", [{}, {"f": "None"}])
    def test_a_flag_that_says_nothing_has_its_default(self, attrs):
        assert Node("n", "op", attrs).flag("f", default=True)
        assert not Node("n", "op", attrs).flag("f")

    @pytest.mark.parametrize(
        ("text", "wanted"), [("(3, 3)", (3, 3)), ("[2,-1]", (2, -1)), ("(2L, 3L)", (2, 3)), ("()", ()), ("(7,)", (7,))]
    )
    def test_tuples(self, text, wanted):
        assert Node("n", "op", {"k": text}).ints("k") == wanted

    @pytest.mark.parametrize("text", ["1" * 400, "nan", "-inf", "two"])
    def test_an_integer_that_is_none(self, text):
        with pytest.raises(GraphError, match=r"node .n. .*: axis is .*; allowed: a"):
            Node("n", "BatchNorm", {"axis": text}).integer("axis", 1)
        assert Node("n", "BatchNorm", {"axis": "-1"}).integer("axis", 1) == -1

    def test_missing_tuple_and_number(self):
        assert Node("n", "op").ints("k") == ()
        assert Node("n", "op").number("k", 0.5) == 0.5
        assert Node("n", "op", {"k": "1e-05"}).number("k", 0.5) == 1e-05

    def test_origins(self):
        assert Node("n", "op").origins == ("n",)
        a = Node("n", "op").standing_for(Node("my conv", "op"), Node("b", "op"))
        assert a.origins == ("my conv", "b")
        assert Node("m", "op").standing_for(a, Node("b", "op"), Node("z", "op")).origins == ("my conv", "b", "z")

    def test_noted_leaves_the_original_and_what_else_is_said(self):
        node = Node("n", "op").noted(offset=1.0)
        assert node.noted(axis=-1).note == Annotation(axis=-1, offset=1.0)
        assert node.note == Annotation(offset=1.0)

    def test_with_attrs_leaves_the_original(self):
        node = Node("n", "op", {"a": "1"})
        assert dict(node.with_attrs(b="2").attrs) == {"a": "1", "b": "2"}
        assert dict(node.attrs) == {"a": "1"}


class TestGraph:
    def test_a_name_twice(self):
        with pytest.raises(GraphError, match="two nodes are named 'a'"):
            Graph((Node("a", "null"), Node("a", "null")), (Ref("a"),))

    def test_an_input_that_comes_later(self):
        with pytest.raises(GraphError, match=r"'a' \(relu\) reads 'b:1', which no earlier node makes"):
            Graph((Node("a", "relu", inputs=(Ref("b", 1),)), Node("b", "null")), (Ref("a"),))

    def test_a_node_that_reads_itself(self):
        with pytest.raises(GraphError, match="no earlier node makes"):
            Graph((Node("a", "relu", inputs=(Ref("a"),)),), (Ref("a"),))

    def test_a_dangling_head(self):
        with pytest.raises(GraphError, match="output 'x' refers to no node"):
            Graph((Node("a", "null"),), (Ref("x"),))

    def test_an_unknown_name(self):
        with pytest.raises(GraphError, match="no node 'zzz'"):
            CHAIN["zzz"]
        assert "zzz" not in CHAIN
        assert "a" in CHAIN

    def test_consumers_are_in_order_and_each_once(self):
        net = graph("a = relu(data)", "b = elemwise_add(a, a)", "c = exp(a)", "return b, c")
        assert [n.name for n in net.consumers["a"]] == ["b", "c"]
        assert net.consumers["c"] == ()

    def test_variables_and_operators(self):
        assert [n.name for n in CHAIN.variables] == ["data"]
        assert [n.name for n in CHAIN.operators] == ["a", "b", "c"]
        assert [n.name for n in CHAIN] == ["data", "a", "b", "c"]


class TestReplace:
    def test_exchange(self):
        changed = CHAIN.replace({"b": (dataclasses.replace(CHAIN["b"], op="log"),)})
        assert changed["b"].op == "log"
        assert CHAIN["b"].op == "exp"

    def test_drop_with_redirect_reaches_inputs_and_heads(self):
        changed = CHAIN.replace({"c": ()}, {Ref("c"): Ref("b")})
        assert changed.heads == (Ref("b"),)
        assert "c" not in changed

    def test_redirects_are_followed_along_chains(self):
        changed = CHAIN.replace({"a": (), "b": ()}, {Ref("b"): Ref("a"), Ref("a"): Ref("data")})
        assert changed["c"].inputs == (Ref("data"), Ref("data"))

    def test_a_redirect_is_of_one_output_only(self):
        net = graph('s = SliceChannel(data) num_outputs="2"', "a = elemwise_add(s, s:1)", "return a")
        changed = net.replace({}, {Ref("s", 1): Ref("data")})
        assert changed["a"].inputs == (Ref("s"), Ref("data"))

    def test_inserted_nodes_may_come_in_any_order(self):
        late = (Node("b", "exp", inputs=(Ref("new"),)), Node("new", "log", inputs=(Ref("a"),)))
        assert [n.name for n in CHAIN.replace({"b": late})] == ["data", "a", "new", "b", "c"]

    def test_what_no_head_needs_goes(self):
        changed = CHAIN.replace({}, {Ref("b"): Ref("a")})
        assert "b" not in changed

    def test_dropped_but_read(self):
        with pytest.raises(GraphError, match="'a' is read but no node makes it"):
            CHAIN.replace({"a": ()})

    def test_cycle(self):
        with pytest.raises(GraphError, match="cycle"):
            CHAIN.replace({"a": (dataclasses.replace(CHAIN["a"], inputs=(Ref("c"),)),)})

    def test_name_collision(self):
        with pytest.raises(GraphError, match="two nodes are named 'a'"):
            CHAIN.replace({"b": (CHAIN["b"], Node("a", "null"))})

    def test_attributes_of_the_graph_stay(self):
        assert CHAIN.replace({}).attrs == CHAIN.attrs != {}


@st.composite
def shuffled_dags(draw):
    """Nodes of a random DAG in random order, and heads."""
    count = draw(st.integers(1, 12))
    nodes = []
    for i in range(count):
        inputs = draw(st.lists(st.integers(0, i - 1), max_size=3)) if i else []
        nodes.append(Node(f"n{i}", "op" if inputs else "null", inputs=tuple(Ref(f"n{j}") for j in inputs)))
    heads = draw(st.lists(st.integers(0, count - 1), min_size=1, max_size=3))
    return draw(st.permutations(nodes)), tuple(Ref(f"n{h}") for h in heads)


class TestToposort:
    @given(shuffled_dags())
    @settings(deadline=None)
    def test_order_is_valid_and_complete(self, dag):
        nodes, heads = dag
        result = toposort(nodes, heads)  # Graph checks that inputs come first
        table = {n.name: n for n in nodes}
        needed, todo = set(), [h.name for h in heads]
        while todo:
            name = todo.pop()
            needed.add(name)
            todo += [r.name for r in table[name].inputs]
        assert {n.name for n in result} == needed
        assert all(table[n.name] is n for n in result)
        assert toposort(result.nodes, heads) == result

    @given(shuffled_dags())
    @settings(deadline=None)
    def test_an_edge_back_is_a_cycle(self, dag):
        nodes, heads = dag
        last = next(n for n in nodes if n.name == heads[0].name)
        ancestor = last
        while ancestor.inputs:
            ancestor = next(n for n in nodes if n.name == ancestor.inputs[0].name)
        looped = [dataclasses.replace(n, inputs=(Ref(last.name),)) if n is ancestor else n for n in nodes]
        with pytest.raises(GraphError, match="cycle"):
            toposort(looped, heads)

    def test_depth_is_no_limit(self):
        chain = [Node("n0", "null"), *(Node(f"n{i}", "op", inputs=(Ref(f"n{i - 1}"),)) for i in range(1, 5000))]
        assert len(toposort(reversed(chain), (Ref("n4999"),)).nodes) == 5000


class TestModel:
    def test_parameters_are_read_only(self):
        value = np.zeros(3, np.float32)
        model = Model(graph("a = relu(w)", "return a"), {"w": value})
        with pytest.raises(ValueError, match="read-only"):
            model.args["w"][0] = 1
        value[0] = 1  # the caller's own array stays writeable

    def test_inputs_are_variables_without_a_value(self):
        net = graph("a = elemwise_add(x, w)", "b = elemwise_add(a, y)", "c = elemwise_add(b, s)", "return c")
        model = Model(net, {"w": np.zeros(1)}, {"s": np.ones(1)})
        assert model.inputs == ("x", "y")
        assert model.param("w") == 0
        assert model.param("s") == 1
        assert model.param("x") is None

    def test_parameters_that_no_node_reads_go(self):
        net = graph("a = elemwise_add(x, w)", "return a")
        model = Model(net, {"w": np.zeros(1)}, {})
        smaller = model.with_graph(graph("a = relu(x)", "return a"))
        assert dict(smaller.args) == {}
        changed = model.with_graph(net, {"w": np.ones(1)})
        assert changed.args["w"] == 1
        assert model.args["w"] == 0

    def test_refs_are_written_as_thresholds_name_them(self):
        assert str(Ref("a")) == "a"
        assert str(Ref("a", 2)) == "a:2"
