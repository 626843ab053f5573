"""Damage to files, by chance and by malice: of bytes, of JSON, and of tensors' files."""

import copy
import json
import re
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

VALUES: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2, 3, 7, 64, -(2**31), 2**24, 2**31, 2**32 + 1, 2**64, 10**400,
    0.0, -0.0, 0.5, 1e38, 1e300, float("nan"), float("inf"), "", "x", "conv0", "c0", "none", "relu",
    "\ud800", "\0", "y" * 2000, [], [0], [1, 1], [-1, -1], [2**40, 2**40], [1, 2, 3], [0, 0, 0, 0],
    ["c0"], [[]], [[1, 1, 1]], {}, {"operation": "Conv"}, [None], [0.5, 0.5],
)  # fmt: skip
PIECES = (b'{"', b'":', b"[", b"]", b"9" * 30, b"\\ud800", b"\0", b"\xff", b"NaN", b"[" * 5000)


class Chance:
    """Damage by chance, to the bytes of a content whatever they are."""

    original: bytes

    def cut(self, rng: np.random.Generator) -> bytes:
        """A part at the end or anywhere is missing, or there is more."""
        start, end = sorted(int(n) for n in rng.integers(0, len(self.original) + 1, size=2))
        whole = self.original
        kinds = (whole[:start], whole[:start] + whole[end:],
                 whole + bytes(end - start), whole + whole[start:end])  # fmt: skip
        return kinds[rng.integers(len(kinds))]

    def splice(self, rng: np.random.Generator) -> bytes:
        """Something else in the place of some bytes, or between them."""
        start, other = (int(n) for n in rng.integers(0, len(self.original), size=2))
        piece = PIECES[rng.integers(len(PIECES))]
        if rng.random() < 0.5:
            piece = self.original[other : other + int(rng.integers(1, 40))]
        end = start + len(piece) * int(rng.integers(2))
        return self.original[:start] + piece + self.original[end:]


class Damage(Chance):
    """Makes damaged copies of one file's content, each from its own seed.

    Args:
        original: The content.
        sign: Content of a safetensors file -> the same with the digest that belongs to it.
    """

    def __init__(self, original: bytes, sign: Callable[[bytes], bytes] | None = None) -> None:
        self.original, self.sign = original, sign
        self.tensors = sign is not None
        self.ways = [self.flip, self.cut, self.splice]
        self.ways += [self.edit, self.header, self.length] if self.tensors else [self.json] * 3

    def make(self, seed: int) -> tuple[bytes, bool]:
        """Damage the content.

        Returns:
            The content, and whether it is signed as if it were whole.
        """
        rng = np.random.default_rng(seed)
        way = self.ways[seed % len(self.ways)]
        return bytes(way(rng)), way == self.edit

    def flip(self, rng: np.random.Generator) -> bytes:
        """Some bits, most of the time one."""
        damaged = bytearray(self.original)
        for _ in range(int(rng.geometric(0.6))):
            damaged[rng.integers(len(damaged))] ^= 1 << int(rng.integers(8))
        return damaged

    def json(self, rng: np.random.Generator) -> bytes:
        """A value of a JSON file, or of a line of one; or a key that stands there twice."""
        lines = self.original.split(b"\n") if self.original.startswith(b'{"kind"') else []
        at = int(rng.integers(len(lines) - 1)) if len(lines) > 2 else 0
        tree = json.loads(lines[at] if lines else self.original)
        for _ in range(int(rng.geometric(0.7))):
            replace(tree, rng)
        text = json.dumps(tree)
        keys = list(re.finditer(r'"\w+": (?=[\d"])', text))
        if keys and rng.random() < 0.1:
            key = keys[rng.integers(len(keys))]
            text = f"{text[: key.start()]}{key.group()}1, {text[key.start() :]}"
        if lines:
            return b"\n".join([*lines[:at], text.encode(), *lines[at + 1 :]])
        return text.encode()

    def edit(self, rng: np.random.Generator) -> bytes:
        """A value of the metadata or of the tensors' descriptions, signed anew."""
        header, data = split(self.original)
        if rng.random() < 0.8:
            content = json.loads(header["__metadata__"]["ftwt"])
            for _ in range(int(rng.geometric(0.7))):
                replace(content, rng)
            header["__metadata__"]["ftwt"] = json.dumps(content)
        else:
            names = [name for name in header if name != "__metadata__"]
            first, other = (names[n] for n in rng.integers(len(names), size=2))
            header[first], header[other] = header[other], header[first]
        assert self.sign is not None
        return self.sign(joined(header, data))

    def header(self, rng: np.random.Generator) -> bytes:
        """A value of the header."""
        header, data = split(self.original)
        replace(header, rng)
        return joined(header, data)

    def length(self, rng: np.random.Generator) -> bytes:
        """Another length of the header."""
        values = (0, 1, 7, 2**23, 2**31, 2**63, 2**64 - 1, len(self.original))
        wrong = int(rng.integers(2 * len(self.original)))
        value = values[rng.integers(len(values))] if rng.random() < 0.5 else wrong
        return value.to_bytes(8, "little") + self.original[8:]


def split(content: bytes) -> tuple[dict[str, Any], bytes]:
    """Header and data of a safetensors file."""
    length = int.from_bytes(content[:8], "little")
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def joined(header: Any, data: bytes) -> bytes:
    packed = json.dumps(header).encode()
    return len(packed).to_bytes(8, "little") + packed + data


def replace(tree: Any, rng: np.random.Generator) -> None:
    """Change one value anywhere in a tree of JSON: another value, another's, none, or twice."""
    places = list(walk(tree))
    parent, key = places[rng.integers(len(places))]
    way = rng.random()
    if way < 0.6:
        parent[key] = copy.deepcopy(VALUES[rng.integers(len(VALUES))])
    elif way < 0.8:
        other, name = places[rng.integers(len(places))]
        parent[key] = copy.deepcopy(other[name])
    elif way < 0.9:
        del parent[key]
    elif isinstance(parent, list):
        parent.insert(key, copy.deepcopy(parent[key]))
    else:
        parent[str(key) + "x"] = parent[key]


def walk(tree: Any) -> Iterator[tuple[Any, Any]]:
    items = list(tree.items() if isinstance(tree, dict) else enumerate(tree))
    for key, value in items:
        yield tree, key
        if isinstance(value, dict | list):
            yield from walk(value)
