"""Suppression of duplicates: greedy, Soft-NMS, Odam-NMS, or none.

Boxes of different labels never suppress each other, and of two boxes the one with the lower score goes; of
equal scores, the one that comes later.

Letters: N boxes, M of them kept, D dropped.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchvision.ops import batched_nms, box_iou

if TYPE_CHECKING:
    from whybox.detectors.base import PostProcessing

KINDS: dict[str, tuple[str, ...]] = {
    "iou": ("iou_threshold",),
    "soft": ("sigma", "final_threshold"),
    "odam": ("iou_threshold", "corr_high", "corr_low"),
    "none": (),
}
"""Each kind, and which attributes of `PostProcessing` it obeys."""

Correlate = Callable[[Tensor, Tensor], Tensor]
"""Correlations of heat maps: float (a, b), of boxes at positions int64 (a,) with those at (b,)."""

_BLOCK, _LARGEST_BLOCK = 128, 512
"""Boxes that Odam-NMS looks at together: few, lest more maps are made than the answer takes; many, as a tap
is made anew for each block."""

_PICKS = 128
"""Boxes that Soft-NMS takes between two looks at whether anybody still waits."""

_BLOCK_CELLS = 1 << 21
"""Pairs of boxes that are looked at together: bounds the memory of what would grow with N²."""


@dataclass(frozen=True)
class Reasons:
    """Why boxes were dropped.

    Attributes:
        dropped: int64 (D,), positions of the boxes that were dropped, best score first.
        by: int64 (D,), position of the box that dropped each; -1 where its own score was too low.
        ious: float64 (D,), IoU with that box; 0 where there is none.
        correlations: float64 (D,), of the heat maps with that box's; NaN where none were made.
        rules: for each, ``iou``, ``soft``, ``same_object`` or ``same_evidence``.
    """

    dropped: Tensor
    by: Tensor
    ious: Tensor
    correlations: Tensor
    rules: tuple[str, ...]


@dataclass(frozen=True)
class Verdict:
    """Which boxes stay.

    Attributes:
        kept: int64 (M,), positions, best score first.
        scores: float (M,), their scores, decayed where the kind decays them.
        reasons: why the others went; None where nobody asked.
    """

    kept: Tensor
    scores: Tensor
    reasons: Reasons | None = None


def needs_maps(settings: PostProcessing) -> bool:
    """Say whether suppression depends on heat maps.

    Maps hold no negative values, so correlations are from 0 to 1: with thresholds outside of that none can
    change the answer, and Odam-NMS is greedy NMS.
    """
    return settings.nms == "odam" and (settings.corr_low >= 0 or settings.corr_high < 1)


def suppress(
    boxes: Tensor,
    scores: Tensor,
    labels: Tensor,
    settings: PostProcessing,
    *,
    correlate: Correlate | None = None,
    explain: bool = False,
    between: Callable[[], None] = lambda: None,
) -> Verdict:
    """Choose which boxes stay.

    Args:
        boxes: float (N, 4), [x1, y1, x2, y2].
        scores: float (N,).
        labels: int64 (N,).
        settings: the kind and its numbers.
        correlate: of the boxes' heat maps, where `needs_maps`.
        explain: give reasons, of all that were dropped. Without, only the `max_detections` best of those that
            stay are sure to be given.
        between: called between parts of Soft-NMS, which goes through its boxes one by one; may raise to stop
            it. What makes heat maps has its own; see `whybox.odam_nms.correlation`.

    Raises:
        ValueError: for another kind, or if correlations are needed and none are given.
    """
    if settings.nms not in KINDS:
        raise ValueError(f"nms is one of {', '.join(KINDS)}; got {settings.nms!r}")
    if settings.nms == "soft":
        return soft(boxes, scores, labels, settings.sigma, settings.final_threshold, between=between)
    if settings.nms == "none":
        kept = torch.argsort(scores, descending=True, stable=True)
        none = scores.new_zeros(0, dtype=torch.float64)
        return Verdict(kept, scores[kept], Reasons(kept[:0], kept[:0], none, none, ()))
    if needs_maps(settings):
        if correlate is None:
            raise ValueError("Odam-NMS needs heat maps; see whybox.finding")
        return odam(
            boxes,
            scores,
            labels,
            correlate,
            iou_threshold=settings.iou_threshold,
            corr_high=settings.corr_high,
            corr_low=settings.corr_low,
            limit=None if explain else settings.max_detections,
        )
    # Not ours, so that equal settings give torchvision's detections to the bit.
    kept = batched_nms(boxes, scores, labels, settings.iou_threshold)
    rule = "same_object" if settings.nms == "odam" else "iou"
    reasons = _greedy_reasons(boxes, scores, labels, kept, settings.iou_threshold, rule) if explain else None
    return Verdict(kept, scores[kept], reasons)


def odam(
    boxes: Tensor,
    scores: Tensor,
    labels: Tensor,
    correlate: Correlate,
    *,
    iou_threshold: float,
    corr_high: float,
    corr_low: float,
    limit: int | None = None,
) -> Verdict:
    """Odam-NMS: two boxes show the same object where they overlap and were decided by like evidence.

    Greedy by score. A box goes if with a better one that stays

    * IoU > `iou_threshold` and correlation > `corr_low` (``same_object``), or
    * IoU <= `iou_threshold` and correlation > `corr_high` (``same_evidence``).

    The paper compares IoU >= `iou_threshold`; here an IoU at the threshold counts as torchvision's greedy NMS
    counts it, so that thresholds of -1 and 1 make the two equal.

    Boxes are looked at in blocks, best first, and correlated a block at a time; see `_block`. With a `limit`
    the work ends when so many are kept: the first `limit` of them are the same as without, and the rest needs
    no maps.

    Source: Zhao and Chan, "ODAM", ICLR 2023, section 3.3 and algorithm 1.
    """
    order = torch.argsort(scores, descending=True, stable=True)
    count, chosen = len(scores), order.cpu().numpy()
    by, ious, correlations = np.full(count, -1), np.zeros(count), np.full(count, np.nan)
    kept: list[int] = []
    seen = 0
    while seen < count and (limit is None or len(kept) < limit):
        block = order[seen : seen + _block(limit, len(kept), seen)]
        pool = torch.cat([order.new_tensor(kept), block])  # whatever could drop a member of the block
        drops, overlaps, alike = _judge(
            boxes, labels, correlate, block, pool, (iou_threshold, corr_high, corr_low)
        )
        places, rivals, before = chosen[seen : seen + len(block)], pool.cpu().numpy(), len(kept)
        stays = np.ones(len(rivals), bool)
        for row, place in enumerate(places):
            hits = drops[row, : before + row] & stays[: before + row]
            if not hits.any():
                kept.append(int(place))
                continue
            first = int(hits.argmax())
            stays[before + row] = False
            by[place] = rivals[first]
            ious[place], correlations[place] = overlaps[row, first], alike[row, first]
        seen += len(block)
    dropped = chosen[by[chosen] >= 0]
    rules = tuple("same_object" if iou > iou_threshold else "same_evidence" for iou in ious[dropped].tolist())
    stay = order.new_tensor(kept)
    return Verdict(stay, scores[stay], _reasons(dropped, by, ious, correlations, rules, scores.device))


def _block(limit: int | None, kept: int, seen: int) -> int:
    """Return how many boxes to look at next: as many as seem to be needed, going by those seen so far."""
    most = min(_LARGEST_BLOCK, _BLOCK_CELLS // (kept + _LARGEST_BLOCK))
    needed = most if limit is None else -(-(limit - kept) * max(1, seen) // max(1, kept))
    return max(_BLOCK, min(needed, most))


def _judge(
    boxes: Tensor,
    labels: Tensor,
    correlate: Correlate,
    block: Tensor,
    pool: Tensor,
    thresholds: tuple[float, float, float],
) -> tuple[NDArray[np.bool_], NDArray[np.float64], NDArray[np.float64]]:
    """Say which boxes of a block each box of a pool would drop, their IoU and correlation: (b, p) each.

    Only boxes that have a rival of their class on the other side are correlated.
    """
    iou_threshold, corr_high, corr_low = thresholds
    same = (labels[block][:, None] == labels[pool]) & (block[:, None] != pool)
    rows, columns = torch.where(same.any(1))[0], torch.where(same.any(0))[0]
    shape = (len(block), len(pool))
    drops, overlaps, alike = np.zeros(shape, bool), np.zeros(shape), np.zeros(shape)
    if len(rows):
        overlap = _overlaps(boxes[block[rows]], boxes[pool[columns]])
        likeness = correlate(block[rows], pool[columns]).double()
        over = torch.where(overlap > iou_threshold, likeness > corr_low, likeness > corr_high)
        inside = np.ix_(rows.cpu().numpy(), columns.cpu().numpy())
        drops[inside] = (over & same[rows][:, columns]).cpu().numpy()
        overlaps[inside], alike[inside] = overlap.cpu().numpy(), likeness.cpu().numpy()
    return drops, overlaps, alike


def soft(
    boxes: Tensor,
    scores: Tensor,
    labels: Tensor,
    sigma: float,
    final_threshold: float,
    *,
    between: Callable[[], None] = lambda: None,
) -> Verdict:
    """Soft-NMS: a box's score falls by exp(-IoU² / `sigma`) with each better one that stays.

    The best of what is left is taken, the others decay, and so on, until the best of what is left scores
    below `final_threshold`: it and the others go. The reason of each is the box that overlapped it most.
    `between` is called after every `_PICKS` boxes, and may raise.

    Source: Bodla et al., "Soft-NMS: improving object detection with one line of code", ICCV 2017, equation 3.
    """
    best_first = torch.argsort(scores, descending=True, stable=True)
    count = len(scores)
    decayed = scores.double().cpu().numpy().copy()
    by, ious = np.full(count, -1), np.zeros(count)
    stays = np.zeros(count, bool)
    taken = 0
    for members in _classes(labels, best_first):
        places = members.cpu().numpy()
        corners = boxes[members].cpu()
        left, strongest, source = decayed[places], np.zeros(len(places)), np.full(len(places), -1)
        waiting = np.ones(len(places), bool)
        for _ in range(len(places)):
            best = int(np.where(waiting, left, -np.inf).argmax())
            if left[best] < final_threshold:
                break
            taken += 1
            if taken % _PICKS == 0:
                between()
            waiting[best] = False
            overlap = _overlaps(corners[best : best + 1], corners)[0].numpy()
            left[waiting] *= np.exp(-(overlap[waiting] ** 2) / sigma)
            stronger = waiting & (overlap > strongest)
            strongest[stronger], source[stronger] = overlap[stronger], places[best]
        decayed[places], stays[places] = left, ~waiting
        by[places], ious[places] = source, strongest
    order = best_first.cpu().numpy()
    kept = order[stays[order]]
    kept = kept[np.argsort(-decayed[kept], kind="stable")]
    dropped = order[~stays[order]]
    reasons = _reasons(dropped, by, ious, np.full(count, np.nan), ("soft",) * len(dropped), scores.device)
    return Verdict(
        torch.from_numpy(kept).to(scores.device), torch.from_numpy(decayed[kept]).to(scores), reasons
    )


def _greedy_reasons(
    boxes: Tensor, scores: Tensor, labels: Tensor, kept: Tensor, iou_threshold: float, rule: str
) -> Reasons:
    """Find which box dropped each of those that greedy NMS did not keep: the best that overlaps it."""
    best_first = torch.argsort(scores, descending=True, stable=True)
    gone = torch.ones_like(labels, dtype=torch.bool)
    gone[kept] = False
    count = len(scores)
    by, ious = np.full(count, -1), np.zeros(count)
    for members in _classes(labels, best_first[gone[best_first]]):
        rivals = kept[labels[kept] == labels[members[0]]]
        for rows in _blocks(len(members), len(rivals)):
            overlap = _overlaps(boxes[members[rows]], boxes[rivals])  # [r, M]
            over = overlap > iou_threshold
            # torchvision moves the classes apart before it compares, which rounds: where none overlaps enough
            # it was the one that overlaps most.
            choice = torch.where(over.any(1), over.int().argmax(1), overlap.argmax(1))
            places = members[rows].cpu().numpy()
            by[places] = rivals[choice].cpu().numpy()
            ious[places] = overlap.gather(1, choice[:, None])[:, 0].cpu().numpy()
    dropped = best_first[gone[best_first]].cpu().numpy()
    return _reasons(dropped, by, ious, np.full(count, np.nan), (rule,) * len(dropped), scores.device)


def _reasons(
    dropped: NDArray[np.int64],
    by: NDArray[np.int64],
    ious: NDArray[np.float64],
    correlations: NDArray[np.float64],
    rules: tuple[str, ...],
    device: torch.device,
) -> Reasons:
    """Pick the dropped boxes' rows out of what is known of all."""
    return Reasons(
        torch.from_numpy(dropped).to(device),
        torch.from_numpy(by[dropped]).to(device),
        torch.from_numpy(ious[dropped]).to(device),
        torch.from_numpy(correlations[dropped]).to(device),
        rules,
    )


def _overlaps(first: Tensor, second: Tensor) -> Tensor:
    """IoU, float64 (a, b), to compare with thresholds as torchvision's NMS does; 0 between empty boxes."""
    overlaps: Tensor = box_iou(first, second).double().nan_to_num(0)
    return overlaps


def _classes(labels: Tensor, order: Tensor) -> Iterator[Tensor]:
    """Yield the members of each class among positions `order`, in that order."""
    mine = labels[order]
    for label in mine.unique().tolist():
        yield order[mine == label]


def _blocks(rows: int, columns: int) -> Iterator[slice]:
    """Cut rows so that a block of them, times the columns, stays small."""
    step = max(1, _BLOCK_CELLS // max(1, columns))
    for start in range(0, rows, step):
        yield slice(start, min(start + step, rows))
