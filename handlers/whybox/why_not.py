"""Why is an object that was expected not in the answer?

The candidate that comes closest to the expected object is followed through post-processing, and the first
step at which it was lost is the reason.

**Which candidate.** A detection of the expected label in the answer whose IoU with the expected box is at
least `SURE`: then the object was found. Else, of all that the network proposes as the expected label, those
whose IoU is at least `CLOSE`, and of these the one with the highest product of score and IoU: in a crowd a
neighbour's candidate overlaps too, with a better score but a worse box. If there is none, the one with the
highest IoU, if that is at least `NEAR`; else there is no candidate.

**Which step**, in their order:

============  ===========================================================================================
outscored     its score is not above the threshold, but that of another class of the same candidate is
score         its score is not above the threshold
limit         too many better ones entered the suppression of duplicates (one-stage detectors take so
              many from each level), or they fill the answer
suppressed    another box was taken for the same object
filtered      it was found, and `select` leaves it out
============  ===========================================================================================
"""

from __future__ import annotations

import torch
from torch import Tensor
from torchvision.ops import box_iou, clip_boxes_to_image

from whybox.detectors.base import Detections
from whybox.finding import Finding
from whybox.selection import limit_of
from whybox.suppressed import messages_of_reasons, positions_of
from whybox_proto.errors import ContractError
from whybox_proto.v1 import types_pb2

SURE, CLOSE, NEAR = 0.75, 0.5, 0.1


def why_not(
    found: Finding, answer: Detections, asked: types_pb2.Select, labels: tuple[str, ...]
) -> tuple[types_pb2.WhyNot, Detections]:
    """Follow the candidate nearest to an expected object.

    Args:
        found: with the verdict's reasons.
        answer: the detections of the answer.
        asked: with `expected`, whose label and box have been checked.
        labels: the model's.

    Returns:
        The answer without its heat maps, and the candidate as a detection of the expected label; none, where
        there is no candidate.

    Raises:
        ContractError: if the expected box lies outside the picture.
    """
    label = labels.index(asked.expected.label)
    row, overlap = _candidate(found, answer, _on_picture(found, list(asked.expected.box)), label)
    if row is None:
        return types_pb2.WhyNot(reason="no_candidate"), answer[:0]
    candidate = _detection(found, row, label)
    told = types_pb2.WhyNot(
        candidate=types_pb2.Detection(
            box=candidate.boxes[0].tolist(),
            label=labels[label],
            label_id=label,
            score=float(candidate.scores[0]),
        ),
        expected_iou=overlap,
    )
    index = positions_of(answer).get((row, label))
    place = _place(found, row, label)
    if index is not None:
        told.reason, told.by_index = "found", index
    elif place is None:
        _never_entered(told, found, answer, row, label, labels)
    elif place in (kept := found.verdict.kept.tolist()):
        told.reason = _left_out(found, kept[: kept.index(place)], label, asked, labels)
    else:
        told.reason = "suppressed"
        told.suppressed.CopyFrom(_dropped(found, place, answer, labels))
        if told.suppressed.HasField("by_index"):
            told.by_index = told.suppressed.by_index
    return told, candidate


def _on_picture(found: Finding, expected: list[float]) -> Tensor:
    """Cut the expected box to the picture: float (1, 4)."""
    width, height = found.frame.width, found.frame.height
    box: Tensor = clip_boxes_to_image(found.candidates.boxes.new_tensor([expected]), (height, width))
    if bool((box[0, 2:] <= box[0, :2]).any()):
        raise ContractError(
            "invalid_argument",
            "the expected box lies outside the picture",
            field="select.expected.box",
            expected=f"a box that overlaps the picture, {width} x {height} pixels",
            got=", ".join(f"{side:g}" for side in expected),
        )
    return box


def _candidate(found: Finding, answer: Detections, box: Tensor, label: int) -> tuple[int | None, float]:
    """Choose the candidate as the module says; its position, and its IoU with the expected box (1, 4)."""
    mine = answer[answer.labels == label]
    if len(mine):
        overlap, best = box_iou(mine.boxes, box)[:, 0].max(0)
        if float(overlap) >= SURE:
            return int(mine.candidates[best]), float(overlap)
    scores = found.candidates.scores[:, label]
    rows = torch.arange(len(scores), device=scores.device)
    if not len(rows):
        return None, 0.0
    overlaps = box_iou(_boxes(found, rows, label), box)[:, 0]
    close = overlaps >= CLOSE
    best = (torch.where(close, scores * overlaps, -1) if bool(close.any()) else overlaps).argmax()
    overlap = overlaps[best]
    return (int(best), float(overlap)) if float(overlap) >= NEAR else (None, 0.0)


def _boxes(found: Finding, rows: Tensor, label: int) -> Tensor:
    """The boxes of candidates as one label, on the picture: float (n, 4), image frame."""
    frame = found.frame
    boxes = found.candidates.boxes_of(rows, torch.full_like(rows, label))
    return frame.to_image(clip_boxes_to_image(boxes, (frame.network_height, frame.network_width)))


def _detection(found: Finding, row: int, label: int) -> Detections:
    """The candidate, as if it had been detected as the label."""
    scores = found.candidates.scores
    rows = torch.tensor([row], device=scores.device)
    labels = torch.full_like(rows, label)
    return Detections(_boxes(found, rows, label), labels, scores[rows, labels], scores[rows], rows)


def _place(found: Finding, row: int, label: int) -> int | None:
    """Where the candidate as this label stands among the contenders; None if it did not enter."""
    contenders = found.contenders
    places = torch.where((contenders.candidates == row) & (contenders.labels == label))[0]
    return int(places[0]) if len(places) else None


def _never_entered(
    told: types_pb2.WhyNot,
    found: Finding,
    answer: Detections,
    row: int,
    label: int,
    labels: tuple[str, ...],
) -> None:
    """Tell why the candidate did not enter the suppression of duplicates as this label."""
    scores, threshold = found.candidates.scores[row], found.settings.score_threshold
    best = int(scores.argmax())
    if float(scores[label]) > threshold and (best == label or not found.contenders.best_class_only):
        told.reason = "limit"
        return
    told.score_threshold = threshold
    if float(scores[best]) <= threshold:
        told.reason = "score"
        return
    told.reason, told.by_label, told.by_score = "outscored", labels[best], float(scores[best])
    # The other class is in the answer from this candidate, or from the one that suppressed it.
    index = positions_of(answer).get((row, best))
    place = _place(found, row, best)
    if index is None and place is not None and place not in found.verdict.kept.tolist():
        dropped = _dropped(found, place, answer, labels)
        index = dropped.by_index if dropped.HasField("by_index") else None
    if index is not None:
        told.by_index = index


def _dropped(
    found: Finding, place: int, answer: Detections, labels: tuple[str, ...]
) -> types_pb2.SuppressedDetection:
    """Tell how a contender was suppressed."""
    reasons = found.verdict.reasons
    assert reasons is not None
    (message,) = messages_of_reasons(found, [reasons.dropped.tolist().index(place)], answer, labels)
    return message


def _left_out(
    found: Finding, better: list[int], label: int, asked: types_pb2.Select, labels: tuple[str, ...]
) -> str:
    """Tell what left out a contender that was not suppressed; `better` are those kept before it."""
    wanted = {labels.index(name) for name in asked.labels}
    if wanted and label not in wanted:
        return "filtered"
    before = found.contenders.labels[better].tolist()
    ahead = [other for other in before if not wanted or other in wanted]
    full = len(ahead) >= limit_of(asked) or len(better) >= found.settings.max_detections
    return "limit" if full else "filtered"
