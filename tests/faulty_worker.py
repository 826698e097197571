"""A TorchServe handler that speaks the worker's protocol and misbehaves as the picture's bytes say.

It is packed into an archive by the tests and runs in a real worker.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Sequence
from typing import Any

from whybox_proto.departures import Departures
from whybox_proto.v1 import explainer_pb2, types_pb2, worker_pb2

# A file; while it is there, no worker can load.
_BROKEN = os.environ.get("FAULTY_BROKEN")

MODEL = types_pb2.Model(
    name="told-by-the-worker",
    labels=["thing"],
    default_nms="iou",
    nms=[types_pb2.Nms(kind="iou", iou_threshold=0.5)],
)


def handle(data: Sequence[dict[str, Any]] | None, _context: Any) -> list[bytes] | None:
    """Answer a batch; TorchServe calls it once with nothing, to load."""
    if data is None:
        if _BROKEN is not None and os.path.exists(_BROKEN):
            raise RuntimeError("what the worker needs is broken")
        return None
    return [_answer(worker_pb2.WorkerRequest.FromString(bytes(part["body"]))) for part in data]


def _answer(request: worker_pb2.WorkerRequest) -> bytes:
    reply = worker_pb2.WorkerReply()
    if request.WhichOneof("operation") == "describe":
        reply.model.CopyFrom(MODEL)
        return reply.SerializeToString()
    wish, _, amount = request.detect.image.decode().partition(" ")
    if wish == "raise":
        raise RuntimeError("a bug")
    if wish == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    if wish == "sleep":
        time.sleep(float(amount))
    if wish == "work":
        _work(float(amount), request)
    if wish == "garbage":
        return b"\xff\xff\xff"
    if wish == "nothing":
        return b""
    if wish == "other":
        reply.explain.CopyFrom(explainer_pb2.ExplainResponse())
    elif wish == "error":
        reply.error.CopyFrom(
            explainer_pb2.Error(type=amount, message="told", field="image", expected="e", got="g")
        )
    else:
        reply.detect.warnings.append(f"{wish} {'x' * int(float(amount or 0))}")
    return reply.SerializeToString()


def _work(seconds: float, request: worker_pb2.WorkerRequest) -> None:
    """Work in small parts, and stop where nobody waits any more, as a detector's worker does."""
    until = time.time() + seconds
    while time.time() < min(until, request.deadline) and not Departures.from_environment().told(
        request.call_id
    ):
        time.sleep(0.05)
