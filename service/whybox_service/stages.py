"""Writing an answer, and telling in the answer itself how long the writing took."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, TypeVar

from google.protobuf.message import Message

from whybox_proto.v1 import explainer_pb2, types_pb2

STAGED = (explainer_pb2.DetectResponse, explainer_pb2.ExplainResponse)

T = TypeVar("T")

EXPLANATION = "explanation"
"""The field of an evaluation's answer that holds the explanation, which has the stages."""


def timed(write: Callable[[Message], T], answer: Message) -> tuple[T, types_pb2.Stage]:
    """Write an answer with `write`, and return what it wrote and the stage ``serialize``."""
    started = time.perf_counter()
    written = write(answer)
    return written, types_pb2.Stage(name="serialize", seconds=time.perf_counter() - started)


def serialize(answer: Message) -> tuple[bytes, list[types_pb2.Stage]]:
    """Write an answer in binary, once; return it with its stages, where it has any."""
    if (staged := _staged(answer)) is None:
        return answer.SerializeToString(), []
    body, stage = timed(lambda message: message.SerializeToString(), answer)
    # A message that follows another is merged into it: one more entry of a repeated field.
    more = type(answer)()
    more_staged = _staged(more)
    assert more_staged is not None
    more_staged.stages.append(stage)
    return body + more.SerializeToString(), [*staged.stages, stage]


def tree(
    answer: Message, write: Callable[[Message], dict[str, Any]]
) -> tuple[dict[str, Any], list[types_pb2.Stage]]:
    """Write an answer as the tree that `write` makes of it; return it with its stages, where it has any."""
    if (staged := _staged(answer)) is None:
        return write(answer), []
    written, stage = timed(write, answer)
    (written if staged is answer else written[EXPLANATION])["stages"].append(write(stage))
    return written, [*staged.stages, stage]


def _staged(answer: Message) -> explainer_pb2.DetectResponse | explainer_pb2.ExplainResponse | None:
    """Return the part of an answer that tells the stages; None where it has none."""
    if isinstance(answer, explainer_pb2.EvaluateResponse):
        return answer.explanation
    return answer if isinstance(answer, STAGED) else None
