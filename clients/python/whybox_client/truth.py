"""Objects that are really there, for the measures that need them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from whybox_client.images import Picture
from whybox_proto.v1 import types_pb2

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True)
class GroundTruth:
    """An object that is really there.

    Attributes:
        label: its class.
        box: [x1, y1, x2, y2] in pixels of the upright image; None: the smallest box around `mask`.
        mask: its pixels, bool (H, W) over the upright image; or COCO's compressed counts. None: not known.
        evidence: the pixels that decide its class, as `mask`. None: not known.
    """

    label: str
    box: Sequence[float] | None = None
    mask: NDArray[np.bool_] | str | None = field(default=None, repr=False, compare=False)
    evidence: NDArray[np.bool_] | str | None = field(default=None, repr=False, compare=False)


def layout_of(truth: Sequence[GroundTruth], picture: Picture) -> types_pb2.Layout:
    """Build the message; the objects are those of `picture`, in its upright frame.

    Raises:
        TypeError, ValueError: for an object that cannot be sent; the message names it.
    """
    width, height = picture.pixels.size
    layout = types_pb2.Layout(width=width, height=height)
    for i, thing in enumerate(truth):
        try:
            layout.objects.add(
                label=thing.label,
                box=_box(thing, width, height),
                mask=_counts(thing.mask, width, height),
                evidence=_counts(thing.evidence, width, height),
            )
        except (TypeError, ValueError) as error:
            raise type(error)(f"truth[{i}]: {error}") from error
    return layout


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


def _box(thing: GroundTruth, width: int, height: int) -> list[float]:
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
