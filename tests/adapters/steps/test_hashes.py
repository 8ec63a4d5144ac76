from __future__ import annotations

import pytest

from adapters.steps.hashes import C4, HASH_NAMES, Hashes, normal_value

# Of b"abc", from the algorithms' own publications.
ABC = {
    "md5": "900150983cd24fb0d6963f7d28e17f72",
    "sha1": "a9993e364706816aba3e25717850c26c9cd0d89d",
    "xxh128": "06b05ab6733a618578af5f94892f3950",
    "xxh3": "78af5f94892f3950",
    "xxh64": "44bc2cf5ad770999",
}


def test_a_hash_of_another_name_is_refused() -> None:
    with pytest.raises(KeyError):
        Hashes(["sha256"])


def test_every_kind_of_hash_is_tested_here() -> None:
    assert {*ABC, "c4"} == set(HASH_NAMES)


def test_every_hash_is_as_its_standard_has_it() -> None:
    hashes = Hashes(ABC)
    hashes.update(b"a")
    hashes.update(memoryview(b"bc"))
    assert hashes.values() == ABC


@pytest.mark.parametrize(
    ("content", "c4"),
    [
        (
            b"alfa",
            "c43zYcLni5LF9rR4Lg4B8h3Jp8SBwjcnyyeh4bc6gTPHndKuKdjUWx1kJPYhZxYt3zV6tQXpDs2shPsPYjgG81wZM1",
        ),
        (
            b"",
            "c459dsjfscH38cYeXXYogktxf4Cd9ibshE3BHUo6a58hBXmRQdZrAkZzsWcbWtDg5oQstpDuni4Hirj75GEmTc1sFT",
        ),
    ],
)
def test_a_c4_is_as_in_its_published_examples(content: bytes, c4: str) -> None:
    hashes = Hashes(["c4"])
    hashes.update(content)
    assert hashes.values() == {"c4": c4}


def test_a_c4_is_filled_up_with_the_digit_for_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    hashes = C4()
    monkeypatch.setattr(hashes, "_sha512", Small())
    assert hashes.hexdigest() == "c4" + 86 * "1" + "25"


class Small:
    """A SHA-512 of 62, as none will be found."""

    def digest(self) -> bytes:
        return (62).to_bytes(64)


def test_what_can_be_no_value_of_a_hash_is_none() -> None:
    for name, value in ABC.items():
        assert normal_value(name, value) == value
        assert normal_value(name, value[:-1]) is None
        assert normal_value(name, value[:-1] + "\n") is None
        assert normal_value(name, value[:-1] + "!") is None
    assert normal_value("md5", ABC["md5"].upper()) == ABC["md5"]
    c4 = Hashes(["c4"]).values()["c4"]
    assert normal_value("c4", c4) == c4
    assert normal_value("c4", c4[:-1] + "0") is None
    assert normal_value("c4", c4[:-1]) is None
    assert normal_value("blake3", "00") is None
