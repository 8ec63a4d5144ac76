"""``rushes token``: who is let in."""

from __future__ import annotations

import json
from typing import Any

import click

from adapters.cli.asking import asking
from adapters.cli.client import Client
from adapters.cli.display import plain, print_table, say, table
from domain.access import Role

DAY_S = 86_400


@click.group()
def token() -> None:
    """Make, list and revoke the tokens that let clients in.

    With the first one the server is locked: from then on whoever asks it anything
    shows a token, in RUSHES_TOKEN or as Authorization: Bearer. Your own commands on
    this machine need none.
    """


@token.command(name="new")
@click.option(
    "--role",
    type=click.Choice([role.value for role in Role]),
    required=True,
    help="What its bearer may do.",
)
@click.option("--name", default="", help="Whose it is, to be seen in lists and logs.")
@click.option("--days", type=click.FloatRange(min=0, min_open=True), help="How long it is good.")
@click.option("--json", "as_json", is_flag=True, help="Print it as JSON.")
@click.pass_context
def new(context: click.Context, role: str, name: str, days: float | None, as_json: bool) -> None:
    """Make a token, and print it: this once, and never again."""
    body = {
        "role": role,
        "name": name,
        "expires_in_s": None if days is None else days * DAY_S,
    }
    with asking(context) as attached:
        made = Client(attached).post("/api/tokens", body)
    click.echo(json.dumps(made) if as_json else made["token"])


@token.command(name="list")
@click.option("--json", "as_json", is_flag=True, help="Print them as JSON lines.")
@click.pass_context
def list_tokens(context: click.Context, as_json: bool) -> None:
    """List the tokens that are good, or were until they expired."""
    with asking(context) as attached:
        found = Client(attached).get("/api/tokens")["tokens"]
    if as_json:
        for each in found:
            click.echo(json.dumps(each))
        return
    rows = table("ID", "ROLE", "NAME", "MADE", "EXPIRES", "LAST USED")
    for each in found:
        rows.add_row(*(plain(cell) for cell in _row(each)))
    print_table(rows)


@token.command()
@click.argument("token_id", metavar="ID", type=click.IntRange(min=1))
@click.pass_context
def revoke(context: click.Context, token_id: int) -> None:
    """Let nobody in with a token any more.

    Who is connected with it is let go.
    """
    with asking(context) as attached:
        gone = Client(attached).post(f"/api/tokens/{token_id}/revoke")
    say(f"{gone['id']} {gone['role']} {gone['name']}".rstrip())


def _row(token: dict[str, Any]) -> tuple[str, ...]:
    return (
        str(token["id"]),
        token["role"],
        token["name"],
        _minute(token["created_at"]),
        "never" if token["expires_at"] is None else _minute(token["expires_at"]),
        "never" if token["last_used_at"] is None else _minute(token["last_used_at"]),
    )


def _minute(timestamp: str) -> str:
    return timestamp[:16].replace("T", " ")
