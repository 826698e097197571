"""A TorchServe handler that answers with as many bytes as it is asked for, through the worker's own codec.

It is packed into an archive by the tests and runs in a real worker.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from whybox.torchserve import codec
from whybox_proto.v1 import types_pb2, worker_pb2

MODEL = types_pb2.Model(
    name="told-by-the-worker",
    labels=["thing"],
    default_nms="iou",
    nms=[types_pb2.Nms(kind="iou", iou_threshold=0.5)],
)


def handle(data: Sequence[dict[str, Any]] | None, context: Any) -> list[bytes | str] | None:
    """Answer a batch; TorchServe calls it once with nothing, to load."""
    if data is None:
        return None
    answers = []
    for i, part in enumerate(data):
        call = codec.read(part, {"content-type": codec.PROTOBUF})
        assert call.request is not None
        answer = call.write(reply(call.request))
        context.set_response_content_type(i, answer.content_type)
        answers.append(answer.body)
    return answers


def reply(request: worker_pb2.WorkerRequest) -> worker_pb2.WorkerReply:
    """A reply that takes, serialized, as many bytes as the request's picture says."""
    if request.WhichOneof("operation") == "describe":
        return worker_pb2.WorkerReply(model=MODEL)
    size = int(request.detect.image)
    made = worker_pb2.WorkerReply()
    made.detect.warnings.append("x" * size)
    made.detect.warnings[0] = "x" * (2 * size - made.ByteSize())
    assert made.ByteSize() == size
    return made
