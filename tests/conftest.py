"""Fixtures and flags of all tests."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-goldens", action="store_true", help="write golden files anew instead of comparing")


def pytest_configure(config: pytest.Config) -> None:
    if not config.getoption("numprocesses", None):  # else this process runs no test, and workers inherit what it sets
        worker = "PYTEST_XDIST_WORKER" in os.environ
        os.environ.setdefault("OMP_NUM_THREADS", "1" if worker else "2")  # before MXNet is imported: it is read once
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # threads that spin starve each other where CPUs are shared
    if config.getoption("--update-goldens") and os.environ.get("CI"):
        raise pytest.UsageError("--update-goldens is refused where CI is set: goldens are reviewed, then committed")


@pytest.fixture(scope="module", autouse=True)
def _threads_of_children() -> Iterator[None]:
    """Restores what Dask's nannies leave in this process: processes that later tests start inherit it."""
    before = os.environ.get("OMP_NUM_THREADS")
    yield
    if before is not None:
        os.environ["OMP_NUM_THREADS"] = before


@pytest.fixture(scope="session")
def update_goldens(request: pytest.FixtureRequest) -> bool:
    """Whether golden files are to be written instead of compared."""
    return bool(request.config.getoption("--update-goldens"))


@pytest.fixture(scope="session")
def mxq_data() -> Path:
    """The directory of the shared data (models, pictures); skips where there is none."""
    named = os.environ.get("MXQ_DATA")
    if not named:
        pytest.skip("MXQ_DATA is not set: it names the directory of the shared data")
    if not Path(named).is_dir():
        pytest.fail(f"MXQ_DATA is {named!r}, which is not a directory")
    return Path(named)
