"""mxq.drawing: what a picture shows, where it stands, and that it is well-formed; `mxq.draw` and ``mxq draw``."""

from __future__ import annotations

import importlib
from itertools import pairwise
from pathlib import Path
from xml.etree import ElementTree as ET

import numpy as np
import pytest
from graphs import CONV3, RELU, SHAPE, bn, build, conv, fc
from typer.testing import CliRunner

import mxq
from mxq.cli import app
from mxq.drawing import Kind, Scene, layout_of, png_of, scene_of, svg_of
from mxq.drawing.layout import BESIDE, HEIGHT
from mxq.graph.ir import Model
from mxq.runtime import load_model, to_arrays, to_symbol, write_pair

igraph = pytest.importorskip("igraph")
pytest.importorskip("resvg_py")

RESIDUAL = (
    conv("c0", "data"),
    bn("b0", "c0"),
    f"r0 = Activation(b0) {RELU}",
    conv("c1", "r0", CONV3 + ' stride="(2, 2)"'),
    conv("c2", "r0", 'kernel="(1, 1)" num_filter="8" stride="(2, 2)"'),
    "sum = elemwise_add(c1, c2)",
    f"r1 = Activation(sum) {RELU}",
    'pool = Pooling(r1) global_pool="True" kernel="(1, 1)" pool_type="avg"',
    fc("fc", "pool"),
    "return fc",
)
NS = {"svg": "http://www.w3.org/2000/svg"}


@pytest.fixture(scope="module")
def model() -> Model:
    return build(*RESIDUAL)


@pytest.fixture(scope="module")
def pair(model: Model, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    home = tmp_path_factory.mktemp("pair")
    write_pair(model, home / "net")
    data = np.random.default_rng(0).normal(size=(8, *SHAPE[1:])).astype(np.float32)
    net = (to_symbol(model.graph), to_arrays(model.args), to_arrays(model.auxs))
    mxq.save(mxq.quantize_net(net, data, effort="fast", num_calib_examples="100%"), home / "int8")
    return home / "net", home / "int8"


def arrows(scene: Scene) -> set[tuple[str, str, str]]:
    return {(a.start, a.end, a.dtype) for a in scene.arrows}


def test_a_float_network_shows_operators_without_parameters(model: Model) -> None:
    scene = scene_of(model, "net")
    assert [(b.name, b.title) for b in scene.boxes] == [
        ("data", "data"),
        ("c0", "Convolution 3x3, 8"),
        ("b0", "BatchNorm"),
        ("r0", "relu"),
        ("c1", "Convolution 3x3 / 2, 8"),
        ("c2", "Convolution 1x1 / 2, 8"),
        ("sum", "add"),
        ("r1", "relu"),
        ("pool", "Pooling avg, global"),
        ("fc", "FullyConnected 10"),
        ("output fc", "output"),
    ]
    assert {b.kind for b in scene.boxes[1:-1]} == {Kind.FLOAT}
    assert ("c2", "sum", "float32") in arrows(scene)
    assert len(scene.arrows) == 11


def test_an_int8_network_shows_codes_and_not_the_ranges_beside_them(pair: tuple[Path, Path]) -> None:
    scene = scene_of(load_model(pair[1]), "net")
    kinds = {b.title: b.kind for b in scene.boxes}
    assert kinds["Convolution 3x3, 8 + relu"] is Kind.INT8
    assert kinds["quantize int8"] is Kind.RECODED
    assert any(title.endswith("+ add + relu") and kind is Kind.INT8 for title, kind in kinds.items())
    types = {(a.dtype) for a in scene.arrows}
    assert types == {"float32", "int8", "uint8"}
    assert len(arrows(scene)) == len(scene.arrows)  # one for each tensor, none for its bounds


def test_boxes_stand_below_what_they_read_and_beside_each_other(model: Model) -> None:
    layout = layout_of(scene_of(model, "net"))
    for path in layout.paths:
        assert all(above < below for (_, above), (_, below) in pairwise(path.points))
    rows: dict[float, list[tuple[float, float]]] = {}
    for placed in layout.boxes:
        rows.setdefault(placed.y, []).append((placed.x - placed.width / 2, placed.x + placed.width / 2))
    for row in rows.values():
        assert all(b[0] - a[1] >= BESIDE - 1e-9 for a, b in pairwise(sorted(row)))
    assert min(p.x - p.width / 2 for p in layout.boxes) >= 0
    assert layout.height == max(rows) + HEIGHT / 2


def test_a_chain_is_straight(model: Model) -> None:
    chain = build(*RESIDUAL[:3], "return r0")
    assert len({round(placed.x, 6) for placed in layout_of(scene_of(chain, "net")).boxes}) == 1


def test_an_arrow_that_passes_layers_goes_around_the_boxes_there() -> None:
    lines = (conv("c0", "data"), conv("c1", "c0"), "sum = elemwise_add(data, c1)", "return sum")
    layout = layout_of(scene_of(build(*lines), "net"))
    (long,) = (path for path in layout.paths if path.arrow.start == "data" and path.arrow.end == "sum")
    boxes = {placed.y: placed for placed in layout.boxes if placed.box.name in ("c0", "c1")}
    for x, y in long.points[1:-1]:
        assert abs(x - boxes[y].x) > boxes[y].width / 2


def test_a_network_that_only_copies() -> None:
    scene = scene_of(build("copied = _copy(data)", "return copied"), "net")
    assert arrows(scene) == {("data", "copied", "float32"), ("copied", "output copied", "float32")}


def test_svg_names_every_box_of_both(model: Model, pair: tuple[Path, Path]) -> None:
    models = (model, load_model(pair[1]))
    root = ET.fromstring(svg_of([layout_of(scene_of(m, t)) for m, t in zip(models, "ab", strict=True)]))
    named = [g.get("data-name") for g in root.findall(".//svg:g[@data-name]", NS)]
    assert named == [b.name for m in models for b in scene_of(m, "").boxes]
    assert [t.text for t in root.findall(".//svg:text[@class='title']", NS)] == ["a", "b"]


def test_names_that_mean_something_to_xml_are_written_out() -> None:
    scene = scene_of(build(conv("c0", "data"), "return c0"), 'x<&"\x1b')
    root = ET.fromstring(svg_of([layout_of(scene)]))
    assert root.find(".//svg:text[@class='title']", NS).text == 'x<&"\\x1b'


def test_a_png_is_as_large_as_asked_and_no_larger_than_can_be(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    svg = svg_of([layout_of(scene_of(model, "net"))])

    def sides(zoom: float) -> tuple[int, int]:
        data = png_of(svg, zoom)
        return int.from_bytes(data[16:20], "big"), int.from_bytes(data[20:24], "big")

    width, height = sides(1.0)
    assert sides(2.0) == (pytest.approx(2 * width, abs=2), pytest.approx(2 * height, abs=2))
    monkeypatch.setattr("mxq.drawing.svg.LARGEST", 500)
    assert max(sides(2.0)) == pytest.approx(500, abs=2)
    monkeypatch.setattr("mxq.drawing.svg.MOST", 100_000)
    assert np.prod(sides(2.0)) == pytest.approx(100_000, rel=0.02)


@pytest.mark.parametrize("name", ["both.svg", "both.png"])
def test_both_doors_write_the_same_picture(pair: tuple[Path, Path], tmp_path: Path, name: str) -> None:
    found = CliRunner().invoke(app, ["draw", *map(str, pair), "--out", str(tmp_path / name)])
    assert found.exit_code == 0, found.output
    written = mxq.draw(*pair, path=tmp_path / f"again-{name}")
    assert written.read_bytes() == (tmp_path / name).read_bytes()


def test_what_cannot_be_drawn(pair: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(mxq.ConfigError, match=r"'net.gif' has suffix '.gif'; allowed: .svg, .png"):
        mxq.draw(pair[0], path=tmp_path / "net.gif")
    with pytest.raises(mxq.ConfigError, match="no network to draw; allowed: one or more"):
        mxq.draw(path=tmp_path / "net.svg")
    asked = importlib.import_module

    def without(name: str) -> object:
        if name == "igraph":
            raise ImportError(name)
        return asked(name)

    monkeypatch.setattr("mxq.drawing.libraries.importlib.import_module", without)
    with pytest.raises(mxq.ConfigError, match=r"need igraph; pip install 'mxq\[report\]'"):
        mxq.draw(pair[0], path=tmp_path / "net.svg")
    assert list(tmp_path.iterdir()) == []
