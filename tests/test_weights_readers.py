"""What reads a tensor, as the choice of ranges asks."""

from __future__ import annotations

import pytest
from graphs import build, feeds
from helpers import assert_close

from mxq.backends import default
from mxq.config import QuantConfig
from mxq.graph.ir import Ref
from mxq.pipeline import plan
from mxq.runtime import MxnetRunner
from mxq.weights.readers import Readers


@pytest.mark.parametrize(("flatten", "shape"), [(False, (10, 4)), (True, (2, 4))], ids=["words", "examples"])
def test_words_count_as_examples_where_a_layer_reads_each_by_itself(flatten: bool, shape: tuple[int, ...]) -> None:
    line = f'fc0 = FullyConnected(data, fc0_weight, fc0_bias) num_hidden="4" flatten="{flatten}"'
    x = feeds(data=(2, 5, 8))["data"]
    fused = plan(build(line, "return fc0", data=x.shape), QuantConfig()).fused
    (reader,) = Readers(MxnetRunner(), fused, lambda node: default().spec.find(node.op)).of(Ref("data"))
    made = reader(x)
    assert made.shape == shape
    assert_close(made, x.reshape(shape[0], -1) @ fused.args["fc0_weight"].T, rtol=1e-4, atol=1e-5)
    assert_close(reader(x[:1]), made[: shape[0] // 2], rtol=1e-4, atol=1e-5)
