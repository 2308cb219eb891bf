"""`Algorithm`: one way to fake-quantize a tensor in training, what it learns, and what that means for integers.

Terms. A *fake-quantized* tensor holds float values of the grid of its codes. The *step* is the distance of two values
of that grid. The *straight-through estimator* (STE) passes gradients through rounding as if it were not there. A
*parameter* is what an algorithm keeps for a tensor, such as its step: one number or, with ``spec.axis``, one for each
channel.
"""

from __future__ import annotations

from ast import literal_eval
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, Final, Literal, Protocol, TypeAlias, cast, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from mxq.errors import ConfigError, one_of
from mxq.graph.ir import Node, Ref
from mxq.quant import SCHEMES, QParams, QuantSpec, Scheme, scheme_of
from mxq.registration import OP_TYPE

Floats: TypeAlias = NDArray[np.float32]
Role: TypeAlias = Literal["weight", "activation"]
"""Which of the two a tensor is; algorithms treat them apart."""
ROLES: Final = ("weight", "activation")
SCALED: Final = "scaled"
"""The attribute of `fake_node` of that name."""
_LITERALS: Final = ("bits", "signed", "symmetric", "axis", "narrow")


@dataclass(frozen=True, slots=True)
class Site:
    """A tensor that is fake-quantized.

    Attributes:
        spec: of its codes, settled.
        role: whether it is a weight or an activation.
        rule: the name of the `Scheme` by which a range becomes a step; empty for the usual one of ``spec``.
    """

    spec: QuantSpec
    role: Role
    rule: str = ""

    @property
    def scheme(self) -> Scheme:
        """By which a range becomes a step."""
        return SCHEMES[self.rule] if self.rule else scheme_of(self.spec)

    def folded(self, shape: Sequence[int]) -> tuple[int, int, int]:
        """The shape (A, C, B) in which algorithms see a tensor of ``shape``: see `Algorithm`."""
        axis, first = self.spec.axis, int(self.role == "activation")
        if axis is None:
            return prod(shape[:first]), 1, prod(shape[first:])
        return prod(shape[:axis]), shape[axis], prod(shape[axis + 1 :])


@runtime_checkable
class Algorithm(Protocol):
    """A way to fake-quantize.

    Arrays of values are (A, C, B) float32, contiguous: axes before the channels', channels, axes after. Without
    ``spec.axis`` C is 1, and A the batch of an activation, 1 of a weight. Parameters are (C,) float32, by the names in
    ``parameters``. What is finite stays finite, whatever values learned parameters take.
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

    def forward(self, site: Site, x: Floats, parameters: Mapping[str, Floats], out: Floats | None = None) -> Floats:
        """``x`` fake-quantized: (A, C, B), in the memory of ``out`` where that is given."""

    def backward(
        self, site: Site, x: Floats, grad: Floats, parameters: Mapping[str, Floats], out: Floats | None = None
    ) -> tuple[Floats, dict[str, Floats]]:
        """The gradients of ``x``, (A, C, B), and of what is `learned`, (C,) each, from that of the result, ``grad``.

        The first is in the memory of ``out`` where that is given.
        """

    def nodes(self, name: str, site: Site, x: Ref, parameters: Sequence[Ref]) -> tuple[Node, ...]:
        """`forward` in plain operators whose own gradients are those of `backward`; the last is named ``name``.

        An oracle, and the form for devices other than the CPU. Variables of ``parameters`` are (C,).
        """

    def deployed(self, site: Site, values: Floats, parameters: Mapping[str, Floats]) -> tuple[Floats, QParams]:
        """A trained tensor without the algorithm: values (A, C, B), and how they are coded, as `forward` gives them.

        Values differ from ``values`` where the algorithm transforms them before it rounds. Those of an activation are
        not looked at.
        """


@runtime_checkable
class Gridded(Protocol):
    """An algorithm whose results are multiples of a step, so that units of sums of their products are known."""

    def scale(self, site: Site, x: Floats, parameters: Mapping[str, Floats]) -> Floats:
        """Codes per unit of value in what `Algorithm.forward` gives, (C,). `Algorithm.nodes` has it as `scale_name`."""


def scale_name(name: str) -> str:
    """The plain operator that makes the scale (C,) of what is quantized under ``name``."""
    return f"{name}_codes_per_unit"


def fake_nodes(
    name: str, algorithm: str, site: Site, x: Ref, parameters: Sequence[Ref], *, scaled: bool = False
) -> tuple[Node, ...]:
    """What fake-quantizes ``x`` by compiled kernels: `fake_node` between two copies `in_plain_layout`.

    Args:
        name: of the last, and so of what they make.
        algorithm, site, x, parameters, scaled: as of `fake_node`; the scale is of `compiled_name`.
    """
    before = f"{name}_plain"
    node = fake_node(compiled_name(name), algorithm, site, Ref(before), parameters, scaled=scaled)
    return in_plain_layout(before, x), node, in_plain_layout(name, node.out)


def compiled_name(name: str) -> str:
    """The operator between the two copies of `fake_nodes`."""
    return f"{name}_compiled"


def in_plain_layout(name: str, ref: Ref) -> Node:
    """A copy of ``ref`` that has no layout of oneDNN's, and whose gradient has none.

    An operator in Python runs in a thread of its own. Of what it reads in such a layout MXNet makes a copy in the plain
    one, and frees that while the operator still reads it (``PushOperator`` in ``src/imperative/imperative_utils.h`` of
    1.9.1): numbers come out wrong now and then. Slicing is the quickest operator without a kernel of oneDNN that does
    not work in place, forward or backward.
    """
    return Node(name, "slice_axis", {"axis": "0", "begin": "0", "end": "None"}, (ref,))


def fake_node(
    name: str, algorithm: str, site: Site, x: Ref, parameters: Sequence[Ref], *, scaled: bool = False
) -> Node:
    """The operator that fake-quantizes ``x`` by compiled kernels (`mxq.runtime.fake_quantization`), on the CPU.

    Neither ``x`` nor the gradient of the result may be in a layout of oneDNN's: see `in_plain_layout`.

    Args:
        name: of the node, and so of what it makes.
        algorithm: by name, with its settings: see `mxq.qat.algorithms.get`.
        site: what ``x`` is.
        x: the tensor.
        parameters: variables (C,), in the algorithm's order.
        scaled: whether its second output is the scale (C,), of an algorithm that is `Gridded`.
    """
    spec = {key: str(value) for key, value in site.spec.to_json().items()}
    attrs = {"op_type": OP_TYPE, "algorithm": algorithm, "role": site.role, "rule": site.rule, **spec}
    return Node(name, "Custom", attrs | ({SCALED: "True"} if scaled else {}), (x, *parameters))


def site_of(attrs: Mapping[str, str]) -> Site:
    """The site that `fake_node` wrote into ``attrs``.

    Raises:
        ConfigError: it wrote none of this.
    """
    values: dict[str, Any] = {"scale": attrs.get("scale")}
    for name in _LITERALS:
        try:
            values[name] = literal_eval(attrs.get(name, ""))
        except (ValueError, SyntaxError):
            raise one_of(f"{name} of {OP_TYPE}", attrs.get(name), ("what mxq wrote",)) from None
    role, rule = attrs.get("role", ""), attrs.get("rule", "")
    if role not in ROLES or rule not in ("", *SCHEMES):
        raise ConfigError(f"{OP_TYPE} has role {role!r} and rule {rule!r}; allowed: {ROLES}, {(*SCHEMES, '')}")
    return Site(QuantSpec(**values), cast("Role", role), rule)
