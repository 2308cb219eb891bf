"""What is known by name, and may come from other packages: observers, methods for weights, graph passes.

A registry knows three sorts of things: what mxq has itself, what a program registers by a call, and what installed
packages declare as entry points in its group (``importlib.metadata``), in their ``pyproject.toml``::

    [project.entry-points."mxq.observers"]
    double_percentile = "our_package.observers:DoublePercentile"

An entry's name is the thing's own. Entries are listed once, when a name is asked for that mxq does not have itself, and
each is imported when it is first needed. One that is broken is an error where it is asked for by name and a warning
where all are gone through; it is in nobody's way else.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from importlib.metadata import EntryPoint, entry_points
from threading import RLock
from typing import Any, Final, Generic, Protocol, TypeVar, overload

from mxq.errors import ConfigError, one_of
from mxq.logs import LOG

_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]*")
"""What can be written in a recipe, on a command line and before the ":" of a spec."""


class _Unfit(Exception):
    """What an entry point gives is not what its group holds."""


class Named(Protocol):
    """What a registry can hold."""

    @property
    def name(self) -> str: ...


T = TypeVar("T", bound=Named)
Class = TypeVar("Class")


class Registry(Generic[T]):
    """Things of one kind by name.

    Args:
        what: what one is called in messages: "observer".
        group: of entry points.
        kind: the class that each is of, or a protocol that can be checked at run time. An entry that gives a class of
            it gives an instance, made without arguments.
        own: what mxq has itself, in order: name -> where it is, "module:attribute", imported when it is first needed.
        aliases: other name -> name.
    """

    def __init__(
        self,
        what: str,
        group: str,
        kind: Any,
        own: Mapping[str, str] | None = None,
        aliases: Mapping[str, str] | None = None,
    ) -> None:
        self.what, self.group, self.kind = what, group, kind
        self.aliases: Final = dict(aliases or {})
        self._own: Final = {name: EntryPoint(name, place, group) for name, place in (own or {}).items()}
        self._known: Final[dict[str, T]] = {}
        self._broken: Final[dict[str, ConfigError]] = {}
        self._loading: Final = RLock()

    @overload
    def register(self, value: type[Class]) -> type[Class]: ...

    @overload
    def register(self, value: T) -> T: ...

    def register(self, value: Any) -> Any:
        """Makes ``value`` known by its name, of a class an instance; the same again is harmless. Also a decorator.

        Raises:
            ConfigError: it is something else, or its name is taken or cannot be one.
        """
        found = value() if isinstance(value, type) else value
        if why := self._misfit(found):
            raise ConfigError(f"{self.what} {found!r:.60} cannot be registered: {why}; allowed: {self._wanted}")
        name = found.name
        if not _NAME.fullmatch(name):
            raise ConfigError(
                f"the {self.what} {name!r} has a name that cannot be written in settings; allowed: letters, digits, "
                "'_', '-' and '.'"
            )
        if name in self._own or name in self.aliases or self._known.get(name, found) != found:
            raise ConfigError(f"{self._a} named {name!r} exists already; known: {', '.join(self.names())}")
        self._known[name] = found
        return value

    def get(self, name: str) -> T:
        """What ``name``, or an alias, stands for.

        Raises:
            ConfigError: there is none, with those that there are; or its entry point is broken, and how.
        """
        name = self.aliases.get(name, name)
        if name not in self:
            raise one_of(self.what, name, (*self.names(), *self.aliases))
        if not self._loads(name):
            error, others = self._broken[name], ", ".join(n for n in self.names() if n not in self._broken)
            allowed = f"{self._wanted} of that name, or another: {others}"
            raise ConfigError(f"{error}; allowed: {allowed}") from error.__cause__
        return self._known[name]

    def names(self) -> tuple[str, ...]:
        """All names, of mxq's own things, of what was registered, of entry points; nothing is imported for it."""
        called = [name for name in tuple(self._known) if name not in self._entries]
        return tuple(dict.fromkeys((*self._own, *called, *sorted(self._entries))))

    def values(self) -> tuple[T, ...]:
        """All of them, imported. What is broken is left out, and named in a warning the first time."""
        for name in self.names():
            if name not in self._broken and not self._loads(name):
                LOG.warning("%s; it is left out", self._broken[name])
        return tuple(self._known[name] for name in self.names() if name in self._known)

    def __contains__(self, name: object) -> bool:
        return any(name in known for known in (self._known, self._own, self.aliases)) or name in self._entries

    # ---- entry points ----

    @cached_property
    def _entries(self) -> dict[str, tuple[EntryPoint, ...]]:
        """Those of other packages by name, more than one where packages disagree. What stands in mxq's way is out."""
        found: dict[str, tuple[EntryPoint, ...]] = {}
        for entry in entry_points(group=self.group):
            taken = any(entry.name in known for known in (self._own, self._known, self.aliases))
            if taken or not _NAME.fullmatch(entry.name):
                why = f"{self._a} of that name exists already" if taken else f"no {self.what} can have that name"
                LOG.warning("%s is left out: %s", _described(entry), why)
            else:
                found[entry.name] = (*found.get(entry.name, ()), entry)
        return found

    def _loads(self, name: str) -> bool:
        """Whether what ``name`` stands for is known, by an import if need be; else what is wrong is noted."""
        with self._loading:
            if name not in self._known and name not in self._broken:
                self._load(name)
        return name in self._known

    def _load(self, name: str) -> None:
        entries = (self._own[name],) if name in self._own else self._entries[name]
        try:
            self._known[name] = self._loaded(name, entries)
        except (Exception, SystemExit) as error:  # whatever another package does while it is imported
            ours = isinstance(error, _Unfit)
            why = str(error) if ours else f"cannot be loaded: {type(error).__name__}: {error}"
            self._broken[name] = ConfigError(f"{self.what} {name!r}, {_described(entries[0])}: {why}")
            self._broken[name].__cause__ = None if ours else error

    def _loaded(self, name: str, entries: Sequence[EntryPoint]) -> T:
        if len(entries) > 1:
            raise _Unfit(f"more than one package has it: {', '.join(map(_package, entries))}")
        found: Any = entries[0].load()
        found = found() if isinstance(found, type) else found
        if why := self._misfit(found) or ("" if found.name == name else f"it is named {found.name!r}"):
            raise _Unfit(why)
        made: T = found
        return made

    def _misfit(self, found: Any) -> str:
        """Why ``found`` is not what the registry holds; empty where it is."""
        if isinstance(found, self.kind):
            return ""
        missing = [member for member in _members(self.kind) if not hasattr(found, member)]
        return f"it is of type {type(found).__name__}, without {', '.join(missing)}"

    @property
    def _a(self) -> str:
        return f"a{'n' if self.what[0] in 'aeiou' else ''} {self.what}"

    @property
    def _wanted(self) -> str:
        return f"{self.kind.__module__}.{self.kind.__name__}"


def _members(kind: Any) -> Iterable[str]:
    """What a class or a protocol has, by name."""
    own = {name for part in kind.__mro__ for name in (*vars(part), *vars(part).get("__annotations__", ()))}
    return sorted(name for name in own if not name.startswith("_"))


def _package(entry: EntryPoint) -> str:
    return "mxq" if entry.dist is None else f"{entry.dist.name} {entry.dist.version}"


def _described(entry: EntryPoint) -> str:
    return f"entry point '{entry.name} = {entry.value}' of {entry.group!r} in package {_package(entry)}"
