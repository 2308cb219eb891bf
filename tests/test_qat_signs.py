"""Signs of BatchNorm's factors, moved into weights."""

import numpy as np
import pytest
from graphs import bn, build, conv, feeds, run

from mxq.graph.ir import Model
from mxq.qat.signs import with_positive_factors

KERNEL = 'kernel="(3, 3)" num_filter="8" pad="(1, 1)"'


def negated(model: Model) -> Model:
    """Half of the factors below 0."""
    args = dict(model.args)
    for name in (n for n in args if n.endswith("gamma")):
        args[name] = args[name] * np.where(np.arange(args[name].size) % 2, np.float32(-1), np.float32(1))
    return Model(model.graph, args, model.auxs)


@pytest.mark.parametrize("bias", [True, False])
def test_the_same_numbers_with_factors_above_zero(bias: bool) -> None:
    model = negated(build(conv("layer", "data", KERNEL, bias=bias), bn("norm", "layer"), "return norm"))
    found = with_positive_factors(model)
    assert model.args["norm_gamma"].min() < 0 < found.args["norm_gamma"].min()
    np.testing.assert_array_equal(run(found, feeds())[0], run(model, feeds())[0])


def test_a_factor_that_two_share_stays() -> None:
    model = build(
        conv("one", "data", KERNEL),
        bn("norm", "one"),
        conv("two", "data", KERNEL),
        "both = BatchNorm(two, norm_gamma, norm_beta, norm_moving_mean, norm_moving_var)",
        "sum = elemwise_add(norm, both)",
        "return sum",
    )
    model = negated(model)
    for name, value in with_positive_factors(model).args.items():
        np.testing.assert_array_equal(value, model.args[name])
