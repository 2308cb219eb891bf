"""Round each weight to the nearest code, as the stock kernels do: ``q = rint(w / s)``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from mxq.graph.ir import Array
from mxq.weights.methods import NEAREST, Rounder, Seen, Unrounded


@dataclass(frozen=True)
class Nearest:
    """See the module."""

    name: ClassVar[str] = NEAREST
    needs: ClassVar[Literal["nothing", "data"]] = "nothing"
    in_tune: ClassVar[bool] = False

    def rounder(self, seen: Seen | None) -> Rounder:
        return _nearest


def _nearest(channels: Unrounded) -> Array:
    return channels.nearest
