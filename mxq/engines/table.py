"""The table of engines, and which of them are to be used."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Final

from mxq.engines.mxnet import MXNET
from mxq.engines.onnxruntime import ONNXRUNTIME
from mxq.engines.openvino import OPENVINO
from mxq.engines.row import Engine
from mxq.errors import ConfigError, one_of

ENGINES: Final[Mapping[str, Engine]] = MappingProxyType({one.name: one for one in (MXNET, ONNXRUNTIME, OPENVINO)})
FILE_ENGINES: Final = tuple(one for one in ENGINES.values() if one.files)
"""Those that run ``.onnx`` files."""


def engine_of(name: str) -> Engine:
    """The engine of that name.

    Raises:
        ConfigError: there is none.
    """
    if name not in ENGINES:
        raise one_of("runtime", name, ENGINES)
    return ENGINES[name]


def missing() -> dict[str, str]:
    """Engines for ``.onnx`` files that cannot be used here, by name -> why, with the remedy."""
    return {one.name: problem for one in FILE_ENGINES if (problem := one.problem())}


def chosen(asked: Sequence[str] | None = None) -> tuple[Engine, ...]:
    """Engines for ``.onnx`` files: those that are asked for, else all that are installed.

    Raises:
        ConfigError: one that is asked for is none, or cannot be used here; or nobody asks, and none can.
    """
    if asked:
        names = [one.name for one in FILE_ENGINES]
        for name in asked:
            if name not in names:
                raise one_of("runtime", name, names)
            ENGINES[name].check()
        return tuple(ENGINES[name] for name in dict.fromkeys(asked))
    absent = missing()
    found = tuple(one for one in FILE_ENGINES if one.name not in absent)
    if not found:
        raise ConfigError(f"nothing here runs ONNX files: {'; '.join(absent.values())}")
    return found
