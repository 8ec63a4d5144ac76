"""Jobs, inventories and the ledger on SQLite. Blocking: for handlers' threads.

Whatever an attempt writes is fenced in the transaction that writes it: the
attempt must be the one that runs.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from datetime import datetime
from functools import lru_cache
from typing import Any, TypeVar

import msgspec
from sqlalchemy import (
    Connection,
    RowMapping,
    bindparam,
    delete,
    exists,
    func,
    insert,
    or_,
    select,
    update,
)
from sqlalchemy.dialects import sqlite
from sqlalchemy.exc import DBAPIError

from adapters.persistence.batch import Batch
from adapters.persistence.database import Database
from adapters.persistence.executions import MAX_ID, SqlExecutions
from adapters.persistence.statements import Statement, json_text, time_text
from adapters.persistence.tables import (
    card_file,
    destination_disk,
    imported_copy,
    imported_file,
    job,
    pipeline_execution,
    pipeline_step,
)
from application.ports import MAX_UNFINISHED, AttemptRef, Clock, Ids
from domain.errors import AttemptOver, JobNotFound, NotFound, Unavailable
from domain.execution import ACTIVE
from domain.footage import (
    Card,
    CardFile,
    FileKind,
    ImportedFile,
    Job,
    JobStatus,
    VerifiedCopy,
)
from domain.step import StepStatus

T = TypeVar("T")

ROWS = 1_000
"""How many rows a statement takes; a card of any size is written and read in such pieces."""

KEYS = 500
"""How many keys a query names; SQLite bounds the parameters of a statement."""


_insert_card_file = Statement.insert(
    card_file, ("execution_id", "path", "kind", "size_bytes", "mtime_ns", "clip", "problem")
)


class _Reads:
    def __init__(self, database: Database) -> None:
        self._database = database

    def __call__(self, query: Callable[[Connection], T]) -> T:
        try:
            with self._database.reader.begin() as connection:
                return query(connection)
        except DBAPIError as error:
            raise Unavailable(f"the database can't be read: {error.orig}") from error


def _fence(
    batch: Batch, attempt: AttemptRef, allowed: Collection[StepStatus] = (StepStatus.RUNNING,)
) -> None:
    """Raises ``AttemptOver`` unless the attempt is the step's, and the step is ``allowed``."""
    try:
        step = batch.current(attempt.execution_id).step(attempt.step_key)
    except NotFound as error:  # its handler has outlived it
        raise AttemptOver(
            f"{error}; the work of attempt {attempt.attempt} is not recorded"
        ) from None
    if step.status not in allowed or step.attempt != attempt.attempt:
        raise AttemptOver(
            f"step {attempt.step_key}: attempt {attempt.attempt} is over "
            f"(the step is {step.status}, at attempt {step.attempt}); its work is not recorded"
        )


class SqlJobs:
    """Implements ``application.ports.Jobs``."""

    def __init__(
        self, database: Database, executions: SqlExecutions, clock: Clock, ids: Ids
    ) -> None:
        self._read = _Reads(database)
        self._executions = executions
        self._clock = clock
        self._ids = ids

    def create(
        self,
        attempt: AttemptRef,
        *,
        name: str,
        card: Card,
        file_count: int,
        total_bytes: int,
        intake: Mapping[str, Any] | None = None,
        taken: Callable[[str], bool] = lambda name: False,
    ) -> Job:
        uuid, now = self._ids.new(), self._clock.now()

        def work(batch: Batch) -> Job:
            _fence(batch, attempt)
            connection = batch.connection
            there = connection.execute(
                select(job).where(job.c.execution_id == attempt.execution_id)
            ).first()
            if there is not None:
                return _job(there._mapping)
            connection.execute(
                insert(job),
                {
                    "uuid": uuid,
                    "execution_id": attempt.execution_id,
                    "name": _free_name(connection, name, taken),
                    "card_identity": card.identity,
                    "card_label": card.label,
                    "card_volume": card.volume,
                    "card_generation": card.generation,
                    "status": JobStatus.CREATED.value,
                    "file_count": file_count,
                    "total_bytes": total_bytes,
                    "intake": None if intake is None else dict(intake),
                    "created_at": now,
                },
            )
            row = connection.execute(select(job).where(job.c.uuid == uuid)).one()
            return _job(row._mapping)

        return self._executions.writer.run_blocking(work)

    def get(self, job_id: int) -> Job:
        if not 0 < job_id <= MAX_ID:
            raise JobNotFound(job_id)

        def read(connection: Connection) -> Job:
            row = connection.execute(select(job).where(job.c.id == job_id)).first()
            if row is None:
                raise JobNotFound(job_id)
            return _job(row._mapping)

        return self._read(read)

    def generation(self, card_identity: str) -> int:
        statement = select(func.max(job.c.card_generation)).where(
            job.c.card_identity == card_identity
        )
        return self._read(lambda connection: connection.execute(statement).scalar() or 0)

    def named(self, name: str) -> bool:
        statement = select(job.c.id).where(job.c.name == name)
        return self._read(lambda connection: connection.execute(statement).first() is not None)

    def unfinished(self, card_identity: str, library: str) -> Sequence[Job]:
        execution, step = pipeline_execution.c, pipeline_step.c
        statement = (
            select(job)
            .join(pipeline_execution, execution.id == job.c.execution_id)
            .where(
                job.c.card_identity == card_identity,
                job.c.status == JobStatus.CREATED.value,
                execution.status.not_in([status.value for status in ACTIVE]),
                execution.execution_data["library"].as_string() == library,
                ~exists().where(
                    step.execution_id == execution.id, step.status == StepStatus.RUNNING.value
                ),
            )
            .order_by(job.c.id.desc())
            .limit(MAX_UNFINISHED)
        )
        return self._read(
            lambda connection: [_job(row._mapping) for row in connection.execute(statement)]
        )

    def list(self, *, before: int | None = None, limit: int = 50) -> Sequence[Job]:
        statement = select(job).order_by(job.c.id.desc()).limit(limit)
        if before is not None:
            statement = statement.where(job.c.id < min(before, MAX_ID))
        return self._read(
            lambda connection: [_job(row._mapping) for row in connection.execute(statement)]
        )

    def judged(self, attempt: AttemptRef, job_id: int, verdict: Mapping[str, Any]) -> Job:
        return self._set(attempt, job_id, verdict=dict(verdict))

    def copied(self, attempt: AttemptRef, job_id: int) -> Job:
        now = self._clock.now()
        return self._set(attempt, job_id, status=JobStatus.COPIED.value, completed_at=now)

    def _set(self, attempt: AttemptRef, job_id: int, **values: object) -> Job:
        def work(batch: Batch) -> Job:
            _fence(batch, attempt)
            batch.connection.execute(update(job).where(job.c.id == job_id).values(**values))
            row = batch.connection.execute(select(job).where(job.c.id == job_id)).first()
            if row is None:
                raise JobNotFound(job_id)
            return _job(row._mapping)

        return self._executions.writer.run_blocking(work)


class SqlCardFiles:
    """Implements ``application.ports.CardFiles``."""

    def __init__(self, database: Database, executions: SqlExecutions) -> None:
        self._read = _Reads(database)
        self._executions = executions

    def replace(self, attempt: AttemptRef, files: Iterable[CardFile]) -> None:
        inventory = list(files)

        def work(batch: Batch) -> None:
            _fence(batch, attempt)
            batch.connection.execute(
                delete(card_file).where(card_file.c.execution_id == attempt.execution_id)
            )
            for start in range(0, len(inventory), ROWS):
                rows = [
                    (
                        attempt.execution_id,
                        each.path,
                        each.kind.value,
                        each.size_bytes,
                        each.mtime_ns,
                        each.clip,
                        each.problem,
                    )
                    for each in inventory[start : start + ROWS]
                ]
                _insert_card_file.execute(batch.connection, rows)

        self._executions.writer.run_blocking(work)

    def of(
        self, execution_id: int, *, after: bytes | None = None, limit: int | None = None
    ) -> Sequence[CardFile]:
        columns = card_file.c
        statement = (
            select(
                columns.path,
                columns.kind,
                columns.size_bytes,
                columns.mtime_ns,
                columns.clip,
                columns.problem,
            )
            .where(card_file.c.execution_id == execution_id)
            .order_by(card_file.c.path)
            .limit(limit)
        )
        if after is not None:
            statement = statement.where(card_file.c.path > after)
        return self._read(
            lambda connection: [
                CardFile(
                    path,
                    FileKind(kind),
                    size_bytes,
                    mtime_ns,
                    # Most are a clip by themselves, and problems are few: who keeps the files
                    # of a large card keeps one of each.
                    path if clip == path else clip,
                    None if problem is None else sys.intern(problem),
                )
                for path, kind, size_bytes, mtime_ns, clip, problem in connection.execute(statement)
            ]
        )

    def counts(self, execution_id: int) -> Mapping[FileKind, tuple[int, int]]:
        statement = (
            select(card_file.c.kind, func.count(), func.sum(card_file.c.size_bytes))
            .where(card_file.c.execution_id == execution_id)
            .group_by(card_file.c.kind)
        )
        return self._read(
            lambda connection: {
                FileKind(kind): (count, size) for kind, count, size in connection.execute(statement)
            }
        )


class SqlLedger:
    """Implements ``application.ports.Ledger``."""

    def __init__(self, database: Database, executions: SqlExecutions) -> None:
        self._read = _Reads(database)
        self._executions = executions

    def known(
        self, files: Sequence[CardFile], destination: str
    ) -> Mapping[bytes, Sequence[VerifiedCopy]]:
        wanted = {(each.path, each.size_bytes) for each in files}
        paths = sorted({path for path, _ in wanted})

        def read(connection: Connection) -> Mapping[bytes, Sequence[VerifiedCopy]]:
            found: dict[bytes, list[VerifiedCopy]] = {}
            for start in range(0, len(paths), KEYS):
                asked = paths[start : start + KEYS]
                # As the driver gives them: a card that is known whole has a row for each of its
                # files, and of one that isn't, SQLAlchemy would take longer to ask than SQLite
                # to answer.
                for path, size_bytes, *file, place, verified_at, cold in connection.exec_driver_sql(
                    _known_sql(len(asked)), (*asked, destination)
                ):
                    if (path, size_bytes) in wanted:
                        imported = _imported(path, size_bytes, *file)
                        at = datetime.fromisoformat(verified_at)
                        copy = VerifiedCopy(imported, destination, place, at, bool(cold))
                        found.setdefault(path, []).append(copy)
            return found

        return self._read(read)

    def record(self, attempt: AttemptRef, job_id: int, copies: Sequence[VerifiedCopy]) -> None:
        def work(batch: Batch) -> None:
            _fence(batch, attempt, (StepStatus.RUNNING, StepStatus.CANCELLED))
            for start in range(0, len(copies), ROWS):
                _record(batch.connection, job_id, copies[start : start + ROWS])

        self._executions.writer.run_blocking(work)

    def mount_point(self, destination: str) -> bytes | None:
        columns = destination_disk.c
        statement = select(columns.mount_point).where(columns.destination == destination)
        return self._read(lambda connection: connection.execute(statement).scalar())

    def keep_mount_point(self, destination: str, path: bytes) -> None:
        statement = (
            sqlite.insert(destination_disk)
            .values(destination=destination, mount_point=path)
            .on_conflict_do_update(index_elements=["destination"], set_={"mount_point": path})
        )
        self._executions.writer.run_blocking(lambda batch: batch.connection.execute(statement))


def _record(connection: Connection, job_id: int, copies: Sequence[VerifiedCopy]) -> None:
    files = dict.fromkeys(copy.file for copy in copies)
    _insert_imported_file.execute(
        connection,
        [
            (job_id, json_text(dict(file.further)) if file.further else None, *_contents(file))
            for file in files
        ],
    )
    _insert_imported_copy.execute(
        connection,
        [
            (
                copy.destination,
                copy.path,
                time_text(copy.verified_at),
                copy.cold,
                *_contents(copy.file),
            )
            for copy in copies
        ],
    )


_CONTENTS = ("card_identity", "relative_path", "size_bytes", "mtime_ns", "hash_name", "hash")
"""What makes two rows one file."""


def _contents(file: ImportedFile) -> tuple[object, ...]:
    return (
        file.card_identity,
        file.path,
        file.size_bytes,
        file.mtime_ns,
        file.hash_name,
        file.hash,
    )


_insert_imported_file = Statement(
    Statement.insert(imported_file, ("job_id", "further_hashes", *_CONTENTS)).sql
    + " ON CONFLICT DO NOTHING"
)

_insert_imported_copy = Statement(
    "INSERT INTO imported_copy (imported_file_id, destination, path, verified_at, cold) "  # noqa: S608 - ours
    "SELECT id, ?, ?, ?, ? FROM imported_file "
    f"WHERE {' AND '.join(f'{name} = ?' for name in _CONTENTS)} ON CONFLICT DO NOTHING"
)
"""One statement for a batch: the file's row is found where the copy's is made."""


_KNOWN = (
    select(
        imported_file.c.relative_path,
        imported_file.c.size_bytes,
        imported_file.c.card_identity,
        imported_file.c.mtime_ns,
        imported_file.c.hash_name,
        imported_file.c.hash,
        imported_file.c.further_hashes,
        imported_copy.c.path,
        imported_copy.c.verified_at,
        imported_copy.c.cold,
    )
    .join(imported_copy, imported_copy.c.imported_file_id == imported_file.c.id)
    .where(
        imported_file.c.relative_path.in_(bindparam("paths", expanding=True)),
        imported_copy.c.destination == bindparam("asked"),
    )
    .order_by(imported_copy.c.id)
)


@lru_cache(maxsize=8)
def _known_sql(paths: int) -> str:
    """For so many paths. Its parameters are these, then the destination."""
    asked = _KNOWN.params(paths=[b""] * paths, asked="")
    options = {"render_postcompile": True}
    return str(asked.compile(dialect=sqlite.dialect(), compile_kwargs=options))


def _imported(
    path: bytes,
    size_bytes: int,
    card_identity: str,
    mtime_ns: int,
    hash_name: str,
    hash: str,
    further: str | None,
) -> ImportedFile:
    return ImportedFile(
        card_identity=card_identity,
        path=path,
        size_bytes=size_bytes,
        mtime_ns=mtime_ns,
        hash_name=hash_name,
        hash=hash,
        further=() if further is None else tuple((msgspec.json.decode(further) or {}).items()),
    )


def _free_name(connection: Connection, name: str, taken: Callable[[str], bool]) -> str:
    """The name, or with the first of ``-2``, ``-3``, ... that nobody has, nor anybody lies in."""
    candidate, number = name, 1
    while (
        taken(candidate)
        or connection.execute(
            select(job.c.id).where(
                or_(
                    job.c.name == candidate,
                    job.c.name.startswith(f"{candidate}/", autoescape=True),
                )
            )
        ).first()
    ):
        number += 1
        candidate = f"{name}-{number}"
    return candidate


def _job(row: RowMapping) -> Job:
    return Job(
        id=row["id"],
        uuid=row["uuid"],
        execution_id=row["execution_id"],
        name=row["name"],
        card=Card(
            row["card_identity"], row["card_label"], row["card_volume"], row["card_generation"]
        ),
        status=JobStatus(row["status"]),
        file_count=row["file_count"],
        total_bytes=row["total_bytes"],
        created_at=row["created_at"],
        completed_at=row["completed_at"],
        intake=row["intake"],
        verdict=row["verdict"],
    )
