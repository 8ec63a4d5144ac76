"""The commands about executions: list, show, follow and steer them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

import click
from rich.console import Console

from adapters.cli.asking import COMPLETED, FAILED, asking, factories, path_of, settings_for
from adapters.cli.client import Client
from adapters.cli.display import clock, describe, plain, print_table, say, table
from adapters.cli.engine import paused_since
from adapters.cli.follow import follow


@click.command(name="list")
@click.option("--status", help="Only those that are running, completed, failed, ...")
@click.option("--limit", type=click.IntRange(1, 200), default=20, show_default=True)
@click.option("--json", "as_json", is_flag=True, help="Print them as JSON lines.")
@click.pass_context
def list_executions(context: click.Context, status: str | None, limit: int, as_json: bool) -> None:
    """List executions, newest first."""
    with asking(context) as attached:
        found = Client(attached).get("/api/pipeline", status=status, limit=limit)["executions"]
    if as_json:
        for execution in found:
            click.echo(json.dumps(execution))
        return
    if not found:
        click.echo("No executions.")
        return
    rows = table("ID", "PIPELINE", "STATUS", "PROGRESS", "CREATED", "CARD")
    for execution in found:
        rows.add_row(
            str(execution["id"]),
            plain(execution["pipeline_type"]),
            execution["status"],
            f"{execution['progress']}%",
            execution["created_at"][:19].replace("T", " "),
            plain(execution["execution_data"].get("sd_path", "")),
        )
    print_table(rows)


@click.command()
@click.argument("execution_id", metavar="ID")
@click.option("--json", "as_json", is_flag=True, help="Print it as JSON.")
@click.pass_context
def status(context: click.Context, execution_id: str, as_json: bool) -> int:
    """Show an execution, by its uuid or its number."""
    with asking(context) as attached:
        execution = Client(attached).get(path_of(execution_id))
    if as_json:
        click.echo(json.dumps(execution))
    else:
        _show(execution)
    return FAILED if execution["status"] in ("failed", "cancelled") else COMPLETED


@click.command()
@click.argument("execution_id", metavar="[ID]", required=False)
@click.option("--json", "as_json", is_flag=True, help="Print events as JSON lines.")
@click.option("--since", type=click.IntRange(0), help="Begin after this event.", metavar="EVENT")
@click.pass_context
def watch(
    context: click.Context, execution_id: str | None, as_json: bool, since: int | None
) -> int:
    """Show what happens to one execution, until it has ended, or to all."""
    with factories(context).attach(settings_for(context), True) as attached:
        client = Client(attached)
        if execution_id is not None:
            return follow(client, attached, execution_id, as_json=as_json, since=since)
        for event in client.events("/api/events", since=since, transient=as_json):
            if as_json:
                click.echo(json.dumps(event))
            else:
                say(f"{clock(event)}  {event['data']['execution_id']}  {describe(event)}")
    return COMPLETED


@click.command()
@click.argument("execution_id", metavar="ID")
@click.option("--json", "as_json", is_flag=True, help="Print events as JSON lines.")
@click.pass_context
def retry(context: click.Context, execution_id: str, as_json: bool) -> int:
    """Run a failed execution again from the step that failed.

    Shows how it goes.
    """
    with factories(context).attach(settings_for(context), True) as attached:
        client = Client(attached)
        events = client.get(f"{path_of(execution_id)}/events")["events"]
        client.post(f"{path_of(execution_id)}/retry")
        since = events[-1]["id"] if events else None
        return follow(client, attached, execution_id, as_json=as_json, since=since)


@click.command()
@click.argument("execution_id", metavar="ID")
@click.argument("step_key", metavar="STEP")
@click.option("--json", "as_json", is_flag=True, help="Print events as JSON lines.")
@click.pass_context
def rerun(context: click.Context, execution_id: str, step_key: str, as_json: bool) -> int:
    """Do STEP and all that comes of it again, as a new execution.

    Shows how it goes.
    """
    with factories(context).attach(settings_for(context), True) as attached:
        client = Client(attached)
        made = client.post(f"{path_of(execution_id)}/rerun", {"from_step": step_key})
        return follow(client, attached, made["execution_id"], as_json=as_json)


@click.command()
@click.argument("execution_id", metavar="ID")
@click.pass_context
def cancel(context: click.Context, execution_id: str) -> None:
    """Stop an execution for good; what it has copied stays."""
    _tell(context, f"{path_of(execution_id)}/cancel")


@click.command()
@click.argument("execution_id", metavar="ID")
@click.pass_context
def pause(context: click.Context, execution_id: str) -> None:
    """Let nothing more of an execution start; a copy stands still.

    Other steps that run go on to their end.
    """
    _tell(context, f"{path_of(execution_id)}/pause")


@click.command()
@click.argument("execution_id", metavar="ID")
@click.pass_context
def resume(context: click.Context, execution_id: str) -> None:
    """Let a paused execution go on."""
    _tell(context, f"{path_of(execution_id)}/resume")


@click.command()
@click.argument("execution_id", metavar="ID")
@click.argument("step_key", metavar="STEP")
@click.pass_context
def skip(context: click.Context, execution_id: str, step_key: str) -> None:
    """Go on without a failed step.

    What depends on it runs without its output.
    """
    _tell(context, f"{path_of(execution_id)}/steps/{quote(step_key, safe='')}/skip")


@click.command()
@click.argument("execution_id", metavar="ID")
@click.argument("step_key", metavar="STEP")
@click.option("--output", default="{}", help="What came of it, as a JSON object.", metavar="JSON")
@click.pass_context
def complete(context: click.Context, execution_id: str, step_key: str, output: str) -> None:
    """Say that a failed step's work has been done by hand, and go on."""
    try:
        given = json.loads(output)
    except ValueError as error:
        raise click.UsageError(f"--output is not JSON: {error}") from None
    path = f"{path_of(execution_id)}/steps/{quote(step_key, safe='')}/complete"
    _tell(context, path, {"output": given})


def _tell(context: click.Context, path: str, body: Mapping[str, Any] | None = None) -> None:
    """Ask for a change, and say how the execution stands after it.

    A server of our own starts no work for that: it goes on when one is started to stay.
    """
    with asking(context) as attached:
        execution = Client(attached).post(path, body)
    paused = ", paused" if execution["paused_at"] else ""
    click.echo(f"{execution['execution_id']} {execution['status']}{paused}")


def _show(execution: Mapping[str, Any]) -> None:
    console = Console(highlight=False)
    facts = [
        ("execution", execution["execution_id"]),
        ("number", execution["id"]),
        ("pipeline", execution["pipeline_type"]),
        ("status", execution["status"]),
        ("progress", f"{execution['progress']}%"),
        ("card", execution["execution_data"].get("sd_path")),
        ("job", execution["job_id"]),
        ("error", execution["error_message"]),
        ("paused", execution["paused_at"]),
        ("engine", paused_since(execution["engine_paused_at"])),
        ("waits for", ", ".join(execution["waits_for"]) or None),
        ("created", execution["created_at"]),
        ("completed", execution["completed_at"]),
    ]
    for name, value in facts:
        if value is not None:
            console.print(plain(f"{name:<10} {value}"), soft_wrap=True)
    for warning in execution["warnings"]:
        console.print(plain(f"{'warning':<10} {warning}"), soft_wrap=True)
    console.print()
    rows = table("STEP", "STATUS", "ATTEMPT", "PROGRESS", "STARTED", "COMPLETED")
    for step in execution["steps"]:
        rows.add_row(
            plain(step["step_key"]),
            step["status"],
            str(step["attempt"]),
            f"{step['progress']}%",
            (step["started_at"] or "")[11:19],
            (step["completed_at"] or "")[11:19],
        )
    print_table(rows)
