"""Engines: which there are and may be used, files opened and run, feeds that do not fit, and their processes."""

from __future__ import annotations

import importlib.util
import re
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from graphs import RESIDUAL, SHAPE, build, feeds, run
from helpers import assert_close

from mxq import engines
from mxq.engines import FILE_ENGINES, MXNET, Engine, Served, Session, chosen, engine_of, missing, served
from mxq.engines.openvino import OPENVINO, Requests
from mxq.engines.session import engine_says
from mxq.engines.worker import seconds
from mxq.errors import ConfigError, DataError, FormatError, RuntimeFailure
from mxq.formats.onnx_file import Port
from mxq.graph.ir import Model
from mxq.host.cores import plan
from mxq.runtime import write_pair

EXAMPLE = SHAPE[1:]
CPUS = plan(1, 1)[0]
NAMES = [engine.name for engine in FILE_ENGINES]
CLOSE = {"rtol": 1e-5, "atol": 5e-6}
"""Float32 sums of a few layers in another order."""


def needs(*packages: str) -> Any:
    absent = [name for name in packages if importlib.util.find_spec(name) is None]
    return pytest.mark.skipif(bool(absent), reason=f"{', '.join(absent)} is not installed (mxq[runtimes])")


EACH = [pytest.param(engine, marks=needs("onnx", engine.name), id=engine.name) for engine in FILE_ENGINES]


@pytest.fixture(scope="module")
def model() -> Model:
    return build(*RESIDUAL)


@pytest.fixture(scope="module")
def path(model: Model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The network as a float file. Do not write there."""
    return written(model, tmp_path_factory.mktemp("files") / "net.onnx")


def written(model: Model, target: Path, batch: int | None = None) -> Path:
    from onnx_files import lowered

    from mxq.backends import onnx as backend

    backend.write(lowered(model, {"data": EXAMPLE}, batch), target)
    return target


# ---- which there are -----------------------------------------------------------------------------------------


def stand_in(monkeypatch: pytest.MonkeyPatch, **versions: str | None) -> None:
    """Packages of these versions in place of what is installed; None: not installed."""
    for name, version in versions.items():
        monkeypatch.setitem(sys.modules, name, None if version is None else SimpleNamespace(__version__=version))


def test_bounds_are_those_of_the_package() -> None:
    text = (Path(__file__).parents[1] / "setup.py").read_text(encoding="utf-8")
    for engine in FILE_ENGINES:
        assert f'"{engine.package}>={engine.least},' in text
    assert f"{MXNET.package}=={MXNET.least}" in text


def test_all_that_are_installed_or_those_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(monkeypatch, onnxruntime="1.19.0", openvino="2026.4.1-22982-e213a147257-releases/2026/4")
    assert [engine.name for engine in chosen()] == NAMES
    assert missing() == {}
    assert [engine.name for engine in chosen(["openvino", "openvino"])] == ["openvino"]
    stand_in(monkeypatch, openvino=None)
    assert [engine.name for engine in chosen()] == ["onnxruntime"]
    assert missing() == {"openvino": 'OpenVINO is not installed: pip install "openvino>=2024.4"'}


def test_none_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(monkeypatch, onnxruntime=None, openvino=None)
    with pytest.raises(ConfigError, match=r"nothing here runs ONNX files: .*onnxruntime>=1\.19.*openvino>=2024\.4"):
        chosen()


@pytest.mark.parametrize("old", ["1.18.1", "1.9", "0.5"])
def test_too_old(monkeypatch: pytest.MonkeyPatch, old: str) -> None:
    stand_in(monkeypatch, onnxruntime=old)
    says = rf'ONNX Runtime is {re.escape(old)}; allowed: 1\.19 or later: pip install "onnxruntime>=1\.19"'
    with pytest.raises(ConfigError, match=says):
        chosen(["onnxruntime"])
    assert re.fullmatch(says, missing()["onnxruntime"])


def test_a_broken_installation(monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken:
        @property
        def __version__(self) -> str:
            raise ImportError("libx.so.1: cannot open\nshared object file")

    monkeypatch.setitem(sys.modules, "openvino", Broken())
    with pytest.raises(ConfigError, match=r"cannot be imported \(libx\.so\.1: cannot open shared object file\)"):
        engine_of("openvino").check()


def test_unknown_names() -> None:
    with pytest.raises(ConfigError, match=r"runtime is 'tvm'; allowed: 'onnxruntime', 'openvino'"):
        chosen(["tvm"])
    with pytest.raises(ConfigError, match=r"runtime is 'mxnet'; allowed: 'onnxruntime', 'openvino'"):
        chosen(["mxnet"])
    with pytest.raises(ConfigError, match="allowed: 'mxnet', 'onnxruntime', 'openvino'"):
        engine_of("tvm")


# ---- feeds ---------------------------------------------------------------------------------------------------


def echo(*inputs: Port) -> Session:
    return Session("echo", Path("net.onnx"), inputs, lambda given: [*given.values()])


class TestFeeds:
    session = echo(Port("a", "float32", ("batch", 3)), Port("b", "int64", ("batch", "length")))
    a, b = np.zeros((2, 3), np.float32), np.zeros((2, 5), np.int64)

    def test_in_the_order_of_the_file(self) -> None:
        first, second = self.session({"b": self.b, "a": self.a.tolist() and self.a})
        assert (first.shape, second.shape) == ((2, 3), (2, 5))

    @pytest.mark.parametrize(
        ("changes", "says"),
        [
            ({"b": None}, "net.onnx is not fed 'b'; its inputs are a, b, fed are a"),
            ({"c": a}, "net.onnx has no input 'c'; its inputs are a, b, fed are a, b, c"),
            ({"a": np.full((2, 3), 2**24 + 1)}, "net.onnx takes a float32 batchx3; fed is int64 2x3"),
            ({"a": a.astype(np.float64)}, "net.onnx takes a float32 batchx3; fed is float64 2x3"),
            ({"a": a[:, :2]}, "net.onnx takes a float32 batchx3; fed is float32 2x2"),
            ({"a": a[0]}, "net.onnx takes a float32 batchx3; fed is float32 3"),
            ({"b": b[:1]}, "net.onnx takes b int64 batchxlength; fed is int64 1x5"),
        ],
    )
    def test_what_does_not_fit(self, changes: dict[str, Any], says: str) -> None:
        given = {name: value for name, value in {"a": self.a, "b": self.b, **changes}.items() if value is not None}
        for use in (self.session, self.session.held):
            with pytest.raises(DataError) as caught:
                use(given)
            assert str(caught.value) == says

    def test_whole_numbers_are_the_floats_that_they_are(self) -> None:
        (first, _) = self.session({"a": np.arange(6).reshape(2, 3), "b": self.b})
        assert (first.dtype, first.tolist()) == (np.float32, [[0, 1, 2], [3, 4, 5]])

    def test_a_fixed_batch(self) -> None:
        with pytest.raises(DataError, match=r"fed is float32 2x3: feed batches of 4, or export the network without"):
            echo(Port("a", "float32", (4, 3)))({"a": self.a})

    def test_what_is_not_known_is_not_checked(self) -> None:
        echo(Port("a", "", None), Port("b", "int64", ("?", "?")))({"a": self.a, "b": self.b})

    def test_what_an_engine_raises_is_one_line(self) -> None:
        said = (
            "[ONNXRuntimeError] : 1 : FAIL : Load model failed:/onnxruntime_src/core/graph.cc:415 void f() Opset\n 99"
        )
        with (
            pytest.raises(FormatError, match=r"^the file: Load model failed:void f\(\) Opset 99$"),
            engine_says("the file"),
        ):
            raise RuntimeError(said)


# ---- running -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", EACH)
class TestFiles:
    def test_gives_what_mxnet_gives(self, engine: Engine, model: Model, path: Path) -> None:
        session = engine.open(path, 1)
        for size in (1, 3):
            batch = {"data": np.random.default_rng(size).standard_normal((size, *EXAMPLE)).astype(np.float32)}
            (found,), (wanted,) = session(batch), run(model, batch)
            assert_close(found, wanted, **CLOSE)
        session.held(batch)()

    def test_outputs_stay_what_they_are(self, engine: Engine, path: Path) -> None:
        session = engine.open(path, 1)
        (first,) = session(feeds())
        kept = first.copy()
        session({"data": feeds()["data"] + 1})
        np.testing.assert_array_equal(first, kept)

    def test_the_lines_that_start_it(self, engine: Engine, path: Path) -> None:
        known: dict[str, Any] = {"batch": feeds()["data"]}
        exec("\n".join(engine.start(path, 1, ["data"])), known)
        np.testing.assert_array_equal(known["outputs"][0], engine.open(path, 1)(feeds())[0])

    def test_damaged(self, engine: Engine, path: Path, tmp_path: Path) -> None:
        content, target = path.read_bytes(), tmp_path / "net.onnx"
        for part in (b"", b"no network", content[: len(content) // 2], content[:-1]):
            target.write_bytes(part)
            with pytest.raises(FormatError, match=r"net\.onnx is damaged, or no ONNX file"):
                engine.open(target, 1)

    @pytest.mark.parametrize("size", [0, 1, 4])
    def test_values_that_do_not_fit_the_operators(self, engine: Engine, path: Path, tmp_path: Path, size: int) -> None:
        """What onnx's checker lets pass: the engine refuses it."""
        import onnx

        model = onnx.load(path)
        (weight,) = (one for one in model.graph.initializer if one.name == "conv0_weight")
        weight.CopyFrom(onnx.numpy_helper.from_array(np.zeros((size, 7, 3, 3), np.float32), weight.name))
        onnx.save(model, tmp_path / "net.onnx")
        with pytest.raises((FormatError, RuntimeFailure)) as caught:
            engine.open(tmp_path / "net.onnx", 1)(feeds())
        assert len(str(caught.value).splitlines()) == 1

    def test_a_set_of_operators_from_the_future(self, engine: Engine, path: Path, tmp_path: Path) -> None:
        import onnx

        model = onnx.load(path)
        model.opset_import[0].version = 99
        onnx.save(model, tmp_path / "net.onnx")
        with pytest.raises(FormatError, match=r"is of opset 99; onnx .* knows them up to"):
            engine.open(tmp_path / "net.onnx", 1)


@pytest.mark.filterwarnings("ignore:Cannot decide type for the following arguments")
def test_mxnet_runs_pairs(model: Model, tmp_path: Path) -> None:
    write_pair(model, tmp_path / "net")
    session = MXNET.open(tmp_path / "net", 1)
    np.testing.assert_array_equal(session(feeds())[0], run(model)[0])
    session.held(feeds())()
    known: dict[str, Any] = {"batch": feeds()["data"]}
    exec("\n".join(MXNET.start(tmp_path / "net", 1, ["data"])), known)
    assert_close(known["outputs"].asnumpy(), run(model)[0], **CLOSE)


def test_openvino_compiles_for_the_first_shapes_that_it_is_fed(
    model: Model, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("openvino", reason="openvino is not installed (mxq[runtimes])")
    made, real = list[Any](), Requests.request

    def request(self: Any, shapes: Any) -> Any:
        made.append({name: shape[0] for name, shape in shapes.items()})
        return real(self, shapes)

    monkeypatch.setattr(Requests, "request", request)
    session = OPENVINO.open(path, 1)
    for count in (2, 3, 2, 4, 5):
        fed = {"data": np.repeat(feeds()["data"][:1], count, axis=0)}
        assert_close(session(fed)[0], run(model, fed)[0], **CLOSE)
    assert made == [{}, {"data": 2}, {"data": 3}, {"data": 4}]


# ---- processes -----------------------------------------------------------------------------------------------


@pytest.fixture
def stands_in(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Has a process run other code in place of an engine's."""

    def put(body: str) -> Engine:
        monkeypatch.setattr(served, "BOOT", f"{served.BOOT.partition('from mxq')[0]}\n{body}")
        return MXNET

    return put


READY = "import pickle\nsay = lambda *x: (pickle.dump(x, sys.stdout.buffer), sys.stdout.flush())\nsay('', None)\n"


class TestServed:
    @pytest.mark.parametrize("engine", EACH[:1])
    def test_runs_and_is_timed_in_its_own_process(self, engine: Engine, model: Model, path: Path) -> None:
        with closing(Served(engine, path, CPUS)) as session:
            assert_close(session(feeds())[0], run(model)[0], **CLOSE)
            with pytest.raises(DataError, match="is not fed 'data'"):
                session({})
            session.hold(feeds())
            assert session.seconds(2) > 0
            assert_close(session(feeds())[0], run(model)[0], **CLOSE)

    @pytest.mark.parametrize("engine", EACH[:1])
    def test_refuses_as_the_engine_does(self, engine: Engine, tmp_path: Path) -> None:
        (tmp_path / "net.onnx").write_bytes(b"no network")
        with pytest.raises(FormatError, match=r"net\.onnx is damaged, or no ONNX file"):
            Served(engine, tmp_path / "net.onnx", CPUS)

    def test_its_threads_and_cpus(self, stands_in: Any) -> None:
        engine = stands_in(
            f"{READY}pickle.load(sys.stdin.buffer)\n"
            "say('', [sorted(os.sched_getaffinity(0)), os.environ['OMP_NUM_THREADS'], spec['threads'], spec['engine']])"
        )
        with closing(Served(engine, Path("net"), CPUS, 3)) as session:
            assert session({}) == [[*CPUS], "3", 3, "mxnet"]

    @pytest.mark.parametrize(
        ("body", "says"),
        [
            ("os.kill(os.getpid(), 11)", "MXNet ended with net: process on CPU .*: killed by SIGSEGV"),
            (f"{READY}pickle.load(sys.stdin.buffer); os.abort()", "MXNet ended with net: .*: killed by SIGABRT"),
            ("print('half an answ', end=''); sys.exit('out of luck')", "MXNet ended with net: .*: out of luck"),
        ],
    )
    def test_one_that_ends_is_one_error(self, stands_in: Any, body: str, says: str) -> None:
        engine = stands_in(body)
        with pytest.raises(RuntimeFailure, match=says), closing(Served(engine, Path("net"), CPUS)) as session:
            session({"data": np.zeros(1)})

    def test_one_that_never_answers_is_given_up(self, stands_in: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(served, "PATIENCE", 0.2)
        engine = stands_in("import time; time.sleep(60)")
        with pytest.raises(RuntimeFailure, match="no answer in time"):
            Served(engine, Path("net"), CPUS)

    def test_what_is_missing_is_said_before_there_is_a_process(self, monkeypatch: pytest.MonkeyPatch) -> None:
        stand_in(monkeypatch, openvino=None)
        monkeypatch.setattr(served, "Child", None)
        with pytest.raises(ConfigError, match="OpenVINO is not installed"):
            Served(engine_of("openvino"), Path("net.onnx"), CPUS)


def test_a_call_before_those_that_count() -> None:
    now, took = [0.0], iter([100.0, 1.0, 3.0])

    def call() -> None:
        now[0] += next(took)

    assert seconds(call, 2, lambda: now[0]) == 2.0


def test_all_engines_have_a_row_of_their_own() -> None:
    assert [*engines.ENGINES] == ["mxnet", *NAMES]
