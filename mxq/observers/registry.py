"""The registry of observers by name, and specs: an observer and its parameters as text.

A spec is a name, then parameters in order or by name: ``entropy``, ``percentile:99.9``, ``entropy:tolerance=0``.
"""

from __future__ import annotations

import math
from dataclasses import fields
from typing import Any, ClassVar, Final

from mxq.errors import ConfigError, one_of
from mxq.observers.base import Observer
from mxq.registry import Registry

OBSERVERS: Final = Registry[Observer[Any]](
    "observer", "mxq.observers", Observer, aliases={"minmax": "naive", "kl": "entropy"}
)
"""All observers, each with its default parameters. Entry points of other packages give one, or its class."""

register = OBSERVERS.register
"""Makes an observer, with its default parameters, known by its name; also a decorator of its class."""


def get(spec: str) -> Observer[Any]:
    """The observer that ``spec`` names: "entropy", "percentile:99.9", "entropy:levels=127,tolerance=0".

    Raises:
        ConfigError: no such observer or parameter, or a value that is not allowed; the message lists those known.
    """
    name, _, settings = spec.strip().partition(":")
    if name.strip() not in OBSERVERS:
        raise one_of("observer", name.strip(), (*names(), *OBSERVERS.aliases))
    known = OBSERVERS.get(name.strip())
    name = known.name
    if not settings.strip():
        if isinstance(known, NeedsParams):
            raise ConfigError(f"observer {name!r} needs parameters: {known.needs}")
        return known
    return type(known)(params=_params(name, type(known.params), settings))  # type: ignore[call-arg]


class NeedsParams:
    """An observer without sensible defaults; ``needs`` shows how it is written."""

    needs: ClassVar[str]


def _params(name: str, kind: type[Any], settings: str) -> Any:
    """Parameters from "1,tolerance=0": in order, then by name."""
    known = {f.name: f for f in fields(kind)}
    found: dict[str, int | float] = {}
    for place, part in enumerate(settings.split(",")):
        key, equals, text = part.partition("=")
        key, text = (key.strip(), text) if equals else (next(iter([*known][place:]), str(place + 1)), key)
        if key not in known or key in found:
            allowed = ", ".join(known) or "none"
            raise ConfigError(f"observer {name!r} has no parameter {key!r} or it is given twice; allowed: {allowed}")
        whole = known[key].type in ("int", int)
        try:
            found[key] = int(text) if whole else float(text)
        except ValueError:
            found[key] = math.nan
        if math.isnan(found[key]):
            allowed = "a whole number" if whole else "a number"
            raise ConfigError(f"observer {name!r}: {key} is {text.strip()!r}; allowed: {allowed}")
    return kind(**found)


def spec_of(observer: Observer[Any]) -> str:
    """The spec from which `get` makes an equal observer, without parameters that have their default values."""
    known = fields(observer.params)
    values = {f.name: getattr(observer.params, f.name) for f in known}
    given = {f.name: values[f.name] for f in known if values[f.name] != f.default}
    if not given:
        return observer.name
    in_order = [*given] == [*values][: len(given)]
    settings = (f"{value!r}" if in_order else f"{name}={value!r}" for name, value in given.items())
    return f"{observer.name}:{','.join(settings)}"


def names() -> tuple[str, ...]:
    """The names of all observers, sorted, those of other packages among them."""
    return tuple(sorted(OBSERVERS.names()))
