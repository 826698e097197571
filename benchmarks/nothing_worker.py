"""A TorchServe handler that finds nothing, at once: what is left of a call is the way to it and back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from whybox_proto.v1 import explainer_pb2, types_pb2, worker_pb2

MODEL = types_pb2.Model(
    labels=["thing"], default_nms="iou", nms=[types_pb2.Nms(kind="iou", iou_threshold=0.5)]
)


def handle(data: Sequence[dict[str, Any]] | None, _context: Any) -> list[bytes] | None:
    """Answer a batch; TorchServe calls it once with nothing, to load."""
    if data is None:
        return None
    return [_answer(worker_pb2.WorkerRequest.FromString(bytes(part["body"]))) for part in data]


def _answer(request: worker_pb2.WorkerRequest) -> bytes:
    if request.WhichOneof("operation") == "describe":
        return worker_pb2.WorkerReply(model=MODEL).SerializeToString()
    found = explainer_pb2.DetectResponse(
        image=types_pb2.ImageSize(width=640, height=480),
        detections=[
            types_pb2.Detection(index=i, box=[0.5, 1.5, 20.25, 30.75], label="thing", score=0.5)
            for i in range(10)
        ],
    )
    return worker_pb2.WorkerReply(detect=found).SerializeToString()
