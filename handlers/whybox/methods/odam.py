"""ODAM: gradient-weighted activations of one layer, one map for each detection and target."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from whybox.detectors.base import Detector, Frame, Tap, Target, WhiteBoxDetector, Window
from whybox.methods.base import (
    SIDES,
    TARGETS,
    Map,
    Method,
    Param,
    Question,
    normalise,
    scalar,
    smooth,
    smoothing_radius,
)


class Odam(Method):
    """H = ReLU(Σ_k Φ(∂Y/∂A_k) ∘ A_k) for a scalar Y of one candidate and the maps A of one layer.

    Unlike Grad-CAM the gradient keeps its place, so the map shows one object and not all of its class. Φ is
    a Gaussian whose σ follows the object's size on the layer. A side's map is of the decoded side, turned so
    that positive means a larger box. ``combined`` is the element-wise maximum of the class and four side
    maps, each min-max normalised first.

    Source: Zhao and Chan, "ODAM: Gradient-based instance-specific visual explanations for object detection",
    ICLR 2023, equations 1 to 3.
    """

    name = "odam"
    description = (
        "ODAM (Zhao and Chan, 2023): the gradient of one prediction, weighted by the activations of one layer"
    )
    params = (
        Param(
            "smoothing",
            0.05,
            "σ of the Gaussian over the gradient, as a share of the object's sides; 0 turns it off",
            minimum=0.0,
            maximum=1.0,
        ),
    )
    targets = TARGETS

    def layers(self, detector: Detector) -> list[str] | None:
        """Name every layer that can be tapped, local ones first; a black box cannot be explained."""
        return list(detector.layers) if isinstance(detector, WhiteBoxDetector) else None

    def _explain(self, detector: Detector, question: Question) -> list[list[Map]]:
        assert isinstance(detector, WhiteBoxDetector)  # `layers` is None otherwise, and the check refuses
        names = [t for t in question.targets if t != "combined"]
        if "combined" in question.targets:
            names += [t for t in ("class", *SIDES) if t not in names]
        detections = question.detections
        tap = detector.tap(
            question.forward, question.image, question.layer, detections.candidates, detections.labels
        )
        scalars = [scalar(target, detector.labels) for target in names]
        frame = question.forward.batch.frames[question.image]
        smoothing = float(question.params["smoothing"])
        maps = odam_maps(tap, scalars, frame, smoothing, between=question.patience.check)
        return [[_named(t, names, row) for t in question.targets] for row in maps]


def _named(target: str, names: Sequence[str], row: Sequence[Map]) -> Map:
    if target != "combined":
        return row[names.index(target)]
    parts = [row[names.index(t)] for t in ("class", *SIDES)]
    return Map(torch.stack([normalise(part.values) for part in parts]).amax(0), parts[0].region)


def odam_maps(
    tap: Tap,
    targets: Sequence[Target],
    frame: Frame,
    smoothing: float,
    *,
    between: Callable[[], None] = lambda: None,
) -> list[list[Map]]:
    """Make the maps of every candidate of a tap.

    Args:
        tap: N candidates.
        targets: T scalars.
        frame: of the picture.
        smoothing: σ of Φ as a share of the object's sides, 0 for none. On a layer an object spans no more
            cells than the layer's grid has.
        between: called before each part of the work; may raise to stop it.

    Returns:
        For each candidate, a map for each target: float32 (h, w), cropped to the picture.
    """
    boxes = tap.boxes
    sides = torch.stack([boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]], 1).clamp(min=0)
    spans = torch.minimum(sides / tap.grids.cells, tap.grids.sizes)  # [N, 2] x, y in cells
    sigmas = smoothing * spans
    margin = int(smoothing_radius(sigmas.flatten()).max()) if smoothing else 0
    maps: list[list[Map]] = [[] for _ in range(len(boxes))]
    between()
    for window in tap.windows(targets, margin=margin):
        between()
        heat = _heat(window, sigmas[window.picks] if margin else None)
        for row, pick in enumerate(window.picks.tolist()):
            maps[pick] = _crop(heat[row], window.origins[row], tap, pick, frame)
    return maps


def _heat(window: Window, sigmas: Tensor | None) -> Tensor:
    """ReLU(Σ_k Φ(g_k) ∘ A_k): (n, T, h, w)."""
    gradients = window.gradients if sigmas is None else smooth(window.gradients, sigmas)
    return (gradients * window.activations[:, None]).sum(2).relu()


def _crop(heat: Tensor, origin: Tensor, tap: Tap, pick: int, frame: Frame) -> list[Map]:
    """Cut a window's maps (T, h, w) to the cells that lie on the picture, and place them."""
    column, row = origin.tolist()
    columns, rows = tap.grids.sizes[pick].tolist()
    left, top = max(0, column), max(0, row)
    right, bottom = min(columns, column + heat.shape[2]), min(rows, row + heat.shape[1])
    if right <= left or bottom <= top:
        # A candidate of the padding, whose window misses the picture: nothing of it was looked at.
        heat, column, row = torch.zeros_like(heat[:, :1, :1]), columns - 1, rows - 1
        left, top, right, bottom = column, row, columns, rows
    corners = torch.tensor([left, top, right, bottom], dtype=torch.float32)
    cell, offset = tap.grids.cells[pick].cpu(), tap.grids.offsets[pick].cpu()
    region = frame.to_image(offset.repeat(2) + corners * cell.repeat(2)).tolist()
    cut = heat[:, top - row : bottom - row, left - column : right - column].float()
    return [Map(values, (region[0], region[1], region[2], region[3])) for values in cut]
