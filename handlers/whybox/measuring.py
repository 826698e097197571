"""From a map to figures of how good it is: the detector looks again, at changed pictures."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchvision.ops import box_iou

from whybox.detectors.base import Detector, PostProcessing, WhiteBoxDetector
from whybox.matching import Found, best_matches
from whybox.memory import forward_footprint
from whybox.methods.base import Map
from whybox.metrics.measures import LOWEST_SCORE, MEASURES, SAME_OBJECT, Subject, Truth, take
from whybox.metrics.perturbation import Picture
from whybox.metrics.pointing import Box, Mask, box_mask
from whybox.patience import Patience
from whybox_proto import maps, rle
from whybox_proto.checks import MAX_DETECTIONS, check_same_size
from whybox_proto.errors import ContractError
from whybox_proto.sums import MAX_CELLS
from whybox_proto.v1 import explainer_pb2, types_pb2, worker_pb2

MOST_TOGETHER = {"cpu": 4, "cuda": 64}
"""Changed pictures in one pass, if memory has room for as many: on a CPU more are no faster, and a client
that has left would be noticed later."""

PIXEL_BYTES = 16
"""Of a changed picture beside the network's own memory: three bytes of colour, and three floats on their
way."""

FREE = tuple(measure.name for measure in MEASURES.values() if not measure.needs)
"""The measures that need no truth."""


@dataclass(frozen=True)
class Follower:
    """Follows the score of one detection through changed pictures.

    Attributes:
        detector: looks at them.
        box: of the detection.
        label: int, its class.
        column: int, the class whose score is followed.
        together: pictures in one pass.
        patience: is checked between passes.
    """

    detector: Detector
    box: Box
    label: int
    column: int
    together: int
    patience: Patience

    def __call__(self, pictures: Iterable[Picture]) -> NDArray[np.float64]:
        """Return the score in each picture, 0 where the detection is not found."""
        scores: list[Tensor] = []
        settings = self._settings()
        left = iter(pictures)
        while batch := list(itertools.islice(left, self.together)):
            self.patience.check()
            found = Found.of(self.detector.detect([torch.from_numpy(p) for p in batch], settings))
            device = found.pictures.device
            boxes, labels = torch.tensor([self.box], device=device), torch.tensor([self.label], device=device)
            at = best_matches(boxes, labels, found, min_overlap=SAME_OBJECT).positions[:, 0]
            columns = found.detections.class_scores[:, self.column]
            scores.append(
                torch.cat([columns, columns.new_zeros(1)])[at].cpu()
            )  # -1, none: the zero at the end
        return torch.cat(scores).double().numpy()

    def _settings(self) -> PostProcessing:
        return dataclasses.replace(
            self.detector.defaults, score_threshold=LOWEST_SCORE, max_detections=MAX_DETECTIONS, nms="iou"
        )


class Measuring:
    """Measures maps of one detector.

    Args:
        detector: whose maps they are.
        memory: bytes that the work may take beside the model.
    """

    def __init__(self, detector: Detector, memory: int) -> None:
        self._detector = detector
        self._memory = memory

    def answer(
        self, request: worker_pb2.MeasureRequest, picture: Tensor, patience: Patience
    ) -> explainer_pb2.Evaluation:
        """Answer a measure request that has been checked.

        Args:
            request: with the map.
            picture: uint8 (H, W, 3), upright.
            patience: is checked between passes.

        Raises:
            ContractError: if the map or the truth do not fit the picture.
        """
        height, width = picture.shape[:2]
        found, heat_map = request.detection, request.heat_map
        made = _map_of(heat_map)
        truth = None
        if request.HasField("truth"):
            check_same_size(request.truth, width, height)
            truth = truth_of(request.truth, found.box, found.label, patience)
        label = self._detector.labels.index(found.label)
        values = self.take(
            made,
            heat_map.target,
            found.box,
            label,
            picture,
            truth=truth,
            names=request.measures or None,
            seed=request.seed,
            patience=patience,
        )
        return explainer_pb2.Evaluation(
            detection_index=heat_map.detection_index, target=heat_map.target, values=values
        )

    def take(
        self,
        made: Map,
        target: str,
        box: Sequence[float],
        label: int,
        picture: Tensor,
        *,
        truth: Truth | None = None,
        names: Iterable[str] | None = None,
        seed: int = 0,
        patience: Patience | None = None,
    ) -> dict[str, float]:
        """Take measures of one map.

        Args:
            made: the map.
            target: that it is of.
            box: of the detection that it explains.
            label: of that detection.
            picture: uint8 (H, W, 3), upright.
            truth: the object that the detection stands for.
            names: of measures; None for all.
            seed: of the random fill.
            patience: is checked between passes.

        Returns:
            By name, those that apply and are defined.
        """
        height, width = picture.shape[:2]
        patience = patience or Patience()
        patience.check()
        follower = self._follower(box, label, target, picture, patience)
        values = maps.enlarge(made.values.cpu().numpy(), made.region, width, height)
        subject = Subject(values, made.signed, target, _box(box), picture.numpy(), follower, truth, seed)
        return take(subject, names)

    def scores(self, box: Sequence[float], label: int, pictures: Sequence[Tensor]) -> list[float]:
        """Follow the score of a detection through pictures, uint8 (H, W, 3); 0 where it is not found."""
        follower = self._follower(box, label, "class", pictures[0], Patience())
        scores: list[float] = follower(picture.numpy() for picture in pictures).tolist()
        return scores

    def _follower(
        self, box: Sequence[float], label: int, target: str, picture: Tensor, patience: Patience
    ) -> Follower:
        named = target.partition(":")[2]
        column = self._detector.labels.index(named) if named else label
        return Follower(self._detector, _box(box), label, column, self._together(picture), patience)

    def _together(self, picture: Tensor) -> int:
        """How many changed pictures share a pass."""
        height, width = picture.shape[:2]
        most = MOST_TOGETHER.get(self._detector.device.type, 1)
        if not isinstance(self._detector, WhiteBoxDetector):
            return 1
        ((_, batch),) = self._detector.prepare([picture])
        network = batch.pixels.shape[2] * batch.pixels.shape[3]
        each = forward_footprint(self._detector).bytes(network) + PIXEL_BYTES * height * width
        return max(1, min(most, int(self._memory // each)))


def truth_of(layout: types_pb2.Layout, box: Sequence[float], label: str, patience: Patience) -> Truth | None:
    """Find the object that a detection stands for: of its label, the one with the highest IoU.

    Args:
        layout: the objects that are really there; checked.
        box: of the detection.
        label: of the detection.
        patience: is checked between masks.

    Returns:
        None where no object of the label overlaps it by more than `SAME_OBJECT`.
    """
    overlaps = box_iou(torch.tensor([list(thing.box) for thing in layout.objects]), torch.tensor([list(box)]))
    overlaps = torch.where(
        torch.tensor([thing.label == label for thing in layout.objects]), overlaps[:, 0], 0
    )
    own = int(overlaps.argmax())
    if float(overlaps[own]) <= SAME_OBJECT:
        return None
    thing, others = layout.objects[own], [*layout.objects[:own], *layout.objects[own + 1 :]]
    size = layout.height, layout.width

    def decoded(counts: str) -> Mask | None:
        patience.check()
        return rle.decode(counts, *size) if counts else None

    return Truth(
        _box(thing.box),
        decoded(thing.mask),
        decoded(thing.evidence),
        union(box_mask(_box(other.box), *size) for other in others),
        union(decoded(other.mask) for other in others),
    )


def union(masks: Iterable[Mask | None]) -> Mask | None:
    """Join masks; None where there are none, or one is not known."""
    joined: Mask | None = None
    for mask in masks:
        if mask is None:
            return None
        joined = mask if joined is None else joined | mask
    return joined


def _map_of(heat_map: types_pb2.HeatMap) -> Map:
    """Read a map from its message."""
    try:
        if heat_map.width * heat_map.height > MAX_CELLS:
            raise ValueError(f"more than {MAX_CELLS} cells")
        values = maps.decode(heat_map)
        if not values.size or not np.isfinite(values).all():
            raise ValueError("no cells, or some that are not finite")
        region = _box(heat_map.region)
        if not all(map(math.isfinite, region)) or region[0] >= region[2] or region[1] >= region[3]:
            raise ValueError(f"no region: {list(region)}")
    except ValueError as error:
        raise ContractError(
            "invalid_request",
            f"the map cannot be read: {error}",
            field="heat_map",
            expected="a map as a worker answers it",
        ) from error
    return Map(torch.from_numpy(values), region, heat_map.signed)


def _box(numbers: Sequence[float]) -> Box:
    x1, y1, x2, y2 = numbers
    return x1, y1, x2, y2
