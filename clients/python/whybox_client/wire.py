"""What crosses the seam under the client: a call, its reply, and the operations there are."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from typing import TypeVar

from google.protobuf.message import Message

T = TypeVar("T")


@dataclass(frozen=True)
class Operation:
    """Where one operation lives on each transport.

    Attributes:
        rpc: full name of the gRPC method.
        verb: HTTP verb; with ``GET`` the request's fields go into path and query.
        path: REST path, with the request's fields in braces.
    """

    rpc: str
    verb: str
    path: str


LIST_MODELS = Operation("/whybox.v1.Explainer/ListModels", "GET", "/v1/models")
GET_MODEL = Operation("/whybox.v1.Explainer/GetModel", "GET", "/v1/models/{model}")
DETECT = Operation("/whybox.v1.Explainer/Detect", "POST", "/v1/models/{model}:detect")
EXPLAIN = Operation("/whybox.v1.Explainer/Explain", "POST", "/v1/models/{model}:explain")
READY = Operation("/grpc.health.v1.Health/Check", "GET", "/readyz")


@dataclass(frozen=True)
class Call:
    """One request on its way out.

    Attributes:
        operation: what is asked.
        request: the message that asks it.
        request_id: the id under which the service logs it.
        timeout: seconds until the answer is of no use; None: the client's own timeout.
    """

    operation: Operation
    request: Message
    request_id: str
    timeout: float | None


@dataclass(frozen=True)
class Reply:
    """A good answer: the response message in binary, and the request id that the service gave it."""

    body: bytes
    request_id: str


#: Yields calls, receives replies (or has a `WhyboxError` thrown in), returns the result.
#: What a client does, without the waiting.
Flow = Generator[Call, Reply, T]
