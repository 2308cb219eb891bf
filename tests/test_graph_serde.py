"""Reading and writing lose nothing: symbol JSON against MXNet's own, the text form on any graph."""

from __future__ import annotations

import string

import mxnet as mx
import pytest
from graphs import graph
from hypothesis import given, settings
from hypothesis import strategies as st

from mxq.errors import FormatError, GraphError
from mxq.graph.ir import Graph, Node, Ref
from mxq.graph.serde import read_symbol, read_text, symbol_object, write_symbol, write_text
from mxq.runtime import to_symbol

# ---- random graphs -------------------------------------------------------------------------------------------

ODD = st.text(st.characters(codec="utf-8", exclude_categories=("Cs",), exclude_characters="\0"), min_size=1, max_size=8)
NAMES = st.one_of(st.text(string.ascii_letters + string.digits + "_.-/", min_size=1, max_size=8), ODD)
SPECIAL = st.sampled_from(
    ["return", "graph", "graph x", "}", "#no comment", 'quo"te', "back\\slash", "new\nline", "a:1"]
)
ATTRS = st.dictionaries(NAMES | SPECIAL, NAMES | SPECIAL | st.just(""), max_size=3)


@st.composite
def graphs_of_any_shape(draw, depth: int = 1) -> Graph:
    names = draw(st.lists(NAMES | SPECIAL, min_size=1, max_size=6, unique=True))
    nodes: list[Node] = []

    def refs(least: int) -> tuple[Ref, ...]:
        ref = st.builds(Ref, st.sampled_from([n.name for n in nodes]), st.integers(0, 3), st.integers(0, 2))
        return tuple(draw(st.lists(ref, min_size=least, max_size=3)))

    for name in names:
        if not nodes or draw(st.booleans()):
            nodes.append(Node(name, "null", draw(ATTRS)))
            continue
        subgraphs = draw(st.lists(graphs_of_any_shape(depth - 1), max_size=2)) if depth else []
        nodes.append(Node(name, draw(NAMES.filter(lambda op: op != "null")), draw(ATTRS), refs(0), tuple(subgraphs)))
    attrs = draw(st.just({}) | st.just({"mxnet_version": ["int", 10901]}))
    return Graph(tuple(nodes), refs(1), attrs)


@st.composite
def entries_with_repeated_names(draw) -> dict:
    """A symbol JSON whose operators share names, as MXNet allows."""
    names = draw(st.lists(st.sampled_from(["a", "b", "a__1", "a__2", "b__1", "a__1__1"]), min_size=1, max_size=8))
    nodes = [{"op": "null", "name": "data", "inputs": []}]
    if draw(st.booleans()):
        nodes.append({"op": "null", "name": "b", "inputs": []})
    nodes += [{"op": "relu", "name": n, "inputs": [[i, 0, 0]]} for i, n in enumerate(names)]
    args = [i for i, n in enumerate(nodes) if n["op"] == "null"]
    return {"nodes": nodes, "arg_nodes": args, "heads": [[len(nodes) - 1, 0, 0]]}


class TestProperties:
    @given(graphs_of_any_shape())
    @settings(deadline=None)
    def test_text_round_trip(self, net):
        assert read_text(write_text(net)) == net

    @given(graphs_of_any_shape())
    @settings(deadline=None)
    def test_json_round_trip(self, net):
        assert read_symbol(write_symbol(net)) == net

    @given(entries_with_repeated_names())
    @settings(deadline=None)
    def test_operators_that_share_a_name(self, data):
        net = read_symbol(data)
        assert symbol_object(net) == data
        assert read_text(write_text(net)) == net
        named = [n["name"] for n in data["nodes"]]
        firsts = {n: named.index(n) for n in named}  # the first of each name keeps it, variables before all
        for i, (node, entry) in enumerate(zip(net.nodes, data["nodes"], strict=True)):
            variable = any(n["name"] == entry["name"] and n["op"] == "null" for n in data["nodes"])
            keeps = entry["op"] == "null" or (firsts[entry["name"]] == i and not variable)
            assert (node.name == entry["name"]) is keeps


# ---- against MXNet -------------------------------------------------------------------------------------------


def assert_lossless(text: str) -> None:
    """MXNet writes the same JSON for what mxq read and wrote as for the original; the text form is equal too."""
    net = read_symbol(text)
    assert mx.sym.load_json(write_symbol(net)).tojson() == text
    assert read_text(write_text(net)) == net


NETWORKS = (
    "resnet18_v1",
    "resnet50_v2",
    "mobilenetv2_1.0",
    "mobilenetv3_small",
    "densenet121",
    "squeezenet1.1",
    "inceptionv3",
    "senet_154",
    "cifar_resnet20_v2",
    "vgg11_bn",
    "ssd_300_vgg16_atrous_voc",
    "yolo3_darknet53_voc",
    "faster_rcnn_resnet50_v1b_voc",
    "center_net_resnet18_v1b_voc",
    "fcn_resnet50_voc",
    "deeplab_resnet50_citys",
    "simple_pose_resnet18_v1b",
)


@pytest.mark.filterwarnings("ignore")  # gluoncv's
@pytest.mark.parametrize("name", NETWORKS)
def test_networks_of_gluoncv(name):
    zoo = pytest.importorskip("gluoncv").model_zoo
    detector = any(part in name for part in ("ssd", "yolo", "rcnn", "net_resnet", "fcn", "deeplab", "pose"))
    net = zoo.get_model(name, pretrained=False, **({"pretrained_base": False} if detector else {}))
    outputs = net(mx.sym.var("data"))
    flat = list(outputs) if isinstance(outputs, list | tuple) else [outputs]
    assert_lossless(mx.sym.Group(flat).tojson())


def shared_models(folder) -> list:
    return sorted(folder.glob("models/*/*-symbol.json"))


@pytest.mark.data
def test_networks_of_the_shared_data(mxq_data):
    files = shared_models(mxq_data)
    assert len(files) > 5
    for file in files:
        assert_lossless(mx.sym.load(str(file)).tojson())


@pytest.mark.data
def test_json_of_old_releases(mxq_data):
    """Attributes under "attr" and "param", refs of two numbers, no version: MXNet upgrades what mxq writes alike."""
    files = sorted((mxq_data / "models" / "mtcnn").glob("*-symbol.json"))
    assert files
    for file in files:
        text = file.read_text()
        assert "mxnet_version" not in text
        net = read_symbol(text, file.name)
        assert mx.sym.load_json(write_symbol(net)).tojson() == mx.sym.load_json(text).tojson()
        assert read_text(write_text(net)) == net


class TestSymbols:
    data = mx.sym.var("data")

    def test_control_characters_in_names_and_attributes(self):
        """MXNet writes and reads them as they are, but for the ends of lines."""
        names = [f"a{chr(code)}b\\u0001" for code in range(1, 0x20) if chr(code) not in "\n\r\t"]
        x = self.data
        for name in names:
            x = mx.sym.Activation(x, act_type="relu", name=name, attr={"__note__": name})
        assert_lossless(x.tojson())
        assert [n.name for n in read_symbol(x.tojson()).operators] == names

    def test_control_flow_with_nested_subgraphs(self):
        def inner(x, states):
            return x * states[0], [states[0] + 1]

        def outer(x, states):
            rows, last = mx.sym.contrib.foreach(inner, x, [states[0]])
            return rows, [last[0] * mx.sym.var("w")]

        rows, last = mx.sym.contrib.foreach(outer, self.data, [mx.sym.var("s")])
        text = mx.sym.Group([rows, last[0]]).tojson()
        assert_lossless(text)
        loop = next(n for n in read_symbol(text) if n.op == "_foreach")
        assert any(n.op == "_foreach" for sub in loop.subgraphs for n in sub)

    def test_while_and_cond(self):
        step = mx.sym.contrib.while_loop(
            lambda i, _: i < 5, lambda i, s: ([i * s], [i + 1, s + i]), [mx.sym.var("i"), mx.sym.var("s")], 5
        )
        choice = mx.sym.contrib.cond(mx.sym.var("p") < 1, lambda: mx.sym.exp(self.data), lambda: mx.sym.sin(self.data))
        assert_lossless(mx.sym.Group([step[0][0], choice]).tojson())

    def test_versions_of_auxiliary_states(self):
        mean, var = mx.sym.var("mean"), mx.sym.var("var")
        one = mx.sym.BatchNorm(self.data, moving_mean=mean, moving_var=var, name="one")
        two = mx.sym.BatchNorm(one, moving_mean=mean, moving_var=var, name="two")
        text = mx.sym.BatchNorm(two, moving_mean=mean, moving_var=var, name="three").tojson()
        assert_lossless(text)
        versions = [[r.version for r in node.inputs[3:]] for node in read_symbol(text).operators]
        assert versions == sorted(versions)
        assert versions[0] < versions[1] < versions[2]

    def test_repeated_heads(self):
        out = mx.sym.relu(self.data, name="r")
        text = mx.sym.Group([out, self.data, out]).tojson()
        assert_lossless(text)
        assert [str(h) for h in read_symbol(text).heads] == ["r", "data", "r"]

    def test_shared_parameters(self):
        weight = mx.sym.var("w")
        one = mx.sym.FullyConnected(self.data, weight, no_bias=True, num_hidden=4, name="one")
        text = mx.sym.FullyConnected(one, weight, no_bias=True, num_hidden=4, name="two").tojson()
        assert_lossless(text)
        assert [n.name for n in read_symbol(text).consumers["w"]] == ["one", "two"]

    def test_operators_that_share_a_name(self):
        text = mx.sym.exp(mx.sym.relu(self.data, name="x"), name="x").tojson()
        assert_lossless(text)
        net = read_symbol(text)
        assert [(n.name, n.label) for n in net.operators] == [("x", ""), ("x__1", "x")]

    def test_several_outputs(self):
        parts = mx.sym.SliceChannel(self.data, num_outputs=3, name="s")
        text = mx.sym.Group([parts[2], parts[0] + parts[1]]).tojson()
        assert_lossless(text)
        assert read_symbol(text).heads[0] == Ref("s", 2)

    def test_attributes_of_variables(self):
        weight = mx.sym.var("w", shape=(3, 4), lr_mult=2, init=mx.init.Zero(), attr={"note": 'quo"te \n é'})
        assert_lossless(mx.sym.dot(self.data, weight).tojson())


# ---- what is refused -----------------------------------------------------------------------------------------


class TestJsonThatIsNone:
    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("{", "x.json is not JSON"),
            (b"\x00\x01\xff", "x.json is not JSON"),
            ("[1, 2]", "x.json holds a list; allowed: an object with nodes, arg_nodes and heads"),
            ("{}", "no nodes or heads list, but nothing"),
            ('{"nodes": [], "model": 1}', "no heads list, but model, nodes"),
            ('{"nodes": [{"name": "a"}], "heads": []}', "damaged: 'op' of node 0 is missing; allowed: a str"),
            ('{"nodes": [{"op": "null", "name": "a"}], "heads": []}', "'inputs' of node 0 is missing; allowed: a"),
            ('{"nodes": [3], "heads": []}', "damaged: node 0 is a int; allowed: an object"),
            ('{"nodes": [{"op": "null", "name": "a", "inputs": []}], "heads": [[]]}', r"damaged: heads has .* \[\]"),
            ('{"nodes": [{"op": "null", "name": "a", "inputs": []}], "heads": [[0, 0.5, 0]]}', "damaged: heads has"),
            ('{"nodes": [{"op": "null", "name": "a", "inputs": []}], "heads": [[true]]}', "damaged: heads has"),
            ('{"nodes": [{"op": "null", "name": 3, "inputs": []}], "heads": []}', "'name' of node 0 is a int"),
            ('{"nodes": [{"op": "null", "name": "a\\u0000", "inputs": []}], "heads": []}', "holds a zero"),
            ('{"nodes": [{"op": "null", "name": "\\ud800", "inputs": []}], "heads": []}', "holds a zero"),
            ('{"nodes": [{"op": "relu", "name": "a", "inputs": [], "attrs": {"k": 3}}], "heads": []}', "is a int"),
            ('{"nodes": [], "heads": [], "attrs": []}', "'attrs' of a graph is a list"),
            ("[" * 100_000, "nested too deeply"),
        ],
    )
    def test_format(self, text, message):
        with pytest.raises(FormatError, match=message):
            read_symbol(text, "x.json")

    def test_a_dangling_reference(self):
        data = {"nodes": [{"op": "null", "name": "a", "inputs": []}], "heads": [[7, 0, 0]]}
        with pytest.raises(GraphError, match="a reference to node 7, which dangles; the graph has 1 nodes"):
            read_symbol(data)

    @pytest.mark.parametrize("reference", [[0, -1, 0], [0, 2**31, 0], [0, 0, -1]])
    def test_an_output_or_version_that_cannot_be(self, reference):
        with pytest.raises(GraphError, match="allowed: an output and a version from 0"):
            read_symbol({"nodes": [{"op": "null", "name": "a", "inputs": []}], "heads": [reference]})

    def test_subgraphs_of_subgraphs(self):
        nested: dict = {"nodes": [{"op": "null", "name": "a", "inputs": []}], "heads": [[0, 0, 0]]}
        for _ in range(12):
            nested = {"nodes": [{"op": "f", "name": "a", "inputs": [], "subgraphs": [nested]}], "heads": [[0, 0, 0]]}
        with pytest.raises(FormatError, match="subgraphs in subgraphs"):
            read_symbol(nested)

    def test_a_reference_forward(self):
        nodes = [{"op": "relu", "name": "a", "inputs": [[1, 0, 0]]}, {"op": "null", "name": "b", "inputs": []}]
        with pytest.raises(GraphError, match="which no earlier node makes"):
            read_symbol({"nodes": nodes, "heads": [[0, 0, 0]]})

    def test_variables_that_share_a_name(self):
        nodes = [{"op": "null", "name": "w", "inputs": []}] * 2
        with pytest.raises(GraphError, match="two variables are named 'w'"):
            read_symbol({"nodes": nodes, "heads": [[0, 0, 0]]})


@pytest.mark.parametrize(
    "name",
    [
        "a\x01b",
        "\x1b[2J",
        "\b\f\x1f",
        "line\nfeed\rtab\t",
        'quo"te',
        "back\\u0001",
        "\\b",
        "\\",
        "two words",
        "ünï 日本",
    ],
)
def test_mxnet_reads_any_name_that_is_written(name):
    """Its parser knows few escape sequences, and control characters as they are."""
    net = Graph((Node("x", "null"), Node(name, "relu", {"__note__": name}, (Ref("x"),))), (Ref(name),))
    sym = to_symbol(net)
    assert sym.list_outputs() == [f"{name}_output"]
    assert sym.attr_dict()[name]["__note__"] == name
    assert read_symbol(sym.tojson())[name].attrs["__note__"] == name


class TestText:
    def test_what_it_looks_like(self):
        text = (
            'graph {"mxnet_version": ["int", 10901]}\n'
            "data = null\n"
            'w = null __shape__="(3,)"\n'
            'c = Convolution(data, w@2) kernel="(3, 3)" no_bias="True" {\n'
            "  x = null\n"
            '  "odd name" = relu(x)\n'
            '  return "odd name"\n'
            "} {\n"
            "  y = null\n"
            "  return y\n"
            "}\n"
            's = SliceChannel(c:1@2) @label="c"\n'
            "return s:1, c\n"
        )
        net = read_text(text)
        assert net["c"].inputs[1] == Ref("w", 0, 2)
        assert net["s"].inputs == (Ref("c", 1, 2),)
        assert net["s"].label == "c"
        assert [len(s.nodes) for s in net["c"].subgraphs] == [2, 1]
        assert write_text(net) == text

    def test_comments_and_blank_lines(self):
        assert read_text("# a comment\n\n  x = null\n  return x\n") == Graph((Node("x", "null"),), (Ref("x"),))

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("x = null", "ends without a 'return' line"),
            ("x = null\nreturn x\ny = null", "line 3: 'y = null' follows the end"),
            ("x null\nreturn x", "line 1: '=' expected, 'null' found"),
            ("x =\nreturn x", "line 1: a name expected, the end of the line found"),
            ("x = null\n\ny = relu(x;)\nreturn y", "line 3: cannot read ';"),
            ("x = null\ny = relu(x\nreturn y", "line 2: ',' expected, the end of the line found"),
            ("x = null\ny = relu(x:z)\nreturn y", "line 2: a number expected"),
            ("x = null\ny = relu(x) k=\nreturn y", "line 2: a name expected"),
            ("x = null\ny = relu(x) {\nz = null\nreturn z\nreturn y", "line 5: '}' expected after a subgraph"),
            ('x = null @lebal="a"\nreturn x', "line 1: 'label' expected"),
            ("graph {\nreturn x", "line 1: .*not JSON"),
            ('x = "\\q"\nreturn x', "line 1: .*not JSON"),
        ],
    )
    def test_what_cannot_be_read(self, text, message):
        with pytest.raises(FormatError, match=message):
            read_text(text)

    def test_an_unknown_reference(self):
        with pytest.raises(GraphError, match="no earlier node"):
            read_text("y = relu(x)\nreturn y")

    def test_helper_declares_variables(self):
        assert [n.name for n in graph("y = relu(x)", "return y").variables] == ["x"]
