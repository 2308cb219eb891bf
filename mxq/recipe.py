"""Recipes: a `QuantConfig` as YAML, to keep beside a network and give to ``mxq quantize --recipe``.

A recipe holds the fields of `QuantConfig` under their names; what it leaves out has its default. A complete one::

    format: mxq-recipe/1
    calib_mode: percentile:99.99      # of every tensor, unless `overrides` say otherwise
    weight_calib_mode: naive          # weights are not clipped
    quantized_dtype: auto             # int8, or uint8 where nothing is negative
    quantize_mode: smart              # or full: all that has an int8 kernel
    quantize_granularity: channel-wise
    num_calib_examples: 5%            # or a count
    exclude_layers: [stem_conv0, "op:*Pooling"]   # names, patterns of names, patterns of op types
    exclude_layers_match: [shortcut]  # plain parts of names
    exclude_operators: [Flatten]
    exclude_passes: [split_groups]    # graph passes that are not run
    input_dtype: float32              # or int8, uint8: what the network is fed (mxq.data)
    preprocess: {mean: [124, 116, 104], std: [58, 57, 57]}   # from pixels to the float network's input
    effort: default                   # or fast, best: what is done for accuracy; the next six replace its parts
    equalize: true                    # scale channels so that they share a range evenly
    bias_correction: empirical        # or analytic, none
    rounding: reconstruction          # or nearest
    range_choice: layer               # or tensor
    recalibrate_batchnorm: false      # or true: restore the means and variances of channels
    stem: float                       # or int8: layers of little work and much noise
    input_shape: [3, 224, 224]        # of one example, if it will be fed no other
    target: avx512_vnni               # or avx512, avx2: the CPU that it is for; native: this one
    backend: mxnet                    # or onnx, of mxq export and mxq.quantize_net: files for other runtimes
    simulate: false                   # true: float that computes what the next two would; without, int8 of oneDNN
    hardware: onednn                  # or tensorrt, acl, tvm, snpe, fbgemm, onnx, onnxruntime, openvino, academic
    bits: W8A8                        # of codes of weights and of all else, 2 to 8; or one number for both
    include_layers: []                # where given, only these are quantized
    overrides:                        # pattern -> settings; later ones win
      op:Convolution: {calib_mode: entropy, weight_calib_mode: "percentile:99.9"}
      stage1_*: {dtype: int8}
      data: {threshold: [-2.1, 2.6]}
      output_fc: {quantize: false, bits: W8A8}   # bits: of its weight and of what it reads
    training:                         # of mxq train and mxq tune: the fields of mxq.qat.TrainConfig
      original_epochs: 90             # of the float network's training, and what is changed of it
      original_lr: 0.1
      original_batch_size: 256
      max_epochs_divisor: 10
      lr_decay_factor: 0.01
      batch_size_divisor: 2
      warmup_epochs_divisor: 10
      cosine_final_lr_ratio: 0.01
    qat: {bits_w: 4, bits_a: 4}       # of mxq train alone: the fields of mxq.qat.QatConfig

Text that starts with ``*`` or another sign of YAML, or reads as a number, stands in quotes.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, TypeVar

import yaml
from yaml.reader import ReaderError

from mxq.config import QuantConfig
from mxq.errors import ConfigError, FormatError
from mxq.formats.reading import read_text
from mxq.storage.writing import write_text

T = TypeVar("T")

FORMAT = "mxq-recipe/1"
SECTIONS: Final = ("training", "qat")
"""What a recipe may hold beside the fields of `QuantConfig`: mappings that are those of other settings."""
LONGEST: Final = 1 << 18
"""Bytes of the longest recipe."""
MOST_VALUES: Final = 10_000
"""In a recipe whose aliases are written out: a few lines of them can stand for more than any memory holds."""
_FLOAT = "tag:yaml.org,2002:float"
_EXPONENT = re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+")
"""1e-3: a number to all but YAML 1.1, which reads text."""


class _Loader(yaml.SafeLoader):
    """Refuses a key that a mapping has twice, of which YAML's own keeps the last."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        lines: dict[tuple[str, str], int] = {}
        for key in (k for k, _ in node.value if isinstance(k, yaml.ScalarNode)):
            if (key.tag, key.value) in lines:
                problem = f"the key {key.value!r} was given before, in line {lines[key.tag, key.value]}"
                raise yaml.MarkedYAMLError(problem=problem, problem_mark=key.start_mark)
            lines[key.tag, key.value] = key.start_mark.line + 1
        return node

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        """The value of a node; what its tag promises and it is not, such as ``!!bool maybe``, is refused."""
        try:
            return super().construct_object(node, deep=deep)
        except (yaml.YAMLError, RecursionError):
            raise
        except Exception as error:
            kind = node.tag.rpartition(":")[2]
            reason = f": {error}" if isinstance(error, ValueError) else ""
            problem = f"{str(node.value)[:80]!r} is no {kind}{reason}"
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=node.start_mark) from None


class _Dumper(yaml.SafeDumper):
    """Writes what `_Loader` reads: mappings over several lines, lists in one."""

    def represent_sequence(self, tag: str, sequence: Any, flow_style: bool | None = True) -> yaml.SequenceNode:
        return super().represent_sequence(tag, sequence, flow_style)

    def represent_str(self, data: str) -> yaml.ScalarNode:
        """In double quotes, with escapes, where PyYAML would break the text at NEL and add blanks to it."""
        return self.represent_scalar("tag:yaml.org,2002:str", data, None if data.isprintable() else '"')

    def ignore_aliases(self, data: Any) -> bool:
        return True


for _each in (_Loader, _Dumper):
    _each.add_implicit_resolver(_FLOAT, re.compile(f"^(?:{_EXPONENT.pattern})$"), list("-+0123456789"))


_Dumper.add_representer(str, _Dumper.represent_str)


def dumps(config: QuantConfig) -> str:
    """The recipe of ``config``, without the fields that have their defaults.

    Raises:
        ConfigError: it holds a predicate.
    """
    data = config.to_json()
    QuantConfig.from_json(data)  # what cannot be read is not written
    defaults = QuantConfig().to_json()
    changed = {name: value for name, value in data.items() if value != defaults[name]}
    if "overrides" in changed:
        layers = changed["overrides"].items()
        changed["overrides"] = {p: {k: v for k, v in layer.items() if v is not None} for p, layer in layers}
    document = {"format": FORMAT, **changed}
    return yaml.dump(document, Dumper=_Dumper, sort_keys=False, allow_unicode=True, default_flow_style=False, width=120)


def loads(text: str, source: str = "recipe") -> QuantConfig:
    """Reads a recipe; ``source`` is what messages call it.

    Raises:
        FormatError: not YAML, or not a recipe of this format.
        ConfigError: an unknown field, or a value that is not allowed.
    """
    data = _mapping(text, source)
    found = data.pop("format", None)
    if found != FORMAT:
        remedy = "" if found is not None else f"; begin with the line format: {FORMAT}"
        raise FormatError(f"{source} has format {found!r}; this version reads {FORMAT!r}{remedy}")
    data = {name: value for name, value in data.items() if name not in SECTIONS}
    try:
        return QuantConfig.from_json(data)
    except ConfigError as error:
        raise ConfigError(f"{source}: {error}") from None


def section(path: str | os.PathLike[str], name: str, parse: Callable[[Any], T]) -> T:
    """What ``parse`` makes of a section of the recipe in a file, of an empty one where the file has none.

    Raises:
        FormatError: as of `read`.
        ConfigError: what ``parse`` says of it; the message names the file.
    """
    source = os.fspath(path)
    text = read_text(path, most=LONGEST)
    loads(text, source)
    found = _mapping(text, source).get(name)
    try:
        return parse({} if found is None else found)
    except ConfigError as error:
        raise ConfigError(f"{source}, {name}: {error}") from None


def read(path: str | os.PathLike[str]) -> QuantConfig:
    """Reads the recipe in a file.

    Raises:
        FormatError: no such file, not YAML, or not a recipe of this format.
        ConfigError: an unknown field, or a value that is not allowed.
    """
    return loads(read_text(path, most=LONGEST), os.fspath(path))


def write(config: QuantConfig, path: str | os.PathLike[str]) -> Path:
    """Writes the recipe of ``config``; the file appears whole or not at all.

    Raises:
        ConfigError: it holds a predicate.
        FormatError: the folder does not exist or cannot be written.
    """
    return write_text(path, dumps(config))


def _mapping(text: str, source: str) -> dict[Any, Any]:
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if isinstance(node, yaml.MappingNode):
            _check_size(node)
            return dict(loader.construct_document(node))
    except (yaml.YAMLError, RecursionError) as error:
        raise FormatError(f"{source}{_problem(error, text)}") from None
    line = 1 if node is None else node.start_mark.line + 1
    found = "nothing" if node is None else repr(node.value) if isinstance(node, yaml.ScalarNode) else "a list"
    raise FormatError(f"{source}, line {line}: found {found}; a recipe is a mapping that begins with format: {FORMAT}")


def _check_size(root: yaml.Node) -> None:
    """Refuses a document whose aliases, written out, are too many values, or one within itself."""
    sizes = dict[int, int | None]()

    def size(node: yaml.Node) -> int:
        if isinstance(node, yaml.ScalarNode):
            return 1
        if id(node) not in sizes:
            sizes[id(node)] = None  # until it is known: only a node within itself asks before
            pairs = isinstance(node, yaml.MappingNode)
            parts = [part for pair in node.value for part in pair] if pairs else node.value
            sizes[id(node)] = 1 + sum(map(size, parts))
        found = sizes[id(node)]
        if found is None or found > MOST_VALUES:
            problem = "a value holds itself" if found is None else f"aliases stand for more than {MOST_VALUES} values"
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=node.start_mark)
        return found

    size(root)


def _problem(error: Exception, text: str) -> str:
    """Where and what, to go after the name of the file."""
    if isinstance(error, yaml.MarkedYAMLError):
        mark = error.problem_mark or error.context_mark
        line = "" if mark is None else f", line {mark.line + 1}"
        words = ", ".join(filter(None, (error.context, error.problem)))
        hint = "; a pattern that starts with * stands in quotes" if "undefined alias" in words else ""
        return f"{line} cannot be read as YAML: {words}{hint}"
    if isinstance(error, ReaderError):
        line = f", line {text.count(chr(10), 0, error.position) + 1}"
        return f"{line} cannot be read as YAML: it has the character {chr(error.character)!r}"
    reason = "it is nested too deep" if isinstance(error, RecursionError) else str(error)
    return f" cannot be read as YAML: {reason}"
