"""A worker without torch that inverts layouts: it counts, and its state says who did which iterations.

What a job does is said by its parameters. It is played by `jobs_parts.PlayedTorchServe` in the tests' own
process, and packed into an archive for a real worker.
"""

from __future__ import annotations

import io
import json
import os
import time
from collections.abc import Sequence
from typing import Any

from whybox_proto.errors import ContractError
from whybox_proto.inversions import check_inversion
from whybox_proto.v1 import explainer_pb2, types_pb2, worker_pb2

MODEL = types_pb2.Model(
    labels=["thing", "other"],
    input=types_pb2.InputLimits(max_aspect=20, max_pixels=1_010_000),
    default_nms="iou",
    nms=[types_pb2.Nms(kind="iou", iou_threshold=0.5)],
    methods=[types_pb2.Method(name="odam", targets=["class"])],
    inversion=types_pb2.Invertible(
        params=[
            # Of the job, of a step, and how long an iteration takes.
            types_pb2.Parameter(name="iterations", type="integer", minimum=1, maximum=100_000),
            types_pb2.Parameter(name="per_step", type="integer", minimum=1),
            types_pb2.Parameter(name="pause", type="number", minimum=0, maximum=10),
            # The step that is refused; 0: none.
            types_pb2.Parameter(name="fail_at", type="integer", minimum=0),
            # Bytes of the state beside what it says.
            types_pb2.Parameter(name="ballast", type="integer", minimum=0),
        ],
        presets=[types_pb2.Preset(name="plain", description="Counts.")],
        max_pixels=1 << 20,
        min_side=16,
        max_objects=10,
        masks=True,
    ),
)
ASKED_FILE = "INVERSION_WORKER_ASKED"
"""Variable that names a file, which gets the id of each step that a worker is asked for."""
DEFAULTS = {"iterations": 20, "per_step": 5, "pause": 0.01, "fail_at": 0, "ballast": 0}


def handle(data: Sequence[dict[str, Any]] | None, _context: Any) -> list[bytes] | None:
    """Answer a batch; TorchServe calls it once with nothing, to load."""
    if data is None:
        return None
    return [
        answer(worker_pb2.WorkerRequest.FromString(bytes(part["body"]))).SerializeToString() for part in data
    ]


def answer(request: worker_pb2.WorkerRequest) -> worker_pb2.WorkerReply:
    """Answer one request."""
    started, reply = time.perf_counter(), worker_pb2.WorkerReply()
    operation = request.WhichOneof("operation")
    if operation == "advance" and (log := os.environ.get(ASKED_FILE)):
        with open(log, "a") as file:
            file.write(f"{request.request_id}\n")
    if operation == "describe":
        reply.model.CopyFrom(MODEL)
    elif operation == "detect":
        reply.detect.CopyFrom(explainer_pb2.DetectResponse())
    elif operation == "advance":
        try:
            reply.advance.CopyFrom(advance(request.advance))
        except ContractError as error:
            reply.error.CopyFrom(error.to_message())
    reply.seconds = time.perf_counter() - started
    return reply


def advance(request: worker_pb2.AdvanceRequest) -> worker_pb2.Advance:
    """Do a step."""
    asked = request.inversion
    check_inversion(asked, MODEL)
    params = {**DEFAULTS, **{name: value.number_value for name, value in asked.params.fields.items()}}
    if request.state:
        assert not asked.image, "the picture goes with the first step alone"
        done, start = json.loads(request.state.rstrip(b"."))
    else:
        done, start = [], len(asked.image)
    last = min(len(done) + int(params["per_step"]), int(params["iterations"]))
    if params["fail_at"] and len(done) < params["fail_at"] <= last:
        raise ContractError("invalid_argument", "told to fail", field="params.fail_at")
    for iteration in range(len(done) + 1, last + 1):
        time.sleep(params["pause"])
        done.append([iteration, os.getpid()])
    made = worker_pb2.Advance(
        state=json.dumps([done, start]).encode() + b"." * int(params["ballast"]),
        picture=picture_of(len(done)),
    )
    made.progress.iteration, made.progress.iterations = len(done), int(params["iterations"])
    made.progress.losses["all"] = 1.0 / len(done)
    made.progress.found = 1
    if len(done) == params["iterations"]:
        made.result.detections.add(box=[1, 2, 30, 40], label="thing", score=0.9)
        made.result.match.recall, made.result.match.ap50, made.result.match.mean_iou = 1.0, 1.0, 0.9
        curve = made.result.losses.add(name="all")
        curve.iterations.extend(iteration for iteration, _ in done)
        curve.values.extend(1.0 / iteration for iteration, _ in done)
        made.result.params.update({**params, "start": start, "workers": len({worker for _, worker in done})})
    return made


def picture_of(iteration: int) -> bytes:
    """The picture after an iteration: a grey that tells which."""
    from PIL import Image

    out = io.BytesIO()
    Image.new("L", (32, 32), iteration % 256).save(out, "PNG")
    return out.getvalue()
