"""Inversion transfer: invert with one detector, look with the others (section 4.2)."""

from __future__ import annotations

import argparse
import statistics

from studies.pages import Page
from studies.running import Service, Wish, ap50, scenes
from whybox_client.pictures import Tile, contact_sheet, fit

SHOWN = 4
"""Layouts in the picture."""


def run(service: Service, page: Page, options: argparse.Namespace) -> None:
    """Invert the same layouts with each model, have every model look at all of the pictures."""
    models = service.models(*options.models)
    layouts = scenes(options.layouts)
    params = {"preset": options.preset}
    if options.iterations:
        params["iterations"] = options.iterations
    made = {
        model: service.invert(
            [Wish(model, layout, seed, params) for seed, layout in enumerate(layouts)], what=model
        )
        for model in models
    }
    rows = []
    for model in models:
        seen = {
            other: ap50((result.layout, service.found(other, result)) for result in made[model])
            for other in models
        }
        others = [value for other, value in seen.items() if other != model]
        mean = f"**{statistics.mean(others):.2f}**" if others else "–"
        overlap = statistics.mean(result.match.mean_iou for result in made[model])
        rows.append([model, *(f"{value:.2f}" for value in seen.values()), mean, f"{overlap:.2f}"])
    iterations = f", {options.iterations} iterations" if options.iterations else ""
    page.text(
        f"{len(layouts)} layouts of held-out scenes, preset `{options.preset}`{iterations}. A row is "
        "inverted, a column looks: COCO's AP at IoU 0.5. On the diagonal a detector looks at its own; what "
        "counts is whether *others* see the objects. The last column is the mean IoU of a detector's own "
        "detections with the layout."
    )
    page.table(["inverted", *models, "others", "own mean IoU"], rows)
    tiles = [[Tile(fit(layout.picture(), 200), "layout") for layout in layouts[:SHOWN]]]
    tiles += [[Tile(fit(result.image, 200), model) for result in made[model][:SHOWN]] for model in models]
    page.picture(contact_sheet(tiles), "Layouts, and what each detector was made to see")
