"""Query-based detectors: ODAM's cost against one backward pass per scalar, detection's against the library's.

DETR-R50 and RT-DETR-R50 with random weights, CPU, a picture of 480x640; DETR with its short side at 480 and
at its own 800. The peer for maps is the naive way: one `autograd.grad` per scalar through the library's
network from the layer on, measured on a class and a side. The peer for detection is the library's image
processor, model and post-processing.

    python benchmarks/queries.py
"""

from __future__ import annotations

import argparse
import json
import statistics
from functools import partial
from typing import Any

import torch
import transformers
from costs import clock, peak, print_memory
from odam import TARGETS, explain
from tables import print_row, print_titles

from whybox.detectors.base import Forward
from whybox.detectors.transformers import TransformersDetector

INPUTS = {"DETR-R50, 480": 480, "DETR-R50, 800": 800, "RT-DETR-R50, 640x640": 0}
TIMED = {"memory": 10, "stage": 3}
"""Detections whose maps are timed: each map costs the same."""

LIMIT_NAIVE, LIMIT_FORWARD, LIMIT_DETECT, LIMIT_MEMORY = 2.0, 0.5, 1.05, 2.0


def main() -> None:
    """Print the tables; `--memory MODEL WHAT` is what it runs itself, in a process of its own."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--memory", nargs=2, metavar=("MODEL", "WHAT"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.memory:
        print(json.dumps(peak_of(*options.memory)))
        return
    print(f"torch {torch.__version__}, transformers {transformers.__version__}, ", end="")
    print(f"{torch.get_num_threads()} threads\n")
    print_titles(
        "detector", "forward, s", "layer", "ms a map", "over forward", "limit", "naive, ms", "faster", "limit"
    )
    for name in INPUTS:
        time_maps(name)
    print()
    print_titles("detector", "detect, s", "the library's, s", "ratio", "limit")
    for name in INPUTS:
        time_detection(name)
    print_memory(INPUTS, LIMIT_MEMORY)


def load(name: str) -> tuple[TransformersDetector, torch.Tensor]:
    """A detector with random weights, and a picture."""
    torch.manual_seed(0)
    if side := INPUTS[name]:
        backbone = transformers.ResNetConfig(depths=[3, 4, 6, 3], out_features=["stage4"])
        model: Any = transformers.DetrForObjectDetection(
            transformers.DetrConfig(backbone_config=backbone, num_labels=91)
        )
        processor: Any = transformers.DetrImageProcessor(size={"shortest_edge": side, "longest_edge": 1333})
    else:
        config = transformers.RTDetrConfig(num_labels=91)
        model = transformers.RTDetrForObjectDetection(config)
        processor = transformers.RTDetrImageProcessor()
    labels = [f"class {i}" for i in range(91)]
    picture = torch.randint(0, 256, (480, 640, 3), dtype=torch.uint8)
    return TransformersDetector(model, processor, labels), picture


def naive_seconds(detector: TransformersDetector, forward: Forward, layer: str) -> float:
    """Mean seconds of a map, over the five targets; the four sides cost the same."""
    found = {}

    def leaf_of(module: Any, given: Any, made: Any) -> Any:
        del module, given
        if layer.startswith("memory"):
            maps = made.last_hidden_state
            single = not isinstance(maps, list)
            leaves = [m.detach().requires_grad_() for m in ([maps] if single else maps)]
            made.last_hidden_state = leaves[0] if single else leaves
            found["leaf"] = leaves[int(layer.removeprefix("memory") or 1) - 1]
            return made
        found["leaf"] = made.detach().requires_grad_()
        return found["leaf"]

    network = detector.model.model
    stages = network.backbone.model.encoder.stages
    module = network.encoder if layer.startswith("memory") else stages[int(layer[-1]) - 1]
    handle = module.register_forward_hook(leaf_of)
    with torch.enable_grad():
        said = detector.model(pixel_values=forward.batch.pixels)
    handle.remove()
    middle = said.logits.shape[1] // 2
    scalars = (said.logits.softmax(-1)[0, middle, 0], said.pred_boxes[0, middle, 0])
    of_class, of_side = (
        clock(lambda value=value: torch.autograd.grad(value, found["leaf"], retain_graph=True))
        for value in scalars
    )
    return (of_class + 4 * of_side) / len(TARGETS)


def time_maps(name: str) -> None:
    """Print one detector's rows."""
    detector, image = load(name)
    ((_, batch),) = detector.prepare([image])
    forward_pass = clock(lambda: detector.forward(batch))
    forward = detector.forward(batch, keep=True)
    for layer in detector.layers.values():
        count = TIMED[layer.kind]
        seconds = clock(lambda layer=layer, count=count: explain(detector, forward, layer.name, count), 1)
        a_map = seconds / (len(TARGETS) * count)
        slow = naive_seconds(detector, forward, layer.name)
        print_row(
            *(name, f"{forward_pass:.2f}", layer.name, f"{1000 * a_map:.1f}", f"{a_map / forward_pass:.3f}"),
            *(f"{LIMIT_FORWARD:g}", f"{1000 * slow:.1f}", f"{slow / a_map:.2f}", f"{LIMIT_NAIVE:g}"),
        )


def time_detection(name: str) -> None:
    """Print one detector's row of detection, the two taken in turns."""
    detector, image = load(name)
    processor, model = detector.processor, detector.model
    pixels = image.permute(2, 0, 1)

    @torch.no_grad()
    def library() -> None:
        given = processor(images=[pixels], input_data_format="channels_first", return_tensors="pt")
        processor.post_process_object_detection(model(**given), target_sizes=[image.shape[:2]])

    own, theirs = [], []
    for _ in range(5):
        own.append(clock(lambda: detector.detect([image]), 1))
        theirs.append(clock(library, 1))
    ours, peer = statistics.median(own), statistics.median(theirs)
    print_row(name, f"{ours:.3f}", f"{peer:.3f}", f"{ours / peer:.3f}", f"{LIMIT_DETECT:g}")


def peak_of(name: str, what: str) -> float:
    """MiB that detection, or detection and maps, need at their peak."""
    detector, image = load(name)
    maps = partial(explain, detector, layer=next(iter(detector.layers)), count=4)
    return peak(detector, image, maps if what == "explain" else None)


if __name__ == "__main__":
    main()
