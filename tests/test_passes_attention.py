"""Attention over interleaved queries, keys and values (GluonNLP's BERT): fused in float, int8 where it is asked for."""

from __future__ import annotations

import mxnet as mx
import numpy as np
import pytest
from graphs import assert_same_outputs, build, fc, feeds, numbers, op_names, quantized, run

from mxq import pipeline
from mxq.config import QuantConfig
from mxq.graph.ir import Model
from mxq.host.machine import VNNI
from mxq.numerics import sqnr_db
from mxq.runtime import from_symbol, to_arrays, to_block, to_symbol

HEADS, WIDTH = 4, 32
SHAPE = (12, 2, WIDTH)
"""Places, examples, width."""
OF = f'heads="{HEADS}"'
SCORES, VALUES = "_contrib_interleaved_matmul_selfatt_qk", "_contrib_interleaved_matmul_selfatt_valatt"
FUSED = {SCORES: "_sg_mkldnn_selfatt_qk", VALUES: "_sg_mkldnn_selfatt_valatt"}


def keeping(width: int) -> str:
    return f'num_hidden="{width}" flatten="False"'


def attention(weights: str = 'softmax(qk) axis="-1"') -> Model:
    return build(
        fc("qkv", "data", keeping(3 * WIDTH)),
        f"qk = {SCORES}(qkv) {OF}",
        f"att = {weights}",
        f"v = {VALUES}(qkv, att) {OF}",
        fc("p", "v", keeping(WIDTH)),
        "return p",
        data=SHAPE,
    )


DATA = feeds(data=SHAPE)


def test_float_is_fused_and_the_same() -> None:
    fused = pipeline.fuse_float(attention())
    assert set(FUSED.values()) <= set(op_names(fused))
    assert_same_outputs(attention(), fused, DATA, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("how", [{}, {"static_alloc": True, "static_shape": True}])
def test_of_any_size_in_any_order(how: dict[str, bool]) -> None:
    """The kernels keep shapes from their first batch; a hybridized block gives them another state for each."""
    model = attention()
    made = to_block(quantized(model, DATA, quantize_mode="full").model)
    made.hybridize(**how)
    for places, examples in ((12, 2), (7, 3), (20, 1), (12, 2)):
        given = feeds(data=(places, examples, WIDTH))
        assert sqnr_db(run(model, given)[0], made(mx.nd.array(given["data"])).asnumpy()) > 20


def test_smart_leaves_it_in_float() -> None:
    made = quantized(attention(), DATA, target=VNNI)
    assert {d.node for d in made.report.plan.decisions if d.int8} == {"qkv", "p"}
    assert "no quicker than the fused float one" in made.report.plan["qk"].reason
    assert set(FUSED.values()) <= set(op_names(made.model))


def test_full_makes_it_int8() -> None:
    model = attention()
    made = quantized(model, DATA, quantize_mode="full", target=VNNI)
    graph = made.model.graph
    assert graph["qk"].flag("quantized")
    assert graph["qk"].flag("enable_float_output")  # softmax reads it
    assert [r.name for r in graph["quantized_v"].inputs[:2]] == ["quantized_qkv", "att_quantize"]
    assert made.report.tensors["att_quantize"].dtype == "uint8"
    assert made.report.tensors["quantized_v"].dtype == "int8"
    assert sqnr_db(run(model, DATA)[0], numbers(made.model, VNNI, DATA)[0]) > 25


def test_as_contrib_does_it() -> None:
    """The same kernel with the same settings is written as ``mxnet.contrib.quantization`` writes it."""
    sym = to_symbol(attention().graph)
    fused = sym.get_backend_symbol("MKLDNN_QUANTIZE")
    theirs = {n.op: n for n in from_symbol(fused, to_arrays(attention().args), {}).graph.operators}
    ours = {n.op: n for n in pipeline.fuse_float(attention()).graph.operators}
    for op in FUSED.values():
        assert ours[op].attrs["heads"] == theirs[op].attrs["heads"]
        assert [n.op for n in ours[op].subgraphs[0].operators] == [n.op for n in theirs[op].subgraphs[0].operators]


@pytest.mark.parametrize("mode", ["smart", "full"])
def test_stands_mxnets_own_last_step(mode: str) -> None:
    made = quantized(attention(), DATA, quantize_mode=mode).model
    after = from_symbol(to_symbol(made.graph).get_backend_symbol("MKLDNN_QUANTIZE"), to_arrays(made.args), {})
    np.testing.assert_array_equal(run(after, DATA)[0], run(made, DATA)[0])


def test_weights_that_may_be_negative() -> None:
    """The kernel takes them as uint8."""
    model = attention("tanh(qk)")
    made = quantized(model, DATA, quantize_mode="full")
    assert made.report.plan["v"].reason == (
        "the int8 kernel takes 'att' as uint8; nothing shows that it is never below 0"
    )
    assert sqnr_db(run(model, DATA)[0], run(made.model, DATA)[0]) > 25


def test_unsigned_queries_are_read_as_signed() -> None:
    lines = (fc("f", "data", keeping(3 * WIDTH)), 'qkv = Activation(f) act_type="relu"', f"qk = {SCORES}(qkv) {OF}")
    model = build(*lines, "return qk", data=SHAPE)
    made = quantized(model, DATA, quantize_mode="full")
    assert made.report.plan["qk"].int8
    assert made.report.tensors["qkv_quantize"].dtype == "int8"
    assert sqnr_db(run(model, DATA)[0], run(made.model, DATA)[0]) > 25


def test_not_with_ranges_found_at_run_time() -> None:
    plan = pipeline.plan(attention(), QuantConfig(calib_mode="none", quantize_mode="full")).plan
    assert all("keep the range of the first batch" in plan[name].reason for name in ("qk", "v"))
