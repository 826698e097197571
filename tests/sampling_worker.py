"""A TorchServe handler without torch that plans, samples and measures, as the picture's bytes (JSON) say.

It is packed into an archive by the tests and runs in a real worker. What it does is kept, a line each, in the
file that `SAMPLER_LOG` names.
"""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from whybox_proto import maps
from whybox_proto.departures import Departures
from whybox_proto.sums import members
from whybox_proto.v1 import explainer_pb2, types_pb2, worker_pb2

LOG = os.environ.get("SAMPLER_LOG")

MODEL = types_pb2.Model(
    labels=["thing"],
    default_nms="iou",
    nms=[types_pb2.Nms(kind="iou", iou_threshold=0.5)],
    methods=[
        types_pb2.Method(name="odam", targets=["class", "x1"]),
        types_pb2.Method(name="sampler", targets=["class", "x1"], sampling=True),
    ],
    measures=[
        types_pb2.Measure(name="mean", protocol="The mean of the cells.", better="higher"),
        types_pb2.Measure(name="things", protocol="Objects.", better="higher", needs="box"),
    ],
)
# What the picture leaves open.
WISHES: dict[str, Any] = {
    "detections": 2,
    "cells": [3, 4],
    "size": [40, 30],
    "samples": 32,
    "round": 8,
    "groups": 1,
    "seconds": 0.0,
    "slow_at": -1,
    "missed": False,
    "fail_at": -1,
    "odd_at": -1,
    "odd": "",
    "die_at": -1,
    "died": "",
}


def handle(data: Sequence[dict[str, Any]] | None, _context: Any) -> list[bytes] | None:
    """Answer a batch; TorchServe calls it once with nothing, to load."""
    if data is None:
        return None
    arrived = time.perf_counter()
    answers = []
    for part in data:
        reply = answer(worker_pb2.WorkerRequest.FromString(bytes(part["body"])))
        reply.seconds = time.perf_counter() - arrived
        answers.append(reply.SerializeToString())
    return answers


def answer(request: worker_pb2.WorkerRequest) -> worker_pb2.WorkerReply:
    """Answer one request."""
    operation = request.WhichOneof("operation")
    if operation == "describe":
        return worker_pb2.WorkerReply(model=MODEL)
    started = time.time()
    reply = worker_pb2.WorkerReply()
    if operation == "detect":
        reply.detect.CopyFrom(explainer_pb2.DetectResponse())
    elif operation == "explain":
        reply.explain.CopyFrom(_found(request.explain))
        for heat_map, values in zip(_maps_of(reply.explain), single_maps(request.explain), strict=True):
            maps.encode(values, heat_map, request.explain.output.encoding or "u8")
    elif operation == "plan":
        reply.plan.CopyFrom(plan_of(request.plan))
    elif operation == "sample":
        _sample(request, reply)
    elif operation == "measure":
        _measure(request, reply)
    _keep(operation or "", request, started)
    return reply


def wishes(image: bytes) -> dict[str, Any]:
    """What a picture asks for."""
    return {**WISHES, **json.loads(image)}


def plan_of(request: explainer_pb2.ExplainRequest) -> worker_pb2.Plan:
    """The plan of a request."""
    asked = wishes(request.image)
    samples = request.budget.samples if request.budget.HasField("samples") else asked["samples"]
    answer = _found(request)
    del _maps_of(answer)[:]
    return worker_pb2.Plan(
        answer=answer,
        samples=samples if asked["detections"] else 0,
        round_samples=asked["round"],
        groups=asked["groups"],
        state=b"state",
    )


def sums_of(request: worker_pb2.SampleRequest) -> worker_pb2.Sums:
    """The sums of a chunk: each sample's values come from the seed and its number alone."""
    asked, sums = wishes(request.explain.image), worker_pb2.Sums()
    height, width = asked["cells"]
    for detection in members(asked["detections"], request.groups, request.group):
        for target in request.explain.targets or ["class"]:
            values = np.zeros((height, width), np.float32)
            for sample in range(request.first, request.first + request.count):
                key = [request.explain.seed, sample, detection, len(target)]
                values += np.random.default_rng(key).random((height, width), np.float32)
            header = _header(detection, target, asked)
            header.width, header.height = width, height
            sums.sums.add(heat_map=header, values=values.astype("<f4").tobytes(), weight=request.count)
    return sums


def single_maps(request: explainer_pb2.ExplainRequest) -> list[Any]:
    """The maps of the method that draws no samples."""
    asked = wishes(request.image)
    height, width = asked["cells"]
    count = asked["detections"] * max(1, len(request.targets))
    return [np.random.default_rng([7, i]).random((height, width), np.float32) for i in range(count)]


def mean_of(heat_map: types_pb2.HeatMap) -> float:
    """The measure ``mean``."""
    return float(np.float32(maps.decode(heat_map).mean(dtype=np.float64)))


def _found(request: explainer_pb2.ExplainRequest) -> explainer_pb2.ExplainResponse:
    """The answer, with maps that have no cells yet."""
    asked = wishes(request.image)
    answer = explainer_pb2.ExplainResponse(
        image=types_pb2.ImageSize(width=asked["size"][0], height=asked["size"][1]),
        stages=[types_pb2.Stage(name="forward", seconds=0.001)],
    )
    found = [
        types_pb2.Detection(index=i, box=[1, 2, 3 + i, 4], label="thing", score=0.5)
        for i in range(asked["detections"])
    ]
    if asked["missed"]:
        answer.why_not.candidate.CopyFrom(found[0])
        answer.why_not.reason = "score"
    else:
        answer.detections.extend(found)
    for i in range(asked["detections"]):
        for target in request.targets or ["class"]:
            _maps_of(answer).append(_header(i, target, asked))
    return answer


def _maps_of(answer: explainer_pb2.ExplainResponse) -> Any:
    return answer.why_not.heat_maps if answer.HasField("why_not") else answer.heat_maps


def _header(detection: int, target: str, asked: dict[str, Any]) -> types_pb2.HeatMap:
    region = [0, 0, *asked["size"]]
    return types_pb2.HeatMap(detection_index=detection, target=target, method="sampler", region=region)


def _sample(request: worker_pb2.WorkerRequest, reply: worker_pb2.WorkerReply) -> None:
    asked, chunk = wishes(request.sample.explain.image), request.sample
    assert chunk.state == b"state"
    if chunk.first == asked["die_at"] and not Path(asked["died"]).exists():
        Path(asked["died"]).touch()
        os.kill(os.getpid(), signal.SIGKILL)
    if chunk.first == asked["fail_at"]:
        reply.error.CopyFrom(explainer_pb2.Error(type="invalid_argument", message="told", field="params.x"))
    elif _wait(30.0 if chunk.first == asked["slow_at"] else asked["seconds"], request):
        reply.sample.CopyFrom(sums_of(chunk))
        if chunk.first == asked["odd_at"]:
            _spoil(reply.sample, asked["odd"])
    else:
        reply.error.CopyFrom(explainer_pb2.Error(type="deadline_exceeded", message="nobody waits"))


def _spoil(sums: worker_pb2.Sums, how: str) -> None:
    """Make a chunk's sums other than its plan has them."""
    part = sums.sums[0]
    if how == "more cells":
        part.heat_map.width += 1
        part.values += bytes(4 * part.heat_map.height)
    elif how == "fewer bytes":
        part.values = part.values[4:]
    elif how == "another map":
        sums.sums.add().CopyFrom(part)
        sums.sums[-1].heat_map.detection_index = 99


def _measure(request: worker_pb2.WorkerRequest, reply: worker_pb2.WorkerReply) -> None:
    asked = request.measure
    _wait(wishes(asked.image)["seconds"], request)
    reply.measure.detection_index = asked.detection.index
    reply.measure.target = asked.heat_map.target
    reply.measure.values["mean"] = mean_of(asked.heat_map)
    if asked.HasField("truth"):
        reply.measure.values["things"] = len(asked.truth.objects)


def _wait(seconds: float, request: worker_pb2.WorkerRequest) -> bool:
    """Work in small parts; return whether somebody waits still."""
    departures, until = Departures.from_environment(), time.time() + seconds
    while time.time() < until:
        if departures.told(request.call_id) or time.time() > request.deadline:
            return False
        time.sleep(0.02)
    return True


def _keep(operation: str, request: worker_pb2.WorkerRequest, started: float) -> None:
    """Write down what was done."""
    if LOG is None:
        return
    told = Departures.from_environment().told(request.call_id)
    done = {
        "request": request.request_id,
        "operation": operation,
        "first": request.sample.first,
        "group": request.sample.group,
        "pid": os.getpid(),
        "started": started,
        "ended": time.time(),
        "told": told,
    }
    with Path(LOG).open("a") as file:
        file.write(json.dumps(done) + "\n")
