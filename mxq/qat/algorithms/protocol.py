"""`Algorithm`: one way to fake-quantize a tensor in training, what it learns, and what that means for integers.

Terms. A *fake-quantized* tensor holds float values of the grid of its codes. The *straight-through estimator* (STE)
passes gradients through rounding as if it were not there. A *parameter* is what an algorithm keeps for a tensor, such
as its step: one number or, with ``spec.axis``, one for each channel.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeAlias, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from mxq.graph.ir import Node, Ref
from mxq.quant import QParams, QuantSpec

Floats: TypeAlias = NDArray[np.float32]
Role: TypeAlias = Literal["weight", "activation"]
"""Which of the two a tensor is; algorithms treat them apart."""


@dataclass(frozen=True, slots=True)
class Site:
    """A tensor that is fake-quantized: its codes are of ``spec``, settled, and its ``role``."""

    spec: QuantSpec
    role: Role


@runtime_checkable
class Algorithm(Protocol):
    """A way to fake-quantize.

    Arrays of values are (A, C, B) float32, contiguous: axes before the channels', channels, axes after; C is 1 without
    ``spec.axis``. Parameters are (C,) float32, by the names in ``parameters``.
    """

    @property
    def name(self) -> str:
        """By which settings ask for it."""

    @property
    def source(self) -> str:
        """The paper and equation."""

    def parameters(self, site: Site) -> tuple[str, ...]:
        """What it keeps for a tensor, in order, such as ("step", "zero_point")."""

    def learned(self, site: Site) -> tuple[str, ...]:
        """Those of `parameters` that have gradients."""

    def check(self, site: Site) -> None:
        """Whether it can be used there.

        Raises:
            ConfigError: names the spec found, and those allowed.
        """

    def initial(self, site: Site, low: Floats, high: Floats, values: Floats | None = None) -> dict[str, Floats]:
        """Parameters to start from.

        Args:
            site: what is quantized.
            low, high: (C,), the calibrated range.
            values: (A, C, B), a weight, or a sample of an activation, where there is one.
        """

    def forward(self, site: Site, x: Floats, parameters: Mapping[str, Floats]) -> Floats:
        """``x`` fake-quantized: (A, C, B)."""

    def backward(
        self, site: Site, x: Floats, grad: Floats, parameters: Mapping[str, Floats]
    ) -> tuple[Floats, dict[str, Floats]]:
        """The gradients of ``x``, (A, C, B), and of what is `learned`, (C,) each, from that of the result, ``grad``."""

    def nodes(self, name: str, site: Site, x: Ref, parameters: Sequence[Ref]) -> tuple[Node, ...]:
        """`forward` in plain operators whose own gradients are those of `backward`; the last is named ``name``.

        An oracle, and the form for devices other than the CPU. Variables of ``parameters`` are (C,).
        """

    def deployed(self, site: Site, values: Floats, parameters: Mapping[str, Floats]) -> tuple[Floats, QParams]:
        """A trained tensor without the algorithm: values (A, C, B), and how they are coded, as `forward` gives them.

        Values differ from ``values`` where the algorithm transforms them before it rounds. Those of an activation are
        not looked at.
        """


def fake_node(name: str, algorithm: str, site: Site, x: Ref, parameters: Sequence[Ref], **settings: Any) -> Node:
    """The operator that fake-quantizes ``x`` by compiled kernels (`mxq.runtime.fake_quantization`), on the CPU.

    Args:
        name: of the node, and so of what it makes.
        algorithm: by name.
        site: what ``x`` is.
        x: the tensor.
        parameters: variables (C,), in the algorithm's order.
        settings: of the algorithm, as it is registered with.
    """
    attrs = {"op_type": OP_TYPE, "algorithm": algorithm, "role": site.role}
    attrs |= {name: str(value) for name, value in site.spec.to_json().items()}
    attrs |= {name: str(value) for name, value in settings.items()}
    return Node(name, "Custom", attrs, (x, *parameters))


OP_TYPE = "mxq_fake_quantize"
"""By which MXNet knows the operator of `fake_node`."""
