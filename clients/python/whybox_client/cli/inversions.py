"""`whybox inversions`: the layout inversions there are, and what can be done with one."""

from __future__ import annotations

import json
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import click

from whybox_client.cli import names, options
from whybox_client.cli.tables import table
from whybox_proto.states import STATES

if TYPE_CHECKING:
    from whybox_client import Inversion


def _named(
    _ctx: click.Context, _argument: click.Parameter, value: str | tuple[str, ...]
) -> str | tuple[str, ...]:
    """Refuse what can name no inversion."""
    from whybox_client.requests import inversion_name

    try:
        return inversion_name(value) if isinstance(value, str) else tuple(map(inversion_name, value))
    except ValueError as error:
        raise click.BadParameter(str(error)) from error


_one = click.argument("inversion", metavar="ID", callback=_named, shell_complete=names.complete_inversion)
_several = click.argument(
    "inversions",
    metavar="ID...",
    nargs=-1,
    required=True,
    callback=_named,
    shell_complete=names.complete_inversion,
)
_as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
_out = click.option(
    "--out",
    type=click.Path(dir_okay=False, path_type=Path),
    callback=options.picture_file,
    help="File for the latest picture; its suffix says the format.",
)


@click.group()
def inversions() -> None:
    """List layout inversions, look at one, wait for it, cancel or delete it."""


@inversions.command("list")
@options.url
@click.option("--state", type=click.Choice(STATES), help="Only those in this state.")
@click.option(
    "--limit", type=click.IntRange(min=1), default=50, show_default=True, help="Most that are listed."
)
@_as_json
def list_(url: str, state: str | None, limit: int, as_json: bool) -> None:
    """List the inversions, newest first."""
    with options.connect(url) as client:
        found = [job.inversion for job in islice(client.inversions(state), limit)]
    if as_json:
        click.echo(json.dumps([one.to_dict() for one in found], indent=2))
        return
    rows = [
        (
            one.id,
            one.state,
            one.model,
            f"{one.progress.iteration}/{one.progress.iterations or '?'}",
            "-" if one.match is None else f"{one.match.mean_iou:.2f}",
            "-" if one.match is None else f"{one.match.recall:.2f}",
            one.create_time.strftime("%Y-%m-%d %H:%M:%S") if one.create_time else "-",
        )
        for one in found
    ]
    head = ("ID", "STATE", "MODEL", "ITERATION", "MEAN IOU", "RECALL", "CREATED (UTC)")
    click.echo(table(head, rows) if rows else "no inversions")


@inversions.command()
@_one
@options.url
@_as_json
@_out
def show(inversion: str, url: str, as_json: bool, out: Path | None) -> None:
    """Tell how one is, and write its latest picture."""
    with options.connect(url) as client:
        job = client.inversion(inversion)
        if out is not None:
            options.save(job.image(), out)
    click.echo(json.dumps(job.inversion.to_dict(), indent=2) if as_json else _describe(job.inversion))
    if out is not None and not as_json:
        click.echo(f"picture     {out}")


@inversions.command()
@_one
@options.url
@_as_json
@_out
def wait(inversion: str, url: str, as_json: bool, out: Path | None) -> None:
    """Wait for one to end; Ctrl-C ends the waiting alone."""
    from whybox_client.cli.following import finished

    with options.connect(url) as client:
        job = client.inversion(inversion)
        result = finished(job, cancel=False)
    if out is not None:
        options.save(result.image, out)
    told = f"{job.name}: {result.match}" + ("" if out is None else f" -> {out}")
    click.echo(json.dumps(result.to_dict(), indent=2) if as_json else told)


@inversions.command()
@_several
@options.url
def cancel(inversions: tuple[str, ...], url: str) -> None:
    """Cancel some; their last pictures are kept."""
    with options.connect(url) as client:
        for one in inversions:
            job = client.inversion(one).cancel()
            click.echo(f"{job.name}: {job.state}")


@inversions.command()
@_several
@options.url
def delete(inversions: tuple[str, ...], url: str) -> None:
    """Delete some and their pictures, for good; those that run end."""
    with options.connect(url) as client:
        for one in inversions:
            job = client.inversion(one)
            job.delete()
            click.echo(f"{job.name}: deleted")


def _describe(inversion: Inversion) -> str:
    progress, layout = inversion.progress, inversion.layout
    given = ", ".join(f"{name}={value}" for name, value in inversion.params.items())
    losses = ", ".join(f"{name} {value:.3g}" for name, value in progress.losses.items())
    error = inversion.error
    facts = {
        "name": inversion.name,
        "state": inversion.state,
        "model": inversion.model,
        "layout": f"{layout.width} x {layout.height}, {len(layout.objects)} objects",
        "parameters": given or "the model's own",
        "seed": inversion.seed,
        "priority": inversion.priority,
        "iteration": f"{progress.iteration} of {progress.iterations}" if progress.iterations else "",
        "found": f"{progress.found} objects" if progress.iteration else "",
        "losses": losses,
        "match": "" if inversion.match is None else inversion.match,
        "error": "" if error is None else f"{error.message} ({error.type})",
        "created": "" if inversion.create_time is None else f"{inversion.create_time:%Y-%m-%d %H:%M:%S} UTC",
        "updated": "" if inversion.update_time is None else f"{inversion.update_time:%Y-%m-%d %H:%M:%S} UTC",
    }
    return "\n".join(f"{name:<12}{fact}" for name, fact in facts.items() if fact != "")
