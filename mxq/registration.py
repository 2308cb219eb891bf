"""Makes MXNet know mxq's operator, as soon as MXNet is imported: ``import mxq`` takes no time for it.

A network that trains with quantization has operators of this type, so ``import mxq`` has to come before stock MXNet
loads one from a file. Nothing of mxq is loaded until one is.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any, Final

OP_TYPE: Final = "mxq_fake_quantize"
"""By which MXNet knows the operator (`mxq.runtime.fake_quantization`)."""

_MODULE: Final = "mxnet.operator"


def prepare() -> None:
    """Registers the operator, now or when MXNet is imported; does nothing the second time."""
    if _MODULE in sys.modules:
        _register(sys.modules[_MODULE])
    elif not any(isinstance(finder, _Watcher) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Watcher())


def _register(module: Any) -> None:
    if not hasattr(module, "_mxq_registered"):
        module.register(OP_TYPE)(_made)
        module._mxq_registered = True  # noqa: SLF001  (it is ours)


def _made(**attrs: str) -> Any:
    """What MXNet asks for where it finds the operator."""
    return import_module("mxq.runtime.fake_quantization").FakeQuantizeProp(**attrs)


class _Watcher(MetaPathFinder):
    """Leaves it to others to find ``mxnet.operator``, and sees when it has been loaded."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != _MODULE:
            return None
        others = (finder for finder in sys.meta_path if finder is not self)
        found = next((spec for finder in others if (spec := finder.find_spec(fullname, path, target))), None)
        if found is not None and found.loader is not None:
            found.loader = _Registering(found.loader)
        return found


class _Registering(Loader):
    """Another loader, and what is to be done after it."""

    def __init__(self, loader: Loader) -> None:
        self._loader = loader

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self._loader.exec_module(module)
        _register(module)
