"""What was dropped as a duplicate, as an answer tells it."""

from __future__ import annotations

import math

from whybox.detectors.base import Detections
from whybox.finding import Finding
from whybox_proto.v1 import types_pb2

MAX_SUPPRESSED = 1000
"""Most that an answer lists, the best: a detector may propose ten thousands."""


def positions_of(answer: Detections) -> dict[tuple[int, int], int]:
    """Return each detection's position in the answer, by its candidate and label.

    The two name a detection whatever selection did to the order.
    """
    pairs = zip(answer.candidates.tolist(), answer.labels.tolist(), strict=True)
    return {pair: index for index, pair in enumerate(pairs)}


def suppressed_messages(
    found: Finding, answer: Detections, asked: types_pb2.Select, labels: tuple[str, ...], warnings: list[str]
) -> list[types_pb2.SuppressedDetection]:
    """Write what was dropped, best first.

    Args:
        found: with the verdict's reasons.
        answer: the detections of the answer, which `by_index` points to.
        asked: only its labels matter; a box or indices choose among detections.
        labels: the model's.
        warnings: added to where not all are listed.
    """
    reasons = found.verdict.reasons
    assert reasons is not None
    wanted = {labels.index(label) for label in asked.labels}
    of = found.contenders.labels[reasons.dropped].tolist()
    chosen = [number for number, label in enumerate(of) if not wanted or label in wanted]
    if len(chosen) > MAX_SUPPRESSED:
        warnings.append(f"suppressed lists the best {MAX_SUPPRESSED} of {len(chosen)}")
    return messages_of_reasons(found, chosen[:MAX_SUPPRESSED], answer, labels)


def messages_of_reasons(
    found: Finding, chosen: list[int], answer: Detections, labels: tuple[str, ...]
) -> list[types_pb2.SuppressedDetection]:
    """Write the reasons at chosen positions of the verdict's reasons."""
    reasons, contenders = found.verdict.reasons, found.contenders
    assert reasons is not None
    positions = positions_of(answer)
    dropped, by = reasons.dropped[chosen], reasons.by[chosen]
    keys = list(zip(contenders.candidates[by].tolist(), contenders.labels[by].tolist(), strict=True))
    rows = zip(
        contenders.shown(dropped, found.frame).tolist(),
        contenders.labels[dropped].tolist(),
        contenders.scores[dropped].tolist(),
        [positions.get(key) if place >= 0 else None for key, place in zip(keys, by.tolist(), strict=True)],
        reasons.ious[chosen].tolist(),
        reasons.correlations[chosen].tolist(),
        [reasons.rules[number] for number in chosen],
        strict=True,
    )
    return [
        types_pb2.SuppressedDetection(
            box=box,
            label=labels[label],
            score=score,
            by_index=index,
            iou=iou,
            correlation=None if math.isnan(correlation) else correlation,
            rule=rule,
        )
        for box, label, score, index, iou, correlation, rule in rows
    ]
