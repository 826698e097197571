"""From one picture's forward pass to its detections, with all that was decided on the way."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from whybox.detectors.base import (
    Candidates,
    Contenders,
    Detections,
    Forward,
    Frame,
    PostProcessing,
    WhiteBoxDetector,
    detections_of,
)
from whybox.nms import Verdict, needs_maps, suppress
from whybox.odam_nms import correlation


@dataclass(frozen=True)
class Finding:
    """What post-processing made of one picture.

    Attributes:
        candidates: all that the network proposed.
        contenders: those that entered the suppression of duplicates.
        verdict: which of the contenders stay, and, where asked, why the others went.
        detections: the best of those that stay.
        frame: of the picture.
        settings: of post-processing.
    """

    candidates: Candidates
    contenders: Contenders
    verdict: Verdict
    detections: Detections
    frame: Frame
    settings: PostProcessing


def find(
    detector: WhiteBoxDetector,
    forward: Forward,
    image: int,
    settings: PostProcessing,
    *,
    explain: bool = False,
    between: Callable[[], None] = lambda: None,
) -> Finding:
    """Find the objects of one picture.

    Args:
        detector: the detector.
        forward: its pass; made with ``keep=True`` where `needs_maps` of the settings.
        image: position of the picture in that pass.
        settings: of post-processing.
        explain: give reasons for what was dropped.
        between: called between parts of Odam-NMS and of Soft-NMS; may raise to stop it.
    """
    candidates, frame = detector.candidates(forward, image), forward.batch.frames[image]
    found = detector.contenders(candidates, frame, settings)
    correlate = (
        correlation(detector, forward, image, found, between=between) if needs_maps(settings) else None
    )
    verdict = suppress(
        found.boxes,
        found.scores,
        found.labels,
        settings,
        correlate=correlate,
        explain=explain,
        between=between,
    )
    detections = detections_of(candidates, found, verdict, frame, settings)
    return Finding(candidates, found, verdict, detections, frame, settings)
