"""What every command begins with: its settings, and a server to ask."""

from __future__ import annotations

from contextlib import AbstractContextManager
from urllib.parse import quote

import click

from adapters.cli.factories import Attached, Factories
from adapters.settings import Settings

COMPLETED, FAILED, WRONG_USE, INTERRUPTED = 0, 1, 2, 130


def factories(context: click.Context) -> Factories:
    found = context.obj
    assert isinstance(found, Factories)
    return found


def settings_for(context: click.Context, **flags: str | None) -> Settings:
    given = {"database_url": context.meta["database_url"], **flags}
    return factories(context).load_settings(given, context.meta["config"])


def asking(context: click.Context) -> AbstractContextManager[Attached]:
    """A server to ask something; one of our own starts no work for that."""
    return factories(context).attach(settings_for(context), False)


def path_of(execution_id: str) -> str:
    return f"/api/pipeline/{quote(execution_id, safe='')}"
