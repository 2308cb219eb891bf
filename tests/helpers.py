"""What several test modules need. Import it as ``from helpers import assert_close``."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike

from mxq.host import machine
from mxq.quant import BY_DTYPE, MXNET, QParams

SATURATES = machine.detect().saturates
"""Whether this CPU's int8 kernels add products in pairs in 16 bits, where large sums saturate."""
TARGETS = (machine.NATIVE, machine.VNNI) if SATURATES else (machine.NATIVE,)
"""Whose numbers a test can look at: this CPU's own and, computed in exact arithmetic, those of CPUs with VNNI."""


ROOT = Path(__file__).parents[1]


def has_vnni(target: str) -> bool:
    """Whether a target's kernels add exactly."""
    return machine.resolve_target(target, machine.detect()) == machine.VNNI


def kernel_params(absmax: float, dtype: str) -> QParams:
    """By what MXNet's kernels make codes of a type in a range that reaches as far as ``absmax``."""
    return MXNET.params(BY_DTYPE[dtype], -absmax, absmax)


def fresh_python(code: str, **environ: str) -> subprocess.CompletedProcess[str]:
    """Runs ``code`` in a process of its own, with ``environ`` in place of this one's OpenMP and MXNet settings."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("OMP_", "MXNET_"))}
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**kept, "PYTHONPATH": str(ROOT), **environ},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


def install_fake(folder: Path, name: str, entries: Mapping[str, Mapping[str, str]], **modules: str) -> None:
    """Puts a distribution into ``folder``, as pip does: entry points (group -> name -> place) and its modules' text."""
    about = folder / f"{name.replace('-', '_')}-1.0.dist-info"
    about.mkdir(exist_ok=True)
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    groups = (f"[{group}]\n" + "".join(f"{k} = {v}\n" for k, v in each.items()) for group, each in entries.items())
    (about / "entry_points.txt").write_text("\n".join(groups))
    for module, text in modules.items():
        (folder / f"{module}.py").write_text(text)


WITHOUT_MXQ = """
import sys, warnings
sys.modules["mxq"] = None  # importing it would fail
warnings.simplefilter("ignore")
import numpy
for name, kind in dict(bool=bool, int=int, float=float, object=object, complex=complex, str=str).items():
    setattr(numpy, name, kind)  # numpy 1.24 removed them, MXNet reads them
import mxnet as mx
"""
"""The first lines of a program that loads a network with stock MXNet alone."""


def assert_close(actual: ArrayLike, expected: ArrayLike, *, rtol: float, atol: float) -> None:
    """Same shape, nothing NaN or infinite that was not, and |actual - expected| <= atol + rtol * |expected|.

    Both tolerances have to be given: a default would let results pass that nobody thought about.
    """
    found, wanted = np.asarray(actual), np.asarray(expected)
    assert found.shape == wanted.shape, f"shape {found.shape}, expected {wanted.shape}"
    np.testing.assert_allclose(found, wanted, rtol=rtol, atol=atol, equal_nan=True)


def assert_golden(text: str, path: Path, *, update: bool) -> None:
    """Compares ``text`` with the golden file at ``path``; with ``--update-goldens`` writes it there."""
    if update:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    assert path.exists(), f"no golden file {path.name}; run pytest --update-goldens and review what it writes"
    assert text == path.read_text(encoding="utf-8"), f"differs from {path.name}; if that is meant: --update-goldens"
