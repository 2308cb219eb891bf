"""The picture and the table of a training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from mxq.cli import app
from mxq.errors import ConfigError, FormatError
from mxq.qat.journal import JOURNAL
from mxq.qat.result import Trained
from mxq.reporting import training

pytest.importorskip("matplotlib")


def lines(*, ranges: bool = True, epochs: int = 2) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = [{"kind": "epoch", "epoch": 0, "eval": {"top1": 0.5}}]
    for epoch in range(1, epochs + 1):
        found += [
            {"kind": "step", "epoch": epoch, "step": 2 * epoch + i - 2, "rate": 0.1 / epoch, "loss": 1 / epoch + i / 9}
            for i in range(2)
        ]
        numbers = {"train": {"top1": 0.5 + epoch / 10}, "eval": {"top1": 0.5 + epoch / 20}}
        found.append({"kind": "epoch", "epoch": epoch, "loss": 1 / epoch, "rate": 0.1 / epoch, **numbers})
    for epoch in range(epochs + 1) if ranges else ():
        found.append(
            {"kind": "ranges", "epoch": epoch, "ranges": {"net_a_fq": [0.0, 2.0 + epoch], "net_b_fq": [-1, 1]}}
        )
        found.append({"kind": "noise", "epoch": epoch, "sqnr_db": {"net_a_fq": 20.0 - epoch, "net_b_fq": None}})
    return found


def drawn_lines(axes: Any) -> list[tuple[list[float], list[float]]]:
    return [([*map(float, x.get_xdata())], [*map(float, x.get_ydata())]) for x in axes.get_lines()]


def test_curves_are_those_of_the_journal() -> None:
    panels = training.figure(lines(), lines(ranges=False)).axes
    losses = [1.0, 1 + 1 / 9, 0.5, 0.5 + 1 / 9]
    assert ([1.0, 2.0, 3.0, 4.0], losses) in drawn_lines(panels[0])
    assert ([1.0, 2.0, 3.0, 4.0], training.smoothed(losses)) in drawn_lines(panels[0])
    assert ([0.0, 1.0, 2.0], [0.5, 0.55, 0.6]) in drawn_lines(panels[1])
    assert ([1.0, 2.0], [0.6, 0.7]) in drawn_lines(panels[1])
    assert [text.get_text() for text in panels[1].get_legend().get_texts()] == [
        "float, training data", "float, evaluation data", "quantized, training data", "quantized, evaluation data"
    ]  # fmt: skip


def test_ranges_are_in_shares_of_the_calibrated_ones() -> None:
    ranges, noise = training.figure(lines()).axes[2:4]
    assert ([0.0, 1.0, 2.0], [1.0, 1.5, 2.0]) in drawn_lines(ranges)
    assert {text.get_text() for text in ranges.texts} == {"a_fq", "b_fq"}
    assert ([20.0], [0.0]) in drawn_lines(noise)
    assert ([18.0], [0.0]) in drawn_lines(noise)


def test_the_average_moves_by_its_share() -> None:
    assert training.smoothed([1.0, 0.0, 1.0]) == pytest.approx([1.0, 0.7, 0.79], rel=1e-12)


def test_a_float_training_has_curves_alone() -> None:
    assert len(training.figure(lines(ranges=False)).axes) == 3  # the learning rate has its own


def test_nothing_to_draw() -> None:
    with pytest.raises(ConfigError, match="no finished epoch yet"):
        training.figure(lines(ranges=False, epochs=0))


def test_the_command_draws_a_workdir(tmp_path: Path) -> None:
    (tmp_path / JOURNAL).write_text("".join(json.dumps(line) + "\n" for line in lines()))
    out = tmp_path / "curves.png"
    done = CliRunner().invoke(app, ["plot", str(tmp_path), "--out", str(out), "--json"])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout) == {"file": str(out)}
    assert out.read_bytes()[:4] == b"\x89PNG"
    (tmp_path / JOURNAL).write_text("{")
    with pytest.raises(FormatError, match=r"training\.jsonl, line 1"):
        training.draw(tmp_path, out)


def test_the_table_has_float_fine_tuned_beside() -> None:
    history = ({"epoch": 0, "eval": {"top1": 0.5}}, {"epoch": 1, "eval": {"top1": 0.75}})
    tuned = Trained(None, 1, history)
    block = type("Block", (), {"qat": object()})()
    rows = str(Trained(block, 0, history, baseline=tuned)).splitlines()[2:]
    assert [" ".join(row.split()) for row in rows] == [
        "float 0 50.00 %", "post-training quantization 0 50.00 %", "float, fine-tuned 1 75.00 %",
        "trained with quantization 0 50.00 %",
    ]  # fmt: skip
    assert "before training" in str(tuned)
