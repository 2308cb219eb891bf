"""Symbol JSON to `Graph` and back, and a text form with one line per node.

The JSON is MXNet's (``nnvm/src/pass/saveload_json.cc``): ``nodes``, ``arg_nodes``, ``heads`` and ``attrs``; a
fused node carries ``subgraphs``. ``node_row_ptr`` is not written: MXNet recomputes it on loading and never
reads it. Reading and writing lose nothing that MXNet keeps: names (also duplicated ones, see `Node.label`),
attributes, versions of auxiliary states, output indices, nested subgraphs. Annotations are among the attributes
(`mxq.graph.annotation_text`).

The text form::

    data = null
    conv0 = Convolution(data, conv0_weight) kernel="(3, 3)" no_bias="True" num_filter="16"
    sg = _sg_mkldnn_conv(conv0, w, bn_mean@1) with_act="true" {
      x = null
      ...
      return relu
    }
    return sg, other:1
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mxq.errors import FormatError, GraphError
from mxq.graph.annotation_text import annotated, attributes
from mxq.graph.ir import VARIABLE, Graph, Node, Ref

_LEGACY_ATTRS = ("param", "attr", "attrs")
"""Keys under which MXNet of different ages keeps attributes; later ones win."""

DEEPEST = 8
"""How deep subgraphs may lie in each other; a loop within a loop has 2."""

LARGEST = 2**31
"""MXNet keeps outputs and versions in 32 bits."""


def read_symbol(text: str | bytes | Mapping[str, Any], source: str = "symbol JSON") -> Graph:
    """Reads a symbol JSON (its text, or the parsed object).

    Whether MXNet has these operators, and can be given them, is for `mxq.operators.check_graph` to say.

    Args:
        text: what ``Symbol.tojson`` or ``HybridBlock.export`` wrote.
        source: how to call it in messages, e.g. the file's name.

    Raises:
        FormatError: not JSON, or not an MXNet symbol; says what was found.
        GraphError: two variables share a name, or a reference dangles.
    """
    data: Any = text
    if isinstance(text, str | bytes):
        try:
            data = json.loads(text, strict=False)  # MXNet escapes only some of the control characters
        except ValueError as error:
            raise FormatError(f"{source} is not JSON: {error}") from None
        except RecursionError:
            raise FormatError(f"{source} is nested too deeply to be an MXNet symbol") from None
    if not isinstance(data, Mapping):
        raise FormatError(f"{source} holds a {type(data).__name__}; allowed: an object with nodes, arg_nodes and heads")
    missing = [key for key in ("nodes", "heads") if not isinstance(data.get(key), list)]
    if missing:
        found = ", ".join(repr(key)[1:-1][:20] for key in sorted(data)[:6]) or "nothing"
        raise FormatError(f"{source} is not an MXNet symbol: it has no {' or '.join(missing)} list, but {found}")
    try:
        return _read_graph(data)
    except GraphError as error:
        raise GraphError(f"{source}: {error}") from None
    except FormatError as error:
        raise FormatError(f"{source} is damaged: {error}") from None


def _read_graph(data: Any, depth: int = 0) -> Graph:
    if depth > DEEPEST:
        raise FormatError(f"subgraphs in subgraphs, {depth} levels; allowed: {DEEPEST}")
    entries = [_Entry.of(item, i, depth) for i, item in enumerate(_field(data, "nodes", list, "a graph"))]
    names = _unique_names(entries)
    nodes = tuple(
        annotated(
            Node(
                name=name,
                op=entry.op,
                attrs=entry.attrs,
                inputs=tuple(_ref(item, names, f"node {name!r}") for item in entry.inputs),
                subgraphs=entry.subgraphs,
                label=entry.name if entry.name != name else "",
            )
        )
        for name, entry in zip(names, entries, strict=True)
    )
    heads = tuple(_ref(item, names, "heads") for item in _field(data, "heads", list, "a graph"))
    return Graph(nodes, heads, _field(data, "attrs", dict, "a graph", optional=True))


@dataclass(frozen=True, slots=True)
class _Entry:
    """One entry of ``nodes``, its fields of the right types; ``inputs`` are still as they were read."""

    op: str
    name: str
    attrs: dict[str, str]
    inputs: list[Any]
    subgraphs: tuple[Graph, ...]

    @staticmethod
    def of(item: Any, index: int, depth: int) -> _Entry:
        where = f"node {index}"
        op, name = (_string(_field(item, key, str, where), where) for key in ("op", "name"))
        subgraphs = _field(item, "subgraphs", list, where, optional=True)
        return _Entry(
            op,
            name,
            _read_attrs(item, where),
            _field(item, "inputs", list, where),
            tuple(_read_graph(sub, depth + 1) for sub in subgraphs),
        )


def _field(item: Any, key: str, kind: type, where: str, *, optional: bool = False) -> Any:
    """``item[key]``, which has to be a ``kind``; an empty one where it is missing and may be."""
    if not isinstance(item, Mapping):
        raise FormatError(f"{where} is a {type(item).__name__}; allowed: an object")
    value = item.get(key)
    if value is None and optional:
        return kind()
    if not isinstance(value, kind):
        found = "missing" if key not in item else f"a {type(value).__name__}"
        raise FormatError(f"{key!r} of {where} is {found}; allowed: a {kind.__name__}")
    return value


def _string(text: Any, where: str) -> str:
    """``text``, which MXNet has to be able to take as UTF-8 that ends with a zero."""
    if not isinstance(text, str):
        raise FormatError(f"a name or attribute of {where} is a {type(text).__name__}; allowed: a string")
    if "\0" in text or any("\ud800" <= c <= "\udfff" for c in text if c > "\x7f"):
        raise FormatError(f"{text[:40]!r} of {where} holds a zero or half of a surrogate pair; allowed: text")
    return text


def _ref(item: Any, names: Sequence[str], where: str) -> Ref:
    if not (isinstance(item, list) and 1 <= len(item) <= 3 and all(type(n) is int for n in item)):
        raise FormatError(f"{where} has the reference {str(item)[:60]}; allowed: [node, output, version]")
    index, output, version = (*item, 0, 0)[:3]
    if not 0 <= index < len(names):
        raise GraphError(f"{where} has a reference to node {index}, which dangles; the graph has {len(names)} nodes")
    if not (0 <= output < LARGEST and 0 <= version < LARGEST):
        raise GraphError(f"{where} has the reference {item}; allowed: an output and a version from 0 to {LARGEST - 1}")
    return Ref(names[index], output, version)


def _read_attrs(item: Any, where: str) -> dict[str, str]:
    merged: dict[str, Any] = {}
    for key in _LEGACY_ATTRS:
        merged.update(_field(item, key, dict, where, optional=True))
    return {_string(name, where): _string(value, where) for name, value in merged.items()}


def _unique_names(entries: Sequence[_Entry]) -> list[str]:
    """The nodes' names, operators that repeat one renamed "name__1", "name__2"; variables keep theirs."""
    variables = Counter(e.name for e in entries if e.op == VARIABLE)
    twice = sorted(name for name, times in variables.items() if times > 1)
    if twice:
        raise GraphError(f"two variables are named {twice[0]!r}; MXNet cannot bind them apart")
    taken, count = set(variables), dict.fromkeys(variables, 0)
    original = {e.name for e in entries}
    names = []
    for entry in entries:
        name = entry.name
        if entry.op != VARIABLE:
            while name in taken or (name in original and name != entry.name):
                count[entry.name] = count.get(entry.name, 0) + 1
                name = f"{entry.name}__{count[entry.name]}"
            taken.add(name)
        names.append(name)
    return names


def symbol_object(graph: Graph) -> dict[str, Any]:
    """The JSON object of ``graph``, as MXNet reads it."""
    index = {node.name: i for i, node in enumerate(graph.nodes)}

    def entry(ref: Ref) -> list[int]:
        return [index[ref.name], ref.output, ref.version]

    nodes = []
    for node in graph.nodes:
        item: dict[str, Any] = {"op": node.op, "name": node.label or node.name}
        if attrs := attributes(node):
            item["attrs"] = attrs
        item["inputs"] = [entry(r) for r in node.inputs]
        if node.subgraphs:
            item["subgraphs"] = [symbol_object(s) for s in node.subgraphs]
        nodes.append(item)
    written: dict[str, Any] = {
        "nodes": nodes,
        "arg_nodes": [i for i, node in enumerate(graph.nodes) if node.is_variable],
        "heads": [entry(r) for r in graph.heads],
    }
    # A missing version is meaningful: it makes MXNet upgrade the graph as one of its first releases'.
    return {**written, "attrs": dict(graph.attrs)} if graph.attrs else written


def write_symbol(graph: Graph) -> str:
    """The symbol JSON of ``graph``, as text."""
    text = json.dumps(symbol_object(graph), indent=2, ensure_ascii=False)
    return _ESCAPE.sub(_as_mxnet_reads, text)


_ESCAPE = re.compile(r"\\(?:u00(?!00)([01][0-9a-f])|(.))")


def _as_mxnet_reads(escape: re.Match[str]) -> str:
    """An escape sequence, or the control character itself where MXNet's parser knows no sequence for it."""
    code, letter = escape.groups()
    if code is not None:
        return chr(int(code, 16))
    return {"b": "\b", "f": "\f"}.get(letter, escape[0])


# ---- the text form -------------------------------------------------------------------------------------------

_PLAIN = re.compile(r"[A-Za-z_][\w.\-/]*")
_TOKEN = re.compile(r'\s*("(?:[^"\\]|\\.)*"|[A-Za-z_][\w.\-/]*|\d+|[=(),:@{}])')


def _quote(name: str) -> str:
    return name if _PLAIN.fullmatch(name) and name not in ("return", "graph") else json.dumps(name)


def _ref_text(ref: Ref) -> str:
    output = f":{ref.output}" if ref.output else ""
    version = f"@{ref.version}" if ref.version else ""
    return _quote(ref.name) + output + version


def _lines(graph: Graph, indent: str) -> Iterator[str]:
    if graph.attrs:
        yield f"{indent}graph {json.dumps(dict(graph.attrs), sort_keys=True)}"
    for node in graph.nodes:
        call = "" if node.is_variable and not node.inputs else f"({', '.join(map(_ref_text, node.inputs))})"
        parts = [f"{_quote(node.name)} = {_quote(node.op)}{call}"]
        parts += [f"{_quote(k)}={json.dumps(v)}" for k, v in sorted(attributes(node).items())]
        if node.label:
            parts.append(f"@label={json.dumps(node.label)}")
        head = indent + " ".join(parts)
        if not node.subgraphs:
            yield head
            continue
        for i, sub in enumerate(node.subgraphs):
            yield head + " {" if i == 0 else f"{indent}}} {{"
            yield from _lines(sub, indent + "  ")
        yield indent + "}"
    yield f"{indent}return {', '.join(map(_ref_text, graph.heads))}"


def write_text(graph: Graph) -> str:
    """The text form of ``graph``; `read_text` reads it back equal."""
    return "\n".join(_lines(graph, "")) + "\n"


def read_text(text: str) -> Graph:
    """Reads the text form. Blank lines and lines starting with ``#`` are skipped.

    Raises:
        FormatError: a line cannot be parsed; the message shows it and its number.
        GraphError: the graph breaks an invariant.
    """
    lines = [(i, line.strip()) for i, line in enumerate(text.splitlines(), 1)]
    reader = _Reader([(i, line) for i, line in lines if line and not line.startswith("#")])
    graph = reader.graph()
    if reader.position < len(reader.lines):
        number, line = reader.lines[reader.position]
        raise FormatError(f"line {number}: {line!r} follows the end of the graph")
    return graph


class _Reader:
    """Recursive descent over the text form's lines."""

    def __init__(self, lines: list[tuple[int, str]]) -> None:
        self.lines = lines
        self.position = 0

    def graph(self) -> Graph:
        nodes: list[Node] = []
        attrs: dict[str, Any] = {}
        while self.position < len(self.lines):
            number, line = self.lines[self.position]
            self.position += 1
            if line.startswith("graph "):
                attrs = _json(number, line[len("graph ") :])
                continue
            tokens = _tokens(number, line)
            if tokens.values[0] == "return":
                tokens.take("return")
                return Graph(tuple(nodes), tokens.refs(end=""), attrs)
            nodes.append(self._node(tokens))
        raise FormatError("the text ends without a 'return' line")

    def _node(self, tokens: _Tokens) -> Node:
        name = tokens.name()
        tokens.take("=")
        op = tokens.name()
        inputs = tokens.refs(end=")") if tokens.skip("(") else ()
        attrs, label, subgraphs = {}, "", []
        while not tokens.done:
            if tokens.skip("@"):
                tokens.take("label")
                tokens.take("=")
                label = tokens.name()
            elif tokens.skip("{"):
                subgraphs = self._subgraphs()
            else:
                key = tokens.name()
                tokens.take("=")
                attrs[key] = tokens.name()
        return annotated(Node(name, op, attrs, inputs, tuple(subgraphs), label))

    def _subgraphs(self) -> list[Graph]:
        found = [self.graph()]
        while self.position < len(self.lines):
            closing = self.lines[self.position][1]
            self.position += 1
            if closing == "}":
                return found
            if closing != "} {":
                break
            found.append(self.graph())
        raise FormatError(f"line {self.lines[self.position - 1][0]}: '}}' expected after a subgraph")


def _json(number: int, text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise FormatError(f"line {number}: {text!r} is not JSON: {error}") from None


def _tokens(number: int, line: str) -> _Tokens:
    values, at = [], 0
    while at < len(line):
        match = _TOKEN.match(line, at)
        if match is None:
            raise FormatError(f"line {number}: cannot read {line[at:]!r}")
        values.append(match[1])
        at = match.end()
    return _Tokens(number, line, values)


class _Tokens:
    """The tokens of one line, taken from the left."""

    def __init__(self, number: int, line: str, values: list[str]) -> None:
        self.number, self.line, self.values, self.at = number, line, values, 0

    @property
    def done(self) -> bool:
        return self.at >= len(self.values)

    def _fail(self, wanted: str) -> FormatError:
        found = "the end of the line" if self.done else repr(self.values[self.at])
        return FormatError(f"line {self.number}: {wanted} expected, {found} found in {self.line!r}")

    def skip(self, token: str) -> bool:
        if self.done or self.values[self.at] != token:
            return False
        self.at += 1
        return True

    def take(self, token: str) -> None:
        if not self.skip(token):
            raise self._fail(repr(token))

    def name(self) -> str:
        if self.done or self.values[self.at] in set("=(),:@{}"):
            raise self._fail("a name")
        self.at += 1
        value = self.values[self.at - 1]
        return str(_json(self.number, value)) if value.startswith('"') else value

    def _number(self) -> int:
        value = self.name()
        if not value.isdigit():
            raise self._fail("a number")
        return int(value)

    def refs(self, end: str) -> tuple[Ref, ...]:
        found: list[Ref] = []
        while not (self.done if end == "" else self.skip(end)):
            if found:
                self.take(",")
            name = self.name()
            output = self._number() if self.skip(":") else 0
            found.append(Ref(name, output, self._number() if self.skip("@") else 0))
        return tuple(found)
