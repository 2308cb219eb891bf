"""The operator of `mxq.qat.algorithms.fake_node`: compiled kernels, run by MXNet on its own memory, on the CPU.

MXNet calls a custom operator in a thread of its own. What it gives are views of its arrays, so nothing is copied, and
the kernels let go of the interpreter's lock. `mxq.registration` makes it known to MXNet.

What can be wrong is found when a network is loaded or bound, before anything runs. MXNet prints what an operator raises
and goes on with an error of its own, without words; `mxnet_says` finds them in ``OPERATORS_SAID``. What is raised where
the operator is made would end the process, so it is raised where MXNet asks next, for names.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from functools import cached_property, wraps
from typing import Any, Final, TypeVar, cast

import numpy as np

from mxq.errors import ConfigError, MxqError
from mxq.graph.ir import Array
from mxq.qat.algorithms import SCALED, Algorithm, Gridded, Site, get, site_of
from mxq.runtime.mxnet import OPERATORS_SAID, mx

_LIB: Final = mx.base._LIB  # noqa: SLF001  (Python's interface has no call for it)
_FLOAT: Final = ctypes.POINTER(ctypes.c_float)
Method = TypeVar("Method", bound=Callable[..., Any])


def view(array: Any) -> Array:
    """The memory of a float32 NDArray on the CPU, as numpy's array of its shape."""
    address = ctypes.c_void_p()
    mx.base.check_call(_LIB.MXNDArrayGetData(array.handle, ctypes.byref(address)))
    if array.size == 0:
        return np.empty(array.shape, np.float32)
    return np.ctypeslib.as_array(ctypes.cast(address, _FLOAT), array.shape)


def _heard(method: Method) -> Method:
    """Keeps what is raised where it can be found."""

    @wraps(method)
    def heard(*args: Any, **kwargs: Any) -> Any:
        try:
            return method(*args, **kwargs)
        except Exception as error:
            OPERATORS_SAID.append(str(error) if isinstance(error, MxqError) else f"{type(error).__name__}: {error}")
            raise

    return cast("Method", heard)


class FakeQuantize(mx.operator.CustomOp):  # type: ignore[misc]  # MXNet is untyped
    """One fake-quantized tensor."""

    def __init__(self, algorithm: Algorithm, site: Site) -> None:
        super().__init__()
        self.algorithm, self.site = algorithm, site
        self.names, self.learned = algorithm.parameters(site), algorithm.learned(site)

    @_heard
    def forward(self, is_train: bool, req: Sequence[str], in_data: Any, out_data: Any, aux: Any) -> None:
        x, *values = map(view, in_data)
        folded, parameters = self.site.folded(x.shape), dict(zip(self.names, values, strict=True))
        if len(out_data) > 1 and isinstance(self.algorithm, Gridded):
            _assign(view(out_data[1]), req[1], self.algorithm.scale(self.site, x.reshape(folded), parameters))
        if req[0] == "null":
            return
        out = view(out_data[0])
        target = out if req[0] in _WRITES else np.empty_like(out)
        self.algorithm.forward(self.site, x.reshape(folded), parameters, target.reshape(folded))
        if target is not out:
            out += target

    @_heard
    def backward(self, req: Sequence[str], out_grad: Any, in_data: Any, out_data: Any, in_grad: Any, aux: Any) -> None:
        if all(each == "null" for each in req):
            return
        x, *values = map(view, in_data)
        folded, result = self.site.folded(x.shape), view(in_grad[0])
        target = result if req[0] in _WRITES else np.empty_like(result)
        found, gradients = self.algorithm.backward(
            self.site,
            x.reshape(folded),
            view(out_grad[0]).reshape(folded),
            dict(zip(self.names, values, strict=True)),
            target.reshape(folded),
        )
        if req[0] == "add":
            result += found.reshape(result.shape)
        for name, how, array in zip(self.names, req[1:], in_grad[1:], strict=True):
            _assign(view(array), how, gradients.get(name, np.float32(0)))


_WRITES: Final = ("write", "inplace")


def _assign(target: Array, how: str, value: Any) -> None:
    """What is asked for with a gradient."""
    if how == "add":
        target += value
    elif how in _WRITES:
        target[...] = value


class FakeQuantizeProp(mx.operator.CustomOpProp):  # type: ignore[misc]  # MXNet is untyped
    """What MXNet asks before it runs the operator: names, shapes and types.

    Its backward depends on all that there is, as by default, though it does not look at the result. MXNet keeps the
    dependencies of the operator that was declared last for those of all operators, and fails where they are fewer.

    Args:
        attrs: as `mxq.qat.algorithms.fake_node` writes them.
    """

    def __init__(self, **attrs: str) -> None:
        super().__init__(need_top_grad=True)
        self._attrs = attrs

    @cached_property
    def site(self) -> Site:
        return site_of(self._attrs)

    @cached_property
    def algorithm(self) -> Algorithm:
        found = get(self._attrs.get("algorithm", ""))
        found.check(self.site)
        return found

    @cached_property
    def names(self) -> tuple[str, ...]:
        return self.algorithm.parameters(self.site)

    @property
    def is_scaled(self) -> bool:
        return self._attrs.get(SCALED) == "True"

    @_heard
    def list_outputs(self) -> list[str]:
        if self.is_scaled and not isinstance(self.algorithm, Gridded):
            raise ConfigError(f"the scale of {self.algorithm.name!r} is asked for; allowed: of what has one grid")
        return ["output", "scale"] if self.is_scaled else ["output"]

    @_heard
    def list_arguments(self) -> list[str]:
        return ["data", *self.names]

    @_heard
    def infer_shape(self, in_shape: Any) -> Any:
        data, axis = in_shape[0], self.site.spec.axis
        if axis is not None and data and len(data) <= axis:
            raise ConfigError(f"the tensor is {list(data)}; allowed for {self.site.spec}: more than {axis} axes")
        channels = 1 if axis is None else data[axis] if data else 0
        return [data, *([channels] for _ in self.names)], [data, [channels]][: 1 + self.is_scaled], []

    @_heard
    def infer_type(self, in_type: Any) -> Any:
        found = np.dtype(in_type[0])
        if found != np.float32:  # MXNet itself then refuses what this gives, without a traceback
            OPERATORS_SAID.append(f"the tensor is {found}; allowed in training with quantization: float32")
        return [np.float32] * len(in_type), [np.float32] * (1 + self.is_scaled), []

    @_heard
    def create_operator(self, ctx: Any, in_shapes: Any, in_dtypes: Any) -> FakeQuantize:
        return FakeQuantize(self.algorithm, self.site)
