"""Answers, typed: detections, and heat maps that know their image.

Frames: every box is (x1, y1, x2, y2), continuous, origin top-left, in pixels of the upright image (EXIF
orientation applied). A heat map has h x w cells over its region of that image; H, W are the image's pixels.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, overload

from whybox_client import defaults
from whybox_client.floats import shortest
from whybox_client.images import Picture, png
from whybox_proto.v1 import explainer_pb2, types_pb2

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from PIL import Image

    from whybox_client.notebooks import Screen
    from whybox_client.why_not import SuppressedDetection, WhyNot

Box: TypeAlias = tuple[float, float, float, float]

# A notebook shows this many detections of an explanation; `Explanation.picture(rows=…)` gives more.
_ROWS_SHOWN = 8


@dataclass(frozen=True)
class Stage:
    """Time spent in one named part of the work, in seconds."""

    name: str
    seconds: float


@dataclass(frozen=True)
class Detection:
    """One object that the model found.

    Attributes:
        index: its position in the answer.
        box: (x1, y1, x2, y2) in pixels of the upright image.
        label: the name of its class; `label_id` is that name's index in the model's labels.
        score: the model's confidence, 0 to 1.
    """

    index: int
    box: Box
    label: str
    label_id: int
    score: float

    def __str__(self) -> str:
        return f"{self.label} {self.score:.2f}"

    def to_dict(self) -> dict[str, Any]:
        """Everything, ready for JSON."""
        return {
            "index": self.index,
            "box": list(self.box),
            "label": self.label,
            "label_id": self.label_id,
            "score": self.score,
        }

    @classmethod
    def from_message(cls, detection: types_pb2.Detection) -> Detection:
        """Read a detection from the wire."""
        return cls(
            detection.index,
            box_of(detection.box),
            detection.label,
            detection.label_id,
            shortest(detection.score),
        )


@dataclass(frozen=True)
class Detections(Sequence[Detection]):
    """What the model found, best first: a sequence of `Detection`.

    Attributes:
        model, model_version: who answered.
        width, height: size of the upright image, in pixels.
        items: the detections.
        suppressed: what suppression took out, where ``explain_suppressed`` asked for it.
        warnings: what the service wants you to know about this answer.
        stages: where the time went; not compared, since it differs from call to call.
        request_id: finds the request in the service's logs.
        told: what the service said of the object that was ``expected``; `why_not` reads it.
    """

    model: str
    model_version: str
    width: int
    height: int
    items: tuple[Detection, ...]
    suppressed: tuple[SuppressedDetection, ...]
    warnings: tuple[str, ...]
    stages: tuple[Stage, ...] = field(compare=False)
    request_id: str = field(compare=False)
    source: Picture = field(compare=False, repr=False)
    told: tuple[types_pb2.WhyNot, types_pb2.Expected] | None = field(default=None, repr=False, hash=False)

    @classmethod
    def from_message(
        cls,
        response: explainer_pb2.DetectResponse | explainer_pb2.ExplainResponse,
        source: Picture,
        request_id: str,
        expected: types_pb2.Expected | None = None,
    ) -> Detections:
        """Read the detections of an answer from the wire.

        Args:
            response: the answer.
            source: the image that was sent.
            request_id: of the answer.
            expected: the object that was asked for.
        """
        from whybox_client.why_not import SuppressedDetection

        items = tuple(Detection.from_message(detection) for detection in response.detections)
        made = cls(
            model=response.model,
            model_version=response.model_version,
            width=response.image.width,
            height=response.image.height,
            items=items,
            suppressed=tuple(SuppressedDetection.from_message(one, items) for one in response.suppressed),
            warnings=tuple(response.warnings),
            stages=tuple(Stage(stage.name, stage.seconds) for stage in response.stages),
            request_id=request_id,
            source=source,
            told=(response.why_not, expected) if expected and response.HasField("why_not") else None,
        )
        _ = made.why_not  # read now, so that what contradicts itself is an answer that cannot be read
        return made

    @cached_property
    def why_not(self) -> WhyNot | None:
        """What became of the object that was ``expected``; None where none was."""
        from whybox_client.why_not import WhyNot

        return None if self.told is None else WhyNot.from_message(*self.told, self)

    @overload
    def __getitem__(self, index: int) -> Detection: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Detection]: ...
    def __getitem__(self, index: int | slice) -> Detection | Sequence[Detection]:
        return self.items[index]

    def __len__(self) -> int:
        return len(self.items)

    @property
    def image(self) -> Image.Image:
        """The upright image as RGB."""
        return self.source.pixels

    def picture(self) -> Image.Image:
        """Draw the boxes with label and score on the image, (H, W); what was suppressed, dashed."""
        from whybox_client import figures

        return figures.boxes(self)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write `picture()` to a file; its suffix says the format."""
        self.picture().save(Path(path))

    def to_dict(self) -> dict[str, Any]:
        """Everything but the image, ready for JSON."""
        return {
            "model": self.model,
            "model_version": self.model_version,
            "image": {"width": self.width, "height": self.height},
            "detections": [detection.to_dict() for detection in self],
            "suppressed": [one.to_dict() for one in self.suppressed],
            **({} if self.why_not is None else {"why_not": self.why_not.to_dict()}),
            "warnings": list(self.warnings),
            "stages": [{"name": stage.name, "seconds": stage.seconds} for stage in self.stages],
            "request_id": self.request_id,
        }

    def _repr_png_(self) -> bytes:
        return png(self.picture())


@dataclass(frozen=True)
class HeatMap:
    """What one prediction looked at. Higher always means more important.

    Attributes:
        detection: the prediction that is explained.
        target: which part of it: ``class``, ``class:LABEL``, ``x1``, ``y1``, ``x2``, ``y2`` or ``combined``.
        method, layer: how the map was made.
        region: (x1, y1, x2, y2), the part of the image that the cells cover; it may pass the image's border
            by less than one cell.
        width, height: w and h, the number of cells.
        signed: values below zero occur and mean "speaks against".
        samples: how many a sampling method drew; None for other methods.
        standard_error: of a cell's value, the root mean square over the cells; None where it is not known.
        faithfulness: how good the map is, by name of the measure, where ``evaluate`` asked for it.
    """

    detection: Detection
    target: str
    method: str
    layer: str
    region: Box
    width: int
    height: int
    signed: bool
    samples: int | None
    standard_error: float | None
    faithfulness: Mapping[str, float] = field(hash=False)
    cells: types_pb2.HeatMap = field(repr=False, hash=False)
    detections: Detections = field(repr=False, compare=False)

    @classmethod
    def from_message(
        cls, heat_map: types_pb2.HeatMap, detections: Detections, detection: Detection | None = None
    ) -> HeatMap:
        """Read a map from the wire.

        Args:
            heat_map: the map.
            detections: those of the same answer.
            detection: what it is of; None: the one at its index.
        """
        return cls(
            detection=detection or detections[heat_map.detection_index],
            target=heat_map.target,
            method=heat_map.method,
            layer=heat_map.layer,
            region=box_of(heat_map.region),
            width=heat_map.width,
            height=heat_map.height,
            signed=heat_map.signed,
            samples=heat_map.samples if heat_map.HasField("samples") else None,
            standard_error=shortest(heat_map.standard_error) if heat_map.HasField("standard_error") else None,
            faithfulness={
                name: shortest(heat_map.faithfulness[name]) for name in sorted(heat_map.faithfulness)
            },
            cells=heat_map,
            detections=detections,
        )

    @cached_property
    def values(self) -> NDArray[np.float32]:
        """The cells: float32 (h, w), read-only."""
        from whybox_proto import maps

        values = maps.decode(self.cells)
        values.flags.writeable = False
        return values

    def in_image(self) -> NDArray[np.float32]:
        """The map in the image's frame: float32 (H, W), bilinear within the region and 0 outside it."""
        from whybox_proto import maps

        return maps.enlarge(self.values, self.region, self.detections.width, self.detections.height)

    def overlay(self, *, opacity: float = defaults.OPACITY) -> Image.Image:
        """Lay the map over the image, with the detection's box: RGB, (H, W).

        Args:
            opacity: how much of the image the strongest colour covers, 0 to 1.
        """
        from whybox_client import figures

        return figures.overlay(self, opacity=opacity)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write `overlay()` to a file; its suffix says the format."""
        self.overlay().save(Path(path))

    def to_dict(self) -> dict[str, Any]:
        """What the map is, without its cells, ready for JSON."""
        return {
            "detection_index": self.detection.index,
            "target": self.target,
            "method": self.method,
            "layer": self.layer,
            "region": list(self.region),
            "width": self.width,
            "height": self.height,
            "signed": self.signed,
            "min_value": shortest(self.cells.min_value),
            "max_value": shortest(self.cells.max_value),
            **({} if self.samples is None else {"samples": self.samples}),
            **({} if self.standard_error is None else {"standard_error": self.standard_error}),
            **({"faithfulness": dict(self.faithfulness)} if self.faithfulness else {}),
        }

    def _repr_png_(self) -> bytes:
        return png(self.overlay())


class DetectionMaps(Mapping[str, HeatMap]):
    """The maps of one detection by target: ``explanation[0]["class"]``."""

    def __init__(self, detection: Detection, maps: Mapping[str, HeatMap]) -> None:
        self.detection = detection
        self._maps = dict(maps)

    def __getitem__(self, target: str) -> HeatMap:
        try:
            return self._maps[target]
        except KeyError:
            raise KeyError(
                f"no map of {target!r} was asked for; there are: {', '.join(self._maps)}"
            ) from None

    def __iter__(self) -> Iterator[str]:
        return iter(self._maps)

    def __len__(self) -> int:
        return len(self._maps)

    def __repr__(self) -> str:
        return f"<DetectionMaps of {self.detection}: {', '.join(self._maps)}>"


@dataclass(frozen=True)
class Explanation(Sequence[DetectionMaps]):
    """Detections and what each of them looked at: a sequence with one `DetectionMaps` per detection.

    Attributes:
        detections: what the model found.
        heat_maps: every map, in the order of the answer; none where an object was ``expected``: the maps are
            in `why_not`.
        final: whether it is whole; False for what `explain_stream` yields while samples are still drawn.
    """

    detections: Detections
    heat_maps: tuple[HeatMap, ...]
    final: bool = True
    screen: Screen | None = field(default=None, repr=False, compare=False)

    @classmethod
    def from_message(
        cls,
        response: explainer_pb2.ExplainResponse,
        source: Picture,
        request_id: str,
        expected: types_pb2.Expected | None = None,
        screen: Screen | None = None,
    ) -> Explanation:
        """Read an explanation from the wire.

        Args:
            response: the answer.
            source: the image that was sent.
            request_id: of the answer.
            expected: the object that was asked for.
            screen: where the results of the same stream are shown; None: it has a place of its own.
        """
        detections = Detections.from_message(response, source, request_id, expected)
        maps = tuple(HeatMap.from_message(m, detections) for m in response.heat_maps)
        return cls(detections, maps, not response.partial, screen)

    def __repr__(self) -> str:
        targets = ", ".join(dict.fromkeys(heat_map.target for heat_map in self.heat_maps))
        facts = [f"{len(self)} detections", f"{len(self.heat_maps)} maps ({targets})"]
        if self.convergence:
            facts.append(self.convergence)
        if not self.final:
            facts.append("not yet final")
        return f"<Explanation by {self.detections.model}: {', '.join(facts)}>"

    def show(self) -> None:
        """Show it: in a notebook as its picture, in place of what the same stream showed before.

        Outside a notebook it prints a line that says how far it is.
        """
        from whybox_client.notebooks import Screen

        (self.screen or Screen()).show(self)

    @cached_property
    def _rows(self) -> tuple[DetectionMaps, ...]:
        maps: list[dict[str, HeatMap]] = [{} for _ in self.detections]
        for heat_map in self.heat_maps:
            maps[heat_map.detection.index][heat_map.target] = heat_map
        return tuple(map(DetectionMaps, self.detections, maps))

    @overload
    def __getitem__(self, index: int) -> DetectionMaps: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[DetectionMaps]: ...
    def __getitem__(self, index: int | slice) -> DetectionMaps | Sequence[DetectionMaps]:
        return self._rows[index]

    def __len__(self) -> int:
        return len(self.detections)

    def heat_map(self, detection: int = 0, target: str = "class") -> HeatMap:
        """Return the map of one target of one detection.

        Raises:
            IndexError: if there is no such detection in the answer.
            KeyError: if no map of that target was asked for.
        """
        if not -len(self) <= detection < len(self):
            raise IndexError(f"there is no detection {detection}: the answer has {len(self)}")
        return self._rows[detection][target]

    @property
    def samples(self) -> int | None:
        """How many samples each of the maps has at least; None where the method draws none."""
        return min((m.samples for m in self._all_maps if m.samples is not None), default=None)

    @property
    def standard_error(self) -> float | None:
        """The largest standard error of the maps; None where none is known."""
        errors = (m.standard_error for m in self._all_maps)
        return max((error for error in errors if error is not None), default=None)

    @property
    def convergence(self) -> str:
        """Samples and standard error in words; empty where the method draws none."""
        if self.samples is None:
            return ""
        error = "" if self.standard_error is None else f", standard error {self.standard_error:.2g}"
        return f"{self.samples} samples{error}"

    @property
    def _all_maps(self) -> tuple[HeatMap, ...]:
        return (*self.heat_maps, *(self.why_not.heat_maps if self.why_not else ()))

    @property
    def suppressed(self) -> tuple[SuppressedDetection, ...]:
        """What suppression took out, and why, where ``explain_suppressed`` asked for it."""
        return self.detections.suppressed

    @property
    def why_not(self) -> WhyNot | None:
        """What became of the object that was ``expected``; None where none was."""
        return self.detections.why_not

    @property
    def warnings(self) -> tuple[str, ...]:
        """What the service wants you to know about this answer."""
        return self.detections.warnings

    @property
    def stages(self) -> tuple[Stage, ...]:
        """Where the time went."""
        return self.detections.stages

    @property
    def request_id(self) -> str:
        """Finds the request in the service's logs."""
        return self.detections.request_id

    def picture(self, *, rows: int | None = None) -> Image.Image:
        """Draw a contact sheet: one row a detection, its box first and then a map per target.

        Where an object was ``expected``, the picture is that of `why_not`.

        Args:
            rows: draw at most this many detections, best first, and say how many are left out; None: all.
        """
        from whybox_client import figures

        return figures.explanation(self, rows=rows)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write `picture()` to a file; its suffix says the format."""
        self.picture().save(Path(path))

    def to_dict(self) -> dict[str, Any]:
        """Detections and what the maps are, without image and cells, ready for JSON."""
        return {
            **self.detections.to_dict(),
            "heat_maps": [heat_map.to_dict() for heat_map in self.heat_maps],
            "final": self.final,
        }

    def _repr_png_(self) -> bytes:
        return png(self.picture(rows=_ROWS_SHOWN))


def box_of(values: Sequence[float]) -> Box:
    """Read four numbers from the wire."""
    x1, y1, x2, y2 = map(shortest, values)
    return x1, y1, x2, y2
