r"""Names that a place can't hold, under names that it can: the rule, and its inverse.

exFAT, FAT, NTFS and what is shared from Windows refuse names that a card may well
have. There, and only there, a file gets another name, from which its own can be read:

- A byte that is refused is written ``%XX``, in capital hexadecimal: control characters,
  any of ``< > : " | ? * \``, bytes that are no UTF-8, a dot or a space at the end, and
  the first letter of what Windows takes for a device (``CON``, ``NUL.txt``, ``LPT1``).
- A ``%`` that could be mistaken for one of these is itself written ``%25``.
- The second name where there can be only one (two that differ in capitals, or somebody
  else's file in its place) gets ``%~2`` before its suffix, the third ``%~3``.
- What is longer than 255 bytes then keeps its beginning and its suffix, and has ``%~x``
  and a hash of the whole in between; only the ledger knows what it was.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata

MAX_NAME_BYTES = 255
"""What nearly every file system takes; Windows counts 255 UTF-16 units, which are never more."""

_MAX_SUFFIX_BYTES = 32
"""A longer suffix is none, and may be cut like the rest of a name."""

_REFUSED = frozenset('<>:"|?*\\')
_DEVICE = re.compile(r"(con|prn|aux|nul|com[0-9¹²³]|lpt[0-9¹²³]|conin\$|conout\$) *(\.|\Z)", re.I)
_MISTAKABLE = re.compile(r"%(?=[0-9A-Fa-f]{2}|~)")
_ESCAPE = re.compile(rb"%([0-9A-Fa-f]{2})")
_ORDINAL = re.compile(rb"%~[1-9][0-9]*(?=\.[^.]*\Z|\Z)")
_SHORTENED = b"%~x"


def stored_name(name: bytes, ordinal: int = 1) -> bytes:
    """Under which name a picky place can hold it; its own, if nothing is wrong with that.

    ordinal: the how-manieth it is of those that would have one name there.
    """
    escaped = _escaped(name)
    stem, suffix = _split(escaped)
    if ordinal > 1:
        stem += b"%%~%d" % ordinal
    if len(stem) + len(suffix) <= MAX_NAME_BYTES:
        return stem + suffix
    digest = hashlib.blake2b(stem + suffix, digest_size=8).hexdigest().encode()
    mark = _SHORTENED + digest
    head = stem[: MAX_NAME_BYTES - len(mark) - len(suffix)].decode("utf-8", "ignore").encode()
    return head + mark + suffix


def original_name(stored: bytes) -> bytes | None:
    """What ``stored_name`` was given; None if it had to be cut."""
    if _SHORTENED in stored:
        return None
    return _ESCAPE.sub(lambda escape: bytes([int(escape[1], 16)]), _ORDINAL.sub(b"", stored))


def folded(path: bytes) -> str:
    """Equal for paths that a place blind to capitals, or to how letters are composed, mixes up."""
    return unicodedata.normalize("NFC", path.decode("utf-8", "surrogateescape")).casefold()


def is_device(name: str) -> bool:
    """Whether Windows takes it for a device, with whatever suffix."""
    return _DEVICE.match(name) is not None


def _escaped(name: bytes) -> bytes:
    text = _MISTAKABLE.sub("%25", name.decode("utf-8", "surrogateescape"))
    device = is_device(text)
    last = len(text) - 1
    return b"".join(
        b"".join(b"%%%02X" % byte for byte in character.encode("utf-8", "surrogateescape"))
        if _is_refused(character)
        or (device and place == 0)
        or (place == last and character in ". ")
        else character.encode()
        for place, character in enumerate(text)
    )


def _is_refused(character: str) -> bool:
    code = ord(character)
    return code < 0x20 or code == 0x7F or 0xDC80 <= code <= 0xDCFF or character in _REFUSED


def _split(name: bytes) -> tuple[bytes, bytes]:
    dot = name.rfind(b".")
    if dot <= 0 or len(name) - dot > _MAX_SUFFIX_BYTES:
        return name, b""
    return name[:dot], name[dot:]
