"""``rushes serve`` and ``detect``: what stays until it is stopped."""

from __future__ import annotations

import os
from datetime import datetime

import click

from adapters.cli.asking import COMPLETED, FAILED, factories, settings_for
from adapters.cli.display import fall_silent


@click.command()
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
    settings = settings_for(
        context,
        watch="yes" if watch else None,
        insecure="yes" if insecure else None,
        **flags,
    )
    factories(context).serve(settings, click.echo)


@click.command()
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
    settings = settings_for(
        context,
        server=server,
        tls_ca=tls_ca,
        card_roots=card_roots,
        watch_roots=os.pathsep.join(map(os.path.abspath, roots)) or None,
    )
    return COMPLETED if factories(context).detect(settings, once, _say_when) else FAILED


def _say_when(line: str) -> None:
    try:
        click.echo(f"{datetime.now().astimezone():%H:%M:%S}  {line}")
    except BrokenPipeError:
        fall_silent()  # nobody looks any more; cards are announced all the same
