"""The pictures of answers: what `Detections`, `HeatMap` and `Explanation` show of themselves."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from PIL import Image

from whybox_client import defaults, pictures, views
from whybox_client.results import Detection, DetectionMaps, Detections, Explanation, HeatMap
from whybox_proto import maps

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
    """Set an explanation as a contact sheet: one row a detection, its box in the image and then its maps.

    The maps of a small object zoom in on it, and their titles say how far. Tiles are drawn at their own
    size, so the cost does not follow the image's.
    """
    whole = pictures.fit(answer.detections.image)
    shown = list(answer)[:rows]
    left_out = len(answer) - len(shown)
    return pictures.contact_sheet(
        [list(_row(whole, answer.detections, row)) for row in shown]
        or [[pictures.Tile(whole, "no detections")]],
        footer=f"and {left_out} more" if left_out else "",
    )


def _row(whole: Image.Image, detections: Detections, row: DetectionMaps) -> Iterator[pictures.Tile]:
    detection, size = row.detection, (detections.width, detections.height)
    everything = 0.0, 0.0, float(size[0]), float(size[1])
    drawn = pictures.draw_boxes(whole, [_labelled(detection, _seen(detection.box, everything, whole))])
    yield pictures.Tile(drawn, f"{detection.index}: {detection}")
    view = views.around(detection.box, row.values(), size)
    ground = pictures.fit(detections.image, view=view)
    zoom = "" if view == everything else f" · zoom {size[0] / (view[2] - view[0]):.1f}"
    for target, heat_map in row.items():
        values = maps.enlarge(
            heat_map.values, _seen(heat_map.region, view, ground), ground.width, ground.height
        )
        tile = pictures.overlay(
            ground, values, box=_seen(detection.box, view, ground), signed=heat_map.signed
        )
        yield pictures.Tile(tile, f"{target} · {detection}{zoom}")


def _labelled(detection: Detection, box: Box) -> pictures.Labelled:
    return pictures.Labelled(box, str(detection), pictures.label_color(detection.label_id))


def _seen(box: Box, view: Box, tile: Image.Image) -> Box:
    """Carry a box from the image into a tile that shows the image's `view`."""
    x, y = tile.width / (view[2] - view[0]), tile.height / (view[3] - view[1])
    return (box[0] - view[0]) * x, (box[1] - view[1]) * y, (box[2] - view[0]) * x, (box[3] - view[1]) * y
