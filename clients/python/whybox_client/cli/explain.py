"""`whybox explain`: for each image a picture of what the model looked at, and a JSON beside it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from whybox_client.cli import options

if TYPE_CHECKING:
    from whybox_client import Explanation
    from whybox_client.models import ParameterValue


def _split(_ctx: click.Context, _option: click.Parameter, value: str) -> list[str]:
    return [part.strip() for part in value.split(",") if part.strip()]


def _parameters(
    _ctx: click.Context, _option: click.Parameter, values: Sequence[str]
) -> dict[str, ParameterValue]:
    """Read NAME=VALUE: a number, true or false, or else a string."""
    params: dict[str, ParameterValue] = {}
    for text in values:
        name, equals, value = text.partition("=")
        if not (name and equals):
            raise click.BadParameter(f"{text!r} is not NAME=VALUE")
        try:
            parsed = json.loads(value)
        except ValueError:
            parsed = value
        params[name] = parsed if isinstance(parsed, bool | int | float | str) else value
    return params


@click.command()
@options.of_images
@click.option(
    "--targets",
    callback=_split,
    default="class",
    show_default=True,
    help="What to explain, comma-separated: class, class:LABEL, x1, y1, x2, y2, combined.",
)
@click.option("--method", metavar="NAME", help="How to explain.  [default: odam]")
@click.option("--layer", metavar="NAME", help="Whose features.  [default: the model's for the method]")
@click.option(
    "--param",
    "params",
    multiple=True,
    callback=_parameters,
    metavar="NAME=VALUE",
    help="A parameter of the method; repeatable.",
)
@click.option(
    "--max-detections",
    type=click.IntRange(min=1),
    default=10,
    show_default=True,
    help="Most detections explained, best first.",
)
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    default="out",
    show_default=True,
    help="Folder for the pictures and JSON files.",
)
def explain(
    images: tuple[str, ...],
    url: str,
    model: str | None,
    score_threshold: float | None,
    labels: tuple[str, ...],
    timeout: float,
    retries: int,
    jobs: int,
    recursive: bool,
    continue_on_error: bool,
    targets: list[str],
    method: str | None,
    layer: str | None,
    params: dict[str, ParameterValue],
    max_detections: int,
    out: Path,
) -> None:
    """Show what the model looked at for each object in images, or in the images of folders.

    Writes NAME-explained.png (one row a detection: its box, then a map per target) and
    NAME-explained.json for each image.
    """
    from whybox_client.cli.progress import files_of, for_each

    files = files_of(images, recursive, leave_out=out)
    with options.connect(url, timeout=timeout, retries=retries) as client:
        name = options.choose_model(client, model)
        out.mkdir(parents=True, exist_ok=True)
        stems = _stems(files)

        def tell(file: str, explanation: Explanation) -> str:
            picture = out / f"{stems[file]}-explained.png"
            explanation.save(picture)
            answer = {"file": file, "picture": picture.name, **explanation.to_dict()}
            picture.with_suffix(".json").write_text(json.dumps(answer, indent=2) + "\n")
            return f"{file}: {len(explanation)} detections -> {picture}"

        answers = client.explain_many(
            name,
            iter(files),
            on_error="return",
            concurrency=jobs,
            method=method,
            targets=targets,
            layer=layer,
            params=params,
            score_threshold=score_threshold,
            max_detections=max_detections,
            labels=labels,
        )
        for_each(files, answers, tell, continue_on_error=continue_on_error)


def _stems(images: Sequence[str]) -> dict[str, str]:
    """Name the outputs after the images; a name that is taken gets a number."""
    stems: dict[str, str] = {}
    taken: set[str] = set()
    for image in dict.fromkeys(images):
        stem, number = Path(image).stem, 1
        while stem in taken:
            number += 1
            stem = f"{Path(image).stem}-{number}"
        taken.add(stem)
        stems[image] = stem
    return stems
