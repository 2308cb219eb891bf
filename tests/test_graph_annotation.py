"""What passes say of nodes: typed in the graph, attributes in files, the same both ways."""

from __future__ import annotations

import json
from dataclasses import fields
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mxq.errors import FormatError
from mxq.graph.annotation import NOTHING, Annotation, Route, RouteKind
from mxq.graph.annotation_text import annotated, attributes
from mxq.graph.ir import Graph, Node, Ref
from mxq.graph.serde import read_symbol, read_text, write_symbol, write_text

ROUTES = (Route.of(RouteKind.QUICKER, "clip+_plus_scalar"), Route.of(RouteKind.AVERAGE))

NOTES: dict[str, tuple[Annotation, dict[str, str]]] = {
    "nothing": (NOTHING, {}),
    "origins": (Annotation(origins=("my conv", "é\n")), {"__origin__": '["my conv", "\\u00e9\\n"]'}),
    "routes": (
        Annotation(routes=ROUTES),
        {"__route__": f"quicker than clip+_plus_scalar; {RouteKind.AVERAGE.value}"},
    ),
    "tensor": (Annotation(tensor="x"), {"__tensor__": "x"}),
    "fakes": (Annotation(fakes="conv 0"), {"__fake_quantizes__": "conv 0"}),
    "order": (Annotation(order=(2, 0, 1)), {"__channel_order__": "2,0,1"}),
    "scale": (Annotation(scale=(2.0, 0.12345678, 1e-05)), {"__channel_scale__": "2,0.12345678,1e-05"}),
    "long scale": (Annotation(scale=(1 / 3,)), {"__channel_scale__": "0.3333333333333333"}),
    "axis": (Annotation(scale=(2.0,), axis=-1), {"__channel_scale__": "2", "__channel_axis__": "-1"}),
    "offset": (Annotation(offset=0.1), {"__offset__": "0.1"}),
    "stride": (Annotation(stride=(2, 3)), {"__stride__": "2,3"}),
    "input shape": (Annotation(input_shape=(3, 224, 224)), {"__input_shape__": "(3, 224, 224)"}),
    "short shape": (Annotation(input_shape=(3,)), {"__input_shape__": "(3,)"}),
    "input place": (Annotation(input_place=(0, 2)), {"__input_place__": "(0, 2)"}),
    "all": (
        Annotation(("a",), (Route.of(RouteKind.READ_PIXELS),), "x", "", (1, 0), (1.5, 2.0), -1, 3.0, (2, 2)),
        {
            "__origin__": '["a"]',
            "__route__": "makes only the pixels that are read",
            "__tensor__": "x",
            "__channel_order__": "1,0",
            "__channel_scale__": "1.5,2",
            "__channel_axis__": "-1",
            "__offset__": "3.0",
            "__stride__": "2,2",
        },
    ),
}


def graph(node: Node) -> Graph:
    """``node`` alone, with the variables that it reads."""
    return Graph((*(Node(ref.name, "null") for ref in node.inputs), node), (node.out,))


def through_files(node: Node) -> list[Node]:
    """``node`` as it is read from the JSON and from the text of a network that has it, also in a subgraph."""
    outer = graph(Node("outer", "op", subgraphs=(graph(node),)))
    found = [read_symbol(write_symbol(graph(node))), read_text(write_text(graph(node)))]
    found += [
        read_symbol(write_symbol(outer))["outer"].subgraphs[0],
        read_text(write_text(outer))["outer"].subgraphs[0],
    ]
    return [g[node.name] for g in found]


def test_every_field_is_tried() -> None:
    said = {f.name for note, _ in NOTES.values() for f in fields(note) if getattr(note, f.name) != f.default}
    assert said == {f.name for f in fields(Annotation)} - {"unshifted"}  # which is not written


@pytest.mark.parametrize("case", NOTES)
def test_both_ways(case: str) -> None:
    note, texts = NOTES[case]
    node = Node("n", "op", {"kernel": "(3, 3)"}, (Ref("x"),), note=note)
    assert attributes(node) == {"kernel": "(3, 3)", **texts}
    assert annotated(Node("n", "op", attributes(node), (Ref("x"),))) == node
    assert through_files(node) == [node] * 4


@pytest.mark.parametrize("kind", RouteKind)
def test_kinds_of_routes_are_read_back(kind: RouteKind) -> None:
    route = Route(kind, f"{kind.value} what is new" if kind.value else "of another release")
    (node, *_) = through_files(Node("n", "op", note=Annotation(routes=(Route.of(RouteKind.QUICKER, "op"), route))))
    assert node.note.routes[1] == route
    assert node.note.took(kind)
    assert not Annotation().took(kind)


@pytest.mark.parametrize(
    "names", [("my conv", "a,b"), ('say "x"', "it's"), ("[1", "[]"), ("\\", "é\n"), ('["a", "b"]',), ("", "1")]
)
def test_origins_of_any_name(names: tuple[str, ...]) -> None:
    assert {n.origins for n in through_files(Node("n", "op", note=Annotation(origins=names)))} == {names}


NAMES = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1)
NUMBERS = st.floats(allow_nan=False, allow_infinity=False)
FROM_ONE = st.integers(1, 10**9 - 1)
ANNOTATIONS = st.builds(
    Annotation,
    origins=st.lists(NAMES).map(tuple),
    routes=st.lists(st.builds(Route.of, st.sampled_from(RouteKind).filter(lambda k: k.value), st.just("more"))).map(
        tuple
    ),
    tensor=st.just("") | NAMES,
    order=st.integers(0, 9).flatmap(lambda n: st.permutations(range(n))).map(tuple),
    scale=st.lists(NUMBERS).map(tuple),
    axis=st.sampled_from([1, -1]),
    offset=NUMBERS,
    stride=st.tuples(FROM_ONE, FROM_ONE),
    input_shape=st.lists(FROM_ONE).map(tuple),
    fakes=st.just("") | NAMES,
    input_place=st.none() | st.tuples(st.integers(0, 99), st.integers(100, 9999)),
)


@given(ANNOTATIONS)
def test_any_annotation_comes_back(note: Annotation) -> None:
    node = Node("n", "op", {"__shape__": "(1,)"}, note=note)
    assert annotated(Node("n", "op", attributes(node))).note == note


class TestOlderAndDamagedFiles:
    def said(self, **attrs: str) -> Node:
        return annotated(Node("n", "op", {f"__{name}__": text for name, text in attrs.items()}))

    @pytest.mark.parametrize("text", ["a b", "[1, 2]", "7", "null", "[]", '{"a": 1}', "[" * 10**5])
    def test_names_that_are_no_json_list_are_joined_by_spaces(self, text: str) -> None:
        assert self.said(origin=text).origins == tuple(text.split(" "))

    @pytest.mark.parametrize(
        "attrs",
        [
            {"route": ""}, {"tensor": ""}, {"channel_order": ""}, {"channel_scale": ""}, {"channel_axis": "1"},
            {"offset": ""}, {"offset": "0.0"}, {"stride": "1,1"}, {"input_shape": "(3,.,.)"}, {"input_shape": "()"},
            {"input_place": "(2, 2)"}, {"input_place": "(9, 1)"}, {"input_place": "no"}, {"input_place": ""},
        ],
    )  # fmt: skip
    def test_what_says_nothing_stays_as_it_was(self, attrs: dict[str, str]) -> None:
        node = self.said(**attrs)
        assert node.note == NOTHING
        assert attributes(node) == node.attrs == {f"__{name}__": text for name, text in attrs.items()}

    @pytest.mark.parametrize(
        ("name", "text", "allowed"),
        [
            ("channel_order", "1,x", "integers such as 1,0"),
            ("channel_order", "0,2", "each of 0, 1, ... once"),
            ("channel_scale", "1,a", "numbers such as 0.5,2"),
            ("channel_scale", "inf", "numbers such as 0.5,2"),
            ("channel_axis", "2", "1 or -1"),
            ("offset", "up", "a number"),
            ("offset", "nan", "a number"),
            ("offset", "1,2", "a number"),
            ("stride", "2", "two integers from 1 on, such as 2,2"),
            ("stride", "0,1", "two integers from 1 on, such as 2,2"),
        ],
    )
    def test_damage_is_said(self, name: str, text: str, allowed: str) -> None:
        nodes: list[dict[str, Any]] = [{"op": "null", "name": "c", "attrs": {f"__{name}__": text}, "inputs": []}]
        with pytest.raises(FormatError) as found:
            read_symbol(json.dumps({"nodes": nodes, "arg_nodes": [0], "heads": [[0, 0, 0]]}), "net.json")
        where = f"net.json is damaged: node 'c' (null): __{name}__ is {text!r}"
        assert str(found.value) == f"{where}; allowed: {allowed}"

    def test_shapes_in_any_of_mxnets_spellings(self) -> None:
        for text in ("[3,8, 8]", "(3, 8, 8,)", " ( 3 ,8,8 ) "):
            assert self.said(input_shape=text).note.input_shape == (3, 8, 8)


class TestNames:
    """Files say in an attribute only what names do not tell."""

    @pytest.mark.parametrize(
        ("node", "tensor"),
        [
            (Node("quantized_x", "_contrib_quantized_act", {}, (Ref("y"),)), "x"),
            (Node("quantized_x", "_sg_mkldnn_conv", {"quantized": "true"}, (Ref("y"),)), "x"),
            (Node("quantized_x", "_sg_mkldnn_conv", {}, (Ref("y"),)), ""),
            (Node("requantize_x", "_contrib_requantize", {}, (Ref("y"),)), "x"),
            (Node("x_quantize", "_contrib_quantize_v2", {}, (Ref("x"),)), ""),
            (Node("x", "_sg_mkldnn_conv", {"quantized": "true"}, (Ref("y"),)), ""),
            (Node("data_normalize", "_sg_mkldnn_conv", {"quantized": "true"}, (Ref("data"),)), "data"),
            (Node("data_normalize", "_sg_mkldnn_conv", {"quantized": "true"}, (Ref("x"),)), ""),
            (Node("data_normalized", "broadcast_div", {}, (Ref("data_centred"), Ref("s"))), "data"),
            (Node("data_normalized", "broadcast_div", {}, (Ref("x"), Ref("s"))), ""),
        ],
    )
    def test_tensor(self, node: Node, tensor: str) -> None:
        assert annotated(node).note == Annotation(tensor=tensor)
        assert attributes(annotated(node)) == node.attrs
        other = node.noted(tensor="other")
        assert attributes(other) == {**node.attrs, "__tensor__": "other"}
        assert through_files(other) == [other] * 4

    @pytest.mark.parametrize(
        ("name", "note"),
        [
            ("x_shifted", Annotation(unshifted="x", offset=2.0)),
            ("x", Annotation(offset=2.0)),  # `mxq.passes.fuse_relu_into_batchnorm`
            ("x_shifted", Annotation()),
        ],
    )
    def test_unshifted(self, name: str, note: Annotation) -> None:
        node = Node(name, "op", note=note)
        assert through_files(node) == [node] * 4
        made = Node(f"quantized_{name}", "op", {"quantized": "true"}).noted(tensor=name, offset=note.offset)
        assert {n.note.unshifted for n in through_files(made)} == {note.unshifted}
