"""`whybox explain`: for each image a picture of what the model looked at, and a JSON beside it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from whybox_client.cli import names, options
from whybox_client.cli.tables import suppressed_table, table

if TYPE_CHECKING:
    from whybox_client import Client, Explanation
    from whybox_client.models import ParameterValue
    from whybox_client.settings import ExplainSettings

_MOST_EXPLAINED = 10


def _split(_ctx: click.Context, _option: click.Parameter, value: str) -> list[str]:
    return [part.strip() for part in value.split(",") if part.strip()]


def _expected(
    _ctx: click.Context, _option: click.Parameter, value: str | None
) -> tuple[list[float], str] | None:
    """Read X1,Y1,X2,Y2,LABEL."""
    if value is None:
        return None
    *sides, label = value.split(",", 4)
    try:
        box = [float(side) for side in sides]
    except ValueError:
        box = []
    if len(box) != 4 or not label.strip():
        raise click.BadParameter(f"{value!r} is not X1,Y1,X2,Y2,LABEL")
    return box, label.strip()


@click.command()
@options.of_images
@click.option(
    "--targets",
    callback=_split,
    shell_complete=names.complete_targets,
    default="class",
    show_default=True,
    help="What to explain, comma-separated: class, class:LABEL, x1, y1, x2, y2, combined.",
)
@click.option(
    "--method", metavar="NAME", shell_complete=names.complete_method, help="How to explain.  [default: odam]"
)
@click.option(
    "--layer",
    metavar="NAME[+NAME...]",
    shell_complete=names.complete_layer,
    help="Whose features; several are combined.  [default: the model's for the method]",
)
@click.option(
    "--param",
    "params",
    multiple=True,
    callback=options.parameters,
    shell_complete=names.complete_param,
    metavar="NAME=VALUE",
    help="A parameter of the method; repeatable.",
)
@click.option(
    "--seconds",
    type=click.FloatRange(min=0, min_open=True),
    help="How long a method that draws samples may go on, beyond --timeout.  [default: as --timeout allows]",
)
@click.option(
    "--samples",
    type=click.IntRange(min=1),
    help="Most samples that such a method draws.  [default: the method's own]",
)
@click.option(
    "--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of the numbers that it draws."
)
@click.option("--evaluate", is_flag=True, help="Measure how good each map is, and print a table.")
@click.option(
    "--expected",
    callback=_expected,
    metavar="X1,Y1,X2,Y2,LABEL",
    help="Say instead why this object is not in the answer, and show what its best candidate looked at.",
)
@click.option(
    "--max-detections",
    type=click.IntRange(min=1),
    help="Most detections explained, best first.  [default: 10; with --expected 100]",
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
    nms_kind: str | None,
    nms_numbers: dict[str, float],
    suppressed: bool,
    timeout: float,
    retries: int,
    jobs: int,
    recursive: bool,
    continue_on_error: bool,
    targets: list[str],
    method: str | None,
    layer: str | None,
    params: dict[str, ParameterValue],
    seconds: float | None,
    samples: int | None,
    seed: int,
    evaluate: bool,
    expected: tuple[list[float], str] | None,
    max_detections: int | None,
    out: Path,
) -> None:
    """Show what the model looked at for each object in images, or in the images of folders.

    Writes NAME-explained.png (one row a detection: its box, then a map per target) and
    NAME-explained.json for each image.

    Of one image, a method that draws samples shows how far it is.
    """
    from whybox_client.cli.progress import files_of, for_each, grown

    if evaluate and expected is not None:
        raise click.UsageError(
            "--evaluate and --expected do not go together: a missed object is not measured"
        )
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
            why_not = explanation.why_not
            told = str(why_not).removesuffix(".") if why_not else f"{len(explanation)} detections"
            lines = [f"{file}: {told} -> {picture}"]
            if evaluate:
                lines.append(_faithfulness(explanation))
            if suppressed:
                lines.append(suppressed_table(explanation.suppressed))
            return "\n".join(lines)

        if max_detections is None and expected is None:
            max_detections = _MOST_EXPLAINED
        settings: ExplainSettings = {
            "method": method,
            "targets": targets,
            "layer": layer,
            "params": params,
            "seconds": seconds,
            "samples": samples,
            "seed": seed,
            "evaluate": evaluate,
            "score_threshold": score_threshold,
            "max_detections": max_detections,
            "labels": labels,
            "expected": expected,
            "nms": options.nms_of(nms_kind, nms_numbers),
            "explain_suppressed": suppressed,
        }
        if len(files) == 1 and method and _samples(client, name, method):
            answers = grown(client.explain_stream(name, files[0], **settings), samples)
        else:
            answers = client.explain_many(name, iter(files), on_error="return", concurrency=jobs, **settings)
        for_each(files, answers, tell, continue_on_error=continue_on_error)


def _samples(client: Client, model: str, method: str) -> bool:
    """Whether a method draws samples."""
    return any(one.sampling for one in client.model(model).methods if one.name == method)


def _faithfulness(explanation: Explanation) -> str:
    """Set the measures of each map under their names."""
    measures = sorted({name for heat_map in explanation.heat_maps for name in heat_map.faithfulness})
    if not measures:
        return "nothing was measured"
    rows = [
        (
            heat_map.detection.index,
            heat_map.detection.label,
            heat_map.target,
            *(
                round(heat_map.faithfulness[name], 4) if name in heat_map.faithfulness else "-"
                for name in measures
            ),
        )
        for heat_map in explanation.heat_maps
    ]
    return table(("#", "LABEL", "TARGET", *(name.upper() for name in measures)), rows)


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
