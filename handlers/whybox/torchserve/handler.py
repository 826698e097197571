"""The TorchServe handler: bytes in, bytes out, one answer for each request of a batch."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from whybox.engine import Engine
from whybox.recipe import read_recipe
from whybox.torchserve import codec

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
        properties = context.system_properties
        folder = Path(properties["model_dir"])
        recipe = read_recipe(folder / RECIPE_FILE)
        if recipe.weights is None:
            raise ValueError(f"{folder / RECIPE_FILE}: weights: expected the name of a file; got none")
        gpu = properties.get("gpu_id")
        device = torch.device(f"cuda:{gpu}" if torch.cuda.is_available() and gpu is not None else "cpu")
        self.engine = Engine.load(recipe, folder / recipe.weights, device)
        logger.info("%s %s is loaded on %s", recipe.name, recipe.version, device)

    def handle(self, data: Sequence[Mapping[str, Any]], context: Any) -> list[bytes | str]:
        """Answer the requests of a batch, each on its own."""
        headers = [
            {key.lower(): value for key, value in context.get_all_request_header(i).items()}
            for i in range(len(data))
        ]
        calls = [codec.read(part, header) for part, header in zip(data, headers, strict=True)]
        requests = [call.request for call in calls if call.request is not None]
        replies = iter(self.engine.answer(requests))
        answers = []
        for i, call in enumerate(calls):
            answer = call.write(next(replies) if call.request is not None else None)
            context.set_response_content_type(i, answer.content_type)
            if answer.status != 200:
                context.set_response_status(answer.status, answer.phrase, i)
            answers.append(answer.body)
        return answers
