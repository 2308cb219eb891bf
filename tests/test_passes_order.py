"""The order of the passes, and places of others in it."""

from __future__ import annotations

import logging

import pytest
from graphs import CONV1, RELU, assert_same_outputs, bn, build, conv, fc, quantized

from mxq import passes
from mxq.backends.mxnet import MXNET_191
from mxq.errors import ConfigError, GraphError
from mxq.graph.ir import Model
from mxq.passes import PASSES, Placed, order, register, steps
from mxq.passes.order import STAGES
from mxq.registry import Registry
from mxq.rewrite import Contract, Event, Pass, Reject, Trace

NET = (conv("c", "data"), fc("f", "c"), "return f")
EVERYTHING = (
    conv("c", "data"),
    bn("b", "c"),
    "r = Activation(b) " + RELU,
    't = _mul_scalar(r) scalar="2"',
    conv("g", "t", 'kernel="(3, 3)" pad="(1, 1)" num_filter="8" num_group="2"'),
    "q = Activation(g) " + RELU,
    conv("z", "q", CONV1),
    'p = Pooling(z) kernel="(3, 3)" pad="(1, 1)" pool_type="avg"',
    conv("d", "p", 'kernel="(1, 1)" stride="(2, 2)" num_filter="4"'),
    'a = Pooling(d) kernel="(1, 1)" pool_type="avg" global_pool="True"',
    conv("e", "a", CONV1),
    "i = identity(e)",
    fc("f", "i"),
    "return f",
)
"""Something for most passes."""
SPARED = [name for name in passes.PASSES.names() if name not in order.NEEDED]
ORDER = {
    "simplified": "simplify detection",
    "prepared": "shape_only fold_bn batch_norm_to_depthwise fold_affine fold_scale "
    "reduce_strength upsampling_as_deconvolution avgpool_after_conv1x1 subsample_early conv1x1_to_dense "
    "head_to_dense avgpool_to_depthwise",
    "fused": "split_groups fuse_int8 reduce_strength_after_fusion",
    "fused_float": "fuse_float reduce_strength_after_fusion",
}


def marking(name: str, **contracts: tuple[Contract, ...]) -> Pass:
    """A pass that changes nothing and says that it ran."""

    def run(model: Model) -> tuple[Model, Trace]:
        return model, Trace((Event(name, f"rule of {name}", model.graph.operators[0].name),))

    return Pass(name, run, **contracts)


@pytest.fixture(autouse=True)
def _own_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a test registers is gone after it."""
    few = Registry[Placed]("pass", "mxq.passes", Placed)
    for row in PASSES.values():
        few.register(row)
    monkeypatch.setattr(order, "PASSES", few)


def names(stage: passes.Stage) -> str:
    return " ".join(step.name for step in steps(stage, MXNET_191))


def test_the_order() -> None:
    assert {stage: names(stage) for stage in STAGES} == ORDER


def test_places() -> None:
    register(marking("first"), after="fold_bn")
    register(marking("second"), after="fold_bn")
    register(marking("follower"), after="first")
    register(marking("last"), "prepared", "fused")
    register(marking("everywhere"), after="reduce_strength_after_fusion")
    assert names("prepared") == ORDER["prepared"].replace("fold_bn", "fold_bn first follower second") + " last"
    assert names("fused") == ORDER["fused"] + " everywhere last"
    assert names("fused_float") == ORDER["fused_float"] + " everywhere"
    assert names("simplified") == ORDER["simplified"]


def test_an_excluded_pass_is_not_run_and_what_comes_after_it_is() -> None:
    register(marking("first"), after="fold_bn")
    register(marking("follower"), after="first")
    found = " ".join(step.name for step in steps("prepared", MXNET_191, ("first", "batch_norm_to_depthwise")))
    assert found == ORDER["prepared"].replace("fold_bn batch_norm_to_depthwise", "fold_bn follower")
    quiet = quantized(build(*NET), effort="fast", exclude_passes="first").report
    assert {"first", "follower"} & {step["pass"] for step in quiet.trace} == {"follower"}
    assert quiet.config["exclude_passes"] == ["first"]


@pytest.mark.parametrize("name", SPARED)
def test_every_pass_that_may_be_excluded_can_be_spared(name: str) -> None:
    model = build(*EVERYTHING)
    found = quantized(model, effort="fast", exclude_passes=name)
    assert name not in {step["pass"] for step in found.report.trace}
    assert_same_outputs(model, found.prepared.fused, rtol=1e-4, atol=1e-4)
    assert found.report.summary["int8"] > 2


@pytest.mark.parametrize("name", ["fold_nb", *sorted(order.NEEDED)])
def test_what_cannot_be_excluded(name: str) -> None:
    said = f"^exclude_passes is '{name}'; allowed: 'detection', 'shape_only', 'fold_bn', .*"
    with pytest.raises(ConfigError, match=said) as caught:
        quantized(build(*NET), effort="fast", exclude_passes=name)
    assert ("did you mean 'fold_bn'" in str(caught.value)) == (name == "fold_nb")


@pytest.mark.parametrize(
    ("name", "place", "message"),
    [
        (
            "mine",
            {"after": "fold_nb"},
            "pass 'mine': after is 'fold_nb'; allowed: 'simplify', .*; did you mean 'fold_bn'",
        ),
        ("mine", {"stages": ("last",)}, "stage of pass 'mine' is 'last'; allowed: 'simplified', 'prepared', 'fused', "),
        ("mine", {}, r"pass 'mine' has stages \(\) and after ''; allowed: one of them"),
        ("mine", {"stages": ("fused",), "after": "fold_bn"}, "pass 'mine' has stages .*; allowed: one of them"),
        ("fold_bn", {"after": "simplify"}, "a pass named 'fold_bn' exists already; known: simplify, detection, "),
    ],
)
def test_places_that_are_none(name: str, place: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        register(marking(name), *place.get("stages", ()), after=place.get("after", ""))
    assert {stage: names(stage) for stage in STAGES} == ORDER


def test_what_comes_after_nothing_that_runs_is_a_warning_once(caplog: pytest.LogCaptureFixture) -> None:
    order.PASSES.register(Placed(marking("hen"), after="egg"))
    order.PASSES.register(Placed(marking("egg"), after="hen"))
    with caplog.at_level(logging.WARNING, "mxq"):
        assert {stage: names(stage) for stage in STAGES} == ORDER
    assert [record.message for record in caplog.records] == [
        f"pass {name!r} is left out: it is to run after {after!r}, which is no pass that runs"
        for name, after in (("hen", "egg"), ("egg", "hen"))
    ]


def test_it_runs_and_is_in_the_report() -> None:
    register(marking("mine"), "prepared")
    trace = quantized(build(*NET), effort="fast").report.trace
    assert {"pass": "mine", "rule": "rule of mine", "fired": 1, "refused": {}} in trace


def test_its_contracts_hold() -> None:
    broken = Contract("a promise", lambda model: Reject("it is broken"))
    register(marking("mine", ensures=(broken,)), after="fold_bn")
    with pytest.raises(GraphError, match="pass 'mine' ensures 'a promise', but it is broken"):
        quantized(build(*NET), effort="fast")
