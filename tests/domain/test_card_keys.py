from __future__ import annotations

import itertools

import pytest

from domain.card_keys import is_serial, key_of_card, may_be_one_card


@pytest.mark.parametrize("said", [None, "", 5, "A B", "A\n", "/dev/sdb1", "é", "x" * 101, {}])
def test_what_is_no_serial_number_is_none(said: object) -> None:
    assert not is_serial(said)


@pytest.mark.parametrize("said", ["1AF3-00C2", "7b7cbd20-49b9-422e-8dd5-01f7154f78bb", "0123"])
def test_what_systems_call_volumes_by_is_one(said: str) -> None:
    assert is_serial(said)


def test_a_card_is_told_from_the_next_one_in_its_slot_where_both_have_a_serial_number() -> None:
    one, other = (key_of_card("/media/A", serial) for serial in ("1AF3-00C2", "9C1F-23AB"))
    assert may_be_one_card(one, one)
    assert not may_be_one_card(one, other)
    unnamed = key_of_card("/media/A")
    for key in (one, other, unnamed):
        assert may_be_one_card(unnamed, key)
        assert may_be_one_card(key, unnamed)


def test_a_card_is_the_same_one_in_another_slot() -> None:
    assert may_be_one_card(
        key_of_card("/media/A", "1AF3-00C2"), key_of_card("/media/B", "1AF3-00C2")
    )


@pytest.mark.parametrize("serial", [None, "1AF3-00C2"])
def test_cards_in_two_slots_are_two_though_one_is_a_clone_of_the_other(serial: str | None) -> None:
    assert not may_be_one_card(key_of_card("/media/A", serial), key_of_card("/media/B"))


def test_a_path_that_looks_like_a_key_is_a_path() -> None:
    paths = ["/a", "path:/a", "/b path:/a", "volume:X path:/a", " ", " path:/a", ""]
    for one, other in itertools.combinations(paths, 2):
        for serials in ((None, None), ("X", None), (None, "X"), ("X", "Y")):
            keys = map(key_of_card, (one, other), serials)
            assert not may_be_one_card(*keys)
