"""Which card an execution works on, as far as was said when it was announced.

Its path, and its volume's serial number if the detector saw one: with that, the next
card in a slot is told from the one that an execution is still at work on.
"""

from __future__ import annotations

import re

_SERIAL = re.compile(r"[0-9A-Za-z][0-9A-Za-z._-]{0,99}")
"""What systems call volumes by; whatever else a client says is no name of one."""

_VOLUME = "volume:"


def key_of_card(path: str, serial: object = None) -> str:
    """Of the card at this path. ``serial``: its volume's, as a client says."""
    place = f"path:{path}"
    if isinstance(serial, str) and _SERIAL.fullmatch(serial):
        return f"{_VOLUME}{serial} {place}"
    return place


def may_be_one_card(key: str, other: str) -> bool:
    """Two at one path, unless both name their volumes and these differ."""
    if key == other:
        return True
    both_are_named = key.startswith(_VOLUME) and other.startswith(_VOLUME)
    return not both_are_named and _place(key) == _place(other)


def _place(key: str) -> str:
    return key.partition(" ")[2] if key.startswith(_VOLUME) else key
