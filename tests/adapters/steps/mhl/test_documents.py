"""Manifests and chains that somebody else may have written."""

from __future__ import annotations

import io

import pytest

from adapters.steps.mhl import documents
from adapters.steps.mhl.documents import (
    ListedFile,
    ManifestFault,
    ManifestReader,
    number_of,
    read_chain,
    why_not_listed,
)

HEAD = '<?xml version="1.0" encoding="UTF-8"?>\n'
OPEN = '<hashlist version="2.0" xmlns="urn:ASC:MHL:v2.0">'
XXH64 = "<xxh64>0123456789abcdef</xxh64>"
C4 = "c4" + 88 * "1"


def read(text: str | bytes) -> list[ListedFile]:
    content = text if isinstance(text, bytes) else text.encode()
    return list(ManifestReader(io.BytesIO(content), "/lib/0001_a.mhl", lambda chunk: None))


def manifest(path: str = "a.mov", hashes: str = XXH64, attributes: str = "") -> str:
    file = f"<hash><path{attributes}>{path}</path>{hashes}</hash>"
    return f"{HEAD}{OPEN}<hashes>{file}</hashes></hashlist>"


def chain(path: str = "0001_a.mhl", c4: str = C4, number: str = "1") -> bytes:
    line = f'<hashlist sequencenr="{number}"><path>{path}</path><c4>{c4}</c4></hashlist>'
    return (
        f'{HEAD}<ascmhldirectory xmlns="urn:ASC:MHL:DIRECTORY:v2.0">{line}</ascmhldirectory>'
    ).encode()


LAUGHS = "".join(
    f'<!ENTITY l{n} "{"".join(f"&l{n - 1};" for _ in range(10)) if n else "ha"}">'
    for n in range(12)
)

HOSTILE = {
    "billion laughs": f"{HEAD}<!DOCTYPE x [{LAUGHS}]>{OPEN}<hashes/>&l11;</hashlist>",
    "an entity that is a file": f'{HEAD}<!DOCTYPE x [<!ENTITY e SYSTEM "file:///etc/passwd">]>'
    f"{OPEN}<hashes><hash><path>&e;</path></hash></hashes></hashlist>",
    "a DTD from elsewhere": f'{HEAD}<!DOCTYPE x SYSTEM "http://127.0.0.1:9/x.dtd">{OPEN}</hashlist>',
    "a DOCTYPE without anything": f"{HEAD}<!DOCTYPE hashlist>{OPEN}</hashlist>",
    "an entity that nobody made": manifest("&laughs;"),
    "a path out of the folder": manifest("../a.mov"),
    "a path out of the folder, later": manifest("a/../../b.mov"),
    "an absolute path": manifest("/etc/passwd"),
    "a path with an empty part": manifest("a//b.mov"),
    "the folder itself": manifest("."),
    "no path": manifest(""),
    "a NUL": manifest("a&#0;b"),
    "a NUL, bare": manifest("a\0b"),
    "a lone surrogate": manifest("a&#xD800;b"),
    "a manifest as a file": manifest("ascmhl/ascmhl_chain.xml"),
    "a previous path out of the folder": manifest(
        hashes=f"{XXH64}<previousPath>../b</previousPath>"
    ),
    "a size that is none": manifest(attributes=' size="-1"'),
    "a size beyond all disks": manifest(attributes=f' size="{"9" * 30}"'),
    "a hash that is none": manifest(hashes="<md5>0123</md5>"),
    "a hash of other characters": manifest(hashes="<xxh64>0123456789abcdeg</xxh64>"),
    "another version": manifest().replace('version="2.0"', 'version="3.0"', 1),
    "no version": manifest().replace(' version="2.0"', "", 1),
    "another namespace": manifest().replace("v2.0", "v1.0"),
    "another document": f"{HEAD}<html/>",
    "text after the end": manifest() + "more",
    "half of it": manifest()[:-20],
    "nothing": "",
    "no XML": "\0\1\2",
    "an encoding that nobody has": manifest().replace("UTF-8", "klingon"),
    "an encoding that isn't plain": manifest().replace("UTF-8", "utf-7"),
    "bytes that aren't UTF-8": manifest("\xff").encode("latin-1"),
    "elements without end": HEAD + OPEN + "<a>" * 100_000,
    "too many elements within each other": manifest(hashes=XXH64 + "<a>" * 70 + "</a>" * 70),
    "a path without end": manifest("a" * 10_000),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_manifest_is_refused_by_name(name: str) -> None:
    with pytest.raises(ManifestFault, match=r"/lib/0001_a\.mhl"):
        read(HOSTILE[name])


def test_the_manifest_that_the_hostile_ones_are_made_of_is_read() -> None:
    (file,) = read(manifest(attributes=' size="12"'))
    assert file == ListedFile(
        b"a.mov", 12, {"xxh64": "0123456789abcdef"}, {"xxh64": ""}, False, None
    )


@pytest.mark.parametrize(
    ("said", "mtime_ns"),
    [
        ("1970-01-01T01:00:01+01:00", 10**9),
        ("1969-12-31T23:59:59Z", -(10**9)),
        ("2023-11-14T22:13:20.9+00:00", 1_700_000_000 * 10**9),
        ("2023-11-14T22:13:20", None),  # where?
        ("yesterday", None),
        ("", None),
    ],
)
def test_when_a_file_was_changed_is_read_where_that_is_a_moment(
    said: str, mtime_ns: int | None
) -> None:
    (file,) = read(manifest(attributes=f' size="12" lastmodificationdate="{said}"'))
    assert file.mtime_ns == mtime_ns


def test_a_manifest_that_is_too_long_is_not_read_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(documents, "MAX_MANIFEST_BYTES", 100)
    with pytest.raises(ManifestFault, match="more than 100 bytes"):
        read(manifest())


def test_what_failed_once_is_no_hash_to_compare_with() -> None:
    failed = '<md5 action="verified">' + 32 * "a" + "</md5>"
    (file,) = read(manifest(hashes=failed + XXH64.replace("<xxh64", '<xxh64 action="failed"')))
    assert file.hashes == {"md5": 32 * "a"}


def test_hashes_are_read_in_either_case_and_unknown_kinds_are_passed_over() -> None:
    (file,) = read(manifest(hashes="<blake3>12</blake3><xxh64>0123456789ABCDEF</xxh64>"))
    assert file.hashes == {"xxh64": "0123456789abcdef"}


def test_elements_within_each_other_are_read_as_far_as_anybody_needs_them() -> None:
    assert read(manifest(hashes=XXH64 + "<a>" * 50 + "</a>" * 50))


def test_metadata_of_others_is_passed_over() -> None:
    more = "<metadata><x:hash xmlns:x='urn:x'><path>../x</path></x:hash></metadata>"
    (file,) = read(manifest(hashes=XXH64 + more))
    assert file.path == b"a.mov"


@pytest.mark.parametrize(
    "content",
    [
        chain("../0001_a.mhl"),
        chain("/etc/0001_a.mhl"),
        chain("a.mhl"),
        chain("0001_a.xml"),
        chain(""),
        chain(c4="c4short"),
        chain(number="2"),
        chain().replace(b"?>\n", b"?>\n<!DOCTYPE x>"),
        chain().replace(b"DIRECTORY", b"OTHER"),
        chain()[:-5],
        chain().replace(
            b"</hashlist>", b"</hashlist>" + chain()[chain().index(b"<hashlist") : -18]
        ),
    ],
)
def test_a_hostile_chain_is_refused_by_name(content: bytes) -> None:
    with pytest.raises(ManifestFault, match=r"/lib/chain\.xml"):
        read_chain(io.BytesIO(content), "/lib/chain.xml")


def test_the_chain_that_the_hostile_ones_are_made_of_is_read() -> None:
    (generation,) = read_chain(io.BytesIO(chain()), "/lib/chain.xml")
    assert (generation.number, generation.name, generation.c4) == (1, b"0001_a.mhl", C4)


@pytest.mark.parametrize(
    ("path", "why"),
    [
        (b"caf\xe9.mov", "not UTF-8"),
        (b"bell\x07.mov", "XML"),
        ("\ufffe.mov".encode(), "XML"),
        (b"A/ascmhl/0001_A.mhl", "manifest"),
    ],
)
def test_a_name_that_no_manifest_can_carry_is_told(path: bytes, why: str) -> None:
    assert why in (why_not_listed(path) or "")


@pytest.mark.parametrize("path", [b"a b.mov", "ü\n\t\r<&>\"'.mov".encode(), b"ascmhl.mov"])
def test_a_name_that_a_manifest_can_carry_is_listed(path: bytes) -> None:
    assert why_not_listed(path) is None


def test_the_number_of_a_generation_is_in_its_name() -> None:
    assert number_of(b"0012_A001_2026-11-22_120000Z.mhl") == 12
    assert number_of(b"10000.mhl") == 10_000
    for name in (b"._0001_a.mhl", b"001_a.mhl", b"0001_a.mhl.part", "\u0660001_a.mhl".encode()):
        assert number_of(name) is None
