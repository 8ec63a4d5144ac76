"""The commands. Exit codes: 0 completed, 1 failed, 2 wrong use, 130 interrupted."""

from __future__ import annotations

import json
import os
import sys
import uuid
from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

import click
from rich.console import Console
from rich.table import Table

from adapters.cli import graph
from adapters.cli.client import Client, Refused
from adapters.cli.display import clock, describe, display, plain, say
from adapters.cli.factories import Attached, Factories
from adapters.cli.tokens import token_commands
from adapters.settings import Settings
from domain.errors import InvalidInput, RushesError

COMPLETED, FAILED, WRONG_USE, INTERRUPTED = 0, 1, 2, 130

ENDS = {"pipeline:completed", "pipeline:failed", "pipeline:cancelled"}


def commands(factories: Factories) -> None:
    """Run the command that ``sys.argv`` names, and exit with its code."""
    try:
        with rushes.make_context("rushes", sys.argv[1:], obj=factories) as context:
            exit_code = rushes.invoke(context)
        sys.stdout.flush()
    except click.exceptions.Exit as end:
        sys.exit(end.exit_code)
    except Refused as error:
        click.echo(f"Error: {error.message}", err=True)
        sys.exit(WRONG_USE if error.status < 500 else FAILED)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except InvalidInput as error:
        click.echo(f"Error: {error}", err=True)
        sys.exit(WRONG_USE)
    except RushesError as error:
        click.echo(f"Error: {error}", err=True)
        sys.exit(FAILED)
    except (click.Abort, KeyboardInterrupt):
        click.echo("Interrupted.", err=True)
        sys.exit(INTERRUPTED)
    except BrokenPipeError:
        _fall_silent()
        sys.exit(COMPLETED)
    sys.exit(exit_code or COMPLETED)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="rushes")
@click.option(
    "--config",
    type=click.Path(path_type=Path, dir_okay=False),
    help="The settings file, instead of the user's rushes.toml.",
)
@click.option("--database-url", help="The database (RUSHES_DATABASE_URL).", metavar="URL")
@click.pass_context
def rushes(context: click.Context, config: Path | None, database_url: str | None) -> None:
    """A camera card goes in, verified footage comes out.

    Every setting is a flag, a RUSHES_... variable in the environment, or a line in the
    settings file, in this order.
    """
    context.meta["config"] = config
    context.meta["database_url"] = database_url


@rushes.command()
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
    """Copy and verify the card at CARD, here and now, and show how it goes.

    Uses the server that runs, or starts one for as long as this takes. If it is
    interrupted, it goes on when Rushes is started the next time.
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
    settings = _settings(
        context,
        library=None if library is None else os.path.abspath(os.path.expanduser(library)),
        card_pipeline=pipeline,
    )
    with _factories(context).attach(settings, True) as attached:
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
        return _follow(client, attached, answer["execution_id"], as_json=as_json)


@rushes.command()
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
    """Read FOLDER again, and compare every file with the folder's ASC MHL manifests.

    FOLDER has a folder ascmhl in it, or folders below it have. Nothing is changed, unless
    --repair-from or --write ask for it; a damaged file is put aside and kept. Exit code 1 if
    anything listed is damaged or missing. If it is interrupted, it goes on where it was when
    Rushes is started the next time.
    """
    data: dict[str, Any] = {"folder": _folder(folder)}
    if repair_from is not None:
        data["repair_from"] = _folder(repair_from)
    if write:
        data["write"] = True
    if report is not None:
        above, name = os.path.split(os.path.abspath(report))
        data["report"] = os.path.join(_folder(above), name)
    settings = _settings(context)
    # The folders that a person names may be anywhere, on a server that this command starts.
    named = {data["folder"], data.get("repair_from", data["folder"])}
    if report is not None:
        named.add(os.path.dirname(data["report"]))
    settings = replace(settings, verify_roots=(*settings.verify_roots, *sorted(named)))
    with _factories(context).attach(settings, True) as attached:
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
        exit_code = _follow(client, attached, execution_id, as_json=as_json)
        if exit_code != COMPLETED:
            return exit_code
        return COMPLETED if client.get(_path(execution_id))["execution_data"]["intact"] else FAILED


@rushes.command()
@click.option("--host", help="The address to listen on (RUSHES_HOST).")
@click.option("--port", help="For HTTP and WebSocket (RUSHES_PORT); 0 picks a free one.")
@click.option("--grpc-port", help="For gRPC (RUSHES_GRPC_PORT); 0 picks a free one.")
@click.option("--library", help="Where footage goes (RUSHES_LIBRARY).", metavar="DIR")
@click.option(
    "--card-roots",
    help="Folders below which cards are mounted (RUSHES_CARD_ROOTS).",
    metavar="DIRS",
)
@click.option("--card-pipeline", help="What a card starts (RUSHES_CARD_PIPELINE).", metavar="TYPE")
@click.option(
    "--pipelines", help="Further pipelines, module:attribute (RUSHES_PIPELINES).", metavar="NAMES"
)
@click.option("--pools", help="Steps at once, copy=2,gpu=1 (RUSHES_POOLS).", metavar="SIZES")
@click.option(
    "--origins", help="Web pages that may use the server (RUSHES_ORIGINS).", metavar="URLS"
)
@click.option("--hosts", help="Further names of this server (RUSHES_HOSTS).", metavar="NAMES")
@click.option(
    "--tls-certificate", help="For HTTPS and gRPC (RUSHES_TLS_CERTIFICATE).", metavar="PEM"
)
@click.option("--tls-key", help="Its key (RUSHES_TLS_KEY).", metavar="PEM")
@click.option(
    "--tls-client-ca", help="Who signs gRPC clients (RUSHES_TLS_CLIENT_CA).", metavar="PEM"
)
@click.option(
    "--keep-days",
    help="How long executions that are over are kept; 0: for ever (RUSHES_KEEP_DAYS).",
    metavar="DAYS",
)
@click.option(
    "--insecure",
    is_flag=True,
    help="Let other machines in without TLS: what they say can be read on the way "
    "(RUSHES_INSECURE).",
)
@click.option(
    "--watch", is_flag=True, help="Watch for cards on this machine, as detect does (RUSHES_WATCH)."
)
@click.pass_context
def serve(context: click.Context, /, watch: bool, insecure: bool, **flags: str | None) -> None:
    """Serve detectors, frontends and services until stopped.

    Prints a line per address once it is ready, and goes on with whatever the last
    run left unfinished.
    """
    settings = _settings(
        context,
        watch="yes" if watch else None,
        insecure="yes" if insecure else None,
        **flags,
    )
    _factories(context).serve(settings, click.echo)


@rushes.command()
@click.option("--server", help="The server to tell (RUSHES_SERVER).", metavar="URL")
@click.option("--tls-ca", help="Who signs its certificate (RUSHES_TLS_CA).", metavar="PEM")
@click.option(
    "--card-roots",
    help="Folders below which cards are mounted (RUSHES_CARD_ROOTS).",
    metavar="DIRS",
)
@click.option(
    "--root",
    "roots",
    multiple=True,
    help="A folder below which every mount is a card, whatever its file system "
    "(RUSHES_WATCH_ROOTS).",
    metavar="DIR",
)
@click.option("--once", is_flag=True, help="Announce the cards that are in now, and end.")
@click.pass_context
def detect(
    context: click.Context,
    server: str | None,
    tls_ca: str | None,
    card_roots: str | None,
    roots: tuple[str, ...],
    once: bool,
) -> int:
    """Tell a server of the cards that are put in here, until stopped.

    A server that can't be reached is told when it is back, also after a restart.
    """
    settings = _settings(
        context,
        server=server,
        tls_ca=tls_ca,
        card_roots=card_roots,
        watch_roots=os.pathsep.join(map(os.path.abspath, roots)) or None,
    )
    return COMPLETED if _factories(context).detect(settings, once, _say_when) else FAILED


@rushes.command()
@click.argument("card", type=click.Path())
@click.pass_context
def eject(context: click.Context, card: str) -> None:
    """Unmount the card at CARD, so that it can be taken out."""
    click.echo(f"{_factories(context).eject(_settings(context), card)} can be taken out.")


@rushes.command(name="list")
@click.option("--status", help="Only those that are running, completed, failed, ...")
@click.option("--limit", type=click.IntRange(1, 200), default=20, show_default=True)
@click.option("--json", "as_json", is_flag=True, help="Print them as JSON lines.")
@click.pass_context
def list_executions(context: click.Context, status: str | None, limit: int, as_json: bool) -> None:
    """List executions, newest first."""
    with _looking(context) as attached:
        found = Client(attached).get("/api/pipeline", status=status, limit=limit)["executions"]
    if as_json:
        for execution in found:
            click.echo(_json(execution))
        return
    if not found:
        click.echo("No executions.")
        return
    table = Table(box=None, pad_edge=False)
    for title in ("ID", "PIPELINE", "STATUS", "PROGRESS", "CREATED", "CARD"):
        table.add_column(title, overflow="fold")
    for execution in found:
        table.add_row(
            str(execution["id"]),
            plain(execution["pipeline_type"]),
            execution["status"],
            f"{execution['progress']}%",
            execution["created_at"][:19].replace("T", " "),
            plain(execution["execution_data"].get("sd_path", "")),
        )
    _print(table)


@rushes.command()
@click.argument("execution_id", metavar="ID")
@click.option("--json", "as_json", is_flag=True, help="Print it as JSON.")
@click.pass_context
def status(context: click.Context, execution_id: str, as_json: bool) -> int:
    """Show an execution, by its uuid or its number."""
    with _looking(context) as attached:
        execution = Client(attached).get(_path(execution_id))
    if as_json:
        click.echo(_json(execution))
    else:
        _show(execution)
    return FAILED if execution["status"] in ("failed", "cancelled") else COMPLETED


@rushes.command()
@click.argument("job", type=click.IntRange(1), metavar="JOB")
@click.option("--json", "as_json", is_flag=True, help="Print the job with its verdict as JSON.")
@click.pass_context
def report(context: click.Context, job: int, as_json: bool) -> None:
    """Say where a job's reports are, and whether its card is safe to format.

    JOB is the number that status shows.
    """
    with _looking(context) as attached:
        found = Client(attached).get(f"/api/jobs/{job}")
    if as_json:
        click.echo(_json(found))
        return
    verdict = found["verdict"]
    if verdict is None:
        raise click.ClickException(f"job {job} has not come to its verdict, so has no report")
    for path in verdict.get("reports", ()):
        say(path)
    for reason in verdict["reasons"]:
        say(f"Not safe: {': '.join(filter(None, (reason['path'], reason['detail'])))}")
    say(verdict["words"])


@rushes.command()
@click.argument("execution_id", metavar="[ID]", required=False)
@click.option("--json", "as_json", is_flag=True, help="Print events as JSON lines.")
@click.option("--since", type=click.IntRange(0), help="Begin after this event.", metavar="EVENT")
@click.pass_context
def watch(
    context: click.Context, execution_id: str | None, as_json: bool, since: int | None
) -> int:
    """Show what happens, to one execution until it has ended, or to all."""
    with _factories(context).attach(_settings(context), True) as attached:
        client = Client(attached)
        if execution_id is not None:
            return _follow(client, attached, execution_id, as_json=as_json, since=since)
        for event in client.events("/api/events", since=since, transient=as_json):
            if as_json:
                click.echo(_json(event))
            else:
                say(f"{clock(event)}  {event['data']['execution_id']}  {describe(event)}")
    return COMPLETED


@rushes.command()
@click.argument("execution_id", metavar="ID")
@click.option("--json", "as_json", is_flag=True, help="Print events as JSON lines.")
@click.pass_context
def retry(context: click.Context, execution_id: str, as_json: bool) -> int:
    """Run a failed execution again from the step that failed, and show how it goes."""
    with _factories(context).attach(_settings(context), True) as attached:
        client = Client(attached)
        events = client.get(f"{_path(execution_id)}/events")["events"]
        client.post(f"{_path(execution_id)}/retry")
        since = events[-1]["id"] if events else None
        return _follow(client, attached, execution_id, as_json=as_json, since=since)


@rushes.command()
@click.argument("execution_id", metavar="ID")
@click.pass_context
def cancel(context: click.Context, execution_id: str) -> None:
    """Stop an execution for good; what it has copied stays."""
    _tell(context, f"{_path(execution_id)}/cancel")


@rushes.command()
@click.argument("execution_id", metavar="ID")
@click.pass_context
def pause(context: click.Context, execution_id: str) -> None:
    """Let nothing more of an execution start; what runs goes on to its end."""
    _tell(context, f"{_path(execution_id)}/pause")


@rushes.command()
@click.argument("execution_id", metavar="ID")
@click.pass_context
def resume(context: click.Context, execution_id: str) -> None:
    """Let a paused execution go on."""
    _tell(context, f"{_path(execution_id)}/resume")


@rushes.group(invoke_without_command=True)
@click.option("--json", "as_json", is_flag=True, help="Print it as JSON.")
@click.pass_context
def engine(context: click.Context, as_json: bool) -> None:
    """Show what the engine has to do, or pause and resume it as a whole."""
    if context.invoked_subcommand is None:
        with _looking(context) as attached:
            found = Client(attached).get("/api/engine")
        if as_json:
            click.echo(_json(found))
        else:
            _show_engine(found)


@engine.command(name="pause")
@click.pass_context
def pause_engine(context: click.Context) -> None:
    """Let nothing more start, also after a restart; what runs goes on to its end."""
    with _looking(context) as attached:
        _show_engine(Client(attached).post("/api/engine/pause"))


@engine.command(name="resume")
@click.pass_context
def resume_engine(context: click.Context) -> None:
    """Let what has waited begin, and go on."""
    with _looking(context) as attached:
        _show_engine(Client(attached).post("/api/engine/resume"))


@rushes.command()
@click.argument("execution_id", metavar="ID")
@click.argument("step_key", metavar="STEP")
@click.option("--json", "as_json", is_flag=True, help="Print events as JSON lines.")
@click.pass_context
def rerun(context: click.Context, execution_id: str, step_key: str, as_json: bool) -> int:
    """Do STEP and all that comes of it again, as a new execution, and show how it goes."""
    with _factories(context).attach(_settings(context), True) as attached:
        client = Client(attached)
        made = client.post(f"{_path(execution_id)}/rerun", {"from_step": step_key})
        return _follow(client, attached, made["execution_id"], as_json=as_json)


@rushes.command()
@click.argument("execution_id", metavar="ID")
@click.argument("step_key", metavar="STEP")
@click.pass_context
def skip(context: click.Context, execution_id: str, step_key: str) -> None:
    """Go on without a failed step; what depends on it runs without its output."""
    _tell(context, f"{_path(execution_id)}/steps/{quote(step_key, safe='')}/skip")


@rushes.command()
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
    path = f"{_path(execution_id)}/steps/{quote(step_key, safe='')}/complete"
    _tell(context, path, {"output": given})


@rushes.command()
@click.option("--json", "as_json", is_flag=True, help="Print them as JSON.")
@click.option("--graph", "graph_of", help="Print this pipeline's graph.", metavar="TYPE")
@click.option(
    "--format",
    "graph_format",
    type=click.Choice(["text", "mermaid"]),
    help="Of the graph: in layers for a terminal (the default), or as Mermaid.",
)
@click.pass_context
def pipelines(
    context: click.Context, as_json: bool, graph_of: str | None, graph_format: str | None
) -> None:
    """List the pipelines that there are, with their steps; or print the graph of one."""
    if graph_of is None and graph_format is not None:
        raise click.UsageError("--format is for a graph: name its pipeline with --graph TYPE")
    if graph_of is not None and as_json:
        raise click.UsageError("--graph is printed as text or as Mermaid (--format), not as JSON")
    with _looking(context) as attached:
        found = Client(attached).get("/api/pipelines")["pipelines"]
    if graph_of is not None:
        wanted = next((pipeline for pipeline in found if pipeline["type"] == graph_of), None)
        if wanted is None:
            types = ", ".join(pipeline["type"] for pipeline in found)
            raise click.UsageError(f"there is no pipeline {graph_of!a}, only {types}")
        click.echo(graph.as_mermaid(wanted) if graph_format == "mermaid" else graph.as_text(wanted))
        return
    if as_json:
        click.echo(_json(found))
        return
    for pipeline in found:
        click.echo(graph.heading(pipeline))
        for step in pipeline["steps"]:
            said = "; ".join(graph.notes(step, pipeline["steps"]))
            click.echo(f"  {graph.title(step)}{'  ' if said else ''}{said}")


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


def _tell(context: click.Context, path: str, body: Mapping[str, Any] | None = None) -> None:
    """Ask for a change, and say how the execution stands after it.

    A server of our own starts no work for that: it goes on when one is started to stay.
    """
    with _looking(context) as attached:
        execution = Client(attached).post(path, body)
    paused = ", paused" if execution["paused_at"] else ""
    click.echo(f"{execution['execution_id']} {execution['status']}{paused}")


def _path(execution_id: str) -> str:
    return f"/api/pipeline/{quote(execution_id, safe='')}"


def _json(value: object) -> str:
    return json.dumps(value)


def _follow(
    client: Client,
    attached: Attached,
    execution_id: str,
    *,
    as_json: bool,
    since: int | None = None,
) -> int:
    """Show an execution's events until it has ended; the exit code that says how."""
    path = f"{_path(execution_id)}/events"
    paused = _paused_since(client.get("/api/engine")["paused_at"])
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
                    _fall_silent()  # nobody looks any more; the footage is copied all the same
                if event["type"] in ENDS and _has_ended(client, execution_id):
                    later = client.get(path, since=event["id"])["events"]
                    if not any(each["type"] in ENDS for each in later):  # it was retried since
                        break
        execution = client.get(_path(execution_id))
        shown.result(execution)
    except KeyboardInterrupt:
        where = "at the next start" if attached.is_own else f"on {attached.url}"
        click.echo(f"Interrupted; execution {execution_id} goes on {where}.", err=True)
        return INTERRUPTED
    return COMPLETED if execution["status"] == "completed" else FAILED


def _say_when(line: str) -> None:
    try:
        click.echo(f"{datetime.now().astimezone():%H:%M:%S}  {line}")
    except BrokenPipeError:
        _fall_silent()  # nobody looks any more; cards are announced all the same


def _fall_silent() -> None:
    """Whoever read our output has had enough of it."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _has_ended(client: Client, execution_id: str) -> bool:
    """Events that are read from the log may be older than a retry."""
    return client.get(_path(execution_id))["status"] in ("completed", "failed", "cancelled")


def _paused_since(paused_at: str | None) -> str | None:
    if paused_at is None:
        return None
    return f"paused since {paused_at}: rushes engine resume lets it go on"


def _show_engine(found: Mapping[str, Any]) -> None:
    click.echo(f"The engine is {_paused_since(found['paused_at']) or 'not paused'}")
    click.echo(f"{found['running']} steps running, {found['waiting']} waiting for a slot")
    for name, what in (
        ("overdue", "was told to end, and keeps its slot until it has"),
        ("abandoned", "was told to end, and its slot went to others"),
    ):
        for each in found[name]:
            who = f"{each['step_key']} of execution {each['execution']}, attempt {each['attempt']}"
            click.echo(f"{name}: {who}, {what}")


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
        ("engine", _paused_since(execution["engine_paused_at"])),
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
    table = Table(box=None, pad_edge=False)
    for title in ("STEP", "STATUS", "ATTEMPT", "PROGRESS", "STARTED", "COMPLETED"):
        table.add_column(title, overflow="fold")
    for step in execution["steps"]:
        table.add_row(
            plain(step["step_key"]),
            step["status"],
            str(step["attempt"]),
            f"{step['progress']}%",
            (step["started_at"] or "")[11:19],
            (step["completed_at"] or "")[11:19],
        )
    _print(table)


def _print(table: Table) -> None:
    """Whole on a terminal's width; never cut where nobody is there to see a terminal."""
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = 200
    console.print(table)


def _factories(context: click.Context) -> Factories:
    factories = context.obj
    assert isinstance(factories, Factories)
    return factories


def _settings(context: click.Context, **flags: str | None) -> Settings:
    given = {"database_url": context.meta["database_url"], **flags}
    return _factories(context).load_settings(given, context.meta["config"])


def _looking(context: click.Context) -> Any:
    """A server to ask something; one of our own starts no work for that."""
    return _factories(context).attach(_settings(context), False)


rushes.add_command(token_commands(_looking, _print))
