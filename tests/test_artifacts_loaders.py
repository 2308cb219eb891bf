"""Who can load what is written: all of MXNet's loaders, every shipped network, every pass that adds a parameter."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from graphs import CONV1, RELU, SHAPE, bn, build, conv, fc, feeds, rewritten, run
from helpers import ROOT

from mxq import pipeline
from mxq.config import QuantConfig
from mxq.graph.ir import Model
from mxq.passes.declare import DECLARE
from mxq.pipeline import Quantized
from mxq.runtime import MxnetRunner, load_model, write_pair

PROGRAM = Path(__file__).with_name("stock_loaders.py")
LOADERS = re.findall(r"\w+", PROGRAM.read_text(encoding="utf-8").partition("\nLOADERS = (")[2].partition(")")[0])
PREPROCESS = {"mean": [0.5, 0.48, 0.52], "std": [0.15, 0.14, 0.15], "scale": 1 / 255}
STATED = '__shape__="(8, 0, 1, 1)" __dtype__="0"'
"""What Gluon writes at a weight before its shape is known."""


@dataclass(frozen=True)
class Case:
    """A network, the ``rule`` that must fire so that the case is one, and what its parameter is called then."""

    lines: tuple[str, ...]
    rule: str = ""
    added: str = ""
    shape: tuple[int, ...] = SHAPE
    options: Mapping[str, Any] = field(default_factory=dict)

    def made(self) -> tuple[Quantized, dict[str, np.ndarray]]:
        given = feeds(data=self.shape)
        done = made(build(*self.lines, data=self.shape), given, **self.options)
        dtype = done.model.graph["data"].input_dtype
        if dtype == "float32":
            return done, given
        return done, {"data": (60 * np.abs(given["data"])).astype(dtype)}


def made(model: Model, given: Mapping[str, np.ndarray], **options: Any) -> Quantized:
    """All of the pipeline, that which looks at data too."""
    runner, data = MxnetRunner(), given["data"]
    prepared = pipeline.plan(model, QuantConfig(num_calib_examples="100%", **{"effort": "fast", **options}), runner)
    calibrated = pipeline.calibrate(prepared, data, runner, progress=False)
    return pipeline.quantize(prepared, calibrated, runner=runner, data=[{"data": data}])


def prelu(name: str, data: str) -> str:
    return f'{name} = LeakyReLU({data}, {name}_slope) act_type="prelu"'


FIRST = (conv("c", "data"), "r = Activation(c) " + RELU)
PIXELS = (2, 3, 6, 6)
CASES = {
    "prelu": Case((conv("c", "data"), prelu("p", "c"), conv("d", "p"), "return d"), "prelu_as_maximum", "p_slopes"),
    "upsampling": Case(
        (*FIRST, 'u = UpSampling(r) scale="2" sample_type="nearest" num_args="1"', conv("d", "u"), "return d"),
        "upsampling_as_deconvolution", "u_ones",
    ),
    "average": Case(
        (*FIRST, 'p = Pooling(r) kernel="(5, 5)" pool_type="avg"', fc("f", "p"), "return f"),
        "window_average", "p_window",
    ),
    "fixed_average": Case(
        (*FIRST, 'p = Pooling(r) kernel="(1, 1)" pool_type="avg" global_pool="True"', fc("f", "p"), "return f"),
        "fixed_average", "p_window", options={"input_shape": SHAPE[1:]},
    ),
    "avgpool_after_conv1x1": Case(
        (*FIRST, 'p = Pooling(r) kernel="(3, 3)" pad="(1, 1)" pool_type="avg"',
         conv("d", "p", 'kernel="(1, 1)" num_filter="4"'), "return d"),
        "avgpool_after_conv1x1", "d_average",
    ),
    "split_groups": Case(
        (conv("a", "data", 'kernel="(1, 1)" num_filter="64"'), "ar = Activation(a) " + RELU,
         conv("g", "ar", 'kernel="(3, 3)" pad="(1, 1)" num_filter="64" num_group="16"'), "gr = Activation(g) " + RELU,
         conv("z", "gr"), "return z"),
        "split_groups", "g_weight_part0",
    ),
    "fold_bn": Case((conv("c", "data", bias=False), bn("b", "c"), "return b"), "fold_bn", "c_bias"),
    "conv1x1_to_dense": Case(
        (f"d_weight = null {STATED}", *FIRST, 'p = Pooling(r) kernel="(1, 1)" pool_type="avg" global_pool="True"',
         conv("d", "p", CONV1), 's = Activation(d) act_type="sigmoid"', "m = broadcast_mul(r, s)", "return m"),
        "conv1x1_to_dense", "d_weight",
    ),
    "constant": Case(
        ('w = null __shape__="(1, 8, 1, 1)"', *FIRST, "e = exp(w)", "m = broadcast_sub(r, e)", conv("d", "m"),
         "return d"),
        added="e",
    ),
    "shift_summand": Case(
        (conv("a", "data", bias=False), conv("b", "data", bias=False), "s = elemwise_add(a, b)",
         "r = Activation(s) " + RELU, "return r"),
        "shift_summand", "r_bias",
    ),
    "fuse_relu_into_batchnorm": Case(
        (*FIRST, conv("b", "data"), 'k = Concat(r, b) dim="1" num_args="2"', bn("n", "k"), "t = Activation(n) " + RELU,
         conv("d", "t", CONV1, bias=False), "return d"),
        added="d_bias",
    ),
    "refined": Case((conv("c", "data", bias=False), "return c"), added="c_bias", options={"effort": "default"}),
    "codes": Case((*FIRST, "return r"), "take_codes", "data_min", options={"input_dtype": "int8"}),
    "pixels": Case(
        (*FIRST, "return r"), "normalize_pixels", "data_normalize_weight", PIXELS,
        {"input_dtype": "uint8", "preprocess": PREPROCESS},
    ),
    "pixels_in_float": Case(
        (*FIRST, "return r"), "normalize_in_float", "data_mean", PIXELS,
        {"input_dtype": "uint8", "preprocess": PREPROCESS, "calib_mode": "none"},
    ),
    "two_kinds_of_readers": Case(
        (fc("f", "data"), fc("g", "f"), "s = softmax(f)", "a = elemwise_add(g, s)", "return a")
    ),
}  # fmt: skip
SHIPPED = {"resnet_digits": (2, 3, 48, 48), "ssd_vgg16_digits": (1, 3, 300, 300)}


@cache
def quantized(name: str) -> tuple[Quantized, dict[str, np.ndarray]]:
    """The network of that name, and what to feed it."""
    if name in CASES:
        return CASES[name].made()
    given = feeds(data=SHIPPED[name])
    return made(load_model(ROOT / "models" / name / name), given), given


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, list[np.ndarray]]]:
    """The folder of all pairs, loaded in another process; and the outputs that mxq computes, by name."""
    folder, wanted = tmp_path_factory.mktemp("pairs"), {}
    for name in (*CASES, *SHIPPED):
        done, given = quantized(name)
        write_pair(done.model, folder / name)
        np.savez(folder / f"{name}-feeds.npz", **given)
        wanted[name] = [np.array(value) for value in run(done.model, given)]
    found = subprocess.run(
        [sys.executable, str(PROGRAM), *(str(folder / name) for name in wanted)],
        check=False, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert found.returncode == 0, found.stderr[-2000:]
    return folder, wanted


@pytest.mark.parametrize("loader", LOADERS)
@pytest.mark.parametrize("name", [*CASES, *SHIPPED])
def test_loads_and_computes_the_same(pairs: Any, name: str, loader: str) -> None:
    folder, wanted = pairs
    if loader == "feed_forward" and quantized(name)[0].report.input is not None:
        pytest.skip("FeedForward feeds float32 alone, the float network too")
    error = folder / f"{name}-{loader}.txt"
    assert not error.exists(), error.read_text(encoding="utf-8")[-1000:]
    with np.load(folder / f"{name}-{loader}.npz") as file:
        found = list(file.values())
    for value, expected in zip(found, wanted[name], strict=True):
        np.testing.assert_array_equal(value, expected)


@pytest.mark.parametrize("name", CASES)
def test_the_pass_added_what_the_case_is_about(name: str) -> None:
    case, (done, _) = CASES[name], quantized(name)
    assert not case.rule or done.trace.fired(case.rule)
    assert not case.added or case.added in done.model.args


class TestDeclare:
    model = build(f"c_weight = null {STATED}", conv("c", "data", CONV1), bn("b", "c"), "return b")

    def test_every_parameter_says_its_shape(self) -> None:
        made = rewritten(DECLARE, self.model)
        for name, value in {**self.model.args, **self.model.auxs}.items():
            assert made.graph[name].attrs["__shape__"] == str(value.shape)
        assert "__shape__" not in made.graph["data"].attrs
        assert rewritten(DECLARE, made) is made

    def test_types_other_than_float32(self) -> None:
        codes = {"c_weight": np.ones((8, 8, 1, 1), np.int8)}
        made = rewritten(DECLARE, Model(self.model.graph, {**self.model.args, **codes}, self.model.auxs))
        assert made.graph["c_weight"].attrs["__dtype__"] == "5"
        assert "__dtype__" not in made.graph["c_bias"].attrs
