"""The plot of a tensor: bars that lose nothing, shares that numpy confirms, and lines that stay readable."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from mxq.calibration.statistics import Statistics
from mxq.errors import ConfigError, DataError, FormatError
from mxq.observers import HistogramState
from mxq.quant.plan import Plan, Report
from mxq.quant.thresholds import Range
from mxq.reporting import plots
from mxq.reporting.plots import BARS, Line, clipped, coarse, covered, figure, grouped, heading, write

pytest.importorskip("matplotlib")

SIGNED = np.random.default_rng(0).normal(1, 3, 50_000).astype(np.float32)
RELU = np.maximum(SIGNED, 0)


def state_of(x: Any) -> HistogramState:
    return HistogramState().update(np.ascontiguousarray(x, dtype=np.float32).reshape(-1))


def span_of(x: Any) -> float:
    return float(np.abs(x).max()) * (2 if x.min() < 0 else 1)


def rows(drawn: Any) -> list[str]:
    """The legend, a text for each row."""
    return [text.get_text().replace("\n", ": ") for text in drawn.axes[0].get_legend().get_texts()]


def verticals(drawn: Any) -> list[tuple[float, str]]:
    """Place and style of each vertical line, from left to right."""
    lines = [line for line in drawn.axes[0].lines if line.get_marker() in {"None", "", None}]
    return sorted((float(line.get_xdata()[0]), line.get_linestyle()) for line in lines)


# ------------------------------------------------------------------------------------------------ bars


@pytest.mark.parametrize("x", [SIGNED, RELU, -RELU - 1, RELU + 5, SIGNED * 1e-20])
@pytest.mark.parametrize("wider", [1, 1.5, 40])
def test_bars_hold_what_numpy_counts_between_their_edges(x: Any, wider: float) -> None:
    edges, counts = coarse(state_of(x), wider * span_of(x))
    assert counts.tolist() == np.histogram(x.astype(np.float64), edges)[0].tolist()
    assert counts.sum() == x.size
    assert np.diff(edges) == pytest.approx(edges[1] - edges[0], rel=1e-12)
    assert edges[0] == (-edges[-1] if x.min() < 0 else 0)


@pytest.mark.parametrize("x", [SIGNED, RELU])
@pytest.mark.parametrize("scale", [1.0, 1.3, 1.7, 1.99])
def test_bars_are_about_256(x: Any, scale: float) -> None:
    assert 0.7 * BARS <= len(coarse(state_of(scale * x), span_of(scale * x))[1]) <= BARS + 2


@settings(deadline=None)
@given(
    x=arrays(np.float32, st.integers(1, 40), elements=st.floats(width=32, allow_nan=False, allow_infinity=False)),
    wider=st.floats(1, 1e6),
)
def test_no_value_is_lost(x: Any, wider: float) -> None:
    state = state_of(x)
    edges, counts = coarse(state, (span_of(x.astype(np.float64)) or 1.0) * wider)
    assert counts.sum() == state.counts.sum() == x.size
    assert len(edges) == len(counts) + 1
    assert edges[0] <= x.min()
    assert x.max() <= edges[-1]


# ------------------------------------------------------------------------------------------------ shares


@pytest.mark.parametrize(
    ("interval", "signed", "low", "high"),
    [
        (Range(-2, 5), True, -5, 5),
        (Range(-5, -2), True, -5, 5),
        (Range(0, 5), True, 0, 5),  # uint8 by hand
        (Range(0, 5), False, 0, 5),
        (Range(-5, 5), False, 0, 5),  # int8 by choice: nothing is below 0
        (Range(2, 5), False, 0, 5),
    ],
)
def test_what_a_range_covers(interval: Range, signed: bool, low: float, high: float) -> None:
    assert covered(interval, signed) == (low, high)


@pytest.mark.parametrize("x", [SIGNED, RELU, -RELU, RELU + 5])
@pytest.mark.parametrize("bins", [0, 1, 7, 100, 1000, 2047, 4000])
def test_share_at_an_edge_is_exact(x: Any, bins: int) -> None:
    state = state_of(x)
    bound = bins * state.width
    assert clipped(state, Range(-bound, bound)) == pytest.approx(
        np.mean(np.abs(x) > max(bound, state.width)), abs=1e-12
    )


@settings(deadline=None)
@given(part=st.floats(0.001, 1.1), which=st.sampled_from([SIGNED, RELU, -RELU, RELU + 5]))
def test_share_inside_a_bin_is_off_by_less_than_the_bin(part: float, which: Any) -> None:
    state = state_of(which)
    bound = part * state.extent.absmax
    within = np.mean(np.abs(np.abs(which) - bound) <= state.width)
    assert clipped(state, Range(-bound, bound)) == pytest.approx(np.mean(np.abs(which) > bound), abs=within + 1e-12)


def test_share_of_the_observed_range_is_zero() -> None:
    for x in (SIGNED, RELU, -RELU, np.zeros(3), np.full(3, 6.0)):
        assert clipped(state_of(x), state_of(x).extent.usable) == 0


def test_uint8_clips_all_negative_values_and_no_zero() -> None:
    x = np.array([-1.0, -0.5, 0.0, 0.0, 0.0, 1.0, 2.0, 3.0])
    assert clipped(state_of(x), Range(0, 3)) == 2 / 8
    assert clipped(state_of(x), Range(0, 1.5)) == 4 / 8


# ------------------------------------------------------------------------------------------------ lines


def test_lines_that_coincide_share_a_row() -> None:
    lines = [
        Line("naive", Range(-1, 10.0)),
        Line("mse", Range(-9.96, 9.96)),
        Line("entropy", Range(-4, 4)),
        Line("percentile", Range(-9.97, 9.97), chosen=True),
    ]
    assert [[line.name for line in g] for g in grouped(lines, signed=True)] == [
        ["entropy"],
        ["percentile", "naive", "mse"],
    ]
    drawn = figure("t", state_of(np.clip(SIGNED, -1, 10)), lines)
    assert [x for x, _ in verticals(drawn)] == [-9.97, -4, 4, 9.97]
    assert rows(drawn)[1].startswith("percentile (chosen), naive,: mse: ±9.96 .. 10, clips ")
    assert rows(drawn)[1].endswith(" .. 0 %")


def test_a_row_spans_no_more_than_the_tolerance() -> None:
    """A chain of close thresholds does not become one line."""
    lines = [Line(str(i), Range(0, 10 * 1.004**i)) for i in range(4)]
    assert [[line.name for line in g] for g in grouped(lines, signed=False)] == [["0", "1"], ["2", "3"]]


def test_ranges_that_differ_below_zero_alone_are_two_rows() -> None:
    lines = [Line("int8", Range(-5, 5)), Line("uint8", Range(0, 5))]
    assert len(grouped(lines, signed=True)) == 2
    assert len(grouped(lines, signed=False)) == 1


def test_signed_lines_stand_on_both_sides_and_the_chosen_one_is_solid() -> None:
    drawn = figure("t", state_of(SIGNED), [Line("naive", Range(-9, 12)), Line("entropy", Range(-6, 6), chosen=True)])
    assert verticals(drawn) == [(-12, "--"), (-6, "-"), (6, "-"), (12, "--")]
    low, high = drawn.axes[0].get_xlim()
    assert low == -high
    share = 100 * np.mean(np.abs(SIGNED) > 6)
    assert rows(drawn)[0] == f"entropy (chosen): ±6, clips {share:.3g} %"


def test_axis_of_a_non_negative_tensor_starts_at_zero() -> None:
    drawn = figure("t", state_of(RELU), [Line("naive", Range(0, 20)), Line("int8", Range(-5, 5))])
    assert drawn.axes[0].get_xlim()[0] == 0
    assert verticals(drawn) == [(5, "--"), (20, "--")]
    assert rows(drawn)[1] == "naive: 20, clips 0 %"


def test_observed_range_title_and_scale() -> None:
    title = heading("conv0$x$_fwd", 1500, "uint8")
    drawn = figure(title, state_of([-2.0, 0.0, 3.5]), [])
    assert rows(drawn) == ["observed: \u22122 .. 3.5, 3 values"]
    assert drawn.get_suptitle() == title == "conv0$x$_fwd: 1,500 examples, uint8"
    assert heading("a", 1, "int8") == "a: 1 example, int8"
    assert drawn.axes[0].get_yscale() == "log"
    assert drawn.get_size_inches().tolist() == [10, 6]


def test_tiny_shares_are_not_called_zero() -> None:
    x = np.append(np.zeros(1_000_000), 2.0)
    assert rows(figure("t", state_of(x), [Line("a", Range(0, 1))]))[0] == "a: 1, clips < 0.001 %"


def test_colours_follow_the_order_given_and_dashes_tell_their_repeats_apart() -> None:
    lines = [Line(str(i), Range(0, 12.0 - i)) for i in range(len(plots.PALETTE) + 1)]
    drawn = figure("t", state_of(RELU), lines)
    handles = drawn.axes[0].get_legend().legend_handles[:-1][::-1]  # as given: the legend is by threshold
    assert [h.get_color() for h in handles] == [*plots.PALETTE, plots.PALETTE[0]]
    drawn.canvas.draw()
    assert handles[0]._dash_pattern != handles[-1]._dash_pattern  # noqa: SLF001 - matplotlib has no getter


@pytest.mark.parametrize(
    ("x", "interval", "low", "high"),
    [
        (SIGNED, Range(-4, 4), -4, 4),
        (np.clip(SIGNED, -1, 6), Range(-1, 6), None, None),  # the bar at 6 stands out beyond 6
        (np.clip(SIGNED, -1, 6), Range(-3, 3), None, 3),
        (RELU, Range(0, 4), None, 4),
    ],
)
def test_bars_are_pale_where_the_chosen_line_clips(x: Any, interval: Range, low: Any, high: Any) -> None:
    axes = figure("t", state_of(x), [Line("a", interval, chosen=True)]).axes[0]
    everything, kept = axes.patches
    edges = everything.get_data().edges
    box = kept.get_clip_box().transformed(axes.transData.inverted())
    assert (box.x0, box.x1) == pytest.approx(
        (edges[0] if low is None else low, edges[-1] if high is None else high), abs=1e-9
    )
    assert kept.get_facecolor() != everything.get_facecolor()
    assert len(figure("t", state_of(x), [Line("a", interval)]).axes[0].patches) == 1


# ------------------------------------------------------------------------------------------------ errors and files


def test_figure_refuses() -> None:
    with pytest.raises(DataError, match="histogram is empty"):
        figure("t", HistogramState(), [])
    with pytest.raises(ConfigError, match=r"2 lines are chosen \(a, b\); allowed: one or none"):
        figure("t", state_of(RELU), [Line("a", Range(0, 1), chosen=True), Line("b", Range(0, 2), chosen=True)])


def test_a_layer_that_was_fused_is_named_with_what_it_is_part_of() -> None:
    found = Statistics(dict.fromkeys(["data", "conv34", "conv3_relu6", "conv4"], state_of(RELU)))
    says = "no tensor 'conv3' among 4; close ones: conv3_relu6$"
    with pytest.raises(ConfigError, match=says):
        plots.compared(found, "conv3")
    with pytest.raises(ConfigError, match=says):
        plots.used_by(Report(Plan(())), found, "conv3")


def test_missing_matplotlib_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ConfigError, match=r"plots need matplotlib: pip install 'mxq\[plot\]'"):
        figure("t", state_of(RELU), [])


@pytest.mark.parametrize("x", [SIGNED, RELU, np.zeros(3), np.full(3, -1e-30), np.array([3e38, -1.0])])
@pytest.mark.parametrize(("name", "magic"), [("a.png", b"\x89PNG"), ("v1.0.SVG", b"<?xml"), ("c.pdf", b"%PDF")])
def test_files_of_each_kind(x: Any, name: str, magic: bytes, tmp_path: Path) -> None:
    seen = state_of(x).extent.usable
    half = Range(seen.min / 2, seen.max / 2)
    drawn = figure("t", state_of(x), [Line("naive", seen), Line("half", half, chosen=True)])
    assert write(drawn, tmp_path / name) == tmp_path / name
    assert (tmp_path / name).read_bytes().startswith(magic)
    assert [p.name for p in tmp_path.iterdir()] == [name]


def test_png_is_1000_by_600(tmp_path: Path) -> None:
    header = write(figure("t", state_of(RELU), []), tmp_path / "a.png").read_bytes()[16:24]
    assert np.frombuffer(header, ">u4").tolist() == [1000, 600]


@pytest.mark.parametrize("name", ["a.jpg", "a"])
def test_other_suffixes_are_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=rf"'{name}' has suffix .*; allowed: \.png, \.svg, \.pdf"):
        write(figure("t", state_of(RELU), []), tmp_path / name)


def test_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match=r"no-such.a\.png cannot be written: No such file"):
        write(figure("t", state_of(RELU), []), tmp_path / "no-such" / "a.png")


def test_a_failure_leaves_the_old_file_and_no_draft(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(b"old")
    drawn = figure("t", state_of(RELU), [])

    def full(draft: Path, content: bytes) -> None:
        draft.write_text("half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(FormatError, match=r"a\.png cannot be written: No space left"):
        write(drawn, path)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_pyplot_is_never_imported() -> None:
    code = (
        "import sys; import numpy as np; from mxq.observers import HistogramState\n"
        "from mxq.reporting.plots import figure\n"
        "assert 'matplotlib' not in sys.modules\n"
        "figure('t', HistogramState().update(np.ones(3, np.float32)), []).canvas.draw()\n"
        "assert 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[1])
