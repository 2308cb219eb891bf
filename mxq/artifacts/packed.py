"""A quantized pair in one file of a quarter of its size, ``prefix-packed.npz``, and back, bit for bit.

The file is an archive of numpy, of ``about`` (JSON in bytes), the symbol and the record as they stand in their files,
and for each parameter its values, or the parts of `mxq.artifacts.packing.Packed`. Beside it lies
``prefix-unpack.py``, which makes the pair of it without mxq: `mxq.formats.unpack`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Final

import numpy as np

from mxq.artifacts.packing import Packed, packed
from mxq.errors import ConfigError, FormatError
from mxq.formats import unpack as script
from mxq.formats.arrays import Archive, open_npz
from mxq.formats.documents import converted, parse_json
from mxq.formats.params import V2, V3, read_params
from mxq.formats.reading import opened
from mxq.graph.ir import Array
from mxq.logs import LOG
from mxq.storage.checksums import PACKED, SUFFIX, intact, params_of, path_of
from mxq.storage.locks import tidy
from mxq.storage.writing import is_file, replacing

FORMAT: Final = "mxq-packed/1"
SCRIPT: Final = "-unpack.py"
SYMBOL: Final = "-symbol.json"
PARTS: Final = tuple(part.name for part in fields(Packed))


@dataclass(frozen=True)
class About:
    """What a packed file says of itself.

    Attributes:
        format: `FORMAT`.
        params: how the name of the parameter file ends.
        texts: the endings of the other files, each a member of the archive.
        sha256: of each file, by its ending.
        names: of the parameters, in their order.
        magic: of the arrays in the parameter file, see `mxq.formats.params`.
    """

    format: str
    params: str
    texts: list[str]
    sha256: dict[str, str]
    names: list[str]
    magic: int


@dataclass(frozen=True)
class Packing:
    """What packing has come to.

    Attributes:
        files: that were written.
        packed: bytes of the packed file.
        unpacked: bytes of the files that it holds.
        whole: parameters of two axes or more that are no codes, and stay float32.
    """

    files: tuple[Path, ...]
    packed: int
    unpacked: int
    whole: tuple[str, ...]

    @property
    def advice(self) -> str:
        """What to say of those that are no codes."""
        others = f" and {len(self.whole) - 1} others" if len(self.whole) > 1 else ""
        return (
            f"{self.whole[0]}{others}: no codes of 8 bits, packed as float32; effort='default' and 'best' write codes, "
            "effort='fast' leaves it to the kernels to round"
        )

    def to_json(self) -> dict[str, Any]:
        """JSON-ready."""
        return asdict(self) | {"files": [str(path) for path in self.files]}


def pack(prefix: Path, out: Path | None = None) -> Packing:
    """Writes ``out-packed.npz`` and ``out-unpack.py`` of the pair ``prefix``, both or none; ``out`` is it by default.

    A warning names weights that stay float32.

    Raises:
        FormatError: a file of the pair is missing, damaged or changed, or its parameters are not as mxq writes them.
        StorageError: a file cannot be written.
    """
    with intact(prefix):
        params = params_of(prefix)
        if params is None:
            raise FormatError(f"{prefix} has no parameter file; allowed: the prefix of a pair")
        endings = [SYMBOL, *([SUFFIX] if is_file(path_of(prefix)) else [])]
        texts = {ending: _content(Path(f"{prefix}{ending}")) for ending in endings}
        table, content = read_params(params), _content(params)
    magic = V3 if content[24:28] == V3.to_bytes(4, "little") else V2
    if not _is_written_as_here(table, magic, content):
        raise FormatError(
            f"{params} cannot be packed bit for bit: sparse, older or other arrays than mx.nd.save writes; load and "
            "save the network again"
        )
    ending = params.name.removeprefix(prefix.name)
    sums = {name: hashlib.sha256(text).hexdigest() for name, text in (*texts.items(), (ending, content))}
    about = About(FORMAT, ending, endings, sums, list(table), magic)
    parts = {name: packed(array) for name, array in table.items()}
    files = _write(out or prefix, about, texts, table, parts)
    whole = tuple(name for name, array in table.items() if parts[name] is None and array.ndim > 1)
    found = Packing(files, files[0].stat().st_size, len(content) + sum(map(len, texts.values())), whole)
    if whole:
        LOG.warning("%s", found.advice)
    return found


def _is_written_as_here(table: Mapping[str, Array], magic: int, content: bytes) -> bool:
    if any(array.dtype.name not in script.TYPES for array in table.values()):
        return False
    return b"".join(script.params(table, magic)) == content


def _write(
    prefix: Path,
    about: About,
    texts: Mapping[str, bytes],
    table: Mapping[str, Array],
    parts: Mapping[str, Packed | None],
) -> tuple[Path, Path]:
    members = {"about": json.dumps(asdict(about)).encode(), **texts}
    arrays = {name: np.frombuffer(content, np.uint8) for name, content in members.items()}
    for number, name in enumerate(about.names):
        found = parts[name]
        arrays |= {str(number): table[name]} if found is None else _members(number, found)
    files = Path(f"{prefix}{PACKED}"), Path(f"{prefix}{SCRIPT}")
    tidy(prefix.parent)
    with replacing(*files, size=sum(array.nbytes for array in arrays.values())) as (archive, text):
        with archive.open("wb") as stream:
            np.savez_compressed(stream, **arrays)
        text.write_bytes(Path(script.__file__).read_bytes())
    return files


def _members(number: int, parts: Packed) -> dict[str, Array]:
    return {f"{number}.{part}": getattr(parts, part) for part in PARTS}


def prefix_of(file: Path) -> Path:
    """The prefix that a packed file has in its name.

    Raises:
        ConfigError: it has none.
    """
    name = file.name.removesuffix(PACKED)
    if name in (file.name, ""):
        raise ConfigError(f"{str(file)!r} does not end in PREFIX{PACKED}; say which prefix the files shall have")
    return file.with_name(name)


def unpack(file: Path, prefix: Path) -> tuple[Path, ...]:
    """Writes the files of a pair from a packed one: symbol, parameters and, where it has one, the record.

    Raises:
        FormatError: the file is damaged, or no packed pair.
        StorageError: a file cannot be written.
    """
    with open_npz(file, FormatError, "a packed pair") as archive:
        about = _about(archive, file)
        contents = {ending: _member(archive, ending, np.uint8).tobytes() for ending in about.texts}
        table = dict(_tensors(archive, about))
        contents[about.params] = b"".join(script.params(table, about.magic))
    for ending, content in contents.items():
        if hashlib.sha256(content).hexdigest() != about.sha256.get(ending):
            raise FormatError(f"{file} is damaged: {ending} is not what it was; pack the pair again")
    order = sorted(contents, key=lambda ending: ending != SUFFIX)  # the record first, see `mxq.artifacts.pair`
    files = [Path(f"{prefix}{ending}") for ending in order]
    tidy(prefix.parent)
    with replacing(*files, size=sum(map(len, contents.values()))) as drafts:
        for draft, ending in zip(drafts, order, strict=True):
            draft.write_bytes(contents[ending])
    return tuple(files)


def _about(archive: Archive, file: Path) -> About:
    """What the file says of itself, as far as the rest relies on it."""
    found = parse_json(_member(archive, "about", np.uint8).tobytes(), f"{file}: 'about'")
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        said = found.get("format") if isinstance(found, dict) else found
        raise FormatError(f"{file} is no packed pair: its format is {said!r:.60}; this version reads {FORMAT!r}")
    about = converted(found, About, f"{file}: 'about'")
    endings = {SYMBOL, SUFFIX}
    if not set(about.texts) <= endings or not _is_params(about.params) or about.magic not in (V2, V3):
        raise FormatError(
            f"{file} is damaged: it holds files that end in {[*about.texts, about.params]!r:.200}; allowed: "
            f"{SYMBOL}, {SUFFIX}, -NNNN.params"
        )
    return about


def _is_params(ending: str) -> bool:
    digits = ending.removeprefix("-").removesuffix(".params")
    return ending == f"-{digits}.params" and digits.isascii() and digits.isdigit() and 4 <= len(digits) <= 9


def _tensors(archive: Archive, about: About) -> Iterator[tuple[str, Array]]:
    for number, name in enumerate(about.names):
        if f"{number}.codes" in archive:
            yield name, _restored(archive, number)
        else:
            found = _member(archive, str(number))
            if found.dtype.name not in script.TYPES:
                raise FormatError(f"{archive.name}: {name!r} is {found.dtype}; allowed: {', '.join(script.TYPES)}")
            yield name, found


def _restored(archive: Archive, number: int) -> Array:
    kinds: tuple[Any, ...] = (np.int8, np.float64, np.int64, np.float32)
    parts = Packed(*(_member(archive, f"{number}.{p}", kind) for p, kind in zip(PARTS, kinds, strict=True)))
    fits = (
        parts.codes.ndim > 1
        and parts.steps.shape == parts.codes.shape[:1]
        and parts.places.shape == parts.values.shape
        and parts.places.ndim == 1
        and (not parts.places.size or 0 <= parts.places.min() <= parts.places.max() < parts.codes.size)
    )
    if not fits:
        raise FormatError(f"{archive.name}: the parts of parameter {number} do not fit each other")
    with np.errstate(over="ignore", invalid="ignore"):  # of a damaged file, whose checksum says so
        return parts.restored()


def _member(archive: Archive, name: str, kind: Any = None) -> Array:
    if name not in archive:
        raise FormatError(f"{archive.name}: it has no {name!r}")
    found = archive[name]
    if kind is not None and found.dtype != kind:
        raise FormatError(f"{archive.name}: {name!r} is {found.dtype}; allowed: {np.dtype(kind)}")
    return found


def _content(path: Path) -> bytes:
    with opened(path) as (stream, _):
        return stream.read()
