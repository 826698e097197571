"""What the tests of sampling, streams and evaluation share: a service on `sampling_worker`, and its log."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from google.protobuf import json_format

import sampling_worker
from conftest import PATIENCE_SECONDS, Live, serving
from gateway_calls import b64
from test_gateway_backend import pack
from whybox_proto.sums import Totals, chunks
from whybox_proto.v1 import explainer_pb2, types_pb2, worker_pb2

ONE, TWO = "one-worker", "two-workers"
ENVIRONMENT = {"WHYBOX_POLL_SECONDS": "0.5", "WHYBOX_BODY_SECONDS": "3", "WHYBOX_MAX_SUMS_BYTES": "26000000"}


@dataclass(frozen=True)
class Sampler:
    """A running service.

    Attributes:
        live: the service.
        log: what its workers did.
    """

    live: Live
    log: Path

    def done(self, request_id: str, operation: str = "sample") -> list[dict[str, Any]]:
        """What was done for a request, in the order in which it ended."""
        lines = [json.loads(line) for line in self.log.read_text().splitlines() if line.endswith("}")]
        return [line for line in lines if line["request"] == request_id and line["operation"] == operation]


@contextmanager
def sampling_service(scratch: Path, **environment: str) -> Iterator[Sampler]:
    """Serve one model of `sampling_worker` with one worker, and one with two."""
    store = scratch / "store"
    store.mkdir()
    log = scratch / "done.jsonl"
    log.touch()
    handler = Path(sampling_worker.__file__)
    for name, workers in ((ONE, 1), (TWO, 2)):
        pack(name, handler, store, queue=20, workers=workers, batch_size=4, batch_delay=50)
    with serving(store, scratch, env={**ENVIRONMENT, "SAMPLER_LOG": str(log), **environment}) as live:
        yield Sampler(live, log)


def asking(model: str, wishes: dict[str, Any] | None = None, **fields: Any) -> dict[str, Any]:
    """An explain request, as JSON has it."""
    image = b64(json.dumps(wishes or {}).encode())
    return {"model": model, "image": image, "method": "sampler", **fields}


def message(request: dict[str, Any]) -> explainer_pb2.ExplainRequest:
    """The same as a message."""
    return json_format.ParseDict(request, explainer_pb2.ExplainRequest())


def expected_maps(request: dict[str, Any], *, encoding: str = "f32") -> list[types_pb2.HeatMap]:
    """The maps that the request's samples make, one chunk after the other."""
    asked = message(request)
    plan = sampling_worker.plan_of(asked)
    totals = Totals(plan)
    for chunk in chunks(plan):
        part = worker_pb2.SampleRequest(
            explain=asked, first=chunk.first, count=chunk.count, group=chunk.group, groups=plan.groups
        )
        totals.add(chunk, sampling_worker.sums_of(part))
    return totals.heat_maps(list(asked.targets or ["class"]), encoding)


def parsed(answer: dict[str, Any]) -> explainer_pb2.ExplainResponse:
    """An answer in JSON as a message."""
    return json_format.ParseDict(answer, explainer_pb2.ExplainResponse())


def same_maps(got: Any, expected: list[types_pb2.HeatMap]) -> bool:
    """Whether maps are the same, bit for bit."""
    return [m.SerializeToString(deterministic=True) for m in got] == [
        m.SerializeToString(deterministic=True) for m in expected
    ]


def most_at_one_time(done: list[dict[str, Any]]) -> int:
    """How many chunks were being worked on at the same moment."""
    edges = sorted([(d["started"], 1) for d in done] + [(d["ended"], -1) for d in done])
    return int(np.cumsum([edge for _, edge in edges]).max())


def eventually(holds: Callable[[], bool]) -> None:
    """Wait until something holds."""
    patience = time.monotonic() + PATIENCE_SECONDS
    while not holds():
        assert time.monotonic() < patience
        time.sleep(0.05)
