"""The commands. Exit codes: 0 completed, 1 failed, 2 wrong use, 130 interrupted."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from adapters.cli import engine, executions, footage, pipelines, serving, tokens
from adapters.cli.asking import COMPLETED, FAILED, INTERRUPTED, WRONG_USE
from adapters.cli.client import Refused
from adapters.cli.display import fall_silent
from adapters.cli.factories import Factories
from domain.errors import InvalidInput, RushesError


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
        fall_silent()
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


for command in (
    footage.ingest,
    footage.verify,
    footage.report,
    footage.eject,
    serving.serve,
    serving.detect,
    executions.list_executions,
    executions.status,
    executions.watch,
    executions.retry,
    executions.rerun,
    executions.cancel,
    executions.pause,
    executions.resume,
    executions.skip,
    executions.complete,
    engine.engine,
    pipelines.pipelines,
    tokens.token,
):
    rushes.add_command(command)
