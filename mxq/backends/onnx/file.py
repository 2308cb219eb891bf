"""Files: an ONNX graph as `onnx` writes it, checked, whole or not at all.

A file holds up to `LARGEST_FILE` bytes, as protocol buffers do. The values of a larger network go to a second file
beside it, ``net.onnx.data``, which the first names.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np

from mxq.backends.onnx.context import ELEMENT, OPSET, OPSET_INT4, Body, Operator
from mxq.backends.onnx.lowering import Lowering
from mxq.errors import QuantizeError
from mxq.formats.onnx_file import Digest, require_onnx
from mxq.formats.onnx_record import FileRecord
from mxq.graph.ir import Array
from mxq.graph.tensors import Tensor
from mxq.storage.writing import replacing, write_bytes
from mxq.version import __version__

IR_VERSIONS: Final = {OPSET: 8, OPSET_INT4: 10}
"""Version of operators -> the format of the file, that of their time."""
INT4: Final = 22
"""``TensorProto.INT4``."""
LARGEST_FILE: Final = 2**31 - 2**20
SMALL: Final = 1024
"""Bytes up to which a value stays in the first file."""


def write(
    lowering: Lowering, path: Path, about: FileRecord | None = None, largest: int = LARGEST_FILE
) -> tuple[Path, ...]:
    """Writes ``path``, and ``path.data`` where it would hold more than ``largest`` bytes.

    Args:
        lowering: what to write.
        path: the file.
        about: what the file says of itself, beside its checksum; that it is float where None.
        largest: bytes.

    Returns:
        The files.

    Raises:
        ConfigError: onnx is not installed.
        QuantizeError: onnx finds fault with the network.
        StorageError: a file cannot be written.
    """
    onnx, about = require_onnx(), about or FileRecord()
    model = _model(onnx, lowering)
    _check(onnx, model, lowering)
    total = sum(value.nbytes for value in lowering.constants.values()) + len(model.SerializeToString())
    if total <= largest:
        model.graph.initializer.extend(one.tensor(onnx) for one in _stored(lowering))
        digest = _digest(model, (tensor.raw_data for tensor in model.graph.initializer))
        _say(onnx, model, replace(about, sha256=digest))
        return (write_bytes(path, model.SerializeToString(deterministic=True)),)
    return _write_two(onnx, model, lowering, path, about, total)


def _write_two(
    onnx: Any, model: Any, lowering: Lowering, path: Path, about: FileRecord, total: int
) -> tuple[Path, ...]:
    data = path.with_name(f"{path.name}.data")
    with replacing(path, data, size=total) as (draft, values):
        with values.open("wb") as stream:
            for one in _stored(lowering):
                tensor = one.tensor(onnx) if one.value.nbytes <= SMALL else onnx.TensorProto()
                if one.value.nbytes > SMALL:
                    _place(tensor, one, data.name, stream.tell(), onnx.TensorProto.EXTERNAL)
                    stream.write(one.value.data)
                model.graph.initializer.append(tensor)
        digest = _digest(model, (one.value.data for one in _stored(lowering)))
        _say(onnx, model, replace(about, sha256=digest))
        draft.write_bytes(model.SerializeToString(deterministic=True))
    return path, data


def _digest(model: Any, values: Iterable[Any]) -> str:
    """The checksum of ``model``, whose constants have these ``values``."""
    digest = Digest()
    digest.operators(model.graph.node)
    for tensor, value in zip(model.graph.initializer, values, strict=True):
        digest.constant(tensor, (value,))
    return digest.hexdigest()


def _say(onnx: Any, model: Any, about: FileRecord) -> None:
    onnx.helper.set_model_props(model, about.to_properties())


@dataclass(frozen=True)
class Stored:
    """A constant as files have it: contiguous, little-endian; of rank 0 what is a number.

    Attributes:
        name: of the constant.
        value: what is stored.
        shape: of the constant.
        element: ONNX's number of its type.
    """

    name: str
    value: Array
    shape: tuple[int, ...]
    element: int

    @staticmethod
    def of(name: str, value: Array, *, narrow: bool) -> Stored:
        """``narrow``: two codes to a byte, the first in its lower half."""
        if not narrow:
            stored = np.asarray(value, value.dtype.newbyteorder("<"), order="C")
            return Stored(name, stored, value.shape, ELEMENT[value.dtype.name])
        flat = value.ravel().view(np.uint8) & 15
        both = np.pad(flat, (0, flat.size % 2)).reshape(-1, 2)
        return Stored(name, both[:, 0] | both[:, 1] << 4, value.shape, INT4)

    def tensor(self, onnx: Any) -> Any:
        if self.element != INT4:
            return onnx.numpy_helper.from_array(self.value, self.name)
        raw = self.value.tobytes()
        return onnx.TensorProto(name=self.name, data_type=self.element, dims=self.shape, raw_data=raw)


def _place(tensor: Any, one: Stored, file: str, offset: int, external: int) -> None:
    """Says of a value in which file it is, and where."""
    tensor.name, tensor.data_type, tensor.data_location = one.name, one.element, external
    tensor.dims.extend(one.shape)
    for key, text in (("location", file), ("offset", str(offset)), ("length", str(one.value.nbytes))):
        entry = tensor.external_data.add()
        entry.key, entry.value = key, text


def _stored(lowering: Lowering) -> Iterator[Stored]:
    """All constants."""
    for name, value in lowering.constants.items():
        yield Stored.of(name, value, narrow=name in lowering.narrow)


def _model(onnx: Any, lowering: Lowering) -> Any:
    """The network without its constants."""
    helper = onnx.helper
    graph = helper.make_graph(
        [_node(helper, one) for one in lowering.operators],
        "mxq",
        [_value(helper, name, tensor) for name, tensor in lowering.inputs.items()],
        [_value(helper, name, tensor) for name, tensor in lowering.outputs.items()],
    )
    return helper.make_model(
        graph,
        opset_imports=[helper.make_opsetid("", lowering.opset)],
        ir_version=IR_VERSIONS[lowering.opset],
        producer_name="mxq",
        producer_version=__version__,
    )


def _node(helper: Any, one: Operator) -> Any:
    inner = {} if one.body is None else {"body": _body(helper, one.name, one.body)}
    return helper.make_node(one.kind, one.inputs, one.outputs, name=one.name, **one.attrs, **inner)


def _body(helper: Any, name: str, body: Body) -> Any:
    given, made = (
        [helper.make_tensor_value_info(one, ELEMENT["float32"], None) for one in names]
        for names in (body.inputs, body.outputs)
    )
    return helper.make_graph([_node(helper, one) for one in body.operators], name, given, made)


def _value(helper: Any, name: str, tensor: Tensor) -> Any:
    sides = [side if isinstance(side, int) else str(side) for side in tensor.shape]
    return helper.make_tensor_value_info(name, ELEMENT[tensor.dtype], sides)


def _check(onnx: Any, model: Any, lowering: Lowering) -> None:
    """Has onnx check all, with shapes, the large constants as if they were inputs, which takes no room."""
    probe = onnx.ModelProto()
    probe.CopyFrom(model)
    for one in _stored(lowering):
        if one.value.nbytes > SMALL:
            probe.graph.input.append(onnx.helper.make_tensor_value_info(one.name, one.element, one.shape))
        else:
            probe.graph.initializer.append(one.tensor(onnx))
    try:
        onnx.checker.check_model(probe, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise QuantizeError(f"onnx refuses the network that mxq made of it: {error}") from error
