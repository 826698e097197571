"""Layouts: which objects stand where in a picture. Those that are to be found, or those that are there.

Boxes are [x1, y1, x2, y2], continuous, origin top-left, in pixels of the picture. H, W are its pixels.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from whybox_client.images import png
from whybox_proto.errors import shorten
from whybox_proto.v1 import types_pb2

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from PIL import Image

#: A layout, or the contract's JSON of one.
LayoutLike: TypeAlias = "Layout | Mapping[str, Any]"


@dataclass(frozen=True)
class LayoutObject:
    """An object of a layout.

    Attributes:
        label: its class.
        box: [x1, y1, x2, y2] in pixels of the upright image; None: the smallest box around `mask`.
        mask: its pixels, bool (H, W) over the upright image; or COCO's compressed counts. None: not known.
    """

    label: str
    box: Sequence[float] | None = None
    mask: NDArray[np.bool_] | str | None = field(default=None, repr=False, compare=False)


@dataclass(frozen=True)
class GroundTruth(LayoutObject):
    """An object that is really there.

    Attributes:
        label: its class.
        box: [x1, y1, x2, y2] in pixels of the upright image; None: the smallest box around `mask`.
        mask: its pixels, bool (H, W) over the upright image; or COCO's compressed counts. None: not known.
        evidence: the pixels that decide its class, as `mask`. None: not known.
    """

    evidence: NDArray[np.bool_] | str | None = field(default=None, repr=False, compare=False)


@dataclass(frozen=True)
class Layout:
    """Which objects stand where in a picture: what `Client.invert` makes a picture of.

    Attributes:
        width, height: of the picture, in pixels.
        objects: what stands in it.
    """

    width: int
    height: int
    objects: Sequence[LayoutObject]

    @classmethod
    def of(cls, layout: LayoutLike) -> Layout:
        """Take a layout, or read the contract's JSON of one.

        Raises:
            TypeError: for anything else.
            ValueError: as `from_dict`.
        """
        if isinstance(layout, cls):
            return layout
        if isinstance(layout, Mapping):
            return cls.from_dict(layout)
        raise TypeError(f"a layout is a Layout, or a dictionary of one; got {type(layout).__qualname__}")

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Layout:
        """Read the contract's JSON: ``{"width", "height", "objects": [{"label", "box", "mask"}]}``.

        An object has a box, or a mask, COCO's compressed counts; what is empty is not known.

        Raises:
            ValueError: for what is no layout; the message names the field.
        """
        _know(data, ("width", "height", "objects"), "")
        objects = data.get("objects")
        if not isinstance(objects, Sequence) or isinstance(objects, str):
            raise _wrong("objects", "a list of objects", objects)
        return cls(
            pixels_of(data, "width", ""),
            pixels_of(data, "height", ""),
            tuple(_object(thing, f"objects[{i}]") for i, thing in enumerate(objects)),
        )

    @classmethod
    def from_json(cls, text: str | bytes) -> Layout:
        """Read the contract's JSON; see `from_dict`.

        Raises:
            ValueError: for what is no layout; the message names the field.
        """
        return cls.from_dict(json_of(text))

    @classmethod
    def from_coco(
        cls, source: str | os.PathLike[str] | Mapping[str, Any], image_id: int | str | None = None
    ) -> Layout:
        """Read the objects of one image from COCO's JSON of instances.

        Boxes ``[x, y, width, height]`` become ``[x1, y1, x2, y2]``; where one passes the image's border by
        less than a pixel, as COCO's own do, it ends there. Masks come from polygons, whose pixels are those
        with their centre inside, and from run-length encodings. Crowds are left out: they are no objects.

        Args:
            source: path of the file, or what is in it.
            image_id: of the image; None: the only one there is.

        Raises:
            ValueError: for what is no such JSON, or where `image_id` names no image; the message names the
                field.
            OSError: if the file cannot be read.
        """
        from whybox_client import coco

        return coco.layout(
            source if isinstance(source, Mapping) else json_of(Path(source).read_bytes()), image_id
        )

    @classmethod
    def load(cls, path: str | os.PathLike[str], image_id: int | str | None = None) -> Layout:
        """Read a file: the contract's JSON, or COCO's, which has ``annotations``.

        Args:
            path: of the file.
            image_id: of the image in a file of COCO's; None: the only one there is.

        Raises:
            ValueError: for what is no layout; the message names the field.
            OSError: if the file cannot be read.
        """
        data = json_of(Path(path).read_bytes())
        if "annotations" in data:
            return cls.from_coco(data, image_id)
        if image_id is not None:
            raise ValueError("image_id: goes with COCO's JSON, which has `annotations`; this has none")
        return cls.from_dict(data)

    def boxes_only(self) -> Layout:
        """Return the layout without masks, for a detector that finds boxes alone."""
        whole = self.from_message(self.to_message())
        return replace(whole, objects=tuple(replace(one, mask=None) for one in whole.objects))

    def to_message(self) -> types_pb2.Layout:
        """Build the message.

        Raises:
            TypeError, ValueError: for a layout that cannot be sent; the message names the field.
        """
        return message_of(self.objects, self.width, self.height, name="objects")

    @classmethod
    def from_message(cls, layout: types_pb2.Layout) -> Layout:
        """Read a layout from the wire."""
        from whybox_client.results import box_of

        return cls(
            layout.width,
            layout.height,
            tuple(LayoutObject(one.label, box_of(one.box), one.mask or None) for one in layout.objects),
        )

    def to_dict(self) -> dict[str, Any]:
        """The contract's JSON; see `from_dict`.

        Raises:
            TypeError, ValueError: for a layout that cannot be sent; the message names the field.
        """
        return {
            "width": self.width,
            "height": self.height,
            "objects": [
                {"label": one.label, "box": list(one.box or ()), **({"mask": one.mask} if one.mask else {})}
                for one in self.from_message(self.to_message()).objects
            ],
        }

    def picture(self) -> Image.Image:
        """Draw the boxes with their labels on grey, (H, W); masks are filled."""
        from whybox_client import figures

        return figures.layout(self)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write `picture()` to a file; its suffix says the format."""
        self.picture().save(Path(path))

    def _repr_png_(self) -> bytes:
        return png(self.picture())


def message_of(things: Sequence[LayoutObject], width: int, height: int, *, name: str) -> types_pb2.Layout:
    """Build the message of objects in an upright picture of that size.

    Args:
        things: the objects.
        width, height: of the picture.
        name: what the caller calls the objects.

    Raises:
        TypeError, ValueError: for what cannot be sent; the message names it.
    """
    layout = types_pb2.Layout()
    for field_name, value in (("width", width), ("height", height)):
        try:
            setattr(layout, field_name, value)
        except (TypeError, ValueError) as error:
            raise type(error)(f"{field_name}: {error}") from error
    for i, thing in enumerate(things):
        try:
            layout.objects.add(
                label=thing.label,
                box=_box(thing, width, height),
                mask=_counts(thing.mask, width, height),
                evidence=_counts(getattr(thing, "evidence", None), width, height),
            )
        except (TypeError, ValueError) as error:
            raise type(error)(f"{name}[{i}]: {error}") from error
    return layout


def json_of(text: str | bytes) -> dict[str, Any]:
    """Read JSON that is an object.

    Raises:
        ValueError: if it is none.
    """
    try:
        data = json.loads(text)
    except ValueError as error:
        raise ValueError(f"not JSON: {error}") from error
    if not isinstance(data, dict):
        raise ValueError(f"expected an object with width, height and objects; got {shorten(data)}")
    return data


def pixels_of(data: Mapping[str, Any], name: str, path: str) -> int:
    """Read a number of pixels: a whole number above 0."""
    value = data.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float) or value != value // 1 or value < 1:
        raise _wrong(f"{path}{name}", "a whole number of pixels above 0", value)
    return int(value)


def four_of(value: Any, expected: str, path: str) -> tuple[float, float, float, float]:
    """Read four finite numbers."""
    if (
        not isinstance(value, Sequence)
        or len(value) != 4
        or not all(isinstance(v, int | float) and not isinstance(v, bool) and math.isfinite(v) for v in value)
    ):
        raise _wrong(path, f"four numbers {expected}", value)
    first, second, third, fourth = map(float, value)
    return first, second, third, fourth


def _object(data: Any, path: str) -> LayoutObject:
    if not isinstance(data, Mapping):
        raise _wrong(path, "an object with a label and a box", data)
    _know(data, ("label", "box", "mask", "evidence"), f"{path}.")
    label, box = data.get("label"), data.get("box")
    if not isinstance(label, str) or not label:
        raise _wrong(f"{path}.label", "the name of a class", label)
    masks = {}
    for name in ("mask", "evidence"):
        counts = data.get(name) or None
        if counts is not None and not isinstance(counts, str):
            raise _wrong(f"{path}.{name}", "COCO run-length encoding, compressed counts", counts)
        masks[name] = counts
    if box or not masks["mask"]:
        box = four_of(box, "[x1, y1, x2, y2]", f"{path}.box")
    if masks["evidence"]:
        return GroundTruth(label, box or None, masks["mask"], masks["evidence"])
    return LayoutObject(label, box or None, masks["mask"])


def _know(data: Mapping[str, Any], known: Sequence[str], path: str) -> None:
    for name in data:
        if name not in known:
            raise ValueError(f"{path}{shorten(name)}: there is no such field; expected {', '.join(known)}")


def _wrong(path: str, expected: str, got: Any) -> ValueError:
    return ValueError(f"{path}: expected {expected}; got {'nothing' if got is None else shorten(repr(got))}")


def _counts(mask: NDArray[np.bool_] | str | None, width: int, height: int) -> str:
    """Return compressed counts; empty where nothing is known."""
    if mask is None or isinstance(mask, str):
        return mask or ""
    from whybox_proto import rle

    if getattr(mask, "shape", None) != (height, width):
        raise ValueError(
            f"a mask has the shape of the upright image, {(height, width)}; got "
            f"{getattr(mask, 'shape', type(mask).__name__)}"
        )
    return rle.encode(mask)


def _box(thing: LayoutObject, width: int, height: int) -> list[float]:
    if thing.box is not None:
        return [float(side) for side in thing.box]
    if thing.mask is None:
        raise ValueError("an object has a box, or a mask")
    import numpy as np

    from whybox_proto import rle

    mask = rle.decode(thing.mask, height, width) if isinstance(thing.mask, str) else np.asarray(thing.mask)
    rows, columns = np.nonzero(mask)
    if not rows.size:
        raise ValueError("the mask is empty, so it has no box")
    sides = columns.min(), rows.min(), columns.max() + 1, rows.max() + 1
    return [float(side) for side in sides]
