"""Parameter randomisation: a map that explains a network changes when the network's weights are thrown away.

The layers' weights are randomised one after the other from the top, those above staying random, and the maps
of the same candidates are compared with the maps of the trained network.

Source: Adebayo et al., "Sanity checks for saliency maps", NeurIPS 2018 (cascading randomisation); for ODAM,
Zhao and Chan, ICLR 2023, appendix A.5.1.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import nn
from torchvision.ops import box_iou

from whybox.detectors.base import Detections, WhiteBoxDetector
from whybox.engine import Engine
from whybox.evaluation.bootstrap import Estimate, estimate
from whybox.evaluation.cases import Case
from whybox.evaluation.table import Variant, question_of
from whybox.explaining import Explaining
from whybox.methods import METHODS
from whybox.methods.base import Map
from whybox.methods.sampling import SamplingMethod
from whybox.metrics.pointing import Values
from whybox.metrics.similarity import rank_correlation, structural_similarity
from whybox_proto.maps import enlarge

MOST_SAMPLES = 50
"""Methods that take more are left out: they change nothing about gradients, and would take hours."""

WIDENED = 0.5
"""Of the box's sides, added on each side: maps are compared there. Elsewhere most maps are zero, and
alike."""


@dataclass
class Sanity:
    """How alike the maps of a trained and a randomised network are.

    Attributes:
        groups: of parameters, in the order in which they are randomised.
        ranks, structures: for each variant and number of randomised groups, Spearman's rank correlation and
            the structural similarity of each map, and the scenes that they are of.
    """

    groups: list[str]
    ranks: dict[tuple[str, int], dict[tuple[int, int], float]] = field(default_factory=dict)
    structures: dict[tuple[str, int], dict[tuple[int, int], float]] = field(default_factory=dict)

    def variants(self) -> list[str]:
        """Name the variants that were compared."""
        return list(dict.fromkeys(variant for variant, _ in self.ranks))

    def rank(self, variant: str, count: int) -> Estimate:
        """Return the mean rank correlation after so many groups; 0 stands for maps that cannot be ranked."""
        return _mean(self.ranks.get((variant, count), {}))

    def structure(self, variant: str, count: int) -> Estimate:
        """Return the mean structural similarity, likewise."""
        return _mean(self.structures.get((variant, count), {}))

    def left(self, variant: str) -> Estimate:
        """Return by how much a map's rank correlation, after all groups, is above that of another object."""
        last, other = self.ranks.get((variant, len(self.groups)), {}), self.ranks.get((variant, 0), {})
        return _mean({key: last[key] - other[key] for key in last if key in other})


def _mean(values: dict[tuple[int, int], float]) -> Estimate:
    return estimate(list(values.values()), [scene for scene, _ in values])


def groups_of(model: nn.Module) -> dict[str, list[nn.Parameter]]:
    """Return a network's parameters in groups, from the outputs down: heads, pyramid, stages, stem.

    It takes them in the reverse order of their registration, which torchvision's detectors keep to.
    """
    groups: dict[str, list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        parts = name.split(".")
        depth = 3 if parts[:2] == ["backbone", "body"] else 2
        groups.setdefault(".".join(parts[:depth]), []).append(parameter)
    return dict(reversed(groups.items()))


@contextmanager
def randomised(model: nn.Module, seed: int) -> Iterator[Iterator[str]]:
    """Lend a network whose groups of parameters become random, one more at each step of the iterator.

    Each tensor is drawn from a normal distribution with its own mean and standard deviation. Afterwards every
    weight is as it was.
    """
    generator = torch.Generator().manual_seed(seed)
    groups = groups_of(model)
    kept = {name: [p.detach().clone() for p in group] for name, group in groups.items()}

    def steps() -> Iterator[str]:
        for name, group in groups.items():
            with torch.no_grad():
                for parameter in group:
                    spread = parameter.std(correction=0) if parameter.numel() > 1 else parameter.abs().sum()
                    drawn = torch.randn(parameter.shape, generator=generator).to(parameter)
                    parameter.copy_(parameter.mean() + spread * drawn)
            yield name

    try:
        yield steps()
    finally:
        with torch.no_grad():
            for name, group in groups.items():
                for parameter, before in zip(group, kept[name], strict=True):
                    parameter.copy_(before)


def sanity_of(
    engine: Engine,
    cases: Sequence[Case],
    variants: Sequence[Variant],
    *,
    seed: int = 0,
    tell: Callable[[], None] = lambda: None,
) -> Sanity:
    """Compare maps of the class before and after randomisation.

    Args:
        engine: with the detector; its weights are as before when this returns.
        cases: whose detections are explained.
        variants: of methods; those that have no class map, or take too many samples, are left out.
        seed: of the weights.
        tell: called after each group of parameters, and once before the first.
    """
    model: nn.Module = engine.detector.model  # type: ignore[attr-defined]  # every family of networks has one
    explaining = Explaining(engine.recipe, engine.detector, engine.model)
    chosen = [variant for variant in variants if _cheap(engine, explaining, cases, variant)]
    sanity = Sanity(list(groups_of(model)))
    before = [_maps(engine, explaining, case, chosen) for case in cases]
    _compare_objects(sanity, cases, before)
    tell()
    with randomised(model, seed) as steps:
        for count, _ in enumerate(steps, 1):
            for case, trained in zip(cases, before, strict=True):
                changed = _again(engine.detector, case)
                for label, maps in _maps(engine, explaining, changed, chosen).items():
                    for i, (first, second) in enumerate(zip(trained[label], maps, strict=True)):
                        both = _near(case, i, first), _near(case, i, second)
                        _compare(sanity, (label, count), case, i, *both)
            tell()
    return sanity


def _compare_objects(sanity: Sanity, cases: Sequence[Case], before: Sequence[dict[str, list[Map]]]) -> None:
    """Compare each map with that of the next object, brought to the same size."""
    for label in before[0] if before else ():
        crops = [
            (case, i, _near(case, i, made))
            for case, maps in zip(cases, before, strict=True)
            for i, made in enumerate(maps[label])
        ]
        for (case, i, crop), (_, _, other) in zip(crops, [*crops[1:], crops[0]], strict=True):
            height, width = crop.shape
            resized = enlarge(other, (0.0, 0.0, float(width), float(height)), width, height)
            if len(crops) > 1:
                _compare(sanity, (label, 0), case, i, crop, resized)


def _cheap(engine: Engine, explaining: Explaining, cases: Sequence[Case], variant: Variant) -> bool:
    method = METHODS[variant.method]
    if "class" not in method.targets or not cases:
        return False
    if not isinstance(method, SamplingMethod):
        return True
    question = question_of(engine.detector, explaining, cases[0], variant, ["class"], masks=10**6, seed=0)
    return method.plan(engine.detector, question).samples <= MOST_SAMPLES


def _maps(
    engine: Engine, explaining: Explaining, case: Case, variants: Sequence[Variant]
) -> dict[str, list[Map]]:
    made = {}
    for variant in variants:
        question = question_of(
            engine.detector, explaining, case, variant, ["class"], masks=MOST_SAMPLES, seed=0
        )
        rows = METHODS[variant.method].explain(engine.detector, question)
        made[variant.label] = [row[0] for row in rows]
    return made


def _again(detector: WhiteBoxDetector, case: Case) -> Case:
    """Look at a case once more, with other weights: the same candidates, as the same classes.

    Of a network that makes its own candidates, the one that overlaps the detection most stands for it.
    """
    frame = case.forward.batch.frames[0]
    forward = detector.forward(case.forward.batch, keep=True)
    candidates = detector.candidates(forward, 0)
    found, picks = case.found, case.found.candidates
    if any(layer.kind == "roi" for layer in detector.layers.values()):
        chosen = []
        for box, label in zip(frame.to_network(found.boxes), found.labels.tolist(), strict=True):
            boxes = candidates.boxes if candidates.boxes.ndim == 2 else candidates.boxes[:, label]
            chosen.append(int(box_iou(boxes, box[None])[:, 0].argmax()))
        picks = torch.tensor(chosen, device=found.labels.device)
    scores = candidates.scores[picks]
    own = scores.gather(1, found.labels[:, None])[:, 0]
    again = Detections(found.boxes, found.labels, own, scores, picks)
    return Case(case.number, case.picture, forward, again, case.truths, case.marks, case.positions)


def _compare(
    sanity: Sanity, key: tuple[str, int], case: Case, detection: int, first: Values, second: Values
) -> None:
    ranks, structure = rank_correlation(first, second), structural_similarity(first, second)
    of = case.number, detection
    sanity.ranks.setdefault(key, {})[of] = 0.0 if np.isnan(ranks) else ranks
    sanity.structures.setdefault(key, {})[of] = 0.0 if np.isnan(structure) else structure


def _near(case: Case, detection: int, made: Map) -> Values:
    """Cut a map to the detection's box, widened."""
    height, width = case.picture.shape[:2]
    x1, y1, x2, y2 = case.found.boxes[detection].tolist()
    more_x, more_y = WIDENED * (x2 - x1), WIDENED * (y2 - y1)
    sides = np.array([x1 - more_x, y1 - more_y, x2 + more_x, y2 + more_y])
    left, top, right, bottom = np.rint(np.clip(sides, 0, [width, height, width, height])).astype(int).tolist()
    return enlarge(made.values.cpu().numpy(), made.region, width, height)[top:bottom, left:right]
