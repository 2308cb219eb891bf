"""The measures against hand-worked values."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from mxq import numerics
from mxq.errors import ConfigError


def test_sqnr_db() -> None:
    x = np.array([3.0, 4.0])
    assert numerics.sqnr_db(x, x) == math.inf
    assert numerics.sqnr_db(x, [3.3, 3.6]) == pytest.approx(20.0, abs=1e-9)
    assert numerics.sqnr_db(x, x * 0) == pytest.approx(0.0, abs=1e-12)
    assert numerics.sqnr_db(x * 0, x) == -math.inf
    assert numerics.sqnr_db(x * 0, x * 0) == math.inf
    assert math.isnan(numerics.sqnr_db(x, [math.nan, 0.0]))


def test_centred_sqnr_ignores_what_softmax_ignores() -> None:
    logits = np.random.default_rng(1).standard_normal((5, 10))
    noisy = logits + 0.1 * np.random.default_rng(2).standard_normal((5, 10))
    shifted = noisy + np.arange(5)[:, None]
    assert numerics.centred_sqnr_db(logits, shifted) == pytest.approx(numerics.centred_sqnr_db(logits, noisy), abs=1e-9)
    assert numerics.sqnr_db(logits, shifted) < numerics.centred_sqnr_db(logits, shifted) - 10
    centred = np.array([[1.0, -1.0]])
    assert numerics.centred_sqnr_db(centred + 7, centred * 0.9) == pytest.approx(20.0, abs=1e-9)
    with pytest.raises(ConfigError, match="rank 0"):
        numerics.centred_sqnr_db(1.0, 1.0)


def test_kl_divergence() -> None:
    assert numerics.kl_divergence([1, 1], [3, 3]) == 0
    assert numerics.kl_divergence([3, 1], [1, 1]) == pytest.approx(
        0.75 * math.log(1.5) + 0.25 * math.log(0.5), abs=1e-12
    )
    assert numerics.kl_divergence([1, 0], [1, 1]) == pytest.approx(math.log(2), abs=1e-12)
    assert numerics.kl_divergence([1, 1], [1, 0]) == math.inf
    for p, q in (([0, 0], [1, 1]), ([1, 1], [0, 0]), ([1, -1], [1, 1]), ([math.nan, 1], [1, 1])):
        with pytest.raises(ConfigError, match="positive sum"):
            numerics.kl_divergence(p, q)


def test_cosine() -> None:
    assert numerics.cosine([1, 0], [0, 2]) == 0
    assert numerics.cosine([[1, 2]], [[2, 4]]) == pytest.approx(1, abs=1e-12)
    assert numerics.cosine([1, 2], [-1, -2]) == pytest.approx(-1, abs=1e-12)
    assert numerics.cosine([0, 0], [0, 0]) == 1
    assert numerics.cosine([0, 0], [1, 0]) == 0


@pytest.mark.parametrize("measure", [numerics.sqnr_db, numerics.kl_divergence, numerics.cosine])
def test_shapes_must_agree(measure: Any) -> None:
    with pytest.raises(ConfigError, match=r"\(2,\) and \(3,\)"):
        measure([1, 2], [1, 2, 3])
