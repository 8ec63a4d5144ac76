"""Bringing a database up to date, with Alembic."""

from __future__ import annotations

from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from sqlalchemy import Connection

from domain.errors import Unavailable


def configuration() -> Config:
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent).replace("%", "%%"))
    return config


def upgrade(connection: Connection, found: str | None, path: Path) -> None:
    """From ``found`` (None: an empty file) to this version, in the transaction at hand.

    Raises ``Unavailable``, naming the file, if it was made by a newer version.
    """
    config = configuration()
    known = {script.revision for script in ScriptDirectory.from_config(config).walk_revisions()}
    if found is not None and found not in known:
        raise Unavailable(
            f"the database {path} is of a newer version of Rushes (schema {found}); "
            "this version can't read it: use the newer one, or another database"
        )
    config.attributes["connection"] = connection
    command.upgrade(config, "head")
