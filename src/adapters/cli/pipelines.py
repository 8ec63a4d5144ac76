"""``rushes pipelines``: what can be run, and how its steps hang together."""

from __future__ import annotations

import json

import click

from adapters.cli import graph
from adapters.cli.asking import asking
from adapters.cli.client import Client


@click.command()
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
    """List the pipelines with their steps, or print a graph."""
    if graph_of is None and graph_format is not None:
        raise click.UsageError("--format is for a graph: name its pipeline with --graph TYPE")
    if graph_of is not None and as_json:
        raise click.UsageError("--graph is printed as text or as Mermaid (--format), not as JSON")
    with asking(context) as attached:
        found = Client(attached).get("/api/pipelines")["pipelines"]
    if graph_of is not None:
        wanted = next((pipeline for pipeline in found if pipeline["type"] == graph_of), None)
        if wanted is None:
            types = ", ".join(pipeline["type"] for pipeline in found)
            raise click.UsageError(f"there is no pipeline {graph_of!a}, only {types}")
        click.echo(graph.as_mermaid(wanted) if graph_format == "mermaid" else graph.as_text(wanted))
        return
    if as_json:
        click.echo(json.dumps(found))
        return
    for pipeline in found:
        click.echo(graph.heading(pipeline))
        for step in pipeline["steps"]:
            said = "; ".join(graph.notes(step, pipeline["steps"]))
            click.echo(f"  {graph.title(step)}{'  ' if said else ''}{said}")
