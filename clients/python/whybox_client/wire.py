"""What crosses the seam under the client: a call, its reply, and the operations there are."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from google.protobuf.message import Message

from whybox_client.errors import WhyboxError

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)


@dataclass(frozen=True)
class Operation:
    """Where one operation lives on each transport.

    Attributes:
        rpc: full name of the gRPC method.
        verb: HTTP verb; with ``GET`` the request's fields go into path and query.
        path: REST path, with the request's fields in braces; a dot leads into a message, and ``=**`` says of
            a field that its slashes are the path's own.
        safe: whether asking twice does no more than asking once, so that a client may do so by itself. An
            operation that starts, changes or ends something is not.
        streams: whether it has several replies. Of a call in a flow the first one counts.
        headers: of the request's fields, those that REST sends as headers, and these.
    """

    rpc: str
    verb: str
    path: str
    safe: bool
    streams: bool = False
    headers: Mapping[str, str] = field(default_factory=dict, hash=False)


LIST_MODELS = Operation("/whybox.v1.Explainer/ListModels", "GET", "/v1/models", safe=True)
GET_MODEL = Operation("/whybox.v1.Explainer/GetModel", "GET", "/v1/models/{model}", safe=True)
DETECT = Operation("/whybox.v1.Explainer/Detect", "POST", "/v1/models/{model}:detect", safe=True)
EXPLAIN = Operation("/whybox.v1.Explainer/Explain", "POST", "/v1/models/{model}:explain", safe=True)
EXPLAIN_STREAM = Operation(
    "/whybox.v1.Explainer/ExplainStream", "POST", "/v1/models/{model}:explain", safe=True, streams=True
)
EVALUATE = Operation(
    "/whybox.v1.Explainer/Evaluate", "POST", "/v1/models/{explain.model}:evaluate", safe=True
)
#: Safe where it carries an idempotency key.
CREATE_INVERSION = Operation("/whybox.v1.Explainer/CreateInversion", "POST", "/v1/inversions", safe=False)
GET_INVERSION = Operation("/whybox.v1.Explainer/GetInversion", "GET", "/v1/{name=**}", safe=True)
LIST_INVERSIONS = Operation("/whybox.v1.Explainer/ListInversions", "GET", "/v1/inversions", safe=True)
CANCEL_INVERSION = Operation(
    "/whybox.v1.Explainer/CancelInversion", "POST", "/v1/{name=**}:cancel", safe=True
)
DELETE_INVERSION = Operation("/whybox.v1.Explainer/DeleteInversion", "DELETE", "/v1/{name=**}", safe=False)
WATCH_INVERSION = Operation(
    "/whybox.v1.Explainer/WatchInversion",
    "GET",
    "/v1/{name=**}/events",
    safe=True,
    streams=True,
    headers={"last_event_id": "Last-Event-ID"},
)
READY = Operation("/grpc.health.v1.Health/Check", "GET", "/readyz", safe=True)


@dataclass(frozen=True)
class Call:
    """One request on its way out.

    Attributes:
        operation: what is asked.
        request: the message that asks it.
        request_id: the id under which the service logs it; every attempt has the same.
        timeout: seconds until the answer is of no use, all attempts together; None: the client's own.
        retries: how often it is asked again; None: as the client says.
        work: seconds that the service is asked to work for; they come on top of the client's own timeout.
        lasting: seconds that a stream may go on; its first reply is waited for as others are, but no longer
            than this. 0: all of it is waited for as other replies are.
    """

    operation: Operation
    request: Message
    request_id: str
    timeout: float | None
    retries: int | None = None
    work: float = 0.0
    lasting: float = 0.0


@dataclass(frozen=True)
class Reply:
    """A good answer: the response message in binary, and the request id that the service gave it."""

    body: bytes
    request_id: str


#: Yields calls, receives replies (or has a `WhyboxError` thrown in), returns the result.
#: What a client does, without the waiting.
Flow = Generator[Call, Reply, T]


@dataclass(frozen=True)
class Streaming(Generic[T_co]):
    """A call that has several replies, and what each of them is read into.

    Attributes:
        call: it is asked again, as others are, until its first reply is there.
        read: reads a reply; called once for each, in their order.
        complete: says, of a result that was read, whether it is the last one.
        resume: returns the call that goes on where the stream broke, given the last result and what went
            wrong; or raises what that means. None: what breaks is broken.
    """

    call: Call
    read: Callable[[Reply], T_co]
    complete: Callable[[T_co], bool]
    resume: Callable[[T_co, WhyboxError], Call] | None = None
