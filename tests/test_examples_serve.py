"""examples/serve: one handler for both pairs, and the C predict API from Python and C, against Gluon's answers."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest

import mxq  # isort: skip  (before mxnet)

import mxnet as mx

ROOT = Path(__file__).parents[1]
SERVE, NAME, SAMPLE = ROOT / "examples" / "serve", "resnet_digits", ROOT / "examples" / "resnet" / "sample.png"
SHAPE = (1, 3, 48, 48)


def module(name: str) -> ModuleType:
    """One of the scripts, freshly imported."""
    spec = importlib.util.spec_from_file_location(f"serve_{name}", SERVE / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    return made


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The shipped classifier and its INT8 form, each in a folder of its own with preprocess.json."""
    home, settings = tmp_path_factory.mktemp("serve"), module("archive").DIGITS
    source = ROOT / "models" / NAME / NAME
    qnet = mxq.quantize_net(source, np.random.default_rng(0).normal(size=(8, *SHAPE[1:])).astype(np.float32))
    for name in (NAME, f"{NAME}-int8"):
        (home / name).mkdir()
        (home / name / "preprocess.json").write_text(json.dumps(settings))
    for end in ("-symbol.json", "-0000.params"):
        shutil.copy(f"{source}{end}", home / NAME / f"{NAME}{end}")
    mxq.save(qnet, home / f"{NAME}-int8" / f"{NAME}-int8")
    return {name: home / name / name for name in (NAME, f"{NAME}-int8")}


def scores(prefix: Path, batch: np.ndarray) -> np.ndarray:
    sym, args, auxs = mx.model.load_checkpoint(str(prefix), 0)
    net = sym.simple_bind(mx.cpu(), grad_req="null", data=batch.shape)
    net.copy_params_from(args, auxs)
    return net.forward(is_train=False, data=mx.nd.array(batch))[0].asnumpy()


def test_one_handler_serves_both(pairs: dict[str, Path]) -> None:
    """The picture shows one digit, of which both networks are sure."""
    answers = []
    for prefix in pairs.values():
        handler = module("handler")
        context = SimpleNamespace(system_properties={"model_dir": str(prefix.parent)})
        assert handler.handle(None, context) is None
        (found,) = handler.handle([{"body": SAMPLE.read_bytes()}], context)
        assert len(found) == handler.TOP
        assert sum(share for _, share in found) <= 1 + 1e-6
        answers.append(found[0])
    assert answers[0][0] == answers[1][0]
    assert abs(answers[0][1] - answers[1][1]) < 0.05


def test_the_c_predict_api_gives_what_an_executor_does(pairs: dict[str, Path]) -> None:
    predict, batch = module("predict"), np.random.default_rng(1).normal(size=SHAPE).astype(np.float32)
    for prefix in pairs.values():
        np.testing.assert_allclose(
            predict.Predictor(str(prefix), SHAPE)(batch), scores(prefix, batch), rtol=1e-5, atol=1e-5
        )


@pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler")
def test_the_c_program_gives_what_an_executor_does(pairs: dict[str, Path], tmp_path: Path) -> None:
    home = Path(str(mx.__file__)).parent
    options = [f"-I{home}/include", f"-L{home}", "-lmxnet", f"-Wl,-rpath,{home}", "-Wall", "-Werror"]
    subprocess.run(["cc", str(SERVE / "predict.c"), *options, "-o", str(tmp_path / "predict")], check=True, timeout=60)
    for prefix in pairs.values():
        command = [str(tmp_path / "predict"), str(prefix), *map(str, SHAPE)]
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
        found = np.array(done.stdout.split(), np.float32)
        np.testing.assert_allclose(found, scores(prefix, np.zeros(SHAPE, np.float32))[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("script", [
    ("serve/predict.py", "nothing"), ("serve/archive.py", "nothing", "--out", "out"),
    ("resnet/infer.py", "--prefix", "nothing"),
    ("ssd/evaluate.py", "--test-images", "1"), ("ssd/demo.py",),
])  # fmt: skip
def test_what_is_missing_is_one_line(script: tuple[str, ...], tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "examples" / script[0]), *script[1:]]
    environ = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=tmp_path, env=environ, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 1
    assert done.stderr.strip().splitlines()[-1].endswith("quantize.py first")
    assert "Traceback" not in done.stderr
