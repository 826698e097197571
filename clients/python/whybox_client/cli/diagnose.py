"""`whybox diagnose`: whether a detector's feature maps can be trusted to point."""

from __future__ import annotations

from pathlib import Path

import click

from whybox_client.cli.failures import needs_extra
from whybox_client.cli.offline import failures_told, own_pictures


@click.command()
@click.argument("recipe", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option(
    "--scenes", type=click.IntRange(2), default=8, show_default=True, help="Rendered scenes to measure on."
)
@click.option(
    "--images",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Measure on the pictures of this folder instead.",
)
@click.option(
    "--layer",
    "layers",
    multiple=True,
    metavar="NAME",
    help="On which features are hidden: level, or a stage of the backbone; repeatable.  [default: level]",
)
@click.option("--samples", type=click.IntRange(1), default=400, show_default=True, help="Masks for each map.")
@click.option(
    "--cells", type=click.IntRange(2, 64), default=8, show_default=True, help="Of a mask along each side."
)
@click.option(
    "--detections", type=click.IntRange(1), default=5, show_default=True, help="Most explained in a picture."
)
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
@click.option("--device", default="auto", show_default=True, help="cpu, cuda, or auto.")
@click.option(
    "--write/--no-write", default=True, show_default=True, help="Whether to write the figures into RECIPE."
)
def diagnose(
    recipe: Path,
    scenes: int,
    images: Path | None,
    layers: tuple[str, ...],
    samples: int,
    cells: int,
    detections: int,
    seed: int,
    device: str,
    write: bool,
) -> None:
    """Measure how far a detector moves what decides on its way from the picture to a layer; needs no service.

    Compares maps made by hiding pixels and by hiding features, prints the distance of their centres in units
    of the box, and writes it into the RECIPE, whose model then says so and warns of maps that may mislead.
    Rendered scenes fit the demo detectors; give --images for a detector of your own.
    """
    try:
        from whybox.evaluation import diagnose as work
        from whybox.evaluation.command import pick_device
    except ImportError as error:
        raise needs_extra("train", str(error)) from error
    with failures_told():
        work.run(
            work.Options(
                recipe=recipe,
                scenes=scenes,
                pictures=own_pictures(recipe, images),
                layers=tuple(dict.fromkeys(layers or ("level",))),
                samples=samples,
                cells=cells,
                detections=detections,
                seed=seed,
                device=pick_device(device),
                write=write,
            ),
            say=click.echo,
        )
