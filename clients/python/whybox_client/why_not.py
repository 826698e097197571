"""Why something is not in an answer: what suppression took out, and an object that was expected.

Boxes are (x1, y1, x2, y2) in pixels of the upright image.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from whybox_client.floats import shortest
from whybox_client.images import png
from whybox_client.results import Box, Detection, Detections, HeatMap, box_of
from whybox_proto.v1 import types_pb2

if TYPE_CHECKING:
    from PIL import Image


@dataclass(frozen=True)
class SuppressedDetection:
    """A candidate that suppression of duplicates took out of the answer. As text, a sentence that says why.

    Attributes:
        box, label, score: what it was; its score before suppression.
        by_index: the detection in the answer that suppressed it; None where that one is not in the answer.
        iou: of the two boxes.
        correlation: how alike the two heat maps are, -1 to 1; None where maps were not compared.
        rule: ``iou`` (greedy), ``soft`` (its score decayed below the final threshold), ``same_object``
            (Odam-NMS: the boxes overlap much, the maps are alike enough) or ``same_evidence`` (Odam-NMS: the
            boxes overlap little, the maps are nearly the same).
        by: the detection at `by_index`.
    """

    box: Box
    label: str
    score: float
    by_index: int | None
    iou: float
    correlation: float | None
    rule: str
    by: Detection | None = field(repr=False, compare=False)

    @classmethod
    def from_message(
        cls, suppressed: types_pb2.SuppressedDetection, detections: Sequence[Detection]
    ) -> SuppressedDetection:
        """Read it from the wire; `detections` are those of the same answer."""
        by_index = suppressed.by_index if suppressed.HasField("by_index") else None
        return cls(
            box=box_of(suppressed.box),
            label=suppressed.label,
            score=shortest(suppressed.score),
            by_index=by_index,
            iou=shortest(suppressed.iou),
            correlation=shortest(suppressed.correlation) if suppressed.HasField("correlation") else None,
            rule=suppressed.rule,
            by=None if by_index is None else detections[by_index],
        )

    def __str__(self) -> str:
        return f"{self.label} {self.score:.2f} {self.why}"

    @property
    def why(self) -> str:
        """The reason alone, as the end of a sentence."""
        if self.rule == "soft" and self.by is None:
            return "has a score below the final threshold"
        by = "a better box that is not in the answer" if self.by is None else _named(self.by)
        told = {
            "iou": f"overlaps {by}",
            "soft": f"overlaps {by}, so that its score fell below the final threshold",
            "same_object": f"is the same object as {by}",
            "same_evidence": f"rests on the same evidence as {by}",
        }.get(self.rule, f"was suppressed by {by} ({self.rule})")
        alike = "" if self.correlation is None else f", correlation of the maps {self.correlation:.2f}"
        return f"{told}: IoU {self.iou:.2f}{alike}"

    def to_dict(self) -> dict[str, Any]:
        """Everything, ready for JSON."""
        return {
            "box": list(self.box),
            "label": self.label,
            "score": self.score,
            "by_index": self.by_index,
            "iou": self.iou,
            "correlation": self.correlation,
            "rule": self.rule,
        }


@dataclass(frozen=True)
class WhyNot:
    """Why an expected object is not in the answer. As text, a sentence that says it.

    Attributes:
        expected_box, expected_label: the object that was asked for.
        reason: ``found`` (it is in the answer), ``score`` (below the threshold), ``suppressed``,
            ``outscored`` (another class of the same candidate has a higher score), ``limit`` (better ones
            filled the answer), ``filtered`` (by the selection) or ``no_candidate``.
        candidate: the best candidate near the expected box before suppression, as the expected label; None:
            there is none. Its index says nothing.
        by: the detection in the answer that is it, or that suppressed it; None where there is none.
        by_label, by_score: the class that outscored it; empty and None where none did.
        score_threshold: the score that it would have needed; None where that was not the reason.
        expected_iou: IoU of the candidate with the expected box.
        suppressed: how, where it was suppressed.
        heat_maps: what the candidate looked at, a map for each target.
    """

    expected_box: Box
    expected_label: str
    reason: str
    candidate: Detection | None
    by: Detection | None
    by_label: str
    by_score: float | None
    score_threshold: float | None
    expected_iou: float | None
    suppressed: SuppressedDetection | None
    heat_maps: tuple[HeatMap, ...]
    detections: Detections = field(repr=False, compare=False)

    @classmethod
    def from_message(
        cls, told: types_pb2.WhyNot, expected: types_pb2.Expected, detections: Detections
    ) -> WhyNot:
        """Read it from the wire.

        Args:
            told: what the service says.
            expected: the object that was asked for.
            detections: those of the same answer.
        """
        candidate = Detection.from_message(told.candidate) if told.HasField("candidate") else None
        if candidate is None and told.heat_maps:
            raise ValueError("there are maps of a candidate that is not there")
        return cls(
            expected_box=box_of(expected.box),
            expected_label=expected.label,
            reason=told.reason,
            candidate=candidate,
            by=detections[told.by_index] if told.HasField("by_index") else None,
            by_label=told.by_label,
            by_score=shortest(told.by_score) if told.HasField("by_score") else None,
            score_threshold=shortest(told.score_threshold) if told.HasField("score_threshold") else None,
            expected_iou=shortest(told.expected_iou) if told.HasField("expected_iou") else None,
            suppressed=SuppressedDetection.from_message(told.suppressed, detections)
            if told.HasField("suppressed")
            else None,
            heat_maps=tuple(
                HeatMap.from_message(heat_map, detections, candidate) for heat_map in told.heat_maps
            ),
            detections=detections,
        )

    def __str__(self) -> str:
        if self.candidate is None:
            return f"The model has no candidate for {self.expected_label!r} near the expected box."
        near = "" if self.expected_iou is None else f", IoU {self.expected_iou:.2f} with the expected box"
        best = f"The best candidate ({self.candidate}{near})"
        by = "a detection" if self.by is None else _named(self.by)
        return {
            "found": f"It is in the answer, as {by}{near}.",
            "score": f"{best} is below the score threshold{_number(self.score_threshold)}.",
            "suppressed": f"{best} "
            + ("was suppressed by " + by if self.suppressed is None else self.suppressed.why)
            + ".",
            "outscored": f"{best} is taken for {self.by_label!r}, which scores{_number(self.by_score)}.",
            "limit": f"{best} is not in the answer, because better ones filled it.",
            "filtered": f"{best} is left out by the selection.",
        }.get(self.reason, f"{best} is not in the answer: {self.reason}.")

    def heat_map(self, target: str = "class") -> HeatMap:
        """Return the candidate's map of one target.

        Raises:
            KeyError: if there is none.
        """
        for heat_map in self.heat_maps:
            if heat_map.target == target:
                return heat_map
        there = ", ".join(heat_map.target for heat_map in self.heat_maps) or "none"
        raise KeyError(f"there is no map of {target!r}; there are: {there}")

    def picture(self) -> Image.Image:
        """Draw the expected box, the candidate and who stood in its way, and beside them a map per target."""
        from whybox_client import figures

        return figures.why_not(self)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write `picture()` to a file; its suffix says the format."""
        self.picture().save(Path(path))

    def to_dict(self) -> dict[str, Any]:
        """Everything but images and cells, ready for JSON."""
        return {
            "expected": {"box": list(self.expected_box), "label": self.expected_label},
            "reason": self.reason,
            "sentence": str(self),
            "candidate": None if self.candidate is None else self.candidate.to_dict(),
            "by_index": None if self.by is None else self.by.index,
            "by_label": self.by_label,
            "by_score": self.by_score,
            "score_threshold": self.score_threshold,
            "expected_iou": self.expected_iou,
            "suppressed": None if self.suppressed is None else self.suppressed.to_dict(),
            "heat_maps": [heat_map.to_dict() for heat_map in self.heat_maps],
        }

    def _repr_png_(self) -> bytes:
        return png(self.picture())


def _named(detection: Detection) -> str:
    return f"detection {detection.index} ({detection})"


def _number(value: float | None) -> str:
    return "" if value is None else f" {value:.2f}"
