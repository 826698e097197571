"""Greedy, Soft- and Odam-NMS side by side in crowds, where neighbours look like duplicates."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from whybox.detectors.base import (
    Candidates,
    Contenders,
    Detections,
    Frame,
    PostProcessing,
    WhiteBoxDetector,
    detections_of,
)
from whybox.engine import Engine
from whybox.evaluation.bootstrap import Estimate
from whybox.evaluation.cases import HELD_OUT_SEED
from whybox.evaluation.crowds import FIGURES, RESAMPLES, Figures, Truths, figures
from whybox.nms import suppress
from whybox.odam_nms import correlation
from whybox.scenes import Mode, render
from whybox.selection import settings_of
from whybox_proto.v1 import explainer_pb2, types_pb2

NAMES = {"iou": "greedy", "soft": "Soft-NMS", "odam": "Odam-NMS"}

LEAST_SCORE = 0.05
"""Candidates must score above it: curves of precision and misses need more than what is served."""

MAX_DETECTIONS = 100


@dataclass(frozen=True)
class Crowd:
    """One scene, seen as far as the suppression of duplicates.

    Attributes:
        truths: what is really there.
        frame, candidates, contenders: as in `whybox.finding.Finding`.
        alike: float (N, N), correlations of the contenders' maps.
    """

    truths: Truths
    frame: Frame
    candidates: Candidates
    contenders: Contenders
    alike: Tensor

    def detections(self, settings: PostProcessing) -> Detections:
        """Suppress duplicates; on the CPU."""
        found = self.contenders

        def correlate(first: Tensor, second: Tensor) -> Tensor:
            return self.alike[first][:, second]

        verdict = suppress(found.boxes, found.scores, found.labels, settings, correlate=correlate)
        answer = detections_of(self.candidates, found, verdict, self.frame, settings)
        return answer.to(torch.device("cpu"))


@dataclass(frozen=True)
class Row:
    """One kind of NMS, its settings and its figures."""

    kind: str
    settings: PostProcessing
    figures: Figures


def crowds(
    detector: WhiteBoxDetector,
    scenes: int,
    *,
    seed: int = HELD_OUT_SEED,
    mode: Mode = "crowd",
    tell: Callable[[], None] = lambda: None,
) -> Iterator[Crowd]:
    """Look at scenes; what does not depend on the settings of NMS is done once.

    Args:
        detector: the detector.
        scenes: how many.
        seed: of the scenes.
        mode: of the scenes.
        tell: called after each.
    """
    settings = replace(detector.defaults, score_threshold=LEAST_SCORE)
    for index in range(scenes):
        scene = render(mode, seed=seed, index=index)
        boxes = torch.tensor([thing.box for thing in scene.objects], dtype=torch.float32).reshape(-1, 4)
        labels = torch.tensor([thing.label_id for thing in scene.objects], dtype=torch.int64)
        ((_, batch),) = detector.prepare([torch.from_numpy(scene.image)])
        forward = detector.forward(batch, keep=True)
        candidates, frame = detector.candidates(forward, 0), batch.frames[0]
        found = detector.contenders(candidates, frame, settings)
        everything = torch.arange(len(found.scores), device=found.labels.device)
        alike = correlation(detector, forward, 0, found)(everything, everything)
        yield Crowd(Truths(boxes, labels), frame, candidates, found, alike)
        tell()


def settings_by_kind(model: types_pb2.Model) -> dict[str, PostProcessing]:
    """Return the model's own settings of each kind of NMS that is compared."""
    select = types_pb2.Select(score_threshold=LEAST_SCORE, max_detections=MAX_DETECTIONS)
    return {
        kind: settings_of(explainer_pb2.DetectRequest(select=select, nms=types_pb2.Nms(kind=kind)), model)
        for kind in NAMES
    }


def compare(
    seen: Sequence[Crowd], settings: Mapping[str, PostProcessing], *, resamples: int = RESAMPLES
) -> list[Row]:
    """Take the figures of several settings on the same scenes."""
    truths = [crowd.truths for crowd in seen]
    return [
        Row(kind, one, figures([crowd.detections(one) for crowd in seen], truths, resamples))
        for kind, one in settings.items()
    ]


def evaluate_nms(
    engine: Engine,
    scenes: int,
    *,
    seed: int = HELD_OUT_SEED,
    resamples: int = RESAMPLES,
    tell: Callable[[], None] = lambda: None,
) -> list[Row]:
    """Compare greedy, Soft- and Odam-NMS with the model's own settings on `crowd` scenes.

    Args:
        engine: with the detector.
        scenes: how many.
        seed: of the scenes.
        resamples: for the intervals; 0 for none.
        tell: called after each scene.
    """
    seen = list(crowds(engine.detector, scenes, seed=seed, tell=tell))
    return compare(seen, settings_by_kind(engine.model), resamples=resamples)


def table(rows: Sequence[Row]) -> str:
    """Write a table in Markdown: each kind's figures and its gain on the first, with 95 % intervals."""
    lines = [
        "| NMS | AP50 | MR⁻² (lower is better) | JI | recall, crowded | recall, sparse |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        lines.append(_line(_name(row), [row.figures.estimate(name) for name in FIGURES]))
    for row in rows[1:]:
        gains = [row.figures.gain(name, rows[0].figures) for name in FIGURES]
        lines.append(_line(f"{NAMES[row.kind]} − {NAMES[rows[0].kind]}", gains))
    return "\n".join(lines)


def _line(name: str, estimates: Sequence[Estimate]) -> str:
    return " | ".join([f"| {name}", *map(str, estimates)]) + " |"


def _name(row: Row) -> str:
    settings = row.settings
    numbers = {
        "iou": f"T {settings.iou_threshold:g}",
        "soft": f"σ {settings.sigma:g}, final {settings.final_threshold:g}",
        "odam": f"T {settings.iou_threshold:g}, T_h {settings.corr_high:g}, T_l {settings.corr_low:g}",
    }
    return f"{NAMES[row.kind]} ({numbers[row.kind]})"
