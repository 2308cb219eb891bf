from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from helpers import assert_close, assert_golden


def test_close_has_no_default_tolerance() -> None:
    with pytest.raises(TypeError):
        assert_close(1.0, 1.0)  # type: ignore[call-arg]


@pytest.mark.parametrize("wrong", [[1.0, 2.02], [1.0, np.nan], [[1.0, 2.0]], [1.0]])
def test_close_refuses(wrong: object) -> None:
    assert_close([1.0, 2.01], [1.0, 2.0], rtol=0.0, atol=0.0101)
    with pytest.raises(AssertionError):
        assert_close(wrong, [1.0, 2.0], rtol=0.0, atol=0.0101)


def test_golden(tmp_path: Path) -> None:
    golden = tmp_path / "new" / "a.txt"
    with pytest.raises(AssertionError, match="no golden file"):
        assert_golden("x", golden, update=False)
    assert_golden("x", golden, update=True)
    assert_golden("x", golden, update=False)
    with pytest.raises(AssertionError, match="differs"):
        assert_golden("y", golden, update=False)
