"""ODSmoothGrad: the pixels that a prediction is sensitive to, averaged over noisy copies of the picture."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from whybox.detectors.base import Batch, Detector, Frame, Trace, WhiteBoxDetector
from whybox.detectors.pixels import pixel_gradients
from whybox.matching import Found, best_matches
from whybox.memory import gradient_footprint
from whybox.methods.base import SIDES, TARGETS, Param, Question, scalar, scalar_names
from whybox.methods.fusing import fuse
from whybox.methods.sampling import SamplingMethod, SamplingPlan, Sum, Task, generator, raster
from whybox_proto.errors import ContractError

MIN_OVERLAP = 0.7
"""IoU above which a detection of a noisy copy is the same object; section 3 of the paper."""

CHUNK_WORK = 3 * 2**30
"""Bytes that the backward passes of a chunk go through: one or two seconds of work on two CPU cores."""

MIN_PASSES = 10
"""Backward passes that share a forward pass, where there are as many: with fewer, it would cost too much."""

MAX_COPIES, ROUNDS = 4, 4
"""Most copies in a batch, which is a round; and least rounds, whose scatter tells how certain a map is."""

SUM_BYTES = 16 * 2**20
"""Of one chunk's sums; a chunk holds one detection at least."""

_HELD = "held."


class OdSmoothGrad(SamplingMethod):
    """H = mean over n noisy copies of max over the colours of |∂Y/∂I|, for a scalar Y of one detection.

    The noise is Gaussian, σ a share of the picture's value range, added to the picture as the network sees it
    (after resizing) and not clipped. Gradients are by values in that range too: what the pixel's change from
    black to white would do, to first order. ``combined`` is, in each copy, the element-wise maximum of the
    class and four side maps, each min-max normalised first.

    Which scalar stands for the detection in a noisy copy, `matching` says: ``anchor``, the outputs of the
    detection's own anchor, of any class (a two-stage detector's own proposal, held fixed); ``output``, the
    detection of the copy with the same class and the highest IoU with it, if that is above 0.7. A copy
    without such a detection does not count; a detection that is found in no copy has a map of zeros.

    Source: Gwon and Howell, "ODSmoothGrad: Generating saliency maps for object detectors", CVPR workshops
    2023, section 3; Smilkov et al., "SmoothGrad: removing noise by adding noise", 2017.
    """

    name = "odsmoothgrad"
    description = (
        "ODSmoothGrad (Gwon and Howell, 2023): the size of one prediction's gradient by the pixels, averaged "
        "over noisy copies of the picture"
    )
    params = (
        Param("samples", 20, "noisy copies", minimum=1, maximum=10_000),
        Param(
            "sigma",
            0.05,
            "σ of the noise, as a share of the picture's value range; 0 is the plain gradient",
            minimum=0.0,
            maximum=1.0,
        ),
        Param(
            "matching",
            "anchor",
            "what stands for a detection in a noisy copy: its own anchor or proposal, or the copy's output "
            "of the same class and IoU above 0.7",
            choices=("anchor", "output"),
        ),
        Param(
            "score",
            "paper",
            "of a class: the final score, or the logit that the head gives it; the paper takes the logit of "
            "an anchor and the score of an output",
            choices=("paper", "logit", "score"),
        ),
    )
    targets = TARGETS

    def layers(self, detector: Detector) -> list[str] | None:
        """No layer is named, the pixels are meant; a detector that cannot be traced cannot be explained."""
        return [] if isinstance(detector, WhiteBoxDetector) and detector.traces else None

    def plan(self, detector: Detector, question: Question) -> SamplingPlan:
        """See `SamplingMethod.plan`: a round is a batch of copies."""
        assert isinstance(detector, WhiteBoxDetector)  # `layers` is None otherwise, and the check refuses
        pixels = question.forward.batch.pixels
        size = gradient_footprint(detector).bytes(pixels.shape[2] * pixels.shape[3])
        cells = _cells(question.forward.batch.frames[question.image], question.max_side)
        count, targets = len(question.detections), len(scalar_names(question.targets))
        passes = max(MIN_PASSES, int(CHUNK_WORK // size))
        samples = int(question.params["samples"]) if question.samples is None else question.samples
        fit = min(int(question.memory // size), passes // (count * targets))
        copies = max(1, min(MAX_COPIES, -(-samples // ROUNDS), fit))
        most = max(1, min(passes // (targets * copies), SUM_BYTES // (4 * targets * cells[0] * cells[1])))
        held = detector.hold(question.forward, question.image, question.detections.candidates)
        return SamplingPlan(
            samples=samples,
            round_samples=copies,
            cells=cells,
            groups=-(-count // most),
            state={_HELD + name: tensor for name, tensor in held.items()} | {"range": _range_of(detector)},
            most=None if question.params["sigma"] else 1,  # without noise every copy is the same
        )

    def sample(self, detector: Detector, task: Task) -> list[list[Sum]]:
        """See `SamplingMethod.sample`: one batch of copies."""
        assert isinstance(detector, WhiteBoxDetector)
        if task.count > MAX_COPIES:
            raise ContractError(
                "invalid_request", f"the chunk is not one of a plan: over {MAX_COPIES} copies"
            )
        ((_, batch),) = detector.prepare([task.picture])
        frame, span = batch.frames[0], task.state["range"]
        copies = _noisy(batch, span, float(task.params["sigma"]), task)
        by_anchor = task.params["matching"] == "anchor"
        held = {k.removeprefix(_HELD): v for k, v in task.state.items() if k.startswith(_HELD)}
        trace = detector.trace(copies, held if by_anchor else {})
        if by_anchor:
            own = task.own(held["candidates"])
            candidates = own.expand(task.count, -1)  # [B, N]
        else:
            candidates = _matched(detector, trace, task)
        score = str(task.params["score"])
        if score == "paper":
            score = "logit" if by_anchor else "score"
        names = scalar_names(task.targets)
        scalars = [scalar(name, detector.labels, score=score) for name in names]
        cells = _cells(frame, task.max_side)
        region = (0.0, 0.0, float(frame.width), float(frame.height))
        weights = (candidates >= 0).sum(0).tolist()
        rows = [[torch.zeros(cells) for _ in task.targets] for _ in weights]
        parts: dict[str, Tensor] = {}
        for gradient in pixel_gradients(detector, trace, candidates, task.detections.labels, scalars):
            task.patience.check()
            parts[names[gradient.target]] = _pooled(gradient.values * span[:, None, None], frame, cells)
            if gradient.target == len(names) - 1:
                rows[gradient.item] = [_map_of(t, parts).sum(0).cpu() for t in task.targets]
        return [[Sum(m, w, region) for m in row] for row, w in zip(rows, weights, strict=True)]


def _cells(frame: Frame, max_side: int) -> tuple[int, int]:
    """Return the (h, w) of a map: no finer than the picture, nor than what the network sees of it."""
    height, width = raster(frame.width, frame.height, max_side)
    return min(height, frame.network_height), min(width, frame.network_width)


def _range_of(detector: WhiteBoxDetector) -> Tensor:
    """Return by how much each channel of the network's input differs between black and white: float (3,)."""
    shades = [torch.full((32, 32, 3), value, dtype=torch.uint8) for value in (0, 255)]
    ((_, batch),) = detector.prepare(shades)
    frame = batch.frames[0]
    middle = batch.pixels[:, :, frame.network_height // 2, frame.network_width // 2]  # [2, 3]
    return middle[1] - middle[0]


def _noisy(batch: Batch, span: Tensor, sigma: float, task: Task) -> Batch:
    """Copies of a picture, each with its own noise; padding stays as it is."""
    frame = batch.frames[0]
    copies = batch.pixels.repeat(task.count, 1, 1, 1)
    if sigma:
        for position, copy in enumerate(copies):
            shown = copy[:, : frame.network_height, : frame.network_width]
            source = generator(task.seed, task.first + position)
            noise = torch.randn(shown.shape, generator=source).to(copy)
            shown += sigma * span[:, None, None] * noise
    return Batch(copies, batch.frames * task.count)


def _matched(detector: WhiteBoxDetector, trace: Trace, task: Task) -> Tensor:
    """Find the detections again in each copy: positions in its candidates, -1 where it has none, (B, N).

    Odam-NMS, for which every copy would need heat maps, is greedy NMS here.
    """
    settings, detections = task.settings or detector.defaults, task.detections
    if settings.nms == "odam":
        settings = replace(settings, nms="iou")
    found = Found.of(
        [
            detector.postprocess(
                detector.candidates(trace.forward, copy), frame, settings, between=task.patience.check
            )
            for copy, frame in enumerate(trace.forward.batch.frames)
        ]
    )
    matches = best_matches(detections.boxes, detections.labels, found, min_overlap=MIN_OVERLAP)
    candidates = torch.cat([found.detections.candidates, matches.positions.new_full((1,), -1)])
    matched: Tensor = candidates[matches.positions]
    return matched


def _pooled(gradient: Tensor, frame: Frame, cells: tuple[int, int]) -> Tensor:
    """Largest size over the colours, padding cut off, averaged over each cell: (B, 3, H, W) to (B, h, w)."""
    size = gradient.abs().amax(1)[:, : frame.network_height, : frame.network_width]
    pooled: Tensor = adaptive_avg_pool2d(size, cells)
    return pooled


def _map_of(target: str, parts: Mapping[str, Tensor]) -> Tensor:
    """One target's maps (B, h, w) from those of the scalars."""
    if target != "combined":
        return parts[target]
    copies = zip(*(parts[name] for name in ("class", *SIDES)), strict=True)
    return torch.stack([fuse(torch.stack(maps), "max", signed=False) for maps in copies])
