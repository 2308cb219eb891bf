"""The README and docs/*.md: short enough to be read, links that lead somewhere, code and commands that exist."""

from __future__ import annotations

import json
import math
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
import small_training
from typer.main import get_command

import mxq
from mxq.cli.app import app

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
PAGES = (README, *sorted((ROOT / "docs").glob("*.md")))
MOST_LINES = 150
"""Of the README, so that it stays a front door."""

FENCE = re.compile(r"^(```|~~~)(\w*)[^\n]*\n(.*?)^\1[ \t]*$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"!?\[[^\]\n]*(?:\n[^\]\n]*)?\]\(([^)\s]+)[^)]*\)")
ABSOLUTE = re.compile(r"[a-z][a-z0-9+.-]*:")


def blocks(page: Path, *languages: str) -> Iterator[tuple[int, str]]:
    """(line, text) of each fenced block in one of ``languages``."""
    text = page.read_text(encoding="utf-8")
    for found in FENCE.finditer(text):
        if found[2] in languages:
            yield text.count("\n", 0, found.start()) + 2, found[3]


def prose(page: Path) -> str:
    """The page without its code, which may look like links and headings."""
    return re.sub(r"(`+)(?!`).+?(?<!`)\1(?!`)", "", FENCE.sub("", page.read_text(encoding="utf-8")))


def slug(heading: str) -> str:
    """How GitHub calls a heading in a link."""
    words = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading.strip()).replace("`", "").lower()
    return re.sub(r"[^\w\- ]", "", words).replace(" ", "-")


def anchors(page: Path) -> set[str]:
    """The fragments that lead to a heading of ``page``; what occurs again is numbered."""
    found, seen = set[str](), dict[str, int]()
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    for heading in re.findall(r"^#{1,6}[ \t]+(.+?)[ \t#]*$", text, re.MULTILINE):
        name = slug(heading)
        times = seen[name] = seen.get(name, -1) + 1
        found.add(f"{name}-{times}" if times else name)
    return found


def broken(page: Path) -> list[str]:
    """Every relative link that leads to no file, or to no heading of it."""
    wrong = []
    for target in LINK.findall(prose(page)):
        if ABSOLUTE.match(target):
            continue
        path, _, fragment = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        if not file.exists() or (fragment and (file.suffix != ".md" or fragment not in anchors(file))):
            wrong.append(target)
    return wrong


def commands(page: Path) -> Iterator[tuple[int, list[str]]]:
    """(line, words) of each ``mxq ...`` in a block of shell."""
    for first, text in blocks(page, "sh"):
        for number, line in enumerate(text.splitlines(), start=first):
            words = shlex.split(line, comments=True)
            if words[:1] == ["mxq"]:
                yield number, words[1:]


def test_the_readme_is_short() -> None:
    assert len(README.read_text(encoding="utf-8").splitlines()) <= MOST_LINES


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files_and_headings(page: Path) -> None:
    assert broken(page) == []


def test_the_version_is_the_same_everywhere() -> None:
    """A release is tagged by ``mxq/version.py``; its notes are the changelog."""
    assert f"\nversion: {mxq.__version__}\n" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert f"\n## [{mxq.__version__}]\n" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_every_page_is_reached_from_the_readme() -> None:
    linked = {(ROOT / t.partition("#")[0]).resolve() for t in LINK.findall(prose(README)) if not ABSOLUTE.match(t)}
    assert set(PAGES) - {README} <= linked


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_python_compiles(page: Path) -> None:
    for line, text in blocks(page, "python"):
        compile("\n" * (line - 1) + text, str(page), "exec")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_and_their_options_exist(page: Path) -> None:
    known = get_command(app).commands
    for line, (name, *words) in commands(page):
        assert name in known, f"{page.name}:{line}: no command {name}"
        options = {
            option for parameter in known[name].params for option in (*parameter.opts, *parameter.secondary_opts)
        }
        unknown = [word for word in words if word.startswith("-") and word not in options]
        assert not unknown, f"{page.name}:{line}: mxq {name} has no {unknown[0]}"


def test_headings_and_links_are_read_as_github_reads_them(tmp_path: Path) -> None:
    assert slug("What it brings") == "what-it-brings"
    assert slug("preprocess.json") == "preprocessjson"
    assert slug("Beside `x_y`, and [more](z.md)!") == "beside-x_y-and-more"
    page = tmp_path / "a.md"
    page.write_text(
        "# One\n\n## Two\n## Two\n```sh\n# no heading\n[no](link.md)\n```\n`[nor](this.md)` [a](#two-1) [b](a.md#one)\n"
        "[c](gone.md) [d](#no-heading) ![e](gone.png) [f](https://example.org/x) [two\nlines](b.md)\n"
    )
    assert anchors(page) == {"one", "two", "two-1"}
    assert broken(page) == ["gone.md", "#no-heading", "gone.png", "b.md"]


@pytest.fixture
def newcomer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, object]:
    """A folder with a network, and names that pages take for granted."""
    import mxnet as mx
    import numpy as np
    from PIL import Image

    import mxq

    monkeypatch.chdir(tmp_path)
    images, labels = small_training.data(32)
    net = small_training.net()
    net.hybridize()
    net(mx.nd.array(images))
    net.export("net")
    (tmp_path / "images").mkdir()
    rng = np.random.default_rng(0)
    for i in range(8):
        Image.fromarray(rng.integers(0, 256, (12, 12, 3), dtype=np.uint8)).save(tmp_path / "images" / f"{i}.png")
    return {"net": net, "images": images, "labels": labels, "mx": mx, "mxq": mxq}


@pytest.mark.filterwarnings("ignore:Cannot decide type")  # MXNet, of an input whose type the graph fixes as it runs
@pytest.mark.parametrize("name", ["index.md", "goals.md"])
def test_the_first_pages_run(name: str, newcomer: dict[str, object]) -> None:
    """Each block of Python, in order, of ten lines at most, on a small network and pictures of its size."""
    pytest.importorskip("igraph")
    page = ROOT / "docs" / name
    found = [*blocks(page, "python")]
    assert found
    for line, text in found:
        assert len(text.splitlines()) <= 10, f"{name}:{line}"
        small = text.replace('"short_side": 256, "crop": 224', '"short_side": 10, "crop": 8')
        small = small.replace('(net, "images/")', '(net, "images/", preprocess={"resize": 8, "scale": 1 / 255})')
        exec(compile("\n" * (line - 1) + small, str(page), "exec"), newcomer)
    assert Path("net-int8-symbol.json").is_file()


NOTEBOOKS = sorted((ROOT / "docs" / "notebooks").glob("*.ipynb"))


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_run(path: Path) -> None:
    nbformat, client = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    notebook = nbformat.read(path, as_version=4)
    kept = {"metadata": {"path": str(path.parent)}}
    client.NotebookClient(notebook, timeout=600, resources=kept).execute()


def test_notebooks_show_what_they_give() -> None:
    """Executed as they lie here: every cell in order, reports as tables, no error, no path of the machine."""
    assert [path.stem for path in NOTEBOOKS] == ["classifier", "detector"]
    for path in NOTEBOOKS:
        text = path.read_text(encoding="utf-8")
        cells = [cell for cell in json.loads(text)["cells"] if cell["cell_type"] == "code"]
        assert [cell["execution_count"] for cell in cells] == [*range(1, len(cells) + 1)]
        kinds = [kind for cell in cells for out in cell["outputs"] for kind in out.get("data", {})]
        assert "text/html" in kinds
        assert not [out for cell in cells for out in cell["outputs"] if out["output_type"] == "error"]
        assert not re.search(r"/(root|home|tmp|work)/", text)


def test_an_onnx_file_comes_out_of_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As docs/qat.md has it, on the small network."""
    pytest.importorskip("onnx")
    page = ROOT / "docs" / "qat.md"
    text = next(text for _, text in blocks(page, "python") if "export_onnx" in text)
    images, labels = small_training.data(64)
    monkeypatch.chdir(tmp_path)
    exec(compile(text, str(page), "exec"), {"net": small_training.net(), "images": images, "labels": labels})
    assert (tmp_path / "net.onnx").stat().st_size > 1000


def test_the_loop_of_training_runs(capsys: pytest.CaptureFixture[str]) -> None:
    """The user's own loop in docs/qat.md, of 25 lines at most, on the small network: it learns."""
    import mxnet as mx

    page = ROOT / "docs" / "qat.md"
    text = next(text for _, text in blocks(page, "python") if "autograd.record" in text)
    assert len(text.splitlines()) <= 25
    images, labels = small_training.data(96)
    net = small_training.net()
    dataset = mx.gluon.data.ArrayDataset(images, labels)
    loader = mx.gluon.data.DataLoader(dataset, batch_size=16, shuffle=False)
    given = {"net": net, "images": images, "labels": labels, "loader": loader}
    exec(compile(text, str(page), "exec"), given)
    assert given["error"].asscalar() < 0.8 * math.log(3)
    assert given["step"] == 12
    assert "top1" in capsys.readouterr().out
