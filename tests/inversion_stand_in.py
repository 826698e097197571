"""A service that knows layout inversions and nothing else, on both transports: what it answers can be set.

`Desk` keeps jobs and their events; `rest` and `rpc` put it behind an address. It neither checks nor computes.
"""

from __future__ import annotations

import io
import json
import threading
from collections.abc import Callable, Iterator
from concurrent import futures
from contextlib import contextmanager
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import grpc
from google.protobuf import empty_pb2, json_format
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from PIL import Image

from test_client_errors import answer, problem, status_of, web
from whybox_proto.errors import ContractError, to_problem
from whybox_proto.states import ENDED
from whybox_proto.v1 import explainer_pb2, types_pb2

PROTOBUF = "application/x-protobuf"
W, H = 40, 30
LOSSES = {"cls": 0.5, "reg": 0.25, "total": 0.75}

_METHODS = explainer_pb2.DESCRIPTOR.services_by_name["Explainer"].methods_by_name


class LostError(Exception):
    """The answer is lost on its way."""


def picture(shade: int) -> bytes:
    """A PNG of one grey."""
    buffer = io.BytesIO()
    Image.new("RGB", (W, H), (shade, shade, shade)).save(buffer, format="PNG")
    return buffer.getvalue()


def layout() -> types_pb2.Layout:
    return types_pb2.Layout(
        width=W,
        height=H,
        objects=[
            types_pb2.LayoutObject(label="stop", box=[2, 2, 18, 18]),
            types_pb2.LayoutObject(label="yield", box=[20.5, 10, 38, 28]),
        ],
    )


def result() -> explainer_pb2.InversionResult:
    made = explainer_pb2.InversionResult(
        detections=[
            types_pb2.Detection(box=[2, 2, 18, 19], label="stop", score=0.98),
            types_pb2.Detection(index=1, box=[20, 10, 38, 28], label="yield", label_id=1, score=0.9),
        ],
        match=explainer_pb2.LayoutMatch(mean_iou=0.96, recall=1, ap=0.875, ap50=1, unmatched=0),
    )
    for name, value in LOSSES.items():
        made.losses.add(name=name, iterations=[1, 2, 3], values=[value * 4, value * 2, value])
    made.params.update({"preset": "paper", "iterations": 30, "learning_rate": 0.5, "single": False})
    return made


class Desk:
    """Jobs, and how what is asked of them ends.

    Attributes:
        jobs: by id.
        events: what a watch of a job tells, by id; ids count from 1.
        breaks: ids of events behind which the connection breaks, each once, with an error or
            without.
        fails: for an rpc, what its next answers are instead: a `ContractError`, or `LostError`, once the work
            is done.
        asked: the rpcs, with their messages.
        pause: called before each event but the first of a connection.
        cancelled: set once a job was cancelled.
        over: set once nobody is served any more.
    """

    def __init__(self) -> None:
        self.jobs: dict[str, explainer_pb2.Inversion] = {}
        self.events: dict[str, list[explainer_pb2.InversionEvent]] = {}
        self.breaks: dict[str, ContractError | None] = {}
        self.fails: dict[str, list[Exception]] = {}
        self.asked: list[tuple[str, Any]] = []
        self.pause: Callable[[], object] = lambda: None
        self.cancelled = threading.Event()
        self.over = threading.Event()
        self.model = types_pb2.Model(name="signs", labels=["stop", "yield"], ready=True)
        self.page_size = 2

    def put(self, state: str = "running", **more: Any) -> explainer_pb2.Inversion:
        """Add a job."""
        job = explainer_pb2.Inversion(name=f"inversions/{len(self.jobs) + 1:032x}", state=state, **more)
        job.request.model, job.request.seed = "signs", 7
        job.request.layout.CopyFrom(layout())
        job.request.params.update({"preset": "paper"})
        job.create_time.FromJsonString("2026-01-02T03:04:05Z")
        if state == "succeeded":
            job.result.CopyFrom(result())
        if state == "failed":
            job.error.type, job.error.message = "backend_unavailable", "no worker"
        self.jobs[job.name] = job
        self.events[job.name] = []
        self.tell(job, preview=picture(9) if state == "succeeded" else b"")
        return job

    def run(self, job: explainer_pb2.Inversion, end: str = "succeeded") -> None:
        """Add the events of a job that runs: two steps, and the end."""
        for step in (1, 2):
            job.state = "running"
            job.progress.CopyFrom(
                explainer_pb2.InversionProgress(
                    iteration=10 * step, iterations=30, losses=LOSSES, found=step - 1
                )
            )
            self.tell(job, preview=picture(100 * step))
        job.state = end
        job.progress.iteration, job.progress.found = 30, 2
        if end == "succeeded":
            job.result.CopyFrom(result())
        if end == "failed":
            job.error.type, job.error.message = "storage_failed", "the disk is full"
            job.error.field = "image"
        self.tell(job, preview=picture(250))

    def tell(self, job: explainer_pb2.Inversion, preview: bytes) -> None:
        """Add an event; while a job runs its layout's objects are left out."""
        told = self.events[job.name]
        event = explainer_pb2.InversionEvent(id=str(len(told) + 1), inversion=job, preview=preview)
        if job.state in ("queued", "running"):
            del event.inversion.request.layout.objects[:]
        told.append(event)

    def take(self, rpc: str, request: Any) -> Message:
        """Answer what has one answer."""
        self.asked.append((rpc, request))
        failure = self.fails[rpc].pop(0) if self.fails.get(rpc) else None
        if isinstance(failure, ContractError):
            raise failure
        made: Message = getattr(self, f"_{rpc}")(request)
        if failure is not None:
            raise failure
        return made

    def watch(self, request: Any) -> Iterator[explainer_pb2.InversionEvent]:
        """Tell what came and comes after an event, until the job has ended."""
        self.asked.append(("WatchInversion", request))
        if self.fails.get("WatchInversion"):
            raise self.fails["WatchInversion"].pop(0)
        job = self._job(request.name)
        events, told = self.events[job.name], int(request.last_event_id or 0)
        first = True
        while not self.over.is_set():
            if told == len(events):
                self.over.wait(0.01)
                continue
            if not first:
                self.pause()
            first, event = False, events[told]
            told += 1
            yield event
            if event.id in self.breaks:
                raise self.breaks.pop(event.id) or LostError
            if event.inversion.state in ENDED:
                return

    def asked_of(self, rpc: str) -> list[Any]:
        """The requests of one rpc."""
        return [request for name, request in self.asked if name == rpc]

    def _job(self, name: str) -> explainer_pb2.Inversion:
        if name not in self.jobs:
            raise ContractError("unknown_inversion", f"there is no inversion {name}", field="name")
        return self.jobs[name]

    def _ListModels(self, _: Any) -> Message:
        return explainer_pb2.ListModelsResponse(models=[self.model])

    def _GetModel(self, _: Any) -> Message:
        return self.model

    def _CreateInversion(self, request: explainer_pb2.CreateInversionRequest) -> Message:
        key = request.idempotency_key
        for job in self.jobs.values():
            if key and job.request.idempotency_key == key:
                return job
        job = self.put("queued")
        job.request.CopyFrom(request)
        job.request.ClearField("image")
        self.run(job)
        told = explainer_pb2.Inversion()
        told.CopyFrom(self.events[job.name][0].inversion)
        told.request.CopyFrom(job.request)
        return told

    def _GetInversion(self, request: explainer_pb2.GetInversionRequest) -> Message:
        return self._job(request.name)

    def _ListInversions(self, request: explainer_pb2.ListInversionsRequest) -> Message:
        found = [job for job in reversed(self.jobs.values()) if request.state in ("", job.state)]
        start = int(request.page_token or 0)
        page = explainer_pb2.ListInversionsResponse(inversions=found[start : start + self.page_size])
        for job in page.inversions:
            del job.request.layout.objects[:]
            if job.HasField("result"):
                match = explainer_pb2.LayoutMatch()
                match.CopyFrom(job.result.match)
                job.result.Clear()
                job.result.match.CopyFrom(match)
        if start + self.page_size < len(found):
            page.next_page_token = str(start + self.page_size)
        return page

    def _CancelInversion(self, request: explainer_pb2.CancelInversionRequest) -> Message:
        job = self._job(request.name)
        if job.state not in ("queued", "running"):
            raise ContractError("inversion_ended", f"{job.name} has ended", field="name", got=job.state)
        job.state = "cancelled"
        self.tell(job, preview=b"")
        self.cancelled.set()
        return job

    def _DeleteInversion(self, request: explainer_pb2.DeleteInversionRequest) -> Message:
        del self.jobs[self._job(request.name).name]
        return empty_pb2.Empty()


@contextmanager
def rest(desk: Desk) -> Iterator[str]:
    """Put a desk behind HTTP, as the service's own addresses are."""

    def respond(handler: Any) -> None:
        rpc, request = _read(handler)
        try:
            if rpc == "WatchInversion":
                _stream(handler, desk.watch(request))
                return
            told = desk.take(rpc, request)
        except ContractError as error:
            details = {k: v for k, v in to_problem(error).items() if k not in ("type", "title", "status")}
            problem(f"urn:whybox:error:{error.type}", error.row.http_status, **details)(handler)
        except LostError:
            handler.close_connection = True
        else:
            status = {"CreateInversion": 202, "DeleteInversion": 204}.get(rpc, 200)
            if status == 204:
                handler.send_response(204)
                handler.end_headers()
            else:
                answer(status, PROTOBUF, told.SerializeToString())(handler)

    with web(respond) as server:
        yield server.url
        desk.over.set()


def _read(handler: Any) -> tuple[str, Any]:
    """Find the rpc of an address, and read its message."""
    url = urlsplit(handler.path)
    path, _, verb = unquote(url.path).partition(":")
    parts = path.strip("/").split("/")  # v1, inversions, ID, events
    if parts[1] == "models":
        rpc = "GetModel" if len(parts) > 2 else "ListModels"
    elif len(parts) == 2:
        rpc = "CreateInversion" if handler.command == "POST" else "ListInversions"
    elif verb == "cancel":
        rpc = "CancelInversion"
    elif parts[-1] == "events":
        rpc = "WatchInversion"
    else:
        rpc = {"GET": "GetInversion", "DELETE": "DeleteInversion"}[handler.command]
    request: Any = GetMessageClass(_METHODS[rpc].input_type)()
    if handler.command == "POST":
        assert handler.headers["Content-Type"] == PROTOBUF
        request.ParseFromString(handler.body)
    for name, (value,) in parse_qs(url.query).items():
        setattr(request, name, int(value) if name == "page_size" else value)
    if len(parts) > 2 and parts[1] == "inversions":
        assert not request.name, "the service takes the name from the path"
        request.name = "/".join(parts[1:3])
    if rpc == "WatchInversion":
        assert handler.headers["Accept"] == "text/event-stream"
        assert not request.last_event_id, "it is a header"
        request.last_event_id = handler.headers.get("Last-Event-ID", "")
    return rpc, request


def _stream(handler: Any, events: Iterator[explainer_pb2.InversionEvent]) -> None:
    """Send events; a refusal before the first is an ordinary answer."""
    first = next(events, None)
    handler.send_response(200)
    handler.send_header("Content-Type", "text/event-stream; charset=utf-8")
    handler.send_header("Connection", "close")
    handler.end_headers()
    handler.close_connection = True
    try:
        while first is not None:
            over = first.inversion.state in ENDED
            data = json_format.MessageToJson(first, indent=None, preserving_proto_field_name=True)
            kind = "result" if over else "partial"
            handler.wfile.write(f": beat\n\nid: {first.id}\nevent: {kind}\ndata: {data}\n\n".encode())
            first = next(events, None)
    except ContractError as error:
        handler.wfile.write(f"event: error\ndata: {json.dumps(to_problem(error))}\n\n".encode())
    except (LostError, OSError):
        return


@contextmanager
def rpc(desk: Desk) -> Iterator[str]:
    """Put a desk behind gRPC."""

    def abort(context: grpc.ServicerContext, error: Exception) -> None:
        if isinstance(error, ContractError):
            status = status_of(error, "theirs")
            context.set_trailing_metadata((("grpc-status-details-bin", status.SerializeToString()),))
            context.abort(grpc.StatusCode[error.row.grpc_code], error.message)
        context.abort(grpc.StatusCode.UNAVAILABLE, "Socket closed")

    def of(name: str) -> Any:
        read = GetMessageClass(_METHODS[name].input_type).FromString

        def one(request: Any, context: grpc.ServicerContext) -> bytes:
            try:
                return desk.take(name, request).SerializeToString()
            except (ContractError, LostError) as error:
                abort(context, error)
                raise AssertionError from error

        def several(request: Any, context: grpc.ServicerContext) -> Iterator[bytes]:
            try:
                for event in desk.watch(request):
                    yield event.SerializeToString()
            except (ContractError, LostError) as error:
                abort(context, error)

        if _METHODS[name].server_streaming:
            return grpc.unary_stream_rpc_method_handler(several, read)
        return grpc.unary_unary_rpc_method_handler(one, read)

    class Handler(grpc.GenericRpcHandler):
        def service(self, details: grpc.HandlerCallDetails) -> Any:
            return of(details.method.rpartition("/")[2])

    pool = futures.ThreadPoolExecutor(8)
    server = grpc.server(pool, handlers=[Handler()])
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield f"grpc://127.0.0.1:{port}"
    finally:
        desk.over.set()
        server.stop(0).wait()
        pool.shutdown()
