"""`whybox jobs`: for operators of several replicas that share a database of inversion jobs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from whybox_client.cli.failures import Failure, needs_extra

if TYPE_CHECKING:
    from whybox_service.settings import Settings

_DATABASE = click.option(
    "--database",
    metavar="URL",
    envvar="WHYBOX_JOBS_DATABASE",
    show_envvar=True,
    help="The replicas' Postgres.  [default: the file in WHYBOX_DATA]",
)


@click.group()
def jobs() -> None:
    """Who runs the inversion jobs, and who shall run a dead replica's."""


@jobs.command()
@_DATABASE
def executors(database: str | None) -> None:
    """Print each replica that has running jobs, by its executor id, and how many."""
    from whybox_service.jobs.database import JobsError

    settings = _settings(database)
    from whybox_service.jobs import adopting

    try:
        found = adopting.executors(settings)
    except JobsError as error:
        raise Failure(str(error)) from error
    for executor, count in found.items():
        click.echo(f"{executor}\t{count}")


@jobs.command()
@click.argument("executor")
@_DATABASE
def adopt(executor: str, database: str | None) -> None:
    """Hand the jobs of EXECUTOR, a replica that will not come back, to the others.

    They go on with the step after their last one.
    """
    from whybox_service.jobs.database import JobsError

    settings = _settings(database)
    from whybox_service.jobs import adopting

    try:
        found = adopting.adopt(settings, executor)
    except JobsError as error:
        raise Failure(str(error)) from error
    for job in found:
        click.echo(f"inversions/{job}")
    if not found:
        click.echo(f"{executor} has no running jobs", err=True)


def _settings(database: str | None) -> Settings:
    """Return the settings of the environment, with another database where one is given."""
    try:
        import dbos  # noqa: F401  # takes most of the time that the command needs
        from pydantic import SecretStr, ValidationError

        from whybox_service.settings import Settings
    except ModuleNotFoundError as error:
        raise needs_extra("service", f"no {error.name}") from error
    try:
        settings = Settings()
    except ValidationError as error:
        raise Failure(str(error)) from error
    return (
        settings if database is None else settings.model_copy(update={"jobs_database": SecretStr(database)})
    )
