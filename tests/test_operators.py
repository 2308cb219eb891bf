"""A symbol is checked before MXNet sees it: operators, attributes, arity, outputs, subgraphs, parameter shapes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mxq import runtime  # isort: skip  (before mxnet)

import mxnet as mx
from graphs import bn, build, conv, fc, feeds, graph, quantized, run

from mxq.errors import FormatError, GraphError, MxqError, RuntimeFailure
from mxq.graph.ir import Graph, Model
from mxq.graph.serde import read_symbol, symbol_object, write_symbol
from mxq.operators import check_graph, check_parameters
from mxq.operators.limits import is_to_run
from mxq.operators.signature import integers
from mxq.runtime.operator_registry import REGISTRY

RESIDUAL = (
    conv("c0", "data"),
    bn("b0", "c0"),
    'r0 = Activation(b0) act_type="relu"',
    conv("c1", "r0", bias=False),
    "s0 = elemwise_add(c1, r0)",
    'p0 = Pooling(s0) kernel="(2, 2)" pool_type="max" stride="(2, 2)"',
    fc("f0", "p0"),
    "return f0",
)


def check(*lines: str) -> None:
    check_graph(graph(*lines), REGISTRY)


def refused(*lines: str) -> str:
    with pytest.raises(MxqError) as caught:
        check(*lines)
    return str(caught.value)


# ---- single nodes --------------------------------------------------------------------------------------------


class TestAttributes:
    @pytest.mark.parametrize(
        ("attr", "value", "says"),
        [
            ("num_group", "0", "num_group is '0'; allowed: 1 to"),
            ("num_filter", "-3", "num_filter is '-3'; allowed: 1 to"),
            ("num_filter", "many", "num_filter is 'many'; allowed: an integer"),
            ("num_filter", "99999999999", "num_filter is '99999999999'; allowed: 1 to"),
            ("kernel", "(0, 3)", r"kernel is '(0, 3)'; allowed: 1 to"),
            ("kernel", "(3, ., .)", "allowed: integers such as"),
            ("kernel", "(3, 3", "allowed: integers such as"),
            ("stride", "(1, 0)", "stride is '(1, 0)'; allowed: 1 to"),
            ("dilate", "(-1, 1)", "dilate is '(-1, 1)'; allowed: 1 to"),
            ("pad", "(-1, 1)", "pad is '(-1, 1)'; allowed: 0 to"),
            ("pad", "(1000000, 1)", "allowed: 0 to"),
            ("layout", "WHCN", "MXNet does not take its attributes"),
            ("colour", "red", "MXNet does not take its attributes"),
        ],
    )
    def test_of_a_convolution(self, attr: str, value: str, says: str) -> None:
        attrs = {"kernel": "(3, 3)", "num_filter": "8", attr: value}
        text = refused(
            f"c = Convolution(data, w, b) {' '.join(f'{k}={json.dumps(v)}' for k, v in attrs.items())}\nreturn c"
        )
        assert "node 'c' (Convolution)" in text
        assert says in text

    @pytest.mark.parametrize(
        ("line", "says"),
        [
            ('y = Activation(x) act_type="zelu"', "valid values are"),
            ('y = UpSampling(x) scale="0" sample_type="nearest" num_args="1"', "scale is '0'"),
            ('y = Correlation(x, x) stride1="0"', "stride1 is '0'"),
            ('y = depth_to_space(x) block_size="0"', "block_size is '0'"),
            ('y = mean(x) axis="-99"', "axis is '-99'"),
            ("y = _contrib_quantize_asym(x)", "min_calib_range is missing"),
            ('y = softmax(x) use_length="None"', "use_length is 'None'; allowed: True or False"),
            ('y = log_softmax(x) use_length="None"', "use_length is 'None'; allowed: True or False"),
            ('y = _contrib_quantized_concat(x, l, h) num_args="1" dim="-1"', "dim is '-1'; allowed: 0 to"),
            ("y = _imdecode(x, x)", "of training"),
            (
                'y = _npi_tensordot(x, x) a_axes_summed="(3, 3)" b_axes_summed="()"',
                "ends the process or hangs on some inputs",
            ),
            ("y = _sample_gamma(x, x)", "ends the process or hangs on some inputs"),
            ('y = _split_v2(x) indices="()"', "neither indices nor sections says how many outputs"),
            ('y = SliceChannel(x) num_outputs="0"', "num_outputs is '0'"),
            ('y = SliceChannel(x) num_outputs="1000000000"', "num_outputs is '1000000000'"),
            ('y = Concat(x, x) num_args="-1"', "num_args is '-1'"),
            ("y = Concat(x, x)", "num_args"),
            ("y = no_such_operator(x)", "this MXNet has no operator 'no_such_operator'"),
            ('y = _backward_Activation(x, x) act_type="relu"', "of training"),
            ('y = multi_sgd_update(x, x) num_weights="1" lrs="(1)" wds="(1)"', "of training"),
        ],
    )
    def test_of_others(self, line: str, says: str) -> None:
        text = refused(line, "return y")
        assert "node 'y'" in text
        assert says in text

    @pytest.mark.parametrize(
        "line",
        [
            'y = slice(x) begin="(None, 0, None)" end="(None, 2, None)"',
            'y = Convolution(x, w, b) kernel="[3,3]" num_filter=" 8 " __lr_mult__="2" weight_lr_mult="1"',
            'y = mean(x) axis="1"',
            'y = mean(x) axis="()"',
            'y = mean(x) axis="None"',
            'y = Reshape(x) shape="(0, -1, -4, 2, -2)"',
            'y = transpose(x) axes="(0L, 2L, 1L)"',
            'y = _split_v2(x) indices="(0,)"',
            'y = _split_v2(x) indices="()" sections="2"',
            "y = elemwise_add(x, x)",
            'y = _arange() start="0" stop="None"',
        ],
    )
    def test_what_mxnet_takes(self, line: str) -> None:
        check(line, "return y")

    @pytest.mark.parametrize(
        ("kind", "text", "found"),
        [
            ("int, required", " -3 ", (-3,)),
            ("int or None, optional", "None", ()),
            ("Shape(tuple), required", "(3, -1,)", (3, -1)),
            ("Shape(tuple), required", "(None, 2)", (2,)),
            ("Shape or None, optional", "()", ()),
            ("Shape(tuple), optional", "4", (4,)),
            ("float, optional", "(", None),
            ("tuple of <float>, required", "(0.1,)", None),
        ],
    )
    def test_integers(self, kind: str, text: str, found: tuple[int, ...] | None) -> None:
        assert integers(kind, text) == found

    @pytest.mark.parametrize("text", ["", "(3 3)", "(3,,3)", "3.5", "(1.5,)", "()()", "[3", "0x3", "(a)"])
    def test_what_are_no_integers(self, text: str) -> None:
        with pytest.raises(ValueError, match="integers such as"):
            integers("Shape(tuple), required", text)

    def test_operators_of_training(self) -> None:
        assert not any(map(is_to_run, ("_backward_copy", "sgd_mom_update", "multi_lars", "_CachedOp", "reset_arrays")))
        assert all(map(is_to_run, ("Convolution", "_sg_mkldnn_conv", "_contrib_quantize_v2", "_npx_relu", "_foreach")))


class TestArity:
    @pytest.mark.parametrize(
        ("line", "says"),
        [
            (
                'y = Convolution(x) kernel="(1, 1)" num_filter="8"',
                "has 1 inputs; allowed, with its attributes: 3 (data",
            ),
            ('y = Convolution(x, w, b) kernel="(1, 1)" num_filter="8" no_bias="True"', "has 3 inputs"),
            ("y = BatchNorm()", "has 0 inputs; allowed, with its attributes: 5"),
            ("y = BatchNorm(x, g, b, m, v, v)", "has 6 inputs"),
            ('y = Concat(x) num_args="2"', "has 1 inputs; allowed, with its attributes: 2"),
            ('y = LeakyReLU(x) act_type="prelu"', "2 (data, gamma)"),
            ('y = LeakyReLU(x, g) act_type="leaky"', "1 (data)"),
            ('y = RNN(x, p, s) mode="lstm" state_size="3" num_layers="1"', "4 (data, parameters, state, state_cell)"),
            ('y = SequenceMask(x) use_sequence_length="True"', "2 (data, sequence_length)"),
            ("y = _contrib_quantize_v2(x, x)", "has 2 inputs"),
            ("y = elemwise_add(x)", "2 (lhs, rhs)"),
        ],
    )
    def test_inputs(self, line: str, says: str) -> None:
        assert says in refused(line, "return y")

    @pytest.mark.parametrize(
        ("line", "count"),
        [
            ('y = SliceChannel(x) num_outputs="3"', 3),
            ('y = topk(x) ret_typ="both"', 2),
            ("y = topk(x)", 1),
            ("y = _contrib_quantize_v2(x)", 3),
            ('y = RNN(x, p, s, c) mode="lstm" state_size="3" num_layers="1" state_outputs="True"', 3),
            ("y = BatchNorm(x, g, b, m, v)", 1),
            ('y = BatchNorm(x, g, b, m, v) output_mean_var="True"', 3),
        ],
    )
    def test_outputs(self, line: str, count: int) -> None:
        check(line, f"z = relu(y:{count - 1})", f"return z, y:{count - 1}")
        assert f"reads output {count} of 'y', which has {count}" in refused(line, f"z = relu(y:{count})", "return z")
        assert f"gives output {count} of 'y', which has {count}" in refused(line, f"return y:{count}")

    def test_a_variable_has_one_output_and_no_inputs(self) -> None:
        assert "reads output 1 of 'x', which has 1" in refused("y = relu(x:1)", "return y")
        assert "has inputs or subgraphs" in refused("x = null", "y = null(x)", "return y")

    def test_a_variable_without_a_name(self) -> None:
        assert "a variable has no name" in refused('"" = null', 'return ""')

    def test_names_that_files_would_cut(self) -> None:
        """Passes add variables called after operators, such as "arg:x_bias"."""
        assert "a node is named 'arg:x'" in refused('"arg:x" = relu(data)', 'return "arg:x"')

    def test_no_outputs(self) -> None:
        with pytest.raises(GraphError, match="has no outputs"):
            check_graph(Graph((), ()), REGISTRY)


class TestVariables:
    @pytest.mark.parametrize(
        ("attr", "says"),
        [
            ('__dtype__="77"', "allowed: -1 to 12"),
            ('__dtype__="float"', "allowed: an integer"),
            ('__storage_type__="9"', "allowed: -1 to 2"),
            ('__shape__="(3,"', "allowed: integers"),
            ('__shape__="(-7, 3)"', "allowed: -1 to"),
            ('__input_shape__="(3,.,.)"', "allowed: integers"),
            ('__input_shape__="(3, 0, 4)"', "allowed: 1 to"),
        ],
    )
    def test_attributes(self, attr: str, says: str) -> None:
        assert says in refused(f"x = null {attr}", "return x")


# ---- files ---------------------------------------------------------------------------------------------------


def damaged(tmp_path: Path, change: Callable[[dict[str, Any]], None], *lines: str, model: Model | None = None) -> str:
    """What is said of a pair whose symbol was changed."""
    runtime.write_pair(model or build(*(lines or RESIDUAL)), tmp_path / "net")
    path = tmp_path / "net-symbol.json"
    written = json.loads(path.read_text())
    change(written)
    path.write_text(json.dumps(written))
    with pytest.raises(MxqError) as caught:
        runtime.load_model(tmp_path / "net")
    return str(caught.value)


def node(written: dict[str, Any], op: str) -> dict[str, Any]:
    return next(n for n in written["nodes"] if n["op"] == op)


class TestFiles:
    def test_the_file_is_named(self, tmp_path: Path) -> None:
        text = damaged(tmp_path, lambda w: node(w, "BatchNorm").update(inputs=[]))
        assert text.startswith(str(tmp_path / "net-symbol.json"))

    def test_what_the_file_holds_beside_is_not_given_to_mxnet(self, tmp_path: Path) -> None:
        model = build(*RESIDUAL)
        runtime.write_pair(model, tmp_path / "net")
        path = tmp_path / "net-symbol.json"
        lies = {"arg_nodes": [10**6, -1], "node_row_ptr": [9, 9]}
        path.write_text(json.dumps({**json.loads(path.read_text()), **lies}))
        assert [n.name for n in runtime.load_model(tmp_path / "net").graph] == [n.name for n in model.graph]

    @pytest.mark.parametrize("version", ["1.9", ["str", "a"], ["int", "a"], ["int"], 3, ["int", 1.5]])
    def test_a_version_that_is_none(self, tmp_path: Path, version: Any) -> None:
        assert "mxnet_version is" in damaged(tmp_path, lambda w: w.update(attrs={"mxnet_version": version}))

    def test_states_that_an_old_file_lacks_are_added(self, tmp_path: Path) -> None:
        """MXNet 0.8 did not write auxiliary states; MXNet adds them, but only to files of that time."""
        lines = (conv("c", "data"), bn("b", "c"), "return b")
        model = build(*lines)
        written = symbol_object(model.graph)
        node(written, "BatchNorm")["inputs"] = node(written, "BatchNorm")["inputs"][:3]
        with pytest.raises(GraphError, match="has 3 inputs; allowed, with its attributes: 5"):
            check_graph(read_symbol(written), REGISTRY)
        runtime.write_pair(model, tmp_path / "net")
        (tmp_path / "net-symbol.json").write_text(json.dumps({**written, "attrs": {"mxnet_version": ["int", 800]}}))
        assert set(runtime.load_model(tmp_path / "net").auxs) == {"b_moving_mean", "b_moving_var"}
        node(written, "BatchNorm")["attrs"]["moving_var_lr_mult"] = "1"
        with pytest.raises(GraphError, match="'moving_var_lr_mult' is of an input that the node does not have"):
            check_graph(read_symbol({**written, "attrs": {}}), REGISTRY)


class TestTargetShapes:
    """``target_shape``, MXNet's first attribute for a Reshape, whose size MXNet does not check."""

    @pytest.mark.parametrize(
        ("attrs", "result"),
        [
            ('target_shape="(2, 0)"', (2, 288)),
            ('target_shape="(0,)"', (576,)),
            ('target_shape="(2, 288)"', (2, 288)),
            ('target_shape="(7, 0)" keep_highest="True"', (2, 288)),
            ('target_shape="(9, 9)" shape="(0, -1)"', (2, 288)),  # shape wins
        ],
    )
    def test_what_fits(self, attrs: str, result: tuple[int, ...]) -> None:
        net = graph(f"y = Reshape(data) {attrs}", "return y")
        found = run(runtime.from_symbol(runtime.to_symbol(net), {}, {}))[0]
        np.testing.assert_array_equal(found, feeds()["data"].reshape(result))

    def test_a_size_that_does_not(self) -> None:
        """It corrupts memory in MXNet."""
        model = runtime.from_symbol(
            runtime.to_symbol(graph('y = Reshape(data) target_shape="(1,)"', "return y")), {}, {}
        )
        with pytest.raises(RuntimeFailure, match=r"would make \[1\] of \[2, 8, 6, 6\]; allowed: as many values"):
            run(model)

    def test_several_sides_left_open(self) -> None:
        with pytest.raises(GraphError, match=r"target_shape is '\(0, 0\)'; allowed: sizes, one 0 at most"):
            runtime.from_symbol(runtime.to_symbol(graph('y = Reshape(data) target_shape="(0, 0)"', "return y")), {}, {})


def test_messages_are_short() -> None:
    assert len(refused(f'y = Activation(x) act_type="{"relu" * 5000}"', "return y")) <= 1000


class TestSizes:
    """What MXNet does not check when it binds a network to data."""

    @pytest.mark.parametrize("shape", ["(1,)", "(2, -1, 500)", "(100, 100)", "(0, -1, 7)"])
    def test_a_reshape_to_another_size(self, shape: str) -> None:
        with pytest.raises(RuntimeFailure, match=r"'y' \(Reshape\) would make .* of \[2, 8, 6, 6\]"):
            run(Model(graph(f'y = Reshape(data) shape="{shape}"', "return y")))

    def test_inputs_that_do_not_fit_each_other(self) -> None:
        """Where an operator after it tells MXNet the size, it would divide by 0."""
        lines = ("y = where(data, w, b)", "z = elemwise_add(y, data)", "return z")
        model = Model(graph(*lines), {"w": np.zeros((8, 8, 1, 1), np.float32), "b": np.zeros(8, np.float32)})
        with pytest.raises(RuntimeFailure, match=r"'y' \(where\) would make .* of \[2, 8, 6, 6\], \[8, 8, 1, 1\]"):
            run(model)

    def test_a_size_that_values_tell(self) -> None:
        model = Model(
            graph(
                'i = slice_axis(data) axis="0" begin="0" end="1"',
                'j = Reshape(i) shape="(-1,)"',
                'k = Reshape(data) shape="(288, 2)"',
                "y = _contrib_boolean_mask(k, j)",
                "return y",
            )
        )
        assert run(model)[0].shape == (288, 2)

    def test_sizes_that_a_run_tells(self) -> None:
        data = mx.sym.var("data")
        choice = mx.sym.contrib.cond(mx.sym.sum(data) < 1e9, lambda: data * 2, lambda: -data)
        step = mx.sym.contrib.while_loop(
            lambda i, _: i < 2, lambda i, s: (s, [i + 1, s * 2]), [mx.sym.zeros((1,)), data], max_iterations=3
        )
        for symbol in (choice, step[1][1]):
            assert run(runtime.from_symbol(symbol, {}, {}))[0].shape == (2, 8, 6, 6)

    def test_an_input_that_no_operator_reads(self) -> None:
        symbol = mx.sym.Group([mx.sym.relu(mx.sym.var("data")), mx.sym.var("w")])
        fed = {**feeds(), "w": np.zeros(3, np.float32)}
        found = runtime.MxnetRunner().compile(runtime.from_symbol(symbol, {}, {}))(fed)
        assert [out.shape for out in found] == [(2, 8, 6, 6), (3,)]

    def test_a_tensor_that_memory_has_no_room_for(self) -> None:
        net = graph('y = tile(data) reps="(1000, 1000, 100, 100)"', "z = relu(y)", "return z")
        with pytest.raises(RuntimeFailure, match=r"'y' \(tile\) would make .* GB; allowed: 2147483647 values"):
            run(Model(net))

    @pytest.mark.parametrize(
        ("line", "fails"),
        [
            ("y = elemwise_div(i, j)", True),
            ("y = broadcast_mod(i, j)", True),
            ('y = _div_scalar(i) scalar="0"', True),
            ('y = _div_scalar(i) scalar="2"', False),
            ("y = elemwise_div(data, data)", False),
            ("y = broadcast_div(k, s)", False),
            ("y = broadcast_mod(k, p)", False),
            ("y = broadcast_mod(k, q)", True),
        ],
    )
    def test_integers_divided(self, line: str, fails: bool) -> None:
        """By sides of shapes, and by products of two of them, which are never 0, they are."""
        casts = ('i = Cast(data) dtype="int32"', 'j = Cast(data) dtype="int32"')
        sides = ('k = Cast(data) dtype="int64"', "a = shape_array(data)",
                 's = slice_axis(a) axis="0" begin="2" end="3"', "p = broadcast_mul(s, s)",
                 "q = broadcast_mul(p, p)")  # fmt: skip
        model = Model(graph(*casts, *sides, line, "return y"))
        if fails:
            with pytest.raises(RuntimeFailure, match=r"divides int(32|64), and a divisor of 0 would end the process"):
                run(model)
        else:
            assert run(model)[0].shape == (2, 8, 6, 6)

    @pytest.mark.parametrize(
        ("made", "codes"),
        [("_np_min(data)", "(-3,)"), ("_np_min(data)", "(-2, -3)"), ('_npi_zeros() shape="(0, 3)"', "(0, -1)")],
    )
    def test_what_reshapes_read_among_operators_of_numpy(self, made: str, codes: str) -> None:
        """MXNet's inference of shapes ends the process."""
        model = Model(graph(f"a = {made}", f'y = Reshape(a) shape="{codes}"', "z = broadcast_add(data, y)", "return z"))
        with pytest.raises(RuntimeFailure, match=r"'y' \(Reshape\) by .* reads a tensor of shape \["):
            run(model)
        fits = Model(graph("a = _np_copy(data)", 'y = Reshape(a) shape="(-3, -2)"', "return y"))
        assert run(fits)[0].shape == (16, 6, 6)

    def test_reshapes_within_a_loop_among_operators_of_numpy(self) -> None:
        data = mx.sym.var("data")
        made, _ = mx.sym.contrib.foreach(lambda x, s: (mx.sym.Reshape(x, shape=(-3,)), s), data, [mx.sym.zeros((1,))])
        with mx.util.np_shape(active=True), pytest.raises(RuntimeFailure, match="holds a Reshape by code -1 or -3"):
            run(runtime.from_symbol(made, {}, {}))

    @pytest.mark.parametrize(("op", "attr", "code"), [("Reshape", "shape", -4), ("_npx_reshape", "newshape", -6)])
    @pytest.mark.parametrize("sizes", ["0, -1", "-1, 0"])
    def test_an_axis_split_by_0(self, op: str, attr: str, code: int, sizes: str) -> None:
        net = graph(f'y = {op}(data) {attr}="({code}, {sizes})"', "return y")
        with pytest.raises(FormatError, match=f"allowed: sizes above 0 behind {code}"):
            check_graph(net, REGISTRY)


# ---- subgraphs -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def int8() -> Model:
    found = quantized(build(*RESIDUAL)).model
    assert {"_sg_mkldnn_conv", "_sg_mkldnn_fully_connected"} <= {n.op for n in found.graph.operators}
    return found


class TestFused:
    def test_what_mxq_writes(self, int8: Model) -> None:
        check_graph(int8.graph, REGISTRY)

    @pytest.mark.parametrize("backend", ["MKLDNN", "MKLDNN_QUANTIZE"])
    def test_what_mxnet_fuses(self, backend: str) -> None:
        sym = mx.sym.load_json(write_symbol(build(*RESIDUAL).graph)).get_backend_symbol(backend)
        check_graph(read_symbol(sym.tojson()), REGISTRY)

    @pytest.mark.parametrize("op", ["_sg_mkldnn_conv", "_sg_mkldnn_fully_connected"])
    @pytest.mark.parametrize(
        "change",
        [
            lambda n: n.update(subgraphs=[]),
            lambda n: n.update(subgraphs=n["subgraphs"] * 2),
            lambda n: n["subgraphs"][0].update(heads=[]),
            lambda n: n["subgraphs"][0].update(heads=[[0, 0, 0]]),
            lambda n: n["subgraphs"][0].update(heads=n["subgraphs"][0]["heads"] * 2),
            lambda n: n["subgraphs"][0]["nodes"][-1].update(op="softmax", inputs=[[0, 0, 0]], attrs={}),
            lambda n: n["inputs"].pop(),
            lambda n: n["inputs"].append(n["inputs"][0]),
            lambda n: n["inputs"].clear(),
            lambda n: n["attrs"].update(with_sum="True", with_bn="True", with_eltwise="True", with_relu="True"),
            lambda n: n["attrs"].update(quantized="False"),
        ],
    )
    def test_damage(self, int8: Model, op: str, change: Callable[[dict[str, Any]], None]) -> None:
        written = symbol_object(int8.graph)
        change(node(written, op))
        with pytest.raises(MxqError, match=op):
            check_graph(read_symbol(written), REGISTRY)

    def test_a_subgraph_where_none_belongs(self) -> None:
        written = symbol_object(graph("y = relu(x)", "return y"))
        written["nodes"][1]["subgraphs"] = [symbol_object(graph("z = relu(x)", "return z"))]
        with pytest.raises(MxqError, match="subgraphs"):
            check_graph(read_symbol(written), REGISTRY)


def loop() -> dict[str, Any]:
    data, state = mx.sym.var("data"), mx.sym.var("state")
    made = mx.sym.contrib.foreach(lambda x, s: (x + s[0], [x * s[0]]), data, [state])
    return json.loads(mx.sym.Group([made[0], made[1][0]]).tojson())


class TestControlFlow:
    def test_what_mxnet_writes(self) -> None:
        data = mx.sym.var("data")
        step = mx.sym.contrib.while_loop(
            lambda i, s: i < 5, lambda i, s: (s, [i + 1, s + i]), [mx.sym.var("i"), mx.sym.var("s")], 5
        )
        choice = mx.sym.contrib.cond(mx.sym.var("p") < 1, lambda: mx.sym.exp(data), lambda: mx.sym.sin(data))
        for made in (loop(), json.loads(mx.sym.Group([step[0][0], choice]).tojson())):
            check_graph(read_symbol(made), REGISTRY)

    @pytest.mark.parametrize(
        ("attr", "value"),
        [
            ("in_data_locs", "(7,)"),
            ("in_state_locs", "(-1,)"),
            ("in_state_locs", "(0,)"),
            ("remain_locs", "(1,)"),
            ("num_outputs", "5"),
            ("num_out_data", "0"),
            ("num_args", "9"),
        ],
    )
    def test_damage(self, attr: str, value: str) -> None:
        made = loop()
        node(made, "_foreach")["attrs"][attr] = value
        with pytest.raises(MxqError, match="_foreach"):
            check_graph(read_symbol(made), REGISTRY)


# ---- parameters ----------------------------------------------------------------------------------------------


class TestParameters:
    def test_those_that_fit(self) -> None:
        check_parameters(build(*RESIDUAL))

    @pytest.mark.parametrize(
        ("lines", "name", "shape", "asked"),
        [
            (RESIDUAL, "c0_weight", (8, 8, 5, 5), "[8, *, 3, 3]"),
            (RESIDUAL, "c0_weight", (8, 8), "[8, *, 3, 3]"),
            (RESIDUAL, "c0_bias", (3,), "[8]"),
            (RESIDUAL, "c1_weight", (8, 3, 3, 3), "[8, 8, 3, 3]"),
            (RESIDUAL, "b0_gamma", (3,), "[8]"),
            (RESIDUAL, "b0_moving_var", (1,), "[8]"),
            (RESIDUAL, "f0_weight", (9, 72), "[10, *]"),
            (RESIDUAL, "f0_bias", (10, 1), "[10]"),
            (("y = BatchNorm(data, g, b, m, v)", "return y"), "b", (3,), "[8]"),
            (('y = LayerNorm(data, g, b) axis="1"', "return y"), "b", (3,), "[8]"),
            (("y = InstanceNorm(data, g, b)", "return y"), "b", (3,), "[8]"),
            (
                ('y = Deconvolution(data, w) kernel="(2, 2)" num_filter="6" num_group="2"', "return y"),
                "w",
                (8, 6, 2, 2),
                "[*, 3, 2, 2]",
            ),
            (
                (conv("c", "data"), 'y = LeakyReLU(c, slope) act_type="prelu"', "return y"),
                "slope",
                (3,),
                "[8]",
            ),
        ],
    )
    def test_one_that_does_not(self, lines: tuple[str, ...], name: str, shape: tuple[int, ...], asked: str) -> None:
        model = build(*lines)
        tables = {
            kind: {k: np.zeros(shape, np.float32) if k == name else v for k, v in getattr(model, kind).items()}
            for kind in ("args", "auxs")
        }
        with pytest.raises(FormatError) as caught:
            check_parameters(Model(model.graph, **tables))
        assert f"the parameter {name!r} of" in str(caught.value)
        assert f"has shape {list(shape)}; the graph asks for {asked}" in str(caught.value)

    def test_those_of_group_norm_are_of_groups(self) -> None:
        lines = (conv("c", "data"), 'y = GroupNorm(c, g, b) num_groups="2"', "return y")
        model = build(*lines)
        assert model.args["g"].shape == (2,)
        check_parameters(model)

    def test_groups_that_do_not_divide(self) -> None:
        with pytest.raises(FormatError, match="num_filter 8 is no multiple of num_group 3"):
            check_parameters(
                Model(graph(conv("c", "data", 'kernel="(1, 1)" num_filter="8" num_group="3"'), "return c"))
            )

    def test_a_sum_of_different_channels(self) -> None:
        one, other = (conv(n, "data", f'kernel="(1, 1)" num_filter="{c}"') for n, c in (("a", 8), ("b", 4)))
        with pytest.raises(FormatError, match="reads tensors of 8 and 4 channels"):
            check_parameters(Model(graph(one, other, "y = elemwise_add(a, b)", "return y")))

    def test_a_shape_that_is_read_alone_may_have_other_channels(self) -> None:
        one, other = (conv(n, "data", f'kernel="(1, 1)" num_filter="{c}"') for n, c in (("a", 8), ("b", 4)))
        for line in ('y = _contrib_BilinearResize2D(a, b) mode="like"', "y = slice_like(a, b)"):
            check_parameters(Model(graph(one, other, line, "return y")))

    @pytest.mark.parametrize("shape", [(1,), (8,)])
    def test_prelu_of_one_or_each_channel(self, shape: tuple[int, ...]) -> None:
        lines = (conv("c", "data"), 'y = LeakyReLU(c, slope) act_type="prelu"', "return y")
        model = build(*lines)
        check_parameters(Model(model.graph, {**model.args, "slope": np.ones(shape, np.float32)}))

    def test_a_symbol_with_parameters_that_do_not_fit(self) -> None:
        model = build(*RESIDUAL)
        sym = runtime.to_symbol(model.graph)
        with pytest.raises(FormatError, match="'b0_gamma' of 'b0' has shape"):
            runtime.from_symbol(sym, {**model.args, "b0_gamma": np.ones(3, np.float32)}, model.auxs)


# ---- attributes that passes read -----------------------------------------------------------------------------


class TestNodeAttributes:
    @pytest.mark.parametrize("text", ["(3,.,.)", "1.2.3", "9" * 400])
    def test_integers(self, text: str) -> None:
        found = graph(f'y = relu(x) kernel="{text}"', "return y")["y"]
        with pytest.raises(GraphError, match=r"node 'y' \(relu\): kernel is .*; allowed: integers"):
            found.ints("kernel")

    def test_numbers(self) -> None:
        found = graph('y = relu(x) slope="steep"', "return y")["y"]
        with pytest.raises(GraphError, match=r"node 'y' \(relu\): slope is 'steep'; allowed: a number"):
            found.number("slope", 0)
