"""Scenes as a COCO data set on disk: PNG files and one JSON file."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from whybox.scenes.catalogue import CLASSES, LOOK_ALIKE
from whybox.scenes.render import Scene, SceneObject


def encode_mask(mask: NDArray[np.bool_]) -> dict[str, Any]:
    """COCO's compressed RLE of a bool [H, W] mask: `{"size": [H, W], "counts": str}`."""
    from pycocotools import mask as coco_mask

    coded: dict[str, Any] = coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))
    return {"size": [int(side) for side in coded["size"]], "counts": coded["counts"].decode("ascii")}


def to_coco(scenes: Iterable[Scene]) -> dict[str, Any]:
    """The annotations of `scenes` as a COCO dictionary. Category ids are `label_id + 1`.

    Each annotation carries, beside COCO's fields, `evidence` (RLE), `visible` (share of the sign in sight)
    and, for a sign that has one, `mark` (RLE).
    """
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for image_id, scene in enumerate(scenes, start=1):
        height, width = scene.image.shape[:2]
        images.append({"id": image_id, "file_name": file_name(scene), "height": height, "width": width})
        for thing in scene.objects:
            annotations.append(_annotation(thing, len(annotations) + 1, image_id))
    categories = [
        {"id": i, "name": name, "supercategory": "sign", "look_alike": LOOK_ALIKE[name]}
        for i, name in enumerate(CLASSES, start=1)
    ]
    return {
        "info": {},
        "licenses": [],
        "images": images,
        "annotations": annotations,
        "categories": categories,
    }


def export_coco(scenes: Iterable[Scene], folder: Path | str) -> Path:
    """Write `images/*.png` and `annotations.json` into `folder`, made if missing; returns the JSON file."""
    folder = Path(folder)
    (folder / "images").mkdir(parents=True, exist_ok=True)
    kept = list(scenes)
    for scene in kept:
        path = folder / "images" / file_name(scene)
        if not cv2.imwrite(str(path), scene.image[:, :, ::-1]):
            raise OSError(f"could not write {path}")
    annotations = folder / "annotations.json"
    annotations.write_text(json.dumps(to_coco(kept)), encoding="utf-8")
    return annotations


def file_name(scene: Scene) -> str:
    """`MODE-SEED-INDEX.png`."""
    return f"{scene.mode}-{scene.seed}-{scene.index:06d}.png"


def _annotation(thing: SceneObject, annotation_id: int, image_id: int) -> dict[str, Any]:
    x1, y1, x2, y2 = thing.box
    mark = {} if thing.mark is None else {"mark": encode_mask(thing.mark)}
    return {
        "id": annotation_id,
        "image_id": image_id,
        "category_id": thing.label_id + 1,
        "bbox": [x1, y1, x2 - x1, y2 - y1],
        "area": thing.area,
        "iscrowd": 0,
        "segmentation": encode_mask(thing.mask),
        "evidence": encode_mask(thing.evidence),
        "visible": thing.visible,
        **mark,
    }
