"""REST: the messages in binary over HTTP, errors as RFC 9457 problem+json."""

from __future__ import annotations

import asyncio
import json
import os
import re
import threading
import weakref
from collections.abc import AsyncGenerator, Callable, Generator
from concurrent.futures import CancelledError
from contextlib import suppress
from functools import partial, reduce
from typing import Any
from urllib.parse import quote

import httpx
from google.protobuf import json_format
from google.protobuf.message import Message

from whybox_client import errors
from whybox_client.transports import advice
from whybox_client.transports.background import Background
from whybox_client.transports.credentials import Credentials
from whybox_client.transports.events import Event, EventReader
from whybox_client.transports.lines import HungUpError, Line
from whybox_client.wire import EXPLAIN_STREAM, READY, WATCH_INVERSION, Call, Operation, Reply
from whybox_proto.media import PROTOBUF
from whybox_proto.v1 import explainer_pb2

_PROBLEM = "application/problem+json"
_EVENTS = "text/event-stream"
# The service ends a late call itself, with a better error than ours; this is how much longer we wait for it.
_GRACE_S = 1.0
_CONNECT_S = 10.0

#: What an HTTP status means where the answer is not a problem of the service's own (a proxy's, say).
STATUS_CLASSES: dict[int, type[errors.WhyboxError]] = {
    401: errors.UnauthenticatedError,
    404: errors.NotFoundError,
    408: errors.RequestTimeoutError,
    413: errors.RequestTooLargeError,
    429: errors.OverloadedError,
    500: errors.InternalError,
    501: errors.NotServedError,
    502: errors.UnavailableError,
    503: errors.UnavailableError,
    504: errors.DeadlineExceededError,
}

#: What an error of httpx means; the first row that fits holds.
FOREIGN_CLASSES: tuple[tuple[type[httpx.RequestError], type[errors.WhyboxError]], ...] = (
    (httpx.ConnectTimeout, errors.ConnectionFailedError),
    (httpx.TimeoutException, errors.DeadlineExceededError),
    (httpx.TransportError, errors.ConnectionFailedError),
    (httpx.RequestError, errors.InvalidAnswerError),
)


class RestTransport:
    """Sends calls over HTTP and waits; keeps its connections alive.

    It is an `AsyncRestTransport` on an event loop of its own; `background` says why.
    """

    def __init__(self, url: str, credentials: Credentials) -> None:
        self._make = partial(AsyncRestTransport, url, credentials)
        self._lock = threading.Lock()
        self._background = self._settle()

    def send(self, call: Call, timeout: float, line: Line) -> Reply:
        """Send a call and return its reply."""
        background = self._here()
        future = background.start(background.tenant.send(call, timeout))
        with line.holding(future.cancel):
            try:
                return future.result()
            except CancelledError:
                raise HungUpError from None

    def stream(self, call: Call, timeout: float, line: Line) -> Generator[Reply, None, None]:
        """Send a call and yield its replies."""
        background = self._here()
        replies = background.tenant.stream(call, timeout)

        async def following() -> Reply | None:
            return await anext(replies, None)

        async def ending() -> None:
            with suppress(RuntimeError):  # it ends by itself: its last read was called off
                await replies.aclose()

        try:
            while True:
                future = background.start(following())
                with line.holding(future.cancel):
                    try:
                        reply = future.result()
                    except CancelledError:
                        raise HungUpError from None
                if reply is None:
                    return
                yield reply
        finally:
            # Not waited for: the garbage collector may call from the thread that is to do it.
            background.leave(ending)

    def close(self) -> None:
        """Close the connections; calls that other threads wait for are called off."""
        self._background.stop()

    def _here(self) -> Background[AsyncRestTransport]:
        """Return the event loop of this process: a forked child has connections of its own."""
        with self._lock:
            if self._background.process != os.getpid():
                self._background = self._settle()
            return self._background

    def _settle(self) -> Background[AsyncRestTransport]:
        background = Background(self._make())
        weakref.finalize(self, background.stop)
        return background


class AsyncRestTransport:
    """The same for asyncio."""

    def __init__(self, url: str, credentials: Credentials) -> None:
        self._url = url.rstrip("/")
        # Plain HTTP needs no certificates, and reading them takes longer than a call.
        verify = credentials.context() if url.startswith("https:") else False
        self._http = httpx.AsyncClient(verify=verify, headers=credentials.headers)

    async def send(self, call: Call, timeout: float) -> Reply:
        """Send a call and return its reply."""
        try:
            # httpx bounds each read and each write; this bounds their sum.
            async with asyncio.timeout(timeout + _GRACE_S):
                response = await self._http.request(**_request(self._url, call, timeout))
        except httpx.RequestError as error:
            raise _translate(error, call, self._url) from error
        except TimeoutError as error:
            raise _late(self._url, timeout, call.request_id) from error
        return _reply(response, call)

    async def stream(self, call: Call, timeout: float) -> AsyncGenerator[Reply, None]:
        """Send a call and yield its replies."""
        until = asyncio.get_running_loop().time() + timeout + _GRACE_S
        chunks = self._chunks(call, timeout)
        reader = EventReader()
        request_id = call.request_id
        try:
            while True:
                try:
                    # For each read by itself: between two of them it is not ours to end what runs.
                    async with asyncio.timeout_at(until):
                        chunk, request_id = await anext(chunks)
                except StopAsyncIteration:
                    break
                for event in reader.feed(chunk):
                    if event.name not in ("partial", "result", "error"):
                        continue  # of a service that is newer than this
                    yield _reply_of(event, call, request_id)
                    if event.name == "result":
                        return
            raise errors.ConnectionFailedError(
                f"{self._url}: the stream ended before its result", request_id=request_id
            )
        except httpx.RequestError as error:
            raise _translate(error, call, self._url) from error
        except TimeoutError as error:
            raise _late(self._url, timeout, request_id) from error
        finally:
            await chunks.aclose()

    async def _chunks(self, call: Call, timeout: float) -> AsyncGenerator[tuple[bytes, str], None]:
        """Yield the bytes of a stream of events as they come, each with the request's id."""
        async with self._http.stream(**_request(self._url, call, timeout, accept=_EVENTS)) as response:
            if not response.is_success:
                await response.aread()
            request_id = _check(response, call, _EVENTS)
            async for chunk in response.aiter_bytes():
                yield chunk, request_id

    async def aclose(self) -> None:
        """Close the connections."""
        await self._http.aclose()


def _request(url: str, call: Call, timeout: float, *, accept: str = PROTOBUF) -> dict[str, Any]:
    """Build the arguments of httpx's `request`."""
    path, fields = _address(call)
    request: dict[str, Any] = {
        "method": call.operation.verb,
        "url": url + path,
        "headers": {
            "Accept": accept,
            "X-Request-Id": call.request_id,
            "X-Request-Timeout": f"{max(timeout, 0.001):.3f}".rstrip("0").rstrip("."),
        },
        "timeout": httpx.Timeout(timeout + _GRACE_S, connect=min(max(timeout, _GRACE_S), _CONNECT_S)),
    }
    if call.operation.verb == "POST":
        request["headers"]["Content-Type"] = PROTOBUF
        request["content"] = call.request.SerializeToString() if fields else b""
    else:
        query = {name: str(value) for name, value in fields.items()}
        headers = call.operation.headers
        request["headers"] |= {headers[name]: query.pop(name) for name in headers if name in query}
        request["params"] = query
    return request


def _address(call: Call) -> tuple[str, dict[str, Any]]:
    """Put the request's fields into the braces of the path; return it, and the other fields that are set."""
    path, placed = call.operation.path, set()
    for name, slashes in re.findall(r"\{([\w.]+)(=\*\*)?\}", path):
        value: Any = reduce(getattr, name.split("."), call.request)
        path = path.replace(f"{{{name}{slashes}}}", quote(value, safe="/" if slashes else ""))
        placed.add(name)
    return path, {field.name: value for field, value in call.request.ListFields() if field.name not in placed}


def _reply(response: httpx.Response, call: Call) -> Reply:
    return Reply(response.content, _check(response, call, PROTOBUF))


def _check(response: httpx.Response, call: Call, expected: str) -> str:
    """Return the request's id, if this is an answer of the media type that is expected."""
    request_id: str = response.headers.get("X-Request-Id", call.request_id)
    media_type = response.headers.get("Content-Type", "").partition(";")[0].strip()
    if not response.is_success:
        raise _refusal(response, media_type, request_id)
    if call.operation is not READY and response.status_code != 204 and media_type != expected:
        raise errors.InvalidAnswerError(
            "the address does not answer as whybox does",
            expected=expected,
            got=media_type or "no content type",
            request_id=request_id,
        )
    return request_id


def _reply_of(event: Event, call: Call, request_id: str) -> Reply:
    """Read one event of a stream; an error is raised."""
    try:
        if event.name != "error":
            return Reply(_READERS[call.operation](event).SerializeToString(), request_id)
        problem = json.loads(event.data)
        status = int(problem["status"])
    except (json_format.ParseError, ValueError, TypeError, KeyError) as error:
        raise errors.InvalidAnswerError(
            f"an event of the stream cannot be read: {error}", request_id=request_id
        ) from error
    raise _problem(problem, status, request_id, None)


def _explanation(event: Event) -> Message:
    answer = json_format.Parse(event.data, explainer_pb2.ExplainResponse(), ignore_unknown_fields=True)
    answer.partial = event.name == "partial"
    return answer


def _inversion(event: Event) -> Message:
    return json_format.Parse(event.data, explainer_pb2.InversionEvent(), ignore_unknown_fields=True)


#: What reads the events of each operation that streams.
_READERS: dict[Operation, Callable[[Event], Message]] = {
    EXPLAIN_STREAM: _explanation,
    WATCH_INVERSION: _inversion,
}


def _refusal(response: httpx.Response, media_type: str, request_id: str) -> errors.WhyboxError:
    """Read a problem of the service's own, or make one of what something on the way answered."""
    problem: Any = None
    if media_type == _PROBLEM:
        try:
            problem = response.json()
        except ValueError:
            problem = None
    told = advice.of_header(response.headers.get("Retry-After"))
    if isinstance(problem, dict):
        return _problem(problem, response.status_code, request_id, told)
    return _class_of(response.status_code)(
        f"the address answered {response.status_code} {response.reason_phrase}".rstrip(),
        request_id=request_id,
        retry_after=told,
    )


def _problem(
    problem: dict[str, Any], status: int, request_id: str, retry_after: float | None
) -> errors.WhyboxError:
    """Read the members of a problem; `retry_after` is what the headers say."""
    name = re.split("[/:#]", str(problem.get("type", "")))[-1]  # the last part of a URI
    return errors.CLASSES.get(name, _class_of(status))(
        str(problem.get("detail") or problem.get("title") or name),
        type=name,
        field=str(problem.get("field") or ""),
        expected=str(problem.get("expected") or ""),
        got=str(problem.get("got") or ""),
        request_id=str(problem.get("request_id") or request_id),
        retry_after=advice.of_seconds(problem.get("retry_after_seconds")) or retry_after,
    )


def _class_of(status: int) -> type[errors.WhyboxError]:
    if status in STATUS_CLASSES:
        return STATUS_CLASSES[status]
    if 400 <= status < 500:
        return errors.RequestError
    return errors.ServiceError if status >= 500 else errors.InvalidAnswerError


def _late(url: str, timeout: float, request_id: str) -> errors.WhyboxError:
    return errors.DeadlineExceededError(f"{url}: no whole answer within {timeout:g} s", request_id=request_id)


def _translate(error: httpx.RequestError, call: Call, url: str) -> errors.WhyboxError:
    kind = next(ours for theirs, ours in FOREIGN_CLASSES if isinstance(error, theirs))
    return kind(f"{url}: {str(error) or type(error).__name__}", request_id=call.request_id)
