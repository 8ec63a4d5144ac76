"""The hashes that footage is known by, under the names that manifests give them."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable
from typing import Protocol

import xxhash

_C4_DIGITS = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"
_C4_CHARACTERS = 88
"""A 512 bit number never needs more digits; SMPTE ST 2114 fills up with the digit for zero."""


class _Hash(Protocol):
    def update(self, data: bytes | memoryview, /) -> object: ...

    def hexdigest(self) -> str: ...


class C4:
    """SMPTE ST 2114: the SHA-512 as a number of base 58, after the letters ``c4``."""

    def __init__(self) -> None:
        self._sha512 = hashlib.sha512()

    def update(self, data: bytes | memoryview, /) -> None:
        self._sha512.update(data)

    def hexdigest(self) -> str:
        """Not hexadecimal, of all hashes; called so as all are."""
        number = int.from_bytes(self._sha512.digest())
        digits = ""
        while number:
            number, digit = divmod(number, 58)
            digits = _C4_DIGITS[digit] + digits
        return "c4" + digits.rjust(_C4_CHARACTERS, _C4_DIGITS[0])


_KINDS: dict[str, tuple[Callable[[], _Hash], re.Pattern[str]]] = {
    "c4": (C4, re.compile(f"c4[{_C4_DIGITS}]{{{_C4_CHARACTERS}}}")),
    "md5": (lambda: hashlib.md5(usedforsecurity=False), re.compile("[0-9a-f]{32}")),
    "sha1": (lambda: hashlib.sha1(usedforsecurity=False), re.compile("[0-9a-f]{40}")),
    "xxh128": (xxhash.xxh3_128, re.compile("[0-9a-f]{32}")),
    "xxh3": (xxhash.xxh3_64, re.compile("[0-9a-f]{16}")),
    "xxh64": (xxhash.xxh64, re.compile("[0-9a-f]{16}")),
}

HASH_NAMES = tuple(_KINDS)
"""In the order in which a manifest's schema wants them."""


class Hashes:
    """Several hashes of the same bytes, from one reading. Raises ``KeyError`` for other names."""

    def __init__(self, names: Iterable[str]) -> None:
        self._hashes = {name: _KINDS[name][0]() for name in names}

    def update(self, data: bytes | memoryview) -> None:
        for each in self._hashes.values():
            each.update(data)

    def values(self) -> dict[str, str]:
        return {name: each.hexdigest() for name, each in self._hashes.items()}


def normal_value(name: str, text: str) -> str | None:
    """A hash as we write it, lower case; None if it can be no hash of this name."""
    value = text if name == "c4" else text.lower()
    return value if name in _KINDS and _KINDS[name][1].fullmatch(value) else None
