"""Where the database is: which file a database URL names."""

from __future__ import annotations

from pathlib import Path

from domain.errors import InvalidInput


def database_file(url: str) -> Path:
    """Raises ``InvalidInput`` unless it names an SQLite file: ``sqlite:///``, and its path."""
    kind, found, path = url.partition("://")
    if not found:
        raise InvalidInput(
            f"{url!r} is no database URL; it looks like sqlite:////path/to/rushes.db",
            field="RUSHES_DATABASE_URL",
        )
    if kind not in ("sqlite", "sqlite+pysqlite"):
        raise InvalidInput(
            f"databases of kind {kind!r} are not supported (only sqlite)",
            field="RUSHES_DATABASE_URL",
        )
    host, _, path = path.partition("/")
    if host or "?" in path or path.startswith("file:"):
        raise InvalidInput(
            f"{url!r} must be plain: sqlite:///, the path, and nothing after it",
            field="RUSHES_DATABASE_URL",
        )
    if path in ("", ":memory:"):
        raise InvalidInput(
            "the database must be a file: what is only in memory is lost with the process",
            field="RUSHES_DATABASE_URL",
        )
    return Path(path)
