"""`whybox calibrate`: which layer of a detector a method should look at."""

from __future__ import annotations

from pathlib import Path

import click

from whybox_client.cli.failures import needs_extra
from whybox_client.cli.offline import failures_told, own_pictures


@click.command()
@click.argument("recipe", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--method", default="odam", show_default=True, help="Whose layer is sought.")
@click.option(
    "--scenes", type=click.IntRange(1), default=40, show_default=True, help="Rendered scenes to measure on."
)
@click.option(
    "--images",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Measure on the pictures of this folder instead: by faithfulness alone.",
)
@click.option(
    "--pairs",
    type=click.IntRange(0),
    default=3,
    show_default=True,
    metavar="N",
    help="Also measure each two of the N best layers together; 0 or 1 for no pairs.",
)
@click.option(
    "--detections", type=click.IntRange(1), default=2, show_default=True, help="Most explained in a picture."
)
@click.option(
    "--cost",
    type=click.FloatRange(0, min_open=True),
    default=0.35,
    show_default=True,
    help="Most that a map of the chosen layer may take, over a forward pass.",
)
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
@click.option("--device", default="auto", show_default=True, help="cpu, cuda, or auto.")
@click.option(
    "--write/--no-write", default=True, show_default=True, help="Whether to write the choice into RECIPE."
)
def calibrate(
    recipe: Path,
    method: str,
    scenes: int,
    images: Path | None,
    pairs: int,
    detections: int,
    cost: float,
    seed: int,
    device: str,
    write: bool,
) -> None:
    """Measure which layer of a detector points best, and write it into its RECIPE; needs no service.

    Prints a table of every layer of the method, and of each two of the best ones together. Rendered scenes
    fit the demo detectors; give --images for a detector of your own.
    """
    try:
        from whybox.evaluation import calibrate as work
        from whybox.evaluation.command import pick_device
    except ImportError as error:
        raise needs_extra("train", str(error)) from error
    with failures_told():
        work.run(
            work.Options(
                recipe=recipe,
                method=method,
                scenes=scenes,
                pictures=own_pictures(recipe, images),
                pairs=pairs,
                detections=detections,
                cost=cost,
                seed=seed,
                device=pick_device(device),
                write=write,
            ),
            say=click.echo,
        )
