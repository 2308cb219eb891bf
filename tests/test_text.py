"""Nothing that is shown on a terminal controls it."""

from __future__ import annotations

import io
import logging
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mxq import logs
from mxq.cli import console
from mxq.errors import ConfigError, DataError, MxqError
from mxq.quant.thresholds import Range, Threshold, Thresholds
from mxq.reporting import tables
from mxq.text import one_line, printable

EVIL = "\x1b]0;PWNED\x07\x1b[2J\x9b31m\rname\u202e\u2028\udcff[red]x[/red]\x00"
SHOWN = r"\x1b]0;PWNED\x07\x1b[2J\x9b31m\rname\u202e\u2028\udcff[red]x[/red]\x00"


def test_controls_are_written_out_and_nothing_else_is() -> None:
    assert printable(EVIL) == SHOWN
    assert printable("слой_0/层 ü\n\ta") == "слой_0/层 ü\n\ta"
    assert one_line("a\n\tb") == r"a\n" + "\tb"


@given(st.text())
def test_whatever_the_text(text: str) -> None:
    found = printable(text)
    assert all(c.isprintable() or c in "\n\t" for c in found)
    found.encode()
    assert printable(found) == found


@pytest.mark.parametrize("kind", [MxqError, ConfigError, DataError])
def test_errors(kind: type[MxqError]) -> None:
    assert str(kind(f"no {EVIL}")) == f"no {SHOWN}"


def test_tables_and_their_colours(monkeypatch: pytest.MonkeyPatch) -> None:
    """The codes of rich's own styles stay; brackets are no markup; cells keep their text."""
    out = io.StringIO()
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setenv("COLUMNS", "200")
    console.show(tables.facts([(EVIL, EVIL)], title=EVIL), EVIL)
    assert printable(out.getvalue()) == out.getvalue()
    assert (out.getvalue().count(r"\x1b]0;PWNED"), out.getvalue().count("[red]x[/red]")) == (4, 3)  # one is cut short

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr(sys, "stdout", out := Terminal())
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    console.show(tables.facts([("name", EVIL)]))
    coloured = out.getvalue()
    assert "\x1b[2mname\x1b[0m" in coloured
    assert "\x1b" not in coloured.replace("\x1b[2m", "").replace("\x1b[0m", "")


def test_messages_and_texts(capsys: pytest.CaptureFixture[str]) -> None:
    console.say(f"a\n{EVIL}")
    console.tell(f"a\n{EVIL}")
    found = capsys.readouterr()
    assert (found.err, found.out) == (f"a\\n{SHOWN}\n", f"a\n{SHOWN}\n")


def test_json_is_exact(capsys: pytest.CaptureFixture[str]) -> None:
    import json

    console.print_json({"name": EVIL})
    out = capsys.readouterr().out
    assert json.loads(out) == {"name": EVIL}
    assert "\x1b" not in out


def test_the_logger(capsys: pytest.CaptureFixture[str]) -> None:
    (handler,) = (h for h in logs.LOG.handlers if isinstance(h, logs.DefaultHandler))
    record = logging.LogRecord("mxq", logging.WARNING, "", 0, "a\n%s", (EVIL,), None)
    assert printable(handler.format(record)) == f"mxq: a\\n{SHOWN}"
    try:
        raise DataError(EVIL)
    except DataError:
        record = logging.LogRecord("mxq", logging.WARNING, "", 0, "a", (), sys.exc_info())
    shown = printable(handler.format(record))
    assert shown.startswith("mxq: a\nTraceback")
    assert shown.endswith(f"DataError: {SHOWN}")


def test_notebooks_show_a_table_in_colours_and_ipython_one_without() -> None:
    """And what is in names is text there, not markup."""
    found = Thresholds({"<b>conv": Threshold(Range(0.0, 2.5), "naive", 8, 1)})
    shown = found._repr_mimebundle_()
    assert shown["text/plain"] == str(found)
    assert "<b>" not in shown["text/html"]
    assert "&lt;b&gt;conv" in shown["text/html"]
    assert shown["text/html"].startswith("<pre style=")
    assert shown["text/html"] == found._repr_html_()
    assert "naive" in shown["text/html"]
