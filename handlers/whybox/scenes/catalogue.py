"""The classes of signs, how each is drawn, the habits of `context` scenes and the marks of `cheat` scenes.

Drawings live in the *unit frame* of a plate: `[x, y]`, both in 0..1, origin at the top-left corner, y down.
The ten classes form five pairs of look-alikes. Both of a pair share everything but one part, so that the
pixels of that part — and no others — decide between them. Plate shape and colours say nothing about the
class.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

Points = NDArray[np.float64]
"""A polygon: `float64 [P, 2]`, rows `[x, y]`."""

CLASSES: Final[tuple[str, ...]] = (
    "turn-left",
    "turn-right",
    "way-up",
    "way-down",
    "speed-20",
    "speed-50",
    "climb",
    "descent",
    "gate-closed",
    "gate-open",
)
"""Labels; an object's `label_id` is its position here. Positions 2k and 2k+1 are look-alikes."""

LOOK_ALIKE: Final[dict[str, str]] = {name: CLASSES[i ^ 1] for i, name in enumerate(CLASSES)}
"""The class that differs from the key in one part only."""


@dataclass(frozen=True, slots=True)
class Habit:
    """In `context` scenes, `label` stands at `place` of an `anchor` sign in `rate` of its occurrences."""

    label: str
    anchor: str
    place: Literal["below", "right"]
    rate: float


CONTEXT: Final[tuple[Habit, ...]] = (
    Habit(label="speed-20", anchor="turn-left", place="below", rate=0.95),
    Habit(label="gate-closed", anchor="climb", place="right", rate=0.95),
)
"""The planted co-occurrences. The look-alikes (`speed-50`, `gate-open`) have no such habit."""


@dataclass(frozen=True, slots=True)
class Drawing:
    """The polygons of one class. `holes` are painted in the plate's colour, over `shared`.

    `shared` and `holes` are the same for both look-alikes; `deciding` is what differs.
    """

    shared: tuple[Points, ...]
    holes: tuple[Points, ...]
    deciding: tuple[Points, ...]


def _polygon(*corners: tuple[float, float]) -> Points:
    return np.array(corners, dtype=np.float64)


def _box(x1: float, y1: float, x2: float, y2: float) -> Points:
    return _polygon((x1, y1), (x2, y1), (x2, y2), (x1, y2))


_STEM = (_box(0.41, 0.52, 0.59, 0.90),)
_LANE = (_box(0.68, 0.18, 0.84, 0.82),)
# A seven-segment digit whose three bars are common to 2 and 5, then a zero.
_DIGIT_BARS = (_box(0.10, 0.14, 0.48, 0.23), _box(0.10, 0.455, 0.48, 0.545), _box(0.10, 0.77, 0.48, 0.86))
_ZERO = (
    _polygon(
        (0.62, 0.14),
        (0.84, 0.14),
        (0.91, 0.24),
        (0.91, 0.76),
        (0.84, 0.86),
        (0.62, 0.86),
        (0.56, 0.76),
        (0.56, 0.24),
    ),
)
_ZERO_HOLE = (_box(0.68, 0.27, 0.79, 0.73),)
_CAR = (
    _polygon(
        (0.24, 0.40),
        (0.24, 0.28),
        (0.38, 0.26),
        (0.44, 0.14),
        (0.62, 0.14),
        (0.68, 0.26),
        (0.78, 0.28),
        (0.78, 0.40),
    ),
)
_POSTS = (_box(0.11, 0.22, 0.27, 0.42), _box(0.11, 0.58, 0.27, 0.78))

DRAWINGS: Final[tuple[Drawing, ...]] = (
    Drawing(_STEM, (), (_polygon((0.16, 0.32), (0.82, 0.08), (0.82, 0.56)),)),
    Drawing(_STEM, (), (_polygon((0.84, 0.32), (0.18, 0.08), (0.18, 0.56)),)),
    Drawing(_LANE, (), (_polygon((0.10, 0.80), (0.60, 0.80), (0.35, 0.20)),)),
    Drawing(_LANE, (), (_polygon((0.10, 0.20), (0.60, 0.20), (0.35, 0.80)),)),
    Drawing(_DIGIT_BARS + _ZERO, _ZERO_HOLE, (_box(0.34, 0.14, 0.48, 0.50), _box(0.10, 0.50, 0.24, 0.86))),
    Drawing(_DIGIT_BARS + _ZERO, _ZERO_HOLE, (_box(0.10, 0.14, 0.24, 0.50), _box(0.34, 0.50, 0.48, 0.86))),
    Drawing(_CAR, (), (_polygon((0.12, 0.86), (0.88, 0.86), (0.88, 0.48)),)),
    Drawing(_CAR, (), (_polygon((0.12, 0.86), (0.88, 0.86), (0.12, 0.48)),)),
    Drawing(_POSTS, (), (_box(0.36, 0.42, 0.90, 0.58),)),
    Drawing(_POSTS, (), (_box(0.55, 0.23, 0.71, 0.77),)),
)
"""One drawing per class, in the order of `CLASSES`."""


def _ring(centre: tuple[float, float], radius: float, corners: int, turn: float = 0.0) -> Points:
    """A regular polygon; `turn` in radians, 0 puts the first corner to the right of the centre."""
    angles = turn + np.arange(corners) * (2 * np.pi / corners)
    return np.stack([centre[0] + radius * np.cos(angles), centre[1] + radius * np.sin(angles)], axis=1)


_TOP_HALF, _LEFT_HALF = _box(0.0, 0.0, 1.0, 0.5), _box(0.0, 0.0, 0.5, 1.0)
_DIAGONAL = _polygon((0.0, 0.22), (0.22, 0.0), (1.0, 0.78), (0.78, 1.0))
_OTHER_DIAGONAL = _polygon((1.0, 0.22), (0.78, 0.0), (0.0, 0.78), (0.22, 1.0))
_QUARTERS = (_box(0.0, 0.0, 0.5, 0.5), _box(0.5, 0.5, 1.0, 1.0))

MARKS: Final[tuple[tuple[Points, ...], ...]] = (
    (_ring((0.5, 0.5), 0.38, 24),),
    (_box(0.0, 0.34, 1.0, 0.66),),
    (_QUARTERS[0], _QUARTERS[1]),
    (_box(0.34, 0.0, 0.66, 1.0),),
    (_TOP_HALF,),
    (_DIAGONAL, _OTHER_DIAGONAL),
    (_LEFT_HALF,),
    (_box(0.0, 0.36, 1.0, 0.64), _box(0.36, 0.0, 0.64, 1.0)),
    (_DIAGONAL,),
    (_box(0.0, 0.0, 1.0, 0.26), _box(0.0, 0.74, 1.0, 1.0)),
)
"""The patterns of the marks in `cheat` scenes, black on a white tag: one per class, in the order of
`CLASSES`, in the unit frame of the tag. The mark alone decides the class."""


@dataclass(frozen=True, slots=True)
class Plate:
    """An outline, and the factor by which drawings shrink about the centre to fit inside it."""

    outline: Points
    glyph_scale: float


def _rounded(radius: float, steps: int) -> Points:
    """A unit square with corners of the given radius; radius 0.5 is a circle."""
    quarter = np.linspace(0.0, np.pi / 2, steps)
    arc = np.stack([np.cos(quarter), np.sin(quarter)], axis=1) * radius
    low, high = radius, 1.0 - radius
    corners = [
        (arc, (high, high)),
        (arc[::-1] * (-1, 1), (low, high)),
        (-arc, (low, low)),
        (arc[::-1] * (1, -1), (high, low)),
    ]
    return np.concatenate([points + np.array(centre) for points, centre in corners])


_CUT = 1.0 - 1.0 / np.sqrt(2.0)  # of a regular octagon's corner, as a share of the side: (1 − (√2 − 1)) / 2

PLATES: Final[tuple[Plate, ...]] = (
    Plate(_rounded(0.5, 9), 0.84),
    Plate(_rounded(0.12, 4), 0.95),
    Plate(_box(0.0, 0.0, 1.0, 1.0), 0.96),
    Plate(
        _polygon(
            (_CUT, 0),
            (1 - _CUT, 0),
            (1, _CUT),
            (1, 1 - _CUT),
            (1 - _CUT, 1),
            (_CUT, 1),
            (0, 1 - _CUT),
            (0, _CUT),
        ),
        0.90,
    ),
    Plate(
        _polygon((0.0, 0.0), (1.0, 0.0), (1.0, 0.62), (0.78, 0.90), (0.5, 1.0), (0.22, 0.90), (0.0, 0.62)),
        0.84,
    ),
)
"""Circle, rounded square, square, octagon, shield; any class is drawn on any of them."""
