from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from domain.names import MAX_NAME_BYTES, folded, original_name, stored_name

NASTY = st.text(alphabet="%~2X4a.: \\COMNUL1\x01é", max_size=12).map(str.encode)
NAMES = (
    (NASTY | st.binary(max_size=300))
    .map(lambda name: name.replace(b"/", b"").replace(b"\0", b""))
    .filter(lambda name: name not in (b"", b".", b".."))
)


@pytest.mark.parametrize(
    ("name", "stored"),
    [
        (b"GX010001.MP4", b"GX010001.MP4"),
        ("Ärger 2.mov".encode(), "Ärger 2.mov".encode()),
        (b"100%.mp4", b"100%.mp4"),
        (b"12:30?.mp4", b"12%3A30%3F.mp4"),
        (b"a\\b\n\x7f", b"a%5Cb%0A%7F"),
        (b"caf\xe9.mp4", b"caf%E9.mp4"),
        (b"end. .", b"end. %2E"),
        (b"end ", b"end%20"),
        (b"nul", b"%6Eul"),
        (b"CON.tar.gz", b"%43ON.tar.gz"),
        (b"com1 .txt", b"%63om1 .txt"),
        (b"CONTENTS", b"CONTENTS"),
        (b"a%41", b"a%2541"),
        (b"a%~2.mp4", b"a%25~2.mp4"),
    ],
)
def test_a_name_is_changed_only_where_it_has_to_be(name: bytes, stored: bytes) -> None:
    assert stored_name(name) == stored
    assert original_name(stored) == name


def test_the_second_of_a_name_gets_its_number_before_the_suffix() -> None:
    assert stored_name(b"clip.mp4", 2) == b"clip%~2.mp4"
    assert stored_name(b".hidden", 3) == b".hidden%~3"
    assert stored_name(b"no suffix", 12) == b"no suffix%~12"


def test_a_name_that_is_too_long_keeps_its_ends_and_is_told_from_others() -> None:
    one, other = (stored_name(b"n" * 250 + end + b".mp4") for end in (b"::", b":?"))
    assert one != other
    assert {len(one), len(other)} == {MAX_NAME_BYTES}
    assert one.startswith(b"nnn")
    assert one.endswith(b".mp4")
    assert original_name(one) is None


@given(NAMES, st.integers(1, 200))
def test_every_name_can_be_read_back_or_says_that_it_was_cut(name: bytes, ordinal: int) -> None:
    stored = stored_name(name, ordinal)
    assert 0 < len(stored) <= MAX_NAME_BYTES
    back = original_name(stored)
    assert back == name if back is not None else len(name) * 3 + 5 > MAX_NAME_BYTES
    text = stored.decode()
    assert not any(character in '<>:"|?*\\\x7f' or character < " " for character in text)
    assert text[-1] not in ". "


@given(NAMES, NAMES, st.integers(1, 3), st.integers(1, 3))
def test_two_names_never_become_one(one: bytes, other: bytes, first: int, second: int) -> None:
    if (one, first) != (other, second):
        assert stored_name(one, first) != stored_name(other, second)


def test_names_that_differ_in_capitals_or_composition_are_mixed_up() -> None:
    assert folded(b"CLIP.MP4") == folded(b"clip.mp4")
    assert folded("é".encode()) == folded("e\u0301".encode())
    assert folded(b"\xff") != folded(b"\xfe")
