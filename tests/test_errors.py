"""mxq.errors: names that were probably meant."""

from __future__ import annotations

from mxq.errors import close_to, nearest


def test_names_that_begin_so_come_first() -> None:
    """By likeness alone "conv" would lead to "conv3", whichever stands first."""
    known = ("dconv", "stage_conv", "conv3_relu_with_a_long_tail", "conv3", "pool")
    assert close_to("conv3", known)[0] == "conv3"
    assert close_to("conv3_", known)[0] == "conv3_relu_with_a_long_tail"
    assert close_to("pol", known) == ["pool"]
    assert close_to("", known) == []
    assert close_to("xyz", known) == []


def test_one_is_named_where_it_is_near() -> None:
    assert nearest("entropi", ("entropy", "naive")) == "; did you mean 'entropy'?"
    assert nearest("perc", ("entropy", "percentile")) == "; did you mean 'percentile'?"
    assert nearest("zzz", ("entropy", "naive")) == ""
