"""The vocabulary of a capability table: `OpSpec`, its conditions (`Requirement`) and what fuses after it (`PostOp`)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from mxq.errors import QuantizeError
from mxq.graph.ir import Model, Node
from mxq.quant import INT8, UINT8, WEIGHT, QuantizedNetwork, QuantSpec

Role = Literal["compute", "passthrough"]
"""A "compute" op is worth int8 by itself; a "passthrough" op is int8 only between others, to save conversions."""

OutputRule = Literal["post_op", "same", "int8", "widest"]
"""How an int8 op's output type follows: from its last post-op, its input's, always s8, or s8 if any input is."""


@dataclass(frozen=True, slots=True)
class Requirement:
    """A condition on an attribute: its value is among ``allowed``, or it is a tuple with one of ``ranks`` entries.

    Attributes:
        attr: the attribute.
        allowed: its values that the kernel computes right.
        ranks: how many entries it may have, for a tuple.
        default: its value where it is not given.
        same_as: another attribute whose value is allowed as well.
        when: attribute -> values for which the condition counts at all ("" where it is not given).
        why: what goes wrong otherwise.
        int8_only: the float kernel does not need it.
    """

    attr: str
    allowed: tuple[str, ...] = ()
    ranks: tuple[int, ...] = ()
    default: str = "None"
    same_as: str = ""
    when: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    why: str = ""
    int8_only: bool = False

    def violation(self, node: Node) -> str:
        """Why ``node`` does not meet it; empty where it does."""
        if any(node.attrs.get(attr, "") not in values for attr, values in self.when.items()):
            return ""
        if self.ranks:
            rank = len(node.ints(self.attr))
            return "" if rank in self.ranks else f"{self.attr} has {rank} dimensions; int8 kernels take {self._ranks()}"
        value = node.attrs.get(self.attr, self.default)
        allowed = (*self.allowed, node.attrs[self.same_as]) if self.same_as in node.attrs else self.allowed
        if value.lower() in {a.lower() for a in allowed}:
            return ""
        why = f" ({self.why})" if self.why else ""
        return f"{self.attr} is {value!r}; the int8 kernel takes {' or '.join(map(repr, allowed))}{why}"

    def _ranks(self) -> str:
        return " or ".join(map(str, self.ranks))


@dataclass(frozen=True, slots=True)
class PostOp:
    """An operator that a kernel applies to its result before writing it.

    Attributes:
        op: op type.
        where: attribute -> values for which the row holds; values compare as numbers where they are.
        unsigned: the kernel writes u8 after it, s8 otherwise.
        int8: the int8 kernel does it too, and right; ``reason`` says why not.
        before_sum: the kernels, float and int8, do it before they add a fused summand, too, and nothing is lost by
            that. After ReLU it would be: the int8 kernel writes s8 after a sum, the sum of two u8 is u8.
        saturates: it bounds the result from above. After a fused elemwise_add, where the int8 kernel does not know
            it, it is written as ReLU: its calibrated range ends no later, and what lies beyond saturates.
    """

    op: str
    where: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    unsigned: bool = False
    int8: bool = True
    reason: str = ""
    before_sum: bool = False
    saturates: bool = False

    def matches(self, node: Node) -> bool:
        return node.op == self.op and all(
            any(_same(node.attrs.get(attr, ""), value) for value in values) for attr, values in self.where.items()
        )


def _same(found: str, wanted: str) -> bool:
    try:
        return float(found) == float(wanted)
    except ValueError:
        return found == wanted


@dataclass(frozen=True, slots=True)
class OpSpec:
    """One operator with an int8 kernel.

    Attributes:
        float_op: op type in the float graph.
        int8_op: op type of the int8 kernel.
        role: see `Role`.
        fused_op: the subgraph op that holds it and its post-ops, or empty.
        data_inputs: indices of the inputs that are quantized; empty means all.
        needs: attribute conditions.
        output: see `OutputRule`.
        calibrated: the kernel writes its result in a range that calibration must give.
        s8_only: the kernel takes s8 input only.
        halves_u8: the kernel takes half of the u8 codes that it reads, as s8.
        exact: attribute -> values for which a passthrough op gives fewer values, and exactly those of float ("" where
            it is not given). One int8 layer beside it is enough: before it, fewer values are left to be made float;
            after it, 8-bit values take the quicker kernel (float pooling of a plain layout takes 20 times as long).
        takes: the types of its data inputs; empty where any will do.
        float_output: the kernel writes float itself where that is asked for (``enable_float_output``).
        codes_for_all: it does not so for float readers, which read its codes made float, but where the network gives
            its result.
        between: it is left in float where it does not lie between two layers, also by a table that is ``whole``.
        kept: attributes of the operator that the subgraph op repeats.
        full_only: why mode "smart" leaves it in float; empty where it does not.
        absorbs: activations (``act_type``) that it does by saturation of its codes; see
            `mxq.passes.fuse_relu_into_batchnorm`.
        with_sum: an elemwise_add may be fused before the post-op, or after one that may come before a sum.
        post_ops: what may be fused after.
    """

    float_op: str
    int8_op: str
    role: Role
    fused_op: str = ""
    data_inputs: tuple[int, ...] = (0,)
    needs: tuple[Requirement, ...] = ()
    output: OutputRule = "same"
    calibrated: bool = False
    s8_only: bool = False
    halves_u8: bool = False
    exact: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    takes: tuple[str, ...] = ()
    float_output: bool = False
    codes_for_all: bool = False
    between: bool = False
    kept: tuple[str, ...] = ()
    full_only: str = ""
    absorbs: tuple[str, ...] = ()
    with_sum: bool = False
    post_ops: tuple[PostOp, ...] = ()

    def broken_need(self, node: Node, *, int8: bool = True) -> str:
        """The first condition of the int8 (or float) kernel that ``node`` breaks, in words; empty where all hold."""
        needs = (need for need in self.needs if int8 or not need.int8_only)
        return next((b for need in needs if (b := need.violation(node))), "")

    def reduces_exactly(self, node: Node) -> bool:
        """Whether ``exact`` holds for ``node``."""
        return bool(self.exact) and all(node.attrs.get(a, "") in values for a, values in self.exact.items())

    def has_range(self, node: Node) -> bool:
        """Whether what ``node`` makes has a range of its own, which calibration gives."""
        return self.calibrated and not self.reduces_exactly(node)

    def post_op(self, node: Node) -> PostOp | None:
        """The row for ``node`` as a post-op; the first that matches wins."""
        return next((p for p in self.post_ops if p.matches(node)), None)


@dataclass(frozen=True)
class BackendSpec:
    """The capability table of a backend.

    Attributes:
        name: of the backend, in messages.
        ops: its int8 operators.
        no_kernel: op type -> why a well-known one has no int8 form.
        holds: the kinds of codes that its files can hold.
        float_ops: rows of operators whose float kernels take post-ops; empty where those are ``ops``.
        refuses: why a fused "compute" operator of a model cannot be int8 all the same; it gives "" where it can.
        whole: whether all that has a row is int8 in mode "smart", too, but for rows that are ``between``.
        float_stems: whether the setting ``stem`` leaves noisy layers in float (`mxq.noisy`).
        norms_as_convolutions: whether a BatchNorm that no layer takes in is to be a depthwise convolution.
        without: names of passes over float networks that do nothing for it, or would change what it quantizes.
    """

    name: str
    ops: tuple[OpSpec, ...]
    no_kernel: Mapping[str, str] = field(default_factory=dict)
    holds: tuple[QuantSpec, ...] = (INT8, UINT8, WEIGHT)
    float_ops: tuple[OpSpec, ...] = ()
    refuses: Callable[[Model, Node], str] | None = None
    whole: bool = False
    float_stems: bool = True
    norms_as_convolutions: bool = False
    without: tuple[str, ...] = ()

    def check(self, quantized: QuantizedNetwork) -> None:
        """Whether the backend can hold all that is stored.

        Raises:
            QuantizeError: names the tensor or weight, its spec, and those that are held.
        """
        for what, spec in quantized.specs:
            if spec not in self.holds:
                raise QuantizeError(f"{what} is {spec}; {self.name} holds {' or '.join(map(str, self.holds))}")

    @property
    def for_float(self) -> BackendSpec:
        """The table of the float kernels."""
        return replace(self, ops=self.float_ops, float_ops=()) if self.float_ops else self

    def find(self, op: str) -> OpSpec | None:
        """The row of a float or fused op type."""
        return next((s for s in self.ops if op in (s.float_op, s.fused_op)), None)

    def refusal(self, model: Model, layer: Node) -> str:
        """What ``refuses`` says, if anything does."""
        return self.refuses(model, layer) if self.refuses is not None else ""

    def why_not(self, op: str) -> str:
        """Why ``op`` has no int8 form."""
        return self.no_kernel.get(op, f"{self.name} has no int8 kernel for {op}")
