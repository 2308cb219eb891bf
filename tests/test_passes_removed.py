"""What became of operators that are no more: each is told of, with what took it out and what is read instead."""

from __future__ import annotations

import numpy as np
import pytest
from graphs import CONV1, RELU, bn, build, conv, fc, quantized

from mxq import pipeline
from mxq.artifacts import record
from mxq.config import QuantConfig
from mxq.graph.ir import Model
from mxq.quant.plan import Plan
from mxq.runtime import MxnetRunner

BODY = (conv("c", "data"), "r = Activation(c) " + RELU)


def plan(*lines: str, **inputs: tuple[int, ...]) -> tuple[Model, Plan]:
    model = build(*lines, **inputs)
    return model, pipeline.plan(model, QuantConfig(), MxnetRunner()).plan


IDENTITY = (
    "removed: in inference it passes on what it reads; what read it reads {} (rule 'drop_identity' of pass 'simplify')"
)
FACTOR = "removed: its factor is in the weights of the layers that read the product; what read it reads 'r' "
FOLDED = "removed: parameters alone determine it, so that it was computed once and is a parameter now "
UNREAD = "removed: what read it, {}, does so no more "
W, WIDER = ('w = null __shape__="(1, 8, 1, 1)"', 'w = null __shape__="(1, 8, 9, 9)"')
END = (conv("d", "s"), "return d")
CASES = {
    "dropout": ((*BODY, 'x = Dropout(r) p="0.5"', conv("s", "x"), *END), IDENTITY.format("'r'")),
    "chain": ((*BODY, "w = _copy(r)", "x = BlockGrad(w)", conv("s", "x"), *END), IDENTITY.format("'r'")),
    "input": (("x = _copy(data)", conv("s", "x"), *END), IDENTITY.format("'data'")),
    "factor": (
        (*BODY, 'x = _mul_scalar(r) scalar="0.5"', conv("s", "x"), *END),
        FACTOR + "(rule 'fold_scalar' of pass 'fold_scale')",
    ),
    "constant": (
        (W, *BODY, "x = exp(w)", "s = broadcast_sub(r, x)", *END),
        FOLDED + "(rule 'fold_constant' of pass 'constants')",
    ),
    "before a constant": (
        (W, *BODY, "x = exp(w)", "y = square(x)", "s = broadcast_sub(r, y)", *END),
        UNREAD.format("'y'") + "(rule 'fold_constant' of pass 'constants')",
    ),
    "shape": (
        (WIDER, *BODY, 'x = _mul_scalar(r) scalar="0"', 'y = slice_like(w, x) axes="(2, 3)"', "s = broadcast_add(r, y)",
         *END),
        UNREAD.format("'y'") + "(rule 'shape_of_elementwise' of pass 'shape_only')",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_reasons(name: str) -> None:
    lines, reason = CASES[name]
    model, made = plan(*lines)
    found = {d.node: d for d in made.removed}
    assert found["x"].reason == reason
    assert found["x"].op == model.graph["x"].op
    assert not found["x"].int8


@pytest.mark.parametrize(
    "lines",
    [
        (conv("c", "data", bias=False), bn("b", "c"), "r = Activation(b) " + RELU, fc("f", "r"), "return f"),
        (*BODY, 'p = Pooling(r) kernel="(1, 1)" pool_type="avg" global_pool="True"', conv("d", "p", CONV1), "return d"),
        (*BODY, 'k = clip(r) a_min="0" a_max="1"', 's = _div_scalar(k) scalar="3"', "return s"),
    ],
)
def test_every_operator_is_in_one_place(lines: tuple[str, ...]) -> None:
    model, made = plan(*lines)
    members = [m for d in (*made.decisions, *made.removed) for m in d.members]
    assert {n.name for n in model.graph.operators} <= set(members)
    assert not {d.node for d in made.removed} & {m for d in made.decisions for m in d.members}


class TestReport:
    done = quantized(build(*BODY, 'x = Dropout(r) p="0.5"', conv("d", "x"), "return d"))

    def test_explains_it(self) -> None:
        about = record.explain(self.done.report, record.find(self.done.report, "x"))
        assert about.removed
        assert about.decision.reason == CASES["dropout"][1]
        assert not record.explain(self.done.report, record.find(self.done.report, "r")).removed

    def test_keeps_it_in_the_file(self) -> None:
        again = record.from_json(record.to_json(self.done.report))
        assert again.plan.removed == self.done.report.plan.removed
        older = record.to_json(self.done.report)
        del older["removed"]
        assert record.from_json(older).plan.removed == ()

    def test_also_where_a_summand_is_shifted(self) -> None:
        lines = (conv("a", "data"), 'x = Dropout(a) p="0.5"', conv("b", "data"), "s = elemwise_add(b, x)")
        made = quantized(build(*lines, "r = Activation(s) " + RELU, "return r"))
        assert made.trace.fired("shift_summand")
        assert [d.node for d in made.report.plan.removed] == ["x"]
        assert np.isfinite(made.report.tensors["quantized_r"].max)
