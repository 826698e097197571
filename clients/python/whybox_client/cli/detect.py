"""`whybox detect`: the objects in images, as a table or JSON."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import click

from whybox_client.cli import options
from whybox_client.cli.tables import table

if TYPE_CHECKING:
    from whybox_client import Detections


@click.command()
@options.of_images
@click.option("--max-detections", type=click.IntRange(min=1), help="Most detections kept.  [default: 100]")
@click.option("--json", "as_json", is_flag=True, help="Print a line of JSON for each image.")
def detect(
    images: tuple[str, ...],
    url: str,
    model: str | None,
    score_threshold: float | None,
    labels: tuple[str, ...],
    timeout: float,
    max_detections: int | None,
    as_json: bool,
) -> None:
    """Find the objects in images."""
    from whybox_client.cli.progress import for_each

    with options.connect(url, timeout=timeout) as client:
        name = options.choose_model(client, model)

        def work(image: str) -> str:
            found = client.detect(
                name, image, score_threshold=score_threshold, max_detections=max_detections, labels=labels
            )
            if as_json:
                return json.dumps({"file": image, **found.to_dict()})
            return f"{image}\n{_listed(found)}\n"

        for_each(images, work)


def _listed(found: Detections) -> str:
    if not found:
        return "no detections"
    rows = [(d.index, d.label, round(d.score, 3), *(round(side, 1) for side in d.box)) for d in found]
    return table(("#", "LABEL", "SCORE", "X1", "Y1", "X2", "Y2"), rows)
