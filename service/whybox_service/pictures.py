"""What the gateway computes on an answer's heat maps; runs in a thread, beside the event loop."""

from __future__ import annotations

from typing import TYPE_CHECKING

from whybox_proto.errors import ContractError
from whybox_proto.v1 import explainer_pb2
from whybox_service.calls import Deadline

if TYPE_CHECKING:
    from PIL.Image import Image

ASK_FOR_LESS = "ask for output.size=feature, fewer targets, or a smaller select.max_detections"
BYTES_PER_CELL = {"u8": 1, "f32": 4}


def check_enlarged_size(answer: explainer_pb2.ExplainResponse, encoding: str, limit: int) -> None:
    """Refuse to enlarge what would pass the limit, before any work goes into it."""
    cells = len(answer.heat_maps) * answer.image.width * answer.image.height
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
    for heat_map in answer.heat_maps:
        deadline.check()
        x1, y1, x2, y2 = heat_map.region
        values = maps.enlarge(maps.decode(heat_map), (x1, y1, x2, y2), size.width, size.height)
        maps.encode(values, heat_map, encoding)
        heat_map.region[:] = (0.0, 0.0, size.width, size.height)
        total += len(heat_map.data)
        _check_size(total, limit)


def draw_overlay(image: bytes, answer: explainer_pb2.ExplainResponse) -> bytes:
    """Draw the answer's one heat map over its picture, as PNG."""
    import io

    from PIL import Image, ImageOps

    from whybox_client.pictures import overlay
    from whybox_proto import maps

    (heat_map,) = answer.heat_maps
    picture: Image.Image = ImageOps.exif_transpose(Image.open(io.BytesIO(image))).convert("RGB")
    x1, y1, x2, y2 = heat_map.region
    values = maps.enlarge(maps.decode(heat_map), (x1, y1, x2, y2), picture.width, picture.height)
    box = next(d.box for d in answer.detections if d.index == heat_map.detection_index)
    buffer = io.BytesIO()
    overlay(picture, values, box=list(box), signed=heat_map.signed).save(buffer, format="PNG")
    return buffer.getvalue()


def _check_size(total: int, limit: int) -> None:
    if total > limit:
        raise ContractError(
            "response_too_large",
            f"the answer would be too large: {ASK_FOR_LESS}",
            field="output.size",
            expected=f"at most {limit} bytes of heat maps",
            got=f"{total} bytes",
        )
