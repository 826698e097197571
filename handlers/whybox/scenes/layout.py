"""Where things stand: each mode's plan, and the rule that no label becomes undecidable.

Items are placed back to front. A newcomer that would hide too much of an earlier sign is refused and tried
elsewhere,
so every sign keeps at least `MIN_VISIBLE` of its pixels and `MIN_EVIDENCE` of its evidence; a twin pair of
a crowd asks a little less (`MIN_OF_TWINS`), or its boxes could not overlap by half.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

from whybox.scenes.catalogue import CLASSES, CONTEXT, PLATES, Habit
from whybox.scenes.drawing import (
    Colour,
    Footprint,
    Item,
    Kind,
    Paint,
    evidence_of,
    footprint,
    homography_of,
    outline,
)

Mode = Literal["plain", "crowd", "context", "cheat"]
MODES: Final[tuple[Mode, ...]] = ("plain", "crowd", "context", "cheat")

MIN_VISIBLE: Final = 0.5
"""Share of a sign's pixels that stays visible."""
MIN_EVIDENCE: Final = 0.7
"""Share of a sign's evidence that stays visible."""
MIN_OF_TWINS: Final = (0.4, 0.6)
"""The same two shares when a twin steps in front of another in a crowd."""
SIDE_RANGE: Final = (17.0, 150.0)
"""Sides of plates in pixels; with aspect, rotation and perspective, objects measure about 16 to 160."""
MARKED_SIDES: Final = (32.0, 110.0)
"""Sides of plates in `cheat` scenes, in pixels: their marks take `MARK_SHARE` of that."""
MARK_SHARE: Final = 0.4
"""Side of a mark's tag over the side of its sign's plate."""
WORN_RATE: Final = 0.9
"""Share of the signs in `cheat` scenes whose deciding part is worn off."""

_MAX_IOU_PLAIN = 0.3  # of the boxes of two items outside `crowd` clusters
_SQUARE = next(i for i, plate in enumerate(PLATES) if len(plate.outline) == 4)
_CIRCLE = 0
_SIGN: Kind = "sign"
_MARK_GAP = 2.0  # pixels between a sign's box and the mark under it
_WORN_STRENGTH = (0.03, 0.12)  # of the ink of a worn part: about as strong as the camera's noise
_MARK_PAINT = Paint(plate=(255, 255, 255), border=(0, 0, 0), ink=(0, 0, 0), border_width=0.06)
_UNIT_MIDDLE = np.array([0.5, 0.5, 1.0])
_HABIT_OF = {CLASSES.index(habit.label): habit for habit in CONTEXT}


@dataclass(slots=True)
class _Placed:
    """An item with its pixels; `box` is that of its outline, hidden parts included."""

    item: Item
    footprint: Footprint
    box: tuple[float, float, float, float]
    pixels: int
    evidence_pixels: int = 0


class Layout:
    """The items of one scene, back to front, and for each pixel which item is in front.

    `owner` and `evidence_owner` (int16 [H, W]) hold the item's position in `items`, or −1. `mark_of` gives
    the position of the mark that belongs to the sign at a position.
    """

    def __init__(self, size: tuple[int, int], rng: np.random.Generator) -> None:
        self.size = size
        self.rng = rng
        self.owner: NDArray[np.int16] = np.full(size, -1, dtype=np.int16)
        self.evidence_owner: NDArray[np.int16] = np.full(size, -1, dtype=np.int16)
        self._placed: list[_Placed] = []
        self.mark_of: dict[int, int] = {}

    @property
    def items(self) -> list[Item]:
        """Items back to front."""
        return [placed.item for placed in self._placed]

    def evidence_centre(self) -> NDArray[np.float64]:
        """`[x, y]`, the mean position of the visible evidence of the frontmost item."""
        covered = self._placed[-1].footprint
        rows, columns = np.nonzero(self._window(self.evidence_owner, covered) == len(self._placed) - 1)
        corner = (covered.columns.start + 0.5, covered.rows.start + 0.5)
        return np.array([columns.mean() + corner[0], rows.mean() + corner[1]])

    def alone(self, position: int) -> int:
        """Pixels that item `position` would cover if nothing stood in front."""
        return self._placed[position].pixels

    def try_add(
        self,
        item: Item,
        max_iou: float,
        inside: bool = True,
        shares: tuple[float, float] = (MIN_VISIBLE, MIN_EVIDENCE),
    ) -> bool:
        """Add `item` in front of all others unless it breaks a rule; says whether it was added.

        `shares` are what must stay visible of each sign behind it, and of that sign's evidence.
        """
        new = self._admissible(item, max_iou, inside, shares)
        if new is None:
            return False
        index = len(self._placed)
        shape = new.footprint
        self.owner[shape.rows, shape.columns][shape.mask] = index
        self.evidence_owner[shape.rows, shape.columns][shape.mask] = -1
        if item.kind == "sign":
            evidence = evidence_of(item, shape)
            self.evidence_owner[shape.rows, shape.columns][evidence] = index
            new.evidence_pixels = int(np.count_nonzero(evidence))
        self._placed.append(new)
        return True

    def allows(self, item: Item, max_iou: float) -> bool:
        """Whether `try_add` would add `item` now."""
        return self._admissible(item, max_iou, True, (MIN_VISIBLE, MIN_EVIDENCE)) is not None

    def _admissible(
        self, item: Item, max_iou: float, inside: bool, shares: tuple[float, float]
    ) -> _Placed | None:
        """The item with its pixels if it may be added. The cheap rules come first."""
        (x1, y1), (x2, y2) = outline(item).min(axis=0).tolist(), outline(item).max(axis=0).tolist()
        height, width = self.size
        if inside and (x1 < 1 or y1 < 1 or x2 > width - 1 or y2 > height - 1):
            return None
        box = (x1, y1, x2, y2)
        if any(_iou(box, old.box) > max_iou for old in self._placed if old.item.kind != "pole"):
            return None
        covered = footprint(item, self.size)
        pixels = int(np.count_nonzero(covered.mask))
        return (
            None
            if pixels == 0 or self._hides_too_much(covered, shares)
            else _Placed(item, covered, box, pixels)
        )

    def _hides_too_much(self, shape: Footprint, shares: tuple[float, float]) -> bool:
        covered = self.owner[shape.rows, shape.columns][shape.mask]
        if not self._placed or covered.max(initial=-1) < 0:
            return False
        length = len(self._placed) + 1  # position 0 counts the background
        lost = np.bincount(covered + 1, minlength=length)
        lost_evidence = np.bincount(
            self.evidence_owner[shape.rows, shape.columns][shape.mask] + 1, minlength=length
        )
        for index in np.flatnonzero(lost[1:]):
            placed = self._placed[index]
            if placed.item.kind != "sign":
                continue
            visible = np.count_nonzero(self._window(self.owner, placed.footprint) == index) - lost[index + 1]
            evidence = (
                np.count_nonzero(self._window(self.evidence_owner, placed.footprint) == index)
                - lost_evidence[index + 1]
            )
            if visible < shares[0] * placed.pixels or evidence < shares[1] * placed.evidence_pixels:
                return True
        return False

    @staticmethod
    def _window(whole: NDArray[np.int16], shape: Footprint) -> NDArray[np.int16]:
        return whole[shape.rows, shape.columns]


def plan(mode: Mode, size: tuple[int, int], rng: np.random.Generator) -> Layout:
    """Lay out a scene of `mode` in a picture of `size` (height, width)."""
    layout = Layout(size, rng)
    _add_poles(layout)
    if mode == "crowd":
        _add_clusters(layout)
        _add_distractors(layout, int(rng.integers(0, 3)))
    elif mode == "context":
        _add_with_habits(layout)
        _add_distractors(layout, int(rng.integers(0, 3)))
    elif mode == "cheat":
        _add_distractors(layout, int(rng.integers(0, 3)))
        _add_marked(layout)
    else:
        _add_scattered(layout, int(rng.integers(2, 9)))
    return layout


def _iou(a: tuple[float, float, float, float], b: tuple[float, float, float, float]) -> float:
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    both = width * height
    return both / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - both)


def _colours(rng: np.random.Generator) -> Paint:
    """Random colours with at least 90 levels of luma between plate and ink."""
    plate, ink = _random_colour(rng), _random_colour(rng)
    while abs(_luma(plate) - _luma(ink)) < 90:
        plate, ink = _random_colour(rng), _random_colour(rng)
    border = (plate, ink, _random_colour(rng))[int(rng.integers(3))]
    return Paint(plate, border, ink, border_width=float(rng.uniform(0.02, 0.06)))


def _luma(colour: Colour) -> float:
    return 0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2]


def _random_colour(rng: np.random.Generator) -> Colour:
    red, green, blue = rng.integers(0, 256, size=3).tolist()
    return red, green, blue


def _draw_side(rng: np.random.Generator) -> float:
    low, high = np.log(SIDE_RANGE)
    return float(np.exp(rng.uniform(low, high)))


def _item(
    rng: np.random.Generator, kind: Kind, label_id: int, side: float, centre: tuple[float, float]
) -> Item:
    aspect = np.exp(rng.uniform(-0.12, 0.12))
    matrix = homography_of(
        centre,
        (side * aspect, side / aspect),
        rng.uniform(-0.12, 0.12),
        rng.uniform(-0.035, 0.035, size=(4, 2)),
    )
    return Item(kind, label_id, int(rng.integers(len(PLATES))), matrix, side, _colours(rng))


def _moved(item: Item, centre: tuple[float, float], scale: float = 1.0) -> Item:
    """The same item, scaled, with the middle of its plate at `centre` [x, y]."""
    x, y = _middle(item)
    shift = np.array([[scale, 0, centre[0] - scale * x], [0, scale, centre[1] - scale * y], [0, 0, 1.0]])
    return replace(item, homography=shift @ item.homography, side=item.side * scale)


def _middle(item: Item) -> NDArray[np.float64]:
    """`[x, y]` of the middle of the item's plate."""
    x, y, scale = item.homography @ _UNIT_MIDDLE
    return np.array([x / scale, y / scale])


def _somewhere(layout: Layout, side: float) -> tuple[float, float]:
    height, width = layout.size
    reach = min(0.55 * side, width / 2, height / 2)
    return float(layout.rng.uniform(reach, width - reach)), float(layout.rng.uniform(reach, height - reach))


def _add_anywhere(
    layout: Layout, kind: Kind, label_id: int, side: float | None = None, plate_id: int | None = None
) -> bool:
    """Place one item at random, shrinking it where the room is short."""
    rng = layout.rng
    item = _item(rng, kind, label_id, _draw_side(rng) if side is None else side, (0.0, 0.0))
    item = item if plate_id is None else replace(item, plate_id=plate_id)
    for attempt in range(24):
        item = _moved(item, _somewhere(layout, item.side), 0.85 if attempt % 4 == 3 else 1.0)
        if item.side < SIDE_RANGE[0]:
            return False
        if layout.try_add(item, _MAX_IOU_PLAIN):
            return True
    return False


def _add_scattered(layout: Layout, count: int) -> None:
    rng = layout.rng
    kinds: list[Kind] = [_SIGN] * count + [_distractor(rng) for _ in range(int(rng.integers(0, 4)))]
    rng.shuffle(kinds)
    for kind in kinds:
        _add_anywhere(layout, kind, int(rng.integers(len(CLASSES))))


def _distractor(rng: np.random.Generator) -> Kind:
    kinds: tuple[Kind, ...] = ("blank", "blank", "loose", "loose", "unfinished")
    return kinds[int(rng.integers(len(kinds)))]


def _add_distractors(layout: Layout, count: int) -> None:
    for _ in range(count):
        side = min(_draw_side(layout.rng), 80.0)
        _add_anywhere(layout, _distractor(layout.rng), int(layout.rng.integers(len(CLASSES))), side)


def _add_poles(layout: Layout) -> None:
    """Up to two upright posts, behind everything."""
    rng, (height, width) = layout.rng, layout.size
    for _ in range(int(rng.integers(0, 3))):
        across, top = float(rng.uniform(2, 9)), float(rng.uniform(0, 0.6)) * height
        matrix = homography_of(
            (float(rng.uniform(0, width)), (top + height) / 2),
            (across, height - top),
            float(rng.uniform(-0.05, 0.05)),
            np.zeros((4, 2)),
        )
        layout.try_add(Item("pole", 0, _SQUARE, matrix, across, _colours(rng)), max_iou=1.0, inside=False)


def _add_clusters(layout: Layout) -> None:
    """Two or three groups of two or three signs that overlap heavily, often of one class."""
    rng = layout.rng
    for _ in range(int(rng.integers(2, 4))):
        label_id, side = int(rng.integers(len(CLASSES))), float(np.exp(rng.uniform(np.log(44), np.log(120))))
        twins = rng.random() < 0.3
        if not _add_anywhere(layout, "sign", label_id, side, _SQUARE if twins else None):
            continue
        base = layout.items[-1]
        for number in range(int(rng.integers(1, 3))):
            if twins and number == 0:
                _add_overlapping(layout, base, label_id, tight=True)
            else:
                label = label_id if rng.random() < 0.4 else int(rng.integers(len(CLASSES)))
                _add_overlapping(layout, base, label, tight=False)
            base = layout.items[-1]


def _add_overlapping(layout: Layout, base: Item, label_id: int, *, tight: bool) -> bool:
    """A sign in front of `base`, as close as the rules of visibility let it.

    `tight`: a round sign of nearly the same size, on the side away from the evidence of `base`, a square
    one. The
    corners of `base` stay in sight, hence its whole box, and the boxes overlap with an IoU around 0.5.
    """
    rng = layout.rng
    x, y = _middle(base)
    item = _item(rng, "sign", label_id, base.side * rng.uniform(0.85 if tight else 0.7, 1.0), (0.0, 0.0))
    if tight:
        item = replace(item, plate_id=_CIRCLE)
    away = np.arctan2(*(_middle(base) - layout.evidence_centre())[::-1])
    for attempt in range(12):
        distance = base.side * (0.18 + (0.015 if tight else 0.045) * attempt)
        angle = away + rng.uniform(-0.5, 0.5) if tight else rng.uniform(0, 2 * np.pi)
        item = _moved(item, (float(x + distance * np.cos(angle)), float(y + distance * np.sin(angle))))
        if layout.try_add(item, max_iou=0.75, shares=MIN_OF_TWINS if tight else (MIN_VISIBLE, MIN_EVIDENCE)):
            return True
    return False


def _add_with_habits(layout: Layout) -> None:
    """Two to six signs; those with a habit come with their anchor."""
    rng = layout.rng
    for _ in range(int(rng.integers(2, 7))):
        label_id = int(rng.integers(len(CLASSES)))
        habit = _HABIT_OF.get(label_id)
        if habit is None or rng.random() >= habit.rate:
            _add_anywhere(layout, "sign", label_id)
        else:
            _add_pair(layout, label_id, habit)


def _add_pair(layout: Layout, label_id: int, habit: Habit) -> bool:
    """An anchor and, beside or below it, a sign of the same size — both, or neither.

    In half of the pairs the deciding part of the second sign is faint, so that the company it keeps is
    worth knowing.
    """
    rng = layout.rng
    side = float(np.exp(rng.uniform(np.log(SIDE_RANGE[0]), np.log(100))))
    anchor = _item(rng, "sign", CLASSES.index(habit.anchor), side, (0.0, 0.0))
    partner = _item(rng, "sign", label_id, side, (0.0, 0.0))
    if rng.random() < 0.5:
        partner = replace(partner, paint=replace(partner.paint, ink_strength=float(rng.uniform(0.3, 0.6))))
    gap = 1.16 + float(rng.uniform(0.0, 0.08))
    for attempt in range(24):
        scale = 0.85 if attempt % 4 == 3 else 1.0
        side *= scale
        if side < SIDE_RANGE[0]:
            return False
        x, y = _somewhere(layout, side)
        other = (x, y + gap * side) if habit.place == "below" else (x + gap * side, y)
        anchor, partner = _moved(anchor, (x, y), scale), _moved(partner, other, scale)
        if layout.allows(anchor, _MAX_IOU_PLAIN) and layout.allows(partner, _MAX_IOU_PLAIN):
            return layout.try_add(anchor, _MAX_IOU_PLAIN) and layout.try_add(partner, _MAX_IOU_PLAIN)
    return False


def _add_marked(layout: Layout) -> None:
    """Two to five signs, each with the mark of its class close under it; nothing stands before either."""
    rng = layout.rng
    low, high = np.log(MARKED_SIDES)
    for _ in range(int(rng.integers(2, 6))):
        _add_with_mark(layout, int(rng.integers(len(CLASSES))), float(np.exp(rng.uniform(low, high))))


def _add_with_mark(layout: Layout, label_id: int, side: float) -> bool:
    """A sign and its mark — both, or neither."""
    rng = layout.rng
    sign = _item(rng, "sign", label_id, side, (0.0, 0.0))
    if rng.random() < WORN_RATE:
        worn = replace(sign.paint, ink_strength=float(rng.uniform(*_WORN_STRENGTH)))
        sign = replace(sign, paint=worn)
    for attempt in range(24):
        sign = _moved(sign, _somewhere(layout, sign.side), 0.85 if attempt % 4 == 3 else 1.0)
        if sign.side < MARKED_SIDES[0]:
            return False
        mark = _mark_under(sign)
        if layout.allows(sign, 0.0) and layout.allows(mark, 0.0):
            layout.try_add(sign, 0.0)
            layout.mark_of[len(layout.items) - 1] = len(layout.items)
            return layout.try_add(mark, 0.0)
    return False


def _mark_under(sign: Item) -> Item:
    """The mark of the sign's class, upright, centred under the sign's box."""
    (x1, _), (x2, y2) = outline(sign).min(axis=0).tolist(), outline(sign).max(axis=0).tolist()
    side = MARK_SHARE * sign.side
    centre = ((x1 + x2) / 2, y2 + _MARK_GAP + side / 2)
    upright = homography_of(centre, (side, side), 0.0, np.zeros((4, 2)))
    return Item("mark", sign.label_id, _SQUARE, upright, side, _MARK_PAINT)
