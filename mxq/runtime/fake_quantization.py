"""The operator of `mxq.qat.algorithms.fake_node`: compiled kernels, run by MXNet on its own memory.

MXNet calls a custom operator in a thread of its own. What it gives are views of its arrays, so nothing is copied, and
the kernels let go of the interpreter's lock. CPU only.

What can be wrong is found before anything runs: when the operator is made, and when shapes and types are inferred. An
error in one of these, or in a kernel, is printed and comes to the caller as MXNet's error, which has no words of it;
`failure` has them.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from functools import cached_property
from typing import Any, Final

import numpy as np

from mxq.errors import ConfigError
from mxq.graph.ir import Array
from mxq.qat.algorithms import OP_TYPE, Algorithm, Site, get, site_of
from mxq.runtime.mxnet import mx

_LIB: Final = mx.base._LIB  # noqa: SLF001  (Python's interface has no call for it)
_FLOAT: Final = ctypes.POINTER(ctypes.c_float)


def view(array: Any) -> Array:
    """The memory of a float32 NDArray on the CPU, as numpy's array of its shape."""
    address = ctypes.c_void_p()
    mx.base.check_call(_LIB.MXNDArrayGetData(array.handle, ctypes.byref(address)))
    if array.size == 0:
        return np.empty(array.shape, np.float32)
    return np.ctypeslib.as_array(ctypes.cast(address, _FLOAT), array.shape)


class FakeQuantize(mx.operator.CustomOp):  # type: ignore[misc]  # MXNet is untyped
    """One fake-quantized tensor."""

    def __init__(self, algorithm: Algorithm, site: Site) -> None:
        super().__init__()
        self.algorithm, self.site = algorithm, site
        self.names, self.learned = algorithm.parameters(site), algorithm.learned(site)

    def forward(self, is_train: bool, req: Sequence[str], in_data: Any, out_data: Any, aux: Any) -> None:
        if req[0] == "null":
            return
        x, *values = map(view, in_data)
        folded, out = self.site.folded(x.shape), view(out_data[0])
        target = out if req[0] in _WRITES else np.empty_like(out)
        parameters = dict(zip(self.names, values, strict=True))
        self.algorithm.forward(self.site, x.reshape(folded), parameters, target.reshape(folded))
        if target is not out:
            out += target

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

    Raises:
        ConfigError: the attributes are none of `fake_node`'s, or the algorithm is not for such a tensor.
    """

    def __init__(self, **attrs: str) -> None:
        super().__init__(need_top_grad=True)
        self.site, self.algorithm = site_of(attrs), get(attrs.get("algorithm", ""))
        self.algorithm.check(self.site)

    @cached_property
    def names(self) -> tuple[str, ...]:
        return self.algorithm.parameters(self.site)

    def list_arguments(self) -> list[str]:
        return ["data", *self.names]

    def infer_shape(self, in_shape: Any) -> Any:
        data, axis = in_shape[0], self.site.spec.axis
        if axis is not None and data and len(data) <= axis:
            raise ConfigError(f"the tensor is {list(data)}; allowed for {self.site.spec}: more than {axis} axes")
        channels = 1 if axis is None else data[axis] if data else 0
        return [data, *([channels] for _ in self.names)], [data], []

    def infer_type(self, in_type: Any) -> Any:
        if np.dtype(in_type[0]) != np.float32:
            raise ConfigError(f"the tensor is {np.dtype(in_type[0])}; allowed in training with quantization: float32")
        return [np.float32] * len(in_type), [np.float32], []

    def declare_backward_dependency(self, out_grad: Any, in_data: Any, out_data: Any) -> list[int]:
        return [*out_grad, *in_data]

    def create_operator(self, ctx: Any, in_shapes: Any, in_dtypes: Any) -> FakeQuantize:
        return FakeQuantize(self.algorithm, self.site)


mx.operator.register(OP_TYPE)(FakeQuantizeProp)
