"""The registry of algorithms, and specs: an algorithm and its settings as text, such as "lsq" and "lsq:start=mean"."""

from __future__ import annotations

from dataclasses import fields, is_dataclass, replace
from typing import Any, Final

from mxq.errors import ConfigError, one_of
from mxq.qat.algorithms.protocol import Algorithm
from mxq.registry import Registry

_HERE: Final = "mxq.qat.algorithms"
ALGORITHMS: Final = Registry[Algorithm](
    "algorithm",
    _HERE,
    Algorithm,
    {
        "lsq": f"{_HERE}.lsq:Lsq",
        "lsq_plus": f"{_HERE}.lsq_plus:LsqPlus",
        "pact": f"{_HERE}.pact:Pact",
        "dorefa": f"{_HERE}.dorefa:DoReFa",
        "dsq": f"{_HERE}.dsq:Dsq",
        "qil": f"{_HERE}.qil:Qil",
        "apot": f"{_HERE}.apot:Apot",
        "fixed": f"{_HERE}.fixed:Fixed",
        "max": f"{_HERE}.maximum:Max",
    },
)
"""All algorithms, each with its default settings. Entry points of other packages give one, or its class."""

register = ALGORITHMS.register
"""Makes an algorithm known by its name; also a decorator of its class."""


def get(spec: str) -> Algorithm:
    """The algorithm that ``spec`` names: "lsq", "lsq:start=mean".

    Raises:
        ConfigError: no such algorithm or setting, or a value that is not allowed; the message lists those known.
    """
    if not isinstance(spec, str):
        raise one_of("algorithm", spec, ALGORITHMS.names())
    name, _, settings = spec.strip().partition(":")
    known = ALGORITHMS.get(name.strip())
    if not settings.strip():
        return known
    given = [part.partition("=") for part in settings.split(",")]
    return replace(known, **dict(_setting(known, key.strip(), text.strip()) for key, _, text in given))  # type: ignore[type-var]


def _setting(algorithm: Any, key: str, text: str) -> tuple[str, Any]:
    own = fields(algorithm) if is_dataclass(algorithm) else ()
    kinds = {field.name: type(getattr(algorithm, field.name)) for field in own}
    if key not in kinds:
        raise ConfigError(f"{algorithm.name!r} has no setting {key!r}; allowed: {', '.join(kinds) or 'none'}")
    try:
        return key, kinds[key](text)
    except ValueError:
        raise ConfigError(f"{key} of {algorithm.name!r} is {text!r}; allowed: {kinds[key].__name__}") from None
