"""ONNX files, read and looked at without running them: what is in them, and whether they are as they were written.

Nothing of a file reaches a runtime before this has read it: runtimes differ in what they say of damaged files, and one
may end the process. The package onnx, which is optional, is imported here alone.
"""

from __future__ import annotations

import hashlib
import importlib
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Final, TypeAlias

from mxq.errors import ConfigError, FormatError
from mxq.formats.onnx_record import FileRecord
from mxq.formats.reading import opened, understood

SUFFIX: Final = ".onnx"
LARGEST: Final = 2**31 - 1
"""Bytes that a protocol buffer has at most."""
_CHUNK: Final = 1 << 22
_DOMAINS: Final = ("", "ai.onnx")
"""What ONNX's own operators are of."""

LAYERS: Final = ("Conv", "ConvTranspose", "Gemm", "MatMul")
"""Operators with a weight; they run on codes where what they read comes from DequantizeLinear."""
CODED_LAYERS: Final = (
    "ConvInteger",
    "MatMulInteger",
    "MatMulIntegerToFloat",
    "DynamicQuantizeMatMul",
    "QGemm",
    "QLinearConv",
    "QLinearMatMul",
)
"""Those of codes by themselves."""

Side: TypeAlias = int | str
"""A number, or the name of one that is open; "?" where it has none."""


def require_onnx() -> Any:
    """The package.

    Raises:
        ConfigError: it is missing.
    """
    try:
        return importlib.import_module("onnx")
    except ImportError:
        raise ConfigError("ONNX files need the package onnx: pip install 'mxq[onnx]'") from None


def is_onnx(path: object) -> bool:
    """Whether ``path`` names an ONNX file, and not a pair of MXNet's."""
    return isinstance(path, str | os.PathLike) and Path(path).suffix.lower() == SUFFIX


@dataclass(frozen=True, slots=True)
class Port:
    """An input or output of a file.

    Attributes:
        name: what it is fed or read by.
        dtype: numpy's name of its type; "" where it is no tensor of numbers.
        shape: its sides; None where the file does not say.
        maker: the kind of operator that makes it; "" of an input.
    """

    name: str
    dtype: str
    shape: tuple[Side, ...] | None
    maker: str = ""

    def __str__(self) -> str:
        sides = "" if self.shape is None else "x".join(map(str, self.shape))
        return f"{self.name} {self.dtype or 'no tensor'} {sides or ('scalar' if self.shape == () else 'any shape')}"


@dataclass(frozen=True)
class OnnxFile:
    """What is in an ONNX file.

    Attributes:
        path: of the file.
        bytes: of it, and of files with values beside it, by name.
        opset: the version of ONNX's own operators; 0 where it has none of them.
        domains: other sets of operators -> their versions.
        ir_version: of the format.
        producer: what wrote it, in words; may be empty.
        inputs, outputs: in order.
        operators: kind -> how many there are, also within others (loops, branches).
        layers_int8, layers_float: how many operators with a weight read codes, and how many floats.
        record: what mxq wrote of it; None where it did not.
        intact: whether operators and constants are those that mxq wrote; None where nothing says that.
    """

    path: Path
    bytes: Mapping[str, int]
    opset: int
    domains: Mapping[str, int]
    ir_version: int
    producer: str
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    operators: Mapping[str, int]
    layers_int8: int
    layers_float: int
    record: FileRecord | None
    intact: bool | None

    @property
    def kind(self) -> str:
        """As mxq wrote, else by what layers read: "int8" or "float"."""
        return self.record.kind if self.record is not None else "int8" if self.layers_int8 else "float"

    @property
    def pictures(self) -> tuple[str, ...]:
        """Inputs that take pixels, which the file prepares."""
        if self.record is None or not self.record.preprocess:
            return ()
        return tuple(p.name for p in self.inputs if p.dtype == "uint8" and p.shape is not None and len(p.shape) == 4)


class Digest:
    """The sha256 of operators and constants: of operators as the format has them, of constants by name and values."""

    def __init__(self) -> None:
        self._sum = hashlib.sha256()

    def operators(self, nodes: Iterable[Any]) -> None:
        """Takes in ``NodeProto``s, in order."""
        for node in nodes:
            self._sum.update(node.SerializeToString(deterministic=True))

    def constant(self, tensor: Any, content: Iterable[Any]) -> None:
        """Takes in a ``TensorProto`` whose values are the buffers of ``content``, one after the other."""
        self._sum.update(f"{tensor.name}\0{tensor.data_type}\0{list(tensor.dims)}".encode())
        for piece in content:
            self._sum.update(piece)

    def hexdigest(self) -> str:
        return self._sum.hexdigest()


def read(path: str | os.PathLike[str]) -> OnnxFile:
    """What is in a file, once it and the files that belong to it are looked through.

    Raises:
        ConfigError: onnx is not installed.
        FormatError: there is no such file, it is none of ONNX, or damaged.
    """
    onnx, path = require_onnx(), Path(path)
    model = _model(onnx, path)
    sizes = {path.name: path.stat().st_size, **_beside(onnx, model, path)}
    with understood(f"{path} is damaged, or no ONNX file"):
        onnx.checker.check_model(os.fspath(path))
    return _described(onnx, model, path, sizes)


def _model(onnx: Any, path: Path) -> Any:
    """The protocol buffers of a file."""
    with opened(path) as (stream, size):
        if size > LARGEST:
            raise FormatError(f"{path} has {size} bytes; allowed in one ONNX file: {LARGEST}")
        content = stream.read(LARGEST)
    with understood(f"{path} is damaged, or no ONNX file"):
        model = onnx.ModelProto.FromString(content)
    if not model.ir_version or not model.graph.output:
        raise FormatError(
            f"{path} is damaged, or no ONNX file: it has no {'version' if model.graph.output else 'output'}"
        )
    return model


def _described(onnx: Any, model: Any, path: Path, sizes: Mapping[str, int]) -> OnnxFile:
    graph, sets = model.graph, {one.domain: one.version for one in model.opset_import}
    opset, newest = max((sets.get(domain, 0) for domain in _DOMAINS), default=0), onnx.defs.onnx_opset_version()
    if opset > newest:
        raise FormatError(f"{path} is of opset {opset}; onnx {onnx.__version__} knows them up to {newest}: update it")
    with understood(f"{path} is damaged"):
        record = FileRecord.from_properties({one.key: one.value for one in model.metadata_props}, os.fspath(path))
        intact = None if record is None or not record.sha256 else record.sha256 == digest_of(onnx, model, path)
    given = {one.name for one in graph.initializer}
    makers = {name: node.op_type for node in graph.node for name in node.output}
    coded, plain = _layers(graph)
    return OnnxFile(
        path,
        sizes,
        opset,
        {domain: version for domain, version in sets.items() if domain not in _DOMAINS},
        model.ir_version,
        f"{model.producer_name} {model.producer_version}".strip(),
        tuple(_port(onnx, one) for one in graph.input if one.name not in given),
        tuple(_port(onnx, one, makers.get(one.name, "")) for one in graph.output),
        Counter(node.op_type for node in _nodes(onnx, graph)),
        coded,
        plain,
        record,
        intact,
    )


def digest_of(onnx: Any, model: Any, path: Path) -> str:
    """The `Digest` of a file that was read.

    Raises:
        FormatError: a file with values cannot be read.
    """
    digest = Digest()
    digest.operators(model.graph.node)
    for tensor in model.graph.initializer:
        digest.constant(tensor, _content(onnx, tensor, path))
    return digest.hexdigest()


def _content(onnx: Any, tensor: Any, path: Path) -> Iterator[Any]:
    """The values of a constant, in pieces."""
    if tensor.data_location != onnx.TensorProto.EXTERNAL:
        yield tensor.raw_data if tensor.HasField("raw_data") else onnx.numpy_helper.to_array(tensor).tobytes()
        return
    place = _Place.of(tensor, path)
    with opened(place.file) as (stream, size):
        stream.seek(place.offset)
        left = size - place.offset if place.length is None else place.length
        while left > 0 and (piece := stream.read(min(left, _CHUNK))):
            left -= len(piece)
            yield piece


# ---- files with values ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Place:
    """Where values lie outside of the file: ``length`` bytes from ``offset`` of ``file``; None: all."""

    file: Path
    offset: int
    length: int | None

    @staticmethod
    def of(tensor: Any, path: Path) -> _Place:
        """As a ``TensorProto`` of the file ``path`` says.

        Raises:
            FormatError: it says no such place beside the file.
        """
        said = {entry.key: entry.value for entry in tensor.external_data}
        location = PurePosixPath(said.get("location", ""))
        numbers = [said.get(key, "0") for key in ("offset", "length")]
        if not location.name or location.is_absolute() or ".." in location.parts or not all(map(_counts, numbers)):
            raise FormatError(
                f"{path}: the values of {tensor.name!r} are at {said}; allowed: a file beside it, an offset, a length"
            )
        return _Place(path.parent / location, int(numbers[0]), int(numbers[1]) if "length" in said else None)


def _counts(text: str) -> bool:
    return text.isascii() and text.isdecimal() and len(text) < 20


def _beside(onnx: Any, model: Any, path: Path) -> dict[str, int]:
    """Files with values -> bytes.

    Raises:
        FormatError: one is missing, or shorter than what is said to be in it.
    """
    found: dict[str, int] = {}
    for tensor in model.graph.initializer:
        if tensor.data_location != onnx.TensorProto.EXTERNAL:
            continue
        place = _Place.of(tensor, path)
        name = os.fspath(place.file.relative_to(path.parent))
        if name not in found:
            with _values_of(path, place.file) as (_, size):
                found[name] = size
        end = place.offset + (place.length or 0)
        if end > found[name]:
            raise FormatError(
                f"{place.file} has {found[name]} bytes; {path.name} has values of {tensor.name!r} up to byte {end}: "
                "it is damaged, or of another file"
            )
    return found


def _values_of(path: Path, file: Path) -> Any:
    if not file.exists():
        raise FormatError(f"no file {str(file)!r}, which has values of {path.name}: keep both in one folder")
    return opened(file)


# ---- what is in a graph --------------------------------------------------------------------------------------


def _nodes(onnx: Any, graph: Any) -> Iterator[Any]:
    """All operators, also those within others."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                yield from _nodes(onnx, attribute.g)


def _layers(graph: Any) -> tuple[int, int]:
    """How many layers read codes, and how many floats."""
    makers = {name: node.op_type for node in graph.node for name in node.output}
    coded = plain = 0
    for node in graph.node:
        if node.op_type in CODED_LAYERS:
            coded += 1
        elif node.op_type in LAYERS:
            reads = [makers.get(name) == "DequantizeLinear" for name in node.input[:2]]
            coded, plain = (coded + 1, plain) if all(reads) else (coded, plain + 1)
    return coded, plain


def _port(onnx: Any, value: Any, maker: str = "") -> Port:
    kind = value.type.tensor_type
    if not value.type.HasField("tensor_type"):
        return Port(value.name, "", None, maker)
    try:
        dtype = onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type).name
    except (KeyError, TypeError):
        dtype = ""
    shape = tuple(_side(one) for one in kind.shape.dim) if kind.HasField("shape") else None
    return Port(value.name, dtype, shape, maker)


def _side(dimension: Any) -> Side:
    return int(dimension.dim_value) if dimension.HasField("dim_value") else str(dimension.dim_param) or "?"
