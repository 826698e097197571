"""ODSmoothGrad's cost: its chunks against the bare passes that they need, and its peak memory.

RetinaNet, FCOS and Faster R-CNN R50-FPN with random weights, CPU. Speed: one chunk, as the plan cuts it, of
100 detections x 5 targets on a picture of 480x640. The bare passes are, first, those of the plain way: one
forward pass of the whole network that keeps its graph, and for each scalar one backward pass from it to the
pixels. Second, those of the method's own way: the trace, and for each scalar one backward pass from its level
to the pixels; what is missing there to 1 is noise, the head's part of the gradients, and reduction. Memory:
100 detections x 5 targets on a picture of 800x1333 under a budget of 120 s, in a process of its own.

    python benchmarks/odsmoothgrad.py [--seconds S] [--models NAME ...]
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time

import torch
from costs import clock, high_water
from odam import MODELS
from tables import print_row, print_titles
from torch import Tensor

from whybox.detectors.base import Batch, Detections, Outputs
from whybox.detectors.torchvision import TorchvisionDetector, wrap
from whybox.methods.base import SIDES, Question, scalar
from whybox.methods.odsmoothgrad import OdSmoothGrad
from whybox.methods.sampling import Task
from whybox_proto.sums import Chunk

DETECTIONS = 100
TARGETS = ("class", *SIDES)
LIMIT_SPEED, LIMIT_GIB = 0.9, 8.0
MAX_SIDE = 224
"""Of the maps of the memory run: 500 larger ones would be refused, since an answer has at most 16 M cells."""
METHOD = OdSmoothGrad()
PARAMS = {param.name: param.default for param in METHOD.params}


def main() -> None:
    """Print the tables; `--memory MODEL` is what it runs itself, in a process of its own."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--seconds", type=float, default=120.0, help="budget of the memory run; 0 leaves it out"
    )
    parser.add_argument("--models", nargs="*", default=list(MODELS), choices=list(MODELS))
    parser.add_argument("--memory", metavar="MODEL", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.memory:
        print(json.dumps(peak(options.memory, options.seconds)))
        return
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads\n")
    print_titles(
        *("detector", "maps of a chunk", "s a chunk", "s a map"),
        *("plain passes over it", "own passes over it", "limit"),
    )
    for name in options.models:
        time_model(name)
    if not options.seconds:
        return
    print()
    print_titles(
        "detector", f"detections with maps in {options.seconds:g} s", "s taken", "peak, GiB", "limit"
    )
    for name in options.models:
        command = [sys.executable, __file__, "--memory", name, "--seconds", str(options.seconds)]
        found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        done = f"{found['detections']} of {DETECTIONS}"
        print_row(name, done, f"{found['seconds']:.0f}", f"{found['gib']:.2f}", f"{LIMIT_GIB:g}")


def load(name: str, height: int, width: int) -> tuple[TorchvisionDetector, Question]:
    """A detector with random weights, and a question about 100 of its candidates on a picture of noise."""
    torch.manual_seed(0)
    size = {"min_size": height, "max_size": width}
    model = MODELS[name](weights=None, weights_backbone=None, **size)
    detector = wrap(model, [f"class {i}" for i in range(90)], background=True)
    picture = torch.randint(0, 256, (height, width, 3), dtype=torch.uint8)
    ((_, batch),) = detector.prepare([picture])
    forward = detector.forward(batch, keep=True)
    candidates = detector.candidates(forward, 0)
    chosen = torch.linspace(0, len(candidates.scores) - 1, DETECTIONS).long()
    scores = candidates.scores[chosen]
    best, labels = scores.max(1)
    boxes = candidates.boxes[chosen] if candidates.boxes.ndim == 2 else candidates.boxes[chosen, labels]
    found = Detections(batch.frames[0].to_image(boxes), labels, best, scores, chosen)
    return detector, Question(forward, 0, found, TARGETS, "", PARAMS, picture=picture)


def time_model(name: str) -> None:
    """Print one detector's speed."""
    detector, question = load(name, 480, 640)
    plan = METHOD.plan(detector, question)
    chunk = Chunk(0, 0, plan.round_samples, plan.groups // 2)
    task = Task.of_question(question, plan, chunk)
    seconds = clock(lambda: METHOD.sample(detector, task), 2)
    plain = clock(lambda: plain_passes(detector, question, task), 2)
    own = clock(lambda: own_passes(detector, question, task), 2)
    maps = len(task.detections) * len(TARGETS)
    print_row(
        *(name, f"{len(task.detections)} x {len(TARGETS)}", f"{seconds:.2f}"),
        *(f"{seconds / maps / task.count:.3f}", f"{plain / seconds:.2f}", f"{own / seconds:.2f}"),
        f"{LIMIT_SPEED:g}",
    )


def plain_passes(detector: TorchvisionDetector, question: Question, task: Task) -> None:
    """The whole network forward with its graph, and backward once for each scalar."""
    batch = question.forward.batch
    with torch.enable_grad():
        pixels = batch.pixels.repeat(task.count, 1, 1, 1).requires_grad_()
        forward = detector.forward.__wrapped__(detector, Batch(pixels, batch.frames * task.count))
        scalars: list[Tensor] = []
        for target in TARGETS:
            value = scalar(target, detector.labels)
            totals = []
            for copy in range(task.count):
                candidates = detector.candidates(forward, copy)
                chosen = task.own(question.detections.candidates).clamp(max=len(candidates.scores) - 1)
                boxes = candidates.boxes[chosen]
                sides = boxes if boxes.ndim == 2 else boxes[torch.arange(len(boxes)), task.detections.labels]
                scores = candidates.scores[chosen]
                totals.append(value(Outputs(scores, sides, task.detections.labels, scores)))
            scalars.extend(torch.stack(totals).sum(0))
    for value in scalars:
        torch.autograd.grad(value, pixels, retain_graph=True)


def own_passes(detector: TorchvisionDetector, question: Question, task: Task) -> None:
    """The trace, and backward once for each scalar from its own level, with nothing done about it."""
    batch = question.forward.batch
    held = {name.removeprefix("held."): tensor for name, tensor in task.state.items() if "held." in name}
    copies = Batch(batch.pixels.repeat(task.count, 1, 1, 1), batch.frames * task.count)
    trace = detector.trace(copies, held)
    own = task.own(question.detections.candidates)
    levels = detector.tap(question.forward, 0, "level", own, task.detections.labels).candidate_levels
    for level in levels.repeat_interleave(len(TARGETS)).tolist():
        top = trace.levels[level]
        torch.autograd.grad(top, trace.pixels, torch.ones_like(top), retain_graph=True)


def peak(name: str, seconds: float) -> dict[str, float]:
    """Explain under a budget in seconds: detections that got maps, seconds taken, and the process's peak."""
    detector, question = load(name, 800, 1333)
    question = Question(**{**question.__dict__, "seconds": seconds, "max_side": MAX_SIDE})
    started = time.monotonic()
    rows = METHOD.explain(detector, question)
    taken = time.monotonic() - started
    return {"detections": sum(map(bool, rows)), "seconds": taken, "gib": high_water() / 1024}


if __name__ == "__main__":
    main()
