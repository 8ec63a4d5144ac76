"""What is said of a card: never safe while anything on it lacks a standing, verified copy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from domain.footage import (
    COPIED_KINDS,
    SAME_TIME_NS,
    Card,
    CardFile,
    FileKind,
    ImportedFile,
    VerifiedCopy,
)
from domain.verdict import (
    Doubt,
    Examined,
    FoundCopy,
    Reason,
    State,
    Verdict,
    copies_of,
    judge,
)

NOON = datetime(2026, 11, 22, 12, tzinfo=UTC)
VOLUME = Card("volume:1234", "A001", volume=True)
FOLDER = Card("path:/media/A001", "A001", volume=False)
JOB = b"2026-11-22_A001"
FILE = CardFile(b"DCIM/A.MP4", FileKind.MEDIA, 7, 10**18)


def copy_of(
    file: CardFile = FILE,
    *,
    card: Card = VOLUME,
    destination: str = "/one",
    folder: bytes = JOB,
    hash: str = "aa",
    hash_name: str = "xxh64",
    mtime_ns: int | None = None,
    cold: bool = True,
) -> VerifiedCopy:
    time = file.mtime_ns if mtime_ns is None else mtime_ns
    imported = ImportedFile(card.ledger_identity, file.path, file.size_bytes, time, hash_name, hash)
    return VerifiedCopy(imported, destination, folder + b"/" + file.path, NOON, cold)


def found(*states: State, destination: str = "/one", cold: bool = True) -> list[FoundCopy]:
    return [FoundCopy(copy_of(destination=destination, cold=cold), state) for state in states]


def of(copies: Sequence[FoundCopy], destinations: Sequence[str] = ("/one",)) -> Verdict:
    return judge([Examined(FILE, copies)], destinations)


# -- the verdict ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("copies", "doubt"),
    [
        ([], Doubt.NEW),
        (found(State.GONE), Doubt.GONE),
        (found(State.ALTERED), Doubt.ALTERED),
        (found(State.GONE, State.ALTERED), Doubt.ALTERED),
        (found(State.UNSEEN), Doubt.DESTINATION),
        (found(State.STANDS, destination="/other"), Doubt.UNFINISHED),
    ],
)
def test_a_file_without_a_standing_copy_is_named(copies: list[FoundCopy], doubt: Doubt) -> None:
    verdict = of(copies)
    assert not verdict.safe_to_format
    assert [(each.doubt, each.path) for each in verdict.reasons] == [(doubt, FILE.path)]
    assert verdict.words == (
        "NOT safe to format: 1 of 1 file not standing verified on 1 destination (DCIM/A.MP4)"
    )


def test_the_words_name_the_first_files_that_are_not_safe() -> None:
    long = b"DCIM/" + b"deep/" * 50 + b"last.MP4"
    examined = [
        Examined(CardFile(path, FileKind.MEDIA, 10, 5), ())
        for path in (b"\x1b[2J.MP4", long, b"3.MP4", b"4.MP4", b"5.MP4")
    ]
    words = judge(examined, ("/one",)).words
    cut = "..." + ("deep/" * 50 + "last.MP4")[-77:]
    assert words == (
        "NOT safe to format: 5 of 5 files not standing verified on 1 destination "
        rf"(\x1b[2J.MP4, {cut}, 3.MP4 and 2 more)"
    )
    assert words.isprintable()


def test_one_standing_copy_on_each_destination_is_enough() -> None:
    copies = found(State.GONE, State.STANDS) + found(State.STANDS, destination="/two")
    verdict = of(copies, ("/one", "/two"))
    assert verdict.safe_to_format
    assert verdict.words == "Safe to format: its one file stands verified on 2 destinations"
    assert not of(copies, ("/one", "/two", "/three")).safe_to_format


def test_a_doubt_of_the_file_counts_whatever_copies_it_has() -> None:
    for doubt in (Doubt.CHANGED, Doubt.UNREADABLE, Doubt.NEW):
        examined = Examined(FILE, found(State.STANDS), doubt, "why")
        verdict = judge([examined], ["/one"])
        assert [str(each) for each in verdict.reasons] == ["DCIM/A.MP4: why"]
        assert not verdict.safe_to_format


def test_what_can_t_be_read_is_not_safe_however_many_copies_a_name_has() -> None:
    unreadable = replace(FILE, kind=FileKind.UNREADABLE, problem="it can't be read: EIO")
    verdict = judge([Examined(unreadable, found(State.STANDS))], ["/one"])
    assert [each.doubt for each in verdict.reasons] == [Doubt.UNREADABLE]


def test_what_is_left_out_is_counted_and_need_not_be_safe() -> None:
    left = [Examined(replace(FILE, kind=kind)) for kind in FileKind if kind not in COPIED_KINDS]
    verdict = judge([*left, Examined(FILE, found(State.STANDS))], ["/one"])
    assert verdict.safe_to_format
    assert dict(verdict.left_out) == dict.fromkeys(
        (FileKind.JUNK, FileKind.LINK, FileKind.SPECIAL, FileKind.FOLDER), 1
    )
    assert (verdict.files, verdict.size_bytes) == (1, 7)


def test_what_is_against_the_card_as_a_whole_comes_first_and_is_enough() -> None:
    gone = Reason(Doubt.CARD, "the card isn't there")
    verdict = judge([Examined(FILE, found(State.STANDS))], ["/one"], [gone])
    assert not verdict.safe_to_format
    assert verdict.safe_files == 1
    assert verdict.words == "NOT safe to format: the card isn't there"
    assert str(verdict.reasons[0]) == "the card isn't there"


def test_without_a_destination_nothing_is_safe() -> None:
    assert not judge([], []).safe_to_format
    assert not of(found(State.STANDS), ()).safe_to_format
    assert judge([], []).words == "NOT safe to format: there is no destination"


def test_an_empty_card_has_nothing_to_lose() -> None:
    assert judge([], ["/one"]).words == "Safe to format: there is no file on it"


def test_copies_that_may_have_been_read_from_memory_are_safe_and_counted() -> None:
    verdict = of(found(State.STANDS, cold=False))
    assert verdict.safe_to_format
    assert verdict.maybe_cached == 1
    assert verdict.words.endswith("on 1 destination (1 maybe read back from memory)")
    assert of(found(State.STANDS, cold=False) + found(State.STANDS)).maybe_cached == 0
    # A cold one that is gone vouches for nothing.
    assert of(found(State.STANDS, cold=False) + found(State.GONE)).maybe_cached == 1
    on_both = found(State.STANDS) + found(State.STANDS, destination="/two", cold=False)
    assert of(on_both, ("/one", "/two")).maybe_cached == 1


def test_a_broken_recording_that_was_copied_is_safe_and_remarked() -> None:
    broken = replace(FILE, problem="can't be played")
    verdict = judge([Examined(broken, found(State.STANDS))], ["/one"])
    assert verdict.safe_to_format
    assert verdict.words.endswith("on 1 destination (1 with a remark in the report)")


DESTINATIONS = ("/one", "/two", "/three")


@st.composite
def cards(draw: st.DrawFn) -> list[Examined]:
    files = []
    for number in range(draw(st.integers(0, 6))):
        kind = draw(st.sampled_from([FileKind.MEDIA] * 5 + list(FileKind)))
        file = CardFile(b"%d" % number, kind, number, 0)
        copies = [
            FoundCopy(copy_of(file, destination=draw(st.sampled_from(DESTINATIONS))), state)
            for state in draw(st.lists(st.sampled_from([State.STANDS] * 9 + list(State))))
        ]
        if draw(st.booleans()):  # else hardly any card would be safe
            copies += [
                FoundCopy(copy_of(file, destination=each), State.STANDS) for each in DESTINATIONS
            ]
        doubt = draw(st.sampled_from([None] * 20 + [Doubt.CHANGED, Doubt.NEW]))
        files.append(Examined(file, copies, doubt))
    return files


@given(cards(), st.integers(1, 3), st.sampled_from([(), (), (Reason(Doubt.CARD, "gone"),)]))
def test_never_safe_if_any_file_lacks_a_standing_copy_on_any_destination(
    examined: list[Examined], wanted: int, against: tuple[Reason, ...]
) -> None:
    destinations = DESTINATIONS[:wanted]
    verdict = judge(examined, destinations, against)
    lacking = [
        each.file.path
        for each in examined
        if each.file.kind in COPIED_KINDS
        and (
            each.doubt is not None
            or each.file.kind is FileKind.UNREADABLE
            or not set(destinations)
            <= {f.copy.destination for f in each.copies if f.state is State.STANDS}
        )
    ]
    assert verdict.safe_to_format == (not lacking and not against)
    named = {reason.path for reason in verdict.reasons if reason.path is not None}
    assert named == set(lacking)
    assert verdict.words.startswith("Safe" if verdict.safe_to_format else "NOT safe")
    assert verdict.files == sum(each.file.kind in COPIED_KINDS for each in examined)
    assert verdict.safe_files == verdict.files - len(lacking)


# -- which copies are a file's -------------------------------------------------------


def known(
    *copies: VerifiedCopy, card: Card = VOLUME, is_settled: bool = False
) -> Sequence[VerifiedCopy] | None:
    return copies_of(FILE, copies, card=card, job_folder=JOB, is_settled=is_settled)


def test_other_paths_and_sizes_are_other_files() -> None:
    other = copy_of(replace(FILE, path=b"DCIM/B.MP4"))
    longer = copy_of(replace(FILE, size_bytes=8))
    assert known(other, longer, is_settled=True) == []


def test_the_same_volume_path_size_and_time_is_the_file() -> None:
    earlier = copy_of(folder=b"2026-11-01_A001")
    assert known(earlier) == [earlier]
    a_step_apart = copy_of(folder=b"2026-11-01_A001", mtime_ns=FILE.mtime_ns + SAME_TIME_NS)
    assert known(a_step_apart) == [a_step_apart]


def test_a_folder_s_path_is_no_identity_but_this_job_s_own_copy_is() -> None:
    earlier = copy_of(card=FOLDER, folder=b"2026-11-01_A001")
    own = copy_of(card=FOLDER)
    assert known(earlier, card=FOLDER) is None
    assert known(own, card=FOLDER) == [own]
    assert known(earlier, own, card=FOLDER) == [earlier, own]


def test_another_job_whose_name_begins_alike_is_another() -> None:
    other = copy_of(card=FOLDER, folder=JOB + b"-2")
    assert known(other, card=FOLDER) is None


def test_any_copy_with_the_same_hash_is_as_good_and_with_another_isn_t() -> None:
    own = copy_of()
    elsewhere = copy_of(card=Card("volume:9", "B", volume=True), destination="/two")
    wrong = copy_of(card=Card("volume:8", "C", volume=True), destination="/two", hash="bb")
    assert known(own, elsewhere, wrong) == [own, elsewhere]


def test_what_the_copy_step_has_settled_is_what_all_rows_say_if_they_agree() -> None:
    earlier = copy_of(card=FOLDER, folder=b"2026-11-01_A001", mtime_ns=1)
    assert known(earlier, card=FOLDER) is None
    assert known(earlier, card=FOLDER, is_settled=True) == [earlier]
    other = copy_of(card=FOLDER, folder=b"2026-11-02_A001", mtime_ns=2, hash="bb")
    assert known(earlier, other, card=FOLDER, is_settled=True) is None


def test_another_generation_of_the_volume_is_another_card() -> None:
    second = replace(VOLUME, generation=2)
    ours, theirs = copy_of(card=second, folder=b"then"), copy_of(hash="bb", folder=b"before")
    given = {"job_folder": JOB, "is_settled": False}
    assert copies_of(FILE, [ours, theirs], card=second, **given) == [ours]
    assert copies_of(FILE, [ours, theirs], card=VOLUME, **given) == [theirs]
    assert copies_of(FILE, [theirs], card=second, **given) is None  # its bytes may tell


def test_rows_of_one_volume_that_disagree_are_for_the_bytes_to_tell() -> None:
    one, other = copy_of(folder=b"1"), copy_of(folder=b"2", hash="bb")
    assert known(one, other) is None
    # Unless this very job has made one of them.
    own = copy_of(hash="bb")
    assert known(one, other, own) == [other, own]


def test_a_row_under_another_hash_is_for_the_bytes_to_tell_where_there_is_no_other() -> None:
    """The hashes were changed, and a destination was added."""
    before = copy_of(folder=b"then")
    own = copy_of(destination="/two", hash="bb", hash_name="md5")
    assert known(before, own) is None
    # On a disk that has one under the right hash as well, nothing hangs on the other.
    own_too = copy_of(hash="bb", hash_name="md5")
    assert known(before, own, own_too) == [own, own_too]
