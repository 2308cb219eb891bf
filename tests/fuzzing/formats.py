"""Every format that mxq reads: its seeds, how they are mutated and written, and what mxq then does with them."""

from __future__ import annotations

import io
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

import mxq
from fuzzing import binary, texts
from fuzzing.graphs import graph_mutated
from fuzzing.networks import INT8, KINDS
from fuzzing.operators import operators_mutated
from fuzzing.seeds import PREPROCESS, RECIPES
from fuzzing.trees import bytes_mutated, dump, mutated
from mxq import observers, recipe, runtime
from mxq.artifacts import record
from mxq.calibration.statistics import Statistics
from mxq.cli import app
from mxq.config import Budget
from mxq.data.examples import open_source, read_picture
from mxq.data.feeding import feeds
from mxq.data.preprocess import Preprocess, read_preprocess
from mxq.data.readers import Records, record_count
from mxq.evaluation import labelled
from mxq.quant.thresholds import Thresholds
from mxq.storage.checksums import PACKED
from mxq.tuning.driver import seconds_in, trials_in
from mxq.tuning.journal import Journal
from mxq.tuning.layer_sensitivity import _measured

QUIET = {"effort": "fast"}


@dataclass(frozen=True)
class Format:
    """A format.

    Attributes:
        name: as an option of the command names it.
        share: how often it comes, beside the others.
        seeds: valid documents.
        mutate: a changed copy of a document.
        write: a document into an empty folder.
        use: what mxq does with the folder; returns, or raises an `MxqError`.
    """

    name: str
    share: int
    seeds: tuple[Any, ...]
    mutate: Callable[[Any, Random], Any]
    write: Callable[[Any, Path], None]
    use: Callable[[Path], None]


def all_formats(seeds: Path) -> dict[str, Format]:
    """By name; ``seeds`` is a folder that `seeds.make` filled."""
    return {form.name: form for form in _formats(seeds)}


def _formats(seeds: Path) -> Iterator[Format]:
    data = np.load(seeds / "data.npy")
    documents = {name: json.loads((seeds / f"{name}-symbol.json").read_bytes()) for name in NETS}
    yield Format("symbol", 3, tuple(documents.items()), _second(_tree(graph_mutated)), _symbol(seeds), _quantize(data))
    others = {n: json.loads((seeds / f"{n}-symbol.json").read_bytes()) for n in (*KINDS, *INT8)}
    yield Format("operators", 3, tuple(others.items()), _second(_tree(operators_mutated)), _kind(seeds), _quantize_kind)
    networks = tuple((n, binary.params_of((seeds / f"{n}-0000.params").read_bytes())) for n in NETS)
    yield Format("params", 2, networks, _second(binary.params_mutated), _params(seeds), _quantize(data))
    kinds = ("kinds", "numpy")
    alone = tuple(binary.params_of((seeds / f"{n}.params").read_bytes()) for n in kinds)
    older = tuple((seeds / f"{n}.params").read_bytes() for n in ("oldest", "old"))
    yield Format("arrays", 2, alone + older, binary.params_mutated, _into("a.params"), _load_params)
    archives = tuple(binary.Archive.of((seeds / f"{n}.npz").read_bytes()) for n in ("data", "packed", "pixels"))
    yield Format("npz", 3, archives, binary.archive_mutated, _into("a.npz"), _feeds("a.npz"))
    plain = tuple((seeds / f"{n}.npy").read_bytes() for n in ("data", "pixels", "order"))
    yield Format("npy", 2, plain, binary.npy_mutated, _into("a.npy"), _feeds("a.npy"))
    kept = tuple(binary.Archive.of((seeds / f"{n}.stats").read_bytes()) for n in ("plain", "naive"))
    yield Format("stats", 3, kept, _statistics_mutated, _into("a.stats"), _statistics)
    packed = (binary.Archive.of((seeds / f"plain{PACKED}").read_bytes()),)
    yield Format("packed", 1, packed, _packed_mutated, _into(f"m{PACKED}"), _unpack)
    shards = tuple(((seeds / f"{n}.rec").read_bytes(), (seeds / f"{n}.idx").read_text()) for n in ("shard", "vectors"))
    yield Format("rec", 2, shards, _shard_mutated, _shard, _records)
    yield Format("labels", 1, ((seeds / "labels.csv").read_text(),), texts.text_mutated, _labels(seeds), _folder)
    yield Format("preprocess", 2, PREPROCESS, _tree(mutated), _into("preprocess.json"), _preprocess(seeds))
    ranges = (json.loads((seeds / "plain-ranges.json").read_bytes()),)
    yield Format("ranges", 2, ranges, _tree(mutated), _into("ranges.json"), _ranges(seeds, data))
    records = tuple((n, json.loads((seeds / f"{n}-mxq.json").read_bytes())) for n in ("plain-int8", "residual-int8"))
    yield Format("record", 2, records, _second(_tree(mutated)), _record(seeds), _read_record)
    journals = tuple(map(_entries, sorted((seeds / "work").glob("*.jsonl"))))
    yield Format("journal", 1, journals, _second(_journal_mutated), _write_journal, _journal)
    yield Format("recipe", 2, RECIPES, _recipe_mutated, _into("recipe.yml"), _recipe(seeds))
    encoded = tuple((p.suffix, p.read_bytes()) for p in sorted((seeds / "pictures").iterdir()))
    yield Format("picture", 2, encoded, _second(bytes_mutated), _picture, _pictures)
    yield Format("words", 1, tuple(_commands(seeds)), texts.arguments_mutated, _words, _command)


NETS = ("plain", "residual", "plain-int8", "residual-int8")

# ---- writing -----------------------------------------------------------------------------------------------------


def _bytes(document: Any) -> bytes:
    """Any document as the content of a file."""
    if isinstance(document, bytes):
        return document
    if isinstance(document, binary.Archive | binary.Params):
        return document.bytes()
    return (document if isinstance(document, str) else dump(document)).encode("utf-8", "surrogatepass")


def _into(name: str) -> Callable[[Any, Path], None]:
    return lambda document, folder: _write(folder / name, document)


def _write(path: Path, document: Any) -> None:
    path.write_bytes(_bytes(document))


def _beside(seeds: Path, name: str, folder: Path, *ends: str) -> None:
    """The valid files of the network ``name``, as "m"."""
    for end in ends:
        shutil.copyfile(seeds / f"{name}{end}", folder / f"m{end}")


def _symbol(seeds: Path) -> Callable[[Any, Path], None]:
    def write(document: tuple[str, Any], folder: Path) -> None:
        name, symbol = document
        _beside(seeds, name, folder, "-0000.params")
        _write(folder / "m-symbol.json", symbol)

    return write


def _kind(seeds: Path) -> Callable[[Any, Path], None]:
    def write(document: tuple[str, Any], folder: Path) -> None:
        _symbol(seeds)(document, folder)
        _beside(seeds, document[0], folder, "-inputs.npz")

    return write


def _params(seeds: Path) -> Callable[[Any, Path], None]:
    def write(document: tuple[str, Any], folder: Path) -> None:
        name, params = document
        _beside(seeds, name, folder, "-symbol.json")
        _write(folder / "m-0000.params", params)

    return write


def _record(seeds: Path) -> Callable[[Any, Path], None]:
    def write(document: Any, folder: Path) -> None:
        name, text = document
        _beside(seeds, name, folder, "-symbol.json", "-0000.params")
        _write(folder / "m-mxq.json", text)

    return write


def _labels(seeds: Path) -> Callable[[Any, Path], None]:
    def write(document: Any, folder: Path) -> None:
        for name in ("rgb.png", "rgb.jpg", "L.png"):
            shutil.copyfile(seeds / "pictures" / name, folder / name)
        _write(folder / "labels.csv", document)

    return write


def _shard(document: tuple[Any, Any], folder: Path) -> None:
    _write(folder / "a.rec", document[0])
    _write(folder / "a.idx", document[1])


def _picture(document: tuple[str, bytes], folder: Path) -> None:
    _write(folder / f"a{document[0]}", document[1])


def _words(document: tuple[str, ...], folder: Path) -> None:
    (folder / "words").write_text(json.dumps(document))


# ---- mutations that are put together -----------------------------------------------------------------------------

Mutation = Callable[[Any, Random], Any]


def _tree(change: Mutation) -> Mutation:
    """Of a JSON document: as a tree, sometimes as bytes."""

    def mutate(document: Any, rng: Random) -> Any:
        if isinstance(document, bytes):
            return bytes_mutated(document, rng)
        return bytes_mutated(_bytes(document), rng) if rng.random() < 0.1 else change(document, rng)

    return mutate


def _second(change: Mutation) -> Mutation:
    """Of a pair whose first says what it belongs to."""
    return lambda document, rng: (document[0], change(document[1], rng))


def _shard_mutated(document: tuple[Any, Any], rng: Random) -> tuple[Any, Any]:
    data, index = document
    return (data, texts.text_mutated(index, rng)) if rng.random() < 0.4 else (bytes_mutated(data, rng), index)


def _recipe_mutated(document: Any, rng: Random) -> Any:
    if isinstance(document, str) and rng.random() < 0.05:
        return document + _laughs(rng)
    return texts.text_mutated(document, rng, texts.YAML)


def _laughs(rng: Random) -> str:
    """A few hundred bytes that unfold to 9 ** 9 words."""
    field = rng.choice(("calib_mode", "exclude_layers", "overrides", "preprocess", "nosuch"))
    lines = ["&a [x,x,x,x,x,x,x,x,x]", *(f"&{chr(98 + k)} [{','.join(['*' + chr(97 + k)] * 9)}]" for k in range(8))]
    return f"\n{field}:\n" + "".join(f"- {line}\n" for line in lines)


def _statistics_mutated(document: Any, rng: Random) -> Any:
    """The archive, or the JSON in its ``about``, which is changed as JSON."""
    if isinstance(document, bytes) or rng.random() < 0.5:
        return binary.archive_mutated(document, rng)
    members = dict(document.members)
    try:
        about = json.loads(str(np.load(io.BytesIO(members["about.npy"]))))
        members["about.npy"] = binary.npy(np.array(dump(mutated(about, rng))))
    except Exception:  # changed before
        return binary.archive_mutated(document, rng)
    return binary.Archive(tuple(members.items()), document.packed)


def _entries(path: Path) -> tuple[Any, list[Any]]:
    """What a journal is about, and its lines."""
    entries = [json.loads(line) for line in path.read_text().splitlines()]
    return entries[0]["about"], entries


def _journal_mutated(document: Any, rng: Random) -> Any:
    """An entry changed as JSON, entries lost or moved; or the bytes of all."""
    if isinstance(document, bytes) or not document or rng.random() < 0.2:
        return bytes_mutated(document if isinstance(document, bytes) else _jsonl(document), rng)
    at = rng.randrange(len(document))
    kind = rng.randrange(6)
    if kind < 4:
        return [*document[:at], mutated(document[at], rng), *document[at + 1 :]]
    return document[:at] + document[at + 1 :] if kind == 4 else [document[at], *document]


def _write_journal(document: tuple[Any, Any], folder: Path) -> None:
    about, entries = document
    (folder / "about").write_text(json.dumps(about))
    (folder / "journal.jsonl").write_bytes(entries if isinstance(entries, bytes) else _jsonl(entries))


def _jsonl(entries: list[Any]) -> bytes:
    return b"".join(_bytes(entry) + b"\n" for entry in entries)


# ---- use ---------------------------------------------------------------------------------------------------------


def _quantize(data: Any) -> Callable[[Path], None]:
    """A float network is quantized, an int8 one loaded and run."""

    def use(folder: Path) -> None:
        model = runtime.load_model(folder / "m")
        if any("quantize" in node.op or node.attrs.get("quantized") for node in model.graph.operators):
            mxq.load(folder / "m")
            run_once(model, data)
        else:
            mxq.quantize_net(folder / "m", data, **QUIET)

    return use


def _quantize_kind(folder: Path) -> None:
    """As `_quantize`, on the network's own inputs."""
    with np.load(folder / "m-inputs.npz") as inputs:
        _quantize(inputs["data"])(folder)


def run_once(model: Any, data: Any) -> None:
    name = next(iter(model.inputs), "data")
    runtime.MxnetRunner().compile(model)({name: data})


def _packed_mutated(document: binary.Archive | bytes, rng: Random) -> binary.Archive | bytes:
    """Members or bytes, or what the file says of itself."""
    if isinstance(document, bytes) or rng.random() < 0.6:
        return binary.archive_mutated(document, rng)
    return replace(document, members=tuple((n, _about_mutated(n, c, rng)) for n, c in document.members))


def _about_mutated(name: str, content: bytes, rng: Random) -> bytes:
    if name != "about.npy":
        return content
    try:
        about = json.loads(np.load(io.BytesIO(content)).tobytes())
    except Exception:  # mutated before, and numpy trusts what it reads
        return bytes_mutated(content, rng)
    return binary.npy(np.frombuffer(_bytes(mutated(about, rng)), np.uint8))


def _unpack(folder: Path) -> None:
    mxq.unpack(folder / f"m{PACKED}")
    mxq.load(folder / "m")


def _load_params(folder: Path) -> None:
    runtime.load_params(folder / "a.params")


def _feeds(name: str) -> Callable[[Path], None]:
    def use(folder: Path) -> None:
        source = open_source(folder / name, ["data"], batch_size=4)
        for feed, _ in labelled(source, ["data"]):
            _total(feed)
        for feed in feeds(source.take(3), ["data"], Budget(percent=50.0)):
            _total(feed)

    return use


def _total(feed: Mapping[str, Any]) -> float:
    return sum(float(np.size(array)) for array in feed.values())


def _statistics(folder: Path) -> None:
    kept = Statistics.load(folder / "a.stats")
    kept.merge(Statistics(kept.states, (), kept.network))
    asked = {name: observers.get("entropy" if "hist" in s.kind else "naive") for name, s in kept.states.items()}
    kept.thresholds(asked)
    str((kept.examples, kept.batches, kept.complete))
    kept.save(folder / "again.stats")


def _records(folder: Path) -> None:
    count = record_count(folder / "a.idx")
    for payload in ((folder / "a.rec", 0, None), (folder / "a.rec", min(1, count - 1), 2)):
        for batch in Records(Preprocess(), 2)(payload):
            len(batch)


def _folder(folder: Path) -> None:
    source = open_source(folder, ["data"], Preprocess(resize=(8, 8)))
    for feed, _ in labelled(source, ["data"]):
        _total(feed)


def _preprocess(seeds: Path) -> Callable[[Path], None]:
    from PIL import Image

    with Image.open(seeds / "pictures" / "rgb.png") as opened:
        image = opened.convert("RGB")

    def use(folder: Path) -> None:
        settings = read_preprocess(folder / "preprocess.json")
        found = settings(image)
        assert np.isfinite(found).all(), f"not finite with {settings}"
        Preprocess.from_json(settings.to_json())
        next(iter(open_source(seeds / "pixels.npz", ["data"], settings)))

    return use


def _ranges(seeds: Path, data: Any) -> Callable[[Path], None]:
    def use(folder: Path) -> None:
        found = Thresholds.from_json((folder / "ranges.json").read_bytes())
        found.to_json()
        mxq.quantize_net(seeds / "plain", thresholds=found, **QUIET)

    return use


def _read_record(folder: Path) -> None:
    report = record.read(folder / "m")
    for decision in report.plan.decisions:
        record.explain(report, record.find(report, decision.node))
    record.to_json(report)
    record.check(folder / "m")
    _run(folder, "inspect", str(folder / "m"))


def _journal(folder: Path) -> None:
    """What the searches ask of a journal about the same."""
    kept = Journal.open(folder / "journal.jsonl", json.loads((folder / "about").read_text()))
    if any("kind" in entry for entry in kept.entries if isinstance(entry, dict)):
        trials_in(kept)
        seconds_in(kept)
    else:
        kept.read(_measured)


def _recipe(seeds: Path) -> Callable[[Path], None]:
    def use(folder: Path) -> None:
        config = recipe.read(folder / "recipe.yml")
        recipe.loads(recipe.dumps(config))

    return use


def _pictures(folder: Path) -> None:
    path = next(folder.iterdir())
    for settings in (Preprocess(), Preprocess(color="GRAY", resize=(8, 8))):
        read_picture(path, path.name, settings)


def _commands(seeds: Path) -> Iterator[tuple[str, ...]]:
    net, stats = str(seeds / "plain"), str(seeds / "plain.stats")
    yield ("plot", stats)
    yield ("merge-stats", stats, str(seeds / "other.stats"), "--out", "OUT/x.stats")
    yield ("inspect", net + "-int8")
    yield ("explain", net + "-int8", "--node", "p_conv0_fwd")
    yield ("bench", net, "--shape", "3x8x8", "--batch-size", "1", "--repeats", "1")
    pixels = str(seeds / "pixels.npy")
    yield ("calibrate", net, "--data", pixels, "--mean", "1,2,3", "--std", "1", "--scale", "0.5", "--out", "OUT/r.json")
    yield ("quantize", net, "--data", str(seeds / "data.npy"), "--effort", "fast", "--num-calib-examples", "50%",
           "--exclude", "op:Flatten", "--input-shape", "3x8x8", "--out", "OUT/q")  # fmt: skip


def _command(folder: Path) -> None:
    words = json.loads((folder / "words").read_text())
    _run(folder, *(w.replace("OUT/", f"{folder}/") for w in words))


def _run(folder: Path, *words: str) -> None:
    """The command; raises SystemExit with its code where that is not 0."""
    before = Path.cwd()
    os.chdir(folder)  # whatever is written, and be it by mistake, goes with the case
    try:
        app(args=list(words), prog_name="mxq")
    except SystemExit as end:
        if end.code not in (0, None, 1, 2):
            raise AssertionError(f"exit code {end.code}") from None
        raise
    finally:
        os.chdir(before)
