"""The strategies of BatchNorm against the formulas of MQBench in numpy, in training, inference and gradients."""

from __future__ import annotations

import numpy as np
import pytest
from graphs import bn, build, conv, fc
from helpers import assert_close

from mxq import qat
from mxq.errors import ConfigError
from mxq.qat.folding import FOLDINGS, folding_of, pairs
from mxq.qat.preparing import block_of
from mxq.quant import QParams, QuantSpec

mx = pytest.importorskip("mxnet")

EPS, MOMENTUM = 1e-3, 0.9
LAYERS = {
    "conv": (conv("layer", "data", 'kernel="(3, 3)" num_filter="5" pad="(1, 1)" stride="(2, 2)"', bias=False),),
    "biased": (conv("layer", "data", 'kernel="(1, 1)" num_filter="5"'),),
    "dense": (fc("layer", "data", 'num_hidden="5"'),),
}
SPEC = QuantSpec(bits=4, narrow=False)


def network(kind: str, strategy: int, *, fixed_gamma: bool = False) -> qat.QatNetwork:
    """A layer and a BatchNorm whose weight alone is quantized, to 4 bits by one step that is fixed."""
    model = build(
        *LAYERS[kind],
        bn("norm", "layer", f'eps="{EPS}" momentum="{MOMENTUM}" fix_gamma="{fixed_gamma}"'),
        "return norm",
    )
    data = np.random.default_rng(0).standard_normal((2, 8, 6, 6)).astype(np.float32)
    settings = {"hardware": "academic", "edge_bits": 4, "bits_w": 4, "algorithm": "fixed", "bn_strategy": strategy}
    found = qat.prepare(model, data, **settings).qat
    weights = tuple(q for q in found.quantizers if q.is_weight)
    return qat.QatNetwork(
        found.source, found.config, weights, {q.parameter("step"): found.of(q)["step"] for q in weights}
    )


def layer(kind: str, x: np.ndarray, weight: np.ndarray, bias: np.ndarray | None) -> np.ndarray:
    """In float64, by plain sums; (N, O) or (N, O, H, W)."""
    if kind == "dense":
        y = x.reshape(len(x), -1).astype(np.float64) @ weight.reshape(len(weight), -1).T
    else:
        k, pad, stride = weight.shape[2], weight.shape[2] // 2, 2 if kind == "conv" else 1
        padded = np.pad(x.astype(np.float64), ((0, 0), (0, 0), (pad, pad), (pad, pad)))
        side = (x.shape[2] + 2 * pad - k) // stride + 1
        y = np.zeros((len(x), len(weight), side, side))
        for i in range(k):
            for j in range(k):
                part = padded[:, :, i : i + stride * side : stride, j : j + stride * side : stride]
                y += np.einsum("nchw,oc->nohw", part, weight[:, :, i, j])
    return y if bias is None else y + beside(bias, y)


def beside(numbers: np.ndarray, y: np.ndarray) -> np.ndarray:
    return numbers.reshape(1, -1, *[1] * (y.ndim - 2))


class Formula:
    """MQBench, section 3.2, of one layer with the values of a network."""

    def __init__(self, kind: str, net: qat.QatNetwork) -> None:
        values = {name: value.astype(np.float64) for name, value in net.values.items()}
        self.kind, self.weight, self.bias = kind, values["layer_weight"], values.get("layer_bias")
        self.number = net.config.folding.number
        self.step = float(values["layer_weight_fq_step"][0])
        if self.number != 0:
            fixed = net.source.graph["norm"].flag("fix_gamma")
            self.gamma = np.ones_like(values["norm_gamma"]) if fixed else values["norm_gamma"]
            self.beta, self.mean, self.var = (values[f"norm_{n}"] for n in ("beta", "moving_mean", "moving_var"))

    def fake(self, weight: np.ndarray) -> np.ndarray:
        return QParams(SPEC, 1 / self.step).fake(weight.astype(np.float32)).astype(np.float64)

    def made(self, x: np.ndarray, weight: np.ndarray, bias: np.ndarray | None) -> np.ndarray:
        return layer(self.kind, x, weight, bias)

    def batch(self, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        axes = (0, *range(2, y.ndim))
        return y.mean(axis=axes), y.var(axis=axes)

    def __call__(self, x: np.ndarray, *, training: bool) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """The output, and the moving statistics afterwards."""
        if self.number == 0:
            return self.made(x, self.fake(self.weight), self.bias), {}
        own = 0 if self.bias is None else self.bias
        rows = (-1, *[1] * (self.weight.ndim - 1))
        s = np.sqrt(self.var + EPS)
        if self.number == -1:
            y = self.made(x, self.fake(self.weight), self.bias)
        elif self.number == 4:
            f = self.gamma / s
            scaled = self.made(x, self.fake(self.weight * f.reshape(rows)), None)
            y = scaled / beside(f, scaled) + beside(np.broadcast_to(own, f.shape), scaled)
        else:
            y = self.made(x, self.weight, self.bias)
        mean, var = self.batch(y) if training and self.number != 1 else (self.mean, self.var)
        after = {"norm_moving_mean": self.mean, "norm_moving_var": self.var}
        if training and self.number != 1:
            after = {
                "norm_moving_mean": MOMENTUM * self.mean + (1 - MOMENTUM) * mean,
                "norm_moving_var": MOMENTUM * self.var + (1 - MOMENTUM) * var,
            }
        s_b = np.sqrt(var + EPS)
        if self.number in (-1, 4):
            return beside(self.gamma / s_b, y) * (y - beside(mean, y)) + beside(self.beta, y), after
        factor = self.gamma / (s if self.number == 3 else s_b)
        out = self.made(x, self.fake(self.weight * factor.reshape(rows)), None)
        if self.number == 3:
            out = out * beside(s / s_b, out)
        return out + beside(self.beta + (own - mean) * self.gamma / s_b, out), after


@pytest.mark.parametrize(("kind", "strategy"), [(kind, folding.number) for kind in LAYERS for folding in FOLDINGS])
def test_a_strategy_computes_its_formula_and_moves_statistics_as_it_says(kind: str, strategy: int) -> None:
    net = network(kind, strategy)
    formula, block = Formula(kind, net), block_of(net)
    x = np.random.default_rng(1).standard_normal((6, 8, 6, 6)).astype(np.float32)
    expected, _ = formula(x, training=False)
    assert_close(block(mx.nd.array(x)).asnumpy(), expected, rtol=1e-4, atol=1e-4)
    expected, after = formula(x, training=True)
    with mx.autograd.record():
        found = block(mx.nd.array(x))
        loss = (found * found).sum()
    assert_close(found.asnumpy(), expected, rtol=1e-4, atol=2e-4)
    loss.backward()
    for name, value in after.items():
        assert_close(block.trained[name], value, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("strategy", [f.number for f in FOLDINGS])
def test_what_is_learned_has_the_gradient_of_the_formula(strategy: int) -> None:
    """By central differences in beta and bias, in which the formula is smooth; weights get some gradient."""
    net = network("biased", strategy)
    block = block_of(net)
    x = np.random.default_rng(1).standard_normal((6, 8, 6, 6)).astype(np.float32)
    with mx.autograd.record():
        loss = (block(mx.nd.array(x)) ** 2).sum()
    loss.backward()
    gradients = {n: p.grad().asnumpy() for n, p in block.collect_params().items() if p.grad_req != "null"}
    for name in ("layer_bias",) if strategy == 0 else ("norm_beta",):
        for i in range(2):
            moved = []
            for sign in (1, -1):
                value = np.array(net.values[name])
                value[i] += sign * 1e-2
                moved.append(np.square(Formula("biased", net.with_values({name: value}))(x, training=True)[0]).sum())
            assert_close(gradients[name][i], (moved[0] - moved[1]) / 2e-2, rtol=1e-3, atol=1e-3)
    assert np.abs(gradients["layer_weight"]).max() > 0
    if strategy > 0:
        assert np.abs(gradients["norm_gamma"]).max() > 0
    assert not {"norm_moving_mean", "norm_moving_var"} & gradients.keys()


@pytest.mark.parametrize("strategy", [1, 2, 3, 4])
def test_a_gamma_that_is_fixed_counts_as_one_whatever_it_holds(strategy: int) -> None:
    net = network("conv", strategy, fixed_gamma=True)
    x = np.random.default_rng(1).standard_normal((6, 8, 6, 6)).astype(np.float32)
    expected, _ = Formula("conv", net)(x, training=False)
    assert_close(block_of(net)(mx.nd.array(x)).asnumpy(), expected, rtol=1e-4, atol=1e-4)


def test_a_channel_whose_gamma_is_zero_stays_finite_where_its_factor_is_divided_by() -> None:
    net = network("conv", 4)
    net = net.with_values({"norm_gamma": np.float32([0, 1, -1, 0.5, 2])})
    block = block_of(net)
    with mx.autograd.record():
        out = block(mx.nd.ones((2, 8, 6, 6)))
    out.backward()
    assert np.isfinite(out.asnumpy()).all()
    assert_close(out.asnumpy()[:, 0], np.full((2, 3, 3), net.values["norm_beta"][0]), rtol=1e-6, atol=1e-6)
    assert all(np.isfinite(p.grad().asnumpy()).all() for p in block.collect_params().values() if p.grad_req != "null")


def test_strategies_are_known_by_number_and_name_and_others_refused() -> None:
    assert [folding_of(f.name) for f in FOLDINGS] == [folding_of(f.number) for f in FOLDINGS] == list(FOLDINGS)
    for wrong in (5, True, "fold", None):
        with pytest.raises(ConfigError, match=r"bn_strategy is .*; allowed: -1, 0, 1, 2, 3, 4, 'unfolded', 'merged'"):
            folding_of(wrong)  # type: ignore[arg-type]


def test_a_batch_norm_that_another_reads_past_is_left_as_it_is() -> None:
    model = build(conv("layer", "data"), bn("norm", "layer"), "both = elemwise_add(norm, layer)", "return both")
    assert pairs(model) == {}
