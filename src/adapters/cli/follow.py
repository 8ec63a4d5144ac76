"""Showing how an execution goes, until it has ended."""

from __future__ import annotations

import click

from adapters.cli.asking import COMPLETED, FAILED, INTERRUPTED, path_of
from adapters.cli.client import Client
from adapters.cli.display import display, fall_silent
from adapters.cli.engine import paused_since
from adapters.cli.factories import Attached

ENDS = {"pipeline:completed", "pipeline:failed", "pipeline:cancelled"}


def follow(
    client: Client,
    attached: Attached,
    execution_id: str,
    *,
    as_json: bool,
    since: int | None = None,
) -> int:
    """Show an execution's events until it has ended; the exit code that says how."""
    path = f"{path_of(execution_id)}/events"
    paused = paused_since(client.get("/api/engine")["paused_at"])
    if paused is not None:
        click.echo(f"The engine is {paused}", err=True)
    try:
        with display(as_json=as_json) as shown:
            over = (
                since is not None
                and _has_ended(client, execution_id)
                and not client.get(path, since=since)["events"]
            )
            for event in () if over else client.events(path, since=since):
                try:
                    shown.event(event)
                except BrokenPipeError:
                    fall_silent()  # nobody looks any more; the footage is copied all the same
                if event["type"] in ENDS and _has_ended(client, execution_id):
                    later = client.get(path, since=event["id"])["events"]
                    if not any(each["type"] in ENDS for each in later):  # it was retried since
                        break
        execution = client.get(path_of(execution_id))
        shown.result(execution)
    except KeyboardInterrupt:
        where = "at the next start" if attached.is_own else f"on {attached.url}"
        click.echo(f"Interrupted; execution {execution_id} goes on {where}.", err=True)
        return INTERRUPTED
    return COMPLETED if execution["status"] == "completed" else FAILED


def _has_ended(client: Client, execution_id: str) -> bool:
    """Events that are read from the log may be older than a retry."""
    return client.get(path_of(execution_id))["status"] in ("completed", "failed", "cancelled")
