"""Small networks for tests: graphs in the text form of `mxq.graph.serde`, random parameters, a run through MXNet.

Import it as ``from graphs import build, run``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from helpers import SATURATES, assert_close

from mxq import pipeline
from mxq.backends.mxnet.exact import exact
from mxq.config import QuantConfig
from mxq.graph.ir import Graph, Model, Ref
from mxq.graph.serde import read_text
from mxq.host import machine
from mxq.passes.assignment import assign, requested
from mxq.quant import QuantizedNetwork
from mxq.quant.thresholds import Thresholds
from mxq.rewrite import Pass, Rule, Trace, apply_rules, run_pass
from mxq.runtime import MxnetRunner, to_symbol

GOLDENS = Path(__file__).parent / "goldens"
"""Where the expected structures are, one file each."""

CHANNELS = 8
CONV3 = f'kernel="(3, 3)" num_filter="{CHANNELS}" pad="(1, 1)"'
CONV1 = f'kernel="(1, 1)" num_filter="{CHANNELS}"'
RELU = 'act_type="relu"'
SHAPE = (2, CHANNELS, 6, 6)
"""Of the input "data": batch, channels, height, width."""

VERSION = 'graph {"mxnet_version": ["int", 10901]}'
"""Without it MXNet takes a graph for one of its first releases' and upgrades it."""

_CALL = re.compile(r'\s*(?:"[^"]*"|\S+) = \S+?\(([^)]*)\)')


def conv(name: str, data: str, attrs: str = CONV3, *, bias: bool = True) -> str:
    """One line: a convolution with parameters of its own."""
    extra = f", {name}_bias" if bias else ""
    return f"{name} = Convolution({data}, {name}_weight{extra}) {attrs}" + ("" if bias else ' no_bias="True"')


def bn(name: str, data: str, attrs: str = 'eps="1e-05" fix_gamma="False"') -> str:
    """One line: a BatchNorm with parameters of its own."""
    return f"{name} = BatchNorm({data}, {name}_gamma, {name}_beta, {name}_moving_mean, {name}_moving_var) {attrs}"


def fc(name: str, data: str, attrs: str = 'num_hidden="10"', *, bias: bool = True) -> str:
    """One line: a fully connected layer with parameters of its own."""
    extra = f", {name}_bias" if bias else ""
    return f"{name} = FullyConnected({data}, {name}_weight{extra}) {attrs}" + ("" if bias else ' no_bias="True"')


RESIDUAL = (
    conv("conv0", "data"),
    bn("bn0", "conv0"),
    'relu0 = Activation(bn0) act_type="relu"',
    conv("conv1", "relu0"),
    "sum = elemwise_add(conv1, relu0)",
    'relu1 = Activation(sum) act_type="relu"',
    fc("fc0", "relu1"),
    "return fc0",
)
"""A small classifier of images with a residual connection."""


def graph(*lines: str) -> Graph:
    """Reads the text form; a name that is read before any line makes it becomes a variable."""
    rows = [row for line in lines for row in line.splitlines() if row.strip()]
    known: set[str] = set()
    text = [VERSION]
    for row in rows:
        call = _CALL.match(row)
        for ref in call[1].split(",") if call and call[1] else ():
            name = ref.strip().split(":")[0].split("@")[0]
            if name and name not in known:
                known.add(name)
                text.append(f"{name} = null")
        known.add(row.split(" = ")[0].strip())
        text.append(row)
    return read_text("\n".join(text))


def build(*lines: str, seed: int = 0, **inputs: tuple[int, ...]) -> Model:
    """The model of `graph`, with random parameters of the shapes that MXNet infers.

    Args:
        lines: see `graph`.
        seed: of the parameters.
        inputs: shape of each input; "data" of `SHAPE` where none is given.
    """
    return randomized(graph(*lines), seed=seed, **inputs)


def randomized(net: Graph, *, seed: int = 0, **inputs: tuple[int, ...]) -> Model:
    """``net`` with random parameters, which keep activations near unit size."""
    shapes = inputs or {"data": SHAPE}
    sym = to_symbol(net)
    args, _, auxs = sym.infer_shape(**shapes)
    rng = np.random.default_rng(seed)
    found = dict(zip(sym.list_arguments(), args, strict=True))
    states = dict(zip(sym.list_auxiliary_states(), auxs, strict=True))
    return Model(
        net,
        {n: _value(n, s, rng) for n, s in found.items() if n not in shapes},
        {n: _value(n, s, rng) for n, s in states.items()},
    )


def _value(name: str, shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    if name.endswith("weight"):
        return (rng.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))).astype(np.float32)
    if name.endswith(("gamma", "var")):
        return rng.uniform(0.5, 1.5, shape).astype(np.float32)
    return (0.3 * rng.standard_normal(shape)).astype(np.float32)


def feeds(seed: int = 1, **inputs: tuple[int, ...]) -> dict[str, np.ndarray]:
    """Normal random inputs; "data" of `SHAPE` where no shape is given."""
    rng = np.random.default_rng(seed)
    return {n: rng.standard_normal(s).astype(np.float32) for n, s in (inputs or {"data": SHAPE}).items()}


def pictures(examples: int, seed: int) -> np.ndarray:
    """Correlated channels and neighbours, of bounded values, as in pictures; float32 (examples, CHANNELS, 6, 6)."""
    rng = np.random.default_rng(seed)
    mix = np.random.default_rng(99).standard_normal((CHANNELS, 3))
    smooth = rng.standard_normal((examples, 3, 6, 6)).cumsum(axis=2).cumsum(axis=3) / 4
    noise = 0.2 * rng.standard_normal((examples, CHANNELS, 6, 6))
    return np.tanh(np.einsum("ck,nkhw->nchw", mix, smooth) + noise).astype(np.float32)


def run(model: Model, given: Mapping[str, np.ndarray] | None = None, taps: tuple[Ref, ...] = ()) -> list[np.ndarray]:
    """All outputs (and then ``taps``) of ``model`` in MXNet, in inference mode, at the second forward."""
    executable = MxnetRunner().compile(model, taps)
    arrays = feeds() if given is None else given
    executable(arrays)
    return list(executable(arrays))


def numbers(model: Model, target: str, given: Mapping[str, np.ndarray] | None = None) -> list[np.ndarray]:
    """What the int8 ``model`` gives on a CPU of kind ``target``: one of `helpers.TARGETS`."""
    return run(exact(model) if SATURATES and target == machine.VNNI else model, given)


def without_pairs(model: Model) -> Model:
    """The model with the weights of every other input channel zero: no pair of products then exceeds 16 bits."""
    args = {}
    for name, value in model.args.items():
        args[name] = value.copy()
        if name.endswith("weight") and value.shape[1] > 1:
            args[name][:, 1::2] = 0
    return Model(model.graph, args, model.auxs)


def feed_graph(net: Graph, arrays: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    """All outputs of a graph whose every variable is in ``arrays``; the first is fed, the others are parameters."""
    first, states = next(iter(arrays)), to_symbol(net).list_auxiliary_states()
    args = {n: a for n, a in arrays.items() if n != first and n not in states}
    return run(Model(net, args, {n: arrays[n] for n in states}), {first: arrays[first]})


def quantized(
    model: Model, data: Mapping[str, np.ndarray] | np.ndarray | None = None, **options: Any
) -> pipeline.Quantized:
    """The whole pipeline, calibrated on one batch: ``data`` or `feeds`."""
    config = QuantConfig(**{"num_calib_examples": "100%", **options})
    prepared = pipeline.plan(model, config, MxnetRunner() if config.shapes else None)
    given = feeds() if data is None else data
    array = next(iter(given.values())) if isinstance(given, Mapping) else given
    return pipeline.quantize(prepared, pipeline.calibrate(prepared, array, MxnetRunner(), progress=False))


def decided(
    prepared: pipeline.Prepared, thresholds: Thresholds, model: Model | None = None, **others: Any
) -> QuantizedNetwork:
    """The types of a planned network, before its backend constrains it; ``model`` stands for its fused form."""
    requests, at_run_time = requested(prepared.choices, prepared.config), prepared.config.calib_mode == "none"
    given = {"requests": requests, "at_run_time": at_run_time, **others}
    return assign(model or prepared.fused, prepared.plan, thresholds, prepared.backend.spec, **given)


def reasons(trace: Trace, rule: str) -> list[str]:
    """Why ``rule`` refused, each reason once, in order."""
    return list(dict.fromkeys(e.reason for e in trace.events if e.rule == rule and not e.fired))


def refusals(step: Pass, model: Model, rule: str) -> list[str]:
    """Why ``rule`` of a pass refused, which leaves ``model`` the object it was."""
    result, trace = run_pass(step, model)
    assert result is model
    return reasons(trace, rule)


def rewritten(step: Pass, model: Model) -> Model:
    """What a pass makes of ``model``."""
    return run_pass(step, model)[0]


def applied(model: Model, rules: Sequence[Rule]) -> Model:
    """What rules make of ``model``."""
    return apply_rules(model, rules)[0]


def op_names(model: Model) -> list[str]:
    """Op types in graph order, without variables."""
    return [n.op for n in model.graph.operators]


def assert_same_outputs(
    before: Model,
    after: Model,
    given: Mapping[str, np.ndarray] | None = None,
    *,
    rtol: float,
    atol: float,
) -> None:
    """Both models have the same outputs on ``given`` (or `feeds`), under the same names."""
    assert [str(h) for h in before.graph.heads] == [str(h) for h in after.graph.heads]
    for wanted, found in zip(run(before, given), run(after, given), strict=True):
        assert_close(found, wanted, rtol=rtol, atol=atol)
