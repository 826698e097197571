"""Activation map: where a layer is active, whatever the detection."""

from __future__ import annotations

from whybox.detectors.base import Detector, WhiteBoxDetector
from whybox.methods.base import Map, Method, Question, normalise
from whybox.methods.layer_maps import place_whole
from whybox.methods.placing import Room


class Activation(Method):
    """H = Σ_k A_k / C over the C maps of one layer, min-max normalised over the cells on the picture.

    It knows neither the target nor, on a stage, the detection: what a method that knows both must do better
    than. On ``level`` and ``roi`` the detection chooses the map.

    A baseline, as in studies of what detectors learn in pretraining: the mean over the channels, scaled.
    """

    name = "activation"
    description = "Mean of a layer's activations over the channels, scaled to 0…1, whatever the detection"

    def layers(self, detector: Detector) -> list[str] | None:
        """Name every layer that can be tapped; a black box cannot be explained."""
        return list(detector.layers) if isinstance(detector, WhiteBoxDetector) else None

    def _explain(self, detector: Detector, question: Question) -> list[list[Map]]:
        assert isinstance(detector, WhiteBoxDetector)  # `layers` is None otherwise, and the check refuses
        found = question.detections
        tap = detector.tap(question.forward, question.image, question.layer, found.candidates, found.labels)
        frame = question.forward.batch.frames[question.image]
        rows, room = [], Room(question.memory)
        for pick in range(len(found)):
            question.patience.check()
            (made,) = place_whole(tap.whole(pick).mean(0, keepdim=True), pick, tap, frame)
            room.take(made.values.numel())
            rows.append([Map(normalise(made.values), made.region)] * len(question.targets))
        return rows
