"""What is done with cards and libraries: ``rushes ingest``, ``verify``, ``report``, ``eject``."""

from __future__ import annotations

import json
import os
import uuid
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from adapters.cli.asking import COMPLETED, FAILED, asking, factories, path_of, settings_for
from adapters.cli.client import Client
from adapters.cli.display import say
from adapters.cli.follow import follow


@click.command()
@click.argument("card", type=click.Path(path_type=Path))
@click.option("--library", help="Where footage goes (RUSHES_LIBRARY).", metavar="DIR")
@click.option("--pipeline", help="The pipeline to run (RUSHES_CARD_PIPELINE).", metavar="TYPE")
@click.option("--again", is_flag=True, help="Copy what was imported before once more, too.")
@click.option("--json", "as_json", is_flag=True, help="Print events as JSON lines.")
@click.pass_context
def ingest(
    context: click.Context,
    card: Path,
    library: str | None,
    pipeline: str | None,
    again: bool,
    as_json: bool,
) -> int:
    """Copy and verify the card at CARD, and show how it goes.

    Uses the server that runs, or starts one for as long as this takes. If it is
    interrupted, it goes on when Rushes is started the next time. Exit code 1 also if CARD
    is empty and not safe to format, as a folder is that no card is mounted at.
    """
    path = os.path.realpath(card)
    try:
        path.encode()
    except UnicodeEncodeError:
        raise click.UsageError(
            f"{os.fsencode(path)!a}: the card's own path must be valid UTF-8 "
            "(names on the card need not be); mount it elsewhere"
        ) from None
    if not os.path.isdir(path):
        what = "is no folder" if os.path.exists(path) else "is not there"
        raise click.UsageError(f"{str(card)!a} {what}")
    if path == "/":
        raise click.UsageError("the root of the file system is no card")
    settings = settings_for(
        context,
        library=None if library is None else os.path.abspath(os.path.expanduser(library)),
        card_pipeline=pipeline,
    )
    with factories(context).attach(settings, True) as attached:
        if library is not None and not attached.is_own:
            raise click.UsageError(
                f"the server at {attached.url} has its own library; "
                "leave --library out, or start that server with another RUSHES_LIBRARY"
            )
        client = Client(attached)
        answer = client.post(
            "/api/pipeline",
            {
                "pipeline_type": settings.card_pipeline,
                "message_id": f"cli:{uuid.uuid4()}",
                "data": {"sd_path": path, "again": True} if again else {"sd_path": path},
            },
        )
        if answer["duplicate"] == "card" and not as_json:
            click.echo("This card is under way already; showing that.", err=True)
        execution_id = answer["execution_id"]
        exit_code = follow(client, attached, execution_id, as_json=as_json)
        if exit_code != COMPLETED:
            return exit_code
        found = client.get(path_of(execution_id))["execution_data"]
        is_nothing = found.get("file_count") == 0 and found.get("safe_to_format") is False
        return FAILED if is_nothing else COMPLETED


@click.command()
@click.argument("folder", type=click.Path())
@click.option(
    "--repair-from",
    help="Another copy of FOLDER, to take damaged and missing files from.",
    metavar="OTHER",
    type=click.Path(),
)
@click.option(
    "--write", is_flag=True, help="Add what was found to the manifests, as a new generation."
)
@click.option(
    "--report",
    help="Write what was found to FILE: a .csv of every file, or an .html of what was wrong.",
    metavar="FILE",
    type=click.Path(),
)
@click.option("--json", "as_json", is_flag=True, help="Print events as JSON lines.")
@click.pass_context
def verify(
    context: click.Context,
    folder: str,
    repair_from: str | None,
    write: bool,
    report: str | None,
    as_json: bool,
) -> int:
    """Read FOLDER again, and compare it with its manifests.

    Every file is compared with the ASC MHL manifests in its folder ascmhl, or in those of
    folders below it. Nothing is changed, unless --repair-from or --write ask for it; a damaged
    file is put aside and kept. Exit code 1 if anything listed is damaged or missing. If it is
    interrupted, it goes on where it was when Rushes is started the next time.
    """
    data: dict[str, Any] = {"folder": _folder(folder)}
    if repair_from is not None:
        data["repair_from"] = _folder(repair_from)
    if write:
        data["write"] = True
    if report is not None:
        above, name = os.path.split(os.path.abspath(report))
        data["report"] = os.path.join(_folder(above), name)
    settings = settings_for(context)
    # The folders that a person names may be anywhere, on a server that this command starts.
    named = {data["folder"], data.get("repair_from", data["folder"])}
    if report is not None:
        named.add(os.path.dirname(data["report"]))
    settings = replace(settings, verify_roots=(*settings.verify_roots, *sorted(named)))
    with factories(context).attach(settings, True) as attached:
        client = Client(attached)
        answer = client.post(
            "/api/pipeline",
            {
                "pipeline_type": "verify_folder",
                "message_id": f"cli:{uuid.uuid4()}",
                "data": data,
            },
        )
        execution_id = answer["execution_id"]
        exit_code = follow(client, attached, execution_id, as_json=as_json)
        if exit_code != COMPLETED:
            return exit_code
        found = client.get(path_of(execution_id))["execution_data"]
        return COMPLETED if found["intact"] else FAILED


@click.command()
@click.argument("job", type=click.IntRange(1), metavar="JOB")
@click.option("--json", "as_json", is_flag=True, help="Print the job with its verdict as JSON.")
@click.pass_context
def report(context: click.Context, job: int, as_json: bool) -> None:
    """Say where a job's reports are, and if its card is safe.

    JOB is the number that status shows.
    """
    with asking(context) as attached:
        found = Client(attached).get(f"/api/jobs/{job}")
    if as_json:
        click.echo(json.dumps(found))
        return
    verdict = found["verdict"]
    if verdict is None:
        raise click.ClickException(f"job {job} has not come to its verdict, so has no report")
    for path in verdict.get("reports", ()):
        say(path)
    for reason in verdict["reasons"]:
        say(f"Not safe: {': '.join(filter(None, (reason['path'], reason['detail'])))}")
    say(verdict["words"])


@click.command()
@click.argument("card", type=click.Path())
@click.pass_context
def eject(context: click.Context, card: str) -> None:
    """Unmount the card at CARD, so that it can be taken out."""
    click.echo(f"{factories(context).eject(settings_for(context), card)} can be taken out.")


def _folder(named: str) -> str:
    """The real path of a folder that is there."""
    path = os.path.realpath(named)
    if not os.path.isdir(path):
        what = "is no folder" if os.path.exists(path) else "is not there"
        raise click.UsageError(f"{named!a} {what}")
    try:
        path.encode()
    except UnicodeEncodeError:
        raise click.UsageError(
            f"{os.fsencode(path)!a}: the folder's own path must be valid UTF-8 "
            "(names below it need not be)"
        ) from None
    return path
