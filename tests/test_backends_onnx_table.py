"""The table of ONNX rows as the documentation lists it: `mxq.backends.onnx.table`."""

from __future__ import annotations

from helpers import ROOT

from mxq.backends.onnx import TABLE, TOPICS, row_of
from mxq.graph.operator_names import OWN_NAME

PAGE = ROOT / "docs" / "onnx.md"
MARK = "<!-- operators -->\n"


def listing() -> str:
    """A table of Markdown: topics, the operators of each, and what of them is refused."""
    rows = []
    for topic, found in TOPICS.items():
        limits: dict[str, list[str]] = {}
        for op, row in found.items():
            if row.limits:
                limits.setdefault(row.limits, []).append(f"`{op}`")
        known = ", ".join(f"`{op}`" for op in sorted(found, key=str.lower))
        only = "; ".join(f"{', '.join(ops)}: {limit}" for limit, ops in limits.items())
        rows.append(f"| {topic} | {known} | {only} |\n")
    return "| topic | operators | only |\n|---|---|---|\n" + "".join(rows)


def test_the_page_lists_the_table(update_goldens: bool) -> None:
    text = PAGE.read_text(encoding="utf-8")
    head, _, after = text.partition(MARK)
    if update_goldens:
        PAGE.write_text(f"{head}{MARK}{listing()}", encoding="utf-8")
        return
    assert after == listing(), "differs from the table; if that is meant: --update-goldens"


def test_rows_have_the_operators_own_names() -> None:
    assert not TABLE.keys() & OWN_NAME.keys()
    assert sum(map(len, TOPICS.values())) == len(TABLE), "an operator stands in two topics"
    assert row_of("_Plus") is TABLE["elemwise_add"]
    assert row_of("no_such_operator") is None
