"""Which layer points at the evidence: every layer of every demo detector, on held-out scenes.

Objects of 64 px and more that the detector finds (same label, IoU above 0.5). For the class map: its energy
inside the pixels that decide the class over their share of the box (1 = no better than the box), and inside
the box. For each side's map: how often most of its in-box energy lies in the side's own half.

    python benchmarks/layers.py --scenes 60
"""

from __future__ import annotations

import argparse
import dataclasses
import time
from pathlib import Path

import numpy as np
import torch
from torchvision.ops import box_iou
from tqdm import tqdm

from whybox.detectors.base import Detections
from whybox.engine import Engine
from whybox.methods import METHODS
from whybox.methods.base import SIDES, Question
from whybox.metrics.pointing import box_mask, energy_share, evidence_ratio, own_half_share
from whybox.recipe import read_recipe
from whybox.scenes import Scene, render
from whybox_proto.maps import enlarge

HELD_OUT_SEED = 7_000_001
MODELS = ("retinanet-signs", "fcos-signs", "faster-rcnn-signs", "mask-rcnn-signs", "retinanet-signs-context")


def main() -> None:
    """Measure and print a table for each detector."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--scenes", type=int, default=60)
    parser.add_argument("--models", nargs="+", default=MODELS)
    parser.add_argument("--smoothing", type=float, nargs="+", default=[0.05])
    options = parser.parse_args()
    for name in options.models:
        path = Path(__file__).parent.parent / "model_store" / f"{name}.yaml"
        recipe = read_recipe(path)
        if not (path.parent / str(recipe.weights)).is_file():
            print(f"{name}: its weights are not there; make train makes them")
            continue
        engine = Engine.load(recipe, path.parent / str(recipe.weights))
        own = name.rpartition("-")[2]  # a demo model of special scenes is named after their mode
        mode = own if own in ("context", "cheat") else "plain"
        scenes = [render(mode, seed=HELD_OUT_SEED, index=i) for i in range(options.scenes)]
        report(engine, scenes, options.smoothing)


def report(engine: Engine, scenes: list[Scene], smoothings: list[float]) -> None:
    """Print one detector's table."""
    rows: dict[tuple[str, float], list[list[float]]] = {}
    seconds: dict[str, float] = {}
    for scene in tqdm(scenes, desc=engine.model.name, leave=False):
        measure(engine, scene, smoothings, rows, seconds)
    found = len(next(iter(rows.values())))
    default = next(m for m in engine.model.methods if m.name == "odam").default_layer
    print(f"\n### {engine.model.name}: {found} objects in {len(scenes)} scenes, default layer `{default}`\n")
    print("| layer | σ | evidence ratio | in box | x1 | y1 | x2 | y2 | ms a map |")
    print("|---|---|---|---|---|---|---|---|---|")
    for (layer, smoothing), values in rows.items():
        mean = np.mean(values, 0)
        sides = " | ".join(f"{100 * share:.0f} %" for share in mean[2:])
        cost = 1000 * seconds[layer] / (found * 5 * len(smoothings))
        print(f"| {layer} | {smoothing:g} | {mean[0]:.2f} | {mean[1]:.2f} | {sides} | {cost:.1f} |")


def measure(
    engine: Engine,
    scene: Scene,
    smoothings: list[float],
    rows: dict[tuple[str, float], list[list[float]]],
    seconds: dict[str, float],
) -> None:
    """Explain the large objects of one scene from every layer."""
    detector = engine.detector
    ((_, batch),) = detector.prepare([torch.from_numpy(scene.image)])
    forward = detector.forward(batch, keep=True)
    settings = dataclasses.replace(detector.defaults, score_threshold=engine.model.score_threshold)
    found = detector.postprocess(detector.candidates(forward, 0), batch.frames[0], settings)
    pairs = matches(found, scene)
    if not pairs:
        return
    chosen = found[torch.tensor([detection for detection, _ in pairs])]
    height, width = scene.image.shape[:2]
    for layer in detector.layers:
        for smoothing in smoothings:
            started = time.perf_counter()
            question = Question(forward, 0, chosen, ("class", *SIDES), layer, {"smoothing": smoothing})
            maps = METHODS["odam"].explain(detector, question)
            seconds[layer] = seconds.get(layer, 0.0) + time.perf_counter() - started
            for (_, position), row in zip(pairs, maps, strict=True):
                thing = scene.objects[position]
                images = [enlarge(made.values.numpy(), made.region, width, height) for made in row]
                rows.setdefault((layer, smoothing), []).append(
                    [
                        evidence_ratio(images[0], thing.evidence, thing.box),
                        energy_share(images[0], box_mask(thing.box, height, width)),
                        *(
                            float(own_half_share(image, side, thing.box) > 0.5)
                            for side, image in zip(SIDES, images[1:], strict=True)
                        ),
                    ]
                )


def matches(found: Detections, scene: Scene) -> list[tuple[int, int]]:
    """Pairs (detection, object) of large objects that were found."""
    pairs: list[tuple[int, int]] = []
    for position, thing in enumerate(scene.objects):
        x1, y1, x2, y2 = thing.box
        if max(x2 - x1, y2 - y1) < 64 or not len(found):
            continue
        overlap = box_iou(found.boxes, torch.tensor([thing.box], dtype=torch.float32))[:, 0]
        overlap[found.labels != thing.label_id] = 0
        best = int(overlap.argmax())
        if float(overlap[best]) > 0.5:
            pairs.append((best, position))
    return pairs


if __name__ == "__main__":
    main()
