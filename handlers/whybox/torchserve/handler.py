"""The TorchServe handler: bytes in, bytes out, one answer for each request of a batch."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from whybox.engine import Engine
from whybox.recipe import read_recipe
from whybox.torchserve import codec, logs
from whybox.torchserve.metrics import WorkerMetrics
from whybox.torchserve.traces import WorkerTracing
from whybox_proto.v1 import worker_pb2

logger = logging.getLogger(__name__)

RECIPE_FILE = "recipe.yaml"
"""The recipe's name inside an archive; it names the weights beside it."""


class WhyboxHandler:
    """Serves one archive.

    The gateway's calls carry a `whybox.v1.WorkerRequest` as ``application/x-protobuf``. Anything else is a
    picture as it is: ``curl -T image.jpg …/predictions/{model}`` detects,
    ``…/explanations/{model}`` explains, both in JSON.
    """

    def initialize(self, context: Any) -> None:
        """Load the archive's model; TorchServe calls it once in each worker."""
        logs.configure()
        properties = context.system_properties
        folder = Path(properties["model_dir"])
        recipe = read_recipe(folder / RECIPE_FILE)
        if recipe.weights is None:
            raise ValueError(f"{folder / RECIPE_FILE}: weights: expected the name of a file; got none")
        gpu = properties.get("gpu_id")
        device = torch.device(f"cuda:{gpu}" if torch.cuda.is_available() and gpu is not None else "cpu")
        self.engine = Engine.load(recipe, folder / recipe.weights, device)
        self._name = recipe.name
        self._metrics = WorkerMetrics(context, recipe.name)
        self._tracing = WorkerTracing.from_environment()
        logger.info("%s %s is loaded on %s", recipe.name, recipe.version, device)

    def handle(self, data: Sequence[Mapping[str, Any]], context: Any) -> list[bytes | str]:
        """Answer the requests of a batch, each on its own."""
        arrived = time.perf_counter()
        headers = [
            {key.lower(): value for key, value in context.get_all_request_header(i).items()}
            for i in range(len(data))
        ]
        calls = [codec.read(part, header) for part, header in zip(data, headers, strict=True)]
        replies = iter(self._answer([call.request for call in calls if call.request is not None], arrived))
        answers = []
        for i, call in enumerate(calls):
            answer = call.write(next(replies) if call.request is not None else None)
            context.set_response_content_type(i, answer.content_type)
            if answer.status != 200:
                context.set_response_status(answer.status, answer.phrase, i)
            answers.append(answer.body)
        return answers

    def _answer(
        self, requests: Sequence[worker_pb2.WorkerRequest], arrived: float
    ) -> list[worker_pb2.WorkerReply]:
        """Have the engine answer; say how long each took, and tell logs, metrics and traces."""
        traces = [self._tracing.of(request) for request in requests]
        stages: list[dict[str, float]] = [{} for _ in requests]

        def watch(position: int, stage: str, seconds: float) -> None:
            stages[position][stage] = stages[position].get(stage, 0.0) + seconds
            if (trace := traces[position]) is not None:
                trace.stage(stage, seconds)

        with logs.at_hand(request.request_id for request in requests):
            replies = self.engine.answer(requests, watch)
        for request, reply, trace, taken in zip(requests, replies, traces, stages, strict=True):
            reply.seconds = time.perf_counter() - arrived
            self._metrics.tell(request.WhichOneof("operation") or "unknown", reply, taken)
            if trace is not None:
                trace.finish(self._name, reply)
        return replies
