"""What TorchServe hands over and takes back, as requests and replies."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from google.protobuf import json_format
from google.protobuf.message import DecodeError, Message

from whybox_proto.errors import PROBLEM_JSON, ContractError, shorten, to_problem
from whybox_proto.media import PROTOBUF
from whybox_proto.v1 import explainer_pb2, worker_pb2

JSON = "application/json"

MAX_ANSWER_BYTES = 63 * 2**20
"""Of a body in any form: TorchServe is set to take 64 MiB, and kills a worker that passes its limit."""


@dataclass(frozen=True)
class Answer:
    """A body for TorchServe to send."""

    body: bytes | str
    content_type: str
    status: int = 200
    phrase: str = ""


@dataclass(frozen=True)
class Call:
    """One request as it came.

    Attributes:
        request: None where it could not be read.
        error: why not.
        plain: answer in JSON with HTTP statuses, rather than in protobuf with errors in-band.
    """

    request: worker_pb2.WorkerRequest | None
    error: ContractError | None
    plain: bool

    def write(self, reply: worker_pb2.WorkerReply | None) -> Answer:
        """Write the reply in the form that the call asked for, or say that it would be too large."""
        if reply is None:
            assert self.error is not None
            reply = worker_pb2.WorkerReply(error=self.error.to_message())
        answer = self._written(reply)
        if len(answer.body) <= MAX_ANSWER_BYTES:
            return answer
        error = ContractError(
            "response_too_large",
            "the answer would be too large: ask for fewer targets, or a smaller select.max_detections",
            expected=f"at most {MAX_ANSWER_BYTES} bytes",
            got=f"{len(answer.body)} bytes",
        )
        return self._written(worker_pb2.WorkerReply(error=error.to_message()))

    def _written(self, reply: worker_pb2.WorkerReply) -> Answer:
        if not self.plain:
            return Answer(reply.SerializeToString(), PROTOBUF)
        result = reply.WhichOneof("result") or "error"
        if result != "error":
            return Answer(to_json(getattr(reply, result)), JSON)
        error = ContractError.from_message(reply.error)
        body = json.dumps(to_problem(error, reply.error.request_id))
        return Answer(body, PROBLEM_JSON, error.row.http_status, error.row.title)


def read(part: Mapping[str, Any], headers: Mapping[str, str]) -> Call:
    """Read one request of a batch.

    Args:
        part: what TorchServe parsed: ``body`` for a whole body, else the parts of a form.
        headers: of the request, names in lower case.
    """
    if headers.get("describe") == "True":
        return Call(worker_pb2.WorkerRequest(describe=worker_pb2.DescribeRequest()), None, plain=True)
    body = next((part[name] for name in ("body", "image", "data") if part.get(name) is not None), b"")
    if headers.get("content-type", "").partition(";")[0].strip() == PROTOBUF:
        try:
            return Call(worker_pb2.WorkerRequest.FromString(bytes(body)), None, plain=False)
        except (DecodeError, TypeError, ValueError) as error:
            wrong = ContractError("invalid_request", "the body is not a WorkerRequest", got=shorten(error))
            return Call(None, wrong, plain=False)
    if not isinstance(body, bytes | bytearray):
        # TorchServe decodes text and JSON bodies.
        wrong = ContractError(
            "invalid_image",
            "the body is no picture",
            field="image",
            expected="the bytes of a picture",
            got=type(body).__name__,
        )
        return Call(None, wrong, plain=True)
    if headers.get("explain") == "True":
        request = worker_pb2.WorkerRequest(explain=explainer_pb2.ExplainRequest(image=bytes(body)))
    else:
        request = worker_pb2.WorkerRequest(detect=explainer_pb2.DetectRequest(image=bytes(body)))
    return Call(request, None, plain=True)


def to_json(message: Message) -> str:
    """Write a message as the contract's JSON: snake_case names, defaults printed."""
    return json.dumps(
        json_format.MessageToDict(
            message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
        )
    )
