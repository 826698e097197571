"""`whybox invert`: a picture that a model recognises as a layout."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from whybox_client.cli import names, options
from whybox_client.cli.failures import Failure

if TYPE_CHECKING:
    from whybox_client import Layout
    from whybox_client.errors import RequestError
    from whybox_client.models import ParameterValue

# Where on the command line a field of the request comes from; the first that fits.
_TERMS = (
    ("params.preset", "--preset"),
    ("params", "--param"),
    ("image", "--from"),
    ("model", "--model"),
    ("seed", "--seed"),
    ("priority", "--priority"),
)


@click.command()
@click.argument("layout", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@options.url
@options.model
@click.option(
    "--out",
    type=click.Path(dir_okay=False, path_type=Path),
    callback=options.picture_file,
    help="File for the picture; its suffix says the format.  [default: out/LAYOUT-inverted.png]",
)
@click.option(
    "--preset",
    metavar="NAME",
    shell_complete=names.complete_preset,
    help="Where the parameters come from.  [default: the model's first preset]",
)
@click.option(
    "--param",
    "params",
    multiple=True,
    callback=options.parameters,
    shell_complete=names.complete_inversion_param,
    metavar="NAME=VALUE",
    help="A parameter that differs from the preset; repeatable.",
)
@click.option(
    "--seed", type=click.IntRange(0, 2**32 - 1), default=0, show_default=True, help="Of the random numbers."
)
@click.option(
    "--from",
    "start",
    type=click.Path(exists=True, dir_okay=False),
    help="Picture to start from, of the layout's size.  [default: as the parameters say]",
)
@click.option(
    "--priority",
    type=click.IntRange(0, 9),
    default=0,
    show_default=True,
    help="Among the queued jobs the highest runs first.",
)
@click.option("--image-id", metavar="ID", help="The image, where the file is COCO's and has several.")
@click.option("--boxes-only", is_flag=True, help="Leave the layout's masks out.")
@click.option("--detach", is_flag=True, help="Start the job and leave it; see `whybox inversions`.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON: the result, or with --detach the job.")
def invert(
    layout: Path,
    url: str,
    model: str | None,
    out: Path | None,
    preset: str | None,
    params: dict[str, ParameterValue],
    seed: int,
    start: str | None,
    priority: int,
    image_id: str | None,
    boxes_only: bool,
    detach: bool,
    as_json: bool,
) -> None:
    """Find a picture that a model recognises as a layout.

    LAYOUT is a JSON file: the contract's (width, height, objects with label and box or mask), or COCO's.

    The job runs in the service. Ctrl-C cancels it.
    """
    from whybox_client import errors
    from whybox_client.cli.following import finished

    wanted = _read(layout, image_id, boxes_only=boxes_only)
    with options.connect(url) as client:
        try:
            job = client.invert(
                wanted,
                model=options.choose_model(client, model),
                preset=preset,
                params=params,
                seed=seed,
                image=start,
                priority=priority,
            )
        except KeyboardInterrupt:
            click.echo("the job may have been started; see whybox inversions list", err=True)
            raise
        except errors.RequestError as error:
            raise Failure(_told(error, layout)) from error
        except ValueError as error:
            raise Failure(f"{layout}: {error}") from error
        if detach:
            click.echo(
                json.dumps(job.inversion.to_dict(), indent=2) if as_json else f"{job.name}: {job.state}"
            )
            return
        result = finished(job, cancel=True)
    out = out or Path("out", f"{layout.stem}-inverted.png")
    options.save(result.image, out)
    click.echo(json.dumps(result.to_dict(), indent=2) if as_json else f"{job.name}: {result.match} -> {out}")


def _read(path: Path, image_id: str | None, *, boxes_only: bool) -> Layout:
    """Read the layout.

    Raises:
        Failure: if it is none; the message names the file and the field.
    """
    from whybox_client import Layout

    try:
        layout = Layout.load(path, image_id)
        return layout.boxes_only() if boxes_only else layout
    except (OSError, ValueError) as error:
        raise Failure(f"{path}: {(isinstance(error, OSError) and error.strerror) or error}") from error


def _told(error: RequestError, layout: Path) -> str:
    """Say what is wrong, in the command line's own words."""
    facts = f"; expected {error.expected}" if error.expected else ""
    if error.field == "layout" or error.field.startswith("layout."):
        place = error.field.removeprefix("layout").removeprefix(".")
        hint = "; or --boxes-only" if place.endswith(".mask") else ""
        return f"{layout}: {place + ': ' if place else ''}{error.message}{facts}{hint}"
    for field, option in _TERMS:
        if error.field == field or error.field.startswith(f"{field}."):
            name = error.field.removeprefix(field).removeprefix(".")
            return f"{option}{' ' + name if name else ''}: {error.message}{facts}"
    return str(error)
