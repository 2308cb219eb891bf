"""Every int8 layer of random networks gives, on this CPU, the codes that the arithmetic of its kernel says: no others.

`mxq.saturation.kernels` says what a kernel adds on a CPU with VNNI and without; here that is held for each kind of
kernel, code for code, in networks made for this CPU and in ones made for VNNI, whose sums saturate elsewhere.
`tests/test_saturation.py` runs this module for older instruction sets, too.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import pytest
from graphs import RELU, build, conv, fc, feeds, quantized, run
from helpers import SATURATES, kernel_params

from mxq.backends import the_layer_of
from mxq.calibration.patches import Geometry, inputs_at
from mxq.graph.ir import Model, Node, Ref
from mxq.host import machine
from mxq.quant import BY_DTYPE
from mxq.saturation.kernels import kernel_of, summed
from mxq.saturation.limits import by_channel

pytestmark = pytest.mark.kernels

SLACK = 2e-3
"""How far from the middle between two codes float32 may round to either, in codes, beside half a unit of the bias."""


@dataclass(frozen=True)
class Tensor:
    """Codes of a tensor and how many of them make a unit."""

    codes: np.ndarray
    scale: float

    @staticmethod
    def of(values: Iterator[np.ndarray]) -> Tensor:
        codes, low, high = next(values), next(values), next(values)
        size = max(abs(low.item()), abs(high.item()))
        return Tensor(codes, float(kernel_params(size, str(codes.dtype)).scale))


def rows_of(value: np.ndarray, geometry: Geometry) -> np.ndarray:
    """(places, O) of a layer's result."""
    return np.moveaxis(value, geometry.channel_axis, -1).reshape(-1, value.shape[geometry.channel_axis])


def weight_codes(weight: np.ndarray, kernel: str) -> tuple[np.ndarray, np.ndarray]:
    """What the kernel makes of a weight (O, ...), and codes per unit (O,)."""
    scale = np.float32(127.5) / np.abs(weight).reshape(len(weight), -1).max(axis=1)
    scaled = weight * scale.reshape(-1, *[1] * (weight.ndim - 1))
    codes = 2 * np.rint(scaled / 2) if kernel == "halved" else np.clip(np.rint(scaled), -128, 127)
    return codes.astype(np.int64), scale.astype(np.float64)


def sums(layer: Node, data: np.ndarray, codes: np.ndarray, kernel: str) -> np.ndarray:
    """(places, O) int32 sums of the kernel."""
    geometry = Geometry.of(layer)
    places = np.arange(geometry.places_of(data.shape))
    seen = inputs_at([data.astype(np.float32)], [places], geometry)
    if geometry.groups > 1:
        return np.einsum("gnk,gok->ngo", seen, geometry.grouped(codes)).reshape(len(places), -1)
    return summed(codes, by_channel(seen[0], codes.shape[1]), kernel).T


def check(model: Model, node: Node, values: Iterator[np.ndarray]) -> str:
    """Compares one layer's result with its kernel's arithmetic; what the kernel does without VNNI."""
    layer, data = the_layer_of(node), Tensor.of(values)
    geometry = Geometry.of(layer)
    summand = Tensor.of(values) if node.flag("with_sum") else None
    found = next(values) if node.flag("enable_float_output") else Tensor.of(values)
    kernel = kernel_of(layer.op, str(data.codes.dtype), depthwise=geometry.groups > 1)
    codes, per_unit = weight_codes(model.args[node.inputs[1].name], kernel if SATURATES else "exact")
    bias = model.args[node.inputs[2].name] if not layer.flag("no_bias") else np.zeros(len(codes))
    made = sums(layer, data.codes, codes, kernel if SATURATES else "exact") / (data.scale * per_unit) + bias
    if node.flag("enable_float_output"):
        np.testing.assert_allclose(rows_of(found, geometry), made, rtol=1e-5, atol=0.51 / (data.scale * per_unit.min()))
        return kernel
    made *= found.scale
    spec = BY_DTYPE[str(found.codes.dtype)]
    low, high = spec.lowest, spec.highest
    if summand is not None:
        made += rows_of(summand.codes, geometry) * (found.scale / summand.scale)
        high = BY_DTYPE[str(summand.codes.dtype)].highest  # it writes into the summand's memory
    unit = found.scale / (data.scale * per_unit.min())
    off = np.abs(rows_of(found.codes, geometry) - np.clip(made, low, high))
    assert off.max() <= 0.5 + SLACK + 0.5 * unit
    assert len(np.unique(found.codes)) > min(20, found.codes.size // 4)
    return kernel


def checked(model: Model, given: Mapping[str, np.ndarray]) -> set[str]:
    """`check` of every int8 layer of an int8 network."""
    layers = [n for n in model.graph.operators if n.op.startswith("_sg_mkldnn") and n.flag("quantized")]
    taps: list[Ref] = []
    for node in layers:
        count = len(node.inputs) - (4 if node.flag("with_sum") else 2)
        data, *bounds = node.inputs[0], *node.inputs[count : count + 2]
        taps += [data, *bounds]
        if node.flag("with_sum"):
            taps += [node.inputs[count - 1], *node.inputs[count + 2 :]]
        taps += [node.out] if node.flag("enable_float_output") else [Ref(node.name, i) for i in range(3)]
    values = iter(run(model, given, tuple(taps))[len(model.graph.heads) :])
    return {check(model, node, values) for node in layers}


def of_images(rng: np.random.Generator) -> tuple[list[str], tuple[int, ...]]:
    """Layers of random sizes that read s8 or u8: convolutions, a depthwise one, perhaps a sum, and a dense one."""
    axes = int(rng.choice([2, 2, 3]))
    channels = [int(c) for c in rng.choice([1, 3, 4, 5, 8, 15, 16, 33], 3)]

    def spatial(filters: int, groups: int = 1, *, same: bool = False) -> str:
        kernel = [1 if same and rng.random() < 0.3 else int(rng.choice([1, 3])) for _ in range(axes)]
        stride = [1 if same else int(rng.choice([1, 2])) for _ in range(axes)]
        dilate = [int(rng.choice([1, 2])) if k > 1 and groups == 1 else 1 for k in kernel]
        pad = [d * (k // 2) for k, d in zip(kernel, dilate, strict=True)]
        return (
            f'kernel="{tuple(kernel)}" stride="{tuple(stride)}" dilate="{tuple(dilate)}" pad="{tuple(pad)}" '
            f'num_filter="{filters}" num_group="{groups}"'
        )

    act = str(rng.choice([RELU, ""]))
    lines = [conv("a", "data", spatial(channels[1]), bias=bool(rng.random() < 0.7))]
    lines += [f"ra = Activation(a) {act}"] if act else []
    data = "ra" if act else "a"
    lines += [conv("b", data, spatial(channels[1], channels[1]))] if axes == 2 and channels[1] > 1 else []
    data = "b" if len(lines) > 2 or lines[-1].startswith("b") else data
    lines += [conv("c", data, spatial(channels[1], same=True))]
    if rng.random() < 0.6:
        lines += [f"s = elemwise_add(c, {data})"] + (["rs = Activation(s) " + RELU] if rng.random() < 0.5 else [])
    lines += [conv("e", lines[-1].split(" = ")[0], spatial(channels[2]))]
    lines += [fc("z", "e", 'num_hidden="7"'), "return z"]
    return lines, (int(rng.choice([1, 3])), channels[0], *(int(n) for n in rng.integers(4, 9, axes)))


def of_rows(rng: np.random.Generator) -> tuple[list[str], tuple[int, ...]]:
    """Fully connected layers over the last axis or all, of s8 and u8."""
    inner = 'flatten="False"' if rng.random() < 0.5 else ""
    sizes = [int(n) for n in rng.choice([2, 7, 16, 33, 64], 3)]
    act = ["ra = Activation(a) " + RELU] if rng.random() < 0.5 else []
    lines = [
        fc("a", "data", f'num_hidden="{sizes[1]}" {inner}'),
        *act,
        fc("b", "ra" if act else "a", f'num_hidden="{sizes[2]}" {inner}', bias=bool(rng.random() < 0.5)),
        fc("c", "b", 'num_hidden="5"'),
        "return c",
    ]
    return lines, (int(rng.choice([1, 5, 17])), *([int(rng.integers(2, 6))] if inner else []), sizes[0])


@pytest.mark.parametrize("target", [machine.NATIVE, machine.VNNI] if SATURATES else [machine.VNNI])
@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("kind", [of_images, of_rows])
def test_every_code_is_the_kernels(kind, seed, target):
    lines, shape = kind(np.random.default_rng(seed))
    given = feeds(seed, data=shape)
    found = quantized(build(*lines, seed=seed, data=shape), given, target=target, stem="int8")
    assert checked(found.model, given)


def made_for_vnni(seed: int, kind) -> tuple[Model, dict[str, np.ndarray]]:
    lines, shape = kind(np.random.default_rng(seed))
    given = feeds(seed, data=shape)
    return quantized(build(*lines, seed=seed, data=shape), given, target=machine.VNNI, stem="int8").model, given


def test_all_kernels_are_met():
    met = set().union(*(checked(*made_for_vnni(s, kind)) for s in range(12) for kind in (of_images, of_rows)))
    assert met == {"pairs", "shifted", "halved", "exact"}


@pytest.mark.parametrize("kind", [of_images, of_rows])
def test_the_arithmetic_of_other_cpus_is_another(kind, monkeypatch):
    """The comparison has teeth: kernels with VNNI do not give what those without do, nor the other way round."""
    monkeypatch.setattr(f"{__name__}.SATURATES", not SATURATES)
    apart = 0
    for seed in range(6):
        try:
            checked(*made_for_vnni(seed, kind))
        except AssertionError:
            apart += 1
    assert apart >= 4
