from __future__ import annotations

import itertools

import pytest

from domain.card_keys import key_of_card, may_be_one_card


@pytest.mark.parametrize("said", [None, "", 5, "A B", "A\n", "/dev/sdb1", "é", "x" * 101, {}])
def test_what_is_no_serial_number_is_none(said: object) -> None:
    assert key_of_card("/media/A", said) == key_of_card("/media/A")


def test_a_card_is_told_from_the_next_one_in_its_slot_where_both_have_a_serial_number() -> None:
    one, other = (key_of_card("/media/A", serial) for serial in ("1AF3-00C2", "9C1F-23AB"))
    assert may_be_one_card(one, one)
    assert not may_be_one_card(one, other)
    unnamed = key_of_card("/media/A")
    for key in (one, other, unnamed):
        assert may_be_one_card(unnamed, key)
        assert may_be_one_card(key, unnamed)


@pytest.mark.parametrize("serial", [None, "1AF3-00C2"])
def test_cards_in_two_slots_are_two_though_one_is_a_clone_of_the_other(serial: str | None) -> None:
    assert not may_be_one_card(key_of_card("/media/A", serial), key_of_card("/media/B", serial))


def test_a_path_that_looks_like_a_key_is_a_path() -> None:
    paths = ["/a", "path:/a", "/b path:/a", "volume:X path:/a", " ", " path:/a", ""]
    for one, other in itertools.combinations(paths, 2):
        for serials in itertools.product((None, "X"), repeat=2):
            keys = map(key_of_card, (one, other), serials)
            assert not may_be_one_card(*keys)
