"""Recipes: what is written is read back, what is wrong is refused with its file and line, options go on top."""

from __future__ import annotations

import math
import re
import textwrap
from dataclasses import fields
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from mxq import recipe
from mxq.cli.options import config_of
from mxq.config import (
    DTYPES,
    EFFORTS,
    INPUT_DTYPES,
    MODES,
    RANGE_CHOICES,
    STEMS,
    TARGETS,
    LayerConfig,
    QuantConfig,
)
from mxq.errors import ConfigError, FormatError
from mxq.formats.params import LARGEST
from mxq.qat.schedule import TrainConfig
from mxq.weights.methods import BIAS_CORRECTIONS, ROUNDINGS

HEAD = f"format: {recipe.FORMAT}\n"
LAUGHS = "calib_mode:\n- &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"- &{new} [{','.join([f'*{old}'] * 9)}]\n" for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)
"""A few hundred bytes that stand for 9 ** 9 words."""

TRICKY = [
    "*", "*conv*", "&a", "!x", "%", "@a", "`", "- a", "a: b", "a #b", "#", "yes", "no", "null", "~", "", " ", " a ",
    "1", "1.5", "1e3", "1.e5", "+2E-3", "0x1f", "0o7", "1:30", "2020-01-01", ".inf", "=", "<<", "a\nb", "a\r\nb", "\t",
    "'", '"', "\\", "{a}", "[a]", "a,b", "|", ">", "?", "ключ", "𝄞", "\x85", "\u2028", "\ufeff", "\x00", "\x7f",
    "x" * 300, "a b " * 100, "op:*Pooling", "format",
]  # fmt: skip
words = st.sampled_from(TRICKY) | st.text(max_size=20)
patterns = words.filter(lambda w: not w.startswith("<predicate "))
specs = words.filter(str.strip)
numbers = st.floats(allow_nan=False, allow_infinity=False) | st.integers(-(10**20), 10**20)
layers = st.builds(
    LayerConfig,
    quantize=st.none() | st.booleans(),
    calib_mode=st.none() | specs,
    weight_calib_mode=st.none() | specs,
    dtype=st.none() | st.sampled_from(DTYPES),
    bits=st.none() | st.integers(2, 8) | st.tuples(st.integers(2, 8), st.integers(2, 8)),
    threshold=st.none() | st.tuples(numbers, numbers).map(lambda pair: tuple(sorted(pair))),
)
shapes = st.lists(st.integers(1, 4096), min_size=1, max_size=4).filter(lambda sides: math.prod(sides) <= LARGEST)
configs = st.builds(
    QuantConfig,
    calib_mode=specs,
    weight_calib_mode=specs,
    quantized_dtype=st.sampled_from(DTYPES),
    quantize_mode=st.sampled_from(MODES),
    exclude_layers=st.lists(patterns, max_size=4),
    exclude_layers_match=st.lists(words, max_size=4),
    exclude_operators=st.lists(words, max_size=4),
    exclude_passes=st.lists(words, max_size=4),
    include_layers=st.lists(patterns, max_size=4),
    overrides=st.dictionaries(words, layers, max_size=4),
    num_calib_examples=st.none() | st.integers(1, 10**6) | st.sampled_from(["5%", "0.1%", "500", " 12 "]),
    input_dtype=st.sampled_from(INPUT_DTYPES),
    preprocess=st.none() | st.dictionaries(words, numbers | st.lists(numbers, max_size=3) | words, max_size=3),
    effort=st.sampled_from(EFFORTS),
    equalize=st.sampled_from([None, True, False]),
    bias_correction=st.sampled_from([None, *(m.name for m in BIAS_CORRECTIONS.values())]),
    rounding=st.sampled_from([None, *(m.name for m in ROUNDINGS.values())]),
    range_choice=st.sampled_from([None, *RANGE_CHOICES]),
    recalibrate_batchnorm=st.sampled_from([None, True, False]),
    stem=st.sampled_from([None, *STEMS]),
    input_shape=st.none() | shapes | st.dictionaries(words, shapes, min_size=1, max_size=3),
    target=st.sampled_from(TARGETS),
)


def same(one: QuantConfig, other: QuantConfig) -> bool:
    """Equal, with overrides in the same order, of which `==` of dictionaries takes no notice."""
    return one == other and list(one.overrides) == list(other.overrides)


class TestRoundTrip:
    @given(configs)
    def test_what_is_written_is_read_back(self, config: QuantConfig) -> None:
        text = recipe.dumps(config)
        found = recipe.loads(text)
        assert same(found, config)
        assert recipe.dumps(found) == text
        assert text.startswith(HEAD)

    @given(configs)
    def test_json_is_read_back(self, config: QuantConfig) -> None:
        assert same(QuantConfig.from_json(config.to_json()), config)

    @pytest.mark.parametrize("word", TRICKY)
    def test_every_word_that_yaml_could_take_for_something_else(self, word: str) -> None:
        config = QuantConfig(exclude_layers=(word, "b"), overrides={word: {"calib_mode": f"a{word}"}, "a": {}})
        assert same(recipe.loads(recipe.dumps(config)), config)

    def test_defaults_are_left_out(self) -> None:
        assert recipe.dumps(QuantConfig()) == HEAD
        assert recipe.loads(HEAD) == QuantConfig()

    def test_the_text(self) -> None:
        config = QuantConfig(
            calib_mode="percentile:99.99",
            exclude_layers=("stem_conv0", "*_fc", "op:*Pooling"),
            overrides={
                "op:Convolution": {"weight_calib_mode": "mse"},
                "data": {"threshold": (-1e-7, 2), "quantize": False},
                "stem": {},
            },
            num_calib_examples=500,
        )
        assert recipe.dumps(config) == HEAD + textwrap.dedent(
            """\
            calib_mode: percentile:99.99
            exclude_layers: [stem_conv0, '*_fc', 'op:*Pooling']
            overrides:
              op:Convolution:
                weight_calib_mode: mse
              data:
                quantize: false
                threshold: [-1.0e-07, 2.0]
              stem: {}
            num_calib_examples: 500
            """
        )

    def test_a_shared_list_is_written_twice(self) -> None:
        pair = (0.0, 1.0)
        text = recipe.dumps(QuantConfig(overrides={"a": {"threshold": pair}, "b": {"threshold": pair}}))
        assert text.count("threshold: [0.0, 1.0]") == 2

    def test_predicates_are_not_written(self, tmp_path: Path) -> None:
        config = QuantConfig(include_layers=("a", callable))
        with pytest.raises(ConfigError, match="include_layers holds '<predicate callable>'; a predicate is code"):
            recipe.dumps(config)
        with pytest.raises(ConfigError, match="a predicate is code"):
            recipe.write(config, tmp_path / "r.yaml")
        assert not list(tmp_path.iterdir())


class TestExample:
    """The one in the module's docstring."""

    text = textwrap.dedent(re.search(r"complete one::\n\n(.*?)\n\n(?=\S)", recipe.__doc__ or "", re.DOTALL)[1])

    def test_it_is_complete(self) -> None:
        data = yaml.safe_load(self.text)
        assert next(iter(data)) == "format"
        assert set(data) - {"format", *recipe.SECTIONS} == {f.name for f in fields(QuantConfig)}
        assert {k for layer in data["overrides"].values() for k in layer} == {f.name for f in fields(LayerConfig)}

    def test_it_is_read(self) -> None:
        config = recipe.loads(self.text)
        assert config.exclude_layers == ("stem_conv0", "op:*Pooling")
        assert config.overrides["op:Convolution"] == LayerConfig(
            calib_mode="entropy", weight_calib_mode="percentile:99.9"
        )
        assert config.overrides["data"].threshold == (-2.1, 2.6)
        assert config.num_calib_examples == "5%"
        assert config.methods == QuantConfig().methods  # the parts of the effort, by name
        assert config.target == "avx512_vnni"
        assert same(recipe.loads(recipe.dumps(config)), config)


class TestReading:
    @pytest.mark.parametrize(("text", "value"), [("1e-3", 0.001), ("1.5E3", 1500.0), ("2", 2.0), ("2.", 2.0)])
    def test_numbers_as_people_write_them(self, text: str, value: float) -> None:
        config = recipe.loads(f"{HEAD}overrides: {{data: {{threshold: [-1e5, {text}]}}}}")
        assert config.overrides["data"].threshold == (-1e5, value)

    def test_anchors_and_merges(self) -> None:
        text = HEAD + textwrap.dedent(
            """\
            overrides:
              a: &a {dtype: int8, calib_mode: mse}
              b: {<<: *a, dtype: uint8}
              c: *a
            """
        )
        assert recipe.loads(text).overrides == {
            "a": LayerConfig(dtype="int8", calib_mode="mse"),
            "b": LayerConfig(dtype="uint8", calib_mode="mse"),
            "c": LayerConfig(dtype="int8", calib_mode="mse"),
        }

    def test_one_name_or_a_list(self) -> None:
        assert recipe.loads(HEAD + "exclude_layers: a").exclude_layers == ("a",)
        assert recipe.loads(HEAD + "exclude_layers:\n- a\n- b").exclude_layers == ("a", "b")
        assert recipe.loads(HEAD + "exclude_layers:").exclude_layers == ()

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("", f"net.yaml, line 1: found nothing; a recipe is a mapping that begins with format: {recipe.FORMAT}"),
            ("# nothing\n", "net.yaml, line 1: found nothing;"),
            ("\n- a\n", "net.yaml, line 2: found a list;"),
            ("hello", "net.yaml, line 1: found 'hello';"),
            ("calib_mode: naive", f"net.yaml has format None; this version reads '{recipe.FORMAT}'; begin "),
            ("format: mxq-recipe/2", f"net.yaml has format 'mxq-recipe/2'; this version reads '{recipe.FORMAT}'"),
            ("format: [1]", "net.yaml has format [1];"),
            (HEAD + "overrides: {a: [}", "net.yaml, line 2 cannot be read as YAML: while parsing a flow node, exp"),
            (HEAD + "\ncalib_mode naive\n", "net.yaml, line 4 cannot be read as YAML: "),
            (
                HEAD + "exclude_layers:\n- *conv\n",
                "net.yaml, line 3 cannot be read as YAML: found undefined alias 'conv'; a pattern that starts with *",
            ),
            (HEAD + "---\na: 1\n", "net.yaml, line 2 cannot be read as YAML: expected a single document"),
            (HEAD + "a: \x01\n", r"net.yaml, line 2 cannot be read as YAML: it has the character '\x01'"),
            (HEAD + "a: 2020-13-01", "net.yaml, line 2 cannot be read as YAML: '2020-13-01' is no timestamp: month"),
            (HEAD + "a: " + "[" * 1500, "net.yaml cannot be read as YAML: it is nested too deep"),
            (HEAD + "? [a]\n: b", "net.yaml, line 2 cannot be read as YAML: while constructing a mapping, found unha"),
            (HEAD + "a: !!python/name:os.system", "net.yaml, line 2 cannot be read as YAML: could not determine a c"),
            (HEAD + "a: !!bool maybe", "net.yaml, line 2 cannot be read as YAML: 'maybe' is no bool"),
            (HEAD + "a: !!timestamp x", "net.yaml, line 2 cannot be read as YAML: 'x' is no timestamp"),
            (HEAD + "a: !!int x", "net.yaml, line 2 cannot be read as YAML: 'x' is no int"),
            (HEAD + "a: " + "9" * 5000, "net.yaml, line 2 cannot be read as YAML: '9999"),
            (HEAD + "a: &b [*b]", "net.yaml, line 2 cannot be read as YAML: a value holds itself"),
            (HEAD + LAUGHS, "net.yaml, line 7 cannot be read as YAML: aliases stand for more than 10000 values"),
            (HEAD + HEAD, "net.yaml, line 2 cannot be read as YAML: the key 'format' was given before, in line 1"),
            (
                HEAD + "overrides:\n  a: {}\n  b: {}\n  'a': {dtype: int8}\n",
                "net.yaml, line 5 cannot be read as YAML: the key 'a' was given before, in line 3",
            ),
            (
                HEAD + "overrides: {a: {dtype: int8, dtype: uint8}}",
                "net.yaml, line 2 cannot be read as YAML: the key 'dtype' was given before, in line 2",
            ),
        ],
    )
    def test_what_is_no_recipe(self, text: str, message: str) -> None:
        with pytest.raises(FormatError) as raised:
            recipe.loads(text, "net.yaml")
        assert str(raised.value).startswith(message)
        assert "\n" not in str(raised.value)

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("calib_mod: naive", "net.yaml: unknown field 'calib_mod'; allowed: calib_mode, weight_calib_mode, "),
            ("calib_mode: 3", "net.yaml: calib_mode is 3; allowed: "),
            ("quantize_mode: [full]", "net.yaml: quantize_mode is ['full']; allowed: 'smart', 'full'"),
            ("overrides:", "net.yaml: overrides is None; allowed: a mapping"),
            ("overrides: {a: }", "net.yaml: overrides: 'a' is None; allowed: a mapping of quantize, "),
            ("overrides: {3: {}}", "net.yaml: overrides: pattern is 3; allowed: text"),
            ("overrides: {a: {dtype: int4}}", "net.yaml: of 'a' in overrides: dtype is 'int4'; allowed: 'auto', "),
            ("effort: most", "net.yaml: effort is 'most'; allowed: 'fast', 'default', 'best'"),
            ("rounding: up", "net.yaml: rounding is 'up'; allowed: 'nearest', 'reconstruction', None"),
            ("target: arm", "net.yaml: target is 'arm'; allowed: 'native', 'avx512_vnni', 'avx512', 'avx2'"),
            ("num_calib_examples: -5%", "net.yaml: num_calib_examples is '-5%'; allowed: "),
            ("exclude_layers: [<predicate stem>]", "net.yaml: exclude_layers holds '<predicate stem>'; a predicate"),
        ],
    )
    def test_what_is_wrong_in_a_recipe(self, text: str, message: str) -> None:
        with pytest.raises(ConfigError) as raised:
            recipe.loads(HEAD + text, "net.yaml")
        assert str(raised.value).startswith(message)


class TestFiles:
    config = QuantConfig(calib_mode="entropy", exclude_layers="сеть_*")

    def test_there_and_back(self, tmp_path: Path) -> None:
        path = recipe.write(self.config, tmp_path / "net.yaml")
        assert [p.name for p in tmp_path.iterdir()] == ["net.yaml"]
        assert recipe.read(path) == recipe.read(str(path)) == self.config
        assert "сеть_*" in path.read_text(encoding="utf-8")

    def test_a_file_that_exists_is_replaced_whole(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        path = recipe.write(self.config, tmp_path / "net.yaml")
        before = path.read_text(encoding="utf-8")

        def broken(self: Path, target: Path) -> Path:
            assert self.read_text(encoding="utf-8") == HEAD  # complete before it takes the name
            assert path.read_text(encoding="utf-8") == before
            raise OSError("no space left")

        with monkeypatch.context() as patch:
            patch.setattr(Path, "replace", broken)
            with pytest.raises(FormatError, match=r"net\.yaml cannot be written: no space left"):
                recipe.write(QuantConfig(), path)
        assert recipe.read(path) == self.config
        recipe.write(QuantConfig(), path)
        assert recipe.read(path) == QuantConfig()

    def test_messages_name_the_file(self, tmp_path: Path) -> None:
        path = tmp_path / "net.yaml"
        with pytest.raises(FormatError, match=rf"^no file '{re.escape(str(path))}'"):
            recipe.read(path)
        path.write_bytes(b"format: \xff")
        with pytest.raises(FormatError, match=r"net\.yaml is not UTF-8 text: invalid start byte at byte 8$"):
            recipe.read(path)
        path.write_text(HEAD + "a: [")
        with pytest.raises(FormatError, match=rf"^{re.escape(str(path))}, line 2 cannot be read as YAML"):
            recipe.read(path)

    def test_a_byte_order_mark(self, tmp_path: Path) -> None:
        path = tmp_path / "net.yaml"
        path.write_text(HEAD + "calib_mode: mse\r\n", encoding="utf-8-sig", newline="\r\n")
        assert recipe.read(path) == QuantConfig(calib_mode="mse")


class TestOptions:
    """`config_of`: a recipe, and the command line on top of it."""

    recipe = QuantConfig(
        calib_mode="entropy",
        weight_calib_mode="mse",
        quantized_dtype="int8",
        quantize_mode="full",
        exclude_layers=("a",),
        exclude_layers_match=("m",),
        exclude_operators=("Flatten",),
        exclude_passes=("detection",),
        include_layers=("i",),
        overrides={"b": {"dtype": "uint8"}, "a": {"quantize": True}},
        num_calib_examples="7%",
        effort="best",
        equalize=True,
        rounding="nearest",
        target="avx2",
    )

    @pytest.fixture
    def file(self, tmp_path: Path) -> Path:
        return recipe.write(self.recipe, tmp_path / "net.yaml")

    def test_nothing_is_given(self, file: Path) -> None:
        assert config_of() == QuantConfig()
        assert config_of(exclude=[], include=[], exclude_op=[]) == QuantConfig()
        assert same(config_of(recipe=file), self.recipe)

    def test_without_a_recipe(self) -> None:
        assert config_of(
            exclude=["a"],
            include=["b"],
            exclude_op=["c"],
            quantize_mode="full",
            calib_mode="mse",
            dtype="int8",
            num_calib_examples="5",
            weight_calib_mode="naive",
        ) == QuantConfig(
            exclude_layers=("a",),
            include_layers=("b",),
            exclude_operators=("c",),
            quantize_mode="full",
            calib_mode="mse",
            quantized_dtype="int8",
            num_calib_examples="5",
        )

    @pytest.mark.parametrize(
        ("option", "field", "value"),
        [
            ("quantize_mode", "quantize_mode", "smart"),
            ("calib_mode", "calib_mode", "naive"),  # the default, where it is given, overrides the recipe too
            ("weight_calib_mode", "weight_calib_mode", "naive"),
            ("dtype", "quantized_dtype", "auto"),
            ("num_calib_examples", "num_calib_examples", 12),
            ("input_dtype", "input_dtype", "int8"),
            ("effort", "effort", "default"),
            ("equalize", "equalize", False),  # --no-equalize is given, too
            ("bias_correction", "bias_correction", "analytic"),
            ("rounding", "rounding", "reconstruction"),
            ("range_choice", "range_choice", "tensor"),
            ("recalibrate_batchnorm", "recalibrate_batchnorm", True),
            ("stem", "stem", "int8"),
            ("input_shape", "input_shape", (3, 8, 8)),
            ("target", "target", "native"),
        ],
    )
    def test_one_option_changes_one_field(self, file: Path, option: str, field: str, value: str | bool) -> None:
        found = config_of(**{option: value}, recipe=file)
        different = [f.name for f in fields(QuantConfig) if getattr(found, f.name) != getattr(self.recipe, f.name)]
        assert different == [field]
        assert getattr(found, field) == value

    def test_lists_add_up(self, file: Path) -> None:
        found = config_of(exclude=["x", "y"], include=["j"], exclude_op=["Pooling"], exclude_pass=["p"], recipe=file)
        assert found.exclude_layers == ("a", "x", "y")
        assert found.include_layers == ("i", "j")
        assert found.exclude_operators == ("Flatten", "Pooling")
        assert found.exclude_passes == ("detection", "p")
        assert (found.exclude_layers_match, found.overrides) == (("m",), self.recipe.overrides)

    def test_what_is_given_is_checked(self, file: Path) -> None:
        with pytest.raises(ConfigError, match="quantize_mode is 'half'; allowed"):
            config_of(quantize_mode="half", recipe=file)
        with pytest.raises(ConfigError, match=r"^calib_mode is ''; allowed"):
            config_of(calib_mode="", recipe=file)
        with pytest.raises(FormatError, match="no file"):
            config_of(recipe=file.with_name("other.yaml"))


class TestSections:
    TEXT = HEAD + "calib_mode: mse\ntraining: {epochs: 3, lr: 1e-3}\nqat:\n"

    def test_are_for_other_settings(self, tmp_path: Path) -> None:
        file = tmp_path / "recipe.yaml"
        file.write_text(self.TEXT)
        assert recipe.read(file) == QuantConfig(calib_mode="mse")
        assert recipe.section(file, "training", dict) == {"epochs": 3, "lr": 0.001}
        assert recipe.section(file, "qat", dict) == {}

    def test_what_is_wrong_names_the_section(self, tmp_path: Path) -> None:
        file = tmp_path / "recipe.yaml"
        file.write_text(self.TEXT.replace("epochs", "epoch"))
        with pytest.raises(ConfigError, match=r"recipe\.yaml, training: training has 'epoch'; allowed"):
            recipe.section(file, "training", TrainConfig.from_json)
