"""``rushes engine``: what the engine has to do, and its pause."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import click

from adapters.cli.asking import asking
from adapters.cli.client import Client


@click.group(invoke_without_command=True)
@click.option("--json", "as_json", is_flag=True, help="Print it as JSON.")
@click.pass_context
def engine(context: click.Context, as_json: bool) -> None:
    """Show what the engine has to do; pause it, or let it go on."""
    if context.invoked_subcommand is None:
        with asking(context) as attached:
            found = Client(attached).get("/api/engine")
        if as_json:
            click.echo(json.dumps(found))
        else:
            _show_engine(found)


@engine.command(name="pause")
@click.pass_context
def pause_engine(context: click.Context) -> None:
    """Let nothing more start, also after a restart.

    Copies stand still; other steps that run go on to their end.
    """
    with asking(context) as attached:
        _show_engine(Client(attached).post("/api/engine/pause"))


@engine.command(name="resume")
@click.pass_context
def resume_engine(context: click.Context) -> None:
    """Let what has waited begin, and go on."""
    with asking(context) as attached:
        _show_engine(Client(attached).post("/api/engine/resume"))


def _show_engine(found: Mapping[str, Any]) -> None:
    click.echo(f"The engine is {paused_since(found['paused_at']) or 'not paused'}")
    click.echo(f"{found['running']} steps running, {found['waiting']} waiting for a slot")
    for name, what in (
        ("overdue", "was told to end, and keeps its slot until it has"),
        ("abandoned", "was told to end, and its slot went to others"),
    ):
        for each in found[name]:
            who = f"{each['step_key']} of execution {each['execution']}, attempt {each['attempt']}"
            click.echo(f"{name}: {who}, {what}")


def paused_since(paused_at: str | None) -> str | None:
    if paused_at is None:
        return None
    return f"paused since {paused_at}: rushes engine resume lets it go on"
