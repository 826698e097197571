"""The one door to TorchServe: its inference and management API over kept-alive connections.

What TorchServe says when it fails becomes a row of the table of errors here and nowhere else. The requests
change nothing in a worker, so one that met a connection that had just gone is sent a second time.

A call of a worker outlives the request that made it: TorchServe cannot be told to stop, so the worker's slot
is free only when the worker, or TorchServe, has answered. Whose client has gone is told to the worker beside
it.
"""

from __future__ import annotations

import asyncio
import json
import uuid
from collections import defaultdict
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from functools import partial
from typing import Any
from urllib.parse import quote

import httpcore
from google.protobuf.message import DecodeError

from whybox_proto.departures import Departures
from whybox_proto.errors import ContractError, shorten
from whybox_proto.media import PROTOBUF
from whybox_proto.v1 import worker_pb2
from whybox_service.calls import Deadline
from whybox_service.pulse import Pulse
from whybox_service.settings import Settings

KEEP_ALIVE_SECONDS = 60.0
IDLE_CONNECTIONS = 64
MODELS_PER_PAGE = 100
# A call of which nothing came so long after its deadline is given up. TorchServe ends what hangs before that.
LINGER_SECONDS = 300.0
# A probe is given up sooner: while a model is silent there is a new one every few seconds.
PROBE_LINGER_SECONDS = 30.0


class WorkerLostError(ContractError):
    """The worker, or TorchServe, went away before it answered; another one may answer the same request.

    Attributes:
        died: whether the worker itself ended, perhaps of the request; else it was the way to it that broke.
        broken: whether that happened when TorchServe had the request, of which all of it may have ended; else
            TorchServe was not there to take it.
    """

    def __init__(self, message: str, *, died: bool = False, broken: bool = False) -> None:
        super().__init__("backend_unavailable", message)
        self.died = died
        self.broken = broken


@dataclass(frozen=True)
class Served:
    """What TorchServe knows of one version of a model.

    Attributes:
        name: the model's name.
        version: its version, as its archive gives it.
        workers: id, process id and status of each worker; a restarted one keeps its id.
        queue_remaining: requests that the model's queue still takes.
        batch_size: most requests that share a forward pass.
        batch_delay: seconds for which the first request of a batch waits for others.
    """

    name: str
    version: str
    workers: tuple[tuple[str, int, str], ...]
    queue_remaining: int
    batch_size: int = 1
    batch_delay: float = 0.0

    @property
    def ready(self) -> bool:
        """Whether a worker can answer now."""
        return self.ready_workers > 0

    @property
    def ready_workers(self) -> int:
        """How many workers can answer now."""
        return sum(status == "READY" for _, _, status in self.workers)


class Backend:
    """TorchServe, as the gateway uses it."""

    def __init__(self, settings: Settings) -> None:
        self._inference_url = settings.inference_url.rstrip("/")
        self._management_url = settings.management_url.rstrip("/")
        self._inference = _pool()
        self._management = _pool()
        self._departures = Departures(settings.departures_dir)
        self._departures.sweep(LINGER_SECONDS)
        self._probe_seconds = settings.probe_seconds
        self._stall_seconds = settings.stall_seconds
        self._pulses: defaultdict[tuple[str, str], Pulse] = defaultdict(Pulse)
        self._calls: set[asyncio.Task[worker_pb2.WorkerReply]] = set()

    async def close(self) -> None:
        """Give up what is still out, and close the connections."""
        for call in self._calls:
            call.cancel()
        await asyncio.gather(*self._calls, return_exceptions=True)
        await self._inference.aclose()
        await self._management.aclose()

    async def ask(
        self,
        model: str,
        version: str,
        request: worker_pb2.WorkerRequest,
        deadline: Deadline,
        ended: Callable[[], None] = lambda: None,
        lost: Callable[[WorkerLostError], None] = lambda _: None,
        *,
        again: bool = True,
    ) -> worker_pb2.WorkerReply:
        """Have a worker answer; an error that it answers in-band is raised.

        Args:
            model: name of the model.
            version: its version; empty for the default one.
            request: what is asked; gets its call id here.
            deadline: when to stop waiting.
            ended: called once the call has ended, which may be long after the deadline.
            lost: called where the worker was lost when nobody waited for its answer any more.
            again: send it a second time over a connection that breaks: it may have been an old one.

        Raises:
            WorkerLostError: where the same request may succeed with another worker.
            ContractError: from the worker, or for what else happened on the way to it.
        """
        due = deadline.at + self._stall_seconds
        call = partial(
            self._call, model, version, request, due, Deadline(deadline.at + LINGER_SECONDS), again
        )
        return await self._await(call, request, deadline, ended, lost)

    def silent_for(self, model: str, version: str) -> float:
        """Seconds for which a model's workers owe an answer and have been silent; 0 where all is well."""
        return self._pulses[model, version].silent_for()

    def renewed(self, model: str, version: str) -> None:
        """Forget the silence of a model's workers: they are others now."""
        self._pulses[model, version].renew()

    async def probe(self, model: str, version: str) -> None:
        """Ask a model whether it is there, unless it owes an answer that will tell; keep quiet if not."""
        if self._pulses[model, version].busy:
            return
        request = worker_pb2.WorkerRequest(describe=worker_pb2.DescribeRequest())
        try:
            # Nothing of ours stands before a probe, so its answer is due sooner than that to a request.
            deadline = Deadline.after(self._probe_seconds)
            end = Deadline(deadline.at + PROBE_LINGER_SECONDS)
            await self._await(
                partial(self._call, model, version, request, deadline.at, end), request, deadline
            )
        except ContractError:
            return

    async def _await(
        self,
        make: Callable[[], Coroutine[Any, Any, worker_pb2.WorkerReply]],
        request: worker_pb2.WorkerRequest,
        deadline: Deadline,
        ended: Callable[[], None] = lambda: None,
        lost: Callable[[WorkerLostError], None] = lambda _: None,
    ) -> worker_pb2.WorkerReply:
        """Make a call and wait for its answer until the deadline; it goes on until it has ended."""
        request.call_id = uuid.uuid4().hex
        call = asyncio.create_task(make())
        self._calls.add(call)
        told = False

        def settle(call: asyncio.Task[worker_pb2.WorkerReply]) -> None:
            self._calls.discard(call)
            ended()
            if not call.cancelled():
                error = call.exception()  # seen, whether or not somebody still waits
                if told:
                    self._departures.forget(request.call_id)
                    if isinstance(error, WorkerLostError):
                        lost(error)

        call.add_done_callback(settle)
        try:
            async with deadline.limit():
                return await asyncio.shield(call)
        except BaseException:
            if call.cancelled() and not _cancelling():
                raise WorkerLostError("the worker's answer was lost") from None
            if not call.done():
                told = True
                self._departures.tell(request.call_id)
            raise

    async def _call(
        self,
        model: str,
        version: str,
        request: worker_pb2.WorkerRequest,
        due: float,
        end: Deadline,
        again: bool = True,
    ) -> worker_pb2.WorkerReply:
        """Make a call; an answer is due at one moment, and no longer waited for after another."""
        pulse = self._pulses[model, version]
        task = asyncio.current_task()
        assert task is not None
        token = pulse.sent(due, task.cancel)
        heard = False
        try:
            url = f"{self._inference_url}/predictions/{_path(model, version)}"
            body = request.SerializeToString()
            status, body = await _send(self._inference, "POST", url, end, body, again=again)
            # What a handler raises is a sign of life too.
            heard = status == 200 or (status == 503 and _kind(body) == "InternalServerException")
        finally:
            pulse.ended(token, heard=heard)
        if status != 200:
            raise _failure(status, body, model, version)
        try:
            reply = worker_pb2.WorkerReply.FromString(body)
        except DecodeError:
            raise ContractError("internal", "the worker's answer cannot be read") from None
        result = reply.WhichOneof("result")
        if result == "error":
            raise ContractError.from_message(reply.error)
        operation = request.WhichOneof("operation")
        if result != ("model" if operation == "describe" else operation):
            raise ContractError("internal", "the worker answered another question")
        return reply

    async def names(self, deadline: Deadline) -> list[str]:
        """Return the names of the models that TorchServe has registered."""
        names: list[str] = []
        token = ""
        while True:
            page = await self._manage(f"/models?limit={MODELS_PER_PAGE}{token}", deadline)
            names += [str(model["modelName"]) for model in page["models"]]
            if not page.get("nextPageToken"):
                return names
            token = f"&next_page_token={quote(str(page['nextPageToken']))}"

    async def served(self, model: str, version: str, deadline: Deadline) -> list[Served]:
        """Return one version of a model, its default one (`version` empty), or every one (`all`)."""
        described = await self._manage(f"/models/{_path(model, version)}", deadline, model, version)
        return [
            Served(
                name=model,
                version=str(entry["modelVersion"]),
                workers=tuple(
                    (str(worker["id"]), int(worker["pid"]), str(worker["status"]))
                    for worker in entry["workers"]
                ),
                queue_remaining=int(entry["jobQueueStatus"]["remainingCapacity"]),
                batch_size=max(1, int(entry["batchSize"])),
                batch_delay=max(0.0, float(entry.get("maxBatchDelay", 0)) / 1e3),
            )
            for entry in described
        ]

    async def _manage(self, path: str, deadline: Deadline, model: str = "", version: str = "") -> Any:
        status, body = await _send(self._management, "GET", self._management_url + path, deadline)
        if status != 200:
            raise _failure(status, body, model, version)
        try:
            return json.loads(body)
        except ValueError:
            raise ContractError("internal", "TorchServe's management API answered no JSON") from None


def _pool() -> httpcore.AsyncConnectionPool:
    """Make a pool without a limit: the lanes bound what is out, and one model must not wait for another."""
    return httpcore.AsyncConnectionPool(
        max_connections=None,
        max_keepalive_connections=IDLE_CONNECTIONS,
        keepalive_expiry=KEEP_ALIVE_SECONDS,
    )


def _cancelling() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def _path(model: str, version: str) -> str:
    return quote(model, safe="") + (f"/{quote(version, safe='')}" if version else "")


async def _send(
    pool: httpcore.AsyncConnectionPool,
    verb: str,
    url: str,
    deadline: Deadline,
    body: bytes = b"",
    *,
    again: bool = True,
) -> tuple[int, bytes]:
    try:
        return await _attempt(pool, verb, url, deadline, body)
    except httpcore.ConnectError:
        raise _unreachable() from None
    except (httpcore.NetworkError, httpcore.RemoteProtocolError):
        if again:
            return await _send(pool, verb, url, deadline, body, again=False)
        raise _broken() from None


async def _attempt(
    pool: httpcore.AsyncConnectionPool, verb: str, url: str, deadline: Deadline, body: bytes
) -> tuple[int, bytes]:
    async with deadline.limit():
        response = await pool.request(verb, url, headers={"Content-Type": PROTOBUF}, content=body)
        return response.status, response.content


def _unreachable() -> ContractError:
    return WorkerLostError("TorchServe cannot be reached")


def _broken() -> ContractError:
    return WorkerLostError("TorchServe broke off its answer", broken=True)


def _told(body: bytes) -> tuple[str, str]:
    """Return the kind and the message of an error of TorchServe's; empty where the body has none."""
    try:
        told = json.loads(body)
        return str(told["type"]), str(told["message"])
    except (ValueError, KeyError, TypeError):
        return "", ""


def _kind(body: bytes) -> str:
    return _told(body)[0]


def _failure(status: int, body: bytes, model: str, version: str) -> ContractError:
    """Translate what TorchServe answers instead of a reply."""
    kind, message = _told(body)
    if status == 404:
        if kind == "ModelVersionNotFoundException":
            return ContractError(
                "unknown_model",
                f"the model {shorten(model)!r} has no such version",
                field="model_version",
                got=shorten(version),
            )
        return ContractError(
            "unknown_model", f"there is no model {shorten(model)!r}", field="model", got=shorten(model)
        )
    if status == 413:
        return ContractError("request_too_large", "the request is larger than TorchServe takes")
    if status == 503 and kind == "ServiceUnavailableException":
        return ContractError("overloaded", f"the queue of the model {model!r} is full")
    if "Worker died" in message:
        return WorkerLostError(f"the worker failed: {shorten(message)}", died=True)
    if status in (500, 503, 507):
        return ContractError("backend_unavailable", f"the worker failed: {shorten(message) or status}")
    return ContractError("internal", f"TorchServe answered {status}: {shorten(message) or 'nothing more'}")
