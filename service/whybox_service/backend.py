"""The one door to TorchServe: its inference and management API over kept-alive connections.

What TorchServe says when it fails becomes a row of the table of errors here and nowhere else. The requests
change nothing in a worker, so one that met a connection that had just gone is sent a second time.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import httpcore
from google.protobuf.message import DecodeError

from whybox_proto.errors import ContractError, shorten
from whybox_proto.v1 import worker_pb2
from whybox_service.calls import Deadline
from whybox_service.settings import Settings

CONTENT_TYPE = "application/x-protobuf"
KEEP_ALIVE_SECONDS = 60.0
MANAGEMENT_CONNECTIONS = 8
MODELS_PER_PAGE = 100


@dataclass(frozen=True)
class Served:
    """What TorchServe knows of one version of a model.

    Attributes:
        name: the model's name.
        version: its version, as its archive gives it.
        workers: id, process id and status of each worker; a restarted one keeps its id.
        queue_remaining: requests that the model's queue still takes.
    """

    name: str
    version: str
    workers: tuple[tuple[str, int, str], ...]
    queue_remaining: int

    @property
    def ready(self) -> bool:
        """Whether a worker can answer now."""
        return any(status == "READY" for _, _, status in self.workers)


class Backend:
    """TorchServe, as the gateway uses it."""

    def __init__(self, settings: Settings) -> None:
        self._inference_url = settings.inference_url.rstrip("/")
        self._management_url = settings.management_url.rstrip("/")
        self._inference = _pool(settings.max_backend_connections)
        self._management = _pool(MANAGEMENT_CONNECTIONS)

    async def close(self) -> None:
        """Close the connections."""
        await self._inference.aclose()
        await self._management.aclose()

    async def ask(
        self, model: str, version: str, request: worker_pb2.WorkerRequest, deadline: Deadline
    ) -> worker_pb2.WorkerReply:
        """Have a worker answer; an error that it answers in-band is raised.

        Args:
            model: name of the model.
            version: its version; empty for the default one.
            request: what is asked.
            deadline: when to stop waiting.

        Raises:
            ContractError: from the worker, or for what happened on the way to it.
        """
        url = f"{self._inference_url}/predictions/{_path(model, version)}"
        status, body = await _send(self._inference, "POST", url, deadline, request.SerializeToString())
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


def _pool(connections: int) -> httpcore.AsyncConnectionPool:
    return httpcore.AsyncConnectionPool(
        max_connections=connections,
        max_keepalive_connections=connections,
        keepalive_expiry=KEEP_ALIVE_SECONDS,
    )


def _path(model: str, version: str) -> str:
    return quote(model, safe="") + (f"/{quote(version, safe='')}" if version else "")


async def _send(
    pool: httpcore.AsyncConnectionPool, verb: str, url: str, deadline: Deadline, body: bytes = b""
) -> tuple[int, bytes]:
    try:
        return await _attempt(pool, verb, url, deadline, body)
    except httpcore.ConnectError:
        raise _unreachable() from None
    except (httpcore.NetworkError, httpcore.RemoteProtocolError):
        try:
            return await _attempt(pool, verb, url, deadline, body)
        except (httpcore.NetworkError, httpcore.RemoteProtocolError):
            raise _unreachable() from None


async def _attempt(
    pool: httpcore.AsyncConnectionPool, verb: str, url: str, deadline: Deadline, body: bytes
) -> tuple[int, bytes]:
    async with deadline.limit():
        response = await pool.request(verb, url, headers={"Content-Type": CONTENT_TYPE}, content=body)
        return response.status, response.content


def _unreachable() -> ContractError:
    return ContractError("backend_unavailable", "TorchServe cannot be reached or broke off its answer")


def _failure(status: int, body: bytes, model: str, version: str) -> ContractError:
    """Translate what TorchServe answers instead of a reply."""
    try:
        told = json.loads(body)
        kind, message = str(told["type"]), str(told["message"])
    except (ValueError, KeyError, TypeError):
        kind, message = "", ""
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
    if status in (500, 503, 507):
        return ContractError("backend_unavailable", f"the worker failed: {shorten(message) or status}")
    return ContractError("internal", f"TorchServe answered {status}: {shorten(message) or 'nothing more'}")
