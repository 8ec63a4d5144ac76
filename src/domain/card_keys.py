"""Which card an execution works on, as far as was said when it was announced.

Its path, and its volume's serial number if the detector saw one: with that, the next
card in a slot is told from the one that an execution is still at work on.
"""

from __future__ import annotations

import re
from typing import TypeGuard

_SERIAL = re.compile(r"[0-9A-Za-z][0-9A-Za-z._-]{0,99}")
"""What systems call volumes by; whatever else a client says is no name of one."""

_VOLUME = "volume:"


def is_serial(said: object) -> TypeGuard[str]:
    """Whether what a client says may be a serial number."""
    return isinstance(said, str) and _SERIAL.fullmatch(said) is not None


def key_of_card(path: str, serial: str | None = None) -> str:
    """Of the card at this path. ``serial``: its volume's, if the system knows one by it."""
    place = f"path:{path}"
    return place if serial is None else f"{_VOLUME}{serial} {place}"


def may_be_one_card(key: str, other: str) -> bool:
    """By their volumes, where both name one: wherever it is mounted. Else by their paths.

    Of a card and its clone in two readers the system gives the name to one.
    """
    (volume, place), (its_volume, its_place) = _parts(key), _parts(other)
    return volume == its_volume if volume and its_volume else place == its_place


def _parts(key: str) -> tuple[str, str]:
    """What names the volume, empty if nothing does, and what names the path."""
    if not key.startswith(_VOLUME):
        return "", key
    volume, _, place = key.partition(" ")
    return volume, place
