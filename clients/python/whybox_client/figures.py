"""The pictures of answers: what `Detections`, `HeatMap` and `Explanation` show of themselves."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from PIL import Image

from whybox_client import defaults, pictures, views
from whybox_client.results import Detection, DetectionMaps, Detections, Explanation, HeatMap, box_of
from whybox_client.why_not import WhyNot
from whybox_proto import maps, rle

if TYPE_CHECKING:
    from whybox_client.inversions import InversionResult
    from whybox_client.layouts import Layout
    from whybox_client.results import Box

_GROUND = (112, 112, 112)
_GREY, _WHITE = (150, 150, 150), (255, 255, 255)


def boxes(detections: Detections) -> Image.Image:
    """Draw every detection with label and score on the image, (H, W); what was suppressed, dashed."""
    suppressed = [pictures.Labelled(s.box, "", _GREY, dashed=True) for s in detections.suppressed]
    return pictures.draw_boxes(detections.image, [*(_labelled(d, d.box) for d in detections), *suppressed])


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
    if answer.why_not is not None:
        return why_not(answer.why_not)
    whole = pictures.fit(answer.detections.image)
    shown = list(answer)[:rows]
    left_out = len(answer) - len(shown)
    footer = [f"and {left_out} more"] if left_out else []
    if answer.convergence:
        footer.append(answer.convergence)
    return pictures.contact_sheet(
        [list(_row(whole, answer.detections, row)) for row in shown]
        or [[pictures.Tile(whole, "no detections")]],
        footer=" · ".join(footer),
    )


def layout(wanted: Layout, *, side: int | None = None) -> Image.Image:
    """Draw a layout's boxes with their labels on grey; masks are filled.

    Args:
        wanted: the layout.
        side: longer side of the picture; None: as large as the layout, (H, W).
    """
    whole = wanted.from_message(wanted.to_message())  # every object with its box, masks as counts
    colors = {label: pictures.label_color(i) for i, label in enumerate(_labels(whole))}
    ground = Image.new("RGB", (whole.width, whole.height), _GROUND)
    for thing in whole.objects:
        if isinstance(thing.mask, str):
            pictures.fill(ground, rle.decode(thing.mask, whole.height, whole.width), colors[thing.label])
    everything = 0.0, 0.0, float(whole.width), float(whole.height)
    shown = ground if side is None else pictures.fit(ground, side)
    return pictures.draw_boxes(
        shown,
        [
            pictures.Labelled(_seen(box_of(one.box or ()), everything, shown), one.label, colors[one.label])
            for one in whole.objects
        ],
    )


def losses(result: InversionResult, *, size: tuple[int, int] = (640, 400)) -> Image.Image:
    """Draw an inversion's loss curves, on a logarithmic scale; `size` is (W, H)."""
    curves = [(curve.name, curve.iterations, curve.values) for curve in result.losses.values()]
    return pictures.curves(curves, size)


def inversion(result: InversionResult) -> Image.Image:
    """Set what came of an inversion as a contact sheet.

    In a row: the layout, the picture that was found, what the model finds in it, and the loss curves.
    """
    wanted = layout(result.layout, side=pictures.TILE_SIDE)
    row = [pictures.Tile(wanted, "layout")]
    if result.source is not None:
        whole = pictures.fit(result.image)
        everything = _everything(result.detections)
        found = pictures.draw_boxes(
            whole, [_labelled(d, _seen(d.box, everything, whole)) for d in result.detections]
        )
        row += [pictures.Tile(whole, "picture"), pictures.Tile(found, f"{len(result.detections)} detections")]
    if result.losses:
        row.append(pictures.Tile(losses(result, size=(pictures.TILE_SIDE, wanted.height)), "losses"))
    return pictures.contact_sheet([row], footer=f"{result.detections.model}: {result.match}")


def why_not(answer: WhyNot) -> Image.Image:
    """Draw the expected box (dashed), its candidate and who stood in its way; and a map per target."""
    detections = answer.detections
    whole = pictures.fit(detections.image)
    everything = _everything(detections)
    boxes = [] if answer.candidate is None else [_labelled(answer.candidate, answer.candidate.box)]
    if answer.by is not None and answer.reason != "found":
        boxes.append(_labelled(answer.by, answer.by.box))
    boxes.append(pictures.Labelled(answer.expected_box, f"{answer.expected_label}?", _WHITE, dashed=True))
    drawn = pictures.draw_boxes(
        whole, [replace(labelled, box=_seen(labelled.box, everything, whole)) for labelled in boxes]
    )
    row = [pictures.Tile(drawn, f"{answer.expected_label}: {answer.reason.replace('_', ' ')}")]
    if answer.candidate is not None:
        row += _maps(detections, answer.candidate, {m.target: m for m in answer.heat_maps})
    return pictures.contact_sheet([row], footer=str(answer))


def _row(whole: Image.Image, detections: Detections, row: DetectionMaps) -> Iterator[pictures.Tile]:
    detection = row.detection
    box = _seen(detection.box, _everything(detections), whole)
    drawn = pictures.draw_boxes(whole, [_labelled(detection, box)])
    yield pictures.Tile(drawn, f"{detection.index}: {detection}")
    yield from _maps(detections, detection, row)


def _maps(
    detections: Detections, detection: Detection, row: Mapping[str, HeatMap]
) -> Iterator[pictures.Tile]:
    """Draw one detection's maps, zoomed in on what matters to them."""
    size = detections.width, detections.height
    view = views.around(detection.box, row.values(), size)
    ground = pictures.fit(detections.image, view=view)
    zoom = "" if view == _everything(detections) else f" · zoom {size[0] / (view[2] - view[0]):.1f}"
    for target, heat_map in row.items():
        values = maps.enlarge(
            heat_map.values, _seen(heat_map.region, view, ground), ground.width, ground.height
        )
        tile = pictures.overlay(
            ground, values, box=_seen(detection.box, view, ground), signed=heat_map.signed
        )
        yield pictures.Tile(tile, f"{target} · {detection}{zoom}")


def _labels(wanted: Layout) -> list[str]:
    return list(dict.fromkeys(thing.label for thing in wanted.objects))


def _everything(detections: Detections) -> Box:
    return 0.0, 0.0, float(detections.width), float(detections.height)


def _labelled(detection: Detection, box: Box) -> pictures.Labelled:
    return pictures.Labelled(box, str(detection), pictures.label_color(detection.label_id))


def _seen(box: Box, view: Box, tile: Image.Image) -> Box:
    """Carry a box from the image into a tile that shows the image's `view`."""
    x, y = tile.width / (view[2] - view[0]), tile.height / (view[3] - view[1])
    return (box[0] - view[0]) * x, (box[1] - view[1]) * y, (box[2] - view[0]) * x, (box[3] - view[1]) * y
