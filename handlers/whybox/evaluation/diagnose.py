"""`whybox diagnose`: how far a detector moves what decides on its way from the picture to its feature maps.

D-RISE with the same masks on the image and on a layer, for detections of some pictures, gives the distance of
the centres of energy in units of the box. D-RISE on the image with other masks gives the noise: what the same
measure finds where nothing has moved.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NoReturn

import numpy as np
import torch
from tqdm import tqdm

from whybox.diagnosis import SECTION, misleads
from whybox.engine import Engine
from whybox.evaluation.bootstrap import Estimate, estimate, median_interval
from whybox.evaluation.cases import Case, cases, mode_of, own_cases
from whybox.evaluation.recipe_edit import edit_recipe
from whybox.evaluation.report import markdown
from whybox.evaluation.table import Variant, variants_of
from whybox.explaining import Explaining
from whybox.methods import METHODS
from whybox.methods.base import Map
from whybox.methods.perturbing import IMAGE
from whybox.patience import Patience
from whybox.recipe import read_recipe
from whybox.shift import LIMIT, centre_of_energy, spatial_shift
from whybox_proto.checks import MAX_DETECTIONS
from whybox_proto.v1 import explainer_pb2

OVERLAP = 0.5
"""IoU above which a detection in a scene fits its object."""

METHOD = "d_rise"

DIGITS = 4
"""Of the figures in a recipe."""


@dataclass(frozen=True)
class Options:
    """What is to be diagnosed.

    Attributes:
        recipe: of the model.
        scenes: rendered ones, for a detector that knows their labels.
        pictures: files of own pictures; where there are some, no scene is rendered.
        layers: on which features are hidden.
        samples: masks for each map.
        cells: of a mask along each side.
        detections: most that are explained in a picture.
        seed: of the masks, and of the draw of detections.
        device: where the model runs.
        write: whether to write the figures into the recipe.
    """

    recipe: Path
    scenes: int = 8
    pictures: Sequence[Path] = ()
    layers: Sequence[str] = ("level",)
    samples: int = 400
    cells: int = 8
    detections: int = 5
    seed: int = 0
    device: str = "cpu"
    write: bool = True


@dataclass(frozen=True)
class Moved:
    """From the centre of one map's energy to another's.

    Attributes:
        x, y: in widths and heights of the box; positive to the right and down.
        inward: the part of it that leads to the middle of the box; 0 where the first map's centre is there.
        room: distance of the first map's centre from the middle: no way inward is longer.
    """

    x: float
    y: float
    inward: float
    room: float

    @property
    def distance(self) -> float:
        """Length, in units of the box."""
        return math.hypot(self.x, self.y)

    @classmethod
    def between(cls, first: Map, other: Map, box: tuple[float, float, float, float]) -> Moved:
        """Compare two maps of a detection.

        Args:
            first: in image space.
            other: in feature space, or in image space with other masks.
            box: of the detection, [x1, y1, x2, y2] in the image frame.
        """
        shift = spatial_shift(first, other, box)
        x, y = centre_of_energy(first)
        x1, y1, x2, y2 = box
        to_x, to_y = ((x1 + x2) / 2 - x) / (x2 - x1), ((y1 + y2) / 2 - y) / (y2 - y1)
        room = math.hypot(to_x, to_y)
        return cls(shift.x, shift.y, (shift.x * to_x + shift.y * to_y) / room if room else 0.0, room)


@dataclass
class Diagnosis:
    """What was measured of one detector.

    Attributes:
        samples, cells: of the maps.
        pictures: for each detection, the picture it is in.
        noise: for each detection, what other masks move.
        moved: for each layer, what the detector moves, detection by detection.
    """

    samples: int
    cells: int
    pictures: list[int] = field(default_factory=list)
    noise: list[Moved] = field(default_factory=list)
    moved: dict[str, list[Moved]] = field(default_factory=dict)

    def median(self, moved: Sequence[Moved]) -> Estimate:
        """Return the median distance, with its interval over pictures."""
        distances = [one.distance for one in moved]
        low, high = median_interval(distances, self.pictures)
        return Estimate(float(np.median(distances)), low, high, len(distances))

    def above(self, moved: Sequence[Moved]) -> Estimate:
        """Return the share of the detections that move by more than the limit."""
        return estimate([float(one.distance > LIMIT) for one in moved], self.pictures)

    def mean(self, moved: Sequence[Moved], part: str) -> Estimate:
        """Return the mean of a signed part: x, y or inward."""
        return estimate([getattr(one, part) for one in moved], self.pictures)

    @property
    def room(self) -> float:
        """Median distance of the centres in image space from the middle of their box."""
        return float(np.median([one.room for one in self.noise]))

    def misleads(self, layer: str) -> bool:
        """Whether maps of a layer may mislead; see `whybox.diagnosis.misleads`."""
        found, noise = self.median(self.moved[layer]), self.median(self.noise)
        return misleads(median=found.mean, low=found.low, noise=noise.mean, limit=LIMIT)


def run(options: Options, say: Callable[[str], None] = print) -> Diagnosis:
    """Measure, tell, and write the figures into the recipe.

    Raises:
        ContractError: for a layer on which no features can be hidden, or a bad number of samples or cells.
        ValueError: if fewer than two pictures have a detection as large as a mask's cell, a file is no
            picture, or the layer is the image itself.
    """
    recipe = read_recipe(options.recipe)
    engine = Engine.load(recipe, options.recipe.parent / str(recipe.weights), options.device)
    with tqdm(
        total=len(options.pictures) or options.scenes, desc=engine.model.name, unit="picture", disable=None
    ) as bar:
        found = diagnose(engine, _cases(engine, options), options, tell=lambda: _tick(bar))
    kind = "pictures" if options.pictures else f"`{mode_of(engine.model.name)}` scenes"
    say(f"### {engine.model.name}: {_counts(found, kind)}\n\n{table(found)}\n{verdict(found)}")
    if options.write:
        edit_recipe(options.recipe, changes(found, "pictures" if options.pictures else "scenes"))
    return found


def diagnose(
    engine: Engine,
    found: Iterator[Case | None],
    options: Options,
    tell: Callable[[], None] = lambda: None,
) -> Diagnosis:
    """Measure the shift of the detections of some pictures; see `run`.

    Args:
        engine: with the detector.
        found: the detections, picture by picture; None for a picture without any.
        options: layers, samples, cells, most detections of a picture, seed.
        tell: called after each picture.
    """
    if IMAGE in options.layers:
        able = ", ".join(layer.name for layer in engine.model.layers if layer.kind != "roi")
        raise ValueError(f"layers: expected some of {able}; they are compared with {IMAGE!r} itself")
    asked = f":samples={options.samples},cells={options.cells}"
    image, *layers = variants_of(engine, [f"{METHOD}@{layer}{asked}" for layer in (IMAGE, *options.layers)])
    explaining = Explaining(engine.recipe, engine.detector, engine.model)
    diagnosis = Diagnosis(options.samples, options.cells, moved={layer: [] for layer in options.layers})
    random = np.random.default_rng(options.seed)
    for case in found:
        chosen = None if case is None else _large(case, options)
        if chosen is not None:
            seed, other_seed = (int(drawn) for drawn in random.integers(2**32, size=2))
            first = _maps(engine, explaining, chosen, image, seed)
            other = _maps(engine, explaining, chosen, image, other_seed)
            boxes = [(x1, y1, x2, y2) for x1, y1, x2, y2 in chosen.found.boxes.tolist()]
            diagnosis.pictures += [chosen.number] * len(boxes)
            diagnosis.noise += map(Moved.between, first, other, boxes)
            for layer, variant in zip(options.layers, layers, strict=True):
                made = _maps(engine, explaining, chosen, variant, seed)
                diagnosis.moved[layer] += map(Moved.between, first, made, boxes)
        tell()
    if len(set(diagnosis.pictures)) < 2:
        raise ValueError(
            f"{engine.model.name}: expected detections as large as a mask's cell (1/{options.cells} of each "
            f"side) in two pictures or more; got them in {len(set(diagnosis.pictures))}"
        )
    return diagnosis


def table(found: Diagnosis) -> str:
    """Write the figures of each layer, and of the noise, in units of the box."""
    rows = [
        [
            name,
            str(found.median(moved)),
            str(found.above(moved)),
            *(str(found.mean(moved, part)) for part in ("x", "y", "inward")),
        ]
        for name, moved in (*found.moved.items(), ("noise: other masks on the image", found.noise))
    ]
    head = ["from the image to", "median distance", f"above {LIMIT:g}", "mean x", "mean y", "mean inward"]
    return markdown(head, rows)


def verdict(found: Diagnosis) -> str:
    """Say of each layer whether its maps may mislead, and how long a shift inward could have been."""
    lines = []
    for layer, moved in found.moved.items():
        median, noise = found.median(moved), found.median(found.noise)
        if found.misleads(layer):
            why = f"{median.mean:.3f} is above {LIMIT:g}, and surely above the noise: its maps may mislead"
        elif median.mean > LIMIT:
            why = f"{median.mean:.3f} is above {LIMIT:g}, but not surely above the noise: take more samples"
        else:
            why = f"{median.mean:.3f} is not above {LIMIT:g}"
            why += "" if median.low > noise.mean else ", nor surely above the noise"
        lines.append(f"{layer}: {why}.")
    unseen = "" if found.room > LIMIT else ", so none above the limit can be seen"
    lines.append(
        f"In the image the centres lie a median {found.room:.3f} of the box from its middle: there is no "
        f"room for a longer shift inward{unseen}."
    )
    return "\n".join(lines)


def changes(found: Diagnosis, kind: str) -> dict[str, object]:
    """Return the fields of the recipe that a diagnosis changes.

    Args:
        found: what was measured.
        kind: of the pictures, for people.
    """
    noise = found.median(found.noise).mean
    recorded = {}
    for layer, moved in found.moved.items():
        median = found.median(moved)
        figures = {
            "median": median.mean,
            "low": median.low,
            "high": median.high,
            "noise": noise,
            "limit": LIMIT,
            "above": found.above(moved).mean,
            **{part: found.mean(moved, part).mean for part in ("x", "y", "inward")},
            "room": found.room,
        }
        recorded[layer] = {
            **{name: round(value, DIGITS) for name, value in figures.items()},
            "measured_on": _counts(found, kind),
        }
    return {"diagnosis": {SECTION: recorded}}


def _counts(found: Diagnosis, kind: str) -> str:
    pictures = len(set(found.pictures))
    return (
        f"{len(found.pictures)} detections in {pictures} {kind}, {found.samples} masks of {found.cells} cells"
    )


def _cases(engine: Engine, options: Options) -> Iterator[Case | None]:
    """Yield all detections that could be chosen; `_large` chooses."""
    if options.pictures:
        return own_cases(engine, options.pictures, MAX_DETECTIONS)
    mode = mode_of(engine.model.name)
    return cases(engine, mode, options.scenes, overlap=OVERLAP, most=MAX_DETECTIONS, seed=options.seed)


def _large(case: Case, options: Options) -> Case | None:
    """Keep the first detections as large as a mask's cell: what is smaller is hidden as a whole or not."""
    height, width = case.picture.shape[:2]
    boxes = case.found.boxes
    large = (boxes[:, 2] - boxes[:, 0] >= width / options.cells) & (
        boxes[:, 3] - boxes[:, 1] >= height / options.cells
    )
    kept = large.nonzero()[:, 0].tolist()[: options.detections]
    if not kept:
        return None
    return replace(
        case,
        found=case.found[torch.tensor(kept, device=boxes.device)],
        truths=tuple(case.truths[i] for i in kept),
        marks=tuple(case.marks[i] for i in kept),
        positions=tuple(case.positions[i] for i in kept),
    )


def _maps(engine: Engine, explaining: Explaining, case: Case, variant: Variant, seed: int) -> list[Map]:
    """Return the class map of each detection of a case."""
    request = explainer_pb2.ExplainRequest(targets=["class"], seed=seed)
    request.MergeFrom(variant.request)
    question = explaining.question(request, case.picture, case.forward, 0, case.found, Patience())
    return [row[0] for row in METHODS[variant.method].explain(engine.detector, question)]


def _tick(bar: tqdm[NoReturn]) -> None:
    bar.update()
