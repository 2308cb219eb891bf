"""Watching: every tensor has the very values that it has as an output, is seen once, and takes no memory."""

from __future__ import annotations

import gc
import re
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mxq  # isort: skip  # noqa: F401  (before mxnet)

from graphs import CONV1, SHAPE, bn, build, conv, fc, feeds, quantized
from helpers import assert_close
from hypothesis import given, settings
from hypothesis import strategies as st

from mxq import pipeline
from mxq.config import QuantConfig
from mxq.errors import RuntimeFailure
from mxq.graph.ir import Graph, Model, Ref, toposort
from mxq.runtime import MxnetRunner, to_symbol
from mxq.runtime.monitor import Monitor

POOL = 'kernel="(2, 2)" stride="(2, 2)" pool_type="max"'
EVERYTHING = (
    conv("conv0", "data"),
    bn("bn0", "conv0"),
    'relu0 = Activation(bn0) act_type="relu"',
    f"pool0 = Pooling(relu0) {POOL}",
    conv("conv1", "pool0", CONV1),
    'join0 = Concat(conv1, pool0) dim="1" num_args="2"',
    'split0 = SliceChannel(join0) num_outputs="2"',
    "sum0 = elemwise_add(split0, split0:1)",
    'wide0 = UpSampling(sum0) scale="2" sample_type="nearest" num_args="1"',
    "flat0 = Flatten(sum0)",
    fc("fc0", "flat0"),
    "prob0 = softmax(fc0)",
    "return prob0, wide0, relu0",
)


def outputs_of(model: Model) -> tuple[Ref, ...]:
    """Every output of every operator that the tests below know."""
    return tuple(Ref(n.name, k) for n in model.graph.operators for k in range(int(n.attrs.get("num_outputs", 1))))


def seen(watched: Any, given: Mapping[str, np.ndarray]) -> dict[Ref, np.ndarray]:
    """What is shown in one run; each tensor once."""
    found: dict[Ref, np.ndarray] = {}
    times: Counter[Ref] = Counter()

    def visit(ref: Ref, value: np.ndarray) -> None:
        times[ref] += 1
        assert value.ndim == 1
        found[ref] = value.copy()

    watched(given, visit)
    assert set(times.values()) <= {1}
    return found


def as_outputs(model: Model, refs: Sequence[Ref], given: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    return list(MxnetRunner().compile(model, refs)(given))[len(model.graph.heads) :]


def compare(model: Model, given: Mapping[str, np.ndarray] | None = None, refs: Sequence[Ref] | None = None) -> None:
    """Watched tensors equal tapped ones in every run, also under the memory plan of a plain one.

    Where a tensor's place in memory differs, oneDNN may choose another layout and so another order of sums.
    """
    given, refs = feeds() if given is None else given, outputs_of(model) if refs is None else refs
    expected = as_outputs(model, refs, given)
    watched = MxnetRunner().watch(model, refs)
    for _ in range(3):
        found = seen(watched, given)
        assert set(found) == set(refs)
        for ref, value in zip(refs, expected, strict=True):
            assert found[ref].dtype == value.dtype
            assert_close(found[ref], value.reshape(-1), rtol=1e-5, atol=1e-5)


# ------------------------------------------------------------------------------------------------ the same values


def test_every_tensor_of_a_network() -> None:
    """Convolution, normalization, pooling, concatenation, both outputs of a split, a dense layer, heads."""
    model = build(*EVERYTHING)
    assert set(model.graph.heads) <= set(outputs_of(model))
    compare(model)


@pytest.mark.parametrize("ref", outputs_of(build(*EVERYTHING)), ids=str)
def test_one_tensor_alone(ref: Ref) -> None:
    compare(build(*EVERYTHING), refs=(ref,))


IN_PLACE = {
    "relu": 'x = Activation(conv0) act_type="relu"',
    "leaky": 'x = LeakyReLU(conv0) act_type="leaky"',
    "scalar": 'x = _mul_scalar(conv0) scalar="2.0"',
    "sum with itself": "x = elemwise_add(conv0, conv0)",
    "copy": "x = _copy(conv0)",
    "stop": "x = BlockGrad(conv0)",
    "dropout": 'x = Dropout(conv0) p="0.5"',
    "flatten": "x = Flatten(conv0)",
    "reshape": 'x = Reshape(conv0) shape="(0, -1)"',
    "expand": 'x = expand_dims(conv0) axis="1"',
    "transpose": 'x = transpose(conv0) axes="(0, 2, 3, 1)"',
    "slice": 'x = slice_axis(conv0) axis="1" begin="1" end="4"',
    "shape": "x = shape_array(conv0)",
}


@pytest.mark.parametrize("last", [True, False], ids=["head", "inside"])
@pytest.mark.parametrize("op", IN_PLACE)
def test_tensors_whose_memory_is_given_away(op: str, last: bool) -> None:
    """The result is written where the operand was, or is the operand under another shape."""
    more = () if last else ('y = _mul_scalar(x) scalar="3.0"',)
    compare(build(conv("conv0", "data"), IN_PLACE[op], *more, "return x" if last else "return y"))


@pytest.mark.parametrize("dtype", ["float16", "float64", "int32", "uint8", "int8", "int64"])
def test_tensors_of_other_types(dtype: str) -> None:
    """They are shown in their own type, between others in float32."""
    compare(
        build(
            conv("conv0", "data"),
            'relu0 = Activation(conv0) act_type="relu"',
            f'cast0 = Cast(relu0) dtype="{dtype}"',
            'twice0 = _mul_scalar(cast0) scalar="2.0"',
            'back0 = Cast(twice0) dtype="float32"',
            "sum0 = elemwise_add(back0, conv0)",
            "return sum0, twice0",
        )
    )


def test_integer_inputs() -> None:
    model = build(
        'rows0 = Embedding(data, table_weight) input_dim="10" output_dim="4"',
        'sum0 = sum(rows0) axis="1"',
        "return sum0",
        data=(3, 5),
    )
    compare(model, {"data": np.random.default_rng(0).integers(0, 10, (3, 5)).astype(np.int32)})


@st.composite
def networks(draw: st.DrawFn) -> Model:
    """Four to ten layers, each reading tensors made before it; the last two are the outputs."""
    lines, made = [], ["data"]
    for i in range(draw(st.integers(4, 10))):
        name, read, other = f"n{i}", draw(st.sampled_from(made[-3:])), draw(st.sampled_from(made))
        kinds = {
            "conv": conv(name, read),
            "conv1": conv(name, read, CONV1, bias=False),
            "bn": bn(name, read),
            "relu": f'{name} = Activation({read}) act_type="relu"',
            "clip": f'{name} = clip({read}) a_min="0.0" a_max="6.0"',
            "sum": f"{name} = elemwise_add({read}, {other})",
            "pool": f'{name} = Pooling({read}) kernel="(3, 3)" pad="(1, 1)" pool_type="max"',
            "split": f'{name} = SliceChannel({read}) num_outputs="2"',
            "identity": f"{name} = _copy({read})",
        }
        kind = draw(st.sampled_from(sorted(kinds)))
        lines.append(kinds[kind])
        if kind == "split":
            lines.append(f'{name}j = Concat({name}:1, {name}) dim="1" num_args="2"')
            name += "j"
        made.append(name)
    model = build(*lines, f"return {made[-1]}, {made[-2]}")
    return model.with_graph(toposort(model.graph.nodes, model.graph.heads, model.graph.attrs))  # what the outputs need


@settings(max_examples=25, deadline=None)
@given(networks())
def test_every_tensor_of_any_network(model: Model) -> None:
    compare(model)


@settings(max_examples=10, deadline=None)
@given(networks())
def test_planned_tensors_of_any_fused_network(model: Model) -> None:
    """What calibration watches: fused operators of oneDNN, which write in blocked layouts."""
    prepared = pipeline.plan(model, QuantConfig())
    refs = [r for r in prepared.plan.observe if not prepared.fused.graph[r.name].is_variable]
    if refs:
        compare(prepared.fused, refs=refs)


def test_tensors_of_an_int8_network() -> None:
    model = quantized(
        build(conv("conv0", "data"), 'relu0 = Activation(conv0) act_type="relu"', fc("fc0", "relu0"), "return fc0")
    ).model
    refs = outputs_of(model)
    compare(model, refs=refs)
    types = {value.dtype for value in seen(MxnetRunner().watch(model, refs), feeds()).values()}
    assert types & {np.dtype(np.int8), np.dtype(np.uint8)}


# ------------------------------------------------------------------------------------------------ names


def test_operators_that_share_a_label() -> None:
    """MXNet's files may call two operators the same; ours are told apart by their unique names."""
    model = build(*EVERYTHING)
    nodes = tuple(n if n.is_variable else replace(n, label="same") for n in model.graph.nodes)
    alike = Model(Graph(nodes, model.graph.heads, model.graph.attrs), model.args, model.auxs)
    found = seen(MxnetRunner().watch(alike, outputs_of(alike)), feeds())
    for ref, value in seen(MxnetRunner().watch(model, outputs_of(model)), feeds()).items():
        np.testing.assert_array_equal(found[ref], value)


def test_equal_operators_are_each_seen() -> None:
    """MXNet would run one of them and drop the others, of which nothing would be seen."""
    model = build(
        conv("conv0", "data"),
        "conv1 = Convolution(data, conv0_weight, conv0_bias) " + conv("", "").split(") ")[1],
        'relu0 = Activation(conv0) act_type="relu"',
        'relu1 = Activation(conv1) act_type="relu"',
        'relu2 = Activation(conv1) act_type="relu"',
        "sum0 = elemwise_add(relu0, relu1)",
        "sum1 = elemwise_add(sum0, relu2)",
        "return sum1",
    )
    compare(model)
    found = seen(MxnetRunner().watch(model, outputs_of(model)), feeds())
    np.testing.assert_array_equal(found[Ref("relu1")], found[Ref("relu2")])


def test_names_that_look_like_outputs() -> None:
    compare(
        build(
            'a = SliceChannel(data) num_outputs="2"',
            'a_output0 = Activation(a) act_type="relu"',
            'a_output1 = Activation(a:1) act_type="relu"',
            "a_output = elemwise_add(a_output0, a_output1)",
            "return a_output",
        )
    )


def test_two_outputs_of_one_name_are_refused() -> None:
    """Only a symbol whose labels repeat has them; `MxnetRunner.watch` makes none."""
    model = build('a = Activation(data) act_type="relu"', 'b = Activation(a) act_type="relu"', "return b")
    nodes = tuple(n if n.is_variable else replace(n, label="x") for n in model.graph.nodes)
    sym = to_symbol(Graph(nodes, model.graph.heads, model.graph.attrs))
    with pytest.raises(RuntimeFailure, match=r"^MXNet calls two tensors 'x_output': 'x:1' and 'x'$"):
        Monitor(sym, (Ref("x"), Ref("x", 1)))


@pytest.mark.parametrize("ref", [Ref("conv9"), Ref("conv0", 1), Ref("split0", 2)], ids=str)
def test_what_no_operator_makes_is_refused(ref: Ref) -> None:
    with pytest.raises(RuntimeFailure, match=f"^MXNet has no output {str(ref)!r} to watch$"):
        MxnetRunner().watch(build(*EVERYTHING), (Ref("conv0"), ref))


def test_an_input_is_made_by_no_operator() -> None:
    watched = MxnetRunner().watch(build(*EVERYTHING), (Ref("conv0"), Ref("data")))
    with pytest.raises(RuntimeFailure, match=r"^MXNet ran the network without making 'data'$"):
        seen(watched, feeds())


def test_watching_nothing() -> None:
    assert seen(MxnetRunner().watch(build(*EVERYTHING), ()), feeds()) == {}


@pytest.mark.parametrize(
    "lines",
    [
        ('split0 = SliceChannel(data) num_outputs="2"', 'relu0 = Activation(split0) act_type="relu"', "return relu0"),
        (conv("conv0", "data"), "zero0 = zeros_like(conv0)", "return zero0"),
    ],
    ids=["an output without a reader", "a reader that ignores it"],
)
def test_tensors_that_nothing_reads(lines: tuple[str, ...]) -> None:
    model = build(*lines)
    watched = MxnetRunner().watch(model, outputs_of(model))
    for seed in (1, 2):  # memory that was never written cannot hold both
        found = seen(watched, feeds(seed))
        for ref, value in zip(outputs_of(model), as_outputs(model, outputs_of(model), feeds(seed)), strict=True):
            np.testing.assert_array_equal(found[ref], value.reshape(-1))


# ------------------------------------------------------------------------------------------------ shapes


def test_new_shapes_bind_anew() -> None:
    model, x = build(*EVERYTHING[:8], "return sum0"), feeds(data=(6, *SHAPE[1:]))["data"]
    refs = outputs_of(model)
    watched = MxnetRunner().watch(model, refs)
    for size in (2, 6, 1, 6, 3):
        found = seen(watched, {"data": x[:size]})
        for ref, value in zip(refs, as_outputs(model, refs, {"data": x[:size]}), strict=True):
            np.testing.assert_array_equal(found[ref], value.reshape(-1))


def test_two_that_are_watched_do_not_share_state() -> None:
    model, x = build(*EVERYTHING), feeds()["data"]
    refs = outputs_of(model)
    one, other = MxnetRunner().watch(model, refs), MxnetRunner().watch(model, refs[:2])
    first = seen(one, {"data": x})

    def within(ref: Ref, value: np.ndarray) -> None:
        np.testing.assert_array_equal(value, first[ref])
        seen(other, {"data": x + 1})  # also while the first one runs

    one({"data": x}, within)
    one({"data": x}, within)


def test_what_is_watched_may_go() -> None:
    """MXNet holds the address of a function of ours; both go together."""
    model = build(*EVERYTHING)
    for _ in range(5):
        watched = MxnetRunner().watch(model, (Ref("fc0"),))
        value = seen(watched, feeds())[Ref("fc0")]
        del watched
        gc.collect()
        np.testing.assert_array_equal(MxnetRunner().compile(model, (Ref("fc0"),))(feeds())[-1].reshape(-1), value)


# ------------------------------------------------------------------------------------------------ failures


class Own(Exception):
    """What no one else raises."""


@pytest.mark.parametrize("error", [Own("mine"), KeyboardInterrupt("stop"), SystemExit(3)], ids=repr)
@pytest.mark.parametrize("place", ["conv0", "split0:1", "prob0"])
def test_what_visit_raises_ends_the_run_and_is_raised(
    error: BaseException, place: str, capfd: pytest.CaptureFixture[str]
) -> None:
    model = build(*EVERYTHING)
    refs = outputs_of(model)
    watched = MxnetRunner().watch(model, refs)
    before = seen(watched, feeds())
    shown: list[str] = []

    def visit(ref: Ref, value: np.ndarray) -> None:
        shown.append(str(ref))
        if str(ref) == place:
            raise error

    with pytest.raises(type(error)) as caught:
        watched(feeds(), visit)
    assert caught.value is error
    assert shown[-1] == place
    assert capfd.readouterr() == ("", "")  # no "Exception ignored" of ctypes
    again = seen(watched, feeds())  # and it works afterwards
    for ref in refs:
        np.testing.assert_array_equal(again[ref], before[ref])


def test_a_real_interrupt() -> None:
    """Python raises it inside of whatever runs, here inside of the call from MXNet."""
    watched = MxnetRunner().watch(build(*EVERYTHING), (Ref("conv0"), Ref("fc0")))
    shown: list[Ref] = []

    def visit(ref: Ref, value: np.ndarray) -> None:
        shown.append(ref)
        signal.raise_signal(signal.SIGINT)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may have it ignored
    try:
        with pytest.raises(KeyboardInterrupt):
            watched(feeds(), visit)
    finally:
        signal.signal(signal.SIGINT, before)
    assert shown == [Ref("conv0")]
    assert set(seen(watched, feeds())) == {Ref("conv0"), Ref("fc0")}


def test_bad_feeds_are_named() -> None:
    watched = MxnetRunner().watch(build(*EVERYTHING), (Ref("conv0"),))
    for wrong, message in (
        ({}, "input 'data' is not fed; fed: nothing"),
        (
            {"data": np.ones((2, 3, 6, 6), np.float32)},
            "MXNet cannot run the network on input 'data' float32[2, 3, 6, 6]: ",
        ),
    ):
        with pytest.raises(RuntimeFailure, match=f"^{re.escape(message)}"):
            seen(watched, wrong)
    assert set(seen(watched, feeds())) == {Ref("conv0")}  # and still works


def test_what_mxnets_engine_fails_at_is_named() -> None:
    """It complains when a tensor is read, which here is at once; an index may be too large."""
    model = build(
        'relu0 = Activation(data) act_type="relu"',
        'rows0 = take(table_weight, relu0) mode="raise"',
        "return rows0",
        data=(2, 3),
        table_weight=(4, 5),
    )
    given = {"data": np.full((2, 3), 9, np.float32), "table_weight": np.ones((4, 5), np.float32)}
    watched = MxnetRunner().watch(model, (Ref("relu0"), Ref("rows0")))
    with pytest.raises(RuntimeFailure, match=r"^MXNet failed while it made 'rows0': .*"):
        seen(watched, given)
    given["data"] = np.ones((2, 3), np.float32)
    assert set(seen(watched, given)) == {Ref("relu0"), Ref("rows0")}


# ------------------------------------------------------------------------------------------------ memory

CHAIN = """
import re, sys
from pathlib import Path
sys.path[:0] = sys.argv[2:4]
import mxq
import numpy as np
from graphs import graph
from mxq.graph.ir import Model, Ref
from mxq.runtime import MxnetRunner

def peak():  # of this process; getrusage would tell that of the one it was forked from, if that was higher
    return int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])

lines = [f'n{i} = Activation({"data" if i == 0 else f"n{i - 1}"}) act_type="relu"' for i in range(60)]
model = Model(graph(*lines, "return n59"))
refs = [Ref(f"n{i}") for i in range(60)]
x = {"data": np.ones((1, 2**21), np.float32)}  # 8 MB
runner, total = MxnetRunner(), 0
runner.compile(model)(x)[0]
before = peak()
if sys.argv[1] == "watch":
    def visit(ref, value):
        global total
        total += int(value[-1])
    watched = runner.watch(model, refs)
    for _ in range(3):
        watched(x, visit)
else:
    total = sum(int(a[0, -1]) for a in runner.compile(model, refs)(x)[1:])
print(total, (peak() - before) // 1024)
"""


def grown(how: str) -> tuple[int, int]:
    """Sum of what was seen, and by how many MB the process grew beyond a plain run."""
    here = Path(__file__).parent
    done = subprocess.run(
        [sys.executable, "-c", CHAIN, how, str(here), str(here.parent)],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    total, megabytes = done.stdout.split()
    return int(total), int(megabytes)


def test_a_deep_chain_is_watched_in_the_memory_of_a_plain_run() -> None:
    """60 tensors of 8 MB: 480 MB where they are outputs; watched, a bind more and one of them."""
    total, taken = grown("watch")
    assert total == 3 * 60
    assert taken < 120
    total, taken = grown("outputs")
    assert total == 60
    assert taken > 400
