"""Methods of other packages: what docs/extending.md says, as it stands there, by calls and by entry points."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import pytest
from helpers import ROOT, fresh_python, install_fake

PAGE = ROOT / "docs" / "extending.md"
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
FILE = re.compile(r"# our_package/(\w+)\.py\n")

NET = """
import numpy as np
import mxq
import mxnet as mx
mx.random.seed(0)
net = mx.gluon.nn.HybridSequential()
net.add(mx.gluon.nn.Conv2D(8, 3, activation="relu"), mx.gluon.nn.HybridLambda(lambda F, x: F.clip(x, 0, 6)))
net.add(mx.gluon.nn.Conv2D(8, 3), mx.gluon.nn.GlobalAvgPool2D(), mx.gluon.nn.Flatten())
net.initialize(mx.init.Xavier())
loader = np.random.default_rng(0).normal(size=(40, 3, 9, 9)).astype(np.float32)
"""

FLOAT = """
net.hybridize()
net(mx.nd.array(loader))
net.export("net")
from mxq.runtime import load_model
float_model = load_model("net")
"""


def blocks(language: str) -> list[str]:
    return [text for found, text in BLOCK.findall(PAGE.read_text(encoding="utf-8")) if found == language]


def uses() -> list[str]:
    """What the page does with its package."""
    return [text for text in blocks("python") if not FILE.match(text)]


def entries() -> dict[str, dict[str, str]]:
    """The entry points that the page declares: group -> name -> place."""
    found: dict[str, dict[str, str]] = {}
    (text,) = blocks("toml")
    for line in text.splitlines():
        if group := re.fullmatch(r'\[project\.entry-points\."(.+)"\]', line):
            found[group[1]] = {}
        elif pair := re.fullmatch(r'(\w+) = "(.+)"', line):
            found[[*found][-1]][pair[1]] = pair[2]
    return found


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A folder with the page's package."""
    (tmp_path / "our_package").mkdir()
    for text in blocks("python"):
        if file := FILE.match(text):
            (tmp_path / "our_package" / f"{file[1]}.py").write_text(text, encoding="utf-8")
    return tmp_path


def python(code: str, folder: Path, **environ: str) -> str:
    done = fresh_python(code, PYTHONPATH=f"{ROOT}:{folder}", OMP_NUM_THREADS="1", **environ)
    assert done.returncode == 0, done.stderr
    return done.stdout


def mxq(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    code = f"import sys; sys.argv = ['mxq', *{list(words)!r}]; from mxq.cli import main; main()"
    return fresh_python(code, PYTHONPATH=f"{ROOT}:{folder}", COLUMNS="200", TERM="dumb", NO_COLOR="1")


def test_the_page_by_calls(package: Path) -> None:
    """All of its blocks but the last, which entry points make work."""
    *called, _ = uses()
    weights = "print({w.rounding for w in qnet.mxq_report.weights.values()})\n"
    ranges = "print({t['observer'] for t in qnet.mxq_report.thresholds['tensors'].values()})\n"
    passes = "print([row['pass'] for row in qnet.mxq_report.trace])\n"
    codes = "made = next(r for r in found.network.refs if r.name in prepared.plan.quantized)\n"
    codes += "print(len(np.unique(runner.compile(found.model, [made])({'data': loader})[-1])))\n"
    specs = "print(sorted({str(q.spec) for q in block.qat.quantizers}))\n"
    specs += "print([node.op for node in load_model(sim).graph.operators].count('clip') > 1)\n"
    learned = "print({block.qat.algorithm_name(q) for q in block.qat.quantizers}, block.qat.learned)\n"
    shown = (ranges, weights, passes, specs, learned, codes)
    said = python(
        f"import os; os.chdir({str(package)!r})\n{NET}{FLOAT}"
        + "".join(f"{u}\n{p}" for u, p in zip(called, shown, strict=True)),
        package,
    )
    ranges, weights, passes, specs, simulated, learned, codes = said.splitlines()
    assert int(codes) <= 16
    assert specs == "['int6, per channel on axis 0', 'uint5, zero point']"
    assert simulated == "True"
    assert learned == "{'leaky:leak=0.2'} frozenset()"
    assert ranges == "{'double_percentile:99.5,3.0'}"
    assert weights == "{'keep_sums'}"
    assert "'join_clips'" in passes


class TestInstalled:
    """The page's package as a distribution with entry points."""

    @pytest.fixture
    def installed(self, package: Path) -> Path:
        install_fake(package, "our-package", entries())
        return package

    def test_the_page(self, installed: Path, tmp_path: Path) -> None:
        *_, last = uses()
        python(f"import os; os.chdir({str(tmp_path)!r})\n{NET}{last}", installed)
        record = json.loads((tmp_path / "model-int8-mxq.json").read_text())
        assert {w["rounding"] for w in record["weights"].values()} == {"keep_sums"}
        assert "join_clips" in {row["pass"] for row in record["trace"]}
        candidates = [c["observer"] for t in record["thresholds"]["tensors"].values() for c in t["candidates"]]
        assert "double_percentile" in candidates
        assert "double_percentile:99.5" not in candidates
        said = mxq(installed, "explain", str(tmp_path / "model-int8"), "--node", self.relu(record))
        assert "is part of" in said.stderr
        assert "rounding: keep_sums" in said.stdout

    @staticmethod
    def relu(record: dict[str, object]) -> str:
        """The ReLU that the pass took in."""
        decisions: list[dict[str, list[str]]] = record["decisions"]  # type: ignore[assignment]
        return next(m for d in decisions for m in d["members"] if "relu" in m and m != d["node"])

    def test_help(self, installed: Path) -> None:
        said = mxq(installed, "quantize", "--help").stdout
        assert "nearest|reconstruction|keep_sums" in said
        assert re.search(r"auto,\W+double_percentile,\W+ema_minmax", said)
        training = mxq(installed, "train", "--help").stdout
        for text, last in ((said, "academic|our_npu"), (training, "academic|our_npu"), (training, "max|leaky")):
            assert last in re.sub(r"[\s│]", "", text)

    def test_training_and_its_two_forms(self, installed: Path) -> None:
        """Both forms of the page's algorithm give the same values and gradients, beyond the range a part of them."""
        code = """
from mxnet import autograd
def trained(form):
    config = mxq.qat.QatConfig(bits_w=6, bits_a=5, hardware="our_npu", algorithm="leaky:leak=0.25", form=form)
    block = mxq.qat.prepare(net, loader[:8] / 4, config)
    with autograd.record():
        found = block(mx.nd.array(loader))
    found.backward(mx.nd.array(np.random.default_rng(1).normal(size=found.shape)))
    grads = {n: p.grad().asnumpy() for n, p in block.collect_params().items() if p.grad_req != "null"}
    return found.asnumpy(), grads, block.qat
(one, by_kernels, qat), (other, by_operators, _) = trained("compiled"), trained("operators")
np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)
assert by_kernels and all(abs(g).max() > 0 for g in by_kernels.values())
for name, grad in by_kernels.items():
    np.testing.assert_allclose(grad, by_operators[name], rtol=1e-4, atol=1e-4)
from mxq.qat.algorithms import get
quantizer = next(q for q in qat.quantizers if not q.is_weight)
x = np.float32([[[-1e3, 0.0, 1e3]]])
print(get("leaky:leak=0.25").backward(quantizer.site, x, np.ones_like(x), qat.of(quantizer))[0].ravel())
print(mxq.sweep_bits(net, loader, data=loader, libraries=["our_npu"], widths=["W6A5"]).points[0].problem)
try:
    mxq.qat.QatConfig(hardware="our_gpu")
except mxq.ConfigError as error:
    print(error)
"""
        gradients, problem, refused = python(f"{NET}{code}", installed).splitlines()
        assert gradients == "[0.25 1.   0.25]"
        assert problem in ("", "None")
        assert refused.startswith("hardware is 'our_gpu'; allowed: 'onednn'")
        assert "'our_npu'" in refused

    def test_recipes_errors_and_the_search(self, installed: Path) -> None:
        code = """
import mxq, mxq.pipeline, sys
from mxq import observers, recipe
from mxq.config import QuantConfig, choices
loaded = [name for name in sys.modules if name.startswith("our_package")]
config = recipe.loads("format: mxq-recipe/1\\nrounding: keep_sums\\ncalib_mode: double_percentile:99,4\\n")
print(loaded, config.methods.round, observers.get(config.calib_mode).params)
print(recipe.dumps(config))
for setting in ({"rounding": "keep_sum"}, {"calib_mode": "double"}):
    try:
        mxq.pipeline.plan(None, QuantConfig(**setting)) if "calib_mode" in setting else QuantConfig(**setting)
    except mxq.ConfigError as error:
        print(error)
from mxq.tuning import tuner
print(*[s.calib_mode for s in tuner._calibrators(config)])
print(*tuner._methods(), sep="; ")
"""
        said = python(code, installed)
        assert said.startswith("[] KeepSums() DoublePercentileParams(percentile=99.0, factor=4.0)\n")
        assert "calib_mode: double_percentile:99,4\nrounding: keep_sums\n" in said
        assert "rounding is 'keep_sum'; allowed: 'nearest', 'reconstruction', 'keep_sums', None" in said
        assert "calib_mode is 'double'; allowed: 'auto', 'double_percentile', 'ema_minmax', " in said
        searched, methods = said.splitlines()[-2:]
        assert searched.split() == [
            *("double_percentile:99.0,4.0", "naive", "entropy", "percentile:99.9", "percentile", "percentile:99.999"),
            *("mse", "auto", "double_percentile", "double_percentile:99.5"),
        ]
        assert methods.split("; ")[4:] == [
            "default, rounding=keep_sums", "default, bias_correction=analytic", "fast, weight_calib_mode=mse"
        ]  # fmt: skip

    def test_the_rounding_keeps_sums(self, installed: Path) -> None:
        """Without data: each channel's sum of weights is within half a step, which the nearest codes miss by more."""
        code = (
            NET
            + """
from mxq.weights.methods import ROUNDINGS, Unrounded
from mxq.weights import grid
rng = np.random.default_rng(0)
weight = rng.normal(size=(1, 16, 300)).astype(np.float32)
step = grid.steps(weight, np.ones((1, 300)), grid.FULL)
fixed = grid.extremes(weight, grid.FULL)
channels = Unrounded(weight, step, grid.nearest(weight, step, fixed, grid.FULL), fixed, grid.FULL)
for codes in (channels.nearest, ROUNDINGS.get("keep_sums").rounder(None)(channels)):
    assert (codes[fixed != 0] == fixed[fixed != 0]).all() and abs(codes).max() <= 127
    inner = np.where(fixed == 0, weight / step[:, :, None] - codes, 0)
    print(abs(inner.sum(axis=2)).max(), abs(inner).max())
"""
        )
        code += """
qnet = mxq.quantize_net(net, thresholds=mxq.calibrate(net, loader), rounding="keep_sums")
print(*qnet.mxq_report.summary["warnings"], {w.rounding for w in qnet.mxq_report.weights.values()})
"""
        *sums, made = python(code, installed).splitlines()
        alone = "weights are rounded by 'keep_sums' alone, without a look at calibration data"
        assert made == f"{alone}: there is no calibration data {{'keep_sums'}}"
        nearest, kept = ([float(v) for v in line.split()] for line in sums)
        assert nearest[0] > 3
        assert kept[0] < 1
        assert kept[1] < 1.01

    def test_an_unused_method_changes_nothing(self, installed: Path, tmp_path: Path) -> None:
        """Nor is it imported."""
        code = NET + "import sys\nmxq.quantize_net(net, loader, calib_mode='entropy', effort='fast')\n"
        said = python(f"{code}print(sorted(n for n in sys.modules if n.startswith('our_package.')))", installed)
        assert said == "['our_package.passes']\n"


class TestBroken:
    """A distribution whose entry points cannot be used."""

    @pytest.fixture
    def installed(self, tmp_path: Path) -> Path:
        groups = ("mxq.observers", "mxq.rounding", "mxq.bias_correction", "mxq.passes")
        lost = """
from mxq.passes import Placed
from mxq.rewrite import Pass
PLACED = Placed(Pass("lost", lambda model: 1 / 0), after="nowhere")
"""
        entries = {group: {"crashed": "crash:X", "mse" if group == groups[0] else "odd": "odd:X"} for group in groups}
        entries["mxq.passes"]["lost"] = "lost:PLACED"
        install_fake(tmp_path, "broken", entries, crash="raise OSError('no disk')", odd="X = 3", lost=lost)
        return tmp_path

    def test_it_is_in_nobodys_way(self, installed: Path) -> None:
        done = fresh_python(
            NET + "qnet = mxq.quantize_net(net, loader, calib_mode='auto')\nprint(len(qnet.mxq_report.plan.quantized))",
            PYTHONPATH=f"{ROOT}:{installed}",
        )
        assert (done.returncode, done.stdout) == (0, "2\n"), done.stderr
        warnings = [line for line in done.stderr.splitlines() if "broken 1.0" in line or "'lost'" in line]
        begins = (
            "mxq: entry point 'mse = ",
            "mxq: observer 'crashed', entry point ",
            "mxq: pass 'crashed', entry point ",
            "mxq: pass 'lost' is left out: ",
            "mxq: pass 'odd', entry point ",
        )
        assert [line.startswith(begin) for line, begin in zip(sorted(warnings), begins, strict=True)] == [True] * 5

    def test_asked_for_by_name(self, installed: Path) -> None:
        where = "entry point 'crashed = crash:X' of 'mxq.rounding' in package broken 1.0"
        done = mxq(installed, "quantize", "net", "--out", "x", "--data", "y", "--rounding", "crashed")
        assert done.returncode == 2
        assert f"mxq: error: rounding 'crashed', {where}: cannot be loaded: OSError: no disk; allowed: " in done.stderr
        assert done.stderr.rstrip().endswith("of that name, or another: nearest, reconstruction, odd")
        done = mxq(installed, "quantize", "net", "--out", "x", "--data", "y", "--bias-correction", "odd")
        assert "bias correction 'odd'" in done.stderr
        assert (
            "it is of type int, without correction, in_tune, name, needs; allowed: mxq.weights.methods.Bias"
            in done.stderr
        )
