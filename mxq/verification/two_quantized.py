"""Two quantized networks side by side: what differs, and what came of it on data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from mxq.text import Shown
from mxq.verification.agreement import Verification
from mxq.verification.pair_differences import Differences, Side

FLOAT_A, FLOAT_B, A_B = "float_a", "float_b", "a_b"
TITLES: Final[Mapping[str, str]] = {
    FLOAT_A: "A against float",
    FLOAT_B: "B against float",
    A_B: "B against A",
}


@dataclass(frozen=True)
class Comparison(Shown):
    """What ``mxq compare`` shows; so does ``str``.

    Attributes:
        sides: A and B.
        differences: between the networks.
        runs: on data, one of `TITLES` -> what the second of its two networks makes of the first one's answers; empty
            without data.
    """

    sides: tuple[Side, Side]
    differences: Differences
    runs: Mapping[str, Verification] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """A JSON-ready dictionary; infinities are text, as in `Verification.to_json`."""
        return {**self.differences.to_json(), "runs": {name: run.to_json() for name, run in self.runs.items()}}
