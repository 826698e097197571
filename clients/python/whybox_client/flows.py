"""What a client does, without the waiting: each flow yields calls and returns a typed result.

`Client` and `AsyncClient` both run these; their methods have these signatures and docstrings.
"""

from __future__ import annotations

import math
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TypeVar, Unpack

from google.protobuf import empty_pb2
from google.protobuf.message import DecodeError, Message

from whybox_client import images, requests, retrying
from whybox_client.errors import (
    DeadlineExceededError,
    InvalidAnswerError,
    InversionEndedError,
    NotFoundError,
    ServiceError,
    WhyboxError,
)
from whybox_client.evaluations import Evaluations
from whybox_client.images import ImageFormat, ImageLike, Picture
from whybox_client.inversions import Inversion, InversionEvent
from whybox_client.layouts import GroundTruth, Layout, LayoutLike
from whybox_client.models import Model, Nms, ParameterValue
from whybox_client.notebooks import Screen
from whybox_client.requests import Expected, Integers, Strings
from whybox_client.results import Detections, Explanation
from whybox_client.settings import ExplainSettings
from whybox_client.wire import (
    CANCEL_INVERSION,
    CREATE_INVERSION,
    DELETE_INVERSION,
    DETECT,
    EVALUATE,
    EXPLAIN,
    EXPLAIN_STREAM,
    GET_INVERSION,
    GET_MODEL,
    LIST_INVERSIONS,
    LIST_MODELS,
    READY,
    WATCH_INVERSION,
    Call,
    Flow,
    Operation,
    Reply,
    Streaming,
)
from whybox_proto.v1 import explainer_pb2, types_pb2

M = TypeVar("M", bound=Message)
T = TypeVar("T")

_PAGE_SIZE = 1000
_INVERSIONS_PAGE_SIZE = 100
# A connection that is watched is made anew after so long: one that died without a word is not waited for.
_CONNECTION_S = 300.0
# As often as the time allows.
_MANY = 1_000_000


def models(
    *, timeout: float | None = None, retries: int | None = None, request_id: str | None = None
) -> Flow[list[Model]]:
    """List the models that are served, and what can be asked of each.

    Args:
        timeout: seconds to wait for an answer, all attempts together; None: the client's own.
        retries: how often to ask again where that is safe and can help; None: as the client says.
        request_id: the id under which the service logs the request; None: a new one.

    Raises:
        WhyboxError: what went wrong, as `whybox_client.errors` draws it.
    """
    listed: list[Model] = []
    request = explainer_pb2.ListModelsRequest(page_size=_PAGE_SIZE)
    while True:
        reply = yield _call(LIST_MODELS, request, timeout, retries, request_id)
        page, token = _read(reply, explainer_pb2.ListModelsResponse(), _page)
        listed += page
        if not token:
            return listed
        request.page_token = token


def model(
    name: str,
    *,
    model_version: str = "",
    timeout: float | None = None,
    retries: int | None = None,
    request_id: str | None = None,
) -> Flow[Model]:
    """Describe one model: its labels, methods with their parameters and defaults, layers and NMS.

    Args:
        name: name of the model.
        model_version: empty: the default version.
        timeout: seconds to wait for an answer, all attempts together; None: the client's own.
        retries: how often to ask again where that is safe and can help; None: as the client says.
        request_id: the id under which the service logs the request; None: a new one.

    Raises:
        UnknownModelError: if there is no such model.
        WhyboxError: what else went wrong, as `whybox_client.errors` draws it.
    """
    request = explainer_pb2.GetModelRequest(model=name, model_version=model_version)
    reply = yield _call(GET_MODEL, request, timeout, retries, request_id)
    return _read(reply, types_pb2.Model(), Model.from_message)


def detect(
    model: str,
    image: ImageLike,
    *,
    score_threshold: float | None = None,
    max_detections: int | None = None,
    labels: Strings = (),
    indices: Integers = (),
    box: Sequence[float] | None = None,
    expected: Expected | None = None,
    nms: str | Nms | None = None,
    explain_suppressed: bool = False,
    model_version: str = "",
    image_format: ImageFormat = "png",
    timeout: float | None = None,
    retries: int | None = None,
    request_id: str | None = None,
) -> Flow[Detections]:
    """Find the objects in an image.

    Args:
        model: name of the model.
        image: path, encoded bytes, Pillow image, or uint8 array (H, W, 3) RGB or (H, W) grey.
        score_threshold: lowest score kept, 0 to 1; None: the model's own.
        max_detections: most detections kept, best first; None: 100.
        labels: only these labels; empty: every label.
        indices: positions in the list of detections that the other filters leave; empty: all of them.
        box: only the detection with the highest IoU to this [x1, y1, x2, y2]; None: no such filter.
        expected: an object that should have been found, as ([x1, y1, x2, y2], label): `why_not` of the answer
            says what became of it.
        nms: kind of NMS, or kind and numbers; None: the model's own.
        explain_suppressed: whether to return what suppression took out, each with its reason.
        model_version: empty: the default version.
        image_format: how pixels (Pillow, NumPy) are sent: ``png`` (exact) or ``jpeg`` (smaller).
        timeout: seconds to wait for an answer, all attempts together; None: the client's own.
        retries: how often to ask again where that is safe and can help; None: as the client says.
        request_id: the id under which the service logs the request; None: a new one.

    Raises:
        TypeError, ValueError: for an argument that cannot be sent.
        OSError: if the file cannot be read.
        WhyboxError: what went wrong, as `whybox_client.errors` draws it.
    """
    picture = Picture(images.encode(image, image_format))
    request = requests.detect(
        model,
        picture.data,
        {
            "score_threshold": score_threshold,
            "max_detections": max_detections,
            "labels": labels,
            "indices": indices,
            "box": box,
            "expected": expected,
        },
        {"nms": nms, "explain_suppressed": explain_suppressed},
        model_version=model_version,
    )
    reply = yield _call(DETECT, request, timeout, retries, request_id)
    return _read(
        reply,
        explainer_pb2.DetectResponse(),
        lambda response: Detections.from_message(
            response, picture, reply.request_id, requests.expected_of(request)
        ),
    )


def explain(
    model: str,
    image: ImageLike,
    *,
    method: str | None = None,
    targets: Strings = (),
    layer: Strings | None = None,
    params: Mapping[str, ParameterValue] | None = None,
    seed: int = 0,
    seconds: float | None = None,
    samples: int | None = None,
    evaluate: bool = False,
    score_threshold: float | None = None,
    max_detections: int | None = None,
    labels: Strings = (),
    indices: Integers = (),
    box: Sequence[float] | None = None,
    expected: Expected | None = None,
    nms: str | Nms | None = None,
    explain_suppressed: bool = False,
    output_size: str | None = None,
    encoding: str | None = None,
    max_side: int | None = None,
    model_version: str = "",
    image_format: ImageFormat = "png",
    timeout: float | None = None,
    retries: int | None = None,
    request_id: str | None = None,
) -> Flow[Explanation]:
    """Find the objects in an image, and show what the model looked at for each.

    Args:
        model: name of the model.
        image: path, encoded bytes, Pillow image, or uint8 array (H, W, 3) RGB or (H, W) grey.
        method: how to explain; None: ``odam``.
        targets: what to explain: ``class``, ``class:LABEL``, ``x1``, ``y1``, ``x2``, ``y2``, ``combined``;
            empty: ``class``.
        layer: name of the layer whose features are explained, or several, whose maps are combined; None: the
            model's default for the method.
        params: parameters of the method by name; what is left out has the default that `model` describes.
        seed: for methods that draw random numbers: the same seed and number of samples give the same map.
        seconds: how long a method that draws samples may go on; they come on top of the client's own timeout,
            and a `timeout` that is given bounds them. None: as long as the time allows.
        samples: how many samples such a method draws at most; None: as the method's own default says.
        evaluate: whether to measure how good each map is, as far as that takes no ground truth:
            `HeatMap.faithfulness`.
        score_threshold: lowest score kept, 0 to 1; None: the model's own.
        max_detections: most detections kept, best first; None: 100.
        labels: only these labels; empty: every label.
        indices: positions in the list of detections that the other filters leave; empty: all of them.
        box: only the detection with the highest IoU to this [x1, y1, x2, y2]; None: no such filter.
        expected: an object that should have been found, as ([x1, y1, x2, y2], label): `why_not` of the answer
            says what became of it.
        nms: kind of NMS, or kind and numbers; None: the model's own.
        explain_suppressed: whether to return what suppression took out, each with its reason.
        output_size: ``feature`` (the method's own resolution) or ``image``; None: ``feature``, which is
            smaller on the way: `HeatMap.in_image` enlarges here.
        encoding: ``u8``, ``f32`` (exact) or ``png``; None: ``u8``.
        max_side: longest side of a map made in pixel space; None: 512.
        model_version: empty: the default version.
        image_format: how pixels (Pillow, NumPy) are sent: ``png`` (exact) or ``jpeg`` (smaller).
        timeout: seconds to wait for an answer, all attempts together; None: the client's own.
        retries: how often to ask again where that is safe and can help; None: as the client says.
        request_id: the id under which the service logs the request; None: a new one.

    Raises:
        TypeError, ValueError: for an argument that cannot be sent.
        OSError: if the file cannot be read.
        WhyboxError: what went wrong, as `whybox_client.errors` draws it.
    """
    settings: ExplainSettings = {
        "method": method,
        "targets": targets,
        "layer": layer,
        "params": params,
        "seed": seed,
        "seconds": seconds,
        "samples": samples,
        "evaluate": evaluate,
        "score_threshold": score_threshold,
        "max_detections": max_detections,
        "labels": labels,
        "indices": indices,
        "box": box,
        "expected": expected,
        "nms": nms,
        "explain_suppressed": explain_suppressed,
        "output_size": output_size,
        "encoding": encoding,
        "max_side": max_side,
        "model_version": model_version,
        "image_format": image_format,
        "timeout": timeout,
        "retries": retries,
    }
    picture, request = _explain_request(model, image, settings)
    reply = yield _explain_call(EXPLAIN, request, settings, request_id)
    return _read_explanation(reply, picture, request)


def explain_stream(
    model: str,
    image: ImageLike,
    *,
    request_id: str | None = None,
    **settings: Unpack[ExplainSettings],
) -> Streaming[Explanation]:
    """Explain as `explain` does, and iterate over results that grow as samples are drawn.

    Each result holds all samples so far, and says in `samples` and `standard_error` how far it is; the last
    one is `final`. A method that draws no samples has that one alone. `Explanation.show` draws each in place
    of the one before. Leaving the loop early closes the connection, and the service stops drawing.

    What fails before the first result is asked again as ever; what breaks after it is an error.

    Args:
        model: name of the model.
        image: path, encoded bytes, Pillow image, or uint8 array (H, W, 3) RGB or (H, W) grey.
        request_id: the id under which the service logs the request; None: a new one.
        settings: what else `explain` takes; `timeout` is for all results together.

    Raises:
        TypeError, ValueError: for an argument that cannot be sent.
        OSError: if the file cannot be read.
        WhyboxError: while iterating: what went wrong, as `whybox_client.errors` draws it.
    """
    picture, request = _explain_request(model, image, settings)
    screen = Screen()
    return Streaming(
        _explain_call(EXPLAIN_STREAM, request, settings, request_id),
        lambda reply: _read_explanation(reply, picture, request, screen),
        lambda explanation: explanation.final,
    )


def evaluate(
    model: str,
    image: ImageLike,
    *,
    truth: Sequence[GroundTruth] = (),
    measures: Strings = (),
    request_id: str | None = None,
    **settings: Unpack[ExplainSettings],
) -> Flow[Evaluations]:
    """Explain, and measure how good each map is.

    Args:
        model: name of the model.
        image: path, encoded bytes, Pillow image, or uint8 array (H, W, 3) RGB or (H, W) grey.
        truth: the objects that are really there, for the measures that need them; empty: not known.
        measures: names of measures, of those that `model` describes; empty: all that can be taken.
        request_id: the id under which the service logs the request; None: a new one.
        settings: what else `explain` takes.

    Raises:
        TypeError, ValueError: for an argument that cannot be sent.
        OSError: if the file cannot be read.
        WhyboxError: what went wrong, as `whybox_client.errors` draws it.
    """
    picture, explained = _explain_request(model, image, settings)
    request = requests.evaluate(explained, truth, picture, measures)
    reply = yield _explain_call(EVALUATE, request, settings, request_id)
    return _read(
        reply,
        explainer_pb2.EvaluateResponse(),
        lambda response: Evaluations.from_message(response, picture, reply.request_id),
    )


def invert(
    layout: LayoutLike,
    *,
    model: str,
    preset: str | None = None,
    params: Mapping[str, ParameterValue] | None = None,
    seed: int = 0,
    image: ImageLike | None = None,
    priority: int = 0,
    idempotency_key: str | None = None,
    timeout: float | None = None,
    retries: int | None = None,
    request_id: str | None = None,
) -> Flow[Inversion]:
    """Start a layout inversion; see `whybox_client.jobs.Jobs.invert`."""
    picture = None if image is None else images.encode(image)
    key = uuid.uuid4().hex if idempotency_key is None else idempotency_key
    request = requests.invert(
        Layout.of(layout),
        model=model,
        preset=preset,
        params=params or {},
        seed=seed,
        image=picture,
        priority=priority,
        idempotency_key=key,
    )
    operation = replace(CREATE_INVERSION, safe=bool(key))
    reply = yield _call(operation, request, timeout, retries, request_id)
    return (yield from _pictured(reply))


def inversion(name: str) -> Flow[Inversion]:
    """Ask how an inversion is; of one that has succeeded, with its picture."""
    request = explainer_pb2.GetInversionRequest(name=requests.inversion_name(name))
    return (yield from _pictured((yield _call(GET_INVERSION, request, None, None, None))))


def inversions(state: str | None, page_token: str) -> Flow[tuple[list[Inversion], str]]:
    """Ask for a page of inversions; return them and the token of the next page, empty at the last."""
    request = explainer_pb2.ListInversionsRequest(
        page_size=_INVERSIONS_PAGE_SIZE, page_token=page_token, state=state or ""
    )
    reply = yield _call(LIST_INVERSIONS, request, None, None, None)
    return _read(
        reply,
        explainer_pb2.ListInversionsResponse(),
        lambda page: (
            [Inversion.from_message(one, brief=True) for one in page.inversions],
            page.next_page_token,
        ),
    )


def cancel_inversion(name: str) -> Flow[Inversion]:
    """Cancel an inversion; nothing happens to one that is cancelled already."""
    request = explainer_pb2.CancelInversionRequest(name=requests.inversion_name(name))
    try:
        reply = yield _call(CANCEL_INVERSION, request, None, None, None)
    except InversionEndedError:
        # It may have been this very call that cancelled it, where its first answer was lost.
        found = yield from inversion(name)
        if found.state != "cancelled":
            raise
        return found
    return _read(reply, explainer_pb2.Inversion(), Inversion.from_message)


def delete_inversion(name: str) -> Flow[None]:
    """Delete an inversion and its pictures."""
    request = explainer_pb2.DeleteInversionRequest(name=requests.inversion_name(name))
    yield _call(DELETE_INVERSION, request, None, None, None)


def inversion_picture(name: str) -> Flow[Picture]:
    """Ask for the latest picture of an inversion.

    It is what the first event of a watch brings, so that both transports tell the same.

    Raises:
        NotFoundError: while there is none.
    """
    reply = yield _watch_call(name)
    event = _read_event(reply, None)
    if event.source is None:
        raise NotFoundError(
            f"{event.inversion.name} has no picture yet: it is {event.state}", request_id=reply.request_id
        )
    return event.source


def watch_inversion(
    name: str, timeout: float | None = None, clock: Callable[[], float] = time.monotonic
) -> Streaming[InversionEvent]:
    """Follow an inversion to its end, over as many connections as that takes.

    Args:
        name: of the inversion.
        timeout: seconds for all of it; None: no end.
        clock: seconds, ever rising.
    """
    seconds = math.inf if timeout is None else retrying.positive(timeout)
    until = clock() + seconds
    screen = Screen()

    def call(seconds: float, last_event_id: str = "") -> Call:
        lasting = min(seconds, _CONNECTION_S)
        return replace(_watch_call(name, last_event_id), retries=_MANY, lasting=lasting)

    def resume(last: InversionEvent, error: WhyboxError) -> Call:
        if not isinstance(error, (*retrying.PASSING, DeadlineExceededError)):
            raise error
        if (left := until - clock()) <= 0:
            raise DeadlineExceededError(
                f"{last.inversion.name} is {last.state} after {seconds:g} s, and goes on",
                request_id=error.request_id,
            )
        return call(left, last.id)

    return Streaming(
        call(seconds),
        lambda reply: _read_event(reply, screen),
        lambda event: event.inversion.ended,
        resume,
    )


def ready(*, timeout: float = 5.0) -> Flow[bool]:
    """Tell whether the service is there and can answer; False too where nothing can be reached.

    It is asked once: what is told is how things are now.

    Args:
        timeout: seconds to wait for an answer.
    """
    try:
        yield _call(READY, empty_pb2.Empty(), timeout, 0, None)
    except ServiceError:
        return False
    return True


def once(call: Call) -> Flow[Reply]:
    """Send one call, and return its reply as it is."""
    return (yield call)


def _call(
    operation: Operation,
    request: Message,
    timeout: float | None,
    retries: int | None,
    request_id: str | None,
    work: float = 0.0,
) -> Call:
    return Call(operation, request, request_id or uuid.uuid4().hex, timeout, retries, work)


def _watch_call(name: str, last_event_id: str = "") -> Call:
    request = explainer_pb2.WatchInversionRequest(
        name=requests.inversion_name(name), last_event_id=last_event_id
    )
    return _call(WATCH_INVERSION, request, None, None, None)


def _read_event(reply: Reply, screen: Screen | None) -> InversionEvent:
    return _read(
        reply,
        explainer_pb2.InversionEvent(),
        lambda event: InversionEvent.from_message(event, screen),
    )


def _pictured(reply: Reply) -> Flow[Inversion]:
    """Read an inversion; where there is a result, get its picture too."""
    found = _read(reply, explainer_pb2.Inversion(), Inversion.from_message)
    if found.result is None:
        return found
    return _read_event((yield _watch_call(found.name)), None).inversion


def _explain_call(
    operation: Operation, request: Message, settings: ExplainSettings, request_id: str | None
) -> Call:
    seconds = settings.get("seconds")
    # A budget that cannot be is for the service to refuse.
    work = seconds if seconds is not None and 0 < seconds < math.inf else 0.0
    return _call(operation, request, settings.get("timeout"), settings.get("retries"), request_id, work)


def _explain_request(
    model: str, image: ImageLike, settings: ExplainSettings
) -> tuple[Picture, explainer_pb2.ExplainRequest]:
    picture = Picture(images.encode(image, settings.get("image_format", "png")))
    request = requests.explain(
        model,
        picture.data,
        {
            "score_threshold": settings.get("score_threshold"),
            "max_detections": settings.get("max_detections"),
            "labels": settings.get("labels", ()),
            "indices": settings.get("indices", ()),
            "box": settings.get("box"),
            "expected": settings.get("expected"),
        },
        {"nms": settings.get("nms"), "explain_suppressed": settings.get("explain_suppressed", False)},
        model_version=settings.get("model_version", ""),
        method=settings.get("method"),
        targets=settings.get("targets", ()),
        layer=settings.get("layer"),
        params=settings.get("params") or {},
        seed=settings.get("seed", 0),
        seconds=settings.get("seconds"),
        samples=settings.get("samples"),
        evaluate=settings.get("evaluate", False),
        output_size=settings.get("output_size"),
        encoding=settings.get("encoding"),
        max_side=settings.get("max_side"),
    )
    return picture, request


def _read_explanation(
    reply: Reply, picture: Picture, request: explainer_pb2.ExplainRequest, screen: Screen | None = None
) -> Explanation:
    return _read(
        reply,
        explainer_pb2.ExplainResponse(),
        lambda response: Explanation.from_message(
            response, picture, reply.request_id, requests.expected_of(request), screen
        ),
    )


def _page(response: explainer_pb2.ListModelsResponse) -> tuple[list[Model], str]:
    return [Model.from_message(model) for model in response.models], response.next_page_token


def _read(reply: Reply, message: M, build: Callable[[M], T]) -> T:
    """Read a reply into its message and build the result from it."""
    try:
        message.ParseFromString(reply.body)
        return build(message)
    except (DecodeError, ValueError, IndexError) as error:
        raise InvalidAnswerError(
            f"the answer is no {message.DESCRIPTOR.name} that makes sense: {error}",
            request_id=reply.request_id,
        ) from error
