"""What a client does, without the waiting: each flow yields calls and returns a typed result.

`Client` and `AsyncClient` both run these; their methods have these signatures and docstrings.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

from google.protobuf import empty_pb2
from google.protobuf.message import DecodeError, Message

from whybox_client import images, requests
from whybox_client.errors import InvalidAnswerError, ServiceError
from whybox_client.images import ImageFormat, ImageLike, Picture
from whybox_client.models import Model, Nms, ParameterValue
from whybox_client.requests import Integers, Strings
from whybox_client.results import Detections, Explanation
from whybox_client.wire import DETECT, EXPLAIN, GET_MODEL, LIST_MODELS, READY, Call, Flow, Operation, Reply
from whybox_proto.v1 import explainer_pb2, types_pb2

M = TypeVar("M", bound=Message)
T = TypeVar("T")

_PAGE_SIZE = 1000


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
    nms: str | Nms | None = None,
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
        nms: kind of NMS, or kind and numbers; None: the model's own.
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
        },
        nms=nms,
        model_version=model_version,
    )
    reply = yield _call(DETECT, request, timeout, retries, request_id)
    return _read(
        reply,
        explainer_pb2.DetectResponse(),
        lambda response: Detections.from_message(response, picture, reply.request_id),
    )


def explain(
    model: str,
    image: ImageLike,
    *,
    method: str | None = None,
    targets: Strings = (),
    layer: str | None = None,
    params: Mapping[str, ParameterValue] | None = None,
    seed: int = 0,
    score_threshold: float | None = None,
    max_detections: int | None = None,
    labels: Strings = (),
    indices: Integers = (),
    box: Sequence[float] | None = None,
    nms: str | Nms | None = None,
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
        layer: name of the layer whose features are explained; None: the model's default for the method.
        params: parameters of the method by name; what is left out has the default that `model` describes.
        seed: for methods that draw random numbers.
        score_threshold: lowest score kept, 0 to 1; None: the model's own.
        max_detections: most detections kept, best first; None: 100.
        labels: only these labels; empty: every label.
        indices: positions in the list of detections that the other filters leave; empty: all of them.
        box: only the detection with the highest IoU to this [x1, y1, x2, y2]; None: no such filter.
        nms: kind of NMS, or kind and numbers; None: the model's own.
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
    picture = Picture(images.encode(image, image_format))
    request = requests.explain(
        model,
        picture.data,
        {
            "score_threshold": score_threshold,
            "max_detections": max_detections,
            "labels": labels,
            "indices": indices,
            "box": box,
        },
        nms=nms,
        model_version=model_version,
        method=method,
        targets=targets,
        layer=layer,
        params=params or {},
        seed=seed,
        output_size=output_size,
        encoding=encoding,
        max_side=max_side,
    )
    reply = yield _call(EXPLAIN, request, timeout, retries, request_id)
    return _read(
        reply,
        explainer_pb2.ExplainResponse(),
        lambda response: Explanation.from_message(response, picture, reply.request_id),
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


def _call(
    operation: Operation,
    request: Message,
    timeout: float | None,
    retries: int | None,
    request_id: str | None,
) -> Call:
    return Call(operation, request, request_id or uuid.uuid4().hex, timeout, retries)


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
