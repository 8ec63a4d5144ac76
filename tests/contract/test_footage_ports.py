"""What ``Jobs``, ``CardFiles`` and ``Ledger`` promise, of the fakes and of SQLite alike."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any, TypeVar

import pytest

from adapters.persistence.footage import KEYS, SqlCardFiles, SqlJobs, SqlLedger
from application.ports import MAX_UNFINISHED, AttemptRef, CardFiles, Jobs, Ledger
from domain.definition import PipelineDefinition, StepSpec
from domain.errors import AttemptOver, ExecutionNotFound, JobNotFound
from domain.footage import Card, CardFile, FileKind, ImportedFile, JobStatus, VerifiedCopy
from tests.contract.conftest import PAIR, MemoryStore, SqlStore, Store
from tests.fakes.footage import MemoryCardFiles, MemoryJobs, MemoryLedger
from tests.fakes.world import EPOCH, FakeClock

T = TypeVar("T")

PAIR_AND_LAST = PipelineDefinition("last", (*PAIR.steps, StepSpec("z", after=("x", "y"))))

CARD = Card("volume:1234", "A001 ü", volume=True)


@dataclass
class Footage:
    """The three ports on one store, and running attempts to speak with."""

    store: Store
    jobs: Jobs
    files: CardFiles
    ledger: Ledger
    clock: FakeClock

    async def attempt(self, **data: Any) -> AttemptRef:
        return AttemptRef(await self.store.make(PAIR, data=data), "x", 1)

    async def call(self, method: Callable[..., T], *args: Any, **kwargs: Any) -> T:
        """As handlers do: from a thread."""
        return await asyncio.to_thread(lambda: method(*args, **kwargs))

    async def job(self, attempt: AttemptRef, name: str = "2026_A001", **more: Any) -> Any:
        given = {"card": CARD, "file_count": 3, "total_bytes": 2**40, **more}
        return await self.call(self.jobs.create, attempt, name=name, **given)


@pytest.fixture
async def footage(store: Store) -> AsyncIterator[Footage]:
    clock = FakeClock()
    if isinstance(store, SqlStore):
        jobs = SqlJobs(store.database, store.executions, clock, store.ids)
        files = SqlCardFiles(store.database, store.executions)
        yield Footage(store, jobs, files, SqlLedger(store.database, store.executions), clock)
    else:
        assert isinstance(store, MemoryStore)
        fence = store.fence()
        memory = MemoryJobs(fence, now=clock.now, busy=store.busy, library=store.library)
        store.executions.keeps = lambda each: memory.status_of(each) is JobStatus.CREATED

        def stays(execution_id: int) -> bool:
            return store.has(execution_id) or memory.status_of(execution_id) is not None

        yield Footage(
            store,
            memory,
            MemoryCardFiles(fence, stays=stays),
            MemoryLedger(fence, cancelled=store.cancelled()),
            clock,
        )


def file(path: bytes, size: int = 10, kind: FileKind = FileKind.MEDIA, mtime: int = 5) -> CardFile:
    return CardFile(path, kind, size, mtime)


def imported(path: bytes = b"C1.MP4", **other: Any) -> ImportedFile:
    return replace(ImportedFile("volume:1234", path, 10, 5, "xxh3-128", "ab" * 16), **other)


def copy_of(row: ImportedFile, destination: str = "/lib", **other: Any) -> VerifiedCopy:
    return replace(VerifiedCopy(row, destination, b"job/" + row.path, EPOCH), **other)


async def over(footage: Footage, how: str) -> AttemptRef:
    """An attempt that doesn't run."""
    ref = await footage.attempt()
    if how == "completed":
        await footage.store.complete(ref.execution_id, "x")
    elif how == "failed":
        await footage.store.fail(ref.execution_id, "x")
    elif how == "older":
        await footage.store.executions.update(ref.execution_id, lambda e: e.recover(at=EPOCH))
    elif how == "cancelled":
        await footage.store.executions.update(ref.execution_id, lambda e: e.cancel(at=EPOCH))
    elif how == "older and cancelled":
        for change in (lambda e: e.recover(at=EPOCH), lambda e: e.cancel(at=EPOCH)):
            await footage.store.executions.update(ref.execution_id, change)
    elif how == "forgotten":
        await footage.store.executions.update(ref.execution_id, lambda e: e.cancel(at=EPOCH))
        assert await footage.store.executions.forget(EPOCH + timedelta(seconds=1), 1) == 1
    elif how == "never":
        return ref._replace(attempt=2)
    return ref


ENDED = ["completed", "failed", "older", "older and cancelled", "never", "forgotten"]
OVER = pytest.mark.parametrize("how", ["cancelled", *ENDED])


# -- jobs ------------------------------------------------------------------------


async def test_a_job_is_made_as_it_was_asked_for(footage: Footage) -> None:
    ref = await footage.attempt()
    job = await footage.job(ref)
    assert (job.name, job.card, job.file_count, job.total_bytes) == (
        "2026_A001", CARD, 3, 2**40,
    )  # fmt: skip
    assert (job.execution_id, job.status) == (ref.execution_id, JobStatus.CREATED)
    assert (job.created_at, job.completed_at) == (EPOCH, None)
    assert await footage.call(footage.jobs.get, job.id) == job


async def test_a_job_has_its_cards_generation_and_what_the_ledger_knew(footage: Footage) -> None:
    card, intake = replace(CARD, generation=7), {"new": {"files": 1, "bytes": 2**40}}
    job = await footage.job(await footage.attempt(), card=card, intake=intake)
    assert (job.card, job.intake) == (card, intake)
    assert await footage.call(footage.jobs.get, job.id) == job
    assert (await footage.job(await footage.attempt())).intake is None


async def test_the_highest_generation_of_a_card_is_that_of_any_of_its_jobs(
    footage: Footage,
) -> None:
    assert await footage.call(footage.jobs.generation, CARD.identity) == 0
    for generation in (1, 3, 2):
        await footage.job(await footage.attempt(), card=replace(CARD, generation=generation))
    await footage.job(await footage.attempt(), card=Card("volume:9999", "A001", True, 9))
    assert await footage.call(footage.jobs.generation, CARD.identity) == 3
    assert await footage.call(footage.jobs.generation, "volume:123") == 0


async def test_an_execution_has_one_job_with_the_name_and_time_that_it_got_first(
    footage: Footage,
) -> None:
    ref = await footage.attempt()
    first = await footage.job(ref, "first")
    footage.clock.tick(60)
    assert await footage.job(ref, "second") == first


async def test_a_later_attempt_finds_the_job_of_an_earlier_one(footage: Footage) -> None:
    ref = await footage.attempt()
    first = await footage.job(ref)
    await footage.store.executions.update(ref.execution_id, lambda e: e.recover(at=EPOCH))
    assert await footage.job(ref._replace(attempt=2)) == first


async def test_a_name_that_is_taken_gets_a_number(footage: Footage) -> None:
    names = [(await footage.job(await footage.attempt(), "day")).name for _ in range(4)]
    assert names == ["day", "day-2", "day-3", "day-4"]
    assert (await footage.job(await footage.attempt(), "day-2")).name == "day-2-2"


async def test_a_name_that_is_said_to_be_taken_gets_a_number_too(footage: Footage) -> None:
    await footage.job(await footage.attempt(), "day-3")
    ref = await footage.attempt()
    taken = {"day", "day-2"}.__contains__
    assert (await footage.job(ref, "day", taken=taken)).name == "day-4"
    assert (await footage.job(ref, "day", taken=lambda name: True)).name == "day-4"


async def test_a_name_that_another_job_lies_below_gets_a_number(footage: Footage) -> None:
    for name in ("A%01/2026-11-22", "A%01-2/2026-11-22/x", "A_01x/y"):
        await footage.job(await footage.attempt(), name)
    for name, free in (("A%01", "A%01-3"), ("A_01", "A_01"), ("A", "A"), ("%", "%")):
        assert (await footage.job(await footage.attempt(), name)).name == free


async def test_a_job_is_known_by_its_whole_name(footage: Footage) -> None:
    await footage.job(await footage.attempt(), "2026/A001")
    for name, is_named in (("2026/A001", True), ("2026", False), ("2026/A00", False)):
        assert await footage.call(footage.jobs.named, name) is is_named


async def test_a_job_that_nobody_is_at_and_that_was_never_copied_is_unfinished(
    footage: Footage,
) -> None:
    """``x`` is what runs; the other step of the pair runs as well, until it has ended."""

    async def made(library: str = "/lib", **more: Any) -> tuple[AttemptRef, Any]:
        made = await footage.store.make(PAIR_AND_LAST, data={"library": library})
        ref = AttemptRef(made, "x", 1)
        return ref, await footage.job(ref, **more)

    async def cancelled(ref: AttemptRef) -> None:
        await footage.store.executions.update(ref.execution_id, lambda e: e.cancel(at=EPOCH))

    async def unfinished() -> list[Any]:
        return list(await footage.call(footage.jobs.unfinished, CARD.identity, "/lib"))

    failed, failed_job = await made()
    await footage.store.fail(failed.execution_id, "x")
    assert await unfinished() == []  # y still runs
    await footage.store.complete(failed.execution_id, "y")
    assert await unfinished() == [failed_job]
    gone, gone_job = await made()
    assert await unfinished() == [failed_job]
    await cancelled(gone)
    assert await unfinished() == [gone_job, failed_job]
    paused, _ = await made()
    await footage.store.executions.update(paused.execution_id, lambda e: e.pause(at=EPOCH))
    await footage.store.complete(paused.execution_id, "x")
    await footage.store.complete(paused.execution_id, "y")
    copied, job = await made()
    await footage.call(footage.jobs.copied, copied, job.id)
    await cancelled(copied)
    for ref, _ in (
        await made(library="/other"),
        await made(card=Card("volume:9999", "A001", volume=True)),
    ):
        await cancelled(ref)
    unknown = await footage.attempt()
    await footage.job(unknown)
    await cancelled(unknown)
    assert await unfinished() == [gone_job, failed_job]
    await footage.store.executions.update(failed.execution_id, lambda e: e.retry(at=EPOCH))
    assert await unfinished() == [gone_job]


async def test_the_newest_unfinished_jobs_are_told_up_to_a_bound(footage: Footage) -> None:
    jobs = []
    for _ in range(MAX_UNFINISHED + 2):
        ref = await footage.attempt(library="/lib")
        jobs.append(await footage.job(ref))
        await footage.store.executions.update(ref.execution_id, lambda e: e.cancel(at=EPOCH))
    found = await footage.call(footage.jobs.unfinished, CARD.identity, "/lib")
    assert list(found) == list(reversed(jobs))[:MAX_UNFINISHED]


async def test_an_execution_whose_job_was_never_copied_is_not_forgotten(footage: Footage) -> None:
    ref = await footage.attempt(library="/lib")
    job = await footage.job(ref)
    await footage.store.executions.update(ref.execution_id, lambda e: e.cancel(at=EPOCH))
    other = await footage.attempt()
    await footage.store.executions.update(other.execution_id, lambda e: e.cancel(at=EPOCH))
    assert await footage.store.executions.forget(EPOCH + timedelta(seconds=1), 10) == 1
    assert (await footage.store.executions.get(ref.execution_id)).id == ref.execution_id
    assert list(await footage.call(footage.jobs.unfinished, CARD.identity, "/lib")) == [job]


async def test_the_job_of_a_forgotten_execution_stays_with_all_that_it_brought(
    footage: Footage,
) -> None:
    ref = await footage.attempt()
    await footage.call(footage.files.replace, ref, [file(b"A"), file(b"B")])
    made = await footage.job(ref)
    await footage.call(footage.ledger.record, ref, made.id, [copy_of(imported())])
    job = await footage.call(footage.jobs.copied, ref, made.id)
    await footage.store.executions.update(ref.execution_id, lambda e: e.cancel(at=EPOCH))
    assert await footage.store.executions.forget(EPOCH + timedelta(seconds=1), 10) == 1
    with pytest.raises(ExecutionNotFound):
        await footage.store.executions.get(ref.execution_id)
    assert await footage.call(footage.jobs.get, job.id) == job
    assert [each.path for each in await footage.call(footage.files.of, ref.execution_id)] == [
        b"A", b"B",
    ]  # fmt: skip
    known = await footage.call(footage.ledger.known, [file(b"C1.MP4")], "/lib")
    assert known == {b"C1.MP4": [copy_of(imported())]}
    assert (await footage.job(await footage.attempt(), job.name)).name == f"{job.name}-2"


async def test_what_a_scan_found_goes_with_an_execution_that_has_no_job(footage: Footage) -> None:
    going, staying = await footage.attempt(), await footage.attempt()
    for ref in (going, staying):
        await footage.call(footage.files.replace, ref, [file(b"A")])
    await footage.store.executions.update(going.execution_id, lambda e: e.cancel(at=EPOCH))
    assert await footage.store.executions.forget(EPOCH + timedelta(seconds=1), 10) == 1
    assert list(await footage.call(footage.files.of, going.execution_id)) == []
    assert len(await footage.call(footage.files.of, staying.execution_id)) == 1


async def test_jobs_made_at_once_get_different_names(footage: Footage) -> None:
    refs = [await footage.attempt() for _ in range(10)]
    jobs = await asyncio.gather(*(footage.job(ref, "day") for ref in refs))
    assert len({job.name for job in jobs}) == len({job.id for job in jobs}) == 10


@OVER
async def test_only_a_running_attempt_makes_a_job(footage: Footage, how: str) -> None:
    ref = await over(footage, how)
    with pytest.raises(AttemptOver):
        await footage.job(ref)
    with pytest.raises(JobNotFound):
        await footage.call(footage.jobs.get, 1)


@pytest.mark.parametrize("job_id", [0, -1, 999, 2**70])
async def test_a_job_that_isnt_there_is_not_found(footage: Footage, job_id: int) -> None:
    with pytest.raises(JobNotFound, match=str(job_id)):
        await footage.call(footage.jobs.get, job_id)


async def test_a_job_is_copied_when_everything_is_in_the_library(footage: Footage) -> None:
    ref = await footage.attempt()
    job = await footage.job(ref)
    footage.clock.tick(60)
    copied = await footage.call(footage.jobs.copied, ref, job.id)
    done_at = EPOCH + timedelta(seconds=60)
    assert copied == replace(job, status=JobStatus.COPIED, completed_at=done_at)
    assert await footage.call(footage.jobs.get, job.id) == copied


async def test_a_job_that_isnt_there_cant_be_copied(footage: Footage) -> None:
    with pytest.raises(JobNotFound):
        await footage.call(footage.jobs.copied, await footage.attempt(), 999)


@OVER
async def test_only_a_running_attempt_says_that_a_job_is_copied(footage: Footage, how: str) -> None:
    job = await footage.job(await footage.attempt())
    with pytest.raises(AttemptOver):
        await footage.call(footage.jobs.copied, await over(footage, how), job.id)
    assert await footage.call(footage.jobs.get, job.id) == job


# -- inventories -----------------------------------------------------------------


async def test_an_inventory_comes_back_in_the_order_of_its_paths_bytes(footage: Footage) -> None:
    ref = await footage.attempt()
    files = [
        file(b"b"),
        file(b"a/c"),
        file(b"a-c", kind=FileKind.JUNK),
        file(b"\xff\xfe", size=2**40, mtime=2**60),
        file("ü".encode(), kind=FileKind.SIDECAR),
        file(b"B\n\x1b", mtime=-5),
    ]
    await footage.call(footage.files.replace, ref, iter(files))
    found = await footage.call(footage.files.of, ref.execution_id)
    assert list(found) == sorted(files, key=lambda each: each.path)


async def test_a_file_s_clip_and_problem_come_back_with_it(footage: Footage) -> None:
    ref = await footage.attempt()
    files = [
        replace(file(b"a"), clip=b"\xff/a", problem="a socket, no file"),
        replace(file(b"b"), clip=b"", problem=""),
        file(b"c"),
    ]
    await footage.call(footage.files.replace, ref, files)
    assert list(await footage.call(footage.files.of, ref.execution_id)) == files


async def test_an_inventory_replaces_the_older_one(footage: Footage) -> None:
    ref, other = await footage.attempt(), await footage.attempt()
    await footage.call(footage.files.replace, other, [file(b"other")])
    await footage.call(footage.files.replace, ref, [file(b"a"), file(b"b")])
    await footage.call(footage.files.replace, ref, [file(b"b", size=99)])
    assert list(await footage.call(footage.files.of, ref.execution_id)) == [file(b"b", size=99)]
    assert list(await footage.call(footage.files.of, other.execution_id)) == [file(b"other")]
    await footage.call(footage.files.replace, ref, [])
    assert list(await footage.call(footage.files.of, ref.execution_id)) == []


async def test_an_inventory_is_paged_by_the_last_path(footage: Footage) -> None:
    ref = await footage.attempt()
    files = [file(b"%04d" % number) for number in range(2_500)]
    await footage.call(footage.files.replace, ref, files)
    paged: list[CardFile] = []
    while page := await footage.call(
        footage.files.of, ref.execution_id, after=paged[-1].path if paged else None, limit=999
    ):
        paged.extend(page)
    assert paged == files
    assert list(await footage.call(footage.files.of, 999)) == []


async def test_kinds_are_counted_with_their_bytes(footage: Footage) -> None:
    ref = await footage.attempt()
    await footage.call(
        footage.files.replace,
        ref,
        [file(b"a"), file(b"b", size=2**40), file(b"c", kind=FileKind.JUNK, size=0)],
    )
    assert dict(await footage.call(footage.files.counts, ref.execution_id)) == {
        FileKind.MEDIA: (2, 10 + 2**40),
        FileKind.JUNK: (1, 0),
    }
    assert dict(await footage.call(footage.files.counts, 999)) == {}


@OVER
async def test_only_a_running_attempt_replaces_an_inventory(footage: Footage, how: str) -> None:
    ref = await over(footage, how)
    with pytest.raises(AttemptOver):
        await footage.call(footage.files.replace, ref, [file(b"a")])
    assert list(await footage.call(footage.files.of, ref.execution_id)) == []


# -- the ledger ------------------------------------------------------------------


async def recorded(footage: Footage, *copies: VerifiedCopy) -> AttemptRef:
    ref = await footage.attempt()
    job = await footage.job(ref)
    await footage.call(footage.ledger.record, ref, job.id, copies)
    return ref


async def known(
    footage: Footage, *files: CardFile, destination: str = "/lib"
) -> dict[bytes, list[VerifiedCopy]]:
    found = await footage.call(footage.ledger.known, files, destination)
    return {path: list(copies) for path, copies in found.items()}


async def test_what_was_recorded_is_known_by_path_and_size_whatever_the_card(
    footage: Footage,
) -> None:
    here, there = copy_of(imported()), copy_of(imported(card_identity="volume:other", hash="c" * 9))
    await recorded(footage, here, there, copy_of(imported(b"else")))
    found = await known(footage, file(b"C1.MP4"), file(b"new"))
    assert found == {b"C1.MP4": [here, there]}


async def test_another_size_is_another_file(footage: Footage) -> None:
    await recorded(footage, copy_of(imported()))
    assert await known(footage, file(b"C1.MP4", size=11)) == {}


async def test_files_of_one_path_and_two_sizes_are_both_looked_up(footage: Footage) -> None:
    await recorded(footage, copy_of(imported()))
    for sizes in ((10, 11), (11, 10)):
        files = [file(b"C1.MP4", size=size) for size in sizes]
        assert await known(footage, *files) == {b"C1.MP4": [copy_of(imported())]}


async def test_a_file_is_known_only_where_a_copy_of_it_was_recorded(footage: Footage) -> None:
    await recorded(footage, copy_of(imported()), copy_of(imported(), "/backup"))
    await recorded(footage, copy_of(imported(b"only.MP4"), "/backup"))
    files = file(b"C1.MP4"), file(b"only.MP4")
    assert await known(footage, *files) == {b"C1.MP4": [copy_of(imported())]}
    assert await known(footage, *files, destination="/backup") == {
        b"C1.MP4": [copy_of(imported(), "/backup")],
        b"only.MP4": [copy_of(imported(b"only.MP4"), "/backup")],
    }
    assert await known(footage, *files, destination="/disk2") == {}


async def test_every_place_of_a_file_is_told_in_the_order_of_recording(footage: Footage) -> None:
    copies = [copy_of(imported(), path=path) for path in (b"z/C1.MP4", b"a/C1.MP4", b"\xff/C1")]
    await recorded(footage, *copies)
    assert await known(footage, file(b"C1.MP4")) == {b"C1.MP4": copies}


async def test_recording_the_same_again_is_a_no_op(footage: Footage) -> None:
    copy = copy_of(imported())
    await recorded(footage, copy, copy)
    await recorded(footage, copy, replace(copy, verified_at=EPOCH + timedelta(hours=1)))
    assert await known(footage, file(b"C1.MP4")) == {b"C1.MP4": [copy]}
    if isinstance(footage.store, SqlStore):
        assert footage.store.query("SELECT count(*) FROM imported_copy") == [(1,)]


async def test_further_hashes_and_what_was_read_cold_are_kept_and_make_no_other_file(
    footage: Footage,
) -> None:
    row = replace(imported(), further=(("md5", "d" * 32), ("c4", "c4" + "1" * 88)))
    await recorded(footage, replace(copy_of(row), cold=True))
    await recorded(footage, copy_of(imported()), copy_of(imported(), "/backup"))
    (found,) = (await known(footage, file(row.path)))[row.path]
    assert found.cold
    assert dict(found.file.further) == dict(row.further)
    (other,) = (await known(footage, file(row.path), destination="/backup"))[row.path]
    assert not other.cold
    if isinstance(footage.store, SqlStore):
        assert footage.store.query("SELECT count(*) FROM imported_file") == [(1,)]


async def test_names_are_bytes_in_the_ledger(footage: Footage) -> None:
    row = imported(b"\xff\n\x1b.MP4")
    await recorded(footage, copy_of(row))
    assert await known(footage, file(row.path)) == {row.path: [copy_of(row)]}


async def test_more_files_than_a_query_names_are_all_looked_up(footage: Footage) -> None:
    rows = [imported(b"%05d" % number) for number in range(KEYS + 3)]
    await recorded(footage, *(copy_of(row) for row in rows))
    found = await known(footage, *(file(row.path) for row in rows))
    assert found == {row.path: [copy_of(row)] for row in rows}


async def test_what_was_published_when_its_attempt_was_cancelled_is_recorded(
    footage: Footage,
) -> None:
    job = await footage.job(await footage.attempt())
    ref = await over(footage, "cancelled")
    for _ in range(2):
        await footage.call(footage.ledger.record, ref, job.id, [copy_of(imported())])
    assert await known(footage, file(b"C1.MP4")) == {b"C1.MP4": [copy_of(imported())]}


@pytest.mark.parametrize("how", ENDED)
async def test_only_a_running_attempt_records_and_otherwise_nothing_is(
    footage: Footage, how: str
) -> None:
    job = await footage.job(await footage.attempt())
    with pytest.raises(AttemptOver):
        await footage.call(
            footage.ledger.record, await over(footage, how), job.id, [copy_of(imported())]
        )
    assert await known(footage, file(b"C1.MP4")) == {}


async def test_a_destinations_mount_point_is_the_one_that_was_kept_last(footage: Footage) -> None:
    assert await footage.call(footage.ledger.mount_point, "/lib") is None
    for path in (b"/", b"/mnt/\xff", b"/mnt"):
        await footage.call(footage.ledger.keep_mount_point, "/lib", path)
        assert await footage.call(footage.ledger.mount_point, "/lib") == path
    await footage.call(footage.ledger.keep_mount_point, "/lib/below", b"/other")
    assert await footage.call(footage.ledger.mount_point, "/lib") == b"/mnt"
    assert await footage.call(footage.ledger.mount_point, "/li") is None


# -- the verdict on a job's card -------------------------------------------------


async def test_a_job_has_the_last_verdict_on_its_card(footage: Footage) -> None:
    ref = await footage.attempt()
    job = await footage.job(ref)
    assert job.verdict is None
    await footage.call(footage.jobs.judged, ref, job.id, {"safe_to_format": False, "é": [1]})
    last = {"safe_to_format": True, "reasons": [{"path": "\\xff", "detail": None}]}
    judged = await footage.call(footage.jobs.judged, ref, job.id, last)
    assert judged == replace(job, verdict=last)
    assert await footage.call(footage.jobs.get, job.id) == judged
    # It is no copy that is to be finished, nor anything else that is known of the job.
    copied = await footage.call(footage.jobs.copied, ref, job.id)
    assert copied.verdict == last


async def test_a_verdict_on_a_job_that_there_isn_t_is_refused(footage: Footage) -> None:
    ref = await footage.attempt()
    with pytest.raises(JobNotFound):
        await footage.call(footage.jobs.judged, ref, 99, {})


@OVER
async def test_only_a_running_attempt_judges(footage: Footage, how: str) -> None:
    job = await footage.job(await footage.attempt())
    with pytest.raises(AttemptOver):
        await footage.call(footage.jobs.judged, await over(footage, how), job.id, {"a": 1})
    assert (await footage.call(footage.jobs.get, job.id)).verdict is None


async def test_jobs_are_listed_the_newest_first_a_page_at_a_time(footage: Footage) -> None:
    made = [await footage.job(await footage.attempt(), f"job {n}") for n in range(5)]
    assert await footage.call(footage.jobs.list) == made[::-1]
    assert await footage.call(footage.jobs.list, limit=2) == [made[4], made[3]]
    assert await footage.call(footage.jobs.list, before=made[3].id, limit=2) == [made[2], made[1]]
    assert await footage.call(footage.jobs.list, before=made[0].id) == []
    assert len(await footage.call(footage.jobs.list, before=2**63 - 1)) == 5
