"""What editors and type checkers know of the public functions: every option, and what is returned."""

from __future__ import annotations

import dataclasses
import inspect
import re
import types
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import mxq  # isort: skip  (before mxnet)

from helpers import fresh_python

from mxq.config import QuantConfig
from mxq.data.preprocess import Preprocess
from mxq.options import MxnetOptions, Options

ROOT = Path(__file__).parents[1]

WIDER: dict[str, tuple[Any, ...]] = {
    "exclude_layers": ("a", ["a", bool], bool),
    "include_layers": ("a", ["a", bool], bool),
    "exclude_layers_match": ("a", ["a"]),
    "exclude_operators": ("Concat", ["Concat"]),
    "exclude_passes": ("detection", ["detection"]),
    "overrides": ({"a": {"quantize": False}}, {"a": mxq.LayerConfig()}),
    "preprocess": ({"mean": [1.0]}, Preprocess()),
    "bits": (4, "4", (4, 8)),
    "input_shape": ([3, 8, 8], "3x8x8", {"data": (3, 8, 8)}),
}
"""Options that may be given in more forms than the field keeps, and some of those."""

TAKE_OPTIONS = ("quantize_net", "simulate", "quantize_model", "calibrate", "sensitivity", "tune", "inspect", "explain")

CALLS = """
import mxq
from mxq.options import Unpack
from typing import Any

net: Any = None
qnet = mxq.quantize_net(net, "images/", calib_mode="entropy", num_calib_examples="5%", exclude_layers=["*conv0*"])
mxq.quantize_net(net, exclude_layers=lambda node: node.op == "Pooling", input_shape=[3, 8, 8], equalize=False)
mxq.quantize_net(net, overrides={"*dense0*": {"calib_mode": "naive"}, "op:Pooling": mxq.LayerConfig(quantize=False)})
mxq.quantize_net(net, preprocess={"mean": [1.0]}, calib_mode=None, LayerOutputCollector=None)
mxq.quantize_net(net, exclude_operators="Concat")
mxq.quantize_net(network=net, config=mxq.QuantConfig(effort="fast"), include_layers=("a", "b"), input_shape="3x8x8")
mxq.quantize_net_v2(net, None, "smart", effort="best", thresholds=None)
mxq.sensitivity(net, "images/", effort="default").layers[0].share
mxq.tune(net, "images/", max_drop=0.01, target="avx2").block.mxq_report.plan
report: mxq.Report = qnet.mxq_report
ranges: mxq.Thresholds = mxq.calibrate(net, "images/", calib_mode="mse")
loaded: mxq.Report | None = mxq.load("model").mxq_report
qnet(1).asnumpy(), qnet.hybridize()
mxq.verify(net, qnet, "images/", layers=True).layers[0].sqnr.is_integer()
mxq.inspect(net, calib_mode="mse", exclude_layers="a").report.plan.quantized
mxq.explain(qnet, "conv0").decision.int8
mxq.compare(qnet, "b", "images/", float_net=net).differences.int8[0]
def handed_on(**options: Unpack[mxq.Options]) -> mxq.QuantizedBlock:
    return mxq.quantize_net(net, **options)
mxq.quantize_net(net, calib_mod="x")                        # wrong: Unexpected keyword argument "calib_mod"
mxq.quantize_net(net, calib_mode=5)                         # wrong: incompatible type "int"
mxq.quantize_net(net, equalize="no")                        # wrong: incompatible type "str"
mxq.quantize_model(net, {}, calib_mod="x")                  # wrong: Unexpected keyword argument "calib_mod"
mxq.calibrate(net, calib_mod="x")                           # wrong: Unexpected keyword argument "calib_mod"
mxq.calibrate(net, LayerOutputCollector=None)               # wrong: Unexpected keyword argument
mxq.sensitivity(net, None, efort="fast")                    # wrong: Unexpected keyword argument "efort"
mxq.tune(net, None, max_dorp=0.1)                           # wrong: Unexpected keyword argument "max_dorp"
mxq.quantize_net_v2(net, calib_mod="x")                     # wrong: Unexpected keyword argument "calib_mod"
mxq.inspect(net, calib_mod="x")                             # wrong: Unexpected keyword argument "calib_mod"
mxq.explain(net, "conv0", calib_mod="x")                    # wrong: Unexpected keyword argument "calib_mod"
mxq.verify(net, qnet, None, layer=True)                     # wrong: Unexpected keyword argument "layer"
mxq.verify(net, qnet, None).agreements                      # wrong: has no attribute "agreements"
handed_on(calib_mod="x")                                    # wrong: Unexpected keyword argument "calib_mod"
qnet.mxq_report.plans                                       # wrong: "Report" has no attribute "plans"
mxq.load("model").mxq_report.plan                           # wrong: has no attribute "plan"
"""


def parts(hint: Any) -> set[Any]:
    """The members of a union."""
    return set(typing.get_args(hint)) if isinstance(hint, types.UnionType) else {hint}


def test_options_are_the_fields() -> None:
    fields, options = typing.get_type_hints(QuantConfig), typing.get_type_hints(Options)
    assert options.keys() == {field.name for field in dataclasses.fields(QuantConfig)}
    assert Options.__total__ is False
    for name, hint in options.items():
        assert type(None) in parts(hint)
        if name not in WIDER:
            assert parts(hint) == parts(fields[name]) | {type(None)}, name


@pytest.mark.parametrize("name", WIDER)
def test_forms_that_a_field_takes(name: str) -> None:
    for form in WIDER[name]:
        assert getattr(QuantConfig(**{name: form}), name)


@pytest.mark.parametrize("name", TAKE_OPTIONS)
def test_at_run_time(name: str) -> None:
    function: Callable[..., Any] = getattr(mxq, name)
    hint = typing.get_type_hints(function)["options"]
    assert typing.get_args(hint) in [(Options,), (MxnetOptions,)]
    last = [*inspect.signature(function).parameters.values()][-1]
    assert (last.name, last.kind) == ("options", inspect.Parameter.VAR_KEYWORD)
    assert typing.get_type_hints(function)["return"] is not Any


def test_typing_extensions_is_not_needed() -> None:
    done = fresh_python(
        "import sys; sys.modules['typing_extensions'] = None\n"
        "import typing, mxq.options; print(typing.get_type_hints(mxq.options.Options)['effort'])"
    )
    assert done.stdout.strip() == "str | None", done.stderr


def test_py_typed_is_there() -> None:
    assert (ROOT / "mxq" / "py.typed").is_file()
    assert '"py.typed"' in (ROOT / "setup.py").read_text(encoding="utf-8")


@pytest.mark.slow
def test_mypy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It accepts the calls, and refuses those that are marked, each for the reason beside it."""
    api = pytest.importorskip("mypy.api")
    file = tmp_path / "calls.py"
    file.write_text(CALLS, encoding="utf-8")
    monkeypatch.setenv("MYPYPATH", str(ROOT))
    monkeypatch.chdir(ROOT)
    said, problems, _ = api.run(["--config-file", str(ROOT / "pyproject.toml"), "--no-pretty", str(file)])
    assert problems == ""
    found = {int(line): text for line, text in re.findall(r"^\S*calls\.py:(\d+): error: (.*)$", said, re.MULTILINE)}
    marked = {n: line.partition("# wrong: ")[2] for n, line in enumerate(CALLS.splitlines(), 1) if "# wrong: " in line}
    assert found.keys() == marked.keys(), said
    assert all(words in found[line] for line, words in marked.items()), said
