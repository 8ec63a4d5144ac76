from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from adapters.steps.faults import AnotherCard, CardNotThere, FileFault
from application.authoring import StepContext
from domain.footage import Card
from tests.adapters.steps.conftest import MTIME_NS
from tests.adapters.steps.finishing import Finishing

HOUR_NS = 3_600 * 10**9


@pytest.fixture
def rig(tmp_path: Path) -> Finishing:
    return Finishing(tmp_path)


@pytest.fixture
def volume(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Makes the card a volume with a serial number; call it to put in another."""
    serial = "9C1F-23AB"

    def insert(other: str) -> None:
        nonlocal serial
        serial = other

    monkeypatch.setattr(
        "adapters.steps.cards.identify",
        lambda fd, path, *, disks, devices: Card(f"volume:{serial}:64", "A001", volume=True),
    )
    return insert


def shoot(rig: Finishing, said: bytes, *names: str, mtime_ns: int = MTIME_NS) -> None:
    """Recordings whose names, sizes and times don't tell what was recorded."""
    for name in names or ("IMG_0001.JPG", "IMG_0002.JPG", "IMG_0003.JPG", "IMG_0004.JPG"):
        rig.put(f"DCIM/100CANON/{name}", said + name.encode(), mtime_ns)


def take_out(rig: Finishing, card: str) -> None:
    """It keeps what is on it, and the slot is empty."""
    rig.card.rename(rig.mounts.parent / card)
    rig.card.mkdir()


def put_in(rig: Finishing, card: str) -> None:
    shutil.rmtree(rig.card)
    (rig.mounts.parent / card).rename(rig.card)


def told(data: dict[str, Any]) -> tuple[int, int, int, int]:
    """The generation, and how many files are new, known, and to be hashed."""
    intake = data["intake"]
    new, known, to_hash = (intake[each]["files"] for each in ("new", "known", "to_hash"))
    return data["card"]["generation"], new, known, to_hash


def test_a_formatted_card_with_the_old_serial_number_is_another_generation(
    rig: Finishing, volume: Callable[[str], None]
) -> None:
    shoot(rig, b"monday ")
    assert rig.taken_in(1)["safe_to_format"]
    shutil.rmtree(rig.card / "DCIM")
    shoot(rig, b"sunday ")  # names, sizes and times are those of the first filling
    data = rig.taken_in(2)
    assert told(data) == (2, 0, 0, 4)
    assert data["card_note"].startswith("this card was filled anew (generation 2): ")
    assert (data["copied_files"], data["known_files"]) == (4, 0)
    assert data["safe_to_format"]
    assert sorted(rig.arrived_footage()) == sorted(
        said + name
        for said in (b"monday ", b"sunday ")
        for name in (b"IMG_0001.JPG", b"IMG_0002.JPG", b"IMG_0003.JPG", b"IMG_0004.JPG")
    )


def test_a_card_that_goes_on_keeps_its_generation(
    rig: Finishing, volume: Callable[[str], None]
) -> None:
    shoot(rig, b"monday ")
    rig.taken_in(1)
    shoot(rig, b"monday ", "IMG_0005.JPG")
    data = rig.taken_in(2)
    assert told(data) == (1, 1, 4, 0)
    assert "card_note" not in data
    assert data["intake"] == {
        "new": {"files": 1, "bytes": 19},
        "known": {"files": 4, "bytes": 76},
        "to_hash": {"files": 0, "bytes": 0},
        "by_kind": {
            "media": {"known": {"files": 4, "bytes": 76}, "new": {"files": 1, "bytes": 19}}
        },
    }
    assert rig.jobs.get(data["job_id"]).intake == data["intake"]
    assert rig.jobs.get(data["job_id"]).card.generation == 1


def test_the_second_generation_goes_on_as_the_first_did(
    rig: Finishing, volume: Callable[[str], None]
) -> None:
    shoot(rig, b"monday ")
    rig.taken_in(1)
    shoot(rig, b"sunday ")
    rig.taken_in(2)
    shoot(rig, b"sunday ", "IMG_0005.JPG")
    data = rig.taken_in(3)
    assert told(data) == (2, 1, 4, 0)
    assert (data["copied_files"], data["known_files"]) == (1, 4)
    assert data["safe_to_format"]


def test_what_cameras_write_after_every_format_proves_nothing(
    rig: Finishing, volume: Callable[[str], None]
) -> None:
    for name in ("version.txt", "a.xml", "b.xml"):
        rig.put(f"MISC/{name}", b"{,}")
    rig.put("DCIM/100CANON/EMPTY.JPG", b"")
    shoot(rig, b"monday ")
    rig.taken_in(1)
    shoot(rig, b"sunday ")
    data = rig.taken_in(2)
    assert told(data) == (2, 0, 0, 8)
    assert (data["copied_files"], data["known_files"]) == (4, 4)


@pytest.mark.parametrize("path", ["MISC/version.txt", "DCIM/100CANON/EMPTY.JPG"])
def test_a_card_without_footage_on_it_proves_nothing_either(
    rig: Finishing, volume: Callable[[str], None], path: str
) -> None:
    rig.put(path, b"" if path.endswith(".JPG") else b"{,}")
    rig.taken_in(1)
    assert told(rig.taken_in(2)) == (2, 0, 0, 1)


def test_one_picture_that_is_on_every_card_proves_nothing(
    rig: Finishing, volume: Callable[[str], None]
) -> None:
    rig.put("DCIM/SLATE.JPG", b"!")
    shoot(rig, b"monday ")
    rig.taken_in(1)
    shoot(rig, b"sunday ")
    assert told(rig.taken_in(2)) == (2, 0, 0, 5)


def test_a_card_that_was_emptied_begins_anew_without_a_word(
    rig: Finishing, volume: Callable[[str], None]
) -> None:
    shoot(rig, b"monday ", "IMG_0001.JPG")
    rig.taken_in(1)
    (rig.card / "DCIM/100CANON/IMG_0001.JPG").unlink()
    shoot(rig, b"sunday ", "IMG_0002.JPG")
    data = rig.taken_in(2)
    assert told(data) == (2, 1, 0, 0)
    assert "card_note" not in data
    # What the first filling had is a candidate, whatever its name, size and time.
    shoot(rig, b"friday ", "IMG_0001.JPG")
    assert told(rig.taken_in(3)) == (2, 0, 1, 1)
    assert b"friday IMG_0001.JPG" in rig.arrived_footage()


def test_two_cards_with_one_serial_number_may_come_in_turns(
    rig: Finishing, volume: Callable[[str], None]
) -> None:
    shoot(rig, b"this ")
    rig.taken_in(1)
    take_out(rig, "this")
    shoot(rig, b"that ")
    assert told(rig.taken_in(2)) == (2, 0, 0, 4)
    take_out(rig, "that")
    put_in(rig, "this")
    assert told(rig.taken_in(3)) == (1, 0, 4, 0)
    take_out(rig, "this")
    put_in(rig, "that")
    assert told(rig.taken_in(4)) == (2, 0, 4, 0)


def test_a_card_that_cannot_be_read_for_proof_is_compared_file_by_file(
    rig: Finishing, volume: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    shoot(rig, b"monday ")
    rig.taken_in(1)

    def hashes_of(self: object, path: bytes, *rest: object) -> None:
        raise FileFault(path, "can't be read from the card: input/output error")

    with monkeypatch.context() as broken:
        broken.setattr("adapters.steps.cards.OpenCard.hashes_of", hashes_of)
        data = rig.scan(2)
    assert told(data) == (2, 0, 0, 4)
    assert "card_note" not in data  # nobody has seen other bytes


@pytest.mark.parametrize(("limit", "read"), [(100, 3), (10, 1)])
def test_only_the_first_proof_may_be_large(
    rig: Finishing,
    volume: Callable[[str], None],
    monkeypatch: pytest.MonkeyPatch,
    proving: list[bytes],
    limit: int,
    read: int,
) -> None:
    monkeypatch.setattr("adapters.steps.recognition.FURTHER_PROOF_BYTES", limit)
    shoot(rig, b"monday ")
    rig.taken_in(1)
    proving.clear()
    assert told(rig.scan(2)) == (1, 0, 4, 0)
    assert len(proving) == read


def test_what_was_read_once_under_another_time_is_known_from_then_on(
    rig: Finishing, volume: Callable[[str], None]
) -> None:
    shoot(rig, b"monday ")
    rig.taken_in(1)
    shoot(rig, b"monday ", mtime_ns=MTIME_NS + HOUR_NS)  # a journey, or summer's end
    data = rig.taken_in(2)
    assert told(data) == (2, 0, 0, 4)
    assert (data["copied_files"], data["known_files"]) == (0, 4)
    assert data["safe_to_format"]
    data = rig.taken_in(3)
    assert told(data) == (2, 0, 4, 0)
    assert data["safe_to_format"]
    assert len(rig.arrived_footage()) == 4


def test_without_an_identity_of_its_own_a_card_has_one_generation_and_all_is_read(
    rig: Finishing,
) -> None:
    shoot(rig, b"monday ")
    rig.taken_in(1)
    shoot(rig, b"sunday ", "IMG_0001.JPG")
    shoot(rig, b"sunday ", "IMG_0005.JPG")
    assert told(rig.taken_in(2)) == (1, 1, 0, 4)


def test_what_one_destination_lacks_is_new(
    rig: Finishing, volume: Callable[[str], None], tmp_path: Path
) -> None:
    shoot(rig, b"monday ")
    rig.taken_in(1)
    rig.further.append(tmp_path / "second")
    assert told(rig.taken_in(2)) == (1, 4, 0, 0)
    assert told(rig.taken_in(3)) == (1, 0, 4, 0)


def test_whoever_wants_everything_again_is_told_that_everything_is_new(
    rig: Finishing, volume: Callable[[str], None]
) -> None:
    shoot(rig, b"monday ")
    rig.taken_in(1)
    rig.again = True
    assert told(rig.scan(2)) == (1, 4, 0, 0)


def test_everybody_is_told_what_was_found(rig: Finishing, volume: Callable[[str], None]) -> None:
    shoot(rig, b"monday ", "IMG_0001.JPG")
    context = scanning(rig)
    output = rig.scanner()(context)
    assert context.announced == [
        (
            "card:scanned",
            {
                "identity": "volume:9C1F-23AB:64",
                "label": "A001",
                "generation": 1,
                "layouts": ["Canon"],
                "clip_count": 1,
                "file_count": 1,
                "total_bytes": 19,
                "by_kind": {"media": {"files": 1, "bytes": 19}},
                "intake": output["intake"],
            },
        )
    ]


def scanning(rig: Finishing, **more: Any) -> StepContext:
    data = {"sd_path": str(rig.card), "library": str(rig.library), **more}
    return rig.context("scan_sd", 1, data)


@pytest.mark.parametrize(
    "volume_facts", ["9C1F-23AB", 7, [], {}, {"uuid": None}, {"uuid": 7}, {"uuid": ""}]
)
def test_facts_that_name_no_card_are_passed_over(
    rig: Finishing, volume: Callable[[str], None], volume_facts: object
) -> None:
    shoot(rig, b"monday ")
    assert rig.scanner()(scanning(rig, volume=volume_facts))["file_count"] == 4


def test_the_card_that_was_announced_is_scanned(
    rig: Finishing, volume: Callable[[str], None]
) -> None:
    shoot(rig, b"monday ")
    facts = {"uuid": "9C1F-23AB", "label": "A001", "size_bytes": 64}
    assert rig.scanner()(scanning(rig, volume=facts))["file_count"] == 4


def test_another_card_than_the_announced_one_is_refused_before_it_is_read(
    rig: Finishing, volume: Callable[[str], None]
) -> None:
    shoot(rig, b"monday ")
    volume("0000-0001")
    with pytest.raises(AnotherCard) as refused:
        rig.scanner()(scanning(rig, volume={"uuid": "9C1F-23AB"}))
    assert str(refused.value) == (
        f"another card is at {rig.card}: A001 (volume:0000-0001:64); the one that was announced "
        "has the serial number 9C1F-23AB: put that one in and retry"
    )
    assert not rig.card_files.of(1)


@pytest.mark.parametrize("volume_facts", [{"uuid": "9C1F-23AB"}, {"uuid": None}, {}])
@pytest.mark.parametrize("is_empty", [False, True])
def test_a_folder_where_a_card_was_announced_is_no_card(
    rig: Finishing, volume_facts: object, is_empty: bool
) -> None:
    if not is_empty:
        shoot(rig, b"what lies below the mount ")
    with pytest.raises(CardNotThere, match="nothing is mounted at"):
        rig.scanner()(scanning(rig, volume=volume_facts))
    assert rig.waits  # it may come late
