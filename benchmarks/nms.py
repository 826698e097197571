"""Odam-NMS's cost: a whole :detect request on 1000 candidates, over the same request with greedy NMS.

RetinaNet, FCOS and Faster R-CNN R50-FPN with random weights, CPU. The score threshold is set so that 1000
(candidate, class) pairs enter the suppression of duplicates. "Odam" is the request as it is by default, for
100 detections: maps are made until so many are kept. "Odam, all" asks for 1000 detections, so that every
candidate with a rival of its class gets a map, as where nearly all are duplicates. Each ratio is the median
over rounds in which the requests take turns.

    python benchmarks/nms.py
"""

from __future__ import annotations

import argparse
import io
import statistics
import time
from collections.abc import Callable

import torch
from PIL import Image
from tables import print_row, print_titles
from torchvision.models import detection

from whybox.detectors.base import PostProcessing
from whybox.detectors.torchvision import wrap
from whybox.engine import Engine
from whybox.recipe import Recipe
from whybox_proto.v1 import explainer_pb2, types_pb2, worker_pb2

MODELS: dict[str, Callable[..., torch.nn.Module]] = {
    "RetinaNet R50-FPN": detection.retinanet_resnet50_fpn,
    "FCOS R50-FPN": detection.fcos_resnet50_fpn,
    "Faster R-CNN R50-FPN": detection.fasterrcnn_resnet50_fpn,
}
SIZES = {"480x640": (480, 640, 480), "800x1067": (600, 800, 800)}
"""Of the network's input: the picture's height and width, and the shorter side after scaling."""

CANDIDATES = 1000
ROUNDS = 3
LIMIT = 1.5


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="*", choices=MODELS, default=list(MODELS))
    parser.add_argument("--sizes", nargs="*", choices=SIZES, default=list(SIZES))
    options = parser.parse_args()
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads\n")
    print_titles(
        *("detector", "input", "candidates", "with rivals"),
        *("greedy, s", "Soft", "Odam", "Odam, all", "limit"),
    )
    for name in options.models:
        for size in options.sizes:
            time_model(name, size)


def time_model(name: str, size: str) -> None:
    """Print one row."""
    height, width, short = SIZES[size]
    torch.manual_seed(0)
    model = MODELS[name](weights=None, weights_backbone=None, min_size=short, max_size=2 * short)
    labels = tuple(f"class {i}" for i in range(90))
    recipe = Recipe(name="r50", family="torchvision", architecture=name, labels=labels)
    engine = Engine(recipe, wrap(model, labels, background=True))
    picture = torch.randint(0, 256, (height, width, 3), dtype=torch.uint8)
    threshold, pairs, compared = threshold_of(engine, picture)
    buffer = io.BytesIO()
    Image.fromarray(picture.numpy()).save(buffer, format="BMP")

    def ask(kind: str, limit: int = 100) -> float:
        request = explainer_pb2.DetectRequest(
            image=buffer.getvalue(),
            select=types_pb2.Select(score_threshold=threshold, max_detections=limit),
            nms=types_pb2.Nms(kind=kind),
        )
        started = time.perf_counter()
        (reply,) = engine.answer([worker_pb2.WorkerRequest(detect=request)])
        if reply.HasField("error"):
            raise RuntimeError(str(reply.error))
        return time.perf_counter() - started

    ask("iou")
    rounds = [
        {"greedy": ask("iou"), "Soft": ask("soft"), "Odam": ask("odam"), "all": ask("odam", CANDIDATES)}
        for _ in range(ROUNDS)
    ]
    greedy = statistics.median(r["greedy"] for r in rounds)
    ratios = [statistics.median(r[kind] / r["greedy"] for r in rounds) for kind in ("Soft", "Odam", "all")]
    written = (f"{ratio:.2f}" for ratio in ratios)
    print_row(name, size, pairs, compared, f"{greedy:.2f}", *written, f"{LIMIT:g}")


def threshold_of(engine: Engine, picture: torch.Tensor) -> tuple[float, int, int]:
    """Return a score threshold, how many pairs then enter, and how many have a rival of their class."""
    detector = engine.detector
    ((_, batch),) = detector.prepare([picture])
    candidates = detector.candidates(detector.forward(batch), 0)
    everything = detector.contenders(candidates, batch.frames[0], PostProcessing(0.0, 1000))
    threshold = float(everything.scores.topk(min(CANDIDATES + 1, len(everything.scores))).values[-1])
    entered = detector.contenders(candidates, batch.frames[0], PostProcessing(threshold, 1000))
    rivals = entered.labels.bincount()[entered.labels] > 1
    return threshold, len(entered.scores), int(rivals.sum())


if __name__ == "__main__":
    main()
