"""Scale: what does a detector need to see of an object of each size (section 4.4.2)?"""

from __future__ import annotations

import argparse

from studies.pages import Page
from studies.running import Service, Wish
from whybox_client import Layout, LayoutObject
from whybox_client.pictures import Tile, contact_sheet, fit

SIDE = 256
SIDES = (20, 32, 48, 72, 108, 150)
LABEL = "climb"


def run(service: Service, page: Page, options: argparse.Namespace) -> None:
    """Invert one object alone, at sizes from the smallest to the largest that the detectors know."""
    extra = {"iterations": options.iterations} if options.iterations else {}
    params = {"single": True, "losses": "cls", **extra}
    page.text(
        f"One `{LABEL}` alone in the middle of {SIDE} px, its class score and nothing else, with sides from "
        f"{SIDES[0]} to {SIDES[-1]} px. The table: in how many of {options.seeds} pictures the detector "
        "finds it (IoU above 0.5)."
    )
    rows, tiles = [], []
    for model in service.models(*options.models):
        layouts = [
            Layout(SIDE, SIDE, [LayoutObject(LABEL, (SIDE / 2 - s / 2,) * 2 + (SIDE / 2 + s / 2,) * 2)])
            for s in SIDES
        ]
        wishes = [Wish(model, layout, seed, params) for layout in layouts for seed in range(options.seeds)]
        results = service.invert(wishes, what=model)
        by_size = [results[i * options.seeds : (i + 1) * options.seeds] for i in range(len(SIDES))]
        rows.append(
            [model, *(f"{sum(r.match.recall == 1 for r in some)} of {len(some)}" for some in by_size)]
        )
        tiles.append(
            [
                Tile(fit(some[0].image, 200), f"{model} {side}")
                for side, some in zip(SIDES, by_size, strict=True)
            ]
        )
    page.table(["model", *(f"{side} px" for side in SIDES)], rows)
    page.picture(contact_sheet(tiles), f"{LABEL}, from {SIDES[0]} to {SIDES[-1]} px")
