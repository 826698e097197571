"""COCO figures of a detector on held-out scenes."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torch import Tensor, nn
from tqdm import tqdm

from whybox.scenes import Mode, Scene, render, to_coco
from whybox.scenes.coco import encode_mask
from whybox.training.data import as_tensor
from whybox.training.recipe import HELD_OUT_SEED


@dataclass(frozen=True, slots=True)
class Figures:
    """COCO average precision (0–1) over `images` pictures.

    `small` is AP of objects under 32² px. `ceiling` is the share of objects that greedy NMS at 0.5 leaves
    when it is
    given the true boxes: no detector that ends in it finds more. `mask_*` are None for detectors without
    masks.
    """

    images: int
    objects: int
    ap: float
    ap50: float
    ap75: float
    small: float
    ceiling: float
    mask_ap: float | None = None
    mask_ap50: float | None = None


def held_out(mode: Mode, count: int, size: tuple[int, int] = (256, 256)) -> list[Scene]:
    """The first `count` held-out scenes of a mode."""
    return [render(mode, seed=HELD_OUT_SEED, index=index, size=size) for index in range(count)]


def evaluate(
    model: nn.Module, scenes: dict[Mode, list[Scene]], *, device: str = "cpu", progress: bool = True
) -> dict[str, Figures]:
    """Figures for each mode, and under `all` for its scenes together (the figure of record)."""
    found = {mode: _detect(model, kept, device, mode, progress) for mode, kept in scenes.items()}
    figures: dict[str, Figures] = {mode: _figures(kept, found[mode]) for mode, kept in scenes.items()}
    if len(scenes) == 1:
        return {"all": next(iter(figures.values()))} | figures
    together = [scene for kept in scenes.values() for scene in kept]
    return {"all": _figures(together, [answer for mode in scenes for answer in found[mode]])} | figures


Answer = list[dict[str, Any]]
"""The detections of one picture as COCO results, without `image_id`."""


@torch.inference_mode()
def _detect(
    model: nn.Module, scenes: Sequence[Scene], device: str, name: str, progress: bool
) -> list[Answer]:
    model.eval().to(device)
    bar = tqdm(scenes, desc=f"evaluate {name}", unit="image", disable=not progress, mininterval=5)
    return [_answer(model([as_tensor(scene.image).to(device).float() / 255.0])[0]) for scene in bar]


def _answer(output: dict[str, Tensor]) -> Answer:
    boxes, scores, labels = (output[name].cpu().double().numpy() for name in ("boxes", "scores", "labels"))
    answer: Answer = [
        {"category_id": int(label), "bbox": [x1, y1, x2 - x1, y2 - y1], "score": float(score)}
        for (x1, y1, x2, y2), score, label in zip(boxes.tolist(), scores, labels, strict=True)
    ]
    if "masks" in output:
        masks = (output["masks"][:, 0] > 0.5).cpu().numpy()  # [N, H, W]
        for entry, mask in zip(answer, masks, strict=True):
            entry["segmentation"] = encode_mask(mask)
    return answer


def _figures(scenes: Sequence[Scene], answers: Sequence[Answer]) -> Figures:
    truth = to_coco(scenes)
    results = [
        {**entry, "image_id": number} for number, answer in enumerate(answers, start=1) for entry in answer
    ]
    boxes = _summary(truth, results, "bbox")
    masks = _summary(truth, results, "segm") if any("segmentation" in entry for entry in results) else None
    return Figures(
        images=len(scenes),
        objects=len(truth["annotations"]),
        ap=boxes[0],
        ap50=boxes[1],
        ap75=boxes[2],
        small=boxes[3],
        ceiling=_ceiling(scenes),
        mask_ap=None if masks is None else masks[0],
        mask_ap50=None if masks is None else masks[1],
    )


def _summary(truth: dict[str, Any], results: list[dict[str, Any]], kind: str) -> list[float]:
    """COCOeval's twelve figures for `kind`, `bbox` or `segm`; zeros where nothing was detected."""
    if not results:
        return [0.0] * 12
    with contextlib.redirect_stdout(io.StringIO()):
        annotations = COCO()
        annotations.dataset = truth
        annotations.createIndex()
        # COCO writes an area into each result, from its mask where there is one: give each kind its own
        # copies.
        copies = [
            {k: v for k, v in entry.items() if kind == "segm" or k != "segmentation"} for entry in results
        ]
        evaluation = COCOeval(annotations, annotations.loadRes(copies), kind)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return [float(value) for value in evaluation.stats]


def _ceiling(scenes: Sequence[Scene]) -> float:
    """Share of objects that greedy NMS per class at IoU 0.5 leaves of the true boxes, front objects first."""
    from torchvision.ops import batched_nms

    kept = total = 0
    for scene in scenes:
        boxes = torch.tensor([thing.box for thing in scene.objects], dtype=torch.float32).reshape(-1, 4)
        labels = torch.tensor([thing.label_id for thing in scene.objects])
        front_first = torch.from_numpy(np.arange(1, len(boxes) + 1, dtype=np.float32))
        kept += len(batched_nms(boxes, front_first, labels, 0.5))
        total += len(boxes)
    return kept / max(total, 1)
