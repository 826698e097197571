"""Scenes whose layouts are inverted: held-out ones, with a few objects that are not too small."""

from __future__ import annotations

from whybox.scenes import Scene, render
from whybox.training.recipe import HELD_OUT_SEED

FIRST_SCENE = 20_000
"""Of the held-out scenes; those before it judge the detectors."""

MOST_OBJECTS, LEAST_SIDE = 4, 24.0


def layout_scenes(count: int) -> list[Scene]:
    """Return the first scenes with one to `MOST_OBJECTS` objects and no side below `LEAST_SIDE` pixels."""
    found: list[Scene] = []
    index = FIRST_SCENE
    while len(found) < count:
        scene = render("plain", seed=HELD_OUT_SEED, index=index)
        index += 1
        sides = [min(x2 - x1, y2 - y1) for x1, y1, x2, y2 in (thing.box for thing in scene.objects)]
        if 1 <= len(sides) <= MOST_OBJECTS and min(sides) >= LEAST_SIDE:
            found.append(scene)
    return found
