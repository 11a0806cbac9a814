"""Ways in which the bytes of a file get damaged: by chance, or by a value that nobody expects."""

from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np

Mutator = Callable[[bytes, np.random.Generator], bytes]

_VALUES = re.compile(rb'-?\d+(?:\.\d+)?|"[^"]*"|true|false|null|utf-8')
_ODD = (
    b"-1", b"0", b"1", b"2147483648", b"1e400", b"9" * 400, b"NaN", b"null", b"[]", b"{}", b'"x"', b'""', b"true",
    b"0.5", b"65536", b"", b'"\xff\xfe"', b'"' + b"x" * 3000 + b'"', b'"../../x"', b"[" * 100_000, b'{"a":' * 100_000,
)  # fmt: skip
_ODD_FILES = (
    b"", b"\n", b"\0" * 64, b"[]", b"{}", b"null", b"[" * 100_000, b"\xff\xfe[]", b"<html>not found</html>",
    b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
)  # fmt: skip


def flip_bit(data: bytes, rng: np.random.Generator) -> bytes:
    """One bit is another."""
    at = int(rng.integers(len(data)))
    return data[:at] + bytes([data[at] ^ 1 << int(rng.integers(8))]) + data[at + 1 :]


def flip_bit_near_an_end(data: bytes, rng: np.random.Generator) -> bytes:
    """One bit of the first or last 64 bytes, where headers and directories are."""
    at = int(rng.integers(min(64, len(data))))
    at = at if rng.random() < 0.5 else len(data) - 1 - at
    return data[:at] + bytes([data[at] ^ 1 << int(rng.integers(8))]) + data[at + 1 :]


def overwrite(data: bytes, rng: np.random.Generator) -> bytes:
    """Up to 40 bytes are others."""
    at, length = _place(data, rng)
    return data[:at] + rng.bytes(length) + data[at + length :]


def zero(data: bytes, rng: np.random.Generator) -> bytes:
    """A piece is full of zeros, as a disk leaves it that lost its power."""
    at, length = int(rng.integers(len(data))), int(rng.integers(1, 4097))
    return data[:at] + bytes(min(length, len(data) - at)) + data[at + length :]


def cut(data: bytes, rng: np.random.Generator) -> bytes:
    """The end is missing."""
    return data[: int(rng.integers(len(data)))]


def drop(data: bytes, rng: np.random.Generator) -> bytes:
    """A piece is missing."""
    at, length = _place(data, rng)
    return data[:at] + data[at + length :]


def repeat(data: bytes, rng: np.random.Generator) -> bytes:
    """A piece comes twice."""
    at, length = _place(data, rng)
    return data[: at + length] + data[at:]


def append(data: bytes, rng: np.random.Generator) -> bytes:
    """Something follows the end."""
    return data + rng.bytes(int(rng.integers(1, 200)))


def exchange(data: bytes, rng: np.random.Generator) -> bytes:
    """Two pieces of the same length change places."""
    length = int(rng.integers(1, max(2, len(data) // 4)))
    first, second = sorted(int(v) for v in rng.integers(max(1, len(data) - length), size=2))
    second = max(second, first + length)
    middle = data[first + length : second]
    return (
        data[:first] + data[second : second + length] + middle + data[first : first + length] + data[second + length :]
    )


def odd_value(data: bytes, rng: np.random.Generator) -> bytes:
    """A number or a text becomes a value that nobody expects; in a file without any, one bit flips."""
    values = list(_VALUES.finditer(data))
    if not values:
        return flip_bit(data, rng)
    found = values[int(rng.integers(len(values)))]
    return data[: found.start()] + _ODD[int(rng.integers(len(_ODD)))] + data[found.end() :]


def lose_line(data: bytes, rng: np.random.Generator) -> bytes:
    """A line is missing, or comes twice."""
    lines = data.splitlines(keepends=True)
    at = int(rng.integers(len(lines)))
    return b"".join(lines[:at] + (lines[at : at + 1] * 2 if rng.random() < 0.5 else []) + lines[at + 1 :])


def other_encoding(data: bytes, rng: np.random.Generator) -> bytes:
    """A text in another encoding, or with a mark in front."""
    text = data.decode("latin-1")
    return [text.encode("utf-16"), text.encode("utf-8-sig"), b"\xff" + data][int(rng.integers(3))]


def other_content(data: bytes, rng: np.random.Generator) -> bytes:
    """Another file altogether: empty, of another format, noise."""
    choice = int(rng.integers(len(_ODD_FILES) + 1))
    return _ODD_FILES[choice] if choice < len(_ODD_FILES) else rng.bytes(int(rng.integers(1, 300)))


MUTATORS: tuple[tuple[Mutator, float], ...] = (  # and how often, relative to the others
    (flip_bit, 5), (flip_bit_near_an_end, 2), (overwrite, 3), (zero, 1), (cut, 2), (drop, 2), (repeat, 2), (append, 1),
    (exchange, 1), (odd_value, 5), (lose_line, 1), (other_encoding, 0.5), (other_content, 1),
)  # fmt: skip


def damage(data: bytes, rng: np.random.Generator) -> tuple[str, bytes]:
    """One damage by chance: its name, and the damaged content, which differs from `data`."""
    weights = np.array([weight for _, weight in MUTATORS])
    while True:
        mutator = MUTATORS[int(rng.choice(len(MUTATORS), p=weights / weights.sum()))][0]
        found = mutator(data, rng)
        if found != data:
            return mutator.__name__, found


def _place(data: bytes, rng: np.random.Generator) -> tuple[int, int]:
    return int(rng.integers(len(data))), int(rng.integers(1, 40))
