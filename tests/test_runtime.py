"""The door to MXNet: networks in, executables, blocks and pairs out, and what stock MXNet makes of the pairs."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mxq  # isort: skip  (before mxnet)

import mxnet as mx
from graphs import RESIDUAL, SHAPE, bn, build, conv, fc, feeds, quantized
from helpers import WITHOUT_MXQ, assert_close

from mxq import runtime
from mxq.errors import FormatError, QuantizeError, RuntimeFailure, StorageError
from mxq.graph.ir import Graph, Model, Node, Ref
from mxq.runtime import MxnetRunner, from_symbol, load_model, load_params, params_path, to_block, write_pair
from mxq.runtime.params_file import size_of, write_params

TINY = (conv("conv0", "data"), 'relu0 = Activation(conv0) act_type="relu"', fc("fc0", "relu0"), "return fc0")


def tiny(seed: int = 0) -> Model:
    return build(*TINY, seed=seed)


def same(one: Model, other: Model) -> None:
    """Equal operators and bit-equal parameters."""
    assert one.graph.nodes == other.graph.nodes
    assert one.graph.heads == other.graph.heads
    for table in ("args", "auxs"):
        mine, theirs = getattr(one, table), getattr(other, table)
        assert mine.keys() == theirs.keys()
        for name, value in mine.items():
            assert value.dtype == theirs[name].dtype
            np.testing.assert_array_equal(value, theirs[name])


def forward(model: Model, **given: np.ndarray) -> list[np.ndarray]:
    return list(MxnetRunner().compile(model)(given or feeds()))


# ---- networks in ---------------------------------------------------------------------------------------------


class TestLoadModel:
    def test_a_model_is_itself(self) -> None:
        model = tiny()
        assert load_model(model) is model

    @pytest.mark.parametrize("kind", ["prefix", "text", "tuple", "list", "numpy", "JSON file", "block"])
    def test_kinds(self, kind: str, tmp_path: Path) -> None:
        model, prefix = tiny(), tmp_path / "net"
        symbol, _ = write_pair(model, prefix)
        sym = runtime.to_symbol(model.graph)
        args, auxs = runtime.to_arrays(model.args), runtime.to_arrays(model.auxs)
        net: Any = {
            "prefix": prefix,
            "text": str(prefix),
            "tuple": (sym, args, auxs),
            "list": [sym, args, None],
            "numpy": (sym, model.args, {}),
            "JSON file": (symbol, args, auxs),
            "block": to_block(model),
        }[kind]
        same(load_model(net), model)

    def test_a_hybrid_block_with_two_inputs_and_two_outputs(self) -> None:
        class Two(mx.gluon.HybridBlock):
            def __init__(self) -> None:
                super().__init__(prefix="two_")
                with self.name_scope():
                    self.scale = self.params.get("scale", shape=(1, 4), init=mx.init.One())

            def hybrid_forward(self, F: Any, a: Any, b: Any, scale: Any, power: int = 2) -> Any:  # noqa: N803
                return F.broadcast_mul(a, scale), [a - b, b**power]

        net = Two()
        net.initialize()
        model = load_model(net)
        assert model.inputs == ("data0", "data1")
        a, b = np.full((2, 4), 3, np.float32), np.full((2, 4), 2, np.float32)
        values = [float(v.mean()) for v in forward(model, data0=a, data1=b)]
        assert values == [3, 1, 4]

    def test_loading_does_not_hybridize(self) -> None:
        net = mx.gluon.nn.HybridSequential(prefix="net_")
        net.add(mx.gluon.nn.Dense(3, in_units=4))
        net.initialize()
        load_model(net)
        assert not net._active  # noqa: SLF001  (MXNet offers no other way to ask)

    def test_parameters_of_no_node_are_dropped(self) -> None:
        model = tiny()
        extra = {**model.args, "nobody": np.ones(3)}
        same(from_symbol(runtime.to_symbol(model.graph), extra, {}), model)

    def test_integers_are_kept(self) -> None:
        model = tiny()
        codes = {k: v.astype(np.int8) for k, v in model.args.items()}
        loaded = from_symbol(runtime.to_symbol(model.graph), runtime.to_arrays(codes), {})
        assert {v.dtype for v in loaded.args.values()} == {np.dtype(np.int8)}

    def test_a_symbol_without_its_auxiliary_states(self) -> None:
        model = build(bn("bn0", "data"), "return bn0")
        with pytest.raises(FormatError, match=r"lack the auxiliary state 'bn0_moving_mean' \(2 missing in all\)"):
            from_symbol(runtime.to_symbol(model.graph), model.args, {})

    def test_other_things_are_refused(self) -> None:
        with pytest.raises(QuantizeError, match="net is a dict; allowed: HybridBlock, SymbolBlock"):
            load_model({})
        with pytest.raises(QuantizeError, match="sym is a float; allowed: a Symbol, or the path of its JSON file"):
            load_model((1.0, {}, {}))


class TestEpochs:
    def prefix(self, folder: Path, *epochs: int) -> Path:
        """A pair with a parameter file for each epoch, made from that seed."""
        write_pair(tiny(), folder / "net")
        (folder / "net-0000.params").rename(folder / "spare")
        for epoch in epochs:
            write_pair(tiny(seed=epoch), folder / "other")
            (folder / "other-0000.params").rename(folder / f"net-{epoch:04d}.params")
        return folder / "net"

    def test_the_only_one(self, tmp_path: Path) -> None:
        same(load_model(self.prefix(tmp_path, 1)), tiny(seed=1))

    def test_the_latest(self, tmp_path: Path) -> None:
        same(load_model(self.prefix(tmp_path, 2, 10, 9)), tiny(seed=10))

    def test_the_one_asked_for(self, tmp_path: Path) -> None:
        same(load_model(self.prefix(tmp_path, 2, 10), epoch=2), tiny(seed=2))

    def test_names_that_only_begin_alike_do_not_count(self, tmp_path: Path) -> None:
        prefix = self.prefix(tmp_path, 3)
        for name in ("net-extra-0009.params", "net-00010.params", "net-best.params"):
            (tmp_path / name).write_bytes(b"")
        assert params_path(prefix).name == "net-0003.params"

    def test_one_that_is_missing(self, tmp_path: Path) -> None:
        prefix = self.prefix(tmp_path, 3)
        with pytest.raises(
            FormatError, match=r"no parameter file '.*net-0007.params' beside net-symbol.json; latest epochs there: 3$"
        ):
            load_model(prefix, epoch=7)
        with pytest.raises(FormatError, match=r"no parameter file '.*nothing-NNNN.params'"):
            params_path(tmp_path / "nothing")
        with pytest.raises(FormatError, match=r"no file '.*nett-symbol.json'; networks there: net"):
            load_model(tmp_path / "nett")
        with pytest.raises(FormatError, match=r"no file '.*net-symbol.json'$"):
            load_model(tmp_path / "none" / "net")
        with pytest.raises(FormatError, match=r"no file '.*none.params'"):
            load_params(tmp_path / "none.params")


# ---- running -------------------------------------------------------------------------------------------------


class TestMxnetRunner:
    def test_against_numpy(self) -> None:
        model = build(fc("fc0", "data"), 'relu0 = Activation(fc0) act_type="relu"', "return relu0", data=(3, 4))
        x = feeds(data=(3, 4))["data"]
        wanted = np.maximum(x @ model.args["fc0_weight"].T + model.args["fc0_bias"], 0)
        assert_close(forward(model, data=x)[0], wanted, rtol=1e-5, atol=1e-6)

    def test_new_shapes_bind_anew(self) -> None:
        call, x = MxnetRunner().compile(tiny()), feeds()["data"]
        whole = call({"data": x})[0]
        assert_close(call({"data": x[:1]})[0], whole[:1], rtol=1e-5, atol=1e-6)
        np.testing.assert_array_equal(call({"data": x})[0], whole)

    def test_executables_do_not_share_state(self) -> None:
        model, x = tiny(), feeds()["data"]
        one, other = MxnetRunner().compile(model), MxnetRunner().compile(model)
        first = one({"data": x})
        other({"data": x + 1})
        np.testing.assert_array_equal(first[0], forward(model)[0])

    def test_parameters_are_not_changed_by_running(self) -> None:
        model = build(conv("conv0", "data"), bn("bn0", "conv0"), "return bn0")
        before = {k: v.copy() for k, v in {**model.args, **model.auxs}.items()}
        forward(model)
        for name, value in {**model.args, **model.auxs}.items():
            np.testing.assert_array_equal(value, before[name])

    def test_taps_follow_the_heads(self) -> None:
        model = tiny()
        results = MxnetRunner().compile(model, (Ref("conv0"), Ref("relu0")))(feeds())
        assert len(results) == 3
        head, tapped, relu = results
        np.testing.assert_array_equal(np.maximum(tapped, 0), relu)
        assert tapped.min() < 0
        assert_close(head, forward(model)[0], rtol=1e-5, atol=1e-6)

    def test_taps_name_outputs(self) -> None:
        model = build('split = SliceChannel(data) num_outputs="2"', "sum = elemwise_add(split, split:1)", "return sum")
        _, second = MxnetRunner().compile(model, (Ref("split", 1),))(feeds())
        np.testing.assert_array_equal(second, feeds()["data"][:, 4:])

    def test_graphs_run_as_they_are_written(self) -> None:
        """Bound as MXNet likes it, a convolution with a second reader is fused into the first one, wrongly."""
        model = build(
            conv("conv0", "data"),
            bn("bn0", "conv0"),
            'relu0 = Activation(bn0) act_type="relu"',
            conv("conv1", "relu0"),
            "sum = elemwise_add(conv1, conv0)",
            "return sum",
        )
        taps = tuple(Ref(n) for n in ("conv0", "bn0", "relu0", "conv1"))
        _, first, _, _, second = MxnetRunner().compile(model, taps)(feeds())
        assert_close(forward(model)[0], first + second, rtol=1e-5, atol=1e-5)

    def test_an_input_that_is_not_fed(self) -> None:
        call = MxnetRunner().compile(tiny())
        with pytest.raises(RuntimeFailure, match="input 'data' is not fed; fed: nothing"):
            call({})
        with pytest.raises(RuntimeFailure, match="input 'data' is not fed; fed: 'image'"):
            call({"image": np.ones(3)})

    def test_more_feeds_than_inputs(self) -> None:
        call = MxnetRunner().compile(tiny())
        np.testing.assert_array_equal(call({**feeds(), "label": np.ones(2)})[0], forward(tiny())[0])

    def test_a_shape_that_does_not_fit(self) -> None:
        call = MxnetRunner().compile(tiny())
        with pytest.raises(RuntimeFailure, match=r"cannot run the network on input 'data' float32\[2, 3, 6, 6\]: "):
            call({"data": np.ones((2, 3, 6, 6), np.float32)})
        np.testing.assert_array_equal(call(feeds())[0], forward(tiny())[0])  # and still works

    def test_a_network_that_is_made_for_one_batch_size(self) -> None:
        model = build('r = Reshape(data) shape="(2, -1)"', fc("f", "r"), "return f")
        bound = MxnetRunner().compile(model)
        (data,) = feeds().values()
        bound({"data": data})
        says = r"It ran on 'data' float32\[2, .*\] before; a network that is made for one batch size"
        with pytest.raises(RuntimeFailure, match=says):
            bound({"data": data[:1]})

    def test_pictures_with_the_channels_last(self) -> None:
        call = MxnetRunner().compile(tiny())
        says = r"float32\[2, 8, 8, 3\] \('data' looks like \(N, H, W, C\); MXNet takes \(N, C, H, W\): .transpose"
        with pytest.raises(RuntimeFailure, match=says):
            call({"data": np.ones((2, 8, 8, 3), np.float32)})

    def test_an_operator_that_mxnet_does_not_know(self) -> None:
        model = tiny()
        nodes = tuple(n if n.op != "Activation" else Node(n.name, "MyOp", {}, n.inputs) for n in model.graph)
        with pytest.raises(RuntimeFailure, match=r"MXNet refuses the graph: .*Operator MyOp is not registered"):
            MxnetRunner().compile(Model(Graph(nodes, model.graph.heads, model.graph.attrs), model.args))

    def test_outputs_are_read_lazily(self, monkeypatch: pytest.MonkeyPatch) -> None:
        reads: list[tuple[int, ...]] = []
        copy = mx.nd.NDArray.asnumpy

        def counted(array: Any) -> np.ndarray:
            reads.append(array.shape)
            return copy(array)

        monkeypatch.setattr(mx.nd.NDArray, "asnumpy", counted)
        outputs = MxnetRunner().compile(tiny(), (Ref("conv0"), Ref("relu0")))(feeds())
        assert len(outputs) == 3
        assert reads == []
        assert outputs[1].shape == SHAPE
        assert reads == [SHAPE]
        assert [v.shape for v in outputs[1:]] == [SHAPE, SHAPE]
        assert len(reads) == 3

    @pytest.mark.parametrize("set_before", [None, "MKLDNN"])
    @pytest.mark.parametrize("fails", [False, True])
    def test_environment_is_restored(
        self, monkeypatch: pytest.MonkeyPatch, set_before: str | None, *, fails: bool
    ) -> None:
        for name in ("MXNET_SUBGRAPH_BACKEND", "MXNET_SUBGRAPH_VERBOSE"):
            if set_before is None:
                monkeypatch.delenv(name, raising=False)
            else:
                monkeypatch.setenv(name, set_before if "BACKEND" in name else "1")
        before = dict(os.environ)
        call = MxnetRunner().compile(tiny())
        if fails:
            with pytest.raises(RuntimeFailure):
                call({"data": np.ones((2, 3), np.float32)})
        else:
            call(feeds())[0].sum()
        assert dict(os.environ) == before

    def test_environment_is_restored_where_threads_bind_at_once(self) -> None:
        before = dict(os.environ)
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(lambda _: MxnetRunner().compile(tiny())(feeds()), range(40)))
        assert dict(os.environ) == before

    def test_binding_says_nothing(self, capfd: pytest.CaptureFixture[str]) -> None:
        forward(tiny())
        forward(quantized(tiny()).model)
        assert capfd.readouterr() == ("", "")


class TestHeads:
    def test_a_head_that_occurs_twice(self) -> None:
        model = tiny()
        doubled = Model(Graph(model.graph.nodes, (*model.graph.heads, *model.graph.heads)), model.args)
        one, other = forward(doubled)
        np.testing.assert_array_equal(one, other)
        np.testing.assert_array_equal(one, forward(model)[0])

    def test_a_tap_that_is_a_head(self) -> None:
        model = tiny()
        head, tap = MxnetRunner().compile(model, model.graph.heads)(feeds())
        np.testing.assert_array_equal(head, tap)

    def test_a_pair_with_a_doubled_head(self, tmp_path: Path) -> None:
        model = tiny()
        doubled = Model(Graph(model.graph.nodes, (*model.graph.heads, *model.graph.heads)), model.args)
        write_pair(doubled, tmp_path / "net")
        assert len(load_model(tmp_path / "net").graph.heads) == 2


# ---- blocks and files out ------------------------------------------------------------------------------------


class TestWritePair:
    def test_round_trip(self, tmp_path: Path) -> None:
        model = quantized(tiny()).model
        symbol, params = write_pair(model, tmp_path / "a.b")
        assert (symbol.name, params.name) == ("a.b-symbol.json", "a.b-0000.params")
        assert sorted(tmp_path.iterdir()) == sorted([symbol, params])
        same(load_model(tmp_path / "a.b"), model)

    def test_twice_gives_the_same_bytes(self, tmp_path: Path) -> None:
        model = quantized(tiny()).model
        written = [[p.read_bytes() for p in write_pair(model, tmp_path / name)] for name in ("a", "b")]
        assert written[0] == written[1]

    def test_the_bytes_are_those_that_mxnet_writes(self, tmp_path: Path) -> None:
        rng = np.random.default_rng(0)
        table = {"arg:имя": rng.normal(size=(3, 4, 5)).astype(np.float32), "aux:none": np.zeros((0, 3), np.float32)}
        for dtype in (np.float64, np.float16, np.uint8, np.int32, np.int8, np.int64, np.bool_):
            table[f"arg:{dtype.__name__}"] = rng.integers(0, 2, (2, 7)).astype(dtype)
        table["arg:transposed"] = table["arg:float64"].T
        write_params(tmp_path / "ours", table)
        mx.nd.save(str(tmp_path / "mxnets"), {k: mx.nd.array(v, dtype=v.dtype) for k, v in table.items()})
        assert (tmp_path / "ours").read_bytes() == (tmp_path / "mxnets").read_bytes()
        assert (tmp_path / "ours").stat().st_size <= size_of(table)

    def test_the_size_is_no_less_than_the_files_also_with_long_names_of_few_values(self, tmp_path: Path) -> None:
        table = {f"arg:{'слой' * 50}{i}": np.zeros(1, np.float32) for i in range(3)}
        write_params(tmp_path / "a", table)
        assert (tmp_path / "a").stat().st_size <= size_of(table)

    def test_a_scalar_gets_the_one_axis_that_mxnet_gives_it(self, tmp_path: Path) -> None:
        write_params(tmp_path / "a", {"arg:x": np.float32(3)})
        assert load_params(tmp_path / "a")["x"].tolist() == [3.0]
        with pytest.raises(RuntimeFailure, match=r"parameter 'arg:x' is complex128; allowed: float32, .*, bool"):
            write_params(tmp_path / "a", {"arg:x": np.ones(2, np.complex128)})

    def test_a_missing_directory(self, tmp_path: Path) -> None:
        with pytest.raises(StorageError, match=r"net-symbol.json cannot be written: No such file or directory"):
            write_pair(tiny(), tmp_path / "none" / "net")
        assert not list(tmp_path.iterdir())

    def test_a_graph_that_mxnet_refuses_leaves_nothing(self, tmp_path: Path) -> None:
        net = tiny().graph
        with pytest.raises(RuntimeFailure, match="MXNet refuses the graph"):
            write_pair(Model(Graph((net["data"], Node("x", "No", {}, (Ref("data"),))), (Ref("x"),))), tmp_path / "net")
        assert not list(tmp_path.iterdir())


def test_block_gives_what_the_runner_gives() -> None:
    model = quantized(tiny()).model
    block = to_block(model)
    np.testing.assert_array_equal(block(mx.nd.array(feeds()["data"])).asnumpy(), forward(model)[0])
    for name, param in block.collect_params().items():
        assert np.dtype(param.dtype) == {**model.args, **model.auxs}[name].dtype


def test_serve_runs_the_model_once_per_call() -> None:
    for model in (tiny(), quantized(tiny()).model):
        call = runtime.serve(model, feeds())
        assert [call(), call()] == [None, None]


def test_versions_and_features() -> None:
    found = runtime.versions()
    assert found["mxq"] == mxq.__version__
    assert found["mxnet"] == mx.__version__
    assert found["numpy"] == np.__version__
    assert runtime.features()["MKLDNN"]


LOADERS = (
    WITHOUT_MXQ
    + """\
prefix, x = sys.argv[1], numpy.load(sys.argv[2])
results = {}
block = mx.gluon.SymbolBlock.imports(prefix + "-symbol.json", ["data"], prefix + "-0000.params")
results["imports"] = block(mx.nd.array(x))
block.hybridize(static_alloc=True, static_shape=True)
results["hybridized"] = block(mx.nd.array(x))
sym, args, auxs = mx.model.load_checkpoint(prefix, 0)
bound = sym.bind(mx.cpu(), {**args, "data": mx.nd.array(x)}, aux_states=auxs, grad_req="null")
results["bind"] = bound.forward()[0]
bound = sym.simple_bind(mx.cpu(), data=x.shape, grad_req="null")
bound.copy_params_from(args, auxs)
results["simple_bind"] = bound.forward(data=mx.nd.array(x))[0]
module = mx.mod.Module.load(prefix, 0, label_names=None)
module.bind(for_training=False, data_shapes=[("data", x.shape)])
module.forward(mx.io.DataBatch([mx.nd.array(x)]), is_train=False)
results["Module"] = module.get_outputs()[0]
numpy.savez(sys.argv[3], **{k: v.asnumpy() for k, v in results.items()})
"""
)


def has_distutils() -> bool:
    """Whether MXNet can be imported without mxq: Python 3.12 and later have distutils with setuptools only."""
    if sys.version_info < (3, 12):
        return True
    return importlib.util.find_spec("setuptools") is not None


@pytest.mark.skipif(not has_distutils(), reason="without distutils MXNet cannot be imported but through mxq")
def test_stock_mxnet_reads_the_pair_and_computes_the_same_bits(tmp_path: Path) -> None:
    model = build(
        *RESIDUAL[:-2],
        'pool = Pooling(relu1) pool_type="avg" global_pool="True" kernel="(1, 1)"',
        fc("fc0", "pool"),
        "prob = softmax(fc0)",
        "return prob",
    )
    int8 = quantized(model).model
    write_pair(int8, tmp_path / "net")
    x = feeds()["data"]
    np.save(tmp_path / "x.npy", x)
    wanted = to_block(int8)(mx.nd.array(x)).asnumpy()
    files = [str(tmp_path / n) for n in ("net", "x.npy", "results.npz")]
    done = subprocess.run(
        [sys.executable, "-c", LOADERS, *files], capture_output=True, text=True, check=False, timeout=120, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    with np.load(files[2]) as results:
        assert sorted(results) == ["Module", "bind", "hybridized", "imports", "simple_bind"]
        for value in results.values():
            np.testing.assert_array_equal(value, wanted)


def test_stock_imports_in_this_process(tmp_path: Path) -> None:
    model = quantized(tiny()).model
    write_pair(model, tmp_path / "net")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Cannot decide type", UserWarning)
        files = (f"{tmp_path}/net-symbol.json", ["data"], f"{tmp_path}/net-0000.params")
        block = mx.gluon.SymbolBlock.imports(*files)
    np.testing.assert_array_equal(block(mx.nd.array(feeds()["data"])).asnumpy(), forward(model)[0])
