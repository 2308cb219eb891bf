"""The public functions on small networks: what they return, what they leave alone, what they refuse."""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mxq  # isort: skip  (before mxnet)

import mxnet as mx
from helpers import fresh_python

from mxq.artifacts import pair as written_pair
from mxq.host import machine
from mxq.runtime import QuantizedBlock, load_model, to_arrays, to_symbol

SIDE, CLASSES = 8, 5
X = np.random.default_rng(0).standard_normal((40, 3, SIDE, SIDE)).astype(np.float32)


class Small(mx.gluon.HybridBlock):
    """Convolution, BatchNorm and ReLU twice, the second added to the first, then a fully connected layer."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        nn = mx.gluon.nn
        with self.name_scope():
            self.conv0 = nn.Conv2D(8, 3, padding=1, use_bias=False, in_channels=3)
            self.bn0 = nn.BatchNorm(in_channels=8)
            self.conv1 = nn.Conv2D(8, 3, padding=1, in_channels=8)
            self.bn1 = nn.BatchNorm(in_channels=8)
            self.out = nn.Dense(CLASSES, in_units=8 * SIDE * SIDE)

    def hybrid_forward(self, F: Any, x: Any) -> Any:  # noqa: N803  (MXNet's name)
        first = F.Activation(self.bn0(self.conv0(x)), act_type="relu")
        second = F.Activation(self.bn1(self.conv1(first)) + first, act_type="relu")
        return self.out(second)


def small() -> Small:
    """A `Small` whose parameters are the same in every call."""
    mx.random.seed(7)
    net = Small(prefix="small_")
    net.initialize(mx.init.Xavier())
    for param in net.collect_params().values():
        if param.name.endswith(("running_var", "gamma")):
            param.set_data(mx.nd.random.uniform(0.5, 1.5, param.shape))
        elif param.name.endswith(("running_mean", "beta", "bias")):
            param.set_data(mx.nd.random.normal(0, 0.2, param.shape))
    return net


def forward(net: Any, *data: np.ndarray) -> np.ndarray:
    return net(*map(mx.nd.array, data or (X,))).asnumpy()


def sqnr(wanted: np.ndarray, found: np.ndarray) -> float:
    """Signal to quantization noise in dB."""
    return float(10 * np.log10((wanted**2).sum() / ((wanted - found) ** 2).sum()))


def imported(prefix: Path, epoch: int = 0) -> Any:
    """A pair as stock MXNet loads it; which warns, of float pairs too, that the type of the input is open."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Cannot decide type", UserWarning)
        return mx.gluon.SymbolBlock.imports(f"{prefix}-symbol.json", ["data"], f"{prefix}-{epoch:04d}.params")


def quantize(net: Any = None, data: Any = X, **options: Any) -> Any:
    return mxq.quantize_net(small() if net is None else net, data, **{"num_calib_examples": "100%", **options})


def killed_while_it_saves(block: Any, prefix: Path, renames: int) -> None:
    """A child saves ``block`` and is killed once so many files have taken their places."""
    model, report = load_model(block), block.mxq_report
    pid = os.fork()
    if pid == 0:
        count, rename = 0, Path.replace

        def replace(self: Path, target: Path) -> Path:
            nonlocal count
            if count == renames:
                os.kill(os.getpid(), signal.SIGKILL)
            count += 1
            return rename(self, target)

        try:
            Path.replace = replace  # type: ignore[method-assign]
            written_pair.write(model, report, prefix)
        finally:
            os._exit(1)
    assert os.waitpid(pid, 0)[1] == signal.SIGKILL


@pytest.fixture(scope="module")
def prefix(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The exported pair of `small`. Do not write there."""
    target = tmp_path_factory.mktemp("small") / "small"
    net = small()
    net.hybridize()
    forward(net)
    net.export(str(target))
    return target


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The written int8 pair of `small`, with its record. Do not write there."""
    target = tmp_path_factory.mktemp("int8") / "small"
    mxq.save(quantize(), target)
    return target


@pytest.fixture
def pair(prefix: Path, tmp_path: Path) -> Path:
    """A copy of the float pair that a test may damage."""
    for end in ("-symbol.json", "-0000.params"):
        shutil.copy(f"{prefix}{end}", tmp_path / f"net{end}")
    return tmp_path / "net"


class TestQuantizeNet:
    def test_block_is_int8_and_close_to_float(self) -> None:
        block = quantize()
        assert isinstance(block, mx.gluon.SymbolBlock)
        ops = {n.op for n in load_model(block).graph.operators}
        assert "_sg_mkldnn_conv" in ops
        assert "_contrib_quantize_v2" in ops
        assert sqnr(forward(small()), forward(block)) > 30  # 8 bits, few layers; a wrong scale costs 20 dB

    @pytest.mark.parametrize("kind", ["block", "hybridized", "symbol block", "tuple", "prefix", "text prefix"])
    def test_every_kind_of_network_gives_the_same_result(self, kind: str, prefix: Path) -> None:
        net: Any = small()
        if kind == "hybridized":
            net.hybridize(static_alloc=True)
            forward(net)
        elif kind == "symbol block":
            net = imported(prefix)
        elif kind == "tuple":
            net = mx.model.load_checkpoint(str(prefix), 0)
        elif "prefix" in kind:
            net = prefix if kind == "prefix" else str(prefix)
        np.testing.assert_array_equal(forward(quantize(net)), forward(quantize()))

    @pytest.mark.parametrize("hybridized", [False, True])
    def test_the_network_is_not_changed(self, *, hybridized: bool) -> None:
        net = small()
        if hybridized:
            net.hybridize()
        before = forward(net)
        objects = dict(net.collect_params().items())
        arrays = {name: p.data() for name, p in objects.items()}
        values = {name: a.asnumpy() for name, a in arrays.items()}
        active = net._active  # noqa: SLF001  (MXNet offers no other way to ask)
        quantize(net)
        assert net._active is active  # noqa: SLF001
        after = dict(net.collect_params().items())
        assert list(after) == list(objects)
        for name, param in after.items():
            assert param is objects[name]
            assert param.data() is arrays[name]
            assert param.grad_req == ("null" if "running" in name else "write")
            np.testing.assert_array_equal(param.data().asnumpy(), values[name])
        np.testing.assert_array_equal(forward(net), before)

    def test_a_tuple_is_not_changed(self, prefix: Path) -> None:
        sym, args, auxs = mx.model.load_checkpoint(str(prefix), 0)
        text, names = sym.tojson(), (set(args), set(auxs))
        values = {k: v.asnumpy() for k, v in {**args, **auxs}.items()}
        quantize((sym, args, auxs))
        assert sym.tojson() == text
        assert (set(args), set(auxs)) == names
        for name, value in {**args, **auxs}.items():
            np.testing.assert_array_equal(value.asnumpy(), values[name])

    @pytest.mark.parametrize("flags", [{}, {"static_alloc": True, "static_shape": True}])
    def test_hybridize(self, flags: dict[str, bool]) -> None:
        block = quantize()
        eager = forward(block)
        block.hybridize(**flags)
        np.testing.assert_array_equal(forward(block), eager)
        np.testing.assert_array_equal(forward(block), eager)
        np.testing.assert_array_equal(forward(block, X[:3]), eager[:3])  # another shape

    @pytest.mark.parametrize("runs", [0, 1])
    @pytest.mark.parametrize("hybridized", [False, True])
    def test_export(self, tmp_path: Path, runs: int, *, hybridized: bool) -> None:
        block = quantize()
        if hybridized:
            block.hybridize()
        for _ in range(runs):
            forward(block)
        block.export(str(tmp_path / "net"), epoch=3)
        written = mx.nd.load(str(tmp_path / "net-0003.params"))
        model = load_model(block)
        assert set(written) == {f"arg:{k}" for k in model.args} | {f"aux:{k}" for k in model.auxs}
        for name, value in model.args.items():
            assert written[f"arg:{name}"].dtype == value.dtype
            np.testing.assert_array_equal(written[f"arg:{name}"].asnumpy(), value)
        np.testing.assert_array_equal(forward(imported(tmp_path / "net", 3)), forward(block))

    def test_report(self) -> None:
        report = quantize().mxq_report
        assert report.summary["int8"] == 3  # two convolutions, one fully connected layer
        assert report.summary["calibration_examples"] == len(X)
        assert report.config["calib_mode"] == "naive"
        assert set(report.versions) >= {"mxq", "mxnet", "numpy", "python"}
        assert report.source["inputs"] == ["data"]

    def test_options_change_single_fields_of_config(self) -> None:
        config = mxq.QuantConfig(calib_mode="entropy", exclude_operators=("FullyConnected",), num_calib_examples=8)
        report = quantize(config=config, num_calib_examples=16).mxq_report
        assert report.config["calib_mode"] == "entropy"
        assert report.summary["int8"] == 2
        assert report.summary["calibration_examples"] == 16
        assert config.num_calib_examples == 8

    def test_an_option_of_none_leaves_the_default(self) -> None:
        report = quantize(quantize_mode=None, exclude_layers=None).mxq_report
        assert report.config["quantize_mode"] == "smart"

    def test_excluded_layers_stay_float(self) -> None:
        report = quantize(exclude_layers=["*conv1*"]).mxq_report
        excluded = next(d for d in report.plan.decisions if any("conv1" in m for m in d.members))
        assert not excluded.int8
        assert "exclude_layers" in excluded.reason

    def test_calib_mode_none_needs_no_data(self) -> None:
        block = quantize(data=None, calib_mode="none")
        model = load_model(block)
        assert not [n.name for n in model.graph.operators if "min_calib_range" in n.attrs]
        assert sqnr(forward(small()), forward(block)) > 30

    @pytest.mark.parametrize("dtype", ["int8", "auto"])
    def test_quantized_dtype(self, dtype: str) -> None:
        block = mxq.quantize_net(small(), np.abs(X), quantized_dtype=dtype)
        quantizer = next(n for n in load_model(block).graph.operators if n.op == "_contrib_quantize_v2")
        wanted = "int8" if dtype == "int8" else "uint8"  # the data has no negative value
        assert quantizer.attrs["out_type"] == wanted
        assert block.mxq_report.tensors[quantizer.name].dtype == wanted

    def test_cpu_context_is_accepted(self) -> None:
        np.testing.assert_array_equal(forward(quantize(ctx=mx.cpu())), forward(quantize()))


@pytest.mark.kernels
@pytest.mark.parametrize("scale", [1e-7, 1e-13, 1e-20])
def test_values_however_small_are_no_zeros(scale: float) -> None:
    net = mx.gluon.nn.HybridSequential()
    net.add(mx.gluon.nn.Conv2D(8, 3, in_channels=3), mx.gluon.nn.Conv2D(4, 3, in_channels=8))
    net.initialize(mx.init.Xavier())
    data = X * np.float32(scale)
    wanted, found = (run(mx.nd.array(data)).asnumpy().astype(np.float64) for run in (net, quantize(net, data)))
    assert sqnr(wanted, found) > 25


class TestMultipleInputs:
    class Two(mx.gluon.HybridBlock):
        def __init__(self) -> None:
            super().__init__(prefix="two_")
            with self.name_scope():
                self.left = mx.gluon.nn.Conv2D(4, 3, padding=1, in_channels=3)
                self.right = mx.gluon.nn.Conv2D(4, 3, padding=1, in_channels=3)

        def hybrid_forward(self, F: Any, a: Any, b: Any) -> Any:  # noqa: N803
            return F.relu(self.left(a)) - self.right(b)

    def net(self) -> Any:
        mx.random.seed(3)
        net = self.Two()
        net.initialize(mx.init.Xavier())
        return net

    def data(self) -> tuple[np.ndarray, np.ndarray]:
        return X, 5 * X[::-1].copy()  # of different range: exchanged inputs show

    @pytest.mark.parametrize("form", ["by name", "by order", "batches by name", "batches by order", "with labels"])
    def test_by_name_and_by_order(self, form: str) -> None:
        a, b = self.data()
        data = {
            "by name": {"data1": b, "data0": a},
            "by order": (a, b),
            "batches by name": [{"data1": b[:20], "data0": a[:20]}, {"data0": a[20:], "data1": b[20:]}],
            "batches by order": [(a[:20], b[:20]), (a[20:], b[20:])],
            "with labels": (a, b, np.zeros(len(a))),
        }[form]
        block = quantize(self.net(), data, effort="fast")  # keeps the ranges that were observed
        table = block.mxq_report.thresholds["tensors"]
        for name, values in (("data0", a), ("data1", b)):
            assert table[name]["range"] == {"min": float(values.min()), "max": float(values.max())}
        assert sqnr(forward(self.net(), a, b), forward(block, a, b)) > 30

    def test_too_few_arrays(self) -> None:
        with pytest.raises(mxq.DataError, match="it holds 1 arrays; the inputs are 2: 'data0', 'data1'"):
            quantize(self.net(), X)


class TestQuantizeModel:
    def test_result_is_a_tuple_of_three_with_a_report(self, prefix: Path) -> None:
        sym, args, auxs = mx.model.load_checkpoint(str(prefix), 0)
        result = mxq.quantize_model(sym, args, auxs, X, num_calib_examples="100%")
        assert isinstance(result, tuple)
        qsym, qargs, qauxs = result
        assert isinstance(qsym, mx.sym.Symbol)
        assert set(qargs) == set(qsym.list_arguments()) - {"data"}
        assert set(qauxs) == set(qsym.list_auxiliary_states())
        assert result.report.summary["int8"] == 3
        executor = qsym.bind(mx.cpu(), {**qargs, "data": mx.nd.array(X)}, aux_states=qauxs, grad_req="null")
        np.testing.assert_array_equal(executor.forward()[0].asnumpy(), forward(quantize()))

    def test_mxnets_names_for_exclusions(self, prefix: Path) -> None:
        net = mx.model.load_checkpoint(str(prefix), 0)
        report = mxq.quantize_model(*net, X, excluded_sym_names=["small_conv1_fwd"]).report
        assert report.summary["int8"] == 2
        report = mxq.quantize_model(
            *net, X, excluded_op_names=["Convolution"], exclude_layers=(), label_names=("softmax_label",)
        ).report
        assert [d.op for d in report.plan.decisions if d.int8] == ["FullyConnected"]

    def test_data_names_are_checked(self, prefix: Path) -> None:
        net = mx.model.load_checkpoint(str(prefix), 0)
        assert mxq.quantize_model(*net, X, data_names=("data",)).report.summary["int8"] == 3
        with pytest.raises(mxq.ConfigError, match="data_names: 'image' is no input; the inputs are data"):
            mxq.quantize_model(*net, X, data_names=("image",))

    @pytest.mark.parametrize("name", ["data_names", "excluded_sym_names", "excluded_op_names"])
    def test_names_that_are_none(self, name: str, prefix: Path) -> None:
        net = mx.model.load_checkpoint(str(prefix), 0)
        with pytest.raises(mxq.ConfigError, match=f"{name} is 3; allowed: names, one or a list"):
            mxq.quantize_model(*net, X, **{name: 3})

    def test_can_be_saved(self, prefix: Path, tmp_path: Path) -> None:
        result = mxq.quantize_model(*mx.model.load_checkpoint(str(prefix), 0), X, num_calib_examples="100%")
        mxq.save(result, tmp_path / "q")
        np.testing.assert_array_equal(forward(mxq.load(tmp_path / "q")), forward(quantize()))


class TestLabels:
    """Networks that end in SoftmaxOutput read a label, in training only; MXNet infers its shape."""

    def net(self) -> tuple[Any, dict[str, Any], dict[str, Any]]:
        sym = mx.sym.Convolution(mx.sym.var("data"), num_filter=4, kernel=(3, 3), name="conv")
        sym = mx.sym.SoftmaxOutput(mx.sym.FullyConnected(sym, num_hidden=3, name="fc"), name="softmax")
        shapes, _, _ = sym.infer_shape(data=X.shape)
        mx.random.seed(2)
        named = zip(sym.list_arguments(), shapes, strict=True)
        return sym, {n: mx.nd.random.normal(0, 0.3, s) for n, s in named if n not in ("data", "softmax_label")}, {}

    def test_given(self) -> None:
        result = mxq.quantize_model(*self.net(), (X, np.zeros(len(X), np.float32)))
        assert result.report.summary["int8"] == 3  # with the Flatten between them

    @pytest.mark.parametrize("form", ["array", "iterator", "iterator with labels"])
    def test_not_given(self, form: str) -> None:
        data: Any = X if form == "array" else mx.io.NDArrayIter(X, np.zeros(len(X)) if "labels" in form else None, 8)
        result = mxq.quantize_model(*self.net(), data, label_names=("softmax_label",))
        assert result.report.summary["int8"] == 3  # with the Flatten between them


class TestCalibrate:
    @pytest.mark.parametrize("mode", ["naive", "entropy"])
    def test_thresholds_give_the_identical_network(self, mode: str) -> None:
        """With VNNI: without, data tells which sums saturate, too."""
        found = mxq.calibrate(small(), X, calib_mode=mode, num_calib_examples="100%")
        kept = mxq.Thresholds.from_json(json.dumps(found.to_json()))
        direct = quantize(calib_mode=mode, effort="fast", target="avx512_vnni")
        later = quantize(data=None, thresholds=kept, calib_mode=mode, effort="fast", target="avx512_vnni")
        one, other = load_model(direct), load_model(later)
        assert one.graph == other.graph
        assert {k: v.tobytes() for k, v in one.args.items()} == {k: v.tobytes() for k, v in other.args.items()}
        assert direct.mxq_report.thresholds == later.mxq_report.thresholds

    def test_naive_range_of_the_input_is_its_minimum_and_maximum(self) -> None:
        found = mxq.calibrate(small(), X, num_calib_examples="100%")["data"]
        assert (found.range.min, found.range.max) == (float(X.min()), float(X.max()))
        assert (found.observer, found.examples, found.batches) == ("naive", len(X), 2)

    def test_thresholds_of_another_network(self) -> None:
        with pytest.raises(mxq.CalibrationError, match=r"thresholds lack tensor 'data' \(\d missing in all\)"):
            quantize(data=None, thresholds=mxq.Thresholds())

    @pytest.mark.parametrize(
        "form",
        ["NDArray", "array and label", "dictionary", "list", "list of pairs", "generator", "NDArrayIter", "DataLoader"],
    )
    def test_every_form_of_data_gives_the_same_thresholds(self, form: str) -> None:
        labels = np.zeros(len(X), np.float32)
        batches = [X[i : i + 16] for i in range(0, len(X), 16)]
        data: dict[str, Callable[[], Any]] = {
            "NDArray": lambda: mx.nd.array(X),
            "array and label": lambda: (X, labels),
            "dictionary": lambda: {"data": X, "softmax_label": labels},
            "list": lambda: batches,
            "list of pairs": lambda: [(b, labels[: len(b)]) for b in batches],
            "generator": lambda: (b for b in batches),
            "NDArrayIter": lambda: mx.io.NDArrayIter(X, labels, batch_size=16),  # pads its last batch
            "DataLoader": lambda: mx.gluon.data.DataLoader(mx.gluon.data.ArrayDataset(X, labels), 16),
        }
        options: dict[str, Any] = {"calib_mode": "entropy", "batch_size": 16, "num_calib_examples": len(X)}
        found = mxq.calibrate(small(), data[form](), **options)
        assert found == mxq.calibrate(small(), X, **options)
        assert {t.examples for t in found.values()} == {len(X)}


class TestFiles:
    def test_save_writes_three_files(self, tmp_path: Path) -> None:
        written = mxq.save(quantize(), tmp_path / "net.v1")
        assert [p.name for p in written] == ["net.v1-symbol.json", "net.v1-0000.params", "net.v1-mxq.json"]
        assert sorted(tmp_path.iterdir()) == sorted(written)
        assert json.loads(written[2].read_text())["summary"]["int8"] == 3

    def test_save_takes_text(self, tmp_path: Path) -> None:
        assert all(p.is_file() for p in mxq.save(quantize(), str(tmp_path / "net")))

    def test_load_gives_the_same_network_and_report(self, saved: Path) -> None:
        block, loaded = quantize(), mxq.load(saved)
        assert isinstance(loaded, QuantizedBlock)
        np.testing.assert_array_equal(forward(loaded), forward(block))
        assert loaded.mxq_report.plan == block.mxq_report.plan
        assert loaded.mxq_report.thresholds == block.mxq_report.thresholds
        assert dict(loaded.mxq_report.tensors) == dict(block.mxq_report.tensors)

    def test_what_was_loaded_can_be_saved_again(self, saved: Path, tmp_path: Path) -> None:
        again = mxq.save(mxq.load(saved), tmp_path / saved.name)
        for path in again:
            assert path.read_bytes() == (saved.parent / path.name).read_bytes()

    def test_load_without_a_record(self, saved: Path, tmp_path: Path) -> None:
        for end in ("-symbol.json", "-0000.params"):
            shutil.copy(f"{saved}{end}", tmp_path / f"net{end}")
        loaded = mxq.load(tmp_path / "net")
        assert loaded.mxq_report is None
        np.testing.assert_array_equal(forward(loaded), forward(mxq.load(saved)))
        with pytest.raises(mxq.QuantizeError, match="save got a QuantizedBlock without a report"):
            mxq.save(loaded, tmp_path / "again")

    @pytest.mark.parametrize("flags", ["avx2", "avx2 avx_vnni"])
    def test_load_warns_where_the_cpu_saturates(
        self,
        saved: Path,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        caplog: pytest.LogCaptureFixture,
        flags: str,
    ) -> None:
        for file in saved.parent.glob(f"{saved.name}-*"):
            shutil.copy(file, tmp_path)
        record = tmp_path / f"{saved.name}-mxq.json"
        record.write_text(json.dumps(json.loads(record.read_text()) | {"target": "avx512_vnni"}))
        here = replace(machine.detect(), usable=frozenset(flags.split()))
        monkeypatch.setattr(machine, "detect", lambda: here)
        with caplog.at_level(logging.WARNING, "mxq"):
            mxq.load(tmp_path / saved.name)
        warned = [r.getMessage() for r in caplog.records if r.name == "mxq"]
        assert len(warned) == (flags == "avx2")
        assert all("it was quantized for avx512_vnni" in message for message in warned)

    @pytest.mark.parametrize("end", ["-symbol.json", "-0000.params"])
    @pytest.mark.parametrize("problem", ["has changed since it was written", "is missing"])
    def test_load_refuses_files_that_are_not_what_was_written(
        self, saved: Path, tmp_path: Path, end: str, problem: str
    ) -> None:
        for path in saved.parent.iterdir():
            shutil.copy(path, tmp_path)
        damaged = tmp_path / f"{saved.name}{end}"
        if "missing" in problem:
            damaged.unlink()
        else:
            damaged.write_bytes(damaged.read_bytes() + b" ")
        with pytest.raises(mxq.MxqError, match=f"{saved.name}{end} {problem}"):
            mxq.load(tmp_path / saved.name)

    @pytest.mark.parametrize("renames", [0, 1, 2])
    @pytest.mark.parametrize("old", [True, False], ids=["over another network", "anew"])
    def test_a_save_that_a_kill_cut_short_is_noticed(
        self, saved: Path, tmp_path: Path, renames: int, old: bool
    ) -> None:
        """Killed after so many files took their places."""
        other, prefix = quantize(exclude_layers=["*conv0*"]), tmp_path / "net"
        if old:
            for path in saved.parent.iterdir():
                shutil.copy(path, tmp_path / path.name.replace(saved.name, "net"))
            mxq.load(prefix)  # a pair may be renamed
        killed_while_it_saves(other, prefix, renames)
        reason = "has changed since it was written|is missing" if old or renames else "no file"
        for read in (mxq.load, load_model, lambda p: mxq.quantize_net(p, X)) if renames or not old else ():
            with pytest.raises(mxq.FormatError, match=reason):
                read(prefix)
        mxq.save(other, prefix)
        assert len(list(tmp_path.iterdir())) == 3  # nothing else is left
        mxq.load(prefix)

    @pytest.mark.parametrize("name", ["dir/", "dir/..", "m[1]", "a*", "x" * 260, "a\0b", "a\udcff"])
    def test_prefixes(self, tmp_path: Path, name: str) -> None:
        block = quantize()
        (tmp_path / "dir").mkdir()
        if name in ("m[1]", "a*"):
            mxq.save(block, tmp_path / name)
            mxq.load(tmp_path / name)
            return
        for function in (lambda: mxq.save(block, f"{tmp_path}/{name}"), lambda: mxq.load(f"{tmp_path}/{name}")):
            with pytest.raises(mxq.FormatError):
                function()
        assert [p.name for p in tmp_path.rglob("*")] == ["dir"]

    @pytest.mark.parametrize("end", ["-symbol.json", "-0000.params", "-mxq.json"])
    def test_all_or_none_where_a_folder_is_in_the_way(self, saved: Path, tmp_path: Path, end: str) -> None:
        for path in saved.parent.iterdir():
            shutil.copy(path, tmp_path)
        (tmp_path / f"small{end}").unlink()
        (tmp_path / f"small{end}").mkdir()
        before = {p.name: p.is_file() and p.read_bytes() for p in tmp_path.iterdir()}
        with pytest.raises(mxq.FormatError, match=rf"small{end} cannot be written: Is a directory$"):
            mxq.save(quantize(exclude_layers=["*conv0*"]), tmp_path / "small")
        assert {p.name: p.is_file() and p.read_bytes() for p in tmp_path.iterdir()} == before

    def test_nothing_is_left_behind_where_the_directory_is_missing(self, tmp_path: Path) -> None:
        with pytest.raises(mxq.FormatError, match=r"none/net-mxq.json cannot be written: No such file"):
            mxq.save(quantize(), tmp_path / "none" / "net")
        assert list(tmp_path.iterdir()) == []

    def test_an_existing_pair_survives_a_failed_save(
        self, saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for path in saved.parent.iterdir():
            shutil.copy(path, tmp_path)
        before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}

        def full(*_: Any) -> None:
            raise OSError(28, "No space left on device")

        block = quantize()
        monkeypatch.setattr(mxq.runtime.saving, "write_params", full)
        with pytest.raises(mxq.FormatError, match="No space left on device"):
            mxq.save(block, tmp_path / saved.name)
        assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before

    def test_nothing_is_left_of_an_export_that_failed(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """MXNet's own would leave a file cut short, and say nothing."""

        def full(path: Path, _: Any) -> None:
            path.write_bytes(b"some")
            raise OSError(28, "No space left on device")

        block = quantize()
        monkeypatch.setattr(mxq.runtime.saving, "write_params", full)
        with pytest.raises(mxq.StorageError, match=r"cannot be written: No space left on device"):
            block.export(str(tmp_path / "net"))
        assert list(tmp_path.iterdir()) == []

    def test_a_record_that_cannot_be_written(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        write, block = Path.write_bytes, quantize()

        def full(path: Path, content: bytes) -> None:
            write(path, content[:9])
            if "mxq.json" in path.name:
                raise OSError(28, "No space left on device")

        with monkeypatch.context() as patch:
            patch.setattr(Path, "write_bytes", full)
            with pytest.raises(mxq.StorageError, match=r"net-mxq\.json cannot be written: No space left on") as caught:
                mxq.save(block, tmp_path / "net")
        assert list(tmp_path.iterdir()) == []
        needed = int(str(caught.value).partition("(")[2].partition(" bytes")[0].replace(",", ""))
        written = sum(path.stat().st_size for path in mxq.save(block, tmp_path / "net"))
        assert written <= needed <= 1.1 * written

    @pytest.mark.parametrize("thing", [3, None, "net"])
    def test_save_refuses_what_mxq_did_not_make(self, thing: object, tmp_path: Path) -> None:
        with pytest.raises(mxq.QuantizeError, match=f"save got a {type(thing).__name__} without a report"):
            mxq.save(thing, tmp_path / "net")
        assert list(tmp_path.iterdir()) == []

    def test_save_refuses_a_float_block(self, tmp_path: Path) -> None:
        with pytest.raises(mxq.QuantizeError, match="save got a Small without a report"):
            mxq.save(small(), tmp_path / "net")


class TestMessages:
    def test_by_default_they_go_to_stderr(self, capfd: pytest.CaptureFixture[str]) -> None:
        quantize()
        said = capfd.readouterr()
        assert said.out == ""
        assert said.err.splitlines() == [
            "mxq: calibrated 3 tensors (naive) on 40 examples in 2 batches (num_calib_examples: 100%)",
            "mxq: 3 of 3 operators are int8",
        ]

    def test_a_logger_gets_them_and_stderr_stays_silent(
        self, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
    ) -> None:
        with caplog.at_level(logging.INFO, logger="mine"):
            quantize(logger=logging.getLogger("mine"))
        assert [r.name for r in caplog.records] == ["mine", "mine"]
        assert "calibrated 3 tensors" in caplog.messages[0]
        assert caplog.messages[1] == "3 of 3 operators are int8"
        assert capfd.readouterr() == ("", "")

    def test_too_little_data_is_said_and_recorded(self, caplog: pytest.LogCaptureFixture) -> None:
        with caplog.at_level(logging.INFO, logger="mine"):
            block = quantize(num_calib_examples=500, logger=logging.getLogger("mine"))
        sentence = "500 calibration examples were asked for, the data held 40"
        assert sentence in caplog.messages
        assert block.mxq_report.summary["warnings"] == [sentence]

    def test_very_few_examples_are_warned_of(self, caplog: pytest.LogCaptureFixture) -> None:
        with caplog.at_level(logging.WARNING, logger="mine"):
            quantize(num_calib_examples=2, logger=logging.getLogger("mine"))
        assert caplog.messages == [
            "2 examples are few to calibrate on: ranges miss what others would show; give 8 or more"
        ]

    @pytest.mark.parametrize("precision", ["float16", "float64", "float32"])
    def test_another_precision_is_warned_of(self, precision: str, caplog: pytest.LogCaptureFixture) -> None:
        net = mx.gluon.nn.Dense(3, in_units=4)
        net.initialize()
        net.cast(precision)
        with caplog.at_level(logging.WARNING, logger="mine"):
            mxq.quantize_net(net, np.ones((8, 4), precision), logger=logging.getLogger("mine"))
        says = f"the network is {precision}; what is made of it takes and gives float32"
        assert (says in caplog.messages) == (precision != "float32")

    def test_optional_arguments_that_are_left_out(self, caplog: pytest.LogCaptureFixture) -> None:
        class Masked(mx.gluon.nn.HybridSequential):  # type: ignore[misc]
            def hybrid_forward(self, F: Any, x: Any, mask: Any = None) -> Any:  # noqa: N803
                return super().hybrid_forward(F, x if mask is None else x * mask)

        net = Masked()
        net.add(mx.gluon.nn.Dense(3, in_units=4))
        net.initialize()
        x = np.ones((8, 4), np.float32)
        for hybridized in (False, True):
            caplog.clear()
            if hybridized:
                net.hybridize()
                net(mx.nd.array(x), mx.nd.array(x))
            with caplog.at_level(logging.INFO, logger="mine"):
                mxq.quantize_net(net, (x, x), logger=logging.getLogger("mine"))
            said = "Masked is taken without its optional arguments (mask); to have them too, hybridize it and run it"
            assert any(m.startswith(said) for m in caplog.messages) != hybridized


# ---- what is refused -----------------------------------------------------------------------------------------


def failing_generator() -> Iterator[np.ndarray]:
    yield X[:8]
    raise ValueError("disk on fire")


def with_nan() -> np.ndarray:
    spoiled = X.copy()
    spoiled[1, 0, 0, :2] = np.nan, np.inf
    return spoiled


@pytest.mark.parametrize(
    ("data", "error", "says"),
    [
        (None, mxq.DataError, "calib_data is None, but calib_mode 'naive' needs data; give some, or calib_mode='none'"),
        ([], mxq.DataError, "calibration data is an empty list; at least one batch is needed"),
        (X[:0], mxq.DataError, "calibration data holds no examples; at least one is needed"),
        (iter(()), mxq.DataError, "calibration data holds no batch; at least one is needed"),
        (failing_generator(), mxq.DataError, "reading calibration batch 2 failed: ValueError: disk on fire"),
        (["a", "b"], mxq.DataError, "calibration batch 1: it is str 'a'; allowed: an array"),
        ("images", mxq.DataError, "images does not exist; allowed: a folder of images, a .npy or an .npz file"),
        ({"image": X, "mask": X}, mxq.DataError, "no array for input 'data', only 'image', 'mask'"),
        (with_nan(), mxq.DataError, r"tensor 'data' in batch 1 .*: 2 of 6144 values are not finite \(1 NaN, 1 Inf\)"),
        (X[:, :1], mxq.RuntimeFailure, r"on input 'data' float32\[32, 1, 8, 8\].*Shape inconsistent.*\[8,3,3,3\]"),
        (X.reshape(40, -1), mxq.RuntimeFailure, r"on input 'data' float32\[32, 192\].*should be 4D"),
        (X.astype(np.int64), mxq.RuntimeFailure, r"on input 'data' int64\[32, 3, 8, 8\].*requires uniform type"),
    ],
)
def test_data_that_does_not_fit(data: Any, error: type[mxq.MxqError], says: str) -> None:
    with pytest.raises(error, match=says):
        quantize(data=data)


def test_a_weight_that_does_not_fit_a_network_of_one_layer() -> None:
    """Of which only the input is calibrated."""
    symbol = mx.sym.FullyConnected(mx.sym.var("data"), num_hidden=3, name="f")
    args = {"f_weight": mx.nd.ones((3, 5)), "f_bias": mx.nd.ones(3)}
    for effort in ("fast", "default"):
        with pytest.raises(mxq.RuntimeFailure, match=r"operator f: Shape inconsistent, Provided = \[3,5\]"):
            mxq.quantize_model(symbol, args, {}, calib_data=np.ones((4, 4), np.float32), effort=effort)


@pytest.mark.parametrize("thing", [3, b"net", [None], object()], ids=lambda thing: type(thing).__name__)
def test_arguments_of_a_wrong_type(thing: object, tmp_path: Path) -> None:
    calls: dict[str, Callable[[Any], object]] = {
        "config": lambda thing: quantize(config=thing),
        "logger": lambda thing: quantize(logger=thing),
        "thresholds": lambda thing: quantize(thresholds=thing),
        "statistics": lambda thing: quantize(statistics=thing),
        "prefix": mxq.load,
        "stats": lambda thing: mxq.calibrate(small(), X, stats=thing),
        "workdir": lambda thing: mxq.tune(small(), X, workdir=thing),
        "path": lambda thing: mxq.plot(tmp_path / "s.stats", "data", thing),
    }
    for name, call in calls.items():
        with pytest.raises(mxq.ConfigError, match=f"^{name} is .*; allowed: "):
            call(thing)
    with pytest.raises(mxq.ConfigError, match=r"^prefix is .*; allowed: a path"):
        mxq.save(quantize(), thing)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"calib_mode": "median"}, mxq.ConfigError, "calib_mode is 'median'; allowed: 'auto', .*'naive', .*'none'"),
        ({"calib_mode": 3}, mxq.ConfigError, "calib_mode is 3; allowed: the name of an observer, or 'none'"),
        ({"quantized_dtype": "int4"}, mxq.ConfigError, "quantized_dtype is 'int4'; allowed: 'auto', 'int8', 'uint8'"),
        ({"quantized_dtype": "uint8"}, mxq.QuantizeError, "'uint8', but tensor 'data' goes down to -"),
        ({"quantize_mode": "fast"}, mxq.ConfigError, "quantize_mode is 'fast'; allowed: 'smart', 'full'"),
        (
            {"quantize_granularity": "row-wise"},
            mxq.ConfigError,
            "quantize_granularity is 'row-wise'; allowed: 'channel-wise'",
        ),
        ({"excludes": ["a"]}, mxq.ConfigError, "unknown option 'excludes'; allowed: calib_mode, weight_calib_mode"),
        ({"num_calib_example": 9}, mxq.ConfigError, "did you mean 'num_calib_examples'"),
        ({"calib_mode": "entropi"}, mxq.ConfigError, "did you mean 'entropy'"),
        ({"exclude_layers": ["nope*"]}, mxq.ConfigError, r"exclude_layers: 'nope\*' matches none of \d+ names"),
        ({"exclude_layers": 3}, mxq.ConfigError, "exclude_layers is 3; allowed: names, patterns or predicates"),
        ({"include_layers": ["nope"]}, mxq.ConfigError, r"include_layers: 'nope' matches none of \d+ names"),
        ({"overrides": {"zzz": {"quantize": False}}}, mxq.ConfigError, r"overrides: 'zzz' matches none of \d+ names"),
        ({"overrides": {"*": {"quant": 1}}}, mxq.ConfigError, r"overrides: '\*' has 'quant'; allowed: quantize, calib"),
        ({"overrides": {"*": {"dtype": "f4"}}}, mxq.ConfigError, "overrides: dtype is 'f4'; allowed: 'auto', 'int8'"),
        ({"overrides": {"*": {"calib_mode": "median"}}}, mxq.ConfigError, "calib_mode is 'median'; allowed: 'auto'"),
        ({"num_calib_examples": -1}, mxq.ConfigError, "num_calib_examples is -1; allowed: a positive count"),
        ({"num_calib_examples": "200%"}, mxq.ConfigError, "num_calib_examples is '200%'; allowed: a positive count"),
        ({"batch_size": 0}, mxq.DataError, "batch_size is 0; allowed: a whole number, 1 or more"),
        ({"ctx": mx.gpu()}, mxq.ConfigError, r"ctx is gpu\(0\); allowed: mx\.cpu\(\)"),
        (
            {"exclude_operators": ["Convolution", "FullyConnected"], "input_dtype": "int8"},
            mxq.QuantizeError,
            "input_dtype is 'int8', but no operator .* can be int8",
        ),
    ],
)
def test_options_that_are_refused(options: dict[str, Any], error: type[mxq.MxqError], says: str) -> None:
    with pytest.raises(error, match=says):
        quantize(**options)


def other(kind: str) -> Any:
    """Networks that are none, or not ready."""
    nn = mx.gluon.nn
    net: Any = nn.HybridSequential(prefix="net_")
    net.add(nn.Dense(3, prefix="dense_"))
    if kind == "deferred":
        net.initialize()
    plain = {"number": 3, "nothing": b"", "sequential": nn.Sequential(), "pair": (1, 2), "three": (1, {}, {})}
    return plain.get(kind, net)


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        ("number", r"net is a int; allowed: HybridBlock, SymbolBlock, Module, \(sym, arg_params, aux_params\), or "),
        ("nothing", "net is a bytes; allowed: HybridBlock"),
        ("sequential", "net is a Sequential, a Block whose graph cannot be seen; allowed: a HybridBlock"),
        ("pair", "net is a tuple; allowed: HybridBlock"),
        ("three", "sym is a int; allowed: a Symbol, or the path of its JSON file"),
        ("uninitialised", r"parameters without values \(Parameter 'dense_weight' has not been initialized\)"),
    ],
)
def test_networks_that_are_refused(kind: str, says: str) -> None:
    with pytest.raises(mxq.QuantizeError, match=says):
        quantize(other(kind))


def test_a_network_that_waits_for_shapes_needs_data() -> None:
    says = "parameters without values .*run the network once on a batch so that every shape is known"
    with pytest.raises(mxq.QuantizeError, match=says):
        quantize(other("deferred"), None, calib_mode="none")


def test_int8_networks_are_refused(saved: Path) -> None:
    says = "the network is quantized already: .*is already int8; allowed: a float network"
    for net in (quantize(), saved):
        with pytest.raises(mxq.QuantizeError, match=says):
            quantize(net)
    with pytest.raises(mxq.QuantizeError, match=says):
        mxq.calibrate(saved, X)


def damage_params(content: Any) -> Callable[[Path], None]:
    """Exchanges the parameter file: bytes as they are, a number cuts it there, anything else goes to `nd.save`."""

    def change(pair: Path) -> None:
        path = Path(f"{pair}-0000.params")
        if isinstance(content, int):
            path.write_bytes(path.read_bytes()[:content])
        elif isinstance(content, bytes):
            path.write_bytes(content)
        else:
            mx.nd.save(str(path), content())

    return change


def change_param(name: str, value: Any) -> Callable[[Path], None]:
    """Gives one parameter another value; None drops it."""

    def change(pair: Path) -> None:
        table = mx.nd.load(f"{pair}-0000.params")
        key = next(k for k in table if k.endswith(name))
        del table[key]
        if value is not None:
            table[key] = mx.nd.array(value)
        mx.nd.save(f"{pair}-0000.params", table)

    return change


def symbol_text(text: str) -> Callable[[Path], None]:
    return lambda pair: Path(f"{pair}-symbol.json").write_text(text) and None  # type: ignore[func-returns-value]


def foreign_op(pair: Path) -> None:
    path = Path(f"{pair}-symbol.json")
    data = json.loads(path.read_text())
    next(n for n in data["nodes"] if n["op"] == "Convolution")["op"] = "MyConv"
    path.write_text(json.dumps(data))


def drop(end: str) -> Callable[[Path], None]:
    return lambda pair: Path(f"{pair}{end}").unlink()


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (drop("-symbol.json"), "no file '.*net-symbol.json'"),
        (drop("-0000.params"), "no parameter file '.*net-NNNN.params' beside net-symbol.json"),
        (damage_params(2000), r"net-0000.params' is no parameter file, or damaged"),
        (damage_params(30), r"net-0000.params' is no parameter file, or damaged"),
        (damage_params(b""), r"net-0000.params' is no parameter file, or damaged"),
        (damage_params(b"hello " * 99), r"net-0000.params' is no parameter file, or damaged"),
        (damage_params(lambda: {"arg:foo": mx.nd.ones(2)}), r"lack the auxiliary state '.*' \(4 missing in all\)"),
        (damage_params(lambda: [mx.nd.ones(2)]), "holds 1 arrays without names; allowed: named parameters"),
        (change_param("conv0_weight", np.ones((3, 3))), r"'small_conv0_weight' of .* \[3, 3\]; .*\[8, \*, 3, 3\]"),
        (change_param("dense0_weight", np.ones((4, 512))), r"has shape \[4, 512\]; the graph asks for \[5, \*\]"),
        (change_param("conv1_weight", None), r"has no value for 'small_conv1_weight' \(1 missing in all\)"),
        (symbol_text("not json"), "net-symbol.json is not JSON: Expecting value"),
        (symbol_text('{"ir_version": 3, "graph": {}}'), "is not an MXNet symbol: it has no nodes or heads list, but"),
        (foreign_op, "net-symbol.json: node '.*': this MXNet has no operator 'MyConv'"),
    ],
)
def test_files_that_are_refused(pair: Path, damage: Callable[[Path], None], says: str) -> None:
    damage(pair)
    with pytest.raises(mxq.FormatError, match=says):
        quantize(pair)


def test_every_error_is_an_mxq_error() -> None:
    errors = [getattr(mxq, n) for n in mxq.__all__ if isinstance(getattr(mxq, n), type)]
    named = {e for e in errors if issubclass(e, Exception)}
    assert named == {e for e in vars(mxq.errors).values() if isinstance(e, type) and issubclass(e, mxq.MxqError)}


def test_unknown_attribute() -> None:
    with pytest.raises(AttributeError, match="module 'mxq' has no attribute 'quantise_net'"):
        _ = mxq.quantise_net


# ---- threads -------------------------------------------------------------------------------------------------


class TestUsePhysicalCores:
    def test_sets_the_variable_before_mxnet_is_imported(self) -> None:
        code = "import mxq, os, sys; n = mxq.use_physical_cores(); print(n, os.environ['OMP_NUM_THREADS'], "
        done = fresh_python(f"{code}'mxnet' in sys.modules)")
        assert done.returncode == 0, done.stderr
        count, variable, imported = done.stdout.split()
        assert count == variable
        assert 1 <= int(count) <= len(os.sched_getaffinity(0))
        assert imported == "False"

    def test_keeps_what_the_user_set(self) -> None:
        code = "import mxq, os; print(mxq.use_physical_cores(), os.environ['OMP_NUM_THREADS'])"
        assert fresh_python(code, OMP_NUM_THREADS="3").stdout.split() == ["3", "3"]

    def test_twice_is_as_good_as_once(self) -> None:
        done = fresh_python("import mxq; print(mxq.use_physical_cores() == mxq.use_physical_cores())")
        assert done.stdout.strip() == "True"

    def test_comes_too_late_after_mxnet(self) -> None:
        done = fresh_python("import mxq, sys; sys.modules['mxnet'] = sys; mxq.use_physical_cores()")
        assert "ConfigError: use_physical_cores comes too late: import mxnet after it" in done.stderr
        late = "import mxq, sys; sys.modules['mxnet'] = sys; print(mxq.use_physical_cores())"
        assert fresh_python(late, OMP_NUM_THREADS="2").stdout.strip() == "2"

    def test_a_value_that_aborts_mxnet_is_refused(self) -> None:
        done = fresh_python("import mxq; print('imported'); import mxq.runtime", OMP_NUM_THREADS="4,2")
        assert done.stdout == "imported\n"
        assert "ConfigError: OMP_NUM_THREADS is '4,2'; allowed: one whole number" in done.stderr


def test_to_symbol_of_a_model_is_accepted_as_a_tuple() -> None:
    model = load_model(small())
    net = (to_symbol(model.graph), to_arrays(model.args), to_arrays(model.auxs))
    np.testing.assert_array_equal(forward(quantize(net)), forward(quantize()))


@pytest.mark.parametrize("fails", [False, True])
def test_the_callers_own_threads_end_with_the_call(monkeypatch, fails):
    """They take time from MXNet's engine, in which the network runs next."""
    ended = []
    monkeypatch.setattr(mxq.threads, "release_openmp_threads", lambda: ended.append(True))
    if fails:
        with pytest.raises(mxq.MxqError):
            mxq.quantize_net(small(), X, calib_mode="of nobody")
    else:
        mxq.quantize_net(small(), X)
    assert ended == [True]
