"""ODAM: gradient-weighted activations of one or several layers, one map for each detection and target."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from whybox.detectors.base import Detector, Frame, Heat, Tap, Taps, Target, WhiteBoxDetector
from whybox.methods.base import SIDES, TARGETS, Map, Method, Param, Question, scalar, scalar_names
from whybox.methods.fusing import FUSIONS, fuse, fuse_layers
from whybox.methods.placing import Room, place

SIGNS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": torch.relu,
    "negated": lambda heat: (-heat).relu(),
    "signed": lambda heat: heat,
    "abs": torch.abs,
}
"""What is made of Σ_k Φ(∂Y/∂A_k) ∘ A_k. The gradient itself is never clamped."""


class Odam(Method):
    """H = ReLU(Σ_k Φ(∂Y/∂A_k) ∘ A_k) for a scalar Y of one candidate and the maps A of one layer.

    Unlike Grad-CAM the gradient keeps its place, so the map shows one object and not all of its class. Φ is
    a Gaussian whose σ follows the object's size on the layer. A side's map is of the decoded side, turned so
    that positive means a larger box. ``combined`` is the element-wise maximum of the class and four side
    maps, each min-max normalised first; of signed maps, each scaled by its largest magnitude, the value of
    the largest magnitude. Several layers make one map: theirs are normalised alike and fused on the raster of
    the finest.

    Source: Zhao and Chan, "ODAM: Gradient-based instance-specific visual explanations for object detection",
    ICLR 2023, equations 1 to 3; the variants of the sign from its user study.
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
        Param(
            "sign",
            "relu",
            "relu: what raises the score or enlarges the box; negated: what lowers or shrinks it; "
            "signed: both, with their sign; abs: both, without",
            choices=tuple(SIGNS),
        ),
        Param(
            "score",
            "score",
            "of a class: the detector's final score, or the logit that its head gives the class",
            choices=("score", "logit"),
        ),
        Param(
            "exact",
            False,
            "differentiate through the statistics of GroupNorm as well, over the whole level; false holds "
            "them at their values, which is local and faster. Heads without GroupNorm: no difference",
        ),
        Param(
            "fusion",
            "mean",
            "of several layers' normalised maps: their mean, product or maximum",
            choices=FUSIONS,
        ),
    )
    targets = TARGETS
    combines_layers = True

    def layers(self, detector: Detector) -> list[str] | None:
        """Name every layer that can be tapped, local ones first; a black box cannot be explained."""
        return list(detector.layers) if isinstance(detector, WhiteBoxDetector) else None

    def _explain(self, detector: Detector, question: Question) -> list[list[Map]]:
        assert isinstance(detector, WhiteBoxDetector)  # `layers` is None otherwise, and the check refuses
        names = scalar_names(question.targets)
        found, params = question.detections, question.params
        taps = detector.taps(
            question.forward,
            question.image,
            question.layer.split("+"),
            found.candidates,
            found.labels,
            exact=bool(params["exact"]),
        )
        layers = odam_maps(
            taps,
            [scalar(target, detector.labels, score=str(params["score"])) for target in names],
            question.forward.batch.frames[question.image],
            smoothing=float(params["smoothing"]),
            sign=str(params["sign"]),
            between=question.patience.check,
            memory=question.memory,
        )
        rows = layers[0]
        if len(layers) > 1:
            rows, room = [], Room(question.memory)
            for candidate in zip(*layers, strict=True):
                question.patience.check()
                rows.append(
                    [fuse_layers(same, str(params["fusion"])) for same in zip(*candidate, strict=True)]
                )
                room.take(sum(made.values.numel() for made in rows[-1]))
        return [[_named(target, names, row) for target in question.targets] for row in rows]


def _named(target: str, names: Sequence[str], row: Sequence[Map]) -> Map:
    if target != "combined":
        return row[names.index(target)]
    parts = [row[names.index(t)] for t in ("class", *SIDES)]
    values = fuse(torch.stack([part.values for part in parts]), "max", signed=parts[0].signed)
    return replace(parts[0], values=values)


def odam_maps(
    taps: Taps,
    targets: Sequence[Target],
    frame: Frame,
    *,
    smoothing: float,
    sign: str = "relu",
    between: Callable[[], None] = lambda: None,
    memory: int | None = None,
) -> list[list[list[Map]]]:
    """Make the maps of every candidate of some layers.

    Args:
        taps: L layers, N candidates.
        targets: T scalars.
        frame: of the picture.
        smoothing: of Φ; see `sigmas_of`.
        sign: one of `SIGNS`.
        between: called before each part of the work; may raise to stop it.
        memory: bytes that the maps may take; None for no limit.

    Returns:
        For each layer, for each candidate, a map for each target: float32 (h, w), cropped to the picture.

    Raises:
        ContractError: `response_too_large`, if the maps take more than `memory`.
    """
    maps: list[list[list[Map]]] = [[[] for _ in range(len(tap.boxes))] for tap in taps.taps]
    room = Room(memory)
    between()
    for layer, heat in taps.heat(targets, [sigmas_of(tap, smoothing) for tap in taps.taps]):
        between()
        room.take(heat.values.numel())
        shown, grids = _signed(heat, sign), taps.taps[layer].grids
        for row, pick in enumerate(heat.picks.tolist()):
            maps[layer][pick] = place(shown, row, grids, frame, signed=sign == "signed")
    return maps


def sigmas_of(tap: Tap, smoothing: float) -> Tensor | None:
    """σ of Φ for every candidate of a tap.

    Args:
        tap: N candidates.
        smoothing: σ as a share of the object's sides; on a layer an object spans no more cells than the
            layer's grid has. 0 for no Φ.

    Returns:
        float (N, 2), along x and y, in cells; None for no Φ.
    """
    if not smoothing:
        return None
    sides = (tap.boxes[:, 2:] - tap.boxes[:, :2]).clamp(min=0)
    return smoothing * torch.minimum(sides / tap.grids.cells, tap.grids.sizes)


def _signed(heat: Heat, sign: str) -> Heat:
    return replace(heat, values=SIGNS[sign](heat.values))
