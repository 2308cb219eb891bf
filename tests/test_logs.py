"""What mxq says: on stderr by default, and as the user sets the logger "mxq" or the root logger."""

from __future__ import annotations

import io
import logging
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers import fresh_python

from mxq.logs import DEFAULT_LEVEL, LOG, DefaultHandler, install

HEARD = "mxq: info\nmxq: warning\n"


@pytest.fixture(autouse=True)
def _as_found() -> Iterator[None]:
    """Handlers and levels of both loggers stay what they were."""
    loggers = (LOG, logging.getLogger())
    before = [(logger, logger.level, list(logger.handlers), logger.propagate) for logger in loggers]
    yield
    for logger, level, handlers, propagate in before:
        logger.setLevel(level)
        logger.handlers[:], logger.propagate = handlers, propagate


def said(capfd: pytest.CaptureFixture[str]) -> str:
    LOG.debug("debug")
    LOG.info("info")
    LOG.warning("warning")
    return capfd.readouterr().err


def test_by_default(capfd: pytest.CaptureFixture[str]) -> None:
    assert said(capfd) == HEARD


def test_to_what_stderr_is_then(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    other = io.StringIO()
    monkeypatch.setattr(sys, "stderr", other)
    assert said(capfd) == ""
    assert other.getvalue() == HEARD


@pytest.mark.parametrize(
    ("level", "heard"),
    [
        (logging.DEBUG, f"mxq: debug\n{HEARD}"),
        (logging.INFO, HEARD),
        (logging.WARNING, "mxq: warning\n"),
        (logging.ERROR, ""),
    ],
)
def test_a_level_holds(capfd: pytest.CaptureFixture[str], level: int, heard: str) -> None:
    LOG.setLevel(level)
    install()
    assert said(capfd) == heard


def test_a_level_set_before_the_import_holds() -> None:
    done = fresh_python(
        "import logging; logging.getLogger('mxq').setLevel(logging.WARNING); import mxq; from mxq.logs import LOG; "
        "LOG.info('info'); LOG.warning('warning')"
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "mxq: warning\n")


class TestRoot:
    """Handlers of the root logger: what shows a record is the only one to do so."""

    @pytest.mark.parametrize(
        ("level", "heard"),
        [(logging.INFO, "INFO:mxq:info\nWARNING:mxq:warning\n"), (logging.WARNING, "WARNING:mxq:warning\n")],
    )
    def test_on_stderr(self, capfd: pytest.CaptureFixture[str], level: int, heard: str) -> None:
        logging.basicConfig(level=level, stream=sys.stderr, force=True)
        assert said(capfd) == heard

    def test_a_level_of_ours_goes_before_the_roots(self, capfd: pytest.CaptureFixture[str]) -> None:
        logging.basicConfig(level=logging.WARNING, stream=sys.stderr, force=True)
        LOG.setLevel(logging.INFO)
        assert said(capfd) == "INFO:mxq:info\nWARNING:mxq:warning\n"

    def test_where_nobody_sees_it(self, capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
        file = logging.FileHandler(tmp_path / "log")
        logging.basicConfig(level=logging.WARNING, handlers=[file, logging.NullHandler()], force=True)
        assert said(capfd) == HEARD
        assert (tmp_path / "log").read_text() == "INFO:mxq:info\nWARNING:mxq:warning\n"
        file.close()

    def test_without_a_stream(self, capfd: pytest.CaptureFixture[str]) -> None:
        """As the handlers of rich and of systemd are."""
        records: list[str] = []

        class Elsewhere(logging.Handler):
            def emit(self, record: logging.LogRecord) -> None:
                records.append(record.getMessage())

        logging.basicConfig(level=logging.INFO, handlers=[Elsewhere()], force=True)
        assert said(capfd) == ""
        assert records == ["info", "warning"]

    def test_not_where_records_do_not_go_there(self, capfd: pytest.CaptureFixture[str]) -> None:
        logging.basicConfig(level=logging.ERROR, stream=sys.stderr, force=True)
        LOG.propagate = False
        assert said(capfd) == HEARD


def test_a_handler_of_the_users_here(capfd: pytest.CaptureFixture[str]) -> None:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(name)s! %(message)s"))
    LOG.addHandler(handler)
    assert said(capfd) == "mxq! info\nmxq! warning\n"


def test_once_is_enough() -> None:
    install()
    assert sum(isinstance(handler, DefaultHandler) for handler in LOG.handlers) == 1
    assert LOG.level == DEFAULT_LEVEL
