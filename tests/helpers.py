"""What several test modules need. Import it as ``from helpers import assert_close``."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import ArrayLike

from mxq import machine

exact_sums = pytest.mark.xfail(
    machine.detect().saturates,
    reason="without VNNI the int8 kernels add products in pairs in 16 bits, and large ones saturate",
    strict=False,
)
"""For tests of the numbers that VNNI kernels give; on other CPUs some of them fail, which depends on the data."""


def assert_close(actual: ArrayLike, expected: ArrayLike, *, rtol: float, atol: float) -> None:
    """Same shape, nothing NaN or infinite that was not, and |actual - expected| <= atol + rtol * |expected|.

    Both tolerances have to be given: a default would let results pass that nobody thought about.
    """
    found, wanted = np.asarray(actual), np.asarray(expected)
    assert found.shape == wanted.shape, f"shape {found.shape}, expected {wanted.shape}"
    np.testing.assert_allclose(found, wanted, rtol=rtol, atol=atol, equal_nan=True)


def assert_golden(text: str, path: Path, *, update: bool) -> None:
    """Compares ``text`` with the golden file at ``path``; with ``--update-goldens`` writes it there."""
    if update:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    assert path.exists(), f"no golden file {path.name}; run pytest --update-goldens and review what it writes"
    assert text == path.read_text(encoding="utf-8"), f"differs from {path.name}; if that is meant: --update-goldens"
