"""What the gateway computes on an answer's heat maps; runs in a thread, beside the event loop."""

from __future__ import annotations

from collections.abc import MutableSequence

from whybox_proto import checks
from whybox_proto.errors import ContractError
from whybox_proto.v1 import explainer_pb2, types_pb2
from whybox_service.calls import Deadline

ASK_FOR_LESS = "ask for output.size=feature, fewer targets, or a smaller select.max_detections"
ASK_FOR_MAPS = "ask for the heat map itself (Accept: application/json), or send a smaller picture"
MAX_OVERLAY_PIXELS = 16_000_000
"""Of a picture that is drawn on; drawing takes some 70 bytes a pixel."""
MAX_OVERLAY_BYTES = 60 * 2**20
BYTES_PER_CELL = {"u8": 1, "f32": 4}


def heat_maps_of(answer: explainer_pb2.ExplainResponse) -> MutableSequence[types_pb2.HeatMap]:
    """Return an answer's heat maps: those of what was missed, where that was asked for."""
    maps: MutableSequence[types_pb2.HeatMap] = (
        answer.why_not.heat_maps if answer.HasField("why_not") else answer.heat_maps
    )
    return maps


def detection_of(answer: explainer_pb2.ExplainResponse, heat_map: types_pb2.HeatMap) -> types_pb2.Detection:
    """Return the detection, or the missed candidate, that one of an answer's maps explains.

    Raises:
        ContractError: `internal` where the worker answered a map of none of them.
    """
    if answer.HasField("why_not"):
        return answer.why_not.candidate
    for detection in answer.detections:
        if detection.index == heat_map.detection_index:
            return detection
    raise ContractError("internal", "the worker answered a heat map of no detection of its answer")


def encoding_of(request: explainer_pb2.ExplainRequest) -> str:
    """Return the encoding that a request's maps are to be written in."""
    return request.output.encoding or checks.DEFAULT_ENCODING


def check_cells(cells: int, encoding: str, limit: int) -> None:
    """Refuse maps that would pass the limit, before work goes into them.

    Args:
        cells: of all maps together.
        encoding: that they will be written in; how long a ``png`` gets shows when it is there.
        limit: most bytes.
    """
    _check_size(cells * BYTES_PER_CELL.get(encoding, 0), limit)


def enlarge_maps(
    answer: explainer_pb2.ExplainResponse, encoding: str, limit: int, deadline: Deadline
) -> None:
    """Replace each map by the same map in the image's frame and size, written in `encoding`.

    Args:
        answer: changed in place.
        encoding: ``u8``, ``f32`` or ``png``.
        limit: most bytes of all maps together.
        deadline: when to give up.
    """
    from whybox_proto import maps

    size = answer.image
    total = 0
    for heat_map in heat_maps_of(answer):
        deadline.check()
        x1, y1, x2, y2 = heat_map.region
        values = maps.enlarge(maps.decode(heat_map), (x1, y1, x2, y2), size.width, size.height)
        maps.encode(values, heat_map, encoding)
        heat_map.region[:] = (0.0, 0.0, size.width, size.height)
        total += len(heat_map.data)
        _check_size(total, limit)


def write_maps(answer: explainer_pb2.ExplainResponse, encoding: str, deadline: Deadline) -> None:
    """Write each map of an answer in another encoding, in place."""
    from whybox_proto import maps

    for heat_map in heat_maps_of(answer):
        deadline.check()
        maps.encode(maps.decode(heat_map), heat_map, encoding)


def draw_overlay(
    image: bytes, answer: explainer_pb2.ExplainResponse, limit: int = MAX_OVERLAY_BYTES
) -> bytes:
    """Draw the answer's one heat map over its picture, as PNG.

    Args:
        image: the picture as it came; it is read as the worker read it, and to the size that it found.
        answer: of the worker.
        limit: most bytes of the PNG.

    Raises:
        ContractError: `response_too_large`, or what is wrong with the picture.
    """
    import io

    from PIL import Image

    from whybox_client.pictures import overlay
    from whybox_proto import images, maps

    width, height = answer.image.width, answer.image.height
    if width * height > MAX_OVERLAY_PIXELS:
        raise _too_large("Accept", f"at most {MAX_OVERLAY_PIXELS} pixels", f"{width}x{height}", ASK_FOR_MAPS)
    (heat_map,) = heat_maps_of(answer)
    picture = Image.fromarray(images.decode(image, Exactly(width, height)))
    x1, y1, x2, y2 = heat_map.region
    values = maps.enlarge(maps.decode(heat_map), (x1, y1, x2, y2), picture.width, picture.height)
    box = detection_of(answer, heat_map).box
    buffer = io.BytesIO()
    overlay(picture, values, box=list(box), signed=heat_map.signed).save(buffer, format="PNG")
    if buffer.tell() > limit:
        raise _too_large("Accept", f"at most {limit} bytes of PNG", f"{buffer.tell()} bytes", ASK_FOR_MAPS)
    return buffer.getvalue()


class Exactly:
    """The limits that a picture of this size just meets, however it is turned."""

    def __init__(self, width: int, height: int) -> None:
        self.max_pixels = width * height
        self.max_side = self.max_aspect = max(width, height)


def _check_size(total: int, limit: int) -> None:
    if total > limit:
        raise _too_large("output.size", f"at most {limit} bytes of heat maps", f"{total} bytes", ASK_FOR_LESS)


def _too_large(field: str, expected: str, got: str, advice: str) -> ContractError:
    return ContractError(
        "response_too_large",
        f"the answer would be too large: {advice}",
        field=field,
        expected=expected,
        got=got,
    )
