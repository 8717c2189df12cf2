"""Bytes made worse: flipped, cut, doubled, spliced, with numbers and words that readers stumble over put in."""

import json
import random
import re
import struct
from collections.abc import Sequence
from typing import Any

NUMBERS = (0, 1, -1, 127, 128, 255, 256, 32767, 65535, 65536, 2**31 - 1, 2**31, 2**32 - 1, 2**53, 2**63 - 1, 2**63, 10**30)
TEXTS = (
    (
        "",
        "\0",
        "\n",
        "\r",
        '"',
        "'",
        "\\",
        "{",
        "}",
        "[",
        "]",
        ":",
        ",",
        "-",
        "null",
        "true",
        "NaN",
        "-Infinity",
        "1e999",
        "1e-999",
        "{}",
        "[]",
    ),
    ("../../etc/passwd", "/dev/zero", "\x1b[2J", "\u202e", "\ufeff", "\ud800", "é", "😀", "\\ud800", "\\u0000", "{name}", "a" * 5000),
    (
        "&a",
        "*a",
        "<<: *a",
        "!!python/object/apply:os.system",
        "!!int x",
        "!!bool ",
        "0001-01-01",
        "1:2:3",
        "? ",
        "%YAML 9.9\n",
        "--- ",
        "| ",
    ),
    ("__metadata__", "shape", "dtype", "data_offsets", "file_name", "text", "F32", "F8_E4M3", "I64", "0x10", "9" * 400, "9" * 5000),
    ("[" * 2000, '{"a":' * 2000, "{a|b|", "{" * 300, ",," * 200, "-" * 500, "- " * 1500),
)
WORDS = tuple(word.encode("utf-8", "surrogatepass") for words in TEXTS for word in words)
ODD: tuple[Any, ...] = (None, True, False, "", "x", "../x", "\0", "\x1b[2J", [], {}, [None], {"a": None}, [[]], "9" * 400)
VALUES: tuple[Any, ...] = (*ODD, *NUMBERS, 0.5, 1e308, float("nan"), float("inf"))
FORMATS = ("<B", "<H", ">H", "<I", ">I", "<Q", ">Q")


def mutate(data: bytes, dice: random.Random, others: Sequence[bytes]) -> bytes:
    """The data after one to six changes; `others` are inputs to take parts of."""
    for _ in range(dice.choice((1, 1, 1, 2, 2, 3, 4, 6))):
        data = dice.choice(CHANGES)(data, dice, others)
    return data[: 2**20]


def _span(data: bytes, dice: random.Random) -> tuple[int, int]:
    begin = dice.randint(0, len(data))
    return begin, min(len(data), begin + int(2 ** dice.uniform(0, 10)))


def flip(data: bytes, dice: random.Random, others: Sequence[bytes]) -> bytes:
    made = bytearray(data)
    for _ in range(dice.choice((1, 1, 2, 8))):
        if made:
            made[dice.randrange(len(made))] ^= 1 << dice.randrange(8)
    return bytes(made)


def overwrite(data: bytes, dice: random.Random, others: Sequence[bytes]) -> bytes:
    at, fmt = dice.randint(0, len(data)), dice.choice(FORMATS)
    number = dice.choice(NUMBERS) % 2 ** (8 * struct.calcsize(fmt))
    return data[:at] + struct.pack(fmt, number) + data[at + struct.calcsize(fmt) :]


def remove(data: bytes, dice: random.Random, others: Sequence[bytes]) -> bytes:
    begin, end = _span(data, dice)
    return data[:begin] + data[end:]


def repeat(data: bytes, dice: random.Random, others: Sequence[bytes]) -> bytes:
    begin, end = _span(data, dice)
    return data[:end] + data[begin:end] * dice.choice((1, 2, 50)) + data[end:]


def insert(data: bytes, dice: random.Random, others: Sequence[bytes]) -> bytes:
    at = dice.randint(0, len(data))
    return data[:at] + dice.choice(WORDS) + data[at:]


def splice(data: bytes, dice: random.Random, others: Sequence[bytes]) -> bytes:
    other = dice.choice(others)
    begin, end = _span(other, dice)
    at = dice.randint(0, len(data))
    return data[:at] + other[begin:end] + data[at + dice.choice((0, end - begin)) :]


def cut(data: bytes, dice: random.Random, others: Sequence[bytes]) -> bytes:
    return data[: dice.randint(0, len(data))]


def replace(data: bytes, dice: random.Random, others: Sequence[bytes]) -> bytes:
    """Another number, word or text in the place of one."""
    places = [m.span() for m in re.finditer(rb"-?\d+(?:\.\d+)?|\"[^\"\n]{0,80}\"|[A-Za-z_]{2,40}|true|false|null", data[:20_000])]
    if not places:
        return insert(data, dice, others)
    begin, end = dice.choice(places)
    number = str(dice.choice(NUMBERS)).encode()
    return data[:begin] + dice.choice((number, dice.choice(WORDS), b'"' + dice.choice(WORDS) + b'"')) + data[end:]


def leaf(data: bytes, dice: random.Random, others: Sequence[bytes]) -> bytes:
    """One value of the JSON that begins the data, or stands behind a number of one byte or a length of eight, becomes another."""
    for skip in (0, 1, 8):
        end = len(data) if skip < 8 else 8 + int.from_bytes(data[:8], "little")
        if data[skip : skip + 1] not in (b"{", b"["):
            continue
        try:
            tree = json.loads(data[skip:end])
        except (ValueError, RecursionError):
            continue
        _change(tree, dice)
        text = json.dumps(tree).encode("utf-8", "surrogatepass")
        return (data[:skip] if skip < 8 else struct.pack("<Q", len(text))) + text + (data[end:] if skip == 8 else b"")
    return replace(data, dice, others)


def _change(tree: Any, dice: random.Random) -> None:
    """A value at random, at any depth: set, removed or doubled."""
    while isinstance(tree, dict | list) and tree:
        key = dice.choice([*tree]) if isinstance(tree, dict) else dice.randrange(len(tree))
        if isinstance(tree[key], dict | list) and tree[key] and dice.random() < 0.8:
            tree = tree[key]
            continue
        way = dice.random()
        if way < 0.15:
            del tree[key]
        elif way < 0.25 and isinstance(tree, list):
            tree *= dice.choice((2, 1000))
        else:
            tree[key] = dice.choice(VALUES)
        return


CHANGES = (flip, overwrite, remove, repeat, insert, splice, cut, replace, replace, leaf, leaf, leaf)
