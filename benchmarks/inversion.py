"""What layout inversion costs, and whether others see what it makes.

Cost: one iteration over the bare forward and backward pass of the same detector on a picture of the same size
(`stage_outputs`, and the gradient of the sum of all that it says). Transfer (`--layouts N`): layouts of
held-out scenes are inverted with each demo detector, and each detector, the SSD too, looks at all of the
pictures: COCO's AP50, one row for each preset and detector inverted. The diagonal is the detector's own; what
counts is the rest. Pictures that are in the folder already are not made again.

    python benchmarks/inversion.py [--layouts N] [--iterations N] [--models NAME ...] [--out FOLDER]
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tables import print_row, print_titles
from torch import Tensor
from tqdm import tqdm

from whybox.detectors.base import WhiteBoxDetector
from whybox.detectors.registry import load_detector
from whybox.inversion.inverter import Inverter
from whybox.inversion.layout import CONFIDENT, Layout, average_precision, match_of
from whybox.inversion.settings import PRESETS, settings_of
from whybox.methods.base import ParamValue
from whybox.recipe import read_recipe
from whybox.training.layouts import layout_scenes

STORE = Path(__file__).parent.parent / "model_store"
MODELS = ("retinanet-signs", "retinanet-signs-context", "fcos-signs", "faster-rcnn-signs", "mask-rcnn-signs")
LOOKING = (*MODELS, "ssd-signs")
LIMIT_COST, LIMIT_AP50, LIMIT_IOU, LIMIT_CLEAN, LIMIT_TRANSFER = 1.15, 0.99, 0.95, 0.9, 0.8


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--layouts", type=int, default=0, help="to be inverted; 0: only the cost is measured")
    parser.add_argument("--iterations", type=int, help="instead of the presets' own")
    parser.add_argument("--models", nargs="*", default=list(MODELS))
    parser.add_argument("--presets", nargs="*", default=list(PRESETS), choices=list(PRESETS))
    parser.add_argument("--out", type=Path, help="folder for the pictures")
    options = parser.parse_args()
    detectors = {name: demo(name) for name in options.models}
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads\n")
    print_titles("detector", "preset", "ms an iteration", "over bare passes", "limit")
    for name, detector in detectors.items():
        for preset in options.presets:
            mine, bare = cost(detector, preset)
            print_row(name, preset, f"{1000 * mine:.1f}", f"{mine / bare:.2f}", LIMIT_COST)
    if not options.layouts:
        return
    for preset in options.presets:
        transfer(detectors, preset, options)


def demo(name: str) -> WhiteBoxDetector:
    """Load a demo detector."""
    recipe = read_recipe(STORE / f"{name}.yaml")
    detector = load_detector(recipe, STORE / str(recipe.weights))
    assert isinstance(detector, WhiteBoxDetector)
    return detector


def layouts(detector: WhiteBoxDetector, count: int) -> list[Layout]:
    """Return the layouts of held-out plain scenes with a few objects that are not too small."""
    found = []
    for scene in layout_scenes(count):
        boxes = torch.tensor([thing.box for thing in scene.objects]).float()
        labels = torch.tensor([detector.labels.index(thing.label) for thing in scene.objects])
        height, width = scene.image.shape[:2]
        found.append(Layout(width, height, boxes, labels, None, ()))
    return found


def cost(detector: WhiteBoxDetector, preset: str) -> tuple[float, float]:
    """Return the seconds of one iteration and of the bare passes, medians of alternating runs."""
    (layout,) = layouts(detector, 1)
    inverter = Inverter(detector, layout, settings_of({"preset": preset, "iterations": 1000}, detector), 0)
    state = inverter.begin()

    def bare() -> None:
        picture = torch.rand(3, layout.height, layout.width).requires_grad_()
        said = detector.stage_outputs(detector.embed(picture))
        total = torch.stack([stage.logits.sum() + stage.boxes.sum() for stage in said]).sum()
        torch.autograd.grad(total, picture)

    times: tuple[list[float], list[float]] = ([], [])
    for run in range(25):
        for kept, work in zip(times, (lambda: inverter.iterate(state), bare), strict=True):
            seconds = _clock(work)
            if run >= 5:
                kept.append(seconds)
    return statistics.median(times[0]), statistics.median(times[1])


def transfer(detectors: dict[str, WhiteBoxDetector], preset: str, options: argparse.Namespace) -> None:
    """Print the matrix of AP50: rows are inverted, columns look."""
    looking = {name: detectors.get(name) or demo(name) for name in LOOKING}
    print(f"\n### {preset}: {options.layouts} layouts\n")
    print_titles("inverted", *looking, "others", "own mean IoU", "clean")
    for name, detector in detectors.items():
        wanted = layouts(detector, options.layouts)
        pictures = [
            picture_for(detector, layout, seed, preset, name, options)
            for seed, layout in enumerate(tqdm(wanted, desc=f"{preset} {name}", disable=None))
        ]
        seen = {
            other: [
                (layout, looks.detect([picture])[0]) for layout, picture in zip(wanted, pictures, strict=True)
            ]
            for other, looks in looking.items()
        }
        precision = {other: average_precision(pairs, [0.5]) for other, pairs in seen.items()}
        own = [match_of(layout, found, CONFIDENT) for layout, found in seen[name]]
        others = [value for other, value in precision.items() if other != name]
        told = [f"{value:.2f}" for value in precision.values()]
        overlap = statistics.mean(match.mean_iou for match in own)
        clean = statistics.mean(match.unmatched == 0 for match in own)
        print_row(name, *told, f"**{statistics.mean(others):.2f}**", f"{overlap:.3f}", f"{clean:.2f}")
    print(
        f"\nLimits: own AP50 {LIMIT_AP50}, own mean IoU {LIMIT_IOU}, clean {LIMIT_CLEAN} (share of the "
        f"pictures where no detection above {CONFIDENT} finds nothing), others {LIMIT_TRANSFER} on average."
    )


def picture_for(
    detector: WhiteBoxDetector, layout: Layout, seed: int, preset: str, name: str, options: argparse.Namespace
) -> Tensor:
    """Return the picture of a layout from the folder, or invert it: uint8 (H, W, 3)."""
    path = options.out and options.out / f"{preset}-{name}-{seed}.png"
    if path and path.exists():
        return torch.from_numpy(np.array(Image.open(path)))
    params: dict[str, ParamValue] = {"preset": preset}
    if options.iterations:
        params["iterations"] = options.iterations
    picture = inverted(detector, layout, params, seed)
    if path:
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture.numpy()).save(path)
    return picture


def inverted(detector: WhiteBoxDetector, layout: Layout, params: dict[str, ParamValue], seed: int) -> Tensor:
    """Invert a layout: uint8 (H, W, 3)."""
    inverter = Inverter(detector, layout, settings_of(params, detector), seed)
    state = inverter.begin()
    while not inverter.finished(state):
        inverter.iterate(state)
    return inverter.picture(state)


def _clock(work: Callable[[], None]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
