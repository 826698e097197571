"""`whybox detect`: the objects in images, as a table or JSON."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import click

from whybox_client.cli import options
from whybox_client.cli.tables import suppressed_table, table

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
    nms_kind: str | None,
    nms_numbers: dict[str, float],
    suppressed: bool,
    timeout: float,
    retries: int,
    jobs: int,
    recursive: bool,
    continue_on_error: bool,
    max_detections: int | None,
    as_json: bool,
) -> None:
    """Find the objects in images, or in the images of folders."""
    from whybox_client.cli.progress import files_of, for_each

    files = files_of(images, recursive)
    with options.connect(url, timeout=timeout, retries=retries) as client:

        def tell(file: str, found: Detections) -> str:
            if as_json:
                return json.dumps({"file": file, **found.to_dict()})
            listed = [file, _listed(found), *([suppressed_table(found.suppressed)] if suppressed else [])]
            return "\n".join(listed) + "\n"

        answers = client.detect_many(
            options.choose_model(client, model),
            iter(files),
            on_error="return",
            concurrency=jobs,
            score_threshold=score_threshold,
            max_detections=max_detections,
            labels=labels,
            nms=options.nms_of(nms_kind, nms_numbers),
            explain_suppressed=suppressed,
        )
        for_each(files, answers, tell, continue_on_error=continue_on_error)


def _listed(found: Detections) -> str:
    if not found:
        return "no detections"
    rows = [(d.index, d.label, round(d.score, 3), *(round(side, 1) for side in d.box)) for d in found]
    return table(("#", "LABEL", "SCORE", "X1", "Y1", "X2", "Y2"), rows)
