"""Loss subsets: what does each head need to see (section 4.3)?"""

from __future__ import annotations

import argparse
import statistics

from studies.pages import Page
from studies.running import Service, Wish, scenes
from whybox_client.pictures import Tile, contact_sheet, fit

SUBSETS = ("cls", "reg", "cls+reg")
MASK_SUBSETS = (*SUBSETS, "mask", "cls+reg+mask")
SHOWN = 4


def run(service: Service, page: Page, options: argparse.Namespace) -> None:
    """Invert the same layouts for the classes alone, the boxes alone, the masks alone, and together."""
    extra = {"iterations": options.iterations} if options.iterations else {}
    page.text(
        f"The same {options.layouts} layouts of held-out scenes, inverted for the classes alone, the boxes "
        "alone, the masks alone where the detector has them, and together. *Found*: share of the objects "
        "that the detector finds, class and place. *Placed*: share that any detection overlaps by more than "
        "half, whatever it is called, and their mean IoU."
    )
    rows = []
    for model in service.models(*options.models):
        masks = service.has_masks(model)
        layouts = scenes(options.layouts, masks=masks)
        tiles = [[Tile(fit(layout.picture(), 200), "layout") for layout in layouts[:SHOWN]]]
        for subset in MASK_SUBSETS if masks else SUBSETS:
            wishes = [
                Wish(model, layout, seed, {"losses": subset, **extra}) for seed, layout in enumerate(layouts)
            ]
            results = service.invert(wishes, what=f"{model} {subset}")
            overlaps = [
                max((_iou(thing.box, found.box) for found in service.found(model, result)), default=0.0)
                for result in results
                for thing in result.layout.objects
            ]
            placed = [overlap for overlap in overlaps if overlap > 0.5]
            found = statistics.mean(result.match.recall for result in results)
            overlap = f"{statistics.mean(placed):.2f}" if placed else "–"
            share = f"{len(placed) / len(overlaps):.2f}"
            rows.append([model, f"`{subset}`", f"{found:.2f}", share, overlap])
            tiles.append([Tile(fit(result.image, 200), subset) for result in results[:SHOWN]])
        page.picture(contact_sheet(tiles), f"{model}: layouts, then the pictures for each loss")
    page.table(["model", "losses", "found", "placed", "mean IoU of those"], rows)


def _iou(one: tuple[float, float, float, float], other: tuple[float, float, float, float]) -> float:
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    if width <= 0 or height <= 0:
        return 0.0
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (one, other)]
    return width * height / (sum(areas) - width * height)
