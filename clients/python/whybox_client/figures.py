"""The pictures of answers: what `Detections`, `HeatMap` and `Explanation` show of themselves."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from PIL import Image
from whybox_proto import maps

from whybox_client import defaults, pictures
from whybox_client.results import Detection, DetectionMaps, Detections, Explanation, HeatMap

if TYPE_CHECKING:
    from whybox_client.results import Box


def boxes(detections: Detections) -> Image.Image:
    """Draw every detection with label and score on the image, (H, W)."""
    return pictures.draw_boxes(detections.image, [_labelled(d, d.box) for d in detections])


def overlay(heat_map: HeatMap, *, opacity: float = defaults.OPACITY) -> Image.Image:
    """Lay a map over its image, with the detection's box, (H, W)."""
    return pictures.overlay(
        heat_map.detections.image,
        heat_map.in_image(),
        opacity=opacity,
        box=heat_map.detection.box,
        signed=heat_map.signed,
    )


def explanation(answer: Explanation, *, rows: int | None = None) -> Image.Image:
    """Set an explanation as a contact sheet: one row a detection, its box first and then its maps.

    Tiles are drawn at their own size, so the cost does not follow the image's.
    """
    detections = answer.detections
    image = pictures.fit(detections.image)
    shown = list(answer)[:rows]
    left_out = len(answer) - len(shown)
    sheet = [list(_row(image, answer, row)) for row in shown]
    return pictures.contact_sheet(
        sheet or [[pictures.Tile(image, "no detections")]],
        footer=f"and {left_out} more" if left_out else "",
    )


def _row(image: Image.Image, answer: Explanation, row: DetectionMaps) -> Iterator[pictures.Tile]:
    detections = answer.detections
    scale = image.width / detections.width, image.height / detections.height
    box = _scaled(row.detection.box, scale)
    drawn = pictures.draw_boxes(image, [_labelled(row.detection, box)])
    yield pictures.Tile(drawn, f"{row.detection.index}: {row.detection}")
    for target, heat_map in row.items():
        values = maps.enlarge(heat_map.values, _scaled(heat_map.region, scale), image.width, image.height)
        yield pictures.Tile(
            pictures.overlay(image, values, box=box, signed=heat_map.signed),
            f"{target} · {row.detection}",
        )


def _labelled(detection: Detection, box: Box) -> pictures.Labelled:
    return pictures.Labelled(box, str(detection), pictures.label_color(detection.label_id))


def _scaled(box: Box, scale: tuple[float, float]) -> Box:
    return box[0] * scale[0], box[1] * scale[1], box[2] * scale[0], box[3] * scale[1]
