from __future__ import annotations

import re
import subprocess
import sys
import warnings
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType

import pytest

from mxq import compat
from mxq.errors import MxqError


def test_aliases_are_restored_where_missing() -> None:
    module = ModuleType("numpy")
    module.bool = mine = object()  # type: ignore[attr-defined]
    assert set(compat.restore_numpy_aliases(module)) == set(compat.NUMPY_ALIASES) - {"bool"}
    assert module.int is int
    assert module.object is object
    assert module.bool is mine, "what is there is left alone"  # type: ignore[attr-defined]
    assert compat.restore_numpy_aliases(module) == ()


def test_aliases_that_only_warn_are_left_alone() -> None:
    module = ModuleType("numpy")

    def asked(name: str) -> type:
        warnings.warn(f"np.{name} is deprecated", DeprecationWarning, stacklevel=2)
        return compat.NUMPY_ALIASES[name]

    module.__getattr__ = asked  # type: ignore[method-assign]
    assert compat.restore_numpy_aliases(module) == ()  # and no warning escapes: pytest would make it an error
    assert "bool" not in vars(module)


@pytest.mark.parametrize("version", ["2.0.0", "2.1.3", "10.0"])
def test_numpy_2_is_refused_with_the_remedy(version: str) -> None:
    with pytest.raises(compat.UnsupportedEnvironment, match=rf"numpy {version} is installed.*pip install"):
        compat.check_environment(version, has_mxnet=True)


def test_missing_mxnet_is_an_import_error_and_an_mxq_error() -> None:
    with pytest.raises(ImportError, match=r"MXNet is not installed: pip install mxnet==1\.9\.1"):
        compat.check_environment("1.26.4", has_mxnet=False)
    assert issubclass(compat.UnsupportedEnvironment, MxqError)
    compat.check_environment("1.23.5", has_mxnet=True)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("libgomp.so.1: cannot open shared object file: No such file or directory", "apt-get install libgomp1"),
        ("libquadmath.so.0: cannot open shared object file: No such file or directory", "apt-get install libquadmath0"),
        ("libmxnet.so: invalid ELF header", "cannot be loaded: libmxnet.so: invalid ELF header"),
    ],
)
def test_missing_libraries_are_named_with_the_remedy(text: str, says: str) -> None:
    assert str(compat.unloadable(OSError(text))).endswith(says)


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [("PYTHONOPTIMIZE", "2", "run Python without -OO"), ("PYTHONWARNINGS", "error", r"ask for errors .* after import")],
)
def test_an_interpreter_that_mxnet_cannot_be_imported_by(
    name: str, value: str, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, value)
    code = "import mxq\ntry:\n    import mxq.runtime\nexcept mxq.MxqError as error:\n    print(error)"
    assert re.match(f"MXNet is installed but cannot be loaded: .*{says}", fresh_python("-c", code).stdout)


def test_threads_that_would_abort_mxnet_are_said_and_refused_where_mxnet_is_imported(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "2,1")
    code = "import mxq\ntry:\n    import mxq.runtime\nexcept mxq.ConfigError as error:\n    print('later:', error)"
    found = fresh_python("-c", code)
    assert re.match("later: OMP_NUM_THREADS is '2,1'", found.stdout)
    assert re.match("mxq: OMP_NUM_THREADS is '2,1'.*\n$", found.stderr)


@pytest.mark.parametrize(
    ("less", "more"),
    [("1.9.1", "1.10"), ("1.9", "1.9.1"), ("0.10.4", "0.10.5.post0"), ("2", "2.x"), ("1.26.4", "2.0.0")],
)
def test_loose_versions(less: str, more: str) -> None:
    assert compat.LooseVersion(less) < compat.LooseVersion(more)
    assert compat.LooseVersion(more) >= less
    assert compat.LooseVersion(less) == less
    assert compat.LooseVersion(less) != more


@pytest.mark.parametrize(
    ("less", "more"), [("1.2a1", "1.2"), ("1.2a2", "1.2b1"), ("1.2b1", "1.2b2"), ("1.2", "1.2.1"), ("1.9", "1.10")]
)
def test_strict_versions(less: str, more: str) -> None:
    assert compat.StrictVersion(less) < compat.StrictVersion(more)
    assert not compat.StrictVersion(more) < less


def test_strict_versions_are_strict() -> None:
    assert compat.StrictVersion("1.2") == compat.StrictVersion("1.2.0")
    with pytest.raises(ValueError, match="invalid version number"):
        assert compat.StrictVersion("1.26.4.post1") < "2.0"


def test_finder_offers_distutils_version_alone() -> None:
    finder = compat.DistutilsFinder()
    assert finder.find_spec("distutils.core") is None
    assert finder.find_spec("numpy") is None
    spec = finder.find_spec("distutils.version")
    assert spec is not None
    module = ModuleType("distutils.version")
    finder.exec_module(module)
    assert module.LooseVersion is compat.LooseVersion


@pytest.mark.parametrize("python_has_it", [True, False])
def test_finder_is_added_once_and_only_where_python_has_no_distutils(
    monkeypatch: pytest.MonkeyPatch, python_has_it: bool
) -> None:
    spec = ModuleSpec("distutils", None) if python_has_it else None
    monkeypatch.setattr(PathFinder, "find_spec", lambda name: spec)
    others = [finder for finder in sys.meta_path if not isinstance(finder, compat.DistutilsFinder)]
    monkeypatch.setattr(sys, "meta_path", [*others])
    for _ in range(2):
        compat.provide_distutils()
        added = [finder for finder in sys.meta_path if isinstance(finder, compat.DistutilsFinder)]
        assert len(added) == (0 if python_has_it else 1)
        assert sys.meta_path == [*others, *added]  # asked last


def test_import_does_not_import_setuptools() -> None:
    assert fresh_python("-c", "import sys, mxq; print('setuptools' in sys.modules)").stdout == "False\n"


def fresh_python(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs another interpreter from the root of the project."""
    root = Path(__file__).parents[1]
    return subprocess.run(
        [sys.executable, *arguments], cwd=root, capture_output=True, text=True, check=False, timeout=120
    )


def test_mxnet_imports_after_mxq_in_a_fresh_process() -> None:
    done = fresh_python("-c", "import mxq, mxnet; print(mxnet.__version__, mxnet.nd.ones((2,)).sum().asscalar())")
    assert done.stdout.split() == ["1.9.1", "2.0"], done.stderr
    assert "Warning" not in done.stderr, "users see no warning of MXNet's"


def test_importing_mxq_makes_no_warning_of_its_own() -> None:
    done = fresh_python("-W", "default", "-c", "import mxq")
    assert done.returncode == 0, done.stderr
    assert [x for x in done.stderr.splitlines() if "Warning:" in x and "site-packages" not in x] == []
