"""`Quantizer`: one place of a network where a tensor is fake-quantized."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from mxq.errors import FormatError
from mxq.graph.ir import Graph, Ref
from mxq.qat.algorithms import Site
from mxq.quant import QuantSpec


@dataclass(frozen=True, slots=True)
class Quantizer:
    """A tensor that some of its readers find fake-quantized.

    Attributes:
        name: of the node that does it.
        tensor: an activation, or a parameter: a weight.
        readers: names of the nodes that read what it makes; others read the tensor itself.
        site: the kind of codes, settled, and whether the tensor is a weight.
        group: name of the quantizer whose parameters it has: its own, or another's that it shares them with.
        is_output: whether the network gives what it makes, where the tensor is an output.
    """

    name: str
    tensor: Ref
    readers: tuple[str, ...]
    site: Site
    group: str = ""
    is_output: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "group", self.group or self.name)

    @property
    def spec(self) -> QuantSpec:
        """The kind of codes."""
        return self.site.spec

    @property
    def is_weight(self) -> bool:
        return self.site.role == "weight"

    def with_spec(self, **changes: Any) -> Quantizer:
        """With other codes."""
        return replace(self, site=replace(self.site, spec=replace(self.spec, **changes)))

    def parameter(self, which: str) -> str:
        """The name of the variable that holds a parameter of its algorithm."""
        return f"{self.group}_{which}"

    def to_json(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "name": self.name,
            "tensor": self.tensor.name,
            "output": self.tensor.output,
            "readers": list(self.readers),
            "role": self.site.role,
            "rule": self.site.rule,
            "spec": self.spec.to_json(),
            "group": self.group,
            "is_output": self.is_output,
        }

    @staticmethod
    def from_json(data: Any) -> Quantizer:
        """Reads what `to_json` wrote.

        Raises:
            FormatError: it did not.
        """
        try:
            return Quantizer(
                data["name"],
                Ref(data["tensor"], data["output"]),
                tuple(data["readers"]),
                Site(QuantSpec(**data["spec"]), data["role"], data["rule"]),
                data["group"],
                data["is_output"],
            )
        except (KeyError, TypeError) as error:
            raise FormatError(f"a quantizer is {data!r:.200}; allowed: what mxq.qat.save wrote ({error})") from None


def activation_name(graph: Graph, ref: Ref, taken: Collection[str], before: str = "") -> str:
    """The name of a new quantizer of ``ref``; of one for a single reader, that is ``before``."""
    stem = f"{before}_data" if before else ref.name if ref.output == 0 else f"{ref.name}_{ref.output}"
    return graph.unused(f"{stem}_fq", taken)


def joined(quantizers: Iterable[Quantizer], groups: Iterable[Collection[str]]) -> tuple[Quantizer, ...]:
    """``quantizers`` of which those of each of ``groups``, by name, have the parameters and spec of the first of them.

    Codes are signed where those of any of them are. Groups that overlap are one.
    """
    table = {q.name: q for q in quantizers}
    leader = {name: name for name in table}
    for group in groups:
        names = [name for name in table if name in group]
        heads = {leader[name] for name in names}
        first = next((name for name in table if leader[name] in heads), "")
        leader |= {name: first for name, head in leader.items() if head in heads}
    members: dict[str, list[Quantizer]] = {}
    for name, head in leader.items():
        members.setdefault(head, []).append(table[name])
    sites = {head: _common(found) for head, found in members.items()}
    return tuple(replace(q, site=sites[leader[q.name]], group=leader[q.name]) for q in table.values())


def _common(members: list[Quantizer]) -> Site:
    first = members[0].site
    signed = next((m.site for m in members if m.spec.signed), first)
    bits = max(m.spec.bits for m in members)
    return replace(signed, spec=replace(signed.spec, bits=bits))


def by_reader(quantizers: Iterable[Quantizer]) -> Mapping[tuple[str, Ref], str]:
    """(reader, tensor) -> the node that it reads instead."""
    return {(reader, q.tensor): q.name for q in quantizers for reader in q.readers}
