"""One HTTP exchange: request id, deadline, metrics, and errors as problem+json."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from whybox_proto.errors import PROBLEM_JSON, ContractError, shorten, to_problem
from whybox_service.calls import Call, Deadline, check_request_id, check_timeout, new_request_id
from whybox_service.metrics import UNKNOWN, Metrics, Observation
from whybox_service.rest.json_out import to_json
from whybox_service.settings import Settings

log = logging.getLogger(__name__)

REQUEST_ID = "X-Request-Id"
REQUEST_TIMEOUT = "X-Request-Timeout"
RETRY_AFTER_SECONDS = "1"

Answer = Callable[[Request, Call, Observation], Awaitable[Response]]
Endpoint = Callable[[Request], Awaitable[Response]]


class Exchange:
    """Wraps what answers a request into what every exchange has in common."""

    def __init__(self, settings: Settings, metrics: Metrics) -> None:
        self._settings = settings
        self._metrics = metrics

    def endpoint(self, operation: str, answer: Answer) -> Endpoint:
        """Return an endpoint that answers with `answer` and turns what it raises into a problem."""

        async def respond(request: Request) -> Response:
            request_id = new_request_id()
            try:
                with self._metrics.request("rest", operation) as observation:
                    request_id = _request_id(request, request_id)
                    deadline = Deadline.after(self._seconds(request))
                    async with deadline.limit():
                        response = await answer(request, Call(request_id, deadline), observation)
            except ContractError as error:
                return problem(error, request_id)
            except Exception:
                log.exception("request %s failed", request_id)
                return problem(ContractError("internal", "something broke on our side"), request_id)
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

    def _seconds(self, request: Request) -> float:
        given = request.headers.get(REQUEST_TIMEOUT)
        return self._settings.seconds(None if given is None else check_timeout(given, REQUEST_TIMEOUT))


def problem(error: ContractError, request_id: str, members: Mapping[str, object] | None = None) -> Response:
    """Return an error as an RFC 9457 problem, with further members where there are any."""
    body = to_json({**to_problem(error, request_id), **(members or {})})
    headers = {REQUEST_ID: request_id}
    if error.row.http_status in (429, 503):
        headers["Retry-After"] = RETRY_AFTER_SECONDS
    return Response(body, error.row.http_status, headers, PROBLEM_JSON)


def _request_id(request: Request, made: str) -> str:
    given = request.headers.get(REQUEST_ID)
    return made if given is None else check_request_id(given, REQUEST_ID)
