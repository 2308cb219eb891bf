"""JSON documents: read strictly, and turned into dataclasses whose fields have the types they state.

Beyond the grammar, every document is free of what its readers would fail at much later: keys given twice, NaN and
infinite numbers, integers beyond 64 bits, text that is no Unicode, and nesting deeper than `DEEPEST`.
"""

from __future__ import annotations

import json
import math
import os
from collections import Counter
from collections.abc import Iterable
from typing import Annotated, Any, Final, TypeAlias, TypeVar

import msgspec

from mxq.errors import FormatError, MxqError
from mxq.formats.reading import decoded, read_text

DEEPEST: Final = 100
Count: TypeAlias = Annotated[int, msgspec.Meta(ge=0)]
"""The type of a field that counts something."""
_T = TypeVar("_T")


def read_json(path: str | os.PathLike[str], error: type[MxqError] = FormatError) -> Any:
    """The document in a file.

    Raises:
        MxqError: of type ``error``; the file cannot be read, or see `parse_json`.
    """
    return parse_json(read_text(path, error), os.fspath(path), error)


def parse_json(text: str | bytes, name: str = "the text", error: type[MxqError] = FormatError) -> Any:
    """The document that ``text`` is.

    Args:
        text: JSON; bytes are UTF-8.
        name: what messages call it.
        error: what is raised.

    Raises:
        MxqError: of type ``error``; it is no JSON, or holds what the head of this module names.
    """
    if isinstance(text, bytes):
        text = decoded(text, name, error)
    try:
        document = json.loads(text, object_pairs_hook=_object, parse_constant=_refused)
    except RecursionError:
        raise error(f"{name} is nested too deep; allowed: {DEEPEST} levels") from None
    except ValueError as failure:
        raise error(f"{name} is not JSON: {failure}") from None
    problem = _problem(document)
    if problem:
        raise error(f"{name} {problem}")
    return document


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) < len(pairs):
        (twice, _), *_ = Counter(key for key, _ in pairs).most_common(1)
        raise ValueError(f"the key {twice!r} is given twice in one object")
    return table


def _refused(constant: str) -> Any:
    raise ValueError(f"it holds {constant}, for which JSON has no word")


def _problem(document: Any) -> str:
    """What is wrong with a parsed document, to go after its name; "" if nothing is."""
    level = [document]
    for _ in range(DEEPEST + 1):
        if not level:
            return ""
        below = []
        for value in level:
            if isinstance(value, dict):
                below += [*value, *value.values()]
            elif isinstance(value, list):
                below += value
            elif fault := _fault(value):
                return fault
        level = below
    return f"is nested too deep; allowed: {DEEPEST} levels"


def _fault(value: Any) -> str:
    if isinstance(value, str):
        return "" if value.isascii() or _encodable(value) else f"holds {value!r}, which is no Unicode text"
    if isinstance(value, float):
        return "" if math.isfinite(value) else "holds a number beyond those of float64"
    if isinstance(value, int) and not -(1 << 63) <= value < 1 << 64:
        return f"holds the whole number {str(value)[:20]}... of {len(str(value))} digits; allowed: 64 bits"
    return ""


def _encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def converted(data: Any, kind: type[_T], name: str, error: type[MxqError] = FormatError, *, partly: bool = False) -> _T:
    """Parsed JSON as a ``kind``: a dataclass, or a table or list of them, each field of the type that it states.

    Args:
        data: what `parse_json` returned, or a part of it.
        kind: the type.
        name: what messages call the data.
        error: what is raised.
        partly: whether fields that ``kind`` does not have are of no interest, instead of unknown.

    Raises:
        MxqError: of type ``error``; the message names the field, what is there and what is allowed.
    """
    try:
        found = msgspec.convert(data, kind)
    except msgspec.ValidationError as failure:
        raise error(f"{name} is damaged: {failure}") from None
    unknown = "" if partly else _unknown(data, msgspec.to_builtins(found), "$")
    if unknown:
        raise error(f"{name} is damaged: it has an unknown field `{unknown}`")
    return found


def _unknown(data: Any, known: Any, at: str) -> str:
    """The place of a key of ``data`` that is not ``known``; "" where there is none."""
    if isinstance(data, dict) and isinstance(known, dict):
        odd = next((key for key in data if key not in known), None)
        below = ((data[key], known[key], f"{at}.{key}") for key in data)
        return _first_unknown(below) if odd is None else f"{at}.{odd}"
    if isinstance(data, list | tuple) and isinstance(known, list | tuple):
        return _first_unknown((a, b, f"{at}[{i}]") for i, (a, b) in enumerate(zip(data, known, strict=False)))
    return ""


def _first_unknown(parts: Iterable[tuple[Any, Any, str]]) -> str:
    return next(filter(None, (_unknown(*part) for part in parts)), "")
