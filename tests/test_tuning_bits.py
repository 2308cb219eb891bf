"""Networks over hardware and widths, sensitivity at any width, and bits chosen layer by layer."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mxq  # isort: skip  (before mxnet)

from graphs import build
from test_backends_hardware import NET, command
from typer.testing import CliRunner

from mxq import recipe
from mxq.cli import app
from mxq.errors import ConfigError, MxqError, QuantizeError
from mxq.quant.bits import Bits
from mxq.quant.hardware import HARDWARE
from mxq.runtime import load_model, write_pair
from mxq.tuning import choices_of
from mxq.tuning.bit_pictures import mixed_figure, sweep_figure
from mxq.tuning.bit_sweep import JOURNAL as SWEEP
from mxq.tuning.mixed_bits import JOURNAL as CHOSEN
from mxq.tuning.mixed_bits import allocated, beside

DATA = np.random.default_rng(5).standard_normal((32, 8, 6, 6)).astype(np.float32)
LABELS = np.arange(32) % 10


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network "net" and its data, without labels and with. Do not write there."""
    where = tmp_path_factory.mktemp("bits")
    write_pair(build(*NET), where / "net")
    np.save(where / "x.npy", DATA)
    np.savez(where / "x.npz", data=DATA, label=LABELS)
    return where


def fast(**options: Any) -> dict[str, Any]:
    return {"effort": "fast", "num_calib_examples": 32, **options}


class TestSweep:
    def test_numbers_are_those_of_each_simulation(self, home: Path) -> None:
        found = mxq.sweep_bits(home / "net", DATA, libraries=("tensorrt", "acl"), widths=(8, "W4A8"), **fast())
        assert (found.measure, found.complete) == ("sqnr", True)
        assert [(p.hardware, str(p.bits)) for p in found.points] == [
            ("tensorrt", "W8A8"), ("tensorrt", "W4A8"), ("acl", "W8A8"), ("acl", "W4A8"),
        ]  # fmt: skip
        block = mxq.simulate(home / "net", DATA, hardware="acl", bits="W4A8", **fast())
        alone = mxq.verify(home / "net", block, DATA)
        point = found.at("acl", Bits(4, 8))
        assert point is not None
        assert point.numbers is not None
        assert point.numbers["sqnr"] == pytest.approx(alone.sqnr, abs=1e-6)  # dB

    def test_all_hardware_and_widths_by_default(self, home: Path) -> None:
        found = mxq.sweep_bits(home / "net", DATA, labels=LABELS, data=DATA, **fast())
        assert found.hardware == HARDWARE.names()
        assert [bits.weights for bits in found.widths] == [8, 7, 6, 5, 4, 3, 2]
        assert found.measure == "top1"
        assert not any(point.problem for point in found.points)
        table = str(found)
        assert all(name in table for name in HARDWARE.names())
        assert "W2A2" in table
        axes = sweep_figure(found).axes[0]
        assert [line.get_label() for line in axes.lines] == [*HARDWARE.names(), "float"]
        assert len({line.get_color() for line in axes.lines}) == len(HARDWARE.names()) + 1

    def test_what_is_in_the_journal_is_not_measured_again(self, home: Path, tmp_path: Path) -> None:
        asked: dict[str, Any] = {"libraries": ("tensorrt",), "workdir": tmp_path, **fast()}
        first = mxq.sweep_bits(home / "net", DATA, widths=(8, 4), **asked)
        journal = tmp_path / SWEEP
        lines = journal.read_text(encoding="utf-8").splitlines()
        forged = [lines[0], lines[1], *(line.replace('"sqnr", ', '"sqnr", 1') for line in lines[2:])]
        journal.write_text("\n".join(forged) + "\n", encoding="utf-8")
        again = mxq.sweep_bits(home / "net", DATA, widths=(8, 4, 2), **asked)
        assert len(again.points) == 3
        for point in first.points:
            known = again.at(point.hardware, point.bits)
            assert known is not None
            assert known.numbers is not None
            assert point.numbers is not None
            assert known.numbers["sqnr"] == float(f"1{point.numbers['sqnr']!r}")
        assert len(journal.read_text(encoding="utf-8").splitlines()) == len(lines) + 1

    def test_ctrl_c_keeps_what_there_is(self, home: Path, tmp_path: Path) -> None:
        calls = itertools.count()

        def metric(outputs: Any, labels: Any) -> Mapping[str, float]:
            if next(calls) == 2:
                raise KeyboardInterrupt
            return {"share": float(np.mean(outputs[0].argmax(axis=1) == labels))}

        options: dict[str, Any] = {"data": DATA, "labels": LABELS, "metric": metric, "workdir": tmp_path, **fast()}
        found = mxq.sweep_bits(home / "net", DATA, libraries=("tvm",), widths=(8, 6, 4), **options)
        assert (found.complete, [p.bits.weights for p in found.points]) == (False, [8])
        whole = mxq.sweep_bits(home / "net", DATA, libraries=("tvm",), widths=(8, 6, 4), **options)
        assert (whole.complete, len(whole.points)) == (True, 3)
        assert next(calls) == 5  # float, 8, the one that was ended, then 6 and 4

    @pytest.mark.parametrize(
        ("options", "says"),
        [
            ({"libraries": ("tensorrt", "cuda")}, "hardware is 'cuda'; allowed: 'onednn', 'tensorrt'"),
            ({"widths": (8, 1)}, "bits is 1; allowed: 2 to 8"),
            ({"widths": ()}, "bits to sweep over is empty; allowed: one or more, or None for all"),
            ({"widths": 8.5}, "bits is 8.5; allowed: 2 to 8"),
            ({"widths": "8,4"}, "bits is '8,4'; allowed: 2 to 8"),
            ({"libraries": 3}, "hardware is 3; allowed: 'onednn', 'tensorrt'"),
            ({"libraries": "cuda"}, "hardware is 'cuda'; allowed: 'onednn', 'tensorrt'"),
            (
                {"hardware": "acl"},
                "hardware is 'acl' among the settings of a sweep, which has many; allowed: as libraries= or widths=",
            ),
            ({"bits": 4}, "bits is 'W4A4' among the settings of a sweep"),
        ],
    )
    def test_errors(self, home: Path, options: dict[str, Any], says: str) -> None:
        with pytest.raises(ConfigError, match=says):
            mxq.sweep_bits(home / "net", DATA, **options)

    def test_both_doors(self, home: Path, tmp_path: Path) -> None:
        options = ("--hardware", "tensorrt", "--hardware", "fbgemm", "--bits", "8,W4A8,2", "--effort", "fast")
        args = ("sweep-bits", home / "net", "--data", home / "x.npz", *options)
        text = command(*args, "--json", "--plot", tmp_path / "p.png")
        found = json.loads(text[text.index("{") : text.rindex("}") + 1])
        mine = mxq.sweep_bits(
            home / "net", home / "x.npz", libraries=("tensorrt", "fbgemm"), widths=(8, "W4A8", 2), effort="fast"
        )
        assert found == mine.to_json()
        assert (tmp_path / "p.png").stat().st_size > 10_000
        assert "--hardware" not in str(mine)


class TestSensitivity:
    def test_at_four_bits_one_layer_alone(self, home: Path) -> None:
        """In codes of that hardware, while nothing else is quantized, poolings and sums neither."""
        found = mxq.sensitivity(
            home / "net", DATA, mode="one-int8", hardware="fbgemm", bits="W4A4", num_calib_examples=32
        )
        assert found.codes == "fbgemm W4A4"
        rows = {row.layer: row for row in found.layers}
        others = {"**": {"quantize": False}, "d": {"quantize": True}}
        block = mxq.simulate(home / "net", DATA, hardware="fbgemm", bits=4, overrides=others, **fast())
        (quantized,) = (d.node for d in block.mxq_report.plan.decisions if d.int8)
        assert quantized == "d"
        alone = rows["d"].only_int8
        assert alone is not None
        assert alone["sqnr"] == pytest.approx(mxq.verify(home / "net", block, DATA).sqnr, abs=1e-6)  # dB

    def test_fewer_bits_are_worse(self, home: Path) -> None:
        int8, two = (
            {row.layer: row.only_int8 for row in mxq.sensitivity(home / "net", DATA, mode="one-int8", **more).layers}
            for more in ({}, {"bits": 2})
        )
        for layer, numbers in int8.items():
            assert numbers is not None
            assert two[layer] is not None
            assert two[layer]["sqnr"] < numbers["sqnr"]

    def test_both_doors(self, home: Path) -> None:
        options = ("--bits", "W4A4", "--hardware", "tensorrt", "--mode", "one-int8")
        text = command("sensitivity", home / "net", "--data", home / "x.npy", *options)
        mine = mxq.sensitivity(home / "net", home / "x.npy", bits="W4A4", hardware="tensorrt", mode="one-int8")
        assert "tensorrt W4A4" in text
        assert "tensorrt W4A4" in str(mine)


class TestAllocation:
    @pytest.mark.parametrize("seed", range(5))
    def test_it_is_the_best_of_all(self, seed: int) -> None:
        rng, widths = np.random.default_rng(seed), [Bits(b, b) for b in (2, 4, 8)]
        noises = [{b: float(10 ** rng.uniform(-5, 0) * 4.0**-b.weights) for b in widths} for _ in range(5)]
        sizes, budget = [int(n) for n in rng.integers(1, 1000, 5)], 4.5
        found = allocated(noises, sizes, budget, list("abcde"))
        best = min(
            (sum(n[b] for n, b in zip(noises, each, strict=True)), each)
            for each in itertools.product(widths, repeat=5)
            if np.dot(sizes, [b.weights for b in each]) <= budget * sum(sizes)
        )
        assert sum(n[b] for n, b in zip(noises, found, strict=True)) == pytest.approx(best[0], rel=1e-3)
        assert np.dot(sizes, [b.weights for b in found]) <= budget * sum(sizes)

    def test_a_width_that_failed_is_not_taken(self) -> None:
        two, eight = Bits(2, 2), Bits(8, 8)
        assert allocated([{two: None, eight: 1.0}, {two: 0.1, eight: 0.0}], [1, 1], 5, ["a", "b"]) == [eight, two]
        assert allocated([{two: math.inf, eight: 1.0}], [1], 8, ["a"]) == [eight]

    def test_what_cannot_be(self) -> None:
        eight = Bits(8, 8)
        with pytest.raises(QuantizeError, match="the noise of 'b' could be measured at no width"):
            allocated([{eight: 1.0}, {eight: None}], [1, 1], 8, ["a", "b"])
        with pytest.raises(QuantizeError, match="no bits of the layers have a mean of 4 or less"):
            allocated([{eight: 1.0}], [1], 4, ["a"])

    def test_what_it_is_compared_with(self) -> None:
        widths = choices_of(4.5, (8, 4, 2))
        assert [str(b) for b in beside(widths, 4.5)] == ["W4A4", "W8A8"]
        assert [str(b) for b in beside(widths, 9)] == ["W8A8"]


class TestChoice:
    def test_layers_within_the_budget(self, home: Path) -> None:
        found = mxq.choose_bits(
            home / "net", DATA, mean_bits=5, choices=(2, 4, 8), hardware="tensorrt", num_calib_examples=32
        )
        assert [row.layer for row in found.layers] == ["r", "s", "u", "d", "f"]
        assert [row.weights for row in found.layers] == [576, 576, 576, 64, 80]
        assert 4 < found.mean <= 5
        assert len({row.bits for row in found.layers}) > 1
        assert found.mixed["sqnr"] > found.uniform[Bits(4, 4)]["sqnr"]  # dB
        text = str(found)
        assert "mixed" in text
        assert "bits, of 5 allowed" in text
        assert len(mixed_figure(found).axes[0].patches) == 5
        again = mxq.simulate(home / "net", DATA, hardware="tensorrt", overrides=found.overrides, **fast())
        mine, other = load_model(found.block), load_model(again)
        assert mine.graph == other.graph
        for name, value in mine.args.items():
            np.testing.assert_array_equal(value, other.args[name])

    def test_the_command_goes_on_and_writes(self, home: Path, tmp_path: Path) -> None:
        args: tuple[Any, ...] = (
            "choose-bits", home / "net", "--data", home / "x.npz", "--mean-bits", 5, "--choices", "2,4,8",
            "--hardware", "acl", "--workdir", tmp_path / "w", "--out", tmp_path / "q",
            "--recipe-out", tmp_path / "r.yaml",
        )  # fmt: skip
        text = command(*args)
        size = (tmp_path / "w" / CHOSEN).stat().st_size
        assert command(*args, "--plot", tmp_path / "p.png").splitlines()[:8] == text.splitlines()[:8]
        assert (tmp_path / "w" / CHOSEN).stat().st_size == size
        config = recipe.read(tmp_path / "r.yaml")
        assert (config.simulate, config.hardware) == (True, "acl")
        assert {pattern for pattern, layer in config.overrides.items() if layer.bits} == {"r", "s", "c", "d", "f"}
        command(
            "quantize", home / "net", "--data", home / "x.npz", "--recipe", tmp_path / "r.yaml", "--out", tmp_path / "a"
        )
        assert (tmp_path / "a-0000.params").read_bytes() == (tmp_path / "q-0000.params").read_bytes()

    @pytest.mark.parametrize("command", ["sweep-bits", "choose-bits", "sensitivity"])
    @pytest.mark.parametrize(
        ("file", "says"), [("no/x.png", "there is no folder"), ("x.gif", "allowed: .png, .svg, .pdf")]
    )
    def test_where_it_cannot_draw_is_known_before_it_measures(
        self, home: Path, tmp_path: Path, command: str, file: str, says: str
    ) -> None:
        args = [command, home / "net", "--data", home / "x.npz", "--workdir", tmp_path / "w", "--plot", tmp_path / file]
        found = CliRunner().invoke(app, [str(arg) for arg in args])
        assert found.exit_code == 2
        assert says in " ".join(found.output.split())
        assert not (tmp_path / "w").exists()

    @pytest.mark.parametrize("option", [("--out", "net"), ("--out", "no/x"), ("--recipe-out", "no/x.yaml")])
    def test_where_it_cannot_write_is_known_before_it_measures(self, home: Path, option: tuple[str, str]) -> None:
        before = (home / "net-0000.params").read_bytes()
        args = ["choose-bits", home / "net", "--data", home / "x.npz", option[0], home / option[1]]
        found = CliRunner().invoke(app, [str(arg) for arg in args])
        assert found.exit_code == 2
        assert f"{option[0]} is" in found.output
        assert (home / "net-0000.params").read_bytes() == before

    @pytest.mark.parametrize(
        ("options", "says"),
        [
            ({"mean_bits": 1}, "mean_bits is 1; allowed: a number from 2, the fewest bits to choose from"),
            ({"mean_bits": math.nan}, "mean_bits is nan; allowed"),
            ({"mean_bits": "4"}, "mean_bits is '4'; allowed"),
            ({"choices": (4,)}, "choices are W4A4; allowed: two widths or more"),
            ({"choices": (4, 12)}, "choices is 12; allowed: 2 to 8"),
            ({"choices": 4}, "choices are W4A4; allowed: two widths or more"),
            ({"choices": 4.5}, "choices is 4.5; allowed: 2 to 8"),
            ({"bits": 3}, "bits is 'W3A3' beside mean_bits; allowed: widths among choices"),
            ({"hardware": "tpu"}, "hardware is 'tpu'; allowed"),
        ],
    )
    def test_errors(self, home: Path, options: dict[str, Any], says: str) -> None:
        with pytest.raises(ConfigError, match=says):
            mxq.choose_bits(home / "net", DATA, **options)

    def test_a_search_for_kernels_takes_no_simulation(self, home: Path) -> None:
        with pytest.raises(MxqError, match="simulate is True, but the search is for the quickest network"):
            mxq.tune(home / "net", DATA, simulate=True)
