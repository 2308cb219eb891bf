"""Lets MXNet 1.9.1, last released in 2022, run on today's Python and numpy.

MXNet (and gluoncv) use two things that are gone. numpy 1.24 removed the aliases ``np.bool``, ``np.int``, ... of
Python's own types; MXNet reads them while it is imported. Python 3.12 removed ``distutils``, of which both use the
version classes. `prepare` puts back what is missing, and nothing where nothing is missing, so ``import mxq`` has to
come before ``import mxnet`` on Python 3.12 and later.
"""

from __future__ import annotations

import importlib.util
import os
import re
import sys
import warnings
from collections.abc import Sequence
from functools import total_ordering
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import MappingProxyType, ModuleType

import numpy as np

from mxq.errors import ConfigError, MxqError
from mxq.host.environment import check_omp_num_threads, disable_parallel_copy
from mxq.logs import LOG

NUMPY_ALIASES = MappingProxyType(
    {
        "bool": bool,
        "int": int,
        "float": float,
        "complex": complex,
        "object": object,
        "str": str,
        "long": int,
        "unicode": str,
    }
)
"""What numpy's aliases stood for until 1.24 removed them."""


class UnsupportedEnvironment(MxqError, ImportError):
    """mxq cannot be imported here: MXNet is missing or numpy is too new for it. Also an `ImportError`."""


def prepare() -> None:
    """Makes ``import mxnet`` possible, and what it will run quick; does nothing the second time.

    An ``OMP_NUM_THREADS`` on which MXNet would abort the process is a warning: mxq refuses it where it imports MXNet.

    Raises:
        UnsupportedEnvironment: MXNet is not installed, or numpy is 2 or newer.
    """
    try:
        check_omp_num_threads(os.environ)
    except ConfigError as error:
        LOG.warning("%s", error)
    check_environment(np.__version__, has_mxnet="mxnet" in sys.modules or importlib.util.find_spec("mxnet") is not None)
    restore_numpy_aliases(np)
    provide_distutils()
    disable_parallel_copy(os.environ)


def check_environment(numpy_version: str, *, has_mxnet: bool) -> None:
    """Refuses what cannot work, with the remedy.

    Raises:
        UnsupportedEnvironment: as for `prepare`.
    """
    if int(numpy_version.split(".", 1)[0]) >= 2:
        raise UnsupportedEnvironment(
            f"numpy {numpy_version} is installed; MXNet 1.9.1 works with numpy 1.x only. Allowed: "
            'pip install "numpy<1.24" on Python 3.10 and 3.11, "numpy>=1.26.4,<2" on 3.12 and 3.13'
        )
    if not has_mxnet:
        raise UnsupportedEnvironment(
            "MXNet is not installed: pip install mxnet==1.9.1 (its wheels are for Linux on x86-64 alone)"
        )


def unloadable(error: Exception) -> UnsupportedEnvironment:
    """What to raise where ``import mxnet`` failed with ``error``.

    Slim images lack libraries that its wheel needs. It joins its own docstrings, of which ``python -OO`` leaves none,
    and warns, which ``python -W error`` makes an error.
    """
    found = re.match(r"(lib\w+)\.so\.(\d+): cannot open shared object file", str(error))
    remedy = f"; on Debian and Ubuntu: apt-get install {found[1]}{found[2]}" if found else ""
    if isinstance(error, Warning):
        remedy = "; it warns when it is imported: ask for errors (-W error, PYTHONWARNINGS) after import mxq.runtime"
    elif sys.flags.optimize > 1:
        remedy = "; it needs its docstrings: run Python without -OO and PYTHONOPTIMIZE=2"
    words = " ".join(str(error).split())
    return UnsupportedEnvironment(f"MXNet is installed but cannot be loaded: {words}{remedy}")


def restore_numpy_aliases(module: ModuleType = np) -> tuple[str, ...]:
    """Puts ``np.bool``, ``np.int``, ... back into ``module`` where it lacks them.

    Returns:
        The names it put back: none with numpy 1.23, which still has them (deprecated).
    """
    with warnings.catch_warnings():  # asking for an alias warns: DeprecationWarning to 1.23, FutureWarning from 1.24
        warnings.simplefilter("ignore")
        missing = tuple(name for name in NUMPY_ALIASES if not hasattr(module, name))
    for name in missing:
        setattr(module, name, NUMPY_ALIASES[name])
    return missing


def provide_distutils() -> None:
    """Offers ``distutils.version`` where Python has none, from 3.12 on; that of setuptools goes first.

    Only folders are searched: the finder of setuptools imports all of setuptools to answer.
    """
    there = any(isinstance(finder, DistutilsFinder) for finder in sys.meta_path)
    if not there and PathFinder.find_spec("distutils") is None:
        sys.meta_path.append(DistutilsFinder())


@total_ordering
class LooseVersion:
    """A version that compares number by number, as ``distutils.version.LooseVersion`` did.

    Numbers come before words, so versions that could not be compared ("1.2" and "1.x") can be.
    """

    def __init__(self, vstring: str = "") -> None:
        self.vstring = vstring

    def __str__(self) -> str:
        return self.vstring

    def __repr__(self) -> str:
        return f"{type(self).__name__} ('{self.vstring}')"

    def __eq__(self, other: object) -> bool:
        mine, theirs = self._keys(other)
        return mine == theirs

    def __lt__(self, other: object) -> bool:
        mine, theirs = self._keys(other)
        return mine < theirs

    def __hash__(self) -> int:
        return hash(tuple(self.key(self.vstring)))

    def _keys(self, other: object) -> tuple[list[tuple[bool, int, str]], list[tuple[bool, int, str]]]:
        return self.key(self.vstring), self.key(str(other))

    @staticmethod
    def key(vstring: str) -> list[tuple[bool, int, str]]:
        """What versions are sorted by."""
        parts = re.findall(r"\d+|[a-z]+", vstring)
        return [(False, int(part), "") if part.isdigit() else (True, 0, part) for part in parts]


class StrictVersion(LooseVersion):
    """As in ``distutils.version``: "1.2" equals "1.2.0", and a pre-release ("1.2a1") comes before its release."""

    @staticmethod
    def key(vstring: str) -> list[tuple[bool, int, str]]:
        """What versions are sorted by."""
        found = re.fullmatch(r"(\d+)\.(\d+)(?:\.(\d+))?(?:([ab])(\d+))?", vstring.strip())
        if found is None:
            raise ValueError(f"invalid version number {vstring!r}")
        numbers = [(False, int(found[i] or 0), "") for i in (1, 2, 3)]
        return [*numbers, (not found[4], 0, found[4] or ""), (False, int(found[5] or 0), "")]


class DistutilsFinder(MetaPathFinder, Loader):
    """Finds ``distutils`` and ``distutils.version``, the latter with the two classes above and nothing more.

    Asked last of all finders. `_distutils_hack`, which setuptools installs, is asked before it and offers the whole
    package; without setuptools Python 3.12 and later have none.
    """

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        del path, target
        if fullname == "distutils":
            return ModuleSpec(fullname, self, origin=__name__, is_package=True)
        if fullname == "distutils.version":
            return ModuleSpec(fullname, self, origin=__name__)
        return None

    def exec_module(self, module: ModuleType) -> None:
        module.__doc__ = "A stand-in by mxq.compat for what Python 3.12 removed."
        if module.__name__ == "distutils.version":
            vars(module).update(LooseVersion=LooseVersion, StrictVersion=StrictVersion)
