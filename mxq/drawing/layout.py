"""Where boxes and arrows stand: in layers, each below all that it reads, with few crossings.

The method is that of Sugiyama, Tagawa and Toda (IEEE Transactions on Systems, Man, and Cybernetics 11(2), 1981). igraph
orders the boxes of each layer; where an arrow passes a layer, it takes a place in it as a box does. Then, layer after
layer, downwards and upwards in turn, each moves below (above) the median of what it is joined to there, as far as its
neighbours in the layer leave room: the least squares of the distances, by pooling adjacent violators.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from typing import Final, TypeAlias

from mxq.drawing.libraries import library
from mxq.drawing.scene import Arrow, Box, Scene

LETTER: Final = 6.7
"""Width of a letter, in pixels: somewhat more than sans-serif letters of `SIZE` have on average."""
SIZE: Final = 12.0
"""Height of letters, in pixels, as are all lengths here."""
PADDING: Final = 12.0
"""Beside a title."""
HEIGHT: Final = 28.0
"""Of a box."""
BELOW: Final = 24.0
"""Between layers."""
BESIDE: Final = 18.0
"""Between what stands in one layer."""
THIN: Final = 8.0
"""Width of an arrow that passes a layer."""
SWEEPS: Final = 9
STRAIGHT: Final = (4.0, 1.0, 8.0)
"""What it counts that a step is straight: between two boxes, a box and a passing arrow, two places of one arrow."""
YIELDING: Final = 0.01
"""What it counts that an arrow stands where it wants, beside a box: boxes keep their line."""

Point: TypeAlias = tuple[float, float]


@dataclass(frozen=True)
class Placed:
    """A box and the middle of where it stands, with its width."""

    box: Box
    x: float
    y: float
    width: float


@dataclass(frozen=True)
class Path:
    """An arrow and the points that it goes through, from the lower edge of a box to the upper edge of another."""

    arrow: Arrow
    points: tuple[Point, ...]


@dataclass(frozen=True)
class Layout:
    """A picture of one network, with its upper left corner at (0, 0)."""

    title: str
    boxes: tuple[Placed, ...]
    paths: tuple[Path, ...]

    @cached_property
    def width(self) -> float:
        edges = [b.x + b.width / 2 for b in self.boxes]
        return max((*edges, *(x for path in self.paths for x, _ in path.points)), default=0.0)

    @cached_property
    def height(self) -> float:
        return max((b.y + HEIGHT / 2 for b in self.boxes), default=0.0)


def width_of(box: Box) -> float:
    """As wide as its title needs."""
    return max(48.0, LETTER * len(box.title) + 2 * PADDING)


def layout_of(scene: Scene) -> Layout:
    """Places the boxes and arrows of ``scene``.

    Raises:
        ConfigError: igraph is not installed.
    """
    places = {box.name: i for i, box in enumerate(scene.boxes)}
    pairs = [(places[a.start], places[a.end]) for a in scene.arrows]
    stack = _Stack.of(len(places), pairs)
    x = stack.settled([width_of(box) for box in scene.boxes])
    left = min((*x, *(x[i] - width_of(box) / 2 for i, box in enumerate(scene.boxes))), default=0.0)
    points = [(x[i] - left, HEIGHT / 2 + layer * (HEIGHT + BELOW)) for i, layer in enumerate(stack.layers)]
    boxes = tuple(Placed(box, *points[i], width_of(box)) for i, box in enumerate(scene.boxes))
    paths = (Path(arrow, _along([points[i] for i in way])) for arrow, way in zip(scene.arrows, stack.ways, strict=True))
    return Layout(scene.title, boxes, tuple(paths))


def _along(points: Sequence[Point]) -> tuple[Point, ...]:
    """From the lower edge of the first box to the upper edge of the last."""
    (x, y), *between, (u, v) = points
    return ((x, y + HEIGHT / 2), *between, (u, v - HEIGHT / 2))


@dataclass
class _Stack:
    """Boxes, then the places where arrows pass layers, by number.

    Attributes:
        layers: in which layer each is.
        ways: arrow -> all that it goes through, both its boxes too.
        count: how many are boxes.
    """

    layers: list[int]
    ways: list[list[int]]
    count: int
    joined: list[list[tuple[int, float]]] = field(default_factory=list)

    @staticmethod
    def of(count: int, pairs: Sequence[tuple[int, int]]) -> _Stack:
        layers, ways = _layers(count, pairs), []
        for start, end in pairs:
            passed = range(layers[start] + 1, layers[end])
            ways.append([start, *range(len(layers), len(layers) + len(passed)), end])
            layers.extend(passed)
        found = _Stack(layers, ways, count, [[] for _ in layers])
        for a, b in (step for way in ways for step in pairwise(way)):
            weight = STRAIGHT[(a >= count) + (b >= count)]
            found.joined[a].append((b, weight))
            found.joined[b].append((a, weight))
        return found

    def settled(self, widths: Sequence[float]) -> list[float]:
        """Where each stands from left to right."""
        sizes = [*widths, *[THIN] * (len(self.layers) - self.count)]
        rows = self._rows()
        x = [0.0] * len(sizes)
        for row in rows:
            for i, place in zip(row, _apart([0.0] * len(row), [sizes[i] for i in row]), strict=True):
                x[i] = place
        for sweep in range(SWEEPS):
            side = -1 if sweep % 2 == 0 else 1
            for row in rows[::-side]:
                wanted = [self._wanted(i, x, side) for i in row]
                for i, place in zip(row, _apart(wanted, [sizes[i] for i in row]), strict=True):
                    x[i] = place
        return x

    def _wanted(self, i: int, x: Sequence[float], side: int) -> float:
        """The weighted median of what is joined to it in the layer before (-1) or after (1)."""
        near = sorted((x[j], weight) for j, weight in self.joined[i] if self.layers[j] == self.layers[i] + side)
        half, seen = sum(weight for _, weight in near) / 2, 0.0
        for (place, weight), (after, _) in zip(near, [*near[1:], (0.0, 0.0)], strict=False):
            seen += weight
            if seen == half:
                return (place + after) / 2
            if seen > half:
                return place
        return x[i]

    def _rows(self) -> list[list[int]]:
        """Each layer from left to right."""
        steps = [step for way in self.ways for step in pairwise(way)]
        graph = library("igraph").Graph(n=len(self.layers), edges=steps, directed=True)
        order = graph.layout_sugiyama(layers=self.layers, maxiter=100) if self.layers else []
        rows: list[list[int]] = [[] for _ in range(max(self.layers, default=-1) + 1)]
        for i in sorted(range(len(self.layers)), key=lambda i: order[i][0]):
            rows[self.layers[i]].append(i)
        return rows


def _layers(count: int, pairs: Sequence[tuple[int, int]]) -> list[int]:
    """The longest way from an input to each box; what reads nothing stands right above the first that reads it."""
    found, read = [0] * count, {end for _, end in pairs}
    for start, end in sorted(pairs, key=lambda pair: pair[1]):  # boxes are in graph order
        found[end] = max(found[end], found[start] + 1)
    for i in set(range(count)) - read:
        found[i] = max(0, min((found[end] for start, end in pairs if start == i), default=1) - 1)
    return found


def _apart(wanted: Sequence[float], sizes: Sequence[float]) -> Iterator[float]:
    """The places nearest to those ``wanted``, by least squares, in this order and without overlap."""
    offsets, at = [], 0.0
    for i, size in enumerate(sizes):
        at += (sizes[i - 1] + size) / 2 + BESIDE if i else 0.0
        offsets.append(at)
    blocks: list[tuple[float, float, int]] = []  # mean, weight, and of how many
    for want, offset, size in zip(wanted, offsets, sizes, strict=True):
        mean, weight, count = want - offset, 1.0 if size > THIN else YIELDING, 1
        while blocks and blocks[-1][0] >= mean:
            other, heavy, more = blocks.pop()
            mean, weight = (mean * weight + other * heavy) / (weight + heavy), weight + heavy
            count += more
        blocks.append((mean, weight, count))
    means = (mean for mean, _, count in blocks for _ in range(count))
    return (mean + offset for mean, offset in zip(means, offsets, strict=True))
