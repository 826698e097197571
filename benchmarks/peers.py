"""whybox beside captum, pytorch-grad-cam and xaitk-saliency: milliseconds a map, same model, picture and run.

A Faster R-CNN R50-FPN with random weights, on the CPU; the class maps of its best detections. Each time is of
all that a caller waits for, forward passes included, and divided by the maps it gave. pytorch-grad-cam and
captum have no place for several detections of one picture: each map is a call with a forward and a backward
pass of its own. The agreement of the numbers is tests/test_peers.py.

    python benchmarks/peers.py
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import captum.attr
import numpy as np
import torch
from pytorch_grad_cam import GradCAM, GradCAMPlusPlus
from pytorch_grad_cam.utils.model_targets import FasterRCNNBoxScoreTarget
from tables import print_row, print_titles
from torch import Tensor, nn
from torchvision.models import detection
from tqdm import tqdm

from whybox.detectors.base import Detections
from whybox.detectors.torchvision import TorchvisionDetector, wrap
from whybox.methods import METHODS
from whybox.methods.base import ParamValue, Question

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
from peer_libraries import xaitk

LABELS = [f"class {i}" for i in range(90)]
STAGE = "layer4"


class Bench:
    """A detector, a picture, and what it finds there."""

    def __init__(self, height: int, width: int, count: int) -> None:
        torch.manual_seed(0)
        self.model: Any = detection.fasterrcnn_resnet50_fpn(
            weights=None, weights_backbone=None, min_size=height, max_size=width
        )
        predictor = self.model.roi_heads.box_predictor
        nn.init.normal_(predictor.cls_score.weight, std=0.2)  # untrained, it would find nothing
        self.model.roi_heads.detections_per_img = 100
        self.detector: TorchvisionDetector = wrap(self.model, LABELS)
        self.image = torch.randint(0, 256, (height, width, 3), dtype=torch.uint8)
        self.pixels = self.image.permute(2, 0, 1)[None] / 255
        self.found = self.detector.detect([self.image])[0][:count]
        if len(self.found) < count:
            raise SystemExit(f"expected {count} detections; the random network found {len(self.found)}")

    def whybox(self, method: str, layer: str, **params: ParamValue) -> int:
        """Explain all detections, from the picture on; returns the number of maps."""
        ((_, batch),) = self.detector.prepare([self.image])
        forward = self.detector.forward(batch, keep=True)
        defaults = {param.name: param.default for param in METHODS[method].params}
        question = Question(
            forward, 0, self.found, ("class",), layer, {**defaults, **params}, picture=self.image
        )
        return len(METHODS[method].explain(self.detector, question))

    def pytorch_grad_cam(self, kind: type) -> int:
        """One map of the first detection."""
        stage = getattr(self.model.backbone.body, STAGE)
        target = FasterRCNNBoxScoreTarget(
            labels=(self.found.labels[:1] + 1).tolist(), bounding_boxes=self.found.boxes[:1].numpy()
        )
        with kind(self.model, [stage]) as peer:
            peer.compute_input_gradient = True  # the weights are frozen
            peer(self.pixels, [target])
        return 1

    def score(self, pixels: Tensor) -> Tensor:
        """The best score of the picture, from its pixels (1, 3, H, W): what captum differentiates."""
        best: Tensor = self.model(list(pixels))[0]["scores"][:1]
        return best

    def captum_grad_cam(self) -> int:
        """One map of the best detection."""
        peer = captum.attr.LayerGradCam(self.score, getattr(self.model.backbone.body, STAGE))
        peer.attribute(self.pixels.clone().requires_grad_(), relu_attributions=True)
        return 1

    def captum_smooth_grad(self, samples: int) -> int:
        """One map of the best detection."""
        peer = captum.attr.NoiseTunnel(captum.attr.Saliency(self.score))
        peer.attribute(
            self.pixels.clone(),
            nt_type="smoothgrad",
            nt_samples=samples,
            nt_samples_batch_size=1,
            stdevs=0.05,
        )
        return 1

    def xaitk_d_rise(self, masks: int) -> int:
        """The maps of all detections."""
        stack = xaitk("impls.gen_object_detector_blackbox_sal.drise").DRISEStack(masks, 16, 0.5, seed=0)
        image = self.image.numpy()
        stack.generate(image, self.found.boxes.numpy(), self.found.class_scores.numpy(), self._black_box())
        return len(self.found)

    def _black_box(self) -> Any:
        from smqtk_detection import DetectImageObjects
        from smqtk_detection.utils.bbox import AxisAlignedBoundingBox

        detector = self.detector

        class BlackBox(DetectImageObjects):  # type: ignore[misc]
            """The same detector, as xaitk-saliency asks for it."""

            def detect_objects(self, images: Iterable[np.ndarray]) -> Iterable[Any]:
                """Detect, a picture at a time."""
                for image in images:
                    (found,) = detector.detect([torch.from_numpy(np.ascontiguousarray(image))])
                    yield _as_smqtk(found, AxisAlignedBoundingBox)

            def get_config(self) -> dict[str, Any]:
                """Nothing to configure."""
                return {}

        return BlackBox()


def _as_smqtk(found: Detections, box: Any) -> list[Any]:
    return [
        (box(corners[:2], corners[2:]), dict(zip(LABELS, scores, strict=True)))
        for corners, scores in zip(found.boxes.numpy(), found.class_scores.tolist(), strict=True)
    ]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--detections", type=int, default=10)
    parser.add_argument("--masks", type=int, default=32, help="of D-RISE")
    parser.add_argument("--samples", type=int, default=4, help="of smoothed gradients")
    parser.add_argument("--size", type=int, nargs=2, default=(480, 640), metavar=("HEIGHT", "WIDTH"))
    options = parser.parse_args()
    bench = Bench(*options.size, options.detections)
    masks, samples = options.masks, options.samples
    rows: list[tuple[str, str, Callable[[], int]]] = [
        (f"Grad-CAM, {STAGE}", "whybox", lambda: bench.whybox("grad_cam", STAGE)),
        (f"Grad-CAM, {STAGE}", "pytorch-grad-cam", lambda: bench.pytorch_grad_cam(GradCAM)),
        (f"Grad-CAM, {STAGE}", "captum", bench.captum_grad_cam),
        (f"Grad-CAM++, {STAGE}", "whybox", lambda: bench.whybox("grad_cam_pp", STAGE)),
        (f"Grad-CAM++, {STAGE}", "pytorch-grad-cam", lambda: bench.pytorch_grad_cam(GradCAMPlusPlus)),
        ("ODAM, roi", "whybox", lambda: bench.whybox("odam", "roi")),
        (
            f"smoothed image gradient, {samples} copies",
            "whybox (ODSmoothGrad)",
            lambda: bench.whybox("odsmoothgrad", "", samples=samples),
        ),
        (
            f"smoothed image gradient, {samples} copies",
            "captum",
            lambda: bench.captum_smooth_grad(samples),
        ),
        (
            f"D-RISE, {masks} masks",
            "whybox",
            lambda: bench.whybox("d_rise", "image", samples=masks),
        ),
        (f"D-RISE, {masks} masks", "xaitk-saliency", lambda: bench.xaitk_d_rise(masks)),
    ]
    timed = [(*row[:2], *measure(row[2], options.repeats)) for row in tqdm(rows, desc="peers", leave=False)]
    height, width = options.size
    print(
        f"\nFaster R-CNN R50-FPN, {height}x{width}, torch {torch.__version__}, "
        f"{torch.get_num_threads()} threads, median of {options.repeats}\n"
    )
    print_titles("method", "by", "maps a call", "ms a map", "whybox is faster by")
    ours: dict[str, float] = {}
    for method, by, maps, seconds in timed:
        own = ours.setdefault(method, seconds / maps)
        factor = "" if by.startswith("whybox") else f"{seconds / maps / own:.1f}×"
        print_row(method, by, maps, f"{1000 * seconds / maps:.0f}", factor)


def measure(call: Callable[[], int], repeats: int) -> tuple[int, float]:
    """Return the maps of a call and the median of its seconds, after one call to warm up."""
    maps = call()
    taken = []
    for _ in range(repeats):
        started = time.perf_counter()
        call()
        taken.append(time.perf_counter() - started)
    return maps, statistics.median(taken)


if __name__ == "__main__":
    main()
