"""The database file: its schema, its version, and who holds it."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory

from adapters.persistence.database import SCHEMA, Database
from adapters.persistence.lock import DatabaseLock
from adapters.persistence.migrations import configuration, upgrade
from adapters.persistence.tables import metadata
from domain.errors import InvalidInput, Unavailable

SRC = Path(__file__).parents[2] / "src"


def opened(path: Path) -> Database:
    database = Database(f"sqlite:///{path}")
    database.open()
    return database


def migrated(path: Path) -> Database:
    """Of an empty file, by every migration there has been."""
    database = opened(path)
    with database.writer.begin() as connection:
        metadata.drop_all(connection)
        connection.exec_driver_sql("DROP TABLE alembic_version")
        upgrade(connection, None, path)
    return database


def test_the_migrations_make_the_schema_that_the_tables_say(tmp_path: Path) -> None:
    database = migrated(tmp_path / "r.db")
    with database.writer.connect() as connection:
        context = MigrationContext.configure(
            connection, opts={"compare_type": True, "compare_server_default": True}
        )
        assert compare_metadata(context, metadata) == []
    database.close()


def test_a_fresh_database_is_what_the_migrations_make_of_an_empty_one(tmp_path: Path) -> None:
    """All but the order of columns; what Alembic doesn't compare, too: the WHERE of an index,
    AUTOINCREMENT, foreign keys, and the rows that are there from the start."""

    def everything(database: Database) -> set[str]:
        found = set()
        with database.writer.connect() as connection:

            def ask(question: str) -> list[Any]:
                return list(connection.exec_driver_sql(question).mappings())

            for made in ask("SELECT type, name, tbl_name, sql FROM sqlite_master"):
                kind, name, table, sql = made.values()
                if name == "sqlite_sequence":
                    continue
                what, _, where = (sql or "").partition(" WHERE ")
                if kind == "index":  # SQLite numbers those without a statement
                    columns = [(c["seqno"], c["name"]) for c in ask(f"PRAGMA index_info({name})")]
                    found.add(f"{name if sql else table} {columns} {where}")
                    continue
                found.add(f"{name} {'AUTOINCREMENT' in what} {ask(f'SELECT * FROM {name}')}")
                for pragma in ("table_info", "foreign_key_list", "index_list"):
                    for each in ask(f"PRAGMA {pragma}({name})"):
                        numbers = {"cid", "id", "seq"} | ({"name"} if "origin" in each else set())
                        found.add(f"{name} {[i for i in each.items() if i[0] not in numbers]}")
        database.close()
        return found

    fresh, in_steps = opened(tmp_path / "fresh.db"), migrated(tmp_path / "migrated.db")
    made = everything(fresh)
    assert made == everything(in_steps)
    active = "[(0, 'card_key')] card_key IS NOT NULL AND status IN ('pending', 'running')"
    assert f"uq_pipeline_execution_active_card {active}" in made


def test_the_schema_that_the_code_works_with_is_the_newest_migration() -> None:
    assert ScriptDirectory.from_config(configuration()).get_current_head() == SCHEMA


def test_a_database_is_opened_again_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "deeper" / "r.db"
    opened(path).close()
    database = opened(path)
    with database.reader.connect() as connection:
        version = connection.exec_driver_sql("SELECT version_num FROM alembic_version").scalar()
    assert version == SCHEMA
    database.close()


def test_a_database_of_a_newer_version_is_refused_by_name_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "r.db"
    opened(path).close()
    connection = sqlite3.connect(path)
    connection.execute("UPDATE alembic_version SET version_num = '9999'")
    connection.commit()
    connection.close()
    with pytest.raises(Unavailable) as refused:
        opened(path)
    assert str(path) in refused.value.message
    assert "9999" in refused.value.message
    assert "newer" in refused.value.message
    connection = sqlite3.connect(path)
    assert connection.execute("SELECT version_num FROM alembic_version").fetchone() == ("9999",)
    connection.close()


@pytest.mark.parametrize("kind", ["folder", "text", "below a file"])
def test_what_is_no_database_is_refused_by_name(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "r.db"
    if kind == "folder":
        path.mkdir()
    elif kind == "text":
        path.write_text("this is no database, " * 100)
    else:
        path.write_text("x")
        path = path / "r.db"
    with pytest.raises(Unavailable, match=r"r\.db"):
        opened(path)


@pytest.mark.parametrize(
    "url", ["", "nonsense", "mysql://x/y", "sqlite://", "sqlite:///:memory:", "sqlite:///"]
)
def test_a_url_that_names_no_sqlite_file_is_refused(url: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        Database(url)
    assert refused.value.field == "RUSHES_DATABASE_URL"


def test_a_closed_database_says_so(tmp_path: Path) -> None:
    database = opened(tmp_path / "r.db")
    database.close()
    database.close()
    with pytest.raises(Unavailable, match=r"r\.db is closed"):
        _ = database.writer
    with pytest.raises(Unavailable, match=r"r\.db is closed"):
        _ = database.reader


def test_readers_cannot_write(tmp_path: Path) -> None:
    database = opened(tmp_path / "r.db")
    with (
        database.reader.connect() as connection,
        pytest.raises(Exception, match="readonly"),
    ):
        connection.exec_driver_sql("DELETE FROM pipeline_event")
    database.close()


# -- the lock --------------------------------------------------------------------

HOLD = """
import sys
from pathlib import Path
from adapters.persistence.lock import DatabaseLock
lock = DatabaseLock(Path(sys.argv[1]))
lock.acquire()
lock.announce("http://127.0.0.1:8000", "127.0.0.1:50051")
print("held", flush=True)
sys.stdin.read()
lock.release()
"""


def holding(database: Path) -> subprocess.Popen[str]:
    """Another process that holds it; killed or told to end by the test."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(database)],
        env={**os.environ, "PYTHONPATH": str(SRC)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def end(process: subprocess.Popen[str]) -> None:
    process.communicate("", timeout=10)


def test_a_second_process_is_refused_and_told_who_has_the_database(tmp_path: Path) -> None:
    database = tmp_path / "r.db"
    other = holding(database)
    try:
        with pytest.raises(Unavailable) as refused:
            DatabaseLock(database).acquire()
        assert f"pid {other.pid}" in refused.value.message
        assert "http://127.0.0.1:8000" in refused.value.message
        assert str(database) in refused.value.message
    finally:
        end(other)


def test_the_holder_is_found_with_where_it_can_be_reached(tmp_path: Path) -> None:
    database = tmp_path / "r.db"
    assert DatabaseLock(database).holder() is None
    other = holding(database)
    try:
        holder = DatabaseLock(database).holder()
        assert holder is not None
        assert (holder.pid, holder.address, holder.grpc_address) == (
            other.pid, "http://127.0.0.1:8000", "127.0.0.1:50051",
        )  # fmt: skip
    finally:
        end(other)
    assert DatabaseLock(database).holder() is None


def test_a_killed_holder_holds_nothing(tmp_path: Path) -> None:
    database = tmp_path / "r.db"
    other = holding(database)
    other.send_signal(signal.SIGKILL)
    end(other)
    assert DatabaseLock(database).holder() is None
    lock = DatabaseLock(database)
    lock.acquire()
    holder = DatabaseLock(database).holder()
    assert holder is not None
    assert (holder.pid, holder.address) == (os.getpid(), "")
    lock.release()


def test_a_released_lock_is_free_for_the_next(tmp_path: Path) -> None:
    database = tmp_path / "r.db"
    first, second = DatabaseLock(database), DatabaseLock(database)
    first.acquire()
    with pytest.raises(Unavailable, match=f"pid {os.getpid()}"):
        second.acquire()
    first.release()
    first.release()
    second.acquire()
    second.release()


def test_who_only_looks_whether_it_is_held_keeps_nobody_from_taking_it(tmp_path: Path) -> None:
    """``holder`` locks for an instant, and a server that starts just then must not fail."""
    import fcntl
    import threading

    database = tmp_path / "r.db"
    lock = DatabaseLock(database)
    lock.acquire()
    lock.release()
    looking = os.open(lock.path, os.O_RDONLY)
    fcntl.flock(looking, fcntl.LOCK_SH)
    timer = threading.Timer(0.05, os.close, [looking])
    timer.start()
    lock.acquire()
    timer.join()
    lock.release()


def test_a_lock_file_that_cant_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(Unavailable, match=r"r\.db\.lock"):
        DatabaseLock(tmp_path / "file" / "r.db").acquire()
