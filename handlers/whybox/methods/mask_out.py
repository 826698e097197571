"""Mask-out: slide a blank square over the picture and see by how much the score drops."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from whybox.detectors.base import Detections, Detector, WhiteBoxDetector
from whybox.matching import best_matches
from whybox.methods.base import Param, Question
from whybox.methods.perturbing import (
    Perturbed,
    batches,
    by_detection,
    fill_param,
    find,
    group_count,
    round_size,
    settings_of,
    threshold_param,
)
from whybox.methods.sampling import SamplingMethod, SamplingPlan, Sum, Task
from whybox_proto.errors import ContractError
from whybox_proto.sums import members

MIN_OVERLAP = 0.5
"""IoU that a detection must exceed to be the same object: with a square over it, another may be nearest."""

MAX_CENTRES = 100_000
"""Of the grid, about: each takes a pass, and a map of which only few were visited is costly to fill."""


@dataclass(frozen=True)
class Squares:
    """B masks that hide a square each.

    Attributes:
        centres: float (B, 2), x and y in the image frame.
        side: in image pixels.
    """

    centres: Tensor
    side: float

    def at(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the share that is kept; see `whybox.methods.perturbing.Masks`."""
        columns = (x - self.centres[:, :1]).abs() < self.side / 2  # [B, w]
        rows = (y - self.centres[:, 1:]).abs() < self.side / 2  # [B, h]
        return 1 - (rows[:, :, None] & columns[:, None, :]).to(x)


class MaskOut(SamplingMethod):
    """The drop of the detection's score when a blank square is centred at a place.

    The score followed is that of the best match in the masked picture: the detection of the same class with
    the highest IoU to the box, above 0.5; without one it is 0. The drop is negative where hiding a part
    raises the score. ``class:LABEL`` follows the best match of that class instead.

    The squares' centres are the middles of an even grid over the picture, each a sample. They come in an
    order that covers the picture evenly at every length, so a smaller budget gives a coarser map, in which
    a centre that was left out has the value of its nearest neighbour. Nothing is random: a map whose samples
    are all of the grid's is exact, and there is no standard error.

    Source: Li et al., "An analysis of pre-training on object detection", 2019, section on mask-out
    visualization (figure 9), which shows the score itself, of a classifier.
    """

    name = "mask_out"
    description = "mask-out (Li et al., 2019): the drop of the score when a blank square hides a place"
    params = (
        Param("side", 60.0, "of the square, in pixels of the image", 1.0, 4096.0),
        Param(
            "stride",
            30.0,
            "most pixels from one centre to the next; wider where the grid would pass output.max_side, or "
            f"{MAX_CENTRES} centres",
            1.0,
            4096.0,
        ),
        fill_param("mean"),
        threshold_param(),
    )

    def layers(self, detector: Detector) -> list[str] | None:
        """It uses no layer."""
        return [] if isinstance(detector, WhiteBoxDetector) else None

    def plan(self, detector: Detector, question: Question) -> SamplingPlan:
        """See `SamplingMethod.plan`."""
        assert isinstance(detector, WhiteBoxDetector)  # `layers` is None otherwise, and the check refuses
        batch, image = question.forward.batch, question.image
        frame = batch.frames[image]
        cells = _grid(frame.width, frame.height, question)
        return SamplingPlan(
            samples=cells[0] * cells[1],
            round_samples=round_size(detector, batch),
            cells=cells,
            groups=group_count(question, cells),
            state={"unmasked": _unmasked(detector, question)},
            most=cells[0] * cells[1],
        )

    def sample(self, detector: Detector, task: Task) -> list[list[Sum]]:
        """See `SamplingMethod.sample`."""
        assert isinstance(detector, WhiteBoxDetector)
        perturbed = Perturbed(
            detector,
            task.picture,
            fill=str(task.params["fill"]),
            settings=settings_of(detector, task),
        )
        height, width = task.picture.shape[:2]
        h, w = _grid(width, height, task)
        if task.first + task.count > h * w:
            raise ContractError("invalid_request", f"the chunk is not one of a plan: {h * w} centres in all")
        order = coarse_to_fine(h, w).to(detector.device)
        cell = torch.tensor([width / w, height / h], device=detector.device)
        centres = (order.flip(1) + 0.5) * cell  # x, y
        boxes, labels = _targets(task.detections, task.targets, detector.labels)
        scores = []
        for numbers in batches(detector, perturbed.batch, task):
            task.patience.check()
            part = centres[numbers.start : numbers.stop]
            squares = Squares(part, float(task.params["side"]))
            found = perturbed.found(squares, between=task.patience.check)
            scores.append(best_matches(boxes, labels, found, min_overlap=MIN_OVERLAP).scores)
        own = members(len(task.state["unmasked"]), task.groups, task.group)
        drops = task.state["unmasked"][own.start : own.stop].flatten() - torch.cat(scores)  # [s, N·T]
        places = order[task.first : task.first + task.count]
        values = drops.new_zeros(len(boxes), h, w)
        values[:, places[:, 0], places[:, 1]] = drops.T
        weight = drops.new_zeros(h, w)
        weight[places[:, 0], places[:, 1]] = 1
        region = (0.0, 0.0, float(width), float(height))
        made = [Sum(of_one.float(), weight, region, signed=True) for of_one in values]
        return by_detection(made, len(task.targets))


@functools.lru_cache(maxsize=4)
def coarse_to_fine(height: int, width: int) -> Tensor:
    """Return the places of a grid in an order whose every beginning covers the grid evenly.

    It is the order of the thresholds of ordered dithering: place by place it halves the largest gaps, along
    both sides in turn.

    Source: Bayer, "An optimum method for two-level rendition of continuous-tone pictures", 1973.

    Returns:
        int64 (height · width, 2), row and column, each place once; kept for the next chunk, so read only.
    """
    bits = max(height - 1, width - 1, 1).bit_length()
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    rank = torch.zeros(height, width, dtype=torch.int64)
    for bit in range(bits):
        # A coordinate's lowest bit says most of when its turn is.
        row, column = (rows >> bit) & 1, (columns >> bit) & 1
        rank = rank * 4 + (row ^ column) * 2 + row
    order = rank.flatten().argsort()
    return torch.stack([rows.flatten()[order], columns.flatten()[order]], 1)


def _grid(width: int, height: int, asked: Question | Task) -> tuple[int, int]:
    """Return the (h, w) of the grid of centres on a picture."""
    stride = max(
        float(asked.params["stride"]),
        max(width, height) / asked.max_side,
        math.sqrt(width * height / MAX_CENTRES),
    )
    return math.ceil(height / stride), math.ceil(width / stride)


def _targets(detections: Detections, targets: Sequence[str], labels: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Return the boxes (N·T, 4) and labels (N·T,) to follow, the targets innermost."""
    columns = []
    for target in targets:
        _, _, label = target.partition(":")
        own = detections.labels
        columns.append(torch.full_like(own, list(labels).index(label)) if label else own)
    return detections.boxes.repeat_interleave(len(targets), 0), torch.stack(columns, 1).flatten()


def _unmasked(detector: WhiteBoxDetector, question: Question) -> Tensor:
    """Return the score of every detection and target without a mask: float (N, T)."""
    found = find(
        detector,
        question.forward,
        [question.image],
        settings_of(detector, question),
        between=question.patience.check,
    )
    boxes, labels = _targets(question.detections, question.targets, detector.labels)
    scores = best_matches(boxes, labels, found, min_overlap=MIN_OVERLAP).scores
    scores = scores.view(-1, len(question.targets))  # [N, T]
    for column, target in enumerate(question.targets):
        if target == "class":  # the detection itself, however low it scores
            scores[:, column] = question.detections.scores
    return scores
