"""One HTTP exchange: what all of them have in common, and errors as problem+json."""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from whybox_proto.errors import PROBLEM_JSON, ContractError, shorten, to_problem
from whybox_service.calls import Call, check_timeout
from whybox_service.intake import Arrival, ClientGoneError, Intake, RefusedError
from whybox_service.metrics import UNKNOWN, Observation
from whybox_service.rest.bodies import is_body_late
from whybox_service.rest.events import SENT_AT_ONCE, Events, begun_events
from whybox_service.rest.json_out import to_json
from whybox_service.settings import Settings

REQUEST_ID = "X-Request-Id"
REQUEST_TIMEOUT = "X-Request-Timeout"
# A client that takes an answer slower than this, beyond some seconds for any answer, is cut off.
SLOWEST_BYTES_PER_SECOND = 512 << 10
# Nobody reads it; what proxies write into their logs where a client hung up.
CLIENT_CLOSED_REQUEST = 499

Answer = Callable[[Request, Call, Observation], Awaitable[Response | None]]
"""Makes the answer to a request; None where it has sent a stream of events."""
Operation = Callable[[Request], str]
"""Says which operation a request asks for."""


class Endpoint:
    """What answers at one address: an ASGI application.

    The answer is sent in pieces, each when the client has taken the one before, and counts as a request in
    hand until then: who does not read fills no memory with answers.
    """

    def __init__(self, intake: Intake, operation: Operation, answer: Answer, send_seconds: float) -> None:
        self._intake = intake
        self._operation = operation
        self._answer = answer
        self._send_seconds = send_seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        request = Request(scope, receive)
        request.state.events = Events(send)
        response = await self.respond(request)
        if response is None:
            return
        # From here on there is nothing to tell but the answer: who takes too long for it is cut off.
        with self._intake.in_hand(), contextlib.suppress(TimeoutError):
            seconds = self._send_seconds + len(response.body) / SLOWEST_BYTES_PER_SECOND
            async with asyncio.timeout(seconds):
                await _send(response, scope, receive, send)

    async def respond(self, request: Request) -> Response | None:
        """Make the answer, which may be a problem; None where all of it has been sent."""

        async def work(call: Call, observation: Observation) -> Response | None:
            return await self._answer(request, call, observation)

        operation = self._operation(request)
        arrival = Arrival("rest", operation, request.headers, REQUEST_ID, lambda: _timeout(request))
        try:
            response, request_id = await self._intake.take(arrival, work)
        except RefusedError as refused:
            response = problem(refused.error, refused.request_id)
            if (events := begun_events(request)) is not None:
                with self._intake.in_hand(), contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(self._send_seconds):
                        await events.fail(bytes(response.body))
                return None
            if is_body_late(request):
                response.headers["Connection"] = "close"  # the rest of the body may never come
            return response
        except ClientGoneError:
            return None if begun_events(request) is not None else Response(status_code=CLIENT_CLOSED_REQUEST)
        if response is not None:
            response.headers[REQUEST_ID] = request_id
        return response


class Exchange:
    """Wraps what answers a request into what every exchange has in common."""

    def __init__(self, intake: Intake, settings: Settings) -> None:
        self._intake = intake
        self._send_seconds = settings.body_seconds

    def endpoint(self, operation: Operation, answer: Answer) -> Endpoint:
        """Return an endpoint that answers with `answer` and turns what it raises into a problem."""
        return Endpoint(self._intake, operation, answer, self._send_seconds)

    async def refuse(self, request: Request, error: Exception) -> Response:
        """Answer what no route takes: an address that is not there, or a verb that it does not take."""
        status = error.status_code if isinstance(error, HTTPException) else 500
        headers = dict(error.headers or {}) if isinstance(error, HTTPException) else {}
        if "Allow" in headers:  # Starlette's is in no order
            headers["Allow"] = ", ".join(sorted(headers["Allow"].split(", ")))
        path = shorten(request.url.path)

        async def answer(request: Request, _call: Call, _observation: Observation) -> Response:
            if status == 405:
                raise ContractError(
                    "method_not_allowed",
                    f"{path} does not take this verb",
                    expected=headers.get("Allow", ""),
                    got=request.method,
                )
            raise ContractError("not_found", f"there is nothing at {path}", got=path)

        response = await self.endpoint(lambda _: UNKNOWN, answer).respond(request)
        assert response is not None
        response.headers.update(headers)
        return response


@asynccontextmanager
async def while_client_waits(request: Request) -> AsyncIterator[None]:
    """Cancel the block when the client hangs up; the request's body must have been read.

    Raises:
        ClientGoneError: when it did.
    """
    task = asyncio.current_task()
    assert task is not None
    gone = False

    async def watch() -> None:
        nonlocal gone
        while (await request.receive())["type"] != "http.disconnect":
            pass
        gone = True
        task.cancel()

    watching = asyncio.create_task(watch())
    try:
        yield
    except asyncio.CancelledError:
        if gone:
            task.uncancel()
            raise ClientGoneError from None
        raise
    finally:
        watching.cancel()


def problem(error: ContractError, request_id: str, members: Mapping[str, object] | None = None) -> Response:
    """Return an error as an RFC 9457 problem, with further members where there are any."""
    body = to_json({**to_problem(error, request_id), **(members or {})})
    headers = {REQUEST_ID: request_id}
    if error.retry_after:
        headers["Retry-After"] = str(math.ceil(error.retry_after))
    if error.type == "unauthenticated":
        headers["WWW-Authenticate"] = "Bearer"
    return Response(body, error.row.http_status, headers, PROBLEM_JSON)


async def _send(response: Response, scope: Scope, receive: Receive, send: Send) -> None:
    """Send an answer in pieces; HEAD has none."""

    async def in_pieces(message: Message) -> None:
        body = message.get("body", b"")
        if message["type"] != "http.response.body" or len(body) <= SENT_AT_ONCE:
            await send(message)
            return
        for start in range(0, len(body), SENT_AT_ONCE):
            more = start + SENT_AT_ONCE < len(body)
            piece = body[start : start + SENT_AT_ONCE]
            await send({"type": "http.response.body", "body": piece, "more_body": more})

    await response(scope, receive, in_pieces)


def _timeout(request: Request) -> float | None:
    given = request.headers.get(REQUEST_TIMEOUT)
    return None if given is None else check_timeout(given, REQUEST_TIMEOUT)
