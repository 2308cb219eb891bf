"""What is known of an operator: its attributes with their types, and, for given attributes, its inputs and outputs."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Ports:
    """Of an operator with given attributes: the names of its ``inputs``, in order, and how many ``outputs`` it has."""

    inputs: tuple[str, ...]
    outputs: int


@dataclass(frozen=True, slots=True)
class Signature:
    """Of an operator: its attributes -> their types in MXNet's words, such as "int (non-negative), required"."""

    attributes: Mapping[str, str]


class Registry(Protocol):
    """MXNet's operators. `mxq.runtime` implements it; tests may with a table."""

    def find(self, op: str) -> Signature | None:
        """What ``op`` is; None where there is no such operator."""
        ...

    def ports(self, op: str, attrs: Mapping[str, str]) -> Ports:
        """Inputs and outputs of ``op`` with ``attrs``.

        Raises:
            FormatError: MXNet does not take these attributes; the message is its own sentence.
        """
        ...


_INTEGER = re.compile(r"\s*[+-]?\d{1,20}\s*")
_TUPLE = re.compile(r"\s*([(\[])\s*((?:(?:[+-]?\d{1,20}L?|None)\s*(?:,\s*|(?=[)\]])))*)([)\]])\s*")


def integers(kind: str, text: str) -> tuple[int, ...] | None:
    """The integers that ``text`` holds as an attribute of the type ``kind``; None where ``kind`` has none.

    "None" holds none, also among others, as in the ``begin`` of a slice.

    Raises:
        ValueError: ``text`` is none of such a type; the message is what is allowed.
    """
    if not kind.startswith(("int", "long", "Shape", "tuple of <long>")):
        return None
    if text.strip() == "None":
        return ()
    if _INTEGER.fullmatch(text):
        return (int(text),)
    if kind.startswith(("int", "long")):
        raise ValueError("an integer")
    found = _TUPLE.fullmatch(text)
    if found is None:
        raise ValueError('integers such as "(3, 3)"')
    return tuple(int(v) for v in re.findall(r"[+-]?\d+", found[2]))
