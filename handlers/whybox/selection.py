"""Which detections an answer is about: a request's settings of post-processing, and its selection."""

from __future__ import annotations

import torch
from torchvision.ops import box_iou

from whybox.detectors.base import Detections, PostProcessing
from whybox.nms import KINDS
from whybox_proto.checks import DEFAULT_MAX_DETECTIONS, MAX_DETECTIONS
from whybox_proto.errors import ContractError
from whybox_proto.v1 import explainer_pb2, types_pb2

Request = explainer_pb2.DetectRequest | explainer_pb2.ExplainRequest


def settings_of(request: Request, model: types_pb2.Model) -> PostProcessing:
    """Return the post-processing that a request asks for; what it leaves open is the model's."""
    select, nms = request.select, request.nms
    kind = nms.kind or model.default_nms
    described = next(d for d in model.nms if d.kind == kind)
    numbers = {name: getattr(nms if nms.HasField(name) else described, name) for name in KINDS[kind]}
    # With a filter on labels the limit applies after it.
    limit = MAX_DETECTIONS if select.labels else limit_of(select)
    threshold = select.score_threshold if select.HasField("score_threshold") else model.score_threshold
    return PostProcessing(threshold, limit, kind, **numbers)


def select(
    found: Detections, asked: types_pb2.Select, labels: tuple[str, ...], warnings: list[str]
) -> Detections:
    """Keep the detections that a request asks about.

    Args:
        found: after post-processing, best first.
        asked: labels, then the limit, then the box, then the indices.
        labels: the model's.
        warnings: added to.

    Raises:
        ContractError: for an index beyond the detections.
    """
    if asked.labels:
        wanted = torch.tensor([labels.index(label) for label in asked.labels])
        found = found[torch.isin(found.labels, wanted.to(found.labels.device))][: limit_of(asked)]
    if asked.box and len(found):
        overlap = box_iou(found.boxes, found.boxes.new_tensor([list(asked.box)]))[:, 0]
        best = int(overlap.argmax())
        if float(overlap[best]) > 0:
            found = found[best : best + 1]
        else:
            warnings.append("no detection overlaps select.box")
            found = found[:0]
    for i, index in enumerate(asked.indices):
        if index >= len(found):
            raise ContractError(
                "invalid_argument",
                "there is no such detection",
                field=f"select.indices[{i}]",
                expected=f"0 to {len(found) - 1}" if len(found) else "no indices: there are no detections",
                got=str(index),
            )
    if asked.indices:
        found = found[torch.tensor(list(asked.indices), device=found.labels.device)]
    return found


def messages_of(found: Detections, labels: tuple[str, ...]) -> list[types_pb2.Detection]:
    """Write detections, numbered in their order."""
    rows = zip(found.boxes.tolist(), found.labels.tolist(), found.scores.tolist(), strict=True)
    return [
        types_pb2.Detection(index=i, box=box, label=labels[label], label_id=label, score=score)
        for i, (box, label, score) in enumerate(rows)
    ]


def limit_of(asked: types_pb2.Select) -> int:
    """Return the most detections that an answer shall have."""
    return asked.max_detections if asked.HasField("max_detections") else DEFAULT_MAX_DETECTIONS
