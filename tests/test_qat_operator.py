"""The operator that MXNet runs: equal to plain operators, in all of gluon's ways to run a network, and its errors."""

from __future__ import annotations

import itertools

import mxnet as mx
import numpy as np
import pytest
from helpers import WITHOUT_MXQ, assert_close, fresh_python

from mxq.errors import ConfigError, RuntimeFailure
from mxq.graph.ir import Model, Node, Ref, toposort
from mxq.qat.algorithms import Site, fake_node, fake_nodes, get
from mxq.quant import QuantSpec
from mxq.runtime import to_block, to_symbol

NAMES = ("fixed", "lsq", "lsq_plus", "pact", "dorefa", "dsq", "qil", "apot", "max")
SHAPE = (3, 2, 4, 3)


def symbol(nodes, parameters):
    variables = [Node("x", "null"), *(Node(name, "null") for name in parameters)]
    return to_symbol(toposort([*variables, *nodes], [Ref("y")]))


def ran(sym, values, grad, req="write"):
    """The result, and the gradients."""
    arrays = {name: mx.nd.array(value) for name, value in values.items()}
    grads = {name: mx.nd.ones(value.shape) for name, value in arrays.items()}
    executor = sym.bind(mx.cpu(), arrays, grads, req)
    result = executor.forward(is_train=True)[0].asnumpy()
    executor.backward(mx.nd.array(grad))
    return result, {name: value.asnumpy() for name, value in grads.items()}


def sites(name):
    for bits, signed, symmetric, axis, scale, role in itertools.product(
        (2, 5), (True, False), (True, False), (None, 0, 1), ("float", "power_of_two"), ("weight", "activation")
    ):
        site = Site(QuantSpec(bits, signed, symmetric, axis, scale), role, "mxnet" if symmetric and bits > 2 else "")
        if (axis == 0) == (role == "weight") or axis is None:
            try:
                get(name).check(site)
            except ConfigError:
                continue
            yield site


def drawn(algorithm, site, shape=SHAPE):
    rng = np.random.default_rng(3)
    x, grad = (rng.standard_normal(shape).astype(np.float32) for _ in range(2))
    x[1] = 0  # a dead channel of axis 0
    folded = x.reshape(site.folded(shape))
    low, high = folded.min(axis=(0, 2)) * np.float32(0.7), folded.max(axis=(0, 2)) * np.float32(0.7)
    p = algorithm.initial(site, low, high, folded)
    return x, grad, {name: (p[name] * 1.07).astype(np.float32) for name in algorithm.parameters(site)}


@pytest.mark.parametrize("name", NAMES)
def test_as_plain_operators(name):
    algorithm = get(name)
    for site in sites(name):
        x, grad, p = drawn(algorithm, site)
        refs = [Ref(key) for key in p]
        y, grads = ran(symbol([fake_node("y", name, site, Ref("x"), refs)], p), {"x": x, **p}, grad)
        plain, others = ran(symbol(algorithm.nodes("y", site, Ref("x"), refs), p), {"x": x, **p}, grad)
        assert_close(y, plain, rtol=1e-6, atol=1e-6)
        for key, value in grads.items():
            assert_close(value, others[key], rtol=1e-3, atol=1e-5 * np.abs(grad).sum())
        folded = x.reshape(site.folded(x.shape))
        np.testing.assert_array_equal(y.reshape(folded.shape), algorithm.forward(site, folded, p))


class TestRequests:
    """What is to be done with a gradient."""

    site = Site(QuantSpec(4), "activation")

    def sym(self, p):
        return symbol([fake_node("y", "lsq", self.site, Ref("x"), [Ref(key) for key in p])], p)

    def test_added(self):
        x, grad, p = drawn(get("lsq"), self.site)
        _, written = ran(self.sym(p), {"x": x, **p}, grad)
        _, added = ran(self.sym(p), {"x": x, **p}, grad, "add")
        for key, value in written.items():
            np.testing.assert_array_equal(added[key], value + 1)

    @pytest.mark.parametrize("wanted", [{"x": "write", "step": "null"}, {"x": "null", "step": "write"}])
    def test_not_wanted(self, wanted):
        x, grad, p = drawn(get("lsq"), self.site)
        _, written = ran(self.sym(p), {"x": x, **p}, grad)
        _, some = ran(self.sym(p), {"x": x, **p}, grad, wanted)
        for key, how in wanted.items():
            np.testing.assert_array_equal(some[key], 1 if how == "null" else written[key])

    def test_none_wanted(self):
        x, grad, p = drawn(get("lsq"), self.site)
        _, none = ran(self.sym(p), {"x": x, **p}, grad, "null")
        assert all((value == 1).all() for value in none.values())


def network() -> Model:
    """conv -> ReLU -> pool -> dense, whose weights and inputs are fake-quantized; a blocked layout feeds the second."""
    rng = np.random.default_rng(5)
    weight = Site(QuantSpec(4, axis=0), "weight")
    inner, outer = Site(QuantSpec(4, signed=False), "activation"), Site(QuantSpec(8), "activation")
    kernel = {"kernel": "(3, 3)", "num_filter": "16", "no_bias": "True", "pad": "(1, 1)"}
    nodes = [
        Node("data", "null"),
        *(Node(name, "null") for name in ("w1", "w2", "s1", "s2", "s3")),
        *fake_nodes("q0", "lsq", outer, Ref("data"), [Ref("s1")]),
        *fake_nodes("q1", "max", weight, Ref("w1"), []),
        Node("c1", "Convolution", kernel, (Ref("q0"), Ref("q1"))),
        Node("r1", "Activation", {"act_type": "relu"}, (Ref("c1"),)),
        *fake_nodes("q2", "lsq", inner, Ref("r1"), [Ref("s2")]),
        *fake_nodes("q3", "lsq", weight, Ref("w2"), [Ref("s3")]),
        Node("c2", "Convolution", kernel, (Ref("q2"), Ref("q3"))),
        Node("p", "Pooling", {"global_pool": "True", "kernel": "(1, 1)", "pool_type": "avg"}, (Ref("c2"),)),
        Node("f", "Flatten", {}, (Ref("p"),)),
    ]
    args = {
        "w1": rng.standard_normal((16, 3, 3, 3)) / 5,
        "w2": rng.standard_normal((16, 16, 3, 3)) / 12,
        "s1": np.full(1, 0.03),
        "s2": np.full(1, 0.2),
        "s3": np.full(16, 0.05),
    }
    return Model(toposort(nodes, [Ref("f")]), {name: value.astype(np.float32) for name, value in args.items()})


def batch(seed=0):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((4, 3, 8, 8)).astype(np.float32)
    return mx.nd.array(x), mx.nd.array(rng.integers(0, 16, 4))


def trained(block, steps=3):
    """Losses on the way, and parameters at the end."""
    trainer = mx.gluon.Trainer(block.collect_params(), "sgd", {"learning_rate": 0.05, "momentum": 0.9})
    loss, found = mx.gluon.loss.SoftmaxCrossEntropyLoss(), []
    for step in range(steps):
        x, y = batch(step)
        with mx.autograd.record():
            value = loss(block(x), y).mean()
        value.backward()
        trainer.step(1)
        found.append(value.asscalar())
    return found, {name: p.data().asnumpy() for name, p in block.collect_params().items()}


class TestGluon:
    def test_training_changes_everything_and_helps(self):
        block = to_block(network())
        before = {name: p.data().asnumpy() for name, p in block.collect_params().items()}
        x, y = batch()
        loss = mx.gluon.loss.SoftmaxCrossEntropyLoss()
        trainer = mx.gluon.Trainer(block.collect_params(), "sgd", {"learning_rate": 0.05})
        seen = []
        for _ in range(15):
            with mx.autograd.record():
                value = loss(block(x), y).mean()
            value.backward()
            trainer.step(1)
            seen.append(value.asscalar())
        assert seen[-1] < 0.9 * seen[0]
        for name, p in block.collect_params().items():
            assert (p.data().asnumpy() != before[name]).any(), name

    def test_hybridized_as_not(self):
        results = []
        for how in (None, {}, {"static_alloc": True, "static_shape": True}):
            block = to_block(network())
            if how is not None:
                block.hybridize(**how)
            results.append((block(batch()[0]).asnumpy(), *trained(block)))
        for result, losses, parameters in results[1:]:
            assert_close(result, results[0][0], rtol=1e-6, atol=1e-7)
            assert_close(losses, results[0][1], rtol=1e-5, atol=0)
            for name, value in parameters.items():
                assert_close(value, results[0][2][name], rtol=1e-4, atol=1e-6)

    def test_tensors_in_layouts_of_onednn(self):
        """MXNet frees a copy of such a tensor while an operator in Python reads it: the numbers would vary."""
        block = to_block(network())
        x, _ = batch()
        results, gradients = set(), set()
        for _ in range(60):
            results.add(block(x).asnumpy().tobytes())
            with mx.autograd.record():
                y = block(x)
            y.backward()
            gradients.add(b"".join(p.grad().asnumpy().tobytes() for p in block.collect_params().values()))
        assert len(results) == len(gradients) == 1

    def test_inside_a_block_of_the_user(self):
        class Net(mx.gluon.HybridBlock):
            def __init__(self):
                super().__init__()
                self.body, self.head = to_block(network()), mx.gluon.nn.Dense(16)

            def hybrid_forward(self, F, x):  # noqa: N803  (MXNet's name)
                return self.head(self.body(x))

        net = Net()
        net.head.initialize(mx.init.One())
        plain = net(batch()[0]).asnumpy()
        net.hybridize()
        assert_close(net(batch()[0]).asnumpy(), plain, rtol=1e-5, atol=1e-6)
        losses, _ = trained(net)
        assert np.isfinite(losses).all()

    def test_exported_and_imported_where_only_mxq_is_imported(self, tmp_path):
        block = to_block(network())
        block.hybridize()
        x, _ = batch()
        result = block(x).asnumpy()
        block.export(str(tmp_path / "net"))
        np.save(tmp_path / "x.npy", x.asnumpy())
        code = f"""
            import mxq, sys
            assert not [name for name in sys.modules if name.startswith(("mxnet", "numba", "mxq.runtime", "mxq.qat"))]
            import numpy as np, mxnet as mx
            here = {str(tmp_path)!r}
            net = mx.gluon.SymbolBlock.imports(here + "/net-symbol.json", ["data"], here + "/net-0000.params")
            np.save(here + "/y.npy", net(mx.nd.array(np.load(here + "/x.npy"))).asnumpy())
        """
        done = fresh_python("\n".join(line[12:] for line in code.splitlines()), OMP_NUM_THREADS="1")
        assert done.returncode == 0, done.stderr
        assert_close(np.load(tmp_path / "y.npy"), result, rtol=1e-6, atol=1e-7)

    def test_mxnet_imported_first(self):
        code = (
            "import mxq, mxq.registration as r\n"
            "r.prepare()\n"  # again
            "y = mx.nd.Custom(mx.nd.array([[0.4, 0.6, 9]]), mx.nd.ones(1), op_type='mxq_fake_quantize', bits='2',"
            "signed='False', symmetric='True', axis='None', scale='float', narrow='False', role='activation', rule='',"
            "algorithm='lsq')\n"
            "print(y.asnumpy().tolist())"
        )
        done = fresh_python(WITHOUT_MXQ + "del sys.modules['mxq']\n" + code, OMP_NUM_THREADS="1")
        assert done.stdout.splitlines()[-1:] == ["[[0.0, 1.0, 3.0]]"], done.stderr


class TestErrors:
    """Nothing hangs or ends the process: each is an error of mxq's with the words of what was wrong."""

    def node(self, **attrs):
        return fake_node("y", "lsq", Site(QuantSpec(4), "weight"), Ref("x"), [Ref("s")]).with_attrs(**attrs)

    @pytest.mark.parametrize(
        ("attrs", "message"),
        [
            ({"algorithm": "lqs"}, "algorithm is 'lqs'; allowed: "),
            ({"bits": "99"}, "bits is 99; allowed: 2 to 8"),
            ({"role": "bias"}, "mxq_fake_quantize has role 'bias'"),
            ({"algorithm": "max", "role": "activation"}, "max is asked for an activation of int4; allowed: "),
        ],
    )
    def test_a_node_that_cannot_be(self, attrs, message, capfd):
        with pytest.raises(RuntimeFailure, match=f"^MXNet refuses the graph: {message}"):
            symbol([self.node(**attrs)], ["s"])

    def test_a_tensor_without_the_channels(self, capfd):
        from mxq.runtime.mxnet import mxnet_says

        site = Site(QuantSpec(4, axis=1), "activation")
        sym = symbol([fake_node("y", "lsq", site, Ref("x"), [Ref("s")])], ["s"])
        with (
            pytest.raises(
                RuntimeFailure, match=r"^bound: the tensor is \[3\]; allowed for int4, per channel on axis 1"
            ),
            mxnet_says("bound"),
        ):
            sym.bind(mx.cpu(), {"x": mx.nd.ones((3,)), "s": mx.nd.ones((1,))})

    def test_half_precision(self, capfd):
        from mxq.runtime.mxnet import mxnet_says

        block = to_block(network())
        message = "^called: the tensor is float16; allowed in training with quantization: float32"
        with pytest.raises(RuntimeFailure, match=message), mxnet_says("called"):
            block(batch()[0].astype("float16"))
        assert capfd.readouterr().out == ""  # no traceback of MXNet's

    @pytest.mark.parametrize("when", ["forward", "backward"])
    def test_a_kernel_that_fails(self, when, monkeypatch, capfd):
        from mxq.qat.algorithms.lsq import Lsq
        from mxq.runtime.mxnet import mxnet_says

        block, (x, _) = to_block(network()), batch()

        def train():
            with mxnet_says("trained"):
                trained(block, 1)
                mx.nd.waitall()

        monkeypatch.setattr(Lsq, when, lambda *_: 1 / 0)
        with pytest.raises(RuntimeFailure, match=r"^trained: ZeroDivisionError: division by zero$"):
            train()
        monkeypatch.undo()
        assert np.isfinite(to_block(network())(x).asnumpy()).all()
