"""What is known by name: mxq's own things, those registered by a call, and entry points of installed packages."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

import pytest
from helpers import install_fake

from mxq.errors import ConfigError
from mxq.registry import Registry

GROUP = "mxq.things"


@runtime_checkable
class Thing(Protocol):
    @property
    def name(self) -> str: ...

    def size(self) -> int: ...


@dataclass(frozen=True)
class Box:
    name: str = "box"
    sides: int = 4

    def size(self) -> int:
        return self.sides


OWN = Box("own")

PACKAGE = """
from dataclasses import dataclass
@dataclass(frozen=True)
class Ball:
    name: str = "ball"
    def size(self): return 1
BALL = Ball()
NUMBER = 5
class Crash:
    def __init__(self): raise KeyError("crash")
"""


def registry() -> Registry[Thing]:
    return Registry("thing", GROUP, Thing, own={"own": f"{__name__}:OWN"}, aliases={"mine": "own"})


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    for name in ("balls", "exits"):
        sys.modules.pop(name, None)


def installed(folder: Path, **entries: str) -> Registry[Thing]:
    install_fake(folder, "balls-dist", {GROUP: entries}, balls=PACKAGE, exits="raise SystemExit(3)")
    return registry()


def test_own_things_are_imported_when_they_are_needed() -> None:
    known = registry()
    assert known.names() == ("own",)
    assert "mine" in known
    assert known.get("own") is known.get("mine") is OWN


def test_registering() -> None:
    known = registry()
    known.register(Box())
    known.register(Box())  # the same again is harmless
    assert known.names() == ("own", "box")
    assert known.values() == (OWN, Box())
    for taken in (Box(sides=5), Box("own"), Box("mine")):
        with pytest.raises(ConfigError, match=rf"^a thing named '{taken.name}' exists already; known: own, box$"):
            known.register(taken)
    with pytest.raises(ConfigError, match=r"^thing 5 cannot be registered: .* without name, size; allowed: .*Thing$"):
        known.register(5)
    with pytest.raises(ConfigError, match=r"^the thing 'a:b' has a name that cannot be written in settings; allowed: "):
        known.register(Box("a:b"))


def test_unknown_names_list_the_known() -> None:
    with pytest.raises(ConfigError, match=r"^thing is 'bx'; allowed: 'own', 'mine'$"):
        registry().get("bx")


@pytest.mark.parametrize("place", ["balls:BALL", "balls:Ball"], ids=["an instance", "its class"])
def test_entry_points_are_listed_without_an_import(folder: Path, place: str) -> None:
    known = installed(folder, ball=place, broken="nowhere:X")
    assert known.names() == ("own", "ball", "broken")
    assert "balls" not in sys.modules
    assert known.get("ball").size() == 1
    assert known.get("ball") is known.get("ball")


@pytest.mark.parametrize(
    ("place", "why"),
    [
        ("nowhere:X", "cannot be loaded: ModuleNotFoundError: No module named 'nowhere'"),
        ("balls:X", "cannot be loaded: AttributeError: module 'balls' has no attribute 'X'"),
        ("balls:Crash", "cannot be loaded: KeyError: 'crash'"),
        ("exits:X", "cannot be loaded: SystemExit: 3"),
        ("balls:NUMBER", "it is of type int, without name, size"),
        ("balls:BALL", "it is named 'ball'"),
    ],
)
def test_what_is_broken_is_one_error_where_it_is_asked_for(
    folder: Path, place: str, why: str, caplog: pytest.LogCaptureFixture
) -> None:
    known = installed(folder, ball="balls:BALL", odd=place)
    assert known.get("ball").size() == 1
    said = f"thing 'odd', entry point 'odd = {place}' of '{GROUP}' in package balls-dist 1.0: {why}"
    for _ in range(2):
        with pytest.raises(ConfigError) as raised:
            known.get("odd")
        assert str(raised.value) == f"{said}; allowed: {__name__}.Thing of that name, or another: own, ball"
    with caplog.at_level(logging.WARNING, "mxq"):
        assert [thing.name for thing in installed(folder, ball="balls:BALL", odd=place).values()] == ["own", "ball"]
    assert [r.message for r in caplog.records] == [f"{said}; it is left out"]


def test_a_name_is_one_things(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    install_fake(folder, "other", {GROUP: {"ball": "balls:BALL"}})
    known = installed(folder, own="balls:BALL", mine="balls:BALL", ball="balls:BALL")
    with caplog.at_level(logging.WARNING, "mxq"):
        assert known.names() == ("own", "ball")
    assert len(caplog.records) == 2
    assert (
        "'own = balls:BALL' of 'mxq.things' in package balls-dist 1.0 is left out: a thing of that name" in caplog.text
    )
    assert known.get("own") is OWN
    with pytest.raises(ConfigError, match=r"more than one package has it: (other 1.0, balls|balls-dist 1.0, other)"):
        known.get("ball")
