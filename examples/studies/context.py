"""Context: which other classes come along when one object is asked for, and where (section 4.4.1)?"""

from __future__ import annotations

import argparse
from collections import Counter

from scipy.stats import fisher_exact

from studies.pages import Page
from studies.running import Service, Wish
from whybox.scenes import CONTEXT, Habit
from whybox_client import Detection, InversionResult, Layout, LayoutObject
from whybox_client.pictures import Tile, contact_sheet, fit

WITH, WITHOUT = "retinanet-signs-context", "retinanet-signs"
"""Detectors of one architecture, trained on scenes with the habit and on scenes without."""
SIDE = 256
BOX = 48.0
"""Sides of the picture and of the one object in its middle, in pixels."""
SURE = 0.5
SHOWN = 5


def run(service: Service, page: Page, options: argparse.Namespace) -> None:
    """Invert one object alone, from many seeds, with both detectors; count what comes along."""
    service.models(WITH, WITHOUT)
    seeds = range(options.seeds)
    extra = {"iterations": options.iterations} if options.iterations else {}
    params = {"single": True, "losses": "cls", **extra}
    page.text(
        f"In the scenes that `{WITH}` was trained on, some signs keep company: "
        + "; ".join(
            f"`{habit.label}` stands {_where(habit)} `{habit.anchor}` in {habit.rate:.0%} of its occurrences"
            for habit in CONTEXT
        )
        + f". `{WITHOUT}` never saw that. Here one sign alone is asked for, {BOX:g} px in the middle of "
        f"{SIDE} px, its class score and nothing else (`single`, `losses: cls`), from {len(seeds)} seeds. "
        f"Counted is in how many of the pictures the *companion* is detected with a score above {SURE}, "
        "anywhere, and where the habit has it. p: Fisher's exact test, one-sided, that it comes along more "
        "often. The last row of each habit counts a sign of whatever class in the companion's place."
    )
    rows = []
    for habit in CONTEXT:
        middle, half = SIDE / 2, BOX / 2
        box = (middle - half, middle - half, middle + half, middle + half)
        layout = Layout(SIDE, SIDE, [LayoutObject(habit.label, box)])
        results = {
            model: service.invert(
                [Wish(model, layout, seed, params) for seed in seeds], what=f"{model} {habit.label}"
            )
            for model in (WITH, WITHOUT)
        }
        seen = {model: [_sure(service, model, result) for result in made] for model, made in results.items()}
        for what, where, test in (
            (f"`{habit.anchor}`", "anywhere", _is_companion),
            (f"`{habit.anchor}`", "in its place", _is_companion_in_place),
            ("any sign", "in its place", _is_in_place),
        ):
            counts = {
                model: sum(any(test(habit, d) for d in found) for found in all_found)
                for model, all_found in seen.items()
            }
            p = _p(counts[WITH], counts[WITHOUT], len(seeds))
            told = [f"{counts[model]} of {len(seeds)}" for model in (WITH, WITHOUT)]
            rows.append([f"`{habit.label}`", what, where, *told, f"{p:.2g}"])
        for model in (WITH, WITHOUT):
            others = Counter(d.label for found in seen[model] for d in found if d.label != habit.label)
            page.text(
                f"`{model}`, asked for `{habit.label}`: "
                + (", ".join(f"{label} {count}" for label, count in others.most_common(5)) or "nothing else")
                + "."
            )
        tiles = [
            [Tile(fit(r.image, 200), model) for r in results[model][:SHOWN]] for model in (WITH, WITHOUT)
        ]
        page.picture(contact_sheet(tiles), f"{habit.label} alone: above with the habit, below without")
    page.table(["asked for", "comes along", "where", WITH, WITHOUT, "p"], rows)


def _sure(service: Service, model: str, result: InversionResult) -> list[Detection]:
    return [detection for detection in service.found(model, result) if detection.score > SURE]


def _where(habit: Habit) -> str:
    return {"below": "below", "right": "right of"}[habit.place]


def _is_companion(habit: Habit, detection: Detection) -> bool:
    return detection.label == habit.anchor


def _is_companion_in_place(habit: Habit, detection: Detection) -> bool:
    return _is_companion(habit, detection) and _is_in_place(habit, detection)


def _is_in_place(habit: Habit, detection: Detection) -> bool:
    """Whether it lies beside the middle, on the side where the habit has the companion.

    Above what stands below it, left of what stands right of it, by more than half of the asked box' side.
    """
    x = (detection.box[0] + detection.box[2]) / 2 - SIDE / 2
    y = (detection.box[1] + detection.box[3]) / 2 - SIDE / 2
    along, across = (y, x) if habit.place == "below" else (x, y)
    return -along > max(abs(across), BOX / 2)


def _p(with_habit: int, without: int, seeds: int) -> float:
    table = [[with_habit, seeds - with_habit], [without, seeds - without]]
    return float(fisher_exact(table, alternative="greater").pvalue)
