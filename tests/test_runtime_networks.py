"""Networks in: the order of their arguments, what they compute in inference, and parameters that none can run with."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mxq  # isort: skip  (before mxnet)

import mxnet as mx
from graphs import bn, build, conv, fc
from helpers import assert_close

from mxq import runtime
from mxq.errors import ConfigError, FormatError, QuantizeError, RuntimeFailure
from mxq.graph.annotation_text import annotated
from mxq.graph.ir import Graph, Model, Node, Ref
from mxq.numerics import sqnr_db
from mxq.runtime import MxnetRunner, from_symbol, load_model, to_block, write_pair
from mxq.runtime.ordering import in_call_order, natural

RNG = np.random.default_rng(0)
UNUSED = "ignore:The .* input to HybridBlock is not used by any computation:UserWarning"
UNTYPED = "ignore:Cannot decide type:UserWarning"
"""MXNet's own of networks in which the type of an input is open."""


class Late(mx.gluon.HybridBlock):
    """Reads its arguments in another order than it takes them, and two of them only if they are given."""

    def __init__(self) -> None:
        super().__init__(prefix="late_")
        with self.name_scope():
            self.dense = mx.gluon.nn.Dense(4, in_units=4)

    def hybrid_forward(self, F: Any, x: Any, y: Any, bias: Any = None, scale: Any = None) -> Any:  # noqa: N803
        found = self.dense(y) * 10 - x
        found = found if bias is None else F.broadcast_add(found, bias)
        return found if scale is None else F.broadcast_mul(found, scale)


class Lists(mx.gluon.HybridBlock):
    """``*args``, or a list."""

    def hybrid_forward(self, F: Any, *xs: Any) -> Any:  # noqa: N803
        xs = xs[1] if isinstance(xs[1], list) else xs[1:]
        return xs[1] - xs[0] * 2


class Ignoring(mx.gluon.HybridBlock):
    """Reads its second argument alone."""

    def __init__(self) -> None:
        super().__init__(prefix="ignoring_")
        self.scale = self.params.get("scale", shape=(4,))

    def hybrid_forward(self, F: Any, x: Any, y: Any, z: Any, scale: Any) -> Any:  # noqa: N803
        return F.broadcast_mul(F.relu(y), scale)


def initialised(net: Any) -> Any:
    net.initialize(mx.init.Normal(1))
    return net


def arrays(count: int) -> list[Any]:
    return [mx.nd.array(RNG.standard_normal((3, 4))) for _ in range(count)]


def run(model: Model, *given: Any) -> np.ndarray:
    """The first output, with what is given for the arguments in order."""
    fed = {name: array.asnumpy() for name, array in zip(model.arguments, given, strict=True) if name}
    return np.asarray(MxnetRunner().compile(model)(fed)[0])


@pytest.mark.filterwarnings(UNTYPED)
class TestOrder:
    @pytest.mark.parametrize("kind", ["block", "hybridized", "symbol block", "pair", "symbol"])
    def test_inputs_are_those_of_the_call_in_its_order(self, kind: str, tmp_path: Path) -> None:
        block, given = initialised(Late()), arrays(2)
        wanted = block(*given).asnumpy()
        net: Any = block
        if kind != "block":
            block.hybridize()
            block(*given)
            block.export(str(tmp_path / "net"))
            net = {"hybridized": block, "pair": tmp_path / "net"}.get(kind)
        if kind == "symbol block":
            block.export(str(tmp_path / "net"))
            symbol = mx.sym.load(str(tmp_path / "net-symbol.json"))
            net = mx.gluon.SymbolBlock(symbol, [mx.sym.var("data0"), mx.sym.var("data1")], block.collect_params())
        if kind == "symbol":
            net = mx.model.load_checkpoint(str(tmp_path / "net"), 0)
        model = load_model(net)
        assert model.inputs == model.arguments == ("data0", "data1")
        assert_close(run(model, *given), wanted, rtol=1e-5, atol=1e-5)

    def test_a_symbol_block_has_its_own_order(self) -> None:
        symbol = mx.sym.var("b") - mx.sym.var("a") * 2
        block = mx.gluon.SymbolBlock(symbol, [mx.sym.var("a"), mx.sym.var("b")])
        assert load_model(block).inputs == ("a", "b")
        assert load_model((symbol, {}, {})).inputs == ("b", "a")

    def test_what_is_written_keeps_it(self, tmp_path: Path) -> None:
        symbol = mx.sym.broadcast_mul(mx.sym.var("b"), mx.sym.var("w")) - mx.sym.var("a") * 2
        model = from_symbol(symbol, {"w": np.full(4, 3, np.float32)}, {}, order=["a", "b"])
        write_pair(model, tmp_path / "net")
        again = load_model(tmp_path / "net")
        assert again.inputs == ("a", "b")
        given = arrays(2)
        for net in (to_block(model), runtime.read_block(tmp_path / "net")):
            np.testing.assert_array_equal(net(*given).asnumpy(), (given[1] * 3 - given[0] * 2).asnumpy())

    def test_it_survives_rewrites(self) -> None:
        model = from_symbol(mx.sym.var("b") - mx.sym.var("a"), {}, {}, order=["a", "b"])
        (minus,) = model.graph.operators
        turned = Node("plus", "elemwise_add", {}, minus.inputs[::-1])
        changed = model.with_graph(model.graph.replace({minus.name: (turned,)}, {minus.out: turned.out}))
        assert [n.name for n in changed.graph.variables] == ["a", "b"]
        assert changed.inputs == ("a", "b")
        back = changed.with_graph(changed.graph.replace({"plus": (minus,)}, {turned.out: minus.out}))
        assert back.inputs == ("a", "b")

    def test_numbers_go_by_their_value_and_labels_last(self) -> None:
        names = [f"data{i}" for i in (3, 10, 2)]
        assert natural(names) == ["data2", "data3", "data10"]
        assert natural(["softmax_label", "b", "a1", "label"]) == ["b", "a1", "softmax_label", "label"]
        assert natural(["x1", "y0"]) == ["x1", "y0"]

    def test_places_in_a_file_that_make_no_sense_are_not_followed(self) -> None:
        def graph(*places: str) -> Model:
            nodes = [annotated(Node(f"x{i}", "null", {"__input_place__": p})) for i, p in enumerate(places)]
            return Model(Graph((*nodes, Node("y", "add_n", {}, tuple(n.out for n in nodes))), (Ref("y"),)))

        assert graph("(1, 2)", "(0, 2)").inputs == ("x1", "x0")
        for places in (("(0, 2)", "(0, 2)"), ("(2, 2)", "(9, 1)"), ("", "no")):
            model = graph(*places)
            assert model.inputs == ("x0", "x1")
            assert Model(in_call_order(model.graph, ())).inputs == ("x0", "x1")


class TestBlocks:
    def test_optional_arguments_count_where_a_hybridized_block_ran_with_them(self) -> None:
        net, given = initialised(Late()), arrays(3)
        assert load_model(net).arguments == ("data0", "data1")
        net.hybridize()
        wanted = net(given[0], given[1], None, given[2]).asnumpy()
        model = load_model(net)
        assert model.arguments == ("data0", "data1", "data2")
        assert_close(run(model, *given), wanted, rtol=1e-5, atol=1e-5)

    @pytest.mark.filterwarnings(UNUSED)
    @pytest.mark.parametrize("listed", [False, True], ids=["*args", "list"])
    def test_args_and_lists(self, *, listed: bool) -> None:
        net, (x, y, z) = Lists(), arrays(3)
        with pytest.raises(QuantizeError, match=r"Lists cannot be traced with data \(\w+: .*hybridize it and run"):
            load_model(net)
        net.hybridize()
        net(x, [y, z]) if listed else net(x, y, z)
        model = load_model(net)
        assert model.arguments == ("", "data1", "data2")
        np.testing.assert_array_equal(run(model, x, y, z), (z - y * 2).asnumpy())

    @pytest.mark.filterwarnings(UNUSED)
    def test_arguments_that_nobody_reads_keep_their_places(self, tmp_path: Path) -> None:
        net, given = initialised(Ignoring()), arrays(3)
        model = load_model(net)
        assert (model.arguments, model.inputs) == (("", "data1", ""), ("data1",))
        write_pair(model, tmp_path / "net")
        assert load_model(tmp_path / "net").arguments == model.arguments
        block = to_block(model)
        np.testing.assert_array_equal(block(*given).asnumpy(), net(*given).asnumpy())
        assert load_model(block).arguments == model.arguments

    def test_a_layer_that_adds_arguments_of_its_own_takes_what_a_call_requires(self) -> None:
        net, (x,) = initialised(mx.gluon.rnn.LSTM(5, input_size=4)), arrays(1)
        net.hybridize()
        net(x.reshape((3, 1, 4)))
        assert load_model(net).inputs == ("data",)

    def test_deferred_parameters_are_settled_as_by_a_first_run(self) -> None:
        def net() -> Any:
            mx.random.seed(3)
            made = mx.gluon.nn.HybridSequential(prefix="net_")
            made.add(mx.gluon.nn.Dense(3, prefix="one_"), mx.gluon.nn.Dense(2, prefix="two_"))
            return initialised(made)

        (x,), run_once, settled = arrays(1), net(), net()
        with pytest.raises(QuantizeError, match="run the network once on a batch so that every shape is known"):
            load_model(settled)
        mx.random.seed(4)
        run_once(x)
        mx.random.seed(4)
        assert runtime.is_deferred(settled)
        runtime.settle(settled, {"data": x.asnumpy()})
        assert not runtime.is_deferred(settled)
        found, wanted = load_model(settled), load_model(run_once)
        assert found.args.keys() == wanted.args.keys()
        for name, value in found.args.items():
            np.testing.assert_array_equal(value, wanted.args[name])

    def test_a_batch_that_settles_nothing(self) -> None:
        net = initialised(mx.gluon.nn.Conv2D(3, 3))
        with pytest.raises(QuantizeError, match=r"Conv2D's parameters cannot be settled on the first batch, data \[3"):
            runtime.settle(net, {"data": np.zeros((3, 4), np.float32)})

    def test_a_parameter_of_no_node_needs_no_value(self) -> None:
        net = initialised(Late())
        net.spare = mx.gluon.nn.Dense(3)  # never run
        assert load_model(net).inputs == ("data0", "data1")

    def test_a_row_sparse_parameter_is_dense_in_inference(self) -> None:
        weight = mx.sym.var("weight", shape=(6, 2), stype="row_sparse")
        symbol = mx.sym.sparse.dot(mx.sym.var("data", stype="csr"), weight)
        values = RNG.standard_normal((6, 2)).astype(np.float32)
        model = from_symbol(symbol, {"weight": mx.nd.array(values).tostype("row_sparse")}, {})
        rows = RNG.standard_normal((3, 6)).astype(np.float32)
        assert_close(to_block(model)(mx.nd.array(rows).tostype("csr")).asnumpy(), rows @ values, rtol=1e-5, atol=1e-5)

    def test_an_operator_or_an_input_that_says_it_is_row_sparse(self) -> None:
        """Nothing comes of it in MXNet's executor; a SymbolBlock asserts that nobody says so."""
        data = mx.sym.var("data", shape=(2, 3), stype="row_sparse")
        symbol = mx.sym.Activation(data, act_type="relu", name="a", attr={"__storage_type__": "1"})
        block = to_block(from_symbol(symbol, {}, {}))
        assert block(mx.nd.array([[-1.0, 2.0, 3.0]])).asnumpy().tolist() == [[0.0, 2.0, 3.0]]

    def test_a_gluon_block_with_a_row_sparse_parameter(self) -> None:
        class Sparse(mx.gluon.HybridBlock):
            def __init__(self) -> None:
                super().__init__(prefix="sparse_")
                self.weight = self.params.get("weight", shape=(4, 2), stype="row_sparse", init=mx.init.Normal(1))

            def hybrid_forward(self, F: Any, x: Any, weight: Any) -> Any:  # noqa: N803
                return F.dot(x, weight)

        (model, (x,)) = load_model(initialised(Sparse())), arrays(1)
        assert_close(run(model, x), x.asnumpy() @ model.args["sparse_weight"], rtol=1e-5, atol=1e-5)

    @pytest.mark.parametrize("hybridized", [False, True])
    def test_a_network_of_numpy_semantics(self, *, hybridized: bool) -> None:
        (x,) = arrays(1)
        mx.npx.set_np()
        try:
            net = initialised(mx.gluon.nn.HybridSequential())
            net.add(mx.gluon.nn.Dense(5, activation="relu"), mx.gluon.nn.Dense(2))
            net.initialize()
            if hybridized:
                net.hybridize()
            wanted = net(mx.np.array(x.asnumpy())).asnumpy()
            model = load_model(net)
            assert {n.op for n in model.graph.operators} == {"FullyConnected", "Activation"}
            assert_close(run(model, x), wanted, rtol=1e-5, atol=1e-6)
            found = to_block(model)(mx.np.array(x.asnumpy()))
            assert isinstance(found, mx.np.ndarray)
            assert_close(found.asnumpy(), wanted, rtol=1e-5, atol=1e-6)
        finally:
            mx.npx.reset_np()

    @pytest.mark.filterwarnings(UNTYPED)
    def test_a_pair_of_numpy_semantics_loads_as_mxnet_writes_such(self, tmp_path: Path) -> None:
        (x,) = arrays(1)
        mx.npx.set_np()
        try:
            x = mx.np.array(x.asnumpy())
            net = initialised(mx.gluon.nn.Dense(2))
            wanted = net(x).asnumpy()
            block = to_block(load_model(net))
            write_pair(load_model(net), tmp_path / "net")
            block.export(str(tmp_path / "export"))
            for name in ("net", "export"):
                pair = tmp_path / name
                stock = mx.gluon.SymbolBlock.imports(f"{pair}-symbol.json", ["data"], f"{pair}-0000.params")
                for found in (stock, runtime.read_block(pair)):
                    assert_close(found(x).asnumpy(), wanted, rtol=1e-5, atol=1e-6)
        finally:
            mx.npx.reset_np()

    def test_every_trace_of_a_block_is_the_same_network(self) -> None:
        """MXNet counts versions of auxiliary states on, and statistics would be of another network."""
        norm = mx.gluon.nn.BatchNorm(in_channels=4)
        net = mx.gluon.nn.HybridSequential()
        net.add(norm, mx.gluon.nn.Dense(4, in_units=4, flatten=False), norm)
        initialised(net)
        first, second = (load_model(net) for _ in range(2))
        assert first.graph == second.graph
        assert [r.version for node in first.graph for r in node.inputs if r.version] == [1, 1, 2, 2]

    def test_a_plain_block(self) -> None:
        with pytest.raises(QuantizeError, match="net is a Sequential, a Block whose graph cannot be seen; allowed: "):
            load_model(mx.gluon.nn.Sequential())


class TestModules:
    SYMBOL = mx.sym.SoftmaxOutput(
        mx.sym.FullyConnected(mx.sym.var("b") - mx.sym.var("a"), num_hidden=2, name="fc"), name="softmax"
    )
    SHAPES = (("a", (3, 4)), ("b", (3, 4)))

    def test_bound_or_loaded(self, tmp_path: Path) -> None:
        module = mx.mod.Module(self.SYMBOL, data_names=("a", "b"))
        module.bind(self.SHAPES, [("softmax_label", (3,))], for_training=False)
        module.init_params(mx.init.Normal(1))
        module.save_checkpoint(str(tmp_path / "net"), 7)
        loaded = mx.mod.Module.load(str(tmp_path / "net"), 7, data_names=("a", "b"))
        given = arrays(2)
        module.forward(mx.io.DataBatch(given), is_train=False)
        wanted = module.get_outputs()[0].asnumpy()
        for net in (module, loaded):
            model = load_model(net)
            assert model.arguments == ("a", "b")
            assert_close(run(model, *given), wanted, rtol=1e-5, atol=1e-6)

    def test_without_parameters(self) -> None:
        buckets = mx.mod.BucketingModule(lambda _: (self.SYMBOL, ("a", "b"), ("softmax_label",)), default_bucket_key=4)
        for module in (mx.mod.Module(self.SYMBOL, data_names=("a", "b")), mx.mod.SequentialModule(), buckets):
            with pytest.raises(QuantizeError, match=r"net is a \w*Module without a symbol or parameters; allowed"):
                load_model(module)


class TestInference:
    @pytest.mark.parametrize("op", ["SoftmaxOutput", "Softmax"])
    @pytest.mark.parametrize(("multi", "preserve"), [*itertools.product((False, True), repeat=2)])
    @pytest.mark.parametrize("shape", [(2, 3), (2, 3, 4), (2, 3, 4, 2), (2, 3, 4, 2, 3)], ids=len)
    @pytest.mark.parametrize("shown", [False, True], ids=["rank unknown", "rank shown"])
    def test_softmax_heads_are_what_mxnet_computes(
        self, op: str, shape: tuple[int, ...], *, multi: bool, preserve: bool, shown: bool
    ) -> None:
        data = mx.sym.var("data")
        data = mx.sym.reshape(data, shape=(-1, *shape[1:])) if shown else data
        head = getattr(mx.sym, op)(data, name="softmax", multi_output=multi, preserve_shape=preserve)
        x = RNG.standard_normal(shape).astype(np.float32)
        label = mx.nd.zeros(head.infer_shape(data=shape)[0][-1])
        bound = head.bind(mx.cpu(), {"data": mx.nd.array(x), "softmax_label": label}, grad_req="null")
        model = from_symbol(head, {}, {})
        assert model.inputs == ("data",)
        assert_close(run(model, mx.nd.array(x)), bound.forward()[0].asnumpy(), rtol=1e-5, atol=1e-7)
        if multi or preserve or (shown and len(shape) in (2, 4)):
            assert model.graph.nodes[-1].op == "softmax"  # which later passes and verify know

    def test_a_label_that_the_network_computes_with_is_an_input(self) -> None:
        data, label = mx.sym.var("data"), mx.sym.var("softmax_label")
        margin = mx.sym.one_hot(label, depth=4, on_value=2)
        head = mx.sym.SoftmaxOutput(data - margin, label, name="softmax")
        assert from_symbol(head, {}, {}).inputs == ("data", "softmax_label")

    @pytest.mark.parametrize("dtype", ["float16", "float64"])
    def test_other_precisions_become_float32(self, dtype: str) -> None:
        net = initialised(mx.gluon.nn.HybridSequential())
        net.add(mx.gluon.nn.Dense(3, in_units=4))
        net.initialize()
        (x,) = arrays(1)
        wanted = net(x).asnumpy()
        net.cast(dtype)
        model = load_model(net)
        assert {v.dtype for v in model.args.values()} == {np.dtype(np.float32)}
        assert_close(run(model, x), wanted, rtol=2e-3, atol=2e-3)  # float16 has 11 bits

    def test_casts_to_half_precision_go_too(self) -> None:
        half = mx.sym.Cast(mx.sym.var("data", dtype="float16"), dtype="float16")
        weight = {"w": RNG.standard_normal((3, 4)).astype(np.float16)}
        dense = mx.sym.FullyConnected(half, mx.sym.var("w"), no_bias=True, num_hidden=3)
        model, (x,) = from_symbol(dense, weight, {}), arrays(1)
        wanted = x.asnumpy() @ weight["w"].astype(np.float32).T
        assert_close(run(model, x), wanted, rtol=1e-5, atol=1e-5)

    def test_bfloat16_is_widened(self) -> None:
        bits = np.array([16320, 49168], np.uint16).view([("bfloat16", np.uint16)])
        model = from_symbol(mx.sym.broadcast_add(mx.sym.var("data"), mx.sym.var("w")), {"w": bits}, {})
        np.testing.assert_array_equal(model.args["w"], np.array([1.5, -2.25], np.float32))


class TestValues:
    @pytest.mark.parametrize(
        ("value", "dtype"),
        [("text", "<U4"), (np.array([None]), "object"), (np.array([1j]), "complex128"), (np.uint64(1), "uint64")],
    )
    def test_what_mxnet_has_no_type_for(self, value: Any, dtype: str) -> None:
        with pytest.raises(QuantizeError, match=f"parameter 'w' is {dtype}; allowed: float32, uint8, int8"):
            from_symbol(mx.sym.broadcast_mul(mx.sym.var("data"), mx.sym.var("w")), {"w": value}, {})

    def test_what_is_no_table(self) -> None:
        with pytest.raises(QuantizeError, match="arg_params is a list; allowed: a dictionary of arrays by name, or"):
            load_model((mx.sym.relu(mx.sym.var("data")), [1], {}))
        with pytest.raises(QuantizeError, match="aux_params is a tuple; allowed: a dictionary"):
            load_model((mx.sym.relu(mx.sym.var("data")), {}, (1,)))

    def model(self, name: str, value: float) -> tuple[Any, dict[str, Any], dict[str, Any]]:
        """A network whose parameter ``name`` has ``value`` at one place."""
        model = build(conv("conv0", "data"), bn("bn0", "conv0"), fc("fc0", "bn0"), "return fc0")
        tables = {**model.args, **model.auxs}
        tables[name] = tables[name].copy()
        tables[name].reshape(-1)[1] = value
        args, auxs = ({k: tables[k] for k in table} for table in (model.args, model.auxs))
        return runtime.to_symbol(model.graph), args, auxs

    @pytest.mark.parametrize("name", ["conv0_weight", "conv0_bias", "bn0_beta", "bn0_moving_mean", "fc0_weight"])
    @pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
    def test_what_is_not_finite(self, name: str, value: float) -> None:
        counted = "1 NaN, 0 Inf" if np.isnan(value) else "0 NaN, 1 Inf"
        says = rf"^parameter '{name}': 1 of \d+ values are not finite \({counted}\); training diverged, "
        with pytest.raises(QuantizeError, match=says):
            load_model(self.model(name, value))

    def test_a_variance_without_a_root(self) -> None:
        says = r"'bn0_moving_var': 1 of 8 variances have no root, such as -0\.01 with eps 1e-05; training diverged"
        with pytest.raises(QuantizeError, match=says):
            load_model(self.model("bn0_moving_var", -0.01))
        load_model(self.model("bn0_moving_var", -1e-6))  # eps is more: MXNet computes with it

    def test_what_no_operator_reads(self) -> None:
        sym, args, auxs = self.model("fc0_bias", 0)
        load_model((sym, {**args, "spare": np.array([np.nan])}, auxs))
        gamma = np.full(3, np.nan, np.float32)
        tables = {"bn_gamma": gamma, "bn_beta": gamma * 0 + 1}
        states = {"bn_moving_mean": np.zeros(3), "bn_moving_var": np.ones(3)}
        tables["bn_beta"] = np.ones(3)
        load_model((mx.sym.BatchNorm(mx.sym.var("data"), fix_gamma=True, name="bn"), tables, states))
        with pytest.raises(QuantizeError, match="parameter 'bn_gamma'"):
            load_model((mx.sym.BatchNorm(mx.sym.var("data"), fix_gamma=False, name="bn"), tables, states))

    def test_an_infinity_may_mask(self) -> None:
        masked = mx.sym.broadcast_add(mx.sym.var("data"), mx.sym.var("mask"))
        load_model((masked, {"mask": np.array([0, -np.inf], np.float32)}, {}))
        with pytest.raises(QuantizeError, match="parameter 'mask': 1 of 2"):
            load_model((masked, {"mask": np.array([0, np.nan], np.float32)}, {}))


class TestFiles:
    def pair(self, prefix: Path, **tables: Any) -> Path:
        """A fully connected layer whose weight is called as a converted network has it."""
        mx.sym.FullyConnected(mx.sym.var("data"), mx.sym.var("scope/w:0"), no_bias=True, num_hidden=2).save(
            f"{prefix}-symbol.json"
        )
        for epoch, table in tables.items():
            mx.nd.save(f"{prefix}-{epoch[1:]}.params", table)
        return prefix

    @pytest.mark.parametrize("prefix", ["", "arg:"])
    def test_only_arg_and_aux_are_prefixes(self, prefix: str, tmp_path: Path) -> None:
        weight = mx.nd.array(RNG.standard_normal((2, 3)))
        net = self.pair(tmp_path / "net", e0000={f"{prefix}scope/w:0": weight})
        np.testing.assert_array_equal(load_model(net).args["scope/w:0"], weight.asnumpy())

    @pytest.mark.parametrize("name", ["net", "net[1]", "n?t*", "[!n]et"])
    def test_epochs_of_more_than_four_digits(self, name: str, tmp_path: Path) -> None:
        tables = {f"e{n}": {"scope/w:0": mx.nd.ones((2, 3)) * int(n)} for n in ("0003", "9999", "10000")}
        net = self.pair(tmp_path / name, **tables)
        self.pair(tmp_path / "net1", e20000={"scope/w:0": mx.nd.ones((2, 3))})
        assert load_model(net).args["scope/w:0"][0, 0] == 10000
        for epoch in (3, 9999, 10000):
            assert load_model(net, epoch).args["scope/w:0"][0, 0] == epoch

    @pytest.mark.parametrize("epoch", ["0", -1, 1.0, True])
    def test_what_is_no_epoch(self, epoch: Any, tmp_path: Path) -> None:
        net = self.pair(tmp_path / "net", e0001={"scope/w:0": mx.nd.ones((2, 3))})
        with pytest.raises(ConfigError, match=r"epoch is .*; allowed: a whole number, 0 or more, or None"):
            load_model(net, epoch)

    def test_brackets_are_written_and_read(self, tmp_path: Path) -> None:
        model = build(fc("fc0", "data"), "return fc0")
        write_pair(model, tmp_path / "net[1]")
        assert load_model(tmp_path / "net[1]").args.keys() == model.args.keys()
        with pytest.raises(FormatError, match="no parameter file"):
            load_model(tmp_path / "net[1]", epoch=1)


class TestFailures:
    """MXNet runs operators behind the caller's back; what fails belongs to the network that failed."""

    @staticmethod
    def failing() -> Model:
        data, table = mx.sym.abs(mx.sym.var("data")), mx.sym.var("table")
        heads = [mx.sym.take(table, data + 100 * i, mode="raise", name=f"take{i}") for i in range(1, 5)]
        return from_symbol(mx.sym.Group(heads), {"table": np.ones((3, 2), np.float32)}, {})

    @staticmethod
    def sound() -> Model:
        picked = mx.sym.take(mx.sym.var("table"), mx.sym.abs(mx.sym.var("data")) * 0, mode="raise")
        return from_symbol(mx.sym.topk(picked, ret_typ="value"), {"table": np.ones((3, 2), np.float32)}, {})

    def test_of_one_network_are_not_told_of_another(self) -> None:
        x = {"data": np.ones((2, 3), np.float32)}
        for _ in range(3):
            with pytest.raises(RuntimeFailure, match=r"MXNet failed while it ran the network: .*indices out of bound"):
                MxnetRunner().compile(self.failing())(x)  # nobody reads what it makes
            for _ in range(5):
                np.testing.assert_array_equal(run(self.sound(), mx.nd.array(x["data"])), np.ones((2, 3, 1)))

    def test_of_work_before_a_call_are_told_as_such(self) -> None:
        index = mx.nd.array([7])
        mx.nd.take(mx.nd.ones((3, 2)), index, mode="raise")
        model = build(fc("fc0", "data"), "return fc0")
        net = (runtime.to_symbol(model.graph), model.args, {})
        with pytest.raises(RuntimeFailure, match=r"MXNet failed in work begun before this call.*: .*out of bound"):
            load_model(net)
        load_model(net)

    def test_of_a_parameter_name_it(self) -> None:
        with pytest.raises(RuntimeFailure, match=r"while it made the parameter 'w': .*out of bound"):
            from_symbol(
                mx.sym.broadcast_add(mx.sym.var("data"), mx.sym.var("w")),
                {"w": mx.nd.take(mx.nd.ones((3, 2)), mx.nd.array([7]), mode="raise")},
                {},
            )


def sqnr(wanted: np.ndarray, found: np.ndarray) -> float:
    """Signal to quantization noise in dB; infinite where the target's guard left all in float."""
    return sqnr_db(wanted, found)


@pytest.mark.filterwarnings(UNTYPED)
class TestQuantized:
    """Networks and data of these kinds through `mxq.quantize_net` and `mxq.quantize_model`."""

    @pytest.mark.parametrize("effort", ["fast", "default"])
    def test_tuples_and_calls_go_by_the_order_of_the_call(self, effort: str, tmp_path: Path) -> None:
        net = initialised(Late())

        def batch() -> list[Any]:
            x, y = arrays(2)
            return [x, y * 50]

        wanted = net(*(given := batch())).asnumpy()
        block = mxq.quantize_net(net, [(*batch(), mx.nd.zeros(3)) for _ in range(12)], effort=effort)
        assert sqnr(wanted, block(*given).asnumpy()) > 25  # 8 bits; exchanged, the noise is as large as the signal
        mxq.save(block, tmp_path / "net")
        np.testing.assert_array_equal(mxq.load(tmp_path / "net")(*given).asnumpy(), block(*given).asnumpy())
        mxq.save(mxq.load(tmp_path / "net"), tmp_path / "again")
        assert (tmp_path / "again-symbol.json").read_bytes() == (tmp_path / "net-symbol.json").read_bytes()

    def test_data_names_are_the_order_of_a_symbol(self) -> None:
        late = mx.sym.FullyConnected(mx.sym.var("b"), num_hidden=4, name="fc") - mx.sym.var("a")
        args = {"fc_weight": mx.nd.array(RNG.standard_normal((4, 4))), "fc_bias": mx.nd.zeros(4)}
        batches = [(a, b * 50) for a, b in (arrays(2) for _ in range(12))]
        made = mxq.quantize_model(late, args, {}, batches, data_names=("a", "b"), effort="fast")
        assert load_model(tuple(made)).inputs == ("a", "b")
        assert made.report.thresholds["tensors"]["b"]["range"]["max"] > 50

    @pytest.mark.parametrize("form", ["array", "list", "generator"])
    def test_deferred_shapes_are_settled_on_the_first_batch(self, form: str) -> None:
        x = RNG.standard_normal((48, 4)).astype(np.float32)
        data = {"array": x, "list": [x[:16], x[16:32], x[32:]], "generator": (x[i : i + 16] for i in (0, 16, 32))}[form]
        net = initialised(mx.gluon.nn.Dense(3))
        block = mxq.quantize_net(net, data, effort="fast", num_calib_examples=48)
        assert net.weight.shape == (3, 4)
        assert block.mxq_report.summary["calibration_examples"] == 48
        given = mx.nd.array(x)
        assert sqnr(net(given).asnumpy(), block(given).asnumpy()) > 30  # 8 bits

    def test_labels_of_a_data_iter_feed_a_network_that_computes_with_them(self) -> None:
        data, label = mx.sym.var("data"), mx.sym.var("softmax_label")
        dense = mx.sym.FullyConnected(data, num_hidden=5, name="fc")
        head = mx.sym.SoftmaxOutput(dense - mx.sym.one_hot(label, depth=5, on_value=2), label, name="softmax")
        args = {"fc_weight": mx.nd.array(RNG.standard_normal((5, 8))), "fc_bias": mx.nd.zeros(5)}
        x, y = RNG.standard_normal((64, 8)).astype(np.float32), RNG.integers(0, 5, 64).astype(np.float32)
        found = mxq.quantize_model(head, args, {}, mx.io.NDArrayIter(x, y, 16), label_names=["softmax_label"])
        assert found.report.summary["int8"] == 1
        with pytest.raises(mxq.DataError, match=r"no array for input 'softmax_label'.*computes with this label"):
            mxq.quantize_model(head, args, {}, {"data": x, "x": x})

    @pytest.mark.parametrize("effort", ["fast", "default"])
    def test_batches_of_the_size_that_a_graph_names_are_not_cut(self, effort: str) -> None:
        conv0 = mx.sym.Convolution(mx.sym.var("data"), kernel=(3, 3), num_filter=8, name="conv")
        dense = mx.sym.FullyConnected(mx.sym.reshape(mx.sym.relu(conv0), (20, -1)), num_hidden=5, name="fc")
        shapes = dict(zip(dense.list_arguments(), dense.infer_shape(data=(20, 3, 6, 6))[0], strict=True))
        args = {n: mx.nd.array(RNG.uniform(-0.3, 0.3, s)) for n, s in shapes.items() if n != "data"}
        batches = [RNG.standard_normal((20, 3, 6, 6)).astype(np.float32) for _ in range(5)]
        report = mxq.quantize_net((dense, args, {}), batches, effort=effort).mxq_report
        assert report.summary["calibration_examples"] == 40  # the default is 32
        assert report.summary["warnings"] == []

    def test_begin_states_are_inputs_like_others(self) -> None:
        class Recurrent(mx.gluon.HybridBlock):
            def __init__(self) -> None:
                super().__init__(prefix="recurrent_")
                with self.name_scope():
                    self.rnn = mx.gluon.rnn.GRU(5, input_size=4)
                    self.dense = mx.gluon.nn.Dense(3, flatten=False, in_units=5)

            def hybrid_forward(self, F: Any, x: Any, state: Any) -> Any:  # noqa: N803
                return self.dense(self.rnn(x, [state])[0])

        def batch(n: int) -> list[Any]:
            return [mx.nd.random.normal(shape=shape) for shape in ((7, n, 4), (1, n, 5))]

        net, given = initialised(Recurrent()), batch(6)
        block = mxq.quantize_net(net, [batch(n) for n in (6, 3, 8)], effort="fast")
        assert block.mxq_report.summary["calibration_examples"] == 17
        assert sqnr(net(*given).asnumpy(), block(*given).asnumpy()) > 30  # 8 bits


@pytest.mark.parametrize("prefix", [".", "/", ""])
def test_a_prefix_without_a_name_is_one_error(prefix: str) -> None:
    with pytest.raises(FormatError, match=r"-symbol\.json"):
        load_model(Path(prefix))
