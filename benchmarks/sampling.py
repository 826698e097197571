"""What D-RISE and mask-out cost beside the passes they need: masks per second against the bare batched pass.

A round of each method's plan, as a worker gets it (with the picture's preparation), against forward passes
over the same batches of masked pictures; on a feature map, over as many unmasked ones, of which it saves a
part. R50-FPN detectors have random weights, and a score threshold that about a thousand candidates pass:
an untrained head would leave post-processing nothing to do. The demo detectors look at a held-out scene.
Twenty detections are explained.

    python benchmarks/sampling.py [--device cuda]
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import time
import unittest.mock
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from tables import print_row, print_titles
from torch import Tensor
from torchvision.models import detection

from whybox.detectors.base import Batch, Forward, WhiteBoxDetector
from whybox.detectors.registry import load_detector
from whybox.detectors.torchvision import wrap
from whybox.methods import METHODS
from whybox.methods.base import Question
from whybox.methods.perturbing import IMAGE, batches
from whybox.methods.sampling import SamplingMethod, Task
from whybox.patience import Patience
from whybox.recipe import read_recipe
from whybox.scenes import render
from whybox_proto.sums import Chunk

R50: dict[str, Callable[..., torch.nn.Module]] = {
    "RetinaNet R50-FPN": detection.retinanet_resnet50_fpn,
    "FCOS R50-FPN": detection.fcos_resnet50_fpn,
    "Faster R-CNN R50-FPN": detection.fasterrcnn_resnet50_fpn,
}
DEMO = ("retinanet-signs", "faster-rcnn-signs")
CANDIDATES = 1000
DETECTIONS = 20
LIMIT = 0.9
HELD_OUT_SEED = 7_000_001


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    name = torch.cuda.get_device_name() if options.device == "cuda" else f"{torch.get_num_threads()} threads"
    print(f"torch {torch.__version__}, {options.device}, {name}\n")
    print_titles(
        *("detector", "method", "hidden in", "masks a round", "batch"),
        *("masks/s", "bare passes/s", "ratio", "limit"),
    )
    for title, detector, picture in subjects(options.device):
        for method, layer in (
            ("d_rise", "image"),
            ("mask_out", ""),
            ("d_rise", "level"),
            ("d_rise", "layer3"),
        ):
            report(title, detector, picture, method, layer, options.repeats)


def subjects(device: str) -> Iterator[tuple[str, WhiteBoxDetector, Tensor]]:
    """Yield detectors, each with a picture."""
    for name, build in R50.items():
        torch.manual_seed(0)
        model = build(weights=None, weights_backbone=None, min_size=480, max_size=640)
        detector = wrap(model, [f"class {i}" for i in range(90)], background=True).to(device)
        yield name, detector, torch.randint(0, 256, (480, 640, 3), dtype=torch.uint8)
    for name in DEMO:
        path = Path(__file__).parent.parent / "model_store" / f"{name}.yaml"
        recipe = read_recipe(path)
        loaded = load_detector(recipe, path.parent / str(recipe.weights))
        assert isinstance(loaded, WhiteBoxDetector)
        scene = render("plain", seed=HELD_OUT_SEED, index=0)
        yield name, loaded.to(device), torch.from_numpy(np.array(scene.image))


def report(
    title: str, detector: WhiteBoxDetector, picture: Tensor, name: str, layer: str, repeats: int
) -> None:
    """Print one row: medians of rounds and bare passes that take turns."""
    method = METHODS[name]
    assert isinstance(method, SamplingMethod)
    asked = question(detector, picture, method, layer)
    plan = method.checked_plan(detector, asked)
    own = asked.forward.batch
    task = Task.of(
        asked.detections,
        {name: tensor.to(detector.device) for name, tensor in plan.state.items()},
        plan.groups,
        Chunk(0, 0, plan.round_samples, 0),
        **{name: getattr(asked, name) for name in SHARED},
    )
    sizes = [len(numbers) for numbers in batches(detector, own, task)]
    passes = [Batch(own.pixels.repeat(size, 1, 1, 1), own.frames * size) for size in sizes]
    if layer in ("", IMAGE):
        passes = recorded(detector, lambda: method.sample(detector, task))

    def bare() -> None:
        for batch in passes:
            detector.forward(batch)

    works: list[Callable[[], object]] = [lambda: method.sample(detector, task), bare]
    seconds: list[list[float]] = [[], []]
    for turn in range(repeats + 1):
        for work, times in zip(works, seconds, strict=True):
            taken = clock(work, detector.device)
            if turn:  # the first warms up
                times.append(taken)
    rate, bare_rate = (plan.round_samples / statistics.median(times) for times in seconds)
    limit = f"{LIMIT:g}" if layer in ("", IMAGE) else ""
    rates = f"{rate:.1f}", f"{bare_rate:.1f}", f"{rate / bare_rate:.2f}"
    print_row(title, name, layer or "image", plan.round_samples, max(sizes), *rates, limit)


def recorded(detector: WhiteBoxDetector, work: Callable[[], object]) -> list[Batch]:
    """Return what goes into the forward passes of some work."""
    seen: list[Batch] = []
    forward = detector.forward

    def watched(batch: Batch, *, keep: bool = False) -> Forward:
        seen.append(batch)
        return forward(batch, keep=keep)

    with unittest.mock.patch.object(detector, "forward", watched):
        work()
    return seen


SHARED = ("picture", "targets", "layer", "params", "seed", "max_side", "memory", "patience", "settings")


def question(detector: WhiteBoxDetector, picture: Tensor, method: SamplingMethod, layer: str) -> Question:
    """Ask about the best detections, at a threshold that lets enough candidates pass."""
    ((_, batch),) = detector.prepare([picture])
    forward = detector.forward(batch, keep=True)
    candidates = detector.candidates(forward, 0)
    scores = candidates.scores.flatten()
    settings = detector.defaults
    if int((scores > settings.score_threshold).sum()) < DETECTIONS:  # an untrained head
        settings = dataclasses.replace(settings, score_threshold=float(scores.topk(CANDIDATES).values[-1]))
    params = {p.name: p.default for p in method.params} | {"score_threshold": settings.score_threshold}
    found = detector.postprocess(candidates, batch.frames[0], settings)
    return Question(
        forward, 0, found[:DETECTIONS], ["class"], layer, params, picture=picture, patience=Patience()
    )


def clock(work: Callable[[], object], device: torch.device) -> float:
    """Seconds that some work takes."""
    started = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
