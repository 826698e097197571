"""ODAM's cost: 5 targets of 100 detections against one forward pass, and its peak memory against detection's.

RetinaNet, FCOS and Faster R-CNN R50-FPN with random weights, CPU; the picture of 480x640 as it is, and
enlarged to torchvision's own default, a short side of 800. The peer is the naive way: one backward pass over
the whole levels and head per scalar, measured on a class and a side and extrapolated. For GroupNorm heads
also the exact gradient (`exact`), against the naive way and against the local maps.

    python benchmarks/odam.py [--models NAME ...] [--no-stages]
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable
from functools import partial

import torch
from costs import clock, peak, print_memory
from tables import print_row, print_titles
from torchvision.models import detection

from whybox.detectors.base import Forward, Outputs
from whybox.detectors.torchvision import TorchvisionDetector, wrap
from whybox.methods.base import SIDES, Map, scalar
from whybox.methods.odam import odam_maps

MODELS: dict[str, Callable[..., torch.nn.Module]] = {
    "RetinaNet R50-FPN": detection.retinanet_resnet50_fpn,
    "FCOS R50-FPN": detection.fcos_resnet50_fpn,
    "Faster R-CNN R50-FPN": detection.fasterrcnn_resnet50_fpn,
}
SIZES = {"480x640": (480, 640), "800 short side": (800, 1333)}
"""`min_size` and `max_size` of torchvision's transform, for a picture of 480x640."""

TARGETS = ("class", *SIDES)
DETECTIONS = 100
LIMITS = {"level": 0.7, "roi": 0.3}
"""Of one forward pass, at 480x640, for the layer that is local to the detector's candidates."""

LIMIT_MEMORY = 2.0
EXACT = "FCOS R50-FPN"
"""The detector whose head has GroupNorm."""

LIMIT_EXACT = 0.5
"""Of the naive way."""

EXACT_DETECTIONS = 10
"""Whole levels cost more by the map, so fewer detections are timed there."""

STAGE_DETECTIONS = 4
"""Stages cost more by the map, so fewer detections are timed there."""


def main() -> None:
    """Print the table; `--memory MODEL WHAT` is what it runs itself, in a process of its own."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--memory", nargs=2, metavar=("MODEL", "WHAT"), help=argparse.SUPPRESS)
    parser.add_argument("--models", nargs="*", metavar="NAME", default=list(MODELS), choices=list(MODELS))
    parser.add_argument("--no-stages", action="store_true", help="without the backbone's, which take longest")
    options = parser.parse_args()
    if options.memory:
        print(json.dumps(peak_of(*options.memory)))
        return
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads\n")
    print_titles(
        "detector", "input", "forward, s", "layer", "ms a map", "5 x 100 maps over forward", "naive", "limit"
    )
    for name in options.models:
        for size in SIZES:
            time_model(name, size, stages=not options.no_stages)
    print()
    print_titles(
        *("detector", "input", "exact, ms a map", "naive, ms a map"),
        *("exact over naive", "limit", "off", "cosine"),
    )
    for size in SIZES if EXACT in options.models else ():
        time_exact(EXACT, size)
    print_memory(options.models, LIMIT_MEMORY)


def load(name: str, size: str = "480x640") -> tuple[TorchvisionDetector, torch.Tensor]:
    """A detector with random weights, and a picture."""
    torch.manual_seed(0)
    short, long = SIZES[size]
    model = MODELS[name](weights=None, weights_backbone=None, min_size=short, max_size=long)
    return wrap(model, [f"class {i}" for i in range(90)], background=True), torch.randint(
        0, 256, (480, 640, 3), dtype=torch.uint8
    )


def explain(
    detector: TorchvisionDetector, forward: Forward, layer: str, count: int, *, exact: bool = False
) -> list[list[Map]]:
    """Five targets of `count` candidates spread over all of them."""
    candidates = detector.candidates(forward, 0)
    chosen = torch.linspace(0, len(candidates.scores) - 1, count).long()
    labels = candidates.scores[chosen].argmax(1)
    taps = detector.taps(forward, 0, [layer], chosen, labels, exact=exact)
    targets = [scalar(target, detector.labels) for target in TARGETS]
    return odam_maps(taps, targets, forward.batch.frames[0], smoothing=0.05)[0]


def naive(detector: TorchvisionDetector, forward: Forward, target: str) -> Callable[[], None]:
    """One scalar's gradient by a backward pass over the levels and the head."""
    levels = {name: level.clone().requires_grad_() for name, level in forward.levels.items()}
    copy = Forward(forward.batch, forward.stages, levels)
    with torch.enable_grad():
        detector.run_head(copy)
        candidates = detector.candidates(copy, 0)
        labels = candidates.scores.argmax(1)
        boxes = candidates.boxes_of(torch.arange(len(labels)), labels)
        outputs = Outputs(candidates.scores, boxes, labels, candidates.scores)
        value = scalar(target, detector.labels)(outputs)[len(candidates.scores) // 2]
    leaves = list(levels.values())

    def run() -> None:
        torch.autograd.grad(value, leaves, retain_graph=True, allow_unused=True)

    return run


def naive_seconds(detector: TorchvisionDetector, forward: Forward) -> float:
    """Mean seconds of a map, over the five targets; the four sides cost the same."""
    class_seconds, side_seconds = (clock(naive(detector, forward, target)) for target in ("class", "x1"))
    return (class_seconds + 4 * side_seconds) / len(TARGETS)


def time_model(name: str, size: str, *, stages: bool) -> None:
    """Print one detector's rows at one size, those of its backbone's stages too or not."""
    detector, image = load(name, size)
    ((_, batch),) = detector.prepare([image])
    forward_pass = clock(lambda: detector.forward(batch))
    forward = detector.forward(batch, keep=True)
    slow = naive_seconds(detector, forward) * len(TARGETS) * DETECTIONS / forward_pass
    for layer in detector.layers.values():
        if layer.kind == "stage" and not stages:
            continue
        count = STAGE_DETECTIONS if layer.kind == "stage" else DETECTIONS
        seconds = clock(
            lambda layer=layer, count=count: explain(detector, forward, layer.name, count),
            1 if layer.kind == "stage" else 3,
        )
        a_map = seconds / (len(TARGETS) * count)
        ratio = a_map * len(TARGETS) * DETECTIONS / forward_pass
        local = layer.kind == ("roi" if "roi" in detector.layers else "level")
        limit = f"{LIMITS[layer.kind]:g}" if local and size == "480x640" else ""
        shown = f"{slow:.0f}" if local else ""
        print_row(
            *(name, size, f"{forward_pass:.2f}", layer.name, f"{1000 * a_map:.2f}", f"{ratio:.2f}"),
            *(shown, limit),
        )


def time_exact(name: str, size: str) -> None:
    """Print the exact gradient's row: its time against the naive way, its maps against the local ones."""
    detector, image = load(name, size)
    ((_, batch),) = detector.prepare([image])
    forward = detector.forward(batch, keep=True)
    slow = naive_seconds(detector, forward)
    maps = {
        exact: explain(detector, forward, "level", EXACT_DETECTIONS, exact=exact) for exact in (False, True)
    }
    seconds = clock(lambda: explain(detector, forward, "level", EXACT_DETECTIONS, exact=True), 1)
    a_map = seconds / (len(TARGETS) * EXACT_DETECTIONS)
    off, cosine = [], []
    rows = zip(maps[False], maps[True], strict=True)
    for local, whole in (pair for row in rows for pair in zip(*row, strict=True)):
        placed = paste(local, whole)
        length = float(whole.values.norm())
        if length:
            off.append(float((placed - whole.values).norm()) / length)
            cosine.append(float(torch.cosine_similarity(placed.flatten(), whole.values.flatten(), 0)))
    print_row(
        *(name, size, f"{1000 * a_map:.1f}", f"{1000 * slow:.1f}", f"{a_map / slow:.2f}", f"{LIMIT_EXACT:g}"),
        *(f"{statistics.median(off):.1%}", f"{statistics.median(cosine):.4f}"),
    )


def paste(local: Map, whole: Map) -> torch.Tensor:
    """Put a map of a window onto the map of the whole level that has the same cells."""
    rows, columns = whole.values.shape
    cell_x = (whole.region[2] - whole.region[0]) / columns
    cell_y = (whole.region[3] - whole.region[1]) / rows
    x = round((local.region[0] - whole.region[0]) / cell_x)
    y = round((local.region[1] - whole.region[1]) / cell_y)
    placed = torch.zeros_like(whole.values)
    placed[y : y + local.values.shape[0], x : x + local.values.shape[1]] = local.values
    return placed


def peak_of(name: str, what: str) -> float:
    """MiB that detection, or detection and maps, need at their peak."""
    detector, image = load(name)
    layer = "roi" if "roi" in detector.layers else "level"
    maps = partial(explain, detector, layer=layer, count=DETECTIONS)
    return peak(detector, image, maps if what == "explain" else None)


if __name__ == "__main__":
    main()
