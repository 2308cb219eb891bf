"""Options that several commands share, and how their text is read."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mxq.errors import ConfigError, FormatError

if TYPE_CHECKING:
    from mxq.config import QuantConfig
    from mxq.data.preparation import Preparation
    from mxq.graph.ir import Model
    from mxq.quant.thresholds import Thresholds

_SIDE = "[0-9]{1,9}"
_ENDINGS = re.compile(r"(-symbol\.json|-\d{4,}\.params|-mxq\.json)$")
_LAYERS, _PICTURES, _WORKERS = "Which layers", "From pictures to inputs", "More than one process (mxq[distributed])"
_METHODS = "Methods for accuracy, one by one"
_SIMULATED = "Other hardware and fewer bits, simulated in float"


def option(*names: str, help: str, panel: str | None = None, metavar: str | None = None, **more: Any) -> Any:  # noqa: A002 - Typer's word
    """An option; its default is shown only where it ``show``s something.

    In ``help`` and ``metavar``, "{rounding}" stands for what that setting may be; see `with_choices`.
    """
    return typer.Option(
        *names, help=help, rich_help_panel=panel, metavar=metavar, show_default=more.pop("show", False), **more
    )


def with_choices(text: str, between: str) -> str:
    """``text`` with what settings may be in place of their names in braces."""
    from mxq.config import choices

    return re.sub(r"\{(\w+)\}", lambda found: between.join(choices(found[1])), text)


Prefix = Annotated[
    Path,
    typer.Argument(
        metavar="PREFIX", help="The network: PREFIX-symbol.json and PREFIX-NNNN.params.", show_default=False
    ),
]
PrefixOrFile = Annotated[
    Path,
    typer.Argument(
        metavar="PREFIX",
        help="The network: PREFIX-symbol.json and PREFIX-NNNN.params; or an ONNX file.",
        show_default=False,
    ),
]
Json = Annotated[bool, option("--json", help="Print one JSON document to stdout instead of tables.")]
Epoch = Annotated[
    int | None, option(min=0, metavar="N", help="Which PREFIX-NNNN.params; mxq's or the latest by default.")
]
BatchSize = Annotated[int, option(min=1, metavar="N", help="Examples to a batch.", show=True)]
Exclude = Annotated[
    list[str] | None,
    option(
        "--exclude",
        metavar="PATTERN",
        panel=_LAYERS,
        help='Leave these nodes in float: a name, a pattern such as "stage1_*", or "op:*Pooling". May be repeated.',
    ),
]
Include = Annotated[
    list[str] | None,
    option("--include", metavar="PATTERN", panel=_LAYERS, help="Quantize only these nodes. May be repeated."),
]
ExcludeOp = Annotated[
    list[str] | None,
    option("--exclude-op", metavar="OP", panel=_LAYERS, help="Leave operators of this type in float. May be repeated."),
]
ExcludePass = Annotated[
    list[str] | None,
    option(
        "--exclude-pass",
        metavar="PASS",
        panel=_LAYERS,
        help="Do not run this graph pass, one of an installed package or mxq's own. May be repeated.",
    ),
]
QuantizeMode = Annotated[
    str | None,
    option(
        metavar="{quantize_mode}",
        panel=_LAYERS,
        help="smart, the default: layers and what lies between them; full: all that has an int8 kernel.",
    ),
]
Recipe = Annotated[
    Path | None,
    option("--recipe", metavar="FILE", help="YAML file with the settings, see mxq.recipe; options here override it."),
]
CalibMode = Annotated[
    str | None,
    option(
        metavar="MODE",
        help="How ranges are chosen, by {weight_calib_mode}; naive is the default. Parameters follow a colon: "
        "percentile:99.99. Or none: at run time, without data.",
    ),
]
WeightCalibMode = Annotated[
    str | None,
    option(metavar="MODE", help="How weights are clipped, per channel, by the same; naive, the default: not at all."),
]
Dtype = Annotated[
    str | None,
    option(
        metavar="{quantized_dtype}", help="Type of activations; auto, the default: unsigned where nothing is negative."
    ),
]
InputDtype = Annotated[
    str | None,
    option(
        metavar="{input_dtype}",
        help="What the network is fed: floats, the default; int8 codes; or uint8 pixels. mxq.data makes the integers.",
    ),
]
InputShape = Annotated[
    str | None,
    option(
        metavar="CxHxW",
        help="The one shape of an example, 3x224x224, if the network will be fed no other: less is left to compute.",
    ),
]
Effort = Annotated[
    str | None,
    option(
        metavar="{effort}",
        help="What is done for accuracy: fast takes ranges and rounds; default, which it is without this option, looks "
        "at calibration data again, layer after layer; best at more of it.",
    ),
]
Target = Annotated[
    str | None,
    option(
        metavar="{target}",
        help="The CPU that the network is for; native, the default: this one. Without VNNI sums of two products can "
        "saturate, which is then guarded against.",
    ),
]
Rounding = Annotated[
    str | None,
    option(
        metavar="{rounding}",
        panel=_METHODS,
        help="Round weights to the nearest code, or so that the layer's output changes least (reconstruction).",
    ),
]
BiasCorrection = Annotated[
    str | None,
    option(
        metavar="{bias_correction}",
        panel=_METHODS,
        help="Make up for a layer's mean error in its bias: by BatchNorm's statistics (analytic), or by calibration "
        "data (empirical).",
    ),
]
Equalize = Annotated[
    bool | None,
    option("--equalize/--no-equalize", panel=_METHODS, help="Scale channels so that they share a range evenly."),
]
RangeChoice = Annotated[
    str | None,
    option(
        metavar="{range_choice}",
        panel=_METHODS,
        help="Take ranges as calibrated, or narrow them where the layers that read the tensor gain by it.",
    ),
]
RecalibrateBatchnorm = Annotated[
    bool | None,
    option(
        "--recalibrate-batchnorm/--no-recalibrate-batchnorm",
        panel=_METHODS,
        help="Give channels back the mean and variance that they have in float, where BatchNorm was folded.",
    ),
]
Stem = Annotated[
    str | None,
    option(
        metavar="{stem}",
        panel=_METHODS,
        help="Leave layers of little work in float whose rounding is much of the network's noise, as data shows; or "
        "not, which is quicker.",
    ),
]
BackendName = Annotated[
    str | None,
    option(
        "--backend",
        metavar="{backend}",
        panel=_SIMULATED,
        help="What it is planned for: MXNet, the default, or files for other runtimes, which mxq export writes.",
    ),
]
Simulate = Annotated[
    bool | None,
    option(
        "--simulate",
        panel=_SIMULATED,
        help="Make, instead of an int8 network, a float one that computes what --hardware would with --bits.",
    ),
]
HardwareName = Annotated[
    str | None,
    option(
        "--hardware",
        metavar="{hardware}",
        panel=_SIMULATED,
        help="Whose codes, and which tensors have them; onednn, the default, is what MXNet's kernels have.",
    ),
]
BitWidth = Annotated[
    str | None,
    option(
        "--bits",
        metavar="N|WnAn",
        panel=_SIMULATED,
        help="Bits of codes, 2 to 8; of weights and of all else: W4A8. 8 is the default.",
    ),
]
NumCalibExamples = Annotated[
    str | None,
    option(
        metavar="N|P%",
        help="How much of the data to calibrate on, spread evenly over it; by default 5%, at least 32 examples.",
    ),
]
Stats = Annotated[
    Path | None,
    option(
        metavar="FILE",
        help="Keep the statistics in this file, every few batches; run again after any end, it goes on from there.",
    ),
]
Workers = Annotated[
    int | None,
    option("--workers", min=1, metavar="N", panel=_WORKERS, help="Share the work among N processes on this machine."),
]
Scheduler = Annotated[
    str | None,
    option("--scheduler", metavar="ADDRESS", panel=_WORKERS, help="Or among the workers of this Dask scheduler."),
]
PreprocessFile = Annotated[
    Path | None,
    option(
        "--preprocess",
        metavar="FILE",
        panel=_PICTURES,
        help="JSON with the settings below; by default preprocess.json beside the network, where there is one.",
    ),
]
Mean = Annotated[
    str | None, option(metavar="M[,M,M]", panel=_PICTURES, help="Subtracted from the pixels (0..255, times --scale).")
]
Std = Annotated[str | None, option(metavar="S[,S,S]", panel=_PICTURES, help="What the difference is divided by.")]
Scale = Annotated[float | None, option(metavar="S", panel=_PICTURES, help="What the pixels are multiplied by first.")]
ShortSide = Annotated[
    int | None, option(min=1, metavar="N", panel=_PICTURES, help="Resize so that the shorter side is this long.")
]
Crop = Annotated[str | None, option(metavar="H[xW]", panel=_PICTURES, help="Then cut this from the middle.")]
Resize = Annotated[str | None, option(metavar="H[xW]", panel=_PICTURES, help="Or stretch to this size.")]
Color = Annotated[str | None, option(metavar="RGB|BGR|GRAY", panel=_PICTURES, help="Order of the channels.")]
Labels = Annotated[Path | None, option(metavar="FILE", help="Like labels.csv (columns file and label), for a folder.")]
Runtimes = Annotated[
    list[str] | None,
    option(
        "--runtime",
        metavar="onnxruntime|openvino",
        help="What runs the ONNX file; all that are installed by default. May be repeated.",
    ),
]
NumExamples = Annotated[
    int | None, option(min=1, metavar="N", help="Use so many examples, spread evenly; all by default.")
]
DATA = "A folder of images (with labels.csv for accuracy), a .npy or an .npz file."
CalibData = Annotated[Path, option(metavar="PATH", help=f"To calibrate on. {DATA}")]
EvalData = Annotated[
    Path | None,
    option(
        metavar="PATH",
        help="To measure on; by default all of --data. Without labels, the float network's answers are what counts.",
    ),
]
Workdir = Annotated[
    Path | None, option(metavar="DIR", help="Keep what is measured here; run again after any end, it goes on.")
]
Plot = Annotated[Path | None, option(metavar="FILE", help="Draw it: .png, .svg or .pdf.")]
PageFile = Annotated[
    Path | None,
    option(
        "--report",
        metavar="FILE",
        help="Also write a page about the result, .html, of 64 of the examples; mxq report takes all (mxq[report]).",
    ),
]
EvalExamples = Annotated[
    int | None, option(min=1, metavar="N", help="Measure on so many examples, spread evenly; on all by default.")
]


@dataclass(frozen=True)
class Pictures:
    """Options that say how pictures become a network's input. A command takes them as one parameter."""

    preprocess: PreprocessFile = None
    mean: Mean = None
    std: Std = None
    scale: Scale = None
    short_side: ShortSide = None
    crop: Crop = None
    resize: Resize = None
    color: Color = None

    def preparation(self, prefix: Path, config: QuantConfig | None = None) -> Preparation:
        """What the file says that was given, else the recipe, else what is known of the network; options on top.

        Raises:
            ConfigError: the recipe contradicts the rest.
        """
        from mxq.data.preparation import Preparation, beside
        from mxq.data.preprocess import Preprocess, read_preprocess

        recipe = None if config is None or config.preprocess is None else config.preprocess
        if self.preprocess is not None:
            found = Preparation(read_preprocess(self.preprocess), f"by {self.preprocess}", normalized=True)
        else:
            found = beside(prefix)
            if recipe is not None and not found.origin:
                found = Preparation.given(recipe, "as the recipe says")
        given = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "preprocess"}
        changed = {name: _parsed(name, value) for name, value in given.items() if value is not None}
        found = found.changed(changed, "by " + ", ".join(f"--{name.replace('_', '-')}" for name in changed))
        if recipe is not None and Preprocess.from_json(recipe, "preprocess") != found.settings:
            raise ConfigError(
                f"preprocess is {recipe} in the recipe, but pictures are read by {found.settings.to_json()}; allowed: "
                "the same (--preprocess FILE, or preprocess.json beside the network), or none in the recipe"
            )
        return found


@dataclass(frozen=True)
class Settings:
    """Options for the fields of `QuantConfig`, and the recipe that has them in a file; one parameter of a command.

    ``effort`` is not among them, as ``mxq tune`` tries all of them.
    """

    recipe: Recipe = None
    calib_mode: CalibMode = None
    num_calib_examples: NumCalibExamples = None
    target: Target = None
    dtype: Dtype = None
    input_dtype: InputDtype = None
    input_shape: InputShape = None
    exclude: Exclude = None
    include: Include = None
    exclude_op: ExcludeOp = None
    exclude_pass: ExcludePass = None
    quantize_mode: QuantizeMode = None
    weight_calib_mode: WeightCalibMode = None
    rounding: Rounding = None
    bias_correction: BiasCorrection = None
    equalize: Equalize = None
    range_choice: RangeChoice = None
    recalibrate_batchnorm: RecalibrateBatchnorm = None
    stem: Stem = None

    def config(self, effort: str | None = None) -> QuantConfig:
        """See `config_of`."""
        return config_of(effort=effort, **{field.name: getattr(self, field.name) for field in fields(self)})


@dataclass(frozen=True)
class AllSettings(Settings):
    """And whose codes there are to be; a command that goes over those itself takes `Settings`."""

    backend: BackendName = None
    simulate: Simulate = None
    hardware: HardwareName = None
    bits: BitWidth = None


def widths_of(text: str | None) -> list[str] | None:
    """The widths of "8,4,W4A8"; None where nothing was given."""
    return None if text is None else [part.strip() for part in text.split(",") if part.strip()]


def written_prefix(text: str) -> Path:
    """A prefix to write to; a folder is none, which `Path` would forget."""
    if text.endswith("/") or Path(text).name in ("", ".."):
        what = "a folder" if text else "empty"
        raise typer.BadParameter(f"{text!r} is {what}; allowed: a path whose last part begins the files' names")
    return Path(text)


def given_of(options: Mapping[str, Any]) -> dict[str, Any]:
    """Those options that were given."""
    return {name: value for name, value in options.items() if value is not None}


def prefix_of(path: Path) -> Path:
    """``net-symbol.json``, as a shell completes it, means ``net``."""
    name = _ENDINGS.sub("", path.name)
    return path.with_name(name) if name else path  # "." has no name, and "-symbol.json" none before its ending


def output_of(out: Path, prefix: Path) -> Path:
    """Where to write what is made of the network at ``prefix``, looked at before any work.

    Raises:
        ConfigError: that is the network itself, or in no folder that exists.
    """
    out = prefix_of(out)
    if prefix_of(prefix).resolve() == out.resolve():
        raise ConfigError(f"--out is {str(out)!r}, the float network itself; choose another prefix")
    if not out.parent.is_dir():
        raise ConfigError(f"--out is {str(out)!r}, but there is no folder {str(out.parent)!r}")
    return out


def check_plot(path: Path | None) -> None:
    """Whether a picture can be written to ``path``, looked at before any work.

    Raises:
        ConfigError: it cannot, and why.
    """
    if path is not None:
        from mxq.reporting.plots import check_place

        check_place(path)


def check_page(path: Path | None) -> None:
    """Whether a page can be written to ``path``, looked at before any work.

    Raises:
        ConfigError: it cannot, and why.
    """
    if path is not None:
        from mxq.drawing.libraries import check_page as check

        check(path)


def read_thresholds(path: Path) -> Thresholds:
    """What ``mxq calibrate --out`` wrote, or the record of a quantized network has.

    Raises:
        FormatError: the file cannot be read, or is another.
    """
    from mxq.formats.reading import read_text
    from mxq.quant.thresholds import Thresholds

    text = read_text(path)
    try:
        return Thresholds.from_json(text)
    except FormatError as error:
        raise FormatError(f"{path}: {error}") from None


def config_of(
    *,
    recipe: Path | None = None,
    exclude: Sequence[str] | None = None,
    include: Sequence[str] | None = None,
    exclude_op: Sequence[str] | None = None,
    exclude_pass: Sequence[str] | None = None,
    dtype: str | None = None,
    **others: str | bool | None,
) -> QuantConfig:
    """The settings of ``recipe``, or the defaults, with what was given as options on top; None was not given.

    Lists of nodes, op types and passes add to those of the recipe. ``others`` are fields of `QuantConfig` by name.
    """
    from mxq.config import QuantConfig
    from mxq.recipe import read

    base = QuantConfig() if recipe is None else read(recipe)
    added = {
        "exclude_layers": (*base.exclude_layers, *(exclude or ())),
        "include_layers": (*base.include_layers, *(include or ())),
        "exclude_operators": (*base.exclude_operators, *(exclude_op or ())),
        "exclude_passes": (*base.exclude_passes, *(exclude_pass or ())),
    }
    given = {"quantized_dtype": dtype, **others}
    changes: dict[str, Any] = {**added, **given_of(given)}
    return replace(base, **changes)


def _parsed(name: str, value: Any) -> Any:
    if name in ("mean", "std"):
        return _numbers(f"--{name}", value)
    return _sides(f"--{name}", value) if name in ("crop", "resize") else value


def _numbers(option_name: str, text: str) -> list[float]:
    """The numbers of "124,116,104"."""
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise ConfigError(
            f"{option_name} is {text!r}; allowed: one number, or one for each channel, such as 124,116,104"
        ) from None


def _sides(option_name: str, text: str) -> list[int]:
    """The two sides of "240x320" (height x width), or of the square "224"."""
    parts = re.split(r"[x,]", text)
    if len(parts) > 2 or not all(re.fullmatch(_SIDE, part) for part in parts):
        raise ConfigError(f"{option_name} is {text!r}; allowed: a side such as 224, or height x width such as 240x320")
    return [int(parts[0]), int(parts[-1])]


def shapes_given(texts: Sequence[str] | None) -> dict[str, tuple[int, ...]]:
    """Input name -> shape of one example, from ``--shape``; under "" that of the only input."""
    shapes: dict[str, tuple[int, ...]] = {}
    for text in texts or ():
        name, _, sides = text.rpartition("=")
        if not re.fullmatch(rf"{_SIDE}([x,]{_SIDE})*", sides) or name in shapes:
            raise ConfigError(f"--shape is {text!r}; allowed: [INPUT=]3,224,224, once for each input")
        shapes[name] = tuple(int(side) for side in re.split(r"[x,]", sides))
    return shapes


def shapes_of(
    model: Model, given: Sequence[str] | None, prefix: Path, made: Path | None = None
) -> dict[str, tuple[int, ...]]:
    """Input name -> shape of one example: by ``--shape``, else as a record says, or preprocess.json for one input.

    Args:
        model: whose inputs are meant.
        given: values of ``--shape``.
        prefix: of the float network, or of one that was made.
        made: of what was made of it.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    for text in given or ():
        name, _, sides = text.rpartition("=")
        name = name or (model.inputs[0] if len(model.inputs) == 1 else "")
        if name not in model.inputs or not re.fullmatch(rf"{_SIDE}([x,]{_SIDE})*", sides):
            raise ConfigError(
                f"--shape is {text!r}; allowed: [INPUT=]3,224,224 with an input of {', '.join(model.inputs)}"
            )
        shapes[name] = tuple(int(side) for side in re.split(r"[x,]", sides))
    for recorded in [] if given else [p for p in (made, prefix) if p is not None]:
        from mxq.artifacts import record

        known = record.shapes_of(record.read(recorded)) if record.recorded(recorded) else {}
        shapes = shapes or {name: shape for name, shape in known.items() if name in model.inputs}
    if not shapes and len(model.inputs) == 1:
        from mxq.data.preparation import beside

        shape = beside(prefix).settings.shape
        shapes = {} if shape is None else {model.inputs[0]: shape}
    missing = [name for name in model.inputs if name not in shapes]
    if missing:
        raise ConfigError(
            f"the shape of input {missing[0]!r} is not known; give --shape {missing[0]}=3,224,224 or such"
        )
    return shapes
