"""ODAM's cost: 5 targets of 100 detections against one forward pass, and its peak memory against detection's.

RetinaNet, FCOS and Faster R-CNN R50-FPN with random weights, a picture of 480x640, CPU. The peer is the
naive way: one backward pass over the full map per scalar, measured on a few and extrapolated.

    python benchmarks/odam.py
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torchvision.models import detection

from whybox.detectors.base import Forward, Outputs
from whybox.detectors.torchvision import TorchvisionDetector, wrap
from whybox.methods.base import SIDES, scalar
from whybox.methods.odam import odam_maps

MODELS: dict[str, Callable[..., torch.nn.Module]] = {
    "RetinaNet R50-FPN": detection.retinanet_resnet50_fpn,
    "FCOS R50-FPN": detection.fcos_resnet50_fpn,
    "Faster R-CNN R50-FPN": detection.fasterrcnn_resnet50_fpn,
}
DETECTIONS = 100
LIMIT_TIME, LIMIT_MEMORY = 1.0, 2.0
STAGE_DETECTIONS = 4
"""Stages cost more by the map, so fewer detections are timed there."""


def main() -> None:
    """Print the table; `--memory MODEL WHAT` is what it runs itself, in a process of its own."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--memory", nargs=2, metavar=("MODEL", "WHAT"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.memory:
        print(json.dumps(peak(*options.memory)))
        return
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads\n")
    print("| detector | layer | ms a map | 5 x 100 maps over one forward pass | naive over forward | limit |")
    print("|---|---|---|---|---|---|")
    for name in MODELS:
        time_model(name)
    print("\n| detector | detect, MiB | explain, MiB | explain over detect | limit |")
    print("|---|---|---|---|---|")
    for name in MODELS:
        detect, explain = (in_own_process(name, what) for what in ("detect", "explain"))
        ratio = explain / detect
        print(f"| {name} | {detect:.0f} | {explain:.0f} | {ratio:.2f} | {LIMIT_MEMORY:g} |")


def load(name: str) -> tuple[TorchvisionDetector, torch.Tensor]:
    """A detector with random weights, and a picture."""
    torch.manual_seed(0)
    model = MODELS[name](weights=None, weights_backbone=None, min_size=480, max_size=640)
    return wrap(model, [f"class {i}" for i in range(90)], background=True), torch.randint(
        0, 256, (480, 640, 3), dtype=torch.uint8
    )


def explain(detector: TorchvisionDetector, forward: Forward, layer: str, count: int) -> None:
    """Five targets of the `count` best-spread candidates."""
    candidates = detector.candidates(forward, 0)
    chosen = torch.linspace(0, len(candidates.scores) - 1, count).long()
    labels = candidates.scores[chosen].argmax(1)
    tap = detector.tap(forward, 0, layer, chosen, labels)
    targets = [scalar(target, detector.labels) for target in ("class", *SIDES)]
    odam_maps(tap, targets, forward.batch.frames[0], 0.05)


def naive(detector: TorchvisionDetector, forward: Forward) -> Callable[[], None]:
    """One scalar's gradient by a backward pass over the whole level and head."""
    levels = {name: level.clone().requires_grad_() for name, level in forward.levels.items()}
    copy = Forward(forward.batch, forward.stages, levels)
    with torch.enable_grad():
        detector.run_head(copy)
        candidates = detector.candidates(copy, 0)
        outputs = Outputs(candidates.scores, candidates.boxes, candidates.scores.argmax(1))
        value = scalar("class", detector.labels)(outputs)[len(candidates.scores) // 2]
    leaves = list(levels.values())

    def run() -> None:
        torch.autograd.grad(value, leaves, retain_graph=True, allow_unused=True)

    return run


def time_model(name: str) -> None:
    """Print one detector's rows."""
    detector, image = load(name)
    ((_, batch),) = detector.prepare([image])
    forward_pass = clock(lambda: detector.forward(batch))
    forward = detector.forward(batch, keep=True)
    slow = clock(naive(detector, forward)) * 5 * DETECTIONS / forward_pass
    for layer in detector.layers.values():
        count = STAGE_DETECTIONS if layer.kind == "stage" else DETECTIONS
        seconds = clock(lambda layer=layer, count=count: explain(detector, forward, layer.name, count))
        a_map = seconds / (5 * count)
        ratio = a_map * 5 * DETECTIONS / forward_pass
        local = layer.kind == ("roi" if "roi" in detector.layers else "level")
        print(
            f"| {name} | {layer.name} | {1000 * a_map:.2f} | {ratio:.2f} | {f'{slow:.0f}' if local else ''} "
            f"| {f'{LIMIT_TIME:g}' if local else ''} |",
            flush=True,
        )


def clock(work: Callable[[], object], repeats: int = 3) -> float:
    """Median seconds, after one run to warm up."""
    work()
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    return statistics.median(times)


def peak(name: str, what: str) -> float:
    """MiB that a call needs at its peak, beyond the loaded model."""
    detector, image = load(name)
    before = high_water()
    ((_, batch),) = detector.prepare([image])
    forward = detector.forward(batch, keep=what == "explain")
    detector.postprocess(detector.candidates(forward, 0), batch.frames[0], detector.defaults)
    if what == "explain":
        explain(detector, forward, "roi" if "roi" in detector.layers else "level", DETECTIONS)
    return high_water() - before


def high_water() -> float:
    """MiB of the process's largest resident set so far (Linux)."""
    # getrusage's maximum is inherited from the parent; this one starts with the program.
    status = Path("/proc/self/status").read_text()
    return float(status.partition("VmHWM:")[2].split()[0]) / 1024


def in_own_process(name: str, what: str) -> float:
    """Measure `peak` in a fresh process: a peak is never taken back."""
    command = [sys.executable, __file__, "--memory", name, what]
    return float(json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout))


if __name__ == "__main__":
    main()
