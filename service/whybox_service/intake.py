"""The life of one request, whichever transport it came by: id, key, room, deadline; metrics, log, trace."""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

from whybox_proto.errors import ContractError
from whybox_service import logs
from whybox_service.access import OPEN_OPERATIONS, needs_key
from whybox_service.buffers import Buffers
from whybox_service.calls import Call, Deadline, check_request_id, new_request_id
from whybox_service.keys import Keys
from whybox_service.metrics import CANCELLED, Metrics, Observation
from whybox_service.settings import Settings
from whybox_service.traces import Tracing

log = logging.getLogger(__name__)

T = TypeVar("T")

# What a client is told to wait where nothing better is known.
RETRY_AFTER_SECONDS = 1.0
# What costs next to nothing, and must be answered above all when there is much to do.
UNCOUNTED = OPEN_OPERATIONS | {"metrics"}
# Lasts as long as what it follows, unless the client says otherwise; they get half of the room at most.
WATCHES = frozenset({"watch_inversion"})
WATCH_SECONDS = 7 * 86_400.0


@dataclass(frozen=True)
class Arrival:
    """A request as it came.

    Attributes:
        transport: ``rest`` or ``grpc``.
        operation: name of the operation.
        headers: by name in lower case, those of tracing among them.
        request_id_field: what the header with the request's id is called there, for errors.
        timeout: gives the client's own time limit in seconds, or None; may raise a `ContractError`.
    """

    transport: str
    operation: str
    headers: Mapping[str, str]
    request_id_field: str
    timeout: Callable[[], float | None]


class ClientGoneError(Exception):
    """The client hung up; there is nobody to answer."""


class RefusedError(Exception):
    """A request ended in an error; carries the id under which to tell it."""

    def __init__(self, error: ContractError, request_id: str) -> None:
        super().__init__(error.message)
        self.error = error
        self.request_id = request_id


class Intake:
    """Takes requests in, and sees them through.

    Attributes:
        buffers: the memory that bodies may take.
    """

    def __init__(self, settings: Settings, keys: Keys, metrics: Metrics, tracing: Tracing) -> None:
        self._settings = settings
        self._keys = keys
        self._metrics = metrics
        self._tracing = tracing
        self._in_hand = 0
        self._watching = 0
        self.buffers = Buffers(settings.max_buffered_bytes)

    async def take(
        self, arrival: Arrival, work: Callable[[Call, Observation], Awaitable[T]]
    ) -> tuple[T, str]:
        """Do a request's work within its deadline; return what came of it, and the request's id.

        Raises:
            RefusedError: whatever went wrong, bugs included.
            ClientGoneError: as the work raises it.
        """
        request_id = new_request_id()
        started = time.perf_counter()
        observation: Observation | None = None
        try:
            with self._metrics.request(arrival.transport, arrival.operation) as observation:
                try:
                    request_id = self._request_id(arrival, request_id)
                    observation.key = self._key(arrival)
                    deadline = Deadline.after(self._seconds(arrival))
                    with self._room(arrival.operation), self._told(arrival, request_id, observation):
                        async with deadline.limit():
                            call = Call(request_id, deadline, observation.key)
                            return await work(call, observation), request_id
                except ClientGoneError as error:
                    gone = error
                except ContractError as error:
                    if error.type == "request_timeout":
                        self._metrics.rejected(observation.model, "slow_body")
                    raise _with_advice(error) from error.__cause__
                except Exception as error:
                    log.exception("request %s failed", request_id)
                    raise ContractError("internal", "something broke on our side") from error
        except ContractError as error:
            raise RefusedError(error, request_id) from error
        finally:
            if observation is not None:
                logs.access(observation, request_id, time.perf_counter() - started)
        raise gone

    def _seconds(self, arrival: Arrival) -> float:
        """Return how long a request may take."""
        asked = arrival.timeout()
        if arrival.operation in WATCHES:
            return WATCH_SECONDS if asked is None else min(asked, WATCH_SECONDS)
        return self._settings.seconds(asked)

    def _request_id(self, arrival: Arrival, made: str) -> str:
        given = arrival.headers.get("x-request-id")
        return made if given is None else check_request_id(given, arrival.request_id_field)

    def _key(self, arrival: Arrival) -> str:
        """Return the name of the request's key; empty where it needs none."""
        if not needs_key(arrival.operation, self._settings):
            return ""
        try:
            return self._keys.identify(arrival.headers.get("authorization"))
        except ContractError:
            self._metrics.rejected("", "unauthenticated")
            raise

    @contextmanager
    def _room(self, operation: str) -> Iterator[None]:
        """Count the request among those in hand; what operators ask is always taken."""
        if operation in UNCOUNTED:
            yield
            return
        most = self._settings.max_requests
        watching = operation in WATCHES
        if self._in_hand >= most or (watching and self._watching >= max(1, most // 2)):
            self._metrics.rejected("", "concurrency")
            raise ContractError(
                "overloaded",
                "the service has all the requests it takes at one time",
                expected=f"at most {most}, half of them watching",
                retry_after=RETRY_AFTER_SECONDS,
            )
        self._watching += watching
        try:
            with self.in_hand():
                yield
        finally:
            self._watching -= watching

    @contextmanager
    def in_hand(self) -> Iterator[None]:
        """Count a request among those in hand."""
        self._in_hand += 1
        try:
            yield
        finally:
            self._in_hand -= 1

    @contextmanager
    def _told(self, arrival: Arrival, request_id: str, observation: Observation) -> Iterator[None]:
        """Have log lines and spans made inside belong to the request."""
        transport, operation = arrival.transport, arrival.operation
        with (
            self._tracing.request(transport, operation, arrival.headers, observation) as span,
            logs.context(
                request_id=request_id,
                transport=transport,
                operation=operation,
                key=observation.key,
                trace_id=span.trace_id,
            ),
        ):
            try:
                yield
            except ClientGoneError:
                observation.code = CANCELLED
                raise


def _with_advice(error: ContractError) -> ContractError:
    """See that what may be asked again says when."""
    if error.row.http_status in (429, 503) and not error.retry_after:
        error.retry_after = RETRY_AFTER_SECONDS
    return error
