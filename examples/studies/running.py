"""What all studies need: a service, layouts of held-out scenes, many inversions, average precision."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from tqdm import tqdm

from whybox.training.layouts import layout_scenes
from whybox_client import Client, Detection, InversionResult, Layout, LayoutObject

LOWEST_SCORE = 0.05


@dataclass(frozen=True)
class Wish:
    """One inversion that a study wants.

    Attributes:
        model: to be inverted.
        layout: to be recognised.
        seed: of the random numbers.
        params: what differs from the model's default preset.
    """

    model: str
    layout: Layout
    seed: int = 0
    params: Mapping[str, Any] = field(default_factory=dict)


class Service:
    """A running service.

    Args:
        url: of its REST side.
    """

    def __init__(self, url: str) -> None:
        self.client = Client(url, timeout=120)

    def models(self, *names: str) -> list[str]:
        """Return the models that can be inverted; those named, if any are.

        Raises:
            ValueError: if one that is named cannot, or there is none.
        """
        able = [model.name for model in self.client.models() if model.inversion is not None]
        if unable := [name for name in names if name not in able]:
            raise ValueError(
                f"expected models that can be inverted: {', '.join(able)}; got {', '.join(unable)}"
            )
        if not able:
            raise ValueError("the service has no model that can be inverted")
        return list(names or able)

    def has_masks(self, model: str) -> bool:
        """Return whether layouts for a model may have masks."""
        able = {m.name: m.inversion for m in self.client.models()}
        return (inversion := able.get(model)) is not None and inversion.masks

    def invert(self, wishes: Sequence[Wish], *, what: str) -> list[InversionResult]:
        """Have all of them done, with a bar; the service decides how many run at one time."""
        jobs = [
            self.client.invert(wish.layout, model=wish.model, seed=wish.seed, params=dict(wish.params))
            for wish in wishes
        ]
        return [job.wait() for job in tqdm(jobs, desc=what, unit="picture")]

    def found(self, model: str, result: InversionResult) -> list[Detection]:
        """Return what a model finds in an inverted picture, down to low scores."""
        return list(self.client.detect(model, result.image, score_threshold=LOWEST_SCORE))


def scenes(count: int, *, masks: bool = False) -> list[Layout]:
    """Return the layouts of held-out scenes with a few objects that are not too small."""
    return [
        Layout(
            scene.image.shape[1],
            scene.image.shape[0],
            [
                LayoutObject(thing.label, tuple(map(float, thing.box)), thing.mask if masks else None)
                for thing in scene.objects
            ],
        )
        for scene in layout_scenes(count)
    ]


def ap50(pictures: Iterable[tuple[Layout, Sequence[Detection]]]) -> float:
    """Return COCO's average precision at IoU 0.5 (pycocotools), the mean over the classes that are there."""
    things: list[dict[str, Any]] = []
    results: list[dict[str, Any]] = []
    labels: dict[str, int] = {}
    count = 0
    for count, (layout, found) in enumerate(pictures, start=1):
        for thing in layout.objects:
            box = _xywh(thing.box)
            things.append(
                {"id": len(things) + 1, "image_id": count, "bbox": box, "area": box[2] * box[3], "iscrowd": 0}
                | {"category_id": labels.setdefault(thing.label, len(labels) + 1)}
            )
        for detection in found:
            category = labels.setdefault(detection.label, len(labels) + 1)
            results.append(
                {"image_id": count, "category_id": category, "bbox": _xywh(detection.box)}
                | {"score": detection.score}
            )
    if not results:
        return 0.0
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = {
            "info": {},
            "images": [{"id": i} for i in range(1, count + 1)],
            "annotations": things,
            "categories": [{"id": i} for i in labels.values()],
        }
        truth.createIndex()
        judged = COCOeval(truth, truth.loadRes(results), "bbox")
        judged.evaluate()
        judged.accumulate()
        judged.summarize()
    return float(judged.stats[1])


def _xywh(box: Sequence[float]) -> list[float]:
    return [box[0], box[1], box[2] - box[0], box[3] - box[1]]
