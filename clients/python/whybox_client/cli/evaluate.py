"""`whybox evaluate`: how good the maps of every method are, on scenes in which the truth is known."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

import click

from whybox_client.cli.failures import needs_extra
from whybox_client.cli.offline import failures_told

PAGE = Path("docs/results.md")


@click.command()
@click.option(
    "--scenes", type=click.IntRange(1), default=20, show_default=True, help="Scenes for each model."
)
@click.option(
    "-m",
    "--model",
    "models",
    multiple=True,
    metavar="NAME|RECIPE",
    help="A model; repeatable.  [default: every demo model whose weights are there]",
)
@click.option(
    "--method",
    "--methods",
    "methods",
    multiple=True,
    metavar="NAME[@LAYER][:PARAM=VALUE,…]",
    help="A method, with its layer and parameters; repeatable.  [default: every method as the model has it]",
)
@click.option("--measure", "measures", multiple=True, metavar="NAME", help="A measure; repeatable.")
@click.option(
    "--masks",
    type=click.IntRange(1),
    default=500,
    show_default=True,
    help="Samples of a method that takes many: the masks of D-RISE.",
)
@click.option(
    "--detections", type=click.IntRange(1), default=2, show_default=True, help="Most explained in a scene."
)
@click.option(
    "--iou",
    type=click.FloatRange(0, 1, max_open=True),
    default=0.75,
    show_default=True,
    help="Only detections with a higher IoU to their object.",
)
@click.option(
    "--randomise",
    type=click.IntRange(0),
    default=5,
    show_default=True,
    metavar="N",
    help="Compare maps before and after the weights are randomised, on N scenes.",
)
@click.option(
    "--nms",
    is_flag=True,
    help="Compare the kinds of NMS on crowded scenes instead: AP50, MR⁻², Jaccard index.",
)
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
@click.option("--device", default="auto", show_default=True, help="cpu, cuda, or auto.")
@click.option(
    "--model-store",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    default="model_store",
    show_default=True,
    help="Folder with the recipes.",
)
@click.option(
    "--page",
    type=click.Path(dir_okay=False, path_type=Path),
    default=PAGE,
    show_default=True,
    help="Markdown page to write the tables into, between its markers.",
)
@click.option("--write/--no-write", default=True, show_default=True, help="Whether to write the page.")
def evaluate(
    scenes: int,
    models: tuple[str, ...],
    methods: tuple[str, ...],
    measures: tuple[str, ...],
    masks: int,
    detections: int,
    iou: float,
    randomise: int,
    nms: bool,
    seed: int,
    device: str,
    model_store: Path,
    page: Path,
    write: bool,
) -> None:
    """Measure how good heat maps are, on rendered scenes; needs no service.

    Prints a table of methods and measures for each model, with confidence intervals and costs, and whether
    the order that the papers report holds, and writes them into a page.
    """
    try:
        from whybox.evaluation import command
    except ImportError as error:
        raise needs_extra("train", str(error)) from error
    if write and not page.parent.is_dir():
        raise click.UsageError(f"there is no folder {page.parent} for --page; or give --no-write")
    with failures_told():
        work = command.run_nms if nms else command.run
        work(
            command.Options(
                recipes=command.recipes_of(model_store, models, crowds=nms),
                scenes=scenes,
                methods=methods,
                measures=measures,
                masks=masks,
                detections=detections,
                overlap=iou,
                randomised=randomise,
                seed=seed,
                device=command.pick_device(device),
                page=page if write else None,
                command=shlex.join(["whybox", *sys.argv[1:]]),
            ),
            say=click.echo,
        )
