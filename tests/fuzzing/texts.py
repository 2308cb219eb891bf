"""Mutations of text: tables, indices, recipes, and words of the command line."""

from __future__ import annotations

from random import Random
from typing import Final

from fuzzing.trees import bytes_mutated

YAML: Final = (
    *(
        "&a [*a]",
        "*nosuch",
        "&a [x,x,x,x]",
        "!!python/object/apply:os.system ['true']",
        "!!python/name:os.system",
        "!!bool maybe",
    ),
    *(
        "!!timestamp x",
        "!!binary '***'",
        "!!int x",
        "!!float y",
        "!!null z",
        "!!set {a, b}",
        "!!omap [a: 1]",
        "!!pairs [a: 1]",
    ),
    *(
        "<<: *a",
        "{<<: {a: 1}}",
        "? [a, b]\n: c",
        "[" * 500,
        "[" * 40000,
        "{a: " * 3000,
        "2020-13-01",
        "2020-01-01",
        "1_000",
        "0o17",
    ),
    *(
        "0x1F",
        "190:20:30",
        ".inf",
        "-.inf",
        ".nan",
        "1e999",
        "1" + "0" * 400,
        "'",
        '"\\ud800"',
        "\t",
        "--- \n---",
        "...",
        "%YAML 9.9",
    ),
    *(
        "|\n  text",
        ">\n  text",
        "~",
        "yes",
        "off",
        "null",
        "[a, b",
        "{a: b",
        "a: b: c",
        "\x07",
        "\x85",
        "\ufeff",
        "@x",
        "`x",
        "!",
        "!x y",
    ),
)
WORDS: Final = (
    *(
        "",
        " ",
        ",",
        ";",
        "0",
        "-1",
        "1.5",
        "1e3",
        "99999999999999999999",
        "1" * 5000,
        "nan",
        "inf",
        "0x10",
        "1_0",
        "\N{ARABIC-INDIC DIGIT FIVE}",
    ),
    *(
        "..",
        "../x",
        "../../../../etc/passwd",
        "/etc/passwd",
        "/dev/zero",
        "/dev/stdin",
        "rgb.png",
        "sub/rgb.png",
        "rgb.png/",
        ".",
        "a\0b",
    ),
    *(
        '"',
        '""',
        "'",
        "\r",
        "\n",
        "\t",
        "\x1b[2J",
        "\u2028",
        "é",
        "\ufeff",
        "x" * 200_000,
        "file",
        "label",
        "index",
        "%s",
        "=1",
        "None",
    ),
)


def text_mutated(text: str | bytes, rng: Random, odd: tuple[str, ...] = WORDS) -> str | bytes:
    """Lines and words exchanged, removed, repeated, replaced by odd ones; or the bytes."""
    if isinstance(text, bytes):
        return bytes_mutated(text, rng)
    kind = rng.randrange(9)
    if kind == 0:
        return bytes_mutated(text.encode("utf-8", "surrogatepass"), rng)
    if kind == 1:
        encoding = rng.choice(("utf-16", "utf-32", "latin-1", "utf-8-sig", "cp037"))
        return text.encode(encoding, "replace")
    lines = text.split("\n")
    at = rng.randrange(len(lines))
    if kind == 2:
        del lines[at]
    elif kind == 3:
        lines.insert(at, rng.choice(lines))
    elif kind == 4:
        lines.insert(at, rng.choice(odd))
    else:
        lines[at] = _line(lines[at], rng, odd)
    return "\n".join(lines)


def _line(line: str, rng: Random, odd: tuple[str, ...]) -> str:
    """One word of it is another."""
    for mark in rng.sample((":", ",", "\t", " "), 4):
        parts = line.split(mark)
        if len(parts) > 1:
            parts[rng.randrange(len(parts))] = rng.choice((rng.choice(odd), rng.choice(odd), rng.choice(parts)))
            return mark.join(parts)
    return rng.choice(odd)


def arguments_mutated(words: tuple[str, ...], rng: Random) -> tuple[str, ...]:
    """A word replaced, removed or repeated."""
    if len(words) < 2:
        return (*words, rng.choice(ARGUMENTS).replace("\0", ""))
    found = list(words)
    at = rng.randrange(1, len(found))
    kind = rng.randrange(8)
    if kind == 0:
        del found[at]
    elif kind == 1:
        found.insert(at, found[at])
    elif kind == 2:
        cut = rng.randrange(len(found[at]) + 1)
        found[at] = found[at][:cut] + rng.choice(ARGUMENTS) + found[at][cut:]
    else:
        found[at] = rng.choice(ARGUMENTS)
    return tuple(w.replace("\0", "") for w in found)  # which no process can be given


ARGUMENTS: Final = (
    *(
        "",
        " ",
        "x",
        "-",
        "--",
        "0",
        "-1",
        "1",
        "1.5",
        "1e3",
        "nan",
        "inf",
        "-inf",
        "1e999",
        "99999999999999999999",
        "9" * 5000,
        "\u0665",
    ),
    *(
        "3x8x8",
        "3,8,8",
        "data=3x8x8",
        "data=",
        "=3x8x8",
        "0x0x0",
        "3x99999999999x8",
        "3x-8x8",
        "x" * 3000,
        "10%",
        "0%",
        "1e5%",
        "nan%",
    ),
    *(
        "1,2,3",
        "1,2",
        ",",
        "0,0,0",
        "1e400",
        "nan,nan,nan",
        "percentile:99",
        "percentile:nan",
        "percentile:",
        "moving:2",
        "mse:1",
        "auto",
    ),
    *(
        "op:*",
        "op:",
        "*",
        "[",
        "[!a-",
        "**",
        "naive",
        "entropy",
        "int8",
        "uint8",
        "float32",
        "fast",
        "native",
        "../x",
        ".",
        "/dev/null",
    ),
    *(
        "\x1b[31m",
        "\n",
        "é",
        "\udcff",
        "--json",
        "--debug",
        "--help",
        "--batch-size",
        "--shape",
        "--mean",
        "--scale",
        "--crop",
        "--exclude",
    ),
)
