"""What the pages share: an algorithm that rounds to a uniform grid, and steps that are kept or learned."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from mxq.errors import ConfigError
from mxq.graph.ir import Node, Ref
from mxq.qat.algorithms.grid import Grid, Reals, Sums, alive, covering, rounded, scale_of, used
from mxq.qat.algorithms.plain import End, Plain
from mxq.qat.algorithms.protocol import Floats, Site
from mxq.quant import QParams

Parameters = Mapping[str, Floats]


@dataclass(frozen=True)
class Uniform(ABC):
    """An algorithm whose results are of a `Grid`. A page says which, and how its parameters are learned."""

    name: ClassVar[str]
    source: ClassVar[str]

    @abstractmethod
    def parameters(self, site: Site) -> tuple[str, ...]: ...

    @abstractmethod
    def initial(self, site: Site, low: Floats, high: Floats, values: Floats | None = None) -> dict[str, Floats]: ...

    @abstractmethod
    def grid(self, site: Site, x: Floats, parameters: Parameters) -> Grid:
        """Where the values of ``x`` (A, C, B) go."""

    @abstractmethod
    def nodes(self, name: str, site: Site, x: Ref, parameters: Sequence[Ref]) -> tuple[Node, ...]: ...

    def learned(self, site: Site) -> tuple[str, ...]:
        return self.parameters(site)

    def check(self, site: Site) -> None:
        """Nothing is refused where a page does not say otherwise."""
        return

    def scale(self, site: Site, x: Floats, parameters: Parameters) -> Floats:
        return self.grid(site, x, parameters).scale

    def chain(self, site: Site, x: Floats, parameters: Parameters, sums: Sums) -> dict[str, Reals]:
        """The gradients of what is learned."""
        return {}

    def forward(self, site: Site, x: Floats, parameters: Parameters, out: Floats | None = None) -> Floats:
        return self.grid(site, x, parameters).fake(x, out)

    def backward(
        self, site: Site, x: Floats, grad: Floats, parameters: Parameters, out: Floats | None = None
    ) -> tuple[Floats, dict[str, Floats]]:
        found, sums = self.grid(site, x, parameters).gradients(x, grad, out)
        return found, {name: value.astype(np.float32) for name, value in self.chain(site, x, parameters, sums).items()}

    def deployed(self, site: Site, values: Floats, parameters: Parameters) -> tuple[Floats, QParams]:
        return values, self.grid(site, values, parameters).params(site.spec)


@dataclass(frozen=True)
class Stepped(Uniform):
    """A step and, where the spec has one, a zero point."""

    def parameters(self, site: Site) -> tuple[str, ...]:
        return ("step",) if site.spec.symmetric else ("step", "zero_point")

    def initial(self, site: Site, low: Floats, high: Floats, values: Floats | None = None) -> dict[str, Floats]:
        """By which the codes cover the range."""
        found = covering(site, *alive(site, low, high))
        zero = {} if site.spec.symmetric else {"zero_point": site.spec.lowest - found.low}
        return {"step": np.float32(1) / found.scale, **zero}

    def grid(self, site: Site, x: Floats, parameters: Parameters) -> Grid:
        step, _ = used(site.spec, parameters["step"])
        zero = 0.0 if site.spec.symmetric else rounded(site.spec, parameters["zero_point"])
        return Grid.of(site.spec, scale_of(site, step), zero)

    def nodes(self, name: str, site: Site, x: Ref, parameters: Sequence[Ref]) -> tuple[Node, ...]:
        plain = Plain(name, site, x)
        return plain.result(plain.fake(plain.x, *self.plain_grid(plain, parameters)))

    def plain_grid(self, plain: Plain, parameters: Sequence[Ref]) -> tuple[Ref, End, End]:
        """`grid` in plain operators: the scale, and the lowest and the highest code less that of value 0."""
        site = plain.site
        kept = parameters if self.learned(site) else [plain.constant(parameter) for parameter in parameters]
        rate = self.rate(site, plain)
        step = plain.step(plain.beside(kept[0]), rate)
        zero = None if site.spec.symmetric else self.zero(plain, step, plain.beside(kept[1]), rate)
        return plain.scale_of(step), *plain.ends(zero)

    def zero(self, plain: Plain, step: Ref, parameter: Ref, rate: Ref | None) -> Ref:
        """The code of value 0 in plain operators, by its parameter."""
        return plain.straight(plain.code(parameter), (parameter, rate))

    def rate(self, site: Site, plain: Plain) -> Ref | None:
        """What gradients of parameters are multiplied by; None for 1."""
        return None


@dataclass(frozen=True)
class ByRole:
    """An algorithm that treats weights and activations apart."""

    name: ClassVar[str]
    source: ClassVar[str]
    weight: ClassVar[Uniform]
    activation: ClassVar[Uniform]

    def of(self, site: Site) -> Uniform:
        return self.weight if site.role == "weight" else self.activation

    def parameters(self, site: Site) -> tuple[str, ...]:
        return self.of(site).parameters(site)

    def learned(self, site: Site) -> tuple[str, ...]:
        return self.of(site).learned(site)

    def check(self, site: Site) -> None:
        self.of(site).check(site)

    def initial(self, site: Site, low: Floats, high: Floats, values: Floats | None = None) -> dict[str, Floats]:
        return self.of(site).initial(site, low, high, values)

    def forward(self, site: Site, x: Floats, parameters: Parameters, out: Floats | None = None) -> Floats:
        return self.of(site).forward(site, x, parameters, out)

    def backward(
        self, site: Site, x: Floats, grad: Floats, parameters: Parameters, out: Floats | None = None
    ) -> tuple[Floats, dict[str, Floats]]:
        return self.of(site).backward(site, x, grad, parameters, out)

    def nodes(self, name: str, site: Site, x: Ref, parameters: Sequence[Ref]) -> tuple[Node, ...]:
        return self.of(site).nodes(name, site, x, parameters)

    def scale(self, site: Site, x: Floats, parameters: Parameters) -> Floats:
        return self.of(site).scale(site, x, parameters)

    def deployed(self, site: Site, values: Floats, parameters: Parameters) -> tuple[Floats, QParams]:
        return self.of(site).deployed(site, values, parameters)


def refuse(algorithm: str, site: Site, allowed: str) -> ConfigError:
    """The error of a site where an algorithm has no meaning."""
    return ConfigError(f"{algorithm} is asked for {a_role(site)} of {site.spec}; allowed: {allowed}")


def a_role(site: Site) -> str:
    return f"a{'n' if site.role == 'activation' else ''} {site.role}"
