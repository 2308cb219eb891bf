"""Channels scaled to share their tensor's range: the float network stays what it is, the int8 one comes closer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pytest
from graphs import CHANNELS, CONV3, bn, build, conv, fc, feeds, run
from helpers import SATURATES, assert_close

from mxq import pipeline
from mxq.backends.mxnet.exact import exact
from mxq.config import QuantConfig
from mxq.graph.ir import Model
from mxq.numerics import sqnr_db
from mxq.quant.thresholds import Range, Thresholds
from mxq.refine import FOR_SCALES, CalibrationSubset, equalized
from mxq.rewrite import Trace
from mxq.runtime import MxnetRunner
from mxq.verification import verify
from mxq.verification.taps import corresponding
from mxq.weights import equalize as equalizing
from mxq.weights.equalize import MARGIN, MOST, channels_seen, equalize, families, scales

X = feeds(data=(16, CHANNELS, 6, 6))["data"]
RELU0 = 'relu0 = Activation(conv0) act_type="relu"'
GLOBAL = 'pool_type="avg" global_pool="True" kernel="(1, 1)"'
DEPTHWISE = f'kernel="(3, 3)" num_filter="{CHANNELS}" num_group="{CHANNELS}" pad="(1, 1)"'

PLAIN = (conv("conv0", "data"), RELU0, conv("conv1", "relu0"), "return conv1")


def preact(norm: str = 'eps="1e-05" fix_gamma="False"') -> tuple[str, ...]:
    """Two blocks with activation first: a stream of sums, ``sum2`` the last, which BatchNorms with ``norm`` read."""
    return (
        conv("conv0", "data", bias=False),
        bn("bn1", "conv0", norm),
        'relu1 = Activation(bn1) act_type="relu"',
        conv("conv1", "relu1"),
        "sum1 = elemwise_add(conv1, conv0)",
        bn("bn2", "sum1", norm),
        'relu2 = Activation(bn2) act_type="relu"',
        conv("conv2", "relu2", bias=False),
        "sum2 = elemwise_add(conv2, sum1)",
        bn("bn3", "sum2", norm),
        'relu3 = Activation(bn3) act_type="relu"',
        conv("conv3", "relu3"),
        "return conv3",
    )


STREAM, NORMS = ("conv0", "conv1", "conv2"), ("bn1", "bn2", "bn3")
NETS = {
    "plain": (PLAIN, ("conv0",), ("conv1",)),
    "no_bias": (
        (conv("conv0", "data", bias=False), RELU0, conv("conv1", "relu0", bias=False), "return conv1"),
        ("conv0",),
        ("conv1",),
    ),
    "linear": ((conv("conv0", "data"), conv("conv1", "conv0"), "return conv1"), ("conv0",), ("conv1",)),
    "depthwise": (
        (
            conv("conv0", "data"),
            RELU0,
            conv("conv1", "relu0", DEPTHWISE),
            'relu1 = Activation(conv1) act_type="relu"',
            conv("conv2", "relu1"),
            "return conv2",
        ),
        ("conv0",),
        ("conv1",),
    ),
    "sum": (
        (
            conv("conv0", "data"),
            RELU0,
            conv("conv1", "data"),
            "sum = elemwise_add(conv1, relu0)",
            'relu1 = Activation(sum) act_type="relu"',
            conv("conv2", "relu1"),
            "return conv2",
        ),
        ("conv0", "conv1"),
        ("conv2",),
    ),
    "two_readers": (
        (*PLAIN[:3], conv("conv2", "relu0"), "return conv1, conv2"),
        ("conv0",),
        ("conv1", "conv2"),
    ),
    "pool_fc": (
        (conv("conv0", "data"), RELU0, f"pool = Pooling(relu0) {GLOBAL}", fc("fc0", "pool"), "return fc0"),
        ("conv0",),
        ("fc0",),
    ),
    "fc_of_maps": (
        (
            conv("conv0", "data"),
            RELU0,
            'pool = Pooling(relu0) pool_type="max" kernel="(2, 2)" stride="(2, 2)"',
            fc("fc0", "pool"),
            "return fc0",
        ),
        ("conv0",),
        ("fc0",),
    ),
    "stream": (preact(), STREAM, NORMS),
    "stream_fix_gamma": (preact('eps="0.002" fix_gamma="True"'), STREAM, NORMS),
    "stream_default_eps": (preact('fix_gamma="False"'), STREAM, NORMS),
    "stream_with_a_layer": (
        (*preact()[:-1], conv("conv4", "sum2"), "return conv3, conv4"),
        STREAM,
        (*NORMS, "conv4"),
    ),
    "norm_is_a_head": (
        (conv("conv0", "data"), bn("bn1", "conv0"), conv("conv1", "conv0"), "return bn1, conv1"),
        ("conv0",),
        ("bn1", "conv1"),
    ),
    "norm_in_a_sum": (
        (
            conv("conv0", "data"),
            bn("bn1", "conv0"),
            "sum = elemwise_add(bn1, conv0)",
            conv("conv1", "sum"),
            "return conv1",
        ),
        ("conv0", "bn1"),
        ("bn1", "conv1"),
    ),
    "through_functions": (
        (
            conv("conv0", "data"),
            "size = abs(conv0)",
            'half = _mul_scalar(size) scalar="0.5"',
            conv("conv1", "half"),
            "return conv1",
        ),
        ("conv0",),
        ("conv1",),
    ),
    "difference": (
        (
            conv("conv0", "data"),
            conv("conv1", "data"),
            "less = elemwise_sub(conv1, conv0)",
            "most = _maximum(less, conv0)",
            conv("conv2", "most"),
            "return conv2",
        ),
        ("conv0", "conv1"),
        ("conv2",),
    ),
    "norm_writes": (preact(), ("bn2",), ("conv2",)),
}
"""Name -> network, the layers and BatchNorms that write the family with outliers, those that read it."""


def outliers(model: Model, writers: Sequence[str], readers: Sequence[str], factor: float = 50.0) -> Model:
    """The same function, with channels 1 and 4 of a tensor ``factor`` times as large; biases too."""
    s = np.ones(CHANNELS)
    s[[1, 4]] = factor
    args, auxs = dict(model.args), dict(model.auxs)
    for layer in writers:
        for name in (f"{layer}_{end}" for end in ("weight", "bias", "gamma", "beta")):
            if name in args:
                args[name] = (args[name] * s.reshape(-1, *[1] * (args[name].ndim - 1))).astype(np.float32)
    for layer in readers:
        if f"{layer}_moving_mean" in auxs:
            mean, variance, eps = f"{layer}_moving_mean", f"{layer}_moving_var", model.graph[layer].number("eps", 1e-3)
            auxs[mean] = (auxs[mean] * s).astype(np.float32)
            auxs[variance] = (s**2 * (auxs[variance].astype(np.float64) + eps) - eps).astype(np.float32)
            continue
        weight = args[f"{layer}_weight"]
        columns = weight / s.reshape(-1, 1, 1, 1) if weight.shape[1] == 1 else _columns(weight) / s[None, :, None]
        args[f"{layer}_weight"] = columns.reshape(weight.shape).astype(np.float32)
    return replace(model, args=args, auxs=auxs)


def _columns(weight: np.ndarray) -> np.ndarray:
    """(O, C, positions), also of a fully connected layer that reads maps."""
    return weight.reshape(len(weight), CHANNELS, -1)


def net(name: str, factor: float = 50.0) -> Model:
    lines, writers, readers = NETS[name]
    return outliers(build(*lines), writers, readers, factor)


@dataclass
class Done:
    """Of a network: its prepared form, its ranges, both equalized, and which tensors are scaled."""

    prepared: pipeline.Prepared
    ranges: pipeline.Calibrated
    model: Model
    thresholds: Thresholds
    names: tuple[str, ...]

    @staticmethod
    def of(model: Model) -> Done:
        config = QuantConfig(num_calib_examples="100%", effort="fast", target="avx512_vnni")
        prepared = pipeline.plan(model, config)
        ranges = pipeline.calibrate(prepared, X, MxnetRunner(), progress=False)
        seen = channels_seen(MxnetRunner(), prepared.fused, [{"data": X[:9]}, {"data": X[9:]}])
        return Done(prepared, ranges, *equalize(prepared.fused, ranges.thresholds, seen))

    def int8(self, *, scaled: bool) -> Model:
        """In exact arithmetic, whatever this CPU is."""
        if not scaled:
            return exact(pipeline.quantize(self.prepared, self.ranges).model)
        prepared = replace(self.prepared, fused=self.model)
        return exact(pipeline.quantize(prepared, replace(self.ranges, thresholds=self.thresholds)).model)


@pytest.mark.parametrize("name", NETS)
def test_the_float_network_stays_and_the_int8_one_improves(name: str) -> None:
    model = net(name)
    done = Done.of(model)
    assert done.names
    wanted, found = run(done.prepared.fused, {"data": X}), run(done.model, {"data": X})
    before, after = (run(done.int8(scaled=s), {"data": X}) for s in (False, True))
    for head, same, poor, good in zip(wanted, found, before, after, strict=True):
        assert_close(same, head, rtol=1e-4, atol=1e-4 * float(np.abs(head).max()))
        assert sqnr_db(head, good) > sqnr_db(head, poor) + 8
        assert sqnr_db(head, good) > 30


@pytest.mark.parametrize("name", NETS)
def test_outliers_change_nothing_in_float(name: str) -> None:
    """Or the tests here would show nothing."""
    for head, same in zip(run(build(*NETS[name][0]), {"data": X}), run(net(name), {"data": X}), strict=True):
        assert_close(same, head, rtol=1e-4, atol=1e-4 * float(np.abs(head).max()))


@pytest.mark.parametrize("name", NETS)
def test_without_outliers_nothing_is_done(name: str) -> None:
    done = Done.of(build(*NETS[name][0]))
    assert done.model is done.prepared.fused
    assert done.thresholds is done.ranges.thresholds
    assert done.names == ()


@pytest.mark.parametrize("name", NETS)
def test_the_ranges_are_those_of_the_scaled_tensors(name: str) -> None:
    done = Done.of(net(name))
    refs = tuple(r for r in done.prepared.plan.observe if r.name in done.names)
    assert refs
    values = run(done.model, {"data": X}, refs)[len(done.model.graph.heads) :]
    for ref, value in zip(refs, values, strict=True):
        found = done.thresholds[str(ref)]
        assert found.range.min == pytest.approx(min(value.min(), 0), rel=1e-4, abs=1e-5)
        assert found.range.max == pytest.approx(value.max(), rel=1e-4)
        assert "scaled" in found.note
    others = [n for n in done.thresholds if n not in done.names]
    assert all(done.thresholds[n] is done.ranges.thresholds[n] for n in others)


def test_nodes_say_what_they_hold() -> None:
    done = Done.of(net("plain"))
    node = done.model.graph[done.names[0]]
    s = np.array(node.note.scale)
    assert s.shape == (CHANNELS,)
    assert s.min() == pytest.approx(1, rel=0.5)  # the larger of the two outliers stays
    assert 10 < s.max() <= MOST
    assert s[[1, 4]].max() < 3
    before, after = (run(m, {"data": X}, (node.out,))[-1] for m in (done.prepared.fused, done.model))
    assert_close(after, before * s[None, :, None, None], rtol=1e-4, atol=1e-4)


def test_no_channel_grows_beyond_the_most() -> None:
    done = Done.of(net("plain", factor=5000.0))
    s = np.array(done.model.graph[done.names[0]].note.scale)
    assert s.max() == pytest.approx(MOST)


def test_the_given_model_is_not_changed() -> None:
    model = net("plain")
    before = {k: v.copy() for k, v in model.args.items()}
    Done.of(model)
    assert all(np.array_equal(model.args[k], v) for k, v in before.items())


class TestRefusals:
    def scaled(self, model: Model, args: dict[str, np.ndarray] | None = None) -> tuple[str, ...]:
        changed = model if args is None else replace(model, args={**model.args, **args})
        return Done.of(changed).names

    def blocked(self, model: Model, tensor: str) -> str:
        fused = Done.of(model).prepared.fused
        return next(f.blocked for f in families(fused) if tensor in f.tensors)

    def test_shared_weights(self) -> None:
        again = 'again = Convolution(conv1, conv1_weight, conv1_bias) kernel="(3, 3)" num_filter="8" pad="(1, 1)"'
        model = outliers(build(*PLAIN[:-1], again, "return again"), ("conv0",), ("conv1",))
        assert self.scaled(model) == ()
        assert "shared" in self.blocked(model, "relu0")

    def test_a_head(self) -> None:
        model = outliers(build(*PLAIN[:-1], "return conv1, relu0"), ("conv0",), ("conv1",))
        assert self.scaled(model) == ()
        assert self.blocked(model, "relu0") == "it is an output of the network"

    def test_a_sigmoid(self) -> None:
        lines = (conv("conv0", "data"), 'relu0 = Activation(conv0) act_type="sigmoid"', *PLAIN[2:])
        model = outliers(build(*lines), ("conv0",), ("conv1",))
        assert self.scaled(model) == ()
        assert "does not commute" in self.blocked(model, "relu0")

    def test_a_sigmoid_beside_the_layer(self) -> None:
        lines = (*PLAIN[:3], 'other = Activation(relu0) act_type="sigmoid"', "return conv1, other")
        assert self.scaled(outliers(build(*lines), ("conv0",), ("conv1",))) == ()

    def test_an_input(self) -> None:
        model = build(conv("conv1", "data"), "return conv1")
        weight = model.args["conv1_weight"]
        assert self.scaled(model) == ()
        assert self.blocked(model, "data") == "it is an input"
        assert weight is model.args["conv1_weight"]

    def test_a_grouped_convolution(self) -> None:
        grouped = 'kernel="(3, 3)" num_filter="8" num_group="2" pad="(1, 1)"'
        model = build(conv("conv0", "data"), RELU0, conv("conv1", "relu0", grouped), "return conv1")
        args = {k: v.copy() for k, v in model.args.items()}
        args["conv0_weight"][1] *= 50
        fused = Done.of(replace(model, args=args))
        assert "relu0" not in fused.names

    def test_channels_on_the_last_axis(self) -> None:
        model = build(conv("conv0", "data"), RELU0, fc("fc0", "relu0", 'num_hidden="4" flatten="False"'), "return fc0")
        args = {"conv0_weight": model.args["conv0_weight"] * np.array([50, *[1] * 7]).reshape(-1, 1, 1, 1)}
        assert self.scaled(model, {k: v.astype(np.float32) for k, v in args.items()}) == ()


class TestLastAxis:
    """Fully connected layers without flattening have their channels at the end, whatever is before it."""

    FLAT = f'num_hidden="{CHANNELS}" flatten="False"'
    LINES = (fc("fc0", "data", FLAT), 'relu0 = Activation(fc0) act_type="relu"', fc("fc1", "relu0", FLAT), "return fc1")
    X = np.random.default_rng(0).standard_normal((12, 5, 3)).astype(np.float32)

    def net(self, *lines: str) -> Model:
        return outliers(build(*lines, data=self.X.shape), ("fc0",), ("fc1",))

    def done(self, model: Model, *feeds: np.ndarray) -> tuple[Model, tuple[str, ...]]:
        fused = pipeline.plan(model, QuantConfig(effort="fast", target="avx512_vnni")).fused
        seen = channels_seen(MxnetRunner(), fused, [{"data": x} for x in feeds])
        scaled, _, names = equalize(fused, Thresholds(), seen)
        for x in feeds:
            (wanted,), (found,) = run(fused, {"data": x}), run(scaled, {"data": x})
            assert_close(found, wanted, rtol=1e-4, atol=1e-4 * float(np.abs(wanted).max()))
        return scaled, names

    def test_is_scaled_whatever_the_sizes_before_it(self) -> None:
        scaled, names = self.done(self.net(*self.LINES), self.X[:8], self.X[8:, :3], self.X[:1, :1])
        assert names == ("relu0",)
        assert scaled.graph["relu0"].note.axis == -1
        row = scaled.args["fc0_weight"] / self.net(*self.LINES).args["fc0_weight"]
        assert row[[1, 4]].max() < 0.2 * np.delete(row, [1, 4], axis=0).min()

    def test_verify_puts_it_back(self) -> None:
        runner, fed = MxnetRunner(), [{"data": self.X}]
        prepared = pipeline.plan(self.net(*self.LINES), QuantConfig(target="avx512_vnni", num_calib_examples="100%"))
        ranges = pipeline.calibrate(prepared, self.X, runner, progress=False)
        done = pipeline.quantize(prepared, ranges, runner=runner, data=fed)
        assert any(e.rule == "equalize" for e in done.trace.events)
        made = exact(done.model) if SATURATES else done.model
        layers = verify(runner, prepared.fused, made, fed, layers=True).layers
        assert {layer.name for layer in layers} >= {"relu0", "fc1"}
        assert min(layer.sqnr for layer in layers) > 25

    def test_two_axes_are_first_and_last(self) -> None:
        """Of a layer that flattens, read by one that does not."""
        lines = (self.LINES[0].replace(' flatten="False"', ""), *self.LINES[1:])
        assert self.done(self.net(*lines), self.X)[1] == ("relu0",)

    def test_what_takes_another_axis_for_channels_is_left_alone(self) -> None:
        lines = (*self.LINES[:2], fc("fc1", "relu0", f'num_hidden="{CHANNELS}"'), "return fc1")
        model = build(*lines, data=(12, CHANNELS, 3))
        args = {k: v.copy() for k, v in model.args.items()}
        args["fc0_weight"][[1, 4]] *= 50
        x = np.random.default_rng(0).standard_normal((12, CHANNELS, 3)).astype(np.float32)
        assert self.done(replace(model, args=args), x)[1] == ()


class TestBatchNorm:
    """What could not be folded takes scales, but none that it cannot."""

    def blocked(self, model: Model, tensor: str) -> str:
        return next(f.blocked for f in families(model) if tensor in f.tensors)

    def test_the_stream_is_one_family_which_ends_at_norms(self) -> None:
        fused = Done.of(net("stream")).prepared.fused
        stream = next(f for f in families(fused) if "sum2" in f.tensors)
        assert {"conv0", "sum1", "sum2"} <= stream.tensors
        assert not stream.tensors & {"bn1", "relu1", "bn2", "relu2", "bn3", "relu3"}
        assert {n.name for n in stream.readers} == {"bn1", "bn2", "bn3"}
        after = next(f for f in families(fused) if "bn2" in f.tensors)
        assert after.tensors == {"bn2", "relu2"}
        assert [n.name for n in after.writers] == ["bn2"]

    def test_only_gamma_and_mean_of_a_reader_change(self) -> None:
        done = Done.of(net("stream"))
        before, after = done.prepared.fused, done.model
        s = np.array(after.graph["conv0"].note.scale)
        for norm in NORMS:
            assert_close(after.args[f"{norm}_gamma"], before.args[f"{norm}_gamma"] / s, rtol=1e-5, atol=0)
            assert_close(after.auxs[f"{norm}_moving_mean"], before.auxs[f"{norm}_moving_mean"] * s, rtol=1e-5, atol=0)
            assert np.array_equal(after.auxs[f"{norm}_moving_var"], before.auxs[f"{norm}_moving_var"])
            assert np.array_equal(after.args[f"{norm}_beta"], before.args[f"{norm}_beta"])

    def test_a_large_eps_changes_nothing(self) -> None:
        """In float. The stock int8 kernel divides by sqrt(1 + eps) once more, scaled or not."""
        model = outliers(build(*preact('eps="0.3" fix_gamma="False"')), STREAM, NORMS)
        done = Done.of(model)
        assert "sum1" in done.names
        wanted, found = run(model, {"data": X})[0], run(done.model, {"data": X})[0]
        assert_close(found, wanted, rtol=1e-4, atol=1e-4 * float(np.abs(wanted).max()))

    def test_both_sides_of_a_norm_can_have_outliers(self) -> None:
        model = outliers(net("stream"), ("bn2",), ("conv2",))
        done = Done.of(model)
        assert {"sum1", "bn2", "relu2"} <= set(done.names)
        wanted, found = run(model, {"data": X})[0], run(done.model, {"data": X})[0]
        assert_close(found, wanted, rtol=1e-4, atol=1e-4 * float(np.abs(wanted).max()))
        assert sqnr_db(wanted, run(done.int8(scaled=True), {"data": X})[0]) > 30

    def test_the_default_recovers(self) -> None:
        """Through the pipeline as users call it, no node named."""
        model, found = net("stream"), {}
        for equalized_too in (False, True):
            config = QuantConfig(num_calib_examples="100%", target="avx512_vnni", equalize=equalized_too)
            prepared = pipeline.plan(model, config)
            ranges = pipeline.calibrate(prepared, X, MxnetRunner(), progress=False)
            done = pipeline.quantize(prepared, ranges, runner=MxnetRunner(), data=[{"data": X}])
            found[equalized_too] = sqnr_db(run(model, {"data": X})[0], run(exact(done.model), {"data": X})[0])
        assert found[False] < 25
        assert found[True] > 30

    def test_every_tensor_can_be_read_back(self) -> None:
        """The int8 network says which are scaled, and what a BatchNorm makes of such a one is not."""
        model = net("stream")
        config = QuantConfig(num_calib_examples="100%")
        prepared = pipeline.plan(model, config)
        ranges = pipeline.calibrate(prepared, X, MxnetRunner(), progress=False)
        done = pipeline.quantize(prepared, ranges, runner=MxnetRunner(), data=[{"data": X}]).model
        taps = corresponding(model, done)
        assert {"sum1", "bn2", "relu2", "sum2"} <= {tap.name.removeprefix("quantized_") for tap in taps}
        for tap in taps:
            wanted, *coded = (*run(model, {"data": X}, (tap.float,))[1:], *run(done, {"data": X}, tap.int8)[1:])
            assert sqnr_db(wanted, tap.stored.read(coded).values) > 25

    @pytest.mark.parametrize(("norm", "why"), [('fix_gamma="True"', "fixed"), ('fix_gamma="False" axis="2"', "axis 1")])
    def test_what_it_cannot_do(self, norm: str, why: str) -> None:
        """As networks are before `mxq.passes.simplify`, and with channels elsewhere."""
        relu = 'relu1 = Activation(bn1) act_type="relu"'
        model = build(conv("conv0", "data"), bn("bn1", "conv0", norm), relu, conv("conv1", "relu1"), "return conv1")
        assert why in self.blocked(model, "conv0")
        assert why in self.blocked(model, "relu1")

    def test_its_statistics_may_not_be_read(self) -> None:
        norm = bn("bn1", "conv0", 'fix_gamma="False" output_mean_var="True"')
        model = build(conv("conv0", "data"), norm, conv("conv1", "conv0"), "return bn1, bn1:1, conv1")
        assert "mean" in self.blocked(model, "conv0")

    @pytest.mark.parametrize("shared", ["gamma", "beta", "moving_mean", "moving_var"])
    def test_shared_parameters(self, shared: str) -> None:
        lines = preact()
        model = build(*(line.replace(f"bn2_{shared}", f"bn3_{shared}") for line in lines))
        done = Done.of(model)
        assert "shared" in self.blocked(done.prepared.fused, "sum2")
        assert done.names == ()

    def test_a_stream_that_is_an_output(self) -> None:
        model = outliers(build(*preact()[:-1], "return conv3, sum2"), STREAM, NORMS)
        done = Done.of(model)
        assert self.blocked(done.prepared.fused, "sum1") == "it is an output of the network"
        assert done.names == ()


class TestClip:
    CLIPPED = (conv("conv0", "data"), 'clip0 = clip(conv0) a_min="0.0" a_max="6.0"', *PLAIN[2:])

    def net(self, large: float, small: float) -> Model:
        """Channels whose largest values are about ``small``, but for two of about ``large``."""
        model = build(*(line.replace("relu0", "clip0") for line in self.CLIPPED))
        s = np.full(CHANNELS, small, np.float32)
        s[[1, 4]] = large
        weight = model.args["conv0_weight"]
        args = {"conv0_weight": weight / 4 * s.reshape(-1, 1, 1, 1), "conv0_bias": np.zeros(CHANNELS, np.float32)}
        args["conv1_weight"] = model.args["conv1_weight"] / s.reshape(1, -1, 1, 1)
        return replace(model, args={**model.args, **args})

    def test_without_room_there_is_nothing_to_do(self) -> None:
        fused = pipeline.plan(self.net(5.0, 0.05), QuantConfig()).fused
        seen = channels_seen(MxnetRunner(), fused, [{"data": X}])
        family = next(f for f in families(fused) if "clip0" in f.tensors)
        assert family.cap == 6
        found = scales(fused, family, seen)
        assert found is not None
        assert found.max() > 10
        smallest = float(seen["clip0"].largest.min())
        assert scales(fused, replace(family, cap=smallest * MARGIN), seen) is None

    def test_small_channels_grow_below_it(self) -> None:
        model = self.net(5.0, 0.05)
        done = Done.of(model)
        assert done.names == ("clip0",)
        wanted, found = (run(m, {"data": X})[0] for m in (done.prepared.fused, done.model))
        assert_close(found, wanted, rtol=1e-4, atol=1e-4 * float(np.abs(wanted).max()))
        seen = channels_seen(MxnetRunner(), done.model, [{"data": X}])["clip0"]
        small = [c for c in range(CHANNELS) if c not in (1, 4)]
        assert seen.largest[small].max() * MARGIN <= 6 * (1 + 1e-4)
        assert seen.largest[[1, 4]].max() == pytest.approx(
            channels_seen(MxnetRunner(), done.prepared.fused, [{"data": X}])["clip0"].largest[[1, 4]].max(), rel=0.5
        )

    def test_there_is_room_for_other_data_and_not_too_much(self) -> None:
        """Values half as large again do not reach the clip; those of calibration data have most of their codes."""
        done = Done.of(self.net(5.0, 0.05))
        wanted, found = (run(m, {"data": 1.5 * X})[0] for m in (done.prepared.fused, done.model))
        assert_close(found, wanted, rtol=1e-4, atol=1e-4 * float(np.abs(wanted).max()))
        largest = channels_seen(MxnetRunner(), done.model, [{"data": X}])["clip0"].largest
        assert np.delete(largest, [1, 4]).max() > 0.4 * 6

    def test_no_channel_shrinks(self) -> None:
        done = Done.of(self.net(5.0, 0.05))
        s = np.array(done.model.graph["clip0"].note.scale)
        assert s.min() >= 1


class TestRefined:
    """Through `mxq.refine.equalized`, which looks at few examples."""

    def looked(self, model: Model, data: np.ndarray) -> tuple[pipeline.Prepared, Thresholds, Model, Thresholds, Trace]:
        prepared = pipeline.plan(model, QuantConfig(num_calib_examples="100%", target="avx512_vnni"))
        ranges = pipeline.calibrate(prepared, data, MxnetRunner(), progress=False).thresholds
        looked = CalibrationSubset.at(MxnetRunner(), prepared.fused, [{"data": data}], prepared.config)
        return prepared, ranges, *equalized(looked, prepared.fused, prepared.plan, ranges)

    def test_the_trace_names_the_tensors(self) -> None:
        *_, trace = self.looked(net("plain"), X)
        assert [(e.rule, e.node) for e in trace.events] == [("equalize", "relu0")]

    def test_a_range_of_more_data_than_is_looked_at_stays_as_wide(self) -> None:
        """Examples beyond the first that scales come from were calibrated on, and count."""
        data = np.concatenate([X[:FOR_SCALES], 2 * X, 0.5 * X])
        prepared, ranges, model, thresholds, _ = self.looked(net("plain"), data)
        (value,) = run(model, {"data": data}, (prepared.fused.graph["relu0"].out,))[1:]
        assert ranges.range("relu0") != thresholds.range("relu0")
        assert thresholds.range("relu0").max > 0.95 * value.max()

    @pytest.mark.parametrize("observer", ["fixed", "fixed:0,6"])
    def test_what_has_a_range_that_is_given_is_not_scaled(self, observer: str) -> None:
        prepared = pipeline.plan(net("plain"), QuantConfig(num_calib_examples="100%"))
        ranges = pipeline.calibrate(prepared, X, MxnetRunner(), progress=False).thresholds
        given = replace(ranges["relu0"], observer=observer)
        seen = channels_seen(MxnetRunner(), prepared.fused, [{"data": X}])
        assert equalize(prepared.fused, ranges, seen)[2] == ("relu0",)
        table = Thresholds({**ranges, "relu0": given})
        model, found, names = equalize(prepared.fused, table, seen)
        assert (names, found) == ((), table)
        assert model is prepared.fused

    def test_what_an_observer_cut_off_stays_off(self) -> None:
        prepared = pipeline.plan(net("plain"), QuantConfig(num_calib_examples="100%"))
        ranges = pipeline.calibrate(prepared, X, MxnetRunner(), progress=False).thresholds
        seen = channels_seen(MxnetRunner(), prepared.fused, [{"data": X}])
        whole = ranges["relu0"]
        half = replace(whole, range=Range(whole.range.min / 2, whole.range.max / 2))
        _, plain, _ = equalize(prepared.fused, ranges, seen)
        _, cut, _ = equalize(prepared.fused, Thresholds({**ranges, "relu0": half}), seen)
        assert cut.range("relu0").max == pytest.approx(plain.range("relu0").max / 2, rel=1e-5)


def gain(model: Model, *others: np.ndarray) -> float:
    """What scaling brings on data that may be other than `X`, in dB; the median."""
    done = Done.of(model)
    poor, good = (done.int8(scaled=s) for s in (False, True))
    found = []
    for x in others:
        wanted, before, after = (run(m, {"data": x})[0] for m in (done.prepared.fused, poor, good))
        found.append(sqnr_db(wanted, after) - sqnr_db(wanted, before))
    return float(np.median(found))


@pytest.mark.parametrize(("factor", "is_worth_it"), [(2.0, False), (3.0, True)])
def test_what_is_worth_it(monkeypatch: pytest.MonkeyPatch, factor: float, is_worth_it: bool) -> None:
    """Other data clips what calibration data hardly showed: a range shared a little unevenly is better left alone."""
    model = net("pool_fc", factor)
    assert bool(Done.of(model).names) == is_worth_it
    monkeypatch.setattr(equalizing, "WORTH", np.inf)
    others = [feeds(seed, data=(64, CHANNELS, 6, 6))["data"] for seed in range(20, 25)]
    assert (gain(model, *others) > 1) == is_worth_it


def test_a_channel_that_carries_nearly_all_is_shared_with_in_part() -> None:
    """Its reader's weights are as large as others, so those of channels that are scaled up all the way would round to
    nothing: neither leaving nor equal ranges is as good as what lies between."""
    wide = CONV3.replace(f'"{CHANNELS}"', '"32"')
    model = build(conv("conv0", "data", wide), RELU0, conv("conv1", "relu0"), "return conv1", seed=1)
    args = {k: v.copy() for k, v in model.args.items()}
    args["conv0_weight"][5] *= 30
    model = replace(model, args=args)
    (node,) = (n for n in Done.of(model).model.graph.operators if n.name == "relu0")
    s = np.array(node.note.scale)
    assert 2 < np.delete(s, 5).max() < 0.5 * MOST
    assert gain(model, X) > 3.3  # a power less or more brings 3.1 or 2.8


def test_a_constant_summand_is_scaled_too_or_not_at_all() -> None:
    lines = (conv("conv0", "data"), RELU0, "sum = elemwise_add(relu0, p_weight)", conv("conv1", "sum"), "return conv1")
    model = outliers(build(*lines, data=X.shape), ("conv0",), ("conv1",))
    model = replace(model, args={**model.args, "p_weight": np.full(X.shape, 0.1, np.float32)})
    fused = pipeline.plan(model, QuantConfig(exclude_operators=("elemwise_add",))).fused
    seen = channels_seen(MxnetRunner(), fused, [{"data": X}])
    scaled, _, _ = equalize(fused, Thresholds(), seen)
    wanted, found = run(fused, {"data": X})[0], run(scaled, {"data": X})[0]
    assert_close(found, wanted, rtol=1e-4, atol=1e-4 * float(np.abs(wanted).max()))


def test_a_convolution_with_a_constant_summand_does_not_break_it() -> None:
    lines = (conv("conv0", "data"), "sum = elemwise_add(conv0, p_weight)", "return sum")
    model = build(*lines, data=X.shape)
    fused = pipeline.plan(model, QuantConfig()).fused
    seen = channels_seen(MxnetRunner(), fused, [{"data": X}])
    assert equalize(fused, Thresholds(), seen)[2] == ()
