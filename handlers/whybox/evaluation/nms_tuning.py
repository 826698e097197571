"""Choose a demo model's numbers of Odam-NMS on `crowd` scenes that no figure is taken of.

    python -m whybox.evaluation.nms_tuning model_store/retinanet-signs.yaml --scenes 100

Prints the best settings and writes the chosen ones into the recipe with ``--write``.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from tqdm import tqdm

from whybox.engine import Engine
from whybox.evaluation.nms import Crowd, Row, compare, crowds, settings_by_kind, table
from whybox.evaluation.recipe_edit import edit_recipe
from whybox.recipe import read_recipe

TUNING_SEED = 7_000_003
"""Of the scenes; figures are taken of another seed's."""

CORR_HIGH = (0.7, 0.8, 0.9, 0.95, 1.0)
CORR_LOW = (-1.0, 0.1, 0.2, 0.3, 0.4, 0.5)


def goodness(row: Row) -> float:
    """What is made as high as can be: AP50 + JI - MR⁻²."""
    values = {name: value for name, (value, _) in row.figures.values.items()}
    return values["ap50"] + values["ji"] - values["mr"]


def tune(engine: Engine, seen: Sequence[Crowd], *, progress: bool = True) -> list[Row]:
    """Try every combination of the two correlations, best first; of equals, the one nearest to greedy NMS.

    The IoU threshold stays as it is, so that nothing but the maps tells the kinds apart.

    Args:
        engine: with the detector.
        seen: the scenes.
        progress: show a bar.
    """
    base = settings_by_kind(engine.model)["odam"]
    grid = list(itertools.product(reversed(CORR_HIGH), CORR_LOW))
    rows: list[Row] = []
    for high, low in tqdm(grid, desc="settings", disable=not progress, mininterval=5):
        one = replace(base, corr_high=high, corr_low=low)
        rows += compare(seen, {"odam": one}, resamples=0)
    return sorted(rows, key=goodness, reverse=True)  # stable


def main() -> None:
    """Tune one model."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--scenes", type=int, default=100)
    parser.add_argument("--write", action="store_true", help="write the best into the recipe")
    options = parser.parse_args()
    recipe = read_recipe(options.recipe)
    engine = Engine.load(recipe, options.recipe.parent / str(recipe.weights))
    with tqdm(total=options.scenes, desc="scenes", mininterval=5) as bar:

        def tell() -> None:
            bar.update()

        seen = list(crowds(engine.detector, options.scenes, seed=TUNING_SEED, tell=tell))
    greedy = compare(seen, {"iou": settings_by_kind(engine.model)["iou"]}, resamples=0)
    rows = tune(engine, seen)
    print(f"{recipe.name}: {options.scenes} crowd scenes, seed {TUNING_SEED}\n")
    print(table([*greedy, *rows[:5]]))
    if options.write:
        best = rows[0].settings
        edit_recipe(
            options.recipe, {"nms": {"odam": {"corr_high": best.corr_high, "corr_low": best.corr_low}}}
        )


if __name__ == "__main__":
    main()
