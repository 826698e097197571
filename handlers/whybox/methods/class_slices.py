"""Class slices: what a dense head says of one class, at every cell of the level that found the object."""

from __future__ import annotations

from collections.abc import Sequence

from whybox.detectors.base import Detector, WhiteBoxDetector
from whybox.methods.base import Map, Method, Param, Question, normalise
from whybox.methods.layer_maps import place_whole
from whybox.methods.placing import Room


class ClassSlices(Method):
    """The class outputs of a dense head on one level, one value for each cell; no gradient, no further pass.

    No attribution: each cell says what the anchor there makes of the class. Where a detector decides about a
    box away from the evidence in the picture, this map is bright there too, which is what it is for.

    Source: the study of spatial shift in one-stage detectors: "normalized per-class slices of the raw
    classification head output", beside D-RISE on the activation tensor.
    """

    name = "class_slices"
    description = (
        "What the dense head of a one-stage detector says of the class at every cell of the box's level"
    )
    params = (
        Param(
            "output",
            "logit",
            "logit: what the head says, min-max normalised; score: the final score of each cell",
            choices=("logit", "score"),
        ),
        Param(
            "anchors",
            "own",
            "of the anchors of a cell: the one that found the object (own), or the largest output (max)",
            choices=("own", "max"),
        ),
    )

    def layers(self, detector: Detector) -> list[str] | None:
        """Name ``level``, if the detector has a dense head over its levels; others cannot be explained."""
        return ["level"] if isinstance(detector, WhiteBoxDetector) and detector.dense else None

    def _explain(self, detector: Detector, question: Question) -> list[list[Map]]:
        assert isinstance(detector, WhiteBoxDetector)  # `layers` is None otherwise, and the check refuses
        found, params = question.detections, question.params
        tap = detector.tap(question.forward, question.image, "level", found.candidates, found.labels)
        score = params["output"] == "score"
        levels = detector.class_maps(question.forward, question.image, score=score)
        frame = question.forward.batch.frames[question.image]
        rows, room = [], Room(question.memory)
        for pick, level in enumerate(tap.candidate_levels.tolist()):
            question.patience.check()
            kinds = [_class_of(t, detector.labels, int(found.labels[pick])) for t in question.targets]
            slices = levels[level][:, kinds]  # [A, T, H, W]
            room.take(slices[0].numel())
            own = slices[int(found.candidates[pick]) % len(slices)]
            made = place_whole(own if params["anchors"] == "own" else slices.amax(0), pick, tap, frame)
            rows.append(made if score else [Map(normalise(one.values), one.region) for one in made])
        return rows


def _class_of(target: str, labels: Sequence[str], own: int) -> int:
    """Return which class ``class`` (the detection's own) or ``class:LABEL`` means."""
    _, _, label = target.partition(":")
    return list(labels).index(label) if label else own
