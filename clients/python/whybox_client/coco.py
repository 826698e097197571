"""COCO's JSON of instances, read as a layout; https://cocodataset.org/#format-data.

Letters: H, W pixels of the image.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from whybox_client.layouts import Layout, LayoutObject, four_of, pixels_of
from whybox_proto import rle
from whybox_proto.errors import shorten

# COCO's own boxes pass the border by less than this.
_BEYOND = 1.0
_LISTED = 5


def layout(data: Mapping[str, Any], image_id: int | str | None) -> Layout:
    """Read the objects of one image; see `Layout.from_coco`."""
    images, annotations, categories = (_list(data, name) for name in ("images", "annotations", "categories"))
    position, image = _chosen(images, image_id)
    width, height = (pixels_of(image, side, f"images[{position}].") for side in ("width", "height"))
    labels = {category.get("id"): category.get("name") for category in categories}
    objects = []
    for i, annotation in enumerate(annotations):
        if annotation.get("image_id") != image.get("id") or annotation.get("iscrowd"):
            continue
        label = labels.get(annotation.get("category_id"))
        if not isinstance(label, str):
            raise ValueError(
                f"annotations[{i}].category_id: expected the id of a category that has a name; "
                f"got {shorten(annotation.get('category_id'))}"
            )
        mask = _mask(annotation.get("segmentation"), width, height, f"annotations[{i}].segmentation")
        bbox = annotation.get("bbox")
        box = None if bbox is None and mask else _box(bbox, width, height, f"annotations[{i}].bbox")
        objects.append(LayoutObject(label, box, mask))
    return Layout(width, height, tuple(objects))


def _list(data: Mapping[str, Any], name: str) -> Sequence[Mapping[str, Any]]:
    found = data.get(name)
    if not isinstance(found, list) or not all(isinstance(one, Mapping) for one in found):
        raise ValueError(f"{name}: expected a list of objects, as COCO's JSON of instances has it")
    return found


def _chosen(images: Sequence[Mapping[str, Any]], image_id: int | str | None) -> tuple[int, Mapping[str, Any]]:
    # On a command line an id is text.
    meant = [
        (i, image)
        for i, image in enumerate(images)
        if image_id is None or str(image.get("id")) == str(image_id)
    ]
    if len(meant) == 1:
        return meant[0]
    ids = ", ".join(str(image.get("id")) for image in images[:_LISTED])
    more = ", …" if len(images) > _LISTED else ""
    raise ValueError(
        f"image_id: expected one of {len(images)} images ({ids}{more}); "
        f"got {'nothing' if image_id is None else shorten(image_id)}"
    )


def _box(bbox: Any, width: int, height: int, path: str) -> tuple[float, float, float, float]:
    x, y, w, h = four_of(bbox, "[x, y, width, height]", path)
    return (
        _within(x, width),
        _within(y, height),
        _within(x + w, width),
        _within(y + h, height),
    )


def _within(side: float, limit: int) -> float:
    """Move a side onto the border that it hardly passes; the service refuses what passes it by more."""
    if -_BEYOND < side < 0:
        return 0.0
    return float(limit) if limit < side < limit + _BEYOND else side


def _mask(segmentation: Any, width: int, height: int, path: str) -> str | None:
    """Return compressed counts; None where there is no mask."""
    if not segmentation:
        return None
    if isinstance(segmentation, Mapping):
        return _counts(segmentation, width, height, path)
    mask = np.zeros((height, width), bool)
    try:
        for polygon in segmentation:
            mask |= filled(polygon, height, width)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from error
    return rle.encode(mask) if mask.any() else None


def _counts(segmentation: Mapping[str, Any], width: int, height: int, path: str) -> str:
    """Read a run-length encoding, its counts compressed or not."""
    if list(segmentation.get("size", ())) != [height, width]:
        raise ValueError(
            f"{path}.size: expected the image's, [{height}, {width}]; got {shorten(segmentation.get('size'))}"
        )
    counts = segmentation.get("counts")
    try:
        if isinstance(counts, str):
            rle.runs(counts, height, width)
            return counts
        runs = np.array(counts)
        if runs.ndim != 1 or runs.dtype.kind != "i" or (runs < 0).any() or runs.sum() != height * width:
            raise ValueError(f"expected compressed counts, or runs of {height * width} pixels in all")
        flat = np.repeat(np.arange(runs.size) % 2 == 1, runs)
        return rle.encode(flat.reshape((height, width), order="F"))
    except ValueError as error:
        raise ValueError(f"{path}.counts: {error}") from error


def filled(polygon: Sequence[float], height: int, width: int) -> NDArray[np.bool_]:
    """Fill a polygon: the pixels with their centre inside, by the even-odd rule.

    Args:
        polygon: x1, y1, x2, y2, …, continuous, in pixels; the last corner is joined to the first.
        height, width: H and W.

    Returns:
        bool (H, W).

    Raises:
        ValueError: if it has not three corners.
    """
    corners = np.array(polygon, np.float64)
    if corners.ndim != 1 or corners.size < 6 or corners.size % 2 or not np.isfinite(corners).all():
        raise ValueError(f"a polygon is x1, y1, x2, y2, … of three corners at least; got {shorten(polygon)}")
    corners = corners.reshape(-1, 2)
    # True where a line through the centres of a row's pixels, from the left, goes in or out just before.
    crossed = np.zeros((height, width + 1), bool)
    for (x1, y1), (x2, y2) in zip(corners, np.roll(corners, -1, axis=0), strict=True):
        top, bottom = sorted((y1, y2))
        rows = np.arange(max(np.ceil(top - 0.5), 0), min(np.ceil(bottom - 0.5), height)).astype(int)
        if not rows.size:
            continue
        x = x1 + (rows + 0.5 - y1) * (x2 - x1) / (y2 - y1)
        crossed[rows, np.clip(np.ceil(x - 0.5), 0, width).astype(int)] ^= True
    inside: NDArray[np.bool_] = np.logical_xor.accumulate(crossed, axis=1)[:, :width]
    return inside
