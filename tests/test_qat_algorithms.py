"""Fake quantization against its formulas: forward, every gradient, what it becomes, and that nothing breaks it."""

from __future__ import annotations

import itertools
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import fake_quantization as reference
import numpy as np
import pytest
from fake_quantization import Frozen
from helpers import assert_close, install_fake
from hypothesis import given, settings
from hypothesis import strategies as st

from mxq.errors import ConfigError
from mxq.graph.ir import Ref
from mxq.host import parallel
from mxq.qat.algorithms import ALGORITHMS, Algorithm, Site, fake_node, get, site_of
from mxq.qat.algorithms.apot import levels
from mxq.qat.algorithms.grid import LEAST_STEP
from mxq.quant import MXNET, SYMMETRIC, QuantSpec
from mxq.registry import Registry

NAMES = ("fixed", "lsq", "lsq_plus", "pact", "dorefa", "dsq", "qil", "apot", "max")
BITS = range(2, 9)
LISTED = range(2, 7)
"""Bits of which the authors of APoT list the levels, signed or not."""
SHAPE = (2, 2, 6)


def sites(name: str, bits=BITS, axes=(None, 1)) -> list[Site]:
    """All that an algorithm takes."""
    found = []
    for number, signed, symmetric, axis, scale, role in itertools.product(
        bits, (True, False), (True, False), axes, ("float", "power_of_two"), ("weight", "activation")
    ):
        site = Site(QuantSpec(number, signed, symmetric, axis, scale), role)
        try:
            get(name).check(site)
        except ConfigError:
            continue
        found.append(site)
    return found


def drawn(site: Site, seed: int = 0, shape: tuple[int, ...] = SHAPE) -> tuple[np.ndarray, np.ndarray]:
    """Values and the gradient of the result, folded."""
    rng = np.random.default_rng(seed)
    x, grad = (rng.standard_normal(shape).astype(np.float32).reshape(site.folded(shape)) for _ in range(2))
    return x, grad


def started(algorithm: Algorithm, site: Site, x: np.ndarray) -> dict[str, np.ndarray]:
    """Parameters of a range that some values lie beyond, and not quite where they began."""
    low, high = x.min(axis=(0, 2)) * np.float32(0.7), x.max(axis=(0, 2)) * np.float32(0.7)
    found = algorithm.initial(site, low, high, x)
    return {name: (value * 1.07).astype(np.float32) for name, value in found.items()}


def near_tie(x: np.ndarray, y: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Where float32 and float64 may round to neighbours: one step apart, the value half way between."""
    return (np.abs(y - wanted) > 1e-5 * np.abs(wanted).max()) & (np.abs(np.abs(x - y) - np.abs(x - wanted)) < 1e-4)


class TestFormulas:
    @pytest.mark.parametrize("name", NAMES)
    def test_forward(self, name):
        algorithm = get(name)
        for site in sites(name, BITS if name != "apot" else LISTED):
            x, _ = drawn(site)
            p = started(algorithm, site, x)
            found = algorithm.forward(site, x, p)
            wanted = reference.surrogate(name, site, x.astype(np.float64), p, Frozen())
            ok = ~near_tie(x, found, wanted)
            assert ok.mean() > 0.9, site
            assert_close(found[ok], wanted[ok], rtol=2e-5, atol=2e-6)

    @pytest.mark.parametrize("name", NAMES)
    def test_gradients(self, name):
        algorithm = get(name)
        for site in sites(name, BITS if name != "apot" else LISTED):
            x, grad = drawn(site)
            p = started(algorithm, site, x)
            by_x, by_p = algorithm.backward(site, x, grad, p)
            wanted, others = reference.gradients(name, site, x, grad.astype(np.float64), p)
            assert_close(by_x, wanted, rtol=1e-4, atol=1e-4)
            assert set(by_p) == set(algorithm.learned(site))
            for key, value in by_p.items():
                assert_close(value, others[key], rtol=1e-3, atol=1e-3 * reference.rate(name, site, x.shape))

    def test_gradient_scale_is_that_of_the_paper(self):
        x = np.full((4, 1, 25), 0.3, np.float32)
        grad = np.ones_like(x)
        for role, count in (("weight", 100), ("activation", 25)):
            _, found = get("lsq").backward(Site(QuantSpec(4), role), x, grad, {"step": np.float32([0.5])})
            assert_close(found["step"], [100 * (1 - 0.6) / np.sqrt(count * 7)], rtol=1e-5, atol=0)

    def test_halves_go_to_the_even_code(self):
        x = np.float32([[[-2.5, -1.5, -0.5, 0.5, 1.5, 2.5]]])
        found = get("fixed").forward(Site(QuantSpec(4), "weight"), x, {"step": np.float32([1])})
        assert found.tolist() == [[[-2, -2, 0, 0, 2, 2]]]

    def test_a_step_is_a_power_of_two_where_it_has_to_be(self):
        """Of two the nearer in log2: 1.4 is nearer to 1, 1.5 to 2."""
        site, x = Site(QuantSpec(4, scale="power_of_two"), "weight"), np.float32([[[3.2]]])
        steps = {step: get("lsq").forward(site, x, {"step": np.float32([step])}).item() for step in (1.4, 1.5, 0.3)}
        assert steps == {1.4: 3.0, 1.5: 4.0, 0.3: 1.75}

    def test_levels_of_apot(self):
        """Figure 1 of the paper: 4-bit levels of one sign are those of 3 bits."""
        assert_close(levels(3), np.array([0, 1, 2, 3, 4, 6, 8, 10]) / 10, rtol=1e-6, atol=0)
        assert [len(levels(bits)) for bits in range(1, 9)] == [2**bits for bits in range(1, 9)]


class TestStart:
    @pytest.mark.parametrize("name", ["fixed", "lsq", "pact"])
    @pytest.mark.parametrize("scheme", [MXNET, SYMMETRIC], ids=lambda scheme: scheme.name)
    def test_covers_the_range_as_the_scheme_does(self, name, scheme):
        for bits, axis in itertools.product((3, 8), (None, 1)):
            site = Site(QuantSpec(bits, axis=axis), "activation" if name == "pact" else "weight", scheme.name)
            x, _ = drawn(site)
            high = np.abs(x).max(axis=(0, 2)) * np.float32(0.99)  # the largest value itself is half way between codes
            found = get(name).forward(site, x, get(name).initial(site, -high, high, x))
            spec = replace(site.spec, axis=axis)
            wanted = scheme.params(spec, -high, high) if axis else scheme.params(spec, -high[0], high[0])
            assert_close(found, wanted.fake(x), rtol=1e-5, atol=1e-6)

    @pytest.mark.parametrize("name", ["qil", "dorefa"])
    def test_what_transforms_values_keeps_the_largest(self, name):
        site = Site(QuantSpec(8, axis=1), "weight")
        x, _ = drawn(site)
        high = np.abs(x).max(axis=(0, 2))
        found = get(name).forward(site, x, get(name).initial(site, -high, high, x))
        assert_close(np.abs(found).max(axis=(0, 2)), high, rtol=1e-6, atol=0)
        if name == "qil":
            assert_close(found, SYMMETRIC.params(site.spec, -high, high).fake(x), rtol=1e-5, atol=1e-6)

    def test_a_zero_point_holds_the_range(self):
        site = Site(QuantSpec(8, False, symmetric=False), "activation")
        p = get("lsq").initial(site, np.float32([-1]), np.float32([3]))
        assert_close(p["step"], [4 / 255], rtol=1e-6, atol=0)
        assert p["zero_point"].tolist() == [64]
        plus = get("lsq_plus").initial(site, np.float32([-1]), np.float32([3]))
        assert_close(plus["offset"], [-64 * 4 / 255], rtol=1e-6, atol=0)

    def test_from_the_mean_as_in_the_paper(self):
        site = Site(QuantSpec(3), "weight")
        x, _ = drawn(site)
        p = get("lsq:start=mean").initial(site, np.float32([-1]), np.float32([1]), x)
        assert_close(p["step"], [2 * np.abs(x).mean() / np.sqrt(3)], rtol=1e-6, atol=0)

    @pytest.mark.parametrize(("name", "reach", "top"), [("lsq_plus", 3, 4), ("dsq", 2.6, 4)])
    def test_weights_from_mean_and_deviation(self, name, reach, top):
        site = Site(QuantSpec(3), "weight")
        x, _ = drawn(site)
        p = get(name).initial(site, np.float32([-9]), np.float32([9]), x)
        wanted = abs(x.mean()) + reach * x.std()
        found = p["step"] * top if name == "lsq_plus" else p["clip"]
        assert_close(found, [wanted], rtol=1e-5, atol=0)

    def test_dorefa_clips_activations_at_1(self):
        x = np.float32([[[-3, -0.4, 0.4, 3]]])
        for signed, wanted in ((True, [-8 / 7, -3 / 7, 3 / 7, 1]), (False, [0, 0, 6 / 15, 1])):
            site = Site(QuantSpec(4, signed), "activation")
            p = get("dorefa").initial(site, np.float32([-9]), np.float32([9]))
            assert_close(get("dorefa").forward(site, x, p).ravel(), wanted, rtol=1e-6, atol=0)


class TestDeployed:
    @pytest.mark.parametrize("name", NAMES)
    def test_codes_are_what_was_trained(self, name):
        for site in sites(name):
            x, _ = drawn(site)
            p = started(get(name), site, x)
            if name == "apot" or (name == "qil" and site.role == "activation"):
                with pytest.raises(ConfigError, match=f"^{name} is asked for an? {site.role} .*; allowed: "):
                    get(name).deployed(site, x, p)
                continue
            values, params = get(name).deployed(site, x, p)
            assert params.spec == site.spec
            np.testing.assert_array_equal(params.fake(values), get(name).forward(site, x, p))

    def test_what_max_trains_is_what_the_kernels_compute_of_the_weights(self):
        site = Site(QuantSpec(axis=0), "weight", "mxnet")
        x = np.random.default_rng(1).standard_normal((4, 3, 3, 3)).astype(np.float32)
        x[0, 0, 0, 0], x[1, 0, 0, 0] = -4, 4
        _, params = get("max").deployed(site, x.reshape(site.folded(x.shape)), {})
        kernels = MXNET.covering(site.spec, x)
        assert_close(params.scale, kernels.scale, rtol=2.5e-7, atol=0)
        codes, theirs = params.quantize(x), kernels.quantize(x)
        assert codes[0, 0, 0, 0] == -128
        assert codes[1, 0, 0, 0] == 127
        assert (theirs[codes != theirs] == -127).all()  # by the last bit of a product

    def test_a_largest_weight_below_zero_is_the_last_code_whatever_its_last_bit(self):
        site = Site(QuantSpec(axis=0), "weight", "mxnet")
        x = -np.exp(np.random.default_rng(1).uniform(-9, 9, (5000, 1))).astype(np.float32)
        _, params = get("max").deployed(site, x.reshape(site.folded(x.shape)), {})
        assert (params.quantize(x) == -128).all()
        assert (MXNET.covering(site.spec, x).quantize(x) == -127).mean() > 0.1


HOSTILE = (0.0, -0.0, -0.3, 1e-30, -1e-30, 1e30, 2.0**-126, 1.0)


class TestNothingBreaks:
    @pytest.mark.parametrize("name", NAMES)
    def test_zero_and_dead_channels(self, name):
        for site in sites(name, (2, 8)):
            for x in (np.zeros((2, 3, 4), np.float32), np.float32([[[1, -2], [0, 0], [3, 1]]])):
                folded = x.reshape(site.folded(x.shape))
                low, high = folded.min(axis=(0, 2)), folded.max(axis=(0, 2))
                p = get(name).initial(site, low, high, folded)
                assert all(np.isfinite(value).all() for value in p.values()), site
                found = get(name).forward(site, folded, p)
                by_x, by_p = get(name).backward(site, folded, np.ones_like(folded), p)
                assert all(np.isfinite(value).all() for value in (found, by_x, *by_p.values())), site
                np.testing.assert_array_equal(found[folded == 0], 0)

    @pytest.mark.parametrize("name", NAMES)
    def test_no_learned_value_gives_nan_or_turns_a_sign(self, name):
        for site in sites(name, (3,)):
            x, grad = drawn(site)
            names = get(name).parameters(site)
            for values in itertools.product(HOSTILE, repeat=min(2, len(names))):
                given = dict(zip(names, itertools.cycle(values) if values else (), strict=False))
                p = {key: np.full(x.shape[1], value, np.float32) for key, value in given.items()}
                found = get(name).forward(site, x, p)
                by_x, by_p = get(name).backward(site, x, grad, p)
                assert all(np.isfinite(value).all() for value in (found, by_x, *by_p.values())), (site, values)
                assert (found * np.sign(x) >= 0).all(), (site, values)

    @pytest.mark.parametrize("name", [name for name in NAMES if name != "max"])
    def test_infinite_values_saturate_and_nan_stays(self, name):
        site = Site(QuantSpec(4), "activation" if name in ("dorefa", "pact") else "weight")
        x, _ = drawn(site)
        p = started(get(name), site, x)
        x.flat[:3] = np.inf, -np.inf, np.nan
        found = get(name).forward(site, x, p).ravel()
        assert np.isfinite(np.delete(found, 2)).all()
        assert np.isnan(found[2])
        x.flat[2] = 0
        by_x, by_p = get(name).backward(site, x, np.ones_like(x), p)
        assert all(np.isfinite(value).all() for value in (by_x, *by_p.values()))
        assert by_x.flat[0] == by_x.flat[1] == 0

    @settings(deadline=None, max_examples=60)
    @given(
        bits=st.integers(2, 8),
        signed=st.booleans(),
        step=st.floats(-4, 4, width=32),
        zero=st.floats(-400, 400, width=32),
        x=st.lists(st.floats(-1e4, 1e4, width=32), min_size=1, max_size=9),
    )
    def test_results_are_codes(self, bits, signed, step, zero, x):
        """Whatever is learned, what comes out is what `QParams` makes of the codes."""
        site = Site(QuantSpec(bits, signed, symmetric=False), "activation")
        p = {"step": np.float32([step]), "zero_point": np.float32([zero])}
        values = np.float32(x).reshape(1, 1, -1)
        found = get("lsq").forward(site, values, p)
        _, params = get("lsq").deployed(site, values, p)
        assert params.step >= np.float32(LEAST_STEP)
        np.testing.assert_array_equal(found, params.fake(values))

    @pytest.mark.parametrize("name", NAMES)
    def test_results_go_where_they_are_told_to(self, name):
        site = sites(name, (4,))[0]
        x, grad = drawn(site)
        p, out = started(get(name), site, x), np.full_like(x, np.nan)
        assert get(name).forward(site, x, p, out) is out
        np.testing.assert_array_equal(out, get(name).forward(site, x, p))
        by_x, _ = get(name).backward(site, x, grad, p, out)
        assert by_x is out
        np.testing.assert_array_equal(out, get(name).backward(site, x, grad, p)[0])

    @pytest.mark.parametrize("name", NAMES)
    def test_threads_change_no_bit(self, name, monkeypatch):
        shape = (4, 2, 1 << 16)
        for site in (sites(name, (4,), (1,))[0], sites(name, (4,), (0,))[0]):
            x, grad = drawn(site, shape=shape)
            p, found = started(get(name), site, x), []
            for number in (1, 3):
                with ThreadPoolExecutor(number, parallel.THREADS) as pool:
                    monkeypatch.setattr(parallel, "_pool", lambda pool=pool, number=number: (pool, number))
                    found.append((get(name).forward(site, x, p), get(name).backward(site, x, grad, p)))
            np.testing.assert_array_equal(found[0][0], found[1][0])
            np.testing.assert_array_equal(found[0][1][0], found[1][1][0])
            assert found[0][1][1].keys() == found[1][1][1].keys()
            for key, value in found[0][1][1].items():
                np.testing.assert_array_equal(value, found[1][1][1][key])


class TestNames:
    def test_all_that_there_are(self):
        assert set(ALGORITHMS.names()) >= set(NAMES)
        assert all(get(name).name == name and get(name).source for name in NAMES)

    @pytest.mark.parametrize(
        ("spec", "message"),
        [
            ("lqs", r"algorithm is 'lqs'; allowed: .*; did you mean 'lsq'\?$"),
            ("lsq:begin=mean", r"^'lsq' has no setting 'begin'; allowed: start$"),
            ("max:start=mean", r"^'max' has no setting 'start'; allowed: none$"),
            ("lsq:start=zero", r"^start is 'zero'; allowed: 'range', 'mean'$"),
            ("dsq:alpha=soft", r"^alpha of 'dsq' is 'soft'; allowed: float$"),
            ("dsq:alpha=1", r"^alpha of 'dsq' is 1.0; allowed: above 0 and below 1$"),
        ],
    )
    def test_refused(self, spec, message):
        with pytest.raises(ConfigError, match=message):
            get(spec)

    def test_settings(self):
        assert get("dsq:alpha=0.2").alpha == 0.2
        assert get(" lsq : start=mean ") == get("lsq:start=mean") != get("lsq")

    @pytest.mark.parametrize(
        ("name", "site", "allowed"),
        [
            ("max", Site(QuantSpec(), "activation"), "weights, with signed codes or a zero point"),
            ("max", Site(QuantSpec(signed=False), "weight"), "weights, with signed codes or a zero point"),
            ("dorefa", Site(QuantSpec(signed=False), "weight"), "signed codes, or a zero point"),
            ("qil", Site(QuantSpec(symmetric=False), "weight"), "no zero point"),
            ("apot", Site(QuantSpec(scale="power_of_two"), "weight"), "no zero point, and a scale that is no power"),
        ],
    )
    def test_sites_refused(self, name, site, allowed):
        with pytest.raises(ConfigError, match=f"^{name} is asked for an? {site.role} of .*; allowed: {allowed}"):
            get(name).check(site)

    def test_others_can_register_one(self):
        class Identity:
            name, source = "identity", "none"
            parameters = learned = check = initial = forward = backward = nodes = deployed = lambda self, *_: ()

        ALGORITHMS.register(Identity())
        try:
            assert get("identity").name == "identity"
        finally:
            del ALGORITHMS._known["identity"]  # noqa: SLF001  (nobody takes one away but tests)

    def test_one_of_another_package(self, tmp_path, monkeypatch):
        """An entry point gives a page of its own: here a grid twice as fine as it is asked for."""
        module = (
            "import numpy as np\n"
            "from dataclasses import dataclass\n"
            "from typing import ClassVar\n"
            "from mxq.qat.algorithms.base import Stepped\n"
            "@dataclass(frozen=True)\n"
            "class Finer(Stepped):\n"
            "    name: ClassVar[str] = 'finer'\n"
            "    source: ClassVar[str] = 'nobody'\n"
            "    def initial(self, site, low, high, values=None):\n"
            "        found = super().initial(site, low, high, values)\n"
            "        return {**found, 'step': found['step'] / 2}\n"
        )
        install_fake(
            tmp_path, "finer-grids", {"mxq.qat.algorithms": {"finer": "finer_grids:Finer"}}, finer_grids=module
        )
        monkeypatch.syspath_prepend(tmp_path)
        registry = Registry("algorithm", ALGORITHMS.group, ALGORITHMS.kind)
        p = registry.get("finer").initial(Site(QuantSpec(4), "weight"), np.float32([-7]), np.float32([7]))
        assert p["step"].tolist() == [0.5]


class TestNode:
    def test_a_site_comes_back(self):
        for name in ("lsq", "max"):
            for site in sites(name, (3,)):
                node = fake_node("y", name, replace(site, rule="mxnet"), Ref("x"), [Ref("s")])
                assert site_of(node.attrs) == replace(site, rule="mxnet")

    @pytest.mark.parametrize(
        ("attr", "value", "message"),
        [
            ("bits", "x", "^bits of mxq_fake_quantize is 'x'; allowed: "),
            ("bits", "9", "^bits is 9; allowed: 2 to 8$"),
            ("role", "bias", "has role 'bias'"),
            ("rule", "kl", "rule 'kl'; allowed: "),
            ("scale", "int", "^scale is 'int'"),
            ("axis", None, "^axis of mxq_fake_quantize is None; allowed: "),
        ],
    )
    def test_what_nobody_wrote(self, attr, value, message):
        attrs = {**fake_node("y", "lsq", Site(QuantSpec(), "weight"), Ref("x"), []).attrs, attr: value}
        with pytest.raises(ConfigError, match=message):
            site_of({key: text for key, text in attrs.items() if text is not None})

    def test_shapes_are_folded(self):
        weight, activation = (Site(QuantSpec(axis=axis), role) for axis, role in ((0, "weight"), (1, "activation")))
        assert weight.folded((8, 3, 5, 5)) == (1, 8, 75)
        assert activation.folded((2, 3, 5, 5)) == (2, 3, 25)
        assert activation.folded((2, 3)) == (2, 3, 1)
        assert Site(QuantSpec(), "weight").folded((8, 3, 5)) == (1, 1, 120)
        assert Site(QuantSpec(), "activation").folded((8, 3, 5)) == (8, 1, 15)
