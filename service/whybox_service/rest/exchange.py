"""One HTTP exchange: what all of them have in common, and errors as problem+json."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from whybox_proto.errors import PROBLEM_JSON, ContractError, shorten, to_problem
from whybox_service.calls import Call, check_timeout
from whybox_service.intake import Arrival, ClientGoneError, Intake, RefusedError
from whybox_service.metrics import UNKNOWN, Observation
from whybox_service.rest.json_out import to_json

REQUEST_ID = "X-Request-Id"
REQUEST_TIMEOUT = "X-Request-Timeout"
# Nobody reads it; what proxies write into their logs where a client hung up.
CLIENT_CLOSED_REQUEST = 499

Answer = Callable[[Request, Call, Observation], Awaitable[Response]]
Endpoint = Callable[[Request], Awaitable[Response]]


class Exchange:
    """Wraps what answers a request into what every exchange has in common."""

    def __init__(self, intake: Intake) -> None:
        self._intake = intake

    def endpoint(self, operation: str, answer: Answer) -> Endpoint:
        """Return an endpoint that answers with `answer` and turns what it raises into a problem."""

        async def respond(request: Request) -> Response:
            async def work(call: Call, observation: Observation) -> Response:
                return await answer(request, call, observation)

            arrival = Arrival("rest", operation, request.headers, REQUEST_ID, lambda: _timeout(request))
            try:
                response, request_id = await self._intake.take(arrival, work)
            except RefusedError as refused:
                return problem(refused.error, refused.request_id)
            except ClientGoneError:
                return Response(status_code=CLIENT_CLOSED_REQUEST)
            response.headers[REQUEST_ID] = request_id
            return response

        return respond

    async def refuse(self, request: Request, error: Exception) -> Response:
        """Answer what no route takes: an address that is not there, or a verb that it does not take."""
        status = error.status_code if isinstance(error, HTTPException) else 500
        headers = error.headers if isinstance(error, HTTPException) else None
        path = shorten(request.url.path)

        async def answer(request: Request, _call: Call, _observation: Observation) -> Response:
            if status == 405:
                allowed = (headers or {}).get("Allow", "")
                raise ContractError(
                    "method_not_allowed",
                    f"{path} does not take this verb",
                    expected=allowed,
                    got=request.method,
                )
            raise ContractError("not_found", f"there is nothing at {path}", got=path)

        response = await self.endpoint(UNKNOWN, answer)(request)
        response.headers.update(headers or {})
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
    if error.type == "request_timeout":
        headers["Connection"] = "close"  # the rest of the body may never come
    return Response(body, error.row.http_status, headers, PROBLEM_JSON)


def _timeout(request: Request) -> float | None:
    given = request.headers.get(REQUEST_TIMEOUT)
    return None if given is None else check_timeout(given, REQUEST_TIMEOUT)
