"""The detectron2 family's cost: ODAM over a forward pass, detection over `DefaultPredictor`, and peak memory.

RetinaNet and Faster R-CNN R50-FPN of detectron2's zoo with random weights, CPU; a picture of 480x640 as it
is, and enlarged to the zoo's own short side of 800. What is measured, and its limits, are those of `odam.py`.

    python benchmarks/detectron2_family.py
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

try:
    import detectron2
    from detectron2.config import CfgNode, get_cfg
    from detectron2.engine import DefaultPredictor
except ModuleNotFoundError as error:
    sys.exit(f"{error.name} is not installed: see docs/detectors/detectron2.md")

from costs import clock, peak, print_memory
from odam import DETECTIONS, LIMIT_MEMORY, LIMITS, TARGETS, explain, naive_seconds
from tables import print_row, print_titles

from whybox.detectors.base import WhiteBoxDetector
from whybox.detectors.detectron2_loader import zoo_config
from whybox.detectors.registry import load_detector
from whybox.recipe import Recipe

MODELS = {
    "RetinaNet R50-FPN": "COCO-Detection/retinanet_R_50_FPN_3x",
    "Faster R-CNN R50-FPN": "COCO-Detection/faster_rcnn_R_50_FPN_3x",
}
SIZES = {"480x640": (480, 640), "800 short side": (800, 1333)}
"""Shorter side and largest longer one."""

LABELS = tuple(f"class {number}" for number in range(80))
LIMIT_DETECT = 1.05
"""Of `DefaultPredictor`."""

ROUNDS = 7
"""Of detection and its peer, in turn."""


def main() -> None:
    """Print the tables; `--memory MODEL WHAT` is what it runs itself, in a process of its own."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="+", choices=[*MODELS], default=[*MODELS], help="only these")
    parser.add_argument("--memory", nargs=2, metavar=("MODEL", "WHAT"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.memory:
        print(json.dumps(peak_of(*options.memory)))
    else:
        tables(options.models)


def tables(names: Sequence[str]) -> None:
    """Print what is measured of some models."""
    cases = [(name, size, *load(name, size)) for name in names for size in SIZES]
    print(
        f"torch {torch.__version__}, detectron2 {detectron2.__version__}, {torch.get_num_threads()} threads\n"
    )
    print_titles(
        "detector", "input", "forward, s", "layer", "ms a map", "5 x 100 maps over forward", "naive", "limit"
    )
    for name, size, detector, _, image in cases:
        time_maps(name, size, detector, image)
    print()
    print_titles(
        "detector", "input", "detect, s", "DefaultPredictor, s", "detect over it", "detections", "limit"
    )
    for name, size, detector, predict, image in cases:
        time_detection(name, size, detector, predict, image)
    print_memory(names, LIMIT_MEMORY)


def load(
    name: str, size: str = "480x640"
) -> tuple[WhiteBoxDetector, Callable[[torch.Tensor], Any], torch.Tensor]:
    """A detector of random weights, `DefaultPredictor` with the same ones, and a picture."""
    recipe = Recipe("benchmark", "detectron2", MODELS[name], LABELS)
    sections = dict(zoo_config(recipe))
    short, long = SIZES[size]
    sections["INPUT"] = {"MIN_SIZE_TEST": short, "MAX_SIZE_TEST": long}
    cfg = get_cfg()
    cfg.merge_from_other_cfg(CfgNode(sections))
    cfg.MODEL.DEVICE, cfg.MODEL.WEIGHTS = "cpu", ""
    torch.manual_seed(0)
    predictor = DefaultPredictor(cfg)
    for block, module in predictor.model.named_modules():
        if block.endswith("conv3.norm"):
            module.weight.fill_(0.2)  # or activations grow from block to block, and every score is 0 or 1
    with tempfile.TemporaryDirectory() as folder:
        weights = Path(folder) / "model.pth"
        torch.save(predictor.model.state_dict(), weights)
        detector = load_detector(replace(recipe, options={"config": sections}), weights)
    assert isinstance(detector, WhiteBoxDetector)
    image = torch.randint(0, 256, (480, 640, 3), dtype=torch.uint8)
    return detector, lambda picture: predictor(picture.numpy()[:, :, ::-1]), image


def time_maps(name: str, size: str, detector: WhiteBoxDetector, image: torch.Tensor) -> None:
    """Print the rows of the layers that are local to a candidate."""
    ((_, batch),) = detector.prepare([image])
    forward_pass = clock(lambda: detector.forward(batch))
    forward = detector.forward(batch, keep=True)
    slow = naive_seconds(detector, forward) * len(TARGETS) * DETECTIONS / forward_pass
    for layer in detector.layers.values():
        if layer.kind == "stage":
            continue
        seconds = clock(lambda layer=layer: explain(detector, forward, layer.name, DETECTIONS))
        local = layer.kind == ("roi" if "roi" in detector.layers else "level")
        limit = f"{LIMITS[layer.kind]:g}" if local and size == "480x640" else ""
        a_map = seconds / (len(TARGETS) * DETECTIONS)
        shown = f"{slow:.0f}" if local else ""
        print_row(
            *(name, size, f"{forward_pass:.2f}", layer.name, f"{1000 * a_map:.2f}"),
            *(f"{seconds / forward_pass:.2f}", shown, limit),
        )


def time_detection(
    name: str,
    size: str,
    detector: WhiteBoxDetector,
    predict: Callable[[torch.Tensor], Any],
    image: torch.Tensor,
) -> None:
    """Print how detection compares with `DefaultPredictor`, the two timed in turn."""
    found = len(detector.detect([image])[0])
    predict(image)
    ours, theirs = [], []
    for _ in range(ROUNDS):
        for work, times in ((lambda: detector.detect([image]), ours), (lambda: predict(image), theirs)):
            started = time.perf_counter()
            work()
            times.append(time.perf_counter() - started)
    detect, peer = statistics.median(ours), statistics.median(theirs)
    print_row(
        *(name, size, f"{detect:.3f}", f"{peer:.3f}", f"{detect / peer:.2f}"), found, f"{LIMIT_DETECT:g}"
    )


def peak_of(name: str, what: str) -> float:
    """MiB that detection, or detection and maps, need at their peak."""
    detector, predict, image = load(name)
    del predict
    layer = "roi" if "roi" in detector.layers else "level"
    maps = partial(explain, detector, layer=layer, count=DETECTIONS)
    return peak(detector, image, maps if what == "explain" else None)


if __name__ == "__main__":
    main()
