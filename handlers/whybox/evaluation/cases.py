"""Detections whose object is known: what the tables are made of."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torchvision.ops import box_iou

from whybox.detectors.base import Detections, Forward
from whybox.engine import Engine
from whybox.images import decode_image
from whybox.measuring import union
from whybox.metrics.measures import Truth
from whybox.metrics.pointing import Mask, box_mask
from whybox.scenes import Mode, Scene, SceneObject, render
from whybox.selection import settings_of
from whybox_proto.errors import ContractError
from whybox_proto.v1 import explainer_pb2, types_pb2

HELD_OUT_SEED = 7_000_001
"""Of the scenes; training uses small seeds and 1 000 003."""

GREEDY = explainer_pb2.ExplainRequest(nms=types_pb2.Nms(kind="iou"))
"""Asks for the detections of greedy NMS, whatever the model's own kind is."""


@dataclass(frozen=True)
class Case:
    """One scene, and its detections that were chosen.

    Attributes:
        number: of the scene.
        picture: uint8 (H, W, 3).
        forward: the pass that found them.
        found: the detections.
        truths: the object of each; None where it is not known.
        marks: pixels of each object's mark; None where it has none.
        positions: of the objects in the scene.
    """

    number: int
    picture: Tensor
    forward: Forward
    found: Detections
    truths: tuple[Truth | None, ...]
    marks: tuple[Mask | None, ...]
    positions: tuple[int, ...]


def mode_of(model: str) -> Mode:
    """Return the kind of scenes that a demo detector is made for: its name's last part, else `plain`."""
    last = model.rpartition("-")[2]
    return "context" if last == "context" else "cheat" if last == "cheat" else "plain"


def cases(
    engine: Engine, mode: Mode, scenes: int, *, overlap: float, most: int, seed: int = 0
) -> Iterator[Case | None]:
    """Yield the case of each scene; None where no detection in it fits its object well enough.

    Args:
        engine: with the detector.
        mode: of the scenes.
        scenes: how many.
        overlap: IoU above which a detection fits an object of its label.
        most: detections of a scene, drawn at random where more fit.
        seed: of that draw.
    """
    random = np.random.default_rng(seed)
    detector = engine.detector
    for number in range(scenes):
        scene = render(mode, seed=HELD_OUT_SEED, index=number)
        picture = torch.from_numpy(scene.image)
        ((_, batch),) = detector.prepare([picture])
        forward = detector.forward(batch, keep=True)
        settings = settings_of(GREEDY, engine.model)
        found = detector.postprocess(detector.candidates(forward, 0), batch.frames[0], settings)
        pairs = matches(found, scene.objects, overlap)
        if not pairs:
            yield None
            continue
        chosen = sorted(random.permutation(len(pairs))[:most].tolist())
        picked = torch.tensor([pairs[i][0] for i in chosen], device=found.labels.device)
        positions = tuple(pairs[i][1] for i in chosen)
        truths = tuple(truth_of(scene, position) for position in positions)
        marks = tuple(scene.objects[position].mark for position in positions)
        yield Case(number, picture, forward, found[picked], truths, marks, positions)


def own_cases(engine: Engine, pictures: Sequence[Path], most: int) -> Iterator[Case | None]:
    """Yield the best detections of somebody's own pictures, about whose objects nothing is known.

    Raises:
        ValueError: for a file that is no picture.
    """
    for number, path in enumerate(pictures):
        try:
            picture = decode_image(path.read_bytes(), engine.recipe.input)
        except (ContractError, OSError) as error:
            raise ValueError(f"{path}: {error}") from error
        ((_, batch),) = engine.detector.prepare([picture])
        forward = engine.detector.forward(batch, keep=True)
        settings = settings_of(GREEDY, engine.model)
        found = engine.detector.postprocess(
            engine.detector.candidates(forward, 0), batch.frames[0], settings
        )[:most]
        nothing, positions = (None,) * len(found), tuple(range(len(found)))
        yield Case(number, picture, forward, found, nothing, nothing, positions) if len(found) else None


def matches(found: Detections, objects: Sequence[SceneObject], overlap: float) -> list[tuple[int, int]]:
    """Return pairs (detection, object): each object's detection of its label with the highest IoU, above a
    limit.

    Args:
        found: in the scene.
        objects: of the scene.
        overlap: the limit.
    """
    pairs = []
    for position, thing in enumerate(objects):
        if not len(found):
            break
        box = found.boxes.new_tensor([thing.box])
        overlaps = box_iou(found.boxes, box)[:, 0]
        overlaps = torch.where(found.labels == thing.label_id, overlaps, 0)
        best = int(overlaps.argmax())
        if float(overlaps[best]) > overlap:
            pairs.append((best, position))
    return pairs


def truth_of(scene: Scene, position: int) -> Truth:
    """Return all that is known of one object of a scene."""
    thing, size = scene.objects[position], scene.image.shape[:2]
    others = [*scene.objects[:position], *scene.objects[position + 1 :]]
    return Truth(
        thing.box,
        thing.mask,
        thing.evidence,
        union(box_mask(other.box, *size) for other in others),
        union(other.mask for other in others),
    )
