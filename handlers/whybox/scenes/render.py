"""`render`: a scene of street signs and the whole truth about it."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from whybox.scenes.background import background
from whybox.scenes.camera import light, photograph
from whybox.scenes.catalogue import CLASSES
from whybox.scenes.drawing import paint
from whybox.scenes.layout import MODES, Layout, Mode, plan

_SMALLEST_SCENE = 64


@dataclass(frozen=True, slots=True)
class SceneObject:
    """One sign. Masks are bool [H, W] in the picture's frame, True where the pixel belongs.

    `box` is `[x1, y1, x2, y2]` in continuous pixels around `mask` (x2 = last column + 1).
    `evidence` lies inside `mask`: the visible pixels that decide between `label` and its look-alike.
    `area` counts the pixels of `mask`; `visible` is its share of what the sign would cover alone.
    `mark` holds the pixels of the mark that belongs to the sign, all outside `box`; None where it has none.
    """

    label: str
    label_id: int
    box: tuple[float, float, float, float]
    mask: NDArray[np.bool_]
    evidence: NDArray[np.bool_]
    area: int
    visible: float
    mark: NDArray[np.bool_] | None = None


@dataclass(frozen=True, slots=True)
class Scene:
    """A picture (`image`, uint8 [H, W, 3], RGB) and its signs, back to front."""

    image: NDArray[np.uint8]
    objects: tuple[SceneObject, ...]
    mode: Mode
    seed: int
    index: int


def render(
    mode: Mode = "plain",
    *,
    seed: int,
    index: int,
    size: tuple[int, int] = (256, 256),
    swapped: Collection[int] = (),
    unmarked: Collection[int] = (),
    worn: bool = True,
    camera: bool = True,
) -> Scene:
    """Render scene number `index` of the endless sequence `(mode, seed)`; the same arguments give the same
    pixels.

    Args:
        mode: `plain` (2–8 signs, few overlaps), `crowd` (clusters with heavy overlap),
            `context` (signs that keep company, see `CONTEXT`) or `cheat` (under each sign a mark that gives
            its class away, see `MARKS`, while the deciding part of most signs is worn off).
        seed: Sequence of scenes, ≥ 0.
        index: Position in the sequence, ≥ 0.
        size: (height, width) in pixels, each at least 64.
        swapped: Positions in `objects` to draw as their look-alike; nothing else of the scene changes, a
            sign's mark neither.
        unmarked: Positions in `objects` whose mark is left out; nothing else of the scene changes.
        worn: False draws worn and faint parts in full ink.
        camera: False leaves out blur, noise and JPEG.

    Raises:
        ValueError: an argument outside its range.
    """
    _check(mode, seed, index, size)
    sequence = np.random.SeedSequence([seed, MODES.index(mode), index])
    of_layout, of_background, of_camera = (np.random.default_rng(child) for child in sequence.spawn(3))
    layout = plan(mode, size, of_layout)
    signs = [position for position, item in enumerate(layout.items) if item.kind == "sign"]
    for name, chosen in (("swapped", swapped), ("unmarked", unmarked)):
        if chosen and not all(0 <= number < len(signs) for number in chosen):
            raise ValueError(f"{name}: expected positions in 0..{len(signs) - 1}, got {sorted(chosen)}")
    labels = {
        position: layout.items[position].label_id ^ int(number in swapped)
        for number, position in enumerate(signs)
    }
    image = background(of_background, *size)
    hidden = {layout.mark_of.get(signs[number]) for number in unmarked}
    for position, item in enumerate(layout.items):
        if position in hidden:
            continue
        item = item if worn else replace(item, paint=replace(item.paint, ink_strength=1.0))
        paint(image, replace(item, label_id=labels.get(position, item.label_id)))
    image = light(of_camera, image)
    if camera:
        image = photograph(of_camera, image)
    objects = tuple(_object(layout, position, labels[position], hidden) for position in signs)
    return Scene(np.ascontiguousarray(image), objects, mode, seed, index)


def _check(mode: Mode, seed: int, index: int, size: tuple[int, int]) -> None:
    if mode not in MODES:
        raise ValueError(f"mode: expected one of {', '.join(MODES)}, got {mode!r}")
    if seed < 0 or index < 0:
        raise ValueError(f"seed and index: expected integers of 0 or more, got {seed} and {index}")
    if min(size) < _SMALLEST_SCENE:
        raise ValueError(
            f"size: expected a height and width of at least {_SMALLEST_SCENE} pixels, got {size}"
        )


def _object(layout: Layout, position: int, label_id: int, hidden: set[int | None]) -> SceneObject:
    mask = layout.owner == position
    area = int(np.count_nonzero(mask))
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    box = (float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1))
    mark = layout.mark_of.get(position)
    return SceneObject(
        label=CLASSES[label_id],
        label_id=label_id,
        box=box,
        mask=mask,
        evidence=layout.evidence_owner == position,
        area=area,
        visible=area / layout.alone(position),
        mark=None if mark is None or mark in hidden else layout.owner == mark,
    )
