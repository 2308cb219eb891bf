"""Mutations of what JSON holds, and of bytes in general."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterator, Sequence
from random import Random
from typing import Any

Path = tuple[Any, ...]


class Raw(str):
    """Text that goes into a JSON document as it is."""

    __slots__ = ()


NUMBERS: tuple[Any, ...] = (
    *(0, 1, -1, 2, 7, 255, 256, 65536, 2**31 - 1, -(2**31), 2**32, 2**53 + 1, 2**63 - 1, 2**64, 1e308, -1e-320, 0.5),
    *(Raw("1e999"), Raw("-1e999"), Raw("NaN"), Raw("Infinity"), Raw("1" + "0" * 400), Raw("9" * 5000), Raw("-0.0")),
)
WORDS: tuple[Any, ...] = (
    *("", " ", "x", "None", "true", "data", "\0", "a\0b", "\n", "\x1b[31m", "é", "\u2028", "0", "1e9", "-1", "(1, 2)"),
    *("../../x", "/etc/passwd", "a" * 3000, "%s%n{0}", "nan", Raw('"\\ud800"'), Raw('"\\udfff\\ud800x"')),
)
SHAPES: tuple[Any, ...] = (
    *(None, True, False, [], {}, [[]], [None], {"": None}, [0, 0], [1, 2, 3], ["x", "y"], {"a": {"b": []}}),
    *(Raw("[" * 300 + "]" * 300), Raw("[" * 60000 + "]" * 60000), Raw('{"a":' * 3000 + "1" + "}" * 3000)),
)
ODD = (*NUMBERS, *WORDS, *SHAPES)


def dump(value: Any) -> str:
    """A JSON text, also of what is none: `Raw` parts are written as they are."""
    if isinstance(value, Raw):
        return str(value)
    if isinstance(value, dict):
        return "{" + ", ".join(f"{dump(k)}: {dump(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(dump, value)) + "]"
    return json.dumps(value)


def copied(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: copied(v) for k, v in value.items()}
    return [copied(v) for v in value] if isinstance(value, list | tuple) else value


def paths(value: Any, at: Path = ()) -> Iterator[Path]:
    """The places of all that ``value`` holds, itself first."""
    yield at
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from paths(inner, (*at, key))
    elif isinstance(value, list):
        for i, inner in enumerate(value):
            yield from paths(inner, (*at, i))


def found(value: Any, path: Path) -> Any:
    for step in path:
        value = value[step]
    return value


def mutated(tree: Any, rng: Random, odd: Sequence[Any] = ODD) -> Any:
    """A changed copy: a value replaced, removed, repeated, exchanged with another one, a key renamed or added."""
    tree = copied(tree)
    everywhere = list(paths(tree))
    path = rng.choice(everywhere[1:] or everywhere)
    if not path:
        return rng.choice(odd)
    holder, key = found(tree, path[:-1]), path[-1]
    rng.choice(CHANGES)(holder, key, rng, odd, lambda: copied(found(tree, rng.choice(everywhere))))
    return tree


def _replace(holder: Any, key: Any, rng: Random, odd: Sequence[Any], another: Callable[[], Any]) -> None:
    holder[key] = rng.choice(odd)


def _near(holder: Any, key: Any, rng: Random, odd: Sequence[Any], another: Callable[[], Any]) -> None:
    """A value of the same type."""
    value = holder[key]
    if isinstance(value, bool) or value is None:
        holder[key] = rng.choice((True, False, None))
    elif isinstance(value, int | float):
        holder[key] = rng.choice((value + 1, value - 1, -value, value * 1000, 0, *NUMBERS))
    elif isinstance(value, str):
        cut = rng.randrange(len(value) + 1)
        holder[key] = rng.choice((value[:cut], value + rng.choice(WORDS[:12]), value[:cut] + "0" + value[cut:]))
    elif isinstance(value, list):
        holder[key] = rng.choice((value * 2, value[:-1], value[::-1], [*value, rng.choice(odd)]))
    else:
        holder[key] = dict(list(value.items())[: rng.randrange(len(value) + 1)])


def _remove(holder: Any, key: Any, rng: Random, odd: Sequence[Any], another: Callable[[], Any]) -> None:
    del holder[key]


def _other(holder: Any, key: Any, rng: Random, odd: Sequence[Any], another: Callable[[], Any]) -> None:
    holder[key] = another()


def _add(holder: Any, key: Any, rng: Random, odd: Sequence[Any], another: Callable[[], Any]) -> None:
    if isinstance(holder, list):
        holder.insert(rng.randrange(len(holder) + 1), rng.choice((holder[key], rng.choice(odd))))
    else:
        name = rng.choice((f"{key}x", rng.choice(WORDS[:-2]), Raw(json.dumps(str(key)))))  # the last: a key given twice
        holder[name] = rng.choice((holder[key], rng.choice(odd)))


def _rename(holder: Any, key: Any, rng: Random, odd: Sequence[Any], another: Callable[[], Any]) -> None:
    if isinstance(holder, dict):
        holder[rng.choice((f"{key}_", rng.choice(WORDS[:-2])))] = holder.pop(key)
    else:
        holder[key] = [holder[key]]


CHANGES = (_replace, _replace, _near, _near, _near, _remove, _other, _add, _rename)

_INTEGERS = (0, 1, 2, 0x7F, 0x80, 0xFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)
_LONG = (*_INTEGERS, 1 << 32, 1 << 40, (1 << 63) - 1, 1 << 63, (1 << 64) - 1)


def bytes_mutated(data: bytes, rng: Random) -> bytes:
    """Bytes flipped, cut, repeated, put in, or overwritten with numbers that are often lengths."""
    if not data:
        return rng.randbytes(8)
    # Headers, and tables at the end, are where the structure is.
    at = rng.choice(
        (rng.randrange(len(data)), rng.randrange(min(64, len(data))), -rng.randrange(1, min(128, len(data)) + 1))
    )
    at %= len(data)
    width = rng.choice((1, 2, 4, 8, 16, 64))
    kind = rng.randrange(7)
    if kind == 0:
        return data[:at] + bytes([data[at] ^ (1 << rng.randrange(8))]) + data[at + 1 :]
    if kind == 1:
        return data[:at]
    if kind == 2:
        return data[:at] + data[at + width :]
    if kind == 3:
        return data[: at + width] + data[at:]
    if kind == 4:
        return data[:at] + rng.randbytes(width) + data[at + width :]
    if kind == 5:
        return data[:at] + struct.pack("<I", rng.choice(_INTEGERS)) + data[at + 4 :]
    return data[:at] + struct.pack("<Q", rng.choice(_LONG)) + data[at + 8 :]
